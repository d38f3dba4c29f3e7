use proptest::prelude::*;

use super::*;
use crate::flow::FlowKind;

/// A packet of a bare header.
const LEN: usize = 12;

fn header() -> RtpFixed {
    RtpFixed::new(96, false, 1, 2, 0xcafe)
}

fn first_byte(byte: u8) -> RtpFixed {
    let mut bytes = header().to_bytes();
    bytes[0] = byte;
    RtpFixed::from_bytes(bytes)
}

#[test]
fn a_negotiated_packet_of_the_admitted_ssrc_is_forwarded() {
    let types = PayloadTypes::of(&[96, 0]);
    assert_eq!(decide(&header(), LEN, &Admission::only_ssrc(types, 0xcafe)), Verdict::Forward);
    assert_eq!(decide(&header(), LEN, &Admission::any_ssrc(types)), Verdict::Forward);
}

#[test]
fn wrong_payload_type_is_dropped() {
    let admission = Admission::only_ssrc(PayloadTypes::of(&[97]), 0xcafe);
    assert_eq!(decide(&header(), LEN, &admission), Verdict::Drop(DropReason::PayloadType));
}

#[test]
fn wrong_ssrc_is_dropped() {
    let admission = Admission::only_ssrc(PayloadTypes::ANY, 0xbabe);
    assert_eq!(decide(&header(), LEN, &admission), Verdict::Drop(DropReason::Ssrc));
    assert_eq!(admission.locked_ssrc(), Some(0xbabe));
    // An SSRC of 0 is a number like any other.
    assert_eq!(
        decide(&header(), LEN, &Admission::only_ssrc(PayloadTypes::ANY, 0)),
        Verdict::Drop(DropReason::Ssrc)
    );
    assert_eq!(Admission::any_ssrc(PayloadTypes::ANY).locked_ssrc(), None);
}

#[test]
fn other_versions_are_malformed() {
    for version in [0u8, 1, 3] {
        let verdict = decide(&first_byte(version << 6), LEN, &Admission::any_ssrc(PayloadTypes::ANY));
        assert_eq!(verdict, Verdict::Drop(DropReason::Malformed));
    }
}

#[test]
fn contributing_sources_that_are_not_there_are_malformed() {
    let any = Admission::any_ssrc(PayloadTypes::ANY);
    for sources in 0..16_u8 {
        let (header, whole) = (first_byte(0x80 | sources), 12 + 4 * usize::from(sources));
        assert_eq!(header.header_len(), whole);
        assert_eq!(decide(&header, whole, &any), Verdict::Forward, "{sources} sources");
        assert_eq!(decide(&header, whole + 1, &any), Verdict::Forward, "{sources} sources and a byte");
        let cut = decide(&header, whole - 1, &any);
        assert_eq!(cut, Verdict::Drop(DropReason::Malformed), "RTP-1: {sources} sources, cut");
    }
    // What a bare header says of padding and an extension is not looked at.
    for first in [0xa0, 0x90, 0xb0] {
        assert_eq!(decide(&first_byte(first), LEN, &any), Verdict::Forward, "{first:#x}");
    }
}

#[test]
fn the_first_failed_check_names_the_reason() {
    let nothing = Admission::only_ssrc(PayloadTypes::NONE, 1);
    assert_eq!(decide(&first_byte(0), LEN, &nothing), Verdict::Drop(DropReason::Malformed));
    assert_eq!(decide(&first_byte(0x81), LEN, &nothing), Verdict::Drop(DropReason::Malformed));
    assert_eq!(decide(&header(), LEN, &nothing), Verdict::Drop(DropReason::PayloadType));
}

#[test]
fn a_segment_is_judged_by_its_own_length() {
    let admission = Admission::only_ssrc(PayloadTypes::of(&[96]), 0xcafe);
    let entry = FlowEntry::new(FlowKind::Rtp, admission, 0, 90_000);
    let five = first_byte(0x85);
    assert!(is_of_track(&five, 32, &header(), &entry));
    assert!(!is_of_track(&five, 31, &header(), &entry), "RTP-1");
    assert!(is_of_track(&header(), 12, &five, &entry));
}

