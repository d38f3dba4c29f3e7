//! Editing the RTP headers of a super-packet, all of them: one that is left out corrupts the stream silently.

use msm_fastpath::rewrite::further;
use msm_fastpath::{RTP_FIXED_LEN, RtpEdit, rewrite};

use crate::packet::{Packet, Turn};
use crate::skb::Skb;

/// Brings the headers into the form that `target` asks for, whatever edit they have been through. False if that
/// failed half way.
#[inline(always)]
pub(crate) fn edit_to(skb: Skb, packet: &mut Packet, target: &RtpEdit) -> bool {
    if packet.applied == *target {
        return true;
    }
    let last = packet.segments.get(packet.segments.count() - 1).map_or(0, |(offset, _)| offset);
    let end = packet.family.payload_offset() as u32 + last + RTP_FIXED_LEN as u32;
    if !skb.make_linear(end) {
        return false;
    }
    packet.edit = further(&packet.applied, target, packet.rtp().ssrc());
    packet.applied = *target;
    packet.failed = false;
    packet.repeat(skb, packet.segments.count().div_ceil(PER_TURN), edit_segments);
    !packet.failed
}

/// Segments that one turn of the loop edits: the call of its body costs as much as an edit.
const PER_TURN: u32 = 4;

extern "C" fn edit_segments(turn_number: u32, turn: *mut Turn) -> i64 {
    // SAFETY: the body of the loop above.
    let (skb, packet) = unsafe { Turn::take(turn) };
    let edit = packet.edit;
    for index in 0..PER_TURN {
        let Some((offset, _)) = packet.segments.get(turn_number * PER_TURN + index) else { return 1 };
        let at = packet.family.payload_offset() as u32 + offset;
        if !skb.change_rtp(at, |rtp| rewrite(&rtp, &edit)) {
            packet.failed = true;
            return 1;
        }
    }
    0
}
