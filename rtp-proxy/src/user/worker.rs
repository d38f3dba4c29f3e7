//! One pinned data thread: a current-thread runtime, the streams it owns and their sockets.
//!
//! Owns the state of its streams, the loop that takes commands, and the tasks that receive. Nothing here
//! is shared with another thread but bounded channels and the sockets that viewers are served from.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use msm_control_plane::event::OpError;
use msm_fastpath::DropReason;
use msm_graph::{
    ConnId, Encap, InputRow, LegEncap, LegId, LegSpec, LegStart, LegTrack as LegTrackRow, LegTrackState,
    PortPair, Report, Row, StreamId, TrackId,
};
use msm_media::{LegConfig, LegTrack, PeerLock, ResumePolicy};
use tokio::sync::{mpsc, oneshot};

use super::input_pair::{InputPair, PairId};
use super::io_buffers::IoBuffers;
use super::leg::{Drops, GateState, LegOut, Way};
use super::stream::{Entry, Input, Stream};
use super::tcp::{ChannelOwner, ConnParts, ConnSlot, run_on_worker};
use super::udp::{self, Bound, Destination};
use super::{PlayerPair, PlayerSockets, UserEvent};
use crate::stats::{QueueStats, Snapshot, SocketStats, ThreadStats};

/// Commands waiting for one worker.
const COMMANDS: usize = 1024;
/// Reports waiting for the control thread when its channel is full.
const BACKLOG: usize = 4096;
/// How often time is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Full batches of one socket before others get a turn.
const BATCHES: usize = 4;
/// Packets of one socket that come sooner after one another than this are a burst (voice is not, nor are
/// 10,000 even packets per second).
const BURST_GAP: Duration = Duration::from_micros(40);
/// A batch of more packets is a burst that came whole.
const BURST: usize = 24;
/// How long a burst is waited for: 32 packets of one `sendmmsg` over loopback, 40 of 1,200 bytes at line
/// rate of a gigabit take less than twice that.
const PAUSE: Duration = Duration::from_micros(50);
/// Least time between two pauses of a worker.
const PAUSE_EVERY: Duration = Duration::from_micros(250);
/// How long video may wait for a key frame after a splice (RTP-6).
const RESUME_WAIT: Duration = Duration::from_secs(2);

/// A step of a row or leg operation, with everything it needs opened already.
#[derive(Debug)]
pub(crate) enum Step {
    OpenStream(StreamId),
    Describe(Row),
    OpenUdpInput { stream: StreamId, input: InputRow, pair: PairId, bound: Option<(Bound, Bound)> },
    OpenChannelInput { stream: StreamId, input: InputRow, peer: Option<SocketAddr> },
    RetargetInput { stream: StreamId, input: InputRow },
    CloseInput { stream: StreamId, track: TrackId },
    CloseStream(StreamId),
    OpenLeg(LegSpec),
    OpenLegTrack { stream: StreamId, leg: LegId, track: LegTrackRow },
    CloseLegTrack { stream: StreamId, leg: LegId, track: TrackId },
    PauseLeg { stream: StreamId, leg: LegId },
    CloseLeg { stream: StreamId, leg: LegId, bye: bool },
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Steps in order; those before a failed one stand and are undone by the executor.
    Apply {
        steps: Vec<Step>,
        answer: oneshot::Sender<Result<(), OpError>>,
    },
    /// State of an attached leg.
    LegStates {
        stream: StreamId,
        leg: LegId,
        answer: oneshot::Sender<Vec<LegTrackState>>,
    },
    Arm {
        stream: StreamId,
        leg: LegId,
        wait: Duration,
        answer: oneshot::Sender<Vec<LegStart>>,
    },
    AdoptConn(Box<ConnParts>, oneshot::Sender<Result<(), OpError>>),
    /// To the worker that reads the sockets of all viewers: an address of a leg, or its end.
    PlayerPeer {
        addr: SocketAddr,
        to: Option<PlayerPeer>,
    },
    /// From that worker: RTCP of a leg that lives here.
    PlayerRtcp {
        stream: StreamId,
        leg: LegId,
        track: TrackId,
        compound: Bytes,
    },
    /// From that worker: nobody listens at a leg's address.
    PlayerUnreachable {
        stream: StreamId,
        leg: LegId,
    },
    Snapshot(oneshot::Sender<Snapshot>),
    Stop,
}

