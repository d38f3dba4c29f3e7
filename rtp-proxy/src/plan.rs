//! From what is known and an operation to the ordered changes that make it so. Pure.
//!
//! Owns the rules of rows and legs: identical is a no-op, empty is not delete, an input of a new
//! generation replaces the old one, one that only learned its ports is kept. [`crate::install`] is the
//! one executor.

use msm_control_plane::event::OpError;
use msm_graph::{Encap, InputRow, LegEncap, LegId, LegOp, LegSpec, LegTrack, Row, StreamId, TrackId};

/// One step of the data path. Executed in order, undone in reverse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowChange {
    /// Give the stream a worker; it has neither inputs nor legs yet.
    OpenStream {
        /// The stream.
        stream: StreamId,
    },
    /// Name, tracks or patience of the stream are now these.
    Describe {
        /// The row they are in.
        row: Row,
    },
    /// Open an input. One that is open on the same track is replaced once this one stands.
    OpenInput {
        /// The stream.
        stream: StreamId,
        /// The input.
        input: InputRow,
    },
    /// Same sockets or channels, but the peer's ports, its SSRC or its feedback are known better.
    RetargetInput {
        /// The stream.
        stream: StreamId,
        /// The input.
        input: InputRow,
    },
    /// Close the input of a track; the legs stay.
    CloseInput {
        /// The stream.
        stream: StreamId,
        /// The track.
        track: TrackId,
    },
    /// Remove the stream with everything it still has.
    CloseStream {
        /// The stream.
        stream: StreamId,
    },
    /// Make the leg known; it has no tracks yet and is disabled.
    OpenLeg {
        /// The leg, its tracks to be ignored.
        spec: LegSpec,
    },
    /// Attach a track of a leg, gate disabled.
    OpenLegTrack {
        /// The leg.
        leg: LegId,
        /// The track.
        track: LegTrack,
    },
    /// Detach a track of a leg.
    CloseLegTrack {
        /// The leg.
        leg: LegId,
        /// The track, as it was attached.
        track: LegTrack,
    },
    /// Open the gates of a leg with the next packets.
    ArmLeg {
        /// The leg.
        leg: LegId,
        /// Longest wait for a first packet, in milliseconds.
        wait_millis: u32,
    },
    /// Close the gates of a leg.
    PauseLeg {
        /// The leg.
        leg: LegId,
    },
    /// Remove a leg.
    CloseLeg {
        /// The leg.
        leg: LegId,
        /// Whether its viewer gets a BYE.
        bye: bool,
    },
}

impl FlowChange {
    /// What takes this step back, where that is possible.
    fn undo(&self) -> Option<Self> {
        match self {
            Self::OpenStream { stream } => Some(Self::CloseStream { stream: *stream }),
            Self::OpenInput { stream, input } => {
                Some(Self::CloseInput { stream: *stream, track: input.track })
            }
            Self::OpenLeg { spec } => Some(Self::CloseLeg { leg: spec.leg, bye: false }),
            Self::OpenLegTrack { leg, track } => {
                Some(Self::CloseLegTrack { leg: *leg, track: track.clone() })
            }
            Self::CloseLegTrack { leg, track } => {
                Some(Self::OpenLegTrack { leg: *leg, track: track.clone() })
            }
            Self::ArmLeg { leg, .. } => Some(Self::PauseLeg { leg: *leg }),
            Self::Describe { .. }
            | Self::RetargetInput { .. }
            | Self::CloseInput { .. }
            | Self::CloseStream { .. }
            | Self::PauseLeg { .. }
            | Self::CloseLeg { .. } => None,
        }
    }
}

/// What takes these steps back, in the order in which to do it. What was closed stays closed, but for a track
/// of a leg that was to be replaced: its viewer was told that the SETUP failed and has the old one still.
pub fn undo(changes: &[FlowChange]) -> Vec<FlowChange> {
    let opened = |leg: LegId, track: TrackId| {
        let opens = |change: &FlowChange| matches!(change, FlowChange::OpenLegTrack { leg: of, track: new } if *of == leg && new.track == track);
        changes.iter().any(opens)
    };
    let stays_closed = |change: &FlowChange| matches!(change, FlowChange::CloseLegTrack { leg, track } if !opened(*leg, track.track));
    changes.iter().rev().filter(|change| !stays_closed(change)).filter_map(FlowChange::undo).collect()
}

