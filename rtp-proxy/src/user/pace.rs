//! When to let a burst arrive before looking at it. Pure: time is an argument.
//!
//! An encoder sends a frame as a burst of packets. A worker that is woken by the first of them and chases
//! the rest pays a wake-up, a receive and a send for every few packets; one short wait, and the burst
//! leaves by one send per leg. Single packets, voice above all, are never waited for.

use std::time::{Duration, Instant};

/// Silence that ends a burst.
const BURST_END: Duration = Duration::from_micros(500);
/// Packets that come sooner after one another than this are a burst, even one by one: voice is not, nor
/// are 10,000 even packets per second.
const BURST_GAP: Duration = Duration::from_micros(40);
/// A batch of more packets is a burst that came whole.
const WHOLE: u32 = 24;
/// A socket whose bursts usually have at least so many packets is waited for at the first of them.
const USUAL: u32 = 6;
/// Fixed-point scale of the running average.
const SCALE: u32 = 8;

/// What is known of the arrivals on one socket.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Usual packets per burst, times [`SCALE`].
    usual: u32,
    /// Packets of the burst that is arriving, or of the last one.
    burst: u32,
    last: Option<Instant>,
    /// Whether this burst was waited for.
    waited: bool,
}

impl Pace {
    /// The socket has something. Returns whether to wait before looking.
    pub(crate) fn handle_wake(&mut self, now: Instant) -> bool {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < BURST_END) {
            return false;
        }
        // A quarter of the way towards the burst that ended.
        self.usual = self.usual - self.usual / 4 + self.burst.min(1024) * SCALE / 4;
        self.burst = 0;
        self.waited = self.usual >= USUAL * SCALE;
        self.waited
    }

    /// A batch was received. Returns whether to wait for more, should the socket be empty now.
    pub(crate) fn handle_batch(&mut self, now: Instant, packets: u32) -> bool {
        let soon = self.last.is_some_and(|last| now.saturating_duration_since(last) < BURST_GAP);
        self.last = Some(now);
        self.burst = self.burst.saturating_add(packets);
        let more = !self.waited && packets <= WHOLE && (packets > 1 || soon);
        self.waited |= more;
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bursts of `packets` every 8 ms, each seen as batches of at most `batch`; returns waits before the
    /// first look and waits after one.
    fn run(packets: u32, batch: u32, bursts: u32) -> (u32, u32) {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let (mut before, mut after) = (0, 0);
        for _ in 0..bursts {
            now += Duration::from_millis(8);
            before += u32::from(pace.handle_wake(now));
            let mut left = packets;
            while left > 0 {
                let size = left.min(batch);
                left -= size;
                now += Duration::from_micros(50);
                after += u32::from(pace.handle_batch(now, size));
            }
        }
        (before, after)
    }

    #[test]
    fn single_packets_are_never_waited_for() {
        assert_eq!(run(1, 1, 1000), (0, 0));
    }

    #[test]
    fn the_first_burst_is_waited_for_once_and_the_next_ones_before_the_first_look() {
        assert_eq!(run(32, 8, 1), (0, 1));
        assert_eq!(run(32, 8, 10), (9, 1));
    }

    #[test]
    fn a_burst_that_came_whole_is_not_waited_for() {
        assert_eq!(run(32, 32, 1), (0, 0));
    }

    #[test]
    fn a_source_that_stops_bursting_is_believed_within_a_few_packets() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        for _ in 0..50 {
            now += Duration::from_millis(8);
            pace.handle_wake(now);
            pace.handle_batch(now, 40);
        }
        let mut waits = 0;
        for _ in 0..100 {
            now += Duration::from_millis(20);
            waits += u32::from(pace.handle_wake(now));
            waits += u32::from(pace.handle_batch(now, 1));
        }
        assert!((1..=8).contains(&waits), "{waits}");
    }

    #[test]
    fn ten_thousand_even_packets_a_second_are_not_a_burst() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        for _ in 0..10_000 {
            now += Duration::from_micros(100);
            assert!(!pace.handle_wake(now));
            assert!(!pace.handle_batch(now, 1));
        }
    }
}
