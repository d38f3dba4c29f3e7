//! Receiving in batches, and waiting for the rest of a burst.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::Shared;
use crate::user::io_buffers::IoBuffers;

/// Full batches of one socket before others get a turn.
const BATCHES: usize = 4;
/// Packets of one socket that come sooner after one another than this are a burst (voice is not, nor are
/// 10,000 even packets per second).
const BURST_GAP: Duration = Duration::from_micros(40);
/// A batch of more packets is a burst that came whole.
const BURST: usize = 24;
/// How long a burst is waited for: 32 packets of one `sendmmsg` over loopback, 40 of 1,200 bytes at line
/// rate of a gigabit take less than twice that.
const PAUSE: Duration = Duration::from_micros(50);
/// Least time between two pauses of a worker.
const PAUSE_EVERY: Duration = Duration::from_micros(250);

impl Shared {
    /// Receives batches and has each handled. `WouldBlock` says that the socket is empty. With `pace`, a
    /// burst that is still arriving is waited for once, so that it leaves in few calls, not packet by
    /// packet as it came.
    pub(crate) fn receive(
        &self,
        socket: &impl AsRawFd,
        pace: Option<&Cell<Option<Instant>>>,
        mut handle: impl FnMut(Instant, &mut IoBuffers),
    ) -> io::Result<()> {
        for _ in 0..BATCHES {
            let mut io = self.io.borrow_mut();
            let emptied = match io.receive.recv(socket) {
                Ok(emptied) => emptied,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // An ICMP error of an earlier send: not the receiver's business.
                Err(_) => continue,
            };
            let now = Instant::now();
            let received = io.receive.datagrams().len();
            handle(now, &mut io);
            if !emptied {
                continue;
            }
            let Some(pace) = pace else { return Err(io::ErrorKind::WouldBlock.into()) };
            let in_burst =
                received > 1 || pace.get().is_some_and(|last| now.duration_since(last) < BURST_GAP);
            if !in_burst || received > BURST || !self.may_pause(now) {
                pace.set(Some(Instant::now()));
                return Err(io::ErrorKind::WouldBlock.into());
            }
            drop(io);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Pauses are few, whatever arrives: this thread serves other streams, too.
    fn may_pause(&self, now: Instant) -> bool {
        let may = self.paused.get().is_none_or(|last| now.duration_since(last) >= PAUSE_EVERY);
        if may {
            self.paused.set(Some(now));
        }
        may
    }
}
