//! Frames beside answers: their order, what is held, and what is dropped.

use super::*;
use crate::demux::check::demultiplex;

#[test]
fn responses_go_before_rtcp_and_rtcp_before_rtp() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.rtp(0, b"rtp");
    rig.rtcp(1, b"rtcp");
    rig.reply(1);
    let expected = [ok(1).as_bytes(), &frame(1, b"rtcp"), &frame(0, b"rtp")].concat();
    assert_eq!(rig.drain(), expected);
    assert_eq!(rig.conn.counters().frames_out, 2);
}

/// RTSP-44: nothing gets inside a unit that was begun.
#[test]
fn partly_written_frame_is_finished_before_a_response() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.conn.push_rtp(0, &[1; 12], Bytes::from_static(b"payload"), rig.now);
    rig.rtp(2, b"other");
    assert_eq!(rig.write(10), 10);
    rig.reply(1);
    let mut first = frame(0, &[1; 12]);
    first[3] = 19;
    first.extend(b"payload");
    assert_eq!(rig.drain(), [&first[..], ok(1).as_bytes(), &frame(2, b"other")].concat());
}

/// RTSP-44, conformance case 9: no frame of the session precedes its PLAY answer.
#[test]
fn held_media_follow_the_answer_that_releases_them() {
    let mut rig = Rig::new(Role::Server);
    rig.conn.hold_media(&[0, 1]);
    rig.feed(options(1));
    rig.rtp(0, b"held");
    rig.rtcp(1, b"sr");
    rig.rtp(2, b"other session");
    assert_eq!(rig.drain(), frame(2, b"other session"));
    assert!(!rig.conn.wants_write());
    rig.reply(1);
    rig.conn.release_media(&[0, 1], rig.now);
    rig.rtp(0, b"next");
    let expected = [ok(1).as_bytes(), &frame(1, b"sr"), &frame(0, b"held"), &frame(0, b"next")].concat();
    assert_eq!(rig.drain(), expected);
}

/// RTSP-44 with RTSP-6: the answer itself waits for an earlier one, and the media wait with it.
#[test]
fn release_waits_for_an_answer_that_waits_for_its_turn() {
    let mut rig = Rig::new(Role::Server);
    rig.conn.hold_media(&[0]);
    rig.feed(options(1) + &options(2));
    rig.reply(2);
    rig.conn.release_media(&[0], rig.now);
    rig.rtp(0, b"media");
    assert_eq!(rig.drain(), b"");
    rig.reply(1);
    assert_eq!(rig.drain(), [ok(1).as_bytes(), ok(2).as_bytes(), &frame(0, b"media")].concat());
}

/// RTSP-31: what was held for a PLAY that was given up does not precede the packet that the next one names.
#[test]
fn media_held_for_an_answer_that_was_not_given_are_dropped_by_the_next_hold() {
    let mut rig = Rig::new(Role::Server);
    rig.conn.hold_media(&[0, 1]);
    rig.conn.hold_media(&[2]);
    rig.rtp(0, b"given up");
    rig.rtcp(1, b"given up");
    rig.rtp(2, b"another leg");
    rig.conn.hold_media(&[0, 1]);
    rig.rtp(0, b"named");
    rig.conn.release_media(&[0, 1, 2], rig.now);
    assert_eq!(rig.drain(), [frame(2, b"another leg"), frame(0, b"named")].concat());
    assert_eq!(rig.conn.rtp_depth(), 0);
}

/// The wait for the answer is ours: held packets do not grow old, or RTP-Info would lie (RTSP-31).
#[test]
fn held_media_grow_old_only_after_their_release() {
    let mut rig = Rig::new(Role::Server);
    rig.conn.hold_media(&[0]);
    rig.rtp(0, b"first");
    rig.after(S(3));
    rig.conn.release_media(&[0], rig.now);
    rig.after(Duration::from_millis(400));
    assert_eq!(rig.drain(), frame(0, b"first"));
}

#[test]
fn cleared_media_are_not_sent() {
    let mut rig = Rig::new(Role::Server);
    rig.conn.hold_media(&[4]);
    for channel in [0, 1, 2, 4] {
        rig.rtp(channel, b"x");
    }
    rig.rtcp(1, b"y");
    rig.conn.clear_media(&[0, 1, 4]);
    assert_eq!(rig.conn.rtp_depth(), 5);
    rig.rtp(4, b"flows again");
    assert_eq!(rig.drain(), [frame(2, b"x"), frame(4, b"flows again")].concat());
    assert_eq!(rig.conn.rtp_depth(), 0);
}

/// Limit of section 10: 500 ms.
#[test]
fn late_rtp_is_dropped_whole_and_counted() {
    let mut rig = Rig::new(Role::Server);
    rig.rtp(0, b"old");
    assert_eq!(rig.write(0), 0);
    rig.rtcp(1, b"sr");
    rig.after(Duration::from_millis(501));
    rig.rtp(0, b"new");
    assert_eq!(rig.drain(), [frame(1, b"sr"), frame(0, b"new")].concat());
    assert_eq!(rig.conn.counters().rtp_late, 1);
}

/// The limit is for readers that stall, not for a process that was not scheduled.
#[test]
fn what_no_socket_has_refused_is_never_late() {
    let mut rig = Rig::new(Role::Server);
    rig.rtp(0, b"one");
    rig.after(S(2));
    rig.rtp(0, b"two");
    rig.after(S(2));
    assert_eq!(rig.drain(), [frame(0, b"one"), frame(0, b"two")].concat());
    rig.rtp(0, b"three");
    rig.after(S(2));
    assert_eq!(rig.drain(), frame(0, b"three"));
    assert_eq!(rig.conn.counters().rtp_late, 0);
}

