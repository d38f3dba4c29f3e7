use std::time::Duration;

use msm_graph::{LegEncap, LegOp, RowOp};
use msm_rtsp::message::{Method, Response, Status};

use super::world::*;
use crate::config::{Config, PullConfig};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_viewer_plays_a_pulled_camera_over_udp() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    // RTSP-14: our ports and our address.
    let transport = viewer.setups[0].headers.get("Transport").unwrap();
    assert_eq!(transport, "RTP/AVP;unicast;client_port=5000-5001;source=198.51.100.1;server_port=8060-8061");
    // RTSP-31: exactly where the gates opened.
    assert_eq!(
        viewer.play.headers.get("RTP-Info").unwrap(),
        "url=rtsp://proxy:8554/cam/trackID=0;seq=100;rtptime=9000, \
         url=rtsp://proxy:8554/cam/trackID=1;seq=101;rtptime=9001"
    );
    assert_eq!(viewer.play.headers.get("Range").unwrap(), "npt=now-");
    let leg = world.legs.values().next().unwrap();
    assert_eq!(leg.gate, Gate::Active);
    assert_eq!(
        leg.spec.tracks[1].encap,
        LegEncap::Udp {
            rtp: "203.0.113.5:5002".parse().unwrap(),
            rtcp: "203.0.113.5:5003".parse().unwrap(),
            local: "198.51.100.1".parse().unwrap(),
        }
    );
    assert_eq!(world.camera().count(&Method::Setup), 2);
    assert_eq!(world.camera().count(&Method::Play), 1);
}

#[test]
fn a_viewer_plays_over_tcp_and_its_media_is_released_after_the_play_answer() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", TCP);
    let transport = viewer.setups[1].headers.get("Transport").unwrap();
    assert_eq!(transport, "RTP/AVP/TCP;unicast;interleaved=2-3");
    assert_eq!(world.released, [(viewer.conn, vec![0, 1, 2, 3])], "RTSP-44: sender reports too");
}

#[test]
fn the_camera_is_asked_to_play_only_after_the_gate_is_armed() {
    let mut world = World::with_camera();
    let viewer = world.prepare("cam", "203.0.113.5:40000", UDP);
    assert_eq!(world.camera().count(&Method::Setup), 0, "the first PLAY starts the upstream (RTSP-27)");
    world.in_session(&viewer, Method::Play);
    let armed = world.leg_log.iter().any(|op| matches!(op, LegOp::Arm { .. }));
    assert!(armed);
    let order: Vec<_> = world.camera().requests.iter().map(|r| r.method.clone()).collect();
    assert_eq!(order, [Method::Options, Method::Describe, Method::Setup, Method::Setup, Method::Play]);
}

#[test]
fn second_viewer_opens_no_second_upstream() {
    let mut world = World::with_camera();
    let mut ids = std::collections::BTreeSet::new();
    for n in 0..20 {
        let viewer = world.view("cam", &format!("203.0.113.{n}:40000"), if n % 2 == 0 { UDP } else { TCP });
        assert_eq!(viewer.session.len(), 32);
        assert!(viewer.session.bytes().all(|b| b.is_ascii_alphanumeric()), "RTSP-20");
        ids.insert(viewer.session);
    }
    assert_eq!(ids.len(), 20);
    let camera = world.camera();
    assert_eq!((camera.dials, camera.count(&Method::Describe), camera.count(&Method::Play)), (1, 1, 1));
}

#[test]
fn simultaneous_first_viewers_cause_one_describe() {
    let mut world = World::with_camera();
    world.camera().mute = true;
    let conns: Vec<_> = (0..10).map(|n| world.connect(&format!("203.0.113.{n}:40000"))).collect();
    for conn in &conns {
        world.send(*conn, Method::Describe, "rtsp://proxy:8554/cam", &[]);
    }
    assert_eq!(world.camera().dials, 1, "RTSP-28");
    assert!(conns.iter().all(|conn| world.reply(*conn).is_none()));
    world.sleep(SECOND * 6);
    for conn in &conns {
        assert_eq!(world.reply(*conn).unwrap().status, Status::GATEWAY_TIMEOUT);
    }
    assert_eq!(world.camera().dials, 1);
}

