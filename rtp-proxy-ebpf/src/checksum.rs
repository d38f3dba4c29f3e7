//! Which state the UDP checksum of a packet is in.
//!
//! The kernel does not show it. Its helper for checksums leaves a partial one alone when it is told of a
//! change that the pseudo-header has no part in, and changes a complete one: one such change, taken back at
//! once, tells the two apart. That costs two helper calls per packet, where asking the helper
//! for each copy's two differences would cost two per copy.

use msm_fastpath::Checksum;

use crate::packet::Packet;
use crate::skb::Skb;

/// The state; the packet is as it was. `None`: the packet's memory could not be made writable.
#[inline(always)]
pub(crate) fn state(skb: Skb, packet: &Packet) -> Option<Checksum> {
    let check = packet.check;
    if check == 0 {
        return Some(Checksum::Absent);
    }
    let offset = packet.family.udp_offset() as u32 + 6;
    if !skb.replace_complete_checksum(offset, 1) {
        return None;
    }
    // The helper made it linear.
    let found = skb.linear(offset as usize)?;
    if u16::from_be_bytes(found) == check {
        return Some(Checksum::Partial);
    }
    skb.store(offset, &check.to_be_bytes(), false).then_some(Checksum::Complete)
}
