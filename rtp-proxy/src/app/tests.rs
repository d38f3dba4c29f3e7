//! The whole proxy in this process, on ports that the system chooses.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::JoinHandle;

use super::*;
use crate::kernel::hop::Rung;
use crate::kernel::service::Settings;

/// `/v1/streams` of a proxy that has none.
const EMPTY: &str = concat!(
    r#"{"streams":[],"kernel":{"on":false,"reason":"--max-rung user","interfaces":[],"#,
    r#""former_viewers":[]}}"#
);

struct Proxy {
    addresses: Addresses,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Result<(), AppError>>,
}

fn config() -> Config {
    Config {
        rtsp: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        rtp_ports: 0..=0,
        workers: Some(1),
        kernel: Settings { max_rung: Rung::User, ..Settings::default() },
        ..Config::default()
    }
}

fn start(config: Config) -> Proxy {
    let (stop, stopped) = mpsc::channel(4);
    let (ready, addresses) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        run(config, Stop::Channel(stopped), |addresses| ready.send(addresses).unwrap())
    });
    Proxy { addresses: addresses.recv().unwrap(), stop, thread }
}

impl Proxy {
    fn get(&self, path: &str, accept: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addresses.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    fn rtsp(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.addresses.rtsp).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut buf = [0; 4096];
        let n = stream.read(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    fn end(self) {
        self.stop.blocking_send(()).unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

#[test]
fn it_starts_on_free_ports_answers_its_probes_and_stops() {
    let proxy = start(config());
    assert_eq!(proxy.get("/livez", "*/*"), (200, "ok\n".to_owned()));
    let (status, body) = proxy.get("/readyz?verbose", "*/*");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("[+] workers") && body.contains("[+] rtsp"), "{body}");
    assert_eq!(proxy.get("/v1/streams", "*/*"), (200, EMPTY.to_owned()));
    assert_eq!(proxy.get("/nothing", "*/*").0, 404);
    proxy.end();
}

#[test]
fn a_configured_camera_is_listed_before_anyone_watches_it() {
    let mut config = config();
    config.plane.pulls.push(msm_control_plane::config::PullConfig::new("door", "rtsp://127.0.0.1:1/x"));
    let proxy = start(config);
    let (_, body) = proxy.get("/v1/streams", "*/*");
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["streams"][0]["name"], "door");
    proxy.end();
}

#[test]
fn requests_are_answered_and_counted_by_method_and_code() {
    let proxy = start(config());
    let options = proxy.rtsp("OPTIONS * RTSP/1.0\r\nCSeq: 7\r\n\r\n");
    assert!(options.starts_with("RTSP/1.0 200 OK\r\n") && options.contains("CSeq: 7"), "{options}");
    let describe = proxy.rtsp("DESCRIBE rtsp://127.0.0.1/none RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    assert!(describe.starts_with("RTSP/1.0 404"), "{describe}");
    let (_, text) = proxy.get("/metrics", "*/*");
    assert!(text.contains(r#"msm_rtsp_requests_total{method="OPTIONS",code="200"} 1"#), "{text}");
    assert!(text.contains(r#"msm_rtsp_requests_total{method="DESCRIBE",code="404"} 1"#), "{text}");
    assert!(text.contains("# TYPE msm_rtsp_requests_total counter"), "{text}");
    let (_, open) = proxy.get("/metrics", "application/openmetrics-text; version=1.0.0");
    assert!(open.ends_with("# EOF\n"), "{open}");
    proxy.end();
}

#[test]
fn garbage_is_rejected_and_counted_and_nobody_else_notices() {
    let proxy = start(config());
    proxy.rtsp("\x01\x02\x03 this is no RTSP\r\n\r\n");
    let (_, text) = proxy.get("/metrics", "*/*");
    assert!(text.contains("msm_rejected_inputs_total{reason="), "{text}");
    assert!(proxy.rtsp("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n").starts_with("RTSP/1.0 200"));
    proxy.end();
}

#[test]
fn connections_beyond_the_limit_are_closed_and_the_others_stay() {
    let mut config = config();
    config.max_connections = 1;
    let proxy = start(config);
    let mut first = TcpStream::connect(proxy.addresses.rtsp).unwrap();
    first.write_all(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n").unwrap();
    let mut buf = [0; 1024];
    assert!(first.read(&mut buf).unwrap() > 0);
    let mut second = TcpStream::connect(proxy.addresses.rtsp).unwrap();
    assert_eq!(second.read(&mut buf).unwrap_or(0), 0);
    first.write_all(b"OPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n").unwrap();
    assert!(first.read(&mut buf).unwrap() > 0);
    proxy.end();
}

#[test]
fn a_port_that_is_taken_names_port_and_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config();
    config.rtsp = taken.local_addr().unwrap();
    let (_stop, stopped) = mpsc::channel(1);
    let error = run(config.clone(), Stop::Channel(stopped), |_| ()).unwrap_err().to_string();
    assert!(error.contains(&config.rtsp.to_string()) && error.contains("--rtsp"), "{error}");
}
