use std::time::Duration;

use msm_graph::{ConnId, Encap, Report};
use msm_rtsp::message::{Method, Response, Status};

use super::world::*;
use crate::config::Config;
use crate::event::Event;

const SECOND: Duration = Duration::from_secs(1);
const URL: &str = "rtsp://proxy:8554/live/door";

const FFMPEG_SDP: &str = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=No Name\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n\
m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/44100/2\r\na=control:streamid=1\r\n";

struct Publisher {
    conn: ConnId,
    session: String,
    setups: Vec<Response>,
}

impl World {
    fn announce(&mut self, conn: ConnId, url: &str, sdp: &str) -> Response {
        self.send_body(conn, Method::Announce, url, &[("Content-Type", "application/sdp")], sdp);
        self.reply(conn).unwrap()
    }

    fn publish(&mut self, peer: &str, transport: [&str; 2]) -> Publisher {
        let conn = self.connect(peer);
        assert_eq!(self.announce(conn, URL, FFMPEG_SDP).status, Status::OK);
        let mut session = String::new();
        let mut setups = Vec::new();
        for (n, transport) in transport.iter().enumerate() {
            let transport = format!("{transport};mode=record");
            let mut headers = vec![("Transport", transport.as_str())];
            if n > 0 {
                headers.push(("Session", &session));
            }
            let response = self.ask(conn, Method::Setup, &format!("{URL}/streamid={n}"), &headers);
            assert_eq!(response.status, Status::OK);
            let id = response.headers.get("Session").unwrap().split(';').next().unwrap().to_owned();
            session = id;
            setups.push(response);
        }
        let publisher = Publisher { conn, session, setups };
        assert_eq!(self.ask_status(conn, Method::Record, URL, &[("Session", &publisher.session)]), 200);
        self.flow(self.stream());
        publisher
    }
}

fn empty() -> World {
    World::new(Config::default())
}

#[test]
fn a_publisher_over_udp_gets_the_ports_of_its_inputs() {
    let mut world = empty();
    let publisher = world.publish("203.0.113.9:40000", UDP);
    let transport = publisher.setups[0].headers.get("Transport").unwrap();
    assert!(transport.contains("server_port=8062-8063") && transport.contains("mode=record"), "{transport}");
    let row = &world.rows[&world.stream()];
    assert_eq!(row.name, "live/door");
    let Encap::Udp { peer, peer_rtp, peer_rtcp, .. } = &row.inputs[1].encap else { panic!("not UDP") };
    assert_eq!((peer.to_string().as_str(), *peer_rtp, *peer_rtcp), ("203.0.113.9", Some(5002), Some(5003)));
}

#[test]
fn what_is_published_is_played_over_both_transports() {
    for publish in [UDP, TCP] {
        let mut world = empty();
        world.publish("203.0.113.9:40000", publish);
        world.view("live/door", "203.0.113.5:40000", UDP);
        world.view("live/door", "203.0.113.6:40000", TCP);
        assert_eq!(world.legs.len(), 2, "case 17");
    }
}

#[test]
fn control_names_of_gstreamer_are_matched() {
    let mut world = empty();
    let conn = world.connect("203.0.113.9:40000");
    world.announce(conn, URL, &FFMPEG_SDP.replace("streamid", "stream"));
    let transport = ("Transport", "RTP/AVP/TCP;unicast;mode=record;interleaved=0-1");
    assert_eq!(world.ask_status(conn, Method::Setup, &format!("{URL}/stream=1"), &[transport]), 200);
    assert_eq!(world.rows[&world.stream()].inputs[0].track.0, 1);
}

#[test]
fn record_before_every_media_is_set_up_is_455() {
    let mut world = empty();
    let conn = world.connect("203.0.113.9:40000");
    world.announce(conn, URL, FFMPEG_SDP);
    let setup = world.ask(conn, Method::Setup, &format!("{URL}/streamid=0"), &[("Transport", TCP[0])]);
    let session = setup.headers.get("Session").unwrap().to_owned();
    let record = world.ask(conn, Method::Record, URL, &[("Session", &session)]);
    assert_eq!(record.status, Status::METHOD_NOT_VALID_IN_THIS_STATE);
    assert!(record.headers.get("Allow").unwrap().contains("SETUP"));
}

