//! The embedded control plane when a proxy hands over.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use msm_control_plane::ControlPlane;
use msm_control_plane::event::{ConnEnd, Event};
use msm_control_plane::inventory::{Busy, PlaneInventory};
use msm_graph::ConnId;
use msm_handover::Anchor;
use msm_rtsp::conn::ConnLimits;
use msm_runtime::metrics::Metrics;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Done, Open, Standalone, label_of};
use crate::install::Installer;
use crate::install::inventory::{InheritedConn, InstallerInventory};

/// A [`Standalone`], written down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StandaloneInventory {
    plane: PlaneInventory,
    installer: InstallerInventory,
    next_conn: u64,
    open: Vec<OpenInventory>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OpenInventory {
    conn: ConnId,
    /// Whether it was accepted; the others were dialled.
    #[serde(default)]
    accepted: bool,
    /// Methods of requests that wait for their answer.
    #[serde(default)]
    waiting: Vec<String>,
}

impl StandaloneInventory {
    /// The session logic.
    pub(crate) fn take_plane(&mut self) -> PlaneInventory {
        std::mem::take(&mut self.plane)
    }

    /// The executor.
    pub(crate) fn take_installer(&mut self) -> InstallerInventory {
        std::mem::take(&mut self.installer)
    }
}

impl Standalone {
    /// Whether nothing is on its way that would be lost: operations, answers to connections.
    ///
    /// # Errors
    /// What is.
    pub(crate) fn is_quiet(&self, at: &Anchor) -> Result<(), Busy> {
        if !self.installer.conns_are_idle() || !self.echoes.is_empty() {
            return Err(Busy::Actions);
        }
        self.plane.inventory(at).map(|_| ())
    }

    /// The executor of row and leg operations.
    pub(crate) fn installer(&self) -> &Installer {
        &self.installer
    }

    /// Writes it down.
    ///
    /// # Errors
    /// See [`ControlPlane::inventory`].
    pub(crate) fn inventory(&self, at: &Anchor) -> Result<StandaloneInventory, Busy> {
        let open = self.open.iter().map(|(conn, open)| OpenInventory {
            conn: *conn,
            accepted: open.peer.is_some(),
            waiting: open.waiting.iter().map(|label| (*label).to_owned()).collect(),
        });
        Ok(StandaloneInventory {
            plane: self.plane.inventory(at)?,
            installer: self.installer.inventory(),
            next_conn: self.next_conn,
            open: open.collect(),
        })
    }

    /// As it was. `conns`: the connections that came with it; those that did not have ended, and
    /// [`Standalone::resume`] says so.
    pub(crate) fn restore(
        plane: ControlPlane,
        installer: Installer,
        (limits, max_connections): (Arc<ConnLimits>, usize),
        metrics: Rc<Metrics>,
        inventory: StandaloneInventory,
        conns: &[InheritedConn],
    ) -> (Self, mpsc::Receiver<Done>) {
        let (mut standalone, done) = Self::new(plane, installer, limits, max_connections, metrics);
        standalone.next_conn = inventory.next_conn.max(standalone.next_conn);
        let by_id: HashMap<ConnId, &InheritedConn> = conns.iter().map(|conn| (conn.id, conn)).collect();
        for open in inventory.open {
            let Some(conn) = by_id.get(&open.conn) else {
                standalone.echoes.push_back(Event::Closed { conn: open.conn, end: ConnEnd::Peer });
                continue;
            };
            let waiting: VecDeque<_> = open.waiting.iter().map(|label| label_of(label)).collect();
            let peer = open.accepted.then_some(conn.peer);
            if let Some(peer) = peer {
                *standalone.accepted.entry(peer.ip()).or_default() += 1;
            }
            standalone.open.insert(open.conn, Open { handle: conn.handle.clone(), peer, waiting });
        }
        (standalone, done)
    }

    /// Does what was being done when the former program handed over.
    pub(crate) fn resume(&mut self) {
        self.execute();
    }
}
