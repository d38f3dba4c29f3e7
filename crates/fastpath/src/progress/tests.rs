use proptest::prelude::*;
use std::collections::BTreeSet;

use super::*;

const CLOCK: u32 = 90_000;

fn arrival(millis: u64) -> Arrival {
    Arrival::new(millis * 1_000_000, CLOCK)
}

/// Progress after these numbers, one packet per 20 ms of both clocks.
fn after(numbers: &[u16]) -> Progress {
    let mut progress = Progress::EMPTY;
    for (index, seq) in numbers.iter().enumerate() {
        progress.take(*seq, index as u32 * 1_800, &arrival(20 * index as u64));
    }
    progress
}

#[test]
fn units_are_ticks_of_the_clock() {
    assert_eq!(units(0, CLOCK), 0);
    for rate in [8_000, 44_100, 48_000, 90_000, 1_000_000] {
        for at in [0, 7 * NANOS, 365 * 86_400 * NANOS, u64::MAX / 3] {
            // No overflow in a year, and none at the wrap of 32 bits.
            let second = units(at + NANOS, rate).wrapping_sub(units(at, rate));
            assert!(second.abs_diff(rate) <= 1, "{second} at {rate} Hz");
            let minute = units(at + 60 * NANOS, rate).wrapping_sub(units(at, rate));
            assert!(minute.abs_diff(60 * rate) <= 16, "{minute} at {rate} Hz");
        }
    }
}

#[test]
fn the_first_packet_starts_one_cycle_up() {
    let progress = after(&[65_535]);
    assert_eq!((progress.highest, progress.window, progress.seen), (0x1_ffff, 1, 1));
    assert_eq!(after(&[65_535, 0]).highest, 0x2_0000);
}

#[test]
fn loss_reordering_and_duplicates_are_told_apart_across_the_wrap() {
    let progress = after(&[65_533, 65_534, 1, 65_535, 1, 0, 2, 65_533]);
    assert_eq!((progress.reordered, progress.duplicate), (2, 2));
    assert_eq!((progress.skipped, progress.skipped_to), (2, 1));
    assert_eq!(progress.window, 0b11_1111);
}

#[test]
fn what_two_cpus_store_of_one_flow_is_in_the_books_whoever_comes_last() {
    let segments = Segments::new(100, 0).unwrap();
    for numbers in [[21, 22], [22, 21], [17, 21], [21, 17], [10, 40], [40, 10]] {
        let mut stats = FlowStats::ZERO;
        after(&[15, 16, 18, 20]).store(&mut stats, &segments, &arrival(0));
        // Both have looked before either stores.
        let taken = numbers.map(|seq| {
            let mut progress = Progress::of(&stats);
            progress.take(seq, 0, &arrival(0));
            progress
        });
        for progress in taken {
            progress.store(&mut stats, &segments, &arrival(0));
        }
        let all = after(&[15, 16, 18, 20, numbers[0], numbers[1]]);
        assert_eq!((stats.highest, stats.window), (all.highest, all.window), "{numbers:?}");
    }
}

#[test]
fn numbers_beyond_dropout_and_misorder_do_not_continue_the_run() {
    let progress = after(&[10_000]);
    let continues = |seq| progress.continues(seq, 0, &arrival(0));
    assert!(continues(12_999) && continues(9_901) && continues(10_000));
    assert!(!continues(13_000) && !continues(9_900) && !continues(42_768));
    assert!(Progress::EMPTY.continues(42_768, 7, &arrival(0)), "the first packet does");
}

#[test]
fn a_time_that_is_neither_the_last_nor_the_present_is_a_jump() {
    let progress = after(&[1]);
    let continues = |timestamp: i64, millis| progress.continues(2, timestamp as u32, &arrival(millis));
    assert!(continues(10 * 90_000, 0) && continues(-10 * 90_000, 0));
    assert!(!continues(10 * 90_000 + 1, 0), "RTP-7: ten seconds in no time");
    assert!(continues(60 * 90_000, 60_000), "a pause: the clock went on");
    assert!(continues(1_800, 60_000), "a pause: the clock stood");
    assert!(!continues(-60 * 90_000, 60_000));
}

#[test]
fn the_time_of_the_highest_timestamp_is_when_it_was_first_seen() {
    let mut progress = after(&[1]);
    progress.take(2, 3_000, &arrival(10));
    progress.take(3, 3_000, &arrival(20));
    progress.take(4, 1_500, &arrival(30));
    assert_eq!((progress.last_timestamp, progress.timestamp_at), (3_000, 10_000_000));
}

#[test]
fn jitter_follows_rfc_3550() {
    let mut progress = Progress::EMPTY;
    let mut expected = 0_u32;
    // Every second packet comes 5 ms, 450 ticks, late.
    for index in 0..100_u32 {
        let late = u64::from(index % 2) * 5;
        progress.take(index as u16, index * 1_800, &arrival(u64::from(index) * 20 + late));
        if index > 0 {
            expected += 450 - ((expected + 8) >> 4);
        }
    }
    // Arrivals are rounded to units.
    assert!(progress.jitter.abs_diff(expected) <= 32, "{} and {expected}", progress.jitter);
    assert!(progress.jitter >> 4 > 400);
}

