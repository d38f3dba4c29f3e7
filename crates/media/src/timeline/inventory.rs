//! Timelines when a proxy hands over: a restart that is being bridged stays bridged.

use msm_handover::{Anchor, Moment};
use serde::{Deserialize, Serialize};

use super::{ClockRate, Line, Point, SourceClock, Timeline};
use crate::report::inventory::SenderInventory;

/// A [`Line`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LineInventory {
    /// Timestamp and time of the least delayed packets, of the window before and of this one.
    best: [(u32, Moment); 2],
    since: Moment,
}

/// A [`Timeline`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TimelineInventory {
    line: LineInventory,
    report: Option<SenderInventory>,
}

/// A [`SourceClock`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SourceClockInventory {
    set: i64,
    slip: i64,
    found: Moment,
}

impl Line {
    pub(crate) fn inventory(&self, at: &Anchor) -> LineInventory {
        LineInventory {
            best: self.best.map(|point| (point.ts, at.moment(point.at))),
            since: at.moment(self.since),
        }
    }

    pub(crate) fn restore(inventory: LineInventory, clock: ClockRate, at: &Anchor) -> Self {
        let best = inventory.best.map(|(ts, moment)| Point { ts, at: at.instant(moment) });
        Self { clock, best, since: at.instant(inventory.since) }
    }
}

impl Timeline {
    pub(crate) fn inventory(&self, at: &Anchor) -> TimelineInventory {
        TimelineInventory { line: self.line.inventory(at), report: self.report.map(Into::into) }
    }

    pub(crate) fn restore(inventory: TimelineInventory, clock: ClockRate, at: &Anchor) -> Self {
        Self { line: Line::restore(inventory.line, clock, at), report: inventory.report.map(Into::into) }
    }
}

impl SourceClock {
    pub(crate) fn inventory(&self, at: &Anchor) -> SourceClockInventory {
        SourceClockInventory { set: self.set, slip: self.slip, found: at.moment(self.found) }
    }

    pub(crate) fn restore(inventory: SourceClockInventory, at: &Anchor) -> Self {
        Self { set: inventory.set, slip: inventory.slip, found: at.instant(inventory.found) }
    }
}
