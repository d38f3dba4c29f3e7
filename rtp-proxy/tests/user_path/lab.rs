//! Cameras, viewers and connections on loopback, and a proxy's data path between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use msm_control_plane::event::OpError;
use msm_graph::{
    ConnId, Encap, Epoch, InputRow, LegEncap, LegId, LegOp, LegSpec, LegStart, LegState, LegTrack, MediaKind,
    PortPair, Report, Row, RowOp, RowState, StreamId, TrackId, TrackRow,
};
use msm_rtsp::conn::{ConnLimits, Role};
use msm_rtsp::message::{Response, Status};
use rtp_proxy::install::Installer;
use rtp_proxy::user::tcp::ConnHandle;
use rtp_proxy::user::{Driven, UserEvent, WorkerConfig, Workers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

pub(crate) const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(crate) const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const TRACK: TrackId = TrackId(0);
pub(crate) const PT: u8 = 96;

/// An RTP packet whose payload is a function of its number.
pub(crate) fn rtp(seq: u16, ts: u32, ssrc: u32, len: usize) -> Vec<u8> {
    let mut packet = vec![0x80, PT];
    packet.extend(seq.to_be_bytes());
    packet.extend(ts.to_be_bytes());
    packet.extend(ssrc.to_be_bytes());
    packet.extend((12..len).map(|i| (i as u32 * 7 + u32::from(seq) * 13) as u8));
    packet
}

pub(crate) fn seq_of(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[2], packet[3]])
}

pub(crate) fn ts_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]])
}

pub(crate) fn ssrc_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes([packet[8], packet[9], packet[10], packet[11]])
}

/// Two UDP sockets on consecutive ports.
pub(crate) struct Pair {
    pub(crate) rtp: UdpSocket,
    pub(crate) rtcp: UdpSocket,
}

impl Pair {
    pub(crate) async fn open(ip: IpAddr) -> Self {
        loop {
            let rtp = UdpSocket::bind((ip, 0)).await.unwrap();
            let port = rtp.local_addr().unwrap().port();
            if port.is_multiple_of(2)
                && let Ok(rtcp) = UdpSocket::bind((ip, port + 1)).await
            {
                socket2::SockRef::from(&rtp).set_recv_buffer_size(4 << 20).unwrap();
                return Self { rtp, rtcp };
            }
        }
    }

    pub(crate) fn rtp_addr(&self) -> SocketAddr {
        self.rtp.local_addr().unwrap()
    }

    pub(crate) fn rtcp_addr(&self) -> SocketAddr {
        self.rtcp.local_addr().unwrap()
    }

    pub(crate) async fn recv(&self) -> Vec<u8> {
        recv(&self.rtp).await
    }
}

pub(crate) async fn recv(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let (len, _) =
        timeout(PATIENCE, socket.recv_from(&mut buffer)).await.expect("a datagram in time").unwrap();
    buffer.truncate(len);
    buffer
}

pub(crate) struct Lab {
    pub(crate) workers: Workers,
    pub(crate) installer: Installer,
    pub(crate) events: mpsc::Receiver<UserEvent>,
    next: u64,
    /// The stream that helpers speak of.
    pub(crate) stream: StreamId,
    pub(crate) row: Row,
}

impl Lab {
    pub(crate) fn config() -> WorkerConfig {
        WorkerConfig {
            threads: Some(1),
            pin: false,
            player_port: 0,
            player_addresses: vec![V4, V6],
            input_ports: 0..=0,
            receive_buffer: 1 << 20,
            send_buffer: 1 << 20,
        }
    }

    pub(crate) fn start(config: WorkerConfig) -> Self {
        let (sender, events) = mpsc::channel(64);
        Self::of(Workers::start(config, sender).unwrap(), events)
    }

    /// One with a worker that runs when the test says so.
    pub(crate) fn driven() -> (Self, Driven) {
        let (sender, events) = mpsc::channel(64);
        let (workers, worker) = Workers::start_driven(Self::config(), sender).unwrap();
        (Self::of(workers, events), worker)
    }

    fn of(workers: Workers, events: mpsc::Receiver<UserEvent>) -> Self {
        let installer = workers.installer();
        let stream = StreamId::new(1, [7; 10]);
        let track = TrackRow {
            track: TRACK,
            kind: MediaKind::Audio,
            codec: "PCMU".to_owned(),
            clock_rate: 8000,
            payload_types: vec![PT],
        };
        let row = Row {
            stream,
            name: "cam".to_owned(),
            tracks: vec![track],
            inputs: vec![],
            silence: Duration::from_millis(300),
        };
        Self { workers, installer, events, next: 0, stream, row }
    }

    /// Another stream is the one that helpers speak of.
    pub(crate) fn turn_to(&mut self, number: u8) {
        self.stream = StreamId::new(u64::from(number), [7; 10]);
        self.row =
            Row { stream: self.stream, name: format!("cam{number}"), inputs: vec![], ..self.row.clone() };
    }

