//! The packets of the benchmark, and what a copy of one must look like.
//!
//! ```text
//! 0 RTP header (12) | 12 extended number (4) | 16 time sent (8) | 24 stream (4) | 28 pattern ...
//! ```

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

/// SSRC of stream 0; the others follow.
pub(crate) const SSRC: u32 = 0x6d73_6d01;
pub(crate) const PAYLOAD_TYPE: u8 = 96;
/// RTP clock per packet: 20 ms of G.711.
const TICKS: u32 = 160;
const PATTERN: usize = 28;

/// Writes what is the same in all packets.
pub(crate) fn body(packet: &mut [u8]) {
    packet[0] = 0x80;
    packet[1] = PAYLOAD_TYPE;
    for (index, byte) in packet.iter_mut().enumerate().skip(PATTERN) {
        *byte = pattern(index);
    }
}

fn pattern(index: usize) -> u8 {
    (index as u8).wrapping_mul(31).wrapping_add(7)
}

/// Writes the numbers of packet `number` of a stream.
pub(crate) fn number(packet: &mut [u8], stream: u32, number: u32) {
    packet[8..12].copy_from_slice(&SSRC.wrapping_add(stream).to_be_bytes());
    packet[24..28].copy_from_slice(&stream.to_be_bytes());
    packet[2..4].copy_from_slice(&(number as u16).to_be_bytes());
    packet[4..8].copy_from_slice(&number.wrapping_mul(TICKS).to_be_bytes());
    packet[12..16].copy_from_slice(&number.to_be_bytes());
}

/// Writes the time it is sent at.
pub(crate) fn stamp(packet: &mut [u8], ns: i64) {
    packet[16..24].copy_from_slice(&ns.to_be_bytes());
}

/// The time it was sent at.
pub(crate) fn stamp_of(packet: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(packet.get(16..24)?.try_into().ok()?))
}

/// How the RTP headers of a leg differ from the source's. Arithmetic of its own: the code under test is not
/// asked what is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edit {
    /// SSRC of the copies; the source's without it.
    pub(crate) ssrc: Option<u32>,
    pub(crate) seq: u16,
    pub(crate) timestamp: u32,
}

impl Edit {
    /// Nothing differs.
    pub(crate) const NONE: Self = Self { ssrc: None, seq: 0, timestamp: 0 };

    /// An edit that no other leg of any stream has.
    pub(crate) fn of_leg(stream: u32, leg: usize) -> Self {
        let unique = (stream << 10) + leg as u32 + 1;
        Self {
            ssrc: Some(0x0a00_0000 + unique),
            seq: (unique.wrapping_mul(4099)) as u16,
            timestamp: unique.wrapping_mul(0x0102_0305),
        }
    }

    /// The first 12 bytes of packet `number` of a stream after this edit.
    fn header(self, stream: u32, number: u32) -> [u8; 12] {
        let mut header = [0; 12];
        header[..2].copy_from_slice(&[0x80, PAYLOAD_TYPE]);
        header[2..4].copy_from_slice(&(number as u16).wrapping_add(self.seq).to_be_bytes());
        let timestamp = number.wrapping_mul(TICKS).wrapping_add(self.timestamp);
        header[4..8].copy_from_slice(&timestamp.to_be_bytes());
        header[8..12].copy_from_slice(&self.ssrc.unwrap_or(SSRC.wrapping_add(stream)).to_be_bytes());
        header
    }
}

/// What a leg's RTP headers must be.
#[derive(Debug, Clone)]
pub(crate) enum Expect {
    /// Exactly this edit.
    Edit(Edit),
    /// [`Edit::of_leg`] of each stream and this leg.
    PerLeg(usize),
    /// Any edit, the same for a stream's whole leg: a foreign program chooses its own.
    Constant(HashMap<u32, Edit>),
}

impl Expect {
    /// Any edit.
    pub(crate) fn any() -> Self {
        Self::Constant(HashMap::new())
    }

    /// Compares one copy byte by byte with what was sent; returns the stream and the packet's extended
    /// number.
    pub(crate) fn check(&mut self, copy: &[u8], size: usize) -> Result<(u32, u32)> {
        ensure!(copy.len() == size, "a copy of {} bytes instead of {size}", copy.len());
        let word = |at: usize| u32::from_be_bytes([copy[at], copy[at + 1], copy[at + 2], copy[at + 3]]);
        let (number, stream) = (word(12), word(24));
        let edit = match self {
            Self::Edit(edit) => *edit,
            Self::PerLeg(leg) => Edit::of_leg(stream, *leg),
            Self::Constant(known) => *known.entry(stream).or_insert(Edit {
                ssrc: Some(word(8)),
                seq: (word(0) as u16).wrapping_sub(number as u16),
                timestamp: word(4).wrapping_sub(number.wrapping_mul(TICKS)),
            }),
        };
        let wanted = edit.header(stream, number);
        if copy[..12] != wanted {
            bail!("packet {number}: RTP header {:02x?} instead of {wanted:02x?}", &copy[..12]);
        }
        let odd = copy.iter().enumerate().skip(PATTERN).find(|(index, byte)| **byte != pattern(*index));
        if let Some((index, byte)) = odd {
            bail!("packet {number}: byte {index} is {byte:#04x}");
        }
        Ok((stream, number))
    }
}
