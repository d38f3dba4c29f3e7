//! Legs that move between a worker and a model of the kernel's programs, on a virtual clock.

use super::*;
use crate::kernel::slots::{Extent, Holder, Quota};

pub(crate) mod model;
mod world;

use world::World;

/// A track with viewers whose legs are in the kernel.
fn steady(seed: u64, viewers: usize) -> World {
    let mut world = World::new(seed);
    world.send(5);
    world.work();
    for _ in 0..viewers {
        world.join(false);
    }
    world.settle();
    for index in 0..viewers {
        assert_eq!(world.rung(index), Some(Rung::Tcx), "viewer {index}");
    }
    world
}

/// With what the user path holds of a leg and with its session these are the 4 KiB that a leg may have
/// (`tests/memory`).
#[test]
fn a_leg_in_the_kernel_adds_little() {
    let world = steady(1, 5);
    for leg in &world.offload.legs {
        let (Ok(plan), Some(written)) = (&leg.plan, &leg.written) else { panic!("{leg:?}") };
        assert!(Rc::ptr_eq(plan, written), "one plan, however often it was told");
    }
    assert!(world.offload.legs.capacity() <= 6, "{}", world.offload.legs.capacity());
    let (leg, seat, plan) = (size_of::<Leg>(), size_of::<seats::Seat>(), size_of::<Plan>());
    eprintln!("{leg} bytes of a leg, {seat} of its seat, {plan} of its plan");
    assert!(leg + seat + plan <= 544);
}

#[test]
fn a_leg_that_plays_moves_to_the_kernel_and_the_worker_has_peace() {
    let mut world = steady(1, 3);
    let before = world.media.stats().totals().packets;
    world.send(50);
    assert!(world.viewers.iter().all(|viewer| viewer.by_kernel > 0));
    assert_eq!(world.media.stats().totals().packets, before, "nothing came up");
    world.settle();
    world.check_statistics();
    for viewer in &world.viewers {
        world.check(viewer);
    }
}

#[test]
fn a_tcp_leg_beside_gets_every_packet_from_the_worker() {
    let mut world = steady(2, 2);
    world.join(true);
    world.settle();
    assert_eq!((world.rung(0), world.rung(2)), (Some(Rung::Tcx), None));
    let over_tcp = Err(UserReason::Transport("interleaved TCP"));
    assert_eq!(world.offload.rung(world.viewers[2].leg), over_tcp);
    world.check_all();
    // Whatever becomes of the source, that is why.
    let gone = UserReason::NoEthernet("lo".to_owned());
    world.ingress = Err(gone.clone());
    world.reconcile();
    assert_eq!(world.offload.rung(world.viewers[2].leg), over_tcp);
    assert_eq!(world.offload.rung(world.viewers[0].leg), Err(gone));
}

#[test]
fn books_that_are_read_while_the_program_writes_them_double_nothing() {
    let mut world = steady(64, 2);
    world.join(true);
    world.settle();
    for _ in 0..10 {
        world.lose();
        world.send_part_of_the_way(1, None);
        world.leave_program();
        world.model.torn.set(true);
        while world.has_work() {
            world.work();
        }
        world.pass_time(20_000);
        world.tick();
    }
    world.check_all();
}

#[test]
fn a_restarted_source_is_spliced_by_the_worker_and_its_legs_go_back() {
    let mut world = steady(3, 2);
    for _ in 0..20 {
        world.restart();
        world.settle();
        world.settle();
        assert_eq!(world.rung(0), Some(Rung::Tcx));
    }
    world.check_all();
}

#[test]
fn a_changed_hop_takes_the_leg_through_the_worker() {
    let mut world = steady(4, 1);
    let moves = world.viewers[0].moves;
    world.mac = 9;
    world.settle();
    world.settle();
    world.settle();
    world.settle();
    assert_eq!(world.rung(0), Some(Rung::Tcx));
    assert!(world.viewers[0].moves >= moves + 2);
    world.check(&world.viewers[0]);
}