/// Whose address it is that a datagram came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlayerPeer {
    pub(crate) worker: usize,
    pub(crate) stream: StreamId,
    pub(crate) leg: LegId,
    pub(crate) track: TrackId,
}

/// The way to a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerHandle {
    pub(crate) index: usize,
    commands: mpsc::Sender<Command>,
    refused: Arc<AtomicUsize>,
}

impl WorkerHandle {
    pub(crate) fn new(index: usize) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        (Self { index, commands, refused: Arc::default() }, receiver)
    }

    /// Queues a command; a full queue or a dead worker refuses it.
    pub(crate) fn send(&self, command: Command) -> Result<(), OpError> {
        self.commands.try_send(command).map_err(|error| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => {
                    OpError::Exhausted(format!("command queue of data-{}", self.index))
                }
                mpsc::error::TrySendError::Closed(_) => OpError::Io(format!("data-{} has ended", self.index)),
            }
        })
    }

    fn depth(&self) -> u64 {
        (self.commands.max_capacity() - self.commands.capacity()) as u64
    }
}

/// What a worker starts with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) index: usize,
    pub(crate) core: Option<usize>,
    pub(crate) players: PlayerSockets,
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) events: mpsc::Sender<UserEvent>,
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
    legs: RefCell<HashMap<LegId, StreamId>>,
    conns: RefCell<HashMap<ConnId, Rc<ConnSlot>>>,
    peers: RefCell<HashMap<SocketAddr, PlayerPeer>>,
    pairs: RefCell<HashMap<PairId, Rc<InputPair>>>,
    drops: RefCell<Drops>,
    overflows: RefCell<Vec<(&'static str, u64)>>,
    late_frames: RefCell<u64>,
    /// When this worker last waited for a burst.
    paused: Cell<Option<Instant>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Runs a worker until it is told to stop.
pub(crate) fn run(start: Start, commands: mpsc::Receiver<Command>) {
    if let Some(core) = start.core {
        let mut set = nix::sched::CpuSet::new();
        // A container may not let us choose: then the scheduler does.
        if set.set(core).is_ok() {
            let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
        }
    }
    // The pauses below are as short as they say.
    let _ = nix::sys::prctl::set_timerslack(1);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(event = "worker.failed", worker = start.index, %error);
            return;
        }
    };
    let local = tokio::task::LocalSet::new();
    // A task of its own: the future that a `LocalSet` runs until its end is polled at every wake-up, and
    // this one has nothing to do with packets.
    runtime.block_on(local.run_until(async move {
        let _ = tokio::task::spawn_local(serve(start, commands)).await;
    }));
}

async fn serve(start: Start, mut commands: mpsc::Receiver<Command>) {
    let shared = Rc::new(Shared {
        index: start.index,
        players: start.players,
        workers: start.workers,
        events: start.events,
        backlog: RefCell::default(),
        backlog_dropped: RefCell::default(),
        io: RefCell::new(IoBuffers::new()),
        streams: RefCell::default(),
        legs: RefCell::default(),
        conns: RefCell::default(),
        peers: RefCell::default(),
        pairs: RefCell::default(),
        drops: RefCell::default(),
        overflows: RefCell::default(),
        late_frames: RefCell::default(),
        paused: Cell::default(),
    });
    if shared.index == 0 {
        for pair in [&shared.players.v4, &shared.players.v6].into_iter().flatten() {
            shared.clone().serve_players(pair);
        }
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks = 0u64;
    loop {
        let idle = shared.streams.borrow().is_empty();
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                None | Some(Command::Stop) => break,
                Some(command) => shared.obey(command),
            },
            _ = tick.tick(), if !idle => {
                ticks += 1;
                shared.tick(ticks.is_multiple_of(10));
            }
        }
    }
    // Sockets are closed by dropping the streams; connections end with the runtime.
    shared.streams.borrow_mut().clear();
}

