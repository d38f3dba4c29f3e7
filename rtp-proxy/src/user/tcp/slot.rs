//! A connection as the streams see it: whose its channels are, and the way into its queues.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::Bytes;
use msm_control_plane::event::{ConnEnd, OpError};
use msm_graph::{ConnId, LegId, StreamId, TrackId};
use msm_rtsp::conn::{Conn, FrameDrop, Offer};
use tokio::sync::{Notify, mpsc};

use super::guest::{Guest, GuestQueue, Guests};
use super::{ConnCommand, EARLY_BYTES, EARLY_FRAMES};
use crate::user::UserEvent;

/// A connection between two threads: everything that moves.
#[derive(Debug)]
pub(crate) struct ConnParts {
    pub(crate) id: ConnId,
    pub(crate) peer: SocketAddr,
    pub(super) stream: std::net::TcpStream,
    pub(super) conn: Conn,
    pub(super) early: VecDeque<(u8, Bytes)>,
    pub(super) inbox: Inbox,
}

/// What the driver keeps for itself.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) commands: mpsc::Receiver<ConnCommand>,
    pub(super) overflowed: Arc<AtomicBool>,
    pub(super) events: mpsc::Sender<UserEvent>,
    /// What the slot holds of these while the connection is in one.
    pub(super) pending: Option<UserEvent>,
    pub(super) end: Option<ConnEnd>,
}

/// Who owns a channel of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelOwner {
    InputRtp { stream: StreamId, track: TrackId },
    InputRtcp { stream: StreamId, track: TrackId },
    LegRtp { leg: LegId, track: TrackId },
    LegRtcp { stream: StreamId, leg: LegId, track: TrackId },
}

impl ChannelOwner {
    /// The owners of the RTP and the RTCP channel of an input.
    pub(crate) fn input(stream: StreamId, track: TrackId) -> [Self; 2] {
        [Self::InputRtp { stream, track }, Self::InputRtcp { stream, track }]
    }

    /// The owners of the RTP and the RTCP channel of one track of a leg.
    pub(crate) fn leg(stream: StreamId, leg: LegId, track: TrackId) -> [Self; 2] {
        [Self::LegRtp { leg, track }, Self::LegRtcp { stream, leg, track }]
    }
}

/// A channel that is spoken for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding {
    pub(super) channel: u8,
    pub(super) owner: ChannelOwner,
    /// The worker of the owner, if it is not the connection's.
    pub(super) guest: Option<usize>,
}

/// A connection as the legs and inputs of its own thread see it.
#[derive(Debug)]
pub(crate) struct ConnSlot {
    pub(crate) id: ConnId,
    pub(super) conn: RefCell<Option<Conn>>,
    pub(super) wake: Notify,
    pub(super) bindings: RefCell<Vec<Binding>>,
    pub(super) early: RefCell<VecDeque<(u8, Bytes)>>,
    /// What streams of other workers send.
    pub(super) guests: RefCell<Option<Guests>>,
    /// A message that the session logic had no room for: nothing is read until it is gone.
    pub(super) pending: RefCell<Option<UserEvent>>,
    /// Why the connection is being closed.
    pub(super) end: RefCell<Option<ConnEnd>>,
    /// The socket of the connection, while it is here, and its peer.
    pub(super) socket: Cell<Option<(RawFd, SocketAddr)>>,
    pub(super) overflowed: RefCell<Option<Arc<AtomicBool>>>,
}

impl ConnSlot {
    pub(crate) fn new(id: ConnId) -> Self {
        Self {
            id,
            conn: RefCell::default(),
            wake: Notify::new(),
            bindings: RefCell::default(),
            early: RefCell::default(),
            guests: RefCell::default(),
            pending: RefCell::default(),
            end: RefCell::default(),
            socket: Cell::default(),
            overflowed: RefCell::default(),
        }
    }

    /// Streams of other workers may send.
    pub(crate) fn admit(&self, guests: Option<Guests>) {
        if guests.is_some() {
            *self.guests.borrow_mut() = guests;
        }
    }

