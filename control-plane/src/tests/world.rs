//! A packet path, cameras and clients for the machine, all on virtual time.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use msm_graph::*;
use msm_handover::Anchor;
use msm_rtsp::message::{Method, Request, Response, Status};

use crate::ControlPlane;
use crate::config::Config;
use crate::event::{Action, ConnEnd, Entropy, Event, Now, OpError, OpToken};
use crate::inventory::PlaneInventory;

mod camera;
mod viewer;

pub(super) use camera::{CAMERA_SDP, Camera};
pub(super) use viewer::{TCP, UDP, Viewer, authorize};

/// Bytes that differ and repeat from run to run.
#[derive(Debug, Default, Clone)]
pub(super) struct Counter(Rc<Cell<u64>>);

impl Entropy for Counter {
    fn fill(&mut self, buf: &mut [u8]) {
        for byte in buf {
            let last = self.0.get();
            let next = last.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.0.set(next);
            *byte = (next >> 33) as u8;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Disabled,
    Armed,
    Active,
}

#[derive(Debug, Clone)]
pub(super) struct FakeLeg {
    pub(super) spec: LegSpec,
    pub(super) gate: Gate,
}

/// Everything around the machine.
pub(super) struct World {
    pub(super) control: ControlPlane,
    pub(super) config: Config,
    pub(super) entropy: Counter,
    pub(super) now: Instant,
    start: Instant,
    pub(super) cameras: HashMap<String, Camera>,
    conn_camera: HashMap<ConnId, String>,
    pub(super) rows: BTreeMap<StreamId, Row>,
    pub(super) row_log: Vec<RowOp>,
    pub(super) legs: HashMap<LegId, FakeLeg>,
    pub(super) leg_log: Vec<LegOp>,
    pub(super) replies: HashMap<ConnId, VecDeque<(Response, bool)>>,
    pub(super) reply_log: Vec<Response>,
    pub(super) closed: Vec<ConnId>,
    pub(super) released: Vec<(ConnId, Vec<u8>)>,
    pub(super) notes: Vec<crate::event::Note>,
    pub(super) finished: bool,
    pub(super) last_cseq: HashMap<ConnId, u32>,
    waiting_arms: Vec<(OpToken, LegId, Instant)>,
    flowing: std::collections::HashSet<StreamId>,
    /// What the name of a camera resolves to, if its host is none.
    pub(super) camera_address: Option<&'static str>,
    next_conn: u64,
    next_port: u16,
    /// Leg attachments fail with this.
    pub(super) attach_error: Option<OpError>,
    /// The packet path answers no row or leg operation while set.
    pub(super) stalled: bool,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        let start = Instant::now_for_tests();
        let entropy = Counter::default();
        Self {
            control: ControlPlane::new(config.clone(), Box::new(entropy.clone())).unwrap(),
            config,
            entropy,
            now: start,
            start,
            cameras: HashMap::new(),
            conn_camera: HashMap::new(),
            rows: BTreeMap::new(),
            row_log: Vec::new(),
            legs: HashMap::new(),
            leg_log: Vec::new(),
            replies: HashMap::new(),
            reply_log: Vec::new(),
            closed: Vec::new(),
            released: Vec::new(),
            notes: Vec::new(),
            finished: false,
            last_cseq: HashMap::new(),
            waiting_arms: Vec::new(),
            flowing: std::collections::HashSet::new(),
            camera_address: None,
            next_conn: 1,
            next_port: 8062,
            attach_error: None,
            stalled: false,
        }
    }

    /// One camera `cam` at `rtsp://192.0.2.10:8554/live`.
    pub(super) fn with_camera() -> Self {
        let mut world = Self::new(Config {
            pulls: vec![crate::config::PullConfig::new("cam", "rtsp://192.0.2.10:8554/live")],
            ..Config::default()
        });
        world.cameras.insert("192.0.2.10".to_owned(), Camera::default());
        world
    }

    /// Another program takes over, with what this one writes down. What it asks for again is not logged.
    pub(super) fn hand_over(&mut self) {
        let at = Anchor::new(self.start, 1 << 44);
        let inventory = self.control.inventory(&at).unwrap();
        let text = serde_json::to_string(&inventory).unwrap();
        let read: PlaneInventory = serde_json::from_str(&text).unwrap();
        let entropy = Box::new(self.entropy.clone());
        self.control = ControlPlane::restore(self.config.clone(), entropy, read, &at, self.clock()).unwrap();
        // The packet path of the former program took the answers with it.
        self.waiting_arms.clear();
        let logged = self.leg_log.len();
        self.pump();
        assert!(self.leg_log[logged..].iter().all(|op| matches!(op, LegOp::Arm { .. })));
        self.leg_log.truncate(logged);
    }

    pub(super) fn camera(&mut self) -> &mut Camera {
        self.cameras.get_mut("192.0.2.10").unwrap()
    }

    pub(super) fn clock(&self) -> Now {
        Now { instant: self.now, unix: Duration::from_secs(1_800_000_000) + (self.now - self.start) }
    }

    pub(super) fn event(&mut self, event: Event) {
        self.control.handle_event(self.clock(), event);
        self.pump();
    }

    /// Lets time pass, waking the machine and the packet path when they want to.
    pub(super) fn sleep(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arm = self.waiting_arms.iter().map(|(_, _, at)| *at).min();
            let next = [self.control.poll_timeout(), arm].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            let due: Vec<_> =
                self.waiting_arms.iter().filter(|(_, _, at)| *at <= self.now).copied().collect();
            self.waiting_arms.retain(|(_, _, at)| *at > self.now);
            for (token, _, _) in due {
                self.event(Event::LegDone { token, result: Ok(LegState::Armed(Vec::new())) });
            }
            self.control.handle_timeout(self.clock());
            self.pump();
        }
        self.now = end;
    }

