//! Viewers, and what they send.

use msm_graph::ConnId;
use msm_rtsp::auth::{BasicPolicy, ClientAuth, Credentials};
use msm_rtsp::message::{Method, Response, Status};

use super::World;

/// A viewer of `rtsp://proxy:8554/<name>`.
#[derive(Debug, Clone)]
pub(in crate::tests) struct Viewer {
    pub(in crate::tests) conn: ConnId,
    pub(in crate::tests) url: String,
    pub(in crate::tests) session: String,
    pub(in crate::tests) setups: Vec<Response>,
    pub(in crate::tests) play: Response,
}

pub(in crate::tests) const UDP: [&str; 2] =
    ["RTP/AVP;unicast;client_port=5000-5001", "RTP/AVP;unicast;client_port=5002-5003"];
pub(in crate::tests) const TCP: [&str; 2] =
    ["RTP/AVP/TCP;unicast;interleaved=0-1", "RTP/AVP/TCP;unicast;interleaved=2-3"];

impl World {
    /// DESCRIBE, two SETUPs and PLAY, all answered at once.
    pub(in crate::tests) fn view(&mut self, name: &str, peer: &str, transport: [&str; 2]) -> Viewer {
        let mut viewer = self.prepare(name, peer, transport);
        viewer.play = self.ask(viewer.conn, Method::Play, &viewer.url, &[("Session", &viewer.session)]);
        assert_eq!(viewer.play.status, Status::OK, "PLAY {name}");
        viewer
    }

    /// DESCRIBE and two SETUPs.
    pub(in crate::tests) fn prepare(&mut self, name: &str, peer: &str, transport: [&str; 2]) -> Viewer {
        let conn = self.connect(peer);
        let url = format!("rtsp://proxy:8554/{name}");
        let response = self.ask(conn, Method::Describe, &url, &[("Accept", "application/sdp")]);
        assert_eq!(response.status, Status::OK, "DESCRIBE {name}");
        let mut session = String::new();
        let mut setups = Vec::new();
        for (n, transport) in transport.iter().enumerate() {
            let track = format!("{url}/trackID={n}");
            let mut headers = vec![("Transport", *transport)];
            if n > 0 {
                headers.push(("Session", &session));
            }
            let response = self.ask(conn, Method::Setup, &track, &headers);
            assert_eq!(response.status, Status::OK, "SETUP {track}");
            let header = response.headers.get("Session").unwrap();
            let id = header.split(';').next().unwrap().to_owned();
            session = id;
            setups.push(response);
        }
        Viewer { conn, url, session, setups, play: Response::new(Status::OK) }
    }

    pub(in crate::tests) fn in_session(&mut self, viewer: &Viewer, method: Method) -> Response {
        self.ask(viewer.conn, method, &viewer.url, &[("Session", &viewer.session)])
    }
}

/// An `Authorization` for the challenges of a response.
pub(in crate::tests) fn authorize(
    response: &Response,
    user: &str,
    password: &str,
    method: &Method,
    uri: &str,
) -> String {
    let mut auth = ClientAuth::new(Some(Credentials::new(user, password)), BasicPolicy::Refuse);
    auth.handle_unauthorized(response.headers.get_all("WWW-Authenticate")).unwrap();
    auth.authorization(method, uri, [7; 8]).unwrap()
}
