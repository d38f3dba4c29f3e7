//! What one copy must look like: edits as values.
//!
//! [`rewrite`] is the RTP part, [`crate::head::Head::readdress`] the network part. A worker calls only the
//! first, because its socket writes the addresses; a kernel program calls both and stores the result.

use crate::abi;
use crate::csum::Delta;
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

    /// This edit as a projection: the transparent one maps `ssrc` onto itself.
    #[inline]
    #[must_use]
    pub const fn or_identity(&self, ssrc: u32) -> Self {
        if self.is_transparent() { Self::projected(ssrc, 0, 0) } else { *self }
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

/// The difference that an edited RTP header makes to a complete UDP checksum.
#[inline]
#[must_use]
pub const fn edit_delta(old: &RtpFixed, new: &RtpFixed) -> Delta {
    Delta::NONE
        .replace16(old.seq(), new.seq())
        .replace32(old.timestamp(), new.timestamp())
        .replace32(old.ssrc(), new.ssrc())
}

/// The edit that turns copies made by `from` into copies made by `to`: a super-packet that was edited for
/// one leg is edited further for the next. `ssrc`: of the packet as it came.
#[inline]
#[must_use]
pub const fn further(from: &RtpEdit, to: &RtpEdit, ssrc: u32) -> RtpEdit {
    let from = from.or_identity(ssrc);
    let to = to.or_identity(ssrc);
    RtpEdit::projected(
        to.ssrc,
        to.seq_offset.wrapping_sub(from.seq_offset),
        to.timestamp_offset.wrapping_sub(from.timestamp_offset),
    )
}

/// Time to live of a copy. A leg with one of its own sends with that, because the last hop is a new
/// sender; otherwise the packet's is decremented, so that two proxies forwarding to each other come to
/// an end.
///
/// # Errors
/// [`DropReason::Ttl`] if the decremented one would be 0.
#[inline]
pub const fn next_ttl(ttl: u8, leg: &LegEntry) -> Result<u8, DropReason> {
    if leg.ttl != 0 {
        Ok(leg.ttl)
    } else if ttl <= 1 {
        Err(DropReason::Ttl)
    } else {
        Ok(ttl - 1)
    }
}

/// DSCP and ECN of a copy: the leg's DSCP, if it has one, with the packet's own ECN bits.
#[inline]
pub const fn next_tos(tos: u8, leg: &LegEntry) -> u8 {
    if leg.flags & LegEntry::SET_DSCP == 0 { tos } else { (leg.dscp << 2) | (tos & 0b11) }
}

#[cfg(test)]
mod tests;
