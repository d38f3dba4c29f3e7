//! The stream graph as values: who wants what, and what one node must do for it.
//!
//! Pure. Ids are made from time and random bytes that the caller passes in; operations map values to
//! values. Rows and leg operations are the whole language in which session logic speaks to a packet
//! path: `rtp-proxy standalone` crosses it in process, a mesh by gRPC (`docs/adr/0002-the-seam.md`).

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod id;
pub mod leg;
pub mod report;
pub mod row;

pub use id::{ConnId, Epoch, LegId, SessionId, StreamId, TrackId};
pub use leg::{LegEncap, LegOp, LegSpec, LegStart, LegState, LegTrack, LegTrackState};
pub use report::{LegFailure, Report};
pub use row::{Encap, InputRow, InputState, MediaKind, PortPair, Row, RowOp, RowState, TrackRow};
