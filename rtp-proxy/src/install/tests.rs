//! Operations against workers that this test plays: full, late, failing.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use msm_graph::{LegTrack, MediaKind, TrackRow};

use super::*;
use crate::user::worker::Commands;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TRACK: TrackId = TrackId(0);

/// An executor and the queue of its only worker.
struct Scene {
    installer: Installer,
    handle: WorkerHandle,
    commands: Commands,
    _events: mpsc::Receiver<UserEvent>,
}

impl Scene {
    fn new(config: WorkerConfig) -> Self {
        let (handle, commands) = WorkerHandle::new(0);
        let (events, receiver) = mpsc::channel(8);
        let installer = Installer::new(vec![handle.clone()], config, events);
        Self { installer, handle, commands, _events: receiver }
    }

    /// Queues what any thread may queue until there is no room.
    fn fill(&self) {
        let snapshot = || Command::Snapshot(oneshot::channel().0);
        while self.handle.send(snapshot()).is_ok() {}
    }

    /// Takes what is queued; steps are answered with `result`.
    async fn work(&mut self, result: Result<(), OpError>) -> Vec<String> {
        let mut done = Vec::new();
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command.unwrap() {
                    Command::Apply { steps, answer } => {
                        done.extend(steps.iter().map(name));
                        let _ = answer.send(result.clone());
                    }
                    Command::LegStates { answer, .. } => { let _ = answer.send(Vec::new()); }
                    Command::Arm { .. } => done.push("arm".to_owned()),
                    _ => {}
                },
                () = std::future::ready(()) => return done,
            }
        }
    }

    async fn row(&mut self, inputs: Vec<InputRow>) {
        let done = self.installer.submit_row(RowOp::Upsert(Epoch(1), row(inputs)));
        self.work(Ok(())).await;
        done.await.unwrap();
    }

    async fn leg(&mut self, port: u16) {
        let done = self.installer.submit_leg(LegOp::Attach(spec(port)));
        self.work(Ok(())).await;
        done.await.unwrap();
    }
}

fn name(step: &Step) -> String {
    match step {
        Step::OpenStream(_) => "open stream".to_owned(),
        Step::Describe(_) => "describe".to_owned(),
        Step::OpenUdpInput { .. } | Step::OpenChannelInput { .. } => "open input".to_owned(),
        Step::RetargetInput { .. } => "retarget input".to_owned(),
        Step::CloseInput { .. } => "close input".to_owned(),
        Step::CloseStream(_) => "close stream".to_owned(),
        Step::OpenLeg(_) => "open leg".to_owned(),
        Step::OpenLegTrack { track: LegTrack { encap: LegEncap::Udp { rtp, .. }, .. }, .. } => {
            format!("open leg track {}", rtp.port())
        }
        Step::OpenLegTrack { .. } => "open leg track".to_owned(),
        Step::CloseLegTrack { .. } => "close leg track".to_owned(),
        Step::PauseLeg { .. } => "pause leg".to_owned(),
        Step::CloseLeg { .. } => "close leg".to_owned(),
    }
}

fn stream() -> StreamId {
    StreamId::new(1, [1; 10])
}

fn leg() -> LegId {
    LegId::new(2, [2; 10])
}

fn row(inputs: Vec<InputRow>) -> Row {
    let track = TrackRow {
        track: TRACK,
        kind: MediaKind::Audio,
        codec: "PCMU".to_owned(),
        clock_rate: 8000,
        payload_types: vec![0],
    };
    let silence = Duration::from_secs(1);
    Row { stream: stream(), name: "cam".to_owned(), tracks: vec![track], inputs, silence }
}

fn input(generation: u32) -> InputRow {
    let encap = Encap::Udp { peer: V4, peer_rtp: None, peer_rtcp: None, local: V4 };
    InputRow { track: TRACK, encap, ssrc: None, feedback: false, generation }
}

fn spec(port: u16) -> LegSpec {
    let encap = LegEncap::Udp { rtp: (V4, port).into(), rtcp: (V4, port + 1).into(), local: V4 };
    LegSpec {
        leg: leg(),
        stream: stream(),
        session: "abcdefgh".to_owned(),
        peer: SocketAddr::new(V4, 9),
        tracks: vec![LegTrack { track: TRACK, encap, feedback: false }],
    }
}