#[test]
fn a_program_that_stops_seeing_packets_loses_its_legs() {
    let mut world = steady(5, 2);
    world.model.detached = true;
    world.settle();
    assert_eq!(world.rung(0), None);
    let Err(UserReason::Interface { interface, .. }) = world.offload.rung(world.viewers[0].leg) else {
        panic!("{:?}", world.offload.rung(world.viewers[0].leg));
    };
    assert_eq!(interface, "cam");
    for viewer in &world.viewers {
        world.check(viewer);
    }
    assert!(world.model.flows.is_empty());
}

#[test]
fn a_program_that_never_sees_a_packet_is_given_up_and_that_is_said() {
    let mut world = World::new(5);
    world.model.detached = true;
    world.send(5);
    world.work();
    world.join(false);
    world.settle();
    let rung = world.offload.rung(world.viewers[0].leg);
    assert!(matches!(rung, Err(UserReason::Interface { .. })), "{rung:?}");
    assert!(world.model.flows.is_empty());
    world.check_all();
}

#[test]
fn a_flow_that_the_kernel_does_not_let_go_of_keeps_its_indices_to_itself() {
    let mut world = steady(13, 3);
    let stats = world.model.flows.values().next().unwrap().stats;
    world.model.sticky = true;
    world.leave(2);
    world.leave(1);
    world.leave(0);
    world.pass_time(10_000_000);
    let rest = world.rest();
    assert!(!rest.contains(&stats), "{stats} is given to others: {rest:?}");
}

#[test]
fn a_source_that_comes_in_by_another_way_too_is_not_certain() {
    let mut world = steady(14, 1);
    world.join(true);
    world.settle();
    assert!(world.offload.certain().get());
    // Every packet but each fourth passes the program, which copies it for the viewer over TCP.
    for number in 0..43 {
        world.model.detached = number % 4 == 0;
        world.send(1);
        while world.has_work() {
            world.work();
        }
        world.pass_time(20_000);
        world.tick();
    }
    world.reconcile();
    assert!(!world.offload.certain().get());
    world.model.detached = false;
    world.settle();
    world.settle();
    assert!(world.offload.certain().get(), "that was long ago");
    world.check_all();
}

#[test]
fn a_flow_that_ends_is_certain_no_more_before_anybody_looks() {
    let mut world = steady(15, 1);
    let certain = world.offload.certain().clone();
    assert!(certain.get());
    world.restart();
    world.send(5);
    while world.has_work() {
        world.work();
    }
    assert!(world.model.flows.is_empty(), "the source is another one");
    assert!(!certain.get(), "its packets have no flow now");
    world.settle();
    world.settle();
    assert!(certain.get());
    world.leave(0);
    assert!(!certain.get());
}

#[test]
fn an_ingress_that_goes_or_changes_takes_the_flow_along() {
    let mut world = steady(6, 2);
    world.ingress = Err(UserReason::NoEthernet("cam".to_owned()));
    world.settle();
    assert_eq!(world.rung(0), None);
    assert!(world.model.flows.is_empty());
    world.ingress = Ok(8);
    world.settle();
    world.settle();
    world.settle();
    world.settle();
    assert_eq!(world.rung(0), Some(Rung::Tcx));
    world.check_all();
}

#[test]
fn tables_that_refuse_leave_everything_with_the_worker() {
    let mut world = World::new(7);
    world.model.broken = true;
    world.send(5);
    world.work();
    world.join(false);
    world.settle();
    assert!(matches!(world.offload.rung(world.viewers[0].leg), Err(UserReason::Refused(_))));
    world.check(&world.viewers[0]);
    world.check_statistics();
}