#[test]
fn a_second_publisher_is_refused_while_the_first_is_alive() {
    let mut world = empty();
    let first = world.publish("203.0.113.9:40000", UDP);
    let conn = world.connect("203.0.113.10:40000");
    assert_eq!(world.announce(conn, URL, FFMPEG_SDP).status, Status::FORBIDDEN);
    assert_eq!(world.ask_status(first.conn, Method::GetParameter, URL, &[("Session", &first.session)]), 200);
    assert_eq!(world.rows[&world.stream()].inputs.len(), 2);
}

#[test]
fn a_pulled_name_cannot_be_published() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.9:40000");
    let status = world.announce(conn, "rtsp://proxy:8554/cam", FFMPEG_SDP).status;
    assert_eq!(status, Status::FORBIDDEN);
}

#[test]
fn a_publisher_that_returns_resumes_its_stream() {
    for transport in [UDP, TCP] {
        let mut world = empty();
        let first = world.publish("203.0.113.9:40000", transport);
        let stream = world.stream();
        let viewer = world.view("live/door", "203.0.113.5:40000", UDP);
        let leg = *world.legs.keys().next().unwrap();
        let generation = world.rows[&stream].inputs[0].generation;
        world.hang_up(first.conn);
        assert_eq!(world.control.streams()[0].state, "ended");
        world.sleep(SECOND * 2);
        world.publish("203.0.113.9:40001", transport);
        assert_eq!(world.stream(), stream);
        assert!(world.rows[&stream].inputs[0].generation > generation);
        assert_eq!(world.legs[&leg].gate, Gate::Active, "the leg was never detached");
        assert_eq!(world.in_session(&viewer, Method::GetParameter).status, Status::OK);
        world.sleep(SECOND * 40);
        assert_eq!(world.rows[&stream].inputs.len(), 2, "the old session's end takes nothing away");
    }
}

#[test]
fn a_stream_without_publisher_and_legs_is_gone() {
    let mut world = empty();
    let publisher = world.publish("203.0.113.9:40000", TCP);
    world.hang_up(publisher.conn);
    assert!(world.rows.is_empty());
    let conn = world.connect("203.0.113.5:40000");
    assert_eq!(world.ask_status(conn, Method::Describe, URL, &[]), 404);
    assert!(world.control.streams().is_empty());
}

#[test]
fn a_stream_without_publisher_waits_for_it_while_it_has_legs() {
    let mut world = empty();
    let publisher = world.publish("203.0.113.9:40000", TCP);
    let viewer = world.view("live/door", "203.0.113.5:40000", UDP);
    assert_eq!(
        world.ask_status(publisher.conn, Method::Teardown, URL, &[("Session", &publisher.session)]),
        200
    );
    for _ in 0..20 {
        world.sleep(SECOND * 30);
        assert_eq!(world.in_session(&viewer, Method::GetParameter).status, Status::OK);
    }
    assert_eq!(world.legs.len(), 1);
    assert_eq!(world.control.streams()[0].state, "ended");
    world.in_session(&viewer, Method::Teardown);
    assert!(world.rows.is_empty());
}

#[test]
fn a_udp_publisher_lives_by_its_media_and_dies_without() {
    let mut world = empty();
    world.publish("203.0.113.9:40000", UDP);
    let stream = world.stream();
    for _ in 0..10 {
        world.sleep(SECOND * 20);
        world.event(Event::Report(Report::InputAlive { stream }));
    }
    assert_eq!(world.control.session_count(), 1, "ffmpeg sends neither keepalives nor RR (RTSP-23)");
    world.sleep(SECOND * 61);
    assert_eq!(world.control.session_count(), 0);
    assert!(world.rows.is_empty());
}

