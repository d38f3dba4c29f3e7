//! gst-rtsp-server behind a relay that gives it the manners of other cameras: one rule per quirk.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use crate::relay::{Message, Relay, Rule, Unit};
use crate::scene::socket_address;

/// What the camera does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quirk {
    /// Another session id in the second SETUP's answer: H264DVR. The first counts (RTSP-25).
    IdChanges,
    /// No RTP-Info, timeout, Content-Type, Content-Base, Public, Server (RTSP-29, RTSP-33).
    MissingFields,
    /// Frames in front of the PLAY answer: Reolink, FFmpeg-based cameras (RTSP-42).
    EarlyFrames,
    /// Frames on channels that nobody set up, and empty ones (RTSP-41, RTSP-42).
    StrayChannels,
    /// Relative URLs, `seq=0`, `rtptime=-1`, an `ssrc=`, a trailing `;`: Wowza, Reolink, Laureii (RTSP-33).
    BadRtpInfo,
    /// Channels 4-5 and 8-9 where 0-1 and 2-3 were asked (RTSP-17).
    OtherChannels,
    /// `Cseq:` with a trailing blank, many blanks before the id, odd case, `ssrc=` with a blank, an
    /// echoed destination, a line end in front of everything (RTSP-2, RTSP-5, RTSP-12, RTSP-16).
    OddFields,
    /// Content-Base with a query: Dahua. Tracks are behind it as they are (RTSP-29).
    QueryBase,
    /// Absolute track URLs with a query: Hikvision, Geovision (RTSP-29, RTSP-30).
    AbsoluteControls,
    /// Session on OPTIONS and DESCRIBE, `timeout=0`, blanks around it (RTSP-25).
    EarlySession,
}

impl Quirk {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::IdChanges,
        Self::MissingFields,
        Self::EarlyFrames,
        Self::StrayChannels,
        Self::BadRtpInfo,
        Self::OtherChannels,
        Self::OddFields,
        Self::QueryBase,
        Self::AbsoluteControls,
        Self::EarlySession,
    ];

    /// Stream name under which a proxy serves it.
    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_ascii_lowercase()
    }
}

/// What the relay saw the proxy do that it must not, and how often its rule did anything.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Faults of the proxy.
    pub(crate) faults: Vec<String>,
    /// Units that the rule changed or added: a rule that never acted proves nothing.
    pub(crate) acted: usize,
}

/// A running quirk camera.
#[derive(Debug)]
pub(crate) struct QuirkCamera {
    relay: Relay,
    quirk: Quirk,
    findings: Arc<Mutex<Findings>>,
}

impl QuirkCamera {
    /// In front of a camera.
    pub(crate) fn start(quirk: Quirk, camera: &str) -> Result<Self> {
        let findings = Arc::new(Mutex::new(Findings::default()));
        let of_rules = Arc::clone(&findings);
        let target = socket_address(camera)?;
        let relay = Relay::start(target, move || {
            Box::new(State {
                quirk,
                findings: Arc::clone(&of_rules),
                methods: HashMap::new(),
                setups: 0,
                id: None,
                held: None,
                early: VecDeque::new(),
                frames: 0,
            })
        })?;
        Ok(Self { relay, quirk, findings })
    }

    /// Where it is reached.
    pub(crate) fn url(&self) -> String {
        let query = if self.quirk == Quirk::QueryBase { "?channel=1&subtype=1" } else { "" };
        format!("rtsp://{}/cam{query}", self.relay.address)
    }

    /// Host and port, which no viewer may see.
    pub(crate) fn authority(&self) -> String {
        self.relay.address.to_string()
    }

    /// Faults and how often the rule acted.
    pub(crate) fn findings(&self) -> (Vec<String>, usize) {
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        (findings.faults.clone(), findings.acted)
    }
}

/// One connection.
struct State {
    quirk: Quirk,
    findings: Arc<Mutex<Findings>>,
    /// Method by CSeq.
    methods: HashMap<String, String>,
    setups: usize,
    id: Option<String>,
    /// The PLAY answer that waits for frames.
    held: Option<Message>,
    early: VecDeque<Unit>,
    frames: usize,
}

