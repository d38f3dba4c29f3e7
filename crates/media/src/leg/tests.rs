//! Gate, splices and RTCP of a leg, on a virtual clock.

use super::*;
use crate::clock::Ntp;
use crate::keyframe::Codec;
use crate::project::ResumePolicy;
use crate::rtcp::feedback::write_pli;
use crate::rtcp::sr::SenderInfo;
use crate::testing::{IDR, Rig, SLICE, SPS, Source, fields, ms};

fn source() -> Source {
    Source { ssrc: 0x1111, seq: 1_000, ts: 90_000 }
}

fn leg() -> LegTrack {
    LegTrack::new(LegConfig::default())
}

fn scene(codec: Codec) -> (Rig, Source, LegTrack) {
    (Rig::new(codec), source(), leg())
}

/// A leg that plays, and whose source has sent one frame.
fn playing(codec: Codec, payload: &[u8], config: LegConfig) -> (Rig, Source, LegTrack) {
    let (mut rig, mut source, mut leg) = (Rig::new(codec), source(), LegTrack::new(config));
    leg.arm(rig.now, &rig.input);
    rig.relay(&mut leg, &[source.frame(payload)]);
    (rig, source, leg)
}

fn numbers(packets: &[Vec<u8>]) -> Vec<u16> {
    fields(packets).into_iter().map(|(seq, ..)| seq).collect()
}

fn pass(rig: &mut Rig, leg: &mut LegTrack, packets: &[Vec<u8>]) -> Pass {
    rig.receive(packets);
    leg.handle_batch(rig.now, &rig.input, &rig.batch, Part::ALL, &mut rig.edits)
}

#[test]
fn nothing_passes_a_gate_that_is_shut() {
    let (mut rig, mut source, mut leg) = scene(Codec::Other);
    assert_eq!(pass(&mut rig, &mut leg, &[source.frame(b"x")]), Pass::Nothing);
    leg.arm(rig.now, &rig.input);
    leg.pause();
    assert_eq!(pass(&mut rig, &mut leg, &[source.frame(b"x")]), Pass::Nothing);
    assert_eq!((leg.sent(), leg.drops().total()), (Sent::default(), 0), "not sent, not dropped");
}

#[test]
fn the_first_packet_is_the_one_that_was_promised() {
    let (mut rig, mut source, mut leg) = scene(Codec::Other);
    rig.receive(&[source.frame(b"x")]);
    rig.tick(20);
    let promised = leg.arm(rig.now, &rig.input).unwrap();
    assert_eq!(promised, Start { seq: 1_001, rtptime: 90_000 + 3_600 + 1_800, ssrc: 0x1111 }, "RTSP-31");
    rig.tick(20);
    let packets = [source.frame(b"x"), source.frame(b"y")];
    assert_eq!(pass(&mut rig, &mut leg, &packets), Pass::All);
    assert_eq!(fields(&packets)[0].0, promised.seq);
    assert_eq!(leg.sent(), Sent { packets: 2, octets: 2, splices: 0 });
}

#[test]
fn a_leg_armed_before_the_source_sends_starts_with_its_first_packet() {
    let (mut rig, mut source, mut leg) = scene(Codec::Other);
    assert_eq!(leg.arm(rig.now, &rig.input), None);
    assert_eq!((leg.start(), leg.ssrc()), (None, None));
    let out = rig.relay(&mut leg, &[source.frame(b"x"), source.frame(b"x")]);
    assert_eq!(numbers(&out), [1_000, 1_001]);
    assert_eq!(leg.start(), Some(Start { seq: 1_000, rtptime: 93_600, ssrc: 0x1111 }));
    assert_eq!(pass(&mut rig, &mut leg, &[source.frame(b"x")]), Pass::All);
}

#[test]
fn packets_from_before_the_start_stay_out_when_they_come_late() {
    let (mut rig, mut source, mut leg) = scene(Codec::Other);
    let early = source.frame(b"late");
    rig.receive(&[source.frame(b"x")]);
    leg.arm(rig.now, &rig.input);
    let next = source.frame(b"x");
    let out = rig.relay(&mut leg, &[early, next]);
    assert_eq!(numbers(&out), [1_002], "RTSP-31");
    assert_eq!(leg.drops().get(DropReason::Late), 1);
}

