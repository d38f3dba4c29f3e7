//! Cases 1, 2 and 3 over the socket: any split of recorded players, the edges of CSeq, RTSP/2.0.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{GstCamera, Stage, Transport};
use msm_tests::privilege::{self, Need};
use msm_tests::process::{Launch, Scratch, wait_for};
use msm_tests::proxy::Proxy;

use crate::fake_camera::FakeCamera;
use crate::peer::{Item, PATIENCE, Peer, Viewer};
use crate::relay::{Relay, Rule, Unit};
use crate::scene;

/// What players sent, from `testdata/rtsp`.
const CONVERSATIONS: [(&str, &[u8]); 3] = [
    ("ffmpeg-play-tcp", include_bytes!("../testdata/rtsp/ffmpeg-play-tcp.client.bin")),
    ("gst-play-tcp", include_bytes!("../testdata/rtsp/gst-play-tcp.client.bin")),
    ("vlc-play", include_bytes!("../testdata/rtsp/vlc-play.client.bin")),
];

/// How the bytes of one message reach the proxy.
#[derive(Debug, Clone, Copy)]
enum Split {
    Whole,
    Bytes,
    /// Lengths from a generator with this seed.
    Random(u64),
}

impl Split {
    fn send(self, peer: &mut Peer, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        let mut state = if let Self::Random(seed) = self { seed } else { 1 };
        while !rest.is_empty() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let length = match self {
                Self::Whole => rest.len(),
                Self::Bytes => 1,
                Self::Random(_) => 1 + (state >> 33) as usize % 60,
            };
            let (now, later) = rest.split_at(length.min(rest.len()));
            peer.send_raw(now)?;
            rest = later;
        }
        Ok(())
    }
}

/// The requests of a recording (its frames left out), for another server and stream.
fn requests(recorded: &[u8], proxy: &Proxy) -> Vec<String> {
    let mut messages = Vec::new();
    let mut rest = recorded;
    while let Some(first) = rest.first() {
        if *first == b'$' && rest.len() > 4 {
            let end = 4 + usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            rest = rest.get(end..).unwrap_or_default();
            continue;
        }
        let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else { break };
        messages.push(String::from_utf8_lossy(&rest[..end + 4]).into_owned());
        rest = &rest[end + 4..];
    }
    let authority = format!("127.0.0.1:{}", proxy.rtsp_port);
    messages
        .into_iter()
        .map(|message| {
            let recorded = message.split("rtsp://").nth(1).and_then(|rest| rest.split(['/', ' ']).next());
            let message = match recorded {
                Some(recorded) => message.replace(recorded, &authority),
                None => message,
            };
            // The recorded server named its tracks otherwise.
            message.replace("/stream=", "/trackID=")
        })
        .collect()
}

