//! One RTSP/TCP connection as a machine without I/O, for both roles.
//!
//! Owns framing, the order and deadline of what is read and written on one connection, and the two
//! bounded queues of interleaved frames. It must not know sessions, URLs or credentials: requests and
//! responses pass through as values, and who may use which channel is its owner's business.
//!
//! The owner's loop:
//! ```text
//! while conn.wants_read():      read into conn.read_buf(); conn.handle_read(now)
//! after every mutation:         while let Some(event) = conn.poll_event(now) { … }
//!                               n = conn.poll_transmit(now, &mut slices); writev; conn.advance(written, now)
//!                               if conn.is_finished() { close }
//! at conn.poll_timeout():       if let Some(reason) = conn.handle_timeout(now) { close }
//! ```
//! `poll_event` has to be drained after [`Conn::push_response`] too: a pipelined request may have waited
//! for its turn (RTSP-7).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::demux::{Demux, Item, Pending};
use crate::message::{Message, Request, Response, Status};
use crate::parse::{ParseError, ParseLimits, Parsed, Strictness};
use crate::write;

use queue::{ChannelSet, Frame, Lane};

pub mod inventory;
mod output;
mod queue;
#[cfg(test)]
mod tests;

/// Which side of RTSP this end of the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Viewers and publishers connected to us: requests in, responses out. Parsed strictly (SEC-9).
    Server,
    /// We dialled a camera: requests out, responses in. Parsed tolerantly (`docs/protocols/rtsp.md`, Messages).
    Client,
}

/// Bounds of one connection (`docs/protocols/rtsp.md`, Limits).
#[derive(Debug, Clone)]
pub struct ConnLimits {
    /// Bounds of heads, bodies and frames.
    pub parse: ParseLimits,
    /// Requests without an answer before reading stops (RTSP-7).
    pub outstanding: usize,
    /// Bytes of encoded messages waiting for the socket before reading stops.
    pub message_bytes: usize,
    /// Bytes of RTP payload waiting for the socket.
    pub rtp_bytes: usize,
    /// Age at which a waiting RTP frame is dropped.
    pub rtp_age: Duration,
    /// Bytes of RTCP payload waiting for the socket.
    pub rtcp_bytes: usize,
    /// Accept to first byte (server role).
    pub first_byte: Duration,
    /// First to last byte of a head.
    pub head: Duration,
    /// Last byte of a head to last byte of a body, plus one second per 8 KiB.
    pub body: Duration,
    /// Last message to the next one while no session exists (server role).
    pub idle: Duration,
    /// First to last byte of a `$` frame.
    pub frame: Duration,
    /// Longest time without progress of a non-empty output.
    pub stuck_writer: Duration,
    /// Frames on unknown channels before the connection is closed (RTSP-41).
    pub stray_frames: u32,
}

impl Default for ConnLimits {
    fn default() -> Self {
        Self {
            parse: ParseLimits::default(),
            outstanding: 10,
            message_bytes: 128 * 1024,
            rtp_bytes: 1024 * 1024,
            rtp_age: Duration::from_millis(500),
            rtcp_bytes: 64 * 1024,
            first_byte: Duration::from_secs(5),
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            frame: Duration::from_secs(10),
            stuck_writer: Duration::from_secs(10),
            stray_frames: 1000,
        }
    }
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnEvent {
    /// A well-formed `RTSP/1.0` request with a numeric `CSeq`, in order of arrival. Server role only. To be
    /// answered exactly once with [`Conn::push_response`].
    Request(Request),
    /// A response. Client role only.
    Response(Response),
    /// An interleaved frame that is not empty.
    Frame {
        /// Channel number.
        channel: u8,
        /// What follows the four byte header; shares the read buffer.
        payload: Bytes,
    },
    /// Bad input. Whatever can be answered has been answered by the connection itself.
    Rejected {
        /// What was wrong and where.
        error: ParseError,
        /// The status the peer gets.
        status: Status,
        /// Whether nothing more is read: the owner keeps writing until [`Conn::is_finished`].
        closing: bool,
    },
}

/// Fate of an offered frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It waits for the socket.
    Queued,
    /// It was not taken.
    Dropped(FrameDrop),
}

