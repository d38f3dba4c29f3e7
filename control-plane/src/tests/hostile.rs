use std::time::Duration;

use msm_graph::{LegFailure, LegOp, Report};
use msm_rtsp::auth::Credentials;
use msm_rtsp::message::{Method, Status};

use super::world::*;
use crate::config::{Config, IdentityLimits, PullConfig, UserConfig};
use crate::event::Event;

const SECOND: Duration = Duration::from_secs(1);
const URL: &str = "rtsp://proxy:8554/cam";
const TRACK: &str = "rtsp://proxy:8554/cam/trackID=0";

fn with(change: impl FnOnce(&mut Config)) -> World {
    let mut config =
        Config { pulls: vec![PullConfig::new("cam", "rtsp://192.0.2.10:8554/live")], ..Config::default() };
    change(&mut config);
    let mut world = World::new(config);
    world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
    world
}

#[test]
fn methods_without_a_session_are_answered_and_the_connection_goes_on() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    for (method, status) in [
        (Method::Play, 454),
        (Method::Pause, 454),
        (Method::Record, 454),
        (Method::Teardown, 454),
        (Method::GetParameter, 200),
        (Method::SetParameter, 200),
        (Method::Unknown("DANCE".to_owned()), 501),
        (Method::Options, 200),
        (Method::Describe, 200),
    ] {
        assert_eq!(world.ask_status(conn, method.clone(), URL, &[]), status, "{method} (CP12)");
    }
    assert!(world.closed.is_empty());
}

#[test]
fn unknown_methods_and_option_tags_are_named() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    let response = world.ask(conn, Method::Unknown("DANCE".to_owned()), URL, &[]);
    assert!(response.headers.get("Public").unwrap().contains("DESCRIBE"), "RTSP-9");
    let tag = "www.onvif.org/ver20/backchannel";
    let response = world.ask(conn, Method::Describe, URL, &[("Require", tag)]);
    assert_eq!((response.status.0, response.headers.get("Unsupported")), (551, Some(tag)), "RTSP-10");
}

#[test]
fn wrong_state_is_455_with_what_is_allowed() {
    let mut world = World::with_camera();
    let viewer = world.prepare("cam", "203.0.113.5:40000", UDP);
    let response = world.in_session(&viewer, Method::Record);
    assert_eq!(response.status, Status::METHOD_NOT_VALID_IN_THIS_STATE);
    assert!(response.headers.get("Allow").unwrap().contains("PLAY"));
    world.in_session(&viewer, Method::Play);
    let headers = [("Session", viewer.session.as_str()), ("Transport", UDP[0])];
    assert_eq!(world.ask_status(viewer.conn, Method::Setup, TRACK, &headers), 455, "RTSP-19");
    assert_eq!(world.in_session(&viewer, Method::GetParameter).status, Status::OK);
}

#[test]
fn play_of_one_media_of_two_is_460() {
    let mut world = World::with_camera();
    let viewer = world.prepare("cam", "203.0.113.5:40000", UDP);
    assert_eq!(world.ask_status(viewer.conn, Method::Play, TRACK, &[("Session", &viewer.session)]), 460);
}

#[test]
fn setup_of_the_aggregate_of_two_media_is_459() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    assert_eq!(world.ask_status(conn, Method::Setup, URL, &[("Transport", UDP[0])]), 459);
}

#[test]
fn unknown_paths_and_tracks_are_404() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    assert_eq!(world.ask_status(conn, Method::Describe, "rtsp://proxy:8554/other", &[]), 404);
    let track = "rtsp://proxy:8554/cam/trackID=7";
    assert_eq!(world.ask_status(conn, Method::Setup, track, &[("Transport", UDP[0])]), 404);
}

