use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::message::{Method, Request, Response, Status};

/// What happens to a connection.
#[derive(Debug, Clone)]
enum Deed {
    Feed(Vec<u8>),
    Reply { close: bool },
    Ask,
    Rtp { channel: u8, head: bool, len: usize },
    Rtcp { channel: u8, len: usize },
    Hold(u8),
    Release(u8),
    Clear(u8),
    Session(bool),
    Write(usize),
    Sleep(u64),
    Stray,
    Close,
}

const PIECES: [&[u8]; 9] = [
    b"OPTIONS * RTSP/1.0\r\nCSeq: 7\r\n\r\n",
    b"ANNOUNCE rtsp://h/x RTSP/1.0\r\nCSeq: 8\r\nContent-Type: application/sdp\r\nContent-Length: 11\r\n\r\nv=0\r\ns=abcd",
    b"$\x00\x00\x05abcde",
    b"$\x01\x00\x00",
    b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 5\r\n\r\n",
    b"\r\n\r\n",
    b"OPTIONS * RTSP/1.0\r\nCSeq: x\r\n\r\n",
    b"PLAY rtsp://h/x RTSP/2.0\r\nCSeq: 9\r\n\r\n",
    b"\x00garbage",
];

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    // Garbage ends a connection: rarely.
    let piece = prop_oneof![40 => 0..8usize, 1 => Just(8usize)];
    let feed = (piece, 0..120usize, 0..120usize).prop_map(|(piece, from, to)| {
        let piece = PIECES[piece];
        // Mostly whole, often cut in two that come one after the other.
        let (from, to) = (from.min(piece.len()), to.min(piece.len()));
        if from < to { vec![piece[..from].to_vec(), piece[from..].to_vec()] } else { vec![piece.to_vec()] }
    });
    let feed = feed.prop_map(|parts| parts.into_iter().map(Deed::Feed).collect::<Vec<_>>());
    let one = prop_oneof![
        4 => Just(Deed::Reply { close: false }),
        1 => Just(Deed::Ask),
        6 => (0..4u8, any::<bool>(), 0..900usize).prop_map(|(channel, head, len)| Deed::Rtp { channel, head, len }),
        2 => (0..4u8, 0..200usize).prop_map(|(channel, len)| Deed::Rtcp { channel, len }),
        1 => (0..4u8).prop_map(Deed::Hold),
        1 => (0..4u8).prop_map(Deed::Release),
        1 => (0..4u8).prop_map(Deed::Clear),
        1 => any::<bool>().prop_map(Deed::Session),
        8 => (0..2500usize).prop_map(Deed::Write),
        3 => (0..700u64).prop_map(Deed::Sleep),
        1 => Just(Deed::Stray),
    ]
    .prop_map(|deed| vec![deed]);
    let rare = prop_oneof![
        30 => feed,
        60 => one,
        1 => prop_oneof![Just(Deed::Reply { close: true }), Just(Deed::Close)].prop_map(|deed| vec![deed]),
    ];
    proptest::collection::vec(rare, 1..120).prop_map(|deeds| deeds.into_iter().flatten().collect())
}

fn limits() -> ConnLimits {
    ConnLimits { rtp_bytes: 4000, rtcp_bytes: 500, ..ConnLimits::default() }
}

/// Through text and back, as between two processes.
fn hand_over(conn: &Conn, at: &Anchor) -> Conn {
    let text = serde_json::to_string(&conn.inventory(at)).unwrap();
    let read: ConnInventory = serde_json::from_str(&text).unwrap();
    let next = Conn::restore(read, limits(), at).unwrap();
    assert_eq!(next.inventory(at), conn.inventory(at));
    next
}

