//! What a worker does to others, and what it leaves behind.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use msm_control_plane::event::OpError;
use msm_graph::{Encap, InputRow, LegEncap, LegTrack, MediaKind, Row, TrackRow};

use super::command::COMMANDS;
use super::*;
use crate::user::udp::{self, BufferSizes};
use crate::user::{PlayerPair, WorkerConfig};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TRACK: TrackId = TrackId(0);

fn stream() -> StreamId {
    StreamId::new(1, [1; 10])
}

fn leg() -> LegId {
    LegId::new(2, [2; 10])
}

/// Worker `index` of two, and the queues of both.
fn worker(index: usize) -> (Rc<Shared>, [Commands; 2]) {
    let (first, first_queue) = WorkerHandle::new(0);
    let (second, second_queue) = WorkerHandle::new(1);
    let (rtp, rtcp) = udp::open_any_pair(V4, BufferSizes { receive: 1 << 16, send: 1 << 16 }, true).unwrap();
    let pair = PlayerPair {
        ports: PortPair { rtp: 0, rtcp: 0 },
        receive_buffer: 0,
        rtp: rtp.socket.into(),
        rtcp: rtcp.socket.into(),
    };
    let players = PlayerSockets { v4: Some(pair), v6: None };
    let (events, _) = mpsc::channel(1);
    let kernel = Err(UserReason::Capped);
    let workers = vec![first, second];
    let start = Start { index, kernel, core: None, players, workers, events, inherited: None };
    (Rc::new(Shared::new(start).0), [first_queue, second_queue])
}

fn fill(handle: &WorkerHandle, depth: usize) {
    for _ in 0..depth {
        handle.send(Command::Stop).unwrap();
    }
}

fn row(tracks: &[u8]) -> Row {
    let tracks = tracks.iter().map(|n| TrackRow {
        track: TrackId(*n),
        kind: MediaKind::Audio,
        codec: "PCMU".to_owned(),
        clock_rate: 8000,
        payload_types: vec![0],
    });
    let silence = Duration::from_secs(1);
    Row { stream: stream(), name: "cam".to_owned(), tracks: tracks.collect(), inputs: vec![], silence }
}

fn open_input(shared: &Rc<Shared>, track: TrackId, id: u64) -> Result<u16, OpError> {
    let bound = udp::open_any_pair(V4, WorkerConfig::default().buffers(), false).unwrap();
    let port = bound.0.socket.local_addr().unwrap().port();
    let encap = Encap::Udp { peer: V4, peer_rtp: None, peer_rtcp: None, local: V4 };
    let input = InputRow { track, encap, ssrc: None, feedback: false, generation: 1 };
    shared.apply(Step::OpenUdpInput { stream: stream(), input, pair: PairId(id), bound: Some(bound) })?;
    Ok(port)
}

fn udp_track(track: TrackId) -> LegTrack {
    let encap = LegEncap::Udp { rtp: (V4, 4000).into(), rtcp: (V4, 4001).into(), local: V4 };
    LegTrack { track, encap, feedback: false }
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test());
}

#[test]
fn errors_about_viewers_leave_half_of_the_queue_to_operations() {
    run(async || {
        let (shared, _queues) = worker(0);
        let gone = UdpSocket::bind((V4, 0)).unwrap().local_addr().unwrap();
        shared.note_peer(gone, PlayerPeer { worker: 1, stream: stream(), leg: leg(), track: TRACK }, false);
        let players = shared.players.v4.clone().unwrap();
        let told = || {
            let before = shared.workers[1].queue();
            // On loopback the error is there when the send returns.
            players.rtp.send_to(b"media", gone).unwrap();
            shared.take_errors();
            let after = shared.workers[1].queue();
            (after.0 - before.0, after.1 - before.1)
        };
        assert_eq!(told(), (1, 0));
        fill(&shared.workers[1], COMMANDS / 2 - 1);
        assert_eq!(told(), (0, 1), "refused and counted; it comes again with the next packet");
    });
}

