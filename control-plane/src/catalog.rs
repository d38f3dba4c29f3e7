//! Which names there are, which stream each leads to, and what is known of every stream.
//!
//! A stream's id is assigned once and never derived from an address (M45). Two names of one source with
//! the same credentials are one stream (R6), and so one upstream session.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use msm_graph::{ConnId, InputRow, StreamId, TrackId, TrackRow};
use msm_rtsp::url::ResourceUrl;

use crate::description::Description;
use crate::quota::Identity;
use crate::sessions::SessionKey;
use crate::upstream::Upstream;

pub(crate) mod inventory;

/// A publisher's hold on a stream.
#[derive(Debug)]
pub(crate) struct Publication {
    /// The connection that announced; `None` when the publisher is away.
    pub(crate) conn: Option<ConnId>,
    /// Its session, from the first SETUP on.
    pub(crate) session: Option<SessionKey>,
    /// URL of the ANNOUNCE: controls are joined to it.
    pub(crate) base: ResourceUrl,
    /// Whether RECORD was answered.
    pub(crate) recording: bool,
    /// Address of the publisher, the last one's when it is away.
    pub(crate) peer: IpAddr,
    /// Who announced.
    pub(crate) identity: Identity,
    /// Last sign of life: a request or a packet, the latter to the second.
    pub(crate) seen: Instant,
    /// A connection whose ANNOUNCE waits for the publisher to be gone.
    pub(crate) contender: Option<ConnId>,
}

/// Where a stream's media comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A camera that we ask. Boxed: it is many times the size of the other.
    Pull(Box<Upstream>),
    /// A publisher that comes to us.
    Publish(Box<Publication>),
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    /// Its first name: label of logs and metrics.
    pub(crate) name: String,
    pub(crate) source: Source,
    /// The last description, kept for the legs while the source is away.
    pub(crate) description: Option<Arc<Description>>,
    /// `sess-id` and `sess-version` of the SDP we hand out (SDP-1).
    pub(crate) sdp_id: u64,
    pub(crate) sdp_version: u64,
    /// Tracks as installed, empty while there is no row.
    pub(crate) tracks: Vec<TrackRow>,
    /// Inputs as installed.
    pub(crate) inputs: Vec<InputRow>,
    pub(crate) has_row: bool,
    /// Raised with every publisher (RTP-6).
    pub(crate) generation: u32,
    /// Sessions with a leg.
    pub(crate) legs: BTreeSet<SessionKey>,
    /// How many of them want media.
    pub(crate) playing: usize,
    /// Connections whose request waits for the description.
    pub(crate) waiting: Vec<ConnId>,
    /// Since when packets arrive; `None` while they do not.
    pub(crate) active_since: Option<Instant>,
    /// Whether the packet path said that nothing arrives.
    pub(crate) silent: bool,
    /// Tracks that deliver nothing beside others that do.
    pub(crate) silent_tracks: BTreeSet<TrackId>,
    /// Why the source could not be reached or was lost, in people's words; `None` when all is well.
    pub(crate) error: Option<String>,
    /// Whether packets ever arrived.
    pub(crate) ever_active: bool,
    /// Deadline that the timers know of.
    pub(crate) armed: Option<Instant>,
}

impl Stream {
    /// A stream that nothing is known of yet.
    pub(crate) fn new(id: StreamId, name: String, source: Source, sdp_id: u64) -> Self {
        Self {
            id,
            name,
            source,
            description: None,
            sdp_id,
            sdp_version: 0,
            tracks: Vec::new(),
            inputs: Vec::new(),
            has_row: false,
            generation: 0,
            legs: BTreeSet::new(),
            playing: 0,
            waiting: Vec::new(),
            active_since: None,
            ever_active: false,
            silent: false,
            silent_tracks: BTreeSet::new(),
            error: None,
            armed: None,
        }
    }

    /// The upstream of a pulled stream.
    pub(crate) fn upstream_mut(&mut self) -> Option<&mut Upstream> {
        match &mut self.source {
            Source::Pull(upstream) => Some(upstream),
            Source::Publish(_) => None,
        }
    }

    /// The publisher's hold.
    pub(crate) fn publication(&self) -> Option<&Publication> {
        match &self.source {
            Source::Publish(publication) => Some(publication),
            Source::Pull(_) => None,
        }
    }

    /// The publisher's hold, to change it.
    pub(crate) fn publication_mut(&mut self) -> Option<&mut Publication> {
        match &mut self.source {
            Source::Publish(publication) => Some(publication),
            Source::Pull(_) => None,
        }
    }

    /// Whether a source of this description may feed the legs there are: same media, codecs, clocks and
    /// payload types (RTP-10).
    pub(crate) fn is_compatible(&self, description: &Description) -> bool {
        self.tracks.is_empty() || self.tracks == description.rows()
    }

    /// Takes a description; the version counts changes (SDP-1).
    pub(crate) fn describe(&mut self, description: Description) {
        if self.description.as_deref() != Some(&description) {
            self.sdp_version += 1;
            self.description = Some(Arc::new(description));
        }
    }
}

/// Names and streams.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) names: BTreeMap<String, StreamId>,
    pub(crate) streams: HashMap<StreamId, Stream>,
}

impl Catalog {
    /// The stream of `name`.
    pub(crate) fn find(&self, name: &str) -> Option<StreamId> {
        self.names.get(name).copied()
    }

    /// Adds a stream under its name.
    pub(crate) fn insert(&mut self, stream: Stream) {
        self.names.insert(stream.name.clone(), stream.id);
        self.streams.insert(stream.id, stream);
    }

    /// Forgets a published stream.
    pub(crate) fn remove(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id)
            && self.names.get(&stream.name) == Some(&id)
        {
            self.names.remove(&stream.name);
        }
    }

    pub(crate) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(&id)
    }
}