#[test]
fn the_upstream_is_torn_down_a_linger_after_the_last_viewer() {
    let mut world = World::with_camera();
    let one = world.view("cam", "203.0.113.5:40000", UDP);
    let two = world.view("cam", "203.0.113.6:40000", TCP);
    assert_eq!(world.in_session(&one, Method::Teardown).status, Status::OK);
    world.sleep(SECOND * 20);
    assert_eq!(world.camera().count(&Method::Teardown), 0, "the other one still plays");
    assert_eq!(world.in_session(&two, Method::Teardown).status, Status::OK);
    world.sleep(SECOND * 4);
    assert_eq!(world.camera().count(&Method::Teardown), 0);
    world.sleep(SECOND * 2);
    assert_eq!(world.camera().count(&Method::Teardown), 1, "CP14");
    assert!(world.camera().open.is_empty());
    assert!(world.rows.is_empty());
    assert!(world.legs.is_empty());
}

#[test]
fn a_viewer_within_the_linger_finds_the_upstream_open() {
    let mut world = World::with_camera();
    let one = world.view("cam", "203.0.113.5:40000", UDP);
    world.in_session(&one, Method::Teardown);
    world.sleep(SECOND * 3);
    world.view("cam", "203.0.113.6:40000", UDP);
    world.sleep(SECOND * 20);
    assert_eq!((world.camera().dials, world.camera().count(&Method::Teardown)), (1, 0));
}

#[test]
fn a_thousand_cycles_leak_nothing() {
    let mut world = World::with_camera();
    for n in 0..1000 {
        let viewer = world.view("cam", "203.0.113.5:40000", if n % 2 == 0 { UDP } else { TCP });
        world.in_session(&viewer, Method::Teardown);
        world.hang_up(viewer.conn);
        world.sleep(SECOND * 7);
    }
    assert_eq!(world.camera().count(&Method::Teardown), 1000);
    assert!(world.camera().open.is_empty() && world.rows.is_empty() && world.legs.is_empty());
    assert_eq!(world.control.session_count(), 0);
    assert!(world.control.conns.is_empty() && world.control.operations.is_empty());
}

#[test]
fn pause_of_one_leaves_the_others_and_resumes_without_the_camera() {
    let mut world = World::with_camera();
    let viewers: Vec<_> = (0..3).map(|n| world.view("cam", &format!("203.0.113.{n}:4000"), UDP)).collect();
    assert_eq!(world.in_session(&viewers[0], Method::Pause).status, Status::OK);
    let active = world.legs.values().filter(|leg| leg.gate == Gate::Active).count();
    assert_eq!(active, 2, "CP9");
    world.sleep(SECOND * 10);
    assert_eq!(world.camera().count(&Method::Pause), 0, "RTSP-27");
    let play = world.in_session(&viewers[0], Method::Play);
    assert!(play.headers.get("RTP-Info").is_some());
    assert_eq!(world.camera().count(&Method::Play), 1);
}

#[test]
fn play_in_playing_gets_fresh_rtp_info() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    let again = world.in_session(&viewer, Method::Play);
    assert_eq!(again.status, Status::OK);
    assert!(again.headers.get("RTP-Info").is_some(), "RTSP-26");
}

#[test]
fn tcp_is_asked_for_after_461() {
    let mut world = World::with_camera();
    world.camera().tcp_only = true;
    world.view("cam", "203.0.113.5:40000", UDP);
    let camera = world.camera();
    assert_eq!((camera.dials, camera.count(&Method::Describe)), (1, 1), "on the same connection");
    let stream = world.stream();
    let inputs = &world.rows[&stream].inputs;
    assert!(inputs.iter().all(|input| matches!(input.encap, msm_graph::Encap::Interleaved { .. })));
}

#[test]
fn tcp_is_asked_for_after_three_seconds_without_a_packet() {
    let mut world = World::with_camera();
    world.camera().udp_blocked = true;
    let viewer = world.prepare("cam", "203.0.113.5:40000", UDP);
    world.send(viewer.conn, Method::Play, &viewer.url, &[("Session", &viewer.session)]);
    assert!(world.reply(viewer.conn).is_none());
    world.sleep(SECOND * 3);
    let play = world.reply(viewer.conn).unwrap();
    assert_eq!(play.status, Status::OK, "RTSP-15");
    assert!(play.headers.get("RTP-Info").is_some());
    assert_eq!(world.camera().count(&Method::Teardown), 1, "the camera sees one session at a time");
    assert_eq!(world.camera().open.len(), 1);
}

