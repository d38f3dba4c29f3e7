//! What a stream tells the fast path of its tracks, and what it takes from it.
//!
//! Owns nothing: which legs are where is [`Offload`]'s. Here is what is known of source and legs, when it is
//! looked at, and where counters go.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use msm_fastpath::PortKey;
use msm_graph::LegId;
use msm_media::{Part, TrackInput};

use super::{Entry, GateState, Input, Stream, Track};
use crate::kernel::hop::{Ingress, Rung, UserReason, Want, Way as Answer};
use crate::user::io_buffers::IoBuffers;
use crate::user::leg::{LegOut, Way};
use crate::user::offload::{Candidate, Kernel, Offload, Plan, Source};
use crate::user::udp;
use crate::user::worker::{KernelEnd, Shared};

/// How often a stream looks what the kernel has done: twice within the shortest silence that is told.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of an RTP header, which sender reports do not count.
const HEADER: u64 = 12;
/// Of a viewer over TCP, whatever else may be wrong.
const INTERLEAVED: UserReason = UserReason::Transport("interleaved TCP");

/// A track's side of the fast path.
#[derive(Debug)]
pub(crate) struct TrackKernel {
    offload: Offload,
    ingress: Option<Want>,
}

impl TrackKernel {
    pub(super) fn new(stream: String) -> Self {
        Self { offload: Offload::new(stream), ingress: None }
    }
}

/// A leg's side of it.
#[derive(Debug, Default)]
pub(crate) struct LegKernel {
    /// Address and port that the kernel sends from, as the worker's socket does.
    pub(crate) from: Option<SocketAddr>,
    hop: Option<Want>,
    /// What was said last of where the leg is.
    told: Option<Rung>,
}

impl LegKernel {
    pub(crate) fn new(from: Option<SocketAddr>) -> Self {
        Self { from, ..Self::default() }
    }

    /// Of a leg to `rtp`, sent from port `port` and from address `source` or the one that the route says.
    pub(crate) fn of(rtp: SocketAddr, source: Option<IpAddr>, port: u16) -> Self {
        let ip = source.or_else(|| udp::route_source(rtp));
        Self::new(ip.map(|ip| SocketAddr::new(ip, port)))
    }
}

impl Stream {
    /// A batch of a track is in hand.
    pub(super) fn before_batch(&mut self, index: usize, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let Some(Track { kernel: TrackKernel { offload, .. }, media, .. }) = self.tracks.get_mut(index)
        else {
            return;
        };
        if !offload.is_idle() {
            offload.before_batch(&mut kernel.borrow_mut().hands(), media);
        }
    }

    /// The input has judged it.
    pub(super) fn divide(&mut self, now: Instant, index: usize, io: &mut IoBuffers, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let Some(Track { kernel: TrackKernel { offload, .. }, legs, .. }) = self.tracks.get_mut(index) else {
            return;
        };
        offload.divide(now, &mut kernel.borrow_mut().hands(), &mut io.batch);
        if offload.is_divided() {
            for out in legs {
                take_sent(offload, out);
            }
        }
    }

    /// It has been dealt with. `emptied`: nothing more waited at the socket.
    pub(super) fn after_batch(&mut self, now: Instant, index: usize, emptied: bool, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let Some(Track { kernel: TrackKernel { offload, .. }, media, .. }) = self.tracks.get_mut(index)
        else {
            return;
        };
        if !offload.is_idle() {
            offload.after_batch(now, &mut kernel.borrow_mut().hands(), media, emptied);
            if offload.due().is_some() {
                shared.note_due(self.id);
            }
        }
    }

