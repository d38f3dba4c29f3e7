//! When the consequences of changes of the network are drawn: soon after a change, for many come at once, but never so
//! often that a routing daemon that changes its mind all the time leaves the thread no time for anything else.

use std::time::{Duration, Instant};

/// How long to wait after a change before routes are asked for.
const SETTLE: Duration = Duration::from_millis(20);
/// The pause after it in units of the time that it took: with thousands of viewers it is a request for each.
const PAUSE: u32 = 9;

#[derive(Debug)]
pub(super) struct Settling {
    at: Option<Instant>,
    not_before: Instant,
}

impl Settling {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: None, not_before: now }
    }

    /// Something has changed.
    pub(super) fn note(&mut self, now: Instant) {
        self.at.get_or_insert((now + SETTLE).max(self.not_before));
    }

    /// When it is to be done.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.at
    }

    /// Whether it is to be done now, once.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// It has been done.
    pub(super) fn done(&mut self, started: Instant, ended: Instant) {
        self.not_before = ended + ended.saturating_duration_since(started) * PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_is_followed_soon_and_a_storm_of_them_for_a_tenth_of_the_time() {
        let start = Instant::now();
        let mut settling = Settling::new(start);
        assert!(!settling.take(start) && settling.poll_timeout().is_none());
        settling.note(start);
        settling.note(start + SETTLE / 2);
        assert_eq!(settling.poll_timeout(), Some(start + SETTLE), "the first of many counts");
        let mut now = start + SETTLE;
        let took = Duration::from_millis(100);
        let mut times = 0;
        while now < start + Duration::from_secs(10) {
            if settling.take(now) {
                settling.done(now, now + took);
                now += took;
                times += 1;
            }
            settling.note(now);
            now += Duration::from_millis(1);
        }
        assert!((9..=10).contains(&times), "{times} times a tenth of a second in ten seconds");
        now += Duration::from_secs(1);
        settling.take(now);
        settling.note(now);
        assert_eq!(settling.poll_timeout(), Some(now + SETTLE), "one change again");
    }
}
