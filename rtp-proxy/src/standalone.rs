//! Embeds the control plane: executes its actions, feeds it what happened, counts and logs.
//!
//! The only caller of the seam in this process. Decides nothing about sessions or streams.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use msm_control_plane::event::{Action, ConnEnd, Event, Note, NoteLevel, Now, OpToken};
use msm_control_plane::{ControlPlane, event::Entropy};
use msm_graph::{ConnId, LegOp, RowOp};
use msm_rtsp::conn::{ConnLimits, Role};
use msm_rtsp::message::Request;
use msm_runtime::metrics::Metrics;
use msm_runtime::telemetry::{LineLimiter, escape, redact};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

pub(crate) mod inventory;

use crate::dial;
use crate::front::{Accepted, canonical};
use crate::install::Installer;
use crate::user::UserEvent;
use crate::user::tcp::ConnHandle;

/// Results that may wait for the control loop.
const RESULTS: usize = 1024;

/// Lines of one event about one peer, per [`LINE_INTERVAL`].
const PEER_LINES: u32 = 5;
/// Lines of one event about one stream, per [`LINE_INTERVAL`]: its viewers share them.
const STREAM_LINES: u32 = 20;
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The result of something that was started and did not block the loop.
#[derive(Debug)]
pub enum Done {
    /// For the control plane as it is.
    Event(Event),
    /// A camera answered, or did not.
    Dialled(ConnId, Result<TcpStream, dial::DialError>),
}

/// Random bytes of the operating system.
#[derive(Debug)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&mut self, buf: &mut [u8]) {
        getrandom::fill(buf).expect("the kernel's random numbers never fail once the system is up");
    }
}

/// A connection as the control loop sees it.
#[derive(Debug)]
struct Open {
    handle: ConnHandle,
    /// Peer of an accepted connection; `None` for one that we dialled.
    peer: Option<SocketAddr>,
    /// Methods of requests that wait for their answer, oldest first.
    waiting: VecDeque<&'static str>,
}

