//! Which legs of a track the kernel carries, and the way there and back (ADR 0005).
//!
//! Owns the flow, the seats and the gates of one track in the kernel's tables. Pure: time is an argument, the
//! only effect is the [`Table`] that is passed in. It does not know sockets, streams or sessions: a stream says
//! what is known of its source ([`Source`]) and of its legs ([`Candidate`]), shows it every batch, and is told
//! which part of the batch each leg gets from the worker.
//!
//! ```text
//!                 gate armed(from)                    packet `at` came up
//!          User ───────────────────► Arming ─────────────────────────────► Kernel
//!            ▲                                                               │
//!            └──────────────────── Draining ◄────────────────────────────────┘
//!             packet `at` came up              copies on, gate draining(until)
//! ```
//!
//! While the kernel carries every leg that plays, nothing comes up (*alone*); else every packet comes up
//! (*copies*). That is one flag of the flow entry, and a packet that found the old entry may be on its way for a
//! moment, so nothing that relies on the new one happens within [`GRACE`]. What comes up while the kernel is
//! alone was not forwarded: it is the worker's.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use msm_fastpath::{FlowKey, LegStats, RtpEdit};
use msm_graph::LegId;
use msm_media::TrackInput;

use crate::kernel::hop::{Hop, Ingress, Rung, UserReason};
use crate::kernel::slots::Slots;
use crate::kernel::table::Table;
use crate::user::room;

mod batch;
mod flow;
mod leaving;
mod leg;
mod seats;
mod step;
mod takeback;
mod wire;

use flow::{Behind, Flow, Sight};
use leg::{Leg, NOTHING, Place};
pub(crate) use seats::GRACE;
use seats::NoSeat;
pub(crate) use wire::Epoch;

/// Copies stay on so long after the last need: what needs them comes in groups.
const HOLD: Duration = Duration::from_millis(100);
/// What was copied before the kernel was alone has been read after this time.
const SETTLED: Duration = Duration::from_millis(200);
/// A leg that had to come back stays at least this long.
const BACKOFF: Duration = Duration::from_secs(1);
/// The same where the kernel did not do what it was told.
const DISTRUST: Duration = Duration::from_secs(10);
/// Packets of a run before its legs may go to the kernel.
const STEADY_PACKETS: u64 = 8;
/// A source that is silent for so long may have begun to send in another way.
const QUIET: Duration = Duration::from_secs(1);
/// Batches in a row that brought what the program has not seen, although the flow is there: they come in where no
/// program of ours hangs, or it is not asked.
const BYPASSED: u32 = 3;

/// The kernel as one worker sees it.
pub(crate) struct Kernel<'a> {
    pub(crate) table: &'a mut dyn Table,
    pub(crate) slots: &'a mut Slots,
    pub(crate) epoch: Epoch,
}

/// Where a track comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Who sends it.
    pub(crate) peer: SocketAddr,
    /// Where to.
    pub(crate) local: SocketAddr,
    pub(crate) ingress: Ingress,
    pub(crate) clock_rate: u32,
}

impl Source {
    /// Whether the kernel can send to `viewer` what comes from here: it keeps the IP header's version.
    pub(crate) fn is_family_of(&self, viewer: SocketAddr) -> bool {
        self.peer.ip().to_canonical().is_ipv4() == viewer.ip().to_canonical().is_ipv4()
    }

    /// The key of its flow.
    pub(crate) fn key(&self) -> FlowKey {
        FlowKey::new(self.peer, self.local, self.ingress.ifindex)
    }
}

/// How the kernel would send one leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) hop: Hop,
    pub(crate) edit: RtpEdit,
}

/// What a stream knows of one leg.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) leg: LegId,
    /// Its gate is open, or will be with the next packet.
    pub(crate) active: bool,
    pub(crate) plan: Result<Plan, UserReason>,
}

/// See [`Offload::certain`]. It becomes true when source and legs are looked at, and false at once, with the flow or
/// with a packet that came up past the program.
pub(crate) type Certain = Rc<Cell<bool>>;