#[test]
fn a_silent_publisher_gives_way() {
    let mut world = empty();
    world.publish("203.0.113.9:40000", UDP);
    let stream = world.stream();
    world.fall_silent(stream, 6);
    world.publish("203.0.113.10:40000", UDP);
    let Encap::Udp { peer, .. } = &world.rows[&world.stream()].inputs[0].encap else { panic!("not UDP") };
    assert_eq!(peer.to_string(), "203.0.113.10");
}

#[test]
fn another_layout_ends_the_legs_that_it_cannot_feed() {
    let mut world = empty();
    let first = world.publish("203.0.113.9:40000", TCP);
    let viewer = world.view("live/door", "203.0.113.5:40000", UDP);
    world.hang_up(first.conn);
    let conn = world.connect("203.0.113.9:40001");
    let sdp = FFMPEG_SDP.replace("H264", "H265");
    assert_eq!(world.announce(conn, URL, &sdp).status, Status::OK);
    assert!(world.closed.contains(&viewer.conn), "RTP-24");
    let conn = world.connect("203.0.113.5:40001");
    assert_eq!(world.ask_status(conn, Method::Describe, URL, &[]), 200);
}

#[test]
fn an_announcement_without_setup_frees_its_name_with_the_connection() {
    let mut world = empty();
    let conn = world.connect("203.0.113.9:40000");
    assert_eq!(world.announce(conn, URL, FFMPEG_SDP).status, Status::OK);
    world.hang_up(conn);
    assert!(world.control.streams().is_empty());
}

#[test]
fn an_announcement_without_setup_frees_its_name_after_the_lease() {
    let mut world = empty();
    let idle = world.connect("203.0.113.9:40000");
    assert_eq!(world.announce(idle, URL, FFMPEG_SDP).status, Status::OK);
    world.sleep(SECOND * 20);
    let other = world.connect("203.0.113.10:40000");
    assert_eq!(world.announce(other, URL, FFMPEG_SDP).status, Status::FORBIDDEN);
    world.sleep(SECOND * 11);
    assert!(world.control.streams().is_empty(), "SEC-5");
    assert_eq!(world.announce(other, URL, FFMPEG_SDP).status, Status::OK);
}

#[test]
fn the_lease_of_an_announcement_ends_no_publisher_that_records() {
    let mut world = empty();
    world.publish("203.0.113.9:40000", TCP);
    let stream = world.stream();
    for _ in 0..40 {
        world.sleep(SECOND);
        world.event(Event::Report(Report::InputAlive { stream }));
    }
    assert_eq!(world.rows[&stream].inputs.len(), 2);
}

#[test]
fn a_publisher_that_returns_beside_its_half_open_connection_is_let_in_after_two_seconds() {
    for transport in [UDP, TCP] {
        let mut world = empty();
        let old = world.publish("203.0.113.9:40000", transport);
        let stream = world.stream();
        world.view("live/door", "203.0.113.5:40000", UDP);
        world.event(Event::Report(Report::InputAlive { stream }));
        let conn = world.connect("203.0.113.9:40001");
        let headers = [("Content-Type", "application/sdp")];
        world.send_body(conn, Method::Announce, URL, &headers, FFMPEG_SDP);
        world.sleep(Duration::from_millis(1900));
        assert!(world.reply(conn).is_none(), "neither let in nor refused yet");
        world.sleep(Duration::from_millis(200));
        assert_eq!(world.reply(conn).unwrap().status, Status::OK);
        assert!(world.closed.contains(&old.conn));
        assert_eq!((world.stream(), world.legs.len()), (stream, 1), "its viewers stay");
    }
}

#[test]
fn a_second_publisher_of_one_address_is_refused_while_the_first_sends() {
    let mut world = empty();
    world.publish("203.0.113.9:40000", TCP);
    let stream = world.stream();
    let conn = world.connect("203.0.113.9:40001");
    world.send_body(conn, Method::Announce, URL, &[("Content-Type", "application/sdp")], FFMPEG_SDP);
    for _ in 0..5 {
        world.sleep(SECOND);
        world.event(Event::Report(Report::InputAlive { stream }));
    }
    assert_eq!(world.reply(conn).unwrap().status, Status::FORBIDDEN);
    assert_eq!(world.rows[&stream].inputs.len(), 2);
}

