//! The session logic when a proxy hands over: the next program's is the same machine, so that nobody who
//! talks to it can tell.
//!
//! What belongs to one part is written down beside it; here is the whole, and what is asked for again. The
//! configuration is the next program's own.

use msm_graph::{ConnId, LegOp, StreamId};
use msm_handover::{Anchor, Malformed, Moment};
use msm_rtsp::auth::inventory::LimiterInventory;
use serde::{Deserialize, Serialize};

use crate::catalog::inventory::StreamInventory;
use crate::catalog::{Source, Stream};
use crate::config::Config;
use crate::conns::inventory::ConnInventory;
use crate::conns::{Conn, Ticket, Wait};
use crate::event::{Action, Entropy, Now, OpToken};
use crate::quota::Quotas;
use crate::quota::inventory::QuotasInventory;
use crate::sessions::inventory::SessionInventory;
use crate::sessions::{Session, SessionKey};
use crate::timer::Wake;
use crate::{ControlPlane, Operation};

/// A [`ControlPlane`], written down. Holds session ids, nonces and the logins of cameras: it is for the next
/// program only, and its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PlaneInventory {
    last_token: u64,
    last_conn: u64,
    last_session: u64,
    names: Vec<(String, StreamId)>,
    streams: Vec<StreamInventory>,
    conns: Vec<(ConnId, ConnInventory)>,
    sessions: Vec<(u64, SessionInventory)>,
    upstream_conns: Vec<(ConnId, StreamId)>,
    /// PLAYs that wait for their gate: token, connection, number of the request.
    arms: Vec<(u64, ConnId, u64)>,
    quotas: QuotasInventory,
    limiter: LimiterInventory,
}

impl std::fmt::Debug for PlaneInventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlaneInventory")
            .field("streams", &self.streams.len())
            .field("sessions", &self.sessions.len())
            .field("conns", &self.conns.len())
            .finish_non_exhaustive()
    }
}

/// Why the session logic cannot be handed over now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The packet path has not answered yet; it will within milliseconds.
    #[error("an operation of the packet path is not answered yet")]
    Operation,
    /// There are actions that nobody has taken.
    #[error("actions wait to be executed")]
    Actions,
    /// The process is ending.
    #[error("the process is ending")]
    Ending,
}

impl ControlPlane {
    /// Writes it down, once every action has been taken.
    ///
    /// # Errors
    /// [`Busy`]; of its reasons only [`Busy::Operation`] passes.
    pub fn inventory(&self, at: &Anchor) -> Result<PlaneInventory, Busy> {
        if self.ending.is_some() {
            return Err(Busy::Ending);
        }
        if !self.actions.is_empty() || !self.runnable.is_empty() {
            return Err(Busy::Actions);
        }
        let mut arms = Vec::new();
        for (token, operation) in &self.operations {
            match operation {
                Operation::Request(ticket) if self.waits_for_gate(*ticket) => {
                    arms.push((token.0, ticket.conn, ticket.seq));
                }
                // Its request was given up: nobody wants the answer.
                Operation::Request(ticket) if !self.is_current(*ticket) => {}
                _ => return Err(Busy::Operation),
            }
        }
        arms.sort_unstable();
        let conns: Result<Vec<_>, Busy> =
            self.conns.iter().map(|(id, conn)| Ok((*id, conn.inventory(at)?))).collect();
        let mut streams: Vec<_> = self.catalog.streams.values().collect();
        streams.sort_by_key(|stream| stream.id);
        Ok(PlaneInventory {
            last_token: self.last_token,
            last_conn: self.last_conn,
            last_session: self.last_session,
            names: self.catalog.names.iter().map(|(name, id)| (name.clone(), *id)).collect(),
            streams: streams.into_iter().map(|stream| stream.inventory(at)).collect(),
            conns: conns?,
            sessions: self.sessions.iter().map(|(key, session)| (key.0, session.inventory(at))).collect(),
            upstream_conns: self.upstream_conns.iter().map(|(conn, stream)| (*conn, *stream)).collect(),
            arms,
            quotas: self.quotas.inventory(at),
            limiter: self.access.limiter().inventory(at),
        })
    }

    fn is_current(&self, ticket: Ticket) -> bool {
        let busy = self.conns.get(&ticket.conn).and_then(|conn| conn.busy.as_ref());
        busy.is_some_and(|busy| busy.seq == ticket.seq)
    }

    fn waits_for_gate(&self, ticket: Ticket) -> bool {
        let busy = self.conns.get(&ticket.conn).and_then(|conn| conn.busy.as_ref());
        busy.is_some_and(|busy| busy.seq == ticket.seq && matches!(busy.wait, Wait::Play(..)))
    }

