use std::time::Duration;

use msm_control_plane::status::{SourceStatus, StreamStatus};
use msm_graph::{LegId, TrackId};

use super::*;
use crate::stats::TrackStats;

fn status(name: &str, stream: Option<StreamId>) -> StreamStatus {
    let peer = Some("192.168.1.64:554".parse().unwrap());
    let source = SourceStatus { kind: "pull", transport: Some("udp"), peer };
    StreamStatus {
        stream,
        name: name.to_owned(),
        state: "active",
        error: None,
        source,
        silent_tracks: Vec::new(),
        sessions: Vec::new(),
    }
}

fn leg(n: u8, lost: Option<u64>) -> LegStats {
    LegStats {
        leg: LegId::new(1, [n; 10]),
        session: "0123abcd".to_owned(),
        peer: format!("10.0.0.{n}:4000").parse().unwrap(),
        transport: "tcp",
        rung: Rung::User,
        rung_reason: Some(UserReason::Transport("interleaved TCP")),
        state: "active",
        packets: 7,
        bytes: 8_400,
        lost,
        jitter: lost.map(|_| Duration::from_micros(1_500)),
        rtt: Some(Duration::from_millis(3)),
        last_report: None,
        dropped: vec![("queue_full", 2)],
    }
}

fn snapshot(stream: StreamId, legs: u8) -> Snapshot {
    let track = TrackStats {
        track: TrackId(0),
        codec: "H264".to_owned(),
        clock_rate: 90_000,
        packets: 100,
        bytes: 120_000,
        lost: 1,
        reordered: 2,
        duplicate: 3,
        jitter: Duration::from_micros(800),
        transport: Some("udp"),
        peer: None,
        last_packet: None,
        ssrc: Some(0xdead_beef),
    };
    let stats = StreamStats {
        stream,
        name: "door".to_owned(),
        worker: 0,
        tracks: vec![track],
        legs: (1..=legs).map(|n| leg(n, (n == 1).then_some(4))).collect(),
        out_packets: 50,
        out_bytes: 60_000,
        source_switches: 0,
    };
    Snapshot { streams: vec![stats], ..Snapshot::default() }
}

#[test]
fn the_document_has_exactly_the_stated_shape() {
    let id = StreamId::new(1, [1; 10]);
    let document = streams(
        &[status("door", Some(id)), status("attic", None)],
        &snapshot(id, 2),
        &Err(UserReason::Capped),
        &[FormerViewer { to: "10.0.0.9:5004".parse().unwrap(), packets: 70, bytes: 9_000 }],
    );
    let json: serde_json::Value = serde_json::to_value(&document).unwrap();
    let source = serde_json::json!({"kind": "pull", "transport": "udp", "peer": "192.168.1.64:554"});
    let want = serde_json::json!({"streams": [
        {"name": "attic", "state": "active", "source": source, "tracks": [], "legs": []},
        {"name": "door", "state": "active", "source": source,
         "tracks": [{"codec": "H264", "clock_rate": 90000, "packets": 100, "bytes": 120_000, "lost": 1,
                     "jitter_seconds": 0.0008}],
         "legs": [
            {"peer": "10.0.0.1:4000", "transport": "tcp", "rung": "user",
             "rung_reason": "interleaved TCP needs the worker", "state": "active", "packets": 7,
             "bytes": 8400, "lost": 4, "jitter_seconds": 0.0015, "dropped": {"queue_full": 2}},
            {"peer": "10.0.0.2:4000", "transport": "tcp", "rung": "user",
             "rung_reason": "interleaved TCP needs the worker", "state": "active", "packets": 7,
             "bytes": 8400, "lost": null, "jitter_seconds": null, "dropped": {"queue_full": 2}}]}],
        "kernel": {"on": false, "reason": "--max-rung user", "interfaces": [],
                   "former_viewers": [{"to": "10.0.0.9:5004", "packets": 70, "bytes": 9000}]}});
    assert_eq!(json, want);
}

#[test]
fn what_is_wrong_is_said_and_otherwise_absent() {
    let id = StreamId::new(1, [1; 10]);
    let mut wrong = status("door", Some(id));
    wrong.error = Some("the camera cannot be reached: Connection refused".to_owned());
    wrong.silent_tracks = vec![TrackId(0)];
    let json =
        serde_json::to_value(streams(&[wrong], &snapshot(id, 0), &Err(UserReason::Capped), &[])).unwrap();
    assert_eq!(json["streams"][0]["error"], "the camera cannot be reached: Connection refused");
    assert_eq!(json["streams"][0]["tracks"][0]["silent"], true);
}

#[test]
fn neither_addresses_nor_session_ids_nor_ssrcs_reach_the_metrics() {
    let id = StreamId::new(1, [1; 10]);
    let text = format!("{:?}", sample(&[status("door", Some(id))], 1, &snapshot(id, 2)).streams);
    for secret in ["10.0.0.1", "192.168.1.64", "0123abcd", "3735928559"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[test]
fn a_sample_adds_up_tracks_and_counts_legs_by_transport() {
    let id = StreamId::new(1, [1; 10]);
    let sample = sample(&[status("door", Some(id))], 3, &snapshot(id, 2));
    let stream = &sample.streams[0];
    assert_eq!((stream.received.packets, stream.received.lost), (100, 1));
    assert_eq!((stream.sent.packets, stream.sent.bytes), (50, 60_000));
    assert_eq!(stream.legs, [("user", "tcp", 2)]);
    assert_eq!(stream.round_trip, Some(Duration::from_millis(3)));
    assert_eq!(sample.sessions, 3);
    assert!(sample.threads.iter().any(|(thread, _)| thread == "control"));
}
