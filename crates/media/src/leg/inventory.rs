//! A leg when a proxy hands over: one SSRC, one sequence, one timeline, and an open gate stays open.

use msm_handover::{Anchor, Moment};
use serde::{Deserialize, Serialize};

use super::start::Missed;
use super::{
    CircuitBreaker, Drops, Gate, Head, KeyFrameLimiter, LegConfig, LegReport, LegTrack, Projection, Sent,
    SentSrs, Start,
};
use crate::drop::inventory::DropsInventory;
use crate::project::inventory::{HeadInventory, ProjectionInventory};
use crate::report::inventory::{LegReportInventory, SentSrsInventory};

/// A [`LegTrack`], written down. Its configuration is not: it follows from the leg's operation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LegInventory {
    gate: GateInventory,
    start: Option<StartInventory>,
    missed: Option<Missed>,
    projection: Option<ProjectionInventory>,
    head: Option<HeadInventory>,
    splicing: Option<Moment>,
    sent: SentInventory,
    drops: DropsInventory,
    sent_srs: SentSrsInventory,
    report: Option<LegReportInventory>,
    breaker: (u8, Option<Moment>),
    key_frames: Option<Moment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GateInventory {
    #[default]
    Disabled,
    Waiting,
    Open {
        from: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct StartInventory {
    seq: u16,
    rtptime: u32,
    ssrc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct SentInventory {
    packets: u64,
    octets: u64,
    splices: u64,
}

impl LegTrack {
    /// Writes it down, between two batches.
    pub fn inventory(&self, at: &Anchor) -> LegInventory {
        // A new field is noticed here: what matters of it needs a line below and in `restore`.
        let Self {
            config: _,
            gate: _,
            start: _,
            missed: _,
            projection: _,
            head: _,
            splicing: _,
            sent: _,
            drops: _,
            sent_srs: _,
            report: _,
            breaker: _,
            key_frames: _,
        } = self;
        LegInventory {
            gate: match self.gate {
                Gate::Disabled => GateInventory::Disabled,
                Gate::Waiting => GateInventory::Waiting,
                Gate::Open { from } => GateInventory::Open { from },
            },
            start: self.start.map(|start| StartInventory {
                seq: start.seq,
                rtptime: start.rtptime,
                ssrc: start.ssrc,
            }),
            missed: self.missed,
            projection: self.projection.map(|projection| projection.inventory()),
            head: self.head.map(|head| head.inventory(at)),
            splicing: self.splicing.map(|instant| at.moment(instant)),
            sent: SentInventory {
                packets: self.sent.packets,
                octets: self.sent.octets,
                splices: self.sent.splices,
            },
            drops: self.drops().inventory(),
            sent_srs: self.sent_srs.inventory(at),
            report: self.report.map(|report| report.inventory(at)),
            breaker: self.breaker.inventory(at),
            key_frames: self.key_frames.inventory(at),
        }
    }

    /// As it was. `config`: the one it had.
    pub fn restore(inventory: LegInventory, config: LegConfig, at: &Anchor) -> Self {
        let SentInventory { packets, octets, splices } = inventory.sent;
        let mut leg = Self::new(config);
        leg.gate = match inventory.gate {
            GateInventory::Disabled => Gate::Disabled,
            GateInventory::Waiting => Gate::Waiting,
            GateInventory::Open { from } => Gate::Open { from },
        };
        leg.start =
            inventory.start.map(|start| Start { seq: start.seq, rtptime: start.rtptime, ssrc: start.ssrc });
        leg.missed = inventory.missed;
        leg.projection = inventory.projection.map(Projection::restore);
        leg.head = inventory.head.map(|head| Head::restore(head, at));
        leg.splicing = inventory.splicing.map(|moment| at.instant(moment));
        leg.sent = Sent { packets, octets, splices };
        let drops = Drops::restore(&inventory.drops);
        leg.drops = (drops.total() > 0).then(|| Box::new(drops));
        leg.sent_srs = SentSrs::restore(inventory.sent_srs, at);
        leg.report = inventory.report.map(|report| LegReport::restore(report, at));
        leg.breaker = CircuitBreaker::restore(inventory.breaker, at);
        leg.key_frames = KeyFrameLimiter::restore(inventory.key_frames, at);
        leg
    }
}

#[cfg(test)]
mod tests;
