//! Sequence numbers: extension from 16 to 64 bits, duplicates, and the detection of restarts.

/// Largest step forward that counts as loss; beyond it two packets in a row are a restart (RTP-7).
pub const MAX_DROPOUT: u16 = 3_000;
/// Smallest step backward that may be a restart. Streams of more than 1,000 packets per second use
/// 100 ms worth of packets instead (`docs/protocols/rtp.md`).
pub const MAX_MISORDER: u16 = 100;

/// How far back sequence numbers are remembered, in packets; the upper bound of the misorder limit.
const WINDOW: u64 = 1_024;
const WORDS: usize = WINDOW as usize / 64;

/// Extends a 16-bit RTP sequence number to 64 bits.
///
/// `last`: highest extended number so far. `seq`: value on the wire, host order. Returns the extended
/// number nearest to `last`; it may be lower (reordering). Numbers below zero wrap, which a start at
/// 65,536 or more avoids.
///
/// Source: RFC 3550 section 5.1 and appendix A.1.
#[inline]
pub fn extend(last: u64, seq: u16) -> u64 {
    let step = seq.wrapping_sub(last as u16) as i16;
    last.wrapping_add_signed(i64::from(step))
}

/// What one sequence number means beside those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeqStep {
    /// Higher than all before; this many numbers were skipped.
    Forward {
        /// Numbers between the highest so far and this one.
        skipped: u16,
    },
    /// Lower than the highest, first seen now.
    Reordered,
    /// Seen before.
    Duplicate,
    /// Too far away to belong to the sequence. A second one in a row is a restart; the tracker is
    /// unchanged, so that the caller decides (RTP-7).
    Jump,
}

/// Follows the sequence numbers of one source.
///
/// Extended numbers start at 65,536 plus the first number, so that reordering at the start never goes
/// below zero.
#[derive(Debug, Clone)]
pub struct SeqTracker {
    pub(crate) first: u64,
    pub(crate) highest: u64,
    pub(crate) misorder: u16,
    /// One bit per number in `highest - WINDOW < n <= highest`, at `n % WINDOW`.
    pub(crate) seen: [u64; WORDS],
}

impl SeqTracker {
    /// A tracker whose first packet has this number.
    pub fn new(seq: u16) -> Self {
        let first = 0x1_0000 + u64::from(seq);
        let mut tracker = Self { first, highest: first, misorder: MAX_MISORDER, seen: [0; WORDS] };
        tracker.mark(first);
        tracker
    }

    /// The lowest extended number that counts as expected.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The highest extended number so far.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// The highest number with its count of cycles, as a report block says it (RFC 3550 section 6.4.1).
    pub fn highest_on_wire(&self) -> u32 {
        self.highest.wrapping_sub(0x1_0000) as u32
    }

    /// Sets the misorder limit from the rate of the stream: 100 ms of packets, at least
    /// [`MAX_MISORDER`].
    pub fn set_rate(&mut self, packets_per_second: u64) {
        self.misorder = (packets_per_second / 10).clamp(u64::from(MAX_MISORDER), WINDOW - 1) as u16;
    }

    /// Numbers expected so far: from the first to the highest.
    pub fn expected(&self) -> u64 {
        self.highest - self.first + 1
    }

    /// Takes the number of the next packet. Returns its extended number with its meaning.
    #[inline]
    pub fn observe(&mut self, seq: u16) -> (u64, SeqStep) {
        let number = extend(self.highest, seq);
        if number > self.highest {
            let step = number - self.highest;
            if step > u64::from(MAX_DROPOUT) {
                return (number, SeqStep::Jump);
            }
            self.advance(number);
            return (number, SeqStep::Forward { skipped: (step - 1) as u16 });
        }
        if self.highest - number > u64::from(self.misorder) {
            return (number, SeqStep::Jump);
        }
        if self.is_marked(number) {
            return (number, SeqStep::Duplicate);
        }
        self.mark(number);
        // A packet from before the one that happened to come first was expected too.
        self.first = self.first.min(number);
        (number, SeqStep::Reordered)
    }

    /// Whether a number behind the highest is near enough to be late and no jump.
    pub(crate) fn reaches_back_to(&self, number: u64) -> bool {
        number <= self.highest && self.highest - number <= u64::from(self.misorder)
    }

    /// Goes on from a higher number: those in between, and the number itself, may still come.
    pub(crate) fn raise(&mut self, number: u64) {
        if number > self.highest {
            self.advance(number);
            self.clear(number);
        }
    }

    /// Which of the last 64 numbers came: bit n is [`Self::highest`] - n.
    pub(crate) fn window(&self) -> u64 {
        (0..64).filter(|n| self.is_marked(self.highest - n)).fold(0, |bits, n| bits | 1 << n)
    }

    /// Marks numbers that came elsewhere: bit n of `bits` is `top` - n.
    pub(crate) fn mark_window(&mut self, top: u64, bits: u64) {
        for n in (0..64).filter(|n| bits & (1 << n) != 0) {
            let number = top.saturating_sub(n);
            if number <= self.highest && self.highest - number < WINDOW {
                self.mark(number);
            }
        }
    }

