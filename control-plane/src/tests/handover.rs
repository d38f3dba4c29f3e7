use std::time::Duration;

use msm_graph::LegOp;
use msm_handover::Anchor;
use msm_rtsp::message::{Method, Status};

use super::world::*;
use crate::config::{Config, PullConfig, UserConfig};
use crate::event::Event;
use crate::inventory::{Busy, PlaneInventory};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_session_lives_on_with_its_id_its_login_and_what_is_left_of_its_time() {
    let mut config = Config::default();
    let credentials = msm_rtsp::auth::Credentials::new("anna", "s3cret");
    config.users.push(UserConfig { name: "*".to_owned(), credentials });
    config.pulls.push(PullConfig::new("cam", "rtsp://192.0.2.10:8554/live"));
    let mut world = World::new(config);
    world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
    let conn = world.connect("203.0.113.5:40000");
    let url = "rtsp://proxy:8554/cam/trackID=0";
    let transport = ("Transport", UDP[0]);
    let refused = world.ask(conn, Method::Setup, url, &[transport]);
    assert_eq!(refused.status, Status::UNAUTHORIZED);
    let login = authorize(&refused, "anna", "s3cret", &Method::Setup, url);
    // The nonce was made by one program and is taken by the next.
    world.hand_over();
    let response = world.ask(conn, Method::Setup, url, &[transport, ("Authorization", &login)]);
    assert_eq!(response.status, Status::OK);
    let session = response.headers.get("Session").unwrap().split(';').next().unwrap().to_owned();
    world.sleep(SECOND * 20);
    world.hand_over();
    assert_eq!(world.ask_status(conn, Method::GetParameter, "*", &[("Session", &session)]), 200);
    world.sleep(SECOND * 11);
    assert!(world.legs.is_empty(), "30 s without PLAY, by either program's clock (SEC-5)");
}

#[test]
fn a_play_that_waits_for_its_first_packet_is_answered_by_the_next_program() {
    let mut world = World::with_camera();
    world.camera().udp_blocked = true;
    let viewer = world.prepare("cam", "203.0.113.5:40000", TCP);
    let cseq = world.send(viewer.conn, Method::Play, &viewer.url, &[("Session", &viewer.session)]);
    world.sleep(SECOND);
    let before = world.leg_log.len();
    world.hand_over();
    assert!(world.reply(viewer.conn).is_none());
    assert_eq!(world.leg_log.len(), before);
    let stream = world.stream();
    world.flow(stream);
    let response = world.reply(viewer.conn).unwrap();
    assert_eq!((response.cseq(), response.status), (Some(cseq), Status::OK));
    assert!(response.headers.get("RTP-Info").is_some());
    assert_eq!(world.camera().dials, 1);
}

#[test]
fn nothing_is_handed_over_while_the_packet_path_owes_an_answer_or_the_process_ends() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    let at = Anchor::new(world.now, 1 << 44);
    assert!(world.control.inventory(&at).is_ok());
    world.stalled = true;
    world.send(viewer.conn, Method::Teardown, &viewer.url, &[("Session", &viewer.session)]);
    assert_eq!(world.control.inventory(&at), Err(Busy::Operation));
    let mut world = World::with_camera();
    world.event(Event::Shutdown { drain: SECOND });
    assert_eq!(world.control.inventory(&at), Err(Busy::Ending));
}

#[test]
fn a_camera_that_was_configured_anew_is_dialled_anew_once_its_viewers_have_left() {
    let mut world = World::with_camera();
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    world.config.pulls = vec![PullConfig::new("cam", "rtsp://192.0.2.11:8554/other")];
    world.cameras.insert("192.0.2.11".to_owned(), Camera::default());
    world.hand_over();
    let second = world.view("cam", "203.0.113.6:40000", UDP);
    assert_eq!(
        (world.camera().dials, world.cameras["192.0.2.11"].dials),
        (1, 0),
        "one upstream, the old one"
    );
    for viewer in [viewer, second] {
        world.in_session(&viewer, Method::Teardown);
    }
    world.sleep(SECOND * 10);
    world.view("cam", "203.0.113.7:40000", UDP);
    assert_eq!((world.camera().dials, world.cameras["192.0.2.11"].dials), (1, 1));
    assert_eq!(world.leg_log.iter().filter(|op| matches!(op, LegOp::Detach { .. })).count(), 2);
}

#[test]
fn an_inventory_shows_no_secret_when_it_is_printed() {
    let pull = PullConfig::new("cam", "rtsp://admin:s3cret@192.0.2.10:8554/live");
    let mut world = World::new(Config { pulls: vec![pull], ..Config::default() });
    world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
    let viewer = world.view("cam", "203.0.113.5:40000", UDP);
    let inventory = world.control.inventory(&Anchor::new(world.now, 1 << 44)).unwrap();
    let shown = format!("{inventory:?}");
    assert!(!shown.contains("s3cret") && !shown.contains(&viewer.session), "{shown}");
    assert!(serde_json::to_string(&inventory).unwrap().contains("s3cret"), "the next program needs it");
}

#[test]
fn an_inventory_with_less_or_more_than_we_know_is_read_and_nonsense_is_refused() {
    let world = World::with_camera();
    let restore = |text: &str| {
        let read: PlaneInventory = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let at = Anchor::new(world.now, 1 << 44);
        let entropy = Box::new(world.entropy.clone());
        crate::ControlPlane::restore(world.config.clone(), entropy, read, &at, world.clock())
            .map_err(|error| error.to_string())
    };
    assert!(restore("{}").is_ok());
    assert!(restore(r#"{"last_token":7,"weather":{"wind":3}}"#).is_ok());
    for text in [r#"{"sessions":3}"#, r#"{"streams":[{"id":"x"}]}"#, "[1"] {
        assert!(restore(text).is_err(), "{text}");
    }
    // Sessions of streams and connections that are not there: harmless.
    let dangling = r#"{"arms":[[1,2,3]],"upstream_conns":[[9,"01890a5d-ac96-774b-bcce-b302099a8057"]]}"#;
    assert!(restore(dangling).is_ok());
}
