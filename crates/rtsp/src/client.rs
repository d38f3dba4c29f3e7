//! Camera side: one RTSP session over one dialled connection, as a machine.
//!
//! Owns what is asked of a camera and when: numbering and matching of requests (RTSP-6), deadlines,
//! authentication (RTSP-38), the session id (RTSP-25) and keepalives (RTSP-24). It knows neither viewers
//! nor transports' ports: its owner says which media to set up and how, in which order, and whether the
//! session is still wanted. `poll_output` is drained after every call.

pub mod inventory;
pub mod keepalive;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use crate::auth::{AuthFailure, BasicPolicy, ClientAuth, Credentials};
use crate::headers::{RtpInfo, SessionHeader};
use crate::message::{Headers, Method, Request, Response, Status};
use crate::transport::{Agreed, AnswerError, TransportSpec, accept_answer};
use keepalive::Keepalive;

#[cfg(test)]
mod tests;

/// What a camera session is made of.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// URL of the stream, without credentials.
    pub url: String,
    /// `User-Agent`.
    pub agent: String,
    /// Who we are, if the camera asks.
    pub credentials: Option<Credentials>,
    /// Whether Basic may be sent in clear.
    pub basic: BasicPolicy,
    /// Random bytes that start the `cnonce` values.
    pub cnonce: [u8; 8],
    /// Longest wait for an answer.
    pub reply: Duration,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// OPTIONS before DESCRIBE: learns `Public`. Its failure is not one of the session.
    Options,
    /// DESCRIBE.
    Describe,
    /// SETUP of the media with this index in the SDP.
    Setup(usize),
    /// PLAY of the aggregate.
    Play,
    /// PAUSE of the aggregate.
    Pause,
    /// OPTIONS or GET_PARAMETER with Session.
    Keepalive,
    /// TEARDOWN of the aggregate.
    Teardown,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClientError {
    /// No answer in time: `504` towards the viewer.
    #[error("no answer to {0:?} in time")]
    Timeout(Step),
    /// The camera wants credentials that we do not have, or refused ours: `502` towards the viewer.
    #[error("{0}")]
    Unauthorized(AuthFailure),
    /// Any other status: `502` towards the viewer.
    #[error("the camera answered {status} to {step:?}")]
    Refused {
        /// What was asked.
        step: Step,
        /// What it said.
        status: Status,
    },
    /// A success that lacks what it must have.
    #[error("the answer to {step:?} has no valid {what}")]
    Malformed {
        /// What was asked.
        step: Step,
        /// What is missing or broken.
        what: &'static str,
    },
}

/// What the machine wants done or has learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOutput {
    /// Send this request.
    Send(Request),
    /// The SDP is here.
    Described {
        /// Body of the answer.
        sdp: Bytes,
        /// `Content-Base` as sent.
        content_base: Option<String>,
        /// `Content-Location` as sent.
        content_location: Option<String>,
    },
    /// One media is set up.
    SetUp {
        /// Index of the media.
        media: usize,
        /// What the camera agreed to.
        agreed: Agreed,
    },
    /// The camera plays.
    Playing {
        /// What it says about its first packets; a hint, the packets win (RTSP-33).
        info: Vec<RtpInfo>,
    },
    /// PAUSE was answered.
    Paused,
    /// A keepalive was answered.
    Alive,
    /// A keepalive was not answered. Not fatal (RTSP-24).
    Unanswered,
    /// The camera does not know our session any more; the id is forgotten, SETUP may start again.
    SessionLost,
    /// TEARDOWN was answered, or its deadline passed.
    TornDown,
    /// A step other than a keepalive failed.
    Failed(ClientError),
}

/// A request without an answer.
#[derive(Debug)]
struct Outstanding {
    step: Step,
    request: Request,
    deadline: Instant,
}

/// The machine. Every method that takes `now` may queue outputs.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    auth: ClientAuth,
    /// Why the last `401` was not answered.
    auth_failure: AuthFailure,
    cseq: u32,
    session: Option<String>,
    aggregate: String,
    keepalive: Keepalive,
    asked: Option<TransportSpec>,
    outstanding: BTreeMap<u32, Outstanding>,
    outputs: VecDeque<ClientOutput>,
    stray_replies: u64,
}

impl Client {
    /// A machine for a connection that is open. Nothing is sent yet.
    pub fn new(config: ClientConfig) -> Self {
        let auth = ClientAuth::new(config.credentials.clone(), config.basic);
        Self {
            aggregate: config.url.clone(),
            auth,
            auth_failure: AuthFailure::NoCredentials,
            config,
            cseq: 0,
            session: None,
            keepalive: Keepalive::default(),
            asked: None,
            outstanding: BTreeMap::new(),
            outputs: VecDeque::new(),
            stray_replies: 0,
        }
    }

