//! What there is right now, for people and for `/v1/streams`. Nothing here names an upstream URL or a
//! credential; the camera's address is for the operator, and never reaches a viewer.

use std::net::SocketAddr;

use msm_graph::{LegId, StreamId, TrackId};
use msm_rtsp::server::Role;
use msm_rtsp::transport::LowerTransport;

use crate::ControlPlane;
use crate::catalog::{Source, Stream};

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStatus {
    /// Its id; `None` for a configured pull that nobody has asked for yet.
    pub stream: Option<StreamId>,
    /// Its name.
    pub name: String,
    /// `announced`: known, nothing delivered yet · `active` · `silent`: open, and nothing arrives ·
    /// `ended`: the source is away, legs wait for it.
    pub state: &'static str,
    /// Why the source could not be reached or was lost, in people's words; gone when packets come.
    pub error: Option<String>,
    /// Where its media comes from.
    pub source: SourceStatus,
    /// Picture or sound tracks that deliver nothing while others do.
    pub silent_tracks: Vec<TrackId>,
    /// Sessions of its viewers and of its publisher.
    pub sessions: Vec<SessionStatus>,
}

/// The source of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    /// `pull` or `publish`.
    pub kind: &'static str,
    /// `udp` or `tcp`, while media is set up.
    pub transport: Option<&'static str>,
    /// Camera or publisher, while connected.
    pub peer: Option<SocketAddr>,
}

/// One RTSP session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// Its leg; `None` for a publisher.
    pub leg: Option<LegId>,
    /// Its RTSP peer.
    pub peer: SocketAddr,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// `ready`, `playing` or `recording`.
    pub state: &'static str,
}

fn lower_name(lower: LowerTransport) -> &'static str {
    match lower {
        LowerTransport::Udp => "udp",
        LowerTransport::Tcp => "tcp",
    }
}

impl ControlPlane {
    /// Every stream in order of its name, idle pulls included.
    pub fn streams(&self) -> Vec<StreamStatus> {
        let mut all: Vec<StreamStatus> =
            self.catalog.streams.values().map(|stream| self.stream_status(stream)).collect();
        for (name, _) in self.resolver.iter() {
            if self.catalog.find(name).is_none() {
                all.push(StreamStatus {
                    stream: None,
                    name: name.to_owned(),
                    state: "announced",
                    error: None,
                    silent_tracks: Vec::new(),
                    source: SourceStatus { kind: "pull", transport: None, peer: None },
                    sessions: Vec::new(),
                });
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn stream_status(&self, stream: &Stream) -> StreamStatus {
        let (source, publisher, is_open) = match &stream.source {
            Source::Pull(upstream) => {
                let transport = upstream.transport().map(lower_name);
                let source = SourceStatus { kind: "pull", transport, peer: upstream.peer() };
                (source, None, upstream.is_described())
            }
            Source::Publish(publication) => {
                let session = publication.session.and_then(|key| self.sessions.get(&key));
                let source = SourceStatus {
                    kind: "publish",
                    transport: session.map(|session| lower_name(session.server.lower())),
                    peer: session.map(|session| session.peer),
                };
                let is_connected = publication.conn.is_some_and(|conn| self.conns.contains_key(&conn));
                (source, publication.session, is_connected)
            }
        };
        let state = if stream.active_since.is_some() {
            "active"
        } else if !is_open && stream.ever_active {
            "ended"
        } else if stream.ever_active || stream.silent {
            "silent"
        } else {
            "announced"
        };
        let sessions = publisher
            .iter()
            .chain(&stream.legs)
            .filter_map(|key| self.sessions.get(key))
            .map(|session| SessionStatus {
                leg: (session.server.role() == Role::Play).then_some(session.leg),
                peer: session.peer,
                transport: lower_name(session.server.lower()),
                state: session.server.state().as_str(),
            })
            .collect();
        StreamStatus {
            stream: Some(stream.id),
            name: stream.name.clone(),
            state,
            error: stream.error.clone(),
            source,
            silent_tracks: stream.silent_tracks.iter().copied().collect(),
            sessions,
        }
    }
}
