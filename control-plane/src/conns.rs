//! Accepted connections: requests one at a time in their order (RTSP-6), who may ask, and what each
//! request is about. What a session does with it is `sessions.rs`.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use msm_graph::ConnId;
use msm_rtsp::auth::ConnAuth;
use msm_rtsp::message::{Method, Request, Response, Status};
use msm_rtsp::server::{self, PUBLIC};
use msm_rtsp::transport::ChannelTable;
use msm_rtsp::url::{RequestTarget, ResourceUrl, UrlRule, content_base};

use crate::ControlPlane;
use crate::access::Access;
use crate::event::{Action, NoteLevel, Now};
use crate::quota::Identity;
use crate::sessions::{PendingSetup, SessionKey};
use crate::streams::Wanted;
use crate::timer::Wake;

pub(crate) mod inventory;

/// Names one request of one connection, so that a late result does not answer another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) conn: ConnId,
    pub(crate) seq: u64,
}

/// What the current request waits for.
#[derive(Debug)]
pub(crate) enum Wait {
    /// Nothing: it is being worked on.
    Nothing,
    /// The SDP of an upstream; then it is looked at again.
    Description,
    /// A leg or an input of a SETUP.
    SetUp(PendingSetup),
    /// The gate of a leg, until its packet path has to say what opened.
    Play(SessionKey, Instant),
    /// The closed gate of a leg.
    Pause(SessionKey),
    /// One media of several being removed.
    Remove(SessionKey, usize),
    /// The end of a leg.
    End,
    /// Whether the publisher that holds the announced name is still there.
    Claim,
    /// The time at which wrong credentials are answered (SEC-13).
    Delay(Response, bool),
}

/// The current request.
#[derive(Debug)]
pub(crate) struct Busy {
    pub(crate) seq: u64,
    pub(crate) request: Request,
    pub(crate) wait: Wait,
    deadline: Instant,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    auth: ConnAuth,
    queue: VecDeque<Request>,
    pub(crate) busy: Option<Box<Busy>>,
    last_seq: u64,
    /// When work on the current request began, over second looks at it.
    pub(crate) began: Option<Instant>,
    /// Channels by session and media.
    pub(crate) channels: ChannelTable<(SessionKey, usize)>,
    pub(crate) sessions: BTreeSet<SessionKey>,
    /// The stream that was announced on this connection: SETUP binds to it (RTSP-26).
    pub(crate) announced: Option<msm_graph::StreamId>,
    /// Deadline of the announcement that the timers know of.
    pub(crate) announcement_armed: Option<Instant>,
    armed: Option<Instant>,
    closing: bool,
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl ControlPlane {
    pub(crate) fn handle_accepted(&mut self, _now: Now, id: ConnId, peer: SocketAddr, local: SocketAddr) {
        let conn = Conn {
            peer: canonical(peer),
            local: canonical(local),
            auth: ConnAuth::new(),
            queue: VecDeque::new(),
            busy: None,
            last_seq: 0,
            began: None,
            channels: ChannelTable::new(),
            sessions: BTreeSet::new(),
            announced: None,
            announcement_armed: None,
            armed: None,
            closing: false,
        };
        self.conns.insert(id, Box::new(conn));
    }

    pub(crate) fn handle_request(&mut self, _now: Now, id: ConnId, request: Request) {
        let limit = self.config.limits.outstanding;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.closing {
            return;
        }
        if conn.queue.len() >= limit {
            // The connection stops reading before that (RTSP-7); whoever embeds us did not.
            return self.close_conn(id);
        }
        conn.queue.push_back(request);
        self.runnable.push_back(id);
    }

    pub(crate) fn handle_closed(&mut self, now: Now, id: ConnId) {
        if let Some(stream) = self.upstream_conns.remove(&id) {
            if let Some(upstream) = self.upstream_mut(stream) {
                upstream.handle_closed(now.instant, id);
            }
            return self.run_upstream(now, stream);
        }
        let Some(conn) = self.conns.remove(&id) else { return };
        if matches!(conn.busy.as_ref().map(|busy| &busy.wait), Some(Wait::Description)) {
            self.forget_waiting(now, id);
        }
        for key in conn.sessions {
            self.lose_conn(now, key, id);
        }
        if let Some(stream) = conn.announced {
            self.abandon_announcement(stream, id);
        }
    }

    pub(crate) fn close_conn(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.closing = true;
            conn.queue.clear();
            self.actions.push_back(Action::Close { conn: id });
        }
    }

    /// Takes up the next request, if the last one is answered.
    pub(crate) fn run_conn(&mut self, now: Now, id: ConnId) {
        let reply = self.config.times.reply;
        while let Some(conn) = self.conns.get_mut(&id) {
            if conn.busy.is_some() || conn.closing {
                return;
            }
            let Some(request) = conn.queue.pop_front() else { return };
            if conn.queue.is_empty() {
                // Requests mostly come one by one, and long after one another.
                conn.queue = VecDeque::new();
            }
            conn.last_seq += 1;
            let began = *conn.began.get_or_insert(now.instant);
            conn.busy = Some(Box::new(Busy {
                seq: conn.last_seq,
                request: request.clone(),
                wait: Wait::Nothing,
                deadline: began + reply,
            }));
            self.dispatch(now, id, &request);
        }
    }

