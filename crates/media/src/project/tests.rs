//! The arithmetic of splices, and its invariants over whole lives of legs.

use proptest::prelude::*;

use super::*;
use crate::keyframe::Codec;
use crate::leg::{LegConfig, LegTrack};
use crate::testing::{Rig, Source, fields, ms, start};

#[test]
fn a_transparent_projection_changes_nothing() {
    let projection = Projection::transparent(1, 7);
    assert_eq!(projection.map(65_535, u32::MAX), Mapped { seq: 65_535, ts: u32::MAX, ssrc: 7 }, "RTP-3");
}

#[test]
fn a_splice_continues_at_the_next_number_and_after_the_time_that_passed() {
    let now = start();
    let mut projection = Projection::transparent(1, 7);
    let sent = Head { ext: 0x1_ffff, ts: u32::MAX - 99, at: now };
    let out = projection.continuation(&sent, now + ms(40), ClockRate::VIDEO, None);
    assert_eq!(out, (0, 3_500), "RTP-6: both wrap");
    projection.splice(2, (500, 1_000_000), out);
    assert!(!projection.is_transparent());
    assert_eq!(projection.map(500, 1_000_000), Mapped { seq: 0, ts: 3_500, ssrc: 7 });
    assert_eq!(
        projection.map(503, 1_003_000),
        Mapped { seq: 3, ts: 6_500, ssrc: 7 },
        "RTP-4: gaps stay gaps"
    );
}

#[test]
fn a_splice_without_time_passing_still_starts_another_frame() {
    let now = start();
    let projection = Projection::transparent(1, 7);
    let sent = Head { ext: 0x1_0000, ts: 10, at: now };
    assert_eq!(projection.continuation(&sent, now, ClockRate::VIDEO, None), (1, 11));
}

#[test]
fn a_head_keeps_the_first_moment_of_its_highest_timestamp() {
    let now = start();
    let mut head = Head { ext: 5, ts: 100, at: now };
    head.raise(6, 100, now + ms(1));
    assert_eq!(head, Head { ext: 6, ts: 100, at: now });
    head.raise(7, 50, now + ms(2));
    assert_eq!(head, Head { ext: 7, ts: 100, at: now }, "a B-frame comes after the frame it precedes");
    head.raise(8, 150, now + ms(3));
    assert_eq!(head, Head { ext: 8, ts: 150, at: now + ms(3) });
}

/// One thing that happens to a camera.
#[derive(Debug, Clone)]
enum Act {
    Frames(u8),
    Lose(u8),
    Restart { ssrc: u32, seq: u16, ts: u32, away: u16 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..20_u8).prop_map(Act::Frames),
        1 => (1..10_u8).prop_map(Act::Lose),
        2 => (1..u32::MAX, any::<u16>(), any::<u32>(), 1_000..20_000_u16)
            .prop_map(|(ssrc, seq, ts, away)| Act::Restart { ssrc, seq, ts, away }),
    ]
}

proptest! {
    #[test]
    fn a_leg_has_one_ssrc_one_sequence_and_one_timeline(acts in prop::collection::vec(act(), 1..30), seq: u16, ts: u32) {
        let mut rig = Rig::new(Codec::Other);
        let mut source = Source { ssrc: 1, seq, ts };
        let mut leg = LegTrack::new(LegConfig::default());
        rig.receive(&[source.frame(b"x")]);
        let promised = leg.arm(rig.now, &rig.input).unwrap();
        let mut out = Vec::new();
        let mut gap = 0_u16;
        let mut expected_gaps = vec![];
        for act in acts {
            match act {
                Act::Frames(count) => {
                    for _ in 0..count {
                        rig.tick(40);
                        let packets = [source.frame(b"x")];
                        let sent = rig.relay(&mut leg, &packets);
                        expected_gaps.extend(sent.iter().map(|_| std::mem::take(&mut gap)));
                        out.extend(sent);
                    }
                }
                Act::Lose(count) => {
                    for _ in 0..count {
                        rig.tick(40);
                        source.frame(b"x");
                        gap += 1;
                    }
                }
                Act::Restart { ssrc, seq, ts, away } => {
                    source = Source { ssrc, seq, ts };
                    gap = 0; // what was lost before a restart is not known to be lost
                    rig.tick(u64::from(away));
                    let packets = [source.frame(b"x"), source.frame(b"x")];
                    let sent = rig.relay(&mut leg, &packets);
                    prop_assert_eq!(sent.len(), 2, "RTP-6: none is lost to probation");
                    expected_gaps.extend([0, 0]);
                    out.extend(sent);
                }
            }
        }
        let mut last = (promised.seq.wrapping_sub(1), promised.rtptime);
        for ((seq, ts, ssrc), gap) in fields(&out).into_iter().zip(expected_gaps) {
            prop_assert_eq!(ssrc, promised.ssrc, "one SSRC per leg");
            prop_assert_eq!(seq, last.0.wrapping_add(1).wrapping_add(gap), "RTP-4, RTP-6: continuous but for real gaps");
            prop_assert!(ts.wrapping_sub(last.1) as i32 >= 0, "time never goes back");
            last = (seq, ts);
        }
    }

    #[test]
    fn the_way_out_takes_as_long_as_the_wall_clock(away in 1_000_u64..100_000, seq: u16, ts: u32) {
        let mut rig = Rig::new(Codec::Other);
        let mut source = Source { ssrc: 1, seq: 10, ts: 1_000_000 };
        let mut leg = LegTrack::new(LegConfig::default());
        leg.arm(rig.now, &rig.input);
        let before = fields(&rig.relay(&mut leg, &[source.frame(b"x")]));
        let mut next = Source { ssrc: 2, seq, ts };
        rig.tick(away);
        let first = next.frame(b"x");
        let second = next.packet(b"x");
        let after = fields(&rig.relay(&mut leg, &[first, second]));
        prop_assert_eq!(after[0].1.wrapping_sub(before[0].1), (away * 90) as u32, "RTP-6: last + elapsed * clock");
    }
}
