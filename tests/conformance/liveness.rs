//! Case 10: what keeps a session alive, and what ends one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{GstCamera, Transport};
use msm_tests::process::{Scratch, wait_for};

use crate::fake_camera::FakeCamera;
use crate::peer::{PATIENCE, Peer, Viewer};
use crate::scene;

/// Case 10 (RTSP-22, RTSP-23): told `timeout=10`, both players by both transports are still there after
/// 40 s, and viewers that say nothing are ended.
#[test]
fn players_outlive_their_timeout_and_mute_clients_do_not() -> Result<()> {
    if !scene::programs("players_outlive_their_timeout_and_mute_clients_do_not") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("timeout")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let proxy =
        scene::pulling(&scratch, &[("cam", camera.url.clone(), None)], &["--session-timeout", "15s"])?;
    let mut players = Vec::new();
    for (player, transport) in scene::PLAYERS {
        let name = format!("{}-{}", player.name(), transport.name());
        players.push(scene::watch(&scratch, &name, &proxy.url("cam"), (player, transport), &film)?);
    }
    for player in &mut players {
        player.wait_for_frames(5, PATIENCE * 2)?;
    }
    let started = Instant::now();
    let mut mutes = Vec::new();
    for transport in Transport::ALL {
        mutes.push(Viewer::play(&proxy.url("cam"), transport)?.0);
    }
    let legs = || Some(proxy.stream("cam")?["legs"].as_array()?.len());
    assert_eq!(legs(), Some(6));
    let timeout = Peer::open(&proxy.url("cam"))?
        .request(
            "SETUP",
            &format!("{}/trackID=0", proxy.url("cam")),
            &[("Transport", "RTP/AVP/TCP;interleaved=0-1")],
            "",
        )?
        .ok()?;
    let session = timeout.header("Session").unwrap_or_default();
    ensure!(session.ends_with(";timeout=10"), "{session}");
    wait_for("mute viewers to be ended", Duration::from_secs(60), || (legs()? == 4).then_some(()))
        .with_context(|| format!("{:?}", proxy.stream("cam")))?;
    for mut viewer in mutes {
        let mut other = Peer::open(&proxy.url("cam"))?;
        // Their sessions are gone: on a new connection and, unless it was closed, on their own.
        other.session = Some(viewer.session());
        assert_eq!(other.request("GET_PARAMETER", &proxy.url("cam"), &[], "")?.status, 454);
        viewer.discard();
        if let Ok(answer) = viewer.request("GET_PARAMETER") {
            assert_eq!(answer.status, 454);
        }
    }
    // The claim is about time: four timeouts.
    std::thread::sleep(Duration::from_secs(40).saturating_sub(started.elapsed()));
    for player in &mut players {
        let frames = player.frames();
        player.wait_for_frames(frames + 10, PATIENCE).context("after 40 s")?;
    }
    assert_eq!(legs(), Some(4), "a player lost its session");
    assert_eq!(camera.sessions(), 1);
    Ok(())
}

/// RTSP-21: a UDP session outlives its connection for a while, so that a viewer may come back by another one;
/// an interleaved one ends with it. A UDP viewer that does not come back ends too.
#[test]
fn the_end_of_a_connection_ends_interleaved_sessions_at_once_and_udp_ones_later() -> Result<()> {
    let (scratch, camera) = (Scratch::new("loss")?, FakeCamera::start()?);
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &["--linger", "200ms"])?;
    let url = proxy.url("cam");
    let (udp, _) = Viewer::play(&url, Transport::Udp)?;
    let (tcp, _) = Viewer::play(&url, Transport::Tcp)?;
    let (gone, _) = Viewer::play(&url, Transport::Udp)?;
    let legs = || Some(proxy.stream("cam")?["legs"].as_array()?.len());
    assert_eq!(legs(), Some(3));
    let (udp_session, tcp_session) = (udp.session(), tcp.session());
    let mut udp_tracks = udp.tracks;
    drop((udp.peer, tcp));
    wait_for("the interleaved session's end", PATIENCE, || (legs()? == 2).then_some(()))?;
    let mut back = Peer::open(&url)?;
    back.session = Some(tcp_session);
    assert_eq!(back.request("GET_PARAMETER", &url, &[], "")?.status, 454);
    back.session = Some(udp_session);
    assert_eq!(back.request("GET_PARAMETER", &url, &[], "")?.status, 200, "within its 10 s of grace");
    drop(gone);
    // It goes on with its media, and only the viewer that did not come back is ended.
    wait_for("the lost viewer's end", PATIENCE * 2, || (legs()? == 1).then_some(()))?;
    let track = udp_tracks.remove(0);
    let crate::peer::Inlet::Udp(rtp, _) = track.inlet else { anyhow::bail!("not UDP") };
    crate::peer::receive(&rtp, PATIENCE)?;
    assert_eq!(back.request("TEARDOWN", &url, &[], "")?.status, 200);
    wait_for("the camera's TEARDOWN", PATIENCE, || (camera.count("TEARDOWN") == 1).then_some(()))?;
    Ok(())
}
