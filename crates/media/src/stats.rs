//! Reception statistics of one track: loss, reordering, duplicates, jitter.
//!
//! Loss is counted as RFC 3550 appendix A.3 says, jitter as A.8. A source that restarts (RTP-6, RTP-7)
//! starts a new *run*: what a report block says starts over, the totals for metrics go on.

use std::time::Instant;

use crate::clock::ClockRate;
use crate::elsewhere::{Ahead, Counts, Elsewhere};
use crate::seq::{SeqStep, SeqTracker};

pub mod inventory;

/// Counters of everything that a track received, over all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Packets, duplicates included.
    pub packets: u64,
    /// Bytes of RTP, headers included.
    pub bytes: u64,
    /// Packets expected from the sequence numbers.
    pub expected: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// Runs that ended: restarts of the source.
    pub restarts: u64,
}

impl Totals {
    /// Packets lost so far by RFC 3550: expected minus received. Duplicates make it negative.
    pub fn lost(&self) -> i64 {
        self.expected as i64 - self.packets as i64
    }

    /// Packets that never came: expected minus the different ones received.
    pub fn missing(&self) -> u64 {
        (self.expected + self.duplicates).saturating_sub(self.packets)
    }
}

/// What one report block says about the source.
///
/// Source: RFC 3550 section 6.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reception {
    /// Share of packets lost since the last call, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost in this run, clamped to signed 24 bits.
    pub cumulative_lost: i32,
    /// Highest sequence number with its cycles.
    pub highest: u32,
    /// Jitter in ticks.
    pub jitter: u32,
}

/// Statistics of one run, and the totals before it.
#[derive(Debug, Clone)]
pub struct ReceiverStats {
    clock: ClockRate,
    epoch: Instant,
    run: Option<Run>,
    before: Totals,
    rate_since: Instant,
    rate_packets: u64,
    packets_per_second: u64,
}

#[derive(Debug, Clone)]
struct Run {
    seq: SeqTracker,
    packets: u64,
    bytes: u64,
    reordered: u64,
    duplicates: u64,
    /// What was counted elsewhere and not here.
    elsewhere: Counts,
    /// Highest extended number of those packets, as far as it is known; 0 if there are none.
    reached: u64,
    jitter: Jitter,
    frame_jitter: Jitter,
    /// Expected and received at the last report.
    prior: (u64, u64),
}

/// The estimator of RFC 3550 appendix A.8, in ticks, without its rounding.
#[derive(Debug, Clone, Copy)]
struct Jitter {
    arrival: f64,
    ts: u32,
    value: f64,
}

impl Jitter {
    #[inline]
    fn observe(&mut self, arrival: f64, ts: u32) {
        let spacing = f64::from(ts.wrapping_sub(self.ts) as i32);
        let difference = (arrival - self.arrival - spacing).abs();
        self.arrival = arrival;
        self.ts = ts;
        self.value += (difference - self.value) / 16.0;
    }
}

impl ReceiverStats {
    /// Statistics of a track that has received nothing.
    pub fn new(now: Instant, clock: ClockRate) -> Self {
        Self {
            clock,
            epoch: now,
            run: None,
            before: Totals::default(),
            rate_since: now,
            rate_packets: 0,
            packets_per_second: 0,
        }
    }

    /// The clock of the track.
    pub fn clock(&self) -> ClockRate {
        self.clock
    }

