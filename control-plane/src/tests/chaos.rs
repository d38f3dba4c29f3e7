//! Any order of requests, losses and pauses: every request of a connection that lives is answered once and
//! in order, and when all have left nothing is left.

use std::time::Duration;

use msm_graph::{ConnId, LegFailure, Report};
use msm_rtsp::message::Method;
use proptest::prelude::*;

use super::world::*;
use crate::event::Event;

#[derive(Debug, Clone)]
enum Deed {
    Connect,
    Ask { conn: usize, method: usize, uri: usize, session: usize, transport: usize },
    HangUp(usize),
    Sleep(u64),
    Kill,
    Revive,
    Mute(bool),
    Flow,
    Silence,
    FailLeg(usize),
}

const METHODS: [Method; 10] = [
    Method::Options,
    Method::Describe,
    Method::Announce,
    Method::Setup,
    Method::Setup,
    Method::Play,
    Method::Record,
    Method::Pause,
    Method::Teardown,
    Method::GetParameter,
];

const URIS: [&str; 8] = [
    "*",
    "rtsp://proxy/cam",
    "rtsp://proxy/cam/trackID=0",
    "rtsp://proxy/cam/trackID=1",
    "rtsp://proxy/pub",
    "rtsp://proxy/pub/streamid=0",
    "rtsp://proxy/pub/trackID=0",
    "/cam/trackID=9",
];

const TRANSPORTS: [&str; 5] = [
    "RTP/AVP;unicast;client_port=5000-5001",
    "RTP/AVP/TCP;unicast;interleaved=0-1",
    "RTP/AVP/TCP;unicast;interleaved=2-3;mode=record",
    "RTP/AVP;unicast;client_port=6000-6001;mode=record",
    "RTP/AVP;multicast",
];

const SDP: &str = "v=0\r\ns=-\r\nm=audio 0 RTP/AVP 0\r\na=control:streamid=0\r\n";

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let ask = (0..6usize, 0..METHODS.len(), 0..URIS.len(), 0..5usize, 0..TRANSPORTS.len()).prop_map(
        |(conn, method, uri, session, transport)| Deed::Ask { conn, method, uri, session, transport },
    );
    let deed = prop_oneof![
        3 => Just(Deed::Connect),
        20 => ask,
        2 => (0..6usize).prop_map(Deed::HangUp),
        4 => (1..9000u64).prop_map(Deed::Sleep),
        1 => Just(Deed::Kill),
        2 => Just(Deed::Revive),
        1 => any::<bool>().prop_map(Deed::Mute),
        1 => Just(Deed::Flow),
        1 => Just(Deed::Silence),
        1 => (0..4usize).prop_map(Deed::FailLeg),
    ];
    proptest::collection::vec(deed, 1..250)
}

/// Nth of what there is, or nothing.
fn pick<T: Clone>(of: &[T], n: usize) -> Option<T> {
    if of.is_empty() { None } else { of.get(n % of.len()).cloned() }
}

