//! Media clocks: ticks of an RTP clock, NTP timestamps, and conversions between them and durations.

use std::num::NonZeroU32;
use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// Rate of an RTP clock in Hz, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClockRate(NonZeroU32);

impl ClockRate {
    /// 90 kHz, the clock of every video payload format.
    pub const VIDEO: Self = match NonZeroU32::new(90_000) {
        Some(hz) => Self(hz),
        None => panic!("90000 is not zero"),
    };

    /// A rate in Hz; `None` for 0, which an SDP may say.
    pub fn new(hz: u32) -> Option<Self> {
        NonZeroU32::new(hz).map(Self)
    }

    /// The rate in Hz.
    pub fn hz(self) -> u32 {
        self.0.get()
    }

    /// Ticks in a duration, rounded to the nearest.
    pub fn ticks(self, duration: Duration) -> u64 {
        let ticks = (duration.as_nanos() * u128::from(self.hz()) + NANOS / 2) / NANOS;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Length of a number of ticks, rounded down to a nanosecond.
    pub fn duration(self, ticks: u64) -> Duration {
        let hz = u64::from(self.hz());
        let rest = (ticks % hz) * 1_000_000_000 / hz;
        Duration::new(ticks / hz, u32::try_from(rest).unwrap_or(0))
    }

    /// Ticks as a fraction of seconds, for statistics.
    pub fn seconds(self, ticks: f64) -> f64 {
        ticks / f64::from(self.hz())
    }
}

/// An RTP timestamp, in ticks of its track's clock, modulo 2^32. Starts at a random value.
///
/// Source: RFC 3550 section 5.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RtpTime(pub u32);

impl RtpTime {
    /// This time plus ticks; wraps.
    #[must_use]
    pub fn plus(self, ticks: u64) -> Self {
        Self(self.0.wrapping_add(ticks as u32))
    }

    /// Signed distance `self - earlier` in ticks, the nearer way around.
    pub fn since(self, earlier: Self) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }
}

/// A 64-bit NTP timestamp: seconds since 1900 in the upper, fractions of 2^-32 s in the lower half.
/// Cameras without a clock start anywhere; only differences are meaningful.
///
/// Source: RFC 3550 section 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ntp(pub u64);

impl Ntp {
    /// The middle 32 bits, as LSR carries them (RFC 3550 section 6.4.1).
    pub fn middle(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// Seconds and fraction as they stand on the wire.
    pub fn parts(self) -> (u32, u32) {
        ((self.0 >> 32) as u32, self.0 as u32)
    }

    /// This time plus ticks of a clock, rounded to the nearest fraction; wraps.
    #[must_use]
    pub fn plus(self, ticks: u64, clock: ClockRate) -> Self {
        let hz = u128::from(clock.hz());
        Self(self.0.wrapping_add((((u128::from(ticks) << 32) + hz / 2) / hz) as u64))
    }

    /// Microseconds since 1900, rounded to the nearest.
    pub fn micros(self) -> i64 {
        ((u128::from(self.0) * 1_000_000 + (1 << 31)) >> 32) as i64
    }

    /// Signed distance `self - earlier` in microseconds.
    pub fn micros_since(self, earlier: Self) -> i64 {
        let fractions = self.0.wrapping_sub(earlier.0) as i64;
        ((i128::from(fractions) * 1_000_000) >> 32) as i64
    }
}

/// A duration in units of 1/65536 s, as DLSR carries it. Saturates after 18 hours.
///
/// Source: RFC 3550 section 6.4.1.
pub fn to_short(duration: Duration) -> u32 {
    let units = (duration.as_nanos() << 16) / NANOS;
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// The duration of a number of units of 1/65536 s.
pub fn from_short(units: u32) -> Duration {
    Duration::from_nanos((u64::from(units) * 1_000_000_000) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_durations_are_inverse_within_one_nanosecond_per_tick() {
        for hz in [8_000, 44_100, 48_000, 90_000] {
            let rate = ClockRate::new(hz).unwrap();
            for ticks in [0, 1, 3_003, 90_000, 1 << 33] {
                assert_eq!(rate.ticks(rate.duration(ticks)), ticks, "{hz} Hz");
            }
        }
    }

    #[test]
    fn a_clock_rate_of_zero_does_not_exist() {
        assert_eq!(ClockRate::new(0), None);
    }

    #[test]
    fn short_format_keeps_durations_within_16_microseconds() {
        let delay = Duration::from_millis(5_250);
        assert_eq!(to_short(delay), 0x0005_4000, "the example of RFC 3550 section 6.4.1");
        assert_eq!(from_short(0x0005_4000), delay);
        assert_eq!(to_short(Duration::MAX), u32::MAX);
    }

    #[test]
    fn ntp_differences_cross_the_era() {
        let before = Ntp(u64::MAX - (1 << 31));
        let after = Ntp((1 << 31) - 1);
        assert_eq!(after.micros_since(before), 1_000_000);
        assert_eq!(before.micros_since(after), -1_000_000);
    }
}
