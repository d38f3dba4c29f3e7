//! Flows: kernel table entries found by addresses.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::transmute;

use crate::abi;
use crate::decide::{Admission, PayloadTypes};
use crate::group::GroupMode;
use crate::rewrite::RtpEdit;

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

    /// A number that two keys rarely share.
    #[inline]
    pub fn tag(&self) -> u32 {
        let words: [u32; 10] = transmute!(*self);
        let pair = |low: usize, high: usize| (words[low] as u64) | ((words[high] as u64) << 32);
        let mixed =
            pair(0, 5) ^ pair(1, 6) ^ pair(2, 7) ^ pair(3, 4).rotate_left(11) ^ pair(8, 9).rotate_left(23);
        // The multiplier of Fibonacci hashing: every input bit reaches the upper half.
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }
}

abi! {
    /// Key of a media address of ours: what a datagram must be sent to so that it claims to be ours.
    pub struct PortKey [20] {
        /// Destination address, as [`FlowKey::dst`].
        pub addr: [u8; 16],
        /// Destination port, network order.
        pub port: [u8; 2],
        /// Explicit padding, 0.
        pub pad: [u8; 2],
    }
}

impl PortKey {
    /// Value: every source of this address has its flow; a datagram without one is dropped
    /// ([`crate::DropReason::UnknownSource`]). Without the key it goes up to the socket, which may be waiting for a
    /// source that it does not know yet, or serves sources that have no flow.
    pub const STRICT: u32 = 2;

    /// Key of a local address.
    pub const fn new(local: SocketAddr) -> Self {
        Self { addr: octets(local.ip()), port: local.port().to_be_bytes(), pad: [0; 2] }
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

    /// Whether packets of such a flow have RTP numbers, by which gates open and shut.
    #[inline]
    pub const fn has_numbers(self) -> bool {
        matches!(self, Self::Rtp | Self::Muxed)
    }
}

abi! {
    /// What the kernel knows of a flow: what it admits and who gets it.
    ///
    /// It is published whole: one map update replaces it. The legs it names were written before.
    pub struct FlowEntry [64] {
        /// [`FlowKey::tag`] of the key that the entry stands under. The kernel may reuse the memory of a replaced
        /// entry while a packet still reads it, and writes from the first byte on: a reader that finds another
        /// tag after it has read the rest hands the packet to the worker.
        pub tag: u32,
        /// RTP clock rate in Hz, for jitter.
        pub clock_rate: u32,
        /// What is admitted.
        pub admission: Admission,
        /// The edit of [`crate::GroupMode::Common`].
        pub edit: RtpEdit,
        /// Slot of the first leg; the others follow it. Read in one go with the next three.
        pub first_leg: u32,
        /// Number of slots to walk, at most [`crate::limits::MAX_LEGS`]. A slot whose gate is shut is skipped.
        pub legs: u16,
        /// A [`FlowKind`].
        pub kind: u8,
        /// A [`crate::GroupMode`].
        pub mode: u8,
        /// Index of the flow's [`FlowStats`].
        pub stats: u32,
        /// [`FlowEntry::FORWARD_RTCP`], [`FlowEntry::COPY_TO_USER`].
        pub flags: u8,
        /// Explicit padding, 0.
        pub pad: [u8; 3],
    }
}

impl FlowEntry {
    /// Flag: RTCP is forwarded like RTP. Set between nodes; at the edge RTCP ends in user space.
    pub const FORWARD_RTCP: u8 = 1;
    /// Flag: the worker gets every forwarded packet too, unedited: it has legs of its own on this flow, or
    /// a leg is on its way between the two.
    pub const COPY_TO_USER: u8 = 2;

    /// All zero.
    pub const EMPTY: Self =
        Self { kind: 0, mode: 0, ..Self::new(FlowKind::Rtp, Admission::any_ssrc(PayloadTypes::NONE), 0, 0) };

    /// An entry at the edge that hands everything to the worker: no legs yet.
    pub const fn new(kind: FlowKind, admission: Admission, stats: u32, clock_rate: u32) -> Self {
        Self {
            tag: 0,
            clock_rate,
            admission,
            edit: RtpEdit::TRANSPARENT,
            first_leg: 0,
            legs: 0,
            kind: kind as u8,
            mode: GroupMode::ToUser as u8,
            stats,
            flags: 0,
            pad: [0; 3],
        }
    }

    /// The entry as it is published under `key`.
    #[must_use]
    pub fn under(self, key: &FlowKey) -> Self {
        Self { tag: key.tag(), ..self }
    }
}

abi! {
    /// Progress of a flow: one shared value, plain loads and stores. Races of two CPUs lose single counts, and a number
    /// only if both store it within nanoseconds ([`crate::Progress::store`]).
    ///
    /// User space writes the start value, so that the kernel goes on with the worker's extended numbers,
    /// and reads it when it wants to know. Only what the kernel forwarded is in it.
    pub struct FlowStats [128] {
        /// Packets forwarded, segments of super-packets counted one by one.
        pub packets: u64,
        /// UDP payload bytes of these.
        pub bytes: u64,
        /// Those of `packets` that the worker got too ([`FlowEntry::COPY_TO_USER`]) and counts itself.
        pub copied: u64,
        /// UDP payload bytes of these.
        pub copied_bytes: u64,
        /// Packets dropped on the flow.
        pub dropped: u64,
        /// Packets handed to the worker because they do not continue the run: another SSRC, a jump of the
        /// number or of the time, no RTP.
        pub strange: u64,
        /// Packets that arrived behind a later one; of those that the worker did not get too.
        pub reordered: u64,
        /// Packets that arrived twice, as far as [`FlowStats::window`] shows it; likewise.
        pub duplicate: u64,
        /// Highest extended sequence number.
        pub highest: u64,
        /// The 64 numbers up to `highest`: bit n is `highest` - n, set when it came.
        pub window: u64,
        /// When the last forwarded packet came, ns of CLOCK_MONOTONIC.
        pub last_arrival: u64,
        /// When `last_timestamp` was first seen, likewise.
        pub timestamp_at: u64,
        /// Start of the second in which `handed` counts, likewise.
        pub handed_since: u64,
        /// Strange packets handed to the worker in that second; beyond the limit they are dropped.
        pub handed: u32,
        /// Highest RTP timestamp.
        pub last_timestamp: u32,
        /// Relative transit time of the last packet, in units of the clock rate (RFC 3550 A.8).
        pub transit: u32,
        /// Jitter, in sixteenths of a unit of the clock rate (RFC 3550 A.8).
        pub jitter: u32,
        /// 1 once `highest` and `last_timestamp` hold a packet's.
        pub seen: u8,
        /// Explicit padding, 0.
        pub pad: [u8; 3],
        /// Bursts among the forwarded packets, modulo 2^32: one began with each buffer that came more than
        /// [`crate::limits::BURST_GAP`] after the one before ([`crate::progress::Pace`]).
        pub bursts: u32,
    }
}

impl FlowStats {
    /// Nothing counted yet, no number seen.
    pub const ZERO: Self = Self {
        packets: 0,
        bytes: 0,
        copied: 0,
        copied_bytes: 0,
        dropped: 0,
        strange: 0,
        reordered: 0,
        duplicate: 0,
        highest: 0,
        window: 0,
        last_arrival: 0,
        timestamp_at: 0,
        handed_since: 0,
        handed: 0,
        last_timestamp: 0,
        transit: 0,
        jitter: 0,
        seen: 0,
        pad: [0; 3],
        bursts: 0,
    };
}

#[cfg(test)]
mod tests;
