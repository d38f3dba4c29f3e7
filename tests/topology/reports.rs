//! RTCP on both sides of a leg: cases 24, 25, 26 and 27.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use msm_tests::camera::{GstCamera, Transport, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::Ground;
use msm_tests::packet::{Capture, rtp_streams};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::{Player, wire};
use msm_tests::process::wait_for;
use msm_tests::proxy::Options;

use crate::feed::{self, TICKS};
use crate::healthy::LIMIT;

/// Case 24 downwards, RTP-24: one BYE makes GStreamer stop and ffmpeg exit.
#[test]
fn a_camera_that_says_bye_and_goes_on_is_played_on() {
    let Some(ground) = Ground::new("a_camera_that_says_bye_and_goes_on_is_played_on").unwrap() else {
        return;
    };
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let mut viewers: Vec<Player> =
        Transport::ALL.into_iter().map(|transport| feed::play(&mut feed, &url, transport).unwrap()).collect();
    feed::until_carried(&mut feed, &ground, &proxy, 1).unwrap();
    for track in 0..2 {
        let bye = wire::bye(feed.starts[track].ssrc);
        feed.publisher.send_control(track, &bye).unwrap();
    }
    // The proxy has taken it when its log says so; media passes before and after.
    let log = wait_for("the BYE to be noted", LIMIT, || {
        feed.next().ok()?;
        (proxy.metric("msm_events_total", &["source.bye"]).ok()? >= 1.0).then_some(())
    });
    log.unwrap();
    let mark = feed.number;
    for viewer in &mut viewers {
        let behind =
            |viewer: &Player| viewer.packets(0).last().is_some_and(|packet| feed::number(packet) > mark + 20);
        viewer.wait("media behind the BYE", LIMIT, || feed.next(), behind).unwrap();
        assert!(viewer.byes(0).is_empty() && viewer.byes(1).is_empty() && !viewer.closed);
    }
    feed::until_carried(&mut feed, &ground, &proxy, 1).unwrap();
    ground.judge().unwrap();
}

/// Case 24 at the end: BYE with the leg's SSRC, then the connection; TEARDOWN upstream.
#[test]
fn the_end_of_the_proxy_is_a_bye_to_every_viewer_and_a_teardown_to_the_camera() {
    if !granted("the end of the proxy", &[Need::Program("ffmpeg"), Need::GstRtspServer]) {
        return;
    }
    let test = "the_end_of_the_proxy_is_a_bye_to_every_viewer_and_a_teardown_to_the_camera";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let settings = GstCamera { address: ground.camera_host(), ..GstCamera::default() };
    let serve = || serve_with_gstreamer(ground.stage(), "camera", &fixture, &settings);
    let camera = ground.among_cameras(serve).unwrap();
    let options = Options { pulls: vec![("cam".to_owned(), camera.url.clone())], ..Options::default() };
    let mut proxy = ground.proxy("proxy", options).unwrap();
    let mut viewers: Vec<Player> = Transport::ALL
        .into_iter()
        .map(|transport| Player::play(&proxy.url("cam"), transport).unwrap())
        .collect();
    for viewer in &mut viewers {
        let flowing = |viewer: &Player| viewer.media.iter().all(|track| track.len() > 10);
        viewer.wait("media of both tracks", LIMIT, || Ok(()), flowing).unwrap();
    }
    ground.wait_until_carried(&proxy, "cam", 1, || Ok(())).unwrap();
    proxy.terminate(Duration::from_secs(20)).unwrap();
    for viewer in &mut viewers {
        viewer.wait("the connection to be closed", LIMIT, || Ok(()), |viewer| viewer.closed).unwrap();
        for track in 0..2 {
            let ssrc = wire::word_at(&viewer.media[track][0], 8);
            assert_eq!(viewer.byes(track), [ssrc], "track {track}");
        }
    }
    wait_for("the camera's TEARDOWN", LIMIT, || (!camera.events("teardown").is_empty()).then_some(()))
        .unwrap();
    assert_eq!((camera.sessions(), camera.events("teardown").len()), (1, 1));
    ground.judge().unwrap();
}

/// Case 25, RTP-21, and lip sync after a switch.
#[test]
fn sender_reports_are_mapped_to_the_tick_after_a_switch() {
    for transport in Transport::ALL {
        map_reports(transport);
    }
}

