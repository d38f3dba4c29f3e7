//! Validation of compounds (RTP-20) and iteration over their packets.

use thiserror::Error;

use super::{Bye, Feedback, ReceiverReport, Sdes, SenderReport, packet_type};

/// Which first packets a compound may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompoundPolicy {
    /// SR or RR first (RFC 3550 section 6.1).
    Full,
    /// Any packet first, as feedback may come alone (RFC 5506).
    ReducedSize,
}

/// Why a compound was rejected, with the offset of the packet at fault. One failure rejects the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RtcpError {
    /// Nothing there, or a rest shorter than a header.
    #[error("RTP-20: {left} bytes left at offset {offset}, a header has 4")]
    Truncated {
        /// Where the packet begins.
        offset: usize,
        /// Bytes from there on.
        left: usize,
    },
    /// Version other than 2.
    #[error("RTP-20: version {version} at offset {offset}")]
    Version {
        /// Where the packet begins.
        offset: usize,
        /// The version it claims.
        version: u8,
    },
    /// Packet type outside 192..=223.
    #[error("RTP-20: packet type {packet_type} at offset {offset}")]
    PacketType {
        /// Where the packet begins.
        offset: usize,
        /// The type it claims.
        packet_type: u8,
    },
    /// A packet longer than what is left.
    #[error("RTP-20: packet of {length} bytes at offset {offset}, {left} are left")]
    Length {
        /// Where the packet begins.
        offset: usize,
        /// The length it claims.
        length: usize,
        /// Bytes from there on.
        left: usize,
    },
    /// Padding on a packet that is not the last, or padding that contradicts the length.
    #[error("RTP-20: padding at offset {offset}")]
    Padding {
        /// Where the packet begins.
        offset: usize,
    },
    /// A body too short for its type or its count.
    #[error("RTP-20: body of packet type {packet_type} at offset {offset} is too short")]
    Body {
        /// Where the packet begins.
        offset: usize,
        /// Its type.
        packet_type: u8,
    },
    /// First packet neither SR nor RR.
    #[error("RTP-20: first packet has type {packet_type}")]
    First {
        /// Its type.
        packet_type: u8,
    },
}

/// A validated compound.
#[derive(Debug, Clone, Copy)]
pub struct Compound<'a> {
    bytes: &'a [u8],
    has_cname: bool,
}

