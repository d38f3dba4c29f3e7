//! A camera that answers as real ones do.

use msm_graph::ConnId;
use msm_rtsp::message::{Method, Request, Response, Status};
use msm_rtsp::transport::parse_transport;

pub(in crate::tests) const CAMERA_SDP: &str = "v=0\r\no=- 77 1 IN IP4 192.0.2.10\r\ns=Live\r\nc=IN IP4 192.0.2.10\r\nt=0 0\r\n\
a=control:rtsp://192.0.2.10:8554/live/\r\n\
m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:rtsp://192.0.2.10:8554/live/track1\r\n\
m=audio 0 RTP/AVP 8\r\na=control:rtsp://192.0.2.10:8554/live/track2\r\n";

/// A camera that answers requests.
#[derive(Debug)]
pub(in crate::tests) struct Camera {
    pub(in crate::tests) up: bool,
    /// Connects, then says nothing.
    pub(in crate::tests) mute: bool,
    /// `461` to UDP.
    pub(in crate::tests) tcp_only: bool,
    /// Plays, but its UDP packets do not arrive.
    pub(in crate::tests) udp_blocked: bool,
    pub(in crate::tests) sdp: String,
    pub(in crate::tests) public: &'static str,
    /// `Session` header of SETUP answers, by count of SETUPs.
    pub(in crate::tests) session: fn(usize) -> Option<String>,
    pub(in crate::tests) challenge: Option<&'static str>,
    /// The next request with a session gets `454`.
    pub(in crate::tests) forget_session: bool,
    pub(in crate::tests) requests: Vec<Request>,
    pub(in crate::tests) dials: usize,
    pub(in crate::tests) open: Vec<ConnId>,
    pub(in crate::tests) setups: usize,
}

impl Default for Camera {
    fn default() -> Self {
        Self {
            up: true,
            mute: false,
            tcp_only: false,
            udp_blocked: false,
            sdp: CAMERA_SDP.to_owned(),
            public: "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN",
            session: |_| Some("cafe1234;timeout=60".to_owned()),
            challenge: None,
            forget_session: false,
            requests: Vec::new(),
            dials: 0,
            open: Vec::new(),
            setups: 0,
        }
    }
}

impl Camera {
    pub(in crate::tests) fn count(&self, method: &Method) -> usize {
        self.requests.iter().filter(|r| r.method == *method).count()
    }

    pub(super) fn answer(&mut self, request: &Request) -> Option<Response> {
        self.requests.push(request.clone());
        if self.mute {
            return None;
        }
        let mut response = Response::new(Status::OK);
        if let Some(challenge) = self.challenge
            && !request.headers.get("Authorization").is_some_and(|v| v.contains("username=\"admin\""))
        {
            response = Response::new(Status::UNAUTHORIZED).with("WWW-Authenticate", challenge);
            return Some(response.with("CSeq", request.cseq().unwrap().to_string()));
        }
        if request.headers.get("Session").is_some() && std::mem::take(&mut self.forget_session) {
            response = Response::new(Status::SESSION_NOT_FOUND);
            return Some(response.with("CSeq", request.cseq().unwrap().to_string()));
        }
        match request.method {
            Method::Options => response = response.with("Public", self.public),
            Method::Describe => {
                response = response
                    .with("Content-Base", "rtsp://192.0.2.10:8554/live/")
                    .with_body("application/sdp", self.sdp.clone());
            }
            Method::Setup => {
                let asked = request.headers.get("Transport").unwrap().to_owned();
                let spec = parse_transport(&asked).unwrap().remove(0);
                if spec.interleaved.is_none() && self.tcp_only {
                    response = Response::new(Status::UNSUPPORTED_TRANSPORT);
                } else {
                    let answer = if spec.interleaved.is_some() {
                        asked
                    } else {
                        format!("{asked};source=192.0.2.10;server_port=41041-41042;ssrc=11223344")
                    };
                    response = response.with("Transport", answer);
                    if let Some(session) = (self.session)(self.setups) {
                        response = response.with("Session", session);
                    }
                    self.setups += 1;
                }
            }
            _ => {}
        }
        Some(response.with("CSeq", request.cseq().unwrap().to_string()))
    }
}
