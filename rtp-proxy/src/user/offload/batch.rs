//! A batch on its way through: what the input must know first, and what of it each leg gets from the worker.

use std::time::Instant;

use msm_graph::LegId;
use msm_media::project::Head;
use msm_media::seq::extend;
use msm_media::{Arrival, Batch, Part, TrackInput};

use super::flow::{Behind, Sight};
use super::leg::Place;
use super::{BACKOFF, BYPASSED, DISTRUST, GRACE, Kernel, Offload, wire};
use crate::kernel::hop::UserReason;

/// What of a batch the program has not seen.
#[derive(Debug, Default)]
struct Unseen {
    any: bool,
    /// Something with a higher number than the program has seen.
    ahead: bool,
}

/// Whether a number is in the books, `None` if they do not reach back to it.
fn is_in((highest, window): (u64, u64), number: u64) -> Option<bool> {
    let Some(behind) = highest.checked_sub(number) else { return Some(false) };
    (behind < 64).then(|| window & (1 << behind) != 0)
}

impl Offload {
    /// To be called with a batch in hand, before the input judges it.
    pub(crate) fn before_batch(&mut self, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        let Some(flow) = &mut self.flow else { return };
        let Ok(stats) = kernel.table.flow_stats(flow.stats) else { return };
        self.seen = (stats.highest, stats.window);
        let alone = matches!(flow.sight, Sight::Alone { .. });
        if alone || matches!(flow.sight, Sight::Copies { behind: Behind::Unknown | Behind::UpTo(_), .. }) {
            media.expect(&wire::progress_of(&stats, &kernel.epoch), alone);
        }
    }

    /// To be called when the input has judged a batch: finds out what of it each leg gets from the worker.
    pub(crate) fn divide(&mut self, now: Instant, kernel: &mut Kernel<'_>, batch: &mut Batch) {
        self.is_divided = !self.is_idle();
        if !self.is_divided {
            return;
        }
        let run = self.run;
        let unseen = self.mark(kernel, batch);
        // Whoever arms has read all that came before the flow was there.
        let awaited = self.legs.iter().any(|leg| leg.place == Place::Arming);
        let arrivals = batch.arrivals();
        let is_over = batch.after().is_some_and(|after| after.run != run);
        let first = |from: u64| {
            let is_it = |arrival: &Arrival| arrival.run == run && arrival.ext >= from;
            arrivals.iter().position(is_it)
        };
        let next_run = arrivals.iter().position(|arrival| arrival.run != run).unwrap_or(usize::MAX);
        let (highest, _) = self.seen;
        for leg in &mut self.legs {
            let id = self.flow.as_ref().zip(leg.seat).and_then(|(flow, seat)| flow.seats.id(seat));
            let moved = |kernel: &Kernel<'_>| {
                let gate = id.and_then(|id| kernel.table.gate(id).ok())?;
                gate.moved_at().map(|at| extend(highest, at))
            };
            (leg.place, leg.part) = match leg.place {
                Place::User => (Place::User, Part::ALL),
                Place::Kernel => (Place::Kernel, Part::new(0, next_run)),
                Place::Arming => match moved(kernel).and_then(&first) {
                    None => (Place::Arming, Part::ALL),
                    Some(at) => (Place::Kernel, Part::new(at, next_run)),
                },
                Place::Draining { stop } => {
                    let stop = stop.or_else(|| moved(kernel));
                    match stop.and_then(&first) {
                        None => (Place::Draining { stop }, Part::new(0, next_run)),
                        Some(at) => (Place::User, Part::new(0, at)),
                    }
                }
                Place::Between { until, stop } => match (first(until), first(stop)) {
                    (None, _) => (leg.place, Part::ALL),
                    (Some(before), None) => {
                        (Place::Draining { stop: Some(stop) }, Part::new(before, next_run))
                    }
                    (Some(before), Some(from)) => (Place::User, Part::new(before, from)),
                },
            };
            if let Some(flow) = &mut self.flow {
                flow.met |= leg.place == Place::Kernel;
            }
        }
        if let Some(flow) = &mut self.flow {
            // Of a flow that is being taken back everything comes up.
            let strayed = unseen.ahead && (flow.met || awaited) && flow.leaving.is_none();
            flow.bypassed = if strayed { flow.bypassed + 1 } else { 0 };
            if unseen.any {
                flow.strayed_at = Some(now);
                self.certain.set(false);
            }
        }
        if is_over {
            self.end_run(now, kernel);
        }
    }

    /// Marks what came up in a way that the program did not count: it was not forwarded.
    fn mark(&self, kernel: &Kernel<'_>, batch: &mut Batch) -> Unseen {
        let mut unseen = Unseen::default();
        let mut again = None;
        for index in 0..batch.arrivals().len() {
            let Some(arrival) = batch.arrivals().get(index).filter(|arrival| arrival.run == self.run) else {
                continue;
            };
            // Further back nobody knows; it was before the last 64 packets.
            if is_in(self.seen, arrival.ext).unwrap_or(true) {
                continue;
            }
            // The books are not read in one go: number and window may be of two packets.
            let again = again.get_or_insert_with(|| {
                let stats = self.flow.as_ref().and_then(|flow| kernel.table.flow_stats(flow.stats).ok());
                stats.map_or(self.seen, |stats| (stats.highest, stats.window))
            });
            if is_in(*again, arrival.ext) == Some(true) {
                continue;
            }
            unseen.ahead |= arrival.ext > self.seen.0;
            unseen.any = true;
            batch.mark_only_here(index);
        }
        unseen
    }

    /// Whether a batch is in hand that is not all the worker's.
    pub(crate) fn is_divided(&self) -> bool {
        self.is_divided
    }

    /// What of the batch in hand the worker sends to a leg. `hint`: where the leg is among those of the
    /// track, most probably.
    pub(crate) fn part(&self, hint: usize, leg: LegId) -> Part {
        if !self.is_divided {
            return Part::ALL;
        }
        let guess = self.legs.get(hint).filter(|known| known.who == leg);
        let known = guess.or_else(|| self.legs.iter().find(|known| known.who == leg));
        known.map_or(Part::ALL, |leg| leg.part)
    }

    /// How far the kernel has sent a leg that is the worker's again, once.
    pub(crate) fn take_sent(&mut self, leg: LegId) -> Option<(u32, Head)> {
        self.legs.iter_mut().find(|known| known.who == leg)?.sent.take().map(|sent| *sent)
    }

    /// To be called when a batch has been dealt with. `emptied`: nothing more waited then.
    pub(crate) fn after_batch(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
        emptied: bool,
    ) {
        let Some(flow) = &mut self.flow else { return };
        if emptied {
            flow.emptied_at = Some(now);
        }
        let target = match flow.sight {
            Sight::Copies { since, behind: Behind::Unknown } if now >= since + GRACE => Some(self.seen.0),
            Sight::Copies { behind: Behind::UpTo(target), .. } => Some(target),
            _ => None,
        };
        if let (Sight::Copies { behind, .. }, Some(target)) = (&mut flow.sight, target) {
            let caught_up = media.standing().is_some_and(|standing| standing.highest >= target);
            *behind = if caught_up { Behind::No } else { Behind::UpTo(target) };
            if caught_up {
                media.end_expect();
            }
        }
        if flow.bypassed >= BYPASSED {
            let interface = flow.source.ingress.interface.clone();
            let why = "the program there does not see what arrives".to_owned();
            self.dissolve(now, kernel, media, BACKOFF);
            self.failed = Some((now + DISTRUST, UserReason::Interface { interface, why }));
            return;
        }
        self.step(now, kernel, media);
    }
}
