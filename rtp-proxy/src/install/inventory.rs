//! What the executor knows when a proxy hands over, and the executor of the next program.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};

use msm_graph::{ConnId, Epoch, LegSpec, PortPair, Row, TrackId};
use msm_handover::Anchor;
use serde::{Deserialize, Serialize};

use super::ports::KnownPair;
use super::{Installer, KnownConn, KnownStream};
use crate::user::input_pair::PairId;
use crate::user::tcp::inventory::ConnInventory;
use crate::user::tcp::{self, ConnHandle, ConnParts, ConnSlot, GuestQueue};

/// An [`Installer`], written down, without the connections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct InstallerInventory {
    epoch: Epoch,
    streams: Vec<StreamInventory>,
    legs: Vec<LegSpec>,
    pairs: Vec<PairInventory>,
    next_pair: u64,
    cursor: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StreamInventory {
    row: Row,
    worker: usize,
    #[serde(default)]
    unused: bool,
    #[serde(default)]
    pairs: Vec<(TrackId, u64)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct PairInventory {
    id: u64,
    local: IpAddr,
    worker: usize,
    ports: PortPair,
    #[serde(default)]
    peers: Vec<IpAddr>,
}

/// A connection that came from the former program.
#[derive(Debug)]
pub(crate) struct InheritedConn {
    pub(crate) id: ConnId,
    pub(crate) handle: ConnHandle,
    pub(crate) peer: SocketAddr,
    pub(crate) home: Option<usize>,
    pub(crate) guests: Option<GuestQueue>,
}

impl Installer {
    /// Writes it down.
    pub(crate) fn inventory(&self) -> InstallerInventory {
        let state = self.0.borrow();
        let streams = state.streams.values().map(|known| StreamInventory {
            row: known.row.clone(),
            worker: known.worker,
            unused: known.unused,
            pairs: known.pairs.iter().map(|(track, pair)| (*track, pair.0)).collect(),
        });
        let pairs = state.pairs.iter().map(|pair| PairInventory {
            id: pair.id.0,
            local: pair.local,
            worker: pair.worker,
            ports: pair.ports,
            peers: pair.peers.clone(),
        });
        InstallerInventory {
            epoch: state.epoch,
            streams: streams.collect(),
            legs: state.legs.values().cloned().collect(),
            pairs: pairs.collect(),
            next_pair: state.next_pair,
            cursor: state.cursor,
        }
    }

    /// Connections that live on the control thread, written down.
    pub(crate) fn conns_on_control(&self, at: &Anchor) -> Vec<ConnInventory> {
        let state = self.0.borrow();
        state.conns.values().filter_map(|known| known.slot.upgrade()?.inventory(at)).collect()
    }

    /// Whether every connection has taken what it was told.
    pub(crate) fn conns_are_idle(&self) -> bool {
        self.0.borrow().conns.values().all(|known| known.handle.is_idle())
    }

    /// Makes it what it was. `place`: the worker that one of the former program's is now.
    pub(crate) fn restore(
        &self,
        inventory: InstallerInventory,
        conns: Vec<InheritedConn>,
        place: impl Fn(usize) -> usize,
    ) {
        let mut state = self.0.borrow_mut();
        state.epoch = inventory.epoch;
        for stream in inventory.streams {
            let pairs: HashMap<_, _> =
                stream.pairs.into_iter().map(|(track, pair)| (track, PairId(pair))).collect();
            let id = stream.row.stream;
            let worker = place(stream.worker);
            state.streams.insert(id, KnownStream { row: stream.row, worker, unused: stream.unused, pairs });
        }
        state.legs = inventory.legs.into_iter().map(|spec| (spec.leg, spec)).collect();
        state.pairs = inventory
            .pairs
            .into_iter()
            .map(|pair| KnownPair {
                id: PairId(pair.id),
                local: pair.local,
                worker: place(pair.worker),
                ports: pair.ports,
                peers: pair.peers,
            })
            .collect();
        state.next_pair = inventory.next_pair;
        state.cursor = inventory.cursor;
        for InheritedConn { id, handle, peer, home, guests } in conns {
            let known = KnownConn { handle, peer: Some(peer), home, guests, slot: Weak::new() };
            state.conns.insert(id, known);
        }
    }

    /// Drives a connection of the former program on the control thread. To be called within its `LocalSet`.
    pub(crate) fn drive(&self, parts: ConnParts) {
        let slot = Rc::new(ConnSlot::new(parts.id));
        if let Some(known) = self.0.borrow_mut().conns.get_mut(&parts.id) {
            known.slot = Rc::downgrade(&slot);
        }
        tokio::task::spawn_local(tcp::run_on_control(Box::new(parts), slot));
    }
}
