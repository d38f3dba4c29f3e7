use std::time::{Duration, Instant};

use super::*;
use crate::transport::{ChannelRange, PortRange, Profile};

const URL: &str = "rtsp://cam/live";

fn start() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant has no other constructor; only differences matter"
    )]
    Instant::now()
}

fn client(credentials: Option<Credentials>) -> Client {
    Client::new(ClientConfig {
        url: URL.to_owned(),
        agent: "test".to_owned(),
        credentials,
        basic: BasicPolicy::Refuse,
        cnonce: [1; 8],
        reply: Duration::from_secs(10),
    })
}

fn outputs(client: &mut Client) -> Vec<ClientOutput> {
    std::iter::from_fn(|| client.poll_output()).collect()
}

fn sent(client: &mut Client) -> Request {
    match outputs(client).pop() {
        Some(ClientOutput::Send(request)) => request,
        other => panic!("nothing was sent: {other:?}"),
    }
}

fn answer(request: &Request, status: Status) -> Response {
    Response::new(status).with("CSeq", request.cseq().unwrap().to_string())
}

/// A client whose two media are set up; the session header of each answer is given.
fn set_up(now: Instant, sessions: [Option<&str>; 2]) -> Client {
    let mut client = client(None);
    for (media, session) in sessions.into_iter().enumerate() {
        let asked = TransportSpec::tcp_request(
            Profile::Avp,
            ChannelRange::pair(media as u8 * 2, media as u8 * 2 + 1),
        );
        client.setup(now, media, format!("{URL}/{media}"), asked);
        let request = sent(&mut client);
        let mut response = answer(&request, Status::OK);
        if let Some(session) = session {
            response = response.with("Session", session);
        }
        client.handle_response(now, response);
        assert!(matches!(outputs(&mut client)[..], [ClientOutput::SetUp { .. }]));
    }
    client
}

#[test]
fn describe_follows_options_whatever_that_said() {
    for status in [Status::OK, Status::NOT_IMPLEMENTED, Status::NOT_FOUND] {
        let now = start();
        let mut client = client(None);
        client.describe(now);
        let options = sent(&mut client);
        assert_eq!(options.method, Method::Options);
        client.handle_response(now, answer(&options, status));
        let describe = sent(&mut client);
        assert_eq!(
            (describe.method.clone(), describe.headers.get("Accept")),
            (Method::Describe, Some("application/sdp"))
        );
        let response = answer(&describe, Status::OK).with("content-base", "rtsp://cam/live/");
        client.handle_response(now, response);
        let [ClientOutput::Described { content_base, .. }] = &outputs(&mut client)[..] else {
            panic!("no SDP")
        };
        assert_eq!(content_base.as_deref(), Some("rtsp://cam/live/"));
    }
}

#[test]
fn cseq_is_the_first_header() {
    let now = start();
    let mut client = client(Some(Credentials::new("u", "p")));
    client.describe(now);
    let options = sent(&mut client);
    let challenge =
        answer(&options, Status::UNAUTHORIZED).with("WWW-Authenticate", "Digest realm=\"r\", nonce=\"n\"");
    client.handle_response(now, challenge);
    let again = sent(&mut client);
    assert_eq!(again.headers.iter().next().unwrap().0, "CSeq", "RTSP-3");
    assert!(again.cseq() > options.cseq());
    assert!(again.headers.get("Authorization").unwrap().contains("username=\"u\""));
}

#[test]
fn refused_credentials_end_the_attempt() {
    let now = start();
    let mut client = client(Some(Credentials::new("u", "wrong")));
    client.describe(now);
    let options = sent(&mut client);
    client.handle_response(now, answer(&options, Status::OK));
    let mut tries = 0;
    loop {
        let request = match outputs(&mut client).pop() {
            Some(ClientOutput::Send(request)) => request,
            Some(ClientOutput::Failed(error)) => {
                assert_eq!(error, ClientError::Unauthorized(AuthFailure::Rejected));
                break;
            }
            other => panic!("{other:?}"),
        };
        tries += 1;
        assert!(tries < 10, "RTSP-38: it gives up");
        let nonce = format!("Digest realm=\"r\", nonce=\"n{tries}\"");
        client.handle_response(now, answer(&request, Status::UNAUTHORIZED).with("WWW-Authenticate", nonce));
    }
}