    /// Looks at source and legs as they are now, and at what the kernel has done.
    pub(crate) fn reconcile(&mut self, now: Instant, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let kernel = &mut *kernel.borrow_mut();
        if kernel.rests() {
            return;
        }
        self.looked_at = Some(now);
        let waits = self.arming.iter().filter(|arming| arming.ready_at.is_some());
        let waiting: Vec<_> = waits.map(|arming| arming.leg).collect();
        let mut due = false;
        for index in 0..self.tracks.len() {
            self.want_ways(index, kernel);
            let Some(track) = self.tracks.get_mut(index) else { return };
            let mut source = source_of(track, kernel);
            if let (Ok(found), true) = (&source, track.kernel.offload.is_idle()) {
                let ssrc = track.media.current().map(|run| run.ssrc);
                let of = (self.id, track.row.track);
                if kernel.continues(now, of, &self.name, &found.key(), ssrc) {
                    source = Err(UserReason::Adopting);
                }
            }
            let candidates = track
                .legs
                .iter()
                .map(|out| Candidate {
                    leg: out.leg,
                    active: waiting.contains(&out.leg)
                        || matches!(out.state, GateState::Armed | GateState::Active),
                    plan: plan_of(out, &track.media, source.as_ref().ok(), kernel),
                })
                .collect();
            let Track { kernel: TrackKernel { offload, .. }, media, .. } = track;
            let mut hands = kernel.hands();
            offload.look(now, &mut hands, media);
            offload.reconcile(now, &mut hands, media, source, candidates);
            due |= offload.due().is_some();
            if let Some(Input { row, entry: Entry::Udp { pair, .. }, .. }) = &track.input {
                // Strangers are dropped before they cost more than a look; whatever may change lets them in first.
                if let Some(close) = pair.note_certain(self.id, row.track, offload.certain())
                    && let Some(local) = pair.local(row).filter(|local| !local.ip().is_unspecified())
                    && let value = close.then_some(PortKey::STRICT)
                    && let Err(error) = hands.table.put_port(&PortKey::new(local), value)
                {
                    tracing::debug!(event = "kernel.port", %local, close, %error);
                }
            }
            for out in &mut track.legs {
                take_sent(offload, out);
                let (packets, bytes) = count(offload, out, &hands);
                self.out_packets += packets;
                self.out_bytes += bytes;
            }
            self.tell_rungs(now, index, kernel);
            self.alive_at = self.alive_at.max(self.tracks.get(index).and_then(|t| t.media.last_arrival()));
        }
        if due {
            // The path is borrowed until the end of this call.
            shared.wake_due(self.id, kernel);
        }
    }

    fn want_ways(&mut self, index: usize, kernel: &mut KernelEnd) {
        let id = self.id;
        let Some(track) = self.tracks.get_mut(index) else { return };
        let wanted = ingress_of(track.input.as_ref());
        if track.kernel.ingress != wanted {
            if let Some(old) = track.kernel.ingress.take() {
                kernel.forget(id, old);
            }
            if let Some(new) = wanted {
                kernel.want(id, new);
            }
            track.kernel.ingress = wanted;
        }
        for out in &mut track.legs {
            if out.kernel.hop.is_none()
                && let (Some(from), Way::Udp { rtp, .. }) = (out.kernel.from, &out.way)
            {
                let want = Want::Hop { peer: rtp.addr().ip(), local: from.ip() };
                kernel.want(id, want);
                out.kernel.hop = Some(want);
            }
        }
    }

    fn tell_rungs(&mut self, now: Instant, index: usize, kernel: &mut KernelEnd) {
        let id = self.id;
        let Some(Track { kernel: TrackKernel { offload, .. }, legs, row, .. }) = self.tracks.get_mut(index)
        else {
            return;
        };
        for out in legs.iter_mut().filter(|out| out.state == GateState::Active) {
            let rung = offload.rung(out.leg);
            if matches!(rung, Err(UserReason::Moving)) {
                continue;
            }
            let now_on = rung.as_ref().map_or(Rung::User, |rung| *rung);
            if out.kernel.told.replace(now_on) == Some(now_on) {
                continue;
            }
            let Some(suppressed) = kernel.line(now, id) else { continue };
            let meta = self.legs.iter().find(|meta| meta.leg == out.leg);
            tracing::info!(
                event = "leg.rung",
                stream_id = %id,
                name = self.name,
                session_id = meta.map(|meta| meta.session.as_str()),
                peer = meta.map(|meta| tracing::field::display(meta.peer)),
                track = row.track.0,
                rung = now_on.as_str(),
                reason = rung.err().map(tracing::field::display),
                suppressed = (suppressed > 0).then_some(suppressed),
            );
        }
    }

    /// A moment has passed: joins that waited for it, and what moving legs left to do.
    pub(crate) fn pace(&mut self, now: Instant, io: &mut IoBuffers, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let mut due = false;
        for Track { kernel: TrackKernel { offload, .. }, media, .. } in &mut self.tracks {
            if offload.due().is_some() {
                offload.step(now, &mut kernel.borrow_mut().hands(), media);
                due |= offload.due().is_some();
            }
        }
        self.arm_waiting(now, shared);
        due |= self.arming.iter().any(|arming| arming.ready_at.is_some());
        self.answer_armed(now);
        for index in 0..self.tracks.len() {
            self.drain(now, index, io, shared);
        }
        if due {
            shared.note_due(self.id);
        }
    }

