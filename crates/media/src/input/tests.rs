//! Admission, source switching and RTCP with the source, on a virtual clock.

use super::*;
use crate::leg::{LegConfig, LegTrack, RtcpPass};
use crate::rtcp::bye::write_bye;
use crate::rtcp::rr::write_rr;
use crate::rtp::PacketBuilder;
use crate::testing::{IDR, OWN_SSRC, PPS, Rig, SLICE, SPS, Source, fields, ms};

mod rungs;

fn source() -> Source {
    Source { ssrc: 0x1111, seq: 1_000, ts: 5_000 }
}

fn indices(rig: &Rig) -> Vec<u32> {
    rig.batch.arrivals().iter().map(|arrival| arrival.index).collect()
}

/// Whether the latest outputs contain a compound with a PLI.
fn asks_for_key_frame(rtcp: &[Vec<u8>]) -> bool {
    rtcp.iter().any(|bytes| {
        let compound = Compound::parse(bytes, CompoundPolicy::Full).unwrap();
        compound
            .packets()
            .any(|p| matches!(p, Packet::Feedback(feedback) if feedback.wants_key_frame(0x1111)))
    })
}

#[test]
fn the_first_packet_is_admitted_at_once_whatever_its_ssrc() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    assert!(rig.batch.is_whole());
    assert_eq!(rig.input.current().map(|current| (current.run, current.ssrc)), Some((1, 0x1111)));
    assert_eq!(rig.events(), [InputEvent::Active]);
}

#[test]
fn what_is_no_rtp_of_this_track_is_dropped_with_its_reason() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    let wrong_type = PacketBuilder::new(50, 1, 2, 0x1111).build(b"x");
    let ours = PacketBuilder::new(96, 1, 2, OWN_SSRC).build(b"x");
    rig.receive(&[vec![0xaa; 200], vec![0; 200], vec![0x80], wrong_type, ours, source.frame(b"x")]);
    let drops: Vec<_> = rig.batch.drops().iter().collect();
    let expected = [(DropReason::Malformed, 2), (DropReason::PayloadType, 2), (DropReason::Loop, 1)];
    assert_eq!(drops, expected, "RTP-1, RTP-5, Geovision's stray packets");
    assert_eq!((indices(&rig), rig.batch.is_whole()), (vec![5], false));
    assert_eq!(rig.input.drops().total(), 5);
}

#[test]
fn another_ssrc_is_admitted_with_its_second_packet_and_loses_none() {
    let mut rig = Rig::new(Codec::Other);
    let mut old = source();
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 99 };
    rig.receive(&[old.frame(b"x")]);
    rig.tick(2_000);
    let first = new.frame(b"first");
    rig.receive(std::slice::from_ref(&first));
    assert!(rig.batch.arrivals().is_empty(), "RTP-6: one packet proves nothing");
    rig.receive(&[new.frame(b"second"), new.frame(b"third")]);
    assert_eq!(indices(&rig), [Arrival::HELD, 0, 1]);
    assert_eq!(rig.batch.held(), first);
    assert!(!rig.batch.is_whole());
    assert_eq!(rig.input.current().unwrap().run, 2);
    assert_eq!(
        rig.events(),
        [InputEvent::Active, InputEvent::Switched { from: 0x1111, to: 0x2222 }, InputEvent::Active]
    );
    assert_eq!(rig.input.drops().total(), 0);
}

#[test]
fn a_switch_within_one_batch_copies_nothing() {
    let mut rig = Rig::new(Codec::H264);
    let mut old = source();
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 99 };
    rig.receive(&[old.frame(SLICE), new.frame(SPS), new.packet(SLICE)]);
    assert_eq!(indices(&rig), [0, 1, 2]);
    assert!(rig.batch.is_whole() && rig.batch.held().is_empty());
    let starts: Vec<_> = rig.batch.arrivals().iter().map(|a| (a.run, a.resume_point)).collect();
    assert_eq!(starts, [(1, false), (2, true), (2, false)]);
}