#[test]
fn a_challenge_without_credentials_is_unauthorised() {
    let now = start();
    let mut client = client(None);
    client.describe(now);
    let options = sent(&mut client);
    client.handle_response(now, answer(&options, Status::OK));
    let describe = sent(&mut client);
    let challenge =
        answer(&describe, Status::UNAUTHORIZED).with("WWW-Authenticate", "Digest realm=\"r\", nonce=\"n\"");
    client.handle_response(now, challenge);
    let error = ClientError::Unauthorized(AuthFailure::NoCredentials);
    assert_eq!(outputs(&mut client), [ClientOutput::Failed(error)]);
}

#[test]
fn replies_reach_the_request_of_their_number_only() {
    let now = start();
    let mut client = set_up(now, [Some("1;timeout=60"), None]);
    client.play(now);
    let play = sent(&mut client);
    client.probe(now);
    let keepalive = sent(&mut client);
    // Reordered.
    client.handle_response(now, answer(&keepalive, Status::OK));
    assert_eq!(outputs(&mut client), [ClientOutput::Alive]);
    client.handle_response(now, answer(&play, Status::OK));
    assert_eq!(outputs(&mut client), [ClientOutput::Playing { info: Vec::new() }]);
    // Doubled, invented.
    client.handle_response(now, answer(&play, Status::OK));
    client.handle_response(now, Response::new(Status::OK).with("CSeq", "4711"));
    client.handle_response(now, Response::new(Status::OK));
    assert!(outputs(&mut client).is_empty());
    assert_eq!(client.stray_replies(), 3, "CP15");
}

#[test]
fn a_late_reply_is_discarded() {
    let now = start();
    let mut client = client(None);
    client.describe(now);
    let options = sent(&mut client);
    client.handle_response(now, answer(&options, Status::OK));
    let describe = sent(&mut client);
    let late = now + Duration::from_secs(10);
    assert_eq!(client.poll_timeout(), Some(late));
    client.handle_timeout(late);
    assert_eq!(outputs(&mut client), [ClientOutput::Failed(ClientError::Timeout(Step::Describe))]);
    client.handle_response(late, answer(&describe, Status::OK));
    assert!(outputs(&mut client).is_empty(), "RTSP-6");
}

#[test]
fn a_provisional_reply_extends_the_deadline() {
    let now = start();
    let mut client = set_up(now, [Some("1"), None]);
    client.play(now);
    let play = sent(&mut client);
    let later = now + Duration::from_secs(8);
    client.handle_response(later, answer(&play, Status(100)));
    client.handle_timeout(now + Duration::from_secs(12));
    assert!(outputs(&mut client).is_empty());
    client.handle_response(later, answer(&play, Status::OK));
    assert!(matches!(outputs(&mut client)[..], [ClientOutput::Playing { .. }]));
}

#[test]
fn an_unanswered_keepalive_is_not_fatal() {
    let now = start();
    let mut client = set_up(now, [Some("1;timeout=30"), None]);
    let due = client.poll_timeout().unwrap();
    assert_eq!(due, now + Duration::from_secs(15), "RTSP-24");
    client.handle_timeout(due);
    let keepalive = sent(&mut client);
    assert_eq!((keepalive.method.clone(), keepalive.headers.get("Session")), (Method::Options, Some("1")));
    client.handle_timeout(due + Duration::from_secs(10));
    assert_eq!(outputs(&mut client), [ClientOutput::Unanswered]);
    client.handle_timeout(due + Duration::from_secs(15));
    assert_eq!(sent(&mut client).method, Method::Options);
}

#[test]
fn get_parameter_that_is_refused_becomes_options() {
    let now = start();
    let mut client = client(None);
    client.describe(now);
    let options = sent(&mut client);
    client.handle_response(now, answer(&options, Status::OK).with("Public", "OPTIONS, GET_PARAMETER"));
    let describe = sent(&mut client);
    client.handle_response(now, answer(&describe, Status::OK));
    outputs(&mut client);
    client.probe(now);
    let first = sent(&mut client);
    assert_eq!(first.method, Method::GetParameter);
    client.handle_response(now, answer(&first, Status::METHOD_NOT_ALLOWED));
    assert_eq!(outputs(&mut client), [ClientOutput::Alive], "GW4089IP");
    client.probe(now);
    assert_eq!(sent(&mut client).method, Method::Options);
}

#[test]
fn the_first_session_id_is_kept_and_the_last_timeout() {
    let now = start();
    let mut client = set_up(now, [Some("     708345999;timeout=60"), Some("999; timeout=20")]);
    client.play(now);
    let play = sent(&mut client);
    assert_eq!(play.headers.get("Session"), Some("708345999"), "RTSP-25");
    client.handle_response(now, answer(&play, Status::OK).with("Session", "708345999"));
    outputs(&mut client);
    assert_eq!(client.poll_timeout(), Some(now + Duration::from_secs(10)));
}

