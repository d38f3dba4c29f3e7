//! Views of packet headers with alignment 1, so that they lie on packet bytes as they are.
//!
//! Every view reads and writes in place; all numbers are returned in host order. [`RtpFixed`] is the one
//! view of the RTP header: `media` extends it with what follows the first 12 bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of an Ethernet header in bytes.
pub const ETH_LEN: usize = 14;
/// Length of an IPv4 header without options in bytes.
pub const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extension headers in bytes.
pub const IPV6_LEN: usize = 40;
/// Length of a UDP header in bytes.
pub const UDP_LEN: usize = 8;
/// Length of the fixed part of an RTP header in bytes (RFC 3550 §5.1).
pub const RTP_FIXED_LEN: usize = 12;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;

macro_rules! view {
    ($(#[$meta:meta])* pub struct $name:ident [$len:expr] { $( $field:ident : $ty:ty ),+ $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        pub struct $name { $( $field: $ty ),+ }

        const _: () = assert!(core::mem::size_of::<$name>() == $len);

        impl $name {
            /// Looks at the first bytes as this header; `None` if there are too few.
            #[inline]
            pub fn parse(bytes: &[u8]) -> Option<&Self> {
                Self::ref_from_prefix(bytes).ok().map(|(header, _)| header)
            }

            /// As [`Self::parse`], to be written in place.
            #[inline]
            pub fn parse_mut(bytes: &mut [u8]) -> Option<&mut Self> {
                Self::mut_from_prefix(bytes).ok().map(|(header, _)| header)
            }
        }
    };
}

view! {
    /// Ethernet II header.
    pub struct Eth [ETH_LEN] { dst: [u8; 6], src: [u8; 6], ethertype: [u8; 2] }
}

impl Eth {
    /// Destination address.
    #[inline]
    pub const fn dst(&self) -> [u8; 6] {
        self.dst
    }
    /// Source address.
    #[inline]
    pub const fn src(&self) -> [u8; 6] {
        self.src
    }
    /// EtherType. A VLAN tag appears here as its own EtherType and is not looked into.
    #[inline]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes(self.ethertype)
    }
}

view! {
    /// IPv4 header without options.
    ///
    /// ```text
    ///  0                   1                   2                   3
    /// |Version|  IHL  |    DSCP   |ECN|          Total Length         |
    /// |         Identification        |Flags|      Fragment Offset    |
    /// |  Time to Live |    Protocol   |         Header Checksum       |
    /// |                       Source Address                          |
    /// |                    Destination Address                        |
    /// ```
    pub struct Ipv4 [IPV4_LEN] {
        version_ihl: u8, tos: u8, total_len: [u8; 2], id: [u8; 2], fragment: [u8; 2],
        ttl: u8, protocol: u8, check: [u8; 2], src: [u8; 4], dst: [u8; 4],
    }
}

impl Ipv4 {
    /// Whether the version is 4 and there are no options.
    #[inline]
    pub const fn is_plain(&self) -> bool {
        self.version_ihl == 0x45
    }
    /// Whether this is a fragment: more-fragments bit or an offset.
    #[inline]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }
    /// DSCP and ECN, as one byte.
    #[inline]
    pub const fn tos(&self) -> u8 {
        self.tos
    }
    /// Length of header and payload in bytes, as declared.
    #[inline]
    pub const fn total_len(&self) -> u16 {
        u16::from_be_bytes(self.total_len)
    }
    /// Time to live.
    #[inline]
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }
    /// Protocol of the payload.
    #[inline]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
    /// Header checksum.
    #[inline]
    pub const fn check(&self) -> u16 {
        u16::from_be_bytes(self.check)
    }
    /// Source address, network order.
    #[inline]
    pub const fn src(&self) -> [u8; 4] {
        self.src
    }
    /// Destination address, network order.
    #[inline]
    pub const fn dst(&self) -> [u8; 4] {
        self.dst
    }
}

view! {
    /// IPv6 header; extension headers are not looked into.
    pub struct Ipv6 [IPV6_LEN] {
        version_class_label: [u8; 4], payload_len: [u8; 2], next_header: u8, hop_limit: u8,
        src: [u8; 16], dst: [u8; 16],
    }
}

