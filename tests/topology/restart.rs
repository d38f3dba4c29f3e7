//! A camera that is killed and comes back under its viewers, pulled and published.
//!
//! Real players must decode again within five seconds of its return, without a new connection of theirs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use msm_tests::camera::{GstCamera, Stage, Transport, publish_with_ffmpeg, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::Player as Probe;
use msm_tests::process::Scratch;
use msm_tests::proxy::{Options, Proxy};
use msm_tests::viewer::{Player, Viewer, Watch};

use crate::healthy::{LIMIT, proxy, time_moves_on};

/// What is promised.
const RETURN: Duration = Duration::from_secs(5);
const NEEDS: [Need; 3] = [Need::Program("ffmpeg"), Need::Program("gst-launch-1.0"), Need::GstRtspServer];

/// Eight players, UDP and TCP, and a probe of each transport that keeps every packet.
struct Audience {
    players: Vec<Viewer>,
    probes: Vec<Probe>,
    sockets: Vec<String>,
}

impl Audience {
    fn start(stage: Stage<'_>, proxy: &Proxy, profile: Profile) -> Result<Self> {
        let url = proxy.url("cam");
        let mut players = Vec::new();
        for n in 0..8 {
            let player = if n < 4 { Player::Ffmpeg } else { Player::Rtspsrc };
            let transport = Transport::ALL[n % 2];
            let name = format!("{}-{}-{n}", player.name(), transport.name());
            let watch = Watch { name, player, transport, url: url.clone(), credentials: None, profile };
            players.push(Viewer::start(stage, watch)?);
        }
        for player in &mut players {
            player.wait_for_frames(25, LIMIT)?;
        }
        let probes = Transport::ALL
            .into_iter()
            .map(|transport| Probe::play(&url, transport))
            .collect::<Result<_>>()?;
        let mut audience = Self { players, probes, sockets: Vec::new() };
        audience.sockets = peers(proxy);
        assert_eq!(audience.sockets.len(), 10, "{:?}", audience.sockets);
        Ok(audience)
    }

    /// Waits until everybody decodes again and returns how long the last one took since `since`.
    fn wait_for_return(&mut self, since: Instant) -> Result<Duration> {
        let before: Vec<usize> = self.players.iter().map(Viewer::frames).collect();
        for (player, before) in self.players.iter_mut().zip(&before) {
            // More than what a decoder may have kept of the former life.
            player.wait_for_frames(before + 10, LIMIT)?;
        }
        let took = since.elapsed();
        for (player, before) in self.players.iter_mut().zip(before) {
            player.wait_for_frames(before + 40, LIMIT)?;
        }
        Ok(took)
    }

    /// Nobody connected again, every leg is one run, and no player's time went back.
    fn check(mut self, proxy: &Proxy) -> Result<()> {
        assert_eq!(peers(proxy), self.sockets, "a viewer reconnected");
        for probe in &mut self.probes {
            probe.receive();
            assert!(!probe.closed && probe.byes(0).is_empty() && probe.byes(1).is_empty());
            for track in 0..2 {
                let packets = probe.packets(track);
                for pair in packets.windows(2) {
                    assert_eq!(pair[1].ssrc, pair[0].ssrc, "one SSRC per leg");
                    assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1), "one row of numbers");
                    let step = pair[1].timestamp.wrapping_sub(pair[0].timestamp);
                    assert!(step < 90_000 * 60, "track {track}: the timestamp moved by {step}");
                }
            }
        }
        for mut player in self.players {
            let name = player.watch().name.clone();
            assert!(player.process.is_running(), "{name} ended: {}", player.process.tail());
            let seen = player.finish()?;
            time_moves_on(&seen.stamps, 2).with_context(|| name)?;
        }
        Ok(())
    }
}

/// Addresses of the viewers' connections.
fn peers(proxy: &Proxy) -> Vec<String> {
    let stream = proxy.stream("cam").unwrap_or_default();
    let legs = stream["legs"].as_array().cloned().unwrap_or_default();
    let mut peers: Vec<String> = legs.iter().map(|leg| leg["peer"].to_string()).collect();
    peers.sort();
    peers
}

#[test]
fn eight_viewers_decode_again_when_a_pulled_camera_was_killed_and_restarted() {
    if !granted("a killed camera", &NEEDS) {
        return;
    }
    let scratch = Scratch::new("killed-camera").unwrap();
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let mut camera = serve_with_gstreamer(stage, "camera", &fixture, &GstCamera::default()).unwrap();
    let port = camera.url.trim_end_matches("/cam").rsplit(':').next().unwrap().parse().unwrap();
    let options = Options { pulls: vec![("cam".to_owned(), camera.url.clone())], ..Options::default() };
    let proxy = Proxy::start(stage, "proxy", &options).unwrap();
    let mut audience = Audience::start(stage, &proxy, fixture.profile).unwrap();
    for life in 1..=2 {
        camera.process.kill();
        let again = GstCamera { port, ..GstCamera::default() };
        camera = serve_with_gstreamer(stage, &format!("camera-{life}"), &fixture, &again).unwrap();
        let took = audience.wait_for_return(Instant::now()).unwrap();
        eprintln!("pulled, life {life}: all decode {took:.1?} after the camera listened again");
        assert!(took < RETURN, "{took:?}");
        assert_eq!(camera.sessions(), 1, "one session for everybody");
    }
    audience.check(&proxy).unwrap();
}

#[test]
fn eight_viewers_decode_again_when_a_publisher_was_killed_and_came_back() {
    if !granted("a killed publisher", &NEEDS) {
        return;
    }
    let scratch = Scratch::new("killed-publisher").unwrap();
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let url = proxy.url("cam");
    let mut publisher = publish_with_ffmpeg(stage, "life-0", &fixture, &url, Transport::Udp).unwrap();
    proxy.wait_for_media("cam", 2, LIMIT).unwrap();
    let mut audience = Audience::start(stage, &proxy, fixture.profile).unwrap();
    for (life, transport) in [(1, Transport::Udp), (2, Transport::Tcp)] {
        publisher.kill();
        let before = packets(&proxy);
        publisher = publish_with_ffmpeg(stage, &format!("life-{life}"), &fixture, &url, transport).unwrap();
        // It is back when its first packets arrive: ffmpeg's own start is not ours.
        msm_tests::process::wait_for("the publisher's packets", LIMIT, || {
            let stream = proxy.stream("cam")?;
            (stream["source"]["peer"].is_string() && packets(&proxy) != before).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", publisher.tail()));
        let took = audience.wait_for_return(Instant::now()).unwrap();
        eprintln!("published, life {life}: all decode {took:.1?} after the publisher's return");
        assert!(took < RETURN, "{took:?}");
    }
    audience.check(&proxy).unwrap();
}

/// Packets of the first track; the count may start anew with a new life.
fn packets(proxy: &Proxy) -> u64 {
    proxy.stream("cam").map_or(0, |stream| stream["tracks"][0]["packets"].as_u64().unwrap_or(0))
}
