//! Bounds-checked access to packet bytes: the only pointer arithmetic. From the [`FlowKey`] on everything
//! is a copied value.

use msm_fastpath::flow::mapped;
use msm_fastpath::header::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Eth, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, PROTO_UDP, UDP_LEN, Udp,
};
use msm_fastpath::{FlowKey, RTP_FIXED_LEN, RtpFixed};

/// Bytes of the longest headers that are looked at: Ethernet, IPv6, UDP, RTP.
pub(crate) const HEADERS_LEN: u32 = (ETH_LEN + IPV6_LEN + UDP_LEN + RTP_FIXED_LEN) as u32;

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// The linear bytes of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    start: usize,
    end: usize,
}

impl Bytes {
    /// `start` and `end` are `data` and `data_end` of the program's context, and are stale after every
    /// helper that may move packet memory.
    #[inline(always)]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Copies a header out; `None` if it does not lie wholly in the linear bytes.
    #[inline(always)]
    fn read<T: Copy>(self, offset: usize) -> Option<T> {
        const { assert!(align_of::<T>() == 1, "header views have alignment 1") };
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: `start` is the context's `data`, the comparison above bounds the read by its
        // `data_end` (the verifier checks the same), and T has alignment 1 and no invalid bit pattern.
        Some(unsafe { *(at as *const T) })
    }
}

/// What the headers of a frame say.
pub(crate) enum Parsed {
    /// No UDP over IP: not for us.
    Other,
    /// Headers beyond the fixed offsets, or cut short: for the kernel's own stack, counted.
    Unparsed,
    /// A UDP datagram.
    Datagram(Datagram),
}

/// A UDP datagram, by value.
pub(crate) struct Datagram {
    pub(crate) key: FlowKey,
    /// First 12 bytes of the payload, if it has so many.
    pub(crate) rtp: Option<RtpFixed>,
    /// Bytes of UDP payload, all segments of a super-packet together.
    pub(crate) payload_len: u32,
}

/// Parses Ethernet, IPv4 without options or IPv6 without extension headers, UDP.
///
/// `frame_len`: of the whole frame, with what is not linear. `ifindex`: where it came in.
#[inline(always)]
pub(crate) fn parse(bytes: Bytes, frame_len: u32, ifindex: u32) -> Parsed {
    let Some(eth) = bytes.read::<Eth>(0) else { return Parsed::Unparsed };
    match eth.ethertype() {
        ETHERTYPE_IPV4 => parse_ipv4(bytes, frame_len, ifindex),
        ETHERTYPE_IPV6 => parse_ipv6(bytes, frame_len, ifindex),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Parsed::Unparsed,
        _ => Parsed::Other,
    }
}

#[inline(always)]
fn parse_ipv4(bytes: Bytes, frame_len: u32, ifindex: u32) -> Parsed {
    let Some(ip) = bytes.read::<Ipv4>(ETH_LEN) else { return Parsed::Unparsed };
    if ip.protocol() != PROTO_UDP {
        return Parsed::Other;
    }
    let total = u32::from(ip.total_len());
    if !ip.is_plain() || ip.is_fragment() || total < IPV4_LEN as u32 || total + ETH_LEN as u32 > frame_len {
        return Parsed::Unparsed;
    }
    parse_udp(bytes, ETH_LEN + IPV4_LEN, total - IPV4_LEN as u32, mapped(ip.src()), mapped(ip.dst()), ifindex)
}

#[inline(always)]
fn parse_ipv6(bytes: Bytes, frame_len: u32, ifindex: u32) -> Parsed {
    let Some(ip) = bytes.read::<Ipv6>(ETH_LEN) else { return Parsed::Unparsed };
    match ip.next_header() {
        PROTO_UDP => {}
        // Hop-by-hop, routing, fragment, destination options: UDP may follow, at no fixed offset.
        0 | 43 | 44 | 60 => return Parsed::Unparsed,
        _ => return Parsed::Other,
    }
    let payload = u32::from(ip.payload_len());
    if !ip.is_plain() || payload + (ETH_LEN + IPV6_LEN) as u32 > frame_len {
        return Parsed::Unparsed;
    }
    parse_udp(bytes, ETH_LEN + IPV6_LEN, payload, ip.src(), ip.dst(), ifindex)
}

/// `ip_payload`: bytes that the IP header declares after itself.
#[inline(always)]
fn parse_udp(
    bytes: Bytes,
    offset: usize,
    ip_payload: u32,
    src: [u8; 16],
    dst: [u8; 16],
    ifindex: u32,
) -> Parsed {
    let Some(udp) = bytes.read::<Udp>(offset) else { return Parsed::Unparsed };
    let len = u32::from(udp.udp_len());
    if len < UDP_LEN as u32 || len > ip_payload {
        return Parsed::Unparsed;
    }
    let payload_len = len - UDP_LEN as u32;
    let rtp = if payload_len < RTP_FIXED_LEN as u32 {
        None
    } else {
        match bytes.read::<RtpFixed>(offset + UDP_LEN) {
            Some(rtp) => Some(rtp),
            None => return Parsed::Unparsed,
        }
    };
    let key = FlowKey {
        src,
        dst,
        src_port: udp.src_port().to_be_bytes(),
        dst_port: udp.dst_port().to_be_bytes(),
        ifindex,
    };
    Parsed::Datagram(Datagram { key, rtp, payload_len })
}
