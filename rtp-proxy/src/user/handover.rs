//! All workers when a proxy hands over: they stand still together, or start together with what others had.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use msm_graph::{ConnId, PortPair};
use msm_handover::{Anchor, Malformed};
use msm_rtsp::conn::ConnLimits;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::tcp::inventory::{ConnInventory, RestoredConn, restore};
use super::tcp::{ConnParts, GuestQueue, guest_queue};
use super::udp::{self, Bound};
use super::worker::inventory::{
    Freeze, Inherited, InheritedConn, InheritedPair, PairInventory, Phase, WorkerInventory,
};
use super::worker::{Command, PlayerPeer};
use super::{KernelEnds, PlayerPair, PlayerSockets, UserEvent, WorkerConfig, Workers, input_pair::PairId};
use crate::install::inventory::InheritedConn as KnownConn;

/// Longest wait for a worker to do what it is told while it stands still.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pair of one address family that viewers are served from, by the numbers of its descriptors.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct PlayersInventory {
    pub(crate) rtp: i32,
    pub(crate) rtcp: i32,
}

/// Workers that stand still. They go on when this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen {
    workers: Vec<Sender<Phase>>,
}

impl Workers {
    /// Has every worker stand still.
    ///
    /// # Errors
    /// One of them does not answer. All of them go on.
    pub(crate) fn freeze(&self) -> Result<Frozen, &'static str> {
        let mut frozen = Frozen { workers: Vec::new() };
        let mut still = Vec::new();
        for handle in &self.handles {
            let (told, answer) = channel();
            let (phases, receiver) = channel();
            let freeze = Freeze { still: told, phases: receiver };
            if handle.deliver(Command::Freeze(freeze)).is_err() {
                return Err("a worker has ended");
            }
            frozen.workers.push(phases);
            still.push(answer);
        }
        wait(still)?;
        // Twice: what one worker takes in of others may be for connections of a third.
        for _ in 0..2 {
            let answers = frozen.ask(Phase::Settle);
            wait(answers)?;
        }
        Ok(frozen)
    }

    /// The pairs that viewers are served from.
    pub(crate) fn players_inventory(&self) -> Vec<PlayersInventory> {
        let pairs = [&self.players.v4, &self.players.v6].into_iter().flatten();
        pairs
            .map(|pair| PlayersInventory { rtp: pair.rtp.as_raw_fd(), rtcp: pair.rtcp.as_raw_fd() })
            .collect()
    }
}

fn wait<T>(answers: Vec<Receiver<T>>) -> Result<Vec<T>, &'static str> {
    let deadline = Instant::now() + PATIENCE;
    answers
        .into_iter()
        .map(|answer| answer.recv_timeout(deadline.saturating_duration_since(Instant::now())))
        .collect::<Result<_, _>>()
        .map_err(|_| "a worker does not answer")
}

impl Frozen {
    /// Lets the workers stand still for ever: everything is another process's. Their threads end with this one.
    pub(crate) fn leave(self) {
        for worker in &self.workers {
            let _ = worker.send(Phase::Leave);
        }
    }

    fn ask<T>(&self, phase: impl Fn(Sender<T>) -> Phase) -> Vec<Receiver<T>> {
        let ask = |worker: &Sender<Phase>| {
            let (to, answer) = channel();
            // One that is gone drops the question, and so the answer.
            let _ = worker.send(phase(to));
            answer
        };
        self.workers.iter().map(ask).collect()
    }

    /// What each worker has.
    ///
    /// # Errors
    /// One of them does not answer.
    pub(crate) fn report(&self, at: Anchor) -> Result<Vec<WorkerInventory>, &'static str> {
        let reports = wait(self.ask(|to| Phase::Report(at, to)))?;
        Ok(reports.into_iter().map(|report| *report).collect())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.send(Phase::Resume);
        }
    }
}

/// Descriptors that arrived, by their numbers in the program that sent them. Each is used once.
#[derive(Debug)]
pub(crate) struct Descriptors(pub(crate) HashMap<i32, OwnedFd>);

impl Descriptors {
    pub(crate) fn take(&mut self, number: i32) -> Result<OwnedFd, Malformed> {
        self.0.remove(&number).ok_or_else(|| Malformed::new("descriptor", "not there"))
    }
}

/// Everything of the data path, as it arrived.
#[derive(Debug)]
pub(crate) struct Estate {
    pub(crate) players: Vec<PlayersInventory>,
    pub(crate) workers: Vec<WorkerInventory>,
    pub(crate) control: Vec<ConnInventory>,
    pub(crate) descriptors: Descriptors,
    pub(crate) at: Anchor,
}

/// Workers that stand, with everything they had before, and wait for the word to go.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) workers: Workers,
    /// Every connection, as the executor is to know it.
    pub(crate) conns: Vec<KnownConn>,
    /// Connections that live on the control thread.
    pub(crate) control: Vec<ConnParts>,
    go: Vec<Sender<()>>,
}

impl Waiting {
    /// Lets them go.
    pub(crate) fn go(&mut self) {
        for worker in self.go.drain(..) {
            let _ = worker.send(());
        }
    }
}

/// The worker that one of the former program's is, of so many.
pub(crate) fn place(former: usize, workers: usize) -> usize {
    former % workers.max(1)
}