#[test]
fn urls_that_could_mean_something_else_are_400() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    for url in ["rtsp://proxy/../cam", "rtsp://u:p@proxy/cam", "http://proxy/cam", "rtsp://proxy/cam%00"] {
        assert_eq!(world.ask_status(conn, Method::Describe, url, &[]), 400, "{url} (SEC-10)");
    }
    let long = format!("rtsp://proxy/{}", "x".repeat(3000));
    world.send(conn, Method::Describe, &long, &[]);
    let (response, close) = world.replies.get_mut(&conn).unwrap().pop_front().unwrap();
    assert_eq!((response.status.0, close), (414, true), "section 11: oversize is closed");
}

#[test]
fn transports_that_cannot_be_served_are_461_and_bad_ones_400() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    for (transport, status) in [
        ("RTP/AVP;multicast", 461),
        ("RTP/SAVP;unicast;client_port=5000-5001", 461),
        ("RAW/RAW/UDP;unicast", 461),
        ("RTP/AVP;unicast;client_port=99999", 400),
        ("", 400),
        ("RTP/AVP/TCP;unicast;interleaved=0-1", 200),
    ] {
        assert_eq!(
            world.ask_status(conn, Method::Setup, TRACK, &[("Transport", transport)]),
            status,
            "{transport}"
        );
    }
    assert!(world.closed.is_empty(), "RTSP-13");
}

#[test]
fn a_foreign_destination_is_403_and_gets_no_leg() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    let victim = "RTP/AVP;unicast;destination=203.0.113.66;client_port=5000-5001";
    assert_eq!(world.ask_status(conn, Method::Setup, TRACK, &[("Transport", victim)]), 403, "SEC-1");
    assert!(world.leg_log.is_empty());
    assert!(world.has_note("destination.prohibited"));
    let own = "RTP/AVP;unicast;destination=203.0.113.5;client_port=5000-5001";
    assert_eq!(world.ask_status(conn, Method::Setup, TRACK, &[("Transport", own)]), 200, "RTSP-16");
}

#[test]
fn lower_transports_are_not_mixed_in_a_session() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    let setup = world.ask(conn, Method::Setup, TRACK, &[("Transport", UDP[0])]);
    let session = setup.headers.get("Session").unwrap().to_owned();
    let headers = [("Transport", TCP[1]), ("Session", session.as_str())];
    assert_eq!(
        world.ask_status(conn, Method::Setup, "rtsp://proxy:8554/cam/trackID=1", &headers),
        461,
        "RTSP-19"
    );
}

#[test]
fn sessions_of_others_are_454() {
    let mut world = World::with_camera();
    let udp = world.view("cam", "203.0.113.5:40000", UDP);
    let tcp = world.view("cam", "203.0.113.5:40001", TCP);
    let foreign = world.connect("203.0.113.66:40000");
    let same_host = world.connect("203.0.113.5:40002");
    let by = |world: &mut World, conn, viewer: &Viewer| {
        world.ask_status(conn, Method::GetParameter, URL, &[("Session", &viewer.session)])
    };
    assert_eq!(by(&mut world, foreign, &udp), 454, "RTSP-20");
    assert_eq!(by(&mut world, same_host, &udp), 200);
    assert_eq!(by(&mut world, same_host, &tcp), 454, "RTSP-21");
}

#[test]
fn a_mute_viewer_is_reaped_after_the_enforced_timeout() {
    let mut world = with(|config| {
        config.times.session_advertised = SECOND * 10;
        config.times.session_enforced = SECOND * 15;
    });
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    assert!(viewer.setups[0].headers.get("Session").unwrap().ends_with(";timeout=10"), "RTSP-22");
    world.sleep(SECOND * 14);
    assert_eq!(world.legs.len(), 1);
    world.sleep(SECOND * 2);
    assert!(world.legs.is_empty());
    assert!(world.leg_log.iter().any(|op| matches!(op, LegOp::Detach { bye: true, .. })), "RTP-24");
    assert!(world.closed.contains(&viewer.conn));
}