    pub(super) fn connect(&mut self, peer: &str) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let peer: SocketAddr = peer.parse().unwrap();
        let local = if peer.is_ipv4() { "198.51.100.1:8554" } else { "[2001:db8::1]:8554" };
        self.event(Event::Accepted { conn, peer, local: local.parse().unwrap() });
        conn
    }

    pub(super) fn hang_up(&mut self, conn: ConnId) {
        self.event(Event::Closed { conn, end: ConnEnd::Peer });
    }

    /// Sends without waiting; returns the CSeq.
    pub(super) fn send(&mut self, conn: ConnId, method: Method, uri: &str, headers: &[(&str, &str)]) -> u32 {
        self.send_body(conn, method, uri, headers, "")
    }

    pub(super) fn send_body(
        &mut self,
        conn: ConnId,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> u32 {
        let cseq = self.last_cseq.entry(conn).or_default();
        *cseq += 1;
        let cseq = *cseq;
        let mut request = Request::new(method, uri).with("CSeq", cseq.to_string());
        for (name, value) in headers {
            request = request.with(name, *value);
        }
        request.body = bytes::Bytes::from(body.to_owned());
        self.event(Event::Request { conn, request });
        cseq
    }

    /// The next reply on a connection, if there is one.
    pub(super) fn reply(&mut self, conn: ConnId) -> Option<Response> {
        self.replies.get_mut(&conn)?.pop_front().map(|(response, _)| response)
    }

    /// Sends and takes the answer, which must be there without any time passing.
    pub(super) fn ask(
        &mut self,
        conn: ConnId,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> Response {
        let name = method.to_string();
        let cseq = self.send(conn, method, uri, headers);
        let response = self.reply(conn).unwrap_or_else(|| panic!("no answer to {name} {uri}"));
        assert_eq!(response.cseq(), Some(cseq), "answer to {name}");
        response
    }

    pub(super) fn ask_status(
        &mut self,
        conn: ConnId,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> u16 {
        self.ask(conn, method, uri, headers).status.0
    }

    /// Packets of a stream arrive from now on.
    pub(super) fn flow(&mut self, stream: StreamId) {
        if !self.flowing.insert(stream) {
            return;
        }
        let tracks: Vec<_> = self.rows[&stream].inputs.iter().map(|input| input.track).collect();
        for track in tracks {
            self.control.handle_event(self.clock(), Event::Report(Report::InputActive { stream, track }));
        }
        let open: Vec<_> = self
            .waiting_arms
            .iter()
            .filter(|(_, leg, _)| self.legs.get(leg).is_some_and(|l| l.spec.stream == stream))
            .copied()
            .collect();
        self.waiting_arms.retain(|arm| !open.contains(arm));
        for (token, leg, _) in open {
            let starts = self.open_gate(leg);
            self.control.handle_event(self.clock(), Event::LegDone { token, result: Ok(starts) });
        }
        self.pump();
    }

    /// Nothing arrives any more; the packet path says so every 3 s.
    pub(super) fn fall_silent(&mut self, stream: StreamId, seconds: u64) {
        self.flowing.remove(&stream);
        for n in 1..=seconds / 3 {
            self.sleep(Duration::from_secs(3));
            if self.flowing.contains(&stream) {
                return;
            }
            let silent_for = Duration::from_secs(3 * n);
            self.event(Event::Report(Report::InputSilent { stream, silent_for, ever: true }));
        }
    }

    fn open_gate(&mut self, leg: LegId) -> LegState {
        let leg = self.legs.get_mut(&leg).unwrap();
        leg.gate = Gate::Active;
        LegState::Armed(
            leg.spec
                .tracks
                .iter()
                .map(|track| LegStart {
                    track: track.track,
                    seq: 100 + u16::from(track.track.0),
                    rtptime: 9000 + u32::from(track.track.0),
                    ssrc: 7,
                })
                .collect(),
        )
    }

    pub(super) fn pump(&mut self) {
        let mut now_flowing = Vec::new();
        while let Some(action) = self.control.poll_action() {
            match action {
                Action::Reply { conn, response, close } => {
                    self.reply_log.push(response.clone());
                    self.replies.entry(conn).or_default().push_back((response, close));
                }
                Action::ReleaseMedia { conn, channels } => self.released.push((conn, channels)),
                Action::Session { .. } => {}
                Action::Dial { conn, host, .. } => self.dial(conn, &host),
                Action::Send { conn, request } => {
                    let host = self.conn_camera.get(&conn).expect("a request on an open connection").clone();
                    let camera = self.cameras.get_mut(&host).unwrap();
                    let is_play = request.method == Method::Play;
                    let is_last = request.method == Method::Teardown;
                    let answer = camera.answer(&request);
                    let blocked = camera.udp_blocked;
                    if let Some(response) = answer {
                        let is_ok = response.status == Status::OK;
                        self.control.handle_event(self.clock(), Event::Response { conn, response });
                        if is_play && is_ok {
                            now_flowing.push((host, blocked));
                        }
                    }
                    if is_last {
                        self.flowing.clear();
                    }
                }
                Action::Close { conn } => {
                    self.closed.push(conn);
                    if let Some(host) = self.conn_camera.remove(&conn) {
                        self.cameras.get_mut(&host).unwrap().open.retain(|c| *c != conn);
                    }
                    self.control.handle_event(self.clock(), Event::Closed { conn, end: ConnEnd::Asked });
                }
                Action::Row { token, op } => self.row(token, op),
                Action::Leg { token, op } => self.leg(token, op),
                Action::Note(note) => self.notes.push(note),
                Action::Finished => self.finished = true,
            }
        }
        for (host, blocked) in now_flowing {
            let streams: Vec<_> = self
                .rows
                .values()
                .filter(|row| !row.inputs.is_empty() && self.is_from(row, &host))
                .filter(|row| !blocked || !matches!(row.inputs[0].encap, Encap::Udp { .. }))
                .map(|row| row.stream)
                .collect();
            for stream in streams {
                self.flow(stream);
            }
        }
    }

    fn is_from(&self, row: &Row, host: &str) -> bool {
        row.inputs.iter().any(|input| match &input.encap {
            Encap::Udp { peer, .. } => peer.to_string() == host,
            Encap::Interleaved { conn, .. } => self.conn_camera.get(conn).is_some_and(|h| h == host),
        })
    }

    fn dial(&mut self, conn: ConnId, host: &str) {
        let camera = self.cameras.get_mut(host).expect("a known camera");
        camera.dials += 1;
        let result = if camera.up {
            camera.open.push(conn);
            self.conn_camera.insert(conn, host.to_owned());
            let peer = self.camera_address.map_or_else(|| format!("{host}:8554"), str::to_owned);
            Ok(("198.51.100.1:50000".parse().unwrap(), peer.parse().unwrap()))
        } else {
            Err("connection refused".to_owned())
        };
        self.control.handle_event(self.clock(), Event::Dialled { conn, result });
    }

    /// The camera's process dies: its connections are reset, its packets stop.
    pub(super) fn kill_camera(&mut self) {
        let camera = self.camera();
        camera.up = false;
        let open = std::mem::take(&mut camera.open);
        self.flowing.clear();
        for conn in open {
            self.conn_camera.remove(&conn);
            self.event(Event::Closed { conn, end: ConnEnd::Peer });
        }
    }

    fn row(&mut self, token: OpToken, op: RowOp) {
        self.row_log.push(op.clone());
        if self.stalled {
            return;
        }
        let state = match op {
            RowOp::Upsert(_, row) => {
                let inputs = row
                    .inputs
                    .iter()
                    .map(|input| InputState {
                        track: input.track,
                        local: matches!(input.encap, Encap::Udp { .. }).then(|| {
                            let rtp = self.next_port;
                            self.next_port += 2;
                            PortPair { rtp, rtcp: rtp + 1 }
                        }),
                    })
                    .collect();
                if row.inputs.is_empty() {
                    self.flowing.remove(&row.stream);
                }
                self.rows.insert(row.stream, row);
                RowState { inputs }
            }
            RowOp::Remove(_, stream) => {
                self.rows.remove(&stream);
                self.flowing.remove(&stream);
                let gone: Vec<_> =
                    self.legs.values().filter(|l| l.spec.stream == stream).map(|l| l.spec.leg).collect();
                for leg in gone {
                    self.legs.remove(&leg);
                    self.fail_arms(leg);
                }
                RowState::default()
            }
        };
        self.control.handle_event(self.clock(), Event::RowDone { token, result: Ok(state) });
    }

    /// A leg goes while somebody waits for its gate.
    fn fail_arms(&mut self, leg: LegId) {
        let held: Vec<_> = self.waiting_arms.iter().filter(|(_, l, _)| *l == leg).copied().collect();
        self.waiting_arms.retain(|(_, l, _)| *l != leg);
        for (token, ..) in held {
            let result = Err(OpError::NotFound("leg".to_owned()));
            self.control.handle_event(self.clock(), Event::LegDone { token, result });
        }
    }

    fn leg(&mut self, token: OpToken, op: LegOp) {
        self.leg_log.push(op.clone());
        if self.stalled {
            return;
        }
        let result = match op {
            LegOp::Attach(spec) => match self.attach_error.clone() {
                Some(error) => Err(error),
                None if !self.rows.contains_key(&spec.stream) => Err(OpError::NotFound("stream".to_owned())),
                None => {
                    let tracks = spec
                        .tracks
                        .iter()
                        .map(|track| LegTrackState {
                            track: track.track,
                            local: matches!(track.encap, LegEncap::Udp { .. })
                                .then_some(PortPair { rtp: 8060, rtcp: 8061 }),
                            ssrc: None,
                        })
                        .collect();
                    let gate = self.legs.get(&spec.leg).map_or(Gate::Disabled, |leg| leg.gate);
                    self.legs.insert(spec.leg, FakeLeg { spec, gate });
                    Ok(LegState::Attached(tracks))
                }
            },
            LegOp::Arm { leg, wait_millis } => match self.legs.get_mut(&leg) {
                None => Err(OpError::NotFound("leg".to_owned())),
                Some(fake) if self.flowing.contains(&fake.spec.stream) => Ok(self.open_gate(leg)),
                Some(fake) => {
                    fake.gate = Gate::Armed;
                    self.waiting_arms.push((
                        token,
                        leg,
                        self.now + Duration::from_millis(wait_millis.into()),
                    ));
                    return;
                }
            },
            LegOp::Pause { leg } => match self.legs.get_mut(&leg) {
                None => Err(OpError::NotFound("leg".to_owned())),
                Some(fake) => {
                    fake.gate = Gate::Disabled;
                    let held: Vec<_> =
                        self.waiting_arms.iter().filter(|(_, l, _)| *l == leg).copied().collect();
                    self.waiting_arms.retain(|(_, l, _)| *l != leg);
                    for (token, ..) in held {
                        let result = Ok(LegState::Armed(Vec::new()));
                        self.control.handle_event(self.clock(), Event::LegDone { token, result });
                    }
                    Ok(LegState::Paused)
                }
            },
            LegOp::Detach { leg, .. } => match self.legs.remove(&leg) {
                Some(_) => {
                    self.fail_arms(leg);
                    Ok(LegState::Detached)
                }
                None => Err(OpError::NotFound("leg".to_owned())),
            },
        };
        self.control.handle_event(self.clock(), Event::LegDone { token, result });
    }

    /// The only stream there is.
    pub(super) fn stream(&self) -> StreamId {
        *self.rows.keys().next().expect("a row")
    }

    pub(super) fn has_note(&self, event: &str) -> bool {
        self.notes.iter().any(|note| note.event == event)
    }
}

/// The one place where the tests take a point in time; everything else is relative to it.
trait NowForTests {
    fn now_for_tests() -> Instant;
}

impl NowForTests for Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant has no other constructor; only differences matter"
    )]
    fn now_for_tests() -> Instant {
        Instant::now()
    }
}