    /// Whoever arms a leg must see every packet first. Returns when that is certain, if it is not now.
    pub(super) fn watch(&mut self, now: Instant, leg: LegId, shared: &Shared) -> Option<Instant> {
        let Ok(kernel) = shared.kernel() else { return None };
        let kernel = &mut *kernel.borrow_mut();
        let mut ready = None;
        for Track { kernel: TrackKernel { offload, .. }, media, legs, .. } in &mut self.tracks {
            if offload.is_idle() || legs.iter().all(|out| out.leg != leg) {
                continue;
            }
            let mut hands = kernel.hands();
            let at = offload.watch(leg, now, &mut hands, media);
            if at > now {
                ready = ready.max(Some(at));
            } else {
                offload.look(now, &mut hands, media);
            }
        }
        if ready.is_some() {
            shared.wake_due(self.id, kernel);
        }
        ready
    }

    /// Takes in how far the kernel has come on every track of a leg that is about to be armed.
    pub(crate) fn look(&mut self, now: Instant, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let kernel = &mut *kernel.borrow_mut();
        for Track { kernel: TrackKernel { offload, .. }, media, legs, .. } in &mut self.tracks {
            let mut hands = kernel.hands();
            offload.look(now, &mut hands, media);
            for out in legs {
                take_sent(offload, out);
                let (packets, bytes) = count(offload, out, &hands);
                self.out_packets += packets;
                self.out_bytes += bytes;
            }
        }
    }