#[test]
fn a_stray_ssrc_between_packets_of_the_source_never_takes_over() {
    let mut rig = Rig::new(Codec::Other);
    let (mut real, mut stray) = (source(), Source { ssrc: 0x2222, seq: 7, ts: 99 });
    rig.receive(&[real.frame(b"x")]);
    for _ in 0..50 {
        rig.tick(100);
        rig.receive(&[stray.frame(b"x"), real.frame(b"x")]);
        assert_eq!(rig.batch.arrivals().len(), 1);
    }
    assert_eq!(rig.input.current().unwrap().ssrc, 0x1111, "RTP-5: the established source stays");
    assert_eq!(rig.input.drops().get(DropReason::Ssrc), 50);
}

#[test]
fn two_live_sources_switch_at_most_once_per_second() {
    let mut rig = Rig::new(Codec::Other);
    let (mut a, mut b) = (source(), Source { ssrc: 0x2222, seq: 7, ts: 99 });
    for _ in 0..100 {
        rig.tick(40);
        rig.receive(&[a.frame(b"x"), a.packet(b"x"), b.frame(b"x"), b.packet(b"x")]);
    }
    let runs = rig.input.current().unwrap().run;
    assert!((2..=6).contains(&runs), "four seconds, {runs} runs");
}

#[test]
fn a_jump_of_sequence_or_time_needs_two_packets_in_a_row() {
    for (seq_jump, ts_jump) in
        [(5_000_u16, 3_600_u32), (60_000, 3_600), (0, 90_000 * 11), (0, 0_u32.wrapping_sub(90_000 * 11))]
    {
        let mut rig = Rig::new(Codec::Other);
        let mut source = source();
        rig.receive(&[source.frame(b"x"), source.frame(b"x")]);
        let before = source;
        source.seq = source.seq.wrapping_add(seq_jump);
        source.ts = source.ts.wrapping_add(ts_jump);
        rig.tick(40);
        let outlier = source.packet(b"x");
        let mut real = before;
        if seq_jump == 0 {
            real.seq += 1;
        }
        rig.receive(&[outlier, real.frame(b"x")]);
        assert_eq!(indices(&rig), [1], "RTP-7: one outlier ({seq_jump}, {ts_jump}) is no restart");
        assert_eq!(rig.input.current().unwrap().run, 1);
        rig.tick(40);
        rig.receive(&[source.packet(b"x"), source.packet(b"x"), source.packet(b"x")]);
        assert_eq!(rig.batch.arrivals().len(), 3, "RTP-7: two in a row ({seq_jump}, {ts_jump}) are");
        assert_eq!(rig.input.current().unwrap().run, 2);
        assert_eq!(rig.input.stats().totals().restarts, 1);
    }
}

#[test]
fn a_source_whose_timestamps_make_no_sense_still_gets_through() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    let mut admitted = 0;
    for i in 0..100_u32 {
        rig.tick(40);
        source.ts = i.wrapping_mul(0x9e37_79b9);
        rig.receive(&[source.packet(b"x")]);
        admitted += rig.batch.arrivals().len();
    }
    assert!(admitted >= 99, "{admitted} of 100; jumps in a row are restarts (RTP-7), not loss");
}

#[test]
fn an_interruption_of_the_network_is_no_restart() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    source.seq += 700;
    source.ts += 90_000 * 30;
    rig.tick(30_000);
    rig.receive(&[source.frame(b"x"), source.frame(b"x")]);
    assert_eq!(rig.input.current().unwrap().run, 1, "the timestamp moved with the wall clock");

    rig.tick(20_000);
    rig.receive(&[source.frame(b"x"), source.frame(b"x")]);
    assert_eq!(rig.input.current().unwrap().run, 1, "a stalled TCP connection delivers its backlog late");
}

