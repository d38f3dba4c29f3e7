//! Cases 4, 5 and 6: where media comes from, how 461 steers players, and who owns which channel.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::camera::{self, GstCamera, Transport};
use msm_tests::ground::Ground;
use msm_tests::oracle::{self, Claim};
use msm_tests::packet::Capture;
use msm_tests::privilege::{self, Need};
use msm_tests::process::{Launch, Scratch, output, wait_for};
use msm_tests::viewer::{Player, Viewer as RealViewer, Watch};

use crate::fake_camera::{FakeCamera, read_payload};
use crate::peer::{Inlet, PATIENCE, Peer, Viewer, assert_all_contiguous, channels, server_ports};
use crate::relay::{Relay, Rule, Unit};
use crate::scene;

/// Case 4 (RTSP-14): a proxy with two addresses sends from the one that the viewer connected to, says so
/// in `source=`, and gets both players' RTCP there.
#[test]
fn udp_media_comes_from_the_address_named_and_rtcp_goes_back_to_it() -> Result<()> {
    let test = "udp_media_comes_from_the_address_named_and_rtcp_goes_back_to_it";
    let needs = [Need::Namespaces, Need::Program("tshark"), Need::Program("dumpcap")];
    if !privilege::granted(test, &needs) || !scene::programs(test) {
        return Ok(());
    }
    let film = scene::film()?;
    let Some(ground) = Ground::with_networks(test)? else { return Ok(()) };
    let proxy = scene::pulling_on(&ground, &[], &[])?;
    let publisher = ground.among_cameras(|| {
        let target = ground.publish_url(&proxy, "cam");
        camera::publish_with_ffmpeg(ground.stage(), "publisher", &film, &target, Transport::Udp)
    })?;
    proxy.wait_for_media("cam", 2, PATIENCE).with_context(|| publisher.tail())?;
    // The host's second address there.
    let url = proxy.url_at("10.91.2.2", "cam");
    let capture = Capture::start(ground.stage(), "capture", ground.viewers_device(), "udp")?;

    let spoken = Viewer::set_up(&url, Transport::Udp)?;
    let mut ports = Vec::new();
    for track in &spoken.tracks {
        ensure!(track.transport.contains(";source=10.91.2.2"), "{}", track.transport);
        let (rtp, rtcp) = server_ports(&track.transport)?;
        ensure!(rtp % 2 == 0 && rtcp == rtp + 1, "{}", track.transport);
        let Inlet::Udp(own, _) = &track.inlet else { bail!("asked for UDP, got {:?}", track.inlet) };
        let own = own.local_addr()?.port();
        ensure!(track.transport.contains(&format!("client_port={own}-{}", own + 1)), "{}", track.transport);
        ports.push(rtp);
    }
    drop(spoken);
    let mut viewers = Vec::new();
    for player in [Player::Ffmpeg, Player::Rtspsrc] {
        let watch = Watch {
            name: player.name().to_owned(),
            player,
            transport: Transport::Udp,
            url: url.clone(),
            credentials: None,
            profile: film.profile,
        };
        viewers.push(RealViewer::start(ground.stage(), watch)?);
    }
    // What a leg reports as lost comes from its viewer's own RTCP; until that arrived it is null.
    wait_for("RTCP of both players at the proxy", PATIENCE * 2, || {
        let stream = proxy.stream("cam")?;
        let reported = stream["legs"].as_array()?.iter().filter(|leg| !leg["lost"].is_null()).count();
        (reported == 2).then_some(())
    })
    .with_context(|| format!("{:?}", proxy.stream("cam")))?;
    ground.wait_until_carried(&proxy, "cam", 2, || Ok(()))?;
    scene::judge_all(&film, viewers)?;
    let file = capture.finish()?;
    let fields = |filter: &str, fields: &[&str]| -> Result<Vec<String>> {
        let file = file.to_string_lossy();
        let mut args = vec!["-r", &file, "-Y", filter, "-T", "fields"];
        for field in fields {
            args.extend(["-e", field]);
        }
        Ok(output("tshark", &args)?.lines().map(str::to_owned).collect())
    };
    let from = fields("ip.dst == 10.91.2.9 && udp && !icmp", &["ip.src", "udp.srcport"])?;
    ensure!(from.len() > 100, "only {} datagrams", from.len());
    let allowed: Vec<String> =
        ports.iter().flat_map(|port| [*port, port + 1]).map(|port| format!("10.91.2.2\t{port}")).collect();
    for line in &from {
        ensure!(allowed.contains(line), "a datagram from {line}, not from {allowed:?}");
    }
    let rtcp = fields(&format!("udp.dstport == {} && ip.dst == 10.91.2.2", ports[0] + 1), &["ip.src"])?;
    ensure!(rtcp.len() >= 2, "RTCP on the wire: {}", rtcp.len());
    ground.judge()
}

