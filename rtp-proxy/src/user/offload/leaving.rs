//! A flow that is taken back while its run goes on, in two steps.
//!
//! First the entry is removed: what comes in from now on finds nothing and comes up. A packet that found the entry
//! before may still be sent to one leg after the other (110 us where there are 256), or not be in the books yet (a
//! super-packet is judged segment by segment before). So the gates stay as they are, and what comes up is compared with
//! the books as ever: what is not in them is the worker's. After [`GRACE`] nothing is on its way any more, and the
//! books say where the kernel stopped.

use std::time::{Duration, Instant};

use msm_fastpath::GroupMode;
use msm_media::TrackInput;
use msm_media::seq::extend;

use super::flow::{Behind, Sight};
use super::leg::Place;
use super::takeback::{OnTheWay, head_of};
use super::{GRACE, Kernel, Offload, SETTLED};

/// A flow that is being taken back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    /// Nothing is on its way through the program from here on.
    pub(super) at: Instant,
    /// The kernel was alone for so long that no copy waits here.
    settled: bool,
    /// How long its legs stay here afterwards.
    stay: Duration,
}

impl Offload {
    /// The kernel is to forward nothing more, while the run goes on here.
    pub(super) fn dissolve(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
        stay: Duration,
    ) {
        if self.flow.as_ref().is_some_and(|flow| flow.leaving.is_none()) {
            self.withdraw(kernel);
        }
        let Some(flow) = &mut self.flow else { return };
        self.certain.set(false);
        let leaving = flow.leaving.get_or_insert_with(|| Leaving {
            at: now + GRACE,
            settled: matches!(flow.sight, Sight::Alone { since } if now >= since + SETTLED),
            stay,
        });
        leaving.stay = leaving.stay.max(stay);
        if matches!(flow.sight, Sight::Alone { .. }) {
            flow.sight = Sight::Copies { since: now, behind: Behind::Unknown };
        }
        let is_unpublished = flow.entry.mode == GroupMode::ToUser as u8;
        self.due = Some(leaving.at);
        // It was never published, or there is nobody to come back.
        if is_unpublished || self.legs.is_empty() {
            self.finish(now, kernel, media);
        }
    }

    /// Whether the flow is being taken back.
    pub(super) fn is_leaving(&self) -> bool {
        self.flow.as_ref().is_some_and(|flow| flow.leaving.is_some())
    }

    /// [`Self::step`] of a flow that is being taken back.
    pub(super) fn step_leaving(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        let Self { flow: Some(flow), legs, due, .. } = self else { return };
        let Some(leaving) = flow.leaving else { return };
        if now >= leaving.at {
            self.finish(now, kernel, media);
            return;
        }
        for leg in legs.iter_mut() {
            leg.settle_stop(now, flow, kernel, false);
        }
        let stops = legs.iter().filter_map(|leg| leg.stop.as_ref()).map(|stop| stop.due);
        *due = Some(stops.fold(leaving.at, Instant::min));
    }

    /// The second step. What waits here still belongs to the kernel as far as it is in the books.
    pub(super) fn finish(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        let Some(Leaving { settled, stay, .. }) = self.flow.as_ref().and_then(|flow| flow.leaving) else {
            return;
        };
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
        self.close(now, kernel, OnTheWay::Stopped);
    }
}
