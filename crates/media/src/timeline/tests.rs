//! Restarts of sources whose packets come in bursts: picture and sound stay together.

use proptest::prelude::*;

use super::*;
use crate::clock::{Ntp, RtpTime};
use crate::input::TrackInput;
use crate::leg::{LegConfig, LegTrack};
use crate::testing::{Rig, config, fields, ms, start};
use crate::{Codec, InputConfig};

const VIDEO: ClockRate = ClockRate::VIDEO;

fn report(ntp_millis: u64, rtp: u32) -> SenderInfo {
    let ntp = Ntp(((ntp_millis / 1000) << 32) | (((ntp_millis % 1000) << 32) / 1000));
    SenderInfo { ssrc: 1, ntp, rtp: RtpTime(rtp), packets: 0, octets: 0 }
}

fn through(ts: u32, at: Instant, report: impl Into<Option<SenderInfo>>) -> Timeline {
    Timeline { line: Line::new(ts, at, VIDEO), report: report.into() }
}

#[test]
fn a_line_goes_through_the_least_delayed_packet() {
    let now = start();
    let mut line = Line::new(0, now + ms(120), VIDEO);
    line.observe(3_600, now + ms(130));
    line.observe(7_200, now + ms(85));
    line.observe(10_800, now + ms(300));
    assert_eq!(line.point().ts_at(now + ms(400), VIDEO), 7_200 + 315 * 90);
    // A later window has its own, once two have passed: clocks drift.
    for second in 1..=21 {
        line.observe(second * 90_000, now + ms(u64::from(second) * 1_000 + 60));
    }
    assert_eq!(line.point().ts_at(now + ms(30_060), VIDEO), 30 * 90_000);
}

#[test]
fn reports_of_one_clock_bridge_to_the_tick_whatever_the_delays() {
    let now = start();
    let old = through(900_000, now + ms(230), report(10_000, 900_000));
    let new = through(77, now + ms(5_010), report(15_000, 77));
    let mut common = None;
    let shift = bridge(&old, &new, &mut common, now);
    assert_eq!(77_u32.wrapping_add(shift), 900_000 + 5_000 * 90, "RTP-6: by the reports");
    let without = bridge(&old, &Timeline { report: None, ..new }, &mut None, now);
    assert_eq!(77_u32.wrapping_add(without), 900_000 + 4_780 * 90, "else by arrival");
}

#[test]
fn a_clock_that_was_set_is_measured_once_for_all_tracks() {
    let now = start();
    let old = through(0, now, report(10_000_000, 0));
    let new = through(0, now + ms(3_000), report(20_000, 0));
    let mut common = None;
    assert_eq!(bridge(&old, &new, &mut common, now), 3_000 * 90, "by arrival");
    // The other track's packet came 80 ms late; its report says so.
    let other = through(0, now + ms(3_080), report(20_000, 0));
    assert_eq!(bridge(&old, &other, &mut common, now), 3_000 * 90, "as the first track");
    assert_eq!(bridge(&old, &other, &mut None, now), 3_080 * 90, "which it would not by itself");
    // Of an earlier restart it says nothing.
    assert_eq!(bridge(&old, &other, &mut common, now + RESTART + ms(1)), 3_080 * 90);
}

#[test]
fn a_track_without_reports_takes_over_what_is_more_than_jitter() {
    let now = start();
    let (old, new) = (through(0, now, report(0, 0)), through(0, now + ms(3_000), None));
    for (said, expected) in [(2_600, 2_600), (2_960, 3_000), (3_400, 3_400)] {
        let mut common = None;
        let old = Timeline { report: Some(report(10_000, 0)), ..old };
        bridge(&old, &Timeline { report: Some(report(10_000 + said, 0)), ..new }, &mut common, now);
        assert_eq!(bridge(&old, &new, &mut common, now), expected * 90, "{said}");
    }
}

/// One life of a camera: what its two tracks stamp, and how late their packets come.
#[derive(Debug, Clone)]
struct Life {
    ssrc: u32,
    stamps: [u32; 2],
    /// Wall clock minus true time, in milliseconds.
    wall: u64,
    delays: Vec<[u64; 2]>,
    reported: bool,
}

impl Life {
    /// When the frames of a track come, after the life's begin; none overtakes another.
    fn arrivals(&self, track: usize) -> Vec<u64> {
        let mut last = 0;
        let due = self.delays.iter().enumerate().map(|(frame, delays)| 20 * frame as u64 + delays[track]);
        due.map(|at| {
            last = at.max(last);
            last
        })
        .collect()
    }

    /// The least delay of a track's frames in milliseconds.
    fn quickest(&self, track: usize) -> f64 {
        let late = self.arrivals(track).into_iter().enumerate().map(|(frame, at)| at - 20 * frame as u64);
        late.min().unwrap_or(0) as f64
    }
}

