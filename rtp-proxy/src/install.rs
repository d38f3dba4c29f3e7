//! The one executor of [`FlowChange`]s.
//!
//! Owns what is known of rows, legs and connections of this node, opens the sockets a change needs, hands
//! the steps to the workers in order and undoes them in reverse when one fails. Lives on the control
//! thread. Planning and queueing happen in the call, so operations take effect in the order of the calls;
//! the returned future waits for the acknowledgement only.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use msm_control_plane::event::{ConnEnd, OpError};
use msm_graph::{
    ConnId, Encap, Epoch, InputRow, InputState, LegEncap, LegId, LegOp, LegSpec, LegState, Row, RowOp,
    RowState, StreamId, TrackId,
};
use msm_rtsp::conn::{ConnLimits, Role};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::plan::{self, FlowChange};
use crate::user::input_pair::PairId;
use crate::user::tcp::{self, ConnHandle, ConnSlot, GuestQueue};
use crate::user::worker::{Command, Step, WorkerHandle};
use crate::user::{UserEvent, WorkerConfig};

pub(crate) mod inventory;
mod ports;
mod undo;

use ports::KnownPair;
use undo::{Opened, Pending};

/// Longest wait for a worker or a connection to acknowledge, beyond what the operation itself may take.
const ACK: Duration = Duration::from_secs(5);

/// A row in force.
#[derive(Debug)]
struct KnownStream {
    row: Row,
    worker: usize,
    /// It never had an input or a leg: nothing is lost if another worker gets it.
    unused: bool,
    /// The pair that each UDP input is received on.
    pairs: HashMap<TrackId, PairId>,
}

#[derive(Debug)]
struct KnownConn {
    handle: ConnHandle,
    peer: Option<SocketAddr>,
    /// The worker it was sent to, once a channel was bound.
    home: Option<usize>,
    /// The way to it for streams of other workers, once there was one.
    guests: Option<GuestQueue>,
    /// The connection itself, as long as it lives on the control thread.
    slot: Weak<ConnSlot>,
}

#[derive(Debug)]
struct State {
    config: WorkerConfig,
    workers: Vec<WorkerHandle>,
    events: mpsc::Sender<UserEvent>,
    epoch: Epoch,
    streams: HashMap<StreamId, KnownStream>,
    legs: HashMap<LegId, LegSpec>,
    conns: HashMap<ConnId, KnownConn>,
    pairs: Vec<KnownPair>,
    next_pair: u64,
    /// Where to look for the next free pair of ports.
    cursor: usize,
    buffer_warned: bool,
}

/// Executes row and leg operations. Cheap to clone; all clones are the same executor.
#[derive(Debug, Clone)]
pub struct Installer(Rc<RefCell<State>>);

impl Installer {
    pub(crate) fn new(
        workers: Vec<WorkerHandle>,
        config: WorkerConfig,
        events: mpsc::Sender<UserEvent>,
    ) -> Self {
        Self(Rc::new(RefCell::new(State {
            config,
            workers,
            events,
            epoch: Epoch::default(),
            streams: HashMap::new(),
            legs: HashMap::new(),
            conns: HashMap::new(),
            pairs: Vec::new(),
            next_pair: 0,
            cursor: 0,
            buffer_warned: false,
        })))
    }

    /// Drives a connection that was just accepted or dialled. To be called within a `LocalSet` on the
    /// control thread. A socket that is dead already ends with the usual [`UserEvent::Closed`].
    pub fn spawn_conn(
        &self,
        stream: TcpStream,
        id: ConnId,
        role: Role,
        limits: Arc<ConnLimits>,
    ) -> ConnHandle {
        let events = self.0.borrow().events.clone();
        let peer = stream.peer_addr().ok().map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
        let (handle, parts) = tcp::assemble(stream, id, role, limits, events.clone());
        let slot = Rc::new(ConnSlot::new(id));
        let known =
            KnownConn { handle: handle.clone(), peer, home: None, guests: None, slot: Rc::downgrade(&slot) };
        self.0.borrow_mut().conns.insert(id, known);
        match parts {
            Ok(parts) => tokio::task::spawn_local(tcp::run_on_control(parts, slot)),
            Err(error) => tokio::task::spawn_local(async move {
                let end = ConnEnd::Io(error.to_string());
                let _ = events.send(UserEvent::Closed { conn: id, end }).await;
            }),
        };
        handle
    }

