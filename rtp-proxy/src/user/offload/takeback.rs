//! Legs and flows that leave the kernel, at once.

use std::time::{Duration, Instant};

use msm_fastpath::{FlowStats, Gate};
use msm_graph::LegId;
use msm_media::project::Head;
use msm_media::seq::extend;
use msm_media::{Elsewhere, TrackInput};

use super::flow::Sight;
use super::leg::{Place, Stop};
use super::seats::NoSeat;
use super::{BACKOFF, DISTRUST, GRACE, Kernel, Offload, SETTLED, wire};
use crate::kernel::hop::UserReason;
use crate::kernel::table::TableError;

impl Offload {
    /// The leg is paused: the next packet is not its any more. Which one was the last is known when every packet
    /// has found the gate ([`Self::is_stopping`]); until then a late one may still pass.
    pub(crate) fn pause(&mut self, leg: LegId, now: Instant, kernel: &mut Kernel<'_>) {
        let run = self.run;
        let Some(leg) = self.legs.iter_mut().find(|known| known.who == leg) else { return };
        leg.active = false;
        // What was known of it was known of a leg that plays: the next PLAY is the worker's to begin.
        leg.plan = Err(UserReason::Idle);
        let place = std::mem::replace(&mut leg.place, Place::User);
        let Some(flow) = &mut self.flow else { return };
        let Some(id) = leg.seat.and_then(|seat| flow.seats.id(seat)) else { return };
        if leg.stop.is_some() {
            return;
        }
        leg.ready_at = now + GRACE;
        let (Ok(stats), Ok(gate)) = (kernel.table.flow_stats(flow.stats), kernel.table.gate(id)) else {
            let _ = kernel.table.put_gate(id, Gate::Disabled.into());
            return;
        };
        let until = match (place, gate.moved_at()) {
            // What the kernel sent the worker knows.
            (Place::User | Place::Between { .. }, _) | (Place::Arming, None) => {
                let _ = kernel.table.put_gate(id, Gate::Disabled.into());
                return;
            }
            // It shuts already.
            (Place::Draining { .. }, _) => match gate.try_into() {
                Ok(Gate::Draining(until)) => extend(stats.highest, until),
                _ => stats.highest + 1,
            },
            (Place::Kernel | Place::Arming, _) => {
                let until = stats.highest + 1;
                if kernel.table.put_gate(id, Gate::Draining(until as u16).into()).is_err() {
                    return;
                }
                until
            }
        };
        let (nanos, due) = (kernel.table.now(), now + GRACE);
        leg.stop = Some(Box::new(Stop { run, until, nanos, due, looked_again: false }));
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    /// Whether packets may still be on their way to a leg that was paused.
    pub(crate) fn is_stopping(&self, leg: LegId) -> bool {
        self.legs.iter().any(|known| known.who == leg && known.stop.is_some())
    }

    /// The leg is about to go: it stops at once. Its counters stay to be asked for.
    pub(crate) fn shut(&mut self, leg: LegId, now: Instant, kernel: &mut Kernel<'_>) {
        let Some(leg) = self.legs.iter_mut().find(|known| known.who == leg) else { return };
        (leg.active, leg.place, leg.stop) = (false, Place::User, None);
        leg.ready_at = now + GRACE;
        if let Some(id) = leg.seat.zip(self.flow.as_ref()).and_then(|(seat, flow)| flow.seats.id(seat)) {
            let _ = kernel.table.put_gate(id, Gate::Disabled.into());
        }
    }

    /// The leg is gone.
    pub(crate) fn forget(
        &mut self,
        leg: LegId,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
    ) {
        self.shut(leg, now, kernel);
        let Some(index) = self.legs.iter().position(|known| known.who == leg) else { return };
        let leg = self.legs.swap_remove(index);
        if let Some(flow) = &mut self.flow
            && let Some(seat) = leg.seat
        {
            flow.seats.free(seat, now);
            if flow.seats.is_empty() {
                self.dissolve(now, kernel, media, Duration::ZERO);
            }
        }
    }

    /// The source is gone or another one: the kernel forwards nothing more, and what still waits here belongs
    /// to nobody. How far it came is taken in.
    pub(crate) fn end(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        let run = self.run;
        let Some(progress) = self.withdraw(kernel) else { return };
        if media.current().is_some_and(|current| current.run == run) {
            media.absorb(now, &progress);
        }
        for leg in self.legs.iter_mut().filter(|leg| leg.place != Place::User) {
            leg.sent = Some(Box::new((run, head_of(&progress))));
            leg.place = Place::User;
        }
        self.close(now, kernel);
    }

    /// Everything comes back, at once and for reasons of ours.
    pub(crate) fn give_up(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        self.dissolve(now, kernel, media, Duration::ZERO);
    }

    /// After [`Self::give_up`], when everything that waited here has been dealt with: no leg has a part that is
    /// another's any more.
    pub(crate) fn settle(&mut self) {
        for leg in &mut self.legs {
            leg.place = Place::User;
        }
        self.is_divided = false;
    }

    /// The source has started another run, of which the kernel forwarded nothing.
    pub(super) fn end_run(&mut self, now: Instant, kernel: &mut Kernel<'_>) {
        let run = self.run;
        let progress = self.withdraw(kernel);
        for leg in self.legs.iter_mut().filter(|leg| leg.place != Place::User) {
            leg.sent = progress.map(|progress| Box::new((run, head_of(&progress))));
            leg.place = Place::User;
            leg.stays_until = now + BACKOFF;
        }
        self.close(now, kernel);
    }

    /// The kernel is to forward nothing more, while the run goes on here.
    pub(super) fn dissolve(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
        stay: Duration,
    ) {
        let settled = self
            .flow
            .as_ref()
            .is_some_and(|flow| matches!(flow.sight, Sight::Alone { since } if now >= since + SETTLED));
        let Some(progress) = self.withdraw(kernel) else { return };
        let stop = progress.highest + 1;
        self.seen = (progress.highest, progress.window);
        for leg in &mut self.legs {
            let id = leg.seat.zip(self.flow.as_ref()).and_then(|(seat, flow)| flow.seats.id(seat));
            let moved = || {
                let gate = id.and_then(|id| kernel.table.gate(id).ok())?;
                gate.moved_at().map(|at| extend(progress.highest, at))
            };
            leg.place = match leg.place {
                Place::User => continue,
                Place::Kernel if settled => Place::User,
                Place::Kernel => Place::Draining { stop: Some(stop) },
                Place::Arming => moved().map_or(Place::User, |until| Place::Between { until, stop }),
                Place::Draining { stop: known } => {
                    Place::Draining { stop: known.or_else(moved).or(Some(stop)) }
                }
                between @ Place::Between { .. } => between,
            };
            leg.sent = Some(Box::new((self.run, head_of(&progress))));
            leg.stays_until = now + stay;
        }
        if media.current().is_some_and(|current| current.run == self.run) {
            if settled {
                media.absorb(now, &progress);
            } else {
                media.expect(&progress, false);
            }
        }
        self.close(now, kernel);
    }

    pub(super) fn fail(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
        error: NoSeat,
    ) {
        let (reason, stay) = match error {
            NoSeat::Full(reason) => (reason, BACKOFF),
            NoSeat::Table(TableError::Full { map }) => (UserReason::Full(map.to_owned()), BACKOFF),
            NoSeat::Table(error @ TableError::Refused { .. }) => {
                (UserReason::Refused(error.to_string()), DISTRUST)
            }
        };
        self.dissolve(now, kernel, media, stay);
        self.failed = Some((now + stay, reason));
    }

    /// Takes the flow out of the kernel and returns how far it came.
    fn withdraw(&mut self, kernel: &mut Kernel<'_>) -> Option<Elsewhere> {
        let flow = self.flow.as_ref()?;
        if let Err(error) = kernel.table.remove_flow(&flow.source.key()) {
            tracing::warn!(event = "kernel.flow", name = self.stream, %error, "a flow may stay in the kernel");
        }
        let stats = kernel.table.flow_stats(flow.stats).unwrap_or(FlowStats::ZERO);
        Some(wire::progress_of(&stats, &kernel.epoch))
    }

    /// Gives everything back; no entry names it any more. Should the kernel not let go of the entry, nobody else gets
    /// what it names, for it would send to them.
    fn close(&mut self, now: Instant, kernel: &mut Kernel<'_>) {
        let Some(flow) = self.flow.take() else { return };
        self.certain.set(false);
        let removed = kernel.table.remove_flow(&flow.source.key()).is_ok();
        for leg in &mut self.legs {
            leg.settle_stop(now, &flow, kernel, true);
            leg.count(&flow, kernel);
            let id = leg.seat.take().and_then(|seat| flow.seats.id(seat));
            if let Some(id) = id {
                let _ = kernel.table.put_gate(id, Gate::Disabled.into());
            }
            leg.written = None;
        }
        if removed {
            flow.seats.give_back(&flow.holder, kernel.slots, now);
            kernel.slots.give_flow(&flow.holder, flow.stats, now);
        }
        self.due = None;
    }
}

fn head_of(progress: &Elsewhere) -> Head {
    Head { ext: progress.highest, ts: progress.ts, at: progress.ts_at }
}
