//! Whether the bursts of a source are to be merged where they come in, by how they have come for some seconds.
//!
//! Merging wakes a thread per burst and saves a part of every copy, so what pays is copies per burst: packets by
//! viewers (B3 in `docs/benchmarks.md`). An interface is switched on at a mean of [`RISE`] copies and off below
//! [`FALL`], each for [`HOLD`], and stays so for [`DWELL`]. The mean is over all packets of all flows of the interface: the
//! cost of a packet follows the share of a burst that it has to bear. Where merging could lose packets it is not
//! switched on, and off at once ([`room`]).
//!
//! Pure: [`super::batcher`] brings time and readings and carries out what comes of them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use msm_fastpath::progress::Pace;

use super::share::FlowId;

pub(crate) mod room;

use room::{Load, Losses, Obstacle};

/// Copies of a burst from which merging it pays surely: packets by viewers. Measured: about 80.
const RISE: f64 = 128.0;
/// Copies below which it surely does not.
const FALL: f64 = 84.0;
/// Packets from which merging is worth its delay, however many viewers there are, and below which it is not.
const RISE_PACKETS: f64 = 8.0;
const FALL_PACKETS: f64 = 5.0;
/// How long the mean must have been so.
const HOLD: Duration = Duration::from_secs(3);
/// An interface that was switched stays as it is for so long.
const DWELL: Duration = Duration::from_secs(10);
/// Without media for so long an interface is switched off.
const IDLE: Duration = Duration::from_secs(30);
/// What could not be switched is tried again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// Packets between two looks below which they say nothing.
const FEW: u64 = 8;
/// Segments per buffer from which a sender is one that sends super-packets itself.
const SUPER: u64 = 2;

/// What one look found.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) flows: Vec<Flow>,
    /// Buffers that each interface has received since it exists, where that is known. A super-packet of its
    /// sender is one, however many packets are in it; what is merged here is not.
    pub(super) received: BTreeMap<u32, u64>,
    /// Packets that the far end of each interface could not send since it exists, where that is known.
    pub(super) lost: BTreeMap<u32, u64>,
    /// `net.core.netdev_max_backlog`.
    pub(super) backlog: u64,
}

/// One flow at a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    /// The interface that it comes in by.
    pub(super) ifindex: u32,
    pub(super) id: FlowId,
    pub(super) pace: Pace,
    /// Copies per packet.
    pub(super) viewers: u16,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    pub(super) ifindex: u32,
    pub(super) on: bool,
    pub(super) why: Why,
}

/// Why bursts are merged or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Why {
    /// The mean burst in packets.
    Burst(f64),
    /// The sender's own super-packets, so many packets in each on average.
    SuperPackets(f64),
    /// No media comes.
    Idle,
    /// Packets would be lost.
    Obstacle(Obstacle),
}

/// The state of one interface, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchingStatus {
    /// Bursts are merged.
    pub on: bool,
    /// Mean burst in packets at the last look, if media came.
    pub burst: Option<f64>,
    /// How long it has been so; `None` if it was never switched.
    pub since: Option<Duration>,
    /// Why it cannot be switched on although it should be.
    pub refused: Option<String>,
}

#[derive(Debug)]
struct Interface {
    on: bool,
    changed: Option<Instant>,
    /// What the looks say, and since when all of them do.
    tends: Option<(bool, Instant)>,
    burst: Option<f64>,
    /// As of [`Look::received`].
    received: Option<u64>,
    media_at: Instant,
    losses: Losses,
    refused: Option<(Instant, String)>,
    /// Why it is not switched on although it would pay.
    obstacle: Option<Obstacle>,
}

/// What came in by an interface between two looks.
#[derive(Debug, Default, Clone, Copy)]
struct Came {
    packets: u64,
    bursts: u64,
    copies: u64,
    load: Load,
}

/// Every interface that media comes in by.
#[derive(Debug, Default)]
pub(super) struct Batching {
    interfaces: BTreeMap<u32, Interface>,
    paces: HashMap<FlowId, Pace>,
    lost: u64,
}

impl Batching {
    /// An interface that an earlier process switched on.
    pub(super) fn adopt(&mut self, ifindex: u32, now: Instant) {
        let interface = Interface { on: true, changed: Some(now), ..Interface::new(now) };
        self.interfaces.insert(ifindex, interface);
    }

