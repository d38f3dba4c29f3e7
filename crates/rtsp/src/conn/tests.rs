use proptest::prelude::*;
use std::io::IoSlice;

use super::*;
use crate::demux::check::demultiplex;
use crate::message::Method;

const S: fn(u64) -> Duration = Duration::from_secs;

/// A connection and its clock; the peer's end is `sent`.
struct Rig {
    conn: Conn,
    now: Instant,
    sent: Vec<u8>,
}

fn start() -> Instant {
    // Any instant will do: nothing here reads the clock but the tests' first line.
    #[expect(clippy::disallowed_methods, reason = "an Instant can be had in no other way")]
    Instant::now()
}

impl Rig {
    fn new(role: Role) -> Self {
        Self::with(role, ConnLimits::default())
    }

    fn with(role: Role, limits: ConnLimits) -> Self {
        let now = start() + S(3600);
        Self { conn: Conn::new(role, limits, now), now, sent: Vec::new() }
    }

    fn after(&mut self, time: Duration) -> Instant {
        self.now += time;
        self.now
    }

    fn feed(&mut self, bytes: impl AsRef<[u8]>) -> Vec<ConnEvent> {
        self.conn.handle_bytes(self.now, bytes.as_ref());
        self.events()
    }

    fn events(&mut self) -> Vec<ConnEvent> {
        std::iter::from_fn(|| self.conn.poll_event(self.now)).collect()
    }

    /// One write that the socket cuts off after `most` bytes.
    fn write(&mut self, most: usize) -> usize {
        let mut slices = [IoSlice::new(&[]); 16];
        let count = self.conn.poll_transmit(self.now, &mut slices);
        let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
        let written = bytes.len().min(most);
        self.sent.extend(&bytes[..written]);
        self.conn.advance(written, self.now);
        written
    }

    fn drain(&mut self) -> Vec<u8> {
        while self.write(usize::MAX) > 0 {}
        std::mem::take(&mut self.sent)
    }

    fn reply(&mut self, cseq: u32) -> bool {
        self.conn.push_response(Response::new(Status::OK).with("CSeq", cseq.to_string()), false, self.now)
    }

    fn rtp(&mut self, channel: u8, payload: &[u8]) -> Offer {
        self.conn.push_rtp(channel, &[], Bytes::copy_from_slice(payload), self.now)
    }

    fn rtcp(&mut self, channel: u8, payload: &[u8]) -> Offer {
        self.conn.push_rtcp(channel, Bytes::copy_from_slice(payload), self.now)
    }
}

fn options(cseq: u32) -> String {
    format!("OPTIONS * RTSP/1.0\r\nCSeq: {cseq}\r\n\r\n")
}

fn ok(cseq: u32) -> String {
    format!("RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\n\r\n")
}

fn frame(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'$', channel];
    bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn cseqs(events: &[ConnEvent]) -> Vec<u32> {
    events
        .iter()
        .filter_map(|event| match event {
            ConnEvent::Request(request) => request.cseq(),
            _ => None,
        })
        .collect()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn request_is_answered_with_its_cseq() {
    let mut rig = Rig::new(Role::Server);
    assert_eq!(cseqs(&rig.feed(options(0))), [0]);
    assert!(rig.conn.push_response(Response::new(Status::OK), false, rig.now));
    assert_eq!(text(rig.drain()), ok(0));
    assert!(!rig.conn.is_finished());
}

/// RTSP-6.
#[test]
fn answers_leave_in_order_of_the_requests() {
    let mut rig = Rig::new(Role::Server);
    assert_eq!(cseqs(&rig.feed(options(1) + &options(2) + &options(3))), [1, 2, 3]);
    assert!(rig.reply(3));
    assert!(rig.reply(2));
    assert_eq!(rig.drain(), b"");
    assert!(rig.reply(1));
    assert_eq!(text(rig.drain()), ok(1) + &ok(2) + &ok(3));
    assert!(!rig.reply(1));
    assert_eq!(rig.conn.counters().stray_replies, 1);
}

#[test]
fn equal_cseqs_are_answered_in_turn() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(7) + &options(7));
    for status in [Status::OK, Status::NOT_FOUND] {
        rig.conn.push_response(Response::new(status).with("CSeq", "7"), false, rig.now);
    }
    let sent = text(rig.drain());
    assert!(sent.starts_with("RTSP/1.0 200") && sent.contains("RTSP/1.0 404"), "{sent}");
}

