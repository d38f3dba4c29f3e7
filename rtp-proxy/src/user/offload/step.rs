//! What is due: gates to open and to shut, copies to turn on and off.

use std::time::{Duration, Instant};

use msm_fastpath::Gate;
use msm_graph::LegId;
use msm_media::TrackInput;

use super::flow::{Behind, Sight};
use super::leg::Place;
use super::{BACKOFF, GRACE, HOLD, Kernel, Offload};
use crate::kernel::table::TableError;

impl Offload {
    /// Does what is due: opens gates, shuts gates, turns copies on and off.
    pub(crate) fn step(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        if self.is_leaving() {
            self.step_leaving(now, kernel, media);
            return;
        }
        if let Err(error) = self.try_step(now, kernel, media) {
            self.fail(now, kernel, media, error.into());
        }
        if self.flow.as_ref().is_some_and(|flow| flow.seats.is_empty()) {
            self.dissolve(now, kernel, media, Duration::ZERO);
        }
    }

    fn try_step(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &TrackInput,
    ) -> Result<(), TableError> {
        self.due = None;
        let Self { flow: Some(flow), legs, due, .. } = self else { return Ok(()) };
        let mut wake = |at: Instant| *due = Some(due.map_or(at, |due: Instant| due.min(at)));
        let standing = media.standing().filter(|standing| media.is_steady() && standing.run == flow.run);
        let copies_since = match flow.sight {
            Sight::Copies { since, behind: Behind::No } => Some(since),
            _ => None,
        };
        let sees_all = match flow.sight {
            Sight::Copies { since, .. } => now >= since + GRACE,
            Sight::Alone { .. } => false,
        };
        let mut needs_copies = !media.is_steady();
        for leg in legs.iter_mut() {
            leg.settle_stop(now, flow, kernel, false);
            if let Some(stop) = &leg.stop {
                wake(stop.due);
            }
            let id = leg.seat.and_then(|seat| flow.seats.id(seat));
            let wanted = leg.wanted(now);
            match (leg.place, id) {
                (Place::User, Some(id))
                    if wanted && leg.stop.is_none() && leg.plan.as_ref().ok() == leg.written.as_ref() =>
                {
                    needs_copies = true;
                    let emptied = flow.emptied_at.is_some_and(|at| at >= leg.ready_at);
                    let whole = copies_since.is_some_and(|since| now >= since + GRACE);
                    let standing = standing.as_ref().filter(|_| emptied && whole);
                    if let Some(standing) = standing
                        && kernel.table.flow_stats(flow.stats)?.highest <= standing.highest
                    {
                        let from = standing.highest as u16;
                        // Nothing waits here that the kernel's first would overtake.
                        kernel.table.put_gate(id, Gate::Armed(from.wrapping_add(1)).into())?;
                        leg.place = Place::Arming;
                    }
                }
                (Place::Kernel, Some(id)) if !wanted => {
                    needs_copies = true;
                    if sees_all {
                        let stats = kernel.table.flow_stats(flow.stats)?;
                        let until = (stats.highest as u16).wrapping_add(1);
                        kernel.table.put_gate(id, Gate::Draining(until).into())?;
                        leg.place = Place::Draining { stop: None };
                        leg.stays_until = now + BACKOFF;
                    } else if let Sight::Copies { since, .. } = flow.sight {
                        wake(since + GRACE);
                    } else {
                        wake(now + GRACE);
                    }
                }
                (Place::Kernel, _) => {}
                (Place::User, _) => needs_copies |= leg.active,
                _ => needs_copies = true,
            }
        }
        if needs_copies {
            flow.hold_until = now + HOLD;
        } else if matches!(flow.sight, Sight::Copies { .. }) {
            wake(flow.hold_until);
        }
        let copies = now < flow.hold_until;
        // Seats behind the last that is taken cost every packet a look at a gate that is shut.
        let is_wide = flow.seats.walked() != (flow.entry.first_leg, flow.entry.legs);
        if copies == matches!(flow.sight, Sight::Alone { .. }) || is_wide {
            self.publish(now, kernel, copies)?;
        }
        Ok(())
    }

    /// A leg is about to play and needs every packet. Returns from when on it is certain that they come.
    pub(crate) fn watch(
        &mut self,
        leg: LegId,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
    ) -> Instant {
        let entry = self.entry(leg, now);
        entry.active = true;
        let stopped = entry.stop.as_ref().map_or(now, |stop| stop.due);
        let Some(flow) = &mut self.flow else { return now };
        flow.hold_until = now + GRACE + HOLD;
        if let Err(error) = self.publish(now, kernel, true) {
            self.fail(now, kernel, media, error.into());
        }
        match self.flow.as_ref().map(|flow| flow.sight) {
            Some(Sight::Copies { since, .. }) => stopped.max(since + GRACE),
            _ => stopped,
        }
    }
}
