//! Sessions with cameras when a proxy hands over. Holds the login of the route: `Debug` does not show it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use msm_graph::{ConnId, PortPair};
use msm_handover::{Anchor, Malformed, Moment};
use msm_rtsp::auth::inventory::CredentialsInventory;
use msm_rtsp::auth::{BasicPolicy, Credentials};
use msm_rtsp::client::inventory::ClientInventory;
use msm_rtsp::client::{Client, ClientConfig};
use msm_rtsp::message::Status;
use msm_rtsp::transport::{Agreed, LowerTransport, Profile};
use serde::{Deserialize, Serialize};

use super::{Demand, Phase, Upstream, UpstreamMedia};
use crate::config::{Config, PullTransport};
use crate::resolve::SourceRoute;

/// An [`Upstream`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpstreamInventory {
    route: RouteInventory,
    cnonce: [u8; 8],
    phase: PhaseInventory,
    #[serde(default)]
    conn: Option<ConnId>,
    #[serde(default)]
    client: Option<ClientInventory>,
    #[serde(default)]
    local: Option<SocketAddr>,
    #[serde(default)]
    peer: Option<SocketAddr>,
    #[serde(default)]
    last_peer: Option<IpAddr>,
    /// Index, control URL, profile.
    #[serde(default)]
    media: Vec<(usize, String, Profile)>,
    #[serde(default)]
    next: usize,
    #[serde(default)]
    interleaved: bool,
    #[serde(default)]
    prefers_tcp: bool,
    #[serde(default)]
    refused_tcp: bool,
    #[serde(default)]
    agreed: Vec<Option<Agreed>>,
    #[serde(default)]
    ports: Vec<Option<PortPair>>,
    #[serde(default)]
    generation: u32,
    #[serde(default)]
    stage: u32,
    /// Viewers play; requests wait for the SDP.
    #[serde(default)]
    demand: (bool, bool),
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    failure: Option<(Moment, u16)>,
    #[serde(default)]
    deadline: Option<Moment>,
    #[serde(default)]
    linger: Option<Moment>,
    #[serde(default)]
    probe: Option<Moment>,
    #[serde(default)]
    has_inputs: bool,
    #[serde(default)]
    active: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RouteInventory {
    host: String,
    port: u16,
    url: String,
    #[serde(default)]
    credentials: Option<CredentialsInventory>,
    #[serde(default)]
    basic: bool,
    /// `auto`, `udp` or `tcp`.
    transport: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseInventory {
    Idle,
    Dialling,
    Describing,
    Described,
    Ports,
    SettingUp,
    Installing,
    Starting,
    Playing,
    Closing,
    Backoff,
}

macro_rules! phases {
    ($($name:ident)*) => {
        impl From<Phase> for PhaseInventory {
            fn from(phase: Phase) -> Self {
                match phase { $(Phase::$name => Self::$name,)* }
            }
        }

        impl From<PhaseInventory> for Phase {
            fn from(phase: PhaseInventory) -> Self {
                match phase { $(PhaseInventory::$name => Self::$name,)* }
            }
        }
    };
}

phases!(Idle Dialling Describing Described Ports SettingUp Installing Starting Playing Closing Backoff);

impl SourceRoute {
    fn inventory(&self) -> RouteInventory {
        RouteInventory {
            host: self.host.clone(),
            port: self.port,
            url: self.url.clone(),
            credentials: self.credentials.as_ref().map(Credentials::inventory),
            basic: self.basic == BasicPolicy::Allow,
            transport: match self.transport {
                PullTransport::Auto => "auto",
                PullTransport::Udp => "udp",
                PullTransport::Tcp => "tcp",
            }
            .to_owned(),
        }
    }

    fn restore(inventory: RouteInventory) -> Result<Self, Malformed> {
        Ok(Self {
            host: inventory.host,
            port: inventory.port,
            url: inventory.url,
            credentials: inventory.credentials.map(Credentials::restore),
            basic: if inventory.basic { BasicPolicy::Allow } else { BasicPolicy::Refuse },
            transport: match inventory.transport.as_str() {
                "auto" => PullTransport::Auto,
                "udp" => PullTransport::Udp,
                "tcp" => PullTransport::Tcp,
                _ => return Err(Malformed::new("route", "of an unknown transport")),
            },
        })
    }
}

impl Upstream {
    /// The connection that is being opened.
    pub(crate) fn conn_being_dialled(&self) -> Option<ConnId> {
        self.conn.filter(|_| self.phase == Phase::Dialling)
    }

    /// Writes it down. Its outputs must have been taken.
    pub(crate) fn inventory(&self, at: &Anchor) -> UpstreamInventory {
        // A new field is noticed here: what matters of it needs a line below and in `restore`.
        let Self {
            route: _,
            agent: _,
            cnonce: _,
            times: _,
            phase: _,
            conn: _,
            client: _,
            local: _,
            peer: _,
            last_peer: _,
            media: _,
            next: _,
            lower: _,
            prefers_tcp: _,
            refused_tcp: _,
            agreed: _,
            ports: _,
            generation: _,
            stage: _,
            demand: _,
            attempts: _,
            failures: _,
            failure: _,
            deadline: _,
            linger: _,
            probe: _,
            has_inputs: _,
            active: _,
            outputs: _,
        } = self;
        let moment = |instant: Option<Instant>| instant.map(|instant| at.moment(instant));
        UpstreamInventory {
            route: self.route.inventory(),
            cnonce: self.cnonce,
            phase: self.phase.into(),
            conn: self.conn,
            client: self.client.as_ref().map(|client| client.inventory(at)),
            local: self.local,
            peer: self.peer,
            last_peer: self.last_peer,
            media: self.media.iter().map(|m| (m.index, m.url.clone(), m.profile)).collect(),
            next: self.next,
            interleaved: self.lower == LowerTransport::Tcp,
            prefers_tcp: self.prefers_tcp,
            refused_tcp: self.refused_tcp,
            agreed: self.agreed.clone(),
            ports: self.ports.clone(),
            generation: self.generation,
            stage: self.stage,
            demand: (self.demand.playing, self.demand.waiting),
            attempts: self.attempts,
            failures: self.failures,
            failure: self.failure.map(|(since, status)| (at.moment(since), status.0)),
            deadline: moment(self.deadline),
            linger: moment(self.linger),
            probe: moment(self.probe),
            has_inputs: self.has_inputs,
            active: self.active,
        }
    }

    /// As it was.
    pub(crate) fn restore(
        inventory: UpstreamInventory,
        config: &Config,
        at: &Anchor,
    ) -> Result<Self, Malformed> {
        let instant = |moment: Option<Moment>| moment.map(|moment| at.instant(moment));
        let route = SourceRoute::restore(inventory.route)?;
        let mut upstream = Self::new(route, config.agent.clone(), config.times.clone(), inventory.cnonce);
        upstream.phase = inventory.phase.into();
        upstream.conn = inventory.conn;
        upstream.client = match inventory.client {
            None => None,
            Some(client) => Some(Client::restore(client, upstream.client_config(), at)?),
        };
        upstream.local = inventory.local;
        upstream.peer = inventory.peer;
        upstream.last_peer = inventory.last_peer;
        let media = inventory.media.into_iter();
        upstream.media = media.map(|(index, url, profile)| UpstreamMedia { index, url, profile }).collect();
        upstream.next = inventory.next;
        upstream.lower = if inventory.interleaved { LowerTransport::Tcp } else { LowerTransport::Udp };
        upstream.prefers_tcp = inventory.prefers_tcp;
        upstream.refused_tcp = inventory.refused_tcp;
        upstream.agreed = inventory.agreed;
        upstream.ports = inventory.ports;
        upstream.generation = inventory.generation;
        upstream.stage = inventory.stage;
        upstream.demand = Demand { playing: inventory.demand.0, waiting: inventory.demand.1 };
        upstream.attempts = inventory.attempts;
        upstream.failures = inventory.failures;
        upstream.failure = inventory.failure.map(|(since, status)| (at.instant(since), Status(status)));
        upstream.deadline = instant(inventory.deadline);
        upstream.linger = instant(inventory.linger);
        upstream.probe = instant(inventory.probe);
        upstream.has_inputs = inventory.has_inputs;
        upstream.active = inventory.active;
        Ok(upstream)
    }

    pub(super) fn client_config(&self) -> ClientConfig {
        ClientConfig {
            url: self.route.url.clone(),
            agent: self.agent.clone(),
            credentials: self.route.credentials.clone(),
            basic: self.route.basic,
            cnonce: self.cnonce,
            reply: self.times.upstream_reply,
        }
    }
}
