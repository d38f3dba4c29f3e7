//! Who may send to us and where we send: cases 20, 21 (without learning) and 22.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use msm_tests::camera::Transport;
use msm_tests::ground::Ground;
use msm_tests::probe::{first_control, wire};
use msm_tests::proxy::Options;
use msm_tests::rtsp::Connection;

use crate::feed;
use crate::healthy::{LIMIT, wait_for_metric};

/// Case 20, SEC-1.
#[test]
fn a_victim_named_as_destination_is_403_and_gets_no_packet() {
    let test = "a_victim_named_as_destination_is_403_and_gets_no_packet";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let address = ground.other_viewer(66).unwrap();
    let victim = UdpSocket::bind((address, 0)).unwrap();
    victim.set_nonblocking(true).unwrap();
    let port = victim.local_addr().unwrap().port() & !1;
    // Every spelling gets the refusal, and PLAY finds no session to start.
    let mut attacker = Connection::open(&url, None).unwrap();
    let described = attacker.request("DESCRIBE", &url, &[], "").unwrap().ok().unwrap();
    let track = first_control(&described, &url);
    for offer in [
        format!("RTP/AVP;unicast;destination={address};client_port={port}-{}", port + 1),
        format!("RTP/AVP/UDP;unicast;client_port={port}-{};destination={address}", port + 1),
        format!("RTP/AVP;destination=\"{address}\";unicast;client_port={port}-{}", port + 1),
        format!("RTP/AVP;unicast;destination=victim.example;client_port={port}-{}", port + 1),
        format!("RTP/AVP;unicast;destination=::1;client_port={port}-{}", port + 1),
    ] {
        let answer = attacker.request("SETUP", &track, &[("Transport", &offer)], "").unwrap();
        assert_eq!(answer.status, 403, "{offer}");
        assert_eq!(attacker.request("PLAY", &url, &[], "").unwrap().status, 454, "{offer}");
    }
    // Somebody who may watch does, so media certainly flows.
    let mut viewer = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    feed::until_carried(&mut feed, &ground, &proxy, 1).unwrap();
    let more = viewer.media[0].len() + 50;
    viewer.wait("media", LIMIT, || feed.next(), |viewer| viewer.media[0].len() >= more).unwrap();
    let got = victim.recv(&mut [0; 2048]);
    assert!(got.is_err(), "the victim got {got:?}");
    assert_eq!(proxy.stream("cam").unwrap()["legs"].as_array().unwrap().len(), 1);
    wait_for_metric(&proxy, "msm_events_total", &["destination.prohibited"], 5.0).unwrap();
    ground.judge().unwrap();
}

/// Case 21 without learning, SEC-2: RTP and RTCP of every other address and port.
#[test]
fn a_port_spray_at_the_inputs_of_a_camera_is_counted_and_reaches_nobody() {
    let test = "a_port_spray_at_the_inputs_of_a_camera_is_counted_and_reaches_nobody";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let mut viewer = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    feed::until_carried(&mut feed, &ground, &proxy, 1).unwrap();
    let input = feed.publisher.input(0);
    // The camera's own address on other ports, other addresses on any port.
    let own: IpAddr = ground.camera_host().parse().unwrap();
    let addresses: Vec<IpAddr> =
        (1..=40).map(|host| if host < 20 { own } else { ground.other_camera(host).unwrap() }).collect();
    let bind = || addresses.iter().map(|address| UdpSocket::bind((*address, 0)).unwrap()).collect::<Vec<_>>();
    let sprayers = ground.among_cameras(bind);
    let mut sent = 0;
    for _ in 0..25 {
        for sprayer in &sprayers {
            let mut forged = feed.packet(0, feed.number);
            forged[12..14].copy_from_slice(b"XX");
            sprayer.send_to(&forged, input).unwrap();
            // BYE and a sender report for the camera's SSRC.
            let mut control = input;
            control.set_port(input.port() + 1);
            sprayer.send_to(&wire::bye(feed.starts[0].ssrc), control).unwrap();
            sent += 1;
        }
        feed.next().unwrap();
        // A spray that overflows the socket would prove the wrong thing.
        std::thread::sleep(Duration::from_millis(2));
    }
    wait_for_metric(&proxy, "msm_dropped_packets_total", &["unknown_source"], f64::from(sent)).unwrap();
    viewer
        .wait(
            "the camera's own packets",
            LIMIT,
            || Ok(()),
            |viewer| viewer.packets(0).last().is_some_and(|last| feed::number(last) == feed.number - 1),
        )
        .unwrap();
    let packets = feed::comparable(&ground, viewer.packets(0));
    // A forged packet has no number, a displaced one breaks the row.
    let numbers: Vec<u32> = packets.iter().map(feed::number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert!(viewer.byes(0).is_empty() && !viewer.closed, "a forged BYE ended the viewer");
    let lost = proxy.stream("cam").unwrap()["tracks"][0]["lost"].clone();
    assert_eq!(lost, 0, "what strangers send must not enter the statistics");
    ground.judge().unwrap();
}

/// Case 22, RTP-1: what GStreamer and ffmpeg send before they expect media.
#[test]
fn punches_of_players_reach_neither_the_camera_nor_teach_a_destination() {
    let test = "punches_of_players_reach_neither_the_camera_nor_teach_a_destination";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let url = proxy.url("cam");
    let mut feed = feed::record_on(&ground, &proxy).unwrap();
    let mut viewer = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    feed::until_carried(&mut feed, &ground, &proxy, 1).unwrap();
    let server = viewer.server(0);
    let random: Vec<u8> = (0..200_u32).map(|n| ((n * 7919) >> 3) as u8).collect();
    let ffmpeg = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let empty_report = [0x80, 201, 0, 1, 0, 0, 0, 0];
    // From the viewer itself, and from a port that wants to become one.
    let stranger = UdpSocket::bind((ground.viewer_host(), 0)).unwrap();
    stranger.set_nonblocking(true).unwrap();
    for _ in 0..5 {
        viewer.send(0, &random).unwrap();
        viewer.send_control(0, &random).unwrap();
        viewer.send(0, &ffmpeg).unwrap();
        viewer.send_control(0, &empty_report).unwrap();
        for punch in [&random[..], &ffmpeg, &empty_report] {
            stranger.send_to(punch, server).unwrap();
            stranger.send_to(punch, (server.ip(), server.port() + 1)).unwrap();
        }
    }
    let more = viewer.media[0].len() + 50;
    viewer
        .wait("media after the punches", LIMIT, || feed.next(), |viewer| viewer.media[0].len() >= more)
        .unwrap();
    assert_eq!(viewer.packets(0).len(), viewer.media[0].len());
    let packets = feed::comparable(&ground, viewer.packets(0));
    let numbers: Vec<u32> = packets.iter().map(feed::number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert!(stranger.recv(&mut [0; 2048]).is_err(), "a punch taught a destination");
    assert_eq!(feed.publisher.received_media(0).unwrap(), 0, "a punch reached the camera");
    for report in feed.publisher.received_control(0) {
        let kinds: Vec<u8> = wire::compound(&report).into_iter().map(|(kind, ..)| kind).collect();
        assert!(!kinds.is_empty() && kinds.iter().all(|kind| [201, 202].contains(kind)), "{kinds:?}");
    }
    // 5 x (2 + 3) on the RTP port alone.
    wait_for_metric(&proxy, "msm_dropped_packets_total", &["reason"], 25.0).unwrap();
    ground.judge().unwrap();
}