const QUERY: &str = "?channel=1&subtype=1";
/// Frames in front of the PLAY answer.
const EARLY: usize = 20;

impl State {
    fn acted(&self) {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).acted += 1;
    }

    fn fault(&self, text: String) {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).faults.push(text);
    }

    fn request(&mut self, message: &mut Message) {
        if let Some(cseq) = message.header("CSeq") {
            self.methods.insert(cseq.to_owned(), message.method().to_owned());
        }
        if !message.lines.first().is_some_and(|line| line.starts_with("CSeq:")) {
            self.fault(format!("CSeq is not the first header (RTSP-3): {message:?}"));
        }
        if message.header("Transport").is_some_and(|value| value.contains("destination")) {
            self.fault(format!("a destination was asked for (RTSP-39): {message:?}"));
        }
        match self.quirk {
            Quirk::IdChanges => {
                if let (Some(first), Some(used)) = (&self.id, message.header("Session"))
                    && first != used
                {
                    self.fault(format!("{} names session {used}, the first was {first}", message.method()));
                }
            }
            Quirk::QueryBase => {
                // `/cam?channel=1&subtype=1/stream=0` and not `/cam/stream=0?...`: what Dahua understands.
                let uri = message.start.split(' ').nth(1).unwrap_or_default().to_owned();
                match uri.split_once(QUERY) {
                    Some((path, track)) => {
                        let track = if track == "/" { "" } else { track };
                        message.start = message.start.replace(&uri, &format!("{path}{track}"));
                        if message.method() == "SETUP" {
                            self.acted();
                        }
                    }
                    None if uri == "*" => {}
                    None => self.fault(format!("the query is lost: {}", message.start)),
                }
            }
            Quirk::AbsoluteControls if message.method() == "SETUP" => {
                if message.start.contains("?profile=1") {
                    self.acted();
                    message.start = message.start.replace("?profile=1", "");
                } else {
                    self.fault(format!("the absolute control was not used: {}", message.start));
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, message: &mut Message) {
        let method =
            message.header("CSeq").and_then(|cseq| self.methods.get(cseq)).cloned().unwrap_or_default();
        if method == "SETUP" {
            self.setups += 1;
            if self.id.is_none() {
                self.id =
                    message.header("Session").and_then(|value| value.split(';').next()).map(str::to_owned);
            }
        }
        match self.quirk {
            Quirk::IdChanges if method == "SETUP" && self.setups > 1 => {
                self.acted();
                message.replace("Session", "Session: 231980;timeout=60");
            }
            Quirk::MissingFields => {
                for name in ["RTP-Info", "Content-Type", "Content-Base", "Public", "Server", "Range", "Date"]
                {
                    message.remove(name);
                }
                if let Some(id) = message.header("Session").and_then(|value| value.split(';').next()) {
                    let line = format!("Session: {id}");
                    message.replace("Session", &line);
                }
                if let Some(value) = message.header("Transport").map(str::to_owned) {
                    let kept: Vec<&str> = value
                        .split(';')
                        .filter(|part| !["ssrc", "mode", "source"].iter().any(|name| part.starts_with(name)))
                        .collect();
                    message.replace("Transport", &format!("Transport: {}", kept.join(";")));
                }
                self.acted();
            }
            Quirk::BadRtpInfo if method == "PLAY" => {
                self.acted();
                let line = "RTP-Info: url=stream=0;seq=0;rtptime=-1;ssrc=1234ABCD,url=rtsp://10.0.0.1/x;seq=1;rtptime=0;";
                message.replace("RTP-Info", line);
                if message.header("RTP-Info").is_none() {
                    message.lines.push(line.to_owned());
                }
            }
            Quirk::OtherChannels => {
                if let Some(value) = message.header("Transport").map(str::to_owned) {
                    self.acted();
                    let other = value
                        .replace("interleaved=0-1", "interleaved=4-5")
                        .replace("interleaved=2-3", "interleaved=8-9");
                    message.replace("Transport", &format!("Transport: {other}"));
                }
            }
            Quirk::OddFields => {
                self.acted();
                let cseq = message.header("CSeq").unwrap_or_default().to_owned();
                message.replace("CSeq", &format!("Cseq: {cseq} "));
                if let Some(value) = message.header("Session").map(str::to_owned) {
                    message.replace(
                        "Session",
                        &format!("SESSION:        {}", value.replace(";timeout", " ; timeout")),
                    );
                }
                if let Some(value) = message.header("Transport").map(str::to_owned) {
                    let odd = value.replace("mode=\"PLAY\"", "mode=\"play\"").replace("ssrc=", "ssrc= ");
                    let line = format!("transport:  {};destination=192.168.7.7", odd.replace(';', "; "));
                    message.replace("Transport", &line);
                }
            }
            Quirk::QueryBase => {
                if let Some(base) = message.header("Content-Base").map(str::to_owned) {
                    let base = base.trim_end_matches('/');
                    message.replace("Content-Base", &format!("Content-Base: {base}{QUERY}/"));
                }
            }
            Quirk::AbsoluteControls if method == "DESCRIBE" => {
                let base = message.header("Content-Base").unwrap_or_default().to_owned();
                for track in ["stream=0", "stream=1"] {
                    message.body = message.body.replace(
                        &format!("a=control:{track}"),
                        &format!("a=control:{base}{track}?profile=1"),
                    );
                }
            }
            Quirk::EarlySession => {
                self.acted();
                if ["OPTIONS", "DESCRIBE"].contains(&method.as_str()) {
                    message.lines.push("Session:  0badc0de ".to_owned());
                } else if let Some(id) = message.header("Session").and_then(|value| value.split(';').next()) {
                    let line = format!("Session: {id} ; timeout=0");
                    message.replace("Session", &line);
                }
            }
            _ => {}
        }
    }

    fn frame(&mut self, channel: u8, payload: Vec<u8>) -> Vec<Unit> {
        self.frames += 1;
        match self.quirk {
            Quirk::StrayChannels if self.frames.is_multiple_of(4) && self.frames < 2000 => {
                self.acted();
                vec![
                    Unit::Frame(77, b"not for anybody".to_vec()),
                    Unit::Frame(channel, Vec::new()),
                    Unit::Frame(channel, payload),
                ]
            }
            Quirk::OtherChannels => {
                let other = match channel {
                    0 | 1 => channel + 4,
                    2 | 3 => channel + 6,
                    other => other,
                };
                vec![Unit::Frame(other, payload)]
            }
            Quirk::EarlyFrames if self.held.is_some() => {
                self.early.push_back(Unit::Frame(channel, payload));
                if self.early.len() < EARLY {
                    return Vec::new();
                }
                self.acted();
                let mut units: Vec<Unit> = self.early.drain(..).collect();
                units.extend(self.held.take().map(Unit::Message));
                units
            }
            _ => vec![Unit::Frame(channel, payload)],
        }
    }
}

impl Rule for State {
    fn up(&mut self, unit: Unit) -> Vec<Unit> {
        match unit {
            Unit::Message(mut message) => {
                if !message.start.starts_with("RTSP/") {
                    self.request(&mut message);
                }
                vec![Unit::Message(message)]
            }
            Unit::Frame(channel, payload) if self.quirk == Quirk::OtherChannels => {
                // The proxy's RTCP goes to the channels that were given.
                let own = match channel {
                    4 | 5 => channel - 4,
                    8 | 9 => channel - 6,
                    other => {
                        self.fault(format!("a frame on channel {other}, which was not given"));
                        other
                    }
                };
                vec![Unit::Frame(own, payload)]
            }
            other => vec![other],
        }
    }

    fn down(&mut self, unit: Unit) -> Vec<Unit> {
        match unit {
            Unit::Message(mut message) => {
                let is_play = message
                    .header("CSeq")
                    .and_then(|cseq| self.methods.get(cseq))
                    .is_some_and(|method| method == "PLAY");
                self.answer(&mut message);
                if self.quirk == Quirk::EarlyFrames && is_play {
                    self.held = Some(message);
                    return Vec::new();
                }
                let mut units = vec![Unit::Message(message)];
                if self.quirk == Quirk::OddFields {
                    units.insert(0, Unit::Raw(b"\r\n".to_vec()));
                }
                units
            }
            Unit::Frame(channel, payload) => self.frame(channel, payload),
            Unit::Raw(bytes) => vec![Unit::Raw(bytes)],
        }
    }
}
