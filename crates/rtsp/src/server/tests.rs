use super::*;

fn start() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant has no other constructor; only differences matter"
    )]
    Instant::now()
}

const TIMES: SessionTimes = SessionTimes {
    advertised: Duration::from_secs(55),
    enforced: Duration::from_secs(60),
    lease: Duration::from_secs(30),
};

fn session(role: Role, media: &[usize]) -> ServerSession {
    let mut session =
        ServerSession::new(start(), make_session_id([0xab; 16]), role, LowerTransport::Udp, 2, TIMES);
    for media in media {
        session.set_up(*media);
    }
    session
}

fn step(session: &mut ServerSession, method: Method, media: Option<usize>) -> Step {
    session.handle_request(start(), &Request::new(method, "rtsp://h/x"), media)
}

fn status(step: Step) -> u16 {
    match step {
        Step::Respond(response) => response.status.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ids_are_32_letters_and_digits() {
    assert_eq!(make_session_id([0xab; 16]), "ab".repeat(16));
    assert_eq!(make_session_id([0; 16]).len(), 32, "RTSP-20");
}

#[test]
fn the_header_tells_the_timeout() {
    assert!(session(Role::Play, &[0]).header().ends_with(";timeout=55"), "RTSP-22");
}

#[test]
fn a_viewer_goes_through_ready_and_playing() {
    let mut session = session(Role::Play, &[0, 1]);
    assert_eq!(status(step(&mut session, Method::Pause, None)), 200);
    assert_eq!(step(&mut session, Method::Play, None), Step::Start);
    session.started();
    assert_eq!(session.state(), State::Playing);
    assert_eq!(step(&mut session, Method::Play, None), Step::Start, "RTSP-26");
    assert_eq!(status(step(&mut session, Method::Setup, Some(0))), 455);
    assert_eq!(status(step(&mut session, Method::Record, None)), 455);
    assert_eq!(step(&mut session, Method::Pause, None), Step::Stop);
    session.stopped();
    assert_eq!(step(&mut session, Method::Setup, Some(0)), Step::SetUp(0));
    assert_eq!(step(&mut session, Method::Teardown, None), Step::End);
}

#[test]
fn a_publisher_records_when_every_media_is_set_up() {
    let mut session = session(Role::Record, &[0]);
    assert_eq!(status(step(&mut session, Method::Record, None)), 455);
    assert_eq!(status(step(&mut session, Method::Play, None)), 455);
    session.set_up(1);
    assert_eq!(step(&mut session, Method::Record, None), Step::Record);
    session.started();
    assert_eq!(session.state(), State::Recording);
    assert_eq!(step(&mut session, Method::Pause, None), Step::Stop);
}

#[test]
fn one_media_of_several_is_torn_down_alone() {
    let mut session = session(Role::Play, &[0, 1]);
    assert_eq!(status(step(&mut session, Method::Teardown, Some(7))), 404);
    assert_eq!(step(&mut session, Method::Teardown, Some(1)), Step::Remove(1));
    session.removed(1);
    assert_eq!(step(&mut session, Method::Teardown, Some(0)), Step::End);
}

#[test]
fn the_url_of_the_only_media_is_the_aggregate() {
    let mut one = session(Role::Play, &[1]);
    assert_eq!(step(&mut one, Method::Play, Some(1)), Step::Start, "RTSP-30");
    let mut two = session(Role::Play, &[0, 1]);
    assert_eq!(status(step(&mut two, Method::Play, Some(1))), 460);
}

#[test]
fn the_lease_is_shorter_until_the_first_play() {
    let mut session = session(Role::Play, &[0]);
    let begin = session.alive_at;
    assert_eq!(session.expires_at(), begin + TIMES.lease, "SEC-5");
    session.touch(begin + Duration::from_secs(5));
    assert_eq!(session.expires_at(), begin + TIMES.lease, "no request buys more time");
    session.alive_at = begin;
    session.started();
    session.stopped();
    assert_eq!(session.expires_at(), begin + TIMES.enforced);
    session.touch(begin + Duration::from_secs(10));
    session.touch(begin);
    assert_eq!(session.expires_at(), begin + Duration::from_secs(70));
}

#[test]
fn parameters_are_pings_without_a_body_and_451_with_one() {
    let mut request = Request::new(Method::GetParameter, "*");
    assert_eq!(parameter_answer(&request).status.0, 200);
    request.body = bytes::Bytes::from_static(b"\r\n");
    assert_eq!(parameter_answer(&request).status.0, 200);
    request.body = bytes::Bytes::from_static(b"position\r\n");
    assert_eq!(parameter_answer(&request).status.0, 451);
}

#[test]
fn option_tags_are_refused_by_name() {
    let request = Request::new(Method::Describe, "*").with("Require", "a, b").with("Proxy-Require", "c");
    let response = screen(&request).unwrap_err();
    assert_eq!((response.status.0, response.headers.get("Unsupported")), (551, Some("a, b, c")), "RTSP-10");
    assert!(screen(&Request::new(Method::Describe, "*").with("Require", " ")).is_ok());
}

#[test]
fn the_session_id_ends_at_its_parameters() {
    let request = Request::new(Method::Play, "*").with("Session", " abc ;timeout=60");
    assert_eq!(session_id(&request), Some("abc"));
}