    /// The way to a connection that has not been forgotten.
    pub fn conn(&self, id: ConnId) -> Option<ConnHandle> {
        self.0.borrow().conns.get(&id).map(|known| known.handle.clone())
    }

    /// Forgets a connection after [`UserEvent::Closed`].
    pub fn forget_conn(&self, id: ConnId) {
        self.0.borrow_mut().conns.remove(&id);
    }

    /// Makes a row so. Steps are queued when this returns; the future waits for them.
    ///
    /// # Errors
    /// (of the future) [`OpError::StaleEpoch`]; [`OpError::Exhausted`] when no port pair is left;
    /// [`OpError::NotFound`] when a connection it names is gone; [`OpError::Io`] with the system's words.
    /// What was opened for it has been closed again.
    pub fn submit_row(&self, op: RowOp) -> impl Future<Output = Result<RowState, OpError>> + use<> {
        let submitted = self.0.borrow_mut().submit_row(op);
        let this = self.clone();
        async move {
            let RowSubmitted { pending, stream, opened } = submitted?;
            let result = pending.settle().await;
            let mut state = this.0.borrow_mut();
            if let Err(error) = result {
                state.take_back_row(stream, opened);
                return Err(error);
            }
            Ok(state.row_state(stream))
        }
    }

    /// Makes a leg so. Steps are queued when this returns; the future waits for them, of an arm for its
    /// first packets.
    ///
    /// # Errors
    /// (of the future) [`OpError::NotFound`] when the leg, its stream or its connection is gone;
    /// [`OpError::Io`] and [`OpError::Exhausted`] as for rows.
    pub fn submit_leg(&self, op: LegOp) -> impl Future<Output = Result<LegState, OpError>> + use<> {
        let submitted = self.0.borrow_mut().submit_leg(&op);
        let this = self.clone();
        async move {
            let gone = || OpError::Io("the worker has ended".to_owned());
            match submitted? {
                Submitted::Attached { pending, worker, before, undo, states } => {
                    let result = match pending.settle().await {
                        Ok(()) => {
                            let states = tokio::time::timeout(ACK, states).await;
                            states.ok().and_then(Result::ok).map(LegState::Attached).ok_or_else(gone)
                        }
                        Err(error) => Err(error),
                    };
                    if result.is_err()
                        && let LegOp::Attach(spec) = &op
                    {
                        this.0.borrow_mut().take_back_leg(worker, spec, before, undo);
                    }
                    result
                }
                Submitted::Armed { stream, worker, wait, starts } => {
                    let leg = op.leg();
                    match tokio::time::timeout(wait + ACK, starts).await {
                        Ok(Ok(starts)) => return Ok(LegState::Armed(starts)),
                        // The worker answers in time, unless the leg goes meanwhile or another arm comes.
                        Ok(Err(_)) => {}
                        // It may still get to it: no gate opens for a viewer who was told that none does.
                        Err(_) => this.0.borrow().give_back(worker, vec![Step::PauseLeg { stream, leg }]),
                    }
                    Err(OpError::NotFound(format!("leg {leg}")))
                }
                Submitted::Paused(pending) => pending.settle().await.map(|()| LegState::Paused),
                Submitted::Detached(pending) => pending.settle().await.map(|()| LegState::Detached),
            }
        }
    }
}

enum Submitted {
    Attached {
        pending: Pending,
        worker: usize,
        before: Option<LegSpec>,
        /// What to send if it fails.
        undo: Vec<Step>,
        states: oneshot::Receiver<Vec<msm_graph::LegTrackState>>,
    },
    Armed {
        stream: StreamId,
        worker: usize,
        wait: Duration,
        starts: oneshot::Receiver<Vec<msm_graph::LegStart>>,
    },
    Paused(Pending),
    Detached(Pending),
}