#[test]
fn a_forced_transport_is_the_only_one_asked_for() {
    for (transport, wanted) in
        [(crate::config::PullTransport::Tcp, "RTP/AVP/TCP"), (crate::config::PullTransport::Udp, "RTP/AVP;")]
    {
        let mut pull = PullConfig::new("cam", "rtsp://192.0.2.10:8554/live");
        pull.transport = transport;
        let mut world = World::new(Config { pulls: vec![pull], ..Config::default() });
        world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
        world.view("cam", "203.0.113.5:40000", UDP);
        let camera = world.camera();
        let asked: Vec<_> = camera.requests.iter().filter_map(|r| r.headers.get("Transport")).collect();
        assert!(asked.iter().all(|value| value.starts_with(wanted)), "{asked:?}");
    }
}

#[test]
fn upstream_urls_are_joined_and_numbered_first() {
    let mut world = World::with_camera();
    world.camera().sdp = CAMERA_SDP.replace("rtsp://192.0.2.10:8554/live/track1", "trackID=0");
    world.view("cam", "203.0.113.5:40000", UDP);
    let camera = world.camera();
    let uris: Vec<_> =
        camera.requests.iter().filter(|r| r.method == Method::Setup).map(|r| r.uri.clone()).collect();
    assert_eq!(uris, ["rtsp://192.0.2.10:8554/live/trackID=0", "rtsp://192.0.2.10:8554/live/track2"]);
    // RTSP-3.
    assert!(camera.requests.iter().all(|r| r.headers.iter().next().unwrap().0 == "CSeq"));
}

#[test]
fn keepalives_go_upstream_at_half_the_timeout() {
    let mut world = World::with_camera();
    world.camera().session = |_| Some("cafe1234;timeout=20".to_owned());
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    let stream = world.stream();
    for _ in 0..4 {
        world.sleep(SECOND * 10);
        world.in_session(&viewer, Method::GetParameter);
        world.event(crate::event::Event::Report(msm_graph::Report::InputAlive { stream }));
    }
    let with_session = world
        .camera()
        .requests
        .iter()
        .filter(|r| r.method == Method::Options && r.headers.get("Session") == Some("cafe1234"))
        .count();
    assert_eq!(with_session, 4, "RTSP-24");
}

#[test]
fn nothing_of_the_upstream_is_visible_downstream() {
    let pull = PullConfig::new("cam", "rtsp://admin:s3cret@192.0.2.10:8554/live");
    let mut world = World::new(Config { pulls: vec![pull], ..Config::default() });
    world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
    world.camera().challenge = Some("Digest realm=\"Cam\", nonce=\"abcdef\"");
    world.camera().sdp = CAMERA_SDP.replace("s=Live", "s=rtsp://192.0.2.10:8554/live");
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    world.in_session(&viewer, Method::Pause);
    world.in_session(&viewer, Method::Teardown);
    for response in &world.reply_log {
        let text = format!("{:?} {}", response.headers, String::from_utf8_lossy(&response.body));
        for secret in
            ["192.0.2.10", "8554/live", "admin", "s3cret", "abcdef", "cafe1234", "41041", "11223344"]
        {
            assert!(!text.contains(secret), "{secret} in\n{text}");
        }
    }
    for note in &world.notes {
        let text = format!("{note:?}");
        assert!(!text.contains("s3cret") && !text.contains(&viewer.session), "{text}");
    }
}

#[test]
fn the_address_that_a_camera_was_reached_at_is_not_visible_downstream() {
    let pull = PullConfig::new("cam", "rtsp://door.example/live");
    let mut world = World::new(Config { pulls: vec![pull], ..Config::default() });
    world.cameras.insert("door.example".to_owned(), Camera::default());
    world.camera_address = Some("192.0.2.77:554");
    world.cameras.get_mut("door.example").unwrap().sdp = CAMERA_SDP.replace("s=Live", "s=192.0.2.77");
    let conn = world.connect("203.0.113.5:40000");
    let answer = world.ask(conn, Method::Describe, "rtsp://proxy:8554/cam", &[]);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.contains("s=-\r\n") && !text.contains("192.0.2.77"), "SDP-9: {text}");
}

#[test]
fn a_link_local_viewer_is_told_to_use_tcp() {
    let mut world = World::with_camera();
    let conn = world.connect("[fe80::5]:40000");
    let track = "rtsp://proxy:8554/cam/trackID=0";
    assert_eq!(world.ask_status(conn, Method::Setup, track, &[("Transport", UDP[0])]), 461);
    assert_eq!(world.ask_status(conn, Method::Setup, track, &[("Transport", TCP[0])]), 200);
}

