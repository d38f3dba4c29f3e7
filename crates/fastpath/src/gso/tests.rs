use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn the_bounds_of_a_super_packet_hold() {
    // Around the limits of the kernel's segmentation (64 before Linux 6.9, 128 since): 1, 2, 63, 64, 65, 127, 128 segments and a short last one.
    for n in [1, 2, 63, 64, 65, 127, 128] {
        let full = Segments::new(n * 172, 172).unwrap();
        assert_eq!(full.count(), n);
        assert_eq!(full.get(n - 1), Some(((n - 1) * 172, 172)));
        assert_eq!(full.get(n), None);
        let short = Segments::new((n - 1) * 172 + 12, 172).unwrap();
        assert_eq!(short.get(n - 1), Some(((n - 1) * 172, 12)));
    }
    assert_eq!(Segments::new(128 * 172 + 1, 172), None, "a 129th segment");
}

#[test]
fn a_plain_datagram_is_one_segment() {
    assert_eq!(Segments::new(1_200, 0).unwrap().iter().collect::<Vec<_>>(), [(0, 1_200)]);
    assert_eq!(Segments::new(0, 0).unwrap().iter().collect::<Vec<_>>(), [(0, 0)]);
    assert_eq!(Segments::new(0, 100).unwrap().iter().collect::<Vec<_>>(), [(0, 0)]);
}

proptest! {
    #[test]
    fn segments_tile_the_payload(len in 0u32..70_000, size in 0u32..2_000) {
        if let Some(segments) = Segments::new(len, size) {
            let mut at = 0;
            for (offset, segment) in segments.iter() {
                prop_assert_eq!(offset, at);
                prop_assert!(size == 0 || segment <= size);
                at += segment;
            }
            prop_assert_eq!(at, len);
            prop_assert_eq!(segments.iter().count() as u32, segments.count());
        } else {
            prop_assert!(len.div_ceil(size) > MAX_SEGMENTS);
        }
    }
}
