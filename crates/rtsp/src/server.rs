//! Viewer and publisher side: one RTSP session as a machine.
//!
//! Owns which method is allowed in which state, what it leads to, and how long a session lives without a
//! sign of life. It knows neither streams nor sockets: [`ServerSession::handle_request`] returns the next
//! [`Step`] as data, its owner performs it, reports success with [`ServerSession::set_up`],
//! [`ServerSession::started`] and the like, and only then answers.

use std::time::{Duration, Instant};

use crate::headers::{SessionHeader, unknown_tags};
use crate::message::{Method, Request, Response, Status};
use crate::transport::LowerTransport;

pub mod inventory;
#[cfg(test)]
mod tests;

/// Value of `Public`: what this server does (RFC 2326 section 12.28).
pub const PUBLIC: &str =
    "OPTIONS, DESCRIBE, ANNOUNCE, SETUP, PLAY, PAUSE, RECORD, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

/// Checks what holds for every request, whatever its session: the method is known (RTSP-9), no option tag
/// is required (RTSP-10). `Err` is the answer.
pub fn screen(request: &Request) -> Result<(), Response> {
    if matches!(request.method, Method::Unknown(_) | Method::Redirect) {
        return Err(Response::new(Status::NOT_IMPLEMENTED).with("Public", PUBLIC));
    }
    let fields = ["Require", "Proxy-Require"];
    let tags = unknown_tags(fields.iter().flat_map(|name| request.headers.get_all(name)), &[]);
    if tags.is_empty() {
        return Ok(());
    }
    Err(Response::new(Status::OPTION_NOT_SUPPORTED).with("Unsupported", tags.join(", ")))
}

/// The id in a request's `Session` header, without parameters. `None`: there is no such header.
pub fn session_id(request: &Request) -> Option<&str> {
    request.headers.get("Session").map(SessionHeader::id_of)
}

/// A session id of 128 random bits in `[0-9a-f]`: dashes and `$` confuse clients (RTSP-20).
pub fn make_session_id(random: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(random))
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A viewer's.
    Play,
    /// A publisher's.
    Record,
}

/// State of a session (RFC 2326 appendix A.2). One that exists has at least one media, so Init has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Set up, or paused.
    Ready,
    /// Media flows to the viewer.
    Playing,
    /// Media flows from the publisher.
    Recording,
}

impl State {
    /// Name for logs and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Playing => "playing",
            Self::Recording => "recording",
        }
    }
}

/// What a request leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing but this answer.
    Respond(Response),
    /// Set up this media, a second time perhaps, then [`ServerSession::set_up`].
    SetUp(usize),
    /// Start media towards the viewer, or answer where it is if it flows; then [`ServerSession::started`].
    Start,
    /// Admit media from the publisher, then [`ServerSession::started`].
    Record,
    /// Stop media, then [`ServerSession::stopped`].
    Stop,
    /// Remove one media of several, then [`ServerSession::removed`].
    Remove(usize),
    /// End the session.
    End,
}

/// How long sessions live (RTSP-22).
#[derive(Debug, Clone, Copy)]
pub struct SessionTimes {
    /// `timeout=` of the `Session` header.
    pub advertised: Duration,
    /// Time without a sign of life after which the session ends.
    pub enforced: Duration,
    /// Time from the first SETUP to the first PLAY or RECORD, whatever is asked in between: until then the
    /// session holds ports for nothing (SEC-5).
    pub lease: Duration,
}

/// One RTSP session.
#[derive(Debug, Clone)]
pub struct ServerSession {
    id: String,
    role: Role,
    state: State,
    lower: LowerTransport,
    media: Vec<usize>,
    /// Media that a publisher announced and has to set up before RECORD.
    announced: usize,
    times: SessionTimes,
    made_at: Instant,
    alive_at: Instant,
    started_once: bool,
}

impl ServerSession {
    /// A session that its first SETUP creates. `announced`: number of media of a publisher's SDP, 0 for a
    /// viewer.
    pub fn new(
        now: Instant,
        id: String,
        role: Role,
        lower: LowerTransport,
        announced: usize,
        times: SessionTimes,
    ) -> Self {
        Self {
            id,
            role,
            state: State::Ready,
            lower,
            media: Vec::new(),
            announced,
            times,
            made_at: now,
            alive_at: now,
            started_once: false,
        }
    }

    /// The whole id: a secret of its viewer, not for logs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// First characters of the id, for logs.
    pub fn short_id(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }

    /// Viewer or publisher.
    pub fn role(&self) -> Role {
        self.role
    }

    /// State.
    pub fn state(&self) -> State {
        self.state
    }

    /// The one lower transport of the session (RTSP-19).
    pub fn lower(&self) -> LowerTransport {
        self.lower
    }

