//! Intervals, limits and round trips on a virtual clock.

use super::*;
use crate::clock::Ntp;
use crate::testing::{ms, start};

#[test]
fn receiver_reports_start_after_2_5_s_and_are_never_more_than_5_s_apart() {
    let now = start();
    for seed in 0..50 {
        let mut schedule = RrSchedule::new(now, seed * 0x0102_0305);
        assert_eq!(schedule.due(), now + RR_FIRST, "RTP-28");
        assert!(!schedule.take(now + ms(2_499)));
        let mut at = now + RR_FIRST;
        for _ in 0..20 {
            assert!(schedule.take(at));
            let gap = schedule.due() - at;
            assert!(gap <= RR_INTERVAL && gap >= RR_INTERVAL * 9 / 10, "RTSP-24: {gap:?}");
            at = schedule.due();
        }
    }
}

#[test]
fn two_tracks_do_not_report_in_step() {
    let now = start();
    let due = |seed| {
        let mut schedule = RrSchedule::new(now, seed);
        schedule.take(now + RR_FIRST);
        schedule.due()
    };
    assert_ne!(due(1), due(0x8000_0000));
}

#[test]
fn a_block_refers_to_the_last_sender_report_and_to_none_before_it() {
    let now = start();
    let reception = Reception { fraction_lost: 1, cumulative_lost: 2, highest: 3, jitter: 4 };
    let before = block(7, &reception, None, now);
    assert_eq!((before.lsr, before.dlsr), (0, 0));
    let sr =
        LastSr { info: SenderInfo { ntp: Ntp(0x1111_2222_3333_4444), ..SenderInfo::default() }, at: now };
    let after = block(7, &reception, Some(&sr), now + ms(1_500));
    assert_eq!((after.lsr, after.dlsr), (0x2222_3333, 0x0001_8000));
}

#[test]
fn round_trip_is_the_time_since_the_report_left_minus_the_viewers_delay() {
    let now = start();
    let mut sent = SentSrs::default();
    sent.note(0xaaaa_bbbb, now);
    let rtt = sent.round_trip(0xaaaa_bbbb, to_short(ms(5_000)), now + ms(5_040)).unwrap();
    assert!(rtt.abs_diff(ms(40)) < ms(1), "RTP-23: {rtt:?}");
    assert_eq!(
        sent.round_trip(0xaaaa_bbbb, to_short(ms(5_000)), now + ms(4_000)),
        Some(Duration::ZERO),
        "a lying viewer"
    );
    assert_eq!(sent.round_trip(0, 0, now), None);
    assert_eq!(sent.round_trip(0xdead_beef, 0, now), None, "a report that was never sent");
    sent.note(0xaaaa_bbbb, now + ms(1_000));
    assert_eq!(
        sent.round_trip(0xaaaa_bbbb, 0, now + ms(1_030)),
        Some(ms(30)),
        "a report that was sent again counts from its last time"
    );
    for lsr in 1..=4 {
        sent.note(lsr, now);
    }
    assert_eq!(sent.round_trip(0xaaaa_bbbb, 0, now), None, "only the last four are kept");
}

#[test]
fn a_mapped_sender_report_moves_the_timestamp_by_exactly_the_projection() {
    let source = SenderInfo { ssrc: 1, ntp: Ntp(99), rtp: RtpTime(u32::MAX - 5), packets: 1_000, octets: 9 };
    let mapped = map_sr(&source, 2, 10, (1 << 32) + 3, 4);
    let expected = SenderInfo { ssrc: 2, ntp: Ntp(99), rtp: RtpTime(4), packets: 3, octets: 4 };
    assert_eq!(mapped, expected, "RTP-21: own counts, modulo 2^32");
}

#[test]
fn a_storm_of_key_frame_requests_passes_at_most_two_per_second() {
    let now = start();
    let mut limiter = KeyFrameLimiter::default();
    let admitted = (0..10_000).filter(|i| limiter.admit(now + ms(*i), PLI_SOURCE_INTERVAL)).count();
    assert_eq!(admitted, 20, "RTP-25: in ten seconds");
    assert!(KeyFrameLimiter::default().admit(now, PLI_SOURCE_INTERVAL), "RTP-25: the first one at once");
}

#[test]
fn three_bad_reports_in_a_row_open_the_breaker() {
    let now = start();
    let mut breaker = CircuitBreaker::default();
    let losses = [200, 200, 128, 129, 129, 129];
    let open: Vec<_> = losses
        .iter()
        .enumerate()
        .map(|(i, loss)| breaker.observe(now + ms(5_000) * i as u32, *loss))
        .collect();
    assert_eq!(open, [false, false, false, false, false, true], "RTP-29: half is not more than half");
}

#[test]
fn one_report_sent_three_times_does_not_open_the_breaker() {
    let now = start();
    let mut breaker = CircuitBreaker::default();
    assert!((0..10).all(|i| !breaker.observe(now + ms(i * 10), 255)));
}
