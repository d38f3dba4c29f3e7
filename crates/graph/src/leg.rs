//! Legs: one viewer's transport association with its node's proxy.
//!
//! Soft state of the node, never stored. A leg is attached disabled, armed by PLAY, paused by PAUSE,
//! detached by TEARDOWN or by the end of its liveness.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{ConnId, LegId, StreamId, TrackId};
use crate::row::PortPair;

/// How one track of a leg leaves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LegEncap {
    /// RTP and RTCP over UDP, sent from the proxy's one pair for players.
    Udp {
        /// Where RTP goes: the RTSP peer's address and its first `client_port`.
        rtp: SocketAddr,
        /// Where RTCP goes.
        rtcp: SocketAddr,
        /// Local address to send from: the one the viewer reached us at (RTSP-14).
        local: IpAddr,
    },
    /// Channels of the viewer's RTSP connection.
    Interleaved {
        /// The connection.
        conn: ConnId,
        /// Channel of RTP.
        rtp: u8,
        /// Channel of RTCP.
        rtcp: u8,
    },
}

/// One track of a leg.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LegTrack {
    /// The track.
    pub track: TrackId,
    /// How it leaves.
    pub encap: LegEncap,
    /// Whether the leg speaks AVPF, so that its PLI, FIR and NACK count (RTP-25).
    pub feedback: bool,
}

/// Desired state of a leg.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LegSpec {
    /// The leg.
    pub leg: LegId,
    /// The stream it belongs to.
    pub stream: StreamId,
    /// Log field: the first characters of the RTSP session id, never the whole id.
    pub session: String,
    /// Log and status field: the viewer's address on its RTSP connection.
    pub peer: SocketAddr,
    /// The tracks that were set up.
    pub tracks: Vec<LegTrack>,
}

/// An operation on a leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegOp {
    /// Make the leg look like this: attaches it disabled, or adds and removes tracks of an attached one.
    Attach(LegSpec),
    /// Open the gate of every track with the next packet of its input, and answer where that is. Where
    /// an input has not delivered yet, the answer waits for its first packet, at most `wait_millis`, and
    /// not much longer than the first of the leg's tracks once one has started: an ONVIF metadata track may
    /// be silent for minutes. Tracks that are missing in the answer stay armed. Of an open gate the answer
    /// is the next packet.
    Arm {
        /// The leg.
        leg: LegId,
        /// Longest wait for a first packet, in milliseconds.
        wait_millis: u32,
    },
    /// Close the gate of every track; the leg keeps its place.
    Pause {
        /// The leg.
        leg: LegId,
    },
    /// Remove the leg.
    Detach {
        /// The leg.
        leg: LegId,
        /// Whether the viewer gets an RTCP BYE with the leg's SSRC first (RTP-24).
        bye: bool,
    },
}

impl LegOp {
    /// The leg that the operation is about.
    pub fn leg(&self) -> LegId {
        match self {
            Self::Attach(spec) => spec.leg,
            Self::Arm { leg, .. } | Self::Pause { leg } | Self::Detach { leg, .. } => *leg,
        }
    }
}

/// Where the gate of one track opened: exactly what RTP-Info says (RTSP-31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegStart {
    /// The track.
    pub track: TrackId,
    /// Sequence number of the first packet that this leg sends, as it leaves.
    pub seq: u16,
    /// RTP timestamp, as it leaves, of the moment the gate opened.
    pub rtptime: u32,
    /// SSRC of the leg's packets as they leave.
    pub ssrc: u32,
}

/// What an attached track looks like from the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegTrackState {
    /// The track.
    pub track: TrackId,
    /// The proxy's ports towards the viewer, for UDP.
    pub local: Option<PortPair>,
    /// SSRC of the leg's packets as they leave, where it is known already (RTSP-18).
    pub ssrc: Option<u32>,
}

/// Acknowledgement of a leg operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegState {
    /// Of [`LegOp::Attach`].
    Attached(Vec<LegTrackState>),
    /// Of [`LegOp::Arm`]; a track whose input stayed silent is missing.
    Armed(Vec<LegStart>),
    /// Of [`LegOp::Pause`].
    Paused,
    /// Of [`LegOp::Detach`].
    Detached,
}