    /// Media that are set up, in order of SETUP.
    pub fn media(&self) -> &[usize] {
        &self.media
    }

    /// Value of the `Session` header of answers.
    pub fn header(&self) -> String {
        format!("{};timeout={}", self.id, self.times.advertised.as_secs())
    }

    /// A sign of life: any request of the session, RTCP of the viewer, media of the publisher (RTSP-23).
    pub fn touch(&mut self, now: Instant) {
        self.alive_at = self.alive_at.max(now);
    }

    /// When the session ends without another sign of life.
    pub fn expires_at(&self) -> Instant {
        let silent = self.alive_at + self.times.enforced;
        if self.started_once { silent } else { silent.min(self.made_at + self.times.lease) }
    }

    /// What `request` leads to. `media`: the media its URL names, `None` for the aggregate.
    pub fn handle_request(&mut self, now: Instant, request: &Request, media: Option<usize>) -> Step {
        self.touch(now);
        match &request.method {
            Method::Options => Step::Respond(Response::new(Status::OK).with("Public", PUBLIC)),
            Method::GetParameter | Method::SetParameter => Step::Respond(parameter_answer(request)),
            Method::Setup => self.handle_setup(media),
            Method::Play => match (self.role, self.is_whole(media)) {
                (Role::Record, _) => self.wrong_state(),
                (Role::Play, false) => Step::Respond(Response::new(Status::ONLY_AGGREGATE_ALLOWED)),
                (Role::Play, true) => Step::Start,
            },
            Method::Record => match self.role {
                // Every announced media first.
                Role::Record if self.media.len() >= self.announced => Step::Record,
                _ => self.wrong_state(),
            },
            Method::Pause if !self.is_whole(media) => {
                Step::Respond(Response::new(Status::ONLY_AGGREGATE_ALLOWED))
            }
            Method::Pause if self.state == State::Ready => Step::Respond(Response::new(Status::OK)),
            Method::Pause => Step::Stop,
            Method::Teardown => match media {
                Some(media) if self.media.len() > 1 && self.media.contains(&media) => Step::Remove(media),
                Some(media) if !self.media.contains(&media) => {
                    Step::Respond(Response::new(Status::NOT_FOUND))
                }
                _ => Step::End,
            },
            Method::Announce => self.wrong_state(),
            Method::Describe | Method::Redirect | Method::Unknown(_) => {
                Step::Respond(Response::new(Status::NOT_IMPLEMENTED).with("Public", PUBLIC))
            }
        }
    }

    /// A SETUP succeeded.
    pub fn set_up(&mut self, media: usize) {
        if !self.media.contains(&media) {
            self.media.push(media);
        }
    }

    /// PLAY or RECORD succeeded.
    pub fn started(&mut self) {
        self.started_once = true;
        self.state = match self.role {
            Role::Play => State::Playing,
            Role::Record => State::Recording,
        };
    }

    /// PAUSE succeeded, or the start was taken back.
    pub fn stopped(&mut self) {
        self.state = State::Ready;
    }

    /// TEARDOWN of one media succeeded.
    pub fn removed(&mut self, media: usize) {
        self.media.retain(|m| *m != media);
    }

    /// The `455` of this state, with what it allows (RTSP-9).
    pub fn wrong_state(&self) -> Step {
        let allow = match (self.role, self.state) {
            (Role::Play, State::Ready) => "OPTIONS, SETUP, PLAY, TEARDOWN, GET_PARAMETER, SET_PARAMETER",
            (Role::Play, _) => "OPTIONS, PLAY, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER",
            (Role::Record, State::Ready) => "OPTIONS, SETUP, RECORD, TEARDOWN, GET_PARAMETER, SET_PARAMETER",
            (Role::Record, _) => "OPTIONS, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER",
        };
        Step::Respond(Response::new(Status::METHOD_NOT_VALID_IN_THIS_STATE).with("Allow", allow))
    }

    fn handle_setup(&self, media: Option<usize>) -> Step {
        let Some(media) = media else {
            return Step::Respond(Response::new(Status::AGGREGATE_NOT_ALLOWED));
        };
        // RTSP-19 leaves a second SETUP of playing media to us: refused, the leg keeps its gate.
        if self.state == State::Ready { Step::SetUp(media) } else { self.wrong_state() }
    }

    /// Whether the URL names the whole session: the aggregate, or the only media (RTSP-30).
    fn is_whole(&self, media: Option<usize>) -> bool {
        media.is_none_or(|media| self.media == [media])
    }
}

/// GET_PARAMETER and SET_PARAMETER without a body are keepalives; we have no parameters.
pub fn parameter_answer(request: &Request) -> Response {
    let is_ping = request.body.iter().all(u8::is_ascii_whitespace);
    Response::new(if is_ping { Status::OK } else { Status::PARAMETER_NOT_UNDERSTOOD })
}
