//! Reorder buffer: puts packets in sequence again, bounded by time (RTP-12).
//!
//! For legs that cannot deliver out of order although their source does: TCP legs of UDP sources. The
//! default path has none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub mod inventory;

/// Shortest and longest wait for a packet that is missing (`docs/protocols/rtp.md`, limits).
pub const MIN_WINDOW: Duration = Duration::from_millis(20);
/// See [`MIN_WINDOW`].
pub const MAX_WINDOW: Duration = Duration::from_millis(50);
/// Memory bound, far beyond what 50 ms of any stream take. Not a reordering depth.
const MAX_ENTRIES: usize = 8_192;

/// Packets in sequence.
#[derive(Debug)]
pub struct Reorder<T> {
    window: Duration,
    next: Option<u64>,
    waiting: BTreeMap<u64, (Instant, T)>,
    late: u64,
}

impl<T> Reorder<T> {
    /// A buffer that waits this long for a missing packet, clamped to 20..=50 ms.
    pub fn new(window: Duration) -> Self {
        Self { window: window.clamp(MIN_WINDOW, MAX_WINDOW), next: None, waiting: BTreeMap::new(), late: 0 }
    }

    /// Takes a packet by its extended sequence number. One that was released or given up already is
    /// returned; it is too late.
    pub fn push(&mut self, now: Instant, ext: u64, packet: T) -> Option<T> {
        if self.next.is_some_and(|next| ext < next) || self.waiting.contains_key(&ext) {
            self.late += 1;
            return Some(packet);
        }
        self.next.get_or_insert(ext);
        self.waiting.insert(ext, (now, packet));
        None
    }

    /// Whether a packet is the next in sequence while nothing waits: it then counts as released, and its
    /// owner sends it at once, past the buffer.
    pub fn pass(&mut self, ext: u64) -> bool {
        let passes = self.waiting.is_empty() && self.next.is_none_or(|next| next == ext);
        if passes {
            self.next = Some(ext + 1);
        }
        passes
    }

    /// The next packet in sequence, if it is there, or the first after a gap that has been waited for
    /// long enough. Call until it returns `None`.
    pub fn pop(&mut self, now: Instant) -> Option<(u64, T)> {
        let entry = self.waiting.first_entry()?;
        let in_sequence = self.next.is_none_or(|next| *entry.key() <= next);
        let waited = now.saturating_duration_since(entry.get().0) >= self.window;
        if !in_sequence && !waited && self.waiting.len() <= MAX_ENTRIES {
            return None;
        }
        let (ext, (_, packet)) = self.waiting.pop_first()?;
        self.next = Some(ext + 1);
        Some((ext, packet))
    }

    /// When a gap has been waited for long enough.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, (at, _))| *at + self.window)
    }

    /// Starts anew: the source restarted. Returns what was waiting, in sequence.
    pub fn reset(&mut self) -> impl Iterator<Item = (u64, T)> + use<T> {
        self.next = None;
        std::mem::take(&mut self.waiting).into_iter().map(|(ext, (_, packet))| (ext, packet))
    }

    /// Packets waiting: the depth of the queue.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Packets that came too late or twice.
    pub fn late(&self) -> u64 {
        self.late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn drain(buffer: &mut Reorder<u64>, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| buffer.pop(now).map(|(ext, _)| ext)).collect()
    }

    #[test]
    fn packets_in_sequence_pass_at_once() {
        let now = start();
        let mut buffer = Reorder::new(MIN_WINDOW);
        for ext in 10..13 {
            assert_eq!(buffer.push(now, ext, ext), None);
            assert_eq!(drain(&mut buffer, now), [ext]);
        }
        assert_eq!(buffer.poll_timeout(), None);
    }

    #[test]
    fn packets_pass_by_the_buffer_until_one_is_out_of_sequence() {
        let now = start();
        let mut buffer = Reorder::new(MIN_WINDOW);
        assert!([3, 4, 5].into_iter().all(|ext| buffer.pass(ext)));
        assert!(!buffer.pass(7), "6 is missing");
        buffer.push(now, 7, 7);
        assert!(!buffer.pass(6), "7 waits: nothing passes by it");
        buffer.push(now, 6, 6);
        assert_eq!(drain(&mut buffer, now), [6, 7]);
        assert!(buffer.pass(8));
        assert!(!buffer.pass(4), "too late");
    }

    #[test]
    fn a_gap_is_waited_for_by_time_and_never_by_count() {
        let now = start();
        let mut buffer = Reorder::new(MIN_WINDOW);
        buffer.push(now, 0, 0);
        drain(&mut buffer, now);
        for ext in 2..1_002 {
            buffer.push(now, ext, ext);
        }
        assert_eq!(
            drain(&mut buffer, now),
            [0_u64; 0],
            "RTP-12: a thousand packets are no reason to give up"
        );
        assert_eq!(buffer.poll_timeout(), Some(now + MIN_WINDOW));
        assert_eq!(drain(&mut buffer, now + MIN_WINDOW).len(), 1_000);
    }

    #[test]
    fn a_packet_that_comes_within_the_window_takes_its_place() {
        let now = start();
        let mut buffer = Reorder::new(MIN_WINDOW);
        for ext in [5, 7, 8, 6] {
            assert_eq!(buffer.push(now, ext, ext), None);
        }
        assert_eq!(drain(&mut buffer, now), [5, 6, 7, 8]);
        assert_eq!(buffer.push(now, 6, 6), Some(6), "RTP-8: twice");
        assert_eq!(buffer.late(), 1);
    }

    #[test]
    fn window_is_kept_between_20_and_50_ms() {
        let now = start();
        for (asked, kept) in [(0, 20), (30, 30), (500, 50)] {
            let mut buffer = Reorder::new(Duration::from_millis(asked));
            buffer.push(now, 0, 0);
            assert_eq!(buffer.poll_timeout(), Some(now + Duration::from_millis(kept)));
        }
    }
}
