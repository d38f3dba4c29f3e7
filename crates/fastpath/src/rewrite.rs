//! What one copy must look like: edits as values.
//!
//! [`rewrite`] is the RTP part and [`readdress`] the network part. A worker calls only the first, because
//! its socket writes the addresses; a kernel program calls both and stores the result.

use crate::abi;
use crate::drop::DropReason;
use crate::group::LegEntry;
use crate::header::RtpFixed;

abi! {
    /// How the RTP header of a leg (or of a whole group, in common mode) differs from the input's.
    ///
    /// The all-zero value is the transparent edit: nothing changes.
    pub struct RtpEdit [16] {
        /// SSRC of the copies, if [`RtpEdit::PROJECTED`] is set.
        pub ssrc: u32,
        /// Added to the timestamp, modulo 2^32.
        pub timestamp_offset: u32,
        /// Added to the sequence number, modulo 2^16.
        pub seq_offset: u16,
        /// [`RtpEdit::PROJECTED`] or 0.
        pub flags: u16,
        /// Explicit padding, 0.
        pub pad: [u8; 4],
    }
}

impl RtpEdit {
    /// Flag: SSRC, sequence number and timestamp are mapped; without it nothing is.
    pub const PROJECTED: u16 = 1;

    /// SSRC, sequence number and timestamp pass through.
    pub const TRANSPARENT: Self = Self { ssrc: 0, timestamp_offset: 0, seq_offset: 0, flags: 0, pad: [0; 4] };

    /// Maps to `ssrc`, adding the offsets modulo their range.
    pub const fn projected(ssrc: u32, seq_offset: u16, timestamp_offset: u32) -> Self {
        Self { ssrc, timestamp_offset, seq_offset, flags: Self::PROJECTED, pad: [0; 4] }
    }

    /// Whether nothing changes, so that the bytes may be sent as they came.
    #[inline]
    pub const fn is_transparent(&self) -> bool {
        self.flags & Self::PROJECTED == 0
    }
}

/// The RTP header of a copy. Version, padding, extension, CSRC count, marker and payload type are kept.
#[inline]
#[must_use]
pub const fn rewrite(header: &RtpFixed, edit: &RtpEdit) -> RtpFixed {
    let mut out = *header;
    if !edit.is_transparent() {
        out.set_ssrc(edit.ssrc);
        out.set_seq(header.seq().wrapping_add(edit.seq_offset));
        out.set_timestamp(header.timestamp().wrapping_add(edit.timestamp_offset));
    }
    out
}

/// The network part of a copy: what is stored into L2 to L4, once per super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edits {
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// Source MAC address.
    pub src_mac: [u8; 6],
    /// Source address in the form of [`crate::flow::FlowKey::src`].
    pub src: [u8; 16],
    /// Destination address, as `src`.
    pub dst: [u8; 16],
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// DSCP of the leg with the packet's own ECN bits.
    pub tos: u8,
}

/// Readdresses one packet to a leg.
///
/// `ttl`, `tos`: those of the packet. A leg with a `ttl` of its own sends with that (the last hop is a new
/// sender); otherwise the packet's is decremented, so that two proxies forwarding to each other come to
/// an end. A leg without a DSCP keeps the packet's.
///
/// # Errors
/// [`DropReason::Ttl`] if the decremented time to live would be 0.
#[inline]
pub const fn readdress(ttl: u8, tos: u8, leg: &LegEntry) -> Result<Edits, DropReason> {
    let ttl = if leg.ttl != 0 {
        leg.ttl
    } else if ttl <= 1 {
        return Err(DropReason::Ttl);
    } else {
        ttl - 1
    };
    let tos = if leg.flags & LegEntry::SET_DSCP == 0 { tos } else { (leg.dscp << 2) | (tos & 0b11) };
    Ok(Edits {
        dst_mac: leg.dst_mac,
        src_mac: leg.src_mac,
        src: leg.src,
        dst: leg.dst,
        src_port: leg.src_port,
        dst_port: leg.dst_port,
        ttl,
        tos,
    })
}

#[cfg(test)]
mod tests;
