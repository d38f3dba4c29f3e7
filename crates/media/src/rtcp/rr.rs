//! Receiver reports and report blocks.

use super::{packet_type, word, write_packet};

/// Length of a report block in bytes.
pub const BLOCK_LEN: usize = 24;

/// A report block: what one receiver says about one source.
///
/// Source: RFC 3550 section 6.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReportBlock {
    /// The source it is about.
    pub ssrc: u32,
    /// Share of packets lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost since the beginning, signed 24 bits.
    pub cumulative_lost: i32,
    /// Highest sequence number with its cycles in the upper half.
    pub highest: u32,
    /// Interarrival jitter in ticks.
    pub jitter: u32,
    /// Middle 32 bits of the NTP timestamp of the last SR, 0 for none.
    pub lsr: u32,
    /// Delay since that SR in 1/65536 s.
    pub dlsr: u32,
}

impl ReportBlock {
    pub(crate) fn read(bytes: &[u8; BLOCK_LEN]) -> Self {
        let at = |offset| word(bytes, offset).unwrap_or(0);
        let loss = at(4);
        Self {
            ssrc: at(0),
            fraction_lost: (loss >> 24) as u8,
            cumulative_lost: ((loss << 8) as i32) >> 8,
            highest: at(8),
            jitter: at(12),
            lsr: at(16),
            dlsr: at(20),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let lost = self.cumulative_lost.clamp(-0x80_0000, 0x7f_ffff) as u32 & 0x00ff_ffff;
        out.extend(self.ssrc.to_be_bytes());
        out.extend((u32::from(self.fraction_lost) << 24 | lost).to_be_bytes());
        for field in [self.highest, self.jitter, self.lsr, self.dlsr] {
            out.extend(field.to_be_bytes());
        }
    }
}

/// Report blocks in a body; what follows the counted ones is a profile extension.
pub(crate) fn blocks(bytes: &[u8]) -> impl Iterator<Item = ReportBlock> + '_ {
    bytes.as_chunks::<BLOCK_LEN>().0.iter().map(ReportBlock::read)
}

/// A receiver report.
#[derive(Debug, Clone, Copy)]
pub struct ReceiverReport<'a> {
    ssrc: u32,
    blocks: &'a [u8],
}

impl<'a> ReceiverReport<'a> {
    pub(crate) fn parse(count: u8, body: &'a [u8]) -> Option<Self> {
        let blocks = body.get(4..)?.get(..usize::from(count) * BLOCK_LEN)?;
        Some(Self { ssrc: word(body, 0)?, blocks })
    }

    /// Who reports.
    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// What it reports.
    pub fn blocks(&self) -> impl Iterator<Item = ReportBlock> + 'a {
        blocks(self.blocks)
    }
}

/// Appends a receiver report of `ssrc`; blocks beyond 31 are left out.
///
/// Source: RFC 3550 section 6.4.2.
pub fn write_rr(out: &mut Vec<u8>, ssrc: u32, blocks: &[ReportBlock]) {
    let mut body = Vec::with_capacity(4 + blocks.len().min(31) * BLOCK_LEN);
    body.extend(ssrc.to_be_bytes());
    let mut count = 0;
    for block in blocks.iter().take(31) {
        block.write(&mut body);
        count += 1;
    }
    write_packet(out, count, packet_type::RR, &body);
}
