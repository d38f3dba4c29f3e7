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

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::message::{Request, Response, Status};
use crate::parse::{ParseError, ParseLimits};

/// Which side of RTSP this end of the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Viewers and publishers connected to us: requests in, responses out. Parsed strictly (SEC-9).
    Server,
    /// We dialled a camera: requests out, responses in. Parsed tolerantly (protocols.md 1.8).
    Client,
}

/// Bounds of one connection (protocols.md section 10).
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
    /// Longer than the length field can say (65535 bytes).
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

/// One connection. See the module documentation for the owner's loop.
#[derive(Debug)]
pub struct Conn {
    role: Role,
    limits: ConnLimits,
}

impl Conn {
    /// A connection that was opened at `now`.
    pub fn new(role: Role, limits: ConnLimits, now: Instant) -> Self {
        let _ = now;
        Self { role, limits }
    }

    /// Which side this end is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The buffer to append received bytes to, with room for at least 2 KiB: `try_read_buf` writes into it
    /// without a copy. Follow with [`Conn::handle_read`].
    pub fn read_buf(&mut self) -> &mut BytesMut {
        todo!()
    }

    /// Bytes were appended to [`Conn::read_buf`]: drain [`Conn::poll_event`] next.
    pub fn handle_read(&mut self, _now: Instant) {
        todo!()
    }

    /// Copies `bytes` in; the same as [`Conn::read_buf`] and [`Conn::handle_read`].
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.read_buf().extend_from_slice(bytes);
        self.handle_read(now);
    }

    /// Whether to read from the socket: false with 10 requests outstanding (RTSP-7), with a full message
    /// queue, and when closing.
    pub fn wants_read(&self) -> bool {
        todo!()
    }

    /// The next event out of what was received; `None` when more bytes or an answer are needed first.
    pub fn poll_event(&mut self, _now: Instant) -> Option<ConnEvent> {
        todo!()
    }

    /// Answers the oldest unanswered request of the response's `CSeq` (without one: the oldest of all).
    /// Answers leave in order of the requests, whatever the order of the calls (RTSP-6). With `close_after`
    /// nothing is read or sent after it. Returns false, and drops it, when no request waits for it.
    pub fn push_response(&mut self, _response: Response, _close_after: bool, _now: Instant) -> bool {
        todo!()
    }

    /// Sends a request (client role); its `CSeq` is the owner's, who matches the responses.
    pub fn push_request(&mut self, _request: &Request, _now: Instant) {
        todo!()
    }

    /// Queues an RTCP compound as one frame, ahead of RTP; a full queue drops its oldest frame.
    pub fn push_rtcp(&mut self, _channel: u8, _payload: Bytes, _now: Instant) -> Offer {
        todo!()
    }

    /// Queues one RTP packet as a frame of `head` followed by `tail`.
    ///
    /// `head`: at most 12 bytes, copied: the rewritten fixed header of a projected leg, or empty. `tail`: the
    /// rest of the packet, shared with the other legs.
    pub fn push_rtp(&mut self, _channel: u8, _head: &[u8], _tail: Bytes, _now: Instant) -> Offer {
        todo!()
    }

    /// Keeps frames of these channels in the queue until [`Conn::release_media`] (RTSP-44).
    pub fn hold_media(&mut self, _channels: &[u8]) {
        todo!()
    }

    /// Lets frames of these channels follow. Takes effect behind every response pushed before, one that
    /// still waits for the answer to an earlier request included.
    pub fn release_media(&mut self, _channels: &[u8], _now: Instant) {
        todo!()
    }

    /// Drops the queued frames of these channels and lifts their hold: their leg is gone.
    pub fn clear_media(&mut self, _channels: &[u8]) {
        todo!()
    }

    /// Fills `bufs` with what to write next: whole messages, then RTCP, then RTP, but first the rest of an
    /// item that has been written partly. Returns how many slices were filled; 0 means nothing to write.
    /// Follow with [`Conn::advance`], also when nothing could be written.
    pub fn poll_transmit<'a>(&'a mut self, _now: Instant, _bufs: &mut [IoSlice<'a>]) -> usize {
        todo!()
    }

    /// `written` bytes of the last [`Conn::poll_transmit`] went to the socket; 0 when it would block.
    pub fn advance(&mut self, _written: usize, _now: Instant) {
        todo!()
    }

    /// Whether [`Conn::poll_transmit`] has something to write.
    pub fn wants_write(&self) -> bool {
        todo!()
    }

    /// Payload bytes of RTP frames that wait, held ones included: the depth of the queue.
    pub fn rtp_depth(&self) -> usize {
        todo!()
    }

    /// Whether a session lives on this connection: suspends the idle deadline (server role).
    pub fn set_session(&mut self, _exists: bool, _now: Instant) {
        todo!()
    }

    /// A frame arrived on a channel nobody owns (RTSP-41). Returns true when there were too many: close.
    pub fn count_stray_frame(&mut self) -> bool {
        todo!()
    }

    /// Nothing more is read or accepted for sending; what is queued as messages is still written.
    pub fn close(&mut self, _now: Instant) {
        todo!()
    }

    /// Closing and everything due is written: the owner closes the socket.
    pub fn is_finished(&self) -> bool {
        todo!()
    }

    /// When [`Conn::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }

    /// Ends the connection if a deadline has passed.
    pub fn handle_timeout(&mut self, _now: Instant) -> Option<CloseReason> {
        todo!()
    }

    /// What was counted.
    pub fn counters(&self) -> &ConnCounters {
        todo!()
    }

    /// The bounds in force.
    pub fn limits(&self) -> &ConnLimits {
        &self.limits
    }
}