    pub(crate) fn channel_input(conn: ConnId, rtp: u8, generation: u32) -> InputRow {
        let encap = Encap::Interleaved { conn, rtp, rtcp: rtp + 1 };
        InputRow { track: TRACK, encap, ssrc: None, feedback: false, generation }
    }

    pub(crate) fn udp_input(peer: &Pair, generation: u32) -> InputRow {
        let (rtp, rtcp) = (peer.rtp_addr(), peer.rtcp_addr());
        InputRow {
            track: TRACK,
            encap: Encap::Udp {
                peer: rtp.ip(),
                peer_rtp: Some(rtp.port()),
                peer_rtcp: Some(rtcp.port()),
                local: rtp.ip(),
            },
            ssrc: None,
            feedback: false,
            generation,
        }
    }

    pub(crate) async fn upsert(&mut self, inputs: Vec<InputRow>) -> RowState {
        self.row.inputs = inputs;
        let op = RowOp::Upsert(Epoch(1), self.row.clone());
        self.installer.submit_row(op).await.unwrap()
    }

    /// Opens a UDP input for `peer`; returns where to send.
    pub(crate) async fn open_udp(&mut self, peer: &Pair, generation: u32) -> (SocketAddr, SocketAddr) {
        let state = self.upsert(vec![Self::udp_input(peer, generation)]).await;
        let PortPair { rtp, rtcp } = state.inputs[0].local.unwrap();
        let ip = peer.rtp_addr().ip();
        (SocketAddr::new(ip, rtp), SocketAddr::new(ip, rtcp))
    }

    /// A camera on UDP that has delivered this packet, its first.
    pub(crate) async fn active_camera(&mut self, packet: &[u8]) -> (Pair, [SocketAddr; 2]) {
        let camera = Pair::open(V4).await;
        let (to, rtcp_to) = self.open_udp(&camera, 1).await;
        camera.rtp.send_to(packet, to).await.unwrap();
        let stream = self.stream;
        self.report(|report| matches!(report, Report::InputActive { stream: of, .. } if *of == stream)).await;
        (camera, [to, rtcp_to])
    }

    /// A viewer on UDP that plays.
    pub(crate) async fn play_udp(&mut self) -> (Pair, LegId) {
        let viewer = Pair::open(V4).await;
        let leg = self.attach_udp(&viewer).await;
        self.arm(leg).await;
        (viewer, leg)
    }

