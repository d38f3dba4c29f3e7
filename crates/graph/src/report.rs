//! What a node tells of its own accord: reality, as opposed to what was asked of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{LegId, StreamId, TrackId};

/// An observation of the packet path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// RTCP arrived from the viewer (RTSP-23). At most one per leg and second.
    LegAlive {
        /// The leg.
        leg: LegId,
    },
    /// The leg cannot go on; the session logic ends it.
    LegFailed {
        /// The leg.
        leg: LegId,
        /// Why, in the words of `docs/protocols/rtp.md`.
        reason: LegFailure,
    },
    /// RTP or RTCP was admitted on an input: after silence, or for the first time in its generation.
    InputActive {
        /// The stream.
        stream: StreamId,
        /// The track.
        track: TrackId,
    },
    /// RTP or RTCP keeps arriving (RTSP-23: liveness of a publisher). At most one per stream and second.
    InputAlive {
        /// The stream.
        stream: StreamId,
    },
    /// Nothing was admitted on any input of the stream for this long. Repeated while it lasts, at most
    /// once per the row's `silence`.
    InputSilent {
        /// The stream.
        stream: StreamId,
        /// Age of the last admitted packet, or of the input if there was none.
        silent_for: Duration,
        /// Whether an input of this generation ever delivered.
        ever: bool,
    },
    /// Nothing was admitted on a picture or sound track for this long while another track of the stream
    /// flows. Repeated like [`Report::InputSilent`]. Never told of other tracks: ONVIF metadata may be
    /// silent for minutes.
    TrackSilent {
        /// The stream.
        stream: StreamId,
        /// The track.
        track: TrackId,
        /// Age of its last admitted packet, or of its input if there was none.
        silent_for: Duration,
        /// Whether its input of this generation ever delivered.
        ever: bool,
    },
    /// The source said BYE on this track; it was consumed (RTP-24).
    InputBye {
        /// The stream.
        stream: StreamId,
        /// The track.
        track: TrackId,
    },
}

/// Why a leg ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LegFailure {
    /// The interleaved connection took no byte for too long (`docs/protocols/rtsp.md`, Limits).
    StuckWriter,
    /// The viewer's host said three times that nobody listens, and no RTCP came (SEC-28).
    Unreachable,
    /// Loss over 50 % in three reports (RTP-29).
    CircuitBreaker,
}

impl LegFailure {
    /// Stable name for logs, metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StuckWriter => "stuck_writer",
            Self::Unreachable => "unreachable",
            Self::CircuitBreaker => "circuit_breaker",
        }
    }
}
