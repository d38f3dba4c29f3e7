//! Receiving in batches.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use super::Shared;
use crate::user::io_buffers::IoBuffers;

/// Full batches of one socket before others get a turn.
const BATCHES: usize = 4;

impl Shared {
    /// Receives batches and has each handled. `WouldBlock` says that the socket is empty.
    ///
    /// A burst that is still arriving is not waited for: with a sleep of 60 us before the first look it left
    /// by one receive and one send per leg, and the cost per copy did not change, since the second wake-up
    /// costs what it saves (`docs/benchmarks.md`).
    pub(crate) fn receive(
        &self,
        socket: &impl AsRawFd,
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
            handle(Instant::now(), &mut io);
            if emptied {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }
}