    /// Whether it is time to look at the kernel's progress.
    pub(super) fn look_is_due(&self, now: Instant) -> bool {
        self.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK)
            || self
                .tracks
                .iter()
                .any(|track| !track.kernel.offload.is_idle() && track.media.is_report_due(now))
    }

    /// A leg is paused on every track. What is on its way to it through the kernel has arrived a moment later.
    pub(super) fn stop_in_kernel(&mut self, now: Instant, leg: LegId, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let kernel = &mut *kernel.borrow_mut();
        let hands = &mut kernel.hands();
        let mut is_stopping = false;
        for Track { kernel: TrackKernel { offload, .. }, legs, .. } in &mut self.tracks {
            let Some(out) = legs.iter_mut().find(|out| out.leg == leg) else { continue };
            offload.pause(leg, now, hands);
            is_stopping |= offload.is_stopping(leg);
            take_sent(offload, out);
            let (packets, bytes) = count(offload, out, hands);
            self.out_packets += packets;
            self.out_bytes += bytes;
        }
        if is_stopping {
            kernel.note_stopping(self.id);
            shared.wake_due(self.id, kernel);
        }
    }

    /// Shuts the gates of legs that were paused, where every packet has found them by now. Returns whether some are
    /// left.
    pub(crate) fn settle_stops(&mut self, now: Instant, shared: &Shared) -> bool {
        let Ok(kernel) = shared.kernel() else { return false };
        let mut kernel = kernel.borrow_mut();
        let mut is_stopping = false;
        for Track { kernel: TrackKernel { offload, .. }, .. } in &mut self.tracks {
            is_stopping |= offload.settle_stops(now, &mut kernel.hands());
        }
        is_stopping
    }

    /// Whether packets may still be on their way to a leg that was paused.
    pub(super) fn is_stopping(&self, leg: LegId) -> bool {
        self.tracks.iter().any(|track| track.kernel.offload.is_stopping(leg))
    }

    /// A track of a leg goes.
    pub(super) fn forget_in_kernel(&mut self, now: Instant, index: usize, leg: LegId, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let mut kernel = kernel.borrow_mut();
        let id = self.id;
        let Some(Track { kernel: TrackKernel { offload, .. }, media, legs, .. }) = self.tracks.get_mut(index)
        else {
            return;
        };
        let Some(out) = legs.iter_mut().find(|out| out.leg == leg) else { return };
        if let Some(want) = out.kernel.hop.take() {
            kernel.forget(id, want);
        }
        let hands = &mut kernel.hands();
        offload.shut(leg, now, hands);
        let (packets, bytes) = count(offload, out, hands);
        self.out_packets += packets;
        self.out_bytes += bytes;
        offload.forget(leg, now, hands, media);
        if offload.due().is_some() {
            shared.wake_due(id, &mut kernel);
        }
    }

    /// The input of a track goes, or becomes another one.
    pub(super) fn end_in_kernel(&mut self, now: Instant, index: usize, shared: &Shared) {
        let Ok(kernel) = shared.kernel() else { return };
        let mut kernel = kernel.borrow_mut();
        let id = self.id;
        let Some(Track { kernel: TrackKernel { offload, ingress }, media, legs, row, .. }) =
            self.tracks.get_mut(index)
        else {
            return;
        };
        kernel.end_continued(now, id, row.track);
        if let Some(want) = ingress.take() {
            kernel.forget(id, want);
        }
        let hands = &mut kernel.hands();
        offload.end(now, hands, media);
        for out in legs {
            take_sent(offload, out);
            let (packets, bytes) = count(offload, out, hands);
            self.out_packets += packets;
            self.out_bytes += bytes;
        }
    }

    /// Everything of the stream leaves the kernel.
    pub(crate) fn leave_kernel(&mut self, now: Instant, shared: &Shared) {
        for index in 0..self.tracks.len() {
            self.end_in_kernel(now, index, shared);
        }
    }

    /// Everything of the stream comes back to this worker, as it is about to be handed over: what is on its way
    /// through the kernel has arrived a moment later. Returns whether something was away.
    pub(crate) fn yield_kernel(&mut self, now: Instant, shared: &Shared) -> bool {
        let Ok(kernel) = shared.kernel() else { return false };
        let mut kernel = kernel.borrow_mut();
        let hands = &mut kernel.hands();
        let mut was_away = false;
        for Track { kernel: TrackKernel { offload, .. }, media, .. } in &mut self.tracks {
            was_away |= !offload.is_idle();
            offload.give_up(now, hands, media);
        }
        was_away | self.arming.iter().any(|arming| arming.ready_at.is_some())
    }

    /// That moment has passed, and what waited at the sockets has been read.
    pub(crate) fn settle_kernel(&mut self, now: Instant, shared: &Shared) {
        if let Ok(kernel) = shared.kernel() {
            let mut kernel = kernel.borrow_mut();
            let hands = &mut kernel.hands();
            for Track { kernel: TrackKernel { offload, .. }, media, legs, .. } in &mut self.tracks {
                offload.settle(now, hands, media);
                for out in legs {
                    take_sent(offload, out);
                    let (packets, bytes) = count(offload, out, hands);
                    self.out_packets += packets;
                    self.out_bytes += bytes;
                }
            }
        }
        for arming in &mut self.arming {
            arming.ready_at = arming.ready_at.map(|_| now);
        }
        self.arm_waiting(now, shared);
    }

    /// Every UDP leg is to be there.
    pub(crate) fn ask_rung(&mut self, now: Instant, rung: Option<Rung>, shared: &Shared) {
        for Track { kernel: TrackKernel { offload, .. }, legs, .. } in &mut self.tracks {
            for out in legs {
                offload.ask(out.leg, rung);
            }
        }
        self.reconcile(now, shared);
    }

    /// What carries a leg: the slowest of its tracks counts.
    pub(super) fn rung_of(&self, leg: LegId, shared: &Shared) -> (Rung, Option<UserReason>) {
        let tracks = self.tracks.iter().filter(|track| track.legs.iter().any(|out| out.leg == leg));
        if let Err(reason) = shared.kernel() {
            let is_leg = |out: &&LegOut| out.leg == leg;
            let mut outs = tracks.filter_map(|track| track.legs.iter().find(is_leg));
            let udp = outs.all(|out| matches!(out.way, Way::Udp { .. }));
            return (Rung::User, Some(if udp { reason.clone() } else { INTERLEAVED }));
        }
        tracks
            .map(|track| match track.kernel.offload.rung(leg) {
                Ok(rung) => (rung, None),
                Err(reason) => (Rung::User, Some(reason)),
            })
            .max_by_key(|(rung, _)| *rung)
            .unwrap_or((Rung::User, Some(UserReason::Idle)))
    }

    /// What the worker sends of the batch in hand to the `index`-th leg of a track.
    pub(super) fn part(kernel: &TrackKernel, index: usize, leg: LegId) -> Part {
        kernel.offload.part(index, leg)
    }
}