    /// A viewer on a connection that plays on channels 0 and 1; the response waits to be read. `buffer`: of
    /// its sockets.
    pub(crate) async fn play_tcp(&mut self, buffer: Option<usize>) -> (TcpStream, ConnHandle, LegId) {
        let (mut client, handle, conn) = self.connect(buffer).await;
        let leg = self.attach(LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 }).await;
        self.play_interleaved(&mut client, &handle, leg).await;
        (client, handle, leg)
    }

    pub(crate) fn leg_id(&mut self) -> LegId {
        self.next += 1;
        LegId::new(self.next, [3; 10])
    }

    pub(crate) async fn attach(&mut self, encap: LegEncap) -> LegId {
        self.attach_with(encap, false).await
    }

    pub(crate) async fn attach_with(&mut self, encap: LegEncap, feedback: bool) -> LegId {
        let leg = self.leg_id();
        match self.attach_as(leg, encap, feedback).await.unwrap() {
            LegState::Attached(states) => assert_eq!(states[0].track, TRACK),
            other => panic!("{other:?}"),
        }
        leg
    }

    /// SETUP of the only track of a leg, its first or a later one.
    pub(crate) async fn attach_as(
        &self,
        leg: LegId,
        encap: LegEncap,
        feedback: bool,
    ) -> Result<LegState, OpError> {
        let spec = LegSpec {
            leg,
            stream: self.stream,
            session: "abcdefgh".to_owned(),
            peer: SocketAddr::new(V4, 9),
            tracks: vec![LegTrack { track: TRACK, encap, feedback }],
        };
        self.installer.submit_leg(LegOp::Attach(spec)).await
    }

    pub(crate) async fn attach_udp(&mut self, viewer: &Pair) -> LegId {
        let local = viewer.rtp_addr().ip();
        let encap = LegEncap::Udp { rtp: viewer.rtp_addr(), rtcp: viewer.rtcp_addr(), local };
        self.attach(encap).await
    }

    pub(crate) async fn arm(&self, leg: LegId) -> LegStart {
        match self.installer.submit_leg(LegOp::Arm { leg, wait_millis: 5_000 }).await.unwrap() {
            LegState::Armed(starts) => starts[0],
            other => panic!("{other:?}"),
        }
    }

    /// Arms a leg whose input may be silent yet: what is sent from now on finds the gate open.
    pub(crate) async fn begin_arm(
        &self,
        leg: LegId,
    ) -> impl Future<Output = Result<LegState, OpError>> + use<> {
        let armed = self.installer.submit_leg(LegOp::Arm { leg, wait_millis: 5_000 });
        // Workers obey in order: when this is answered, the gate is open.
        self.workers.snapshot().await;
        armed
    }

    /// A TCP viewer or publisher and the proxy's end of its connection.
    pub(crate) async fn connect(&mut self, buffer: Option<usize>) -> (TcpStream, ConnHandle, ConnId) {
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        if let Some(size) = buffer {
            socket2::SockRef::from(&listener).set_send_buffer_size(size).unwrap();
        }
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        if let Some(size) = buffer {
            socket.set_recv_buffer_size(size as u32).unwrap();
        }
        let client = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        self.next += 1;
        let conn = ConnId(self.next);
        let limits = ConnLimits { stuck_writer: Duration::from_secs(2), ..ConnLimits::default() };
        let handle = self.installer.spawn_conn(server, conn, Role::Server, Arc::new(limits));
        (client, handle, conn)
    }

    pub(crate) async fn event(&mut self) -> UserEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").unwrap()
    }

    pub(crate) async fn report(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        loop {
            if let UserEvent::Report(report) = self.event().await
                && wanted(&report)
            {
                return report;
            }
        }
    }

    /// PLAY as a viewer on TCP sees it: request, response, then frames.
    pub(crate) async fn play_interleaved(
        &mut self,
        client: &mut TcpStream,
        handle: &ConnHandle,
        leg: LegId,
    ) -> LegStart {
        self.play_on(client, handle, leg, [0, 1]).await
    }

    pub(crate) async fn play_on(
        &mut self,
        client: &mut TcpStream,
        handle: &ConnHandle,
        leg: LegId,
        channels: [u8; 2],
    ) -> LegStart {
        self.next += 1;
        let cseq = self.next as u32;
        let request = format!("PLAY rtsp://x/cam RTSP/1.0\r\nCSeq: {cseq}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        loop {
            if let UserEvent::Request { request, .. } = self.event().await {
                assert_eq!(request.cseq(), Some(cseq));
                break;
            }
        }
        let start = self.arm(leg).await;
        handle.reply(Response::new(Status::OK).with("CSeq", cseq.to_string()), false);
        handle.release_media(channels.to_vec());
        start
    }

    pub(crate) async fn dropped(&self, reason: &str) -> u64 {
        let drops = self.workers.snapshot().await.drops;
        drops.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
    }
}

/// A camera on UDP for stream `number`, which has delivered its first packet, 0.
pub(crate) async fn camera(lab: &mut Lab, number: u8) -> (Pair, [SocketAddr; 2]) {
    lab.turn_to(number);
    lab.active_camera(&rtp(0, 0, u32::from(number), 172)).await
}

/// Reads the response and then frames.
pub(crate) async fn read_response(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, client.read_u8()).await.expect("a response in time").unwrap());
    }
    String::from_utf8(head).unwrap()
}

pub(crate) async fn read_frame(client: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 4];
    timeout(PATIENCE, client.read_exact(&mut head)).await.expect("a frame in time").unwrap();
    assert_eq!(head[0], b'$', "{head:?}");
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
    client.read_exact(&mut payload).await.unwrap();
    (head[1], payload)
}

pub(crate) fn frame(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'$', channel];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(crate) fn sender_report(ssrc: u32, ts: u32) -> Vec<u8> {
    let mut sr = vec![0x80, 200, 0, 6];
    sr.extend(ssrc.to_be_bytes());
    sr.extend([0xe0, 0, 0, 1, 0x80, 0, 0, 0]);
    sr.extend(ts.to_be_bytes());
    sr.extend([0, 0, 0, 5, 0, 0, 1, 0]);
    sr
}

/// A receiver report of a viewer: so many packets lost of what `ssrc` sent.
pub(crate) fn receiver_report(ssrc: u32, lost: u8) -> Vec<u8> {
    let mut rr = vec![0x81, 201, 0, 7, 0, 0, 0, 9];
    rr.extend(ssrc.to_be_bytes());
    rr.extend([0, 0, 0, lost, 0, 0, 0, 11, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]);
    rr
}

pub(crate) fn run(test: impl AsyncFnOnce(Lab)) {
    run_with(Lab::config(), test);
}

/// Runs a test with so many workers.
pub(crate) fn run_on(threads: usize, test: impl AsyncFnOnce(Lab)) {
    run_with(WorkerConfig { threads: Some(threads), ..Lab::config() }, test);
}

pub(crate) fn run_with(config: WorkerConfig, test: impl AsyncFnOnce(Lab)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async { test(Lab::start(config)).await }));
}
