//! One leg of a track: where it is, where it is to be, and what its seat counts.

use std::rc::Rc;
use std::time::Instant;

use msm_fastpath::{FlowStats, Gate, LegStats};
use msm_graph::LegId;
use msm_media::Part;
use msm_media::project::Head;
use msm_media::seq::extend;

use super::flow::Flow;
use super::{GRACE, Kernel, Plan, wire};
use crate::kernel::hop::{Rung, UserReason};

pub(super) const NOTHING: LegStats = LegStats::ZERO;

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

/// A leg that was paused: its gate shuts with the next packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    pub(super) run: u32,
    /// First number that the gate does not let pass; the number from which it was armed, where it had not opened.
    pub(super) until: u64,
    /// It had not opened when it was shut: what its leg had been sent by then. A packet that opened it in between, and
    /// those behind it, are counted beyond that.
    pub(super) opening: Option<u64>,
    /// When the gate was written, by the kernel's clock.
    pub(super) nanos: u64,
    /// From here on every packet has found the gate.
    pub(super) due: Instant,
    pub(super) looked_again: bool,
}

#[derive(Debug)]
pub(super) struct Leg {
    pub(super) who: LegId,
    pub(super) place: Place,
    pub(super) active: bool,
    pub(super) plan: Result<Rc<Plan>, UserReason>,
    pub(super) seat: Option<usize>,
    /// As it stands in the seat: mostly the same one.
    pub(super) written: Option<Rc<Plan>>,
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
    pub(super) stop: Option<Box<Stop>>,
    /// How far the kernel has sent it, to be taken over by the leg.
    pub(super) sent: Option<Box<(u32, Head)>>,
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
            stop: None,
            sent: None,
        }
    }

    /// Takes in what is known of its way now.
    pub(super) fn learn(&mut self, plan: Result<Plan, UserReason>) {
        self.plan = plan.map(|plan| {
            let known = [self.plan.as_ref().ok(), self.written.as_ref()];
            let same = known.into_iter().flatten().find(|known| ***known == plan);
            same.cloned().unwrap_or_else(|| Rc::new(plan))
        });
    }

    /// Takes in what its seat has counted.
    pub(super) fn count(&mut self, flow: &Flow, kernel: &Kernel<'_>) {
        let Some(id) = self.seat.and_then(|seat| flow.seats.id(seat)) else { return };
        let Ok(stats) = kernel.table.leg_stats(id) else { return };
        let before = std::mem::replace(&mut self.counted, stats);
        self.left = self.left.plus(stats.since(before));
    }

    /// Finds out which packet was the kernel's last, once every packet has found the gate, and shuts it for good.
    /// `by_force`: now or never.
    pub(super) fn settle_stop(&mut self, now: Instant, flow: &Flow, kernel: &mut Kernel<'_>, by_force: bool) {
        let Some(&stop) = self.stop.as_deref().filter(|stop| by_force || now >= stop.due) else { return };
        let Some(id) = self.seat.and_then(|seat| flow.seats.id(seat)) else {
            self.stop = None;
            return;
        };
        let (Ok(stats), Ok(gate)) = (kernel.table.flow_stats(flow.stats), kernel.table.gate(id)) else {
            self.stop = None;
            return;
        };
        if let Some(before) = stop.opening {
            let packets =
                kernel.table.leg_stats(id).map_or(0, |counted| counted.packets.saturating_sub(before));
            if let Some(ext) = last_sent(stop.until, packets, &stats) {
                let progress = wire::progress_of(&stats, &kernel.epoch);
                self.sent = Some(Box::new((stop.run, Head { ext, ts: progress.ts, at: progress.ts_at })));
            }
            self.stop = None;
            return;
        }
        let shut_at = gate.moved_at().map(|at| extend(stats.highest, at));
        // A packet is booked first and asks the gate then: one that came after the gate was written may be
        // between the two.
        let between = shut_at.is_none() && stats.highest >= stop.until && stats.last_arrival > stop.nanos;
        if between && !stop.looked_again && !by_force {
            self.stop = Some(Box::new(Stop { due: now + GRACE, looked_again: true, ..stop }));
            return;
        }
        let progress = wire::progress_of(&stats, &kernel.epoch);
        let ext = shut_at.map_or(progress.highest, |at| at.saturating_sub(1));
        self.sent = Some(Box::new((stop.run, Head { ext, ts: progress.ts, at: progress.ts_at })));
        self.stop = None;
        // A number that is far ahead again one day must not find it open.
        let _ = kernel.table.put_gate(id, Gate::Disabled.into());
    }

    pub(super) fn wanted(&self, now: Instant) -> bool {
        let waits = now < self.stays_until && self.asked.is_none() && self.place == Place::User;
        let may = self.active && self.plan.is_ok() && self.asked != Some(Rung::User) && !waits;
        // In the kernel only as it was written there.
        may && (self.place == Place::User || self.plan.as_ref().ok() == self.written.as_ref())
    }
}

/// The highest of the first `packets` numbers from `from` on that the program has seen, `None` if it is none.
fn last_sent(from: u64, packets: u64, stats: &FlowStats) -> Option<u64> {
    let came = |number: &u64| stats.window & (1 << (stats.highest - number)) != 0;
    if packets == 0 || stats.highest < from {
        return None;
    }
    let known = from.max(stats.highest.saturating_sub(63));
    // Before the last 64 all came, for all that is known.
    let left = usize::try_from(packets - 1).ok()?.saturating_sub((known - from) as usize);
    Some((known..=stats.highest).filter(came).nth(left).unwrap_or(stats.highest))
}