impl Ipv6 {
    /// Whether the version is 6.
    #[inline]
    pub const fn is_plain(&self) -> bool {
        self.version_class_label[0] >> 4 == 6
    }
    /// Traffic class: DSCP and ECN, as one byte.
    #[inline]
    pub const fn tos(&self) -> u8 {
        (self.version_class_label[0] << 4) | (self.version_class_label[1] >> 4)
    }
    /// Length of the payload in bytes, as declared.
    #[inline]
    pub const fn payload_len(&self) -> u16 {
        u16::from_be_bytes(self.payload_len)
    }
    /// Next header.
    #[inline]
    pub const fn next_header(&self) -> u8 {
        self.next_header
    }
    /// Hop limit.
    #[inline]
    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }
    /// Source address, network order.
    #[inline]
    pub const fn src(&self) -> [u8; 16] {
        self.src
    }
    /// Destination address, network order.
    #[inline]
    pub const fn dst(&self) -> [u8; 16] {
        self.dst
    }
}

view! {
    /// UDP header.
    pub struct Udp [UDP_LEN] { src_port: [u8; 2], dst_port: [u8; 2], len: [u8; 2], check: [u8; 2] }
}

impl Udp {
    /// Source port, host order.
    #[inline]
    pub const fn src_port(&self) -> u16 {
        u16::from_be_bytes(self.src_port)
    }
    /// Destination port, host order.
    #[inline]
    pub const fn dst_port(&self) -> u16 {
        u16::from_be_bytes(self.dst_port)
    }
    /// Length of header and payload in bytes, as declared.
    #[inline]
    pub const fn udp_len(&self) -> u16 {
        u16::from_be_bytes(self.len)
    }
    /// Checksum; 0 means none on IPv4 and is illegal on IPv6.
    #[inline]
    pub const fn check(&self) -> u16 {
        u16::from_be_bytes(self.check)
    }
}

view! {
    /// The fixed part of an RTP header (RFC 3550 §5.1).
    ///
    /// ```text
    ///  0                   1                   2                   3
    /// |V=2|P|X|  CC   |M|     PT      |       sequence number         |
    /// |                           timestamp                           |
    /// |                             SSRC                              |
    /// ```
    ///
    /// Nothing is validated: [`decide`](crate::decide::decide) does that.
    pub struct RtpFixed [RTP_FIXED_LEN] {
        vpxcc: u8, m_pt: u8, seq: [u8; 2], timestamp: [u8; 4], ssrc: [u8; 4],
    }
}

