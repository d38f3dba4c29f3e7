//! One pinned data thread: a current-thread runtime, the streams it owns and their sockets.
//!
//! Owns the state of its streams, the loop that takes commands, and the tasks that receive. Nothing here
//! is shared with another thread but bounded channels and the sockets that viewers are served from.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use msm_fastpath::DropReason;
use msm_graph::{ConnId, LegId, PortPair, Report, StreamId, TrackId};
use msm_media::jitter::MIN_WINDOW;
use tokio::sync::{Notify, mpsc};

use crate::kernel::hop::UserReason;
use crate::kernel::service::WorkerEnd;
use crate::kernel::ways::Inbox;

use super::input_pair::{InputPair, PairId};
use super::io_buffers::IoBuffers;
use super::leg::{Drops, LegOut, Way};
use super::stream::Stream;
use super::tcp::{ConnSlot, Pushed, run_on_worker};
use super::udp;
use super::{PlayerSockets, UserEvent};

mod command;
pub(crate) mod inventory;
mod kernel;
mod players;
mod receive;
mod run;
mod snapshot;
mod steps;
mod ticker;

pub(crate) use kernel::KernelEnd;
pub(crate) use run::Worker;
pub(crate) use steps::leg_config;

pub(crate) use command::{Command, Commands, PlayerPeer, Step, WorkerHandle};

/// Reports waiting for the control thread when its channel is full.
const BACKLOG: usize = 4096;
/// What a worker starts with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) index: usize,
    /// Its end of the fast path, or why it has none.
    pub(crate) kernel: Result<WorkerEnd, UserReason>,
    pub(crate) core: Option<usize>,
    pub(crate) players: PlayerSockets,
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) events: mpsc::Sender<UserEvent>,
    /// What the worker has from a former program.
    pub(crate) inherited: Option<inventory::Inherited>,
}

/// State of one worker; every borrow ends before the next await.
pub(crate) struct Shared {
    pub(crate) index: usize,
    players: PlayerSockets,
    workers: Vec<WorkerHandle>,
    events: mpsc::Sender<UserEvent>,
    backlog: RefCell<VecDeque<Report>>,
    backlog_dropped: RefCell<u64>,
    io: RefCell<IoBuffers>,
    streams: RefCell<HashMap<StreamId, Rc<RefCell<Stream>>>>,
    conns: RefCell<HashMap<ConnId, Rc<ConnSlot>>>,
    peers: RefCell<HashMap<SocketAddr, PlayerPeer>>,
    pairs: RefCell<HashMap<PairId, Rc<InputPair>>>,
    drops: RefCell<Drops>,
    overflows: RefCell<Vec<(&'static str, u64)>>,
    /// Drop counters of the players' sockets as last seen: RTP and RTCP, IPv4 and IPv6.
    player_overflow: [Cell<u32>; 4],
    /// Frames and batches that connections dropped which are gone.
    late_frames: Cell<u64>,
    guests_dropped: Cell<u64>,
    /// Some leg has packets that wait for one that is missing.
    reordered: Notify,
    kernel: Result<RefCell<KernelEnd>, UserReason>,
    /// Some stream has legs to move, or to arm.
    due: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Sends on what waited in vain for a packet. Packets wait 20 ms; two rounds of this, the worst case, still
/// end before the 50 ms of RTP-12.
async fn release_reordered(shared: Rc<Shared>) {
    loop {
        shared.reordered.notified().await;
        tokio::time::sleep(MIN_WINDOW).await;
        let now = Instant::now();
        let streams: Vec<_> = shared.streams.borrow().values().cloned().collect();
        let waiting = streams.iter().filter(|stream| stream.borrow_mut().release(now)).count();
        if waiting > 0 {
            shared.reordered.notify_one();
        }
    }
}

impl Shared {
    fn new(start: Start) -> (Self, Option<Inbox>) {
        let (kernel, inbox) = match start.kernel {
            Ok((share, inbox)) => (Ok(RefCell::new(KernelEnd::new(share))), Some(inbox)),
            Err(reason) => (Err(reason), None),
        };
        let shared = Self {
            index: start.index,
            players: start.players,
            workers: start.workers,
            events: start.events,
            backlog: RefCell::default(),
            backlog_dropped: RefCell::default(),
            io: RefCell::new(IoBuffers::new()),
            streams: RefCell::default(),
            conns: RefCell::default(),
            peers: RefCell::default(),
            pairs: RefCell::default(),
            drops: RefCell::default(),
            overflows: RefCell::default(),
            player_overflow: Default::default(),
            late_frames: Cell::default(),
            guests_dropped: Cell::default(),
            reordered: Notify::new(),
            kernel,
            due: Notify::new(),
        };
        (shared, inbox)
    }

    /// Packets of an interleaved leg wait to be put in sequence.
    pub(crate) fn note_reordered(&self) {
        self.reordered.notify_one();
    }

    /// Tells the control thread, without ever waiting for it.
    pub(crate) fn report(&self, report: Report) {
        let mut backlog = self.backlog.borrow_mut();
        let report = if backlog.is_empty() {
            match self.events.try_send(UserEvent::Report(report)) {
                Err(mpsc::error::TrySendError::Full(UserEvent::Report(report))) => report,
                _ => return,
            }
        } else {
            report
        };
        if backlog.len() >= BACKLOG {
            backlog.pop_front();
            *self.backlog_dropped.borrow_mut() += 1;
        }
        backlog.push_back(report);
    }

    fn flush_backlog(&self) {
        let mut backlog = self.backlog.borrow_mut();
        while let Some(report) = backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(UserEvent::Report(report))) =
                self.events.try_send(UserEvent::Report(report))
            {
                backlog.push_front(report);
                break;
            }
        }
    }

