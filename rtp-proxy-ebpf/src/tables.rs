//! Finding the flow of a datagram, and what holds for datagrams without one.

use core::arch::asm;

use msm_fastpath::{FlowEntry, FlowKey, PortKey};

use crate::maps::{FLOWS, PORTS};

/// What is installed for the addresses of a datagram.
pub(crate) enum Found {
    Flow,
    /// Replaced while it was read: for this packet the flow hands everything to the worker.
    Changing,
    Nothing,
}

/// Looks a flow up and copies its entry out.
#[inline(always)]
pub(crate) fn find_flow(key: &FlowKey, entry: &mut FlowEntry) -> Found {
    let Some(found) = FLOWS.get_ptr(key) else { return Found::Nothing };
    // SAFETY: the memory stays a FlowEntry while the program runs, and every bit pattern of one is valid.
    // It may be overwritten meanwhile, from its first field on, by the entry of another flow.
    *entry = unsafe { *found };
    // SAFETY: no instruction. What was read above is read before what is read below.
    unsafe { asm!("", options(nostack, preserves_flags)) };
    // SAFETY: as above.
    let tag = unsafe { (&raw const (*found).tag).read_volatile() };
    if tag == key.tag() { Found::Flow } else { Found::Changing }
}

/// Whether only flows may use the address that a datagram is for.
#[inline(always)]
pub(crate) fn is_closed(key: &FlowKey) -> bool {
    let mut port = PortKey { addr: key.dst, port: key.dst_port, pad: [0; 2] };
    // SAFETY: a value of four bytes is read whole.
    if let Some(value) = unsafe { PORTS.get(&port) } {
        return *value == PortKey::STRICT;
    }
    port.addr = [0; 16];
    // SAFETY: as above.
    unsafe { PORTS.get(&port) }.is_some_and(|value| *value == PortKey::STRICT)
}
