//! Case 7 and what belongs to it: many viewers of one source, and none of them in another's way.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{GstCamera, Stage, Transport};
use msm_tests::ground::Ground;
use msm_tests::process::{Launch, Process, Scratch, wait_for};

use crate::fake_camera::{FakeCamera, TRACKS, read_payload};
use crate::peer::{PATIENCE, Peer, Viewer, assert_all_contiguous, assert_complete, assert_contiguous};
use crate::scene;

/// Long enough that a slow machine keeps all viewers within one use of the source.
const LINGER: &str = "2s";

/// Case 7 (RTSP-20, RTSP-27, RTSP-28): 20 ffmpeg at once make one session at the camera; it lingers, then
/// gets its TEARDOWN.
#[test]
fn twenty_viewers_share_one_upstream_session_that_ends_after_the_last() -> Result<()> {
    let test = "twenty_viewers_share_one_upstream_session_that_ends_after_the_last";
    if !scene::programs(test) {
        return Ok(());
    }
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let scratch = ground.scratch();
    let camera = scene::gst_camera_on(&ground, &scene::film()?)?;
    let pulls = [("cam", camera.url.clone())];
    let proxy = scene::pulling_on(&ground, &pulls, &["--linger", LINGER, "--log-level", "debug"])?;
    let start = |number: usize| -> Result<Process> {
        let transport = if number.is_multiple_of(2) { "udp" } else { "tcp" };
        Launch::new(&format!("viewer-{number}"), "ffmpeg")
            .args(["-nostdin", "-v", "warning", "-rtsp_transport", transport, "-analyzeduration", "500000"])
            .args(["-i", &proxy.url("cam"), "-c", "copy", "-f", "framemd5", "-flush_packets", "1"])
            .arg(scratch.file(&format!("viewer-{number}.sums")))
            .start(scratch.path())
    };
    let mut viewers = (0..20).map(start).collect::<Result<Vec<_>>>()?;
    for (number, viewer) in viewers.iter_mut().enumerate() {
        let sums = scratch.file(&format!("viewer-{number}.sums"));
        wait_for(&format!("packets at viewer {number}"), Duration::from_secs(60), || {
            let lines = std::fs::read_to_string(&sums).unwrap_or_default().lines().count();
            (lines > 30 || !viewer.is_running()).then_some(())
        })
        .with_context(|| viewer.tail())?;
        ensure!(viewer.is_running(), "viewer {number} ended:\n{}", viewer.tail());
    }
    assert_eq!(camera.sessions(), 1, "upstream sessions: {}", camera.process.log());
    assert_eq!(camera.events("play").len(), 1, "upstream PLAYs");
    let legs = proxy.stream("cam").context("no stream")?["legs"].as_array().map_or(0, Vec::len);
    assert_eq!(legs, 20);
    ground.wait_until_carried(&proxy, "cam", 10, || Ok(()))?;

    let mut peers = Vec::new();
    for _ in 0..5 {
        peers.push(Viewer::set_up(&proxy.url("cam"), Transport::Tcp)?);
    }
    let ids: HashSet<String> = peers.iter().map(Viewer::session).collect();
    assert_eq!(ids.len(), peers.len(), "session ids repeat");
    for id in ids {
        // 128 random bits in an alphabet that confuses nobody.
        ensure!(id.len() >= 22 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id:?}");
    }
    drop(peers);
    let last = viewers.pop();
    drop(viewers);
    wait_for("19 viewers to be gone", PATIENCE, || {
        (proxy.stream("cam")?["legs"].as_array()?.len() == 1).then_some(())
    })?;
    assert_eq!(camera.events("teardown").len(), 0, "TEARDOWN while one still plays");
    drop(last);
    wait_for("the camera's TEARDOWN", PATIENCE, || (camera.events("teardown").len() == 1).then_some(()))?;
    wait_for("the camera's connection to close", PATIENCE, || {
        (camera.open_connections() == 0).then_some(())
    })?;
    assert_eq!(camera.sessions(), 1);
    ground.judge()
}