    /// Adds what a socket's drop counter grew by.
    pub(crate) fn count_overflow(&self, watched: &impl AsRawFd, last: &Cell<u32>, socket: &'static str) {
        let grown = udp::dropped_since(watched, last);
        if grown == 0 {
            return;
        }
        self.drops.borrow_mut().count(DropReason::SocketOverflow, grown);
        let mut overflows = self.overflows.borrow_mut();
        match overflows.iter_mut().find(|(name, _)| *name == socket) {
            Some((_, sum)) => *sum += grown,
            None => overflows.push((socket, grown)),
        }
    }

    /// Packets for a media port of ours that belong to nobody.
    pub(crate) fn count_strangers(&self, packets: u64) {
        self.drops.borrow_mut().count(DropReason::UnknownSource, packets);
    }

    fn stream(&self, stream: StreamId) -> Option<Rc<RefCell<Stream>>> {
        self.streams.borrow().get(&stream).cloned()
    }

    /// RTP frames of one track came in on a connection. Returns how many were not admitted.
    pub(crate) fn handle_frames(&self, stream: StreamId, track: TrackId, frames: &mut Vec<Bytes>) -> u32 {
        let Some(stream) = self.stream(stream) else {
            frames.clear();
            return 0;
        };
        let mut refused = 0;
        let now = Instant::now();
        while !frames.is_empty() {
            let mut io = self.io.borrow_mut();
            io.take_frames(frames);
            refused += stream.borrow_mut().handle_packets(now, track, &mut io, self);
        }
        refused
    }

    pub(crate) fn handle_input_rtcp(&self, stream: StreamId, track: TrackId, compound: &[u8]) -> bool {
        let Some(stream) = self.stream(stream) else { return true };
        stream.borrow_mut().handle_rtcp(Instant::now(), track, compound, &mut self.io.borrow_mut(), self)
    }

    pub(crate) fn handle_leg_rtcp(
        &self,
        stream: StreamId,
        leg: LegId,
        track: TrackId,
        compound: &[u8],
    ) -> bool {
        let Some(stream) = self.stream(stream) else { return true };
        stream.borrow_mut().handle_leg_rtcp(
            Instant::now(),
            leg,
            track,
            compound,
            &mut self.io.borrow_mut(),
            self,
        )
    }

    /// RTP frames of one track came in on a connection, for a stream here or on worker `guest`. Returns how
    /// many were not admitted, as far as that is known here.
    pub(crate) fn route_frames(
        &self,
        guest: Option<usize>,
        stream: StreamId,
        track: TrackId,
        frames: &mut Vec<Bytes>,
    ) -> u32 {
        let Some(worker) = guest else { return self.handle_frames(stream, track, frames) };
        let frames = std::mem::take(frames);
        let packets = frames.len() as u64;
        self.forward(worker, packets, Command::Frames { stream, track, frames });
        0
    }

    /// RTCP of an input, likewise. Returns whether it was RTCP.
    pub(crate) fn route_input_rtcp(
        &self,
        guest: Option<usize>,
        stream: StreamId,
        track: TrackId,
        compound: Bytes,
    ) -> bool {
        let Some(worker) = guest else { return self.handle_input_rtcp(stream, track, &compound) };
        self.forward(worker, 1, Command::InputRtcp { stream, track, compound });
        true
    }

    /// RTCP of a leg, likewise.
    pub(crate) fn route_leg_rtcp(
        &self,
        guest: Option<usize>,
        stream: StreamId,
        leg: LegId,
        track: TrackId,
        compound: Bytes,
    ) -> bool {
        let Some(worker) = guest else { return self.handle_leg_rtcp(stream, leg, track, &compound) };
        self.forward(worker, 1, Command::LegRtcp { stream, leg, track, compound });
        true
    }

    /// Hands packets to another worker; what it has no room for is dropped and counted.
    fn forward(&self, worker: usize, packets: u64, command: Command) {
        if !self.workers.get(worker).is_some_and(|handle| handle.forward(command)) {
            self.drops.borrow_mut().count(DropReason::QueueFull, packets);
        }
    }

