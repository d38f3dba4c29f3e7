//! Asking for memory before it is needed.
//!
//! Among thousands of flows nothing of one is in a cache any more when its next packet comes. Read where it is needed,
//! each line of it is waited for on its own, some fifteen times per packet; read here, right when the flow is known, the
//! waits overlap. What is read is not looked at. Where everything is in the cache, this costs some instructions.

use core::mem::offset_of;

use msm_fastpath::{FlowEntry, FlowStats, LegEntry, LegStats};

use crate::maps::{FLOW_STATS, GATES, LEG_STATS, LEGS};

/// Legs whose memory is asked for. Those of larger groups follow each other in memory, which the processor
/// notices by itself.
const LEGS_AHEAD: u32 = 4;

/// Asks for what a packet of this flow will touch. Gates and counters are asked for at the ids that user space gives
/// to legs of these slots where it can, so that nothing here waits for the leg.
#[inline(always)]
pub(crate) fn ask(entry: &FlowEntry) {
    let legs = u32::from(entry.legs).min(LEGS_AHEAD);
    if legs == 0 {
        return;
    }
    let (first, last) = (entry.first_leg, entry.first_leg.wrapping_add(legs - 1));
    // The longest way first: these are found by a pointer that is itself in memory.
    ask_counters(first);
    if last != first {
        ask_counters(last);
    }
    ask_gate(first);
    if let Some(stats) = FLOW_STATS.get_ptr(entry.stats) {
        read(stats.cast(), 0);
        read(stats.cast(), 64);
        read(stats.cast(), size_of::<FlowStats>() - 4);
    }
    for slot in 0..LEGS_AHEAD {
        if slot < legs {
            ask_leg(first.wrapping_add(slot));
        }
    }
}

#[inline(always)]
fn ask_leg(slot: u32) {
    let Some(leg) = LEGS.get_ptr(slot) else { return };
    read(leg.cast(), 0);
    read(leg.cast(), size_of::<LegEntry>() - 4);
    let id = read(leg.cast(), offset_of!(LegEntry, id));
    if id != slot {
        // It came to this slot from another one.
        ask_counters(id);
        ask_gate(id);
    }
}

#[inline(always)]
fn ask_counters(id: u32) {
    if let Some(stats) = LEG_STATS.get_ptr_mut(id) {
        read(stats.cast_const().cast(), size_of::<LegStats>() - 4);
    }
}

#[inline(always)]
fn ask_gate(id: u32) {
    if let Some(gate) = GATES.get_ptr(id) {
        read(gate.cast(), 0);
    }
}

/// One word of a value. Volatile, or nothing would be read.
#[inline(always)]
fn read(value: *const u32, offset: usize) -> u32 {
    // SAFETY: callers stay within the value of an array map, which lives as long as the map; its words are aligned.
    unsafe { value.byte_add(offset).read_volatile() }
}