/// Why an interleaved frame was not sent. Frames are dropped whole (RTSP-44).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameDrop {
    /// The queue's bytes are used up.
    QueueFull,
    /// It waited longer than [`ConnLimits::rtp_age`].
    Late,
    /// Longer than the length field can say (65535 bytes), or a head over 12 bytes.
    TooLong,
    /// The connection is closing.
    Closing,
}

/// Why a deadline ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// No byte within [`ConnLimits::first_byte`].
    FirstByte,
    /// Head not complete.
    Head,
    /// Body not complete.
    Body,
    /// No message while there was no session.
    Idle,
    /// `$` frame not complete.
    Frame,
    /// The peer does not read.
    StuckWriter,
    /// Closing, and an answer or the peer's reading is still missing.
    Closing,
}

impl CloseReason {
    /// Stable name for logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstByte => "first_byte",
            Self::Head => "head",
            Self::Body => "body",
            Self::Idle => "idle",
            Self::Frame => "frame",
            Self::StuckWriter => "stuck_writer",
            Self::Closing => "closing",
        }
    }
}

/// What a connection has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnCounters {
    /// Messages received and understood.
    pub messages_in: u64,
    /// Frames received, empty ones included.
    pub frames_in: u64,
    /// Frames of length 0 (RTSP-42).
    pub empty_frames: u64,
    /// Responses nobody asked for (server role).
    pub stray_responses: u64,
    /// Requests of a camera, answered `501` (RTSP-8).
    pub camera_requests: u64,
    /// Inputs rejected.
    pub rejected: u64,
    /// Replies that answered no outstanding request.
    pub stray_replies: u64,
    /// Frames on channels the owner does not know.
    pub stray_frames: u32,
    /// Frames written completely.
    pub frames_out: u64,
    /// RTP frames dropped with [`FrameDrop::QueueFull`].
    pub rtp_full: u64,
    /// RTP frames dropped with [`FrameDrop::Late`].
    pub rtp_late: u64,
    /// RTCP frames dropped.
    pub rtcp_dropped: u64,
}

/// A request that arrived and is not answered on the wire yet.
#[derive(Debug)]
struct Outstanding {
    cseq: Option<u32>,
    reply: Option<Reply>,
}

#[derive(Debug)]
struct Reply {
    bytes: Bytes,
    close_after: bool,
}

/// What has been written partly.
#[derive(Debug)]
enum Unit {
    Message(Bytes),
    Frame(Frame),
}

/// One connection. See the module documentation for the owner's loop.
#[derive(Debug)]
pub struct Conn {
    role: Role,
    /// Those of all connections.
    limits: Arc<ConnLimits>,
    demux: Demux,
    counters: ConnCounters,

    outstanding: VecDeque<Outstanding>,
    session: bool,
    got_byte: bool,
    /// Creation, later the last message.
    active: Instant,
    /// What is unfinished, the stream offset where it starts, and since when.
    pending: (Pending, u64, Instant),
    /// Since when nothing more is read.
    closing: Option<Instant>,

    /// Unit that has been written up to this byte: it goes on before anything else.
    partial: Option<(Unit, usize)>,
    messages: VecDeque<Bytes>,
    message_bytes: usize,
    rtcp: Lane,
    rtp: Lane,
    hold: ChannelSet,
    /// Released as soon as no response waits for its turn.
    release: ChannelSet,
    /// Since when the output makes no progress.
    blocked: Option<Instant>,
    /// Whether the socket took less than it was offered last.
    refused: bool,
    offered: Offered,
}

/// How many units of each queue the last [`Conn::poll_transmit`] offered: they stay at the front until
/// [`Conn::advance`] says how much of them was written.
#[derive(Debug, Default)]
struct Offered {
    messages: usize,
    rtcp: usize,
    rtp: usize,
}