/// Everything that can be seen of a connection while `deeds` are done to it. Before those that `swaps`
/// names it is handed over.
fn run(role: Role, start: Instant, deeds: &[Deed], swaps: &[bool]) -> Vec<String> {
    let at = Anchor::new(start, 5_000_000_000);
    let mut now = start;
    let mut conn = Conn::new(role, limits(), now);
    let mut asked = std::collections::VecDeque::new();
    let mut seen = Vec::new();
    for (index, deed) in deeds.iter().enumerate() {
        if swaps.get(index).copied().unwrap_or(false) {
            conn = hand_over(&conn, &at);
        }
        match deed {
            Deed::Feed(bytes) if conn.wants_read() => conn.handle_bytes(now, bytes),
            Deed::Feed(_) => {}
            Deed::Reply { close } => {
                let mut response = Response::new(Status::OK);
                if let Some(cseq) = asked.pop_front().flatten() {
                    response = response.with("CSeq", format!("{cseq}"));
                }
                seen.push(format!("{:?}", conn.push_response(response, *close, now)));
            }
            Deed::Ask => conn.push_request(&Request::new(Method::Options, "*").with("CSeq", "4"), now),
            Deed::Rtp { channel, head, len } => {
                let head: &[u8] = if *head { &[0x80; 12] } else { &[] };
                let tail = Bytes::from(vec![index as u8; *len]);
                seen.push(format!("{:?}", conn.push_rtp(*channel, head, tail, now)));
            }
            Deed::Rtcp { channel, len } => {
                let compound = Bytes::from(vec![index as u8; *len]);
                seen.push(format!("{:?}", conn.push_rtcp(*channel, compound, now)));
            }
            Deed::Hold(channel) => conn.hold_media(&[*channel]),
            Deed::Release(channel) => conn.release_media(&[*channel], now),
            Deed::Clear(channel) => conn.clear_media(&[*channel]),
            Deed::Session(exists) => conn.set_session(*exists, now),
            Deed::Write(most) => {
                let mut slices = [IoSlice::new(&[]); 9];
                let count = conn.poll_transmit(now, &mut slices);
                let bytes: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
                let written = bytes.len().min(*most);
                seen.push(format!("{:?}", &bytes[..written]));
                conn.advance(written, now);
            }
            Deed::Sleep(millis) => now += Duration::from_millis(*millis),
            Deed::Stray => seen.push(format!("{}", conn.count_stray_frame())),
            Deed::Close => conn.close(now),
        }
        while let Some(event) = conn.poll_event(now) {
            if let super::super::ConnEvent::Request(request) = &event {
                asked.push_back(request.cseq());
            }
            seen.push(format!("{event:?}"));
        }
        let due = conn.poll_timeout().map(|due| due.saturating_duration_since(now));
        let ends = (conn.is_finished(), conn.handle_timeout(now), due, conn.rtp_depth());
        seen.push(format!("{ends:?} {:?}", conn.counters()));
    }
    seen
}

#[expect(clippy::disallowed_methods, reason = "an Instant has no other constructor")]
fn start() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_can_tell_that_a_connection_was_handed_over(
        deeds in deeds(),
        swaps in proptest::collection::vec(any::<bool>(), 120),
        client in any::<bool>(),
    ) {
        let (role, start) = (if client { Role::Client } else { Role::Server }, start());
        prop_assert_eq!(run(role, start, &deeds, &swaps), run(role, start, &deeds, &[]));
    }
}

#[test]
fn an_inventory_of_another_time_is_read_and_a_contradiction_is_an_error() {
    let at = Anchor::new(start(), 1 << 40);
    let read: ConnInventory =
        serde_json::from_str(r#"{"client":false,"session":true,"colour":"red","hold":[2]}"#).unwrap();
    let conn = Conn::restore(read, ConnLimits::default(), &at).unwrap();
    assert!(conn.wants_read() && !conn.wants_write());
    for text in [
        r#"{"partial":{"written":9,"message":"QUJD"}}"#,
        r#"{"partial":{"written":0}}"#,
        r#"{"demux":{"failed":{"rule":"no such rule"}}}"#,
    ] {
        let read: ConnInventory = serde_json::from_str(text).unwrap();
        assert!(Conn::restore(read, ConnLimits::default(), &at).is_err(), "{text}");
    }
}
