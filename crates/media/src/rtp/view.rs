//! The read-only view of an RTP packet.

use msm_fastpath::{RTP_FIXED_LEN, RtpFixed};

use super::ext::Extension;

/// Length of the fixed header in bytes.
pub const HEADER_LEN: usize = RTP_FIXED_LEN;

/// Whether a datagram on a port that carries both is RTCP: byte 1 in 192..=223.
///
/// Source: RFC 5761 section 4; RTP-2.
pub fn is_rtcp(packet: &[u8]) -> bool {
    packet.get(1).is_some_and(|byte| msm_fastpath::is_rtcp(*byte))
}

/// A validated RTP packet.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |V=2|P|X|  CC   |M|     PT      |       sequence number         |
/// |                           timestamp                           |
/// |                             SSRC                              |
/// |                     CSRC, 0 to 15 of them                     |
/// ```
///
/// Source: RFC 3550 section 5.1.
#[derive(Debug, Clone, Copy)]
pub struct RtpView<'a> {
    fixed: &'a RtpFixed,
    /// After the fixed header: CSRCs, extension, payload, padding.
    rest: &'a [u8],
}

impl<'a> RtpView<'a> {
    /// A view of a packet that passes RTP-1: V=2 and a length of at least 12 + 4·CC. Extension and
    /// padding are checked when they are asked for.
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let fixed = RtpFixed::parse(packet)?;
        let view = Self { fixed, rest: packet.get(HEADER_LEN..)? };
        (fixed.version() == 2 && packet.len() >= fixed.header_len()).then_some(view)
    }

    /// The fixed header, as every rung sees it.
    #[inline]
    pub fn fixed(&self) -> &'a RtpFixed {
        self.fixed
    }

    /// Whether the P bit is set. The padding itself may still be malformed.
    #[inline]
    pub fn has_padding(&self) -> bool {
        self.fixed.padding()
    }

    /// Whether the X bit is set. The extension itself may still be malformed.
    #[inline]
    pub fn has_extension(&self) -> bool {
        self.fixed.extension()
    }

    /// Number of contributing sources, 0 to 15.
    #[inline]
    pub fn csrc_count(&self) -> usize {
        usize::from(self.fixed.csrc_count())
    }

    /// The marker bit.
    #[inline]
    pub fn marker(&self) -> bool {
        self.fixed.marker()
    }

    /// Payload type, 0 to 127.
    #[inline]
    pub fn payload_type(&self) -> u8 {
        self.fixed.payload_type()
    }

    /// Sequence number.
    #[inline]
    pub fn seq(&self) -> u16 {
        self.fixed.seq()
    }

    /// Timestamp in ticks of the track's clock.
    #[inline]
    pub fn timestamp(&self) -> u32 {
        self.fixed.timestamp()
    }

    /// Synchronisation source.
    #[inline]
    pub fn ssrc(&self) -> u32 {
        self.fixed.ssrc()
    }

    /// Contributing sources.
    pub fn csrcs(&self) -> impl Iterator<Item = u32> + 'a {
        let list = self.rest.get(..4 * self.csrc_count()).unwrap_or_default();
        list.as_chunks::<4>().0.iter().map(|csrc| u32::from_be_bytes(*csrc))
    }

    /// What follows the CSRCs: extension if there is one, payload, padding.
    #[inline]
    fn after_csrcs(&self) -> &'a [u8] {
        self.rest.get(4 * self.csrc_count()..).unwrap_or_default()
    }

    /// The header extension; `None` without one or when it is longer than the packet.
    ///
    /// Source: RFC 3550 section 5.3.1.
    pub fn extension(&self) -> Option<Extension<'a>> {
        if !self.has_extension() {
            return None;
        }
        Extension::parse(self.after_csrcs())
    }

    /// Payload with padding, if any. Empty when the extension is longer than the packet.
    #[inline]
    pub fn raw_payload(&self) -> &'a [u8] {
        let after = self.after_csrcs();
        if !self.has_extension() {
            return after;
        }
        Extension::parse(after).and_then(|extension| after.get(extension.wire_len()..)).unwrap_or_default()
    }

    /// Payload without padding; `None` when extension or padding contradict the length of the packet.
    ///
    /// Source: RFC 3550 section 5.1: the last byte of the padding counts the padding, itself included.
    pub fn payload(&self) -> Option<&'a [u8]> {
        if self.has_extension() && self.extension().is_none() {
            return None;
        }
        let raw = self.raw_payload();
        if !self.has_padding() {
            return Some(raw);
        }
        let padding = usize::from(*raw.last()?);
        if padding == 0 {
            return None;
        }
        raw.get(..raw.len().checked_sub(padding)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtp::PacketBuilder;

    #[test]
    fn version_and_length_decide_whether_a_packet_is_rtp() {
        let good = PacketBuilder::new(96, 1, 2, 3).build(b"x");
        assert!(RtpView::parse(&good).is_some());
        assert!(RtpView::parse(&good[..11]).is_none(), "RTP-1: shorter than the fixed header");
        for version in [0, 1, 3] {
            let mut bad = good.clone();
            bad[0] = bad[0] & 0x3f | version << 6;
            assert!(RtpView::parse(&bad).is_none(), "RTP-1: V={version}");
        }
        let mut csrcs = good;
        csrcs[0] |= 3;
        assert!(RtpView::parse(&csrcs).is_none(), "RTP-1: three CSRCs announced, one byte there");
    }

    #[test]
    fn fields_are_read_from_their_places() {
        let packet =
            PacketBuilder::new(33, 0xabcd, 0x0123_4567, 0x89ab_cdef).marker().csrc(7).csrc(8).build(b"hi");
        let view = RtpView::parse(&packet).unwrap();
        assert_eq!((view.payload_type(), view.marker(), view.seq()), (33, true, 0xabcd));
        assert_eq!((view.timestamp(), view.ssrc()), (0x0123_4567, 0x89ab_cdef));
        assert_eq!(view.csrcs().collect::<Vec<_>>(), [7, 8]);
        assert_eq!(view.payload(), Some(&b"hi"[..]));
    }

    #[test]
    fn padding_is_checked_only_when_the_payload_is_asked_for() {
        let mut packet = PacketBuilder::new(96, 1, 2, 3).build(&[1, 2, 3, 2]);
        packet[0] |= 0x20;
        assert_eq!(RtpView::parse(&packet).unwrap().payload(), Some(&[1, 2][..]));
        for bad in [0, 5, 255] {
            *packet.last_mut().unwrap() = bad;
            let view = RtpView::parse(&packet).expect("RTP-1 does not look at padding");
            assert_eq!(view.payload(), None, "padding of {bad} in 4 bytes");
        }
    }

    #[test]
    fn an_extension_longer_than_the_packet_leaves_no_payload() {
        let mut packet = PacketBuilder::new(96, 1, 2, 3).build(&[0xbe, 0xde, 0, 9, 1, 2, 3, 4]);
        packet[0] |= 0x10;
        let view = RtpView::parse(&packet).expect("RTP-1 does not look at the extension");
        assert!(view.extension().is_none());
        assert_eq!(view.payload(), None);
        assert!(view.raw_payload().is_empty());
    }

    #[test]
    fn rtcp_is_told_from_rtp_by_its_second_byte() {
        assert!(is_rtcp(&[0x80, 200]));
        assert!(!is_rtcp(&[0x80, 96]));
        assert!(!is_rtcp(&[0x80, 0x80 + 96]), "marker and payload type 96 make 224");
        assert!(!is_rtcp(&[]));
    }
}