    /// Runs `f` on the connection if it is here, and wakes its driver.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Conn) -> R) -> Option<R> {
        let result = self.conn.borrow_mut().as_mut().map(f);
        self.wake.notify_one();
        result
    }

    /// Bytes of RTP that wait for the socket.
    pub(crate) fn depth(&self) -> u64 {
        self.conn.borrow().as_ref().map_or(0, |conn| conn.rtp_depth() as u64)
    }

    /// RTP frames that were queued and then dropped for their age.
    pub(crate) fn late(&self) -> u64 {
        self.conn.borrow().as_ref().map_or(0, |conn| conn.counters().rtp_late)
    }

    /// Batches of other workers' streams that wait, and those that found no room.
    pub(crate) fn guest_depth(&self) -> (u64, u64) {
        self.guests.borrow().as_ref().map_or((0, 0), |guests| (guests.depth() as u64, guests.dropped()))
    }

    /// Binds a channel, for a stream of the worker `guest` if that is another one. What came early on it is
    /// returned, in order.
    pub(crate) fn bind(&self, channel: u8, owner: ChannelOwner, guest: Option<usize>) -> Vec<Bytes> {
        let mut bindings = self.bindings.borrow_mut();
        bindings.retain(|binding| binding.channel != channel);
        bindings.push(Binding { channel, owner, guest });
        let mut early = self.early.borrow_mut();
        let taken = early.iter().filter(|(c, _)| *c == channel).map(|(_, frame)| frame.clone()).collect();
        early.retain(|(c, _)| *c != channel);
        taken
    }

    /// Unbinds the channels of these owners and drops what waits on them, but with `say_bye` not the RTCP.
    pub(crate) fn unbind(&self, owners: [ChannelOwner; 2], say_bye: bool) {
        let (mut cleared, mut released) = (Vec::new(), Vec::new());
        self.bindings.borrow_mut().retain(|binding| {
            let gone = owners.contains(&binding.owner);
            if gone && say_bye && matches!(binding.owner, ChannelOwner::LegRtcp { .. }) {
                released.push(binding.channel);
            } else if gone {
                cleared.push(binding.channel);
            }
            !gone
        });
        self.with(|conn| {
            conn.clear_media(&cleared);
            conn.release_media(&released, Instant::now());
        });
    }

    /// Neither a connection nor an owner: to be forgotten.
    pub(crate) fn is_unused(&self) -> bool {
        self.conn.borrow().is_none() && self.bindings.borrow().is_empty()
    }

    pub(super) fn owner(&self, channel: u8) -> Option<Binding> {
        self.bindings.borrow().iter().find(|binding| binding.channel == channel).copied()
    }

    /// Keeps a frame that nobody owns yet (RTSP-42). Returns whether there was room.
    pub(super) fn keep_early(&self, channel: u8, payload: Bytes) -> bool {
        let mut early = self.early.borrow_mut();
        let bytes: usize = early.iter().map(|(_, frame)| frame.len()).sum();
        let room = early.len() < EARLY_FRAMES && bytes + payload.len() <= EARLY_BYTES;
        if room {
            // Copied: a slice would keep the whole read buffer for as long as the frame waits.
            early.push_back((channel, Bytes::copy_from_slice(&payload)));
        }
        room
    }

    /// Legs that are served here.
    pub(super) fn legs(&self) -> Vec<LegId> {
        self.bindings
            .borrow()
            .iter()
            .filter_map(|binding| match binding.owner {
                ChannelOwner::LegRtp { leg, .. } => Some(leg),
                _ => None,
            })
            .collect()
    }
}

/// How a stream reaches its channels of a connection.
#[derive(Debug, Clone)]
pub(crate) enum ConnWay {
    /// The connection lives on the stream's worker.
    Here(Rc<ConnSlot>),
    /// It lives on another one.
    Away(GuestQueue),
}

/// An RTP packet: its header if the leg has one of its own, and what all legs share.
pub(crate) type Frame = (Option<[u8; 12]>, Bytes);

