use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// The checksum as RFC 1071 section 4.1 writes it, one word after the other.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    let mut i = 0;
    while i < bytes.len() {
        let high = u64::from(bytes[i]) << 8;
        let low = bytes.get(i + 1).map_or(0, |b| u64::from(*b));
        sum += high | low;
        i += 2;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A UDP datagram with pseudo-header, its checksum computed in full. `[pseudo 12 or 40][udp 8][payload]`.
fn naive_udp(src: &[u8], dst: &[u8], datagram: &[u8]) -> u16 {
    let mut all = Vec::new();
    all.extend_from_slice(src);
    all.extend_from_slice(dst);
    all.extend_from_slice(&[0, 17]);
    all.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
    all.extend_from_slice(datagram);
    match naive(&all) {
        0 => 0xffff,
        check => check,
    }
}

#[test]
fn rfc_1071_example_sums_as_printed() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(fold(add_bytes(0, &bytes)), 0xddf2);
}

#[test]
fn rfc_1624_example_gives_zero_and_not_all_ones() {
    // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285; equation 3 gives 0x0000, equation 2 0xFFFF.
    assert_eq!(Delta::NONE.replace16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
}

#[test]
fn a_missing_udp_checksum_stays_missing() {
    assert_eq!(Delta::NONE.replace32(1, 2).apply_udp(0), 0);
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_all_ones() {
    assert_eq!(Delta::NONE.replace16(0x5555, 0x3285).apply_udp(0xdd2f), 0xffff);
    // A datagram that sums to all ones: its complement would be 0.
    assert_eq!(udp(0, &[0xff, 0xff]), 0xffff);
}

#[test]
fn the_largest_datagram_does_not_overflow() {
    let bytes = std::vec![0xff; 65_535];
    assert_eq!(!fold(add_bytes(0xffff, &bytes)), naive(&bytes));
}

proptest! {
    #[test]
    fn complete_sums_equal_the_naive_sum(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(ipv4(&bytes), naive(&bytes));
    }

    #[test]
    fn sums_may_be_cut_at_any_even_offset(
        bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..150,
    ) {
        let at = (at * 2).min(bytes.len() & !1);
        let cut = add_bytes(add_bytes(0, &bytes[..at]), &bytes[at..]);
        prop_assert_eq!(fold(cut), fold(add_bytes(0, &bytes)));
    }

    #[test]
    fn udp_over_ipv4_equals_the_naive_sum(
        src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(),
        datagram in prop::collection::vec(any::<u8>(), 8..300),
    ) {
        let len = datagram.len() as u16;
        prop_assert_eq!(udp(pseudo_v4(src, dst, len), &datagram), naive_udp(&src, &dst, &datagram));
    }

    #[test]
    fn udp_over_ipv6_equals_the_naive_sum(
        src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(),
        datagram in prop::collection::vec(any::<u8>(), 8..300),
    ) {
        let len = datagram.len() as u16;
        prop_assert_eq!(udp(pseudo_v6(src, dst, len), &datagram), naive_udp(&src, &dst, &datagram));
    }

    /// Replacing bytes of a checksummed header by a delta gives what a full recomputation gives.
    #[test]
    fn an_incremental_update_equals_recomputation(
        mut bytes in prop::collection::vec(any::<u8>(), 40..200),
        at in 0usize..10, new in any::<[u8; 16]>(),
    ) {
        let at = at * 2;
        let before = ipv4(&bytes);
        let delta = Delta::NONE.replace_bytes(&bytes[at..at + 16], &new);
        bytes[at..at + 16].copy_from_slice(&new);
        let after = delta.apply(before);
        // Both zeros of one's-complement arithmetic are the same sum; only an all-zero input tells them
        // apart, and no header is all zero.
        prop_assert_eq!(after % 0xffff, ipv4(&bytes) % 0xffff);
    }

    #[test]
    fn a_real_ipv4_header_keeps_an_exact_checksum(
        id in any::<[u8; 2]>(), ttl in 2u8.., old in any::<[u8; 8]>(), new in any::<[u8; 8]>(),
    ) {
        let header = |ttl: u8, addresses: [u8; 8]| {
            let mut h = [0x45, 0, 0, 200, id[0], id[1], 0, 0, ttl, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            h[12..].copy_from_slice(&addresses);
            h
        };
        let delta = Delta::NONE
            .replace_bytes(&old, &new)
            .replace16(u16::from_be_bytes([ttl, 17]), u16::from_be_bytes([ttl - 1, 17]));
        prop_assert_eq!(delta.apply(ipv4(&header(ttl, old))), ipv4(&header(ttl - 1, new)));
    }

    #[test]
    fn a_readdressed_datagram_keeps_an_exact_checksum(
        old in any::<([u8; 4], [u8; 4], u16, u16)>(), new in any::<([u8; 4], [u8; 4], u16, u16)>(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let datagram = |from: u16, to: u16| {
            let mut d = Vec::new();
            d.extend_from_slice(&from.to_be_bytes());
            d.extend_from_slice(&to.to_be_bytes());
            d.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
            d.extend_from_slice(&[0, 0]);
            d.extend_from_slice(&payload);
            d
        };
        let before = naive_udp(&old.0, &old.1, &datagram(old.2, old.3));
        let after = naive_udp(&new.0, &new.1, &datagram(new.2, new.3));
        let addresses = Delta::NONE.replace_bytes(&old.0, &new.0).replace_bytes(&old.1, &new.1);
        let ports = Delta::NONE.replace16(old.2, new.2).replace16(old.3, new.3);
        prop_assert_eq!(addresses.plus(ports).apply_udp(before), after);
    }

    /// A packet that the kernel or NIC will finish: the field holds the pseudo-header sum only, so only
    /// the addresses count.
    #[test]
    fn a_partial_sum_takes_the_address_delta_alone(
        old in any::<([u8; 4], [u8; 4])>(), new in any::<([u8; 4], [u8; 4])>(), len in 8u16..1500,
    ) {
        let delta = Delta::NONE.replace_bytes(&old.0, &new.0).replace_bytes(&old.1, &new.1);
        let patched = delta.apply_partial(partial(pseudo_v4(old.0, old.1, len)));
        prop_assert_eq!(patched, partial(pseudo_v4(new.0, new.1, len)));
    }

    #[test]
    fn replace32_equals_replacing_its_bytes(old in any::<u32>(), new in any::<u32>(), check in any::<u16>()) {
        let bytes = Delta::NONE.replace_bytes(&old.to_be_bytes(), &new.to_be_bytes());
        prop_assert_eq!(Delta::NONE.replace32(old, new).apply(check), bytes.apply(check));
    }
}