#[test]
fn a_new_generation_starts_a_run_with_its_first_packet() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x"), source.frame(b"x")]);
    rig.input.replace(rig.now, crate::testing::config(Codec::Other));
    assert_eq!(rig.input.current(), None);
    let mut again = Source { ssrc: 0x3333, seq: 1, ts: 1 };
    rig.receive(&[again.frame(b"x")]);
    assert_eq!(rig.input.current().map(|current| (current.run, current.ssrc)), Some((2, 0x3333)));
    assert_eq!(rig.input.stats().totals().packets, 3, "totals go on");
}

#[test]
fn n_viewers_are_one_reporter_at_the_source() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    let mut legs: Vec<_> = (0..50).map(|_| LegTrack::new(LegConfig::default())).collect();
    let mut reports = Vec::new();
    for _ in 0..500 {
        rig.tick(40);
        let packets = [source.frame(b"x")];
        rig.receive(&packets);
        for leg in &mut legs {
            leg.arm(rig.now, &rig.input);
            rig.sends(leg, &packets);
            let mut rr = Vec::new();
            write_rr(&mut rr, 9, &[]);
            leg.handle_rtcp(rig.now, &rr).unwrap();
        }
        let now = rig.now;
        rig.input.handle_timeout(now);
        reports.extend(rig.rtcp());
    }
    assert!((4..=5).contains(&reports.len()), "RTP-22, RTP-28: {} reports in 20 s", reports.len());
    for report in reports {
        let compound = Compound::parse(&report, CompoundPolicy::Full).unwrap();
        assert!(compound.has_cname(), "RFC 3550 section 6.1");
        let Some(Packet::Rr(rr)) = compound.packets().next() else { panic!("an RR") };
        let blocks: Vec<_> = rr.blocks().collect();
        assert_eq!((rr.ssrc(), blocks.len(), blocks[0].ssrc), (OWN_SSRC, 1, 0x1111));
    }
}

#[test]
fn reports_say_what_was_lost_and_refer_to_the_last_sender_report() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x"), source.frame(b"x"), source.frame(b"x")]);
    source.seq += 1;
    rig.receive(&[source.frame(b"x")]);
    let now = rig.now;
    rig.input.handle_rtcp(now, &source.sender_report(0x1111_2222_3333_4444)).unwrap();
    rig.tick(2_500);
    let now = rig.now;
    rig.input.handle_timeout(now);
    let rtcp = rig.rtcp();
    let compound = Compound::parse(&rtcp[0], CompoundPolicy::Full).unwrap();
    let Some(Packet::Rr(rr)) = compound.packets().next() else { panic!("an RR") };
    let block = rr.blocks().next().unwrap();
    assert_eq!((block.fraction_lost, block.cumulative_lost, block.highest), (51, 1, 1_004), "one of five");
    assert_eq!((block.lsr, block.dlsr), (0x2222_3333, 0x0002_8000));
}

#[test]
fn a_source_that_fell_silent_is_reported_on_without_a_block() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    rig.tick(20_000);
    let now = rig.now;
    rig.input.handle_timeout(now);
    let rtcp = rig.rtcp();
    let compound = Compound::parse(&rtcp[0], CompoundPolicy::Full).unwrap();
    let Some(Packet::Rr(rr)) = compound.packets().next() else { panic!("an RR") };
    assert_eq!(
        rr.blocks().count(),
        0,
        "RFC 3550 section 6.4; the report itself keeps the source alive (RTSP-24)"
    );
}

#[test]
fn bye_of_the_source_is_consumed_and_reported() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    rig.events();
    let mut report = source.sender_report(1);
    write_cname(&mut report, source.ssrc, b"camera");
    let mut with_bye = report.clone();
    write_bye(&mut with_bye, source.ssrc);
    let now = rig.now;
    rig.input.handle_rtcp(now, &with_bye).unwrap();
    assert_eq!(rig.input.down(), Some(report.as_slice()), "RTP-24");
    assert_eq!(rig.events(), [InputEvent::Bye]);
    let mut foreign = Vec::new();
    write_bye(&mut foreign, 0x9999);
    rig.input.handle_rtcp(now, &foreign).unwrap();
    assert_eq!(rig.events(), [], "another source's goodbye");
    assert_eq!(rig.input.current().map(|current| current.run), Some(1), "the input goes on");
}

