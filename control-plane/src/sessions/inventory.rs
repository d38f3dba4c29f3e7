//! Sessions when a proxy hands over.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use msm_graph::{ConnId, LegId, LegTrack, StreamId};
use msm_handover::{Anchor, Malformed, Moment};
use msm_rtsp::server::inventory::ServerSessionInventory;
use msm_rtsp::server::{ServerSession, SessionTimes};
use serde::{Deserialize, Serialize};

use super::{Session, SessionKey};
use crate::config::Times;
use crate::inventory::Armed;
use crate::quota::inventory::IdentityInventory;
use crate::timer::{Timers, Wake};

/// A [`Session`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionInventory {
    server: ServerSessionInventory,
    #[serde(default)]
    conn: Option<ConnId>,
    peer: SocketAddr,
    local: IpAddr,
    identity: IdentityInventory,
    stream: StreamId,
    name: String,
    leg: LegId,
    #[serde(default)]
    tracks: Vec<LegTrack>,
    #[serde(default)]
    urls: Vec<(usize, String)>,
    #[serde(default)]
    warm: bool,
    #[serde(default)]
    attached: bool,
    #[serde(default)]
    counted: bool,
    #[serde(default)]
    starting: bool,
    #[serde(default)]
    legs_counted: u32,
    #[serde(default)]
    lost_at: Option<Moment>,
    #[serde(default)]
    began: Moment,
    #[serde(default)]
    armed: Option<Moment>,
}

impl Session {
    /// Writes it down.
    pub(crate) fn inventory(&self, at: &Anchor) -> SessionInventory {
        SessionInventory {
            server: self.server.inventory(at),
            conn: self.conn,
            peer: self.peer,
            local: self.local,
            identity: (&self.identity).into(),
            stream: self.stream,
            name: self.name.clone(),
            leg: self.leg,
            tracks: self.tracks.clone(),
            urls: self.urls.iter().map(|(media, url)| (*media, url.clone())).collect(),
            warm: self.warm,
            attached: self.attached,
            counted: self.counted,
            starting: self.starting,
            legs_counted: self.legs_counted,
            lost_at: self.lost_at.map(|lost| at.moment(lost)),
            began: at.moment(self.began),
            armed: self.armed.map(|armed| at.moment(armed)),
        }
    }

    /// As it was, and its deadline.
    pub(crate) fn restore(
        inventory: SessionInventory,
        times: &Times,
        at: &Anchor,
    ) -> Result<(Self, Armed), Malformed> {
        let times = SessionTimes {
            advertised: times.session_advertised,
            enforced: times.session_enforced,
            lease: times.lease,
        };
        let session = Self {
            server: ServerSession::restore(inventory.server, times, at)?,
            conn: inventory.conn,
            peer: inventory.peer,
            local: inventory.local,
            identity: inventory.identity.into(),
            stream: inventory.stream,
            name: inventory.name,
            leg: inventory.leg,
            tracks: inventory.tracks,
            urls: inventory.urls.into_iter().collect(),
            warm: inventory.warm,
            attached: inventory.attached,
            counted: inventory.counted,
            starting: inventory.starting,
            legs_counted: inventory.legs_counted,
            lost_at: inventory.lost_at.map(|lost| at.instant(lost)),
            began: at.instant(inventory.began),
            armed: None,
        };
        Ok((session, inventory.armed))
    }

    /// Lets the timers know of its deadline.
    pub(crate) fn arm_again(&mut self, timers: &mut Timers, key: SessionKey, due: Instant) {
        timers.arm(&mut self.armed, due, Wake::Session(key));
    }
}
