use proptest::prelude::*;

use super::*;

#[test]
fn each_state_answers_each_side_of_its_number() {
    use Gate::{Active, Armed, Disabled, Draining};
    let table = [
        (Disabled, 5, Disabled, Step::Hold),
        (Armed(5), 4, Armed(5), Step::Hold),
        (Armed(5), 5, Active, Step::Start),
        (Armed(5), 9, Active, Step::Start),
        (Armed(2), 65_530, Armed(2), Step::Hold),
        (Armed(65_535), 3, Active, Step::Start),
        (Active, 0, Active, Step::Pass),
        (Draining(5), 4, Draining(5), Step::Pass),
        (Draining(5), 5, Disabled, Step::Stop),
        (Draining(5), 6, Disabled, Step::Stop),
        (Draining(0), 65_535, Draining(0), Step::Pass),
        (Draining(65_535), 0, Disabled, Step::Stop),
    ];
    for (gate, seq, next, step) in table {
        assert_eq!(gate.step(seq), (next, step), "{gate:?} at {seq}");
    }
}

#[test]
fn arming_and_draining_follow_the_state() {
    use Gate::{Active, Armed, Disabled, Draining};
    for (gate, armed, drained) in [
        (Disabled, Armed(7), Disabled),
        (Armed(3), Armed(7), Disabled),
        (Active, Active, Draining(7)),
        (Draining(3), Active, Draining(7)),
    ] {
        assert_eq!(gate.arm(7), armed, "{gate:?}");
        assert_eq!(gate.drain(7), drained, "{gate:?}");
        assert_eq!(gate.disable(), Disabled);
    }
    assert!(Active.is_open() && Draining(1).is_open() && !Armed(1).is_open() && !Disabled.is_open());
}

#[test]
fn entries_give_their_gate_back_and_unknown_states_do_not() {
    for gate in [Gate::Disabled, Gate::Armed(7), Gate::Active, Gate::Draining(65_535)] {
        assert_eq!(Gate::try_from(GateEntry::from(gate)), Ok(gate));
    }
    assert_eq!(
        Gate::try_from(GateEntry { state: 4, flags: 0, seq: 0, at: 0, pad: [0; 2] }),
        Err(UnknownGate(4))
    );
}

#[test]
fn only_the_newest_packet_moves_an_entry() {
    let armed = GateEntry::from(Gate::Armed(5));
    assert_eq!(armed.step(7, false), (armed, Step::Hold), "a duplicate of what waits for the worker");
    let (open, step) = armed.step(7, true);
    assert_eq!((open.moved_at(), step), (Some(7), Step::Start));
    assert_eq!(open.step(3, false), (open, Step::Pass), "the state is shared by what comes late");
    let draining = GateEntry::from(Gate::Draining(9));
    assert_eq!(draining.step(10, false), (draining, Step::Pass));
    let (shut, step) = draining.step(10, true);
    assert_eq!((shut.moved_at(), step), (Some(10), Step::Stop));
    assert_eq!(shut.step(8, false), (shut, Step::Hold));
}

#[test]
fn without_numbers_the_next_packet_moves_an_entry() {
    for number in [0, 5, 65_535] {
        let (open, step) = GateEntry::from(Gate::Armed(number)).step_unnumbered();
        assert_eq!((open.moved_at(), step, open.seq), (Some(0), Step::Start, number));
        assert_eq!(open.step_unnumbered(), (open, Step::Pass));
        let (shut, step) = GateEntry::from(Gate::Draining(number)).step_unnumbered();
        assert_eq!((shut.moved_at(), step, shut.seq), (Some(0), Step::Stop, number));
        assert_eq!(shut.step_unnumbered(), (shut, Step::Hold));
    }
    let active = GateEntry::from(Gate::Active);
    assert_eq!(active.step_unnumbered(), (active, Step::Pass));
    let unknown = GateEntry { state: 9, ..active };
    assert_eq!(unknown.step_unnumbered(), (unknown, Step::Hold));
}

proptest! {
    /// A leg that moves from one holder to another is neither interrupted nor doubled: what the old
    /// holder drains until is where the new one is armed from, wherever the numbering wraps, whatever is
    /// lost on the way in.
    #[test]
    fn a_handover_sends_every_packet_once(
        first: u16, handover in 1u16..200, lost in prop::collection::vec(any::<bool>(), 400),
    ) {
        let at = first.wrapping_add(handover);
        let mut old = Gate::Active.drain(at);
        let mut new = Gate::Disabled.arm(at);
        for (n, lost) in lost.iter().enumerate() {
            if *lost {
                continue;
            }
            let seq = first.wrapping_add(n as u16);
            let (next_old, by_old) = old.step(seq);
            let (next_new, by_new) = new.step(seq);
            (old, new) = (next_old, next_new);
            prop_assert!(by_old.passes() != by_new.passes(), "packet {} of {}", n, handover);
        }
    }

    #[test]
    fn a_gate_starts_and_stops_once(from: u16, n in 1usize..300) {
        let mut gate = Gate::Disabled.arm(from);
        let mut starts = 0;
        for i in 0..n {
            let (next, step) = gate.step(from.wrapping_sub(20).wrapping_add(i as u16));
            starts += usize::from(step == Step::Start);
            prop_assert_eq!(step.passes(), i >= 20);
            gate = next;
        }
        prop_assert_eq!(starts, usize::from(n > 20));
    }

    #[test]
    fn before_is_antisymmetric_within_half_the_range(a: u16, distance in 1u16..32_768) {
        let b = a.wrapping_add(distance);
        prop_assert!(is_before(a, b) && !is_before(b, a) && !is_before(a, a));
    }
}
