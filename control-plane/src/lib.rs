//! RTSP sessions, upstream sessions and the catalog of streams, as a sans-IO library.
//!
//! [`ControlPlane`] is one machine: events in, actions out, time and randomness passed in. It never
//! touches a socket; `rtp-proxy standalone` executes its actions in process, a mesh by gRPC. What it asks
//! of the packet path are row and leg operations of `msm-graph` and nothing else.
//!
//! ```text
//! control.handle_event(now, event);  or  control.handle_timeout(now);
//! while let Some(action) = control.poll_action() { execute in order }
//! sleep until control.poll_timeout()
//! ```

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod config;
pub mod event;
pub mod inventory;
pub mod resolve;
pub mod status;

mod access;
mod catalog;
mod conns;
mod description;
mod ending;
mod quota;
mod sessions;
mod streams;
mod timer;
mod upstream;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Instant;

use msm_graph::{ConnId, LegId, LegOp, Report, RowOp, StreamId};

use crate::access::AccessPolicy;
use crate::catalog::{Catalog, Source, Stream};
use crate::config::{Config, ConfigError};
use crate::conns::{Conn, Ticket};
use crate::ending::Ending;
use crate::event::{Action, Entropy, Event, Note, NoteLevel, Now, OpToken};
use crate::quota::Quotas;
use crate::resolve::{SourceRoute, fixed::FixedResolver};
use crate::sessions::{Session, SessionKey};
use crate::timer::{Timers, Wake};
use crate::upstream::Upstream;

/// Ids of dialled connections have this bit, those of accepted ones have not.
const DIALLED: u64 = 1 << 63;

/// What a row or leg operation was for.
#[derive(Debug, Clone, Copy)]
enum Operation {
    /// Nobody waits for it.
    Unattended,
    /// Inputs of a pulled stream, at a stage of its upstream.
    Upstream(StreamId, u32),
    /// A request on a connection waits for it.
    Request(Ticket),
    /// A leg that we ended: its connection is closed afterwards (RTP-24).
    Goodbye(Option<ConnId>),
}

/// The machine. See the crate documentation for its loop.
pub struct ControlPlane {
    config: Config,
    entropy: Box<dyn Entropy>,
    actions: VecDeque<Action>,
    timers: Timers,
    operations: HashMap<OpToken, Operation>,
    last_token: u64,
    last_conn: u64,
    last_session: u64,
    resolver: FixedResolver,
    catalog: Catalog,
    // Boxed: a table has room for up to twice as many as it holds.
    conns: HashMap<ConnId, Box<Conn>>,
    /// Connections with a request whose turn has come.
    runnable: VecDeque<ConnId>,
    sessions: HashMap<SessionKey, Box<Session>>,
    session_ids: HashMap<String, SessionKey>,
    session_legs: HashMap<LegId, SessionKey>,
    upstream_conns: HashMap<ConnId, StreamId>,
    quotas: Quotas,
    access: AccessPolicy,
    ending: Option<Ending>,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane")
            .field("streams", &self.catalog.streams.len())
            .field("sessions", &self.sessions.len())
            .field("conns", &self.conns.len())
            .finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// A machine with the routes of `config`. Nothing is dialled before a viewer asks.
    ///
    /// # Errors
    /// [`ConfigError`] for a route that cannot be used.
    pub fn new(config: Config, entropy: Box<dyn Entropy>) -> Result<Self, ConfigError> {
        let resolver = FixedResolver::new(&config.pulls)?;
        Ok(Self {
            quotas: Quotas::new(&config.limits),
            access: AccessPolicy::new(&config),
            config,
            entropy,
            actions: VecDeque::new(),
            timers: Timers::default(),
            operations: HashMap::new(),
            last_token: 0,
            last_conn: 0,
            last_session: 0,
            resolver,
            catalog: Catalog::default(),
            conns: HashMap::new(),
            runnable: VecDeque::new(),
            sessions: HashMap::new(),
            session_ids: HashMap::new(),
            session_legs: HashMap::new(),
            upstream_conns: HashMap::new(),
            ending: None,
        })
    }

