//! The user-space path: pinned workers that own streams, and the way to them.
//!
//! Owns the threads, the sockets that all viewers share, and the handles by which the control thread
//! reaches them. It must not decide what a stream or a leg is for: that comes from [`crate::install`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use msm_control_plane::event::ConnEnd;
use msm_graph::{ConnId, PortPair, Report};
use msm_rtsp::message::{Request, Response};
use tokio::sync::{mpsc, oneshot};

use crate::bind::{self, Transport};
use crate::install::Installer;
use crate::kernel::hop::{Rung, UserReason};
use crate::kernel::service::WorkerEnd;
use crate::stats::Snapshot;

mod driven;
pub(crate) mod handover;
pub(crate) mod input_pair;
mod io_buffers;
pub(crate) mod leg;
pub(crate) mod offload;
mod room;
pub(crate) mod stream;
pub mod tcp;
pub(crate) mod udp;
pub(crate) mod worker;

pub use driven::Driven;
use worker::{Command, Commands, Worker, WorkerHandle};

/// How long the threads get to end: the process has two seconds for everything after SIGTERM.
const JOIN: Duration = Duration::from_millis(300);

/// What the data path tells the control thread.
#[derive(Debug)]
pub enum UserEvent {
    /// A request arrived on an accepted connection, in order.
    Request {
        /// The connection.
        conn: ConnId,
        /// The request.
        request: Request,
    },
    /// A response arrived on a dialled connection.
    Response {
        /// The connection.
        conn: ConnId,
        /// The response.
        response: Response,
    },
    /// A connection is gone; the last event about it.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why.
        end: ConnEnd,
    },
    /// The packet path observed something.
    Report(Report),
    /// Bad input; whoever sent it has been answered where there is an answer. To be counted by reason and
    /// logged at a limited rate.
    Rejected {
        /// Who sent it.
        peer: SocketAddr,
        /// Stable name of what was wrong.
        reason: &'static str,
    },
}

/// Settings of the user-space path.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Data threads; `None` means one per core but one, at least one.
    pub threads: Option<usize>,
    /// Whether to pin each thread to a core.
    pub pin: bool,
    /// Even port of the pair for players; RTCP is the next. 0 takes any free pair.
    pub player_port: u16,
    /// Addresses to open that pair on. One that the host lacks the family for is skipped if it is a
    /// wildcard.
    pub player_addresses: Vec<IpAddr>,
    /// Ports for cameras and publishers on UDP, a pair per track; `0..=0` takes any free pairs.
    pub input_ports: RangeInclusive<u16>,
    /// `SO_RCVBUF` to ask for, in bytes.
    pub receive_buffer: usize,
    /// `SO_SNDBUF` to ask for, in bytes.
    pub send_buffer: usize,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            threads: None,
            pin: true,
            player_port: 8060,
            player_addresses: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            input_ports: 8062..=8187,
            // Many key frames, so that a worker which the system lets wait loses nothing.
            receive_buffer: 8 << 20,
            send_buffer: 4 << 20,
        }
    }
}

impl WorkerConfig {
    /// Number of data threads.
    pub(crate) fn worker_count(&self) -> usize {
        self.threads.unwrap_or(allowed_cores().len().saturating_sub(1)).max(1)
    }

    pub(crate) fn buffers(&self) -> udp::BufferSizes {
        udp::BufferSizes { receive: self.receive_buffer, send: self.send_buffer }
    }
}

/// The pair that viewers of one address family are served from. Its RTP socket only sends: what viewers send
/// there punches holes and teaches nothing (RTP-1). Nobody waits for it either, so that a copy that has left
/// need not look whether somebody does: a twentieth of a send.
#[derive(Debug, Clone)]
pub(crate) struct PlayerPair {
    pub(crate) rtp: Arc<UdpSocket>,
    pub(crate) rtcp: Arc<UdpSocket>,
    pub(crate) ports: PortPair,
    pub(crate) receive_buffer: usize,
}

/// Pairs by address family.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlayerSockets {
    pub(crate) v4: Option<PlayerPair>,
    pub(crate) v6: Option<PlayerPair>,
}

impl PlayerSockets {
    pub(crate) fn towards(&self, peer: SocketAddr) -> Option<&PlayerPair> {
        if peer.is_ipv6() { self.v6.as_ref() } else { self.v4.as_ref() }
    }
}

/// Each worker's end of the fast path, or why it has none.
pub type KernelEnds = Vec<Result<WorkerEnd, UserReason>>;

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    players: PlayerSockets,
    warnings: Vec<String>,
    config: WorkerConfig,
    events: mpsc::Sender<UserEvent>,
}