#[test]
fn the_kind_of_a_flow_says_what_is_checked() {
    let admission = Admission::only_ssrc(PayloadTypes::of(&[96]), 0xcafe);
    let entry =
        |kind| FlowEntry { mode: GroupMode::Opaque as u8, ..FlowEntry::new(kind, admission, 0, 90_000) };
    let edited = |entry: FlowEntry| FlowEntry { mode: GroupMode::Common as u8, ..entry };
    let strange = Course::Strange(DropReason::RateLimit);
    let between_nodes = |kind| FlowEntry { flags: FlowEntry::FORWARD_RTCP, ..entry(kind) };
    let rtp = header();
    let sr = {
        let mut bytes = rtp.to_bytes();
        bytes[1] = 200;
        RtpFixed::from_bytes(bytes)
    };
    let stun = first_byte(0);
    let cut = first_byte(0x81);
    let table = [
        ("rtp", entry(FlowKind::Rtp), Some(&rtp), Course::Forward),
        ("stun on rtp", entry(FlowKind::Rtp), Some(&stun), strange),
        ("punch on rtp", entry(FlowKind::Rtp), None, strange),
        ("sr on an rtp port", entry(FlowKind::Rtp), Some(&sr), Course::Strange(DropReason::PayloadType)),
        (
            "sources that are not there",
            entry(FlowKind::Rtp),
            Some(&cut),
            Course::Strange(DropReason::Malformed),
        ),
        ("the same on muxed", entry(FlowKind::Muxed), Some(&cut), Course::Strange(DropReason::Malformed)),
        ("the same on opaque", entry(FlowKind::Opaque), Some(&cut), Course::Forward),
        ("rtcp at the edge", entry(FlowKind::Rtcp), Some(&sr), Course::ToUser),
        ("rtcp between nodes", between_nodes(FlowKind::Rtcp), Some(&sr), Course::Forward),
        ("muxed rtp", entry(FlowKind::Muxed), Some(&rtp), Course::Forward),
        ("muxed rtcp at the edge", entry(FlowKind::Muxed), Some(&sr), Course::ToUser),
        ("muxed rtcp between nodes", between_nodes(FlowKind::Muxed), Some(&sr), Course::Forward),
        ("dtls on muxed", entry(FlowKind::Muxed), Some(&stun), strange),
        ("anything on opaque", entry(FlowKind::Opaque), Some(&stun), Course::Forward),
        ("a short one on opaque", entry(FlowKind::Opaque), None, Course::Forward),
        ("rtcp of an edited group", edited(between_nodes(FlowKind::Rtcp)), Some(&sr), Course::ToUser),
        ("anything of an edited group", edited(entry(FlowKind::Opaque)), Some(&rtp), Course::ToUser),
        (
            "a kind of a newer user half",
            FlowEntry { kind: 9, ..entry(FlowKind::Rtp) },
            Some(&rtp),
            Course::ToUser,
        ),
    ];
    for (name, entry, header, verdict) in table {
        let len = if header.is_some() { LEN } else { LEN - 1 };
        assert_eq!(decide_flow(header, len, &entry), verdict, "{name}");
    }
}

proptest! {
    #[test]
    fn the_set_contains_what_was_put_in(types in prop::collection::vec(0u8..128, 0..20)) {
        let set = PayloadTypes::of(&types);
        for payload_type in 0..128 {
            prop_assert_eq!(set.contains(payload_type), types.contains(&payload_type));
        }
    }

    /// Total on any 12 bytes, and forwarding implies all four checks.
    #[test]
    fn only_what_passes_every_check_is_forwarded(
        bytes: [u8; 12], len in 12_usize..100, low: u64, high: u64, ssrc: u32, lock: bool
    ) {
        let types = PayloadTypes { low, high };
        let admission =
            if lock { Admission::only_ssrc(types, ssrc) } else { Admission::any_ssrc(types) };
        let header = RtpFixed::from_bytes(bytes);
        let all = header.version() == 2
            && len >= 12 + 4 * usize::from(bytes[0] & 15)
            && types.contains(header.payload_type())
            && (!lock || header.ssrc() == ssrc);
        prop_assert_eq!(decide(&header, len, &admission) == Verdict::Forward, all);
    }
}