#[test]
fn timeout_zero_means_sixty() {
    let now = start();
    let client = set_up(now, [Some("1;timeout=0"), None]);
    assert_eq!(client.poll_timeout(), Some(now + Duration::from_secs(30)));
}

#[test]
fn a_lost_session_may_be_set_up_again() {
    let now = start();
    let mut client = set_up(now, [Some("1"), None]);
    client.probe(now);
    let keepalive = sent(&mut client);
    client.handle_response(now, answer(&keepalive, Status::SESSION_NOT_FOUND));
    assert_eq!(outputs(&mut client), [ClientOutput::SessionLost]);
    assert!(!client.has_session());
    let asked = TransportSpec::udp_request(Profile::Avp, PortRange::pair(8062, 8063));
    client.setup(now, 0, format!("{URL}/0"), asked);
    let setup = sent(&mut client);
    assert_eq!(setup.headers.get("Session"), None);
    let answered = answer(&setup, Status::OK)
        .with("Session", "2")
        .with("Transport", "RTP/AVP;unicast;client_port=8062-8063");
    client.handle_response(now, answered);
    let [ClientOutput::SetUp { agreed: Agreed::Udp { rtp: None, rtcp: None, .. }, .. }] =
        &outputs(&mut client)[..]
    else {
        panic!("no server_port is learned, not refused (RTSP-15)")
    };
    assert!(client.has_session());
}

#[test]
fn odd_ports_and_other_channels_are_accepted() {
    let now = start();
    for (asked, answered, wanted) in [
        (
            TransportSpec::udp_request(Profile::Avp, PortRange::pair(8062, 8063)),
            "RTP/AVP/UDP;unicast;client_port=8062-8063;server_port=41041-41042;ssrc= d6d6627",
            Agreed::Udp { rtp: Some(41041), rtcp: Some(41042), source: None, ssrc: Some(0x0d6d_6627) },
        ),
        (
            TransportSpec::tcp_request(Profile::Avp, ChannelRange::pair(2, 3)),
            "RTP/AVP/TCP;ssrc=22345684;interleaved=8-9",
            Agreed::Tcp { channels: ChannelRange::pair(8, 9), ssrc: Some(0x2234_5684) },
        ),
        (
            TransportSpec::tcp_request(Profile::Avp, ChannelRange::pair(2, 3)),
            "RTP/AVP/TCP;unicast;interleaved=4",
            Agreed::Tcp { channels: ChannelRange::pair(4, 5), ssrc: None },
        ),
    ] {
        let mut client = client(None);
        client.setup(now, 0, URL.to_owned(), asked);
        let setup = sent(&mut client);
        client.handle_response(now, answer(&setup, Status::OK).with("Transport", answered));
        assert_eq!(
            outputs(&mut client),
            [ClientOutput::SetUp { media: 0, agreed: wanted }],
            "RTSP-15, RTSP-17"
        );
    }
}

#[test]
fn another_lower_transport_than_asked_is_as_good_as_461() {
    let now = start();
    let mut client = client(None);
    client.setup(
        now,
        0,
        URL.to_owned(),
        TransportSpec::udp_request(Profile::Avp, PortRange::pair(8062, 8063)),
    );
    let setup = sent(&mut client);
    client.handle_response(now, answer(&setup, Status::OK).with("Transport", "RTP/AVP/TCP;interleaved=0-1"));
    let [ClientOutput::Failed(ClientError::Refused { status, .. })] = outputs(&mut client)[..] else {
        panic!()
    };
    assert_eq!(status, Status::UNSUPPORTED_TRANSPORT);
}

#[test]
fn teardown_ends_with_its_answer_its_deadline_or_at_once() {
    let now = start();
    let mut answered = set_up(now, [Some("1"), None]);
    answered.teardown(now);
    let teardown = sent(&mut answered);
    assert_eq!((teardown.method.clone(), teardown.uri.as_str()), (Method::Teardown, URL));
    answered.handle_response(now, answer(&teardown, Status::SESSION_NOT_FOUND));
    assert_eq!(outputs(&mut answered), [ClientOutput::TornDown]);

    let mut silent = set_up(now, [Some("1"), None]);
    silent.teardown(now);
    outputs(&mut silent);
    silent.handle_timeout(now + Duration::from_secs(10));
    assert_eq!(outputs(&mut silent), [ClientOutput::TornDown]);

    let mut never = client(None);
    never.teardown(now);
    assert_eq!(outputs(&mut never), [ClientOutput::TornDown]);
}
