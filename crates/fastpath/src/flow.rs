//! Flows: kernel table entries found by addresses.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::abi;
use crate::decide::Admission;
use crate::header::RtpFixed;

abi! {
    /// Key of a flow: the 5-tuple (the protocol is always UDP) and the interface it came in by.
    pub struct FlowKey [40] {
        /// Source address, network order; IPv4 as an IPv4-mapped IPv6 address.
        pub src: [u8; 16],
        /// Destination address, as `src`.
        pub dst: [u8; 16],
        /// Source port, network order.
        pub src_port: [u8; 2],
        /// Destination port, network order.
        pub dst_port: [u8; 2],
        /// Index of the ingress interface.
        pub ifindex: u32,
    }
}

/// The IPv4-mapped IPv6 form of an IPv4 address, both in network order.
#[inline]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// An address in the form of [`FlowKey::src`].
pub const fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of the form of [`FlowKey::src`]; IPv4-mapped becomes IPv4.
pub const fn address(octets: [u8; 16]) -> IpAddr {
    let v6 = Ipv6Addr::from_octets(octets);
    match v6.to_ipv4_mapped() {
        Some(v4) => IpAddr::V4(Ipv4Addr::from_octets(v4.octets())),
        None => IpAddr::V6(v6),
    }
}

impl FlowKey {
    /// Key of datagrams from `src` to `dst` that come in by interface `ifindex`.
    pub const fn new(src: SocketAddr, dst: SocketAddr, ifindex: u32) -> Self {
        Self {
            src: octets(src.ip()),
            dst: octets(dst.ip()),
            src_port: src.port().to_be_bytes(),
            dst_port: dst.port().to_be_bytes(),
            ifindex,
        }
    }
}

/// What a flow carries, and so which checks apply.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowKind {
    /// RTP alone.
    Rtp = 0,
    /// RTCP alone.
    Rtcp = 1,
    /// RTP and RTCP on one port (RFC 5761).
    Muxed = 2,
    /// Other UDP, end-to-end SRTP or FEC for example: forwarded without a look inside.
    Opaque = 3,
}

impl FlowKind {
    /// The kind with this number, `None` if there is none.
    #[inline]
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(Self::Rtp),
            1 => Some(Self::Rtcp),
            2 => Some(Self::Muxed),
            3 => Some(Self::Opaque),
            _ => None,
        }
    }
}

abi! {
    /// What the kernel knows of a flow.
    pub struct FlowEntry [40] {
        /// What is admitted.
        pub admission: Admission,
        /// Index of the group that the flow feeds.
        pub group: u32,
        /// RTP clock rate in Hz, for the jitter input.
        pub clock_rate: u32,
        /// A [`FlowKind`].
        pub kind: u8,
        /// [`FlowEntry::FORWARD_RTCP`] or 0.
        pub flags: u8,
        /// Explicit padding, 0.
        pub pad: [u8; 6],
    }
}

impl FlowEntry {
    /// Flag: RTCP is forwarded like RTP. Set between nodes; at the edge RTCP ends in user space.
    pub const FORWARD_RTCP: u8 = 1;

    /// An entry at the edge that feeds group `group`.
    pub const fn new(kind: FlowKind, admission: Admission, group: u32, clock_rate: u32) -> Self {
        Self { admission, group, clock_rate, kind: kind as u8, flags: 0, pad: [0; 6] }
    }
}

abi! {
    /// Counters of a flow: one shared value, plain loads and stores; races lose single counts.
    pub struct FlowStats [32] {
        /// Packets admitted, segments of super-packets counted one by one.
        pub packets: u64,
        /// UDP payload bytes of these.
        pub bytes: u64,
        /// Packets dropped on the flow.
        pub dropped: u64,
        /// RTP timestamp of the last admitted packet, the first segment of a super-packet.
        pub last_timestamp: u32,
        /// Sequence number, likewise.
        pub last_seq: u16,
        /// 1 once a packet was admitted.
        pub seen: u8,
        /// Explicit padding, 0.
        pub pad: u8,
    }
}

impl FlowStats {
    /// Nothing counted yet.
    pub const ZERO: Self =
        Self { packets: 0, bytes: 0, dropped: 0, last_timestamp: 0, last_seq: 0, seen: 0, pad: 0 };

    /// Counts admitted datagrams: `segments` of a super-packet or 1, `bytes` of UDP payload in all.
    /// `header`: of the first of them, `None` on flows that carry no RTP.
    #[inline]
    pub const fn count(&mut self, header: Option<&RtpFixed>, segments: u32, bytes: u32) {
        let (segments, bytes) = (segments as u64, bytes as u64);
        self.packets = self.packets.wrapping_add(segments);
        self.bytes = self.bytes.wrapping_add(bytes);
        if let Some(header) = header {
            self.last_seq = header.seq();
            self.last_timestamp = header.timestamp();
        }
        self.seen = 1;
    }

    /// Counts dropped datagrams.
    #[inline]
    pub const fn count_drop(&mut self, segments: u32) {
        self.dropped = self.dropped.wrapping_add(segments as u64);
    }
}

#[cfg(test)]
mod tests;