    /// OPTIONS, then DESCRIBE. Leads to [`ClientOutput::Described`] or [`ClientOutput::Failed`].
    pub fn describe(&mut self, now: Instant) {
        self.request(now, Step::Options, Request::new(Method::Options, self.config.url.clone()));
    }

    /// Sets the URL of the aggregate, from the session's `a=control` (RTSP-29).
    pub fn set_aggregate(&mut self, url: String) {
        self.aggregate = url;
    }

    /// SETUP of one media. `url`: its control URL. `asked`: the one transport offered.
    pub fn setup(&mut self, now: Instant, media: usize, url: String, asked: TransportSpec) {
        let request = Request::new(Method::Setup, url).with("Transport", asked.to_string());
        self.asked = Some(asked);
        self.request(now, Step::Setup(media), request);
    }

    /// PLAY of the aggregate from now on.
    pub fn play(&mut self, now: Instant) {
        let request = Request::new(Method::Play, self.aggregate.clone()).with("Range", "npt=now-");
        self.request(now, Step::Play, request);
    }

    /// PAUSE of the aggregate: only when no viewer plays (RTSP-27), which the owner knows.
    pub fn pause(&mut self, now: Instant) {
        self.request(now, Step::Pause, Request::new(Method::Pause, self.aggregate.clone()));
    }

    /// TEARDOWN of the aggregate, on TCP too (RTSP-27). Leads to [`ClientOutput::TornDown`], at once when
    /// there is no session.
    pub fn teardown(&mut self, now: Instant) {
        self.keepalive.stop();
        if self.session.is_none() {
            self.outputs.push_back(ClientOutput::TornDown);
            return;
        }
        self.request(now, Step::Teardown, Request::new(Method::Teardown, self.aggregate.clone()));
    }

    /// Asks at once whether the session still lives.
    pub fn probe(&mut self, now: Instant) {
        if !self.outstanding.values().any(|o| o.step == Step::Keepalive) {
            self.send_keepalive(now);
        }
    }

    /// Whether the camera gave a session id.
    pub fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// Replies that answered nothing we asked: late, doubled or invented (CP15).
    pub fn stray_replies(&self) -> u64 {
        self.stray_replies
    }

    /// A response arrived. It reaches the request of its `CSeq` and no other.
    pub fn handle_response(&mut self, now: Instant, response: Response) {
        let key = match response.cseq() {
            Some(cseq) => Some(cseq),
            // Without a number it can only be meant for the one request there is.
            None if self.outstanding.len() == 1 => self.outstanding.keys().next().copied(),
            None => None,
        };
        let Some(mut outstanding) = key.and_then(|cseq| self.outstanding.remove(&cseq)) else {
            self.stray_replies += 1;
            return;
        };
        if (100..200).contains(&response.status.0) {
            outstanding.deadline = now + self.config.reply;
            if let Some(cseq) = key {
                self.outstanding.insert(cseq, outstanding);
            }
            return;
        }
        if response.status == Status::UNAUTHORIZED {
            let challenges = response.headers.get_all("WWW-Authenticate");
            match self.auth.handle_unauthorized(challenges) {
                Ok(()) => {
                    self.send(now, outstanding.step, outstanding.request);
                    return;
                }
                Err(failure) => self.auth_failure = failure,
            }
        } else {
            self.auth.handle_success();
        }
        self.handle_answer(now, outstanding.step, &outstanding.request, response);
    }

    /// Deadlines and keepalives.
    pub fn handle_timeout(&mut self, now: Instant) {
        let expired: Vec<u32> =
            self.outstanding.iter().filter(|(_, o)| o.deadline <= now).map(|(cseq, _)| *cseq).collect();
        for cseq in expired {
            let Some(outstanding) = self.outstanding.remove(&cseq) else { continue };
            match outstanding.step {
                Step::Keepalive => self.outputs.push_back(ClientOutput::Unanswered),
                Step::Teardown => self.finish_teardown(),
                step => self.outputs.push_back(ClientOutput::Failed(ClientError::Timeout(step))),
            }
        }
        if self.keepalive.due().is_some_and(|due| due <= now) {
            self.send_keepalive(now);
        }
    }

    /// When [`Client::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.outstanding.values().map(|o| o.deadline).chain(self.keepalive.due()).min()
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<ClientOutput> {
        self.outputs.pop_front()
    }

    fn send_keepalive(&mut self, now: Instant) {
        self.keepalive.restart(now);
        let request = Request::new(self.keepalive.method(), self.aggregate.clone());
        self.request(now, Step::Keepalive, request);
    }

    fn request(&mut self, now: Instant, step: Step, mut request: Request) {
        if let (Some(session), false) = (&self.session, matches!(step, Step::Options | Step::Describe)) {
            request.headers.push("Session", session.clone());
        }
        if step == Step::Describe {
            request.headers.push("Accept", "application/sdp");
        }
        request.headers.push("User-Agent", self.config.agent.clone());
        self.send(now, step, request);
    }