#[test]
fn a_transparent_leg_passes_duplicates_and_a_tcp_leg_does_not() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    let mut udp = leg();
    let mut tcp = LegTrack::new(LegConfig { dedup: true, ..LegConfig::default() });
    udp.arm(rig.now, &rig.input);
    tcp.arm(rig.now, &rig.input);
    let packet = source.frame(b"x");
    let packets = [packet.clone(), packet];
    rig.receive(&packets);
    assert_eq!(rig.sends(&mut udp, &packets).len(), 2, "RTP-3");
    assert_eq!(rig.sends(&mut tcp, &packets).len(), 1, "RTP-8");
    assert_eq!(tcp.drops().get(DropReason::Duplicate), 1);
}

#[test]
fn a_camera_that_restarts_is_one_source_to_the_viewer() {
    let (mut rig, mut source, mut leg) = scene(Codec::H264);
    let mut out = Vec::new();
    leg.arm(rig.now, &rig.input);
    for frame in 0..25 {
        rig.tick(40);
        out.extend(rig.relay(&mut leg, &[source.frame(if frame == 0 { IDR } else { SLICE })]));
    }
    // Case 23: the camera reboots for five seconds and comes back with everything else.
    rig.tick(5_000);
    let mut rebooted = Source { ssrc: 0x2222, seq: 65_530, ts: 4_000_000_000 };
    for frame in 0..25 {
        rig.tick(40);
        let first = rebooted.frame(if frame == 0 { SPS } else { SLICE });
        let second = rebooted.packet(if frame == 0 { IDR } else { SLICE });
        out.extend(rig.relay(&mut leg, &[first, second]));
    }
    let fields = fields(&out);
    assert_eq!(fields.len(), 75);
    assert!(fields.iter().all(|(.., ssrc)| *ssrc == 0x1111), "one SSRC per leg");
    for pair in fields.windows(2) {
        assert_eq!(pair[1].0, pair[0].0.wrapping_add(1), "one sequence");
        assert!(pair[1].1.wrapping_sub(pair[0].1) as i32 >= 0, "one timeline");
    }
    assert_eq!(fields[25].1 - fields[24].1, 5_040 * 90, "as long as it took");
    assert_eq!(leg.sent().splices, 1);
    assert!(!leg.is_transparent(), "never back");
}

#[test]
fn video_resumes_at_a_key_frame_without_a_gap_in_the_sequence() {
    let (mut rig, _, mut leg) = playing(Codec::H264, IDR, LegConfig::default());
    rig.tick(2_000);
    let mut new = Source { ssrc: 0x2222, seq: 0, ts: 0 };
    let tail = [new.frame(SLICE), new.frame(SLICE), new.frame(SLICE)];
    assert!(rig.relay(&mut leg, &tail).is_empty(), "RTP-6: slices without their key frame");
    assert_eq!(leg.drops().get(DropReason::Policy), 3);
    rig.tick(400);
    let out = rig.relay(&mut leg, &[new.frame(IDR), new.frame(SLICE)]);
    assert_eq!(numbers(&out), [1_001, 1_002]);
}

#[test]
fn video_resumes_after_two_seconds_if_no_key_frame_comes() {
    let (mut rig, _, mut leg) = playing(Codec::H264, IDR, LegConfig::default());
    rig.tick(2_000);
    let mut new = Source { ssrc: 0x2222, seq: 0, ts: 0 };
    rig.relay(&mut leg, &[new.frame(SLICE), new.frame(SLICE)]);
    rig.tick(1_999);
    assert!(rig.relay(&mut leg, &[new.frame(SLICE)]).is_empty());
    rig.tick(1);
    assert_eq!(numbers(&rig.relay(&mut leg, &[new.frame(SLICE)])), [1_001]);
}

#[test]
fn with_the_policy_at_once_the_first_packet_resumes() {
    let (mut rig, _, mut leg) =
        playing(Codec::H264, IDR, LegConfig { resume: ResumePolicy::AtOnce, ..LegConfig::default() });
    rig.tick(2_000);
    let mut new = Source { ssrc: 0x2222, seq: 0, ts: 0 };
    assert_eq!(numbers(&rig.relay(&mut leg, &[new.frame(SLICE), new.frame(SLICE)])), [1_001, 1_002]);
}

