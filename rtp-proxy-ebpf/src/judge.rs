//! Whether a packet of ours goes to the legs: admission, whether it continues the run, and the flow's books.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use msm_fastpath::gso::Segments;
use msm_fastpath::limits::{BURST_LOSS, COUNT_FORWARD, COUNT_NOT_OURS, COUNT_TO_USER};
use msm_fastpath::{
    Arrival, Checksum, Course, DropReason, EventKind, FlowEntry, FlowKind, FlowStats, GroupMode, Progress,
    RtpFixed, decide_flow, is_of_track,
};

use crate::copies::send;
use crate::counters::{count, count_drop};
use crate::event::{now, tell};
use crate::maps::FLOW_STATS;
use crate::packet::{Number, Packet, Turn};
use crate::skb::{MAX_OFFSET, NEXT, Skb};
use crate::tables::{Found, find_flow, is_closed};
use crate::{ahead, checksum};

/// Decides about a datagram and does it. Returns the program's return value.
#[inline(always)]
pub(crate) fn forward(skb: Skb, packet: &mut Packet) -> i32 {
    let key = packet.head.key(packet.family, skb.ifindex());
    match find_flow(&key, &mut packet.entry) {
        Found::Flow => {}
        Found::Changing => return hand_up(),
        Found::Nothing if is_closed(&key) => return drop_as(DropReason::UnknownSource),
        Found::Nothing => {
            count(COUNT_NOT_OURS);
            return NEXT;
        }
    }
    if packet.entry.mode == GroupMode::ToUser as u8 {
        return hand_up();
    }
    // Before the memory is asked for: reading the clock waits for all that is on its way.
    let at = now();
    ahead::ask(&packet.entry);
    let Some(stats) = FLOW_STATS.get_ptr_mut(packet.entry.stats) else { return hand_up() };
    // SAFETY: a value of an array map lives as long as the map; races with other CPUs lose single counts,
    // which is stated at the type.
    let stats = unsafe { &mut *stats };
    // The first segment of a super-packet is looked at again with the others, by its own length.
    match decide_flow(packet.first_header().as_ref(), packet.payload_len as usize, &packet.entry) {
        Course::Forward => {}
        Course::ToUser => return hand_up_limited(stats, packet, at, None),
        Course::Strange(reason) => return hand_up_limited(stats, packet, at, Some(reason)),
    }
    let Some(segments) = Segments::new(packet.payload_len, packet.gso_size) else {
        return hand_up_limited(stats, packet, at, Some(DropReason::RateLimit));
    };
    packet.segments = segments;
    packet.progress = Progress::of(stats);
    packet.arrival = Arrival::new(at, packet.entry.clock_rate);
    packet.is_rtp = is_rtp(&packet.entry, &packet.rtp());
    packet.number = number(packet);
    if packet.is_rtp && !continues(skb, packet) {
        return hand_up_limited(stats, packet, at, Some(DropReason::RateLimit));
    }
    let Some(state) = checksum::state(skb, packet) else { return drop_as(DropReason::RingFull) };
    packet.checksum = state;
    if packet.is_super() && (!matches!(state, Checksum::Partial) || !is_within_reach(packet)) {
        // Also a list of packets that each have headers and a checksum of their own. The worker can take it, and knows by
        // the books, which stay as they are, that nobody else did.
        return hand_up();
    }
    packet.progress.store(stats, &packet.segments, &packet.arrival);
    if packet.progress.skipped >= BURST_LOSS {
        tell(EventKind::BurstLoss, packet.entry.stats, 0, packet.rtp().ssrc(), packet.progress.skipped_to);
    }
    count(COUNT_FORWARD);
    let fate = send(skb, packet);
    packet.progress.settle(stats, &packet.segments, packet.to_user);
    fate
}

/// Whether the header of every segment is where it can be edited, if its group edits any.
#[inline(always)]
fn is_within_reach(packet: &Packet) -> bool {
    packet.entry.mode == GroupMode::Opaque as u8
        || packet.family.payload_offset() as u32 + packet.payload_len <= MAX_OFFSET
}

#[inline(always)]
fn is_rtp(entry: &FlowEntry, header: &RtpFixed) -> bool {
    match FlowKind::from_u8(entry.kind) {
        Some(FlowKind::Rtp) => true,
        Some(FlowKind::Muxed) => !header.is_rtcp(),
        _ => false,
    }
}

/// What the packet's number says to gates.
#[inline(always)]
fn number(packet: &Packet) -> Number {
    match FlowKind::from_u8(packet.entry.kind) {
        Some(kind) if kind.has_numbers() => {
            if packet.is_rtp && packet.progress.is_newest(packet.rtp().seq()) {
                Number::Newest
            } else {
                Number::Behind
            }
        }
        _ => Number::None,
    }
}

/// Whether every segment of an RTP packet continues the run; the progress has then taken them.
#[inline(always)]
fn continues(skb: Skb, packet: &mut Packet) -> bool {
    if packet.is_super() {
        packet.failed = false;
        packet.repeat(skb, packet.segments.count(), take_segment);
        return !packet.failed;
    }
    let rtp = packet.rtp();
    let continues = packet.progress.continues(rtp.seq(), rtp.timestamp(), &packet.arrival);
    if continues {
        packet.progress.take(rtp.seq(), rtp.timestamp(), &packet.arrival);
    }
    continues
}

/// Judges one segment like a packet of its own.
extern "C" fn take_segment(index: u32, turn: *mut Turn) -> i64 {
    // SAFETY: the body of the loop above.
    let (skb, packet) = unsafe { Turn::take(turn) };
    let (offset, len) = packet.segments.get(index).unwrap_or_default();
    if let Some(rtp) = skb.load_rtp(packet.family.payload_offset() as u32 + offset)
        && is_of_track(&rtp, len as usize, &packet.rtp(), &packet.entry)
        && packet.progress.continues(rtp.seq(), rtp.timestamp(), &packet.arrival)
    {
        packet.progress.take(rtp.seq(), rtp.timestamp(), &packet.arrival);
        return 0;
    }
    packet.failed = true;
    1
}

/// To the worker's socket.
#[inline(always)]
fn hand_up() -> i32 {
    count(COUNT_TO_USER);
    TC_ACT_OK
}

#[inline(always)]
fn drop_as(reason: DropReason) -> i32 {
    count_drop(reason);
    TC_ACT_SHOT
}

/// To the worker's socket, within the flow's rate. `strange`: why it does not continue the run, if it should.
#[inline(always)]
fn hand_up_limited(stats: &mut FlowStats, packet: &Packet, at: u64, strange: Option<DropReason>) -> i32 {
    let given = stats.hand_up(at);
    if !given.granted {
        if given.first {
            tell(EventKind::RateLimited, packet.entry.stats, 0, packet.rtp().ssrc(), packet.rtp().seq());
        }
        return drop_as(strange.unwrap_or(DropReason::RateLimit));
    }
    if let Some(reason) = strange {
        stats.strange = stats.strange.wrapping_add(1);
        if given.first {
            let kind = if matches!(reason, DropReason::Ssrc) { EventKind::NewSsrc } else { EventKind::NoRtp };
            tell(kind, packet.entry.stats, 0, packet.rtp().ssrc(), packet.rtp().seq());
        }
    }
    hand_up()
}