#[test]
fn every_sign_of_life_keeps_a_session() {
    let mut world = with(|config| {
        config.times.session_advertised = SECOND * 10;
        config.times.session_enforced = SECOND * 15;
    });
    let asks = world.view("cam", "203.0.113.5:40000", UDP);
    let _reports = world.view("cam", "203.0.113.6:40000", TCP);
    let leg = world.legs.values().find(|l| l.spec.peer.to_string() == "203.0.113.6:40000").unwrap().spec.leg;
    for _ in 0..10 {
        world.sleep(SECOND * 10);
        assert_eq!(world.in_session(&asks, Method::Options).status, Status::OK);
        world.event(Event::Report(Report::LegAlive { leg }));
    }
    assert_eq!(world.legs.len(), 2, "RTSP-23, case 10");
}

#[test]
fn a_setup_without_play_loses_its_lease() {
    let mut world = World::with_camera();
    world.prepare("cam", "203.0.113.5:40000", UDP);
    world.sleep(SECOND * 31);
    assert!(world.legs.is_empty(), "SEC-5");
    assert_eq!(world.control.session_count(), 0);
}

#[test]
fn keepalives_do_not_extend_the_lease() {
    let mut world = World::with_camera();
    let viewer = world.prepare("cam", "203.0.113.5:40000", UDP);
    for _ in 0..5 {
        world.sleep(SECOND * 5);
        assert_eq!(world.in_session(&viewer, Method::GetParameter).status, Status::OK);
    }
    world.sleep(SECOND * 6);
    assert_eq!(world.control.session_count(), 0, "SEC-5");
    assert!(world.legs.is_empty());
}

#[test]
fn a_udp_session_survives_the_loss_of_its_connection_for_ten_seconds() {
    let mut world = World::with_camera();
    let one = world.view("cam", "203.0.113.5:40000", UDP);
    let two = world.view("cam", "203.0.113.6:40000", UDP);
    world.hang_up(one.conn);
    world.hang_up(two.conn);
    world.sleep(SECOND * 9);
    assert_eq!(world.legs.len(), 2, "RTSP-21");
    let conn = world.connect("203.0.113.6:41000");
    assert_eq!(world.ask_status(conn, Method::GetParameter, URL, &[("Session", &two.session)]), 200);
    world.sleep(SECOND * 5);
    assert_eq!(world.legs.len(), 1, "the one that came back stays");
}

#[test]
fn an_interleaved_session_ends_with_its_connection() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", TCP);
    world.hang_up(viewer.conn);
    assert!(world.legs.is_empty());
}

#[test]
fn a_leg_that_failed_ends_its_session_and_no_other() {
    let mut world = World::with_camera();
    let stuck = world.view("cam", "203.0.113.5:40000", TCP);
    let healthy = world.view("cam", "203.0.113.6:40000", TCP);
    let leg = world.legs.values().find(|l| l.spec.peer.to_string() == "203.0.113.5:40000").unwrap().spec.leg;
    world.event(Event::Report(Report::LegFailed { leg, reason: LegFailure::StuckWriter }));
    assert!(world.closed.contains(&stuck.conn));
    assert_eq!(world.in_session(&healthy, Method::GetParameter).status, Status::OK);
}

#[test]
fn quotas_are_453_and_never_evict() {
    let mut world = with(|config| {
        config.limits.per_address =
            IdentityLimits { sessions: 3, legs: 5, setup_burst: 100, setup_per_second: 1 };
    });
    let first = world.view("cam", "203.0.113.5:40000", UDP);
    let second = world.view("cam", "203.0.113.5:40001", UDP);
    let conn = world.connect("203.0.113.5:40002");
    let setup = world.ask(conn, Method::Setup, TRACK, &[("Transport", UDP[0])]);
    let session = setup.headers.get("Session").unwrap().to_owned();
    let headers = [("Transport", UDP[1]), ("Session", session.as_str())];
    assert_eq!(
        world.ask_status(conn, Method::Setup, "rtsp://proxy:8554/cam/trackID=1", &headers),
        453,
        "legs"
    );
    assert_eq!(world.ask_status(conn, Method::Setup, TRACK, &[("Transport", UDP[0])]), 453, "sessions");
    for viewer in [&first, &second] {
        assert_eq!(world.in_session(viewer, Method::GetParameter).status, Status::OK);
    }
    world.view("cam", "203.0.113.6:40000", UDP);
    world.in_session(&first, Method::Teardown);
    assert_eq!(world.ask_status(conn, Method::Setup, TRACK, &[("Transport", UDP[0])]), 200, "room again");
}