    /// As it was, under the configuration of this program. What was being asked for is asked for again:
    /// connections to cameras that were being opened, gates that PLAYs wait for.
    ///
    /// # Errors
    /// [`Malformed`]. A configuration that cannot be used is one too.
    pub fn restore(
        config: Config,
        entropy: Box<dyn Entropy>,
        inventory: PlaneInventory,
        at: &Anchor,
        now: Now,
    ) -> Result<Self, Malformed> {
        let mut plane =
            Self::new(config, entropy).map_err(|error| Malformed::new("configuration", error.to_string()))?;
        plane.last_token = inventory.last_token;
        plane.last_conn = inventory.last_conn;
        plane.last_session = inventory.last_session;
        plane.quotas = Quotas::restore(inventory.quotas, &plane.config.limits, at);
        plane.access.set_limiter(inventory.limiter, at);
        plane.catalog.names = inventory.names.into_iter().collect();
        for stream in inventory.streams {
            let (mut stream, armed) = Stream::restore(stream, &plane.config, at)?;
            if let Some(due) = armed {
                plane.timers.arm(&mut stream.armed, at.instant(due), Wake::Upstream(stream.id));
            }
            plane.catalog.streams.insert(stream.id, stream);
        }
        plane.upstream_conns = inventory.upstream_conns.into_iter().collect();
        for (id, conn) in inventory.conns {
            let (mut conn, armed) = Conn::restore(conn, at);
            conn.arm_again(&mut plane.timers, id, armed, at);
            if conn.has_next() {
                plane.runnable.push_back(id);
            }
            plane.conns.insert(id, Box::new(conn));
        }
        for (key, session) in inventory.sessions {
            plane.adopt_session(SessionKey(key), session, at)?;
        }
        plane.redial();
        for (token, conn, seq) in inventory.arms {
            plane.rearm(now, OpToken(token), Ticket { conn, seq });
        }
        Ok(plane)
    }

    fn adopt_session(
        &mut self,
        key: SessionKey,
        inventory: SessionInventory,
        at: &Anchor,
    ) -> Result<(), Malformed> {
        let (session, armed) = Session::restore(inventory, &self.config.times, at)?;
        self.session_ids.insert(session.server.id().to_owned(), key);
        if session.server.role() == msm_rtsp::server::Role::Play {
            self.session_legs.insert(session.leg, key);
        }
        let session = self.sessions.entry(key).insert_entry(Box::new(session)).into_mut();
        if let Some(due) = armed {
            session.arm_again(&mut self.timers, key, at.instant(due));
        }
        Ok(())
    }

    /// Attempts to reach cameras ended with the process that made them.
    fn redial(&mut self) {
        for stream in self.catalog.streams.values() {
            if let Source::Pull(upstream) = &stream.source
                && let Some(conn) = upstream.conn_being_dialled()
            {
                let (host, port) = (upstream.route().host.clone(), upstream.route().port);
                self.actions.push_back(Action::Dial { conn, host, port, stream: stream.id });
            }
        }
    }

    /// Answers that a PLAY waits for would have gone to the process before.
    fn rearm(&mut self, now: Now, token: OpToken, ticket: Ticket) {
        let busy = self.conns.get(&ticket.conn).and_then(|conn| conn.busy.as_ref());
        let Some(Wait::Play(key, until)) = busy.filter(|busy| busy.seq == ticket.seq).map(|busy| &busy.wait)
        else {
            return;
        };
        let Some(session) = self.sessions.get(key) else { return };
        let wait_millis = until.saturating_duration_since(now.instant).as_millis() as u32;
        let op = LegOp::Arm { leg: session.leg, wait_millis };
        self.operations.insert(token, Operation::Request(ticket));
        self.actions.push_back(Action::Leg { token, op });
    }

    /// Forgets a pulled stream whose source the configuration has changed, once nothing of it is open: a
    /// program that took over knew the old one only.
    pub(crate) fn forget_changed_pull(&mut self, name: &str) {
        let Some(id) = self.catalog.find(name) else { return };
        let Some(route) = self.resolver.resolve(name) else { return };
        let Some(Stream { source: Source::Pull(upstream), legs, .. }) = self.catalog.get(id) else { return };
        if upstream.route() != route && upstream.is_idle() && legs.is_empty() {
            self.catalog.streams.remove(&id);
            self.catalog.names.retain(|_, stream| *stream != id);
        }
    }
}

/// Deadline that the timers are to know of again.
pub(crate) type Armed = Option<Moment>;
