use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::clock::ClockRate;
use crate::input::{InputOutput, TrackInput};
use crate::jitter::{MIN_WINDOW, Reorder};
use crate::keyframe::Codec;
use crate::peer::PeerLock;
use crate::project::ResumePolicy;
use crate::rtcp::rr::{ReportBlock, write_rr};
use crate::testing::{IDR, Rig, SLICE, SPS, Source, config, ms, start};

/// What happens to a track with two legs.
#[derive(Debug, Clone)]
enum Deed {
    /// So many packets of a source, from this far behind or ahead of its sequence.
    Packets {
        source: usize,
        count: usize,
        skip: i16,
        payload: usize,
    },
    /// The source starts over with another timestamp.
    Jump(usize),
    SenderReport(usize),
    ViewerReport {
        leg: usize,
        lost: u8,
    },
    Pli(usize),
    Bye(usize),
    Replace,
    Arm(usize),
    Pause(usize),
    Sleep(u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        12 => (prop_oneof![8 => Just(0usize), 1 => 1..3usize], 1..5usize, prop_oneof![6 => Just(0i16), 1 => -3..5i16], 0..3usize)
            .prop_map(|(source, count, skip, payload)| Deed::Packets { source, count, skip, payload }),
        1 => (0..3usize).prop_map(Deed::Jump),
        2 => (0..3usize).prop_map(Deed::SenderReport),
        2 => (0..2usize, any::<u8>()).prop_map(|(leg, lost)| Deed::ViewerReport { leg, lost }),
        1 => (0..2usize).prop_map(Deed::Pli),
        1 => (0..3usize).prop_map(Deed::Bye),
        1 => Just(Deed::Replace),
        4 => (0..2usize).prop_map(Deed::Arm),
        1 => (0..2usize).prop_map(Deed::Pause),
        5 => prop_oneof![0..60u64, 900..6000u64].prop_map(Deed::Sleep),
    ];
    proptest::collection::vec(deed, 1..90)
}

fn leg_config(n: usize) -> LegConfig {
    LegConfig {
        feedback: true,
        dedup: n == 1,
        circuit_breaker: n == 0,
        resume: if n == 0 { ResumePolicy::default() } else { ResumePolicy::AtOnce },
    }
}

/// Through text and back, as between two processes.
fn through_text<T: Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