impl RtpFixed {
    /// A version 2 header without padding, extension and CSRCs, for builders and tests.
    ///
    /// `payload_type` is taken modulo 128.
    pub const fn new(payload_type: u8, marker: bool, seq: u16, timestamp: u32, ssrc: u32) -> Self {
        Self {
            vpxcc: 0x80,
            m_pt: (payload_type & 0x7f) | ((marker as u8) << 7),
            seq: seq.to_be_bytes(),
            timestamp: timestamp.to_be_bytes(),
            ssrc: ssrc.to_be_bytes(),
        }
    }
    /// The header whose bytes these are.
    #[inline]
    pub const fn from_bytes(b: [u8; RTP_FIXED_LEN]) -> Self {
        Self {
            vpxcc: b[0],
            m_pt: b[1],
            seq: [b[2], b[3]],
            timestamp: [b[4], b[5], b[6], b[7]],
            ssrc: [b[8], b[9], b[10], b[11]],
        }
    }
    /// The bytes of the header.
    #[inline]
    pub const fn to_bytes(self) -> [u8; RTP_FIXED_LEN] {
        let (s, t, r) = (self.seq, self.timestamp, self.ssrc);
        [self.vpxcc, self.m_pt, s[0], s[1], t[0], t[1], t[2], t[3], r[0], r[1], r[2], r[3]]
    }
    /// The header in three words as they lie in memory: for kernel programs, which must not touch unaligned
    /// memory of their own.
    #[inline]
    pub const fn from_words(words: [u32; 3]) -> Self {
        let [a, b, c] = words;
        let [vpxcc, m_pt, seq_high, seq_low] = a.to_ne_bytes();
        Self { vpxcc, m_pt, seq: [seq_high, seq_low], timestamp: b.to_ne_bytes(), ssrc: c.to_ne_bytes() }
    }
    /// The header as three words, see [`RtpFixed::from_words`].
    #[inline]
    pub const fn to_words(self) -> [u32; 3] {
        let [seq_high, seq_low] = self.seq;
        [
            u32::from_ne_bytes([self.vpxcc, self.m_pt, seq_high, seq_low]),
            u32::from_ne_bytes(self.timestamp),
            u32::from_ne_bytes(self.ssrc),
        ]
    }
    /// Version; only 2 is RTP.
    #[inline]
    pub const fn version(&self) -> u8 {
        self.vpxcc >> 6
    }
    /// Padding bit.
    #[inline]
    pub const fn padding(&self) -> bool {
        self.vpxcc & 0x20 != 0
    }
    /// Extension bit.
    #[inline]
    pub const fn extension(&self) -> bool {
        self.vpxcc & 0x10 != 0
    }
    /// Number of contributing sources that follow, 0 to 15.
    #[inline]
    pub const fn csrc_count(&self) -> u8 {
        self.vpxcc & 0x0f
    }
    /// Bytes up to the end of the contributing sources: what a packet must have at least (RTP-1).
    #[inline]
    pub const fn header_len(&self) -> usize {
        RTP_FIXED_LEN + 4 * self.csrc_count() as usize
    }
    /// Marker bit.
    #[inline]
    pub const fn marker(&self) -> bool {
        self.m_pt & 0x80 != 0
    }
    /// Payload type, 0 to 127.
    #[inline]
    pub const fn payload_type(&self) -> u8 {
        self.m_pt & 0x7f
    }
    /// Sequence number.
    #[inline]
    pub const fn seq(&self) -> u16 {
        u16::from_be_bytes(self.seq)
    }
    /// Timestamp, in units of the track's clock rate.
    #[inline]
    pub const fn timestamp(&self) -> u32 {
        u32::from_be_bytes(self.timestamp)
    }
    /// Synchronisation source.
    #[inline]
    pub const fn ssrc(&self) -> u32 {
        u32::from_be_bytes(self.ssrc)
    }
    /// Sets the marker bit.
    #[inline]
    pub const fn set_marker(&mut self, marker: bool) {
        self.m_pt = (self.m_pt & 0x7f) | ((marker as u8) << 7);
    }
    /// Sets the payload type, taken modulo 128.
    #[inline]
    pub const fn set_payload_type(&mut self, payload_type: u8) {
        self.m_pt = (self.m_pt & 0x80) | (payload_type & 0x7f);
    }
    /// Sets the sequence number.
    #[inline]
    pub const fn set_seq(&mut self, seq: u16) {
        self.seq = seq.to_be_bytes();
    }
    /// Sets the timestamp.
    #[inline]
    pub const fn set_timestamp(&mut self, timestamp: u32) {
        self.timestamp = timestamp.to_be_bytes();
    }
    /// Sets the SSRC.
    #[inline]
    pub const fn set_ssrc(&mut self, ssrc: u32) {
        self.ssrc = ssrc.to_be_bytes();
    }
    /// Whether this is RTCP on a port shared with RTP, by its second byte.
    ///
    /// Source: RFC 5761 §4 (RTP-2).
    #[inline]
    pub const fn is_rtcp(&self) -> bool {
        is_rtcp(self.m_pt)
    }
}

/// Whether the second byte of a version 2 packet says RTCP: packet types 192 to 223.
///
/// Source: RFC 5761 §4 (RTP-2); therefore a muxed flow must not use payload types 64 to 95.
#[inline]
pub const fn is_rtcp(second_byte: u8) -> bool {
    second_byte >= 192 && second_byte <= 223
}

#[cfg(test)]
mod tests;
