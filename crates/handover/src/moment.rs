//! Times that mean the same in another process.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A point in time as nanoseconds of the system's monotonic clock (`CLOCK_MONOTONIC`), which all processes
/// of a machine share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

/// One moment on both clocks, from which all others are computed. Both readings must be of the same clock;
/// what passed between them is the error of every conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    instant: Instant,
    nanos: u64,
}

impl Anchor {
    /// `instant` and the monotonic clock in nanoseconds, read together.
    pub fn new(instant: Instant, nanos: u64) -> Self {
        Self { instant, nanos }
    }

    /// `instant` for another process.
    pub fn moment(&self, instant: Instant) -> Moment {
        let nanos = match instant.checked_duration_since(self.instant) {
            Some(after) => self.nanos.saturating_add(nanos_of(after)),
            None => self.nanos.saturating_sub(nanos_of(self.instant.saturating_duration_since(instant))),
        };
        Moment(nanos)
    }

    /// A moment of another process here. What no [`Instant`] can say is the nearest that one can.
    pub fn instant(&self, moment: Moment) -> Instant {
        let distance = Duration::from_nanos(moment.0.abs_diff(self.nanos));
        let found = if moment.0 >= self.nanos {
            self.instant.checked_add(distance)
        } else {
            self.instant.checked_sub(distance)
        };
        found.unwrap_or(self.instant)
    }
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an Instant has no other constructor")]
    fn now() -> Instant {
        Instant::now()
    }

    proptest! {
        #[test]
        fn a_moment_is_the_same_instant_for_another_anchor_of_the_same_clock(
            nanos in 10_000_000_000_u64..u64::MAX / 4,
            apart in 0..5_000_000_000_u64,
            offset in -5_000_000_000_i64..5_000_000_000,
        ) {
            let here = now();
            let first = Anchor::new(here, nanos);
            let second = Anchor::new(here + Duration::from_nanos(apart), nanos + apart);
            let instant = if offset < 0 {
                here.checked_sub(Duration::from_nanos(offset.unsigned_abs())).unwrap()
            } else {
                here + Duration::from_nanos(offset.unsigned_abs())
            };
            let moment = first.moment(instant);
            prop_assert_eq!(moment.0, nanos.wrapping_add_signed(offset));
            prop_assert_eq!(second.instant(moment), instant);
        }
    }

    #[test]
    fn a_moment_that_no_clock_can_have_shown_is_no_panic() {
        let anchor = Anchor::new(now(), 5);
        let _ = anchor.instant(Moment(u64::MAX));
        let _ = anchor.instant(Moment(0));
    }
}