impl Workers {
    /// Starts the threads with what those of the former program had. They wait for [`Waiting::go`] and have
    /// touched nothing before; dropping [`Waiting`] without it ends them.
    ///
    /// # Errors
    /// An inventory that cannot be taken over, a thread that cannot be started.
    pub(crate) fn inherit(
        config: WorkerConfig,
        kernel: KernelEnds,
        events: mpsc::Sender<UserEvent>,
        limits: &Arc<ConnLimits>,
        estate: Estate,
    ) -> Result<Waiting, Malformed> {
        let Estate { players, workers: former, control, mut descriptors, at } = estate;
        let count = config.worker_count();
        let players = restore_players(&players, &mut descriptors, &config)?;
        let mut conns = Vec::new();
        let mut inherited: Vec<Inherited> = Vec::new();
        let mut gates = Vec::new();
        for _ in 0..count {
            let (ready, answer) = channel();
            let (go, word) = channel();
            gates.push((answer, go));
            inherited.push(Inherited {
                inventory: WorkerInventory::default(),
                pairs: Vec::new(),
                conns: Vec::new(),
                away: HashMap::new(),
                peers: Vec::new(),
                at,
                ready,
                go: word,
            });
        }
        let mut queues: Vec<(ConnId, usize, GuestQueue)> = Vec::new();
        let mut peers = Vec::new();
        for (index, mut worker) in former.into_iter().enumerate() {
            let home = place(index, count);
            let Some(mine) = inherited.get_mut(home) else { continue };
            for conn in std::mem::take(&mut worker.conns) {
                let socket = descriptors.take(conn.descriptor)?;
                let (id, peer) = (conn.id, conn.peer);
                let place = |former| place(former, count);
                let RestoredConn { handle, parts, bindings, has_guests } =
                    restore(conn, socket, limits.clone(), events.clone(), Some(home), place, &at)?;
                let (queue, guests) = if has_guests {
                    let (queue, guests) = guest_queue(id);
                    queues.push((id, home, queue.clone()));
                    (Some(queue), Some(guests))
                } else {
                    (None, None)
                };
                conns.push(KnownConn { id, handle, peer, home: Some(home), guests: queue });
                mine.conns.push(InheritedConn { parts, bindings, guests });
            }
            for pair in std::mem::take(&mut worker.pairs) {
                mine.pairs.push(restore_pair(pair, &mut descriptors)?);
            }
            for stream in &worker.streams {
                peers.extend(stream.viewers().map(|(addr, leg, track)| {
                    (addr, PlayerPeer { worker: home, stream: stream.id, leg, track })
                }));
            }
            mine.inventory.merge(worker);
        }
        for (id, home, queue) in queues {
            for (index, worker) in inherited.iter_mut().enumerate().filter(|(index, _)| *index != home) {
                let _ = index;
                worker.away.insert(id, queue.clone());
            }
        }
        if let Some(first) = inherited.first_mut() {
            first.peers = peers;
        }
        let mut on_control = Vec::new();
        for conn in control {
            let socket = descriptors.take(conn.descriptor)?;
            let (id, peer) = (conn.id, conn.peer);
            let place = |former| place(former, count);
            let RestoredConn { handle, parts, .. } =
                restore(conn, socket, limits.clone(), events.clone(), None, place, &at)?;
            conns.push(KnownConn { id, handle, peer, home: None, guests: None });
            on_control.push(*parts);
        }
        let inherited = inherited.into_iter().map(Some).collect();
        let workers = Self::spawn(config, kernel, events, players, Vec::new(), inherited)
            .map_err(|error| Malformed::new("worker", error.to_string()))?;
        let (answers, go): (Vec<_>, Vec<_>) = gates.into_iter().unzip();
        for answer in wait(answers).map_err(|words| Malformed::new("worker", words))? {
            answer?;
        }
        Ok(Waiting { workers, conns, control: on_control, go })
    }
}

fn bound(socket: OwnedFd) -> Result<Bound, Malformed> {
    udp::inherited(socket.into()).map_err(|error| Malformed::new("UDP socket", error.to_string()))
}

fn restore_pair(pair: PairInventory, descriptors: &mut Descriptors) -> Result<InheritedPair, Malformed> {
    let (rtp, rtcp) = (descriptors.take(pair.rtp)?, descriptors.take(pair.rtcp)?);
    Ok(InheritedPair { id: PairId(pair.id), rtp: bound(rtp)?, rtcp: bound(rtcp)?, overflow: pair.overflow })
}

fn restore_players(
    players: &[PlayersInventory],
    descriptors: &mut Descriptors,
    config: &WorkerConfig,
) -> Result<PlayerSockets, Malformed> {
    let wrong = |error: io::Error| Malformed::new("player port", error.to_string());
    let mut sockets = PlayerSockets::default();
    for pair in players {
        let (rtp, rtcp) = (bound(descriptors.take(pair.rtp)?)?, bound(descriptors.take(pair.rtcp)?)?);
        udp::only_send(&rtp.socket).map_err(wrong)?;
        let address: SocketAddr = rtp.socket.local_addr().map_err(wrong)?;
        let ports = PortPair { rtp: address.port(), rtcp: rtcp.socket.local_addr().map_err(wrong)?.port() };
        if config.player_port != 0 && config.player_port != ports.rtp {
            let words =
                format!("{} and not {}: start with the same --rtp-ports", ports.rtp, config.player_port);
            return Err(Malformed::new("player port", words));
        }
        let slot = if address.is_ipv6() { &mut sockets.v6 } else { &mut sockets.v4 };
        *slot = Some(PlayerPair {
            receive_buffer: rtp.receive_buffer.min(rtcp.receive_buffer),
            rtp: Arc::new(rtp.socket),
            rtcp: Arc::new(rtcp.socket),
            ports,
        });
    }
    Ok(sockets)
}