#[test]
fn copies_of_the_worker_are_counted_apart() {
    let mut progress = after(&[1, 2]);
    progress.take(2, 1_800, &arrival(40));
    let segments = Segments::new(172, 0).unwrap();
    let mut stats = FlowStats::ZERO;
    progress.store(&mut stats, &segments, &arrival(40));
    progress.settle(&mut stats, &segments, true);
    assert_eq!((stats.packets, stats.copied, stats.copied_bytes, stats.duplicate), (1, 1, 172, 0));
    progress.settle(&mut stats, &segments, false);
    assert_eq!((stats.copied, stats.duplicate), (1, 1));
    assert_eq!(Progress::of(&stats), Progress { reordered: 0, duplicate: 0, ..progress });
}

#[test]
fn a_burst_begins_after_a_gap_and_a_super_packet_is_one_arrival() {
    let mut stats = FlowStats { last_arrival: 5 * NANOS, ..FlowStats::ZERO };
    let mut come = |after: i64, payload, gso_size| {
        let arrival = Arrival::new(stats.last_arrival.wrapping_add_signed(after), CLOCK);
        let segments = Segments::new(payload, gso_size).unwrap();
        Progress::of(&stats).store(&mut stats, &segments, &arrival);
        (stats.packets, stats.bursts)
    };
    let gap = BURST_GAP as i64;
    assert_eq!(come(gap, 172, 0), (1, 0), "a gap of exactly that length is none");
    assert_eq!(come(gap + 1, 172, 0), (2, 1));
    assert_eq!(come(0, 172, 0), (3, 1));
    assert_eq!(come(-1_000_000, 172, 0), (4, 1), "another CPU was later");
    assert_eq!(come(20_000_000, 32 * 172, 172), (36, 2));
}

#[test]
fn the_first_packet_of_all_begins_a_burst() {
    let mut stats = FlowStats::ZERO;
    Progress::EMPTY.store(&mut stats, &Segments::ONE, &arrival(1));
    assert_eq!(stats.pace(), Pace { packets: 1, bursts: 1 });
}

#[test]
fn the_mean_burst_is_of_what_came_since() {
    let earlier = Pace { packets: 1_000, bursts: u32::MAX };
    let burst = |packets, bursts| Pace { packets, bursts }.burst_since(&earlier);
    assert_eq!(burst(1_033, 3), Some(8), "four bursts across the wrap");
    assert_eq!(burst(1_001, u32::MAX), None, "no burst has begun");
    assert_eq!(burst(999, 3), None, "the flow's statistics began anew");
}

#[test]
fn the_worker_is_handed_so_many_packets_a_second_and_no_more() {
    let mut stats = FlowStats::ZERO;
    let mut at = 5 * NANOS;
    for _second in 0..2 {
        for number in 0..1_000 {
            let given = stats.hand_up(at + number);
            assert_eq!(given.granted, number < u64::from(STRANGE_PER_SECOND));
            assert_eq!(given.first, number == 0 || number == u64::from(STRANGE_PER_SECOND), "{number}");
        }
        at += NANOS;
    }
    assert_eq!(stats.dropped, 2 * (1_000 - u64::from(STRANGE_PER_SECOND)));
}

proptest! {
    #[test]
    fn progress_agrees_with_a_set_of_all_numbers(start: u16, moves in prop::collection::vec(-99_i64..200, 1..300)) {
        let mut progress = after(&[start]);
        let mut all = BTreeSet::from([FIRST_CYCLE + u64::from(start)]);
        let (mut reordered, mut duplicate) = (0, 0);
        for step in moves {
            let highest = *all.last().unwrap();
            let number = highest.wrapping_add_signed(step);
            prop_assert!(progress.continues(number as u16, 0, &arrival(0)));
            prop_assert_eq!(progress.is_newest(number as u16), step > 0);
            progress.take(number as u16, 0, &arrival(0));
            if step <= 0 && highest - number < 64 && all.contains(&number) {
                duplicate += 1;
            } else if step <= 0 {
                reordered += 1;
            }
            all.insert(number);
        }
        prop_assert_eq!(progress.highest, *all.last().unwrap());
        prop_assert_eq!((progress.reordered, progress.duplicate), (reordered, duplicate));
        for behind in 0..64 {
            let came = progress.highest.checked_sub(behind).is_some_and(|number| all.contains(&number));
            prop_assert_eq!(progress.window >> behind & 1 == 1, came, "{} behind", behind);
        }
    }

    /// Total on any state that user space may have written.
    #[test]
    fn no_start_value_breaks_it(highest: u64, window: u64, seen in 0..2_u8, at: u64, rate: u32, seq: u16, timestamp: u32) {
        let mut stats = FlowStats { highest, window, seen, timestamp_at: at, handed_since: at, ..FlowStats::ZERO };
        let arrival = Arrival::new(at.wrapping_mul(3), rate);
        let mut progress = Progress::of(&stats);
        progress.continues(seq, timestamp, &arrival);
        progress.take(seq, timestamp, &arrival);
        progress.store(&mut stats, &Segments::ONE, &arrival);
        stats.hand_up(arrival.at);
    }
}