impl Workers {
    /// Opens the pair for players and starts the threads.
    ///
    /// # Errors
    /// When a port cannot be opened; the text names the port, its setting and, as far as `/proc` tells,
    /// who holds it.
    pub fn start(config: WorkerConfig, events: mpsc::Sender<UserEvent>) -> io::Result<Self> {
        let ends = (0..config.worker_count()).map(|_| Err(UserReason::Capped)).collect();
        Self::start_with(config, ends, events)
    }

    /// As [`Workers::start`], with each worker's end of the fast path, or why it has none.
    ///
    /// # Errors
    /// As [`Workers::start`].
    pub fn start_with(
        config: WorkerConfig,
        kernel: KernelEnds,
        events: mpsc::Sender<UserEvent>,
    ) -> io::Result<Self> {
        let (players, warnings) = open_all_players(&config)?;
        let inherited = (0..config.worker_count()).map(|_| None).collect();
        Self::spawn(config, kernel, events, players, warnings, inherited)
    }

    /// Starts the threads, one for each of `inherited`.
    fn spawn(
        config: WorkerConfig,
        kernel: KernelEnds,
        events: mpsc::Sender<UserEvent>,
        players: PlayerSockets,
        warnings: Vec<String>,
        inherited: Vec<Option<worker::inventory::Inherited>>,
    ) -> io::Result<Self> {
        let (handles, starts) = starts(&config, kernel, &events, &players, inherited);
        let mut threads = Vec::with_capacity(starts.len());
        for (start, commands) in starts {
            let index = start.index;
            let thread =
                std::thread::Builder::new().name(format!("data-{index}")).spawn(
                    move || match Worker::new(start, commands) {
                        Ok(worker) => worker.run(),
                        Err(error) => tracing::error!(event = "worker.failed", worker = index, %error),
                    },
                )?;
            threads.push(thread);
        }
        Ok(Self { handles, threads, players, warnings, config, events })
    }

    /// The executor of row and leg operations, for the control thread.
    pub fn installer(&self) -> Installer {
        Installer::new(self.handles.clone(), self.config.clone(), self.events.clone())
    }

    /// Ports that viewers see, IPv4's if it is there. `None` when no family could be opened.
    pub fn player_ports(&self) -> Option<PortPair> {
        self.players.v4.as_ref().or(self.players.v6.as_ref()).map(|pair| pair.ports)
    }

    /// What an operator should change, in words that can be pasted.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Puts every UDP leg on a rung, as far as it may be there; `None` leaves them to the rules.
    pub fn ask_rung(&self, rung: Option<Rung>) {
        for handle in &self.handles {
            let _ = handle.send(Command::AskRung(rung));
        }
    }

    /// Reads every counter. A worker that does not answer within a second is left out.
    pub fn snapshot(&self) -> impl Future<Output = Snapshot> + 'static {
        let answers: Vec<oneshot::Receiver<Snapshot>> = self
            .handles
            .iter()
            .filter_map(|handle| {
                let (answer, receiver) = oneshot::channel();
                handle.send(Command::Snapshot(answer)).ok().map(|()| receiver)
            })
            .collect();
        async move {
            let mut whole = Snapshot::default();
            for answer in answers {
                if let Ok(Ok(part)) = tokio::time::timeout(Duration::from_secs(1), answer).await {
                    whole.merge(part);
                }
            }
            whole
        }
    }

    /// Ends the threads. One that does not end soon is named in the log and left to the end of the process.
    pub fn stop(self) {
        for handle in &self.handles {
            let _ = handle.deliver(Command::Stop);
        }
        for worker in join_within(self.threads, JOIN) {
            tracing::warn!(event = "worker.stuck", worker);
        }
    }
}

/// Joins threads until `patience` is over; returns the names of those that did not end.
fn join_within(threads: Vec<JoinHandle<()>>, patience: Duration) -> Vec<String> {
    let deadline = Instant::now() + patience;
    let mut stuck = Vec::new();
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if thread.is_finished() {
            let _ = thread.join();
        } else {
            stuck.push(thread.thread().name().unwrap_or("unnamed").to_owned());
        }
    }
    stuck
}

/// Cores that this process may run on; a container or `taskset` may have left it few.
fn allowed_cores() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
    let cores: Vec<_> =
        (0..nix::sched::CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect();
    if cores.is_empty() { vec![0] } else { cores }
}