/// Steps from `known`, the row in force, to `desired`.
pub fn plan_row(known: Option<&Row>, desired: &Row) -> Vec<FlowChange> {
    let stream = desired.stream;
    let mut changes = Vec::new();
    if known.is_none() {
        changes.push(FlowChange::OpenStream { stream });
    }
    if known.is_none_or(|row| !describes_the_same(row, desired)) {
        changes.push(FlowChange::Describe { row: Row { inputs: Vec::new(), ..desired.clone() } });
    }
    let known_inputs = known.map_or(&[][..], |row| &row.inputs);
    for old in known_inputs {
        if !desired.inputs.iter().any(|new| new.track == old.track) {
            changes.push(FlowChange::CloseInput { stream, track: old.track });
        }
    }
    for new in &desired.inputs {
        match known_inputs.iter().find(|old| old.track == new.track) {
            Some(old) if old == new => {}
            Some(old) if keeps_its_sockets(old, new) => {
                changes.push(FlowChange::RetargetInput { stream, input: new.clone() });
            }
            _ => changes.push(FlowChange::OpenInput { stream, input: new.clone() }),
        }
    }
    changes
}

fn describes_the_same(a: &Row, b: &Row) -> bool {
    a.name == b.name && a.tracks == b.tracks && a.silence == b.silence
}

/// Whether `new` is `old` with better knowledge of the peer.
fn keeps_its_sockets(old: &InputRow, new: &InputRow) -> bool {
    old.generation == new.generation
        && match (&old.encap, &new.encap) {
            (
                Encap::Udp { peer: old_peer, local: old_local, .. },
                Encap::Udp { peer: new_peer, local: new_local, .. },
            ) => old_peer == new_peer && old_local == new_local,
            (old_encap @ Encap::Interleaved { .. }, new_encap) => old_encap == new_encap,
            _ => false,
        }
}

/// Steps of a leg operation, given the leg as it is attached now.
///
/// # Errors
/// [`OpError::NotFound`] when an operation other than an attach names a leg that is not attached, or an
/// attach would move a leg to another stream.
pub fn plan_leg(known: Option<&LegSpec>, op: &LegOp) -> Result<Vec<FlowChange>, OpError> {
    let leg = op.leg();
    match (op, known) {
        (LegOp::Attach(spec), None) => {
            let opened = LegSpec { tracks: Vec::new(), ..spec.clone() };
            let tracks = spec.tracks.iter().map(|t| FlowChange::OpenLegTrack { leg, track: t.clone() });
            Ok(std::iter::once(FlowChange::OpenLeg { spec: opened }).chain(tracks).collect())
        }
        (LegOp::Attach(spec), Some(known)) => {
            if spec.stream != known.stream {
                return Err(OpError::NotFound(format!("leg {leg} belongs to stream {}", known.stream)));
            }
            let gone = known.tracks.iter().filter(|old| !spec.tracks.contains(old));
            let new = spec.tracks.iter().filter(|new| !known.tracks.contains(new));
            Ok(gone
                .map(|old| FlowChange::CloseLegTrack { leg, track: old.clone() })
                .chain(new.map(|t| FlowChange::OpenLegTrack { leg, track: t.clone() }))
                .collect())
        }
        // A leg that is gone already was detached: detaching is idempotent.
        (LegOp::Detach { .. }, None) => Ok(Vec::new()),
        (_, None) => Err(OpError::NotFound(format!("leg {leg}"))),
        (LegOp::Arm { wait_millis, .. }, Some(_)) => {
            Ok(vec![FlowChange::ArmLeg { leg, wait_millis: *wait_millis }])
        }
        (LegOp::Pause { .. }, Some(_)) => Ok(vec![FlowChange::PauseLeg { leg }]),
        (LegOp::Detach { bye, .. }, Some(_)) => Ok(vec![FlowChange::CloseLeg { leg, bye: *bye }]),
    }
}

/// Connections whose channels the changes bind, each once, in order.
pub fn connections(changes: &[FlowChange]) -> Vec<msm_graph::ConnId> {
    let mut conns = Vec::new();
    for change in changes {
        let conn = match change {
            FlowChange::OpenInput {
                input: InputRow { encap: Encap::Interleaved { conn, .. }, .. }, ..
            } => *conn,
            FlowChange::OpenLegTrack {
                track: LegTrack { encap: LegEncap::Interleaved { conn, .. }, .. },
                ..
            } => *conn,
            _ => continue,
        };
        if !conns.contains(&conn) {
            conns.push(conn);
        }
    }
    conns
}

#[cfg(test)]
mod tests;
