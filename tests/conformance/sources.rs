//! Cases 12, 15 and 16: sources that do it differently, played end to end by real players.

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{self, GstCamera, Stage, Transport};
use msm_tests::oracle::{self, Claim};
use msm_tests::privilege::{self, Need};
use msm_tests::process::{Scratch, free_port};
use msm_tests::viewer::Player;

use crate::peer::{PATIENCE, Peer};
use crate::quirk_camera::{Quirk, QuirkCamera};
use crate::scene;

/// Case 15 (RTSP-12, RTSP-13, RTSP-15): VLC as a camera sends from odd ports, has one payload type for both
/// media and absolute track URLs, and refuses TCP.
#[test]
fn vlc_as_a_camera_is_played_by_udp_and_by_tcp() -> Result<()> {
    let test = "vlc_as_a_camera_is_played_by_udp_and_by_tcp";
    if !privilege::granted(test, &[Need::Program("cvlc")]) || !scene::programs(test) {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("vlc-camera")?, scene::film()?);
    let port = free_port()?;
    let url = format!("rtsp://127.0.0.1:{port}/cam");
    let proxy = scene::pulling(&scratch, &[("cam", url, None)], &["--linger", "500ms"])?;
    let _camera = camera::serve_with_vlc(Stage::here(scratch.path()), "camera", &film, "127.0.0.1", port)?;
    for player in [(Player::Ffmpeg, Transport::Udp), (Player::Rtspsrc, Transport::Tcp)] {
        let mut viewer = scene::watch(&scratch, player.0.name(), &proxy.url("cam"), player, &film)?;
        viewer.wait_for_frames(scene::FRAMES, PATIENCE * 2)?;
        let seen = viewer.finish()?;
        // VLC restarts its file's clock on its own: pictures are compared, sound must be there.
        let claim = Claim { frames: scene::FRAMES - 13, gaps: 1, ..Claim::default() };
        oracle::video_run(&film.frames, &seen.frames, &claim).with_context(|| format!("{player:?}"))?;
        ensure!(!seen.samples.is_empty(), "no sound at {player:?}");
    }
    let stream = proxy.stream("cam").context("no stream")?;
    ensure!(stream["source"]["transport"] != "tcp", "VLC refuses TCP: {stream}");
    Ok(())
}

/// Case 16 (RTSP-17, RTSP-25, RTSP-33, RTSP-42) and the camera side of case 12 (RTSP-29): every quirk plays
/// end to end, its relay saw the proxy do nothing it must not, and no answer names the camera (RTSP-30).
#[test]
fn every_quirk_camera_plays() -> Result<()> {
    if !scene::programs("every_quirk_camera_plays") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("quirks")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let quirks = Quirk::ALL.map(|quirk| QuirkCamera::start(quirk, &camera.url).map(|camera| (quirk, camera)));
    let quirks = quirks.into_iter().collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = quirks.iter().map(|(quirk, _)| quirk.name()).collect();
    let pulls: Vec<_> = quirks
        .iter()
        .zip(&names)
        .map(|((_, camera), name)| (name.as_str(), camera.url(), Some(Transport::Tcp)))
        .collect();
    let proxy = scene::pulling(&scratch, &pulls, &["--linger", "200ms"])?;
    // A few at a time: the machine may have two cores.
    for (round, some) in quirks.chunks(4).enumerate() {
        let mut viewers = Vec::new();
        for (number, (quirk, _)) in some.iter().enumerate() {
            let player = scene::PLAYERS[(number + round) % scene::PLAYERS.len()];
            viewers.push(scene::watch(&scratch, &quirk.name(), &proxy.url(&quirk.name()), player, &film)?);
        }
        for (mut viewer, (quirk, camera)) in viewers.into_iter().zip(some) {
            if let Err(error) = viewer.wait_for_frames(scene::FRAMES, PATIENCE * 2) {
                panic!("{quirk:?}: {error:#}, {:?}, {:?}", camera.findings(), proxy.stream(&quirk.name()));
            }
            if let Err(error) = scene::judge(&film, viewer) {
                // A panic keeps the logs.
                panic!("{quirk:?}: {error:#}, {:?}, {:?}", camera.findings(), proxy.stream(&quirk.name()));
            }
            let (faults, acted) = camera.findings();
            ensure!(faults.is_empty(), "{quirk:?}: {faults:?}");
            ensure!(acted > 0, "{quirk:?}: the rule never acted, so nothing was proved");
            let mut peer = Peer::open(&proxy.url(&quirk.name()))?;
            peer.request("DESCRIBE", &proxy.url(&quirk.name()), &[], "")?.ok()?;
            for secret in [camera.authority(), "profile=1".to_owned(), "subtype".to_owned()] {
                ensure!(!peer.transcript.contains(&secret), "{quirk:?} shows {secret}:\n{}", peer.transcript);
            }
        }
    }
    Ok(())
}

