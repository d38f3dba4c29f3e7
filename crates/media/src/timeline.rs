//! Where a run's timestamps lie in time, and how the next run continues them (RTP-6).
//!
//! Two things are known of a run: when its packets came, and what its sender reports say. The first is
//! blurred by the source's own bursts and by the network, the second is exact and holds for all tracks of a
//! source alike. So a restart is bridged by reports where both runs have them, and otherwise by the packets
//! that were least delayed, never by the last packet of the one run and the first of the other.
//!
//! Owns the arithmetic of that bridge. Runs are `input`'s, what a leg has sent is `leg`'s.

use std::time::{Duration, Instant};

use crate::clock::ClockRate;
use crate::rtcp::sr::SenderInfo;

pub(crate) mod inventory;

/// How long a packet may count as the least delayed one; then one of the last window takes its place, so
/// that a source's clock may drift against ours.
const WINDOW: Duration = Duration::from_secs(10);
/// Clocks of two runs are taken to be one clock when it moved by the time that passed, give or take this.
/// Cameras that set their clock from NTP are exact; one that was set from a clock of whole seconds is not,
/// and following it would make packets early or late by that much for viewers.
pub const SAME_CLOCK: Duration = Duration::from_millis(500);
/// Tracks of one source restart within this time of one another.
pub const RESTART: Duration = Duration::from_secs(10);
/// What a track without reports takes over from the other tracks' reports must exceed what arrival times
/// are off by anyway.
const NOTABLE: i64 = 100_000;

/// A timestamp and when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    ts: u32,
    at: Instant,
}

impl Point {
    /// The timestamp due at `now`, which may be a little before this point.
    fn ts_at(self, now: Instant, clock: ClockRate) -> u32 {
        let after = clock.ticks(now.saturating_duration_since(self.at)) as u32;
        let before = clock.ticks(self.at.saturating_duration_since(now)) as u32;
        self.ts.wrapping_add(after).wrapping_sub(before)
    }

    /// Whether this one was delayed less than `other`: its timestamp is ahead of what was due by the other.
    fn is_ahead_of(self, other: Self, clock: ClockRate) -> bool {
        self.ts.wrapping_sub(other.ts_at(self.at, clock)) as i32 > 0
    }
}

/// The least delayed packets of a run: arrival times without the source's bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    clock: ClockRate,
    /// Of the window before, and of this one.
    best: [Point; 2],
    since: Instant,
}

impl Line {
    /// A line through the first packet of a run.
    pub fn new(ts: u32, at: Instant, clock: ClockRate) -> Self {
        Self { clock, best: [Point { ts, at }; 2], since: at }
    }

    /// Takes in a packet, in any order of timestamps.
    #[inline]
    pub fn observe(&mut self, ts: u32, at: Instant) {
        let point = Point { ts, at };
        let [before, now] = &mut self.best;
        if at.saturating_duration_since(self.since) >= WINDOW {
            (*before, *now, self.since) = (*now, point, at);
        } else if point.is_ahead_of(*now, self.clock) {
            *now = point;
        }
    }

    fn point(&self) -> Point {
        let [before, now] = self.best;
        if now.is_ahead_of(before, self.clock) { now } else { before }
    }
}

/// What is known of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeline {
    /// When its packets came.
    pub line: Line,
    /// Its last sender report.
    pub report: Option<SenderInfo>,
}

impl Timeline {
    /// Wall clock of the source at a timestamp, in microseconds, of any epoch.
    pub(crate) fn wall(&self, ts: u32) -> Option<i64> {
        // A source without a wall clock says 0 (RFC 3550 section 6.4.1).
        let report = self.report.filter(|report| report.ntp.0 != 0)?;
        let ticks = i64::from(ts.wrapping_sub(report.rtp.0) as i32);
        Some(report.ntp.micros().wrapping_add(micros_of(ticks, self.line.clock)))
    }
}

/// How the clock of a source's new life stands to that of the former one: found by the first track that
/// can, used by all, so that picture and sound stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceClock {
    /// By how much it was set, in microseconds.
    set: i64,
    /// By how much the reports say that more time passed than the arrival of packets, in microseconds.
    slip: i64,
    found: Instant,
}

impl SourceClock {
    /// The one that was found later.
    pub fn newer(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        if a.map(|a| a.found) >= b.map(|b| b.found) { a } else { b }
    }
}

/// What is added to timestamps of `new` to continue those of `old`. `common`: what another track of the
/// source found, or this one; it is replaced by what is found now.
pub fn bridge(old: &Timeline, new: &Timeline, common: &mut Option<SourceClock>, now: Instant) -> u32 {
    let (from, to) = (old.line.point(), new.line.point());
    let passed = micros_between(from.at, to.at);
    let recent = common.filter(|common| now.saturating_duration_since(common.found) <= RESTART);
    let elapsed = if let (Some(before), Some(after)) = (old.wall(from.ts), new.wall(to.ts)) {
        let said = after.wrapping_sub(before);
        let excess = said.wrapping_sub(passed);
        let fits = |set: i64| excess.wrapping_sub(set).unsigned_abs() <= SAME_CLOCK.as_micros() as u64;
        let set = match recent {
            Some(common) if fits(common.set) => common.set,
            _ if fits(0) => 0,
            _ => excess,
        };
        let elapsed = said.wrapping_sub(set);
        let found = recent.filter(|common| common.set == set).map_or(now, |common| common.found);
        *common = Some(SourceClock { set, slip: elapsed.wrapping_sub(passed), found });
        elapsed
    } else {
        let slip = recent.map(|common| common.slip).filter(|slip| slip.abs() > NOTABLE);
        passed.wrapping_add(slip.unwrap_or(0))
    };
    from.ts.wrapping_add(ticks_of(elapsed, new.line.clock) as u32).wrapping_sub(to.ts)
}

fn micros_between(from: Instant, to: Instant) -> i64 {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    micros(to.saturating_duration_since(from)) - micros(from.saturating_duration_since(to))
}

fn micros_of(ticks: i64, clock: ClockRate) -> i64 {
    let hz = i128::from(clock.hz());
    ((i128::from(ticks) * 1_000_000 + hz / 2).div_euclid(hz)) as i64
}

pub(crate) fn ticks_of(micros: i64, clock: ClockRate) -> i64 {
    ((i128::from(micros) * i128::from(clock.hz()) + 500_000).div_euclid(1_000_000)) as i64
}

#[cfg(test)]
mod tests;