fn take_sent(offload: &mut Offload, out: &mut LegOut) {
    if let Some((run, head)) = offload.take_sent(out.leg) {
        out.media.sent_elsewhere(run, head);
    }
}

/// Takes in what the kernel sent to a leg; returns packets and bytes.
fn count(offload: &mut Offload, out: &mut LegOut, kernel: &Kernel<'_>) -> (u64, u64) {
    let sent = offload.take_counts(out.leg, kernel);
    out.packets += sent.packets;
    out.bytes += sent.bytes;
    out.drops.count(sent.reason(), sent.dropped);
    out.media.count_elsewhere(sent.packets, sent.bytes.saturating_sub(HEADER * sent.packets));
    (sent.packets, sent.bytes)
}

/// Our end of an input over UDP, with the peer as far as it is known.
fn ends_of(input: Option<&Input>) -> Option<(SocketAddr, SocketAddr)> {
    let Input { row, entry: Entry::Udp { pair, lock, peer, .. }, .. } = input? else { return None };
    Some((SocketAddr::new(*peer, lock.port().unwrap_or(0)), pair.local(row)?))
}

fn ingress_of(input: Option<&Input>) -> Option<Want> {
    let (peer, local) = ends_of(input)?;
    Some(Want::Ingress { peer: peer.ip(), local: local.ip() })
}

fn source_of(track: &Track, kernel: &KernelEnd) -> Result<Source, UserReason> {
    let (peer, local) = match &track.input {
        Some(Input { entry: Entry::Channels { .. }, .. }) => {
            return Err(UserReason::Transport("a source on interleaved TCP"));
        }
        input => ends_of(input.as_ref()).ok_or(UserReason::Unsteady)?,
    };
    if peer.port() == 0 {
        return Err(UserReason::Unsteady);
    }
    let answer = track.kernel.ingress.as_ref().and_then(|want| kernel.way(want));
    let ingress: Ingress = match answer {
        Some(Answer::Ingress(Ok(ingress))) => ingress.clone(),
        Some(Answer::Ingress(Err(reason))) => return Err(reason.clone()),
        _ => return Err(UserReason::Unresolved(peer.ip())),
    };
    Ok(Source { peer, local, ingress, clock_rate: track.row.clock_rate })
}

fn plan_of(
    out: &LegOut,
    media: &TrackInput,
    source: Option<&Source>,
    kernel: &KernelEnd,
) -> Result<Plan, UserReason> {
    let Way::Udp { rtp, .. } = &out.way else { return Err(INTERLEAVED) };
    let dst = rtp.addr();
    let src = out.kernel.from.ok_or(UserReason::Unresolved(dst.ip()))?;
    match out.state {
        GateState::Disabled | GateState::Paused => return Err(UserReason::Idle),
        // The first packet is the worker's: it brings the sender report along.
        GateState::Armed => return Err(UserReason::Moving),
        GateState::Active => {}
    }
    let source = source.ok_or(UserReason::Unsteady)?;
    if !source.is_family_of(dst) {
        return Err(UserReason::Transport("a viewer of another address family than its source"));
    }
    let hop = match out.kernel.hop.as_ref().and_then(|want| kernel.way(want)) {
        Some(Answer::Hop(Ok(hop))) => hop.clone(),
        Some(Answer::Hop(Err(reason))) => return Err(reason.clone()),
        _ => return Err(UserReason::Unresolved(dst.ip())),
    };
    // Out by the NIC that it came in by is well; by a veth it would be back at its source.
    if hop.ifindex == source.ingress.ifindex && hop.local {
        return Err(UserReason::SameInterface(hop.interface));
    }
    if hop.mtu < source.ingress.mtu {
        let (interface, mtu) = (hop.interface, hop.mtu);
        return Err(UserReason::Mtu { interface, mtu, wanted: source.ingress.mtu });
    }
    let projection = out.media.steady_projection(media).ok_or(UserReason::Unsteady)?;
    let next = media.current().map_or(0, |current| current.head.ext + 1);
    if out.media.open_from().is_none_or(|from| from > next) {
        return Err(UserReason::Moving);
    }
    Ok(Plan { src, dst, hop, edit: *projection.edit() })
}
