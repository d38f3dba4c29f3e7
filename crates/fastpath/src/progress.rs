//! Progress of a flow: sequence, jitter, and the rate at which packets go up to the worker.
//!
//! The kernel works on a copied [`Progress`] over all segments of a super-packet and stores it once they
//! have all proved admitted, so a packet that is handed up leaves no trace in it.

use crate::flow::FlowStats;
use crate::gate::is_before;
use crate::gso::Segments;
use crate::limits::{BURST_GAP, MAX_DROPOUT, MAX_MISORDER, MAX_TIME_JUMP, STRANGE_PER_SECOND};

/// First extended number: one cycle up, so that reordering at the start never goes below zero.
const FIRST_CYCLE: u64 = 0x1_0000;

const NANOS: u64 = 1_000_000_000;

/// The part of [`FlowStats`] that every packet moves.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Highest extended sequence number.
    pub highest: u64,
    /// See [`FlowStats::window`].
    pub window: u64,
    /// When `last_timestamp` was first seen, ns of CLOCK_MONOTONIC.
    pub timestamp_at: u64,
    /// Highest RTP timestamp.
    pub last_timestamp: u32,
    /// Packets of this super-packet that came behind a later one. The numbers that begin with zero do not follow
    /// each other: the compiler would call a loop over their bytes.
    pub reordered: u32,
    /// See [`FlowStats::transit`].
    pub transit: u32,
    /// Packets of this super-packet that came twice.
    pub duplicate: u32,
    /// See [`FlowStats::jitter`].
    pub jitter: u32,
    /// Most numbers skipped before one of its packets.
    pub skipped: u16,
    /// Sequence number of that packet.
    pub skipped_to: u16,
    /// 1 once a packet was taken.
    pub seen: u8,
}

/// When a packet came, on the clock of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// ns of CLOCK_MONOTONIC.
    pub at: u64,
    /// The same in [`units`] of the clock rate.
    pub units: u32,
    /// RTP clock rate in Hz.
    pub clock_rate: u32,
}

impl Arrival {
    /// A packet that came at `at`, ns of CLOCK_MONOTONIC.
    #[inline]
    pub const fn new(at: u64, clock_rate: u32) -> Self {
        Self { at, units: units(at, clock_rate), clock_rate }
    }
}

/// Nanoseconds as units of the clock rate, modulo 2^32.
///
/// Meant for differences of some seconds: the rate is taken to 32 binary digits behind the point of units per
/// nanosecond, 1.3 parts in ten million at 90 kHz. Divisions would be exact and cost a kernel program as much as
/// finding the flow.
#[inline]
pub const fn units(nanos: u64, clock_rate: u32) -> u32 {
    // 2^60 / 10^9, so that the product with a rate, shifted, is units per nanosecond times 2^32.
    const SCALE: u64 = 1_152_921_505;
    let per_nano = (clock_rate as u64 * SCALE) >> 28;
    // What overflows are multiples of 2^32 units.
    (nanos.wrapping_mul(per_nano) >> 32) as u32
}

impl Progress {
    /// Of a flow that has not begun.
    pub const EMPTY: Self = Self::of(&FlowStats::ZERO);

    /// Where the flow stands.
    #[inline]
    pub const fn of(stats: &FlowStats) -> Self {
        Self {
            highest: stats.highest,
            window: stats.window,
            timestamp_at: stats.timestamp_at,
            last_timestamp: stats.last_timestamp,
            reordered: 0,
            transit: stats.transit,
            duplicate: 0,
            jitter: stats.jitter,
            skipped: 0,
            skipped_to: 0,
            seen: stats.seen,
        }
    }

    /// Whether a packet is higher than all before it.
    #[inline]
    pub const fn is_newest(&self, seq: u16) -> bool {
        self.seen == 0 || is_before(self.highest as u16, seq)
    }

    /// Whether a packet continues the run: its number less than [`MAX_DROPOUT`] ahead of the highest or less
    /// than [`MAX_MISORDER`] behind it, its time within [`MAX_TIME_JUMP`] of the highest or of what that would
    /// be by now. The first packet does.
    ///
    /// Source: RFC 3550 appendix A.1, RTP-7.
    #[inline]
    pub const fn continues(&self, seq: u16, timestamp: u32, arrival: &Arrival) -> bool {
        if self.seen == 0 {
            return true;
        }
        let ahead = seq.wrapping_sub(self.highest as u16);
        if ahead >= MAX_DROPOUT && ahead.wrapping_neg() >= MAX_MISORDER {
            return false;
        }
        let far = arrival.clock_rate.saturating_mul(MAX_TIME_JUMP);
        let step = timestamp.wrapping_sub(self.last_timestamp);
        if (step as i32).unsigned_abs() <= far {
            return true;
        }
        let elapsed = arrival.units.wrapping_sub(units(self.timestamp_at, arrival.clock_rate));
        (step.wrapping_sub(elapsed) as i32).unsigned_abs() <= far
    }