/// A free pair of ports, the only one that cameras get.
fn one_pair() -> WorkerConfig {
    let first = loop {
        let probe = UdpSocket::bind((V4, 0)).unwrap();
        let port = probe.local_addr().unwrap().port();
        if port.is_multiple_of(2) && UdpSocket::bind((V4, port + 1)).is_ok() {
            break port;
        }
    };
    WorkerConfig { input_ports: first..=first + 1, ..WorkerConfig::default() }
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    tokio::task::LocalSet::new().block_on(&runtime.unwrap(), test());
}

#[test]
fn what_gives_back_is_taken_though_the_queue_is_full() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![input(1)]).await;
        scene.leg(4000).await;
        scene.fill();
        let refused = scene.installer.submit_leg(LegOp::Attach(spec(5000))).await;
        assert!(matches!(refused, Err(OpError::Exhausted(_))), "{refused:?}");
        let detached = scene.installer.submit_leg(LegOp::Detach { leg: leg(), bye: true });
        let emptied = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![])));
        let removed = scene.installer.submit_row(RowOp::Remove(Epoch(1), stream()));
        assert_eq!(scene.work(Ok(())).await, ["close leg", "close input", "close stream"]);
        assert_eq!(detached.await, Ok(LegState::Detached));
        assert!(emptied.await.is_ok() && removed.await.is_ok());
    });
}

#[test]
fn a_row_that_a_full_queue_refuses_leaves_no_port_behind() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.fill();
        let refused = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)]))).await;
        assert!(matches!(refused, Err(OpError::Exhausted(_))), "{refused:?}");
        assert!(scene.installer.0.borrow().pairs.is_empty());
        assert!(scene.installer.0.borrow().streams.is_empty());
        // The only pair of ports is free again, as a new one: a worker knows the old one not.
        scene.work(Ok(())).await;
        let opened = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)])));
        assert_eq!(scene.work(Ok(())).await, ["open stream", "describe", "open input"]);
        assert!(opened.await.unwrap().inputs[0].local.is_some());
    });
}

#[test]
fn an_input_that_a_worker_cannot_open_leaves_no_port_behind() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        let failing = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)])));
        scene.work(Err(OpError::Io("no".to_owned()))).await;
        assert_eq!(failing.await, Err(OpError::Io("no".to_owned())));
        assert_eq!(scene.work(Ok(())).await, ["close input"]);
        scene.row(vec![input(2)]).await;
        assert_eq!(scene.installer.0.borrow().pairs.len(), 1);
    });
}

#[test]
fn what_no_worker_acknowledges_is_taken_back() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        let (row, attach) = (RowOp::Upsert(Epoch(1), row(vec![input(1)])), LegOp::Attach(spec(4000)));
        let (opened, attached) = (scene.installer.submit_row(row), scene.installer.submit_leg(attach));
        scene.fill();
        // The clock of this test moves as soon as everybody waits.
        assert!(matches!(opened.await, Err(OpError::Io(_))));
        assert!(matches!(attached.await, Err(OpError::Io(_))));
        assert!(scene.installer.0.borrow().pairs.is_empty());
        assert!(scene.installer.0.borrow().legs.is_empty());
        let done = ["open input", "open leg", "open leg track 4000"];
        let undone = ["close input", "close leg track", "close leg"];
        assert_eq!(scene.work(Ok(())).await, [done, undone].concat(), "in this order, whatever was full");
    });
}

#[test]
fn a_gate_that_opens_too_late_is_shut_again() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        scene.leg(4000).await;
        let armed = scene.installer.submit_leg(LegOp::Arm { leg: leg(), wait_millis: 100 });
        assert!(matches!(armed.await, Err(OpError::NotFound(_))));
        assert_eq!(scene.work(Ok(())).await, ["arm", "pause leg"]);
    });
}

#[test]
fn a_second_setup_that_fails_leaves_the_first_in_force() {
    // RTSP-19.
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        scene.leg(4000).await;
        let moved = scene.installer.submit_leg(LegOp::Attach(spec(5000)));
        let done = scene.work(Err(OpError::Io("no".to_owned()))).await;
        assert_eq!(done, ["close leg track", "open leg track 5000"]);
        assert!(moved.await.is_err());
        assert_eq!(scene.work(Ok(())).await, ["close leg track", "open leg track 4000"]);
        assert_eq!(scene.installer.0.borrow().legs[&leg()], spec(4000));
    });
}

