use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use msm_graph::{ConnId, MediaKind, TrackRow};

use super::*;

const CAMERA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

fn stream() -> StreamId {
    StreamId::new(1, [1; 10])
}

fn udp(track: u8, generation: u32, peer_rtp: Option<u16>) -> InputRow {
    InputRow {
        track: TrackId(track),
        encap: Encap::Udp { peer: CAMERA, peer_rtp, peer_rtcp: None, local: LOCAL },
        ssrc: None,
        feedback: false,
        generation,
    }
}

fn interleaved(track: u8, conn: u64) -> InputRow {
    InputRow {
        encap: Encap::Interleaved { conn: ConnId(conn), rtp: track * 2, rtcp: track * 2 + 1 },
        ..udp(track, 1, None)
    }
}

fn row(inputs: Vec<InputRow>) -> Row {
    let track = |n| TrackRow {
        track: TrackId(n),
        kind: MediaKind::Video,
        codec: "H264".to_owned(),
        clock_rate: 90_000,
        payload_types: vec![96],
    };
    Row {
        stream: stream(),
        name: "cam".to_owned(),
        tracks: vec![track(0), track(1)],
        inputs,
        silence: Duration::from_secs(1),
    }
}

fn leg_track(track: u8, port: u16) -> LegTrack {
    let at = |port| SocketAddr::new(CAMERA, port);
    LegTrack {
        track: TrackId(track),
        encap: LegEncap::Udp { rtp: at(port), rtcp: at(port + 1), local: LOCAL },
        feedback: false,
    }
}

fn spec(tracks: Vec<LegTrack>) -> LegSpec {
    LegSpec {
        leg: LegId::new(1, [2; 10]),
        stream: stream(),
        session: "abcdefgh".to_owned(),
        peer: SocketAddr::new(CAMERA, 4000),
        tracks,
    }
}

fn names(changes: &[FlowChange]) -> Vec<String> {
    changes
        .iter()
        .map(|change| match change {
            FlowChange::OpenStream { .. } => "open stream".to_owned(),
            FlowChange::Describe { .. } => "describe".to_owned(),
            FlowChange::OpenInput { input, .. } => format!("open input {}", input.track),
            FlowChange::RetargetInput { input, .. } => format!("retarget input {}", input.track),
            FlowChange::CloseInput { track, .. } => format!("close input {track}"),
            FlowChange::CloseStream { .. } => "close stream".to_owned(),
            FlowChange::OpenLeg { .. } => "open leg".to_owned(),
            FlowChange::OpenLegTrack { track, .. } => format!("open leg track {}", track.track),
            FlowChange::CloseLegTrack { track, .. } => format!("close leg track {}", track.track),
            FlowChange::ArmLeg { .. } => "arm".to_owned(),
            FlowChange::PauseLeg { .. } => "pause".to_owned(),
            FlowChange::CloseLeg { bye, .. } => format!("close leg, bye {bye}"),
        })
        .collect()
}

#[test]
fn rows_become_these_steps() {
    let table: &[(&str, Option<Row>, Row, &[&str])] = &[
        (
            "new stream",
            None,
            row(vec![udp(0, 1, None), interleaved(1, 7)]),
            &["open stream", "describe", "open input 0", "open input 1"],
        ),
        ("new stream whose source is away", None, row(vec![]), &["open stream", "describe"]),
        ("identical", Some(row(vec![udp(0, 1, None)])), row(vec![udp(0, 1, None)]), &[]),
        (
            "ports named",
            Some(row(vec![udp(0, 1, None)])),
            row(vec![udp(0, 1, Some(5000))]),
            &["retarget input 0"],
        ),
        (
            "source opened anew",
            Some(row(vec![udp(0, 1, Some(5000))])),
            row(vec![udp(0, 2, Some(5000))]),
            &["open input 0"],
        ),
        (
            "udp given up for interleaved",
            Some(row(vec![udp(0, 1, None), udp(1, 1, None)])),
            row(vec![interleaved(0, 7), interleaved(1, 7)]),
            &["open input 0", "open input 1"],
        ),
        (
            "same channels of another connection",
            Some(row(vec![interleaved(0, 7)])),
            row(vec![interleaved(0, 8)]),
            &["open input 0"],
        ),
        (
            "one track closed, one opened",
            Some(row(vec![udp(0, 1, None)])),
            row(vec![udp(1, 1, None)]),
            &["close input 0", "open input 1"],
        ),
        ("source away", Some(row(vec![udp(0, 1, None)])), row(vec![]), &["close input 0"]),
        ("described anew", Some(row(vec![])), Row { name: "other".to_owned(), ..row(vec![]) }, &["describe"]),
    ];
    for (name, known, desired, expected) in table {
        assert_eq!(names(&plan_row(known.as_ref(), desired)), *expected, "{name}");
    }
}

