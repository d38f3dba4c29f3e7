//! A run that is counted in two places, on a virtual clock.

use std::time::Instant;

use super::*;
use crate::input::{InputEvent, InputOutput, TrackInput};
use crate::keyframe::Codec;
use crate::leg::{LegConfig, LegTrack};
use crate::testing::{Rig, Source};

const BYTES: u64 = 13;

fn source() -> Source {
    Source { ssrc: 0x1111, seq: 1_000, ts: 90_000 }
}

/// What the other one has after `packets` of its own, the last of them with this number.
fn far(now: Instant, input: &TrackInput, highest: u64, packets: u64) -> Elsewhere {
    let standing = input.standing().unwrap();
    let steps = highest.saturating_sub(standing.highest) as u32;
    Elsewhere {
        highest,
        window: u64::MAX,
        ts: standing.ts.wrapping_add(steps * 3_600),
        ts_at: now,
        arrival: now,
        jitter: standing.jitter,
        counts: Counts { packets, bytes: packets * BYTES, ..Counts::default() },
    }
}

fn started() -> (Rig, Source, u64) {
    let (mut rig, mut camera) = (Rig::new(Codec::Other), source());
    let packets: Vec<_> = (0..10).map(|_| camera.frame(b"x")).collect();
    rig.receive(&packets);
    rig.input.begin_elsewhere();
    let highest = rig.input.standing().unwrap().highest;
    (rig, camera, highest)
}

/// The camera goes on without us.
fn skip(camera: &mut Source, packets: u32) {
    camera.seq = camera.seq.wrapping_add(packets as u16);
    camera.ts = camera.ts.wrapping_add(packets * 3_600);
}

#[test]
fn what_came_elsewhere_adds_up_with_what_came_here() {
    let (mut rig, mut camera, highest) = started();
    rig.tick(40_000);
    skip(&mut camera, 1_000);
    rig.input.absorb(rig.now, &far(rig.now, &rig.input, highest + 1_000, 990));
    let totals = rig.input.stats().totals();
    assert_eq!((totals.packets, totals.bytes, totals.lost()), (1_000, 1_000 * BYTES, 10));
    rig.input.absorb(rig.now, &far(rig.now, &rig.input, highest + 1_000, 990));
    assert_eq!(rig.input.stats().totals(), totals, "asking twice changes nothing");
    assert_eq!(rig.input.last_arrival(), Some(rig.now));

    rig.input.begin_elsewhere();
    let back = camera.frame(b"x");
    rig.receive(&[back]);
    assert_eq!(rig.batch.arrivals().len(), 1, "it continues");
    assert_eq!(rig.input.stats().totals().packets, 1_001);
    assert_eq!(rig.input.stats().totals().lost(), 10);
}

#[test]
fn a_copy_from_far_behind_or_far_ahead_of_what_came_here_is_no_jump() {
    let (mut rig, mut camera, highest) = started();
    rig.tick(400_000);
    skip(&mut camera, 10_000);
    let seen = far(rig.now, &rig.input, highest + 10_050, 10_000);
    rig.input.expect(&seen, false);
    let copies: Vec<_> = (0..50).map(|_| camera.frame(b"x")).collect();
    rig.receive(&copies);
    assert_eq!(rig.batch.arrivals().len(), 50);
    let totals = rig.input.stats().totals();
    assert_eq!((totals.reordered, totals.duplicates, totals.lost()), (0, 0, 0));
    assert_eq!(totals.packets, 10_060);
}

#[test]
fn loss_is_known_at_once_where_packets_are_and_stays_when_the_run_ends_there() {
    let (mut rig, camera, highest) = started();
    rig.tick(40_000);
    let mut restarted = camera;
    skip(&mut restarted, 61_000);
    rig.input.expect(&far(rig.now, &rig.input, highest + 1_000, 993), true);
    assert_eq!(rig.input.stats().totals().lost(), 7, "what is counted there was expected there");
    rig.receive(&[restarted.packet(b"x"), restarted.packet(b"x")]);
    let totals = rig.input.stats().totals();
    assert_eq!((totals.restarts, totals.lost()), (1, 7));
}

#[test]
fn what_does_not_continue_the_run_is_judged_by_how_far_the_run_has_come() {
    let (mut rig, camera, highest) = started();
    rig.tick(40_000);
    let mut restarted = camera;
    skip(&mut restarted, 61_000);
    rig.input.expect(&far(rig.now, &rig.input, highest + 1_000, 1_000), true);
    let [first, second] = [restarted.packet(b"x"), restarted.packet(b"x")];
    rig.receive(&[first]);
    assert_eq!(rig.batch.arrivals().len(), 0, "RTP-7: held until a second one confirms it");
    assert!(!rig.input.is_steady());
    rig.input.expect(&far(rig.now, &rig.input, highest + 1_000, 1_000), true);
    rig.receive(&[second]);
    assert_eq!(rig.batch.arrivals().len(), 2);
    let totals = rig.input.stats().totals();
    assert_eq!((totals.restarts, totals.packets), (1, 1_012), "what came elsewhere stays counted");
}

#[test]
fn a_source_that_speaks_only_elsewhere_is_heard() {
    let (mut rig, _, highest) = started();
    while !matches!(rig.input.poll_output(), InputOutput::Timeout(_)) {}
    rig.tick(5_000);
    rig.input.absorb(rig.now, &far(rig.now, &rig.input, highest + 100, 100));
    assert_eq!(rig.input.poll_output(), InputOutput::Event(InputEvent::Active));
    rig.tick(10);
    rig.input.absorb(rig.now, &far(rig.now, &rig.input, highest + 101, 101));
    assert!(matches!(rig.input.poll_output(), InputOutput::Timeout(_)));
}

#[test]
fn a_leg_that_joins_starts_behind_what_went_by_elsewhere() {
    let (mut rig, mut camera, highest) = started();
    rig.tick(40_000);
    skip(&mut camera, 1_000);
    let seen = far(rig.now, &rig.input, highest + 1_000, 1_000);
    rig.input.expect(&seen, false);
    rig.tick(20);
    let mut leg = LegTrack::new(LegConfig::default());
    let start = leg.arm(rig.now, &rig.input).unwrap();
    assert_eq!(start.seq, camera.seq, "RTSP-31");
    assert_eq!(start.rtptime, seen.ts.wrapping_add(20 * 90), "RTSP-31: of the moment the gate opened");
    let next = camera.frame(b"x");
    assert_eq!(rig.relay(&mut leg, std::slice::from_ref(&next)), [next]);
}

#[test]
fn a_splice_goes_on_behind_what_left_elsewhere() {
    let (mut rig, mut camera, highest) = started();
    let mut leg = LegTrack::new(LegConfig { resume: crate::ResumePolicy::AtOnce, ..LegConfig::default() });
    leg.arm(rig.now, &rig.input).unwrap();
    let run = rig.input.standing().unwrap().run;
    rig.tick(40_000);
    skip(&mut camera, 1_000);
    let seen = far(rig.now, &rig.input, highest + 1_000, 1_000);
    rig.input.expect(&seen, true);
    leg.sent_elsewhere(run, crate::project::Head { ext: seen.highest, ts: seen.ts, at: seen.ts_at });
    let mut other = Source { ssrc: 0x2222, seq: 7, ts: 70 };
    let [first, second] = [other.packet(b"x"), other.packet(b"x")];
    let out = rig.relay(&mut leg, &[first, second]);
    let numbers: Vec<_> = crate::testing::fields(&out).into_iter().map(|(seq, ..)| seq).collect();
    assert_eq!(numbers, [camera.seq, camera.seq.wrapping_add(1)], "RTP-6");
}