    /// Numbers, authorises and sends.
    fn send(&mut self, now: Instant, step: Step, mut request: Request) {
        self.cseq = self.cseq.wrapping_add(1);
        request.headers.remove("Authorization");
        let cnonce = u64::from_be_bytes(self.config.cnonce).wrapping_add(u64::from(self.cseq)).to_be_bytes();
        if let Some(value) = self.auth.authorization(&request.method, &request.uri, cnonce) {
            request.headers.push("Authorization", value);
        }
        // The number goes first: some DVRs parse by position (RTSP-3).
        let mut headers = Headers::new();
        headers.push("CSeq", self.cseq.to_string());
        for (name, value) in request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("CSeq")) {
            headers.push(name, value);
        }
        request.headers = headers;
        let deadline = now + self.config.reply;
        self.outstanding.insert(self.cseq, Outstanding { step, request: request.clone(), deadline });
        self.outputs.push_back(ClientOutput::Send(request));
    }

    fn handle_answer(&mut self, now: Instant, step: Step, request: &Request, response: Response) {
        if response.status == Status::SESSION_NOT_FOUND && self.session.is_some() {
            match step {
                Step::Teardown => return self.finish_teardown(),
                Step::Options | Step::Describe => {}
                _ => {
                    self.session = None;
                    self.keepalive.stop();
                    // What else was asked in that session is void, its answers are strays.
                    self.outstanding.clear();
                    self.outputs.push_back(ClientOutput::SessionLost);
                    return;
                }
            }
        }
        match step {
            Step::Options => {
                if response.status.is_success()
                    && let Some(public) = response.headers.get("Public")
                {
                    self.keepalive.observe_public(public);
                }
                // Whatever it said, DESCRIBE decides.
                let url = self.config.url.clone();
                self.request(now, Step::Describe, Request::new(Method::Describe, url));
                return;
            }
            Step::Keepalive => {
                if response.status.is_success() {
                    self.observe_session(&response);
                } else if request.method == Method::GetParameter {
                    self.keepalive.refuse_get_parameter();
                }
                self.outputs.push_back(ClientOutput::Alive);
                return;
            }
            Step::Teardown => return self.finish_teardown(),
            _ => {}
        }
        if !response.status.is_success() {
            let error = if response.status == Status::UNAUTHORIZED {
                ClientError::Unauthorized(self.auth_failure)
            } else {
                ClientError::Refused { step, status: response.status }
            };
            self.outputs.push_back(ClientOutput::Failed(error));
            return;
        }
        if step != Step::Describe {
            self.observe_session(&response);
        }
        match step {
            Step::Describe => self.outputs.push_back(ClientOutput::Described {
                content_base: response.headers.get("Content-Base").map(str::to_owned),
                content_location: response.headers.get("Content-Location").map(str::to_owned),
                sdp: response.body,
            }),
            Step::Setup(media) => {
                let asked = self.asked.take();
                let agreed = asked.map(|asked| accept_answer(response.headers.get("Transport"), &asked));
                let output = match agreed {
                    Some(Ok(agreed)) => ClientOutput::SetUp { media, agreed },
                    // It set up another transport than was asked: as good as a refusal (RTSP-13).
                    Some(Err(AnswerError::Lower { .. })) => ClientOutput::Failed(ClientError::Refused {
                        step,
                        status: Status::UNSUPPORTED_TRANSPORT,
                    }),
                    _ => ClientOutput::Failed(ClientError::Malformed { step, what: "Transport" }),
                };
                if self.session.is_some() {
                    self.keepalive.restart(now);
                }
                self.outputs.push_back(output);
            }
            Step::Play => {
                // Also without an id (RTSP-25): the keepalive then keeps the connection.
                self.keepalive.restart(now);
                let info = response.headers.get("RTP-Info").map(RtpInfo::parse_list).unwrap_or_default();
                self.outputs.push_back(ClientOutput::Playing { info });
            }
            Step::Pause => {
                self.outputs.push_back(ClientOutput::Paused);
            }
            Step::Options | Step::Keepalive | Step::Teardown => {}
        }
    }

    fn finish_teardown(&mut self) {
        self.session = None;
        self.outputs.push_back(ClientOutput::TornDown);
    }

    /// Keeps the first id although later SETUPs may bring another (H264DVR), and the last timeout.
    fn observe_session(&mut self, response: &Response) {
        let Some(value) = response.headers.get("Session") else { return };
        let Ok(header) = SessionHeader::parse(value) else { return };
        // A later answer that names none changes nothing.
        self.keepalive.observe_timeout(header.timeout);
        if self.session.is_none() {
            self.session = Some(header.id);
        }
    }
}