impl Shared {
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
    pub(crate) fn count_overflow(&self, last: &mut u32, now: u32, socket: &'static str) {
        let grown = u64::from(now.wrapping_sub(*last));
        *last = now;
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

    /// RTP from a viewer that plays (RTSP-45).
    pub(crate) fn count_viewer_rtp(&self, _leg: LegId) {
        self.drops.borrow_mut().count(DropReason::Policy, 1);
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
                // Tasks that were ended close their sockets at their next turn, which comes before this one:
                // when the answer is there, ports that were given up can be opened again.
                tokio::task::spawn_local(async move {
                    tokio::task::yield_now().await;
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
                    stream.borrow_mut().arm(Instant::now(), leg, wait, answer);
                }
            }
            Command::AdoptConn(parts, answer) => {
                let slot = self.slot(parts.id);
                tokio::task::spawn_local(run_on_worker(*parts, slot, self.clone()));
                let _ = answer.send(Ok(()));
            }
            Command::PlayerPeer { addr, to } => {
                let mut peers = self.peers.borrow_mut();
                match to {
                    Some(peer) => peers.insert(addr, peer),
                    None => peers.remove(&addr),
                };
            }
            Command::PlayerRtcp { stream, leg, track, compound } => {
                self.handle_leg_rtcp(stream, leg, track, &compound);
            }
            Command::PlayerUnreachable { stream, leg } => {
                if let Some(stream) = self.stream(stream) {
                    stream.borrow_mut().handle_unreachable(leg, self);
                }
            }
            Command::Snapshot(answer) => {
                let _ = answer.send(self.snapshot());
            }
            Command::Stop => {}
        }
    }

    fn ports_of(&self, out: &LegOut) -> Option<PortPair> {
        match &out.way {
            Way::Udp { rtp, .. } => self.players.towards(rtp.addr()).map(|pair| pair.ports),
            Way::Channels { .. } => None,
        }
    }

