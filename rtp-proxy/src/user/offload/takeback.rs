//! Legs and flows that leave the kernel, at once.

use std::time::{Duration, Instant};

use msm_fastpath::{FlowStats, Gate};
use msm_graph::LegId;
use msm_media::project::Head;
use msm_media::seq::extend;
use msm_media::{Elsewhere, TrackInput};

use super::leg::{Place, Stop};
use super::seats::NoSeat;
use super::{BACKOFF, DISTRUST, GRACE, Kernel, Offload, wire};
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
        if place == Place::Arming {
            // Nothing has passed its gate that this does not count, unless the gate says so.
            leg.count(flow, kernel);
        }
        let (Ok(stats), Ok(gate)) = (kernel.table.flow_stats(flow.stats), kernel.table.gate(id)) else {
            let _ = kernel.table.put_gate(id, Gate::Disabled.into());
            return;
        };
        let (until, opening) = match (place, gate.moved_at()) {
            // What the kernel sent the worker knows.
            (Place::User | Place::Between { .. }, _) => {
                let _ = kernel.table.put_gate(id, Gate::Disabled.into());
                return;
            }
            // A packet may open it before it is shut, and pass.
            (Place::Arming, None) => {
                let from = match gate.try_into() {
                    Ok(Gate::Armed(from)) => extend(stats.highest, from),
                    _ => stats.highest + 1,
                };
                if kernel.table.put_gate(id, Gate::Disabled.into()).is_err() {
                    return;
                }
                (from, Some(leg.counted.packets))
            }
            // It shuts already.
            (Place::Draining { .. }, _) => match gate.try_into() {
                Ok(Gate::Draining(until)) => (extend(stats.highest, until), None),
                _ => (stats.highest + 1, None),
            },
            (Place::Kernel | Place::Arming, _) => {
                let until = stats.highest + 1;
                if kernel.table.put_gate(id, Gate::Draining(until as u16).into()).is_err() {
                    return;
                }
                (until, None)
            }
        };
        let (nanos, due) = (kernel.table.now(), now + GRACE);
        leg.stop = Some(Box::new(Stop { run, until, opening, nanos, due, looked_again: false }));
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    /// Whether packets may still be on their way to a leg that was paused.
    pub(crate) fn is_stopping(&self, leg: LegId) -> bool {
        self.legs.iter().any(|known| known.who == leg && known.stop.is_some())
    }

    /// Shuts the gates of legs that were paused, where every packet has found them by now. Returns whether some are
    /// left.
    pub(crate) fn settle_stops(&mut self, now: Instant, kernel: &mut Kernel<'_>) -> bool {
        let Self { flow: Some(flow), legs, .. } = self else { return false };
        for leg in legs.iter_mut() {
            leg.settle_stop(now, flow, kernel, false);
        }
        legs.iter().any(|leg| leg.stop.is_some())
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
        self.close(now, kernel, OnTheWay::Stopped);
    }

    /// Everything comes back, for reasons of ours.
    pub(crate) fn give_up(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        self.dissolve(now, kernel, media, Duration::ZERO);
    }

    /// [`GRACE`] after [`Self::give_up`], when everything that waited here has been dealt with: no leg has a part
    /// that is another's any more.
    pub(crate) fn settle(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        self.finish(now, kernel, media);
        for leg in &mut self.legs {
            leg.place = Place::User;
        }
        self.is_divided = false;
    }

    /// The source has started another run, of which the kernel forwarded nothing.
    pub(super) fn end_run(&mut self, now: Instant, kernel: &mut Kernel<'_>) {
        let run = self.run;
        let progress = self.withdraw(kernel);
        // Its last packet may still be on its way to the legs.
        self.close(now, kernel, OnTheWay::Arrives);
        for leg in self.legs.iter_mut().filter(|leg| leg.place != Place::User) {
            // Of a flow that ended before it is said already how far it came.
            if let Some(progress) = progress {
                leg.sent = Some(Box::new((run, head_of(&progress))));
            }
            leg.place = Place::User;
            leg.stays_until = now + BACKOFF;
        }
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
    pub(super) fn withdraw(&mut self, kernel: &mut Kernel<'_>) -> Option<Elsewhere> {
        let flow = self.flow.as_ref()?;
        if let Err(error) = kernel.table.remove_flow(&flow.source.key()) {
            tracing::warn!(event = "kernel.flow", name = self.stream, %error, "a flow may stay in the kernel");
        }
        let stats = kernel.table.flow_stats(flow.stats).unwrap_or(FlowStats::ZERO);
        Some(wire::progress_of(&stats, &kernel.epoch))
    }

    /// Gives everything back; no entry names it any more. Should the kernel not let go of the entry, nobody else gets
    /// what it names, for it would send to them.
    pub(super) fn close(&mut self, now: Instant, kernel: &mut Kernel<'_>, on_the_way: OnTheWay) {
        let Some(flow) = self.flow.take() else { return };
        self.certain.set(false);
        let removed = kernel.table.remove_flow(&flow.source.key()).is_ok();
        for leg in &mut self.legs {
            leg.settle_stop(now, &flow, kernel, true);
            leg.count(&flow, kernel);
            let is_open = matches!(leg.place, Place::Kernel | Place::Draining { .. });
            let stays_open = removed && is_open && on_the_way == OnTheWay::Arrives;
            let id = leg.seat.take().and_then(|seat| flow.seats.id(seat));
            // The next holder shuts it before anything else.
            if let Some(id) = id.filter(|_| !stays_open) {
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

/// What becomes of a packet that found the flow before it was taken out, and is now being sent to one leg after the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnTheWay {
    /// It comes to every leg. No packet can find a gate by then that its next holder has opened: ids rest.
    Arrives,
    /// It stops where it is, or there is none.
    Stopped,
}

pub(super) fn head_of(progress: &Elsewhere) -> Head {
    Head { ext: progress.highest, ts: progress.ts, at: progress.ts_at }
}