struct RowSubmitted {
    pending: Pending,
    stream: StreamId,
    opened: Opened,
}

impl State {
    fn submit_row(&mut self, op: RowOp) -> Result<RowSubmitted, OpError> {
        let (RowOp::Upsert(epoch, _) | RowOp::Remove(epoch, _)) = &op;
        if *epoch < self.epoch {
            return Err(OpError::StaleEpoch);
        }
        self.epoch = *epoch;
        let row = match op {
            RowOp::Upsert(_, row) => row,
            RowOp::Remove(_, stream) => return self.remove_row(stream),
        };
        let stream = row.stream;
        let changes = plan::plan_row(self.streams.get(&stream).map(|known| &known.row), &row);
        self.check_conns(&changes)?;
        let mut pending = Pending::default();
        self.replace(stream, &changes, &mut pending)?;
        let known = self.streams.get(&stream);
        let worker = match known {
            Some(known) => known.worker,
            None => self.place(&changes),
        };
        let unused = known.is_none_or(|known| known.unused) && row.inputs.is_empty();
        // Everything that can fail here is done before the first step is queued.
        let homes = self.homeless(&changes);
        let mut pairs = known.map(|known| known.pairs.clone()).unwrap_or_default();
        let old_row = known.map(|known| known.row.clone());
        let mut opened = Opened { stream: known.is_none(), inputs: Vec::new() };
        let mut released = Vec::new();
        let mut acquired = Vec::new();
        let mut steps = Vec::with_capacity(changes.len());
        for change in &changes {
            if let FlowChange::CloseInput { track, .. }
            | FlowChange::OpenInput { input: InputRow { track, .. }, .. } = change
                && let Some(pair) = pairs.remove(track)
            {
                released.push((pair, peer_of(old_row.as_ref(), *track)));
            }
            if let FlowChange::OpenInput { input, .. } = change {
                let (step, pair) = match self.open_input(stream, worker, input.clone()) {
                    Ok(taken) => taken,
                    Err(error) => {
                        self.release_all(acquired);
                        return Err(error);
                    }
                };
                opened.inputs.push(input.clone());
                if let Some((pair, peer)) = pair {
                    pairs.insert(input.track, pair);
                    acquired.push((pair, Some(peer)));
                }
                steps.push(step);
            } else if let Some(step) = self.step_of(stream, worker, change.clone()) {
                steps.push(step);
            }
        }
        if let Err(error) = self.apply(worker, steps, &mut pending) {
            // Nothing has been queued: the sockets went with the steps, what is known of them goes here.
            self.release_all(acquired);
            return Err(error);
        }
        self.relocate(homes, worker, &mut pending);
        self.release_all(released);
        self.streams.insert(stream, KnownStream { row, worker, unused, pairs });
        Ok(RowSubmitted { pending, stream, opened })
    }

    fn remove_row(&mut self, stream: StreamId) -> Result<RowSubmitted, OpError> {
        let mut pending = Pending::default();
        if let Some(known) = self.streams.remove(&stream) {
            let uses = known.pairs.iter().map(|(track, pair)| (*pair, peer_of(Some(&known.row), *track)));
            self.release_all(uses.collect());
            self.legs.retain(|_, spec| spec.stream != stream);
            self.apply(known.worker, vec![Step::CloseStream(stream)], &mut pending)?;
        }
        Ok(RowSubmitted { pending, stream, opened: Opened::default() })
    }

    fn row_state(&self, stream: StreamId) -> RowState {
        let Some(known) = self.streams.get(&stream) else { return RowState::default() };
        let state = |input: &InputRow| InputState {
            track: input.track,
            local: known
                .pairs
                .get(&input.track)
                .and_then(|id| self.pairs.iter().find(|pair| pair.id == *id).map(|pair| pair.ports)),
        };
        RowState { inputs: known.row.inputs.iter().map(state).collect() }
    }

