//! A worker when a proxy hands over: it stands still, writes down what it has, and goes on or leaves as it is
//! told; and the worker of the next program, which starts with that and waits for the word to go.
//!
//! Standing still is blocking the thread: nothing is received, sent or timed, and all state is at rest between
//! two events. Datagrams and bytes wait in the kernel meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender};

use msm_graph::{ConnId, Report};
use msm_handover::{Anchor, Malformed};
use msm_media::drop::inventory::DropsInventory;
use serde::{Deserialize, Serialize};

use super::{Commands, PlayerPeer, Shared};
use crate::user::input_pair::{InputPair, PairId};
use crate::user::leg::Drops;
use crate::user::stream::inventory::{StreamInventory, Surroundings};
use crate::user::stream::{Entry, Input, Stream};
use crate::user::tcp::inventory::{ConnInventory, RestoredBinding};
use crate::user::tcp::{ConnParts, ConnWay, GuestQueue, Guests, run_on_worker, settle_guests};
use crate::user::udp::{self, Bound};

/// A worker, written down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WorkerInventory {
    pub(crate) streams: Vec<StreamInventory>,
    pub(crate) conns: Vec<ConnInventory>,
    pub(crate) pairs: Vec<PairInventory>,
    /// Reports that the session logic had no room for.
    pub(crate) reports: Vec<Report>,
    drops: DropsInventory,
    /// Datagrams lost to full receive buffers, by socket.
    overflows: Vec<(String, u64)>,
    /// `SO_RXQ_OVFL` of the players' sockets as last seen.
    player_overflow: [u32; 4],
    late_frames: u64,
    guests_dropped: u64,
    backlog_dropped: u64,
    refused: u64,
    /// CPU time of the thread, in nanoseconds.
    pub(crate) cpu_nanos: u64,
}

/// An [`InputPair`], written down. Its descriptors are named by their numbers in the program that wrote this.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PairInventory {
    pub(crate) id: u64,
    pub(crate) rtp: i32,
    pub(crate) rtcp: i32,
    /// `SO_RXQ_OVFL` of both as last seen.
    #[serde(default)]
    pub(crate) overflow: [u32; 2],
}

/// Tells a worker to stand still.
#[derive(Debug)]
pub(crate) struct Freeze {
    /// Told once it does.
    pub(crate) still: Sender<()>,
    /// What it is to do then; it goes on when nobody is left to tell it.
    pub(crate) phases: Receiver<Phase>,
}

/// What a worker that stands still is to do.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Take in what the other workers had sent it before they stood still.
    Settle(Sender<()>),
    /// Write down what it has.
    Report(Anchor, Sender<Box<WorkerInventory>>),
    /// Go on as if nothing had happened.
    Resume,
    /// Leave without a word to anybody: another process has everything.
    Leave,
}

/// What a worker starts with instead of nothing.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// Its connections and pairs are in the other fields, with their sockets.
    pub(crate) inventory: WorkerInventory,
    pub(crate) pairs: Vec<InheritedPair>,
    pub(crate) conns: Vec<InheritedConn>,
    /// The ways to connections of other workers.
    pub(crate) away: HashMap<ConnId, GuestQueue>,
    /// Addresses of viewers, for the worker that reads their sockets.
    pub(crate) peers: Vec<(SocketAddr, PlayerPeer)>,
    pub(crate) at: Anchor,
    /// Told when everything stands.
    pub(crate) ready: Sender<Result<(), Malformed>>,
    /// The word to go; without it the worker ends and has touched nothing.
    pub(crate) go: Receiver<()>,
}

/// A pair of ports with its sockets.
#[derive(Debug)]
pub(crate) struct InheritedPair {
    pub(crate) id: PairId,
    pub(crate) rtp: Bound,
    pub(crate) rtcp: Bound,
    pub(crate) overflow: [u32; 2],
}

/// A connection that lives on this worker.
#[derive(Debug)]
pub(crate) struct InheritedConn {
    pub(crate) parts: Box<ConnParts>,
    pub(crate) bindings: Vec<RestoredBinding>,
    /// What streams of other workers send.
    pub(crate) guests: Option<Guests>,
}

impl WorkerInventory {
    /// Adds what another worker had.
    pub(crate) fn merge(&mut self, other: Self) {
        self.streams.extend(other.streams);
        self.reports.extend(other.reports);
        let mut drops = Drops::restore(&self.drops);
        drops.add(&Drops::restore(&other.drops));
        self.drops = drops.inventory();
        for (socket, lost) in other.overflows {
            match self.overflows.iter_mut().find(|(known, _)| *known == socket) {
                Some((_, sum)) => *sum += lost,
                None => self.overflows.push((socket, lost)),
            }
        }
        for (mine, theirs) in self.player_overflow.iter_mut().zip(other.player_overflow) {
            *mine = (*mine).max(theirs);
        }
        self.late_frames += other.late_frames;
        self.guests_dropped += other.guests_dropped;
        self.backlog_dropped += other.backlog_dropped;
        self.refused += other.refused;
    }
}