fn run(begin: Instant, deeds: &[Deed], swaps: &[bool]) -> Vec<String> {
    let at = Anchor::new(begin, 1 << 44);
    let mut rig = Rig::new(Codec::H264);
    rig.now = begin;
    rig.input = TrackInput::new(begin, config(Codec::H264));
    let mut legs = [0, 1].map(|n| LegTrack::new(leg_config(n)));
    let mut sources = [(7, 60_000), (8, 10), (7, 30_000)].map(|(ssrc, seq)| Source { ssrc, seq, ts: 90_000 });
    let mut seen = Vec::new();
    let mut scratch = Vec::new();
    for (index, deed) in deeds.iter().enumerate() {
        if swaps.get(index).copied().unwrap_or(false) {
            let inventory = rig.input.inventory(&at);
            rig.input = TrackInput::restore(through_text(&inventory), config(Codec::H264), &at).unwrap();
            assert_eq!(rig.input.inventory(&at), inventory);
            for (n, leg) in legs.iter_mut().enumerate() {
                let inventory = leg.inventory(&at);
                *leg = LegTrack::restore(through_text(&inventory), leg_config(n), &at);
                assert_eq!(leg.inventory(&at), inventory);
            }
        }
        let now = rig.now;
        match deed {
            Deed::Packets { source, count, skip, payload } => {
                let source = &mut sources[*source];
                source.seq = source.seq.wrapping_add_signed(*skip);
                let payload = [SLICE, IDR, SPS][*payload];
                let packets: Vec<_> = (0..*count).map(|_| source.frame(payload)).collect();
                rig.receive(&packets);
                for leg in &mut legs {
                    seen.push(format!("{:?}", rig.sends(leg, &packets)));
                    seen.push(format!("{:?}", rig.input.is_joining(now)));
                    seen.push(format!("{:?} {scratch:?}", leg.sender_report(now, &rig.input, &mut scratch)));
                }
            }
            Deed::Jump(source) => sources[*source].ts = sources[*source].ts.wrapping_add(90_000 * 100),
            Deed::SenderReport(source) => {
                let report = sources[*source].sender_report((index as u64) << 32);
                seen.push(format!("{:?}", rig.input.handle_rtcp(now, &report)));
                if rig.input.take_down() {
                    for leg in &mut legs {
                        let pass = leg.handle_source_rtcp(now, &rig.input, &mut scratch);
                        seen.push(format!("{pass:?} {scratch:?}"));
                    }
                }
            }
            Deed::ViewerReport { leg, lost } => {
                let leg = &mut legs[*leg];
                let block = ReportBlock {
                    ssrc: leg.ssrc().unwrap_or_default(),
                    fraction_lost: *lost,
                    cumulative_lost: 3,
                    highest: 9,
                    jitter: 4,
                    lsr: (index as u32).saturating_sub(2) << 16,
                    dlsr: 100,
                };
                let mut compound = Vec::new();
                write_rr(&mut compound, 99, &[block]);
                seen.push(format!(
                    "{:?} {:?}",
                    leg.handle_rtcp(now, &compound),
                    leg.report().map(|r| (r.rtt, now - r.at))
                ));
            }
            Deed::Pli(leg) => {
                let mut compound = Vec::new();
                write_rr(&mut compound, 99, &[]);
                crate::rtcp::feedback::write_pli(&mut compound, 99, legs[*leg].ssrc().unwrap_or_default());
                let asked = legs[*leg].handle_rtcp(now, &compound);
                seen.push(format!("{asked:?}"));
                if asked.is_ok_and(|asked| asked.key_frame) {
                    seen.push(format!("{}", rig.input.request_key_frame(now)));
                }
            }
            Deed::Bye(source) => {
                let mut compound = Vec::new();
                write_rr(&mut compound, sources[*source].ssrc, &[]);
                crate::rtcp::bye::write_bye(&mut compound, sources[*source].ssrc);
                seen.push(format!("{:?}", rig.input.handle_rtcp(now, &compound)));
            }
            Deed::Replace => rig.input.replace(now, config(Codec::H264)),
            Deed::Arm(leg) => seen.push(format!("{:?}", legs[*leg].arm(now, &rig.input))),
            Deed::Pause(leg) => legs[*leg].pause(),
            Deed::Sleep(millis) => rig.now += ms(*millis),
        }
        rig.input.handle_timeout(rig.now);
        for output in rig.outputs() {
            seen.push(format!("{output:?}"));
        }
        let InputOutput::Timeout(due) = rig.input.poll_output() else { panic!("drained") };
        let stats = rig.input.stats();
        seen.push(format!("{:?} {:?} {:?}", due - begin, stats.totals(), stats.jitter_ticks().to_bits()));
        seen.push(format!(
            "{:?} {:?}",
            rig.input.drops(),
            rig.input.current().map(|run| (run.run, run.ssrc))
        ));
        for leg in &legs {
            seen.push(format!("{:?} {:?} {:?} {}", leg.sent(), leg.drops(), leg.start(), leg.is_armed()));
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn neither_source_nor_viewer_can_tell_that_a_track_was_handed_over(
        deeds in deeds(),
        swaps in proptest::collection::vec(any::<bool>(), 90),
    ) {
        let begin = start();
        prop_assert_eq!(run(begin, &deeds, &swaps), run(begin, &deeds, &[]));
    }

    #[test]
    fn packets_that_wait_for_a_missing_one_leave_when_they_would_have(
        arrivals in proptest::collection::vec((0..40u64, 0..15u64, any::<bool>()), 1..60),
    ) {
        let begin = start();
        let at = Anchor::new(begin, 1 << 44);
        let [mut plain, mut handed] = [(); 2].map(|()| Reorder::new(MIN_WINDOW));
        let mut now = begin;
        for (ext, wait, swap) in arrivals {
            if swap {
                let inventory = handed.inventory(&at, |packet: &u64| *packet);
                handed = Reorder::restore(through_text(&inventory), MIN_WINDOW, &at, |packet: u64| packet);
            }
            now += ms(wait);
            prop_assert_eq!(plain.push(now, ext, ext), handed.push(now, ext, ext));
            prop_assert_eq!(plain.pop(now), handed.pop(now));
            prop_assert_eq!((plain.poll_timeout(), plain.late()), (handed.poll_timeout(), handed.late()));
        }
    }
}

#[test]
fn a_port_that_is_half_learned_is_learned_by_the_next_program() {
    let begin = start();
    let at = Anchor::new(begin, 1 << 44);
    let camera = IpAddr::from([192, 0, 2, 1]);
    let mut source = Source { ssrc: 5, seq: 3, ts: 0 };
    let mut lock = PeerLock::new(begin, camera, None, &[96]);
    let first = source.frame(IDR);
    lock.handle(begin, SocketAddr::new(camera, 4000), &first);
    let mut lock = PeerLock::restore(through_text(&lock.inventory(&at)), &[96], &at);
    let verdict = lock.handle(begin, SocketAddr::new(camera, 4000), &source.frame(SLICE));
    assert_eq!(verdict, crate::PeerVerdict::Locked);
    assert_eq!(lock.take_held(), Some(first));
    let mut lock = PeerLock::restore(through_text(&lock.inventory(&at)), &[96], &at);
    assert_eq!(lock.handle(begin, SocketAddr::new(camera, 4000), &[]), crate::PeerVerdict::Admit);
    assert_eq!(lock.port(), Some(4000));
}

#[test]
fn statistics_that_contradict_themselves_are_refused() {
    let at = Anchor::new(start(), 1 << 44);
    for text in [
        r#"{"stats":{"run":{"first":9,"highest":8}}}"#,
        r#"{"stats":{"run":{"first":1,"highest":8,"seen":[1]}}}"#,
        r#"{"suspect":{"arrival":9218868437227405312}}"#,
    ] {
        let read = serde_json::from_str(text).unwrap();
        assert!(TrackInput::restore(read, config(Codec::H264), &at).is_err(), "{text}");
    }
    let read = serde_json::from_str(r#"{"runs":3,"weather":"fine"}"#).unwrap();
    let input = TrackInput::restore(read, config(Codec::H264), &at).unwrap();
    assert_eq!((input.clock(), input.current()), (ClockRate::VIDEO, None));
}