/// Plays a recording and returns method and status of every answer.
fn replay(proxy: &Proxy, recorded: &[u8], split: Split) -> Result<Vec<(String, u16)>> {
    let mut peer = Peer::open(&proxy.url("cam"))?;
    let mut session: Option<String> = None;
    let mut statuses = Vec::new();
    for request in requests(recorded, proxy) {
        let mut text = request;
        if let Some(start) = text.find("Session: ") {
            let end = start + text[start..].find("\r\n").context("an open line")?;
            let id = session.as_deref().unwrap_or("none");
            text.replace_range(start..end, &format!("Session: {id}"));
        }
        split.send(&mut peer, text.as_bytes())?;
        let answer = peer.answer().with_context(|| text.clone())?;
        let sent = text.split("CSeq: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        ensure!(answer.header("CSeq") == sent, "{sent:?} came back as {answer:?}");
        if let Some(id) = answer.header("Session").and_then(|value| value.split(';').next()) {
            session.get_or_insert(id.to_owned());
        }
        statuses.push((text.split(' ').next().unwrap_or_default().to_owned(), answer.status));
    }
    Ok(statuses)
}

/// Case 1 (RTSP-40): what real players sent, in one piece, byte by byte and in random pieces.
#[test]
fn recorded_players_get_the_same_answers_at_every_split() -> Result<()> {
    let (scratch, camera) = (Scratch::new("splits")?, FakeCamera::start()?);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    for (name, recorded) in CONVERSATIONS {
        let whole = replay(&proxy, recorded, Split::Whole).context(name)?;
        for split in [Split::Bytes, Split::Random(1), Split::Random(2)] {
            let other = replay(&proxy, recorded, split).with_context(|| format!("{name} {split:?}"))?;
            assert_eq!(whole, other, "{name} {split:?}");
        }
        if name != "vlc-play" {
            ensure!(whole.len() >= 5 && whole.iter().all(|(_, status)| *status == 200), "{name}: {whole:?}");
        }
    }
    Ok(())
}

/// Case 1 (RTSP-6, RTSP-40): requests in one segment are answered in their order, frames between them
/// and a `$` in a body disturb nothing.
#[test]
fn pipelined_requests_with_frames_between_are_answered_in_order() -> Result<()> {
    let scratch = Scratch::new("pipeline")?;
    let proxy = scene::proxy(&scratch, &[])?;
    let mut peer = Peer::open(&proxy.url("cam"))?;
    let mut bytes = Vec::new();
    for cseq in 1..=8 {
        bytes.extend(format!("OPTIONS * RTSP/1.0\r\nCSeq: {cseq}\r\n\r\n").bytes());
        bytes.extend([b'$', 1, 0, 8, 0x80, 201, 0, 1, 1, 2, 3, 4]);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"SET_PARAMETER * RTSP/1.0\r\nCSeq: 9\r\nContent-Length: 12\r\n\r\n$\x00\x00\x04OPTIONS ");
    bytes.extend(b"OPTIONS * RTSP/1.0\r\nCSeq: 10\r\n\r\n");
    peer.send_raw(&bytes)?;
    for cseq in 1..=10 {
        let answer = peer.answer()?;
        assert_eq!(answer.header("CSeq"), Some(cseq.to_string().as_str()), "{answer:?}");
    }
    Ok(())
}

/// One message, the status it gets and whether the connection stays.
struct Edge {
    what: &'static str,
    message: &'static str,
    status: u16,
    cseq: Option<&'static str>,
    open: bool,
}

const fn edge(
    what: &'static str,
    message: &'static str,
    status: u16,
    cseq: Option<&'static str>,
    open: bool,
) -> Edge {
    Edge { what, message, status, cseq, open }
}

const EDGES: [Edge; 14] = [
    edge("zero, as VLC sends", "OPTIONS * RTSP/1.0\r\nCSeq: 0\r\n\r\n", 200, Some("0"), true),
    edge("another case of letters", "OPTIONS * RTSP/1.0\r\nCseq: 7\r\n\r\n", 200, Some("7"), true),
    edge("trailing blanks", "OPTIONS * RTSP/1.0\r\ncseq:7 \t \r\n\r\n", 200, Some("7"), true),
    edge("line ends in front", "\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 7\r\n\r\n", 200, Some("7"), true),
    edge("no CSeq", "OPTIONS * RTSP/1.0\r\nUser-Agent: x\r\n\r\n", 400, None, true),
    edge("two CSeq", "OPTIONS * RTSP/1.0\r\nCSeq: 7\r\nCSeq: 8\r\n\r\n", 400, None, false),
    edge(
        "two lengths",
        "SET_PARAMETER * RTSP/1.0\r\nCSeq: 7\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        400,
        None,
        false,
    ),
    edge(
        "two sessions",
        "GET_PARAMETER * RTSP/1.0\r\nCSeq: 7\r\nSession: a\r\nSession: b\r\n\r\n",
        400,
        None,
        false,
    ),
    edge(
        "a repeated soft header, as rtspsrc sends",
        "OPTIONS * RTSP/1.0\r\nCSeq: 7\r\nUser-Agent: a\r\nUser-Agent: b\r\n\r\n",
        200,
        Some("7"),
        true,
    ),
    edge("a folded header", "OPTIONS * RTSP/1.0\r\nCSeq: 7\r\nA: b\r\n c\r\n\r\n", 400, None, false),
    edge("bare line feeds", "OPTIONS * RTSP/1.0\nCSeq: 7\n\n", 400, None, false),
    edge("RTSP/2.0", "OPTIONS * RTSP/2.0\r\nCSeq: 7\r\n\r\n", 505, Some("7"), true),
    edge("an unknown method", "STEAL * RTSP/1.0\r\nCSeq: 7\r\n\r\n", 501, Some("7"), true),
    edge(
        "an unknown option",
        "DESCRIBE rtsp://h/cam RTSP/1.0\r\nCSeq: 7\r\nRequire: org.example.no\r\n\r\n",
        551,
        Some("7"),
        true,
    ),
];

/// Case 2 (RTSP-2, RTSP-4, RTSP-5, SEC-9; the table of bad input): the status, the CSeq and whether the
/// connection goes on.
#[test]
fn edges_of_messages_get_their_status_and_close_only_when_framing_is_in_doubt() -> Result<()> {
    let scratch = Scratch::new("edges")?;
    let proxy = scene::proxy(&scratch, &[])?;
    for edge in EDGES {
        let mut peer = Peer::open(&proxy.url("cam"))?;
        peer.send_raw(edge.message.as_bytes())?;
        let answer = peer.answer().context(edge.what)?;
        assert_eq!(answer.status, edge.status, "{}: {answer:?}", edge.what);
        if edge.status != 400 || edge.open {
            assert_eq!(answer.header("CSeq"), edge.cseq, "{}: {answer:?}", edge.what);
        }
        if edge.open {
            let after = peer.request("OPTIONS", "*", &[], "").context(edge.what)?;
            assert_eq!(after.status, 200, "{}", edge.what);
        } else {
            peer.wait_for_close(PATIENCE).context(edge.what)?;
        }
    }
    Ok(())
}

/// Streams of messages whose boundaries gst-rtsp-server and the proxy must see alike.
const BOUNDARIES: [&str; 3] = [
    "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 3\r\n\r\n",
    "SET_PARAMETER * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 34\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n\r\n\
     OPTIONS * RTSP/1.0\r\nCSeq: 3\r\n\r\n",
    "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\ncontent-length:  4 \r\n\r\n$\x01\x02\x03OPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n",
];

fn answered(url: &str, bytes: &str, expected: usize) -> Result<Vec<String>> {
    let mut peer = Peer::open(url)?;
    peer.send_raw(bytes.as_bytes())?;
    let mut found = Vec::new();
    while found.len() < expected {
        match peer.item(PATIENCE)? {
            Some(Item::Answer(answer)) => found.push(answer.header("CSeq").unwrap_or_default().to_owned()),
            Some(Item::Frame(..)) => {}
            None => break,
        }
    }
    Ok(found)
}

/// Case 2: gst-rtsp-server as an oracle of where messages end.
#[test]
fn message_boundaries_are_those_of_gst_rtsp_server() -> Result<()> {
    if !scene::programs("message_boundaries_are_those_of_gst_rtsp_server") {
        return Ok(());
    }
    let scratch = Scratch::new("boundaries")?;
    let camera = scene::gst_camera(&scratch, &scene::film()?, &GstCamera::default())?;
    let proxy = scene::proxy(&scratch, &[])?;
    for (bytes, expected) in BOUNDARIES.into_iter().zip([3, 2, 2]) {
        let theirs = answered(&camera.url, bytes, expected)?;
        let ours = answered(&proxy.url("cam"), bytes, expected)?;
        assert_eq!(ours.len(), expected, "{bytes:?}: {ours:?}");
        assert_eq!(ours, theirs, "{bytes:?}");
    }
    Ok(())
}

/// Case 3 (RTSP-1): rtspsrc speaks RTSP/2.0, gets 505, and plays by 1.0.
#[test]
fn rtspsrc_that_starts_with_version_2_plays_by_version_1() -> Result<()> {
    if !scene::programs("rtspsrc_that_starts_with_version_2_plays_by_version_1") {
        return Ok(());
    }
    let (scratch, camera) = (Scratch::new("version")?, FakeCamera::start()?);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    // What the player and the proxy say to each other, as the first lines of their messages.
    let starts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&starts);
    let relay =
        Relay::start(scene::socket_address(&proxy.url("cam"))?, move || Box::new(Starts(Arc::clone(&seen))))?;
    let pipeline = format!(
        "rtspsrc location=rtsp://{}/cam default-rtsp-version=2-0 protocols=tcp name=s \
         s. ! application/x-rtp,media=video ! fakesink dump=true sync=false",
        relay.address
    );
    let sink = scratch.file("dump");
    let mut player = Launch::new("rtspsrc", "gst-launch-1.0")
        .arg("-q")
        .args(pipeline.split_whitespace())
        .stdout_to(&sink)
        .start(scratch.path())?;
    wait_for("packets at rtspsrc", PATIENCE * 2, || {
        (player.stdout().lines().count() > 10 || !player.is_running()).then_some(())
    })
    .with_context(|| player.tail())?;
    ensure!(player.is_running(), "rtspsrc ended: {}", player.tail());
    let starts = starts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(starts[0].ends_with(" RTSP/2.0"), "rtspsrc did not start with RTSP/2.0: {starts:?}");
    ensure!(starts[1].starts_with("RTSP/1.0 505"), "{starts:?}");
    ensure!(starts[2].ends_with(" RTSP/1.0"), "{starts:?}");
    assert_eq!(relay.connections(), 1, "505 must leave the connection open");
    Ok(())
}