#[test]
fn udp_is_asked_for_again_when_the_camera_was_closed_in_between() {
    let mut world = World::with_camera();
    world.camera().tcp_only = true;
    let first = world.view("cam", "203.0.113.5:40000", TCP);
    world.in_session(&first, Method::Teardown);
    world.sleep(SECOND * 6);
    world.camera().tcp_only = false;
    world.view("cam", "203.0.113.5:40001", TCP);
    let row = &world.rows[&world.stream()];
    assert!(matches!(row.inputs[0].encap, msm_graph::Encap::Udp { .. }), "RTSP-15: {row:?}");
}

#[test]
fn eight_paths_on_one_server_are_eight_streams() {
    let pulls = (0..8).map(|n| PullConfig::new(format!("cam{n}"), format!("rtsp://192.0.2.10:8554/live{n}")));
    let mut world = World::new(Config { pulls: pulls.collect(), ..Config::default() });
    world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
    for n in 0..8 {
        world.camera().sdp = CAMERA_SDP.replace("s=Live", &format!("s=Live{n}"));
        world.view(&format!("cam{n}"), "203.0.113.5:40000", UDP);
    }
    assert_eq!((world.rows.len(), world.camera().dials), (8, 8), "M45, CP7");
    assert!(world.rows.values().all(|row| row.tracks.len() == 2 && row.inputs.len() == 2));
    for n in 0..8 {
        let body = world.reply_log.iter().filter(|r| r.headers.get("Content-Base").is_some()).nth(n).unwrap();
        assert!(String::from_utf8_lossy(&body.body).contains(&format!("s=Live{n}\r\n")));
    }
}

#[test]
fn two_names_of_one_source_share_its_session() {
    let pulls = ["a", "b"].map(|name| PullConfig::new(name, "rtsp://192.0.2.10:8554/live"));
    let mut world = World::new(Config { pulls: pulls.to_vec(), ..Config::default() });
    world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
    world.view("a", "203.0.113.5:40000", UDP);
    world.view("b", "203.0.113.6:40000", UDP);
    assert_eq!((world.rows.len(), world.camera().dials), (1, 1), "R6");
}

#[test]
fn requests_are_answered_in_their_order_when_pipelined() {
    let mut world = World::with_camera();
    world.stalled = true;
    let conn = world.connect("203.0.113.5:40000");
    world.send(conn, Method::Describe, "rtsp://proxy:8554/cam", &[]);
    world.send(conn, Method::Setup, "rtsp://proxy:8554/cam/trackID=0", &[("Transport", UDP[0])]);
    world.send(conn, Method::Options, "*", &[]);
    assert_eq!(world.reply(conn).unwrap().cseq(), Some(1));
    assert!(world.reply(conn).is_none(), "OPTIONS waits for SETUP (RTSP-6)");
    world.sleep(SECOND * 6);
    let setup = world.reply(conn).unwrap();
    assert_eq!((setup.cseq(), setup.status), (Some(2), Status::SERVICE_UNAVAILABLE));
    assert_eq!(world.reply(conn).unwrap().cseq(), Some(3));
}

#[test]
fn setup_is_answered_only_when_the_leg_is_attached() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    world.ask(conn, Method::Describe, "rtsp://proxy:8554/cam", &[]);
    world.attach_error = Some(crate::event::OpError::Exhausted("ports".to_owned()));
    let status =
        world.ask_status(conn, Method::Setup, "rtsp://proxy:8554/cam/trackID=0", &[("Transport", UDP[0])]);
    assert_eq!(status, 453);
    assert_eq!(world.control.session_count(), 0);
    world.attach_error = None;
    let status =
        world.ask_status(conn, Method::Setup, "rtsp://proxy:8554/cam/trackID=0", &[("Transport", UDP[0])]);
    assert_eq!(status, 200);
}

#[test]
fn teardown_of_one_media_leaves_the_other() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    let track = format!("{}/trackID=0", viewer.url);
    assert_eq!(world.ask_status(viewer.conn, Method::Teardown, &track, &[("Session", &viewer.session)]), 200);
    assert_eq!(world.legs.values().next().unwrap().spec.tracks.len(), 1);
    assert_eq!(world.in_session(&viewer, Method::GetParameter).status, Status::OK);
    assert_eq!(world.in_session(&viewer, Method::Teardown).status, Status::OK);
    assert_eq!(world.in_session(&viewer, Method::Teardown).status, Status::SESSION_NOT_FOUND);
    assert!(world.legs.is_empty());
}