    /// Takes a packet that continues the run.
    ///
    /// Source: RFC 3550 appendices A.1 and A.8.
    #[inline]
    pub const fn take(&mut self, seq: u16, timestamp: u32, arrival: &Arrival) {
        let transit = arrival.units.wrapping_sub(timestamp);
        if self.seen == 0 {
            self.seen = 1;
            self.highest = FIRST_CYCLE + seq as u64;
            self.window = 1;
            self.transit = transit;
            self.last_timestamp = timestamp;
            self.timestamp_at = arrival.at;
            return;
        }
        let highest = self.highest as u16;
        if is_before(highest, seq) {
            let ahead = seq.wrapping_sub(highest);
            self.window = if ahead < 64 { (self.window << (ahead & 63)) | 1 } else { 1 };
            self.highest = self.highest.wrapping_add(ahead as u64);
            if ahead - 1 > self.skipped {
                self.skipped = ahead - 1;
                self.skipped_to = seq;
            }
        } else {
            let behind = highest.wrapping_sub(seq);
            let bit = if behind < 64 { 1u64 << (behind & 63) } else { 0 };
            if self.window & bit == 0 {
                self.reordered += 1;
            } else {
                self.duplicate += 1;
            }
            self.window |= bit;
        }
        if (timestamp.wrapping_sub(self.last_timestamp) as i32) > 0 {
            self.last_timestamp = timestamp;
            self.timestamp_at = arrival.at;
        }
        let moved = (transit.wrapping_sub(self.transit) as i32).unsigned_abs();
        self.transit = transit;
        self.jitter = self.jitter.wrapping_add(moved).wrapping_sub((self.jitter.wrapping_add(8)) >> 4);
    }

    /// Stores the progress of a packet and counts its `segments`.
    ///
    /// Another CPU may have stored since this one looked. The numbers of both stay in the books then, and the highest
    /// never goes back; where nobody did, what is stored holds nothing that the books do not.
    #[inline]
    pub const fn store(&self, stats: &mut FlowStats, segments: &Segments, arrival: &Arrival) {
        stats.packets = stats.packets.wrapping_add(segments.count() as u64);
        stats.bytes = stats.bytes.wrapping_add(segments.bytes() as u64);
        // Another CPU may have stored a later arrival meanwhile: that is no gap.
        if arrival.at.saturating_sub(stats.last_arrival) > BURST_GAP {
            stats.bursts = stats.bursts.wrapping_add(1);
        }
        stats.last_arrival = arrival.at;
        let (highest, window) = joined((self.highest, self.window), (stats.highest, stats.window));
        stats.highest = highest;
        stats.window = window;
        stats.transit = self.transit;
        stats.jitter = self.jitter;
        stats.last_timestamp = self.last_timestamp;
        stats.timestamp_at = self.timestamp_at;
        stats.seen = self.seen;
    }

    /// Counts what depends on whether the worker got the packet too: it counts the order of its packets itself.
    #[inline]
    pub const fn settle(&self, stats: &mut FlowStats, segments: &Segments, copied: bool) {
        if copied {
            stats.copied = stats.copied.wrapping_add(segments.count() as u64);
            stats.copied_bytes = stats.copied_bytes.wrapping_add(segments.bytes() as u64);
        } else {
            stats.reordered = stats.reordered.wrapping_add(self.reordered as u64);
            stats.duplicate = stats.duplicate.wrapping_add(self.duplicate as u64);
        }
    }
}

/// Two views of the numbers of one run, each the highest and the 64 up to it, as one.
#[inline]
const fn joined(mine: (u64, u64), theirs: (u64, u64)) -> (u64, u64) {
    let (high, low) = if mine.0 >= theirs.0 { (mine, theirs) } else { (theirs, mine) };
    let behind = high.0 - low.0;
    (high.0, if behind < 64 { high.1 | (low.1 << (behind & 63)) } else { high.1 })
}

/// How a flow's packets come: what tells whether batching them at their way in pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// [`FlowStats::packets`].
    pub packets: u64,
    /// [`FlowStats::bursts`].
    pub bursts: u32,
}

impl Pace {
    /// Mean number of packets per burst since an earlier reading of the same flow, rounded down. `None` if no burst
    /// has begun since, or the statistics began anew.
    pub const fn burst_since(&self, earlier: &Self) -> Option<u64> {
        let Some(packets) = self.packets.checked_sub(earlier.packets) else { return None };
        packets.checked_div(self.bursts.wrapping_sub(earlier.bursts) as u64)
    }
}

/// What becomes of a packet that does not go to the legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandUp {
    /// Whether it goes up to the worker; otherwise it is dropped.
    pub granted: bool,
    /// Whether it is the first of its kind, granted or not, in this second: reason for an event.
    pub first: bool,
}

impl FlowStats {
    /// How the forwarded packets came.
    pub const fn pace(&self) -> Pace {
        Pace { packets: self.packets, bursts: self.bursts }
    }

    /// Counts one packet that does not go to the legs against [`STRANGE_PER_SECOND`]. `now`: ns of
    /// CLOCK_MONOTONIC.
    #[inline]
    pub const fn hand_up(&mut self, now: u64) -> HandUp {
        if now.wrapping_sub(self.handed_since) >= NANOS {
            self.handed_since = now;
            self.handed = 0;
        }
        let granted = self.handed < STRANGE_PER_SECOND;
        let first = self.handed == 0 || self.handed == STRANGE_PER_SECOND;
        if self.handed <= STRANGE_PER_SECOND {
            self.handed += 1;
        }
        if !granted {
            self.dropped = self.dropped.wrapping_add(1);
        }
        HandUp { granted, first }
    }
}

#[cfg(test)]
mod tests;