/// What a relay between player and proxy saw.
#[derive(Debug, Default)]
struct Talk {
    /// Transports asked for.
    asked: Vec<String>,
    /// Status of every answer.
    statuses: Vec<String>,
    /// Transports answered.
    given: Vec<String>,
}

/// A network where UDP is forbidden: the request for it becomes one for what the proxy must refuse.
struct NoUdp(Arc<Mutex<Talk>>);

impl Rule for NoUdp {
    fn up(&mut self, unit: Unit) -> Vec<Unit> {
        let Unit::Message(mut message) = unit else { return vec![unit] };
        if let Some(transport) = message.header("Transport").map(str::to_owned) {
            if !transport.contains("TCP") {
                message.replace("Transport", "Transport: RTP/AVP;multicast;port=5000-5001");
            }
            self.0.lock().unwrap_or_else(PoisonError::into_inner).asked.push(transport);
        }
        vec![Unit::Message(message)]
    }

    fn down(&mut self, unit: Unit) -> Vec<Unit> {
        if let Unit::Message(message) = &unit {
            let mut talk = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            talk.statuses.push(message.start.clone());
            talk.given.extend(message.header("Transport").map(str::to_owned));
        }
        vec![unit]
    }
}

/// Case 5 (RTSP-13): the proxy's 461 makes both players ask for TCP on the same connection, and they play.
#[test]
fn a_461_moves_both_players_to_tcp_on_the_same_connection() -> Result<()> {
    if !scene::programs("a_461_moves_both_players_to_tcp_on_the_same_connection") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("461")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let proxy = scene::pulling(&scratch, &[("cam", camera.url.clone(), None)], &[])?;
    // gst-launch links the pads of rtspsrc late and now and then not at all: then it is started again, and
    // says nothing of the proxy. One that never gets a frame still fails.
    let mut tries = vec![Player::Rtspsrc, Player::Rtspsrc, Player::Rtspsrc, Player::Ffmpeg];
    while let Some(player) = tries.pop() {
        let talk = Arc::new(Mutex::new(Talk::default()));
        let of_rule = Arc::clone(&talk);
        let relay = Relay::start(scene::socket_address(&proxy.url("cam"))?, move || {
            Box::new(NoUdp(Arc::clone(&of_rule)))
        })?;
        let url = format!("rtsp://{}/cam", relay.address);
        let sums = scratch.file(&format!("{}.sums", player.name()));
        let launch = match player {
            Player::Ffmpeg => Launch::new("ffmpeg", "ffmpeg")
                .args(["-nostdin", "-v", "warning", "-i", &url, "-map", "0:v", "-fps_mode", "passthrough"])
                .args(["-flush_packets", "1", "-f", "framemd5"])
                .arg(&sums),
            _ => Launch::new("rtspsrc", "gst-launch-1.0").arg("-q").stdout_to(&sums).args(
                format!(
                    "rtspsrc location={url} name=s s. ! application/x-rtp,media=video ! rtph264depay ! h264parse ! \
                     avdec_h264 ! checksumsink hash=md5 s. ! application/x-rtp,media=audio ! fakesink"
                )
                .split_whitespace(),
            ),
        };
        let mut process = launch.start(scratch.path())?;
        let decoded = || checksums(&std::fs::read_to_string(&sums).unwrap_or_default());
        let frames = wait_for("frames", PATIENCE, || {
            let frames = decoded();
            (frames.len() > scene::FRAMES || !process.is_running()).then_some(frames)
        });
        if frames.is_err() && decoded().is_empty() && tries.last() == Some(&player) {
            continue;
        }
        let frames = frames.with_context(|| format!("{player:?} {}", process.tail()))?;
        tries.retain(|other| *other != player);
        drop(process);
        let talk = talk.lock().unwrap_or_else(PoisonError::into_inner);
        let claim = Claim { frames: scene::FRAMES - 13, ..Claim::default() };
        oracle::video_run(&film.frames, &frames, &claim).with_context(|| format!("{player:?} {talk:?}"))?;
        ensure!(!talk.asked[0].contains("TCP"), "{player:?} asked for TCP at once: {talk:?}");
        ensure!(
            talk.statuses.iter().any(|status| status.starts_with("RTSP/1.0 461")),
            "{player:?}: {talk:?}"
        );
        ensure!(talk.given.iter().all(|transport| transport.contains("TCP")), "{player:?}: {talk:?}");
        assert_eq!(relay.connections(), 1, "{player:?} opened another connection: {talk:?}");
    }
    Ok(())
}