#[test]
fn a_burst_of_setups_is_503_with_retry_after() {
    let mut world = with(|config| {
        config.limits.per_address =
            IdentityLimits { sessions: 100, legs: 100, setup_burst: 5, setup_per_second: 1 };
    });
    let conn = world.connect("203.0.113.5:40000");
    let codes: Vec<_> = (0..7)
        .map(|_| {
            let response = world.ask(conn, Method::Setup, TRACK, &[("Transport", TCP[0])]);
            (response.status.0, response.headers.get("Retry-After").is_some())
        })
        .collect();
    assert_eq!(codes[4..], [(200, false), (503, true), (503, true)]);
    world.sleep(SECOND);
    assert_eq!(world.ask_status(conn, Method::Setup, TRACK, &[("Transport", TCP[0])]), 200);
}

fn guarded() -> World {
    with(|config| {
        let credentials = Credentials::new("ann", "secret");
        config.users = vec![UserConfig { name: "cam".to_owned(), credentials }];
    })
}

#[test]
fn digest_is_asked_for_sha256_first_and_accepted() {
    let mut world = guarded();
    let conn = world.connect("203.0.113.5:40000");
    assert_eq!(world.ask_status(conn, Method::Options, URL, &[]), 200, "RTSP-9");
    let denied = world.ask(conn, Method::Describe, URL, &[]);
    assert_eq!(denied.status, Status::UNAUTHORIZED);
    let challenges: Vec<_> = denied.headers.get_all("WWW-Authenticate").collect();
    assert!(challenges[0].contains("SHA-256") && challenges.len() == 2, "RTSP-36");
    assert_eq!(world.camera().dials, 0, "nothing is opened for a stranger");
    let authorization = authorize(&denied, "ann", "secret", &Method::Describe, URL);
    assert_eq!(world.ask_status(conn, Method::Describe, URL, &[("Authorization", &authorization)]), 200);
    assert_eq!(world.ask_status(conn, Method::Setup, TRACK, &[("Transport", UDP[0])]), 401);
    let authorization = authorize(&denied, "ann", "secret", &Method::Setup, TRACK);
    let headers = [("Transport", UDP[0]), ("Authorization", authorization.as_str())];
    let setup = world.ask(conn, Method::Setup, TRACK, &headers);
    let session = setup.headers.get("Session").unwrap().to_owned();
    let authorization = authorize(&denied, "ann", "secret", &Method::Play, URL);
    let headers = [("Session", session.as_str()), ("Authorization", authorization.as_str())];
    assert_eq!(world.ask_status(conn, Method::Play, URL, &headers), 200);
    assert_eq!(world.ask_status(conn, Method::GetParameter, URL, &[("Session", &session)]), 200);
}

#[test]
fn wrong_credentials_are_answered_late_and_the_third_time_for_good() {
    let mut world = guarded();
    let conn = world.connect("203.0.113.5:40000");
    let denied = world.ask(conn, Method::Describe, URL, &[]);
    let authorization = authorize(&denied, "ann", "wrong", &Method::Describe, URL);
    for n in 1..=3 {
        world.send(conn, Method::Describe, URL, &[("Authorization", &authorization)]);
        assert!(world.replies[&conn].is_empty(), "SEC-13");
        world.sleep(SECOND);
        let (response, close) = world.replies.get_mut(&conn).unwrap().pop_front().unwrap();
        assert_eq!((response.status, close), (Status::UNAUTHORIZED, n == 3));
    }
    assert!(world.has_note("auth.failed"));
}

