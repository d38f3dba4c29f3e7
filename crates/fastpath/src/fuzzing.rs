//! The body of the fuzz target `fastpath`: any tables meet any frame.

use zerocopy::FromBytes as _;

use crate::csum::{self, Delta};
use crate::flow::{FlowEntry, FlowStats};
use crate::gate::GateEntry;
use crate::group::LegEntry;
use crate::gso::Segments;
use crate::head::{Checksum, Family, Head};
use crate::header::{IPV4_LEN, RtpFixed};
use crate::progress::{Arrival, Progress};
use crate::rewrite::{further, rewrite};
use crate::{decide_flow, is_of_track};

/// Reads tables and a frame from `data` and sends the frame through every function of the fast path.
///
/// # Panics
/// If a copy of a good IPv4 frame has a bad header checksum, or an edit cannot be undone.
pub fn frame(data: &[u8]) {
    let Ok((entry, rest)) = FlowEntry::read_from_prefix(data) else { return };
    let Ok((mut stats, rest)) = FlowStats::read_from_prefix(rest) else { return };
    let Ok((mut leg, rest)) = LegEntry::read_from_prefix(rest) else { return };
    let Ok((gate, rest)) = GateEntry::read_from_prefix(rest) else { return };
    let (Some((size, rest)), Some(at)) = (rest.split_first_chunk::<2>(), data.first_chunk::<8>()) else {
        return;
    };
    let gso_size = u32::from(u16::from_le_bytes(*size));
    let arrival = Arrival::new(u64::from_le_bytes(*at), entry.clock_rate);
    let head = Head::of(rest);
    for family in [Family::V4, Family::V6] {
        let datagram = match family {
            Family::V4 => head.datagram_v4(rest.len() as u32),
            Family::V6 => head.datagram_v6(rest.len() as u32),
        };
        let Some(datagram) = datagram else { continue };
        let first = head.rtp(family);
        let _ = head.key(family, leg.ifindex).tag();
        let _ = decide_flow(Some(&first), datagram.payload_len as usize, &entry);
        stats.hand_up(arrival.at);
        let Some(segments) = Segments::new(datagram.payload_len, gso_size) else { continue };
        let mut progress = Progress::of(&stats);
        let newest = progress.is_newest(first.seq());
        for (offset, len) in segments.iter() {
            let at = family.payload_offset() + offset as usize;
            let Some(bytes) = rest.get(at..).and_then(<[u8]>::first_chunk) else { break };
            let rtp = RtpFixed::from_bytes(*bytes);
            let _ = is_of_track(&rtp, len as usize, &first, &entry);
            let _ = progress.continues(rtp.seq(), rtp.timestamp(), &arrival);
            progress.take(rtp.seq(), rtp.timestamp(), &arrival);
            undone(&rtp, &entry, &leg);
        }
        progress.store(&mut stats, &segments, &arrival);
        progress.settle(&mut stats, &segments, entry.flags & FlowEntry::COPY_TO_USER != 0);
        let _ = (gate.step(first.seq(), newest), gate.step_unnumbered());
        // The difference that user space would have computed.
        let key = head.key(family, 0);
        let skip = if family == Family::V4 { 12 } else { 0 };
        let delta = |old: &[u8; 16], new: &[u8; 16]| {
            Delta::NONE.replace_bytes(old.split_at(skip).1, new.split_at(skip).1)
        };
        leg.address_delta = delta(&key.src, &leg.src).plus(delta(&key.dst, &leg.dst)).0;
        leg.port_delta &= 0xffff;
        copied(&head, family, &leg, &rewrite(&first, &leg.edit));
    }
}

fn undone(rtp: &RtpFixed, entry: &FlowEntry, leg: &LegEntry) {
    let there = rewrite(rtp, &further(&crate::RtpEdit::TRANSPARENT, &entry.edit, rtp.ssrc()));
    let on = rewrite(&there, &further(&entry.edit, &leg.edit, rtp.ssrc()));
    assert_eq!(on, rewrite(rtp, &leg.edit), "two edits one after the other are the second");
    let back = rewrite(&on, &further(&leg.edit, &crate::RtpEdit::TRANSPARENT, rtp.ssrc()));
    assert_eq!(back, *rtp, "an edit can be undone");
}

fn copied(head: &Head, family: Family, leg: &LegEntry, rtp: &RtpFixed) {
    for checksum in [Checksum::Partial, Checksum::Complete, Checksum::Absent] {
        let mut copy = Head::EMPTY;
        if copy.readdress(head, family, leg, checksum, Some(*rtp)).is_err() {
            continue;
        }
        assert_eq!(copy.rtp(family), *rtp, "the edited header");
        let ip = |head: &Head| {
            head.frame().split_at(14).1.first_chunk::<IPV4_LEN>().map_or(0, |ip| csum::ipv4(ip))
        };
        if family == Family::V4 && ip(head) == 0 {
            assert_eq!(ip(&copy), 0, "a good header checksum stays good");
        }
    }
}
