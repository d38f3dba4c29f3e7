//! Sender reports.

use super::rr::{BLOCK_LEN, ReportBlock, blocks};
use super::{packet_type, word, write_packet};
use crate::clock::{ClockRate, Ntp, RtpTime};

/// Sender information: which NTP time corresponds to which RTP time, and how much was sent.
///
/// Source: RFC 3550 section 6.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SenderInfo {
    /// Who sends.
    pub ssrc: u32,
    /// The sender's wall clock.
    pub ntp: Ntp,
    /// The same moment on the track's clock.
    pub rtp: RtpTime,
    /// Packets sent, modulo 2^32.
    pub packets: u32,
    /// Payload bytes sent, modulo 2^32.
    pub octets: u32,
}

impl SenderInfo {
    /// The same line at a later moment.
    #[must_use]
    pub fn later(self, ticks: u64, clock: ClockRate) -> Self {
        Self { ntp: self.ntp.plus(ticks, clock), rtp: self.rtp.plus(ticks), ..self }
    }
}

/// A sender report.
#[derive(Debug, Clone, Copy)]
pub struct SenderReport<'a> {
    info: SenderInfo,
    blocks: &'a [u8],
}

impl<'a> SenderReport<'a> {
    pub(crate) fn parse(count: u8, body: &'a [u8]) -> Option<Self> {
        let blocks = body.get(24..)?.get(..usize::from(count) * BLOCK_LEN)?;
        let ntp = u64::from(word(body, 4)?) << 32 | u64::from(word(body, 8)?);
        let info = SenderInfo {
            ssrc: word(body, 0)?,
            ntp: Ntp(ntp),
            rtp: RtpTime(word(body, 12)?),
            packets: word(body, 16)?,
            octets: word(body, 20)?,
        };
        Some(Self { info, blocks })
    }

    /// Who sends.
    pub fn ssrc(&self) -> u32 {
        self.info.ssrc
    }

    /// The sender's wall clock.
    pub fn ntp(&self) -> Ntp {
        self.info.ntp
    }

    /// All of the sender information.
    pub fn info(&self) -> SenderInfo {
        self.info
    }

    /// What the sender reports as a receiver.
    pub fn blocks(&self) -> impl Iterator<Item = ReportBlock> + 'a {
        blocks(self.blocks)
    }
}

/// Appends a sender report without report blocks.
pub fn write_sr(out: &mut Vec<u8>, info: &SenderInfo) {
    let mut body = Vec::with_capacity(24);
    body.extend(info.ssrc.to_be_bytes());
    body.extend(info.ntp.0.to_be_bytes());
    body.extend(info.rtp.0.to_be_bytes());
    body.extend(info.packets.to_be_bytes());
    body.extend(info.octets.to_be_bytes());
    write_packet(out, 0, packet_type::SR, &body);
}
