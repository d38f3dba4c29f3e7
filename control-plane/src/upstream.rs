//! One camera's RTSP session, however many viewers it has: opened by the first PLAY, kept alive, reopened
//! while viewers stay, closed a linger after the last (RTSP-24, RTSP-27, RTSP-28).
//!
//! A machine of its own. It decides when to dial, which transport to ask for (RTSP-15) and when a camera
//! is gone; its owner executes the outputs and tells it about demand and packets. It must not know
//! viewers, and nothing it knows of the camera reaches them.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use msm_graph::{ConnId, InputRow, PortPair, RowState};
use msm_rtsp::client::{Client, ClientOutput};
use msm_rtsp::message::{Request, Response, Status};
use msm_rtsp::transport::{Agreed, LowerTransport, Profile};

use crate::config::{PullTransport, Times};
use crate::event::OpError;
use crate::resolve::SourceRoute;

pub(crate) mod inventory;
mod recovery;
mod setup;
mod silence;
mod words;

pub(crate) use words::in_words;

/// Longest wait for the answer to TEARDOWN.
const TEARDOWN_WAIT: Duration = Duration::from_secs(1);

/// Of a row of failed attempts, one in so many is worth a line.
const FAILURES_PER_LINE: u32 = 60;

/// Reason of a failure: the camera wants credentials that we do not have, or refused ours.
const UNAUTHORIZED: &str = "unauthorized";

/// Reason of a failure: only Basic would do, and the route does not allow it (RTSP-38).
pub(crate) const BASIC_NOT_ALLOWED: &str = "basic_not_allowed";

/// Event: a camera that played is gone.
pub(crate) const LOST: &str = "upstream.lost";

/// One media to set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpstreamMedia {
    /// Index in the SDP.
    pub(crate) index: usize,
    /// Control URL.
    pub(crate) url: String,
    /// Profile to ask for.
    pub(crate) profile: Profile,
}

/// What an upstream wants done.
#[derive(Debug)]
pub(crate) enum UpstreamOutput {
    /// Open a connection; answer with [`Upstream::set_conn`], then [`Upstream::handle_dialled`].
    Dial,
    /// Send on the connection.
    Send(ConnId, Request),
    /// Close the connection.
    Close(ConnId),
    /// The SDP arrived; answer with [`Upstream::set_media`] or [`Upstream::reject_description`].
    Described { sdp: Bytes, content_base: Option<String>, content_location: Option<String> },
    /// Install these inputs; the result is wanted by [`Upstream::handle_row`] with this stage.
    Install(u32, Vec<InputRow>),
    /// The source is away: inputs are gone.
    Away,
    /// Opening failed: everybody who waits gets this status.
    /// `detail`: the camera's status or the operating system's words, for the operator. `is_news`: not one
    /// of a row of failed attempts.
    Failed { status: Status, reason: &'static str, detail: String, is_news: bool },
    /// A fact to log, with a reason.
    Note(&'static str, &'static str),
    /// Nothing is open and nothing is wanted.
    Gone,
}

/// Where the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Dialling,
    Describing,
    /// The SDP is known and no media is set up.
    Described,
    /// Local ports are being opened.
    Ports,
    SettingUp,
    /// Inputs are being installed as the camera answered.
    Installing,
    /// PLAY is sent.
    Starting,
    Playing,
    /// TEARDOWN is sent.
    Closing,
    /// Until the next attempt.
    Backoff,
}

/// Who wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Demand {
    /// Viewers play.
    pub(crate) playing: bool,
    /// Requests wait for the SDP.
    pub(crate) waiting: bool,
}

