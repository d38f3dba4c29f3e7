//! RTP and RTCP as machines without input and output.
//!
//! # The sans-IO contract
//!
//! It holds for every pure crate of this workspace and is stated here once.
//!
//! - No clock, thread, lock, socket, environment or randomness inside: time, ids and random bytes are
//!   arguments. `now` never runs backwards between two calls on one machine; if it does, the machine
//!   treats it as no time having passed.
//! - `handle_*(&mut self, now, …)` takes an event; `poll_output(&mut self)` is drained after every
//!   mutation until it returns its `Timeout(at)`. `apply`, `plan`, `decide`, `rewrite` and the
//!   `write_*` builders map values to values.
//! - Decisions leave as data. One executor performs them, undoes on failure, reports back as an input.
//! - A packet that is not wanted is not an error: it is a [`DropReason`] with a counter.
//! - Nothing reachable from the network panics, indexes unchecked, recurses, or allocates by a length
//!   that a peer declared. Every buffer is bounded.
//!
//! # Map
//!
//! One track on one node is a [`TrackInput`] (admission, statistics, reports towards the source) and one
//! [`LegTrack`] per viewer (gate, projection, sender reports, intake of the viewer's reports). Both work
//! on whole receive batches, so that a transparent leg costs a constant per batch, not per packet.
//! Views and builders are in [`rtp`] and [`rtcp`]; the other modules are the parts of the two machines.
//!
//! What is implemented of the RFCs, and what is not, is in `docs/protocols/rtp.md`.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod clock;
pub mod drop;
pub mod elsewhere;
pub mod input;
pub mod jitter;
pub mod keyframe;
pub mod leg;
pub mod peer;
pub mod project;
pub mod report;
pub mod rtcp;
pub mod rtp;
pub mod seq;
pub mod stats;
pub mod timeline;

pub use clock::{ClockRate, Ntp};
pub use drop::DropReason;
pub use elsewhere::{Elsewhere, Standing};
pub use input::{Arrival, Batch, InputConfig, InputEvent, InputOutput, Part, TrackInput};
pub use keyframe::Codec;
pub use leg::start::Start;
pub use leg::{Edit, LegConfig, LegTrack, Pass, RtcpPass, ViewerRtcp};
pub use peer::{PeerLock, PeerVerdict};
pub use project::{Projection, ResumePolicy};
pub use report::LegReport;
pub use rtp::RtpView;
pub use stats::ReceiverStats;
pub use timeline::SourceClock;

#[cfg(test)]
mod testing;
