//! The copies: one per leg, made by readdressing one packet again and again.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use msm_fastpath::header::ETH_LEN;
use msm_fastpath::limits::MAX_LEGS;
use msm_fastpath::{
    Checksum, DropReason, Family, FlowEntry, GroupMode, Head, LegEntry, RtpEdit, Step, rewrite,
};

use crate::counters::{asks_device, count_drop, count_sent, count_unsent};
use crate::edit::edit_to;
use crate::gate;
use crate::maps::LEGS;
use crate::packet::{Packet, Turn, V4, V4_RTP, V6, V6_RTP};
use crate::skb::Skb;

/// Sends a packet to every leg whose gate is open. What becomes of the packet itself is the return value: the
/// last copy, nothing, or what the worker gets, bit for bit as it came.
#[inline(always)]
pub(crate) fn send(skb: Skb, packet: &mut Packet) -> i32 {
    packet.to_user = packet.entry.flags & FlowEntry::COPY_TO_USER != 0;
    packet.ip_len = packet.segments.largest() + (packet.family.payload_offset() - ETH_LEN) as u32;
    if packet.is_super() {
        packet.applied = RtpEdit::TRANSPARENT;
    }
    skb.forget_hash();
    let mark = skb.mark();
    if mark != 0 {
        skb.set_mark(0);
    }
    if packet.is_super() && packet.entry.mode == GroupMode::Common as u8 {
        let edit = packet.entry.edit;
        if !edit_to(skb, packet, &edit) {
            // No memory; some segments may be edited already.
            count_drop(DropReason::RingFull);
            return TC_ACT_SHOT;
        }
    }
    let legs = u32::from(packet.entry.legs).min(MAX_LEGS);
    if legs > 1 {
        packet.repeat(skb, legs - 1, send_clone);
    }
    let mut fate = TC_ACT_SHOT;
    if legs > 0
        && let Some(leg) = LEGS.get(packet.entry.first_leg.wrapping_add(legs - 1))
        && opens(packet, leg)
        && dress(skb, packet, leg)
    {
        if packet.to_user {
            clone_to(skb, packet, leg);
        } else if asks_device(leg.id, packet.segments.count()) && !skb.has_device(leg.ifindex) {
            // What is redirected by the return value vanishes with the device, and nobody is told.
            count_unsent(leg.id, packet.segments.count(), DropReason::RingFull);
        } else {
            count_sent(leg.id, packet.segments.count(), packet.segments.bytes());
            fate = if leg.flags & LegEntry::LOCAL == 0 {
                skb.redirect(leg.ifindex)
            } else {
                skb.redirect_peer(leg.ifindex)
            };
        }
    }
    if !packet.to_user {
        return fate;
    }
    if mark != 0 {
        skb.set_mark(mark);
    }
    if restore(skb, packet) { TC_ACT_OK } else { TC_ACT_SHOT }
}

extern "C" fn send_clone(index: u32, turn: *mut Turn) -> i64 {
    // SAFETY: the body of the loop above.
    let (skb, packet) = unsafe { Turn::take(turn) };
    if let Some(leg) = LEGS.get(packet.entry.first_leg.wrapping_add(index))
        && opens(packet, leg)
        && dress(skb, packet, leg)
    {
        clone_to(skb, packet, leg);
    }
    0
}

/// Whether the leg's gate lets this packet pass. The packet at which it shuts goes up to the worker, which
/// serves the leg from it on.
#[inline(always)]
fn opens(packet: &mut Packet, leg: &LegEntry) -> bool {
    let step = gate::step(leg.id, packet.entry.stats, packet.number, packet.rtp().seq());
    if matches!(step, Step::Stop) {
        packet.to_user = true;
    }
    step.passes()
}

#[inline(always)]
fn clone_to(skb: Skb, packet: &Packet, leg: &LegEntry) {
    if skb.clone_redirect(leg.ifindex) {
        count_sent(leg.id, packet.segments.count(), packet.segments.bytes());
    } else {
        count_unsent(leg.id, packet.segments.count(), DropReason::RingFull);
    }
}

/// Makes the packet the leg's copy; counts why not.
#[inline(never)]
fn dress(skb: Skb, packet: &mut Packet, leg: &LegEntry) -> bool {
    match try_dress(skb, packet, leg) {
        Ok(()) => true,
        Err(reason) => {
            count_unsent(leg.id, packet.segments.count(), reason);
            false
        }
    }
}

#[inline(always)]
fn try_dress(skb: Skb, packet: &mut Packet, leg: &LegEntry) -> Result<(), DropReason> {
    if packet.ip_len > u32::from(leg.mtu) {
        return Err(DropReason::Mtu);
    }
    if leg.ifindex == skb.ifindex() && leg.flags & LegEntry::HAIRPIN == 0 {
        return Err(DropReason::Loop);
    }
    let mode = packet.entry.mode;
    let per_leg = mode == GroupMode::PerLeg as u8;
    let mut rtp = None;
    if packet.is_super() {
        if per_leg && !edit_to(skb, packet, &leg.edit) {
            return Err(DropReason::RingFull);
        }
    } else if packet.is_rtp && mode != GroupMode::Opaque as u8 {
        rtp = Some(rewrite(&packet.rtp(), if per_leg { &leg.edit } else { &packet.entry.edit }));
    }
    packet.copy.readdress(&packet.head, packet.family, leg, packet.checksum, rtp)?;
    if store(skb, packet, &packet.copy, rtp.is_some()) { Ok(()) } else { Err(DropReason::RingFull) }
}

/// The packet as it came, bit for bit.
#[inline(always)]
fn restore(skb: Skb, packet: &mut Packet) -> bool {
    let is_super = packet.is_super();
    let edited = !is_super || edit_to(skb, packet, &RtpEdit::TRANSPARENT);
    edited && store(skb, packet, &packet.head, !is_super && packet.is_rtp)
}

/// Writes headers into the packet.
#[inline(always)]
fn store(skb: Skb, packet: &Packet, head: &Head, with_rtp: bool) -> bool {
    let partial = matches!(packet.checksum, Checksum::Partial);
    match (packet.family, with_rtp) {
        (Family::V4, false) => store_bytes::<V4, { V4 - ETH_LEN }>(skb, head, partial),
        (Family::V4, true) => store_bytes::<V4_RTP, { V4_RTP - ETH_LEN }>(skb, head, partial),
        (Family::V6, false) => store_bytes::<V6, { V6 - ETH_LEN }>(skb, head, partial),
        (Family::V6, true) => store_bytes::<V6_RTP, { V6_RTP - ETH_LEN }>(skb, head, partial),
    }
}

/// Under a partial checksum bytes are just bytes. Otherwise a NIC may have summed the packet from the IP header on, and
/// that sum must follow what is written there; the Ethernet header is not in it.
#[inline(always)]
fn store_bytes<const ALL: usize, const REST: usize>(skb: Skb, head: &Head, partial: bool) -> bool {
    let Some(all) = head.frame().first_chunk::<ALL>() else { return false };
    if partial {
        return skb.store_head(all) || skb.store(0, all, false);
    }
    let Some((ethernet, _)) = all.split_first_chunk::<ETH_LEN>() else { return false };
    let Some(rest) = all.last_chunk::<REST>() else { return false };
    skb.store(0, ethernet, false) && skb.store(ETH_LEN as u32, rest, true)
}
