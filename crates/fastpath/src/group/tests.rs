use super::*;

#[test]
fn the_mode_is_the_cheapest_that_serves_every_leg() {
    let a = RtpEdit::projected(1, 2, 3);
    let b = RtpEdit::projected(1, 2, 4);
    let none = RtpEdit::TRANSPARENT;
    assert_eq!(GroupMode::for_edits(&[]), GroupMode::Opaque);
    assert_eq!(GroupMode::for_edits(&[none, none]), GroupMode::Opaque);
    assert_eq!(GroupMode::for_edits(&[a]), GroupMode::Common);
    assert_eq!(GroupMode::for_edits(&[a, a, a]), GroupMode::Common);
    assert_eq!(GroupMode::for_edits(&[a, b]), GroupMode::PerLeg);
    assert_eq!(GroupMode::for_edits(&[a, none]), GroupMode::PerLeg);
}

#[test]
fn modes_give_their_number_back_and_unknown_numbers_do_not() {
    for mode in [GroupMode::Opaque, GroupMode::Common, GroupMode::PerLeg, GroupMode::ToUser] {
        assert_eq!(GroupMode::from_u8(mode as u8), Some(mode));
    }
    assert_eq!(GroupMode::from_u8(4), None);
}

#[test]
fn counts_of_two_processors_add_up_and_keep_the_reason_of_one_that_dropped() {
    let sent = |packets, dropped, reason: DropReason| LegStats {
        packets,
        bytes: 172 * packets,
        dropped,
        dropped_for: reason as u32,
        pad: 0,
    };
    let quiet = LegStats { packets: 4, bytes: 688, ..LegStats::ZERO };
    let sum = quiet.plus(sent(2, 3, DropReason::Mtu)).plus(quiet);
    assert_eq!((sum.packets, sum.bytes, sum.dropped, sum.reason()), (10, 1_720, 3, DropReason::Mtu));
    let later = sum.plus(sent(1, 1, DropReason::Ttl)).since(sum);
    assert_eq!((later.packets, later.bytes, later.dropped, later.reason()), (1, 172, 1, DropReason::Ttl));
    assert_eq!(LegStats { dropped_for: 99, ..LegStats::ZERO }.reason(), DropReason::RingFull);
}