#[test]
fn guessing_is_cut_off_after_ten_failures_a_minute() {
    let mut world = guarded();
    let mut statuses = Vec::new();
    for n in 0..12 {
        let conn = world.connect(&format!("203.0.113.5:{}", 40000 + n));
        let denied = world.ask(conn, Method::Describe, URL, &[]);
        let authorization = authorize(&denied, "ann", "wrong", &Method::Describe, URL);
        world.send(conn, Method::Describe, URL, &[("Authorization", &authorization)]);
        world.sleep(SECOND);
        statuses.push(world.reply(conn).unwrap().status.0);
    }
    assert_eq!(statuses[9..], [401, 503, 503]);
}

/// A viewer of `cam` that plays with credentials: its session and its connection.
fn log_in(world: &mut World, peer: &str) -> (String, msm_graph::ConnId) {
    let conn = world.connect(peer);
    let denied = world.ask(conn, Method::Describe, URL, &[]);
    let mut session = String::new();
    for (method, uri) in [(Method::Describe, URL), (Method::Setup, TRACK), (Method::Play, URL)] {
        let authorization = authorize(&denied, "ann", "secret", &method, uri);
        let mut headers = vec![("Transport", UDP[0]), ("Authorization", authorization.as_str())];
        if !session.is_empty() {
            headers.push(("Session", &session));
        }
        let answer = world.ask(conn, method, uri, &headers);
        assert_eq!(answer.status, Status::OK);
        session =
            answer.headers.get("Session").map(|v| v.split(';').next().unwrap().to_owned()).unwrap_or(session);
    }
    (session, conn)
}

#[test]
fn a_guarded_session_is_not_taken_over_without_its_credentials() {
    let mut world = guarded();
    let (session, conn) = log_in(&mut world, "203.0.113.5:40000");
    world.hang_up(conn);
    let headers = [("Session", session.as_str())];
    for method in [Method::Pause, Method::GetParameter, Method::Teardown, Method::Play] {
        let stranger = world.connect("203.0.113.5:41000");
        world.ask(stranger, Method::Options, URL, &headers);
        assert_eq!(world.ask_status(stranger, method, URL, &headers), 401, "RTSP-20");
        world.hang_up(stranger);
    }
    assert_eq!(world.control.session_count(), 1);
    world.sleep(SECOND * 11);
    assert_eq!(world.control.session_count(), 0, "no stranger's request kept it");
}

#[test]
fn a_guarded_session_moves_to_a_connection_that_shows_its_credentials() {
    let mut world = guarded();
    let (session, conn) = log_in(&mut world, "203.0.113.5:40000");
    world.hang_up(conn);
    let conn = world.connect("203.0.113.5:41000");
    let headers = [("Session", session.as_str())];
    let denied = world.ask(conn, Method::GetParameter, URL, &headers);
    let authorization = authorize(&denied, "ann", "secret", &Method::GetParameter, URL);
    let headers = [("Session", session.as_str()), ("Authorization", authorization.as_str())];
    assert_eq!(world.ask_status(conn, Method::GetParameter, URL, &headers), 200);
    world.sleep(SECOND * 11);
    assert_eq!(world.control.session_count(), 1, "RTSP-21");
}

#[test]
fn a_guarded_name_is_not_published_by_strangers() {
    let mut world = with(|config| {
        let credentials = Credentials::new("ann", "secret");
        config.users = vec![UserConfig { name: "*".to_owned(), credentials }];
    });
    let conn = world.connect("203.0.113.9:40000");
    let sdp = "v=0\r\ns=-\r\nm=audio 0 RTP/AVP 0\r\na=control:streamid=0\r\n";
    world.send_body(conn, Method::Announce, "rtsp://proxy/x", &[("Content-Type", "application/sdp")], sdp);
    let denied = world.reply(conn).unwrap();
    assert_eq!(denied.status, Status::UNAUTHORIZED);
    let authorization = authorize(&denied, "ann", "secret", &Method::Announce, "rtsp://proxy/x");
    let headers = [("Content-Type", "application/sdp"), ("Authorization", authorization.as_str())];
    world.send_body(conn, Method::Announce, "rtsp://proxy/x", &headers, sdp);
    assert_eq!(world.reply(conn).unwrap().status, Status::OK);
}

