use super::*;

fn slots(legs: u32, flows: u32) -> Slots {
    Slots::new(&Extent::part(legs, flows, 0, 1), Quota::NONE)
}

/// A stream of one source.
fn of(stream: &str) -> Holder {
    Holder::new(stream, [10, 0, 0, 2].into())
}

fn later(now: Instant) -> Instant {
    now + QUARANTINE
}

#[test]
fn shares_of_all_workers_cover_the_tables_without_overlap() {
    for workers in 1..7 {
        let parts: Vec<_> = (0..workers).map(|index| Extent::part(1000, 77, index, workers)).collect();
        assert_eq!((parts[0].legs.start, parts[0].flows.start), (0, 0));
        assert_eq!((parts[workers - 1].legs.end, parts[workers - 1].flows.end), (1000, 77));
        for pair in parts.windows(2) {
            assert_eq!((pair[0].legs.end, pair[0].flows.end), (pair[1].legs.start, pair[1].flows.start));
        }
    }
}

#[test]
fn ranges_do_not_overlap_and_come_back_whole() {
    let now = Instant::now();
    // A share that starts and ends at odd places, as with three workers.
    let extent = Extent { legs: 333..1999, ids: 0..1, flows: 0..1 };
    let mut slots = Slots::new(&extent, Quota::NONE);
    let mut seen = BTreeSet::new();
    let mut taken = Vec::new();
    for legs in [1, 2, 3, 5, 200, 64, 1, 17, 512, 256] {
        let range = slots.take_slots(&of("a"), legs, now).unwrap();
        assert!(range.len >= legs, "{range:?}");
        for slot in range.first..range.first + u32::from(range.len) {
            assert!(extent.legs.contains(&slot) && seen.insert(slot), "{slot} of {range:?}");
        }
        taken.push(range);
    }
    assert!(slots.take_slots(&of("a"), 512, now).is_err());
    for range in taken {
        slots.give_slots(&of("a"), range, now);
    }
    assert!(slots.take_slots(&of("a"), 512, now).is_err(), "they rest first");
    assert!(slots.take_slots(&of("a"), 512, later(now)).is_ok());
    assert!(slots.take_slots(&of("a"), 512, later(now)).is_ok(), "halves were joined again");
}

#[test]
fn nothing_is_reused_before_its_rest() {
    let now = Instant::now();
    let mut slots = slots(1, 1);
    let (flow, id) = (slots.take_flow(&of("a"), now).unwrap(), slots.take_id(&of("a"), 0, now).unwrap());
    slots.give_flow(&of("a"), flow, now);
    slots.give_id(&of("a"), id, now);
    let soon = now + QUARANTINE.saturating_sub(Duration::from_nanos(1));
    assert!(slots.take_flow(&of("b"), soon).is_err());
    assert!(slots.take_id(&of("b"), 0, soon).is_err());
    assert_eq!(slots.take_flow(&of("b"), later(now)), Ok(flow));
    assert_eq!(slots.take_id(&of("b"), 0, later(now)), Ok(id));
}

#[test]
fn a_leg_has_the_number_of_its_slot_while_that_is_free() {
    let now = Instant::now();
    let mut slots = slots(8, 1);
    assert_eq!(slots.take_id(&of("a"), 5, now), Ok(5));
    assert_eq!(slots.take_id(&of("a"), 5, now), Ok(7), "else one that is wanted late");
    assert_eq!(slots.take_id(&of("a"), 1_000, now), Ok(6), "a slot of another share");
    slots.give_id(&of("a"), 5, now);
    assert_eq!(slots.take_id(&of("a"), 5, now), Ok(4), "it rests");
    assert_eq!(slots.take_id(&of("a"), 5, later(now)), Ok(5));
}

#[test]
fn one_tenant_gets_its_part_and_others_the_rest() {
    let now = Instant::now();
    let mut slots = Slots::new(&Extent::part(64, 8, 0, 1), Quota { part: 0.25, ..Quota::NONE });
    for _ in 0..16 {
        slots.take_id(&of("greedy"), 0, now).unwrap();
    }
    let refused = slots.take_id(&of("greedy"), 0, now).unwrap_err();
    assert_eq!(refused.to_string(), "the kernel's tables have no room: greedy has its share of 16 legs");
    assert!(slots.take_slots(&of("greedy"), 16, now).is_ok());
    assert!(slots.take_slots(&of("greedy"), 1, now).is_err());
    assert!(slots.take_flow(&of("greedy"), now).is_ok() && slots.take_flow(&of("greedy"), now).is_ok());
    assert!(slots.take_flow(&of("greedy"), now).is_err());
    for other in ["b", "c", "d"] {
        assert!(slots.take_slots(&of(other), 16, now).is_ok(), "{other}");
        assert!(
            slots.take_flow(&of(other), now).is_ok() && slots.take_id(&of(other), 0, now).is_ok(),
            "{other}"
        );
    }
    assert_eq!(slots.legs_held(), 19);
}