fn map_reports(transport: Transport) {
    let test = "sender_reports_are_mapped_to_the_tick_after_a_switch";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let mut viewer = feed::play(&mut feed, &url, transport).unwrap();
    // A viewer over TCP has one beside it whose copies the kernel makes.
    let beside = (transport == Transport::Tcp).then(|| feed::play(&mut feed, &url, Transport::Udp).unwrap());
    let mut reports = 0;
    for run in 0..3 {
        if run > 0 {
            feed.restart();
        }
        feed::until_carried(&mut feed, &ground, &proxy, 1).unwrap();
        viewer.receive();
        let seen = [viewer.control[0].len(), viewer.control[1].len()];
        let start = feed.number;
        let mut beat = 0_u32;
        let reported = |viewer: &Player| {
            (0..2).all(|track| {
                let fresh = viewer.control[track][seen[track]..].iter().flat_map(|r| wire::sender_reports(r));
                let media = viewer.packets(track);
                fresh.count() > 2 && media.last().is_some_and(|p| feed::number(p) > start + 10)
            })
        };
        let drive = || {
            beat += 1;
            if beat.is_multiple_of(8) {
                feed.report()?;
            }
            feed.next()
        };
        viewer.wait("reports of the run", LIMIT, drive, reported).unwrap();
        // Ticks between a packet's timestamp and its number's time: one line for the whole leg.
        let mut clocks = Vec::new();
        for track in 0..2 {
            let media = viewer.packets(track);
            let last = media.iter().rev().find(|packet| feed::number(packet) > start + 2).unwrap();
            let fresh = viewer.control[track][seen[track]..].iter().flat_map(|r| wire::sender_reports(r));
            let report = fresh.last().unwrap();
            assert_eq!(report.ssrc, media[0].ssrc, "the report carries the leg's SSRC");
            // The report's moment in numbers: it is sent at the time of a packet.
            let millis = (report.ntp >> 32) * 1000 + (((report.ntp & 0xffff_ffff) * 1000 + (1 << 31)) >> 32);
            let number = ((millis - 3_900_000_000_000 + 10) / 20) as u32;
            let distance = feed::number(last).wrapping_sub(number).wrapping_mul(TICKS[track]);
            assert_eq!(
                last.timestamp.wrapping_sub(report.timestamp),
                distance,
                "run {run}, track {track}: the mapped report is off by more than a tick"
            );
            clocks.push(number);
            reports += 1;
        }
        assert!(clocks[0].abs_diff(clocks[1]) < 1000);
    }
    assert_eq!(reports, 6);
    // One SSRC per leg, and time that only moves on.
    for track in 0..2 {
        let packets = feed::comparable(&ground, viewer.packets(track));
        assert!(packets.iter().all(|packet| packet.ssrc == packets[0].ssrc));
        assert!(packets.windows(2).all(|p| p[1].sequence == p[0].sequence.wrapping_add(1)));
        assert!(packets.windows(2).all(|p| p[1].timestamp.wrapping_sub(p[0].timestamp) < 1 << 31));
    }
    drop(beside);
    ground.judge().unwrap();
}

