//! Counting verdicts, drop reasons and what legs got.

use msm_fastpath::DropReason;
use msm_fastpath::limits::{ASK_DEVICE, VERDICT_COUNTERS};

use crate::maps::{COUNTERS, LEG_STATS};

/// Counts one packet under an index of `msm_fastpath::limits`.
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a slot of this CPU's own array; softirqs do not interrupt each other. With PREEMPT_RT they may, which
        // costs single counts and nothing else: a program never holds a reference across a call.
        unsafe { *counter += 1 };
    }
}

/// Counts one dropped packet.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    count(VERDICT_COUNTERS + reason as u32);
}

/// Counts what one leg was sent, segments one by one.
#[inline(always)]
pub(crate) fn count_sent(leg: u32, packets: u32, bytes: u32) {
    if let Some(stats) = LEG_STATS.get_ptr_mut(leg) {
        // SAFETY: as in `count`.
        let stats = unsafe { &mut *stats };
        stats.packets += u64::from(packets);
        stats.bytes += u64::from(bytes);
    }
}

/// Whether the leg's device is to be asked for before this packet is redirected there: once in [`ASK_DEVICE`] packets, and
/// with every packet while the answer is no, because then nothing is counted as sent.
#[inline(always)]
pub(crate) fn asks_device(leg: u32, packets: u32) -> bool {
    LEG_STATS.get_ptr(leg).is_none_or(|stats| {
        // SAFETY: as in `count`.
        let sent = unsafe { (*stats).packets };
        sent % u64::from(ASK_DEVICE) < u64::from(packets)
    })
}

/// Counts what one leg was not sent.
#[inline(always)]
pub(crate) fn count_unsent(leg: u32, packets: u32, reason: DropReason) {
    count_drop(reason);
    if let Some(stats) = LEG_STATS.get_ptr_mut(leg) {
        // SAFETY: as in `count`.
        let stats = unsafe { &mut *stats };
        stats.dropped += u64::from(packets);
        stats.dropped_for = reason as u32;
    }
}