#[test]
fn both_dialects_of_track_urls_are_understood() {
    let mut world = World::with_camera();
    for (n, (describe, setup)) in [
        ("rtsp://proxy:8554/cam?x=1", "rtsp://proxy:8554/cam?x=1/trackID=1"),
        ("rtsp://proxy:8554/cam?x=1", "rtsp://proxy:8554/cam/trackID=1?x=1"),
        ("rtsp://proxy:8554/cam/", "rtsp://proxy:8554/cam/trackID=1/"),
    ]
    .into_iter()
    .enumerate()
    {
        let conn = world.connect(&format!("203.0.113.{n}:40000"));
        assert_eq!(world.ask_status(conn, Method::Describe, describe, &[]), 200);
        let status = world.ask_status(conn, Method::Setup, setup, &[("Transport", UDP[0])]);
        assert_eq!(status, 200, "{setup} (RTSP-30)");
    }
    assert!(world.legs.values().all(|leg| leg.spec.tracks[0].track.0 == 1));
}

#[test]
fn setup_without_describe_works() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    let status =
        world.ask_status(conn, Method::Setup, "rtsp://proxy:8554/cam/trackID=0", &[("Transport", UDP[0])]);
    assert_eq!(status, 200);
}

#[test]
fn two_interleaved_sessions_on_one_connection_share_no_channel() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    let url = "rtsp://proxy:8554/cam/trackID=0";
    let one = world.ask(conn, Method::Setup, url, &[("Transport", "RTP/AVP/TCP;interleaved=0-1")]);
    let two = world.ask(conn, Method::Setup, url, &[("Transport", "RTP/AVP/TCP;interleaved=0-1")]);
    assert!(one.headers.get("Transport").unwrap().contains("interleaved=0-1"));
    assert!(two.headers.get("Transport").unwrap().contains("interleaved=2-3"), "RTSP-17, SEC-8");
    let asked = world.ask(conn, Method::Setup, url, &[("Transport", "RTP/AVP/TCP;interleaved=10-11")]);
    assert!(asked.headers.get("Transport").unwrap().contains("interleaved=10-11"));
}

#[test]
fn a_second_setup_that_fails_leaves_the_session_its_channels_and_its_leg() {
    // RTSP-19.
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    let url = "rtsp://proxy:8554/cam/trackID=0";
    let setup = |world: &mut World, channels: &str, session: Option<&str>| {
        let transport = format!("RTP/AVP/TCP;interleaved={channels}");
        let headers = [("Transport", transport.as_str()), ("Session", session.unwrap_or_default())];
        world.ask(conn, Method::Setup, url, &headers[..=usize::from(session.is_some())])
    };
    let first = setup(&mut world, "0-1", None);
    let id = first.headers.get("Session").unwrap().split(';').next().unwrap().to_owned();
    world.attach_error = Some(crate::event::OpError::Exhausted("queue".to_owned()));
    assert_eq!(setup(&mut world, "4-5", Some(&id)).status.0, 453);
    world.attach_error = None;
    let channels = |response: &Response| response.headers.get("Transport").unwrap().to_owned();
    assert!(
        channels(&setup(&mut world, "0-1", None)).contains("interleaved=2-3"),
        "0-1 are the first's still"
    );
    assert!(channels(&setup(&mut world, "4-5", None)).contains("interleaved=4-5"), "4-5 are nobody's");

    // Without an answer in time the packet path is told what the session is.
    world.stalled = true;
    let cseq = world.send(
        conn,
        Method::Setup,
        url,
        &[("Session", &id), ("Transport", "RTP/AVP/TCP;interleaved=8-9")],
    );
    world.sleep(SECOND * 6);
    let late = world.reply(conn).unwrap();
    assert_eq!((late.cseq(), late.status.0), (Some(cseq), 503));
    let Some(LegOp::Attach(spec)) = world.leg_log.last() else { panic!("{:?}", world.leg_log.last()) };
    assert!(matches!(spec.tracks[0].encap, LegEncap::Interleaved { rtp: 0, rtcp: 1, .. }), "{spec:?}");
}

#[test]
fn an_ipv6_viewer_of_an_ipv4_camera_gets_ipv6_answers() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "[2001:db8::5]:40000", UDP);
    assert!(viewer.setups[0].headers.get("Transport").unwrap().contains("source=2001:db8::1;"), "RTP-40");
    let sdp = world.reply_log.iter().find(|r| !r.body.is_empty()).unwrap();
    assert!(String::from_utf8_lossy(&sdp.body).contains("c=IN IP6 ::"));
}

