//! What a source said its stream is: its SDP, taken apart once.

use std::net::IpAddr;

use bytes::Bytes;
use msm_graph::{MediaKind, TrackId, TrackRow};
use msm_rtsp::sdp::{self, Sdp, SdpError, Track, ViewerEdit};
use msm_rtsp::transport::Profile;

/// A source's SDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    sdp: Sdp,
    tracks: Vec<Track>,
}

impl Description {
    /// Reads a DESCRIBE answer or an ANNOUNCE body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, SdpError> {
        let sdp = Sdp::parse(body)?;
        Ok(Self { tracks: sdp.tracks(), sdp })
    }

    /// The SDP as it was understood; [`Self::parse`] makes the same of it again.
    pub(crate) fn source(&self) -> Bytes {
        Bytes::from(self.sdp.to_bytes())
    }

    /// `a=control` of the session.
    pub(crate) fn session_control(&self) -> Option<&str> {
        self.sdp.session_control()
    }

    /// `a=control` of every media, in order.
    pub(crate) fn controls(&self) -> Vec<Option<&str>> {
        self.sdp.controls()
    }

    /// Media that can be set up. The index of a track is its id.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Track> {
        self.tracks.iter().filter(|track| track.unusable.is_none())
    }

    /// Media `index`, if it can be set up.
    pub(crate) fn track(&self, index: usize) -> Option<&Track> {
        self.tracks.get(index).filter(|track| track.unusable.is_none())
    }

    /// The tracks of its row.
    pub(crate) fn rows(&self) -> Vec<TrackRow> {
        self.usable()
            .map(|track| TrackRow {
                track: TrackId(track.index as u8),
                kind: match track.kind {
                    sdp::MediaKind::Video => MediaKind::Video,
                    sdp::MediaKind::Audio => MediaKind::Audio,
                    sdp::MediaKind::Application => MediaKind::Application,
                },
                codec: track.codec.clone(),
                clock_rate: track.clock_rate,
                payload_types: track.payload_types.clone(),
            })
            .collect()
    }

    /// The body that viewers get (`docs/protocols/rtsp.md`, Session descriptions). `hidden`: hosts of the source that must not appear.
    pub(crate) fn for_viewer(
        &self,
        session_id: u64,
        version: u64,
        address: IpAddr,
        hidden: Vec<String>,
    ) -> Bytes {
        let mut edit = ViewerEdit::new(session_id, version, address);
        edit.hidden.extend(hidden);
        Bytes::from(self.sdp.for_viewer(&edit).to_bytes())
    }
}

/// Whether media of a track speaks AVPF.
pub(crate) fn speaks_feedback(track: &Track) -> bool {
    track.profile.is_some_and(Profile::is_feedback)
}