/// The machine. Outputs are drained after every call that takes `now`.
#[derive(Debug)]
pub(crate) struct Upstream {
    route: SourceRoute,
    agent: String,
    cnonce: [u8; 8],
    times: Times,
    phase: Phase,
    conn: Option<ConnId>,
    client: Option<Client>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    last_peer: Option<IpAddr>,
    media: Vec<UpstreamMedia>,
    next: usize,
    lower: LowerTransport,
    prefers_tcp: bool,
    refused_tcp: bool,
    agreed: Vec<Option<Agreed>>,
    ports: Vec<Option<PortPair>>,
    generation: u32,
    stage: u32,
    demand: Demand,
    attempts: u32,
    /// Failures in a row.
    failures: u32,
    failure: Option<(Instant, Status)>,
    deadline: Option<Instant>,
    linger: Option<Instant>,
    probe: Option<Instant>,
    has_inputs: bool,
    active: bool,
    outputs: VecDeque<UpstreamOutput>,
}

impl Upstream {
    /// A machine that does nothing until there is demand. `cnonce`: random bytes.
    pub(crate) fn new(route: SourceRoute, agent: String, times: Times, cnonce: [u8; 8]) -> Self {
        Self {
            lower: LowerTransport::Udp,
            route,
            agent,
            cnonce,
            times,
            phase: Phase::Idle,
            conn: None,
            client: None,
            local: None,
            peer: None,
            last_peer: None,
            media: Vec::new(),
            next: 0,
            prefers_tcp: false,
            refused_tcp: false,
            agreed: Vec::new(),
            ports: Vec::new(),
            generation: 0,
            stage: 0,
            demand: Demand::default(),
            attempts: 0,
            failures: 0,
            failure: None,
            deadline: None,
            linger: None,
            probe: None,
            has_inputs: false,
            active: false,
            outputs: VecDeque::new(),
        }
    }

    /// Where it leads.
    pub(crate) fn route(&self) -> &SourceRoute {
        &self.route
    }

