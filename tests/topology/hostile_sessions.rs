//! Sessions that should not be: strangers, floods, second publishers, viewers that vanish.

use std::collections::BTreeMap;
use std::time::Duration;

use msm_tests::camera::{Transport, credentials_file};
use msm_tests::probe::{Player, VIDEO, first_control};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::rtsp::Connection;

use crate::feed::{self, Feed};
use crate::healthy::{Healthy, LIMIT, proxy, wait_for_metric};
use crate::hostile_connections::attacker;

#[test]
fn a_second_publisher_is_403_and_the_first_goes_on() {
    let scratch = Scratch::new("second").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("healthy");
    for host in 30..33 {
        let mut thief = Connection::open_from(&url, Some(attacker(host))).unwrap();
        let answer = thief.request("ANNOUNCE", &url, &[("Content-Type", "application/sdp")], VIDEO).unwrap();
        assert_eq!(answer.status, 403);
        // On the connection that was refused nothing is left to set up or record.
        let setup = thief
            .request(
                "SETUP",
                &format!("{url}/streamid=0"),
                &[("Transport", "RTP/AVP/TCP;unicast;mode=record")],
                "",
            )
            .unwrap();
        assert_ne!(setup.status, 200);
        assert_ne!(thief.request("RECORD", &url, &[], "").unwrap().status, 200);
    }
    wait_for_metric(&proxy, "msm_events_total", &["publish.refused"], 3.0).unwrap();
    healthy.check(&proxy, 16).unwrap();
}

#[test]
fn sessions_and_ports_are_bound_by_quotas_and_others_still_get_in() {
    let scratch = Scratch::new("quota").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("healthy");
    let mut greedy = Connection::open_from(&url, Some(attacker(40))).unwrap();
    let described = greedy.request("DESCRIBE", &url, &[], "").unwrap().ok().unwrap();
    let track = first_control(&described, &url);
    let mut statuses = BTreeMap::new();
    for n in 0..1400_u16 {
        let offer = format!("RTP/AVP;unicast;client_port={}-{}", 20_000 + n * 2, 20_001 + n * 2);
        greedy.session = None;
        let answer = greedy.request("SETUP", &track, &[("Transport", &offer)], "").unwrap();
        *statuses.entry(answer.status).or_insert(0_u32) += 1;
        if answer.status == 503 {
            assert!(answer.header("Retry-After").is_some());
        }
    }
    // A burst of 1,000 and 20 per second after it, 1,000 sessions at most (section 10).
    let made = statuses.get(&200).copied().unwrap_or_default();
    assert!((900..=1000).contains(&made), "{statuses:?}");
    let refused =
        statuses.get(&453).copied().unwrap_or_default() + statuses.get(&503).copied().unwrap_or_default();
    assert_eq!(made + refused, 1400, "{statuses:?}");
    // Another address is not concerned.
    let mut other = Connection::open_from(&url, Some(attacker(41))).unwrap();
    let offer = [("Transport", "RTP/AVP;unicast;client_port=30000-30001")];
    assert_eq!(other.request("SETUP", &track, &offer, "").unwrap().status, 200);
    // None of them plays: their leases end, and the room is free again (SEC-5).
    wait_for("the half-open sessions to end", Duration::from_secs(90), || {
        (proxy.metric("msm_rtsp_sessions", &[]).ok()? <= 9.0).then_some(())
    })
    .unwrap();
    healthy.check(&proxy, 32).unwrap();
}

#[test]
fn guessing_passwords_is_slow_and_ends_the_connection_and_then_the_guesser() {
    let scratch = Scratch::new("guess").unwrap();
    let file = credentials_file(scratch.path(), "user", "anna:right").unwrap();
    let proxy = proxy(scratch.path(), &["--user", &format!("anna:{}", file.display())]).unwrap();
    let url = proxy.url("cam");
    let guess = "Digest username=\"anna\", realm=\"media-streaming-mesh\", nonce=\"0\", uri=\"*\", \
                 response=\"00000000000000000000000000000000\"";
    let mut denied = 0;
    let mut throttled = false;
    for _ in 0..6 {
        let Ok(mut guesser) = Connection::open_from(&url, Some(attacker(50))) else { break };
        for attempt in 1..=4 {
            let answer = guesser.request("DESCRIBE", &url, &[("Authorization", guess)], "");
            let Ok(answer) = answer else {
                // The third failure closes.
                assert!(attempt > 1 || throttled);
                break;
            };
            assert!([401, 403, 503].contains(&answer.status), "{answer:?}");
            denied += 1;
            assert!(attempt <= 3, "a fourth guess on one connection was answered");
        }
        throttled = proxy.metric("msm_events_total", &["auth.throttled"]).unwrap() > 0.0;
    }
    assert!(denied >= 3);
    assert!(throttled, "{denied} guesses of one address within a minute were not throttled");
    wait_for_metric(&proxy, "msm_events_total", &["auth.failed"], 3.0).unwrap();
    // Somebody else is asked for a password as before.
    let mut other = Connection::open_from(&url, Some(attacker(51))).unwrap();
    let answer = other.request("DESCRIBE", &url, &[], "").unwrap();
    assert_eq!(answer.status, 401);
    assert!(answer.header("WWW-Authenticate").is_some_and(|challenge| challenge.contains("SHA-256")));
}

