use std::time::Duration;

use msm_graph::{LegOp, Report, TrackId};
use msm_rtsp::message::{Method, Status};

use super::world::*;
use crate::config::{Config, PullConfig};
use crate::event::Event;

const SECOND: Duration = Duration::from_secs(1);

fn playing(viewers: usize) -> (World, Vec<Viewer>) {
    let mut world = World::with_camera();
    let viewers = (0..viewers)
        .map(|n| world.view("cam", &format!("203.0.113.{n}:4000"), if n % 2 == 0 { UDP } else { TCP }))
        .collect();
    (world, viewers)
}

#[test]
fn a_camera_that_restarts_is_reopened_and_no_leg_is_detached() {
    let (mut world, viewers) = playing(8);
    let stream = world.stream();
    let generation = world.rows[&stream].inputs[0].generation;
    world.kill_camera();
    assert!(world.rows[&stream].inputs.is_empty(), "the source is away");
    assert_eq!(world.control.streams()[0].state, "ended");
    world.sleep(SECOND * 30);
    assert!(world.camera().dials > 20, "backoff is at most 1 s");
    assert_eq!(world.notes.iter().filter(|note| note.event == "upstream.failed").count(), 1);
    world.camera().up = true;
    world.sleep(SECOND * 2);
    let row = &world.rows[&stream];
    assert_eq!(row.inputs.len(), 2);
    assert!(row.inputs.iter().all(|input| input.generation > generation), "RTP-6");
    assert_eq!(world.legs.len(), 8);
    assert!(world.legs.values().all(|leg| leg.gate == Gate::Active));
    assert!(!world.leg_log.iter().any(|op| matches!(op, LegOp::Detach { .. })));
    assert_eq!(world.camera().open.len(), 1);
    for viewer in &viewers {
        assert_eq!(world.in_session(viewer, Method::GetParameter).status, Status::OK);
    }
}

#[test]
fn a_camera_is_not_redialled_when_nobody_watches() {
    let (mut world, viewers) = playing(1);
    world.kill_camera();
    world.in_session(&viewers[0], Method::Teardown);
    world.sleep(SECOND * 10);
    let dials = world.camera().dials;
    world.sleep(SECOND * 60);
    assert_eq!(world.camera().dials, dials);
    assert!(world.rows.is_empty());
}

#[test]
fn a_camera_that_fell_silent_is_asked_and_reopened() {
    let (mut world, _viewers) = playing(2);
    let stream = world.stream();
    world.camera().mute = true;
    world.fall_silent(stream, 6);
    assert_eq!(world.camera().dials, 2, "no answer to the probe within 2 s");
    world.camera().mute = false;
    world.sleep(SECOND * 13);
    assert_eq!(world.rows[&stream].inputs.len(), 2);
    assert!(world.legs.values().all(|leg| leg.gate == Gate::Active));
}

#[test]
fn a_camera_that_answers_while_silent_is_given_ten_seconds() {
    let (mut world, _viewers) = playing(1);
    let stream = world.stream();
    world.fall_silent(stream, 9);
    assert_eq!(world.camera().dials, 1);
    world.fall_silent(stream, 12);
    assert_eq!(world.camera().dials, 2);
}

#[test]
fn a_session_that_the_camera_forgot_is_set_up_again_under_the_legs() {
    let (mut world, viewers) = playing(2);
    let stream = world.stream();
    world.camera().forget_session = true;
    for _ in 0..2 {
        world.sleep(SECOND * 16);
        world.event(Event::Report(Report::InputAlive { stream }));
    }
    let camera = world.camera();
    assert_eq!(
        (camera.dials, camera.count(&Method::Setup), camera.count(&Method::Play)),
        (1, 4, 2),
        "RTSP-24"
    );
    assert_eq!(world.legs.len(), 2);
    assert_eq!(world.in_session(&viewers[0], Method::GetParameter).status, Status::OK);
}