/// Case 26, section 2.3: the same loss and jitter as an independent reader of the leg.
#[test]
fn loss_and_jitter_are_those_that_tshark_finds_on_a_captured_leg() {
    let needs = [Need::Namespaces, Need::Program("dumpcap"), Need::Program("tshark")];
    if !granted("loss and jitter", &needs) {
        return;
    }
    let test = "loss_and_jitter_are_those_that_tshark_finds_on_a_captured_leg";
    let Some(ground) = Ground::with_networks(test).unwrap() else { return };
    ground.send_single_packets().unwrap();
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let mut viewer = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    feed::until_carried(&mut feed, &ground, &proxy, 1).unwrap();
    // The audio track: tshark knows the clock of a static payload type.
    let port = viewer.port(1).unwrap();
    let filter = format!("udp dst port {port}");
    let capture = Capture::start(ground.stage(), "leg", ground.viewers_device(), &filter).unwrap();
    let count = viewer.media[1].len();
    feed.next().unwrap();
    // Over the wrap of the sequence: every 17th packet is lost, every 40th comes behind its successor, every
    // 50th twice, and departures alternate between early and late by more than the machine's own disturbance.
    // Then the camera restarts and goes on so; a leg that was spliced passes no packet twice (RTP-8), so none
    // is sent twice.
    let started = Instant::now();
    let (mut lost, mut doubled, mut due) = (0, 0, Duration::ZERO);
    while feed.number < 1_000 {
        due +=
            if feed.number.is_multiple_of(2) { Duration::from_millis(4) } else { Duration::from_millis(16) };
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        match feed.number {
            // The two packets that the restart is known by follow each other.
            700 => {
                feed.restart();
                feed.next().unwrap();
                feed.next().unwrap();
            }
            number if number % 17 == 16 => {
                lost += 1;
                feed.skip();
            }
            number if number % 40 == 20 => {
                for swapped in [number + 1, number] {
                    let packet = feed.packet(1, swapped);
                    feed.publisher.send(1, &packet).unwrap();
                }
                feed.skip();
                feed.skip();
            }
            number if number % 50 == 5 && number < 700 => {
                doubled += 1;
                let packet = feed.packet(1, number);
                feed.publisher.send(1, &packet).unwrap();
                feed.next().unwrap();
            }
            _ => feed.next().unwrap(),
        }
    }
    feed.next().unwrap();
    let last = feed.number - 1;
    viewer
        .wait(
            "the last packet",
            LIMIT,
            || Ok(()),
            |viewer| viewer.packets(1).last().is_some_and(|packet| feed::number(packet) == last),
        )
        .unwrap();
    // What the kernel has counted is looked at twice a second.
    let all = viewer.media[1].len() as u64;
    let track = wait_for("the books of all packets", LIMIT, || {
        let track = proxy.stream("cam")?["tracks"][1].clone();
        (track["packets"].as_u64()? >= all).then_some(track)
    })
    .unwrap();
    // A capture may lack what came just before its end: these may be missing.
    for _ in 0..20 {
        feed.next().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let file = capture.finish().unwrap();
    let streams = rtp_streams(&file, &[port]).unwrap();
    let [stream] = streams.as_slice() else { panic!("tshark finds {streams:?}") };
    assert!(viewer.media[1].len() > count);
    assert!(lost > 20 && doubled > 10, "{lost} were dropped on purpose, {doubled} sent twice");
    let duplicates = proxy.metric("msm_rtp_duplicate_packets_total", &["\"in\""]).unwrap();
    assert_eq!(duplicates as u32, doubled);
    // What came twice makes up for what did not come: RFC 3550 A.3, and tshark.
    assert_eq!(stream.lost, lost - i64::from(doubled), "tshark says {stream:?}");
    assert_eq!(track["lost"].as_i64(), Some(stream.lost), "tshark says {stream:?}");
    let ours = track["jitter_seconds"].as_f64().unwrap() * 1000.0;
    let (largest, mean) = stream.jitter;
    assert!(
        (ours - mean).abs() < 0.25 * mean + 1.0 && ours <= largest * 1.1 + 0.5,
        "our jitter is {ours} ms, tshark's mean {mean} and maximum {largest}"
    );
    ground.judge().unwrap();
}

/// Case 27, RTP-22.
#[test]
fn a_camera_with_many_viewers_gets_one_stream_of_receiver_reports() {
    let test = "a_camera_with_many_viewers_gets_one_stream_of_receiver_reports";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let mut viewers: Vec<Player> =
        (0..6).map(|n| feed::play(&mut feed, &url, Transport::ALL[n % 2]).unwrap()).collect();
    feed::until_carried(&mut feed, &ground, &proxy, 3).unwrap();
    let mut received: Vec<Vec<u8>> = Vec::new();
    let mut rounds = 0_u32;
    wait_for("three reports", Duration::from_secs(60), || {
        feed.next().ok()?;
        rounds += 1;
        for (number, viewer) in viewers.iter_mut().enumerate() {
            viewer.receive();
            if rounds.is_multiple_of(20) {
                // Reports and names of viewers end at the proxy.
                let report = wire::receiver_report(0x7000_0000 + number as u32);
                viewer.send_control(0, &report).ok()?;
            }
        }
        received.extend(feed.publisher.received_control(0));
        (received.len() >= 3).then_some(())
    })
    .unwrap();
    let blocks: Vec<_> = received.iter().flat_map(|report| wire::report_blocks(report)).collect();
    let reporters: BTreeSet<u32> = blocks.iter().map(|block| block.reporter).collect();
    let names: BTreeSet<Option<String>> = received.iter().map(|report| wire::cname(report)).collect();
    assert_eq!((reporters.len(), names.len()), (1, 1), "{reporters:x?} {names:?}");
    assert_eq!(blocks.len(), received.len(), "one block in each");
    assert!(blocks.iter().all(|block| block.ssrc == feed.starts[0].ssrc && block.lost == 0), "{blocks:?}");
    assert!(reporters.iter().all(|reporter| reporter >> 16 != 0x7000), "a viewer's report went up");
    ground.judge().unwrap();
}