/// RTSP-7.
#[test]
fn reading_stops_at_ten_outstanding_requests() {
    let mut rig = Rig::new(Role::Server);
    let burst: String = (0..12).map(options).collect();
    assert_eq!(cseqs(&rig.feed(burst)), (0..10).collect::<Vec<_>>());
    assert!(!rig.conn.wants_read());
    rig.reply(0);
    assert!(rig.conn.wants_read());
    assert_eq!(cseqs(&rig.events()), [10]);
    assert!(!rig.conn.wants_read());
    rig.reply(1);
    assert_eq!(cseqs(&rig.events()), [11]);
}

#[test]
fn reading_stops_while_the_peer_does_not_read_its_answers() {
    let mut rig = Rig::with(Role::Server, ConnLimits { message_bytes: 100, ..ConnLimits::default() });
    for cseq in 0..4 {
        rig.feed(options(cseq));
        rig.reply(cseq);
    }
    assert!(!rig.conn.wants_read());
    assert_eq!(cseqs(&rig.feed(options(4))), [0_u32; 0]);
    rig.drain();
    assert!(rig.conn.wants_read());
    assert_eq!(cseqs(&rig.events()), [4]);
}

/// RTSP-1, conformance case 3.
#[test]
fn version_2_is_answered_505_with_its_cseq_in_turn_and_the_connection_lives() {
    let mut rig = Rig::new(Role::Server);
    let events = rig.feed(options(1) + "OPTIONS * RTSP/2.0\r\nCSeq: 2\r\n\r\n" + &options(3));
    let [ConnEvent::Request(_), ConnEvent::Rejected { error, status, closing: false }, ConnEvent::Request(_)] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((error.rule, *status), (crate::parse::Rule::Version, Status::VERSION_NOT_SUPPORTED));
    rig.reply(3);
    assert_eq!(rig.drain(), b"");
    rig.reply(1);
    let refused = "RTSP/1.0 505 RTSP Version Not Supported\r\nCSeq: 2\r\n\r\n";
    assert_eq!(text(rig.drain()), ok(1) + refused + &ok(3));
    assert!(!rig.conn.is_finished());
}

/// RTSP-2.
#[test]
fn missing_cseq_is_answered_400_without_cseq_and_the_connection_lives() {
    let mut rig = Rig::new(Role::Server);
    let events = rig.feed("OPTIONS * RTSP/1.0\r\n\r\n".to_owned() + &options(1));
    assert!(matches!(events[..], [ConnEvent::Rejected { closing: false, .. }, ConnEvent::Request(_)]));
    assert_eq!(text(rig.drain()), "RTSP/1.0 400 Bad Request\r\n\r\n");
    assert_eq!(rig.conn.counters().rejected, 1);
}

#[test]
fn lost_framing_is_answered_in_turn_and_the_connection_closes() {
    let mut rig = Rig::new(Role::Server);
    let events = rig.feed(options(1) + "\x01" + &options(2));
    assert!(
        matches!(events[..], [ConnEvent::Request(_), ConnEvent::Rejected { closing: true, .. }]),
        "{events:?}"
    );
    assert!(!rig.conn.wants_read() && !rig.conn.is_finished());
    rig.reply(1);
    assert!(!rig.conn.is_finished());
    assert_eq!(text(rig.drain()), ok(1) + "RTSP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n");
    assert!(rig.conn.is_finished());
    assert_eq!(rig.feed(options(3)), []);
}

