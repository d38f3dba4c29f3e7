//! Rows: what one node must do for one stream, legs excepted.
//!
//! A row is desired state. Sending the same row twice is a no-op; a row without inputs means that the
//! source is away, never that the stream or its legs are to be removed: only [`RowOp::Remove`] does that.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{ConnId, Epoch, StreamId, TrackId};

/// Kind of a track (`m=` of its SDP media line).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MediaKind {
    /// `m=video`
    Video,
    /// `m=audio`
    Audio,
    /// Anything else, ONVIF metadata for example.
    Application,
}

/// What is known of a track from the SDP of its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TrackRow {
    /// Index in the SDP.
    pub track: TrackId,
    /// Kind of media.
    pub kind: MediaKind,
    /// Encoding name of the first payload type in upper case, `H264` for example.
    pub codec: String,
    /// RTP clock rate in Hz, at least 1.
    pub clock_rate: u32,
    /// Payload types admitted on this track, an admission check (RTP-1).
    pub payload_types: Vec<u8>,
}

/// How bytes are framed where media enters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encap {
    /// RTP and RTCP on a UDP port pair that the proxy opens and reports in [`InputState`].
    Udp {
        /// The only address admitted (SEC-2): that of the RTSP peer, or the `source=` it named if the
        /// route allows it.
        peer: IpAddr,
        /// RTP source port; `None` until the peer named it. Then it is learned: camera's address only,
        /// two valid packets, locked afterwards (RTSP-15).
        peer_rtp: Option<u16>,
        /// RTCP port of the peer; `None` means observed RTP port + 1.
        peer_rtcp: Option<u16>,
        /// Local address to open the pair on: that of the RTSP connection.
        local: IpAddr,
    },
    /// Channels of an RTSP connection that the proxy holds.
    Interleaved {
        /// The connection.
        conn: ConnId,
        /// Channel of RTP.
        rtp: u8,
        /// Channel of RTCP.
        rtcp: u8,
    },
}

/// Where one track enters the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InputRow {
    /// The track.
    pub track: TrackId,
    /// How and from where.
    pub encap: Encap,
    /// SSRC announced by the source, an admission check once two packets agreed with it; sources lie
    /// about it (`docs/protocols/rtsp.md`), so the first packets decide.
    pub ssrc: Option<u32>,
    /// Whether the source speaks AVPF, so that PLI and FIR may be sent to it (RTP-25).
    pub feedback: bool,
    /// Raised whenever the source was opened anew: the input is replaced, statistics restart, the legs
    /// splice (RTP-6).
    pub generation: u32,
}

/// Desired state of one stream on one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// The stream.
    pub stream: StreamId,
    /// Name of its route: label of its metrics and logs.
    pub name: String,
    /// Tracks in SDP order.
    pub tracks: Vec<TrackRow>,
    /// Inputs that are open or to be opened; empty while the source is away.
    pub inputs: Vec<InputRow>,
    /// How long an input may be silent before the proxy reports [`crate::Report::InputSilent`].
    pub silence: Duration,
}

/// An operation on the rows of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOp {
    /// Make it so. Identical rows are no-ops.
    Upsert(Epoch, Row),
    /// Remove the stream, its inputs and its legs.
    Remove(Epoch, StreamId),
}

/// A pair of local UDP ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortPair {
    /// RTP, even.
    pub rtp: u16,
    /// RTCP, `rtp + 1`.
    pub rtcp: u16,
}

/// What an installed input looks like from the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputState {
    /// The track.
    pub track: TrackId,
    /// Local ports, for UDP.
    pub local: Option<PortPair>,
}

/// Acknowledgement of a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowState {
    /// One entry per input of the row, in its order.
    pub inputs: Vec<InputState>,
}