#[test]
fn a_failure_that_comes_after_the_end_of_the_leg_brings_nothing_back() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        scene.leg(4000).await;
        let moved = scene.installer.submit_leg(LegOp::Attach(spec(5000)));
        let detached = scene.installer.submit_leg(LegOp::Detach { leg: leg(), bye: true });
        scene.work(Err(OpError::Io("no".to_owned()))).await;
        assert!(moved.await.is_err() && detached.await.is_err());
        assert_eq!(scene.work(Ok(())).await, [""; 0]);
        assert!(scene.installer.0.borrow().legs.is_empty());
    });
}

#[test]
fn a_failure_of_one_source_closes_nothing_of_the_next() {
    run(async || {
        let mut scene = Scene::new(WorkerConfig { input_ports: 0..=0, ..WorkerConfig::default() });
        scene.row(vec![]).await;
        let first = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)])));
        scene.work(Err(OpError::Io("no".to_owned()))).await;
        let second = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(2)])));
        assert!(first.await.is_err());
        assert_eq!(scene.work(Ok(())).await, ["open input"]);
        assert!(second.await.unwrap().inputs[0].local.is_some());
        assert_eq!(scene.installer.0.borrow().pairs.len(), 1);
    });
}

#[test]
fn a_refused_operation_moves_no_connection() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        let listener = tokio::net::TcpListener::bind((V4, 0)).await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let conn = ConnId(7);
        scene.installer.spawn_conn(server, conn, Role::Server, Arc::new(ConnLimits::default()));
        scene.fill();
        let mut wanted = spec(0);
        wanted.tracks[0].encap = LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 };
        let refused = scene.installer.submit_leg(LegOp::Attach(wanted)).await;
        assert!(matches!(refused, Err(OpError::Exhausted(_))), "{refused:?}");
        assert_eq!(scene.installer.0.borrow().conns[&conn].home, None);
    });
}

#[test]
fn a_stream_that_a_worker_cannot_open_is_forgotten_with_its_legs() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        let opened = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)])));
        let attached = scene.installer.submit_leg(LegOp::Attach(spec(4000)));
        scene.work(Err(OpError::Io("no".to_owned()))).await;
        assert!(opened.await.is_err());
        {
            let state = scene.installer.0.borrow();
            assert!(state.streams.is_empty() && state.legs.is_empty() && state.pairs.is_empty(), "{state:?}");
        }
        assert_eq!(scene.work(Ok(())).await, ["close input", "close stream"]);
        assert!(attached.await.is_err());
        assert_eq!(scene.work(Ok(())).await, [""; 0], "its leg went with it");
        // And it can be opened as if nothing had been.
        let again = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)])));
        assert_eq!(scene.work(Ok(())).await, ["open stream", "describe", "open input"]);
        assert!(again.await.is_ok());
    });
}

#[test]
fn an_input_that_could_not_be_opened_is_opened_when_it_is_asked_for_again() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        let failing = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)])));
        scene.work(Err(OpError::Io("no".to_owned()))).await;
        assert!(failing.await.is_err());
        assert_eq!(scene.work(Ok(())).await, ["close input"]);
        let again = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(1)])));
        assert_eq!(scene.work(Ok(())).await, ["open input"]);
        assert!(again.await.is_ok());
    });
}

#[test]
fn steps_that_take_back_stand_alone() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        scene.row(vec![]).await;
        let attached = scene.installer.submit_leg(LegOp::Attach(spec(4000)));
        scene.work(Err(OpError::Io("no".to_owned()))).await;
        assert!(attached.await.is_err());
        let mut undone = Vec::new();
        for _ in 0..2 {
            let Command::Apply { steps, .. } = scene.commands.recv().await.unwrap() else {
                panic!("no steps")
            };
            assert_eq!(steps.len(), 1, "one that fails keeps the next from being done");
            undone.extend(steps.iter().map(name));
        }
        assert_eq!(undone, ["close leg track", "close leg"]);
    });
}

#[test]
fn every_acknowledgement_is_waited_for_and_the_first_failure_is_told() {
    run(async || {
        let mut pending = Pending::default();
        let mut answers = Vec::new();
        for _ in 0..3 {
            let (answer, applied) = oneshot::channel();
            pending.applied.push(applied);
            answers.push(answer);
        }
        let last = answers.pop().unwrap();
        for (answer, words) in answers.into_iter().zip(["first", "second"]) {
            answer.send(Err(OpError::Io(words.to_owned()))).unwrap();
        }
        let settled = tokio::task::spawn_local(pending.settle());
        tokio::time::sleep(ACK / 2).await;
        assert!(!settled.is_finished(), "the last one has not answered");
        last.send(Ok(())).unwrap();
        assert_eq!(settled.await.unwrap(), Err(OpError::Io("first".to_owned())));
    });
}

