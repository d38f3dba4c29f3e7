use proptest::prelude::*;

use super::*;
use crate::flow::FlowKind;

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
    assert_eq!(decide(&header(), &Admission::only_ssrc(types, 0xcafe)), Verdict::Forward);
    assert_eq!(decide(&header(), &Admission::any_ssrc(types)), Verdict::Forward);
}

#[test]
fn wrong_payload_type_is_dropped() {
    let admission = Admission::only_ssrc(PayloadTypes::of(&[97]), 0xcafe);
    assert_eq!(decide(&header(), &admission), Verdict::Drop(DropReason::PayloadType));
}

#[test]
fn wrong_ssrc_is_dropped() {
    let admission = Admission::only_ssrc(PayloadTypes::ANY, 0xbabe);
    assert_eq!(decide(&header(), &admission), Verdict::Drop(DropReason::Ssrc));
    assert_eq!(admission.locked_ssrc(), Some(0xbabe));
    // An SSRC of 0 is a number like any other.
    assert_eq!(
        decide(&header(), &Admission::only_ssrc(PayloadTypes::ANY, 0)),
        Verdict::Drop(DropReason::Ssrc)
    );
    assert_eq!(Admission::any_ssrc(PayloadTypes::ANY).locked_ssrc(), None);
}

#[test]
fn other_versions_are_malformed() {
    for version in [0u8, 1, 3] {
        let verdict = decide(&first_byte(version << 6), &Admission::any_ssrc(PayloadTypes::ANY));
        assert_eq!(verdict, Verdict::Drop(DropReason::Malformed));
    }
}

#[test]
fn the_first_failed_check_names_the_reason() {
    let nothing = Admission::only_ssrc(PayloadTypes::NONE, 1);
    assert_eq!(decide(&first_byte(0), &nothing), Verdict::Drop(DropReason::Malformed));
    assert_eq!(decide(&header(), &nothing), Verdict::Drop(DropReason::PayloadType));
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
    let table = [
        ("rtp", entry(FlowKind::Rtp), Some(&rtp), Course::Forward),
        ("stun on rtp", entry(FlowKind::Rtp), Some(&stun), strange),
        ("punch on rtp", entry(FlowKind::Rtp), None, strange),
        ("sr on an rtp port", entry(FlowKind::Rtp), Some(&sr), Course::Strange(DropReason::PayloadType)),
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
        assert_eq!(decide_flow(header, &entry), verdict, "{name}");
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

    /// Total on any 12 bytes, and forwarding implies all three checks.
    #[test]
    fn only_what_passes_every_check_is_forwarded(bytes: [u8; 12], low: u64, high: u64, ssrc: u32, lock: bool) {
        let types = PayloadTypes { low, high };
        let admission =
            if lock { Admission::only_ssrc(types, ssrc) } else { Admission::any_ssrc(types) };
        let header = RtpFixed::from_bytes(bytes);
        let all = header.version() == 2
            && types.contains(header.payload_type())
            && (!lock || header.ssrc() == ssrc);
        prop_assert_eq!(decide(&header, &admission) == Verdict::Forward, all);
    }
}