#[test]
fn the_row_says_what_the_camera_agreed_to() {
    let mut world = World::with_camera();
    world.view("cam", "203.0.113.5:40000", UDP);
    let RowOp::Upsert(_, row) = world.row_log.last().unwrap() else { panic!("no row") };
    assert_eq!(row.tracks[0].codec, "H264");
    assert_eq!(row.tracks[1].clock_rate, 8000);
    let msm_graph::Encap::Udp { peer, peer_rtp, peer_rtcp, .. } = &row.inputs[0].encap else {
        panic!("not UDP")
    };
    assert_eq!((peer.to_string().as_str(), *peer_rtp, *peer_rtcp), ("192.0.2.10", Some(41041), Some(41042)));
    assert_eq!(row.inputs[0].ssrc, Some(0x1122_3344));
}

#[test]
fn rtp_info_names_tracks_as_the_viewer_did() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    let url = "rtsp://proxy:8554/cam/trackID=0?x=1";
    let setup = world.ask(conn, Method::Setup, url, &[("Transport", UDP[0])]);
    let session = setup.headers.get("Session").unwrap().to_owned();
    let play = world.ask(conn, Method::Play, "rtsp://proxy:8554/cam?x=1", &[("Session", &session)]);
    assert_eq!(play.headers.get("RTP-Info").unwrap(), format!("url={url};seq=100;rtptime=9000"), "RTSP-31");
}

#[test]
fn a_play_that_the_camera_refuses_is_502_and_the_next_one_may_succeed() {
    let mut world = World::with_camera();
    let viewer = world.prepare("cam", "203.0.113.5:40000", UDP);
    world.kill_camera();
    let play = world.in_session(&viewer, Method::Play);
    assert_eq!(play.status, Status::BAD_GATEWAY);
    assert_eq!(world.legs.values().next().unwrap().gate, Gate::Disabled);
    world.camera().up = true;
    world.sleep(SECOND * 2);
    assert_eq!(world.in_session(&viewer, Method::Play).status, Status::OK);
}

#[test]
fn a_camera_whose_packets_never_come_is_played_without_rtp_info() {
    let mut pull = PullConfig::new("cam", "rtsp://192.0.2.10:8554/live");
    pull.transport = crate::config::PullTransport::Udp;
    let mut world = World::new(Config { pulls: vec![pull], ..Config::default() });
    world.cameras.insert("192.0.2.10".to_owned(), Camera { udp_blocked: true, ..Camera::default() });
    let viewer = world.prepare("cam", "203.0.113.5:40000", UDP);
    world.send(viewer.conn, Method::Play, &viewer.url, &[("Session", &viewer.session)]);
    world.sleep(SECOND * 5);
    let play = world.reply(viewer.conn).unwrap();
    assert_eq!((play.status, play.headers.get("RTP-Info")), (Status::OK, None), "RTSP-31");
}

#[test]
fn a_media_that_the_camera_refuses_does_not_take_the_others_with_it() {
    let mut world = World::with_camera();
    world.camera().sdp = CAMERA_SDP.to_owned() + "m=application 0 TCP/x *\r\na=control:bad\r\n";
    world.view("cam", "203.0.113.5:40000", UDP);
    assert_eq!(world.rows[&world.stream()].tracks.len(), 2, "it keeps its index and is not set up (SDP-3)");
    let conn = world.connect("203.0.113.6:40000");
    let third = "rtsp://proxy:8554/cam/trackID=2";
    assert_eq!(world.ask_status(conn, Method::Setup, third, &[("Transport", UDP[0])]), 404);
}

#[test]
fn status_lists_idle_pulls_and_names_no_url() {
    let mut world = World::with_camera();
    let idle = &world.control.streams()[0];
    assert_eq!((idle.stream, idle.name.as_str(), idle.state), (None, "cam", "announced"));
    world.view("cam", "203.0.113.5:40000", UDP);
    world.view("cam", "203.0.113.6:40000", TCP);
    let streams = world.control.streams();
    assert_eq!((streams.len(), streams[0].state, streams[0].source.transport), (1, "active", Some("udp")));
    assert_eq!(streams[0].source.peer, Some("192.0.2.10:8554".parse().unwrap()));
    let sessions: Vec<_> = streams[0].sessions.iter().map(|s| (s.transport, s.state)).collect();
    assert_eq!(sessions, [("udp", "playing"), ("tcp", "playing")]);
    assert_eq!(world.control.session_count(), 2);
}
