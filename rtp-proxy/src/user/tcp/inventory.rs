//! A connection when a proxy hands over: its socket, what was read and not understood, what is not written.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use msm_control_plane::event::ConnEnd;
use msm_graph::{ConnId, LegId, Report, StreamId, TrackId};
use msm_handover::{Anchor, Blob, Malformed};
use msm_rtsp::conn::inventory::ConnInventory as RtspInventory;
use msm_rtsp::conn::{CloseReason, Conn, ConnLimits};
use msm_rtsp::message::inventory::{RequestInventory, ResponseInventory};
use msm_rtsp::message::{Request, Response};
use msm_rtsp::parse::Rule;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::handle::ConnHandle;
use super::slot::{Binding, Inbox};
use super::{COMMANDS, ChannelOwner, ConnParts, ConnSlot};
use crate::user::UserEvent;

/// A connection, written down. Its descriptor is named by its number in the program that wrote this.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConnInventory {
    pub(crate) id: ConnId,
    pub(crate) descriptor: i32,
    pub(crate) peer: SocketAddr,
    conn: RtspInventory,
    #[serde(default)]
    early: Vec<(u8, Blob)>,
    #[serde(default)]
    bindings: Vec<BindingInventory>,
    #[serde(default)]
    pending: Option<EventInventory>,
    #[serde(default)]
    end: Option<EndInventory>,
    #[serde(default)]
    overflowed: bool,
}

/// Channel, owner, and the worker of the owner.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct BindingInventory {
    channel: u8,
    owner: OwnerInventory,
    /// If it is not the connection's.
    #[serde(default)]
    worker: Option<usize>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OwnerInventory {
    InputRtp { stream: StreamId, track: TrackId },
    InputRtcp { stream: StreamId, track: TrackId },
    LegRtp { leg: LegId, track: TrackId },
    LegRtcp { stream: StreamId, leg: LegId, track: TrackId },
}

impl From<ChannelOwner> for OwnerInventory {
    fn from(owner: ChannelOwner) -> Self {
        match owner {
            ChannelOwner::InputRtp { stream, track } => Self::InputRtp { stream, track },
            ChannelOwner::InputRtcp { stream, track } => Self::InputRtcp { stream, track },
            ChannelOwner::LegRtp { leg, track } => Self::LegRtp { leg, track },
            ChannelOwner::LegRtcp { stream, leg, track } => Self::LegRtcp { stream, leg, track },
        }
    }
}

impl From<OwnerInventory> for ChannelOwner {
    fn from(inventory: OwnerInventory) -> Self {
        match inventory {
            OwnerInventory::InputRtp { stream, track } => Self::InputRtp { stream, track },
            OwnerInventory::InputRtcp { stream, track } => Self::InputRtcp { stream, track },
            OwnerInventory::LegRtp { leg, track } => Self::LegRtp { leg, track },
            OwnerInventory::LegRtcp { stream, leg, track } => Self::LegRtcp { stream, leg, track },
        }
    }
}

/// A [`UserEvent`] that the session logic has not seen yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventInventory {
    Request { conn: ConnId, request: RequestInventory },
    Response { conn: ConnId, response: ResponseInventory },
    Closed { conn: ConnId, end: EndInventory },
    Report(Report),
    Rejected { peer: SocketAddr, reason: String },
}

/// A [`ConnEnd`], written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndInventory {
    Peer,
    Asked,
    Protocol(String),
    Limit(String),
    Io(String),
}

/// Names of limits and of broken rules are words of the program.
fn known(name: &str) -> &'static str {
    const LIMITS: [CloseReason; 7] = [
        CloseReason::FirstByte,
        CloseReason::Head,
        CloseReason::Body,
        CloseReason::Idle,
        CloseReason::Frame,
        CloseReason::StuckWriter,
        CloseReason::Closing,
    ];
    let words = LIMITS.iter().map(|limit| limit.as_str()).chain(["commands", "stray_frames"]);
    let rules = Rule::ALL.iter().map(|rule| rule.as_str());
    words.chain(rules).find(|word| *word == name).unwrap_or("other")
}

impl From<&ConnEnd> for EndInventory {
    fn from(end: &ConnEnd) -> Self {
        match end {
            ConnEnd::Peer => Self::Peer,
            ConnEnd::Asked => Self::Asked,
            ConnEnd::Protocol(words) => Self::Protocol(words.clone()),
            ConnEnd::Limit(name) => Self::Limit((*name).to_owned()),
            ConnEnd::Io(words) => Self::Io(words.clone()),
        }
    }
}

impl From<EndInventory> for ConnEnd {
    fn from(inventory: EndInventory) -> Self {
        match inventory {
            EndInventory::Peer => Self::Peer,
            EndInventory::Asked => Self::Asked,
            EndInventory::Protocol(words) => Self::Protocol(words),
            EndInventory::Limit(name) => Self::Limit(known(&name)),
            EndInventory::Io(words) => Self::Io(words),
        }
    }
}