#[test]
fn the_first_session_id_is_kept() {
    let mut world = World::with_camera();
    world.camera().session = |n| Some(format!("{};timeout=60", 231_970 + 10 * n));
    world.view("cam", "203.0.113.5:40000", UDP);
    let play = world.camera().requests.iter().find(|r| r.method == Method::Play).unwrap().clone();
    assert_eq!(play.headers.get("Session"), Some("231970"), "RTSP-25, H264DVR");
}

#[test]
fn a_camera_without_session_id_plays() {
    let mut world = World::with_camera();
    world.camera().session = |_| None;
    world.view("cam", "203.0.113.5:40000", UDP);
    assert!(world.camera().requests.iter().all(|r| r.headers.get("Session").is_none()), "RTSP-25");
}

#[test]
fn a_dead_camera_is_502_and_the_failure_is_remembered_for_a_second() {
    let mut world = World::with_camera();
    world.camera().up = false;
    let conn = world.connect("203.0.113.5:40000");
    let url = "rtsp://proxy:8554/cam";
    assert_eq!(world.ask_status(conn, Method::Describe, url, &[]), 502);
    assert_eq!(world.ask_status(conn, Method::Describe, url, &[]), 502);
    assert_eq!(world.camera().dials, 1, "RTSP-28");
    world.sleep(SECOND * 2);
    world.camera().up = true;
    assert_eq!(world.ask_status(conn, Method::Describe, url, &[]), 200);
}

#[test]
fn an_unauthorised_pull_is_502_and_never_remembered() {
    let mut world = World::with_camera();
    world.camera().challenge = Some("Digest realm=\"Cam\", nonce=\"abc\"");
    let conn = world.connect("203.0.113.5:40000");
    for dials in 1..=3 {
        let response = world.ask(conn, Method::Describe, "rtsp://proxy:8554/cam", &[]);
        assert_eq!(response.status, Status::BAD_GATEWAY);
        assert!(response.headers.get("WWW-Authenticate").is_none());
        assert_eq!(world.camera().dials, dials, "CP8");
    }
}

#[test]
fn basic_in_clear_is_answered_only_where_the_pull_allows_it() {
    for basic in [false, true] {
        let mut pull = PullConfig::new("cam", "rtsp://admin:s3cret@192.0.2.10:8554/live");
        pull.basic |= basic;
        let mut world = World::new(Config { pulls: vec![pull], ..Config::default() });
        world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
        world.camera().challenge = Some("Basic realm=\"Cam\"");
        let conn = world.connect("203.0.113.5:40000");
        world.ask(conn, Method::Describe, "rtsp://proxy:8554/cam", &[]);
        let sent = world.camera().requests.iter().any(|r| r.headers.get("Authorization").is_some());
        assert_eq!(sent, basic, "RTSP-38");
        let hint = world.notes.iter().any(|note| {
            note.event == "upstream.failed"
                && note.fields.iter().any(|(_, text)| text.contains("pass --allow-basic cam"))
        });
        assert_eq!(hint, !basic, "{:?}", world.notes);
    }
}

#[test]
fn a_camera_that_changed_its_codec_ends_the_legs() {
    let (mut world, viewers) = playing(2);
    world.kill_camera();
    world.camera().sdp = CAMERA_SDP.replace("H264", "H265");
    world.camera().up = true;
    world.sleep(SECOND * 2);
    assert!(world.legs.is_empty());
    assert!(viewers.iter().all(|viewer| world.closed.contains(&viewer.conn)));
    world.view("cam", "203.0.113.50:4000", UDP);
}

#[test]
fn a_changed_description_has_a_higher_version() {
    let (mut world, _viewers) = playing(1);
    let version = |world: &World| -> u64 {
        let sdp = world.reply_log.iter().rfind(|r| !r.body.is_empty()).unwrap();
        let text = String::from_utf8_lossy(&sdp.body).into_owned();
        text.lines().find(|l| l.starts_with("o=")).unwrap().split(' ').nth(2).unwrap().parse().unwrap()
    };
    let before = version(&world);
    world.kill_camera();
    world.camera().sdp = CAMERA_SDP.replace("s=Live", "s=Night");
    world.camera().up = true;
    world.sleep(SECOND * 2);
    world.view("cam", "203.0.113.50:4000", UDP);
    assert_eq!(version(&world), before + 1, "SDP-1");
    assert_eq!(world.legs.len(), 2, "legs stay: the media are the same");
}