#[test]
fn a_sender_report_may_come_before_the_first_packet() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    let mut early = source.sender_report(5);
    write_cname(&mut early, source.ssrc, b"camera");
    let now = rig.now;
    rig.input.handle_rtcp(now, &early).unwrap();
    assert!(!rig.input.take_down());
    rig.receive(&[source.frame(b"x")]);
    assert!(rig.input.take_down(), "Reolink reports before the PLAY reply");
    assert_eq!(rig.input.down(), Some(early.as_slice()));
}

#[test]
fn a_source_that_names_none_gets_our_cname() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    let bare = source.sender_report(5);
    let now = rig.now;
    rig.input.handle_rtcp(now, &bare).unwrap();
    assert!(rig.input.down().unwrap().starts_with(&bare), "RTP-20: ffmpeg's");
    assert_eq!(rig.input.source_cname(), Some(&b"proxy@example"[..]), "rtspsrc has no lip sync without");
    let mut named = source.sender_report(6);
    write_cname(&mut named, source.ssrc, b"camera");
    rig.input.handle_rtcp(now, &named).unwrap();
    assert_eq!(rig.input.down(), Some(named.as_slice()), "RTP-21: unchanged");
}

#[test]
fn a_new_leg_gets_the_report_of_its_moment_along_the_line_of_the_last_one() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    let now = rig.now;
    rig.input.handle_rtcp(now, &source.sender_report(0xd000_0000_8000_0000)).unwrap();
    let reported = source.ts;
    for _ in 0..75 {
        rig.tick(40);
        rig.receive(&[source.frame(b"x")]);
    }
    let mut leg = LegTrack::new(LegConfig::default());
    leg.arm(rig.now, &rig.input);
    let mut scratch = Vec::new();
    assert_eq!(leg.sender_report(rig.now, &rig.input, &mut scratch), RtcpPass::Mapped);
    let compound = Compound::parse(&scratch, CompoundPolicy::Full).unwrap();
    let Some(Packet::Sr(sr)) = compound.packets().next() else { panic!("an SR") };
    assert_eq!(sr.info().rtp.0, reported + 75 * 3_600, "rtspsrc discards one from before its first packet");
    assert_eq!(sr.ntp().0, 0xd000_0003_8000_0000, "75 frames are 3 s");
    assert_eq!((sr.ssrc(), leg.is_transparent()), (source.ssrc, true));
}

#[test]
fn an_early_sender_report_of_another_ssrc_is_forgotten() {
    let mut rig = Rig::new(Codec::Other);
    let other = Source { ssrc: 0x4444, seq: 0, ts: 0 };
    let now = rig.now;
    rig.input.handle_rtcp(now, &other.sender_report(5)).unwrap();
    rig.receive(&[source().frame(b"x")]);
    assert!(!rig.input.take_down());
    assert_eq!(rig.input.down(), None);
}

#[test]
fn a_sender_report_of_another_ssrc_is_not_forwarded() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    rig.receive(&[source.frame(b"x")]);
    let other = Source { ssrc: 0x4444, seq: 0, ts: 0 };
    let now = rig.now;
    let result = rig.input.handle_rtcp(now, &other.sender_report(5));
    assert_eq!(result, Err(DropReason::Ssrc), "Tapo sends RTCP of an unknown SSRC");
    assert!(!rig.input.take_down());
    assert_eq!(rig.input.handle_rtcp(now, &[0x80, 200, 0, 9]), Err(DropReason::Malformed), "RTP-20");
    assert_eq!(rig.input.handle_rtcp(now, &source.sender_report(5)), Ok(()));
    assert_eq!(rig.input.compounds_without_cname(), 2, "RTP-20: counted, not rejected");
}