impl From<&UserEvent> for EventInventory {
    fn from(event: &UserEvent) -> Self {
        match event {
            UserEvent::Request { conn, request } => {
                Self::Request { conn: *conn, request: request.inventory() }
            }
            UserEvent::Response { conn, response } => {
                Self::Response { conn: *conn, response: response.inventory() }
            }
            UserEvent::Closed { conn, end } => Self::Closed { conn: *conn, end: end.into() },
            UserEvent::Report(report) => Self::Report(report.clone()),
            UserEvent::Rejected { peer, reason } => {
                Self::Rejected { peer: *peer, reason: (*reason).to_owned() }
            }
        }
    }
}

impl From<EventInventory> for UserEvent {
    fn from(inventory: EventInventory) -> Self {
        match inventory {
            EventInventory::Request { conn, request } => {
                Self::Request { conn, request: Request::restore(request) }
            }
            EventInventory::Response { conn, response } => {
                Self::Response { conn, response: Response::restore(response) }
            }
            EventInventory::Closed { conn, end } => Self::Closed { conn, end: end.into() },
            EventInventory::Report(report) => Self::Report(report),
            EventInventory::Rejected { peer, reason } => Self::Rejected { peer, reason: known(&reason) },
        }
    }
}

impl ConnSlot {
    /// Writes the connection down, if it is here, between two turns of its driver.
    pub(crate) fn inventory(&self, at: &Anchor) -> Option<ConnInventory> {
        let conn = self.conn.borrow();
        let (conn, (descriptor, peer)) = (conn.as_ref()?, self.socket.get()?);
        let early = self.early.borrow();
        let bindings = self.bindings.borrow().iter().map(Binding::inventory).collect();
        Some(ConnInventory {
            id: self.id,
            descriptor,
            peer,
            conn: conn.inventory(at),
            early: early.iter().map(|(channel, payload)| (*channel, Blob(payload.clone()))).collect(),
            bindings,
            pending: self.pending.borrow().as_ref().map(Into::into),
            end: self.end.borrow().as_ref().map(Into::into),
            overflowed: self.overflowed.borrow().as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)),
        })
    }

    /// Takes the channels that a connection had, before it arrives. `worker`: this one; `workers`: how many
    /// there are now.
    pub(crate) fn bind_again(&self, bindings: &[RestoredBinding]) {
        self.bindings.borrow_mut().extend(bindings.iter().map(|binding| binding.0));
    }
}

/// A channel that was spoken for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RestoredBinding(Binding);

impl Binding {
    fn inventory(&self) -> BindingInventory {
        BindingInventory { channel: self.channel, owner: self.owner.into(), worker: self.guest }
    }
}

/// A connection that arrived from the program before.
#[derive(Debug)]
pub(crate) struct RestoredConn {
    pub(crate) handle: ConnHandle,
    pub(crate) parts: Box<ConnParts>,
    pub(crate) bindings: Vec<RestoredBinding>,
    /// Whether streams of other workers use it.
    pub(crate) has_guests: bool,
}

/// Makes a connection of its inventory and its socket. `home`: where it lives now. `place`: the worker that
/// one of the former program's is now.
///
/// # Errors
/// A socket or a connection that is none.
pub(crate) fn restore(
    inventory: ConnInventory,
    socket: OwnedFd,
    limits: Arc<ConnLimits>,
    events: mpsc::Sender<UserEvent>,
    home: Option<usize>,
    place: impl Fn(usize) -> usize,
    at: &Anchor,
) -> Result<RestoredConn, Malformed> {
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true).map_err(|error| Malformed::new("connection", error.to_string()))?;
    let (sender, commands) = mpsc::channel(COMMANDS);
    let overflowed = Arc::new(AtomicBool::new(inventory.overflowed));
    let handle = ConnHandle { id: inventory.id, commands: sender, overflowed: overflowed.clone() };
    let bindings: Vec<_> = inventory
        .bindings
        .iter()
        .map(|binding| {
            let guest = binding.worker.map(&place).filter(|worker| Some(*worker) != home);
            RestoredBinding(Binding { channel: binding.channel, owner: binding.owner.into(), guest })
        })
        .collect();
    let parts = Box::new(ConnParts {
        id: inventory.id,
        peer: inventory.peer,
        stream,
        conn: Conn::restore(inventory.conn, limits, at)?,
        early: inventory.early.into_iter().map(|(n, payload)| -> (u8, Bytes) { (n, payload.0) }).collect(),
        inbox: Inbox {
            commands,
            overflowed,
            events,
            pending: inventory.pending.map(Into::into),
            end: inventory.end.map(Into::into),
        },
    });
    let has_guests = bindings.iter().any(|binding| binding.0.guest.is_some());
    Ok(RestoredConn { handle, parts, bindings, has_guests })
}