    /// The request stays current until `wait` is over or its time is up.
    pub(crate) fn wait(&mut self, id: ConnId, wait: Wait) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(busy) = &mut conn.busy else { return };
        busy.wait = wait;
        self.timers.arm(&mut conn.armed, busy.deadline, Wake::Conn(id));
    }

    /// Names the current request of a connection.
    pub(crate) fn ticket(&self, id: ConnId) -> Ticket {
        Ticket { conn: id, seq: self.conns.get(&id).map_or(0, |conn| conn.last_seq) }
    }

    /// What the request of `ticket` waits for, if it still does. It waits for nothing afterwards.
    pub(crate) fn take_wait(&mut self, ticket: Ticket) -> Option<Wait> {
        let busy = self.conns.get_mut(&ticket.conn)?.busy.as_mut()?;
        (busy.seq == ticket.seq).then(|| std::mem::replace(&mut busy.wait, Wait::Nothing))
    }

    /// Answers the current request.
    pub(crate) fn answer(&mut self, id: ConnId, response: Response) {
        self.answer_and(id, response, false);
    }

    pub(crate) fn answer_and(&mut self, id: ConnId, mut response: Response, close: bool) {
        let agent = self.config.agent.clone();
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(busy) = conn.busy.take() else { return };
        conn.began = None;
        if let Some(cseq) = busy.request.cseq() {
            response.headers.remove("CSeq");
            let mut headers = msm_rtsp::message::Headers::new();
            headers.push("CSeq", cseq.to_string());
            headers.push("Server", agent);
            for (name, value) in response.headers.iter() {
                headers.push(name, value);
            }
            response.headers = headers;
        }
        conn.closing |= close;
        if !conn.queue.is_empty() {
            self.runnable.push_back(id);
        }
        self.actions.push_back(Action::Reply { conn: id, response, close });
    }

    pub(crate) fn answer_status(&mut self, id: ConnId, status: Status) {
        self.answer(id, Response::new(status));
    }

    /// Looks at the current request again: what it waited for is there.
    pub(crate) fn retry(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if let Some(busy) = conn.busy.take_if(|busy| matches!(busy.wait, Wait::Description | Wait::Claim)) {
            conn.queue.push_front(busy.request);
            self.runnable.push_back(id);
        }
    }

    pub(crate) fn handle_conn_timeout(&mut self, now: Now, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.armed = None;
        let Some(busy) = &mut conn.busy else { return };
        if busy.deadline > now.instant {
            let at = busy.deadline;
            return self.timers.arm(&mut conn.armed, at, Wake::Conn(id));
        }
        match std::mem::replace(&mut busy.wait, Wait::Nothing) {
            Wait::Delay(response, close) => self.answer_and(id, response, close),
            Wait::Description => {
                self.forget_waiting(now, id);
                self.answer_status(id, Status::GATEWAY_TIMEOUT);
            }
            Wait::Claim => {
                busy.wait = Wait::Claim;
                self.retry(id);
            }
            Wait::Play(key, _) => self.fail_play(now, key, id, Status::GATEWAY_TIMEOUT),
            Wait::SetUp(pending) => {
                let key = pending.session();
                self.undo_setup(now, pending);
                self.resend_leg(key);
                self.answer(id, overload());
            }
            Wait::Nothing | Wait::Pause(_) | Wait::Remove(..) | Wait::End => self.answer(id, overload()),
        }
    }

    fn dispatch(&mut self, now: Now, id: ConnId, request: &Request) {
        if let Err(response) = server::screen(request) {
            return self.answer(id, response);
        }
        let target = match RequestTarget::parse(&request.uri) {
            Ok(target) => target,
            Err(error) => {
                // Oversize costs the connection (section 11), a URI of the wrong kind does not.
                return match error.rule {
                    UrlRule::TooLong => self.answer_and(id, Response::new(Status::URI_TOO_LONG), true),
                    _ => self.answer_status(id, Status::BAD_REQUEST),
                };
            }
        };
        let session = match server::session_id(request) {
            None => None,
            Some(text) => match self.find_session(id, text) {
                Some(key) => Some(key),
                None => return self.answer_status(id, Status::SESSION_NOT_FOUND),
            },
        };
        // Another connection takes a session over only where it may: after authorisation (RTSP-20).
        if let Some(key) = session
            && (self.is_session_of(key, id) || self.is_open_session(key))
        {
            self.touch_session(now, key, id);
        }
        match (&request.method, session) {
            // Before authentication, with `*` or a path (RTSP-9).
            (Method::Options, _) => self.answer(id, Response::new(Status::OK).with("Public", PUBLIC)),
            (Method::GetParameter | Method::SetParameter, None) => {
                self.answer(id, server::parameter_answer(request));
            }
            (Method::Describe, _) => self.describe(now, id, request, &target),
            (Method::Announce, _) => self.announce(now, id, request, &target, session),
            (Method::Setup, _) => self.set_up(now, id, request, &target, session),
            (_, Some(key)) => self.handle_session_request(now, id, request, &target, key),
            (_, None) => self.answer_status(id, Status::SESSION_NOT_FOUND),
        }
    }

    /// Who asks, if they may touch `name`; otherwise the request has been answered or will be.
    pub(crate) fn authorize(
        &mut self,
        now: Now,
        id: ConnId,
        name: &str,
        request: &Request,
    ) -> Option<Identity> {
        let nonce = self.random();
        let conn = self.conns.get_mut(&id)?;
        let peer = conn.peer.ip();
        match self.access.check(now.instant, &mut conn.auth, peer, name, request, nonce) {
            Access::Open => Some(Identity::of_peer(peer)),
            Access::Granted(user) => Some(Identity::User(user)),
            Access::Denied { challenges, failed, close } => {
                let mut response = Response::new(Status::UNAUTHORIZED);
                for challenge in challenges {
                    response.headers.push("WWW-Authenticate", challenge);
                }
                if failed {
                    self.note_peer(id, NoteLevel::Warn, "auth.failed", name);
                    self.delay(now, id, response, close);
                } else {
                    self.answer(id, response);
                }
                None
            }
            Access::Throttled(wait) => {
                self.note_peer(id, NoteLevel::Warn, "auth.throttled", name);
                let seconds = wait.as_secs().max(1).to_string();
                let response = Response::new(Status::SERVICE_UNAVAILABLE).with("Retry-After", seconds);
                self.answer_and(id, response, true);
                None
            }
        }
    }

    fn delay(&mut self, now: Now, id: ConnId, response: Response, close: bool) {
        let at = now.instant + self.config.times.auth_delay;
        self.wait_until(id, at, Wait::Delay(response, close));
    }

    /// The request stays current until `at`, whatever its deadline was.
    pub(crate) fn wait_until(&mut self, id: ConnId, at: Instant, wait: Wait) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(busy) = &mut conn.busy else { return };
        busy.wait = wait;
        busy.deadline = at;
        conn.armed = None;
        self.timers.arm(&mut conn.armed, at, Wake::Conn(id));
    }

    pub(crate) fn note_peer(&mut self, id: ConnId, level: NoteLevel, event: &'static str, name: &str) {
        let peer = self.conns.get(&id).map(|conn| conn.peer.to_string()).unwrap_or_default();
        self.note(level, event, vec![("peer", peer), ("name", name.to_owned())]);
    }

    fn describe(&mut self, now: Now, id: ConnId, request: &Request, target: &RequestTarget) {
        let name = target.name();
        if self.authorize(now, id, name, request).is_none() {
            return;
        }
        if self.ending.is_some() {
            return self.answer(id, overload());
        }
        let accepts_sdp = request.headers.get("Accept").is_none_or(|accept| {
            accept.split(',').any(|part| {
                let media = part.split(';').next().unwrap_or_default().trim();
                ["application/sdp", "application/*", "*/*", ""].iter().any(|m| media.eq_ignore_ascii_case(m))
            })
        });
        if !accepts_sdp {
            return self.answer_status(id, Status::NOT_ACCEPTABLE);
        }
        let Some(stream) = self.find_stream(now, name) else {
            return self.answer_status(id, Status::NOT_FOUND);
        };
        match self.want_description(now, stream, id, true) {
            Wanted::Waiting => {}
            Wanted::Failed(status) => self.answer_status(id, status),
            Wanted::Ready(description) => {
                let Some(conn) = self.conns.get(&id) else { return };
                let local = conn.local;
                let Some(stream) = self.catalog.get(stream) else { return };
                let body =
                    description.for_viewer(stream.sdp_id, stream.sdp_version, local.ip(), stream.hidden());
                let response = Response::new(Status::OK)
                    .with("Content-Base", content_base(&request.uri, local))
                    .with_body("application/sdp", body);
                self.answer(id, response);
            }
        }
    }

    /// The URL of a request about a stream; others are answered.
    pub(crate) fn resource<'a>(&mut self, id: ConnId, target: &'a RequestTarget) -> Option<&'a ResourceUrl> {
        match target {
            RequestTarget::Resource(url) => Some(url),
            RequestTarget::Server => {
                self.answer_status(id, Status::NOT_FOUND);
                None
            }
        }
    }
}

/// `503` with a hint when to come back.
pub(crate) fn overload() -> Response {
    Response::new(Status::SERVICE_UNAVAILABLE).with("Retry-After", "1")
}
