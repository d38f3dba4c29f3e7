//! What the kernel programs and the user-space path agree on.
//!
//! One set of pure functions over copied values decides what happens to a packet on every rung: the
//! traffic-control and XDP programs of `rtp-proxy-ebpf` and the workers of `rtp-proxy` call the same
//! [`decide`](decide::decide), [`rewrite`](rewrite::rewrite) and [`Gate`](gate::Gate), so the rungs
//! cannot disagree. The crate is `no_std`, allocates nothing, reads no clock and touches no pointer:
//! bounds checks on packet memory belong to its callers, which hand over values.
//!
//! The types of [`flow`] and [`group`] are also the layout of the kernel maps. They are declared through
//! [`abi!`], which makes padding, invalid bit patterns and a changed size compile errors.
#![no_std]
#![deny(missing_docs)]
#![expect(
    missing_debug_implementations,
    reason = "zerocopy's derives generate one marker type per field; our own types derive Debug"
)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod csum;
pub mod decide;
pub mod drop;
pub mod event;
pub mod flow;
pub mod fuzzing;
pub mod gate;
pub mod group;
pub mod gso;
#[expect(clippy::inline_always, reason = "a call within a kernel program has at most five arguments")]
pub mod head;
pub mod header;
pub mod limits;
pub mod pass;
pub mod progress;
pub mod rewrite;

pub use decide::{Admission, Course, PayloadTypes, Verdict, decide, decide_flow, is_of_track};
pub use drop::DropReason;
pub use event::{Event, EventKind};
pub use flow::{FlowEntry, FlowKey, FlowKind, FlowStats, PortKey};
pub use gate::{Gate, GateEntry, Step};
pub use group::{GroupMode, LegEntry, LegStats};
pub use head::{Checksum, Family, Head};
pub use header::{RTP_FIXED_LEN, RtpFixed, is_rtcp};
pub use pass::PassReason;
pub use progress::{Arrival, Progress};
pub use rewrite::{RtpEdit, rewrite};