#[test]
fn a_row_without_inputs_removes_neither_stream_nor_legs() {
    let changes = plan_row(Some(&row(vec![udp(0, 1, None), udp(1, 1, None)])), &row(vec![]));
    assert!(changes.iter().all(|change| matches!(change, FlowChange::CloseInput { .. })), "{changes:?}");
}

#[test]
fn legs_become_these_steps() {
    let leg = spec(vec![]).leg;
    let both = spec(vec![leg_track(0, 4000), leg_track(1, 4002)]);
    let first = spec(vec![leg_track(0, 4000)]);
    let moved = spec(vec![leg_track(0, 5000), leg_track(1, 4002)]);
    let table: &[(&str, Option<&LegSpec>, LegOp, &[&str])] = &[
        ("attach", None, LegOp::Attach(both.clone()), &["open leg", "open leg track 0", "open leg track 1"]),
        ("attach again", Some(&both), LegOp::Attach(both.clone()), &[]),
        ("second setup", Some(&first), LegOp::Attach(both.clone()), &["open leg track 1"]),
        ("teardown of one media", Some(&both), LegOp::Attach(first.clone()), &["close leg track 1"]),
        (
            "setup of a playing media frees the first ports (RTSP-19)",
            Some(&both),
            LegOp::Attach(moved),
            &["close leg track 0", "open leg track 0"],
        ),
        ("arm", Some(&both), LegOp::Arm { leg, wait_millis: 5 }, &["arm"]),
        ("pause", Some(&both), LegOp::Pause { leg }, &["pause"]),
        ("detach", Some(&both), LegOp::Detach { leg, bye: true }, &["close leg, bye true"]),
        ("detach again", None, LegOp::Detach { leg, bye: true }, &[]),
    ];
    for (name, known, op, expected) in table {
        assert_eq!(names(&plan_leg(*known, op).unwrap()), *expected, "{name}");
    }
}

#[test]
fn an_operation_on_an_unknown_leg_is_refused() {
    let leg = spec(vec![]).leg;
    for op in [LegOp::Arm { leg, wait_millis: 0 }, LegOp::Pause { leg }] {
        assert!(matches!(plan_leg(None, &op), Err(OpError::NotFound(_))));
    }
}

#[test]
fn a_leg_never_changes_its_stream() {
    let known = spec(vec![]);
    let other = LegSpec { stream: StreamId::new(9, [9; 10]), ..known.clone() };
    assert!(matches!(plan_leg(Some(&known), &LegOp::Attach(other)), Err(OpError::NotFound(_))));
}

#[test]
fn everything_that_opens_can_be_undone() {
    let changes = plan_row(None, &row(vec![udp(0, 1, None)]));
    assert_eq!(names(&undo(&changes)), ["close input 0", "close stream"]);
    let changes = plan_leg(None, &LegOp::Attach(spec(vec![leg_track(0, 4000)]))).unwrap();
    assert_eq!(names(&undo(&changes)), ["close leg track 0", "close leg, bye false"]);
}

#[test]
fn a_track_that_was_to_be_replaced_comes_back_as_it_was() {
    // RTSP-19.
    let (first, moved) = (spec(vec![leg_track(0, 4000)]), spec(vec![leg_track(0, 5000)]));
    let changes = plan_leg(Some(&first), &LegOp::Attach(moved)).unwrap();
    let undone = undo(&changes);
    assert_eq!(names(&undone), ["close leg track 0", "open leg track 0"]);
    let leg = first.leg;
    assert_eq!(undone[1], FlowChange::OpenLegTrack { leg, track: leg_track(0, 4000) });
    // One that was to go stays away.
    let changes = plan_leg(Some(&first), &LegOp::Attach(spec(vec![]))).unwrap();
    assert_eq!(undo(&changes), []);
}

#[test]
fn connections_are_listed_once() {
    let changes = plan_row(None, &row(vec![interleaved(0, 7), interleaved(1, 7)]));
    assert_eq!(connections(&changes), [ConnId(7)]);
}