fn life(reported: bool) -> impl Strategy<Value = Life> {
    let delays = prop::collection::vec([0..230_u64, 0..230_u64], 10..40);
    (1..0x7fff_0000_u32, any::<[u32; 2]>(), 1_000..u64::from(u32::MAX), delays)
        .prop_map(move |(ssrc, stamps, wall, delays)| Life { ssrc, stamps, wall, delays, reported })
}

const CLOCKS: [u32; 2] = [90_000, 48_000];

/// The leg of one track over all lives: `(true time in milliseconds, timestamp as it left)`.
fn relay(lives: &[Life], away: u64) -> [Vec<(u64, u32)>; 2] {
    let mut rig = Rig::new(Codec::Other);
    let (zero, mut begin) = (rig.now, 0);
    let mut inputs = CLOCKS.map(|hz| {
        let clock = ClockRate::new(hz).unwrap();
        TrackInput::new(zero, InputConfig { clock, ..config(Codec::Other) })
    });
    let mut legs = [(), ()].map(|()| LegTrack::new(LegConfig::default()));
    let mut out = [Vec::new(), Vec::new()];
    for (input, leg) in inputs.iter().zip(&mut legs) {
        leg.arm(zero, input);
    }
    for (number, life) in lives.iter().enumerate() {
        // (arrival, track, number of the frame), frames 20 ms apart; a track's packets keep their order.
        let mut arrivals = Vec::new();
        for track in 0..2 {
            for (frame, at) in life.arrivals(track).into_iter().enumerate() {
                arrivals.push((begin + at, track, frame));
            }
        }
        arrivals.sort_unstable();
        for (at, track, frame) in arrivals {
            let now = zero + ms(at);
            let ticks = CLOCKS[track] / 50;
            let ts = life.stamps[track].wrapping_add(ticks * frame as u32);
            let ssrc = life.ssrc + track as u32;
            if frame == 0 {
                if number > 0 {
                    inputs[track].replace(now, inputs[track].config().clone());
                }
                if life.reported {
                    let info = report(begin + life.wall, ts);
                    let mut bytes = Vec::new();
                    crate::rtcp::sr::write_sr(&mut bytes, &SenderInfo { ssrc, ..info });
                    inputs[track].handle_rtcp(now, &bytes).unwrap();
                }
            }
            let packet = crate::rtp::PacketBuilder::new(96, frame as u16, ts, ssrc).build(b"x");
            let packets = [packet];
            let input = &mut inputs[track];
            rig.now = now;
            input.handle_rtp(now, packets.iter().map(Vec::as_slice), &mut rig.batch);
            let found = input.source_clock();
            inputs[1 - track].share_source_clock(found);
            std::mem::swap(&mut rig.input, &mut inputs[track]);
            let sent = rig.sends(&mut legs[track], &packets);
            std::mem::swap(&mut rig.input, &mut inputs[track]);
            out[track].extend(fields(&sent).into_iter().map(|(_, ts, _)| (begin + 20 * frame as u64, ts)));
        }
        begin += 20 * life.delays.len() as u64 + away;
    }
    out
}

/// How much the sound is ahead of the picture in each packet of the last life, in milliseconds, against
/// the first life.
fn apart(out: &[Vec<(u64, u32)>; 2]) -> f64 {
    let line = |track: usize, (time, ts): (u64, u32)| {
        let (first_time, first_ts) = out[track][0];
        f64::from(ts.wrapping_sub(first_ts) as i32) * 1000.0 / f64::from(CLOCKS[track])
            - (time - first_time) as f64
    };
    let last = |track: usize| line(track, *out[track].last().unwrap());
    (last(0) - last(1)).abs()
}

fn time_moves_on(out: &[Vec<(u64, u32)>; 2]) -> bool {
    out.iter().all(|track| track.windows(2).all(|pair| pair[1].1.wrapping_sub(pair[0].1) as i32 > 0))
}

proptest! {
    #[test]
    fn reports_keep_picture_and_sound_together_over_a_restart(
        first in life(true), second in life(true), is_one_clock: bool, away in 300..5_000_u64,
    ) {
        let wall = if is_one_clock { first.wall } else { second.wall };
        let out = relay(&[first, Life { wall, ..second }], away);
        prop_assert!(time_moves_on(&out));
        prop_assert!(apart(&out) < 0.1, "{} ms apart", apart(&out));
    }

    #[test]
    fn without_reports_they_are_apart_by_the_delay_of_first_packets_only(
        first in life(true), second in life(false), away in 300..5_000_u64,
    ) {
        // The second life's first packets come at once: what is left are the bursts of the first one.
        let mut second = second;
        second.delays[0] = [0, 0];
        let bound = (first.quickest(0) - first.quickest(1)).abs() + 0.1;
        let out = relay(&[first, second], away);
        prop_assert!(time_moves_on(&out));
        prop_assert!(apart(&out) <= bound, "{} ms apart, {bound} known", apart(&out));
    }
}