#[test]
fn a_publisher_that_waits_for_its_name_gets_it_when_the_old_connection_ends() {
    let mut world = empty();
    let old = world.publish("203.0.113.9:40000", TCP);
    let conn = world.connect("203.0.113.9:40001");
    world.send_body(conn, Method::Announce, URL, &[("Content-Type", "application/sdp")], FFMPEG_SDP);
    assert!(world.reply(conn).is_none());
    world.hang_up(old.conn);
    assert_eq!(world.reply(conn).unwrap().status, Status::OK);
}

#[test]
fn a_publisher_that_gives_up_waiting_for_its_name_leaves_nothing() {
    let mut world = empty();
    let old = world.publish("203.0.113.9:40000", TCP);
    let conn = world.connect("203.0.113.9:40001");
    world.send_body(conn, Method::Announce, URL, &[("Content-Type", "application/sdp")], FFMPEG_SDP);
    world.hang_up(conn);
    world.hang_up(old.conn);
    world.sleep(SECOND * 5);
    assert!(world.control.streams().is_empty() && world.rows.is_empty());
}

#[test]
fn the_address_of_a_publisher_is_not_in_what_viewers_get() {
    let mut world = empty();
    let conn = world.connect("203.0.113.9:40000");
    let sdp = FFMPEG_SDP.replace("s=No Name", "s=203.0.113.9 at the door");
    assert_eq!(world.announce(conn, URL, &sdp).status, Status::OK);
    let viewer = world.connect("203.0.113.5:40000");
    let answer = world.ask(viewer, Method::Describe, URL, &[]);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.contains("s=-\r\n") && !text.contains("203.0.113.9"), "SDP-9: {text}");
}

#[test]
fn bad_announcements_get_their_status() {
    let mut world = empty();
    let conn = world.connect("203.0.113.9:40000");
    assert_eq!(world.announce(conn, URL, "<html>").status, Status::BAD_REQUEST);
    assert_eq!(world.announce(conn, URL, "v=0\r\ns=-\r\n").status, Status::UNSUPPORTED_MEDIA_TYPE);
    world.send_body(conn, Method::Announce, URL, &[("Content-Type", "text/html")], FFMPEG_SDP);
    assert_eq!(world.reply(conn).unwrap().status, Status::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(world.announce(conn, "*", FFMPEG_SDP).status, Status::NOT_FOUND);
    assert_eq!(world.announce(conn, URL, FFMPEG_SDP).status, Status::OK);
}

#[test]
fn a_refused_first_setup_does_not_hold_the_name() {
    let mut world = World::new(Config {
        limits: crate::config::Limits {
            per_address: crate::config::IdentityLimits {
                sessions: 9,
                legs: 0,
                setup_burst: 9,
                setup_per_second: 9,
            },
            ..crate::config::Limits::default()
        },
        ..Config::default()
    });
    let conn = world.connect("203.0.113.9:40000");
    world.announce(conn, URL, FFMPEG_SDP);
    let track = format!("{URL}/streamid=0");
    assert_eq!(world.ask_status(conn, Method::Setup, &track, &[("Transport", TCP[0])]), 453);
    world.hang_up(conn);
    assert!(world.control.streams().is_empty());
    assert_eq!(world.control.session_count(), 0);
}

#[test]
fn record_mode_without_an_announcement_is_455() {
    let mut world = World::with_camera();
    let conn = world.connect("203.0.113.9:40000");
    let headers = [("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1;mode=record")];
    assert_eq!(world.ask_status(conn, Method::Setup, "rtsp://proxy:8554/cam/trackID=0", &headers), 455);
}

#[test]
fn shutdown_closes_publishers_too() {
    let mut world = empty();
    let publisher = world.publish("203.0.113.9:40000", TCP);
    let viewer = world.view("live/door", "203.0.113.5:40000", UDP);
    world.event(Event::Shutdown { drain: Duration::ZERO });
    world.sleep(Duration::ZERO);
    assert!(world.finished);
    assert!(world.closed.contains(&publisher.conn) && world.closed.contains(&viewer.conn));
}
