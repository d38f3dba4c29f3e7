//! One leg of a track: where it is, where it is to be, and what its seat counts.

use std::time::Instant;

use msm_fastpath::LegStats;
use msm_graph::LegId;
use msm_media::Part;
use msm_media::project::Head;

use super::flow::Flow;
use super::{Kernel, Plan};
use crate::kernel::hop::{Rung, UserReason};

pub(super) const NOTHING: LegStats = LegStats { packets: 0, bytes: 0, dropped: 0 };

/// Who sends a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The worker.
    User,
    /// The worker until the kernel's gate has opened.
    Arming,
    /// The kernel.
    Kernel,
    /// The kernel until its gate has shut, at this number if that is known.
    Draining { stop: Option<u64> },
    /// The worker up to one number, the kernel up to another, then the worker again.
    Between { until: u64, stop: u64 },
}

#[derive(Debug)]
pub(super) struct Leg {
    pub(super) who: LegId,
    pub(super) place: Place,
    pub(super) active: bool,
    pub(super) plan: Result<Plan, UserReason>,
    pub(super) seat: Option<usize>,
    /// As it stands in the seat.
    pub(super) written: Option<Plan>,
    /// Every packet finds the seat from here on.
    pub(super) ready_at: Instant,
    /// Not to the kernel before.
    pub(super) stays_until: Instant,
    /// Somebody said where it is to be.
    pub(super) asked: Option<Rung>,
    pub(super) counted: LegStats,
    /// What a seat that was given up had counted and nobody has asked for.
    pub(super) left: LegStats,
    pub(super) part: Part,
    /// How far the kernel has sent it, to be taken over by the leg.
    pub(super) sent: Option<(u32, Head)>,
}

impl Leg {
    pub(super) fn new(who: LegId, now: Instant) -> Self {
        Self {
            who,
            place: Place::User,
            active: false,
            plan: Err(UserReason::Unsteady),
            seat: None,
            written: None,
            ready_at: now,
            stays_until: now,
            asked: None,
            counted: NOTHING,
            left: NOTHING,
            part: Part::ALL,
            sent: None,
        }
    }

    /// Takes in what its seat has counted.
    pub(super) fn count(&mut self, flow: &Flow, kernel: &Kernel<'_>) {
        let Some(id) = self.seat.and_then(|seat| flow.seats.id(seat)) else { return };
        let Ok(stats) = kernel.table.leg_stats(id) else { return };
        let before = std::mem::replace(&mut self.counted, stats);
        self.left.packets += stats.packets.saturating_sub(before.packets);
        self.left.bytes += stats.bytes.saturating_sub(before.bytes);
        self.left.dropped += stats.dropped.saturating_sub(before.dropped);
    }

    pub(super) fn wanted(&self, now: Instant) -> bool {
        let waits = now < self.stays_until && self.asked.is_none() && self.place == Place::User;
        let may = self.active && self.plan.is_ok() && self.asked != Some(Rung::User) && !waits;
        // In the kernel only as it was written there.
        may && (self.place == Place::User || self.plan.as_ref().ok() == self.written.as_ref())
    }
}