    fn submit_leg(&mut self, op: &LegOp) -> Result<Submitted, OpError> {
        let leg = op.leg();
        let known = self.legs.get(&leg);
        let changes = plan::plan_leg(known, op)?;
        let stream = match (op, known) {
            (LegOp::Attach(spec), _) => spec.stream,
            (_, Some(known)) => known.stream,
            (_, None) => return Ok(Submitted::Detached(Pending::default())),
        };
        self.check_conns(&changes)?;
        let mut pending = Pending::default();
        self.replace(stream, &changes, &mut pending)?;
        let Some(known) = self.streams.get_mut(&stream) else {
            return Err(OpError::NotFound(format!("stream {stream}")));
        };
        known.unused = false;
        let worker = known.worker;
        let homes = self.homeless(&changes);
        if let LegOp::Arm { wait_millis, .. } = op {
            let wait = Duration::from_millis(u64::from(*wait_millis));
            let (answer, starts) = oneshot::channel();
            self.command(worker, Command::Arm { stream, leg, wait, answer })?;
            return Ok(Submitted::Armed { stream, worker, wait, starts });
        }
        let mut steps_of = |changes: Vec<FlowChange>| -> Vec<Step> {
            changes.into_iter().filter_map(|change| self.step_of(stream, worker, change)).collect()
        };
        let undo = steps_of(plan::undo(&changes));
        let steps = steps_of(changes);
        if matches!(op, LegOp::Detach { .. }) {
            self.legs.remove(&leg);
        }
        self.apply(worker, steps, &mut pending)?;
        self.relocate(homes, worker, &mut pending);
        match op {
            LegOp::Attach(spec) => {
                let before = self.legs.insert(leg, spec.clone());
                let (answer, states) = oneshot::channel();
                // It opens nothing, and what was queued before it is known to stand by its answer.
                self.deliver(worker, Command::LegStates { stream, leg, answer });
                Ok(Submitted::Attached { pending, worker, before, undo, states })
            }
            LegOp::Detach { .. } => Ok(Submitted::Detached(pending)),
            LegOp::Arm { .. } | LegOp::Pause { .. } => Ok(Submitted::Paused(pending)),
        }
    }

    /// The worker where a connection of these changes lives already.
    fn home_of(&self, changes: &[FlowChange]) -> Option<usize> {
        plan::connections(changes).into_iter().find_map(|conn| self.conns.get(&conn)?.home)
    }

    /// The worker of a new stream: where its connection lives already, else the one with fewest streams.
    fn place(&self, changes: &[FlowChange]) -> usize {
        self.home_of(changes).unwrap_or_else(|| {
            (0..self.workers.len())
                .min_by_key(|worker| self.streams.values().filter(|known| known.worker == *worker).count())
                .unwrap_or(0)
        })
    }

    /// Gives a stream that was never used to the worker where its first connection lives, so that frames
    /// need not cross threads.
    fn replace(
        &mut self,
        stream: StreamId,
        changes: &[FlowChange],
        pending: &mut Pending,
    ) -> Result<(), OpError> {
        let Some(home) = self.home_of(changes) else { return Ok(()) };
        let Some(known) = self.streams.get(&stream) else { return Ok(()) };
        if known.worker == home || !known.unused {
            return Ok(());
        }
        let (old, row) = (known.worker, known.row.clone());
        self.apply(home, vec![Step::OpenStream(stream), Step::Describe(row)], pending)?;
        if let Some(known) = self.streams.get_mut(&stream) {
            known.worker = home;
        }
        self.apply(old, vec![Step::CloseStream(stream)], pending)
    }

    /// Whether the connections of these changes are there.
    fn check_conns(&self, changes: &[FlowChange]) -> Result<(), OpError> {
        for conn in plan::connections(changes) {
            if self.conns.get(&conn).is_none_or(|known| known.handle.is_closed()) {
                return Err(OpError::NotFound(format!("connection {conn}")));
            }
        }
        Ok(())
    }