#[test]
fn whichever_write_the_kernel_refuses_nothing_is_lost_and_no_index_stays_behind() {
    let mut refused = 0;
    for nth in 0..40 {
        let mut world = World::new(100 + u64::from(nth));
        let whole = World::new(0).spare();
        world.send(5);
        world.work();
        world.model.refuse = Some(nth);
        for _ in 0..3 {
            world.join(false);
            world.settle();
        }
        let was_refused = world.model.refuse.is_none();
        refused += u32::from(was_refused);
        world.check_all();
        while !world.viewers.is_empty() {
            world.leave(0);
        }
        assert!(world.model.flows.is_empty(), "write {nth}");
        let shut = msm_fastpath::Gate::Disabled.into();
        assert!(world.model.gates.values().all(|gate| *gate == shut), "write {nth}: {:?}", world.model.gates);
        world.pass_time(10_000_000);
        assert_eq!(world.spare(), whole, "write {nth}, refused: {was_refused}");
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn a_full_table_keeps_nothing_of_a_leg_that_it_does_not_take() {
    let mut world = World::new(50);
    world.send(5);
    world.work();
    let whole = World::new(0).spare();
    // One index of flow statistics and no slot for legs is left for it.
    let taken = world.take_all_slots();
    world.join(false);
    world.settle();
    assert!(matches!(world.offload.rung(world.viewers[0].leg), Err(UserReason::Full(_))));
    world.check_all();
    world.leave(0);
    world.give_slots(taken);
    world.pass_time(10_000_000);
    assert_eq!(world.spare(), whole);
}

#[test]
fn a_group_that_grows_twice_at_once_keeps_one_range() {
    let whole = World::new(0).spare();
    let mut world = World::new(60);
    world.send(5);
    world.work();
    for _ in 0..5 {
        world.join(false);
    }
    world.settle();
    assert_eq!(world.rung(4), Some(Rung::Tcx));
    world.pass_time(10_000_000);
    world.check_all();
    // Eight slots, five ids, one flow: what was outgrown is somebody else's again.
    assert_eq!(world.spare(), (whole.0 - 8, whole.1 - 5, whole.2 - 1));
}

#[test]
fn what_an_earlier_process_left_at_the_index_of_a_leg_is_cleared_first() {
    let mut world = World::new(61);
    for id in 0..64 {
        world.model.gates.insert(id, msm_fastpath::Gate::Active.into());
        world.model.counts.insert(id, LegStats { packets: 1_000, bytes: 9, dropped: 3, ..LegStats::ZERO });
    }
    world.send(5);
    world.work();
    world.join(false);
    world.settle();
    assert_eq!(world.rung(0), Some(Rung::Tcx));
    assert!(world.viewers[0].by_kernel < 1_000, "{}", world.viewers[0].by_kernel);
    world.check_all();
}

#[test]
fn a_gate_that_was_shut_by_a_number_is_shut_for_good() {
    let mut world = steady(62, 2);
    world.pause(0);
    world.settle();
    let open = world.model.gates.values().filter(|gate| **gate != msm_fastpath::Gate::Disabled.into());
    assert_eq!(open.count(), 1, "{:?}", world.model.gates);
}

#[test]
fn a_leg_that_had_to_come_back_stays_a_moment() {
    let mut world = steady(63, 1);
    world.ingress = Ok(8);
    world.reconcile();
    for _ in 0..(BACKOFF.as_millis() / 20 - 5) {
        assert_eq!(world.rung(0), None, "it goes to and fro");
        world.send(1);
        while world.has_work() {
            world.work();
        }
        world.pass_time(20_000);
        world.tick();
    }
    world.settle();
    world.settle();
    assert_eq!(world.rung(0), Some(Rung::Tcx));
    world.check_all();
}

#[test]
fn a_seat_is_given_on_when_no_packet_can_be_at_it() {
    let (now, holder) = (Instant::now(), Holder::new("cam", [10, 0, 0, 1].into()));
    let mut slots = Slots::new(&Extent { legs: 0..8, ids: 0..8, flows: 0..1 }, Quota::NONE);
    let (mut table, leg) = (model::Model::default(), |n| LegId::new(n, [0; 10]));
    let mut seats = seats::Seats::new(&holder, &mut slots, now).unwrap();
    let mut take = |n, seats: &mut seats::Seats, now| {
        seats.take(leg(n), &holder, &mut slots, &mut table, now).map_err(|_| "no seat").unwrap()
    };
    let later = now + 10 * GRACE;
    assert_eq!(take(1, &mut seats, now), 0);
    seats.free(0, later);
    assert_eq!(take(2, &mut seats, later), 1, "a packet may be at the first");
    assert_eq!(take(3, &mut seats, later + GRACE), 0);
}

#[test]
fn the_last_leg_that_leaves_takes_the_flow_along() {
    let mut world = steady(8, 2);
    world.leave(0);
    assert_eq!(world.model.flows.len(), 1);
    world.leave(0);
    assert!(world.model.flows.is_empty());
    assert!(world.offload.is_idle());
}

#[test]
fn seats_that_were_left_are_walked_no_more() {
    let mut world = steady(33, 6);
    let walked = |world: &World| world.model.flows.values().map(|flow| flow.legs).collect::<Vec<_>>();
    assert_eq!(walked(&world), [6]);
    for _ in 0..4 {
        world.leave(2);
    }
    world.settle();
    assert_eq!(walked(&world), [2]);
    world.join(false);
    world.settle();
    assert_eq!((walked(&world), world.rung(2)), (vec![3], Some(Rung::Tcx)));
    world.check_all();
}

#[test]
fn the_kernel_never_turns_one_address_family_into_the_other() {
    let world = World::new(9);
    for (viewer, is_carried) in
        [("10.0.1.2:5000", true), ("[::ffff:10.0.1.2]:5000", true), ("[fd00::2]:5000", false)]
    {
        assert_eq!(world.source.is_family_of(viewer.parse().unwrap()), is_carried, "{viewer}");
    }
}

#[test]
fn a_leg_that_is_paused_in_a_burst_goes_on_with_the_number_after_its_last() {
    let mut world = steady(11, 2);
    for round in 0..20 {
        world.send(3);
        // The number of a packet that the gate held is the leg's next one, whatever the program has booked.
        if round % 2 == 0 {
            world.pause_at_a_packet(0, false);
        } else {
            world.pause(0);
        }
        world.settle();
        world.restart();
        world.settle();
        world.play(0);
        world.settle();
        let (last, next) = world.numbers(0).unwrap();
        assert_eq!(next, last.wrapping_add(1), "round {round}");
        for _ in 0..4 {
            world.settle();
        }
        assert_eq!(world.rung(0), Some(Rung::Tcx), "round {round}");
    }
    world.check_all();
}

#[test]
fn a_leg_whose_gate_opens_as_it_is_paused_goes_on_with_the_number_after_its_last() {
    for seed in 40..60 {
        let mut world = steady(seed, 2);
        world.ask(0, Rung::User);
        world.settle();
        world.ask(0, Rung::Tcx);
        while world.offload.legs[0].place != Place::Arming {
            world.pass_time(1_000);
            world.tick();
        }
        world.pause_at_a_packet(0, true);
        world.settle();
        world.restart();
        world.settle();
        world.play(0);
        world.settle();
        let (last, next) = world.numbers(0).unwrap();
        assert_eq!(next, last.wrapping_add(1), "seed {seed}");
        world.check_all();
    }
}

#[test]
fn a_leg_that_plays_again_at_once_begins_with_the_worker() {
    for seed in 12..32 {
        let mut world = steady(seed, 2);
        world.pause(0);
        world.pass_time(20_000);
        world.tick();
        world.play(0);
        // The worker meets packets before the moment comes at which it answers.
        for _ in 0..4 {
            world.pass_time(2_500);
            world.send(1);
            while world.has_work() {
                world.work();
            }
        }
        world.tick();
        world.settle();
        for viewer in &world.viewers {
            world.check(viewer);
        }
    }
}

#[test]
fn what_is_handed_over_comes_back_first() {
    let mut world = steady(10, 2);
    world.join(true);
    world.settle();
    world.send(3);
    world.hand_over();
    assert!(world.model.flows.is_empty() && world.offload.is_idle());
    world.settle();
    world.check_all();
}

type TakeBack = fn(&mut World);

/// What may take every leg back while a packet is on its way through the program.
fn every_way_back() -> [(&'static str, TakeBack); 3] {
    let route: TakeBack = |world| {
        world.ingress = Ok(8);
        world.reconcile();
    };
    let refused: TakeBack = |world| {
        world.model.refuse = Some(0);
        world.join(false);
        world.reconcile();
        assert!(world.model.flows.is_empty() || world.model.refuse.is_some());
    };
    [("route", route), ("refused", refused), ("upgrade", World::hand_over)]
}

#[test]
fn a_packet_that_is_on_its_way_when_the_flow_is_taken_out_comes_to_every_leg_once() {
    for (name, take_back) in every_way_back() {
        for over_tcp in [false, true] {
            // Just found, just in the books, sent to some of the legs.
            for (way, packets) in
                [(None, 1), (None, 100), (Some(0), 1), (Some(1), 1), (Some(2), 40), (Some(9), 1)]
            {
                for seed in 70..74 {
                    let mut world = steady(seed, 5);
                    if over_tcp {
                        world.join(true);
                        world.settle();
                    }
                    world.send_part_of_the_way(packets, way);
                    take_back(&mut world);
                    world.leave_program();
                    world.settle();
                    let check = std::panic::AssertUnwindSafe(|| world.check_all());
                    let outcome = std::panic::catch_unwind(check);
                    assert!(
                        outcome.is_ok(),
                        "{name}, TCP {over_tcp}, way {way:?}, {packets} packets, {seed}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_last_packet_of_a_run_comes_to_every_leg_though_the_next_run_is_here() {
    let mut world = steady(75, 5);
    world.send_part_of_the_way(1, Some(2));
    world.restart_beside();
    world.settle();
    world.settle();
    world.check_all();
}

/// Everything at once, in an order that the seed decides.
fn riot(seed: u64, rounds: u64) -> u64 {
    let mut world = World::new(seed);
    world.send(5);
    world.work();
    let mut gone = Vec::new();
    let mut moves = 0;
    for _ in 0..rounds {
        let viewers = world.viewers.len().max(1) as u64;
        let one = world.rng.below(viewers) as usize;
        let was_passing = world.has_passing();
        match world.rng.below(400) {
            0..3 if viewers < 9 => {
                let tcp = world.rng.one_in(4);
                world.join(tcp);
            }
            3 => {
                // What is on its way then may be counted twice.
                world.leave_program();
                gone.extend(world.leave(one));
            }
            4..8 => world.pause(one),
            8..16 => world.play(one),
            16..60 => world.ask(one, Rung::User),
            60..120 => world.ask(one, Rung::Tcx),
            120 if world.rng.one_in(6) => world.restart(),
            121 => world.mac = world.mac.wrapping_add(1),
            122..125 => world.ingress = Ok(5 + world.rng.below(2) as u32),
            125..180 => {
                let (packets, legs) = (1 + world.rng.below(8), world.rng.below(6) as u32);
                world.send_part_of_the_way(packets, legs.checked_sub(1));
            }
            _ => {
                let burst = 1 + world.rng.below(8);
                world.send(burst);
            }
        }
        if world.rng.one_in(2) {
            world.work();
        }
        // What is on its way is through before the grace is over.
        if was_passing {
            world.leave_program();
        }
        let micros = world.rng.below(4_000);
        world.pass_time(micros);
        if world.rng.one_in(3) {
            world.tick();
        }
    }
    world.settle();
    for viewer in world.viewers.iter().chain(&gone) {
        world.check(viewer);
        moves += viewer.moves;
    }
    world.check_statistics();
    moves
}

#[test]
fn ten_thousand_moves_lose_and_double_nothing() {
    let mut moves = 0;
    let mut seed = 0;
    while moves < 10_000 {
        seed += 1;
        let result = std::panic::catch_unwind(|| riot(seed, 4_000));
        moves += result.unwrap_or_else(|error| {
            let text = error.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!("seed {seed}: {text}");
        });
        assert!(seed < 500, "legs do not move");
    }
    eprintln!("{moves} moves, {seed} seeds");
}