    fn apply(self: &Rc<Self>, step: Step) -> Result<(), OpError> {
        let now = Instant::now();
        let missing = |stream: StreamId| OpError::NotFound(format!("stream {stream}"));
        let find = |stream: StreamId| self.stream(stream).ok_or_else(|| missing(stream));
        match step {
            Step::OpenStream(stream) => {
                let new = || Rc::new(RefCell::new(Stream::new(stream)));
                self.streams.borrow_mut().entry(stream).or_insert_with(new);
            }
            Step::Describe(row) => {
                find(row.stream)?.borrow_mut().describe(now, row, &mut random_u32);
            }
            Step::OpenUdpInput { stream, input, pair, bound } => {
                let cell = find(stream)?;
                let entry =
                    self.open_udp(&cell, &input, pair, bound).map_err(|e| OpError::Io(e.to_string()))?;
                let old = cell.borrow_mut().set_input(now, input, entry);
                self.close_input(stream, old);
            }
            Step::OpenChannelInput { stream, input, peer } => {
                let cell = find(stream)?;
                let Encap::Interleaved { conn, rtp, rtcp } = input.encap else { return Ok(()) };
                let track = input.track;
                // Unbound first: the new input may use the very channels of the old one.
                let old = cell.borrow_mut().take_input(track);
                self.close_input(stream, old);
                let slot = self.slot(conn);
                let entry = Entry::Channels { slot: slot.clone(), rtcp, peer };
                cell.borrow_mut().set_input(now, input, entry);
                let mut early = slot.bind(rtp, ChannelOwner::InputRtp { stream, track });
                self.handle_frames(stream, track, &mut early);
                for compound in slot.bind(rtcp, ChannelOwner::InputRtcp { stream, track }) {
                    self.handle_input_rtcp(stream, track, &compound);
                }
            }
            Step::RetargetInput { stream, input } => find(stream)?.borrow_mut().retarget_input(now, input),
            Step::CloseInput { stream, track } => {
                if let Some(cell) = self.stream(stream) {
                    let old = cell.borrow_mut().take_input(track);
                    self.close_input(stream, old);
                }
            }
            Step::CloseStream(stream) => {
                let Some(cell) = self.stream(stream) else { return Ok(()) };
                let (legs, tracks): (Vec<_>, Vec<_>) = {
                    let cell = cell.borrow();
                    (cell.leg_ids(), cell.tracks.iter().map(|track| track.row.track).collect())
                };
                for leg in legs {
                    self.close_leg(stream, leg, true);
                }
                for track in tracks {
                    let old = cell.borrow_mut().take_input(track);
                    self.close_input(stream, old);
                }
                self.drops.borrow_mut().add(&cell.borrow().drops);
                self.streams.borrow_mut().remove(&stream);
            }
            Step::OpenLeg(spec) => {
                find(spec.stream)?.borrow_mut().open_leg(spec.leg, spec.session, spec.peer);
                self.legs.borrow_mut().insert(spec.leg, spec.stream);
            }
            Step::OpenLegTrack { stream, leg, track } => {
                let cell = find(stream)?;
                let out = self.open_leg_track(stream, leg, &track)?;
                if !cell.borrow_mut().open_leg_track(track.track, out) {
                    return Err(OpError::NotFound(format!("track {} of stream {stream}", track.track)));
                }
            }
            Step::CloseLegTrack { stream, leg, track } => self.close_leg_track(stream, leg, track, false),
            Step::PauseLeg { stream, leg } => find(stream)?.borrow_mut().pause(leg),
            Step::CloseLeg { stream, leg, bye } => self.close_leg(stream, leg, bye),
        }
        Ok(())
    }

    fn open_udp(
        self: &Rc<Self>,
        cell: &Rc<RefCell<Stream>>,
        input: &InputRow,
        id: PairId,
        bound: Option<(Bound, Bound)>,
    ) -> io::Result<Entry> {
        let Encap::Udp { peer, peer_rtp, peer_rtcp, .. } = input.encap else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let peer = peer.to_canonical();
        if let Some((rtp, rtcp)) = bound {
            let pair = InputPair::open(self.clone(), id, rtp, rtcp)?;
            self.pairs.borrow_mut().insert(id, pair);
        }
        let pair = self.pairs.borrow().get(&id).cloned().ok_or(io::ErrorKind::NotFound)?;
        pair.add_route(peer, Rc::downgrade(cell), input.track);
        let payload_types = {
            let mut stream = cell.borrow_mut();
            stream.track_mut(input.track).map(|track| track.row.payload_types.clone()).unwrap_or_default()
        };
        let lock = PeerLock::new(Instant::now(), peer, peer_rtp, &payload_types);
        Ok(Entry::Udp { pair, lock, peer, peer_rtcp })
    }