#[test]
fn oversize_gets_its_status() {
    for (text, status) in [
        (format!("DESCRIBE rtsp://{} RTSP/1.0\r\n", "a".repeat(3000)), Status::URI_TOO_LONG),
        (
            "SET_PARAMETER * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 5000\r\n\r\n".to_owned(),
            Status::CONTENT_TOO_LARGE,
        ),
    ] {
        let mut rig = Rig::new(Role::Server);
        let events = rig.feed(text);
        assert!(matches!(events[..], [ConnEvent::Rejected { status: s, closing: true, .. }] if s == status));
        let prefix = format!("RTSP/1.0 {status}\r\n");
        assert!(self::text(rig.drain()).starts_with(&prefix));
        assert!(rig.conn.is_finished());
    }
}

#[test]
fn nothing_follows_a_closing_answer() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1) + &options(2));
    rig.rtp(0, b"media");
    rig.rtcp(1, b"bye");
    rig.conn.push_response(Response::new(Status::UNAUTHORIZED).with("CSeq", "1"), true, rig.now);
    assert!(!rig.reply(2));
    assert_eq!(rig.rtp(0, b"more"), Offer::Dropped(FrameDrop::Closing));
    let sent = rig.drain();
    // RTP-24: a BYE that was queued before is still written.
    assert_eq!(sent, [b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\n\r\n", &frame(1, b"bye")[..]].concat());
    assert!(rig.conn.is_finished());
}

/// RTSP-8.
#[test]
fn stray_responses_of_a_viewer_are_counted_and_dropped() {
    let mut rig = Rig::new(Role::Server);
    assert_eq!(cseqs(&rig.feed(ok(1) + &options(2))), [2]);
    assert_eq!(rig.conn.counters().stray_responses, 1);
}

/// RTSP-8.
#[test]
fn requests_of_a_camera_are_answered_501_and_not_shown() {
    let mut rig = Rig::new(Role::Client);
    rig.conn.push_request(&Request::new(Method::Options, "rtsp://cam/").with("CSeq", "1"), rig.now);
    let events = rig.feed("REDIRECT rtsp://x RTSP/1.0\nCSeq: 9 \n\n".to_owned() + &ok(1));
    assert!(matches!(events[..], [ConnEvent::Response(_)]), "{events:?}");
    assert_eq!(
        text(rig.drain()),
        "OPTIONS rtsp://cam/ RTSP/1.0\r\nCSeq: 1\r\n\r\nRTSP/1.0 501 Not Implemented\r\nCSeq: 9\r\n\r\n"
    );
    assert_eq!(rig.conn.counters().camera_requests, 1);
}

#[test]
fn camera_that_loses_framing_gets_no_answer() {
    let mut rig = Rig::new(Role::Client);
    let events = rig.feed("garbage");
    assert!(matches!(events[..], [ConnEvent::Rejected { closing: true, .. }]));
    assert_eq!(rig.drain(), b"");
    assert!(rig.conn.is_finished());
}

/// RTSP-41.
#[test]
fn thousand_stray_frames_are_enough() {
    let mut rig = Rig::new(Role::Server);
    let verdicts: Vec<_> = (0..1000).map(|_| rig.conn.count_stray_frame()).collect();
    assert_eq!(verdicts.iter().position(|close| *close), Some(999));
}

/// RTSP-44: response, RTCP, RTP.
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

fn deadline(rig: &Rig) -> Duration {
    rig.conn.poll_timeout().unwrap() - rig.now
}

fn expires(rig: &mut Rig, time: Duration, reason: CloseReason) {
    assert_eq!(deadline(rig), time, "{reason:?}");
    rig.after(time.saturating_sub(Duration::from_nanos(1)));
    assert_eq!(rig.conn.handle_timeout(rig.now), None);
    rig.after(Duration::from_nanos(1));
    assert_eq!(rig.conn.handle_timeout(rig.now), Some(reason));
}

/// Limits of section 10, SEC-6.
#[test]
fn silent_and_slow_peers_are_ended_in_time() {
    let mut rig = Rig::new(Role::Server);
    expires(&mut rig, S(5), CloseReason::FirstByte);

    let mut rig = Rig::new(Role::Server);
    rig.feed("OPT");
    rig.after(S(6));
    rig.feed("IONS * RTSP/1.0\r\nX");
    expires(&mut rig, S(4), CloseReason::Head);

    let mut rig = Rig::new(Role::Server);
    rig.after(S(4));
    rig.feed("ANNOUNCE * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 65536\r\n\r\nv=0");
    rig.after(S(2));
    rig.feed("more");
    expires(&mut rig, S(16), CloseReason::Body);

    let mut rig = Rig::new(Role::Server);
    rig.after(S(1));
    rig.feed([b'$', 0, 0]);
    rig.after(S(9));
    rig.feed([9, 1]);
    expires(&mut rig, S(1), CloseReason::Frame);

    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.reply(1);
    rig.drain();
    rig.feed("\r\n\r\n");
    expires(&mut rig, S(30), CloseReason::Idle);
}

#[test]
fn deadline_of_a_unit_starts_with_the_unit() {
    let mut rig = Rig::new(Role::Server);
    rig.conn.set_session(true, rig.now);
    rig.feed([&frame(0, &[])[..], b"$\x00"].concat());
    rig.after(S(9));
    rig.feed(b"\x00\x00$\x00");
    assert_eq!(deadline(&rig), S(10));
    rig.feed(b"\x00\x00");
    assert_eq!(rig.conn.poll_timeout(), None);
}

#[test]
fn session_and_outstanding_requests_suspend_the_idle_deadline() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    assert_eq!(rig.conn.poll_timeout(), None);
    rig.reply(1);
    rig.drain();
    assert_eq!(deadline(&rig), S(30));
    rig.conn.set_session(true, rig.now);
    assert_eq!(rig.conn.poll_timeout(), None);
    rig.after(S(100));
    rig.conn.set_session(false, rig.now);
    assert_eq!(deadline(&rig), S(30));
}