/// One track.
#[derive(Debug)]
pub(crate) struct Offload {
    stream: String,
    certain: Certain,
    flow: Option<Flow>,
    legs: Vec<Leg>,
    /// Run of the flow, or of the last one.
    run: u32,
    /// The highest number that the program had seen when the batch in hand was here, or when the flow ended,
    /// and which of the last 64 (bit 0 is the highest).
    seen: (u64, u64),
    /// Whether the batch in hand is not all the worker's.
    is_divided: bool,
    due: Option<Instant>,
    /// Interface by which the last flow came in.
    tried: u32,
    /// Why the last attempt there failed, and until when none is made.
    failed: Option<(Instant, UserReason)>,
}

impl Offload {
    /// `stream`: the name of the track's stream, whose share of the tables it uses.
    pub(crate) fn new(stream: String) -> Self {
        Self {
            stream,
            certain: Certain::default(),
            flow: None,
            legs: Vec::new(),
            run: 0,
            seen: (0, 0),
            is_divided: false,
            due: None,
            tried: 0,
            failed: None,
        }
    }

    /// Whether nothing of this track is in the kernel, or on its way from there.
    pub(crate) fn is_idle(&self) -> bool {
        self.flow.is_none() && self.legs.iter().all(|leg| leg.place == Place::User)
    }

    /// Whether everything that the source sends finds its flow, for whoever drops what does not.
    pub(crate) fn certain(&self) -> &Certain {
        &self.certain
    }

