//! Streams when a proxy hands over.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use msm_graph::{ConnId, InputRow, StreamId, TrackId, TrackRow};
use msm_handover::{Anchor, Blob, Malformed, Moment};
use msm_rtsp::url::ResourceUrl;
use msm_rtsp::url::inventory::UrlInventory;
use serde::{Deserialize, Serialize};

use super::{Publication, Source, Stream};
use crate::config::Config;
use crate::description::Description;
use crate::inventory::Armed;
use crate::quota::inventory::IdentityInventory;
use crate::sessions::SessionKey;
use crate::upstream::Upstream;
use crate::upstream::inventory::UpstreamInventory;

/// A [`Stream`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamInventory {
    id: StreamId,
    name: String,
    source: SourceInventory,
    /// The SDP as it was understood.
    #[serde(default)]
    description: Option<Blob>,
    #[serde(default)]
    sdp_id: u64,
    #[serde(default)]
    sdp_version: u64,
    #[serde(default)]
    tracks: Vec<TrackRow>,
    #[serde(default)]
    inputs: Vec<InputRow>,
    #[serde(default)]
    has_row: bool,
    #[serde(default)]
    generation: u32,
    #[serde(default)]
    legs: Vec<u64>,
    #[serde(default)]
    playing: usize,
    #[serde(default)]
    waiting: Vec<ConnId>,
    #[serde(default)]
    active_since: Option<Moment>,
    #[serde(default)]
    silent: bool,
    #[serde(default)]
    silent_tracks: BTreeSet<TrackId>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    ever_active: bool,
    #[serde(default)]
    armed: Option<Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SourceInventory {
    Pull(Box<UpstreamInventory>),
    Publish(Box<PublicationInventory>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PublicationInventory {
    #[serde(default)]
    conn: Option<ConnId>,
    #[serde(default)]
    session: Option<u64>,
    base: UrlInventory,
    #[serde(default)]
    recording: bool,
    peer: IpAddr,
    identity: IdentityInventory,
    #[serde(default)]
    seen: Moment,
    #[serde(default)]
    contender: Option<ConnId>,
}

impl Stream {
    /// Writes it down.
    pub(crate) fn inventory(&self, at: &Anchor) -> StreamInventory {
        // A new field is noticed here: what matters of it needs a line below and in `restore`.
        let Self {
            id: _,
            name: _,
            source: _,
            description: _,
            sdp_id: _,
            sdp_version: _,
            tracks: _,
            inputs: _,
            has_row: _,
            generation: _,
            legs: _,
            playing: _,
            waiting: _,
            active_since: _,
            silent: _,
            silent_tracks: _,
            error: _,
            ever_active: _,
            armed: _,
        } = self;
        let source = match &self.source {
            Source::Pull(upstream) => SourceInventory::Pull(Box::new(upstream.inventory(at))),
            Source::Publish(publication) => SourceInventory::Publish(Box::new(PublicationInventory {
                conn: publication.conn,
                session: publication.session.map(|key| key.0),
                base: publication.base.inventory(),
                recording: publication.recording,
                peer: publication.peer,
                identity: (&publication.identity).into(),
                seen: at.moment(publication.seen),
                contender: publication.contender,
            })),
        };
        StreamInventory {
            id: self.id,
            name: self.name.clone(),
            source,
            description: self.description.as_ref().map(|description| description.source().into()),
            sdp_id: self.sdp_id,
            sdp_version: self.sdp_version,
            tracks: self.tracks.clone(),
            inputs: self.inputs.clone(),
            has_row: self.has_row,
            generation: self.generation,
            legs: self.legs.iter().map(|key| key.0).collect(),
            playing: self.playing,
            waiting: self.waiting.clone(),
            active_since: self.active_since.map(|since| at.moment(since)),
            silent: self.silent,
            silent_tracks: self.silent_tracks.clone(),
            error: self.error.clone(),
            ever_active: self.ever_active,
            armed: self.armed.map(|armed| at.moment(armed)),
        }
    }

    /// As it was, and its deadline.
    pub(crate) fn restore(
        inventory: StreamInventory,
        config: &Config,
        at: &Anchor,
    ) -> Result<(Self, Armed), Malformed> {
        let source = match inventory.source {
            SourceInventory::Pull(upstream) => {
                Source::Pull(Box::new(Upstream::restore(*upstream, config, at)?))
            }
            SourceInventory::Publish(publication) => Source::Publish(Box::new(Publication {
                conn: publication.conn,
                session: publication.session.map(SessionKey),
                base: ResourceUrl::restore(publication.base)?,
                recording: publication.recording,
                peer: publication.peer,
                identity: publication.identity.into(),
                seen: at.instant(publication.seen),
                contender: publication.contender,
            })),
        };
        let description = match inventory.description {
            None => None,
            Some(Blob(sdp)) => {
                let parsed = Description::parse(&sdp);
                Some(Arc::new(parsed.map_err(|error| Malformed::new("description", error.to_string()))?))
            }
        };
        let mut stream = Self::new(inventory.id, inventory.name, source, inventory.sdp_id);
        stream.description = description;
        stream.sdp_version = inventory.sdp_version;
        stream.tracks = inventory.tracks;
        stream.inputs = inventory.inputs;
        stream.has_row = inventory.has_row;
        stream.generation = inventory.generation;
        stream.legs = inventory.legs.into_iter().map(SessionKey).collect();
        stream.playing = inventory.playing;
        stream.waiting = inventory.waiting;
        stream.active_since = inventory.active_since.map(|since| at.instant(since));
        stream.silent = inventory.silent;
        stream.silent_tracks = inventory.silent_tracks;
        stream.error = inventory.error;
        stream.ever_active = inventory.ever_active;
        Ok((stream, inventory.armed))
    }
}
