//! Feedback messages: recognised by kind, so that each gets the treatment of RTP-25 to RTP-27.

use super::{packet_type, word, write_packet};

/// Feedback of a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback<'a> {
    /// Picture loss: a key frame is wanted (RFC 4585 section 6.3.1).
    Pli {
        /// Who wants it.
        sender: u32,
        /// Of which source.
        media: u32,
    },
    /// Full intra request (RFC 5104 section 4.3.1).
    Fir {
        /// Who wants it.
        sender: u32,
        /// Its entries.
        entries: FirEntries<'a>,
    },
    /// Generic NACK (RFC 4585 section 6.2.1).
    Nack {
        /// Who misses packets.
        sender: u32,
        /// Of which source.
        media: u32,
        /// Which.
        lost: NackEntries<'a>,
    },
    /// Receiver-estimated bandwidth; ends at this hop (RTP-27).
    Remb,
    /// Transport-wide congestion control; ends at this hop (RTP-27).
    TransportCc,
    /// Congestion control feedback of RFC 8888; ends at this hop (RTP-27).
    Ccfb,
    /// Anything else.
    Other {
        /// 205 or 206.
        packet_type: u8,
        /// Its format.
        format: u8,
    },
}

/// Entries of a FIR: eight bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirEntries<'a>(&'a [u8]);

/// Entries of a NACK: four bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NackEntries<'a>(&'a [u8]);

impl FirEntries<'_> {
    /// `(source, number of the request)`.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u8)> + '_ {
        let entries = self.0.as_chunks::<8>().0;
        entries.iter().map(|[a, b, c, d, number, ..]| (u32::from_be_bytes([*a, *b, *c, *d]), *number))
    }
}

impl NackEntries<'_> {
    /// Sequence numbers that are missing; an entry names up to 17.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.as_chunks::<4>().0.iter().flat_map(|[p0, p1, b0, b1]| {
            let first = u16::from_be_bytes([*p0, *p1]);
            let mask = u16::from_be_bytes([*b0, *b1]);
            let more =
                (0..16).filter(move |bit| mask >> bit & 1 == 1).map(move |bit| first.wrapping_add(bit + 1));
            std::iter::once(first).chain(more)
        })
    }
}

impl<'a> Feedback<'a> {
    pub(crate) fn parse(packet_type: u8, format: u8, body: &'a [u8]) -> Option<Self> {
        let (sender, media, fci) = (word(body, 0)?, word(body, 4)?, body.get(8..)?);
        Some(match (packet_type, format) {
            (packet_type::PSFB, 1) => Self::Pli { sender, media },
            (packet_type::PSFB, 4) => Self::Fir { sender, entries: FirEntries(fci) },
            (packet_type::PSFB, 15) if fci.starts_with(b"REMB") => Self::Remb,
            (packet_type::RTPFB, 1) => Self::Nack { sender, media, lost: NackEntries(fci) },
            (packet_type::RTPFB, 11) => Self::Ccfb,
            (packet_type::RTPFB, 15) => Self::TransportCc,
            _ => Self::Other { packet_type, format },
        })
    }

    /// Whether a key frame of this source is wanted. A FIR without entries is for the source named in
    /// its header by old senders; it counts for any.
    pub fn wants_key_frame(&self, ssrc: u32) -> bool {
        match self {
            Self::Pli { media, .. } => *media == ssrc,
            Self::Fir { entries, .. } => {
                entries.0.is_empty() || entries.iter().any(|(media, _)| media == ssrc)
            }
            _ => false,
        }
    }
}

/// Appends a PLI.
///
/// Source: RFC 4585 section 6.3.1.
pub fn write_pli(out: &mut Vec<u8>, sender: u32, media: u32) {
    let mut body = [0; 8];
    for (byte, value) in body.iter_mut().zip(sender.to_be_bytes().into_iter().chain(media.to_be_bytes())) {
        *byte = value;
    }
    write_packet(out, 1, packet_type::PSFB, &body);
}