#[test]
fn who_publishes_stream_after_stream_leaves_the_last_eighth_to_others() {
    let now = Instant::now();
    let shares = Extent::part(65_536, 16_384, 0, 1);
    let mut slots = Slots::new(&shares, Quota::default());
    let greedy = |n: u32| {
        // One network, whatever the address in it.
        let address = format!("2001:db8:7:7::{n:x}").parse().unwrap();
        Holder::new(&format!("cam{n}"), address)
    };
    let mut got = 0;
    let refused = loop {
        let holder = greedy(got);
        if let Err(refused) = slots.take_flow(&holder, now) {
            break refused;
        }
        got += 1;
    };
    assert_eq!(got, 16_384 - 2_048, "{refused}");
    assert!(refused.to_string().contains("are for others than 2001:db8:7:7::, which has 14336"), "{refused}");
    for n in 0..3 {
        assert!(slots.take_slots(&greedy(n), 512, now).is_ok());
    }
    for n in 0..3_u8 {
        let other = Holder::new(&format!("door{n}"), [10, 0, 1, n].into());
        for _ in 0..100 {
            let slot = slots.take_slots(&other, 1, now).unwrap().first;
            assert!(slots.take_flow(&other, now).is_ok() && slots.take_id(&other, slot, now).is_ok());
        }
    }
    // A network that holds more than a quarter of the reserve is none that holds little.
    let other = Holder::new("wall", [10, 0, 2, 1].into());
    let got = (0..2_000).take_while(|_| slots.take_flow(&other, now).is_ok()).count();
    assert_eq!(got, 512);
    slots.give_flow(&greedy(0), 1, now);
    assert!(slots.take_flow(&greedy(0), later(now)).is_err());
}

#[test]
fn one_stream_never_gets_more_than_half_of_a_small_share_for_its_floor() {
    let now = Instant::now();
    let mut slots = Slots::new(&Extent::part(65_536, 16_384, 0, 64), Quota::default());
    assert!(slots.take_slots(&of("a"), 512, now).is_ok());
    let refused = slots.take_slots(&of("a"), 1, now).unwrap_err();
    assert!(refused.to_string().contains("a has its share of 512 leg slots"), "{refused}");
}

#[test]
fn what_is_given_back_counts_for_nobody() {
    let now = Instant::now();
    let mut slots = Slots::new(&Extent::part(64, 8, 0, 1), Quota { part: 0.25, ..Quota::NONE });
    let range = slots.take_slots(&of("a"), 16, now).unwrap();
    slots.give_slots(&of("a"), range, now);
    assert!(slots.take_slots(&of("a"), 16, now).is_ok(), "a part of its own while the other rests");
    assert_eq!(slots.streams.len(), 1);
}

#[test]
fn more_legs_than_a_group_has_are_refused_in_words() {
    let mut slots = slots(4096, 1);
    let refused = slots.take_slots(&of("a"), 513, Instant::now()).unwrap_err();
    assert!(refused.to_string().contains("at most 512 legs"), "{refused}");
}

#[test]
fn what_an_earlier_process_uses_is_given_to_nobody_until_it_comes_back() {
    let now = Instant::now();
    let mut slots = slots(16, 4);
    let old = SlotRange { first: 4, len: 4 };
    slots.reserve(&BTreeSet::from([1]), &BTreeSet::from([5, 6]), &[old]);
    let mut seen = BTreeSet::new();
    while let Ok(range) = slots.take_slots(&of("a"), 1, now) {
        seen.insert(range.first);
    }
    assert_eq!(seen, (0..4).chain(8..16).collect());
    let ids: BTreeSet<u32> = std::iter::from_fn(|| slots.take_id(&of("a"), 0, now).ok()).collect();
    assert_eq!(ids, (0..5).chain(7..16).collect());
    let flows: BTreeSet<u32> = std::iter::from_fn(|| slots.take_flow(&of("a"), now).ok()).collect();
    assert_eq!(flows, BTreeSet::from([0, 2, 3]));
    slots.restore([1], [5, 6], [old], now);
    assert_eq!(slots.take_slots(&of("a"), 4, later(now)), Ok(old));
    assert_eq!(slots.take_flow(&of("a"), later(now)), Ok(1));
}

#[test]
fn a_claimed_range_of_another_share_is_given_back_here() {
    let now = Instant::now();
    let mut slots = Slots::new(&Extent { legs: 0..4, ids: 0..4, flows: 0..1 }, Quota::NONE);
    let foreign = SlotRange { first: 1024, len: 8 };
    slots.adopt(&of("a"), Some(foreign), 5);
    assert_eq!(slots.legs_held(), 5);
    slots.give_slots(&of("a"), foreign, now);
    assert_eq!(slots.take_slots(&of("b"), 4, later(now)).map(|range| range.first), Ok(0));
}

#[test]
fn a_reserved_range_inside_a_larger_one_leaves_both_sides_usable() {
    let now = Instant::now();
    let mut slots = slots(512, 1);
    slots.reserve(&BTreeSet::new(), &BTreeSet::new(), &[SlotRange { first: 128, len: 1 }]);
    let mut count = 0;
    while slots.take_slots(&of("a"), 1, now).is_ok() {
        count += 1;
    }
    assert_eq!(count, 511);
}
