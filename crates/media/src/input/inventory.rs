//! An input when a proxy hands over: the same run goes on, and the source sees one receiver.

use msm_handover::{Anchor, Blob, Malformed, Moment};
use serde::{Deserialize, Serialize};

use super::splice::Joint;
use super::splice::inventory::JointInventory;
use super::{
    Admission, Down, DropReason, Drops, Head, InputConfig, KeyFrameLimiter, ReceiverStats, RrSchedule,
    RunHead, Suspect, TrackInput,
};
use crate::drop::inventory::DropsInventory;
use crate::project::inventory::HeadInventory;
use crate::report::inventory::{RrInventory, SenderInventory};
use crate::stats::inventory::StatsInventory;

/// A [`TrackInput`], written down. Its configuration is not: it follows from the row.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InputInventory {
    runs: u32,
    current: Option<RunInventory>,
    joint: JointInventory,
    stats: StatsInventory,
    frame: Option<u32>,
    suspect: Option<SuspectInventory>,
    switched_at: Option<Moment>,
    last_arrival: Option<Moment>,
    drops: DropsInventory,
    down: Option<DownInventory>,
    early: Option<DownInventory>,
    down_is_new: bool,
    no_cname: u64,
    rr: RrInventory,
    key_frames: Option<Moment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct RunInventory {
    run: u32,
    ssrc: u32,
    head: HeadInventory,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct DownInventory {
    info: SenderInventory,
    at: Moment,
    bytes: Blob,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct SuspectInventory {
    ssrc: u32,
    seq: u16,
    ts: u32,
    at: Moment,
    /// Bits of a double.
    arrival: u64,
    payload_len: u16,
    resume_point: bool,
    reason: String,
    bytes: Blob,
}

impl Down {
    fn inventory(&self, at: &Anchor) -> DownInventory {
        DownInventory { info: self.info.into(), at: at.moment(self.at), bytes: self.bytes.as_slice().into() }
    }

    fn restore(inventory: DownInventory, at: &Anchor) -> Self {
        Self { info: inventory.info.into(), at: at.instant(inventory.at), bytes: inventory.bytes.0.to_vec() }
    }
}

impl TrackInput {
    /// Writes it down, between two batches and with its outputs taken.
    pub fn inventory(&self, at: &Anchor) -> InputInventory {
        // A new field is noticed here: what matters of it needs a line below and in `restore`.
        let Self {
            config: _,
            admission: _,
            runs: _,
            current: _,
            joint: _,
            stats: _,
            ahead: _,
            frame: _,
            suspect: _,
            suspect_bytes: _,
            switched_at: _,
            last_arrival: _,
            drops: _,
            down: _,
            early: _,
            down_is_new: _,
            no_cname: _,
            rr: _,
            key_frames: _,
            outputs: _,
        } = self;
        let suspect = self.suspect.as_ref().map(|suspect| SuspectInventory {
            ssrc: suspect.ssrc,
            seq: suspect.seq,
            ts: suspect.ts,
            at: at.moment(suspect.at),
            arrival: suspect.arrival.to_bits(),
            payload_len: suspect.payload_len,
            resume_point: suspect.resume_point,
            reason: suspect.reason.as_str().to_owned(),
            bytes: self.suspect_bytes.as_slice().into(),
        });
        InputInventory {
            runs: self.runs,
            current: self.current.map(|current| RunInventory {
                run: current.run,
                ssrc: current.ssrc,
                head: current.head.inventory(at),
            }),
            joint: self.joint.inventory(at),
            stats: self.stats.inventory(at),
            frame: self.frame,
            suspect,
            switched_at: self.switched_at.map(|instant| at.moment(instant)),
            last_arrival: self.last_arrival.map(|instant| at.moment(instant)),
            drops: self.drops.inventory(),
            down: self.down.as_ref().map(|down| down.inventory(at)),
            early: self.early.as_ref().map(|early| early.inventory(at)),
            down_is_new: self.down_is_new,
            no_cname: self.no_cname,
            rr: self.rr.inventory(at),
            key_frames: self.key_frames.inventory(at),
        }
    }

    /// As it was. `config`: the one it had, its SSRC above all.
    ///
    /// # Errors
    /// Statistics that are none.
    pub fn restore(inventory: InputInventory, config: InputConfig, at: &Anchor) -> Result<Self, Malformed> {
        let instant = |moment: Option<Moment>| moment.map(|moment| at.instant(moment));
        let mut input = Self::new(at.instant(Moment::default()), config);
        input.runs = inventory.runs;
        input.frame = inventory.frame;
        input.current = inventory.current.map(|current| RunHead {
            run: current.run,
            ssrc: current.ssrc,
            head: Head::restore(current.head, at),
        });
        if let Some(current) = input.current {
            input.admission = Admission::only_ssrc(input.admission.payload_types, current.ssrc);
        }
        input.joint = Joint::restore(inventory.joint, input.config.clock, at);
        input.stats = ReceiverStats::restore(inventory.stats, input.config.clock, at)?;
        if let Some(suspect) = inventory.suspect {
            let reason = DropReason::ALL.into_iter().find(|reason| reason.as_str() == suspect.reason);
            let arrival = f64::from_bits(suspect.arrival);
            if !arrival.is_finite() {
                return Err(Malformed::new("held packet", "of no time"));
            }
            input.suspect_bytes = suspect.bytes.0.to_vec();
            input.suspect = Some(Suspect {
                ssrc: suspect.ssrc,
                seq: suspect.seq,
                ts: suspect.ts,
                at: at.instant(suspect.at),
                arrival,
                len: input.suspect_bytes.len(),
                payload_len: suspect.payload_len,
                resume_point: suspect.resume_point,
                reason: reason.unwrap_or(DropReason::Policy),
                index: None,
            });
        }
        input.switched_at = instant(inventory.switched_at);
        input.last_arrival = instant(inventory.last_arrival);
        input.drops = Drops::restore(&inventory.drops);
        input.down = inventory.down.map(|down| Down::restore(down, at));
        input.early = inventory.early.map(|early| Down::restore(early, at));
        input.down_is_new = inventory.down_is_new;
        input.no_cname = inventory.no_cname;
        input.rr = RrSchedule::restore(inventory.rr, at);
        input.key_frames = KeyFrameLimiter::restore(inventory.key_frames, at);
        Ok(input)
    }
}