/// DP8: a viewer that is gone is not sent to for ever, and nobody else notices.
#[test]
fn viewers_that_vanish_are_reaped_and_sending_stops() {
    let scratch = Scratch::new("vanish").unwrap();
    let proxy = proxy(scratch.path(), &["--session-timeout", "10s"]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("cam");
    let mut feed = Feed::record(&url, Transport::Udp).unwrap();
    // Mute with everything open; gone with its sockets; connection lost, sockets open.
    let mut mute = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    let gone = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    let interleaved = feed::play(&mut feed, &url, Transport::Tcp).unwrap();
    let mut lost = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    assert_eq!(proxy.stream("cam").unwrap()["legs"].as_array().unwrap().len(), 4);
    drop((gone, interleaved));
    lost.stream().shutdown(std::net::Shutdown::Both).unwrap();
    let mut rounds = 0_u32;
    wait_for("every leg to be gone", Duration::from_secs(90), || {
        feed.next().ok()?;
        rounds += 1;
        mute.receive();
        lost.receive();
        // The page is asked now and then only.
        (rounds.is_multiple_of(10) && proxy.stream("cam")?["legs"].as_array()?.is_empty()).then_some(())
    })
    .unwrap();
    assert!(mute.media[0].len() > 100, "it was served while its session lived");
    let count = [&mut mute, &mut lost].map(|viewer| {
        viewer.receive();
        viewer.media[0].len()
    });
    let out = || proxy.metric("msm_rtp_packets_total", &["\"cam\"", "\"out\""]).unwrap() as u64;
    let sent = out();
    for _ in 0..100 {
        feed.next().unwrap();
    }
    let arrived = f64::from(feed.number);
    wait_for_metric(&proxy, "msm_rtp_packets_total", &["\"cam\"", "\"in\""], arrived).unwrap();
    for (viewer, count) in [&mut mute, &mut lost].into_iter().zip(count) {
        viewer.receive();
        assert_eq!(viewer.media[0].len(), count, "sending went on");
    }
    assert_eq!(out(), sent);
    assert!(mute.closed, "its connection is closed with its session");
    healthy.check(&proxy, 16).unwrap();
}

/// SEC-8, RTSP-20: a session belongs to who made it.
#[test]
fn a_stranger_can_neither_end_nor_keep_the_session_of_somebody_else() {
    let scratch = Scratch::new("foreign").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let url = proxy.url("cam");
    let mut feed = Feed::record(&url, Transport::Udp).unwrap();
    let mut viewer: Player = feed::play(&mut feed, &url, Transport::Udp).unwrap();
    let mut thief = Connection::open_from(&url, Some(attacker(60))).unwrap();
    thief.session = Some(viewer.session.clone());
    for method in ["TEARDOWN", "PAUSE", "GET_PARAMETER", "PLAY"] {
        assert_eq!(thief.request(method, &url, &[], "").unwrap().status, 454, "{method}");
    }
    let count = viewer.media[0].len();
    viewer.wait("media", LIMIT, || feed.next(), |viewer| viewer.media[0].len() > count + 20).unwrap();
    // A publisher's neither: the stream survives a foreign TEARDOWN.
    thief.session = feed.publisher.connection.session.clone();
    assert_eq!(thief.request("TEARDOWN", &url, &[], "").unwrap().status, 454);
    let count = viewer.media[0].len();
    viewer.wait("media", LIMIT, || feed.next(), |viewer| viewer.media[0].len() > count + 20).unwrap();
}