#[test]
fn camera_connection_has_no_deadline_of_silence() {
    let mut rig = Rig::new(Role::Client);
    assert_eq!(rig.conn.poll_timeout(), None);
    rig.feed("RTSP/1.0 200 OK\r\n");
    expires(&mut rig, S(10), CloseReason::Head);
}

/// RTSP-44, section 11: closed when stuck 10 s, although late frames make room for new ones all the time.
#[test]
fn writer_without_progress_is_ended_and_progress_saves_it() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.reply(1);
    rig.drain();
    rig.conn.set_session(true, rig.now);
    let begin = rig.now;
    for _ in 0..99 {
        rig.rtp(0, &[0x80; 1000]);
        rig.write(0);
        rig.after(Duration::from_millis(100));
        assert_eq!(rig.conn.handle_timeout(rig.now), None);
    }
    assert_eq!(rig.conn.poll_timeout(), Some(begin + S(10)));
    rig.write(1);
    assert_eq!(deadline(&rig), S(10));
    rig.after(S(10));
    assert_eq!(rig.conn.handle_timeout(rig.now), Some(CloseReason::StuckWriter));
    rig.drain();
    assert_eq!(rig.conn.poll_timeout(), None);
}

#[test]
fn closing_ends_in_time_whatever_the_peer_does() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1) + "\x01");
    expires(&mut rig, S(10), CloseReason::Closing);
}

#[test]
fn idle_connection_is_small() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.reply(1);
    rig.drain();
    rig.conn.read_buf();
    assert!(size_of::<Conn>() + rig.conn.demux.capacity() < 16 * 1024);
    assert!(size_of::<Frame>() <= 80, "{}", size_of::<Frame>());
}

#[derive(Debug, Clone)]
enum Step {
    Rtp(u8, usize),
    Rtcp(u8, usize),
    Request,
    Reply(usize),
    Write(usize),
    Wait(u64),
    Hold(u8),
    Release(u8),
    Clear(u8),
    Offer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u8, 0..400usize).prop_map(|(channel, length)| Step::Rtp(channel, length)),
        (0..6u8, 0..100usize).prop_map(|(channel, length)| Step::Rtcp(channel, length)),
        Just(Step::Request),
        any::<usize>().prop_map(Step::Reply),
        (0..900usize).prop_map(Step::Write),
        (0..700u64).prop_map(Step::Wait),
        (0..6u8).prop_map(Step::Hold),
        (0..6u8).prop_map(Step::Release),
        (0..6u8).prop_map(Step::Clear),
        Just(Step::Offer),
    ]
}