#[test]
fn a_storm_of_key_frame_requests_reaches_the_source_twice_per_second() {
    let mut rig = Rig::new(Codec::H264);
    let mut source = source();
    rig.receive(&[source.frame(IDR)]);
    rig.outputs();
    let mut passed = 0;
    for _ in 0..1_000 {
        rig.tick(10);
        let now = rig.now;
        let said = rig.input.request_key_frame(now);
        assert_eq!(asks_for_key_frame(&rig.rtcp()), said);
        passed += u32::from(said);
    }
    assert_eq!(passed, 20, "RTP-25: in ten seconds");
}

#[test]
fn a_source_without_feedback_is_never_asked() {
    let mut rig = Rig::new(Codec::H264);
    let config = InputConfig { feedback: false, ..crate::testing::config(Codec::H264) };
    rig.input.replace(rig.now, config);
    rig.receive(&[source().frame(IDR)]);
    let now = rig.now;
    assert!(!rig.input.request_key_frame(now), "RTP-25");
    assert!(rig.rtcp().is_empty());
}

#[test]
fn activity_is_reported_after_silence_only() {
    let mut rig = Rig::new(Codec::Other);
    let mut source = source();
    for _ in 0..5 {
        rig.tick(500);
        rig.receive(&[source.frame(b"x")]);
    }
    assert_eq!(rig.events(), [InputEvent::Active]);
    rig.now += QUIET_AFTER;
    rig.receive(&[source.frame(b"x")]);
    assert_eq!(rig.events(), [InputEvent::Active]);
}

#[test]
fn a_new_leg_gets_the_cached_sender_report_of_its_own_run_only() {
    let mut rig = Rig::new(Codec::Other);
    let mut old = source();
    rig.receive(&[old.frame(b"x")]);
    let now = rig.now;
    rig.input.handle_rtcp(now, &old.sender_report(5)).unwrap();
    let mut scratch = Vec::new();
    let mut leg = LegTrack::new(LegConfig::default());
    assert_eq!(leg.sender_report(now, &rig.input, &mut scratch), RtcpPass::Nothing, "the gate is shut");
    leg.arm(now, &rig.input);
    assert_eq!(leg.sender_report(now, &rig.input, &mut scratch), RtcpPass::Unchanged, "RTP-21");
    rig.now += ms(2_000);
    let mut new = Source { ssrc: 0x2222, seq: 7, ts: 99 };
    rig.relay(&mut leg, &[new.frame(b"x"), new.frame(b"x")]);
    let now = rig.now;
    assert_eq!(
        leg.sender_report(now, &rig.input, &mut scratch),
        RtcpPass::Nothing,
        "the old source's is void"
    );
}

#[test]
fn parameter_sets_before_the_key_frame_of_a_new_source_are_not_lost() {
    let mut rig = Rig::new(Codec::H264);
    let mut old = source();
    let mut leg = LegTrack::new(LegConfig::default());
    leg.arm(rig.now, &rig.input);
    rig.relay(&mut leg, &[old.frame(IDR)]);
    rig.tick(3_000);
    let mut new = Source { ssrc: 0x2222, seq: 65_535, ts: 99 };
    let packets = [new.frame(SPS)];
    assert!(rig.relay(&mut leg, &packets).is_empty(), "held");
    let packets = [new.packet(PPS), new.packet(IDR), new.frame(SLICE)];
    let out = rig.relay(&mut leg, &packets);
    let payloads: Vec<_> = out.iter().map(|packet| packet[12..].to_vec()).collect();
    assert_eq!(payloads, [SPS, PPS, IDR, SLICE], "RTP-6");
    let numbers: Vec<_> = fields(&out).iter().map(|(seq, ..)| *seq).collect();
    assert_eq!(numbers, [1_001, 1_002, 1_003, 1_004]);
}