#[test]
fn a_row_whose_second_input_finds_no_port_gives_the_first_ones_back() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        let mut two = row(vec![input(1), InputRow { track: TrackId(1), ..input(1) }]);
        two.tracks.push(TrackRow { track: TrackId(1), ..two.tracks[0].clone() });
        let refused = scene.installer.submit_row(RowOp::Upsert(Epoch(1), two)).await;
        assert!(matches!(refused, Err(OpError::Exhausted(_))), "{refused:?}");
        assert!(scene.installer.0.borrow().pairs.is_empty());
        assert_eq!(scene.work(Ok(())).await, [""; 0], "nothing was queued");
        scene.row(vec![input(1)]).await;
    });
}

#[test]
fn an_input_that_cannot_be_replaced_keeps_its_port() {
    run(async || {
        let mut scene = Scene::new(WorkerConfig { input_ports: 0..=0, ..WorkerConfig::default() });
        scene.row(vec![input(1)]).await;
        scene.fill();
        let refused = scene.installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![input(2)]))).await;
        assert!(matches!(refused, Err(OpError::Exhausted(_))), "{refused:?}");
        let state = scene.installer.0.borrow();
        assert_eq!((state.pairs.len(), &state.streams[&stream()].row.inputs), (1, &vec![input(1)]));
    });
}

#[test]
fn a_row_that_is_removed_gives_its_ports_back() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        for _ in 0..3 {
            scene.row(vec![input(1)]).await;
            let removed = scene.installer.submit_row(RowOp::Remove(Epoch(1), stream()));
            assert_eq!(scene.work(Ok(())).await, ["close stream"]);
            assert!(removed.await.is_ok());
            assert!(scene.installer.0.borrow().pairs.is_empty());
        }
    });
}

#[test]
fn a_row_of_an_earlier_epoch_changes_nothing() {
    run(async || {
        let mut scene = Scene::new(one_pair());
        let newer = scene.installer.submit_row(RowOp::Upsert(Epoch(2), row(vec![])));
        scene.work(Ok(())).await;
        newer.await.unwrap();
        for op in [RowOp::Upsert(Epoch(1), row(vec![input(1)])), RowOp::Remove(Epoch(1), stream())] {
            assert_eq!(scene.installer.submit_row(op).await, Err(OpError::StaleEpoch));
        }
        assert_eq!(scene.work(Ok(())).await, [""; 0]);
        assert!(scene.installer.0.borrow().streams.contains_key(&stream()));
    });
}

#[test]
fn a_stream_that_moves_to_the_worker_of_its_connection_leaves_nothing_with_the_other() {
    run(async || {
        let (first, mut old) = WorkerHandle::new(0);
        let (second, mut new) = WorkerHandle::new(1);
        let (events, _receiver) = mpsc::channel(8);
        let installer = Installer::new(vec![first, second], one_pair(), events);
        let submitted = installer.submit_row(RowOp::Upsert(Epoch(1), row(vec![])));
        steps_of(&mut old).await;
        submitted.await.unwrap();
        let listener = tokio::net::TcpListener::bind((V4, 0)).await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let conn = ConnId(7);
        installer.spawn_conn(server, conn, Role::Server, Arc::default());
        installer.0.borrow_mut().conns.get_mut(&conn).unwrap().home = Some(1);
        let encap = Encap::Interleaved { conn, rtp: 0, rtcp: 1 };
        let interleaved = row(vec![InputRow { encap, ..input(1) }]);
        let submitted = installer.submit_row(RowOp::Upsert(Epoch(1), interleaved));
        assert_eq!(steps_of(&mut new).await, ["open stream", "describe", "open input"]);
        assert_eq!(steps_of(&mut old).await, ["close stream"]);
        submitted.await.unwrap();
    });
}

/// Takes what is queued and acknowledges it.
async fn steps_of(commands: &mut Commands) -> Vec<String> {
    let mut done = Vec::new();
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => {
                let Command::Apply { steps, answer } = command.unwrap() else { continue };
                done.extend(steps.iter().map(name));
                let _ = answer.send(Ok(()));
            }
            () = std::future::ready(()) => return done,
        }
    }
}