/// The control plane and everything it has open.
#[derive(Debug)]
pub struct Standalone {
    plane: ControlPlane,
    installer: Installer,
    limits: Arc<ConnLimits>,
    max_connections: usize,
    open: HashMap<ConnId, Open>,
    /// Accepted connections by peer.
    accepted: HashMap<IpAddr, usize>,
    next_conn: u64,
    dialling: HashMap<ConnId, AbortHandle>,
    results: mpsc::Sender<Done>,
    /// Events that executing an action brought about.
    echoes: VecDeque<Event>,
    metrics: Rc<Metrics>,
    peer_lines: LineLimiter<(&'static str, String)>,
    stream_lines: LineLimiter<(&'static str, String)>,
    finished: bool,
}

impl Standalone {
    /// The executor, and the receiver whose items go to [`Standalone::handle_done`].
    pub fn new(
        plane: ControlPlane,
        installer: Installer,
        limits: Arc<ConnLimits>,
        max_connections: usize,
        metrics: Rc<Metrics>,
    ) -> (Self, mpsc::Receiver<Done>) {
        let (results, done) = mpsc::channel(RESULTS);
        let standalone = Self {
            plane,
            installer,
            limits,
            max_connections,
            open: HashMap::new(),
            accepted: HashMap::new(),
            next_conn: 1,
            dialling: HashMap::new(),
            results,
            echoes: VecDeque::new(),
            metrics,
            peer_lines: LineLimiter::new(PEER_LINES, LINE_INTERVAL),
            stream_lines: LineLimiter::new(STREAM_LINES, LINE_INTERVAL),
            finished: false,
        };
        (standalone, done)
    }

    /// The session logic, to be looked at.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Whether every leg and every source has ended after [`Event::Shutdown`].
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Somebody connected.
    pub fn handle_accepted(&mut self, accepted: Accepted) {
        let Accepted { stream, peer, local } = accepted;
        let of_peer = self.accepted.get(&peer.ip()).copied().unwrap_or_default();
        if self.accepted.values().sum::<usize>() >= self.max_connections {
            self.reject(peer, "connections");
            return;
        }
        // One address never takes every place.
        if of_peer >= self.max_connections.div_ceil(2) {
            self.reject(peer, "connections_of_address");
            return;
        }
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.accepted.insert(peer.ip(), of_peer + 1);
        let handle = self.installer.spawn_conn(stream, conn, Role::Server, self.limits.clone());
        self.open.insert(conn, Open { handle, peer: Some(peer), waiting: VecDeque::new() });
        self.handle(Event::Accepted { conn, peer, local });
    }

    /// The data path or a connection has news.
    pub fn handle_user(&mut self, event: UserEvent) {
        match event {
            UserEvent::Request { conn, request } => {
                if let Some(open) = self.open.get_mut(&conn) {
                    open.waiting.push_back(method_label(&request));
                }
                self.handle(Event::Request { conn, request });
            }
            UserEvent::Response { conn, response } => self.handle(Event::Response { conn, response }),
            UserEvent::Closed { conn, end } => {
                self.installer.forget_conn(conn);
                if let Some(peer) = self.open.remove(&conn).and_then(|open| open.peer) {
                    if let Some(of_peer) = self.accepted.get_mut(&peer.ip()) {
                        *of_peer -= 1;
                        if *of_peer == 0 {
                            self.accepted.remove(&peer.ip());
                        }
                    }
                    if let ConnEnd::Limit(reason) = &end {
                        self.reject(peer, reason);
                    }
                }
                self.handle(Event::Closed { conn, end });
            }
            UserEvent::Report(report) => self.handle(Event::Report(report)),
            UserEvent::Rejected { peer, reason } => self.reject(peer, reason),
        }
    }

    /// Something that was started has ended.
    pub fn handle_done(&mut self, done: Done) {
        match done {
            Done::Event(event) => self.handle(event),
            Done::Dialled(conn, result) => {
                // Closed while it was being opened: the control plane has been told.
                if self.dialling.remove(&conn).is_none() {
                    return;
                }
                let result = result.map_err(|error| error.to_string()).and_then(|stream| {
                    let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?)));
                    let (local, peer) = ends.map_err(|error| error.to_string())?;
                    let handle = self.installer.spawn_conn(stream, conn, Role::Client, self.limits.clone());
                    self.open.insert(conn, Open { handle, peer: None, waiting: VecDeque::new() });
                    Ok((canonical(local), canonical(peer)))
                });
                self.handle(Event::Dialled { conn, result });
            }
        }
    }

    /// The process is to end.
    pub fn handle_shutdown(&mut self, drain: Duration) {
        self.handle(Event::Shutdown { drain });
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self) {
        self.plane.handle_timeout(now());
        self.execute();
    }

    /// When [`Standalone::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.plane.poll_timeout()
    }

    fn handle(&mut self, event: Event) {
        self.plane.handle_event(now(), event);
        self.execute();
    }

    fn execute(&mut self) {
        loop {
            while let Some(action) = self.plane.poll_action() {
                self.execute_one(action);
            }
            let Some(echo) = self.echoes.pop_front() else { return };
            self.plane.handle_event(now(), echo);
        }
    }

    fn execute_one(&mut self, action: Action) {
        match action {
            Action::Reply { conn, response, close } => {
                let Some(open) = self.open.get_mut(&conn) else { return };
                if let Some(method) = open.waiting.pop_front() {
                    self.metrics.observe_request(method, response.status.0);
                }
                open.handle.reply(response, close);
            }
            Action::ReleaseMedia { conn, channels } => {
                self.with_conn(conn, |handle| handle.release_media(channels));
            }
            Action::Session { conn, exists } => self.with_conn(conn, |handle| handle.set_session(exists)),
            Action::Send { conn, request } => self.with_conn(conn, |handle| handle.send(request)),
            Action::Close { conn } => {
                if let Some(attempt) = self.dialling.remove(&conn) {
                    attempt.abort();
                    self.echoes.push_back(Event::Closed { conn, end: ConnEnd::Asked });
                }
                self.with_conn(conn, ConnHandle::close);
            }
            Action::Dial { conn, host, port, stream: _ } => self.dial(conn, host, port),
            Action::Row { token, op } => self.submit_row(token, op),
            Action::Leg { token, op } => self.submit_leg(token, op),
            Action::Note(note) => self.note(&note),
            Action::Finished => self.finished = true,
        }
    }

    fn with_conn(&self, conn: ConnId, act: impl FnOnce(&ConnHandle)) {
        // A connection that has just gone: its Closed is on its way.
        if let Some(open) = self.open.get(&conn) {
            act(&open.handle);
        }
    }

    fn dial(&mut self, conn: ConnId, host: String, port: u16) {
        let results = self.results.clone();
        let task = tokio::task::spawn_local(async move {
            let result = dial::dial(&host, port).await;
            let _ = results.send(Done::Dialled(conn, result)).await;
        });
        self.dialling.insert(conn, task.abort_handle());
    }

    fn submit_row(&self, token: OpToken, op: RowOp) {
        // The call fixes the order; only the answer is awaited beside the loop.
        let answer = self.installer.submit_row(op);
        let results = self.results.clone();
        tokio::task::spawn_local(async move {
            let result = answer.await;
            let _ = results.send(Done::Event(Event::RowDone { token, result })).await;
        });
    }

    fn submit_leg(&self, token: OpToken, op: LegOp) {
        let answer = self.installer.submit_leg(op);
        let results = self.results.clone();
        tokio::task::spawn_local(async move {
            let result = answer.await;
            let _ = results.send(Done::Event(Event::LegDone { token, result })).await;
        });
    }

    fn reject(&mut self, peer: SocketAddr, reason: &'static str) {
        self.metrics.observe_rejected(reason);
        if let Some(suppressed) = self.peer_lines.admit(Instant::now(), (reason, peer.ip().to_string())) {
            warn!(event = "input.rejected", %peer, reason, suppressed, "input rejected");
        }
    }

    fn note(&mut self, note: &Note) {
        self.metrics.observe_event(note.event);
        let field = |name: &str| note.fields.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
        if let Some(millis) = field("join_millis").and_then(|v| v.parse().ok()) {
            self.metrics.observe_join(field("warm") == Some("true"), Duration::from_millis(millis));
        }
        // What concerns a stream of ours is told per stream; the rest per peer, whoever it may be.
        let now = Instant::now();
        let admitted = match (field("stream_id"), field("peer")) {
            (Some(stream), _) => self.stream_lines.admit(now, (note.event, stream.to_owned())),
            (None, peer) => {
                let ip =
                    peer.and_then(|peer| peer.parse::<SocketAddr>().ok()).map(|peer| peer.ip().to_string());
                self.peer_lines.admit(now, (note.event, ip.unwrap_or_default()))
            }
        };
        let Some(suppressed) = admitted else { return };
        let suppressed = (suppressed > 0).then_some(suppressed);
        let shown = |name: &str| field(name).map(|value| escape(&redact(value)).to_string());
        let named = ["stream_id", "name", "session_id", "peer", "reason"];
        let rest: Vec<_> = note.fields.iter().filter(|(name, _)| !named.contains(name)).collect();
        let detail = rest.iter().map(|(n, v)| format!("{n}={}", escape(&redact(v)))).collect::<Vec<_>>();
        let detail = (!detail.is_empty()).then(|| detail.join(" "));
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    event = note.event,
                    stream_id = shown("stream_id"),
                    name = shown("name"),
                    session_id = shown("session_id"),
                    peer = shown("peer"),
                    reason = shown("reason"),
                    detail,
                    suppressed,
                )
            };
        }
        match note.level {
            NoteLevel::Debug => line!(debug),
            NoteLevel::Info => line!(info),
            NoteLevel::Warn => line!(warn),
        }
    }
}

/// Both clocks.
pub(crate) fn now() -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), unix }
}

/// The method as a metric label: a closed set, whatever peers send.
fn method_label(request: &Request) -> &'static str {
    label_of(request.method.as_str())
}

fn label_of(method: &str) -> &'static str {
    const LABELS: [&str; 11] = [
        "ANNOUNCE",
        "DESCRIBE",
        "GET_PARAMETER",
        "OPTIONS",
        "PAUSE",
        "PLAY",
        "RECORD",
        "REDIRECT",
        "SETUP",
        "SET_PARAMETER",
        "TEARDOWN",
    ];
    LABELS.into_iter().find(|label| *label == method).unwrap_or("other")
}