    /// The connection, while there is one.
    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.conn
    }

    /// Transport and camera, while media is set up.
    pub(crate) fn transport(&self) -> Option<LowerTransport> {
        matches!(self.phase, Phase::Installing | Phase::Starting | Phase::Playing).then_some(self.lower)
    }

    /// Address of the camera, while connected.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// The address that the camera was last reached at.
    pub(crate) fn last_peer(&self) -> Option<IpAddr> {
        self.last_peer
    }

    /// Whether the SDP of this connection is known: only then may it be handed out (RTSP-28).
    pub(crate) fn is_described(&self) -> bool {
        !matches!(
            self.phase,
            Phase::Idle | Phase::Dialling | Phase::Describing | Phase::Closing | Phase::Backoff
        )
    }

    /// Whether PLAY has been answered.
    pub(crate) fn is_playing(&self) -> bool {
        self.phase == Phase::Playing
    }

    /// Whether nothing is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// The failure to answer from memory, if it is young enough (RTSP-28).
    pub(crate) fn cached_failure(&self, now: Instant) -> Option<Status> {
        let (at, status) = self.failure?;
        (now.saturating_duration_since(at) < self.times.failure_cache).then_some(status)
    }

    /// The next output.
    pub(crate) fn poll_output(&mut self) -> Option<UpstreamOutput> {
        self.outputs.pop_front()
    }

    /// When [`Upstream::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let client = self.client.as_ref().and_then(Client::poll_timeout);
        [client, self.deadline, self.linger, self.probe].into_iter().flatten().min()
    }

    /// Who wants it has changed, perhaps.
    pub(crate) fn set_demand(&mut self, now: Instant, demand: Demand) {
        self.demand = demand;
        self.progress(now);
    }

    /// The connection that [`UpstreamOutput::Dial`] opens has this id.
    pub(crate) fn set_conn(&mut self, conn: ConnId) {
        self.conn = Some(conn);
    }

    /// The connection is open, or not.
    pub(crate) fn handle_dialled(&mut self, now: Instant, result: Result<(SocketAddr, SocketAddr), String>) {
        if self.phase != Phase::Dialling {
            return;
        }
        let (local, peer) = match result {
            Ok(addresses) => addresses,
            Err(words) => {
                self.conn = None;
                return self.fail_with(now, Status::BAD_GATEWAY, "connect", words);
            }
        };
        self.local = Some(local);
        self.peer = Some(peer);
        self.last_peer = Some(peer.ip());
        let mut client = Client::new(self.client_config());
        client.describe(now);
        self.client = Some(client);
        self.enter(Phase::Describing);
        self.drain_client(now);
    }

    /// A response arrived.
    pub(crate) fn handle_response(&mut self, now: Instant, conn: ConnId, response: Response) {
        if self.conn == Some(conn)
            && let Some(client) = &mut self.client
        {
            client.handle_response(now, response);
            self.drain_client(now);
        }
    }

    /// The connection is gone.
    pub(crate) fn handle_closed(&mut self, now: Instant, conn: ConnId) {
        if self.conn != Some(conn) {
            return;
        }
        self.conn = None;
        self.client = None;
        match self.phase {
            Phase::Closing => self.rest(now),
            // Nobody waits for anything: cameras close idle connections.
            Phase::Described if !self.demand.playing => self.rest(now),
            Phase::Playing => self.lose(now, "connection_closed"),
            _ => self.fail(now, Status::BAD_GATEWAY, "connection_closed"),
        }
    }

    /// The SDP is understood: these media can be set up.
    pub(crate) fn set_media(&mut self, now: Instant, aggregate: String, media: Vec<UpstreamMedia>) {
        if self.phase != Phase::Describing {
            return;
        }
        if let Some(client) = &mut self.client {
            client.set_aggregate(aggregate);
        }
        self.media = media;
        self.failure = None;
        self.enter(Phase::Described);
        self.progress(now);
    }

    /// The SDP is none, or has no media that can be set up.
    pub(crate) fn reject_description(&mut self, now: Instant) {
        self.fail(now, Status::BAD_GATEWAY, "description");
    }

    /// The result of [`UpstreamOutput::Install`].
    pub(crate) fn handle_row(&mut self, now: Instant, stage: u32, result: Result<RowState, OpError>) {
        if stage != self.stage || !matches!(self.phase, Phase::Ports | Phase::Installing) {
            return;
        }
        let state = match result {
            Ok(state) => state,
            Err(OpError::Exhausted(_)) => return self.fail(now, Status::NOT_ENOUGH_BANDWIDTH, "exhausted"),
            Err(_) => return self.fail(now, Status::SERVICE_UNAVAILABLE, "install"),
        };
        if self.phase == Phase::Installing {
            self.enter(Phase::Starting);
            if let Some(client) = &mut self.client {
                client.play(now);
            }
            return self.drain_client(now);
        }
        self.ports = self
            .media
            .iter()
            .map(|media| {
                let input = state.inputs.iter().find(|input| usize::from(input.track.0) == media.index)?;
                input.local
            })
            .collect();
        self.enter(Phase::SettingUp);
        self.set_up_next(now);
    }

    /// Deadlines.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(client) = &mut self.client
            && client.poll_timeout().is_some_and(|at| at <= now)
        {
            client.handle_timeout(now);
            self.drain_client(now);
        }
        if self.probe.is_some_and(|at| at <= now) {
            self.probe = None;
            if self.phase == Phase::Playing {
                return self.reopen(now, "unanswered");
            }
        }
        if self.linger.is_some_and(|at| at <= now) {
            self.linger = None;
            return self.close(now);
        }
        if self.deadline.is_some_and(|at| at <= now) {
            self.deadline = None;
            match self.phase {
                Phase::Dialling => self.fail(now, Status::GATEWAY_TIMEOUT, "connect_timeout"),
                Phase::Backoff => {
                    self.enter(Phase::Idle);
                    self.progress(now);
                    self.tell_if_gone();
                }
                Phase::Closing => self.finish_closing(now),
                Phase::Ports | Phase::Installing => {
                    self.fail(now, Status::SERVICE_UNAVAILABLE, "install_timeout");
                }
                Phase::Playing if !self.active && self.lower == LowerTransport::Udp => {
                    self.prefers_tcp = true;
                    self.outputs.push_back(UpstreamOutput::Note("upstream.fallback", "no_packet"));
                    self.reopen(now, "fallback");
                }
                _ => {}
            }
        }
    }

    /// Ends the session whatever the demand; [`UpstreamOutput::Gone`] follows.
    pub(crate) fn close(&mut self, now: Instant) {
        self.linger = None;
        self.probe = None;
        match self.phase {
            Phase::Idle => self.outputs.push_back(UpstreamOutput::Gone),
            Phase::Closing => {}
            Phase::Backoff => self.rest(now),
            _ => {
                self.take_inputs_away();
                self.enter(Phase::Closing);
                self.deadline = Some(now + TEARDOWN_WAIT);
                match &mut self.client {
                    Some(client) => {
                        client.teardown(now);
                        self.drain_client(now);
                    }
                    None => self.finish_closing(now),
                }
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.deadline = None;
    }

    /// Does what the demand asks for next.
    fn progress(&mut self, now: Instant) {
        match self.phase {
            Phase::Idle if self.demand.playing || self.demand.waiting => self.dial(now),
            Phase::Described if self.demand.playing => {
                self.linger = None;
                self.open(now);
            }
            Phase::Described | Phase::Playing => {
                if self.demand.playing {
                    self.linger = None;
                } else if self.linger.is_none() || self.demand.waiting {
                    self.linger = Some(now + self.times.linger);
                }
            }
            _ => {}
        }
    }

    /// Somebody used the SDP: the linger starts anew.
    pub(crate) fn touch(&mut self, now: Instant) {
        if self.linger.is_some() {
            self.linger = Some(now + self.times.linger);
        }
    }

    fn dial(&mut self, now: Instant) {
        self.enter(Phase::Dialling);
        self.deadline = Some(now + self.times.dial);
        self.local = None;
        self.peer = None;
        self.outputs.push_back(UpstreamOutput::Dial);
    }

    fn drain_client(&mut self, now: Instant) {
        while let Some(output) = self.client.as_mut().and_then(Client::poll_output) {
            match output {
                ClientOutput::Send(request) => {
                    if let Some(conn) = self.conn {
                        self.outputs.push_back(UpstreamOutput::Send(conn, request));
                    }
                }
                ClientOutput::Described { sdp, content_base, content_location } => {
                    self.outputs.push_back(UpstreamOutput::Described { sdp, content_base, content_location });
                }
                ClientOutput::SetUp { media, agreed } if self.phase == Phase::SettingUp => {
                    self.accept(now, media, agreed);
                }
                ClientOutput::Playing { .. } if self.phase == Phase::Starting => {
                    self.enter(Phase::Playing);
                    let may_fall_back =
                        self.lower == LowerTransport::Udp && self.route.transport == PullTransport::Auto;
                    if may_fall_back && !self.active {
                        self.deadline = Some(now + self.times.udp_fallback);
                    }
                    self.outputs.push_back(UpstreamOutput::Note("upstream.playing", self.transport_name()));
                    self.progress(now);
                }
                ClientOutput::Alive => self.probe = None,
                ClientOutput::Unanswered => {
                    self.outputs.push_back(UpstreamOutput::Note("upstream.keepalive_unanswered", ""));
                }
                ClientOutput::SessionLost => {
                    self.outputs.push_back(UpstreamOutput::Note("upstream.session_lost", "454"));
                    if self.phase == Phase::Playing {
                        // The legs stay, only the camera's half starts over (RTSP-24).
                        self.open(now);
                    } else {
                        self.fail(now, Status::BAD_GATEWAY, "session_lost");
                    }
                }
                ClientOutput::TornDown if self.phase == Phase::Closing => self.finish_closing(now),
                ClientOutput::Failed(error) => self.handle_failure(now, error),
                ClientOutput::SetUp { .. }
                | ClientOutput::Playing { .. }
                | ClientOutput::Paused
                | ClientOutput::TornDown => {}
            }
        }
    }

    /// `tcp` or `udp`.
    pub(crate) fn transport_name(&self) -> &'static str {
        match self.lower {
            LowerTransport::Udp => "udp",
            LowerTransport::Tcp => "tcp",
        }
    }
}
