//! A worker's sense of time.
//!
//! A timer descriptor beside the sockets: it runs by itself. A timer of the runtime would be set and taken back
//! in the kernel around every wait for packets.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

use crate::user::udp;

/// How often time is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Ticks while it runs.
#[derive(Debug)]
pub(super) struct Ticker(TimerFd);

/// The same, watched by the runtime.
#[derive(Debug)]
pub(super) struct Watched {
    timer: TimerFd,
    expired: AsyncFd<OwnedFd>,
    running: std::cell::Cell<bool>,
}

impl Ticker {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?))
    }

    /// To be called on the worker's runtime.
    pub(super) fn watch(self) -> io::Result<Watched> {
        let expired = udp::readable(self.0.as_fd().try_clone_to_owned()?)?;
        Ok(Watched { timer: self.0, expired, running: std::cell::Cell::new(false) })
    }
}

impl Watched {
    /// Starts or stops it; nothing happens if it does so already.
    pub(super) fn run(&self, running: bool) {
        if self.running.replace(running) == running {
            return;
        }
        let timer = &self.timer;
        // Neither fails for a timer that is open and a time that is valid.
        let _ = if running {
            timer.set(Expiration::Interval(TimeSpec::from_duration(TICK)), TimerSetTimeFlags::empty())
        } else {
            timer.unset()
        };
    }

    /// The next tick; those that were missed count as one. Never, while it does not run. Cancel safe.
    pub(super) async fn tick(&self) {
        loop {
            let Ok(mut ready) = self.expired.readable().await else { return std::future::pending().await };
            // `wait` reads the descriptor, which does not block.
            if let Ok(Ok(())) = ready.try_io(|_| Ok(self.timer.wait()?)) {
                return;
            }
        }
    }
}