    /// As far as can be seen: the program has seen a packet of it lately, and nothing came up past the program.
    fn is_certain(&self, now: Instant) -> bool {
        let lately = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < QUIET);
        let is_seen = |flow: &Flow| flow.met && lately(flow.arrived) && !lately(flow.strayed_at);
        self.flow.as_ref().is_some_and(|flow| flow.leaving.is_none() && is_seen(flow))
    }

    /// When [`Self::step`] has something to do, if that is soon.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What carries a leg, and why the worker if it does.
    pub(crate) fn rung(&self, leg: LegId) -> Result<Rung, UserReason> {
        let Some(leg) = self.legs.iter().find(|known| known.who == leg) else {
            return Err(UserReason::Idle);
        };
        match (leg.place, &self.flow) {
            (Place::Kernel | Place::Draining { .. } | Place::Between { .. }, Some(flow))
                if flow.leaving.is_none() =>
            {
                return Ok(flow.source.ingress.rung);
            }
            (Place::Arming, _) => return Err(UserReason::Moving),
            _ => {}
        }
        Err(match (&leg.plan, leg.asked, &self.failed) {
            (_, Some(Rung::User), _) => UserReason::Moving,
            (Err(reason), ..) => reason.clone(),
            _ if !leg.active => UserReason::Idle,
            (Ok(_), _, Some((_, reason))) => reason.clone(),
            (Ok(_), ..) => UserReason::Moving,
        })
    }

    /// Puts a leg where somebody wants it, without regard to how long it has been elsewhere; `None` leaves it
    /// to the rules.
    pub(crate) fn ask(&mut self, leg: LegId, rung: Option<Rung>) {
        if let Some(leg) = self.legs.iter_mut().find(|known| known.who == leg) {
            leg.asked = rung;
        }
    }

    /// Takes in what is known of source and legs now, and does what follows from it.
    pub(crate) fn reconcile(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
        source: Result<Source, UserReason>,
        candidates: Vec<Candidate>,
    ) {
        for candidate in candidates {
            let leg = self.entry(candidate.leg, now);
            leg.active = candidate.active;
            leg.learn(match (candidate.plan, &source) {
                // What no source can change is said first.
                (Err(own @ UserReason::Transport(_)), _) => Err(own),
                (_, Err(reason)) => Err(reason.clone()),
                (plan, Ok(_)) => plan,
            });
        }
        if source.as_ref().map_or(true, |source| source.ingress.ifindex != self.tried) {
            self.failed = None;
        }
        if let Some(flow) = &mut self.flow {
            match source {
                _ if flow.leaving.is_some() => {}
                Ok(ref source) if source.key() == flow.source.key() => flow.source = source.clone(),
                _ => self.dissolve(now, kernel, media, BACKOFF),
            }
        }
        if let Ok(source) = source
            && let Err(error) = self.enlist(now, kernel, media, source)
        {
            self.fail(now, kernel, media, error);
        }
        self.step(now, kernel, media);
        self.certain.set(self.is_certain(now));
    }

    fn entry(&mut self, leg: LegId, now: Instant) -> &mut Leg {
        let index = self.legs.iter().position(|known| known.who == leg).unwrap_or_else(|| {
            room::append(&mut self.legs, Leg::new(leg, now));
            self.legs.len() - 1
        });
        &mut self.legs[index]
    }

    /// Gives seats to the legs that want one, and publishes.
    fn enlist(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
        source: Source,
    ) -> Result<(), NoSeat> {
        if self.is_leaving() || self.failed.as_ref().is_some_and(|(until, _)| now < *until) {
            return Ok(());
        }
        let Some(standing) = media.standing().filter(|_| media.is_steady()) else { return Ok(()) };
        let seated = |leg: &Leg| leg.seat.is_some() && leg.written.as_ref() == leg.plan.as_ref().ok();
        let rested = |leg: &Leg| leg.stop.is_none() && (leg.seat.is_none() || now >= leg.ready_at);
        let Self { legs, .. } = self;
        if standing.packets < STEADY_PACKETS
            || !legs
                .iter()
                .any(|leg| leg.place == Place::User && leg.wanted(now) && !seated(leg) && rested(leg))
        {
            return Ok(());
        }
        self.failed = None;
        if self.flow.is_none() {
            // What an earlier flow forwarded is still on its way here.
            if self.legs.iter().any(|leg| leg.place != Place::User) {
                return Ok(());
            }
            self.open(now, kernel, media, source, &standing)?;
        }
        let Self { flow: Some(flow), legs, .. } = self else { return Ok(()) };
        let mut full = None;
        for leg in legs.iter_mut() {
            if leg.place != Place::User || !leg.wanted(now) || seated(leg) || !rested(leg) {
                continue;
            }
            let Ok(plan) = leg.plan.clone() else { continue };
            let seat = match leg.seat {
                Some(seat) => seat,
                None => match flow.seats.take(leg.who, &flow.holder, kernel.slots, kernel.table, now) {
                    Ok(seat) => seat,
                    Err(NoSeat::Full(reason)) => {
                        leg.plan = Err(reason.clone());
                        full = Some(reason);
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let id = flow.seats.id(seat).unwrap_or_default();
            let from = (flow.source.peer, flow.source.local);
            let ingress = flow.source.ingress.ifindex;
            let plan_dst = plan.dst;
            let entry = wire::leg_entry(from, (plan.src, plan.dst), (&plan.hop, ingress), plan.edit, id);
            if leg.seat.is_none() {
                leg.counted = NOTHING;
            }
            leg.seat = Some(seat);
            leg.written = Some(plan);
            leg.ready_at = now + GRACE;
            kernel.table.name_leg(id, plan_dst);
            flow.seats.write(seat, entry, kernel.table)?;
        }
        if let Some(reason) = full {
            self.failed = Some((now + BACKOFF, reason));
        }
        self.publish(now, kernel, true)?;
        Ok(())
    }

    /// Takes in how far the kernel has come, for whoever is about to say so: reports, a leg that joins, people.
    pub(crate) fn look(&mut self, now: Instant, kernel: &mut Kernel<'_>, media: &mut TrackInput) {
        let Some(flow) = &mut self.flow else { return };
        let Ok(stats) = kernel.table.flow_stats(flow.stats) else { return };
        if stats.packets > 0 {
            flow.arrived = Some(kernel.epoch.instant(stats.last_arrival));
        }
        if media.current().is_none_or(|current| current.run != flow.run) {
            return;
        }
        let progress = wire::progress_of(&stats, &kernel.epoch);
        match flow.sight {
            Sight::Alone { since } if now >= since + SETTLED => media.absorb(now, &progress),
            Sight::Alone { .. } => media.expect(&progress, true),
            Sight::Copies { behind: Behind::Unknown | Behind::UpTo(_), .. } => media.expect(&progress, false),
            Sight::Copies { behind: Behind::No, .. } => media.count_elsewhere(&progress),
        }
    }

    /// What the kernel sent to a leg since this was asked last.
    pub(crate) fn take_counts(&mut self, leg: LegId, kernel: &Kernel<'_>) -> LegStats {
        let Some(leg) = self.legs.iter_mut().find(|known| known.who == leg) else { return NOTHING };
        if let Some(flow) = &self.flow {
            leg.count(flow, kernel);
        }
        std::mem::replace(&mut leg.left, NOTHING)
    }
}

#[cfg(test)]
pub(crate) mod tests;
