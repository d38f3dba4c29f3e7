//! The one driver of RTSP connections, viewers', publishers' and cameras' alike.
//!
//! Owns the socket of a connection and moves bytes between it and the sans-IO [`Conn`]: messages go to the
//! session logic, `$` frames to the streams that own their channels. It starts on the control thread; once
//! a channel is bound, the whole connection moves to the stream's worker and stays there; streams of other
//! workers reach it by [`guest`]. It must not know sessions, and it never blocks whoever fans out: frames are
//! queued by [`Conn`], bounded by bytes and age.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use msm_control_plane::event::{ConnEnd, OpError};
use msm_graph::{ConnId, StreamId, TrackId};
use msm_rtsp::conn::{CloseReason, Conn, ConnEvent, ConnLimits, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::UserEvent;
use super::worker::{Command, Shared, WorkerHandle};

mod guest;
mod handle;
pub(crate) mod inventory;
mod slot;

use guest::{Guest, serve_guest};
pub(crate) use guest::{GuestQueue, Guests, guest_queue, settle_guests};
use handle::ConnCommand;
pub use handle::ConnHandle;
use slot::{Binding, Inbox};
pub(crate) use slot::{ChannelOwner, ConnParts, ConnSlot, ConnWay, Frame, Pushed};

/// Frames of a source that come before their channel is bound (RTSP-42).
const EARLY_FRAMES: usize = 64;
/// Bytes of them: whoever connects can send them, and they wait for as long as the connection lives.
const EARLY_BYTES: usize = 128 * 1024;
/// Commands waiting for one connection.
const COMMANDS: usize = 256;
/// Slices of one vectored write.
const SLICES: usize = 64;
/// Frames handed on together, before other work gets a turn.
const FRAMES: usize = 128;

/// Longest wait, and most bytes, between our last word and the close.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// Makes a connection of a socket; [`run_on_control`] drives it. Without a socket that can be driven, the
/// reason, to be told as the end of the connection.
pub(crate) fn assemble(
    stream: TcpStream,
    id: ConnId,
    role: Role,
    limits: Arc<ConnLimits>,
    events: mpsc::Sender<UserEvent>,
) -> (ConnHandle, io::Result<Box<ConnParts>>) {
    let (sender, commands) = mpsc::channel(COMMANDS);
    let overflowed = Arc::new(AtomicBool::new(false));
    let handle = ConnHandle { id, commands: sender, overflowed: overflowed.clone() };
    let conn = Conn::new(role, limits, Instant::now());
    let inbox = Inbox { commands, overflowed, events, pending: None, end: None };
    let parts = stream.peer_addr().and_then(|peer| {
        stream.set_nodelay(true)?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let stream = stream.into_std()?;
        Ok(Box::new(ConnParts { id, peer, stream, conn, early: VecDeque::new(), inbox }))
    });
    (handle, parts)
}

/// Drives a connection without channels on the calling thread, until it ends or moves to a worker.
pub(crate) fn run_on_control(parts: Box<ConnParts>, slot: Rc<ConnSlot>) -> impl Future<Output = ()> {
    run(parts, slot, None)
}

/// Drives a connection on a worker.
pub(crate) fn run_on_worker(
    parts: Box<ConnParts>,
    slot: Rc<ConnSlot>,
    shared: Rc<Shared>,
) -> impl Future<Output = ()> {
    run(parts, slot, Some(shared))
}

/// Every connection has one of these for as long as it lives, mostly waiting: what it needs at its ends only is
/// made when it is needed.
async fn run(parts: Box<ConnParts>, slot: Rc<ConnSlot>, shared: Option<Rc<Shared>>) {
    let conn = parts.id;
    let mut driver = match Driver::new(parts, slot, shared) {
        Ok(driver) => driver,
        Err((events, words)) => {
            let closed = UserEvent::Closed { conn, end: ConnEnd::Io(words) };
            let _ = Box::pin(events.send(closed)).await;
            return;
        }
    };
    let outcome = driver.drive().await;
    Box::pin(driver.leave(outcome)).await;
}

/// Unread bytes would turn the close into a reset, and the peer might lose our last response to it: tells
/// the peer that nothing follows and waits a little for it to hang up.
async fn linger(stream: &mut TcpStream) {
    let _ = stream.shutdown().await;
    let discard = async {
        let mut scrap = [0; 4096];
        let mut left = LINGER_BYTES;
        while let Ok(read @ 1..) = stream.read(&mut scrap).await {
            left = left.saturating_sub(read);
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, discard).await;
}

enum Outcome {
    End(ConnEnd),
    Move(WorkerHandle, oneshot::Sender<Result<(), OpError>>),
}

struct Driver {
    peer: SocketAddr,
    stream: TcpStream,
    slot: Rc<ConnSlot>,
    shared: Option<Rc<Shared>>,
    commands: mpsc::Receiver<ConnCommand>,
    overflowed: Arc<AtomicBool>,
    events: mpsc::Sender<UserEvent>,
}

enum Woken {
    Command(Option<ConnCommand>),
    Room(Result<(), ()>),
    Ready(io::Result<tokio::io::Ready>),
    Frames,
    Guest(Option<Guest>),
    Deadline,
}

impl Driver {
    /// The driver of a connection that has come here. `Err`: who is to hear of its end, and the system's words.
    fn new(
        parts: Box<ConnParts>,
        slot: Rc<ConnSlot>,
        shared: Option<Rc<Shared>>,
    ) -> Result<Self, (mpsc::Sender<UserEvent>, String)> {
        let ConnParts { id: _, peer, stream, conn, early, inbox } = *parts;
        let Inbox { commands, overflowed, events, pending, end } = inbox;
        *slot.conn.borrow_mut() = Some(conn);
        *slot.pending.borrow_mut() = pending;
        *slot.end.borrow_mut() = end;
        *slot.overflowed.borrow_mut() = Some(overflowed.clone());
        slot.socket.set(Some((stream.as_raw_fd(), peer)));
        if !early.is_empty() {
            let mut frames: Vec<(u8, Bytes)> = early.into();
            route_frames(&slot, shared.as_deref(), &mut frames);
        }
        match TcpStream::from_std(stream) {
            Ok(stream) => Ok(Self { peer, stream, slot, shared, commands, overflowed, events }),
            Err(error) => {
                *slot.conn.borrow_mut() = None;
                Err((events, error.to_string()))
            }
        }
    }

    /// Takes the connection to another worker, or ends it.
    async fn leave(self, outcome: Outcome) {
        let Self { peer, mut stream, slot, shared, commands, overflowed, events } = self;
        let id = slot.id;
        if let (Outcome::End(_), Some(shared)) = (&outcome, &shared) {
            shared.keep_counters(&slot);
        }
        let conn = slot.conn.borrow_mut().take();
        slot.socket.set(None);
        match (outcome, conn) {
            (Outcome::Move(worker, ack), Some(conn)) => {
                let (pending, end) = (slot.pending.take(), slot.end.take());
                let inbox = Inbox { commands, overflowed, events: events.clone(), pending, end };
                let early = std::mem::take(&mut *slot.early.borrow_mut());
                let failed = match stream.into_std() {
                    Ok(stream) => {
                        let parts = ConnParts { id, peer, stream, conn, early, inbox };
                        // What its channels are for has been queued there already.
                        let adopted = worker.deliver(Command::AdoptConn(Box::new(parts), ack));
                        adopted.err().map(|_| "worker is gone".to_owned())
                    }
                    Err(error) => Some(error.to_string()),
                };
                if let Some(words) = failed {
                    let _ = events.send(UserEvent::Closed { conn: id, end: ConnEnd::Io(words) }).await;
                }
            }
            (Outcome::End(end), _) => {
                if matches!(end, ConnEnd::Limit("stuck_writer"))
                    && let Some(shared) = &shared
                {
                    for leg in slot.legs() {
                        shared.report(msm_graph::Report::LegFailed {
                            leg,
                            reason: msm_graph::LegFailure::StuckWriter,
                        });
                    }
                }
                *slot.guests.borrow_mut() = None;
                if let Some(shared) = &shared {
                    shared.forget_conn(&slot);
                }
                let lingers = !matches!(end, ConnEnd::Peer | ConnEnd::Io(_));
                let _ = events.send(UserEvent::Closed { conn: id, end }).await;
                if lingers {
                    linger(&mut stream).await;
                }
            }
            (Outcome::Move(..), None) => {}
        }
    }

    async fn drive(&mut self) -> Outcome {
        let mut deadline = pin!(tokio::time::sleep(Duration::from_secs(3600)));
        let mut frames = Vec::new();
        loop {
            let now = Instant::now();
            if let Some(end) = self.take_events(now, &mut frames) {
                return Outcome::End(end);
            }
            let blocked = match self.write(now) {
                Ok(blocked) => blocked,
                Err(error) => return Outcome::End(ConnEnd::Io(error.to_string())),
            };
            let (finished, wants_read, due) = {
                let conn = self.slot.conn.borrow();
                let Some(conn) = conn.as_ref() else { return Outcome::End(ConnEnd::Asked) };
                (conn.is_finished(), conn.wants_read(), conn.poll_timeout())
            };
            if finished {
                return Outcome::End(self.slot.end.take().unwrap_or(ConnEnd::Asked));
            }
            // A peer that keeps the socket readable must not keep a deadline from being noticed.
            if due.is_some_and(|due| due <= now)
                && let Some(reason) =
                    self.slot.conn.borrow_mut().as_mut().and_then(|conn| conn.handle_timeout(now))
            {
                return Outcome::End(end_of(reason));
            }
            // Deadlines mostly move away as bytes flow: the timer is touched only when one comes nearer.
            if let Some(due) = due.map(tokio::time::Instant::from_std)
                && (due < deadline.deadline() || deadline.is_elapsed())
            {
                deadline.as_mut().reset(due);
            }
            let waits_for_room = self.slot.pending.borrow().is_some();
            let wants_read = wants_read && !waits_for_room;
            let interest = match (wants_read, blocked) {
                (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
                (true, false) => Some(Interest::READABLE),
                (false, true) => Some(Interest::WRITABLE),
                (false, false) => None,
            };
            let timed = due.is_some();
            let woken = tokio::select! {
                biased;
                command = self.commands.recv() => Woken::Command(command),
                room = self.events.reserve(), if waits_for_room => {
                    Woken::Room(match (room, self.slot.pending.take()) {
                        (Ok(permit), Some(event)) => { permit.send(event); Ok(()) }
                        (Ok(_), None) => Ok(()),
                        (Err(_), _) => Err(()),
                    })
                }
                ready = self.stream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    Woken::Ready(ready)
                }
                () = self.slot.wake.notified() => Woken::Frames,
                guest = next_guest(&self.slot) => Woken::Guest(guest),
                () = &mut deadline, if timed => Woken::Deadline,
            };
            match woken {
                Woken::Command(command) => {
                    if let Some(outcome) = self.obey(command) {
                        return outcome;
                    }
                }
                Woken::Guest(first) => {
                    self.serve_guests(first);
                }
                // What is due is seen to at the next round.
                Woken::Room(Ok(())) | Woken::Frames | Woken::Deadline => {}
                Woken::Room(Err(())) => return Outcome::End(ConnEnd::Asked),
                Woken::Ready(Err(error)) => return Outcome::End(ConnEnd::Io(error.to_string())),
                Woken::Ready(Ok(ready)) => {
                    // Nor other workers from being served.
                    self.serve_guests(None);
                    if wants_read
                        && (ready.is_readable() || ready.is_read_closed())
                        && let Some(end) = self.read(&mut frames)
                    {
                        return Outcome::End(end);
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: Option<ConnCommand>) -> Option<Outcome> {
        let now = Instant::now();
        if self.overflowed.load(Ordering::Relaxed) {
            return Some(Outcome::End(ConnEnd::Limit("commands")));
        }
        // What was queued before the command counts as before it: a hold before its release, a BYE before
        // the close.
        self.serve_guests(None);
        if let Some(ConnCommand::Guests(guests)) = command {
            *self.slot.guests.borrow_mut() = Some(*guests);
            return None;
        }
        let mut conn = self.slot.conn.borrow_mut();
        let conn = conn.as_mut()?;
        match command {
            Some(ConnCommand::Reply(response, close)) => {
                conn.push_response(*response, close, now);
            }
            Some(ConnCommand::Send(request)) => conn.push_request(&request, now),
            Some(ConnCommand::Release(channels)) => conn.release_media(&channels, now),
            Some(ConnCommand::Session(exists)) => conn.set_session(exists, now),
            Some(ConnCommand::Close) | None => {
                self.slot.end.borrow_mut().get_or_insert(ConnEnd::Asked);
                conn.close(now);
            }
            Some(ConnCommand::Guests(_)) => {}
            Some(ConnCommand::Move(to)) => {
                let (worker, ack) = *to;
                match &self.shared {
                    None => return Some(Outcome::Move(worker, ack)),
                    Some(shared) if shared.index == worker.index => {
                        let _ = ack.send(Ok(()));
                    }
                    Some(_) => {
                        let words = format!("connection {} belongs to another worker", self.slot.id);
                        let _ = ack.send(Err(OpError::Exhausted(words)));
                    }
                }
            }
        }
        None
    }

    /// Does what streams of other workers asked for until now.
    fn serve_guests(&mut self, first: Option<Guest>) {
        let mut next = first;
        // No more than there are: they may come faster than we take them.
        let mut left = self.slot.guests.borrow().as_ref().map_or(0, Guests::depth);
        loop {
            if let Some(guest) = next.take() {
                serve_guest(&self.slot, self.shared.as_deref(), guest);
            }
            if left == 0 {
                return;
            }
            left -= 1;
            next = self.slot.guests.borrow_mut().as_mut().and_then(Guests::try_recv);
        }
    }

    fn read(&mut self, frames: &mut Vec<(u8, Bytes)>) -> Option<ConnEnd> {
        let result = {
            let mut conn = self.slot.conn.borrow_mut();
            let conn = conn.as_mut()?;
            let result = self.stream.try_read_buf(conn.read_buf());
            if matches!(result, Ok(n) if n > 0) {
                conn.handle_read(Instant::now());
            }
            result
        };
        match result {
            Ok(0) => {
                // What came before the end still counts.
                let end = self.take_events(Instant::now(), frames);
                Some(end.unwrap_or(ConnEnd::Peer))
            }
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Some(ConnEnd::Peer),
            Err(error) => Some(ConnEnd::Io(error.to_string())),
        }
    }

    /// Hands on what was received, as far as the session logic takes it.
    fn take_events(&mut self, now: Instant, frames: &mut Vec<(u8, Bytes)>) -> Option<ConnEnd> {
        let mut end = None;
        while end.is_none() && self.slot.pending.borrow().is_none() {
            let event = self.slot.conn.borrow_mut().as_mut().and_then(|conn| conn.poll_event(now));
            let id = self.slot.id;
            let message = match event {
                None => break,
                Some(ConnEvent::Frame { channel, payload }) => {
                    frames.push((channel, payload));
                    if frames.len() >= FRAMES {
                        end = self.route(frames);
                    }
                    continue;
                }
                Some(ConnEvent::Request(request)) => UserEvent::Request { conn: id, request },
                Some(ConnEvent::Response(response)) => UserEvent::Response { conn: id, response },
                Some(ConnEvent::Rejected { error, closing, .. }) => {
                    if closing {
                        self.slot.end.borrow_mut().get_or_insert(ConnEnd::Protocol(error.to_string()));
                    }
                    UserEvent::Rejected { peer: self.peer, reason: error.rule.as_str() }
                }
            };
            // A frame that stood before a message is handed on before it.
            end = self.route(frames);
            match self.events.try_send(message) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(message)) => {
                    *self.slot.pending.borrow_mut() = Some(message);
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return Some(ConnEnd::Asked),
            }
        }
        end.or_else(|| self.route(frames))
    }

    fn route(&mut self, frames: &mut Vec<(u8, Bytes)>) -> Option<ConnEnd> {
        if frames.is_empty() {
            return None;
        }
        let stray = route_frames(&self.slot, self.shared.as_deref(), frames);
        let mut conn = self.slot.conn.borrow_mut();
        let conn = conn.as_mut()?;
        let too_many = (0..stray).any(|_| conn.count_stray_frame());
        if too_many {
            return Some(ConnEnd::Limit("stray_frames"));
        }
        None
    }

    /// Writes what there is. Returns whether the socket is full.
    fn write(&mut self, now: Instant) -> io::Result<bool> {
        let mut conn = self.slot.conn.borrow_mut();
        let Some(conn) = conn.as_mut() else { return Ok(false) };
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = conn.poll_transmit(now, &mut slices);
            if filled == 0 {
                return Ok(false);
            }
            let result = self.stream.try_write_vectored(slices.get(..filled).unwrap_or(&[]));
            match result {
                Ok(written) => conn.advance(written, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    conn.advance(0, now);
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn end_of(reason: CloseReason) -> ConnEnd {
    ConnEnd::Limit(reason.as_str())
}

/// The next request of a stream of another worker; pending for ever while there can be none.
async fn next_guest(slot: &ConnSlot) -> Option<Guest> {
    poll_fn(|cx| match slot.guests.borrow_mut().as_mut().map(|guests| guests.poll_recv(cx)) {
        Some(Poll::Ready(Some(guest))) => Poll::Ready(Some(guest)),
        _ => Poll::Pending,
    })
    .await
}

/// Hands frames to the owners of their channels, neighbours of one track together. Returns how many had no
/// owner or were not what their channel is for (RTSP-41, RTSP-43).
fn route_frames(slot: &ConnSlot, shared: Option<&Shared>, frames: &mut Vec<(u8, Bytes)>) -> u32 {
    let mut stray = 0;
    let mut batch: Vec<Bytes> = Vec::new();
    let mut batch_of: Option<(StreamId, TrackId, Option<usize>)> = None;
    for (channel, payload) in frames.drain(..) {
        let bound = shared.and_then(|shared| Some((shared, slot.owner(channel)?)));
        let Some((shared, Binding { owner, guest, .. })) = bound else {
            // RTSP-42: one that is kept may still find its owner.
            stray += u32::from(!slot.keep_early(channel, payload));
            continue;
        };
        match owner {
            ChannelOwner::InputRtp { stream, track } => {
                if batch_of != Some((stream, track, guest)) {
                    if let Some((stream, track, guest)) = batch_of {
                        stray += shared.route_frames(guest, stream, track, &mut batch);
                    }
                    batch_of = Some((stream, track, guest));
                }
                batch.push(payload);
            }
            ChannelOwner::InputRtcp { stream, track } => {
                stray += u32::from(!shared.route_input_rtcp(guest, stream, track, payload));
            }
            // RTSP-45: a viewer that plays has no business sending RTP.
            ChannelOwner::LegRtp { leg, .. } => shared.count_viewer_rtp(leg),
            ChannelOwner::LegRtcp { stream, leg, track } => {
                stray += u32::from(!shared.route_leg_rtcp(guest, stream, leg, track, payload));
            }
        }
    }
    if let (Some((stream, track, guest)), Some(shared)) = (batch_of, shared) {
        stray += shared.route_frames(guest, stream, track, &mut batch);
    }
    stray
}

#[cfg(test)]
mod tests;
