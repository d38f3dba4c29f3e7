//! Start gates of legs.

use core::arch::asm;

use msm_fastpath::{EventKind, GateEntry, Step};
use zerocopy::transmute;

use crate::event::tell;
use crate::maps::GATES;
use crate::packet::Number;

/// What the gate of a leg says about a packet; a gate that moves is written back. `seq`: the packet's number, if it
/// has one.
#[inline(always)]
pub(crate) fn step(leg: u32, flow: u32, number: Number, seq: u16) -> Step {
    let seq = if matches!(number, Number::None) { 0 } else { seq };
    let Some(gate) = GATES.get_ptr_mut(leg) else { return Step::Hold };
    let gate = gate.cast::<u64>();
    // SAFETY: values of an array map have eight bytes here, aligned to eight by the kernel, and live as long
    // as the map. User space and other CPUs write them meanwhile, hence one volatile read.
    let mut found = unsafe { gate.read_volatile() };
    // A second look, should another CPU or user space have moved it between look and write.
    for _ in 0..2 {
        let entry: GateEntry = transmute!(found);
        let (moved, step) = match number {
            Number::Newest => entry.step(seq, true),
            Number::Behind => entry.step(seq, false),
            Number::None => entry.step_unnumbered(),
        };
        let kind = match step {
            Step::Hold | Step::Pass => return step,
            Step::Start => EventKind::Started,
            Step::Stop => EventKind::Stopped,
        };
        // SAFETY: as above; the exchange is atomic.
        let before = unsafe { compare_exchange(gate, found, transmute!(moved)) };
        if before == found {
            tell(kind, flow, leg, 0, seq);
            return step;
        }
        found = before;
    }
    Step::Hold
}

/// Writes `new` if the value is `old`; returns what it was. The target's atomics lack this one.
///
/// # Safety
/// `at` is aligned and valid for writes.
#[inline(always)]
unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    let mut value = old;
    // SAFETY: the instruction touches the eight bytes that the caller vouches for.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inout("r0") value,
            options(nostack)
        );
    }
    value
}