proptest! {
    /// ST7, RTSP-6, RTSP-44 for any interleaving: what leaves is whole units, answers in order.
    #[test]
    fn output_is_whole_units_in_any_interleaving(steps in prop::collection::vec(step(), 0..120)) {
        let limits = ConnLimits { rtp_bytes: 2000, rtcp_bytes: 300, ..ConnLimits::default() };
        let mut rig = Rig::with(Role::Server, limits);
        let (mut next, mut open) = (0u32, Vec::new());
        for step in steps {
            match step {
                Step::Rtp(channel, length) => {
                    let payload = Bytes::from(vec![channel; length + 1]);
                    let (head, tail) = payload.split_at(payload.len().min(12));
                    rig.conn.push_rtp(channel, head, payload.slice_ref(tail), rig.now);
                }
                Step::Rtcp(channel, length) => { rig.rtcp(channel, &vec![channel; length + 1]); }
                Step::Request => {
                    rig.conn.handle_bytes(rig.now, options(next).as_bytes());
                    open.extend(cseqs(&rig.events()));
                    next += 1;
                }
                Step::Reply(index) if !open.is_empty() => {
                    let cseq = open.remove(index % open.len());
                    prop_assert!(rig.reply(cseq));
                    open.extend(cseqs(&rig.events()));
                }
                Step::Reply(_) => {}
                Step::Write(most) => { rig.write(most); }
                Step::Wait(millis) => { rig.after(Duration::from_millis(millis)); }
                Step::Hold(channel) => rig.conn.hold_media(&[channel]),
                Step::Release(channel) => rig.conn.release_media(&[channel], rig.now),
                Step::Clear(channel) => rig.conn.clear_media(&[channel]),
                // Offered and not advanced: the owner broke the rule, the framing must not.
                Step::Offer => { rig.conn.poll_transmit(rig.now, &mut [IoSlice::new(&[]); 4]); }
            }
        }
        while !open.is_empty() {
            prop_assert!(rig.reply(open.remove(0)));
            open.extend(cseqs(&rig.events()));
        }
        let sent = rig.drain();
        let outcome = demultiplex(Strictness::Upstream, ParseLimits::default(), [&sent[..]]);
        prop_assert_eq!(outcome.error, None);
        let mut answered = Vec::new();
        for item in outcome.items {
            match item {
                Item::Frame { channel, payload } => prop_assert!(payload.iter().all(|b| *b == channel)),
                Item::Message(Parsed::Message(Message::Response(response))) => answered.extend(response.cseq()),
                Item::Message(other) => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(answered, (0..next).collect::<Vec<_>>());
        prop_assert_eq!(rig.conn.rtp.ready().len(), 0);
    }

    /// RTSP-40 for the machine: any split of viewer input, the same events and answers.
    #[test]
    fn events_do_not_depend_on_the_split(cuts in prop::collection::vec(1u8..40, 1..8)) {
        let stream = [
            options(1).as_bytes(), &frame(0, b"rr"), b"OPTIONS * RTSP/2.0\r\nCSeq: 2\r\n\r\n", &frame(1, &[]),
            b"\r\n", ok(4).as_bytes(), options(3).as_bytes(), b"OPTIONS * RTSP/1.0\r\n\r\n", b"junk",
        ].concat();
        let mut whole = Rig::new(Role::Server);
        let events = whole.feed(&stream);
        let mut cut = Rig::new(Role::Server);
        let pieces = crate::demux::check::pieces(&stream, &cuts);
        let cut_events: Vec<_> = pieces.into_iter().flat_map(|piece| cut.feed(piece)).collect();
        prop_assert_eq!(events, cut_events);
        for rig in [&mut whole, &mut cut] {
            rig.reply(1);
            rig.reply(3);
        }
        prop_assert_eq!(whole.drain(), cut.drain());
    }
}