#[test]
fn a_leg_that_cannot_be_announced_is_not_announced_by_half() {
    run(async || {
        let (shared, [mut first, _second]) = worker(1);
        shared.apply(Step::OpenStream(stream())).unwrap();
        shared.apply(Step::Describe(row(&[0]))).unwrap();
        // Room for one of the two addresses.
        fill(&shared.workers[0], COMMANDS - 1);
        let open = Step::OpenLegTrack { stream: stream(), leg: leg(), track: udp_track(TRACK), guest: None };
        assert!(matches!(shared.apply(open), Err(OpError::Exhausted(_))));
        let mut known = Vec::new();
        while shared.workers[0].queue().0 > 0 {
            if let Some(Command::PlayerPeer { addr, gone, .. }) = first.recv().await {
                known.retain(|other| *other != addr);
                known.extend((!gone).then_some(addr));
            }
        }
        assert_eq!(known, []);
    });
}

#[test]
fn the_address_of_a_leg_that_ends_is_taken_back_though_the_queue_is_full() {
    run(async || {
        let (shared, [mut first, _second]) = worker(1);
        let peer = PlayerPeer { worker: 1, stream: stream(), leg: leg(), track: TRACK };
        fill(&shared.workers[0], COMMANDS);
        shared.retract_peer((V4, 4000).into(), peer);
        let mut last = None;
        while shared.workers[0].queue().0 > 0 {
            last = first.recv().await;
        }
        assert!(matches!(last, Some(Command::PlayerPeer { gone: true, .. })), "{last:?}");
    });
}

#[test]
fn nothing_is_opened_for_a_track_that_the_stream_does_not_have() {
    run(async || {
        let (shared, _queues) = worker(0);
        shared.apply(Step::OpenStream(stream())).unwrap();
        shared.apply(Step::Describe(row(&[0]))).unwrap();
        assert!(matches!(open_input(&shared, TrackId(1), 1), Err(OpError::NotFound(_))));
        assert!(shared.pairs.borrow().is_empty());
        let open =
            Step::OpenLegTrack { stream: stream(), leg: leg(), track: udp_track(TrackId(1)), guest: None };
        assert!(matches!(shared.apply(open), Err(OpError::NotFound(_))));
        assert!(shared.peers.borrow().is_empty());
    });
}

#[test]
fn a_track_that_vanishes_from_the_description_gives_its_ports_back_and_keeps_its_legs() {
    run(async || {
        let (shared, _queues) = worker(0);
        shared.apply(Step::OpenStream(stream())).unwrap();
        shared.apply(Step::Describe(row(&[0, 1]))).unwrap();
        let port = open_input(&shared, TrackId(1), 1).unwrap();
        let open =
            Step::OpenLegTrack { stream: stream(), leg: leg(), track: udp_track(TrackId(1)), guest: None };
        shared.apply(open).unwrap();
        shared.apply(Step::Describe(row(&[0]))).unwrap();
        assert!(shared.pairs.borrow().is_empty());
        tokio::task::yield_now().await;
        UdpSocket::bind((V4, port)).expect("the port is free");
        assert_eq!(shared.peers.borrow().len(), 2, "the viewer is still known");
        shared.apply(Step::CloseLeg { stream: stream(), leg: leg(), bye: false }).unwrap();
        assert!(shared.peers.borrow().is_empty());
    });
}

#[test]
fn a_camera_address_that_another_stream_has_taken_over_stays_its() {
    run(async || {
        let (shared, _queues) = worker(0);
        let other = StreamId::new(9, [9; 10]);
        for id in [stream(), other] {
            shared.apply(Step::OpenStream(id)).unwrap();
            shared.apply(Step::Describe(Row { stream: id, ..row(&[0]) })).unwrap();
        }
        open_input(&shared, TRACK, 1).unwrap();
        let encap = Encap::Udp { peer: V4, peer_rtp: None, peer_rtcp: None, local: V4 };
        let input = InputRow { track: TRACK, encap, ssrc: None, feedback: false, generation: 1 };
        shared.apply(Step::OpenUdpInput { stream: other, input, pair: PairId(1), bound: None }).unwrap();
        shared.apply(Step::CloseInput { stream: stream(), track: TRACK }).unwrap();
        assert_eq!(shared.pairs.borrow().len(), 1);
        shared.apply(Step::CloseInput { stream: other, track: TRACK }).unwrap();
        assert!(shared.pairs.borrow().is_empty());
    });
}
