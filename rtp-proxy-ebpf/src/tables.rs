//! Finding the flow of a datagram, and what holds for datagrams without one.

use core::ptr::from_mut;

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
    // Word by word: the compiler would call a loop over bytes.
    let (from, to) = (found.cast::<u64>(), from_mut(entry).cast::<u64>());
    for word in 0..size_of::<FlowEntry>() / size_of::<u64>() {
        // SAFETY: the memory stays a FlowEntry while the program runs, and every bit pattern of one is valid. It
        // may be overwritten meanwhile, from its first field on, by the entry of another flow. Volatile reads
        // are made in this order.
        unsafe { to.add(word).write(from.add(word).read_volatile()) };
    }
    // SAFETY: as above.
    let tag = unsafe { (&raw const (*found).tag).read_volatile() };
    if tag == key.tag() { Found::Flow } else { Found::Changing }
}

/// Whether only flows may use the address that a datagram is for.
#[inline(always)]
pub(crate) fn is_closed(key: &FlowKey) -> bool {
    let port = PortKey { addr: key.dst, port: key.dst_port, pad: [0; 2] };
    // SAFETY: a value of four bytes is read whole.
    unsafe { PORTS.get(&port) }.is_some_and(|value| *value == PortKey::STRICT)
}
