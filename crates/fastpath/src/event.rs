//! Rare facts that a kernel program tells user space by the ring buffer. Never one per packet.

use crate::abi;

/// What happened.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// An armed leg started: `seq` is the first packet that it got.
    Started = 1,
    /// A draining leg stopped: `seq` is the first packet that it did not get.
    Stopped = 2,
    /// A packet with an SSRC that is not admitted was handed to the worker: `ssrc`.
    NewSsrc = 3,
    /// STUN, DTLS or anything else that is no RTP arrived on an RTP flow.
    NoRtp = 4,
    /// More packets in a row are missing than [`crate::limits::BURST_LOSS`]; `seq` is the one after the gap.
    BurstLoss = 5,
    /// Strange packets exceeded their rate and are dropped.
    RateLimited = 6,
}

impl EventKind {
    /// The kind with this number, `None` if there is none.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Started),
            2 => Some(Self::Stopped),
            3 => Some(Self::NewSsrc),
            4 => Some(Self::NoRtp),
            5 => Some(Self::BurstLoss),
            6 => Some(Self::RateLimited),
            _ => None,
        }
    }
}

abi! {
    /// One event.
    pub struct Event [24] {
        /// ns of CLOCK_MONOTONIC.
        pub at: u64,
        /// Index of the flow's [`crate::FlowStats`].
        pub flow: u32,
        /// `id` of the leg, where it is about one.
        pub leg: u32,
        /// SSRC of the packet.
        pub ssrc: u32,
        /// Sequence number of the packet.
        pub seq: u16,
        /// An [`EventKind`].
        pub kind: u8,
        /// Explicit padding, 0.
        pub pad: u8,
    }
}
