//! Bad RTP and RTCP to the ports of cameras and players, and viewers that do not read: section 11.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use msm_tests::camera::Transport;
use msm_tests::probe::wire::{self, Rtp};
use msm_tests::probe::{Cameras, Load, Player};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::rtsp::Connection;

use crate::feed::{self, Feed};
use crate::healthy::{Healthy, LIMIT, proxy, wait_for_metric};

/// RTP that a publisher could send instead of its own.
pub(crate) fn bad_media(good: &[u8]) -> Vec<(Vec<u8>, &'static str)> {
    let mut version = good.to_vec();
    version[0] = 0x40;
    let mut sources = good.to_vec();
    sources[0] = 0x8f;
    sources.truncate(40);
    let mut kind = good.to_vec();
    kind[1] = 33;
    vec![
        (Vec::from([0x80]), "malformed"),
        (good[..11].to_vec(), "malformed"),
        (version, "malformed"),
        (sources, "malformed"),
        (vec![0xff; 1400], "malformed"),
        (kind, "payload_type"),
    ]
}

/// RTCP compounds that RTP-20 rejects.
fn bad_control(ssrc: u32) -> Vec<Vec<u8>> {
    let good = wire::receiver_report(ssrc);
    let mut length = good.clone();
    length[3] = 0xff;
    let mut version = good.clone();
    version[0] = 0x40;
    let mut endless = good.clone();
    endless[2] = 0xff;
    vec![
        vec![0x80],
        good[..6].to_vec(),
        length,
        version,
        endless,
        vec![0xff; 300],
        vec![0x80, 200, 0, 1, 0, 0, 0, 0],
    ]
}