    /// Receives batches and has each handled. `WouldBlock` says that the socket is empty. With `pace`, a
    /// burst that is still arriving is waited for once, so that it leaves in few calls, not packet by
    /// packet as it came.
    pub(crate) fn receive(
        &self,
        socket: &impl AsRawFd,
        pace: Option<&Cell<Option<Instant>>>,
        mut handle: impl FnMut(Instant, &mut IoBuffers),
    ) -> io::Result<()> {
        for _ in 0..BATCHES {
            let mut io = self.io.borrow_mut();
            let emptied = match io.receive.recv(socket) {
                Ok(emptied) => emptied,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // An ICMP error of an earlier send: not the receiver's business.
                Err(_) => continue,
            };
            let now = Instant::now();
            let received = io.receive.datagrams().len();
            handle(now, &mut io);
            if !emptied {
                continue;
            }
            let Some(pace) = pace else { return Err(io::ErrorKind::WouldBlock.into()) };
            let in_burst =
                received > 1 || pace.get().is_some_and(|last| now.duration_since(last) < BURST_GAP);
            if !in_burst || received > BURST || !self.may_pause(now) {
                pace.set(Some(Instant::now()));
                return Err(io::ErrorKind::WouldBlock.into());
            }
            drop(io);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Pauses are few, whatever arrives: this thread serves other streams, too.
    fn may_pause(&self, now: Instant) -> bool {
        let may = self.paused.get().is_none_or(|last| now.duration_since(last) >= PAUSE_EVERY);
        if may {
            self.paused.set(Some(now));
        }
        may
    }

    fn close_input(&self, stream: StreamId, old: Option<Input>) {
        let Some(Input { row, entry, .. }) = old else { return };
        match entry {
            Entry::Udp { pair, peer, .. } => {
                if pair.remove_route(peer) {
                    self.pairs.borrow_mut().remove(&pair.id);
                }
            }
            Entry::Channels { slot, .. } => {
                slot.unbind(false, |owner| match owner {
                    ChannelOwner::InputRtp { stream: of, track }
                    | ChannelOwner::InputRtcp { stream: of, track } => *of == stream && *track == row.track,
                    _ => false,
                });
                self.forget_unused(&slot);
            }
        }
    }

    fn forget_unused(&self, slot: &ConnSlot) {
        if slot.is_unused() {
            self.conns.borrow_mut().remove(&slot.id);
        }
    }

    fn open_leg_track(&self, stream: StreamId, leg: LegId, track: &LegTrackRow) -> Result<LegOut, OpError> {
        let (way, interleaved) = match track.encap {
            LegEncap::Udp { rtp, rtcp, local } => {
                let [rtp, rtcp] = [rtp, rtcp].map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
                let pair = self.players.towards(rtp).ok_or_else(|| {
                    OpError::Io(format!("no player port is open in the address family of {rtp}"))
                })?;
                // RTSP-14: the viewer expects media from the address it reached us at.
                let local = local.to_canonical();
                let source = (udp::route_source(rtp) != Some(local) && local.is_ipv4() == rtp.is_ipv4())
                    .then_some(local);
                for addr in [rtp, rtcp] {
                    self.announce_peer(
                        addr,
                        Some(PlayerPeer { worker: self.index, stream, leg, track: track.track }),
                    );
                }
                let way = Way::Udp {
                    rtp_socket: udp::descriptor(&*pair.rtp),
                    rtcp_socket: udp::descriptor(&*pair.rtcp),
                    rtp: Destination::new(rtp, source),
                    rtcp: Destination::new(rtcp, source),
                    segmented: true,
                };
                (way, false)
            }
            LegEncap::Interleaved { conn, rtp, rtcp } => {
                let slot = self.slot(conn);
                slot.bind(rtp, ChannelOwner::LegRtp { leg });
                slot.bind(rtcp, ChannelOwner::LegRtcp { stream, leg, track: track.track });
                (Way::Channels { slot, rtp, rtcp }, true)
            }
        };
        let config = LegConfig {
            feedback: track.feedback,
            dedup: interleaved,
            circuit_breaker: !interleaved,
            resume: ResumePolicy::AtKeyFrame(RESUME_WAIT),
        };
        Ok(LegOut {
            leg,
            media: LegTrack::new(config),
            way,
            state: GateState::Disabled,
            report_due: false,
            packets: 0,
            bytes: 0,
            drops: Drops::default(),
        })
    }

    fn close_leg_track(&self, stream: StreamId, leg: LegId, track: TrackId, bye: bool) {
        let Some(cell) = self.stream(stream) else { return };
        let Some(mut out) = cell.borrow_mut().close_leg_track(leg, track) else { return };
        if bye {
            let mut compound = Vec::with_capacity(64);
            if out.media.write_bye(&mut compound) {
                out.send_rtcp(&compound, Instant::now());
            }
        }
        match &out.way {
            Way::Udp { rtp, rtcp, .. } => {
                for addr in [rtp.addr(), rtcp.addr()] {
                    self.announce_peer(addr, None);
                }
            }
            Way::Channels { slot, .. } => {
                slot.unbind(bye, |owner| match owner {
                    ChannelOwner::LegRtp { leg: of } => *of == leg,
                    ChannelOwner::LegRtcp { leg: of, track: on, .. } => *of == leg && *on == track,
                    _ => false,
                });
                self.forget_unused(slot);
            }
        }
    }

    fn close_leg(&self, stream: StreamId, leg: LegId, bye: bool) {
        let Some(cell) = self.stream(stream) else { return };
        let tracks = cell.borrow().leg_tracks(leg);
        for track in tracks {
            self.close_leg_track(stream, leg, track, bye);
        }
        cell.borrow_mut().close_leg(leg);
        self.legs.borrow_mut().remove(&leg);
    }

    fn announce_peer(&self, addr: SocketAddr, to: Option<PlayerPeer>) {
        if self.index == 0 {
            let mut peers = self.peers.borrow_mut();
            match to {
                Some(peer) => {
                    peers.insert(addr, peer);
                }
                None => {
                    peers.remove(&addr);
                }
            }
        } else if let Some(first) = self.workers.first() {
            let _ = first.send(Command::PlayerPeer { addr, to });
        }
    }

    /// Receives what viewers send to the pair that serves them.
    fn serve_players(self: Rc<Self>, pair: &PlayerPair) {
        for (socket, kind, name) in
            [(&pair.rtp, Kind::Rtp, "player_rtp"), (&pair.rtcp, Kind::Rtcp, "player_rtcp")]
        {
            let socket = socket.try_clone().and_then(udp::readable);
            let socket = match socket {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::error!(event = "worker.failed", worker = self.index, %error);
                    continue;
                }
            };
            let shared = self.clone();
            tokio::task::spawn_local(async move {
                let mut overflow = 0;
                while let Ok(mut ready) = socket.readable().await {
                    let _ = ready.try_io(|socket| {
                        shared.receive(socket.get_ref(), None, |_, io| {
                            if let Some(now) = io.receive.overflow() {
                                shared.count_overflow(&mut overflow, now, name);
                            }
                            match kind {
                                // RTP-1: punches are counted and teach nothing.
                                Kind::Rtp => {
                                    let packets = io.receive.datagrams().len() as u64;
                                    shared.drops.borrow_mut().count(DropReason::NoFlow, packets);
                                }
                                Kind::Rtcp => shared.clone().dispatch_rtcp(io),
                            }
                        })
                    });
                }
            });
        }
    }

    /// RTCP of viewers: told apart by address alone (RTP-2).
    fn dispatch_rtcp(self: Rc<Self>, io: &mut IoBuffers) {
        let datagrams = io.receive.datagrams().to_vec();
        for datagram in datagrams {
            let from = SocketAddr::new(datagram.from.ip().to_canonical(), datagram.from.port());
            let peer = self.peers.borrow().get(&from).copied();
            for piece in datagram.segments() {
                let Some(peer) = peer else {
                    self.drops.borrow_mut().count(DropReason::UnknownSource, 1);
                    continue;
                };
                let compound = io.receive.bytes().get(piece.range()).unwrap_or_default().to_vec();
                if peer.worker == self.index {
                    if let Some(stream) = self.stream(peer.stream) {
                        let now = Instant::now();
                        stream.borrow_mut().handle_leg_rtcp(now, peer.leg, peer.track, &compound, io, &self);
                    }
                } else if let Some(worker) = self.workers.get(peer.worker) {
                    let PlayerPeer { stream, leg, track, .. } = peer;
                    let _ =
                        worker.send(Command::PlayerRtcp { stream, leg, track, compound: compound.into() });
                }
            }
        }
    }

    fn tick(&self, second: bool) {
        let now = Instant::now();
        self.flush_backlog();
        let streams: Vec<_> = self.streams.borrow().values().cloned().collect();
        for stream in streams {
            stream.borrow_mut().tick(now, &mut self.io.borrow_mut(), self);
        }
        if second && self.index == 0 {
            self.take_errors();
        }
    }

    /// ICMP errors about viewers, each address once (SEC-28).
    fn take_errors(&self) {
        let mut refused = Vec::new();
        for pair in [&self.players.v4, &self.players.v6].into_iter().flatten() {
            for socket in [&pair.rtp, &pair.rtcp] {
                // The queue is bounded by the socket's receive buffer; so is this loop.
                for _ in 0..1024 {
                    let Some((addr, is_refused)) = udp::recv_error(socket) else { break };
                    if is_refused && !refused.contains(&addr) {
                        refused.push(addr);
                    }
                }
            }
        }
        let mut told = Vec::new();
        for addr in refused {
            let peer = self.peers.borrow().get(&addr).copied();
            let Some(peer) = peer.filter(|peer| !told.contains(&peer.leg)) else { continue };
            told.push(peer.leg);
            if peer.worker != self.index {
                if let Some(worker) = self.workers.get(peer.worker) {
                    let _ = worker.send(Command::PlayerUnreachable { stream: peer.stream, leg: peer.leg });
                }
            } else if let Some(stream) = self.stream(peer.stream) {
                stream.borrow_mut().handle_unreachable(peer.leg, self);
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let mut snapshot = Snapshot::default();
        let mut drops = *self.drops.borrow();
        let mut sockets: Vec<SocketStats> = Vec::new();
        let mut note = |socket: &'static str, receive_buffer: usize| {
            let receive_buffer = receive_buffer as u64;
            match sockets.iter_mut().find(|known| known.socket == socket) {
                Some(known) => known.receive_buffer = known.receive_buffer.min(receive_buffer),
                None => sockets.push(SocketStats { socket, receive_buffer, overflows: 0 }),
            }
        };
        if self.index == 0 {
            for pair in [&self.players.v4, &self.players.v6].into_iter().flatten() {
                note("player_rtp", pair.receive_buffer);
                note("player_rtcp", pair.receive_buffer);
            }
        }
        for pair in self.pairs.borrow().values() {
            note("input_rtp", pair.receive_buffer);
            note("input_rtcp", pair.receive_buffer);
        }
        for stream in self.streams.borrow().values() {
            let stream = stream.borrow();
            drops.add(&stream.all_drops());
            snapshot.streams.push(stream.stats(now));
        }
        for (name, overflows) in self.overflows.borrow().iter() {
            if let Some(socket) = sockets.iter_mut().find(|socket| socket.socket == *name) {
                socket.overflows = *overflows;
            }
        }
        snapshot.drops = drops.named();
        snapshot.sockets = sockets;
        let (mut depth, mut late) = (0, *self.late_frames.borrow());
        for slot in self.conns.borrow().values() {
            depth += slot.depth();
            late += slot.late();
        }
        let (commands, refused) = self
            .workers
            .get(self.index)
            .map_or((0, 0), |own| (own.depth(), own.refused.load(Ordering::Relaxed) as u64));
        snapshot.queues = vec![
            QueueStats { queue: "interleaved", depth, dropped: late },
            QueueStats { queue: "commands", depth: commands, dropped: refused },
            QueueStats {
                queue: "reports",
                depth: self.backlog.borrow().len() as u64,
                dropped: *self.backlog_dropped.borrow(),
            },
        ];
        snapshot.threads =
            vec![ThreadStats { thread: format!("data-{}", self.index), cpu: udp::thread_cpu() }];
        snapshot
    }
}

/// What a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Rtp,
    Rtcp,
}

/// An unpredictable SSRC (RFC 3550 section 8.1).
fn random_u32() -> u32 {
    getrandom::u32().unwrap_or_else(|_| {
        // Without a source of randomness an SSRC may be guessed, not more.
        Instant::now().elapsed().subsec_nanos() ^ std::process::id()
    })
}
