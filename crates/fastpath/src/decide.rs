//! What happens to a packet of a flow: admission by version, length, payload type and SSRC.
//!
//! SSRC and payload type are checks, never keys: a flow is found by its addresses (RTP-2), then these say
//! whether the packet may use it (RTP-1). Nothing is dropped here that is not for a media address of
//! ours: without a flow entry there is no call.

use crate::abi;
use crate::drop::DropReason;
use crate::flow::{FlowEntry, FlowKind};
use crate::group::GroupMode;
use crate::header::RtpFixed;

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Admitted: forward to the group's legs.
    Forward,
    /// For the worker of the flow: RTCP at the edge, STUN, DTLS.
    ToUser,
    /// Claims to be ours and is not admitted: drop and count.
    Drop(DropReason),
}

abi! {
    /// A set of payload types, one bit each.
    pub struct PayloadTypes [16] {
        /// Types 0 to 63, bit n is type n.
        pub low: u64,
        /// Types 64 to 127, bit n is type 64 + n.
        pub high: u64,
    }
}

impl PayloadTypes {
    /// No payload type.
    pub const NONE: Self = Self { low: 0, high: 0 };
    /// Every payload type.
    pub const ANY: Self = Self { low: u64::MAX, high: u64::MAX };

    /// The set of these types; each is taken modulo 128.
    pub fn of(types: &[u8]) -> Self {
        let mut set = Self::NONE;
        for &payload_type in types {
            set.insert(payload_type);
        }
        set
    }

    /// Adds a type, taken modulo 128.
    #[inline]
    pub const fn insert(&mut self, payload_type: u8) {
        let bit = 1u64 << (payload_type & 63);
        if payload_type & 64 == 0 {
            self.low |= bit;
        } else {
            self.high |= bit;
        }
    }

    /// Whether a type, taken modulo 128, is in the set.
    #[inline]
    pub const fn contains(&self, payload_type: u8) -> bool {
        let word = if payload_type & 64 == 0 { self.low } else { self.high };
        (word >> (payload_type & 63)) & 1 != 0
    }
}

abi! {
    /// What a flow admits.
    pub struct Admission [24] {
        /// Payload types that were negotiated for the track.
        pub payload_types: PayloadTypes,
        /// The admitted SSRC, if [`Admission::CHECK_SSRC`] is set.
        pub ssrc: u32,
        /// [`Admission::CHECK_SSRC`] or 0.
        pub flags: u32,
    }
}

impl Admission {
    /// Flag: only [`Admission::ssrc`] is admitted.
    pub const CHECK_SSRC: u32 = 1;

    /// Admits these payload types from any SSRC: an input whose source has not shown itself yet.
    pub const fn any_ssrc(payload_types: PayloadTypes) -> Self {
        Self { payload_types, ssrc: 0, flags: 0 }
    }

    /// Admits these payload types from one SSRC.
    pub const fn only_ssrc(payload_types: PayloadTypes, ssrc: u32) -> Self {
        Self { payload_types, ssrc, flags: Self::CHECK_SSRC }
    }

    /// The admitted SSRC, `None` if any is.
    #[inline]
    pub const fn locked_ssrc(&self) -> Option<u32> {
        if self.flags & Self::CHECK_SSRC == 0 { None } else { Some(self.ssrc) }
    }
}

/// Admits one RTP packet: version 2 and room for its contributing sources, then payload type, then SSRC.
///
/// `header`: the first 12 bytes of the datagram or frame, `len`: all of its bytes. Extension and padding are not looked
/// at: a packet is admitted whatever they say. Returns [`Verdict::Forward`] or a drop with
/// [`DropReason::Malformed`], [`DropReason::PayloadType`] or [`DropReason::Ssrc`]. A caller that lets a
/// new SSRC in after probation (RTP-6) keeps that count itself and changes the [`Admission`].
///
/// Source: RTP-1, RTSP-43; RFC 3550 §5.1.
#[inline]
pub const fn decide(header: &RtpFixed, len: usize, admission: &Admission) -> Verdict {
    if header.version() != 2 || len < header.header_len() {
        return Verdict::Drop(DropReason::Malformed);
    }
    if !admission.payload_types.contains(header.payload_type()) {
        return Verdict::Drop(DropReason::PayloadType);
    }
    if admission.flags & Admission::CHECK_SSRC != 0 && admission.ssrc != header.ssrc() {
        return Verdict::Drop(DropReason::Ssrc);
    }
    Verdict::Forward
}

/// What a kernel program does with a datagram of an installed flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Course {
    /// Continues the run: to the legs.
    Forward,
    /// The worker's by its nature, RTCP for example.
    ToUser,
    /// Does not continue the run, so that the worker is to judge it. Beyond the rate at which it is handed
    /// up it is dropped for this reason.
    Strange(DropReason),
}

/// Decides about one datagram of an installed flow, by the flow's kind: what a kernel program calls.
///
/// `header`: the first 12 bytes of the UDP payload, `None` if it is shorter; `len`: bytes of the datagram. What is no RTP on an RTP
/// flow may be STUN, DTLS or a key-less probe; a kind of a newer user half is the worker's too. Whether the
/// sequence number continues the run is [`crate::Progress::continues`].
#[inline]
pub const fn decide_flow(header: Option<&RtpFixed>, len: usize, entry: &FlowEntry) -> Course {
    let Some(kind) = FlowKind::from_u8(entry.kind) else { return Course::ToUser };
    // What is no RTP can only be copied as it is.
    let opaque = entry.mode == GroupMode::Opaque as u8;
    let forwards_rtcp = opaque && entry.flags & FlowEntry::FORWARD_RTCP != 0;
    let rtcp = if forwards_rtcp { Course::Forward } else { Course::ToUser };
    match kind {
        FlowKind::Opaque => {
            if opaque {
                Course::Forward
            } else {
                Course::ToUser
            }
        }
        FlowKind::Rtcp => rtcp,
        FlowKind::Rtp | FlowKind::Muxed => {
            let header = match header {
                Some(header) if header.version() == 2 => header,
                _ => return Course::Strange(DropReason::RateLimit),
            };
            if matches!(kind, FlowKind::Muxed) && header.is_rtcp() {
                return rtcp;
            }
            match decide(header, len, &entry.admission) {
                Verdict::Forward => Course::Forward,
                Verdict::ToUser => Course::ToUser,
                Verdict::Drop(reason) => Course::Strange(reason),
            }
        }
    }
}

/// Whether a segment of a super-packet, of `len` bytes, is RTP of the same source as the first one and admitted like
/// it. A super-packet need not be one track: GRO merges by addresses and size alone.
#[inline]
pub const fn is_of_track(segment: &RtpFixed, len: usize, first: &RtpFixed, entry: &FlowEntry) -> bool {
    let rtcp = entry.kind == FlowKind::Muxed as u8 && segment.is_rtcp();
    segment.ssrc() == first.ssrc()
        && !rtcp
        && matches!(decide(segment, len, &entry.admission), Verdict::Forward)
}

#[cfg(test)]
mod tests;
