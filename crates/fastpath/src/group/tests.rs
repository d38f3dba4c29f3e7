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