impl Conn {
    /// A connection that was opened at `now`. It allocates nothing until there is something to read, and shares
    /// the limits where they are given as an [`Arc`].
    pub fn new(role: Role, limits: impl Into<Arc<ConnLimits>>, now: Instant) -> Self {
        let limits = limits.into();
        let strictness = match role {
            Role::Server => Strictness::Downstream,
            Role::Client => Strictness::Upstream,
        };
        Self {
            role,
            demux: Demux::new(strictness, limits.parse),
            limits,
            counters: ConnCounters::default(),
            outstanding: VecDeque::new(),
            session: false,
            got_byte: false,
            active: now,
            pending: (Pending::Nothing, 0, now),
            closing: None,
            partial: None,
            messages: VecDeque::new(),
            message_bytes: 0,
            offered: Offered::default(),
            rtcp: Lane::default(),
            rtp: Lane::default(),
            hold: ChannelSet::default(),
            release: ChannelSet::default(),
            blocked: None,
            refused: false,
        }
    }

    /// Which side this end is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The bounds in force.
    pub fn limits(&self) -> &ConnLimits {
        &self.limits
    }

    /// What was counted.
    pub fn counters(&self) -> ConnCounters {
        let empty_frames = self.demux.empty_frames();
        ConnCounters { empty_frames, ..self.counters }
    }

    // ---- reading

    /// The buffer to append received bytes to, with room for at least 2 KiB: `try_read_buf` writes into it
    /// without a copy. Follow with [`Conn::handle_read`].
    pub fn read_buf(&mut self) -> &mut BytesMut {
        self.demux.read_buf()
    }

    /// Bytes were appended to [`Conn::read_buf`]: drain [`Conn::poll_event`] next.
    pub fn handle_read(&mut self, _now: Instant) {
        self.got_byte = true;
    }