fn track_silent(world: &mut World, track: u8, seconds: u64, ever: bool) {
    let stream = world.stream();
    let silent_for = Duration::from_secs(seconds);
    world.event(Event::Report(Report::TrackSilent { stream, track: TrackId(track), silent_for, ever }));
}

#[test]
fn a_picture_that_never_comes_by_udp_is_asked_for_by_tcp_once() {
    let (mut world, viewers) = playing(2);
    track_silent(&mut world, 0, 3, false);
    world.sleep(SECOND);
    let asked = |world: &mut World| -> Vec<bool> {
        let setups = world.camera().requests.iter().filter(|request| request.method == Method::Setup);
        setups.map(|request| request.headers.get("Transport").unwrap().contains("TCP")).collect()
    };
    assert_eq!(asked(&mut world), [false, false, true, true], "RTSP-15");
    assert_eq!(world.control.streams()[0].source.transport, Some("tcp"));
    // A camera without picture has none by TCP either.
    track_silent(&mut world, 0, 30, false);
    world.sleep(SECOND);
    assert_eq!(world.camera().dials, 2);
    assert_eq!(world.control.streams()[0].silent_tracks, [TrackId(0)]);
    assert_eq!(world.legs.len(), 2);
    assert_eq!(world.in_session(&viewers[0], Method::GetParameter).status, Status::OK);
}

#[test]
fn a_track_that_stops_beside_another_is_told_and_not_acted_upon() {
    let (mut world, _viewers) = playing(1);
    for track in 0..2 {
        track_silent(&mut world, track, 9, true);
        assert!(world.control.streams()[0].silent_tracks.is_empty(), "a picture every ten seconds is one");
        track_silent(&mut world, track, 12, true);
        track_silent(&mut world, track, 15, true);
        assert_eq!(world.control.streams()[0].silent_tracks, [TrackId(track)]);
        assert_eq!(world.control.streams()[0].state, "active");
        let stream = world.stream();
        world.event(Event::Report(Report::InputActive { stream, track: TrackId(track) }));
        assert!(world.control.streams()[0].silent_tracks.is_empty());
    }
    let events = |world: &World, event| world.notes.iter().filter(|note| note.event == event).count();
    assert_eq!((events(&world, "track.silent"), events(&world, "track.active")), (2, 2));
    assert_eq!(world.camera().dials, 1, "cameras switch pictures off");
}

#[test]
fn a_sound_track_that_never_comes_reopens_nothing() {
    let (mut world, _viewers) = playing(1);
    track_silent(&mut world, 1, 30, false);
    world.sleep(SECOND);
    assert_eq!(world.camera().dials, 1);
    assert_eq!(world.control.streams()[0].silent_tracks, [TrackId(1)]);
}

#[test]
fn why_a_camera_is_not_there_is_said_until_it_is() {
    let mut world = World::with_camera();
    world.camera().up = false;
    let conn = world.connect("203.0.113.5:40000");
    world.ask_status(conn, Method::Describe, "rtsp://proxy:8554/cam", &[]);
    let error = world.control.streams()[0].error.clone().unwrap();
    assert!(error.starts_with("the camera cannot be reached: "), "{error}");
    world.sleep(SECOND * 2);
    assert!(world.control.streams()[0].error.is_some(), "nobody has tried again");
    world.camera().up = true;
    world.view("cam", "203.0.113.6:4000", UDP);
    assert_eq!(world.control.streams()[0].error, None);
    world.kill_camera();
    let error = world.control.streams()[0].error.clone();
    assert!(error.is_some_and(|error| error.starts_with("the camera c")), "{:?}", world.control.streams());
    world.camera().up = true;
    world.sleep(SECOND * 3);
    assert_eq!(world.control.streams()[0].error, None);
}
