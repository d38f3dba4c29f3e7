//! Whether packets come: what the data path observes of a camera that plays.

use std::time::{Duration, Instant};

use super::{Phase, Upstream};

/// Longest wait for a camera that has fallen silent to say that it is still there.
const PROBE_WAIT: Duration = Duration::from_secs(2);

impl Upstream {
    /// Packets arrive.
    pub(crate) fn observe_active(&mut self) {
        if matches!(self.phase, Phase::Installing | Phase::Starting | Phase::Playing) {
            self.active = true;
            self.attempts = 0;
            self.failures = 0;
            self.probe = None;
            if self.phase == Phase::Playing {
                self.deadline = None;
            }
        }
    }

    /// No packet for this long.
    pub(crate) fn observe_silent(&mut self, now: Instant, silent_for: Duration) {
        if self.phase != Phase::Playing || silent_for < self.times.silence {
            return;
        }
        if silent_for >= self.times.silence_reopen {
            return self.reopen(now, "silent");
        }
        if self.active && self.probe.is_none() {
            // A camera that rebooted answers the probe with a reset, one that only pauses answers it.
            self.probe = Some(now + PROBE_WAIT);
            if let Some(client) = &mut self.client {
                client.probe(now);
            }
            self.drain_client(now);
        }
    }
}