/// One packet of a compound.
#[derive(Debug, Clone, Copy)]
pub enum Packet<'a> {
    /// Sender report.
    Sr(SenderReport<'a>),
    /// Receiver report.
    Rr(ReceiverReport<'a>),
    /// Source description.
    Sdes(Sdes<'a>),
    /// Goodbye.
    Bye(Bye<'a>),
    /// Transport-layer or payload-specific feedback.
    Feedback(Feedback<'a>),
    /// Application-defined; dropped towards the source (RTP-27).
    App,
    /// Extended report; dropped towards the source (RTP-27).
    Xr,
    /// Another packet type.
    Other(u8),
}

/// One packet in its frame.
#[derive(Debug, Clone, Copy)]
struct Raw<'a> {
    offset: usize,
    count: u8,
    packet_type: u8,
    /// Without header and padding.
    body: &'a [u8],
    /// With header and padding.
    wire: &'a [u8],
}

/// Splits the packet at the front of `bytes`, which begin at `offset` of the compound.
fn split(bytes: &[u8], offset: usize) -> Result<(Raw<'_>, &[u8]), RtcpError> {
    let left = bytes.len();
    let Some((&[first, packet_type, l0, l1], _)) = bytes.split_first_chunk::<4>() else {
        return Err(RtcpError::Truncated { offset, left });
    };
    let version = first >> 6;
    if version != 2 {
        return Err(RtcpError::Version { offset, version });
    }
    if !(192..=223).contains(&packet_type) {
        return Err(RtcpError::PacketType { offset, packet_type });
    }
    let length = 4 * (usize::from(u16::from_be_bytes([l0, l1])) + 1);
    let Some((wire, rest)) = bytes.split_at_checked(length) else {
        return Err(RtcpError::Length { offset, length, left });
    };
    let mut body = wire.get(4..).unwrap_or_default();
    if first & 0x20 != 0 {
        let padding = usize::from(body.last().copied().unwrap_or(0));
        let kept =
            body.len().checked_sub(padding).filter(|_| padding > 0 && padding % 4 == 0 && rest.is_empty());
        body = kept.and_then(|kept| body.get(..kept)).ok_or(RtcpError::Padding { offset })?;
    }
    Ok((Raw { offset, count: first & 0x1f, packet_type, body, wire }, rest))
}

impl<'a> Raw<'a> {
    fn view(&self) -> Result<Packet<'a>, RtcpError> {
        let view = match self.packet_type {
            packet_type::SR => SenderReport::parse(self.count, self.body).map(Packet::Sr),
            packet_type::RR => ReceiverReport::parse(self.count, self.body).map(Packet::Rr),
            packet_type::SDES => Some(Packet::Sdes(Sdes::new(self.count, self.body))),
            packet_type::BYE => Bye::parse(self.count, self.body).map(Packet::Bye),
            packet_type::RTPFB | packet_type::PSFB => {
                Feedback::parse(self.packet_type, self.count, self.body).map(Packet::Feedback)
            }
            packet_type::APP => Some(Packet::App),
            packet_type::XR => Some(Packet::Xr),
            other => Some(Packet::Other(other)),
        };
        view.ok_or(RtcpError::Body { offset: self.offset, packet_type: self.packet_type })
    }
}

impl<'a> Compound<'a> {
    /// Validates a compound: first packet by policy, V=2, packet types 192..=223, lengths that sum to
    /// that of the datagram, padding on the last packet only, bodies long enough for their counts. A
    /// missing SDES is not an error: ffmpeg sends bare sender reports of 28 bytes ([`Self::has_cname`]).
    ///
    /// # Errors
    /// [`RtcpError`] with the first fault; nothing of the compound is to be used.
    ///
    /// Source: RFC 3550 appendix A.2; RFC 5506; RTP-20.
    pub fn parse(bytes: &'a [u8], policy: CompoundPolicy) -> Result<Self, RtcpError> {
        let mut rest = bytes;
        let mut has_cname = false;
        let mut first = true;
        while first || !rest.is_empty() {
            let (raw, tail) = split(rest, bytes.len() - rest.len())?;
            let is_report = matches!(raw.packet_type, packet_type::SR | packet_type::RR);
            if first && policy == CompoundPolicy::Full && !is_report {
                return Err(RtcpError::First { packet_type: raw.packet_type });
            }
            if let Packet::Sdes(sdes) = raw.view()? {
                has_cname |= sdes.cname().is_some();
            }
            rest = tail;
            first = false;
        }
        Ok(Self { bytes, has_cname })
    }

    /// The compound as it came.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether an SDES with a CNAME is there, as RFC 3550 section 6.1 demands.
    pub fn has_cname(&self) -> bool {
        self.has_cname
    }

    /// The packets in order.
    pub fn packets(&self) -> impl Iterator<Item = Packet<'a>> + use<'a> {
        raws(self.bytes).filter_map(|raw| raw.view().ok())
    }

    /// Appends the compound without its BYE packets (RTP-24). Returns false, and appends nothing, when
    /// nothing else is in it.
    pub fn write_without_bye(&self, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        for raw in raws(self.bytes).filter(|raw| raw.packet_type != packet_type::BYE) {
            out.extend(raw.wire);
        }
        out.len() > before
    }
}

fn raws(bytes: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (raw, tail) = split(rest, bytes.len() - rest.len()).ok()?;
        rest = tail;
        Some(raw)
    })
}
