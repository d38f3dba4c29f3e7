use std::io::IoSlice;

use super::*;
use crate::message::Method;

mod deadlines;
mod interleavings;
mod media;

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
fn idle_connection_is_small() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.reply(1);
    rig.drain();
    assert_eq!(rig.conn.demux.capacity(), 0);
    assert_eq!((rig.conn.outstanding.capacity(), rig.conn.messages.capacity()), (0, 0));
    assert!(size_of::<Conn>() <= 912, "{}", size_of::<Conn>());
    assert!(size_of::<Frame>() <= 80, "{}", size_of::<Frame>());
}