    #[inline]
    fn advance(&mut self, number: u64) {
        if number - self.highest >= WINDOW {
            self.seen = [0; WORDS];
        } else {
            for skipped in self.highest + 1..number {
                self.clear(skipped);
            }
        }
        self.highest = number;
        self.mark(number);
    }

    #[inline]
    fn bit(number: u64) -> (usize, u64) {
        ((number % WINDOW / 64) as usize, 1 << (number % 64))
    }

    #[inline]
    fn mark(&mut self, number: u64) {
        let (word, bit) = Self::bit(number);
        if let Some(word) = self.seen.get_mut(word) {
            *word |= bit;
        }
    }

    #[inline]
    fn clear(&mut self, number: u64) {
        let (word, bit) = Self::bit(number);
        if let Some(word) = self.seen.get_mut(word) {
            *word &= !bit;
        }
    }

    #[inline]
    fn is_marked(&self, number: u64) -> bool {
        let (word, bit) = Self::bit(number);
        self.seen.get(word).is_some_and(|word| word & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use super::*;

    fn steps(first: u16, rest: &[u16]) -> Vec<SeqStep> {
        let mut tracker = SeqTracker::new(first);
        rest.iter().map(|seq| tracker.observe(*seq).1).collect()
    }

    #[test]
    fn loss_reordering_and_duplicates_are_told_apart_across_the_wrap() {
        use SeqStep::{Duplicate, Forward, Reordered};
        assert_eq!(
            steps(65_533, &[65_534, 1, 65_535, 1, 0, 2, 65_533]),
            [
                Forward { skipped: 0 },
                Forward { skipped: 2 },
                Reordered,
                Duplicate,
                Reordered,
                Forward { skipped: 0 },
                Duplicate
            ]
        );
    }

    #[test]
    fn jumps_beyond_dropout_and_misorder_leave_the_tracker_alone() {
        let mut tracker = SeqTracker::new(10_000);
        assert_eq!(tracker.observe(13_000).1, SeqStep::Forward { skipped: 2_999 });
        assert_eq!(tracker.observe(16_001).1, SeqStep::Jump, "RTP-7");
        assert_eq!(tracker.observe(12_899).1, SeqStep::Jump, "RFC 3550 A.1");
        assert_eq!(tracker.observe(12_900).1, SeqStep::Reordered);
        assert_eq!(tracker.highest(), 0x1_0000 + 13_000);
    }

    #[test]
    fn fast_streams_tolerate_100_ms_of_misorder() {
        let mut tracker = SeqTracker::new(5_000);
        tracker.set_rate(4_000);
        tracker.observe(5_500);
        assert_eq!(tracker.observe(5_100).1, SeqStep::Reordered);
        assert_eq!(tracker.observe(5_099).1, SeqStep::Jump);
        tracker.set_rate(u64::MAX);
        tracker.set_rate(1);
        assert_eq!(tracker.observe(5_399).1, SeqStep::Jump, "at least {MAX_MISORDER}, no more at low rates");
    }

    #[test]
    fn a_packet_from_before_the_first_is_expected_too() {
        let mut tracker = SeqTracker::new(0);
        tracker.observe(1);
        assert_eq!(tracker.observe(65_535).1, SeqStep::Reordered);
        assert_eq!(tracker.expected(), 3);
    }

    proptest! {
        #[test]
        fn extension_finds_the_nearest_number(last in 0x2_0000_u64..u64::MAX / 2, seq: u16) {
            let found = extend(last, seq);
            prop_assert_eq!(found as u16, seq);
            let naive = (last - 40_000..last + 40_000)
                .filter(|n| *n as u16 == seq)
                .min_by_key(|n| (n.abs_diff(last), *n))
                .unwrap();
            prop_assert_eq!(found, naive);
        }

        #[test]
        fn tracker_agrees_with_a_set_of_all_numbers(start: u16, moves in prop::collection::vec(-90_i64..60, 1..400)) {
            let mut tracker = SeqTracker::new(start);
            let mut all = BTreeSet::from([0x1_0000 + u64::from(start)]);
            let mut duplicates = 0_usize;
            let mut taken = 1_usize;
            for step in moves {
                let highest = *all.last().unwrap();
                let number = highest.wrapping_add_signed(step);
                let (found, kind) = tracker.observe(number as u16);
                prop_assert_eq!(found, number);
                let expected = match step {
                    1.. => SeqStep::Forward { skipped: (step - 1) as u16 },
                    _ if all.contains(&number) => SeqStep::Duplicate,
                    _ => SeqStep::Reordered,
                };
                prop_assert_eq!(kind, expected);
                duplicates += usize::from(!all.insert(number));
                taken += 1;
            }
            prop_assert_eq!(taken - duplicates, all.len());
            prop_assert_eq!(tracker.expected(), all.last().unwrap() - all.first().unwrap() + 1);
        }
    }
}
