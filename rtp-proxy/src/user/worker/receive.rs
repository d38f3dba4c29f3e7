//! Receiving in batches, and letting a burst arrive.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::Shared;
use crate::user::io_buffers::IoBuffers;
use crate::user::pace::Pace;

/// Full batches of one socket before others get a turn.
const BATCHES: usize = 4;
/// How long a burst is waited for: 32 packets of one `sendmmsg` over loopback, 40 of 1,200 bytes at line
/// rate of a gigabit take less than twice that, and the wake-up has passed already.
const PAUSE: Duration = Duration::from_micros(60);
/// Least time between two pauses of a worker.
const PAUSE_EVERY: Duration = Duration::from_micros(250);

impl Shared {
    /// Receives batches and has each handled. `WouldBlock` says that the socket is empty. With `pace`, a
    /// burst is waited for once, so that it leaves in few calls, not packet by packet as it came.
    pub(crate) fn receive(
        &self,
        socket: &impl AsRawFd,
        pace: Option<&RefCell<Pace>>,
        mut handle: impl FnMut(Instant, &mut IoBuffers),
    ) -> io::Result<()> {
        if let Some(pace) = pace {
            let now = Instant::now();
            if pace.borrow_mut().handle_wake(now) {
                self.pause(now);
            }
        }
        for _ in 0..BATCHES {
            let mut io = self.io.borrow_mut();
            let emptied = match io.receive.recv(socket) {
                Ok(emptied) => emptied,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // An ICMP error of an earlier send: not the receiver's business.
                Err(_) => continue,
            };
            let now = Instant::now();
            let received = io.receive.datagrams().len() as u32;
            handle(now, &mut io);
            drop(io);
            let more = pace.is_some_and(|pace| pace.borrow_mut().handle_batch(now, received));
            if !emptied {
                continue;
            }
            if !more || !self.pause(now) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }

    /// Pauses this thread, which serves other streams, too: so pauses are few, whatever arrives, and what
    /// arrives meanwhile on other sockets leaves in larger batches for it. Returns whether it did.
    fn pause(&self, now: Instant) -> bool {
        let may = self.paused.get().is_none_or(|last| now.duration_since(last) >= PAUSE_EVERY);
        if may {
            self.paused.set(Some(now));
            std::thread::sleep(PAUSE);
        }
        may
    }
}