#[test]
fn a_projected_leg_keeps_numbers_of_reordered_packets_and_drops_duplicates() {
    let (mut rig, _, mut leg) = playing(Codec::Other, b"x", LegConfig::default());
    rig.tick(2_000);
    let mut new = Source { ssrc: 0x2222, seq: 500, ts: 0 };
    rig.relay(&mut leg, &[new.frame(b"0"), new.frame(b"1")]);
    let (a, b, c) = (new.frame(b"2"), new.frame(b"3"), new.frame(b"4"));
    let out = rig.relay(&mut leg, &[c.clone(), a, c, b]);
    assert_eq!(numbers(&out), [1_005, 1_003, 1_004], "RTP-4, RTP-8");
    assert_eq!(leg.drops().get(DropReason::Duplicate), 1);
}

#[test]
fn a_source_that_changed_while_the_viewer_paused_is_spliced_at_play() {
    let (mut rig, mut source, mut leg) = scene(Codec::Other);
    leg.arm(rig.now, &rig.input);
    let before = rig.relay(&mut leg, &[source.frame(b"x")]);
    leg.pause();
    rig.tick(3_000);
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 70 };
    rig.relay(&mut leg, &[new.frame(b"x"), new.frame(b"x")]);
    rig.tick(1_000);
    let promised = leg.arm(rig.now, &rig.input).unwrap();
    assert_eq!((promised.seq, promised.ssrc), (1_001, 0x1111), "one SSRC and sequence for life");
    assert_eq!(promised.rtptime.wrapping_sub(fields(&before)[0].1), 4_000 * 90);
    rig.tick(40);
    let out = rig.relay(&mut leg, &[new.frame(b"x")]);
    assert_eq!(numbers(&out), [1_001], "RTSP-31");
}

#[test]
fn a_restart_between_the_promise_and_the_first_packet_keeps_the_promise() {
    let (mut rig, mut source, mut leg) = scene(Codec::Other);
    rig.receive(&[source.frame(b"x")]);
    let promised = leg.arm(rig.now, &rig.input).unwrap();
    rig.tick(3_000);
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 70 };
    let out = rig.relay(&mut leg, &[new.frame(b"x"), new.packet(b"x")]);
    let first = fields(&out)[0];
    assert_eq!((first.0, first.2), (promised.seq, promised.ssrc), "RTSP-31");
    assert_eq!(first.1.wrapping_sub(promised.rtptime), 3_000 * 90);
}

#[test]
fn a_leg_whose_source_is_away_waits_and_goes_on() {
    let (mut rig, _, mut leg) = playing(Codec::H264, IDR, LegConfig::default());
    leg.pause();
    rig.input.replace(rig.now, crate::testing::config(Codec::H264));
    rig.tick(1_000);
    assert_eq!(leg.arm(rig.now, &rig.input), None);
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 70 };
    let out = rig.relay(&mut leg, &[new.frame(SLICE)]);
    assert_eq!(numbers(&out), [1_001], "no wait for a key frame at PLAY");
    assert_eq!(leg.start().map(|start| (start.seq, start.ssrc)), Some((1_001, 0x1111)));
}

#[test]
fn play_while_playing_answers_without_touching_the_leg() {
    let (mut rig, mut source, mut leg) = playing(Codec::Other, b"x", LegConfig::default());
    assert_eq!(leg.arm(rig.now, &rig.input).map(|start| start.seq), Some(1_001), "RTSP-26");
    let late = Source { seq: 999, ..source }.packet(b"late");
    assert!(rig.relay(&mut leg, &[late]).is_empty(), "the start is still where it was");
    assert_eq!(pass(&mut rig, &mut leg, &[source.frame(b"x")]), Pass::All);
}

