//! Case 23, RTP-6: a camera that reboots behind an established input; nobody opens anything again.

use std::time::Duration;

use msm_tests::camera::Transport;
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::Ground;
use msm_tests::oracle::{Claim, check};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::wire;
use msm_tests::probe::{Mutation, Player as Probe, Relay};
use msm_tests::proxy::Options;
use msm_tests::viewer::{Player, Viewer, Watch};

use crate::feed;
use crate::healthy::{LIMIT, time_moves_on};

#[test]
fn a_rebooted_camera_continues_every_leg_at_the_next_sequence_number() {
    let test = "a_rebooted_camera_continues_every_leg_at_the_next_sequence_number";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let mut viewers: Vec<Probe> =
        (0..4).map(|n| feed::play(&mut feed, &url, Transport::ALL[n % 2]).unwrap()).collect();
    for _ in 0..3 {
        // A new SSRC is admitted once a second (section 10): a run is longer than that.
        let target = feed.number + 300;
        let reached =
            |viewer: &Probe| viewer.packets(0).last().is_some_and(|packet| feed::number(packet) >= target);
        for viewer in &mut viewers {
            viewer.wait("media of the run", LIMIT, || feed.next(), reached).unwrap();
        }
        feed::until_carried(&mut feed, &ground, &proxy, 2).unwrap();
        viewers.iter_mut().for_each(Probe::receive);
        feed.restart();
    }
    for (viewer, probe) in viewers.iter().enumerate() {
        for track in 0..2 {
            let packets = feed::comparable(&ground, probe.packets(track));
            assert_eq!(packets.len(), probe.media[track].len());
            for pair in packets.windows(2) {
                let (a, b) = (&pair[0], &pair[1]);
                assert_eq!(b.ssrc, a.ssrc, "viewer {viewer}: one SSRC per leg");
                assert_eq!(b.sequence, a.sequence.wrapping_add(1), "viewer {viewer}, track {track}");
                let step = b.timestamp.wrapping_sub(a.timestamp);
                let numbers = (feed::number(a), feed::number(b));
                assert!(step < 1 << 31, "viewer {viewer}: time went back");
                // Behind a splice it moves on by the time that passed, which a test cannot know.
                let ticks = feed::TICKS[track];
                assert!(step == ticks || step < 90_000 * 30, "viewer {viewer}: {step} at {numbers:?}");
                assert!(numbers.1 > numbers.0 && numbers.1 - numbers.0 <= 4, "{numbers:?}");
            }
        }
        assert!(probe.byes(0).is_empty() && !probe.closed);
    }
    // The second packet of each new run is lost to nobody: two admit it (RTP-6).
    let events = proxy.stream("cam").unwrap();
    assert_eq!(events["legs"].as_array().unwrap().len(), 4, "{events}");
    ground.judge().unwrap();
}

/// What stops players when a source starts again, one change after the other, under both players.
#[test]
fn ffmpeg_and_rtspsrc_decode_on_when_ssrc_sequence_and_timestamp_change() {
    if !granted("splice", &[Need::Program("ffmpeg"), Need::Program("gst-launch-1.0")]) {
        return;
    }
    let test = "ffmpeg_and_rtspsrc_decode_on_when_ssrc_sequence_and_timestamp_change";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let stage = ground.stage();
    let profile = Profile::H264Aac;
    let fixture = Fixture::make(profile).unwrap();
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let target = ground.publish_url(&proxy, "cam");
    let relay = ground.among_cameras(|| Relay::publish(stage, "camera", &fixture, &target)).unwrap();
    proxy.wait_for_media("cam", 2, LIMIT).unwrap();
    let mut viewers: Vec<Viewer> = [Player::Ffmpeg, Player::Rtspsrc]
        .into_iter()
        .flat_map(|player| Transport::ALL.map(|transport| (player, transport)))
        .map(|(player, transport)| {
            let name = format!("{}-{}", player.name(), transport.name());
            let watch = Watch { name, player, transport, url: url.clone(), credentials: None, profile };
            Viewer::start(stage, watch).unwrap()
        })
        .collect();
    let mut probe = Probe::play(&url, Transport::Udp).unwrap();
    for viewer in &mut viewers {
        viewer.wait_for_frames(25, LIMIT).unwrap();
    }
    // A BYE of the old life, then the new one: SSRC, sequence back, timestamp leap.
    for mutation in [
        Mutation { ssrc: 0x1357_9BDF, sequence: 60_536, timestamp: 900_000_000, ..Mutation::default() },
        Mutation { ssrc: 0x0246_8ACE, sequence: 5_000, timestamp: 3_000_000_000, ..Mutation::default() },
    ] {
        // A leg that the kernel carries is spliced, and goes back there.
        ground.wait_until_carried(&proxy, "cam", 3, || Ok(())).unwrap();
        let before: Vec<usize> = viewers.iter().map(Viewer::frames).collect();
        {
            let mut state = relay.state();
            for track in 0..2 {
                let bye = wire::bye(state.ssrcs[track]);
                state.publisher.send_control(track, &bye).unwrap();
            }
            state.mutation = mutation;
        }
        for (viewer, before) in viewers.iter_mut().zip(before) {
            viewer.wait_for_frames(before + 40, LIMIT).unwrap();
        }
    }
    ground.wait_until_carried(&proxy, "cam", 3, || Ok(())).unwrap();
    probe.receive();
    for track in 0..2 {
        let packets = feed::comparable(&ground, probe.packets(track));
        assert!(packets.iter().all(|packet| packet.ssrc == packets[0].ssrc), "one SSRC per leg");
        assert!(packets.windows(2).all(|p| p[1].sequence == p[0].sequence.wrapping_add(1)));
        assert!(packets.windows(2).all(|p| p[1].timestamp.wrapping_sub(p[0].timestamp) < 1 << 31));
    }
    for mut viewer in viewers {
        let name = viewer.watch().name.clone();
        assert!(viewer.process.is_running(), "{name} ended: {}", viewer.process.tail());
        let seen = viewer.finish().unwrap();
        // The picture waits for a key frame at each splice, the sound does not (RTP-6).
        let claim = Claim { frames: 80, gaps: 2, ..Claim::default() };
        check(&fixture, &seen, &claim).unwrap_or_else(|mismatch| panic!("{name}: {mismatch}"));
        time_moves_on(&seen.stamps, 2).unwrap_or_else(|error| panic!("{name}: {error}"));
        let span = seen.stamps.last().unwrap_or(&0.0) - seen.stamps.first().unwrap_or(&0.0);
        assert!(span < Duration::from_secs(120).as_secs_f64(), "{name}: a leap of time: {span} s");
    }
    ground.judge().unwrap();
}
