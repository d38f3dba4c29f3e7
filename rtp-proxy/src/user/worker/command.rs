//! What a worker is told, and the way to tell it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use msm_control_plane::event::OpError;
use msm_graph::{InputRow, LegId, LegSpec, LegStart, LegTrack, LegTrackState, Row, StreamId, TrackId};
use tokio::sync::{mpsc, oneshot};

use super::inventory::Freeze;
use crate::kernel::hop::Rung;
use crate::stats::Snapshot;
use crate::user::input_pair::PairId;
use crate::user::tcp::{ConnParts, GuestQueue};
use crate::user::udp::Bound;

/// Commands waiting for one worker before what opens something is refused.
pub(crate) const COMMANDS: usize = 1024;

/// A step of a row or leg operation, with everything it needs opened already.
#[derive(Debug)]
pub(crate) enum Step {
    OpenStream(StreamId),
    Describe(Row),
    OpenUdpInput {
        stream: StreamId,
        input: InputRow,
        pair: PairId,
        bound: Option<(Bound, Bound)>,
    },
    OpenChannelInput {
        stream: StreamId,
        input: InputRow,
        peer: Option<SocketAddr>,
        /// The way to the connection if it lives on another worker.
        guest: Option<GuestQueue>,
    },
    RetargetInput {
        stream: StreamId,
        input: InputRow,
    },
    CloseInput {
        stream: StreamId,
        track: TrackId,
    },
    CloseStream(StreamId),
    OpenLeg(LegSpec),
    OpenLegTrack {
        stream: StreamId,
        leg: LegId,
        track: LegTrack,
        /// The way to its connection if it has one, on another worker.
        guest: Option<GuestQueue>,
    },
    CloseLegTrack {
        stream: StreamId,
        leg: LegId,
        track: TrackId,
    },
    PauseLeg {
        stream: StreamId,
        leg: LegId,
    },
    CloseLeg {
        stream: StreamId,
        leg: LegId,
        bye: bool,
    },
}

impl Step {
    /// Whether it takes something that a later step gives back.
    pub(crate) fn opens(&self) -> bool {
        matches!(
            self,
            Self::OpenStream(_)
                | Self::OpenUdpInput { .. }
                | Self::OpenChannelInput { .. }
                | Self::OpenLeg(_)
                | Self::OpenLegTrack { .. }
        )
    }
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
        peer: PlayerPeer,
        gone: bool,
    },
    /// RTCP for a leg that lives here, from the worker that received it.
    LegRtcp {
        stream: StreamId,
        leg: LegId,
        track: TrackId,
        compound: Bytes,
    },
    /// RTP frames for an input that lives here, from the worker of their connection.
    Frames {
        stream: StreamId,
        track: TrackId,
        frames: Vec<Bytes>,
    },
    /// RTCP for an input that lives here, from the worker of its connection.
    InputRtcp {
        stream: StreamId,
        track: TrackId,
        compound: Bytes,
    },
    /// From the worker that reads the sockets of all viewers: nobody listens at a leg's address.
    PlayerUnreachable {
        stream: StreamId,
        leg: LegId,
    },
    /// Every UDP leg is to be there; `None` leaves them to the rules.
    AskRung(Option<Rung>),
    Snapshot(oneshot::Sender<Snapshot>),
    /// Stand still: the proxy is being handed over.
    Freeze(Freeze),
    Stop,
}

/// Whose address it is that a datagram came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlayerPeer {
    pub(crate) worker: usize,
    pub(crate) stream: StreamId,
    pub(crate) leg: LegId,
    pub(crate) track: TrackId,
}

/// The way to a worker.
///
/// The queue is bounded for everything that opens something and for everything that peers cause. What gives
/// back is always taken: there is no more of it than was opened, and lost it would be open for ever.
#[derive(Debug, Clone)]
pub(crate) struct WorkerHandle {
    pub(crate) index: usize,
    commands: mpsc::UnboundedSender<Command>,
    depth: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Commands {
    queue: mpsc::UnboundedReceiver<Command>,
    depth: Arc<AtomicUsize>,
}

impl Commands {
    /// The next command, if there is one already.
    pub(super) fn try_recv(&mut self) -> Option<Command> {
        let command = self.queue.try_recv().ok()?;
        self.depth.fetch_sub(1, Ordering::Relaxed);
        Some(command)
    }

    /// The next command; `None` when nobody is left to give any. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<Command> {
        let command = self.queue.recv().await?;
        self.depth.fetch_sub(1, Ordering::Relaxed);
        Some(command)
    }
}

impl WorkerHandle {
    pub(crate) fn new(index: usize) -> (Self, Commands) {
        let (commands, queue) = mpsc::unbounded_channel();
        let depth = Arc::<AtomicUsize>::default();
        let handle = Self { index, commands, depth: depth.clone(), refused: Arc::default() };
        (handle, Commands { queue, depth })
    }

    /// Queues a command; a full queue or a dead worker refuses it.
    pub(crate) fn send(&self, command: Command) -> Result<(), OpError> {
        if self.depth.load(Ordering::Relaxed) >= COMMANDS {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(OpError::Exhausted(format!("command queue of data-{}", self.index)));
        }
        self.deliver(command)
    }

    /// Queues a command that must not be lost, however many wait; only a dead worker refuses it, and that
    /// has nothing to give back.
    pub(crate) fn deliver(&self, command: Command) -> Result<(), OpError> {
        self.depth.fetch_add(1, Ordering::Relaxed);
        self.commands.send(command).map_err(|_| {
            self.depth.fetch_sub(1, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
            OpError::Io(format!("data-{} has ended", self.index))
        })
    }

    /// Queues what other workers received for this one, as long as half of the queue is free: what viewers
    /// and sources send must not keep operations out.
    pub(super) fn forward(&self, command: Command) -> bool {
        let room = self.depth.load(Ordering::Relaxed) < COMMANDS / 2;
        if !room {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        room && self.deliver(command).is_ok()
    }

    /// Commands that found no room in the former program.
    pub(super) fn set_refused(&self, refused: u64) {
        self.refused.store(refused as usize, Ordering::Relaxed);
    }

    /// Commands that wait, and those that found no room.
    pub(super) fn queue(&self) -> (u64, u64) {
        (self.depth.load(Ordering::Relaxed) as u64, self.refused.load(Ordering::Relaxed) as u64)
    }
}
