//! What one sink saw, by the numbers inside the packets.

use super::{HEADER, MARK, SMALLEST};

/// One sink's account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Packets received, whatever their state.
    pub packets: u64,
    /// Bytes of them, RTP header included.
    pub bytes: u64,
    /// Packets that came more than once.
    pub doubled: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Packets of another camera, without our mark, or whose sequence number does not fit their number.
    pub wrong: u64,
    /// Changes of the SSRC.
    pub ssrc_changes: u64,
    /// Sequence number, timestamp and SSRC of the first packet.
    pub first: Option<(u16, u32, u32)>,
    /// Number of the first packet and the highest one.
    pub numbers: Option<(u32, u32)>,
    camera: u32,
    ssrc: u32,
    seen: Vec<u64>,
}

impl Account {
    /// Packets between the first and the highest that never came.
    pub fn lost(&self) -> u64 {
        let distinct: u64 = self.seen.iter().map(|word| u64::from(word.count_ones())).sum();
        self.numbers.map_or(0, |(first, highest)| u64::from(highest - first) + 1 - distinct)
    }

    /// True when nothing was lost, doubled, reordered or wrong.
    pub fn is_clean(&self) -> bool {
        self.packets > 0
            && self.lost() == 0
            && self.doubled == 0
            && self.reordered == 0
            && self.wrong == 0
            && self.ssrc_changes == 0
    }

    /// Counts one RTP packet.
    pub(super) fn count(&mut self, packet: &[u8]) {
        self.packets += 1;
        self.bytes += packet.len() as u64;
        if packet.len() < SMALLEST || packet[0] >> 6 != 2 || packet[HEADER] != MARK {
            self.wrong += 1;
            return;
        }
        let word =
            |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let (timestamp, ssrc, camera, number) = (word(4), word(8), word(13), word(17));
        let sequence = u16::from_be_bytes([packet[2], packet[3]]);
        let Some((first, highest)) = self.numbers else {
            self.first = Some((sequence, timestamp, ssrc));
            (self.camera, self.ssrc, self.numbers) = (camera, ssrc, Some((number, number)));
            self.mark(0);
            return;
        };
        if ssrc != self.ssrc {
            self.ssrc_changes += 1;
            self.ssrc = ssrc;
        }
        let base = self.first.map_or(0, |(sequence, ..)| sequence);
        let fits = sequence.wrapping_sub(base) == number.wrapping_sub(first) as u16;
        if camera != self.camera || number < first || number - first > 1 << 24 || !fits {
            self.wrong += 1;
            return;
        }
        if !self.mark(number - first) {
            self.doubled += 1;
        } else if number < highest {
            self.reordered += 1;
        }
        self.numbers = Some((first, highest.max(number)));
    }

    /// False when it was marked before.
    fn mark(&mut self, offset: u32) -> bool {
        let (word, bit) = (offset as usize / 64, 1 << (offset % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;

    fn account(numbers: &[u32]) -> Account {
        let mut account = Account::default();
        for number in numbers {
            let mut packet = [0; 40];
            build(&mut packet, 7, *number, (65_530, 1, 2), *number, false);
            account.count(&packet);
        }
        account
    }

    #[test]
    fn a_whole_run_over_the_sequence_wrap_is_clean() {
        assert!(account(&(100..400).collect::<Vec<_>>()).is_clean());
    }

    #[test]
    fn loss_doubling_and_reordering_are_told_apart() {
        let seen = account(&[1, 2, 4, 4, 6, 5, 9]);
        assert_eq!((seen.lost(), seen.doubled, seen.reordered, seen.wrong), (3, 1, 1, 0));
        assert!(!seen.is_clean());
    }

    #[test]
    fn a_packet_of_another_camera_is_wrong() {
        let mut seen = account(&[1, 2]);
        let mut packet = [0; 40];
        build(&mut packet, 8, 3, (65_530, 1, 2), 3, false);
        seen.count(&packet);
        assert_eq!(seen.wrong, 1);
    }
}