#[test]
fn sender_reports_of_a_projected_leg_map_to_the_tick() {
    let (mut rig, _, mut leg) = playing(Codec::Other, b"xyz", LegConfig::default());
    rig.tick(2_345);
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 0xffff_ff00 };
    let packets = [new.frame(b"xyz"), new.frame(b"xyz")];
    let out = rig.relay(&mut leg, &packets);
    let now = rig.now;
    rig.input.handle_rtcp(now, &new.sender_report(0xaaaa_bbbb_cccc_dddd)).unwrap();
    assert!(rig.input.take_down());
    let mut scratch = Vec::new();
    assert_eq!(leg.handle_source_rtcp(now, &rig.input, &mut scratch), RtcpPass::Mapped);
    let compound = Compound::parse(&scratch, CompoundPolicy::Full).unwrap();
    let Some(Packet::Sr(sr)) = compound.packets().next() else { panic!("an SR") };
    // Case 25: the report names the timestamp of the packet that the source stamped last.
    let last = fields(&out)[1];
    let expected = SenderInfo {
        ssrc: 0x1111,
        ntp: Ntp(0xaaaa_bbbb_cccc_dddd),
        rtp: RtpTime(last.1),
        packets: 3,
        octets: 9,
    };
    assert_eq!(sr.info(), expected, "RTP-21");
}

#[test]
fn a_splice_that_waits_for_a_key_frame_gets_no_sender_report() {
    let (mut rig, _, mut leg) = playing(Codec::H264, IDR, LegConfig::default());
    rig.tick(2_000);
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 0 };
    rig.relay(&mut leg, &[new.frame(SLICE), new.frame(SLICE)]);
    let now = rig.now;
    rig.input.handle_rtcp(now, &new.sender_report(5)).unwrap();
    assert_eq!(leg.handle_source_rtcp(now, &rig.input, &mut Vec::new()), RtcpPass::Nothing);
}

fn receiver_report(block: ReportBlock) -> Vec<u8> {
    let mut out = Vec::new();
    write_rr(&mut out, 0x7777, &[block]);
    out
}

#[test]
fn viewers_reports_end_here_and_become_figures() {
    let (mut rig, source, mut leg) = playing(Codec::Other, b"x", LegConfig::default());
    let now = rig.now;
    rig.input.handle_rtcp(now, &source.sender_report(0x1111_2222_3333_4444)).unwrap();
    leg.handle_source_rtcp(now, &rig.input, &mut Vec::new());
    rig.tick(1_030);
    let block = ReportBlock {
        ssrc: 0x1111,
        fraction_lost: 26,
        cumulative_lost: 9,
        highest: 1_000,
        jitter: 90,
        lsr: 0x2222_3333,
        dlsr: 65_536,
    };
    let result = leg.handle_rtcp(rig.now, &receiver_report(block)).unwrap();
    assert_eq!(result, ViewerRtcp { report: true, ..ViewerRtcp::default() });
    let report = *leg.report().unwrap();
    assert_eq!(
        (report.fraction_lost, report.cumulative_lost, report.highest, report.jitter),
        (26, 9, 1_000, 90)
    );
    assert_eq!((report.rtt, report.at), (Some(ms(30)), rig.now), "RTP-23");
    let other = ReportBlock { ssrc: 0x9999, fraction_lost: 255, ..block };
    assert!(!leg.handle_rtcp(rig.now, &receiver_report(other)).unwrap().report, "about another source");
    assert_eq!(leg.handle_rtcp(rig.now, &[1, 2, 3]), Err(DropReason::Malformed), "RTP-20");
    assert!(rig.rtcp().is_empty(), "RTP-22: nothing of it goes up");
}

#[test]
fn persistent_loss_opens_the_breaker_of_udp_legs_only() {
    for circuit_breaker in [true, false] {
        let (mut rig, _, mut leg) =
            playing(Codec::Other, b"x", LegConfig { circuit_breaker, ..LegConfig::default() });
        let bad = receiver_report(ReportBlock { ssrc: 0x1111, fraction_lost: 200, ..ReportBlock::default() });
        let mut opened = Vec::new();
        for _ in 0..3 {
            rig.tick(5_000);
            opened.push(leg.handle_rtcp(rig.now, &bad).unwrap().circuit_breaker);
        }
        assert_eq!(opened, [false, false, circuit_breaker], "RTP-29");
    }
}