/// Case 7 at the camera's side of the wire (RTSP-27, RTSP-28): a burst of viewers asks nothing twice.
#[test]
fn simultaneous_viewers_cause_one_describe_one_setup_per_track_and_one_play() -> Result<()> {
    let test = "simultaneous_viewers_cause_one_describe_one_setup_per_track_and_one_play";
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let camera = scene::fake_camera_on(&ground)?;
    let proxy = scene::pulling_on(&ground, &[("cam", camera.url("one"))], &["--linger", "500ms"])?;
    let url = proxy.url("cam");
    // On a kernel rung all viewers stay until the ten over UDP are there.
    let everybody = std::sync::Barrier::new(20);
    std::thread::scope(|scope| {
        let viewers: Vec<_> = (0..20)
            .map(|number| {
                let (url, transport) = (&url, Transport::ALL[number % 2]);
                let (ground, proxy, everybody) = (&ground, &proxy, &everybody);
                scope.spawn(move || -> Result<()> {
                    let played = Viewer::play(url, transport).and_then(|(mut viewer, _)| {
                        let packets = viewer.packets(5)?;
                        if number == 0 {
                            ground.wait_until_carried(proxy, "cam", 10, || Ok(()))?;
                        }
                        Ok((viewer, packets))
                    });
                    everybody.wait();
                    let (mut viewer, mut packets) = played?;
                    for (before, after) in packets.iter_mut().zip(viewer.packets(20)?) {
                        before.extend(after);
                        assert_complete(before);
                    }
                    viewer.tear_down().map(drop)
                })
            })
            .collect();
        viewers
            .into_iter()
            .try_for_each(|viewer| viewer.join().map_err(|_| anyhow::anyhow!("a viewer panicked"))?)
    })?;
    for (method, count) in [("DESCRIBE", 1), ("SETUP", TRACKS), ("PLAY", 1)] {
        assert_eq!(camera.count(method), count, "{method}");
    }
    wait_for("TEARDOWN", PATIENCE, || (camera.count("TEARDOWN") == 1).then_some(()))?;
    ground.judge()
}

/// CP9 (RTSP-26, RTSP-27): one of three pauses; the others miss nothing, the camera hears nothing, and
/// the paused one resumes where its RTP-Info says.
#[test]
fn pause_of_one_viewer_stops_no_other_and_resumes() -> Result<()> {
    let (scratch, camera) = (Scratch::new("pause")?, FakeCamera::start()?);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    for transport in Transport::ALL {
        let (mut paused, _) = Viewer::play(&proxy.url("cam"), transport)?;
        let (mut second, _) = Viewer::play(&proxy.url("cam"), transport)?;
        let (mut third, _) = Viewer::play(&proxy.url("cam"), Transport::Udp)?;
        let before = paused.packets(5)?;
        paused.request("PAUSE")?.ok()?;
        paused.discard();
        let (others, thirds) = (second.packets(40)?, third.packets(40)?);
        assert_all_contiguous(&others);
        assert_all_contiguous(&thirds);
        // A paused session gets nothing: the answer is the next thing that comes on its connection.
        paused.request("OPTIONS")?.ok()?;
        ensure!(paused.peer.frames.is_empty(), "frames while paused");
        paused.discard();
        let info = paused.start()?;
        let after = paused.packets(5)?;
        for ((before, after), info) in before.iter().zip(&after).zip(&info) {
            assert_contiguous(after);
            assert_eq!(Some(after[0].seq), info.seq, "resumed elsewhere than RTP-Info says");
            assert_eq!(after[0].ssrc, before[0].ssrc);
        }
    }
    for method in ["PAUSE", "TEARDOWN"] {
        assert_eq!(camera.count(method), 0, "{method} reached the camera");
    }
    Ok(())
}

/// CP12 (RTSP-9, RTSP-26): what comes in a wrong order gets its status on its own connection only.
#[test]
fn requests_out_of_order_end_nothing_but_themselves() -> Result<()> {
    let (scratch, camera) = (Scratch::new("order")?, FakeCamera::start()?);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    let url = proxy.url("cam");
    let (mut viewer, _) = Viewer::play(&url, Transport::Udp)?;
    for first in ["DESCRIBE", "PLAY", "SET_PARAMETER", "GET_PARAMETER", "PAUSE", "TEARDOWN", "RECORD"] {
        let mut peer = Peer::open(&url)?;
        let answer = peer.request(first, &url, &[], "")?;
        ensure!([200, 400, 454, 455].contains(&answer.status), "{first} first: {answer:?}");
        if first != "DESCRIBE" && !first.ends_with("PARAMETER") {
            ensure!(answer.status >= 454, "{first} without a session: {answer:?}");
        }
        // The connection goes on, and can still be used to play.
        peer.request("OPTIONS", "*", &[], "")?.ok()?;
        peer.session = Some("nobodys".to_owned());
        assert_eq!(peer.request(first, &url, &[], "")?.status, 454, "{first} of nobody's session");
    }
    // A session of another connection, interleaved, is as unknown as none (RTSP-21).
    let interleaved = Viewer::set_up(&url, Transport::Tcp)?;
    let mut thief = Peer::open(&url)?;
    thief.session = Some(interleaved.session());
    assert_eq!(thief.request("PLAY", &url, &[], "")?.status, 454);
    assert_eq!(thief.request("TEARDOWN", &url, &[], "")?.status, 454);
    // PLAY before SETUP is complete, PAUSE before PLAY.
    let mut ready = interleaved;
    let paused = ready.request("PAUSE")?;
    ensure!([200, 455].contains(&paused.status), "{paused:?}");
    ready.start()?;
    assert_all_contiguous(&viewer.packets(30)?);
    assert_eq!(camera.count("PLAY"), 1);
    Ok(())
}

