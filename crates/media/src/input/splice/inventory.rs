//! What connects the runs of a track, when a proxy hands over.

use msm_handover::{Anchor, Moment};
use serde::{Deserialize, Serialize};

use super::{Joint, Line, SourceClock, Splice, Timeline};
use crate::clock::ClockRate;
use crate::timeline::inventory::{LineInventory, SourceClockInventory, TimelineInventory};

/// A [`Joint`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::input) struct JointInventory {
    line: Option<LineInventory>,
    splice: Option<SpliceInventory>,
    source_clock: Option<SourceClockInventory>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct SpliceInventory {
    from: u32,
    before: TimelineInventory,
    since: Option<Moment>,
    shift: u32,
}

impl Joint {
    pub(in crate::input) fn inventory(&self, at: &Anchor) -> JointInventory {
        JointInventory {
            line: self.line.map(|line| line.inventory(at)),
            splice: self.splice.map(|splice| SpliceInventory {
                from: splice.from,
                before: splice.before.inventory(at),
                since: splice.since.map(|since| at.moment(since)),
                shift: splice.shift,
            }),
            source_clock: self.source_clock.map(|clock| clock.inventory(at)),
        }
    }

    pub(in crate::input) fn restore(inventory: JointInventory, clock: ClockRate, at: &Anchor) -> Self {
        Self {
            line: inventory.line.map(|line| Line::restore(line, clock, at)),
            splice: inventory.splice.map(|splice| Splice {
                from: splice.from,
                before: Timeline::restore(splice.before, clock, at),
                since: splice.since.map(|since| at.instant(since)),
                shift: splice.shift,
            }),
            source_clock: inventory.source_clock.map(|found| SourceClock::restore(found, at)),
        }
    }
}