/// Limit of section 10: 1 MiB.
#[test]
fn full_queue_drops_the_new_frame_whole_and_counts_it() {
    let mut rig = Rig::new(Role::Server);
    let packet = Bytes::from(vec![0x80; 1020]);
    let taken =
        (0..2000).filter(|_| rig.conn.push_rtp(0, &[], packet.clone(), rig.now) == Offer::Queued).count();
    assert_eq!(taken, 1024);
    assert_eq!(rig.conn.counters().rtp_full, 976);
    assert_eq!(rig.conn.rtp_depth(), 1024 * 1024);
    assert_eq!(rig.drain().len(), 1024 * 1024);
}

#[test]
fn full_rtcp_queue_drops_its_oldest_frame() {
    let mut rig = Rig::with(Role::Server, ConnLimits { rtcp_bytes: 20, ..ConnLimits::default() });
    for payload in [b"111111", b"222222", b"333333"] {
        assert_eq!(rig.rtcp(1, payload), Offer::Queued);
    }
    assert_eq!(rig.rtcp(1, &[0; 40]), Offer::Dropped(FrameDrop::QueueFull));
    assert_eq!(rig.conn.counters().rtcp_dropped, 4);
    assert_eq!(rig.drain(), b"");
    rig.rtcp(1, b"444444");
    assert_eq!(rig.drain(), frame(1, b"444444"));
}

#[test]
fn frame_longer_than_its_length_field_is_refused() {
    let mut rig = Rig::new(Role::Server);
    assert_eq!(rig.rtp(0, &vec![0; 65536]), Offer::Dropped(FrameDrop::TooLong));
    assert_eq!(
        rig.conn.push_rtp(0, &[0; 13], Bytes::new(), rig.now),
        Offer::Dropped(FrameDrop::TooLong),
        "a head is at most 12 bytes"
    );
    assert_eq!(rig.rtp(0, &vec![0; 65535]), Offer::Queued);
}

/// ST7: what a stalled and then trickling reader gets is whole frames; every other one is counted.
#[test]
fn stalled_and_trickling_reader_gets_whole_frames_only() {
    let mut rig = Rig::with(Role::Server, ConnLimits { rtp_bytes: 20_000, ..ConnLimits::default() });
    let mut offered: u64 = 0;
    for round in 0..400u64 {
        rig.after(Duration::from_millis(20));
        for part in 0..3u64 {
            let payload = vec![part as u8; 200 + (round % 7) as usize * 100];
            rig.rtp((part * 2) as u8, &payload);
            offered += 1;
        }
        if round % 10 == 0 {
            rig.rtcp(1, b"report");
            rig.feed(options(round as u32));
            rig.reply(round as u32);
        }
        // Stalled, then a byte-wise trickle, then a reader that is too slow.
        match round {
            0..=40 => assert_eq!(rig.write(0), 0),
            41..=80 => assert!(rig.write(1) <= 1),
            _ => assert!(rig.write(700) <= 700),
        }
    }
    let sent = rig.drain();
    let outcome = demultiplex(Strictness::Upstream, ParseLimits::default(), [&sent[..]]);
    assert_eq!(outcome.error, None);
    let written = outcome.items.len() as u64;
    let counters = rig.conn.counters();
    let rtcp =
        outcome.items.iter().filter(|item| matches!(item, Item::Frame { channel: 1, .. })).count() as u64;
    let replies = outcome.items.iter().filter(|item| matches!(item, Item::Message(_))).count();
    assert_eq!((rtcp, replies), (40, 40));
    assert_eq!(written - 80 + counters.rtp_full + counters.rtp_late, offered);
    assert!(counters.rtp_full > 0 && counters.rtp_late > 0, "{counters:?}");
    assert!(outcome.items.iter().all(|item| match item {
        Item::Frame { channel, payload } => *channel == 1 || payload.iter().all(|b| *b == *channel / 2),
        Item::Message(_) => true,
    }));
}

#[test]
fn every_offered_slice_holds_bytes() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.reply(1);
    rig.rtcp(1, b"sr");
    for _ in 0..4 {
        rig.conn.push_rtp(0, &[1; 12], Bytes::from_static(b"payload"), rig.now);
    }
    let mut slices = [IoSlice::new(&[]); 8];
    // One answer, a report in two slices, two packets in two slices each; a half packet is not offered.
    assert_eq!(rig.conn.poll_transmit(rig.now, &mut slices), 7);
    assert!(slices[..7].iter().all(|slice| !slice.is_empty()) && slices[7].is_empty());
}

/// A frame that was offered to the socket stays where it is, whatever happens before `advance`.
#[test]
fn offered_frames_survive_what_happens_before_advance() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.rtp(0, b"offered");
    rig.rtcp(1, b"offered too");
    let mut slices = [IoSlice::new(&[]); 8];
    let count = rig.conn.poll_transmit(rig.now, &mut slices);
    let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
    rig.after(S(1));
    rig.reply(1);
    rig.rtp(0, b"later");
    rig.conn.clear_media(&[0, 1]);
    rig.conn.close(rig.now);
    rig.conn.advance(18, rig.now);
    let sent = [&bytes[..18], &rig.drain()].concat();
    assert_eq!(
        sent,
        [&frame(1, b"offered too")[..], &frame(0, b"offered"), ok(1).as_bytes()].concat()[..].to_vec()
    );
}
