//! Projection: one SSRC, one sequence and one timeline per leg, whatever its source does.
//!
//! A leg starts transparent: packets leave as they came. When its source changes (RTP-6, RTP-7) it is
//! spliced: from then on it is projected, for good, and keeps its SSRC, the sequence continues at the
//! last number plus one, and the timestamp advances by the time that passed. Within one run of the
//! source the mapping is constant, so gaps stay gaps and reordered packets keep their number (RTP-4).
//! Owns the mapping only; the gate and the counters are the leg's.

use std::time::{Duration, Instant};

use msm_fastpath::{RtpEdit, RtpFixed, rewrite};

use crate::clock::ClockRate;

pub mod inventory;

/// When video goes on after a splice (RTP-6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumePolicy {
    /// With the next packet of the new source.
    AtOnce,
    /// With the next key frame or the parameter sets before it; after this long with any packet.
    AtKeyFrame(Duration),
}

impl ResumePolicy {
    /// Two seconds: longer than the first key frame of a source that just started, shorter than the
    /// patience of a viewer.
    pub const DEFAULT_WAIT: Duration = Duration::from_secs(2);
}

impl Default for ResumePolicy {
    fn default() -> Self {
        Self::AtKeyFrame(Self::DEFAULT_WAIT)
    }
}

/// A packet's place on the way out: the head of what a leg has sent, or of what an input received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Highest extended sequence number of the source's run.
    pub ext: u64,
    /// Highest timestamp of the source.
    pub ts: u32,
    /// When that timestamp was first seen.
    pub at: Instant,
}

impl Head {
    /// The timestamp that the source would stamp at `now`.
    pub fn ts_at(&self, now: Instant, clock: ClockRate) -> u32 {
        self.ts.wrapping_add(clock.ticks(now.saturating_duration_since(self.at)) as u32)
    }

    /// Raises the head to a packet.
    #[inline]
    pub fn raise(&mut self, ext: u64, ts: u32, at: Instant) {
        self.ext = self.ext.max(ext);
        if ts.wrapping_sub(self.ts) as i32 > 0 {
            self.ts = ts;
            self.at = at;
        }
    }
}

/// Header fields as they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Sequence number.
    pub seq: u16,
    /// Timestamp.
    pub ts: u32,
    /// SSRC.
    pub ssrc: u32,
}

/// The mapping of one leg and track from a run of its source to what leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    run: u32,
    ssrc: u32,
    edit: RtpEdit,
}

impl Projection {
    /// A transparent leg of this run of a source.
    pub fn transparent(run: u32, ssrc: u32) -> Self {
        Self { run, ssrc, edit: RtpEdit::TRANSPARENT }
    }

    /// Whether packets leave as they came.
    #[inline]
    pub fn is_transparent(&self) -> bool {
        self.edit.is_transparent()
    }

    /// The run of the source that the mapping is for.
    #[inline]
    pub fn run(&self) -> u32 {
        self.run
    }

    /// SSRC of everything that leaves: never changes.
    #[inline]
    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// What is added to timestamps of the source, modulo 2^32.
    pub fn dts(&self) -> u32 {
        self.edit.timestamp_offset
    }

    /// The mapping as every rung applies it.
    pub fn edit(&self) -> &RtpEdit {
        &self.edit
    }

    /// Maps one packet of the current run.
    #[inline]
    pub fn map(&self, seq: u16, ts: u32) -> Mapped {
        let out = rewrite(&RtpFixed::new(0, false, seq, ts, self.ssrc), &self.edit);
        Mapped { seq: out.seq(), ts: out.timestamp(), ssrc: out.ssrc() }
    }

    /// Splices to another run: `(seq, ts)` of the source will leave as `(out_seq, out_ts)`. The leg is
    /// projected from now on.
    pub fn splice(&mut self, run: u32, (seq, ts): (u16, u32), (out_seq, out_ts): (u16, u32)) {
        self.run = run;
        self.edit = RtpEdit::projected(self.ssrc, out_seq.wrapping_sub(seq), out_ts.wrapping_sub(ts));
    }

    /// Where leg and timeline continue after `sent`, the head of what left in the current run: the number
    /// after the last one, and the time of `due`, the timestamp in the current run that the next packet has
    /// by the bridge between both runs ([`crate::timeline`]). Without one `last + round((now - t_last) *
    /// clock)`. At least one tick later in any case, so that the first frame of the new source is not taken
    /// for a part of the last one of the old, and time never goes back (RTP-6).
    pub fn continuation(&self, sent: &Head, now: Instant, clock: ClockRate, due: Option<u32>) -> (u16, u32) {
        let last = self.map(sent.ext as u16, sent.ts);
        let elapsed = clock.ticks(now.saturating_duration_since(sent.at)).max(1);
        let by_clock = last.ts.wrapping_add(elapsed as u32);
        let ts = due.map_or(by_clock, |due| due.wrapping_add(self.dts()));
        // After half the range of timestamps there is no telling back from forward.
        let is_back = elapsed < 1 << 31 && ts.wrapping_sub(last.ts) as i32 <= 0;
        (last.seq.wrapping_add(1), if is_back { last.ts.wrapping_add(1) } else { ts })
    }
}

#[cfg(test)]
mod tests;