    /// A moment in ticks since these statistics began, for [`Self::observe`]: once per batch.
    #[inline]
    pub fn arrival(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.epoch).as_secs_f64() * f64::from(self.clock.hz())
    }

    /// Ends the run, if there is one: what follows is another source or another sequence.
    pub fn end_run(&mut self) {
        if self.run.is_some() {
            self.before = self.totals();
            self.before.restarts += 1;
            self.run = None;
        }
    }

    /// Takes one packet of `bytes` bytes. The first one after [`Self::end_run`] starts a run. A
    /// [`SeqStep::Jump`] is not counted; it is not part of the run.
    #[inline]
    pub fn observe(&mut self, arrival: f64, seq: u16, ts: u32, bytes: usize) -> (u64, SeqStep) {
        let Some(run) = &mut self.run else {
            let run = Run::start(arrival, seq, ts, bytes);
            let first = run.seq.first();
            self.run = Some(run);
            self.rate_packets += 1;
            return (first, SeqStep::Forward { skipped: 0 });
        };
        let (number, step) = run.seq.observe(seq);
        match step {
            SeqStep::Jump => return (number, step),
            SeqStep::Forward { .. } => {}
            SeqStep::Reordered => run.reordered += 1,
            SeqStep::Duplicate => run.duplicates += 1,
        }
        run.packets += 1;
        run.bytes += bytes as u64;
        run.jitter.observe(arrival, ts);
        if ts != run.frame_jitter.ts && matches!(step, SeqStep::Forward { .. }) {
            run.frame_jitter.observe(arrival, ts);
        }
        self.rate_packets += 1;
        (number, step)
    }

    /// Before [`Self::observe`] of a packet, while the run goes on elsewhere too.
    #[inline]
    pub(crate) fn catch_up(&mut self, ahead: &Ahead, seq: u16) {
        if let Some(run) = &mut self.run {
            ahead.catch_up(&mut run.seq, seq);
        }
    }

    /// Takes in what was counted elsewhere. `whole`: nothing up to its highest number can still come here.
    pub(crate) fn absorb(&mut self, elsewhere: &Elsewhere, whole: bool) {
        let arrival = self.arrival(elsewhere.arrival);
        let stamped = self.arrival(elsewhere.ts_at);
        self.count_elsewhere(elsewhere.counts);
        let Some(run) = &mut self.run else { return };
        if arrival > run.jitter.arrival {
            run.jitter = Jitter { arrival, ts: elsewhere.ts, value: elsewhere.jitter };
        }
        if elsewhere.ts.wrapping_sub(run.frame_jitter.ts) as i32 > 0 {
            run.frame_jitter = Jitter { arrival: stamped, ts: elsewhere.ts, ..run.frame_jitter };
        }
        if whole {
            run.seq.raise(elsewhere.highest);
            run.seq.mark_window(elsewhere.highest, elsewhere.window);
        }
    }

    /// What was counted elsewhere reaches up to this number: it was expected too, although what came here does
    /// not reach as far.
    pub(crate) fn reach(&mut self, highest: u64) {
        if let Some(run) = &mut self.run {
            run.reached = run.reached.max(highest);
        }
    }

    /// Takes in the counters alone.
    pub(crate) fn count_elsewhere(&mut self, counts: Counts) {
        let Some(run) = &mut self.run else { return };
        self.rate_packets += counts.packets.saturating_sub(run.elsewhere.packets);
        run.elsewhere = counts;
    }

    /// What was counted elsewhere counts as counted here: the other one starts at zero again.
    pub(crate) fn fold(&mut self) {
        if let Some(run) = &mut self.run {
            let counts = std::mem::take(&mut run.elsewhere);
            run.packets += counts.packets;
            run.bytes += counts.bytes;
            run.reordered += counts.reordered;
            run.duplicates += counts.duplicates;
        }
    }

    /// Which of the last 64 numbers of the run came; bit 0 is the highest.
    pub(crate) fn window(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.seq.window())
    }

    /// Packets of the run.
    pub(crate) fn run_packets(&self) -> u64 {
        self.run.as_ref().map_or(0, Run::received)
    }

    /// Once per batch, after its packets: measures the packet rate, from which the misorder limit
    /// follows.
    #[inline]
    pub fn note_time(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.rate_since);
        if elapsed.as_secs() < 1 {
            return;
        }
        self.packets_per_second = (self.rate_packets as f64 / elapsed.as_secs_f64()) as u64;
        self.rate_since = now;
        self.rate_packets = 0;
        if let Some(run) = &mut self.run {
            run.seq.set_rate(self.packets_per_second);
        }
    }

    /// Packets per second, measured over the last full second.
    pub fn packets_per_second(&self) -> u64 {
        self.packets_per_second
    }

    /// Highest extended sequence number of the run.
    pub fn highest(&self) -> Option<u64> {
        self.run.as_ref().map(|run| run.seq.highest())
    }

    /// Counters over all runs.
    pub fn totals(&self) -> Totals {
        let mut totals = self.before;
        if let Some(run) = &self.run {
            totals.packets += run.received();
            totals.bytes += run.bytes + run.elsewhere.bytes;
            totals.expected += run.expected();
            totals.reordered += run.reordered + run.elsewhere.reordered;
            totals.duplicates += run.duplicates + run.elsewhere.duplicates;
        }
        totals
    }

    /// Packets lost in this run, clamped to signed 24 bits (RFC 3550 appendix A.3).
    pub fn cumulative_lost(&self) -> i32 {
        self.run.as_ref().map_or(0, Run::cumulative_lost)
    }

    /// Jitter of the run in ticks (RFC 3550 appendix A.8). Runs on every packet and therefore contains
    /// the pacing of frames that take several packets.
    pub fn jitter_ticks(&self) -> f64 {
        self.run.as_ref().map_or(0.0, |run| run.jitter.value)
    }

    /// Jitter of the run in seconds.
    pub fn jitter_seconds(&self) -> f64 {
        self.clock.seconds(self.jitter_ticks())
    }

    /// Jitter of the first packets of frames only, in seconds: free of the sender's pacing.
    pub fn frame_jitter_seconds(&self) -> f64 {
        self.clock.seconds(self.run.as_ref().map_or(0.0, |run| run.frame_jitter.value))
    }

    /// What a report block says now, and the start of the next interval of its fraction. `None` before
    /// the first packet of a run.
    ///
    /// Source: RFC 3550 section 6.4.1, appendix A.3.
    pub fn report(&mut self) -> Option<Reception> {
        let run = self.run.as_mut()?;
        let now = (run.expected(), run.received());
        let expected = now.0.saturating_sub(run.prior.0);
        let received = now.1.saturating_sub(run.prior.1);
        run.prior = now;
        let lost = expected.saturating_sub(received);
        let fraction = (lost << 8).checked_div(expected).unwrap_or(0);
        Some(Reception {
            fraction_lost: fraction.min(255) as u8,
            cumulative_lost: run.cumulative_lost(),
            highest: run.seq.highest_on_wire(),
            jitter: run.jitter.value as u32,
        })
    }
}

impl Run {
    fn start(arrival: f64, seq: u16, ts: u32, bytes: usize) -> Self {
        let jitter = Jitter { arrival, ts, value: 0.0 };
        Self {
            seq: SeqTracker::new(seq),
            packets: 1,
            bytes: bytes as u64,
            reordered: 0,
            duplicates: 0,
            elsewhere: Counts::default(),
            reached: 0,
            jitter,
            frame_jitter: jitter,
            prior: (0, 0),
        }
    }

    fn received(&self) -> u64 {
        self.packets + self.elsewhere.packets
    }

    fn expected(&self) -> u64 {
        self.seq.expected() + self.reached.saturating_sub(self.seq.highest())
    }

    fn cumulative_lost(&self) -> i32 {
        let lost = self.expected() as i64 - self.received() as i64;
        lost.clamp(-0x80_0000, 0x7f_ffff) as i32
    }
}

#[cfg(test)]
mod tests;
