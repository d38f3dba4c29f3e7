//! The data worker of `rtp-proxy` on this thread: one published stream, viewers over UDP.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use msm_control_plane::event::OpError;
use msm_graph::{
    Encap, Epoch, InputRow, LegEncap, LegId, LegOp, LegSpec, LegState, LegTrack, MediaKind, Row, RowOp,
    StreamId, TrackId, TrackRow,
};
use rtp_proxy::install::Installer;
use rtp_proxy::user::{Driven, UserEvent, WorkerConfig, Workers};
use tokio::sync::mpsc;

use super::super::generator::PAYLOAD_TYPE;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TRACK: TrackId = TrackId(0);
/// Bursts after which everything but forwarding gets its turn: time, reports, what viewers send.
const OTHERS: usize = 64;

pub(crate) struct DataWorker {
    worker: Driven,
    _workers: Workers,
    installer: Installer,
    events: RefCell<mpsc::Receiver<UserEvent>>,
    input: SocketAddr,
    legs: Cell<u64>,
}

fn refused(error: OpError) -> anyhow::Error {
    anyhow!("the worker refused: {error:?}")
}

fn stream() -> StreamId {
    StreamId::new(1, [1; 10])
}

impl DataWorker {
    /// A worker with one video track, whose source is on these ports of loopback.
    pub(crate) fn start((peer_rtp, peer_rtcp): (u16, u16)) -> Result<Self> {
        let (sender, events) = mpsc::channel(64);
        // As in the product, but for ports: any free ones, for every contender has its own.
        let config = WorkerConfig {
            threads: Some(1),
            pin: false,
            player_port: 0,
            input_ports: 0..=0,
            ..WorkerConfig::default()
        };
        let (workers, worker) = Workers::start_driven(config, sender)?;
        let installer = workers.installer();
        let track = TrackRow {
            track: TRACK,
            kind: MediaKind::Video,
            codec: "H264".to_owned(),
            clock_rate: 90_000,
            payload_types: vec![PAYLOAD_TYPE],
        };
        let encap = Encap::Udp { peer: V4, peer_rtp: Some(peer_rtp), peer_rtcp: Some(peer_rtcp), local: V4 };
        let row = Row {
            stream: stream(),
            name: "bench".to_owned(),
            tracks: vec![track],
            inputs: vec![InputRow { track: TRACK, encap, ssrc: None, feedback: false, generation: 1 }],
            silence: Duration::from_secs(1),
        };
        let state = worker.drive(installer.submit_row(RowOp::Upsert(Epoch(1), row))).map_err(refused)?;
        let ports = state.inputs.first().and_then(|input| input.local).context("the input has no ports")?;
        Ok(Self {
            worker,
            _workers: workers,
            installer,
            events: RefCell::new(events),
            input: SocketAddr::new(V4, ports.rtp),
            legs: Cell::new(0),
        })
    }

    /// Where its source sends to.
    pub(crate) fn input(&self) -> SocketAddr {
        self.input
    }

    /// A viewer on this port and the next one attaches and plays.
    pub(crate) fn play(&self, rtp: SocketAddr) -> Result<()> {
        self.legs.set(self.legs.get() + 1);
        let leg = LegId::new(self.legs.get(), [2; 10]);
        let encap = LegEncap::Udp { rtp, rtcp: SocketAddr::new(rtp.ip(), rtp.port() + 1), local: V4 };
        let spec = LegSpec {
            leg,
            stream: stream(),
            session: "bench".to_owned(),
            peer: rtp,
            tracks: vec![LegTrack { track: TRACK, encap, feedback: false }],
        };
        self.leg(LegOp::Attach(spec))?;
        match self.leg(LegOp::Arm { leg, wait_millis: 1_000 })? {
            LegState::Armed(starts) if starts.len() == 1 => Ok(()),
            other => bail!("the leg does not start: {other:?}"),
        }
    }

    fn leg(&self, op: LegOp) -> Result<LegState> {
        self.worker.drive(self.installer.submit_leg(op)).map_err(refused)
    }

    /// Forwards what waits.
    pub(crate) fn turn(&self) {
        self.worker.turn();
    }

    /// Calls `burst` until it says false, within the worker's runtime, which gets its turn in between.
    pub(crate) fn drive(&self, mut burst: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        self.worker.drive(async {
            loop {
                for _ in 0..OTHERS {
                    if !burst(self)? {
                        return Ok(());
                    }
                }
                tokio::task::yield_now().await;
                // What the session logic would read.
                while self.events.borrow_mut().try_recv().is_ok() {}
            }
        })
    }
}