impl Shared {
    /// Stands still until it is told to go on; for ever, if it is to leave.
    pub(super) fn stand_still(self: &Rc<Self>, freeze: Freeze, commands: &mut Commands) {
        let _ = freeze.still.send(());
        loop {
            match freeze.phases.recv() {
                Ok(Phase::Settle(done)) => {
                    while let Some(command) = commands.try_recv() {
                        self.obey(command);
                    }
                    for slot in self.conns.borrow().values() {
                        settle_guests(slot, self);
                    }
                    let _ = done.send(());
                }
                Ok(Phase::Report(at, to)) => {
                    let _ = to.send(Box::new(self.inventory(&at)));
                }
                Ok(Phase::Resume) | Err(_) => return,
                // Not one task may get another turn: a connection whose driver was woken before would write
                // what is the next program's to write. The thread ends with the process.
                Ok(Phase::Leave) => loop {
                    std::thread::park();
                },
            }
        }
    }

    fn inventory(&self, at: &Anchor) -> WorkerInventory {
        self.count_overflows();
        let streams = self.streams.borrow();
        let refused = self.workers.get(self.index).map_or(0, |handle| handle.queue().1);
        WorkerInventory {
            streams: streams.values().map(|stream| stream.borrow().inventory(at)).collect(),
            conns: self.conns.borrow().values().filter_map(|slot| slot.inventory(at)).collect(),
            pairs: self.pairs.borrow().values().map(|pair| pair.inventory()).collect(),
            reports: self.backlog.borrow().iter().cloned().collect(),
            drops: self.drops.borrow().inventory(),
            overflows: self.overflows.borrow().iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
            player_overflow: self.player_overflow.each_ref().map(Cell::get),
            late_frames: self.late_frames.get(),
            guests_dropped: self.guests_dropped.get(),
            backlog_dropped: *self.backlog_dropped.borrow(),
            refused,
            cpu_nanos: u64::try_from(udp::thread_cpu().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Takes over what a worker of the former program had, then waits for the word to go. Nothing is read from
    /// a socket before. Returns whether to go.
    pub(super) fn inherit(self: &Rc<Self>, inherited: Inherited) -> bool {
        let Inherited { inventory, pairs, conns, away, peers, at, ready, go } = inherited;
        let taken = self.take_over(inventory, pairs, conns, &away, &at);
        self.peers.borrow_mut().extend(peers);
        let failed = taken.is_err();
        let _ = ready.send(taken);
        !failed && go.recv().is_ok()
    }

    fn take_over(
        self: &Rc<Self>,
        inventory: WorkerInventory,
        pairs: Vec<InheritedPair>,
        conns: Vec<InheritedConn>,
        away: &HashMap<ConnId, GuestQueue>,
        at: &Anchor,
    ) -> Result<(), Malformed> {
        for pair in pairs {
            let open = InputPair::open(self.clone(), pair.id, pair.rtp, pair.rtcp);
            let open = open.map_err(|error| Malformed::new("pair", error.to_string()))?;
            open.set_overflow(pair.overflow);
            self.pairs.borrow_mut().insert(pair.id, open);
        }
        let way_to = |conn: ConnId| match away.get(&conn) {
            Some(queue) => ConnWay::Away(queue.clone()),
            None => ConnWay::Here(self.slot(conn)),
        };
        let pair = |id: PairId| self.pairs.borrow().get(&id).cloned();
        let from = Surroundings { players: &self.players, way_to: &way_to, pair: &pair, at };
        for stream in inventory.streams {
            let stream = Stream::restore(stream, &from)?;
            let id = stream.id;
            let cell = Rc::new(RefCell::new(stream));
            for track in &cell.borrow().tracks {
                if let Some(input @ Input { entry: Entry::Udp { pair, peer, .. }, .. }) = &track.input {
                    self.let_in(&input.row, pair);
                    pair.add_route_of(*peer, id, &cell, track.row.track);
                }
            }
            self.streams.borrow_mut().insert(id, cell);
        }
        for InheritedConn { parts, bindings, guests } in conns {
            let slot = self.slot(parts.id);
            slot.bind_again(&bindings);
            slot.admit(guests);
            tokio::task::spawn_local(run_on_worker(parts, slot, self.clone()));
        }
        // Packets that wait to be put in sequence are looked after.
        self.note_reordered();
        *self.drops.borrow_mut() = Drops::restore(&inventory.drops);
        let known = ["player_rtp", "player_rtcp", "input_rtp", "input_rtcp"];
        *self.overflows.borrow_mut() = inventory
            .overflows
            .into_iter()
            .filter_map(|(name, lost)| Some((*known.iter().find(|known| **known == name)?, lost)))
            .collect();
        for (mine, seen) in self.player_overflow.iter().zip(inventory.player_overflow) {
            mine.set(seen);
        }
        self.late_frames.set(inventory.late_frames);
        self.guests_dropped.set(inventory.guests_dropped);
        *self.backlog_dropped.borrow_mut() = inventory.backlog_dropped;
        if let Some(handle) = self.workers.get(self.index) {
            handle.set_refused(inventory.refused);
        }
        Ok(())
    }
}

impl InputPair {
    fn inventory(&self) -> PairInventory {
        PairInventory {
            id: self.id.0,
            rtp: udp::descriptor(self.rtp.get_ref()),
            rtcp: udp::descriptor(self.rtcp.get_ref()),
            overflow: self.overflow(),
        }
    }
}
