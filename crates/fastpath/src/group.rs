//! Groups: the fan-out list of a flow and its legs.

use core::mem::offset_of;

use crate::abi;
use crate::drop::DropReason;
use crate::rewrite::RtpEdit;

/// How much of a packet a group's copies change.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupMode {
    /// L2 to L4 only; RTP passes as it came.
    Opaque = 0,
    /// One RTP edit for all legs, made before the first copy.
    Common = 1,
    /// An RTP edit per leg, made in every segment.
    PerLeg = 2,
    /// Everything goes to the worker.
    ToUser = 3,
}

impl GroupMode {
    /// The mode with this number, `None` if there is none.
    #[inline]
    pub const fn from_u8(mode: u8) -> Option<Self> {
        match mode {
            0 => Some(Self::Opaque),
            1 => Some(Self::Common),
            2 => Some(Self::PerLeg),
            3 => Some(Self::ToUser),
            _ => None,
        }
    }

    /// The cheapest mode that serves legs with these edits.
    ///
    /// No leg, or only transparent ones: opaque. Equal edits: common. Else: per leg.
    pub fn for_edits(edits: &[RtpEdit]) -> Self {
        match edits.split_first() {
            None => Self::Opaque,
            Some((first, rest)) if rest.iter().all(|edit| edit == first) => {
                if first.is_transparent() {
                    Self::Opaque
                } else {
                    Self::Common
                }
            }
            Some(_) => Self::PerLeg,
        }
    }
}

abi! {
    /// One leg: what its copies look like and where they go. Its gate and its counters are entries of
    /// their own, at index `id`, so that moving the entry to another slot moves neither.
    pub struct LegEntry [88] {
        /// RTP edit, in [`GroupMode::PerLeg`].
        pub edit: RtpEdit,
        /// Source address in the form of [`crate::flow::FlowKey::src`].
        pub src: [u8; 16],
        /// Destination address, as `src`.
        pub dst: [u8; 16],
        /// Destination MAC address.
        pub dst_mac: [u8; 6],
        /// Source MAC address.
        pub src_mac: [u8; 6],
        /// Source port, network order.
        pub src_port: [u8; 2],
        /// Destination port, network order.
        pub dst_port: [u8; 2],
        /// Interface the copies leave by.
        pub ifindex: u32,
        /// Index of the leg's [`crate::GateEntry`] and [`LegStats`].
        pub id: u32,
        /// Checksum delta from the flow's addresses to the leg's (pseudo-header; IPv4 header too), as
        /// [`crate::csum::Delta`].
        pub address_delta: u32,
        /// Checksum delta from the flow's ports to the leg's.
        pub port_delta: u32,
        /// Largest IP packet of the way out, in bytes; a larger segment is not sent to the leg.
        pub mtu: u16,
        /// Time to live to send with; 0: the packet's, less one.
        pub ttl: u8,
        /// DSCP to send with, if [`LegEntry::SET_DSCP`] is set.
        pub dscp: u8,
        /// [`LegEntry::SET_DSCP`], [`LegEntry::LOCAL`], [`LegEntry::HAIRPIN`].
        pub flags: u8,
        /// Explicit padding, 0.
        pub pad: [u8; 3],
    }
}

abi! {
    /// What the kernel sent to one leg, per CPU.
    pub struct LegStats [32] {
        /// Packets, segments of super-packets counted one by one.
        pub packets: u64,
        /// UDP payload bytes of these.
        pub bytes: u64,
        /// Packets that could not be sent: too long for the way out, refused by the device.
        pub dropped: u64,
        /// Why the last of these was not, a [`DropReason`].
        pub dropped_for: u32,
        /// Explicit padding, 0.
        pub pad: u32,
    }
}

impl LegStats {
    /// Nothing sent yet.
    pub const ZERO: Self = Self { packets: 0, bytes: 0, dropped: 0, dropped_for: 0, pad: 0 };

    /// What two CPUs sent together. The reason is that of one which dropped.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
            dropped: self.dropped.saturating_add(other.dropped),
            dropped_for: if other.dropped > 0 { other.dropped_for } else { self.dropped_for },
            pad: 0,
        }
    }

    /// What came to `before`, an earlier reading.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
            dropped: self.dropped.saturating_sub(before.dropped),
            dropped_for: self.dropped_for,
            pad: 0,
        }
    }

    /// Why the last packet that was not sent was not; a number that no list has is a device's.
    pub fn reason(self) -> DropReason {
        DropReason::from_index(self.dropped_for as usize).unwrap_or(DropReason::RingFull)
    }
}

impl LegEntry {
    /// Flag: `dscp` replaces the packet's.
    pub const SET_DSCP: u8 = 1;
    /// Flag: `ifindex` is this end of a veth whose other end is in the viewer's namespace: a last copy may be
    /// handed over there without passing this end.
    pub const LOCAL: u8 = 2;
    /// Flag: the leg may leave by the interface its packets come in by, which is right for a NIC with camera
    /// and viewer behind it. Without it such copies are dropped ([`crate::DropReason::Loop`]).
    pub const HAIRPIN: u8 = 4;

    /// Size in words.
    pub const WORDS: usize = size_of::<Self>() / 4;
    /// Word of `src`.
    pub const SRC_WORD: usize = offset_of!(Self, src) / 4;
    /// Word of `dst`.
    pub const DST_WORD: usize = offset_of!(Self, dst) / 4;
    /// Word of `dst_mac`, which `src_mac` follows.
    pub const MAC_WORD: usize = offset_of!(Self, dst_mac) / 4;
    /// Word of `src_port`, which `dst_port` follows.
    pub const PORTS_WORD: usize = offset_of!(Self, src_port) / 4;
}

#[cfg(test)]
mod tests;