/// CP14 (RTSP-11, RTSP-27): TEARDOWN with the connection left open, 100 sessions one after the other, on
/// one connection and on many: the camera is told, and no socket is left.
#[test]
fn a_hundred_sessions_leave_no_socket_and_the_camera_is_told() -> Result<()> {
    let (scratch, camera) = (Scratch::new("cycles")?, FakeCamera::start()?);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &["--linger", "200ms"])?;
    let idle = scene::sockets(&proxy)?;
    let url = proxy.url("cam");
    let (mut kept, _) = Viewer::play(&url, Transport::Tcp)?;
    kept.packets(2)?;
    kept.tear_down()?;
    wait_for("TEARDOWN although the viewer's connection is open", PATIENCE, || {
        (camera.count("TEARDOWN") == 1).then_some(())
    })?;
    for round in 0..50 {
        // The kept connection plays again and again, a new one beside it each time.
        kept.peer.session = None;
        kept.discard();
        let again = again(&mut kept).with_context(|| format!("round {round} on one connection"))?;
        assert_eq!(again, 200);
        let (mut viewer, _) = Viewer::play(&url, Transport::ALL[round % 2])?;
        viewer.packets(1).with_context(|| format!("round {round}"))?;
        if round % 3 != 0 {
            viewer.tear_down()?;
        }
    }
    drop(kept);
    wait_for("the camera's TEARDOWN of the last use", PATIENCE, || {
        (camera.count("TEARDOWN") == camera.count("PLAY")).then_some(())
    })?;
    wait_for("all sockets to be closed", PATIENCE * 2, || {
        (scene::sockets(&proxy).ok()? <= idle).then_some(())
    })
    .with_context(|| format!("{idle} sockets before, {:?} now", scene::sockets(&proxy)))?;
    wait_for("the camera's connections to end", PATIENCE, || (camera.open_connections() == 0).then_some(()))?;
    Ok(())
}

/// SETUP of both tracks, PLAY and TEARDOWN on a connection that has done so before.
fn again(viewer: &mut Viewer) -> Result<u16> {
    let urls: Vec<String> = viewer.tracks.iter().map(|track| track.url.clone()).collect();
    for (number, url) in urls.iter().enumerate() {
        let offer = format!("RTP/AVP/TCP;unicast;interleaved={}-{}", number * 2, number * 2 + 1);
        let answer = viewer.peer.request("SETUP", url, &[("Transport", &offer)], "")?.ok()?;
        // The channels of the session before are free again (RTSP-17).
        let transport = answer.header("Transport").unwrap_or_default();
        ensure!(transport.contains(&format!("interleaved={}-{}", number * 2, number * 2 + 1)), "{transport}");
    }
    viewer.start()?;
    Ok(viewer.tear_down()?.status)
}

/// CP1: a port scan, half-open clients and clients that vanish in the middle of a request.
#[test]
fn port_scans_and_half_open_clients_change_nothing() -> Result<()> {
    let (scratch, camera) = (Scratch::new("scan")?, FakeCamera::start()?);
    let mut proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    let url = proxy.url("cam");
    let (mut viewer, _) = Viewer::play(&url, Transport::Udp)?;
    viewer.packets(5)?;
    let before = scene::sockets(&proxy)?;
    let starts: [&[u8]; 5] = [
        b"",
        b"O",
        b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n",
        b"$\x00\x05\xdcabc",
        b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    ];
    for round in 0..1000 {
        let mut peer = Peer::open(&url).with_context(|| format!("connection {round}"))?;
        peer.send_raw(starts[round % starts.len()])?;
        if round % 2 == 0 {
            // A reset instead of an orderly end.
            nix::sys::socket::setsockopt(
                peer.stream(),
                nix::sys::socket::sockopt::Linger,
                &libc::linger { l_onoff: 1, l_linger: 0 },
            )?;
        }
    }
    let mut half_open = Vec::new();
    for round in 0..500 {
        let mut peer = Peer::open(&url).with_context(|| format!("half-open connection {round}"))?;
        peer.send_raw(starts[round % 4])?;
        half_open.push(peer);
    }
    // A newcomer plays while they hang, the first viewer missed nothing, and the hanging ones are ended.
    let (mut newcomer, _) = Viewer::play(&url, Transport::Tcp)?;
    assert_all_contiguous(&newcomer.packets(10)?);
    let seen = viewer.packets(50)?;
    assert_all_contiguous(&seen);
    scene::assert_alive(&mut proxy)?;
    newcomer.tear_down()?;
    drop(newcomer);
    let closed = Instant::now();
    wait_for("half-open connections to be ended by the proxy", PATIENCE * 2, || {
        (scene::sockets(&proxy).ok()? <= before).then_some(())
    })
    .with_context(|| {
        format!("{before} sockets before, {:?} now, {:?}", scene::sockets(&proxy), closed.elapsed())
    })?;
    drop(half_open);
    Ok(())
}

