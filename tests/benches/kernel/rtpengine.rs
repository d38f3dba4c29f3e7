//! rtpengine in user-space mode, driven by its ng protocol: one publication, one subscription per viewer.

use std::net::{SocketAddrV4, UdpSocket};
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::cpu::Pinned;
use msm_tests::bench::setting::Setting;
use msm_tests::privilege::find_program;
use msm_tests::process::wait_for;

use super::course::{Course, Traffic};
use super::lane::Lane;
use super::packet::Expect;
use super::path::Path;
use super::topology::Kind;

pub(crate) const NAME: &str = "rtpengine, user space";

/// Packets per second at which it is measured. It gives a port up for good once it has found more than 50
/// packets waiting five times ("UDP receive queue exceeded"), so it is given less to do than the others.
pub(crate) const RATE: u32 = 1_000;

/// One dictionary entry of bencode; dictionaries and lists are all that the protocol needs here.
fn bencode(entries: &[(&str, &str)], lists: &[(&str, &str)]) -> String {
    let text = |s: &str| format!("{}:{s}", s.len());
    let mut all: Vec<(&str, String)> = entries.iter().map(|(k, v)| (*k, text(v))).collect();
    all.extend(lists.iter().map(|(k, v)| (*k, format!("l{}e", text(v)))));
    // Keys of a dictionary are in order.
    all.sort();
    let body: String = all.iter().map(|(k, v)| text(k) + v).collect();
    format!("d{body}e")
}

/// The string that follows a key in an answer.
fn value<'a>(answer: &'a str, key: &str) -> Option<&'a str> {
    let after = answer.split_once(&format!("{}:{key}", key.len()))?.1;
    let (len, rest) = after.split_once(':')?;
    rest.get(..len.parse().ok()?)
}

struct Control {
    socket: UdpSocket,
    cookies: u32,
}

impl Control {
    fn ask(&mut self, entries: &[(&str, &str)], lists: &[(&str, &str)]) -> Result<String> {
        self.cookies += 1;
        let cookie = format!("bench{}", self.cookies);
        self.socket.send(format!("{cookie} {}", bencode(entries, lists)).as_bytes())?;
        let mut answer = vec![0; 65_536];
        let len = self.socket.recv(&mut answer).context("rtpengine does not answer")?;
        let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
        let result = value(&answer, "result").unwrap_or("none");
        ensure!(matches!(result, "ok" | "pong"), "rtpengine says: {answer}");
        Ok(answer)
    }
}

fn sdp(at: SocketAddrV4, direction: &str) -> String {
    let (ip, port) = (at.ip(), at.port());
    format!(
        "v=0\r\no=- 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\nm=audio {port} RTP/AVP 96\r\n\
         a=rtpmap:96 opus/48000/2\r\na={direction}\r\n"
    )
}

/// Why it cannot take part, or nothing.
pub(crate) fn missing() -> Option<String> {
    find_program("rtpengine").is_none().then(|| "rtpengine-daemon is not installed".to_owned())
}

fn version() -> String {
    let output = std::process::Command::new("rtpengine").arg("--version").output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.split_whitespace().last().unwrap_or("unknown").to_owned()
}

const DEFAULT_BUFFER: &str = "/proc/sys/net/core/rmem_default";

/// The receive buffer that new sockets have: rtpengine asks for none, and every contender gets the same.
pub(crate) fn buffers_of(bytes: usize) -> Result<Setting> {
    Setting::change(DEFAULT_BUFFER, &bytes.to_string())
}

/// A lane through a daemon of its own on the generator's core.
pub(crate) fn lane(course: &Course, traffic: Traffic) -> Result<Lane> {
    streams(course, traffic, 1)
}

/// The same with many streams, each a call of its own for the same viewers.
pub(crate) fn streams(course: &Course, traffic: Traffic, streams: usize) -> Result<Lane> {
    let host = &course.topology.host;
    let interface = course.topology.uplink(Kind::Stack).host;
    let (control, port) = (course.port(), course.port());
    // Ports of its own for media: further than any lane's.
    let media = 40_000 + (control - 20_000) * 4;
    let last = usize::from(media) + 400.max(2 * streams * (traffic.legs + 1) + 64);
    ensure!(last < 65_535, "{streams} streams need more ports than there are");
    let args = [
        "--config-file=none".to_owned(),
        "--table=-1".to_owned(),
        format!("--interface={interface}"),
        format!("--listen-ng=127.0.0.1:{control}"),
        "--foreground".to_owned(),
        "--log-stderr".to_owned(),
        "--log-level=3".to_owned(),
        "--num-threads=1".to_owned(),
        "--timeout=3600".to_owned(),
        "--silent-timeout=3600".to_owned(),
        format!("--port-min={media}"),
        format!("--port-max={last}"),
    ];
    let _buffers = buffers_of(8 << 20)?;
    let daemon = Pinned::start(Some(host), 0, FilePath::new("rtpengine"), &args)?;
    let socket = host.inside(|| UdpSocket::bind("127.0.0.1:0"))??;
    socket.connect(("127.0.0.1", control))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut control = Control { socket, cookies: 0 };
    wait_for("rtpengine to answer", Duration::from_secs(5), || {
        control.ask(&[("command", "ping")], &[]).ok()
    })?;
    let legs = course.legs(traffic, port, |_| Expect::any())?;
    // The source's address is part of the publication.
    let from = course.topology.uplink(Kind::Stack).source;
    let mut sockets = Vec::new();
    for stream in 0..streams {
        let call = format!("bench{stream}");
        let source = course.topology.source.inside(|| UdpSocket::bind((from, 0)))??;
        let at = SocketAddrV4::new(from, source.local_addr()?.port());
        let answer = control.ask(
            &[
                ("command", "publish"),
                ("call-id", &call),
                ("from-tag", "source"),
                ("sdp", &sdp(at, "sendonly")),
            ],
            &[("flags", "trust-address")],
        )?;
        let input = answer.split_once("m=audio ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        sockets.push((source, SocketAddrV4::new(interface, input.context("no port in rtpengine's answer")?)));
        for viewer in course.viewers(&legs) {
            let answer = control.ask(
                &[("command", "subscribe request"), ("call-id", &call)],
                &[("from-tags", "source"), ("flags", "trust-address")],
            )?;
            let tag = value(&answer, "to-tag").context("no tag in rtpengine's answer")?;
            control.ask(
                &[
                    ("command", "subscribe answer"),
                    ("call-id", &call),
                    ("to-tag", tag),
                    ("sdp", &sdp(viewer, "recvonly")),
                ],
                &[("flags", "trust-address")],
            )?;
        }
    }
    let mut generator = super::generator::Generator::from_sockets(sockets, traffic.shape, traffic.size)?;
    generator.rate = traffic.rate;
    let mut lane = Course::lane(NAME, generator, Path::Process(daemon), legs, traffic);
    lane.version = version();
    Ok(lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_dictionary_in_key_order_and_an_answer_is_read_by_key() {
        assert_eq!(
            bencode(&[("command", "ping"), ("a", "b")], &[("l", "x")]),
            "d1:a1:b7:command4:ping1:ll1:xee"
        );
        assert_eq!(value("d6:result4:ponge", "result"), Some("pong"));
        assert_eq!(value("d6:result9:ponge", "result"), None);
    }
}