/// Case 16 by UDP: what does not need channels.
#[test]
fn quirk_cameras_play_by_udp_too() -> Result<()> {
    if !scene::programs("quirk_cameras_play_by_udp_too") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("quirks-udp")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let mut viewers = Vec::new();
    let quirks = [Quirk::MissingFields, Quirk::OddFields, Quirk::BadRtpInfo];
    let cameras = quirks.map(|quirk| QuirkCamera::start(quirk, &camera.url));
    let cameras = cameras.into_iter().collect::<Result<Vec<_>>>()?;
    let names = quirks.map(Quirk::name);
    let pulls: Vec<_> = cameras
        .iter()
        .zip(&names)
        .map(|(camera, name)| (name.as_str(), camera.url(), Some(Transport::Udp)))
        .collect();
    let proxy = scene::pulling(&scratch, &pulls, &[])?;
    for (number, name) in names.iter().enumerate() {
        viewers.push(scene::watch(&scratch, name, &proxy.url(name), scene::PLAYERS[number], &film)?);
    }
    scene::judge_all(&film, viewers)?;
    for camera in &cameras {
        let (faults, acted) = camera.findings();
        ensure!(faults.is_empty() && acted > 0, "{camera:?}: {faults:?}");
    }
    Ok(())
}

/// Case 12 (RTSP-30): both players' ways to join a track to a URL with a query, a trailing slash, and the
/// aggregate URL of a stream with one media.
#[test]
fn both_dialects_of_urls_with_a_query_play() -> Result<()> {
    if !scene::programs("both_dialects_of_urls_with_a_query_play") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("dialects")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let proxy = scene::pulling(&scratch, &[("cam", camera.url.clone(), None)], &[])?;
    let url = proxy.url("cam?channel=1&subtype=0");
    let mut viewers = Vec::new();
    for (player, transport) in [(Player::Ffmpeg, Transport::Udp), (Player::Rtspsrc, Transport::Tcp)] {
        viewers.push(scene::watch(&scratch, player.name(), &url, (player, transport), &film)?);
    }
    scene::judge_all(&film, viewers)?;
    let base = proxy.url("cam");
    let offer = [("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")];
    for track in [
        format!("{base}/trackID=1"),
        format!("{base}/trackID=1/"),
        format!("{base}?channel=1/trackID=1"),
        format!("{base}?channel=1/trackID=1/"),
        format!("{base}/trackID=1?channel=1"),
        format!("{base}/trackID=1/?channel=1"),
    ] {
        let mut peer = Peer::open(&base)?;
        let answer = peer.request("SETUP", &track, &offer, "")?;
        assert_eq!(answer.status, 200, "{track}: {answer:?}");
        // The aggregate in any dialect, too.
        for aggregate in [format!("{base}/"), format!("{base}?channel=1"), format!("{base}/?channel=1")] {
            assert_eq!(peer.request("PLAY", &aggregate, &[], "")?.status, 200, "{aggregate}");
        }
    }
    let mut peer = Peer::open(&base)?;
    let both = peer.request("SETUP", &base, &offer, "")?;
    ensure!((400..500).contains(&both.status), "two media, and SETUP of neither: {both:?}");
    let none = peer.request("SETUP", &format!("{base}/trackID=7"), &offer, "")?;
    ensure!((400..500).contains(&none.status), "no such track: {none:?}");
    Ok(())
}