#[test]
fn malformed_media_of_a_camera_is_counted_and_its_good_packets_pass() {
    let scratch = Scratch::new("malformed").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    for transport in Transport::ALL {
        let url = proxy.url(&format!("bad-{}", transport.name()));
        let mut feed = Feed::record(&url, transport).unwrap();
        let mut viewer = feed::play(&mut feed, &url, Transport::Udp).unwrap();
        let counts =
            |reason: &str| proxy.metric("msm_dropped_packets_total", &[&format!("\"{reason}\"")]).unwrap();
        let before = (counts("malformed"), counts("payload_type"), counts("ssrc"));
        let ssrc = feed.starts[0].ssrc;
        for round in 0..50_u32 {
            let good = feed.packet(0, feed.number);
            for (packet, _) in bad_media(&good) {
                feed.publisher.send(0, &packet).unwrap();
            }
            // Another SSRC in every packet: none of them is ever confirmed.
            let mut other = Rtp::parse(&good).unwrap();
            other.ssrc = 0x6000_0000 + round;
            feed.publisher.send(0, &other.to_bytes()).unwrap();
            for packet in bad_control(ssrc) {
                feed.publisher.send_control(0, &packet).unwrap();
            }
            feed.publisher.send_control(0, &wire::bye(ssrc)).unwrap();
            feed.next().unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let last = feed.number - 1;
        viewer
            .wait(
                "the last good packet",
                LIMIT,
                || Ok(()),
                |viewer| viewer.packets(0).last().is_some_and(|packet| feed::number(packet) == last),
            )
            .unwrap();
        let packets = viewer.packets(0);
        assert_eq!(packets.len(), viewer.media[0].len(), "something malformed was forwarded");
        let numbers: Vec<u32> = packets.iter().map(feed::number).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{transport:?}: {numbers:?}");
        assert!(viewer.byes(0).is_empty());
        let malformed = bad_media(&[0; 60]).iter().filter(|(_, reason)| *reason == "malformed").count();
        let least = before.0 + (50 * malformed) as f64;
        wait_for_metric(&proxy, "msm_dropped_packets_total", &["\"malformed\""], least).unwrap();
        wait_for_metric(&proxy, "msm_dropped_packets_total", &["\"payload_type\""], before.1 + 50.0).unwrap();
        wait_for_metric(&proxy, "msm_dropped_packets_total", &["\"ssrc\""], before.2 + 49.0).unwrap();
    }
    healthy.check(&proxy, 24).unwrap();
}

#[test]
fn ten_thousand_ssrcs_leave_no_state_behind() {
    let scratch = Scratch::new("ssrcs").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("cam");
    let mut feed = Feed::record(&url, Transport::Udp).unwrap();
    let mut viewer = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    // Two in a row of each would confirm it: one new SSRC per second is let in (section 10).
    let good = Rtp::parse(&feed.packet(0, feed.number)).unwrap();
    for ssrc in 0..10_000_u32 {
        for step in 0..2 {
            let sequence = good.sequence.wrapping_add(step);
            let packet = Rtp { ssrc: 0x6000_0000 + ssrc, sequence, ..good.clone() };
            feed.publisher.send(0, &packet.to_bytes()).unwrap();
            feed.publisher.send_control(0, &wire::receiver_report(0x6100_0000 + ssrc)).unwrap();
        }
        if ssrc % 20 == 0 {
            // What overflows the socket proves nothing.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    wait_for_metric(&proxy, "msm_dropped_packets_total", &["\"ssrc\""], 10_000.0).unwrap();
    // The camera's own packets win again, and the leg has kept its identity all along.
    let target = feed.number + 100;
    viewer
        .wait(
            "the camera's packets",
            LIMIT,
            || feed.next(),
            |viewer| {
                let last = viewer.packets(0).pop();
                // The strangers' payload is the camera's next one.
                last.is_some_and(|packet| feed::number(&packet) > target)
            },
        )
        .unwrap();
    let packets = viewer.packets(0);
    assert!(packets.iter().all(|packet| packet.ssrc == packets[0].ssrc));
    assert!(packets.windows(2).all(|p| p[1].sequence == p[0].sequence.wrapping_add(1)));
    healthy.check(&proxy, 24).unwrap();
}

/// Section 11: bad RTP and RTCP inside a connection are borne a thousand times.
#[test]
fn a_publisher_that_sends_only_garbage_frames_is_disconnected() {
    let scratch = Scratch::new("garbage-frames").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("cam");
    let mut feed = Feed::record(&url, Transport::Tcp).unwrap();
    let mut viewer = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    for _ in 0..900 {
        feed.publisher.send(0, &[0xff; 40]).unwrap();
    }
    let target = feed.number;
    let passed =
        |viewer: &Player| viewer.packets(0).last().is_some_and(|packet| feed::number(packet) > target);
    viewer.wait("media behind 900 bad frames", LIMIT, || feed.next(), passed).unwrap();
    wait_for("the connection to be closed", LIMIT, || {
        (0..100).any(|_| feed.publisher.send(0, &[0xff; 40]).is_err()).then_some(())
    })
    .unwrap();
    wait_for_metric(&proxy, "msm_rejected_inputs_total", &["stray_frames"], 1.0).unwrap();
    // Its viewer stays, and is served again when the stream is.
    let mut again = Feed::record(&url, Transport::Udp).unwrap();
    again.starts[0].ssrc += 1;
    let count = viewer.media[0].len();
    viewer
        .wait(
            "media of the new publisher",
            LIMIT,
            || again.next(),
            |viewer| viewer.media[0].len() > count + 20,
        )
        .unwrap();
    assert!(!viewer.closed);
    healthy.check(&proxy, 24).unwrap();
}

#[test]
fn garbage_at_the_players_ports_reaches_nobody() {
    let scratch = Scratch::new("player-ports").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("cam");
    let mut feed = Feed::record(&url, Transport::Udp).unwrap();
    let mut viewers = Transport::ALL.map(|transport| feed::play(&mut feed, &url, transport).unwrap());
    let server = viewers[0].server(0);
    let strangers: Vec<UdpSocket> = (1..=10)
        .map(|host| UdpSocket::bind((IpAddr::V4(Ipv4Addr::new(127, 0, 7, host)), 0)).unwrap())
        .collect();
    let ssrc = feed.starts[0].ssrc;
    for _ in 0..20 {
        let media = feed.packet(0, feed.number);
        for viewer in &mut viewers {
            // RTP from one who only plays (SEC-8), on its own ports and channels.
            viewer.send(0, &media).unwrap();
            viewer.send(0, &[0xff; 900]).unwrap();
            for packet in bad_control(ssrc) {
                viewer.send_control(0, &packet).unwrap();
            }
        }
        for stranger in &strangers {
            for port in [server.port(), server.port() + 1] {
                stranger.send_to(&media, (server.ip(), port)).unwrap();
                stranger.send_to(&wire::bye(ssrc), (server.ip(), port)).unwrap();
                stranger.send_to(&[], (server.ip(), port)).unwrap();
            }
        }
        feed.next().unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let target = feed.number + 20;
    for viewer in &mut viewers {
        viewer
            .wait(
                "media behind the garbage",
                LIMIT,
                || feed.next(),
                |viewer| viewer.packets(0).last().is_some_and(|packet| feed::number(packet) > target),
            )
            .unwrap();
        let numbers: Vec<u32> = viewer.packets(0).iter().map(feed::number).collect();
        assert_eq!(numbers.len(), viewer.media[0].len());
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        assert!(!viewer.closed);
    }
    assert_eq!(feed.publisher.received_media(0).unwrap(), 0, "a viewer's RTP went up");
    for stranger in &strangers {
        stranger.set_nonblocking(true).unwrap();
        assert!(stranger.recv(&mut [0; 2048]).is_err(), "a stranger got something");
    }
    wait_for_metric(&proxy, "msm_dropped_packets_total", &["\"malformed\""], 100.0).unwrap();
    healthy.check(&proxy, 24).unwrap();
}

#[test]
fn a_viewer_that_stops_reading_is_shed_alone_and_closed_when_stuck() {
    let scratch = Scratch::new("stalled").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    // 8 Mb/s, so that the socket's buffers are full within seconds.
    let url = proxy.url("heavy");
    let load = Load { packet_bytes: 1200, packets_per_second: 800, burst: 40 };
    let cameras = Cameras::publish(std::slice::from_ref(&url), Transport::Udp, load, None).unwrap();
    let mut stalled = Connection::open(&url, None).unwrap();
    let described = stalled.request("DESCRIBE", &url, &[], "").unwrap().ok().unwrap();
    let track = msm_tests::probe::first_control(&described, &url);
    let offer = [("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")];
    stalled.request("SETUP", &track, &offer, "").unwrap().ok().unwrap();
    stalled.request("PLAY", &url, &[], "").unwrap().ok().unwrap();
    // A sibling of the same stream and transport reads.
    let mut reader = Player::play(&url, Transport::Tcp).unwrap();
    let stream = stalled.stream().try_clone().unwrap();
    let shed = || proxy.metric("msm_queue_dropped_total", &["\"interleaved\""]).is_ok_and(|n| n >= 100.0);
    reader.wait("frames to be shed", LIMIT, || Ok(()), |_| shed()).unwrap();
    let shed = Instant::now();
    let alone = || proxy.stream("heavy").is_some_and(|s| s["legs"].as_array().is_some_and(|l| l.len() == 1));
    reader.wait("the stuck viewer's end", Duration::from_secs(60), || Ok(()), |_| alone()).unwrap();
    assert!(shed.elapsed() > Duration::from_secs(2), "it was closed although it was only slow");
    let sequences: Vec<u16> = reader.packets(0).iter().map(|packet| packet.sequence).collect();
    assert!(sequences.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)), "the reader lost packets");
    // Whole messages and frames only, up to the last byte (RTSP-44): read what was left for it.
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest).ok();
    let mut whole = 0;
    while msm_tests::rtsp::take_frame(&mut rest).is_some() {
        whole += 1;
    }
    assert!(whole > 100, "{whole} frames");
    assert!(rest.is_empty() || rest[0] == b'$', "framing was lost: {:?}", &rest[..rest.len().min(16)]);
    assert_eq!(cameras.unsent(), 0);
    wait_for("the healthy state", LIMIT, || proxy.get("/readyz").ok()).unwrap();
    healthy.check(&proxy, 32).unwrap();
}