/// Everything that clients, cameras, the packet path and the operator saw. Before deeds that `swaps` names
/// another program takes over.
fn run(deeds: Vec<Deed>, swaps: &[bool]) -> [String; 6] {
    let mut world = World::with_camera();
    let mut conns: Vec<ConnId> = Vec::new();
    let mut sessions: Vec<String> = Vec::new();
    let mut peers = 0;
    for (index, deed) in deeds.into_iter().enumerate() {
        if swaps.get(index).copied().unwrap_or(false) {
            world.hand_over();
        }
        match deed {
            Deed::Connect if conns.len() < 6 => {
                peers += 1;
                conns.push(world.connect(&format!("203.0.113.{}:{}", peers % 3, 40000 + peers)));
            }
            Deed::Connect => {}
            Deed::Ask { conn, method, uri, session, transport } => {
                let Some(conn) = pick(&conns, conn) else { continue };
                if world.closed.contains(&conn) {
                    continue;
                }
                let session = (session > 0).then(|| pick(&sessions, session)).flatten();
                let mut headers = vec![];
                if METHODS[method] == Method::Setup {
                    headers.push(("Transport", TRANSPORTS[transport]));
                }
                if let Some(session) = &session {
                    headers.push(("Session", session.as_str()));
                }
                let body = if METHODS[method] == Method::Announce { SDP } else { "" };
                world.send_body(conn, METHODS[method].clone(), URIS[uri], &headers, body);
            }
            Deed::HangUp(n) => {
                if let Some(conn) = pick(&conns, n) {
                    conns.retain(|c| *c != conn);
                    world.hang_up(conn);
                }
            }
            Deed::Sleep(millis) => world.sleep(Duration::from_millis(millis)),
            Deed::Kill => world.kill_camera(),
            Deed::Revive => world.camera().up = true,
            Deed::Mute(mute) => world.camera().mute = mute,
            Deed::Flow => {
                let streams: Vec<_> =
                    world.rows.values().filter(|row| !row.inputs.is_empty()).map(|row| row.stream).collect();
                for stream in streams {
                    world.flow(stream);
                }
            }
            Deed::Silence => {
                let streams: Vec<_> = world.rows.keys().copied().collect();
                for stream in streams {
                    let silent_for = Duration::from_secs(12);
                    world.event(Event::Report(Report::InputSilent { stream, silent_for, ever: true }));
                }
            }
            Deed::FailLeg(n) => {
                let mut legs: Vec<_> = world.legs.keys().copied().collect();
                legs.sort_unstable();
                if let Some(leg) = pick(&legs, n) {
                    world.event(Event::Report(Report::LegFailed { leg, reason: LegFailure::StuckWriter }));
                }
            }
        }
        sessions.extend(world.reply_log.iter().rev().take(1).filter_map(|response| {
            let header = response.headers.get("Session")?;
            Some(header.split(';').next().unwrap_or_default().to_owned())
        }));
        let known: std::collections::BTreeSet<_> =
            world.control.sessions.values().filter(|s| s.leg_is_attached()).map(|s| s.leg).collect();
        assert!(world.legs.keys().all(|leg| known.contains(leg)), "a leg without a session");
        assert!(world.camera().open.len() <= 1, "one upstream session");
    }
    // Time for every deadline, then every living connection has its answers, once and in order.
    world.sleep(Duration::from_secs(12));
    for conn in &conns {
        let mut replies: Vec<u32> = Vec::new();
        while let Some(reply) = world.reply(*conn) {
            replies.push(reply.cseq().unwrap());
        }
        if !world.closed.contains(conn) {
            let sent = world.last_cseq.get(conn).copied().unwrap_or_default();
            assert_eq!(replies, (1..=sent).collect::<Vec<_>>(), "answers on {conn}");
        }
    }
    for conn in conns {
        world.hang_up(conn);
    }
    world.sleep(Duration::from_secs(120));
    assert!(world.legs.is_empty() && world.rows.is_empty(), "{:?} {:?}", world.legs, world.rows);
    assert!(world.camera().open.is_empty());
    let control = &world.control;
    assert!(control.sessions.is_empty() && control.session_ids.is_empty() && control.session_legs.is_empty());
    assert!(control.conns.is_empty() && control.operations.is_empty() && control.upstream_conns.is_empty());
    assert!(control.catalog.streams.values().all(|stream| stream.legs.is_empty() && stream.playing == 0));
    [
        format!("{:?}", world.reply_log),
        format!("{:?}", world.row_log),
        format!("{:?}", world.leg_log),
        format!("{:?}", world.camera().requests),
        format!("{:?} {:?}", world.closed, world.released),
        format!("{:?}", world.notes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_deeds_leaves_nothing_behind(deeds in deeds()) {
        run(deeds, &[]);
    }

    #[test]
    fn nobody_can_tell_that_another_program_took_over(
        deeds in deeds(),
        swaps in proptest::collection::vec(proptest::bool::weighted(0.2), 250),
    ) {
        let plain = run(deeds.clone(), &[]);
        for (handed, plain) in run(deeds, &swaps).into_iter().zip(plain) {
            prop_assert_eq!(handed, plain);
        }
    }
}