    /// Frames of other workers' streams that a connection here did not take.
    pub(crate) fn count_guest_drops(&self, pushed: &Pushed) {
        let mut drops = self.drops.borrow_mut();
        drops.count(DropReason::QueueFull, pushed.full);
        drops.count(DropReason::Mtu, pushed.too_long);
    }

    /// A connection is about to end: what it counted goes on counting.
    pub(crate) fn keep_counters(&self, slot: &ConnSlot) {
        self.late_frames.set(self.late_frames.get() + slot.late());
        self.guests_dropped.set(self.guests_dropped.get() + slot.guest_depth().1);
    }

    /// A connection has ended; its owners hear of it from the session logic.
    pub(crate) fn forget_conn(&self, slot: &ConnSlot) {
        self.conns.borrow_mut().remove(&slot.id);
    }

    /// The place of a connection, made before it arrives if need be.
    fn slot(&self, conn: ConnId) -> Rc<ConnSlot> {
        self.conns.borrow_mut().entry(conn).or_insert_with(|| Rc::new(ConnSlot::new(conn))).clone()
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Apply { steps, answer } => {
                let result = steps.into_iter().try_for_each(|step| self.apply(step));
                let (stopping, shared) = (self.take_stopping(), self.clone());
                // Tasks that were ended close their sockets at their next turn, which comes before this one:
                // when the answer is there, ports that were given up can be opened again.
                tokio::task::spawn_local(async move {
                    tokio::task::yield_now().await;
                    // A viewer that is told that it is paused gets nothing more.
                    shared.await_stops(stopping).await;
                    let _ = answer.send(result);
                });
            }
            Command::LegStates { stream, leg, answer } => {
                let states = self
                    .stream(stream)
                    .map(|stream| stream.borrow_mut().leg_states(leg, |out| self.ports_of(out)));
                let _ = answer.send(states.unwrap_or_default());
            }
            Command::Arm { stream, leg, wait, answer } => {
                if let Some(stream) = self.stream(stream) {
                    stream.borrow_mut().arm(Instant::now(), leg, wait, answer, self);
                }
            }
            Command::AdoptConn(parts, answer) => {
                let slot = self.slot(parts.id);
                tokio::task::spawn_local(run_on_worker(parts, slot, self.clone()));
                let _ = answer.send(Ok(()));
            }
            Command::PlayerPeer { addr, peer, gone } => self.note_peer(addr, peer, gone),
            Command::LegRtcp { stream, leg, track, compound } => {
                self.handle_leg_rtcp(stream, leg, track, &compound);
            }
            Command::Frames { stream, track, mut frames } => {
                self.handle_frames(stream, track, &mut frames);
            }
            Command::InputRtcp { stream, track, compound } => {
                self.handle_input_rtcp(stream, track, &compound);
            }
            Command::PlayerUnreachable { stream, leg } => {
                if let Some(stream) = self.stream(stream) {
                    stream.borrow_mut().handle_unreachable(leg, self);
                }
            }
            Command::AskRung(rung) => self.ask_rung(rung),
            Command::Snapshot(answer) => {
                let _ = answer.send(self.snapshot());
            }
            Command::Freeze(_) | Command::Stop => {}
        }
    }

    fn ports_of(&self, out: &LegOut) -> Option<PortPair> {
        match &out.way {
            Way::Udp { rtp, .. } => self.players.towards(rtp.addr()).map(|pair| pair.ports),
            Way::Channels { .. } => None,
        }
    }

    fn tick(&self, second: bool) {
        let now = Instant::now();
        self.flush_backlog();
        self.flush_asks();
        let streams: Vec<_> = self.streams.borrow().values().cloned().collect();
        for stream in streams {
            stream.borrow_mut().tick(now, &mut self.io.borrow_mut(), self);
        }
        if second {
            self.count_overflows();
        }
        if second && self.index == 0 {
            self.take_errors();
        }
    }

    /// Reads the drop counters of every socket that this worker receives on. They are asked for once a second
    /// and when somebody looks: with each packet (`SO_RXQ_OVFL`) they would cost every packet.
    fn count_overflows(&self) {
        for pair in self.pairs.borrow().values() {
            pair.count_overflows(self);
        }
        if self.index == 0 {
            let [rtp4, rtcp4, rtp6, rtcp6] = &self.player_overflow;
            for (pair, rtp, rtcp) in [(&self.players.v4, rtp4, rtcp4), (&self.players.v6, rtp6, rtcp6)] {
                if let Some(pair) = pair {
                    // RTP-1: punches are counted and teach nothing. The socket keeps nothing, so what it
                    // dropped is what came.
                    self.drops.borrow_mut().count(DropReason::NoFlow, udp::dropped_since(&*pair.rtp, rtp));
                    self.count_overflow(&*pair.rtcp, rtcp, "player_rtcp");
                }
            }
        }
    }
}

/// What a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Rtp,
    Rtcp,
}

#[cfg(test)]
mod tests;