    /// Connections of these changes that no worker has yet.
    fn homeless(&self, changes: &[FlowChange]) -> Vec<ConnId> {
        let mut conns = plan::connections(changes);
        conns.retain(|conn| self.conns.get(conn).is_some_and(|known| known.home.is_none()));
        conns
    }

    /// The way to a connection for a stream of `worker`; `None` if it lives there or will.
    fn guest_of(&mut self, conn: ConnId, worker: usize) -> Option<GuestQueue> {
        let known = self.conns.get_mut(&conn)?;
        known.home.filter(|home| *home != worker)?;
        Some(known.guests.get_or_insert_with(|| known.handle.admit_guests()).clone())
    }

    fn relocate(&mut self, conns: Vec<ConnId>, worker: usize, pending: &mut Pending) {
        let Some(handle) = self.workers.get(worker).cloned() else { return };
        for conn in conns {
            if let Some(known) = self.conns.get_mut(&conn) {
                known.home = Some(worker);
                pending.moved.push(known.handle.relocate(handle.clone()));
            }
        }
    }

    fn command(&self, worker: usize, command: Command) -> Result<(), OpError> {
        match self.workers.get(worker) {
            Some(handle) => handle.send(command),
            None => Err(OpError::Io(format!("no worker data-{worker}"))),
        }
    }

    /// Queues a command that must not be lost; a dead worker has nothing to give back.
    fn deliver(&self, worker: usize, command: Command) {
        if let Some(handle) = self.workers.get(worker) {
            let _ = handle.deliver(command);
        }
    }

    /// Queues steps. A full queue refuses them all, but only if one of them opens something: then nothing has
    /// changed when this returns.
    fn apply(&self, worker: usize, steps: Vec<Step>, pending: &mut Pending) -> Result<(), OpError> {
        if steps.is_empty() {
            return Ok(());
        }
        let opens = steps.iter().any(Step::opens);
        let (answer, done) = oneshot::channel();
        let command = Command::Apply { steps, answer };
        if opens {
            self.command(worker, command)?;
        } else {
            self.deliver(worker, command);
        }
        pending.applied.push(done);
        Ok(())
    }

    /// The worker's step of a change; `None` for those that have a way of their own.
    fn step_of(&mut self, stream: StreamId, worker: usize, change: FlowChange) -> Option<Step> {
        Some(match change {
            FlowChange::OpenStream { stream } => Step::OpenStream(stream),
            FlowChange::Describe { row } => Step::Describe(row),
            FlowChange::RetargetInput { stream, input } => Step::RetargetInput { stream, input },
            FlowChange::CloseInput { stream, track } => Step::CloseInput { stream, track },
            FlowChange::CloseStream { stream } => Step::CloseStream(stream),
            FlowChange::OpenLeg { spec } => Step::OpenLeg(spec),
            FlowChange::OpenLegTrack { leg, track } => {
                let guest = match track.encap {
                    LegEncap::Interleaved { conn, .. } => self.guest_of(conn, worker),
                    LegEncap::Udp { .. } => None,
                };
                Step::OpenLegTrack { stream, leg, track, guest }
            }
            FlowChange::CloseLegTrack { leg, track } => {
                Step::CloseLegTrack { stream, leg, track: track.track }
            }
            FlowChange::PauseLeg { leg } => Step::PauseLeg { stream, leg },
            FlowChange::CloseLeg { leg, bye } => Step::CloseLeg { stream, leg, bye },
            FlowChange::OpenInput { .. } | FlowChange::ArmLeg { .. } => return None,
        })
    }
}

fn udp_peer(input: &InputRow) -> Option<IpAddr> {
    match input.encap {
        Encap::Udp { peer, .. } => Some(peer.to_canonical()),
        Encap::Interleaved { .. } => None,
    }
}

fn peer_of(row: Option<&Row>, track: TrackId) -> Option<IpAddr> {
    row?.inputs.iter().find(|input| input.track == track).and_then(udp_peer)
}

#[cfg(test)]
mod tests;
