//! Groups: the fan-out list of a flow and its legs.

use crate::abi;
use crate::gate::GateEntry;
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
    /// A fan-out list.
    pub struct Group [24] {
        /// The edit of [`GroupMode::Common`].
        pub edit: RtpEdit,
        /// Number of legs, at most [`crate::limits::MAX_LEGS`].
        pub legs: u32,
        /// A [`GroupMode`].
        pub mode: u8,
        /// Explicit padding, 0.
        pub pad: [u8; 3],
    }
}

abi! {
    /// One leg: what its copies look like and where they go.
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
        /// Start gate.
        pub gate: GateEntry,
        /// Checksum delta of addresses (IP header and pseudo-header), as [`crate::csum::Delta`].
        pub address_delta: u32,
        /// Checksum delta of ports.
        pub port_delta: u32,
        /// Time to live to send with; 0: the packet's, less one.
        pub ttl: u8,
        /// DSCP to send with, if [`LegEntry::SET_DSCP`] is set.
        pub dscp: u8,
        /// [`LegEntry::SET_DSCP`], [`LegEntry::LOCAL`].
        pub flags: u8,
        /// Explicit padding, 0.
        pub pad: [u8; 5],
    }
}

impl LegEntry {
    /// Flag: `dscp` replaces the packet's.
    pub const SET_DSCP: u8 = 1;
    /// Flag: the leg is a pod of this node.
    pub const LOCAL: u8 = 2;
}

#[cfg(test)]
mod tests;
