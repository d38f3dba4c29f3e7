//! Tier 2: the compiled kernel programs, loaded into this kernel and run on tables of frames, then attached
//! to a veth under real UDP traffic.
//!
//! Needs root of the initial user namespace, and a proxy that embeds the kernel programs
//! (`cargo xtask setup` installs what compiles them).

mod abi;
mod copies;
mod differential;
mod edges;
mod foreign;
mod frame;
mod gro;
mod headers;
mod programs;
mod random;
mod run;
mod scene;
mod supers;
mod table;
mod traffic;

use anyhow::Result;
use msm_fastpath::{Admission, FlowEntry, FlowKey, FlowKind, GroupMode, PayloadTypes};
use msm_tests::privilege::{Need, granted, skip};
use rtp_proxy::kernel::OBJECT;

use crate::programs::Programs;

/// SSRC that the flows of these tests admit.
pub(crate) const SSRC: u32 = 0x0a0b_0c0d;
/// Payload type that the flows of these tests admit.
pub(crate) const PAYLOAD_TYPE: u8 = 96;
/// Interface that a test run claims to come from: the kernel uses the namespace's loopback.
pub(crate) const LOOPBACK: u32 = 1;

/// The programs, loaded; nothing where the test cannot run here.
pub(crate) fn kernel(test: &str) -> Result<Option<Programs>> {
    if !granted(test, &[Need::Kernel]) {
        return Ok(None);
    }
    let Some(object) = OBJECT else {
        skip(test, "the kernel programs were not built; `cargo xtask setup` installs their toolchain");
        return Ok(None);
    };
    Ok(Some(Programs::load(object)?))
}

/// A flow of one SSRC and payload type.
pub(crate) fn entry(kind: FlowKind) -> FlowEntry {
    let admission = Admission::only_ssrc(PayloadTypes::of(&[PAYLOAD_TYPE]), SSRC);
    FlowEntry { mode: GroupMode::Opaque as u8, ..FlowEntry::new(kind, admission, 0, 90_000) }
}

/// Key of the flow from 10.9.0.1 to 10.9.0.2.
pub(crate) fn key(src_port: u16, dst_port: u16, ifindex: u32) -> FlowKey {
    FlowKey::new(([10, 9, 0, 1], src_port).into(), ([10, 9, 0, 2], dst_port).into(), ifindex)
}

/// Key of the flow from fd09::1 to fd09::2.
pub(crate) fn key6(src_port: u16, dst_port: u16, ifindex: u32) -> FlowKey {
    let address = |last| [0xfd09, 0, 0, 0, 0, 0, 0, last];
    FlowKey::new((address(1), src_port).into(), (address(2), dst_port).into(), ifindex)
}
