//! What goes into and comes out of [`crate::ControlPlane`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use msm_graph::{ConnId, LegOp, LegState, Report, RowOp, RowState, StreamId};
use msm_rtsp::message::{Request, Response};

/// A reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic time: every deadline is computed from it.
    pub instant: Instant,
    /// Time since the Unix epoch: goes into ids only.
    pub unix: Duration,
}

/// A source of random bytes: session ids, nonces, the random half of a UUIDv7.
pub trait Entropy {
    /// Fills `buf` with unpredictable bytes.
    fn fill(&mut self, buf: &mut [u8]);
}

/// Names an operation until its result comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpToken(pub u64);

/// Why a row or leg operation failed. The data path has undone its half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpError {
    /// Ports, table entries or memory are used up: `453` towards the viewer.
    Exhausted(String),
    /// The stream, leg or connection that it names is gone.
    NotFound(String),
    /// A lower epoch than the node has seen.
    StaleEpoch,
    /// The operating system refused: `503` towards the viewer.
    Io(String),
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnEnd {
    /// The peer closed it.
    Peer,
    /// We closed it as asked.
    Asked,
    /// The peer broke the protocol; the conn has answered what could be answered.
    Protocol(String),
    /// A limit (`docs/protocols/rtsp.md`, Limits) ended it; its name.
    Limit(&'static str),
    /// The operating system's words.
    Io(String),
}

/// An event for the control plane.
#[derive(Debug)]
pub enum Event {
    /// A viewer or publisher connected.
    Accepted {
        /// The connection.
        conn: ConnId,
        /// Its address.
        peer: SocketAddr,
        /// The address it reached us at.
        local: SocketAddr,
    },
    /// A complete request arrived on an accepted connection, in order.
    Request {
        /// The connection.
        conn: ConnId,
        /// The request. `CSeq` is present and a number; the connection has seen to that.
        request: Request,
    },
    /// A connection that [`Action::Dial`] asked for is open, or could not be opened.
    Dialled {
        /// The connection.
        conn: ConnId,
        /// Local and peer address, or the operating system's words.
        result: Result<(SocketAddr, SocketAddr), String>,
    },
    /// A response arrived on a dialled connection.
    Response {
        /// The connection.
        conn: ConnId,
        /// The response.
        response: Response,
    },
    /// A connection is gone.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why.
        end: ConnEnd,
    },
    /// The result of [`Action::Row`].
    RowDone {
        /// The operation.
        token: OpToken,
        /// Its acknowledgement.
        result: Result<RowState, OpError>,
    },
    /// The result of [`Action::Leg`].
    LegDone {
        /// The operation.
        token: OpToken,
        /// Its acknowledgement.
        result: Result<LegState, OpError>,
    },
    /// The packet path observed something.
    Report(Report),
    /// The process is to end: answer `503` to new sessions, and at `now` end every leg with BYE and every
    /// upstream session with TEARDOWN, or with `drain` wait for the legs to leave first.
    Shutdown {
        /// How long to keep forwarding while legs are left; zero ends them at once.
        drain: Duration,
    },
}

/// What the control plane wants done.
#[derive(Debug)]
pub enum Action {
    /// Answer a request. The connection adds nothing but framing: `CSeq` is set.
    Reply {
        /// The connection.
        conn: ConnId,
        /// The response.
        response: Response,
        /// Close the connection after the response is written.
        close: bool,
    },
    /// Let queued media of an interleaved leg follow: its PLAY response has been handed over (RTSP-44).
    /// Always right after the [`Action::Reply`] in question.
    ReleaseMedia {
        /// The connection.
        conn: ConnId,
        /// Channels of RTP and RTCP that may flow now.
        channels: Vec<u8>,
    },
    /// Whether a session lives on an accepted connection: suspends its idle deadline.
    Session {
        /// The connection.
        conn: ConnId,
        /// Whether there is one.
        exists: bool,
    },
    /// Open a connection to a camera from this node. [`Action::Close`] also ends an attempt.
    Dial {
        /// The id it will have; those have the highest bit set, which ids of accepted connections have not.
        conn: ConnId,
        /// Host name or address literal without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// The stream it is for: an interleaved connection lives on that stream's worker.
        stream: StreamId,
    },
    /// Send a request on a dialled connection.
    Send {
        /// The connection.
        conn: ConnId,
        /// The request, `CSeq` first.
        request: Request,
    },
    /// Close a connection.
    Close {
        /// The connection.
        conn: ConnId,
    },
    /// Apply a row operation; the answer is [`Event::RowDone`].
    Row {
        /// Names the answer.
        token: OpToken,
        /// The operation.
        op: RowOp,
    },
    /// Apply a leg operation; the answer is [`Event::LegDone`].
    Leg {
        /// Names the answer.
        token: OpToken,
        /// The operation.
        op: LegOp,
    },
    /// Count and log: an operator may want to know.
    Note(Note),
    /// After [`Event::Shutdown`]: every leg and every upstream session has ended.
    Finished,
}

/// A fact for logs and counters, with a stable name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Event name, for example `session_started`, `source_switch`, `auth_failed`.
    pub event: &'static str,
    /// Log fields in order: `stream_id`, `session_id` (first 8 characters), `peer`, `reason` and so on.
    pub fields: Vec<(&'static str, String)>,
    /// How much it matters.
    pub level: NoteLevel,
}

/// Level of a [`Note`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoteLevel {
    /// For developers of a site.
    Debug,
    /// Normal life.
    Info,
    /// Something is wrong and service continues.
    Warn,
}
