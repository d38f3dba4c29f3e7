//! CP15 (RTSP-6): answers of a camera that come late, twice, in a wrong order or never.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::Transport;
use msm_tests::process::{Scratch, wait_for};

use crate::fake_camera::{FakeCamera, Reply};
use crate::peer::{PATIENCE, Peer, Viewer, assert_all_contiguous};
use crate::scene;

/// Strays in front of every answer: discarded by CSeq, none reaches a viewer.
#[test]
fn stray_answers_of_a_camera_reach_nobody() -> Result<()> {
    let scratch = Scratch::new("strays")?;
    let camera = FakeCamera::scripted(|_, _| Reply::AfterStrays)?;
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    for transport in Transport::ALL {
        let (mut viewer, _) = Viewer::play(&proxy.url("cam"), transport)?;
        assert_all_contiguous(&viewer.packets(20)?);
        viewer.tear_down()?;
    }
    Ok(())
}

/// An answer that comes a second late still belongs to its own request, for every method in turn.
#[test]
fn late_answers_reach_only_their_request() -> Result<()> {
    for slow in ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"] {
        let scratch = Scratch::new("late")?;
        let camera = FakeCamera::scripted(move |asked, before| {
            if asked.method == slow && before == 0 { Reply::Late(Duration::from_secs(1)) } else { Reply::Now }
        })?;
        let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
        let (mut viewer, _) = Viewer::play(&proxy.url("cam"), Transport::Tcp).context(slow)?;
        assert_all_contiguous(&viewer.packets(10).context(slow)?);
        assert_eq!(camera.count("PLAY"), 1, "{slow}");
    }
    Ok(())
}

/// A DESCRIBE that is never answered costs its viewer a 504 (the camera's deadline is 10 s), and nobody
/// else anything: another stream of the same camera plays meanwhile.
#[test]
fn an_answer_that_never_comes_is_a_gateway_timeout_of_that_request_alone() -> Result<()> {
    let scratch = Scratch::new("never")?;
    let camera = FakeCamera::scripted(|asked, _| {
        if asked.uri.contains("/mute") && asked.method == "DESCRIBE" { Reply::Never } else { Reply::Now }
    })?;
    let pulls = [("mute", camera.url("mute"), None), ("cam", camera.url("one"), None)];
    let proxy = scene::pulling(&scratch, &pulls, &[])?;
    let mut waiting = Peer::open(&proxy.url("mute"))?;
    waiting.send("DESCRIBE", &proxy.url("mute"), &[], "")?;
    waiting.send("OPTIONS", "*", &[], "")?;
    let (mut viewer, _) = Viewer::play(&proxy.url("cam"), Transport::Udp)?;
    assert_all_contiguous(&viewer.packets(20)?);
    let answer = waiting.answer()?;
    assert_eq!((answer.header("CSeq"), answer.status), (Some("1"), 504), "{answer:?}");
    // Answers keep the order of requests, also behind one that took long.
    let answer = waiting.answer()?;
    assert_eq!((answer.header("CSeq"), answer.status), (Some("2"), 200), "{answer:?}");
    viewer.discard();
    assert_all_contiguous(&viewer.packets(20)?);
    Ok(())
}

/// A camera that refuses a session shows in the viewer's status, and is opened again for the next one.
#[test]
fn a_refused_setup_is_a_gateway_error_and_the_next_viewer_plays() -> Result<()> {
    let scratch = Scratch::new("refused")?;
    let camera = FakeCamera::scripted(|asked, before| {
        if asked.method == "SETUP" && before == 0 {
            Reply::Status(453, "Not Enough Bandwidth")
        } else {
            Reply::Now
        }
    })?;
    let proxy = scene::pulling(&scratch, &[("cam", camera.url("one"), None)], &[])?;
    let first = Viewer::play(&proxy.url("cam"), Transport::Tcp).map(drop);
    if let Err(error) = &first {
        let text = format!("{error:#}");
        ensure!(text.contains("502") || text.contains("503"), "{text}");
    }
    wait_for("a viewer to play", PATIENCE, || {
        let (mut viewer, _) = Viewer::play(&proxy.url("cam"), Transport::Tcp).ok()?;
        viewer.packets(5).ok().map(drop)
    })?;
    Ok(())
}
