//! Mappings when a proxy hands over: a viewer's numbers go on.

use msm_fastpath::RtpEdit;
use msm_handover::{Anchor, Moment};
use serde::{Deserialize, Serialize};

use super::{Head, Projection};

/// A [`Head`], written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HeadInventory {
    ext: u64,
    ts: u32,
    at: Moment,
}

impl Head {
    /// Writes it down.
    pub fn inventory(&self, at: &Anchor) -> HeadInventory {
        HeadInventory { ext: self.ext, ts: self.ts, at: at.moment(self.at) }
    }

    /// As it was.
    pub fn restore(inventory: HeadInventory, at: &Anchor) -> Self {
        Self { ext: inventory.ext, ts: inventory.ts, at: at.instant(inventory.at) }
    }
}

/// A [`Projection`], written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProjectionInventory {
    run: u32,
    ssrc: u32,
    /// Offsets of sequence number and timestamp; `None` while it is transparent.
    projected: Option<(u16, u32)>,
}

impl Projection {
    /// Writes it down.
    pub fn inventory(&self) -> ProjectionInventory {
        let offsets = (self.edit.seq_offset, self.edit.timestamp_offset);
        let projected = (!self.is_transparent()).then_some(offsets);
        ProjectionInventory { run: self.run, ssrc: self.ssrc, projected }
    }

    /// As it was.
    pub fn restore(inventory: ProjectionInventory) -> Self {
        let ProjectionInventory { run, ssrc, projected } = inventory;
        let edit = projected.map_or(RtpEdit::TRANSPARENT, |(seq, ts)| RtpEdit::projected(ssrc, seq, ts));
        Self { run, ssrc, edit }
    }
}
