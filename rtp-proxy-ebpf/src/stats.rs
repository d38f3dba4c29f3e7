//! Decides about a parsed frame and counts what was decided: the part that both hooks share.

use msm_fastpath::gso::Segments;
use msm_fastpath::limits::{
    COUNT_FORWARD, COUNT_NOT_OURS, COUNT_TO_USER, COUNT_UNPARSED, MAX_SEGMENTS, VERDICT_COUNTERS,
};
use msm_fastpath::{Verdict, decide_flow};

use crate::maps::{COUNTERS, FLOW_STATS, FLOWS};
use crate::packet::{Datagram, Parsed};

/// The verdict on a frame, `None` if it is not for a media address of ours.
///
/// `gso_size`: segment size of a super-packet, 0 for a plain frame.
#[inline(always)]
pub(crate) fn judge(parsed: Parsed, gso_size: u32) -> Option<Verdict> {
    match parsed {
        Parsed::Other => {
            count(COUNT_NOT_OURS);
            None
        }
        Parsed::Unparsed => {
            count(COUNT_UNPARSED);
            None
        }
        Parsed::Datagram(datagram) => judge_datagram(&datagram, gso_size),
    }
}

#[inline(always)]
fn judge_datagram(datagram: &Datagram, gso_size: u32) -> Option<Verdict> {
    // SAFETY: user space replaces entries by map updates; an element that is read meanwhile may be
    // freed and reused, which shows an older or newer entry for one packet and no invalid value, because
    // every bit pattern of FlowEntry is valid. It is copied out at once.
    let Some(entry) = (unsafe { FLOWS.get(&datagram.key) }).copied() else {
        count(COUNT_NOT_OURS);
        return None;
    };
    let segments = Segments::new(datagram.payload_len, gso_size);
    let verdict = match segments {
        Some(_) => decide_flow(datagram.rtp.as_ref(), &entry),
        // More segments than any loop here walks.
        None => Verdict::ToUser,
    };
    let segments = match segments {
        Some(segments) => segments.count(),
        None => MAX_SEGMENTS,
    };
    count(match verdict {
        Verdict::Forward => COUNT_FORWARD,
        Verdict::ToUser => COUNT_TO_USER,
        Verdict::Drop(reason) => VERDICT_COUNTERS + reason as u32,
    });
    if let Some(stats) = FLOW_STATS.get_ptr_mut(&datagram.key) {
        // SAFETY: the kernel keeps the element's memory valid while the program runs; races with other
        // CPUs lose single counts, which is stated at the type.
        let stats = unsafe { &mut *stats };
        match verdict {
            Verdict::Drop(_) => stats.count_drop(segments),
            _ => stats.count(datagram.rtp.as_ref(), segments, datagram.payload_len),
        }
    }
    Some(verdict)
}

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a slot of this CPU's own array, which no other program interrupts on this CPU in
        // softirq context.
        unsafe { *counter += 1 };
    }
}