    /// Copies `bytes` in; the same as [`Conn::read_buf`] and [`Conn::handle_read`].
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.read_buf().extend_from_slice(bytes);
        self.handle_read(now);
    }

    /// Whether to read from the socket: false with 10 requests outstanding (RTSP-7), with more answers
    /// queued than the peer reads, and when closing.
    pub fn wants_read(&self) -> bool {
        self.closing.is_none()
            && self.outstanding.len() < self.limits.outstanding
            && self.message_bytes <= self.limits.message_bytes
    }

    /// The next event out of what was received; `None` when more bytes or an answer are needed first.
    pub fn poll_event(&mut self, now: Instant) -> Option<ConnEvent> {
        while self.wants_read() {
            let item = match self.demux.poll() {
                Ok(Some(item)) => item,
                Ok(None) => {
                    let (pending, start) = (self.demux.pending(), self.demux.pending_since());
                    if (self.pending.0, self.pending.1) != (pending, start) {
                        self.pending = (pending, start, now);
                    }
                    return None;
                }
                Err(error) => return Some(self.reject(error, None, now)),
            };
            self.pending = (Pending::Nothing, 0, now);
            match item {
                Item::Frame { channel, payload } => {
                    self.counters.frames_in += 1;
                    return Some(ConnEvent::Frame { channel, payload });
                }
                Item::Message(Parsed::Message(Message::Request(request))) => {
                    self.counters.messages_in += 1;
                    self.active = now;
                    if self.role == Role::Server {
                        self.outstanding.push_back(Outstanding { cseq: request.cseq(), reply: None });
                        return Some(ConnEvent::Request(request));
                    }
                    self.refuse_camera(&request, now);
                }
                Item::Message(Parsed::Message(Message::Response(response))) => {
                    if self.role == Role::Client {
                        self.counters.messages_in += 1;
                        self.active = now;
                        return Some(ConnEvent::Response(response));
                    }
                    self.counters.stray_responses += 1;
                }
                Item::Message(Parsed::Malformed { error, cseq, response: false }) => {
                    self.active = now;
                    return Some(self.reject(error, cseq, now));
                }
                Item::Message(Parsed::Malformed { response: true, .. }) => self.counters.stray_responses += 1,
            }
        }
        None
    }

    /// RTSP-8: cameras make no requests of us; `501` keeps the connection.
    fn refuse_camera(&mut self, request: &Request, now: Instant) {
        self.counters.camera_requests += 1;
        let mut response = Response::new(Status::NOT_IMPLEMENTED);
        if let Some(cseq) = request.headers.get("CSeq") {
            response.headers.push("CSeq", cseq);
        }
        self.queue_message(write::response(&response), now);
    }

    /// Answers bad input in its turn (`docs/protocols/rtsp.md`, Messages). A camera gets no answer.
    fn reject(&mut self, error: ParseError, cseq: Option<u32>, now: Instant) -> ConnEvent {
        let (status, closing) = (error.status(), error.is_fatal());
        self.counters.rejected += 1;
        if self.role == Role::Server {
            let mut response = Response::new(status);
            if let Some(cseq) = cseq {
                response.headers.push("CSeq", cseq.to_string());
            }
            if closing {
                response.headers.push("Connection", "close");
            }
            let reply = Reply { bytes: write::response(&response), close_after: closing };
            self.outstanding.push_back(Outstanding { cseq, reply: Some(reply) });
        }
        if closing {
            self.stop_reading(now);
        }
        self.flush_replies(now);
        ConnEvent::Rejected { error, status, closing }
    }

    // ---- life

    /// Whether a session lives on this connection: suspends the idle deadline (server role).
    pub fn set_session(&mut self, exists: bool, now: Instant) {
        self.session = exists;
        self.active = now;
    }

    /// A frame arrived on a channel nobody owns (RTSP-41). Returns true when there were too many: close.
    pub fn count_stray_frame(&mut self) -> bool {
        self.counters.stray_frames = self.counters.stray_frames.saturating_add(1);
        self.counters.stray_frames >= self.limits.stray_frames
    }

    /// Nothing more is read, requests without an answer are abandoned and queued RTP is dropped; queued
    /// messages and RTCP (a BYE, RTP-24) are still written. Then [`Conn::is_finished`] is true.
    pub fn close(&mut self, now: Instant) {
        self.outstanding.clear();
        self.stop_reading(now);
    }

    fn stop_reading(&mut self, now: Instant) {
        self.closing.get_or_insert(now);
        self.pending = (Pending::Nothing, 0, now);
        self.rtp.clear(ChannelSet::ALL, self.offered.rtp);
        self.rtcp.clear_held(ChannelSet::ALL);
    }

    /// Closing and everything due is written: the owner closes the socket.
    pub fn is_finished(&self) -> bool {
        self.closing.is_some() && self.outstanding.is_empty() && !self.wants_write()
    }

    /// The earliest deadline and what it means.
    fn deadline(&self) -> Option<(Instant, CloseReason)> {
        let limits = &self.limits;
        let server = self.role == Role::Server && self.closing.is_none();
        let reading = self.wants_read();
        let (pending, _, since) = self.pending;
        let unfinished = match pending {
            Pending::Nothing => None,
            Pending::Head => Some((since + limits.head, CloseReason::Head)),
            Pending::Body(length) => {
                let extra = Duration::from_secs(length as u64 / 8192);
                Some((since + limits.body + extra, CloseReason::Body))
            }
            Pending::Frame => Some((since + limits.frame, CloseReason::Frame)),
        };
        let silent = match (server, self.got_byte) {
            (true, false) => Some((self.active + limits.first_byte, CloseReason::FirstByte)),
            (true, true) if !self.session && self.outstanding.is_empty() => {
                Some((self.active + limits.idle, CloseReason::Idle))
            }
            _ => None,
        };
        let blocked = self.blocked.filter(|_| self.wants_write());
        [
            unfinished.filter(|_| reading),
            silent,
            blocked.map(|since| (since + limits.stuck_writer, CloseReason::StuckWriter)),
            self.closing.map(|since| (since + limits.stuck_writer, CloseReason::Closing)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// When [`Conn::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline().map(|(at, _)| at)
    }

    /// Says whether a deadline has passed, which ends the connection; calling it early does nothing.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<CloseReason> {
        self.deadline().filter(|(at, _)| *at <= now).map(|(_, reason)| reason)
    }
}