/// Case 5 (RTSP-13) with the proxy as the client: a GStreamer server that allows TCP only answers 461 to the
/// SETUP for UDP, and the proxy asks for TCP on the same connection, in the same session for all viewers.
#[test]
fn a_camera_that_answers_461_is_pulled_by_tcp_on_the_same_connection() -> Result<()> {
    if !scene::programs("a_camera_that_answers_461_is_pulled_by_tcp_on_the_same_connection") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("461-camera")?, scene::film()?);
    let only_tcp = GstCamera { only: Some(Transport::Tcp), ..GstCamera::default() };
    let camera = scene::gst_camera(&scratch, &film, &only_tcp)?;
    // The camera does refuse: without that the case would prove nothing.
    let mut asking = Peer::open(&camera.url)?;
    asking.request("DESCRIBE", &camera.url, &[], "")?.ok()?;
    let offer = [("Transport", "RTP/AVP;unicast;client_port=50000-50001")];
    assert_eq!(asking.request("SETUP", &format!("{}/stream=0", camera.url), &offer, "")?.status, 461);
    drop(asking);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url.clone(), None)], &[])?;
    let before = camera.events("client").len();
    let viewers = [(Player::Ffmpeg, Transport::Udp), (Player::Rtspsrc, Transport::Tcp)]
        .map(|player| scene::watch(&scratch, player.0.name(), &proxy.url("cam"), player, &film));
    let viewers = viewers.into_iter().collect::<Result<Vec<_>>>()?;
    scene::judge_all(&film, viewers)?;
    assert_eq!(camera.events("client").len(), before + 1, "one connection: {}", camera.process.log());
    assert_eq!(camera.events("play").len(), 1, "{}", camera.process.log());
    let log = proxy.process.log();
    ensure!(log.contains("upstream.fallback") && log.contains("461"), "{log}");
    Ok(())
}