#[test]
fn key_frame_requests_count_on_feedback_legs_once_per_second() {
    for feedback in [true, false] {
        let (mut rig, _, mut leg) =
            playing(Codec::Other, b"x", LegConfig { feedback, ..LegConfig::default() });
        let mut pli = Vec::new();
        write_pli(&mut pli, 0x7777, 0x1111);
        let mut asked = 0;
        for _ in 0..100 {
            rig.tick(100);
            asked += u32::from(leg.handle_rtcp(rig.now, &pli).unwrap().key_frame);
        }
        assert_eq!(asked, if feedback { 10 } else { 0 }, "RTP-25: in ten seconds");
    }
}

#[test]
fn a_viewer_asks_by_the_ssrc_it_sees_after_a_splice() {
    let (mut rig, _, mut leg) =
        playing(Codec::Other, b"x", LegConfig { feedback: true, ..LegConfig::default() });
    rig.tick(2_000);
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 0 };
    rig.relay(&mut leg, &[new.frame(b"x"), new.frame(b"x")]);
    let ask = |media| {
        let mut pli = Vec::new();
        write_pli(&mut pli, 0x7777, media);
        pli
    };
    assert!(!leg.handle_rtcp(rig.now, &ask(0x2222)).unwrap().key_frame);
    assert!(leg.handle_rtcp(rig.now, &ask(0x1111)).unwrap().key_frame);
    rig.events();
    let now = rig.now;
    assert!(rig.input.request_key_frame(now));
    let up = rig.rtcp();
    let compound = Compound::parse(&up[0], CompoundPolicy::Full).unwrap();
    assert!(
        compound.packets().any(|p| matches!(p, Packet::Feedback(f) if f.wants_key_frame(0x2222))),
        "the source is asked by its own SSRC"
    );
}

#[test]
fn when_the_mesh_ends_a_leg_the_viewer_gets_a_bye_of_the_legs_ssrc() {
    let mut rig = Rig::new(Codec::Other);
    let mut leg = leg();
    let mut out = Vec::new();
    assert!(!leg.write_bye(&mut out), "nothing ever left");
    leg.arm(rig.now, &rig.input);
    rig.relay(&mut leg, &[source().frame(b"x")]);
    assert!(leg.write_bye(&mut out), "RTP-24");
    let compound = Compound::parse(&out, CompoundPolicy::Full).unwrap();
    let Some(Packet::Bye(bye)) = compound.packets().last() else { panic!("a BYE") };
    assert_eq!(bye.ssrcs().collect::<Vec<_>>(), [0x1111]);
}

proptest::proptest! {
    #[test]
    fn any_packets_from_anyone_are_answered(
        packets in proptest::collection::vec((
            proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
            proptest::bool::weighted(0.9),
            0_u64..3_000,
        ), 0..60),
    ) {
        let mut rig = Rig::new(Codec::H264);
        let mut leg = LegTrack::new(LegConfig { dedup: true, feedback: true, ..LegConfig::default() });
        let mut scratch = Vec::new();
        for (mut packet, plausible, wait) in packets {
            if plausible && packet.len() > 12 {
                // Close enough to one source to reach every branch of admission.
                packet[0] = 0x80 | packet[0] & 0x3f;
                packet[1] = packet[1] & 0x80 | 0x60;
                packet[2] = 0;
                packet[4] &= 1;
                let ssrc = packet[11] & 1;
                packet[8..12].copy_from_slice(&[0, 0, 0, ssrc]);
            }
            rig.tick(wait / 3);
            let now = rig.now;
            let packets = [packet.clone(), packet];
            let offered = packets.len();
            let sent = rig.relay(&mut leg, &packets);
            proptest::prop_assert!(sent.len() <= offered + 1, "never more than came, and what was held");
            let _ = rig.input.handle_rtcp(now, &packets[0]);
            let _ = leg.handle_rtcp(now, &packets[0]);
            leg.sender_report(now, &rig.input, &mut scratch);
            rig.input.handle_timeout(now);
            rig.outputs();
            if wait % 7 == 0 {
                leg.pause();
            }
            leg.arm(now, &rig.input);
        }
    }
}