    /// Takes an event. Drain [`ControlPlane::poll_action`] afterwards.
    pub fn handle_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Accepted { conn, peer, local } => self.handle_accepted(now, conn, peer, local),
            Event::Request { conn, request } => self.handle_request(now, conn, request),
            Event::Dialled { conn, result } => self.handle_dialled(now, conn, result),
            Event::Response { conn, response } => self.handle_response(now, conn, response),
            Event::Closed { conn, .. } => self.handle_closed(now, conn),
            Event::RowDone { token, result } => match self.operations.remove(&token) {
                Some(Operation::Upstream(stream, stage)) => {
                    if let Some(upstream) = self.upstream_mut(stream) {
                        upstream.handle_row(now.instant, stage, result);
                    }
                    self.run_upstream(now, stream);
                }
                Some(Operation::Request(ticket)) => self.complete_row(now, ticket, result),
                Some(Operation::Unattended) => {
                    if let Err(error) = result {
                        self.note(NoteLevel::Warn, "row.failed", vec![("reason", format!("{error:?}"))]);
                    }
                }
                Some(Operation::Goodbye(_)) | None => {}
            },
            Event::LegDone { token, result } => match self.operations.remove(&token) {
                Some(Operation::Request(ticket)) => self.complete_leg(now, ticket, result),
                Some(Operation::Goodbye(conn)) => self.complete_goodbye(conn),
                Some(Operation::Unattended | Operation::Upstream(..)) | None => {}
            },
            Event::Report(report) => self.handle_report(now, report),
            Event::Shutdown { drain } => self.handle_shutdown(now, drain),
        }
        self.run(now);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(wake) = self.timers.pop_due(now.instant) {
            match wake {
                Wake::Conn(conn) => self.handle_conn_timeout(now, conn),
                Wake::Announcement(conn) => self.handle_announcement_timeout(now, conn),
                Wake::Session(session) => self.handle_session_timeout(now, session),
                Wake::Upstream(stream) => {
                    if let Some(stream) = self.catalog.get_mut(stream) {
                        stream.armed = None;
                    }
                    if let Some(upstream) = self.upstream_mut(stream) {
                        upstream.handle_timeout(now.instant);
                    }
                    self.run_upstream(now, stream);
                }
                Wake::Ending => self.handle_ending_timeout(now),
            }
            self.run(now);
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`ControlPlane::handle_timeout`] is due next. Waking without anything to do is harmless.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Number of RTSP sessions, viewers' and publishers'.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Works off requests whose turn has come, and ends the process when it may.
    fn run(&mut self, now: Now) {
        while let Some(conn) = self.runnable.pop_front() {
            self.run_conn(now, conn);
        }
        self.check_ending(now);
    }

    fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    fn make_stream_id(&mut self, now: Now) -> StreamId {
        StreamId::new(now.unix.as_millis() as u64, self.random())
    }

    fn make_leg_id(&mut self, now: Now) -> LegId {
        LegId::new(now.unix.as_millis() as u64, self.random())
    }

    fn send_row(&mut self, op: RowOp, operation: Operation) {
        self.last_token += 1;
        let token = OpToken(self.last_token);
        self.operations.insert(token, operation);
        self.actions.push_back(Action::Row { token, op });
    }

    fn send_leg(&mut self, op: LegOp, operation: Operation) {
        self.last_token += 1;
        let token = OpToken(self.last_token);
        self.operations.insert(token, operation);
        self.actions.push_back(Action::Leg { token, op });
    }

    fn note(&mut self, level: NoteLevel, event: &'static str, fields: Vec<(&'static str, String)>) {
        self.actions.push_back(Action::Note(Note { event, fields, level }));
    }

    fn upstream_mut(&mut self, stream: StreamId) -> Option<&mut Upstream> {
        self.catalog.get_mut(stream)?.upstream_mut()
    }

    /// The stream of `name`: one that exists, or a configured pull that is made now.
    fn find_stream(&mut self, now: Now, name: &str) -> Option<StreamId> {
        self.forget_changed_pull(name);
        if let Some(id) = self.catalog.find(name) {
            return Some(id);
        }
        let route = self.resolver.resolve(name)?.clone();
        // Another name of the same source: the same stream (R6).
        let shared = self.find_pull(&route);
        if let Some(id) = shared {
            self.catalog.names.insert(name.to_owned(), id);
            return Some(id);
        }
        let id = self.make_stream_id(now);
        let cnonce = self.random();
        let sdp_id = now.unix.as_secs();
        let upstream = Upstream::new(route, self.config.agent.clone(), self.config.times.clone(), cnonce);
        self.catalog.insert(Stream::new(id, name.to_owned(), Source::Pull(Box::new(upstream)), sdp_id));
        Some(id)
    }

    fn find_pull(&self, route: &SourceRoute) -> Option<StreamId> {
        // Walks over configured pulls, once per name.
        self.catalog.streams.values().find_map(|stream| match &stream.source {
            Source::Pull(upstream) if upstream.route() == route => Some(stream.id),
            _ => None,
        })
    }

    fn handle_report(&mut self, now: Now, report: Report) {
        match report {
            Report::LegAlive { leg } => {
                if let Some(session) = self.session_legs.get(&leg).and_then(|key| self.sessions.get_mut(key))
                {
                    session.server.touch(now.instant);
                }
            }
            Report::LegFailed { leg, reason } => {
                if let Some(key) = self.session_legs.get(&leg).copied() {
                    self.end_session(now, key, reason.as_str(), true);
                }
            }
            Report::InputActive { stream, track } => {
                self.observe_track_active(stream, track);
                self.observe_active(now, stream);
            }
            Report::InputAlive { stream } => self.observe_active(now, stream),
            Report::InputSilent { stream, silent_for, ever: _ } => {
                self.observe_silent(now, stream, silent_for);
            }
            Report::TrackSilent { stream, track, silent_for, ever } => {
                self.observe_track_silent(now, stream, track, silent_for, ever);
            }
            Report::InputBye { stream, track } => self.note(
                NoteLevel::Info,
                "source.bye",
                vec![("stream_id", stream.to_string()), ("track", track.to_string())],
            ),
        }
    }
}