/// What became of a batch of RTP frames.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pushed {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Found no room.
    pub(crate) full: u64,
    /// Too long for a frame.
    pub(crate) too_long: u64,
}

impl Pushed {
    pub(super) fn count(&mut self, len: usize, offer: Offer) {
        match offer {
            Offer::Queued => {
                self.packets += 1;
                self.bytes += len as u64;
            }
            Offer::Dropped(FrameDrop::TooLong) => self.too_long += 1,
            Offer::Dropped(_) => self.full += 1,
        }
    }
}

impl ConnWay {
    /// The connection.
    pub(crate) fn id(&self) -> ConnId {
        match self {
            Self::Here(slot) => slot.id,
            Self::Away(queue) => queue.conn(),
        }
    }

    /// Queues RTP frames, each a head of at most 12 bytes and a shared tail.
    pub(crate) fn push_rtp<'a>(
        &self,
        channel: u8,
        frames: impl Iterator<Item = (&'a [u8], Bytes)>,
        now: Instant,
    ) -> Pushed {
        let mut pushed = Pushed::default();
        let mut frames = frames.peekable();
        if frames.peek().is_none() {
            return pushed;
        }
        match self {
            Self::Here(slot) => {
                slot.with(|conn| {
                    for (head, tail) in frames.by_ref() {
                        let len = head.len() + tail.len();
                        pushed.count(len, conn.push_rtp(channel, head, tail, now));
                    }
                });
                // Without a connection here they are still there.
                pushed.full += frames.count() as u64;
                pushed
            }
            Self::Away(queue) => queue.push_rtp(channel, frames),
        }
    }

    pub(crate) fn push_rtcp(&self, channel: u8, compound: &[u8], now: Instant) {
        let compound = Bytes::copy_from_slice(compound);
        match self {
            Self::Here(slot) => {
                let _ = slot.with(|conn| conn.push_rtcp(channel, compound, now));
            }
            Self::Away(queue) => {
                let _ = queue.push(Guest::Rtcp { channel, compound });
            }
        }
    }

    /// Keeps frames of these channels back until they are released (RTSP-44). Returns false if that cannot
    /// be had.
    pub(crate) fn hold(&self, channels: [u8; 2]) -> bool {
        match self {
            Self::Here(slot) => {
                slot.with(|conn| conn.hold_media(&channels));
                true
            }
            Self::Away(queue) => queue.push(Guest::Hold(channels)),
        }
    }

    /// Drops what waits on these channels: nothing of it is sent any more.
    pub(crate) fn clear(&self, channels: [u8; 2]) {
        match self {
            Self::Here(slot) => {
                let _ = slot.with(|conn| conn.clear_media(&channels));
            }
            Self::Away(queue) => {
                let _ = queue.push(Guest::Clear(channels));
            }
        }
    }

    /// Binds two channels for a stream of worker `index`. What came early on them is returned; from
    /// another worker it comes later.
    pub(crate) fn bind(
        &self,
        channels: [(u8, ChannelOwner); 2],
        index: usize,
    ) -> Result<[Vec<Bytes>; 2], OpError> {
        match self {
            Self::Here(slot) => Ok(channels.map(|(channel, owner)| slot.bind(channel, owner, None))),
            Self::Away(queue) => {
                if queue.push(Guest::Bind { channels, worker: index }) {
                    Ok([Vec::new(), Vec::new()])
                } else {
                    Err(OpError::Exhausted("frame queue of a connection of another worker".to_owned()))
                }
            }
        }
    }

    /// See [`ConnSlot::unbind`].
    pub(crate) fn unbind(&self, owners: [ChannelOwner; 2], say_bye: bool) {
        match self {
            Self::Here(slot) => slot.unbind(owners, say_bye),
            // Refused only by a connection that is gone: it needs no unbinding.
            Self::Away(queue) => {
                let _ = queue.push(Guest::Unbind { owners, say_bye });
            }
        }
    }
}