/// M45: eight paths of one camera address, two tracks each, by both transports: nobody gets another's media.
#[test]
fn eight_paths_of_one_address_are_eight_streams() -> Result<()> {
    let (scratch, camera) = (Scratch::new("paths")?, FakeCamera::start()?);
    let names: Vec<String> = (0..8).map(|number| format!("cam{number}")).collect();
    let pulls: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            let transport = (number % 2 == 1).then_some(Transport::Tcp);
            (name.as_str(), camera.url(&format!("path{number}")), transport)
        })
        .collect();
    let proxy = scene::pulling(&scratch, &pulls, &[])?;
    let mut viewers = Vec::new();
    for (number, name) in names.iter().enumerate() {
        for transport in Transport::ALL {
            let (viewer, _) = Viewer::play(&proxy.url(name), transport)?;
            viewers.push((number, transport, viewer));
        }
    }
    for (number, transport, viewer) in &mut viewers {
        let what = || format!("path {number} by {}", transport.name());
        for (track, packets) in viewer.packets(25).with_context(what)?.iter().enumerate() {
            assert_contiguous(packets);
            let mut last = None;
            for packet in packets {
                let (path, of, count) = read_payload(&packet.payload).with_context(what)?;
                assert_eq!((path.as_str(), of), (format!("path{number}").as_str(), track), "{}", what());
                ensure!(last.is_none_or(|last| count == last + 1), "{}: {last:?} then {count}", what());
                last = Some(count);
            }
        }
    }
    assert_eq!(camera.count("DESCRIBE"), 8);
    Ok(())
}

/// M47, ST6 (RTSP-17): three interleaved viewers with other channels each get their own complete A and V.
#[test]
fn three_interleaved_viewers_each_get_both_tracks_on_their_own_channels() -> Result<()> {
    let (scratch, camera) = (Scratch::new("channels")?, FakeCamera::start()?);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    let url = proxy.url("cam");
    let mut viewers = Vec::new();
    for first in [0_u8, 10, 200] {
        let mut viewer = Viewer::set_up(&url, Transport::Udp)?;
        let urls: Vec<String> = viewer.tracks.iter().map(|track| track.url.clone()).collect();
        viewer.tear_down()?;
        viewer.peer.session = None;
        for (number, track) in urls.iter().enumerate() {
            let channel = first + 2 * number as u8;
            let offer = format!("RTP/AVP/TCP;interleaved={channel}-{}", channel + 1);
            let answer = viewer.peer.request("SETUP", track, &[("Transport", &offer)], "")?.ok()?;
            let given = crate::peer::channels(answer.header("Transport").unwrap_or_default())?;
            assert_eq!(given, (channel, channel + 1), "free channels are given as asked");
            viewer.tracks[number].inlet = crate::peer::Inlet::Tcp(channel);
        }
        viewer.start()?;
        viewers.push(viewer);
    }
    for viewer in &mut viewers {
        for (track, packets) in viewer.packets(25)?.iter().enumerate() {
            assert_contiguous(packets);
            for packet in packets {
                assert_eq!(read_payload(&packet.payload)?.1, track);
            }
        }
    }
    Ok(())
}

/// RTSP-28: a camera that is away is asked again, and its viewers get an answer instead of silence.
#[test]
fn a_camera_that_is_away_is_a_gateway_error_that_is_not_kept() -> Result<()> {
    let scratch = Scratch::new("away")?;
    let port = msm_tests::process::free_port()?;
    let proxy = scene::pulling(&scratch, &[("cam", format!("rtsp://127.0.0.1:{port}/cam"), None)], &[])?;
    let mut peer = Peer::open(&proxy.url("cam"))?;
    let refused = peer.request("DESCRIBE", &proxy.url("cam"), &[], "")?;
    assert_eq!(refused.status, 502, "{refused:?}");
    if !scene::programs("a_camera_that_is_away_is_a_gateway_error_that_is_not_kept") {
        return Ok(());
    }
    let settings = GstCamera { port, ..GstCamera::default() };
    let _camera = msm_tests::camera::serve_with_gstreamer(
        Stage::here(scratch.path()),
        "camera",
        &scene::film()?,
        &settings,
    )?;
    wait_for("the camera to be served", PATIENCE, || {
        let answer = peer.request("DESCRIBE", &proxy.url("cam"), &[], "").ok()?;
        (answer.status == 200).then_some(())
    })?;
    Ok(())
}
