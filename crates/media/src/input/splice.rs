//! How a run of a source continues the one before, as far as its packets and reports tell (RTP-6).

use std::time::Instant;

use super::{RunHead, TrackInput};
use crate::timeline::{Line, RESTART, SourceClock, Timeline, bridge};

pub(super) mod inventory;

/// The run before the current one, and how the current one continues it.
#[derive(Debug, Clone, Copy)]
struct Splice {
    /// The run before.
    from: u32,
    before: Timeline,
    /// When the current run began; `None` until it does.
    since: Option<Instant>,
    /// What is added to timestamps of the current run.
    shift: u32,
}

/// What connects the runs of a track.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Joint {
    /// Where the timestamps of the current run lie in time.
    line: Option<Line>,
    splice: Option<Splice>,
    source_clock: Option<SourceClock>,
}

impl TrackInput {
    /// A run begins with this timestamp.
    pub(super) fn begin_timeline(&mut self, now: Instant, ts: u32) {
        self.joint.line = Some(Line::new(ts, now, self.config.clock));
        if let Some(splice) = &mut self.joint.splice {
            splice.since = Some(now);
        }
    }

    /// Takes in the time of a batch.
    #[inline]
    pub(super) fn follow(&mut self, now: Instant) {
        if let (Some(line), Some(RunHead { head, .. })) = (&mut self.joint.line, self.current)
            && head.at == now
        {
            line.observe(head.ts, now);
        }
        if self.is_joining(now) {
            self.join(now);
        }
    }

    /// Takes in when a timestamp came that was not seen here.
    pub(super) fn follow_elsewhere(&mut self, ts: u32, at: Instant) {
        if let Some(line) = &mut self.joint.line {
            line.observe(ts, at);
        }
    }

    /// The current run, if there is one, becomes the one that is continued.
    pub(super) fn end_run(&mut self) {
        if let (Some(current), Some(timeline)) = (self.current, self.timeline()) {
            self.joint.splice = Some(Splice { from: current.run, before: timeline, since: None, shift: 0 });
        }
    }

    fn timeline(&self) -> Option<Timeline> {
        Some(Timeline { line: self.joint.line?, report: self.down.as_ref().map(|down| down.info) })
    }

    /// Wall clock of the source at a timestamp of the current run, in microseconds of any epoch, by its last
    /// sender report; `None` without one, or if it says that it has no wall clock.
    pub fn wall(&self, ts: u32) -> Option<i64> {
        self.timeline()?.wall(ts)
    }

    /// Whether a run has begun a moment ago that continues another: what is learned of it still counts.
    pub fn is_joining(&self, now: Instant) -> bool {
        let since = self.joint.splice.and_then(|splice| splice.since);
        since.is_some_and(|since| now.saturating_duration_since(since) <= RESTART)
    }

    fn join(&mut self, now: Instant) {
        if let (Some(after), Some(splice)) = (self.timeline(), &mut self.joint.splice) {
            splice.shift = bridge(&splice.before, &after, &mut self.joint.source_clock, now);
        }
    }

    /// What was found out about the source's clock while [`Self::is_joining`]: for the other tracks of the
    /// source.
    pub fn source_clock(&self) -> Option<SourceClock> {
        self.joint.source_clock
    }

    /// Takes what another track of the source found out.
    pub fn share_source_clock(&mut self, found: Option<SourceClock>) {
        self.joint.source_clock = SourceClock::newer(self.joint.source_clock, found);
    }

    /// What is added to timestamps of run `to` to continue those of run `from`, modulo 2^32; `None` when
    /// that is not known (any more).
    pub(crate) fn shift(&self, from: u32, to: u32) -> Option<u32> {
        let splice = self.joint.splice.filter(|splice| splice.from == from && splice.since.is_some())?;
        (self.current?.run == to).then_some(splice.shift)
    }
}
