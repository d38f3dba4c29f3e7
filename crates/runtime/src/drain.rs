//! Shutdown order and its deadlines, as a value: what a signal means now, and when patience ends.
//!
//! The first signal drains if a drain was configured and otherwise ends; a signal while draining ends;
//! a signal while ending leaves at once. Drain is never unbounded.

use std::time::{Duration, Instant};

/// Longest time between the end of forwarding and the end of the process: BYE to every leg and TEARDOWN to
/// every source fit into it, a camera that does not answer does not prolong it.
pub const ENDING: Duration = Duration::from_millis(1_500);

/// Where the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Running,
    /// Forwarding until no leg is left, at most until this moment.
    Draining(Instant),
    /// Saying BYE and TEARDOWN, at most until this moment.
    Ending(Instant),
    /// To be left now.
    Over,
}

/// The shutdown machine.
#[derive(Debug)]
pub struct Drain {
    patience: Duration,
    phase: Phase,
}

impl Drain {
    /// `patience`: how long to keep forwarding after the first signal; zero ends at once.
    pub fn new(patience: Duration) -> Self {
        Self { patience, phase: Phase::Running }
    }

    /// Where the process is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// SIGTERM or Ctrl-C arrived. Returns the phase that it leads to.
    pub fn handle_signal(&mut self, now: Instant) -> Phase {
        self.phase = match self.phase {
            Phase::Running if !self.patience.is_zero() => Phase::Draining(now + self.patience),
            Phase::Running | Phase::Draining(_) => Phase::Ending(now + ENDING),
            Phase::Ending(_) | Phase::Over => Phase::Over,
        };
        self.phase
    }

    /// Time has passed. Returns the phase that it leads to.
    pub fn handle_timeout(&mut self, now: Instant) -> Phase {
        self.phase = match self.phase {
            Phase::Draining(until) if now >= until => Phase::Ending(now + ENDING),
            Phase::Ending(until) if now >= until => Phase::Over,
            phase => phase,
        };
        self.phase
    }

    /// Every leg and every source has ended.
    pub fn handle_finished(&mut self) {
        self.phase = Phase::Over;
    }

    /// When [`Drain::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Draining(until) | Phase::Ending(until) => Some(until),
            Phase::Running | Phase::Over => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_drain_the_first_signal_ends_and_the_second_leaves() {
        let now = Instant::now();
        let mut drain = Drain::new(Duration::ZERO);
        assert_eq!(drain.handle_signal(now), Phase::Ending(now + ENDING));
        assert_eq!(drain.handle_signal(now), Phase::Over);
    }

    #[test]
    fn with_drain_forwarding_goes_on_until_the_deadline_and_a_second_signal_ends_it() {
        let now = Instant::now();
        let mut drain = Drain::new(Duration::from_secs(25));
        let until = now + Duration::from_secs(25);
        assert_eq!(drain.handle_signal(now), Phase::Draining(until));
        assert_eq!(drain.handle_timeout(now + Duration::from_secs(24)), Phase::Draining(until));
        assert_eq!(drain.poll_timeout(), Some(until));
        assert_eq!(drain.handle_timeout(until), Phase::Ending(until + ENDING));
        assert_eq!(drain.handle_timeout(until + ENDING), Phase::Over);

        let mut drain = Drain::new(Duration::from_secs(25));
        drain.handle_signal(now);
        assert_eq!(drain.handle_signal(now), Phase::Ending(now + ENDING));
    }

    #[test]
    fn an_end_of_every_leg_ends_the_drain_early() {
        let mut drain = Drain::new(Duration::from_secs(25));
        drain.handle_signal(Instant::now());
        drain.handle_finished();
        assert_eq!(drain.phase(), Phase::Over);
        assert_eq!(drain.poll_timeout(), None);
    }
}