/// MD5 sums at the ends of lines.
fn checksums(text: &str) -> Vec<String> {
    let last = text.lines().filter_map(|line| line.split([' ', ',']).next_back());
    last.filter(|sum| sum.len() == 32 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
        .collect()
}

/// Case 6 (RTSP-17, SEC-8): two sessions on one connection that ask for the same channels get different
/// ones, each carries its own stream, and neither session can be used to harm the other.
#[test]
fn two_sessions_on_one_connection_share_no_channel() -> Result<()> {
    let (scratch, camera) = (Scratch::new("sessions")?, FakeCamera::start()?);
    let pulls = [("a", camera.url("first"), None), ("b", camera.url("second"), None)];
    let proxy = scene::pulling(&scratch, &pulls, &[])?;
    let mut peer = Peer::open(&proxy.url("a"))?;
    let mut owners = Vec::new();
    let mut ids = Vec::new();
    for (name, path) in [("a", "first"), ("b", "second")] {
        peer.session = None;
        for track in 0..2 {
            let url = format!("{}/trackID={track}", proxy.url(name));
            let offer = format!("RTP/AVP/TCP;unicast;interleaved={}-{}", track * 2, track * 2 + 1);
            let answer = peer.request("SETUP", &url, &[("Transport", &offer)], "")?.ok()?;
            let (rtp, rtcp) = channels(answer.header("Transport").unwrap_or_default())?;
            assert_eq!(rtcp, rtp + 1);
            ensure!(owners.iter().all(|(channel, _, _)| *channel != rtp), "channel {rtp} twice: {owners:?}");
            owners.push((rtp, path, track));
        }
        ids.push(peer.session.clone());
    }
    assert_ne!(ids[0], ids[1]);
    assert_eq!(owners.iter().map(|owner| owner.0).collect::<Vec<_>>(), [0, 2, 4, 6], "the lowest free ones");
    for (id, name) in ids.iter().zip(["a", "b"]) {
        peer.session.clone_from(id);
        peer.request("PLAY", &proxy.url(name), &[], "")?.ok()?;
    }
    let mut seen: Vec<Vec<_>> = vec![Vec::new(); owners.len()];
    while seen.iter().any(|packets| packets.len() < 25) {
        let (channel, packet) = peer.media(PATIENCE)?;
        let owner = owners.iter().position(|owner| owner.0 == channel);
        let owner = owner.with_context(|| format!("a frame on channel {channel}"))?;
        let (path, track, _) = read_payload(&packet.payload)?;
        assert_eq!((path.as_str(), track), (owners[owner].1, owners[owner].2), "on channel {channel}");
        seen[owner].push(packet);
    }
    assert_all_contiguous(&seen);
    // The end of one leaves the other as it is.
    peer.session.clone_from(&ids[0]);
    peer.request("TEARDOWN", &proxy.url("a"), &[], "")?.ok()?;
    peer.frames.clear();
    for _ in 0..50 {
        let (channel, _) = peer.media(PATIENCE)?;
        ensure!(channel >= 4, "channel {channel} after TEARDOWN of its session");
    }
    Ok(())
}

/// Takes channels 0 to 3 of the connection before the player sees it.
struct Occupied(String);

impl Rule for Occupied {
    fn prepare(&mut self, server: &mut TcpStream) -> Result<()> {
        let mut session = String::new();
        for track in 0..2 {
            let text = format!(
                "SETUP {}/trackID={track} RTSP/1.0\r\nCSeq: 90{track}\r\n{session}\
                 Transport: RTP/AVP/TCP;interleaved={}-{}\r\n\r\n",
                self.0,
                2 * track,
                2 * track + 1
            );
            server.write_all(text.as_bytes())?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                server.read_exact(&mut byte)?;
                answer.push(byte[0]);
            }
            let answer = String::from_utf8_lossy(&answer).into_owned();
            ensure!(answer.starts_with("RTSP/1.0 200"), "{answer}");
            let id = answer.split("Session: ").nth(1).and_then(|rest| rest.split([';', '\r']).next());
            session = format!("Session: {}\r\n", id.context("no session")?);
        }
        Ok(())
    }

    fn down(&mut self, unit: Unit) -> Vec<Unit> {
        if let Unit::Frame(channel, _) = &unit {
            // Loud enough: the player's stream breaks.
            assert!(*channel >= 4, "a frame on a channel of the other session");
        }
        vec![unit]
    }
}

/// Case 6, ST6 (RTSP-17): players that ask for 0-1 and 2-3 and get 4-5 and 6-7 decode sound and picture.
#[test]
fn players_follow_to_other_channels_than_they_asked_for() -> Result<()> {
    if !scene::programs("players_follow_to_other_channels_than_they_asked_for") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("remapped")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let proxy = scene::pulling(&scratch, &[("cam", camera.url.clone(), None)], &[])?;
    let url = proxy.url("cam");
    let relay = Relay::start(scene::socket_address(&url)?, move || Box::new(Occupied(url.clone())))?;
    let url = format!("rtsp://{}/cam", relay.address);
    let mut viewers = Vec::new();
    for player in [Player::Ffmpeg, Player::Rtspsrc] {
        viewers.push(scene::watch(&scratch, player.name(), &url, (player, Transport::Tcp), &film)?);
    }
    scene::judge_all(&film, viewers)
}
