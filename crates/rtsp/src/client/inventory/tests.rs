use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::auth::{BasicPolicy, ConnAuth, Credentials, FailureLimiter};
use crate::client::ClientOutput;
use crate::message::{Response, Status};
use crate::server::{Role, ServerSession, SessionTimes};
use crate::transport::{ChannelRange, ChannelTable, LowerTransport, Profile};
use crate::url::ResourceUrl;

#[derive(Debug, Clone)]
enum Deed {
    Describe,
    Setup,
    Play,
    Probe,
    Teardown,
    Answer { which: usize, status: usize, challenge: usize },
    Sleep(u64),
}

const CHALLENGES: [&str; 4] = [
    "Digest realm=\"cam\", nonce=\"a\", qop=\"auth\", opaque=\"o\"",
    "Digest realm=\"cam\", nonce=\"b\", algorithm=SHA-256, stale=true",
    "Basic realm=\"cam\"",
    "Negotiate",
];

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        2 => Just(Deed::Describe),
        2 => Just(Deed::Setup),
        2 => Just(Deed::Play),
        1 => Just(Deed::Probe),
        1 => Just(Deed::Teardown),
        12 => (0..4usize, 0..5usize, 0..4usize)
            .prop_map(|(which, status, challenge)| Deed::Answer { which, status, challenge }),
        4 => (0..20_000u64).prop_map(Deed::Sleep),
    ];
    proptest::collection::vec(deed, 1..80)
}

fn config() -> ClientConfig {
    ClientConfig {
        url: "rtsp://cam/live".to_owned(),
        agent: "test".to_owned(),
        credentials: Some(Credentials::new("admin", "s3cret")),
        basic: BasicPolicy::Allow,
        cnonce: [3; 8],
        reply: Duration::from_secs(10),
    }
}

fn run(start: Instant, deeds: &[Deed], swaps: &[bool]) -> Vec<String> {
    let at = Anchor::new(start, 1 << 40);
    let mut now = start;
    let mut client = Client::new(config());
    let mut sent: Vec<Request> = Vec::new();
    let mut seen = Vec::new();
    for (index, deed) in deeds.iter().enumerate() {
        if swaps.get(index).copied().unwrap_or(false) {
            let text = serde_json::to_string(&client.inventory(&at)).unwrap();
            assert!(!text.contains("s3cret"), "the route has the password");
            client = Client::restore(serde_json::from_str(&text).unwrap(), config(), &at).unwrap();
        }
        match deed {
            Deed::Describe => client.describe(now),
            Deed::Setup => {
                let asked = TransportSpec::tcp_request(Profile::Avp, ChannelRange::pair(0, 1));
                client.setup(now, 0, "rtsp://cam/live/0".to_owned(), asked);
            }
            Deed::Play => client.play(now),
            Deed::Probe => client.probe(now),
            Deed::Teardown => client.teardown(now),
            Deed::Answer { which, status, challenge } => {
                let Some(request) = sent.len().checked_sub(1 + which).and_then(|n| sent.get(n)) else {
                    continue;
                };
                let status = [200, 200, 401, 454, 100][*status];
                let response = Response::new(Status(status))
                    .with("CSeq", request.cseq().unwrap().to_string())
                    .with("Session", "cafe;timeout=20")
                    .with("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")
                    .with("Public", "OPTIONS, GET_PARAMETER")
                    .with("WWW-Authenticate", CHALLENGES[*challenge]);
                client.handle_response(now, response);
            }
            Deed::Sleep(millis) => {
                now += Duration::from_millis(*millis);
                client.handle_timeout(now);
            }
        }
        while let Some(output) = client.poll_output() {
            if let ClientOutput::Send(request) = &output {
                sent.push(request.clone());
            }
            seen.push(format!("{output:?}"));
        }
        let due = client.poll_timeout().map(|due| due.saturating_duration_since(now));
        seen.push(format!("{due:?} {} {}", client.has_session(), client.stray_replies()));
    }
    seen
}

#[expect(clippy::disallowed_methods, reason = "an Instant has no other constructor")]
fn start() -> Instant {
    Instant::now()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_camera_cannot_tell_that_its_client_was_handed_over(
        deeds in deeds(),
        swaps in proptest::collection::vec(any::<bool>(), 80),
    ) {
        let start = start();
        prop_assert_eq!(run(start, &deeds, &swaps), run(start, &deeds, &[]));
    }
}

#[test]
fn sessions_nonces_failures_channels_and_urls_are_as_they_were() {
    let (now, at) = (start(), Anchor::new(start(), 1 << 40));
    let times = SessionTimes {
        advertised: Duration::from_secs(55),
        enforced: Duration::from_secs(60),
        lease: Duration::from_secs(30),
    };
    let mut session = ServerSession::new(now, "abc".to_owned(), Role::Play, LowerTransport::Tcp, 0, times);
    session.set_up(1);
    session.started();
    session.touch(now + Duration::from_secs(3));
    let text = serde_json::to_string(&session.inventory(&at)).unwrap();
    let again = ServerSession::restore(serde_json::from_str(&text).unwrap(), times, &at).unwrap();
    assert_eq!(format!("{again:?}"), format!("{session:?}"));
    assert!(!format!("{:?}", session.inventory(&at)).contains("abc"), "the id is a secret");

    let mut limiter = FailureLimiter::new();
    for _ in 0..10 {
        limiter.record_failure(now, [203, 0, 113, 5].into(), "eve");
    }
    let text = serde_json::to_string(&limiter.inventory(&at)).unwrap();
    let again = FailureLimiter::restore(serde_json::from_str(&text).unwrap(), &at);
    assert_eq!(
        again.check(now, [203, 0, 113, 5].into(), "eve"),
        limiter.check(now, [203, 0, 113, 5].into(), "eve")
    );
    assert!(again.check(now, [203, 0, 113, 5].into(), "eve").is_err());

    let conn = ConnAuth::new();
    let text = serde_json::to_string(&conn.inventory(&at)).unwrap();
    let again = ConnAuth::restore(serde_json::from_str(&text).unwrap(), &at);
    assert_eq!(format!("{again:?}"), format!("{conn:?}"));

    let mut channels = ChannelTable::new();
    channels.allocate(None, 7u64);
    channels.allocate(Some(ChannelRange::pair(9, 8)), 8u64);
    let text = serde_json::to_string(&channels.inventory(|owner| *owner)).unwrap();
    let again: ChannelTable<u64> =
        ChannelTable::restore(serde_json::from_str(&text).unwrap(), |owner: u64| owner);
    assert!((0..=u8::MAX).all(|channel| again.owner(channel) == channels.owner(channel)));

    for url in ["rtsp://[2001:db8::1]:8554/a/b/trackID=3?x=%2f", "/cam", "rtsp://h/"] {
        let url = ResourceUrl::parse(url).unwrap();
        let text = serde_json::to_string(&url.inventory()).unwrap();
        assert_eq!(ResourceUrl::restore(serde_json::from_str(&text).unwrap()), Ok(url));
    }
}
