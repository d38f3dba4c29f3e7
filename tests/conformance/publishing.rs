//! Case 17: real publishers by both transports, real players by both.

use anyhow::{Context as _, Result};
use msm_tests::camera::{self, Stage, Transport};
use msm_tests::probe::{Cameras, Load};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::viewer::Player;
use nix::sys::signal::Signal;

use crate::peer::{PATIENCE, Peer};
use crate::scene;

/// Case 17 (1.7) with ffmpeg: `streamid=0` as track URLs.
#[test]
fn ffmpeg_publishes_by_udp_and_tcp_and_both_players_play_by_both() -> Result<()> {
    let test = "ffmpeg_publishes_by_udp_and_tcp_and_both_players_play_by_both";
    if !scene::programs(test) {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("publish")?, scene::film()?);
    let proxy = scene::proxy(&scratch, &[])?;
    for transport in Transport::ALL {
        let name = format!("ffmpeg-{}", transport.name());
        let stage = Stage::here(scratch.path());
        let mut publisher = camera::publish_with_ffmpeg(stage, &name, &film, &proxy.url(&name), transport)?;
        proxy.wait_for_media(&name, 2, PATIENCE).with_context(|| publisher.tail())?;
        let mut viewers = Vec::new();
        for (number, player) in scene::PLAYERS.into_iter().enumerate() {
            viewers.push(scene::watch(
                &scratch,
                &format!("{name}-{number}"),
                &proxy.url(&name),
                player,
                &film,
            )?);
        }
        scene::judge_all(&film, viewers)?;
        publisher.stop(Signal::SIGINT, PATIENCE)?;
        scene::wait_for_gone(&proxy, &name)?;
    }
    Ok(())
}

/// Case 17 (1.7) with rtspclientsink: `stream=0` as track URLs, SETUP right behind ANNOUNCE.
#[test]
fn rtspclientsink_publishes_by_udp_and_tcp_and_both_players_play() -> Result<()> {
    let test = "rtspclientsink_publishes_by_udp_and_tcp_and_both_players_play";
    if !scene::programs(test) {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("sink")?, scene::film()?);
    let proxy = scene::proxy(&scratch, &[])?;
    let mut publishers = Vec::new();
    for transport in Transport::ALL {
        let name = format!("sink-{}", transport.name());
        let stage = Stage::here(scratch.path());
        let publisher = camera::publish_with_gstreamer(stage, &name, &film, &proxy.url(&name), transport)?;
        publishers.push((name, publisher));
    }
    let mut viewers = Vec::new();
    for (number, (name, publisher)) in publishers.iter().enumerate() {
        proxy.wait_for_media(name, 2, PATIENCE).with_context(|| publisher.tail())?;
        let own = Transport::ALL[number];
        let other = Transport::ALL[1 - number];
        for (player, transport) in [(Player::Ffmpeg, other), (Player::Rtspsrc, own)] {
            let watch = format!("{name}-{}", player.name());
            viewers.push(scene::watch(&scratch, &watch, &proxy.url(name), (player, transport), &film)?);
        }
    }
    scene::judge_all(&film, viewers)
}

/// 1.7: the order of ANNOUNCE, SETUP, RECORD, and a second publisher, by hand.
#[test]
fn a_publisher_out_of_order_or_second_is_refused_and_harms_nothing() -> Result<()> {
    const SDP: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n\
        m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n\
        m=audio 0 RTP/AVP 0\r\na=control:streamid=1\r\n";
    let scratch = Scratch::new("order")?;
    let proxy = scene::proxy(&scratch, &[])?;
    let url = proxy.url("cam");
    let announce =
        |peer: &mut Peer| peer.request("ANNOUNCE", &url, &[("Content-Type", "application/sdp")], SDP);
    let set_up = |peer: &mut Peer, track: usize| {
        let offer = format!("RTP/AVP/TCP;unicast;interleaved={}-{};mode=record", 2 * track, 2 * track + 1);
        peer.request("SETUP", &format!("{url}/streamid={track}"), &[("Transport", &offer)], "")
    };
    let mut first = Peer::open(&url)?;
    announce(&mut first)?.ok()?;
    set_up(&mut first, 0)?.ok()?;
    let early = first.request("RECORD", &url, &[], "")?;
    assert_eq!(early.status, 455, "RECORD before every media is set up: {early:?}");
    set_up(&mut first, 1)?.ok()?;
    first.request("RECORD", &url, &[], "")?.ok()?;
    // A stream that records is described, and its publisher's TEARDOWN ends it.
    let mut viewer = Peer::open(&url)?;
    viewer.request("DESCRIBE", &url, &[], "")?.ok()?;
    first.request("TEARDOWN", &url, &[], "")?.ok()?;
    scene::wait_for_gone(&proxy, "cam")?;

    // One that sends holds its name; the one refused keeps its connection and gets the name afterwards.
    let held = Cameras::publish(std::slice::from_ref(&url), Transport::Udp, Load::FOUR_MEGABITS, None)?;
    proxy.wait_for_media("cam", 1, PATIENCE)?;
    let mut second = Peer::open(&url)?;
    let refused = announce(&mut second)?;
    assert_eq!(refused.status, 403, "a second publisher: {refused:?}");
    second.request("OPTIONS", "*", &[], "")?.ok()?;
    held.stop();
    wait_for("the path to be free for the second", PATIENCE * 2, || {
        (announce(&mut second).ok()?.status == 200).then_some(())
    })?;
    Ok(())
}