#[test]
fn ten_thousand_port_scans_leave_nothing_behind() {
    let mut world = World::with_camera();
    for n in 0..10_000u32 {
        let conn = world.connect(&format!("203.0.113.{}:{}", n % 250, 1024 + n));
        if n % 2 == 0 {
            world.send(conn, Method::Options, "*", &[]);
        }
        world.hang_up(conn);
    }
    assert!(world.control.conns.is_empty() && world.control.sessions.is_empty(), "CP1");
    world.replies.clear();
    world.view("cam", "203.0.113.5:40000", UDP);
}

#[test]
fn a_client_that_leaves_while_the_camera_is_dialled_leaves_nothing() {
    let mut world = World::with_camera();
    world.camera().mute = true;
    let conn = world.connect("203.0.113.5:40000");
    world.send(conn, Method::Describe, URL, &[]);
    world.hang_up(conn);
    world.sleep(SECOND * 30);
    assert!(world.camera().open.is_empty());
    assert!(world.control.upstream_conns.is_empty());
}

#[test]
fn shutdown_says_bye_to_legs_and_teardown_to_cameras() {
    let mut world = World::with_camera();
    let viewers = [UDP, TCP].map(|transport| world.view("cam", "203.0.113.5:40000", transport));
    world.event(Event::Shutdown { drain: Duration::ZERO });
    world.sleep(Duration::ZERO);
    assert!(world.finished);
    let byes = world.leg_log.iter().filter(|op| matches!(op, LegOp::Detach { bye: true, .. })).count();
    assert_eq!((byes, world.camera().count(&Method::Teardown)), (2, 1), "RTP-24, case 24");
    assert!(viewers.iter().all(|viewer| world.closed.contains(&viewer.conn)));
}

#[test]
fn a_mute_camera_does_not_hold_up_the_shutdown() {
    let mut world = World::with_camera();
    world.view("cam", "203.0.113.5:40000", UDP);
    world.camera().mute = true;
    world.event(Event::Shutdown { drain: Duration::ZERO });
    world.sleep(Duration::from_millis(1600));
    assert!(world.finished, "gone within 2 s");
}

#[test]
fn a_drain_waits_for_the_legs_and_takes_no_new_ones() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    world.event(Event::Shutdown { drain: SECOND * 25 });
    world.sleep(SECOND * 5);
    assert!(!world.finished);
    let conn = world.connect("203.0.113.6:40000");
    assert_eq!(world.ask_status(conn, Method::Describe, URL, &[]), 503);
    assert_eq!(world.ask_status(conn, Method::Setup, TRACK, &[("Transport", UDP[0])]), 503);
    assert_eq!(world.in_session(&viewer, Method::Teardown).status, Status::OK);
    world.sleep(Duration::ZERO);
    assert!(world.finished, "no leg is left");
    assert_eq!(world.camera().count(&Method::Teardown), 1);
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    world.event(Event::Shutdown { drain: SECOND * 25 });
    world.sleep(SECOND * 20);
    world.in_session(&viewer, Method::GetParameter);
    assert!(!world.finished);
    world.sleep(SECOND * 5);
    assert!(world.finished);
}

#[test]
fn a_viewer_that_never_reads_answers_does_not_stop_the_machine() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.5:40000");
    world.stalled = true;
    for _ in 0..50 {
        world.send(conn, Method::Setup, TRACK, &[("Transport", UDP[0])]);
    }
    assert!(world.closed.contains(&conn), "RTSP-7");
    world.stalled = false;
    world.sleep(SECOND * 40);
    assert_eq!(world.control.session_count(), 0);
}