/// Notes the first line of every message.
struct Starts(Arc<Mutex<Vec<String>>>);

impl Starts {
    fn note(&self, unit: &Unit) {
        if let Unit::Message(message) = unit {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message.start.clone());
        }
    }
}

impl Rule for Starts {
    fn up(&mut self, unit: Unit) -> Vec<Unit> {
        self.note(&unit);
        vec![unit]
    }

    fn down(&mut self, unit: Unit) -> Vec<Unit> {
        self.note(&unit);
        vec![unit]
    }
}

/// Case 2: VLC without live555 sends SETUP first with `CSeq: 0` and gives up; nothing else is lost.
#[test]
fn vlc_as_a_client_gives_up_and_harms_nobody() -> Result<()> {
    let test = "vlc_as_a_client_gives_up_and_harms_nobody";
    if !privilege::granted(test, &[Need::Program("cvlc")]) {
        return Ok(());
    }
    let (scratch, camera) = (Scratch::new("vlc")?, FakeCamera::start()?);
    let mut proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    let (mut viewer, _) = Viewer::play(&proxy.url("cam"), Transport::Tcp)?;
    let before = proxy.metric("msm_rtsp_requests_total", &["method=\"SETUP\""])?;
    let mut vlc = Launch::unprivileged("vlc", None, "cvlc")
        .args(["-I", "dummy", "--play-and-exit", &proxy.url("cam"), "vlc://quit"])
        .start(Stage::here(scratch.path()).scratch)?;
    wait_for("VLC's SETUP", PATIENCE, || {
        (proxy.metric("msm_rtsp_requests_total", &["method=\"SETUP\""]).ok()? > before).then_some(())
    })
    .with_context(|| vlc.tail())?;
    vlc.stop(nix::sys::signal::Signal::SIGTERM, Duration::from_secs(3))?;
    for packets in viewer.packets(20)? {
        crate::peer::assert_contiguous(&packets);
    }
    scene::assert_alive(&mut proxy)
}
