use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;

fn leg() -> LegEntry {
    let mut leg = LegEntry::new_zeroed();
    leg.dst_mac = [2, 0, 0, 0, 0, 9];
    leg.src_mac = [2, 0, 0, 0, 0, 8];
    leg.src = crate::flow::mapped([10, 0, 0, 1]);
    leg.dst = crate::flow::mapped([10, 0, 0, 7]);
    leg.src_port = 8060u16.to_be_bytes();
    leg.dst_port = 40_000u16.to_be_bytes();
    leg
}

#[test]
fn a_transparent_leg_changes_no_byte() {
    let header = RtpFixed::from_bytes([0xbf, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(rewrite(&header, &RtpEdit::TRANSPARENT), header);
    assert_eq!(rewrite(&header, &RtpEdit::new_zeroed()), header);
}

#[test]
fn a_projected_leg_wraps_sequence_and_timestamp() {
    let header = RtpFixed::new(96, true, 65_535, u32::MAX, 1);
    let out = rewrite(&header, &RtpEdit::projected(2, 2, 10));
    assert_eq!((out.seq(), out.timestamp(), out.ssrc()), (1, 9, 2));
    assert_eq!((out.payload_type(), out.marker()), (96, true));
}

#[test]
fn the_hop_limit_runs_out() {
    assert_eq!(next_ttl(1, &leg()), Err(DropReason::Ttl));
    assert_eq!(next_ttl(0, &leg()), Err(DropReason::Ttl));
    assert_eq!(next_ttl(2, &leg()), Ok(1));
    let own = LegEntry { ttl: 64, ..leg() };
    assert_eq!(next_ttl(1, &own), Ok(64), "a leg with its own ttl is a new sender");
}

#[test]
fn a_dscp_replaces_the_packets_and_keeps_ecn() {
    let marked = LegEntry { flags: LegEntry::SET_DSCP, dscp: 34, ..leg() };
    assert_eq!(next_tos(0b0000_0011, &marked), (34 << 2) | 0b11);
    assert_eq!(next_tos(0b1011_1001, &leg()), 0b1011_1001);
}

proptest! {
    /// A projection is undone by its opposite, and touches nothing but the ten bytes it names.
    #[test]
    fn a_projection_can_be_undone(bytes: [u8; 12], ssrc: u32, seq: u16, timestamp: u32) {
        let header = RtpFixed::from_bytes(bytes);
        let out = rewrite(&header, &RtpEdit::projected(ssrc, seq, timestamp));
        prop_assert_eq!(&out.to_bytes()[..2], &bytes[..2]);
        prop_assert_eq!(out.ssrc(), ssrc);
        let back = RtpEdit::projected(header.ssrc(), seq.wrapping_neg(), timestamp.wrapping_neg());
        prop_assert_eq!(rewrite(&out, &back), header);
    }
}
