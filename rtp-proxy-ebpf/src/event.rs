//! Rare facts, told by the ring buffer. A full ring loses them: nothing depends on them.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use msm_fastpath::{Event, EventKind};

use crate::maps::EVENTS;

/// ns of CLOCK_MONOTONIC.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Tells one fact. Not inlined: its 24 bytes would lie on the stack of everyone who might call it.
#[inline(never)]
pub(crate) fn tell(kind: EventKind, flow: u32, leg: u32, ssrc: u32, seq: u16) {
    let event = Event { at: now(), flow, leg, ssrc, seq, kind: kind as u8, pad: 0 };
    // A full ring: the event is lost.
    let _ = EVENTS.output(event, 0);
}