/// The ways to as many workers as there are inheritances, and what each starts with.
fn starts(
    config: &WorkerConfig,
    kernel: KernelEnds,
    events: &mpsc::Sender<UserEvent>,
    players: &PlayerSockets,
    inherited: Vec<Option<worker::inventory::Inherited>>,
) -> (Vec<WorkerHandle>, Vec<(worker::Start, Commands)>) {
    let cores = allowed_cores();
    let count = inherited.len();
    let (handles, receivers): (Vec<_>, Vec<_>) = (0..count).map(WorkerHandle::new).unzip();
    let mut kernel = kernel.into_iter();
    let starts = receivers.into_iter().enumerate().zip(inherited).map(|((index, commands), inherited)| {
        let start = worker::Start {
            index,
            kernel: kernel.next().unwrap_or(Err(UserReason::Capped)),
            // The control thread has the first core to itself where there is more than one.
            core: cores
                .iter()
                .cycle()
                .nth(index + usize::from(cores.len() > count))
                .copied()
                .filter(|_| config.pin),
            players: players.clone(),
            workers: handles.clone(),
            events: events.clone(),
            inherited,
        };
        (start, commands)
    });
    let starts = starts.collect();
    (handles, starts)
}

/// The pairs for players, one per address family, and what an operator should change.
fn open_all_players(config: &WorkerConfig) -> io::Result<(PlayerSockets, Vec<String>)> {
    let mut players = PlayerSockets::default();
    let mut warnings = Vec::new();
    let mut port = config.player_port;
    for &address in &config.player_addresses {
        let slot = if address.is_ipv6() { &mut players.v6 } else { &mut players.v4 };
        if slot.is_some() {
            let words = format!("player address {address}: one address per family");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
        }
        match open_players(address, port, config) {
            Ok(pair) => {
                warnings.extend(buffer_warning("player RTP", pair.receive_buffer, config.receive_buffer));
                // With port 0 both families should still have the same pair where possible.
                port = if config.player_port == 0 { 0 } else { pair.ports.rtp };
                *slot = Some(pair);
            }
            // A host without IPv6 (or IPv4) serves the other family alone.
            Err(error)
                if address.is_unspecified()
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
                    ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((players, warnings))
}

fn open_players(address: IpAddr, port: u16, config: &WorkerConfig) -> io::Result<PlayerPair> {
    let (rtp, rtcp) = if port == 0 {
        udp::open_any_pair(address, config.buffers(), true)?
    } else {
        let open = |port| {
            udp::open(SocketAddr::new(address, port), config.buffers(), true).map_err(|error| {
                if error.kind() != io::ErrorKind::AddrInUse {
                    return error;
                }
                let holder = bind::holder(SocketAddr::new(address, port), Transport::Udp, Path::new("/proc"))
                    .unwrap_or_else(|| "another program".to_owned());
                let words = format!("UDP port {port} (--rtp-ports) is held by {holder}");
                io::Error::new(io::ErrorKind::AddrInUse, words)
            })
        };
        if !port.is_multiple_of(2) {
            let words = format!("--rtp-ports: {port} must be even, RTCP takes the next port");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
        }
        (open(port)?, open(port + 1)?)
    };
    udp::only_send(&rtp.socket)?;
    if address.is_ipv4() {
        // Until a viewer is behind a path that is too narrow (`LegOut::send_run`).
        udp::never_fragment(udp::descriptor(&rtp.socket))?;
    }
    let ports = PortPair { rtp: rtp.socket.local_addr()?.port(), rtcp: rtcp.socket.local_addr()?.port() };
    Ok(PlayerPair {
        receive_buffer: rtp.receive_buffer.min(rtcp.receive_buffer),
        rtp: Arc::new(rtp.socket),
        rtcp: Arc::new(rtcp.socket),
        ports,
    })
}

/// The sysctl line to paste when the kernel granted less than was asked for. It reports twice what counts.
pub(crate) fn buffer_warning(socket: &str, granted: usize, wanted: usize) -> Option<String> {
    (granted < wanted * 2).then(|| {
        format!(
            "UDP receive buffer of {socket} is {granted} bytes, wanted {}; run `sysctl -w \
             net.core.rmem_max={wanted}`",
            wanted * 2
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_end_is_named_and_left() {
        let (release, stuck) = std::sync::mpsc::channel::<()>();
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let stuck = named("data-0").spawn(move || assert!(stuck.recv().is_err())).unwrap();
        let quick = named("data-1").spawn(|| {}).unwrap();
        assert_eq!(join_within(vec![stuck, quick], JOIN), ["data-0"]);
        drop(release);
    }
}