    /// Forgets interfaces that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(u32) -> bool) {
        self.interfaces.retain(|ifindex, _| is_there(*ifindex));
    }

    /// Takes in which interfaces are switched on: one may have been given back for another reason.
    pub(super) fn observe(&mut self, merged: &[u32]) {
        for (ifindex, interface) in &mut self.interfaces {
            interface.on &= merged.contains(ifindex);
        }
    }

    /// Takes a look in. Returns what is to be done about it; [`Batching::done`] is to follow for each.
    pub(super) fn handle_look(&mut self, now: Instant, look: &Look) -> Vec<Change> {
        let mut came: BTreeMap<u32, Came> = BTreeMap::new();
        let mut paces = HashMap::with_capacity(look.flows.len());
        for Flow { ifindex, id, pace, viewers } in &look.flows {
            let came = came.entry(*ifindex).or_default();
            // A flow that is new, or whose statistics began anew, is counted from the next look on.
            let before = self.paces.get(id).filter(|before| before.packets <= pace.packets);
            if let Some(before) = before {
                came.add(pace.packets - before.packets, pace.bursts.wrapping_sub(before.bursts), *viewers);
            }
            paces.insert(*id, *pace);
        }
        self.paces = paces;
        for ifindex in came.keys() {
            self.interfaces.entry(*ifindex).or_insert_with(|| Interface::new(now));
        }
        let mut changes = Vec::new();
        for (ifindex, interface) in &mut self.interfaces {
            let mut came = came.get(ifindex).copied().unwrap_or_default();
            came.load.backlog = look.backlog;
            let received = look.received.get(ifindex).copied();
            self.lost += interface.losses.handle_look(now, look.lost.get(ifindex).copied(), interface.on);
            if let Some((on, why)) = interface.handle_look(now, &came, received) {
                changes.push(Change { ifindex: *ifindex, on, why });
            }
        }
        // What is off and brings nothing is not worth a line.
        self.interfaces
            .retain(|_, interface| interface.on || now.saturating_duration_since(interface.media_at) < IDLE);
        changes
    }

    /// Packets that were lost because bursts were merged, ever.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// What came of a change.
    pub(super) fn done(&mut self, now: Instant, change: &Change, result: Result<(), String>) {
        let Some(interface) = self.interfaces.get_mut(&change.ifindex) else { return };
        interface.tends = None;
        match result {
            Ok(()) => {
                interface.on = change.on;
                interface.changed = Some(now);
                interface.refused = None;
            }
            Err(why) => interface.refused = Some((now, why)),
        }
    }

    /// The state of an interface, `None` if no media has come in by it.
    pub(super) fn status(&self, ifindex: u32, now: Instant) -> Option<BatchingStatus> {
        let interface = self.interfaces.get(&ifindex)?;
        Some(BatchingStatus {
            on: interface.on,
            burst: interface.burst,
            since: interface.changed.map(|at| now.saturating_duration_since(at)),
            refused: interface.refused(),
        })
    }
}

impl Interface {
    fn new(now: Instant) -> Self {
        Self {
            on: false,
            changed: None,
            tends: None,
            burst: None,
            received: None,
            media_at: now,
            losses: Losses::default(),
            refused: None,
            obstacle: None,
        }
    }

    fn refused(&self) -> Option<String> {
        let refused = self.refused.as_ref().map(|(_, why)| why.clone());
        refused.or_else(|| self.obstacle.map(|obstacle| obstacle.to_string()))
    }

    /// Whether to switch, and why.
    fn handle_look(&mut self, now: Instant, came: &Came, received: Option<u64>) -> Option<(bool, Why)> {
        let before = std::mem::replace(&mut self.received, received);
        if came.packets > 0 {
            self.media_at = now;
        }
        let obstacle = self.losses.obstacle(now, &came.load, self.on);
        if let Some(obstacle) = obstacle.filter(|_| self.on) {
            self.tends = None;
            self.obstacle = Some(obstacle);
            return self.is_granted(now).then_some((false, Why::Obstacle(obstacle)));
        }
        if came.packets < FEW {
            self.tends = None;
            self.burst = None;
            let idle = now.saturating_duration_since(self.media_at) >= IDLE;
            return (self.on && idle && self.may(now)).then_some((false, Why::Idle));
        }
        // One that goes on from the look before has not begun a burst in this one.
        let burst = came.packets as f64 / came.bursts.max(1) as f64;
        self.burst = Some(burst);
        let buffers = received.zip(before).map(|(now, before)| now.saturating_sub(before)).filter(|n| *n > 0);
        let (rise, fall) = thresholds(came.copies as f64 / came.packets as f64);
        let is_super = buffers.is_some_and(|buffers| came.packets >= SUPER * buffers);
        let (tends, why) = if is_super {
            (false, Why::SuperPackets(came.packets as f64 / buffers.unwrap_or(1) as f64))
        } else if burst >= rise && buffers.is_some() {
            self.obstacle = obstacle;
            if obstacle.is_some() {
                self.tends = None;
                return None;
            }
            (true, Why::Burst(burst))
        } else if burst < fall {
            (false, Why::Burst(burst))
        } else {
            self.tends = None;
            return None;
        };
        self.obstacle = None;
        let since = match self.tends {
            Some((same, since)) if same == tends => since,
            _ => now,
        };
        self.tends = Some((tends, since));
        let held = now.saturating_duration_since(since) >= HOLD;
        (tends != self.on && held && self.may(now)).then_some((tends, why))
    }

    fn may(&self, now: Instant) -> bool {
        self.changed.is_none_or(|at| now.saturating_duration_since(at) >= DWELL) && self.is_granted(now)
    }

    /// Nothing was refused just now.
    fn is_granted(&self, now: Instant) -> bool {
        self.refused.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= AGAIN)
    }
}

impl Came {
    fn add(&mut self, packets: u64, bursts: u32, viewers: u16) {
        if packets == 0 {
            return;
        }
        let viewers = u64::from(viewers);
        self.packets += packets;
        self.bursts += u64::from(bursts);
        self.copies += packets * viewers;
        self.load.viewers = self.load.viewers.max(viewers);
        self.load.together += packets as f64 / f64::from(bursts.max(1));
    }
}

/// Mean bursts, in packets, at which merging is switched on and below which it is switched off, by the viewers that a
/// packet has on average.
fn thresholds(viewers: f64) -> (f64, f64) {
    let viewers = viewers.max(1.0);
    ((RISE / viewers).max(RISE_PACKETS), (FALL / viewers).max(FALL_PACKETS))
}

#[cfg(test)]
mod tests;
