use proptest::prelude::*;

use super::check::{Outcome, demultiplex, pieces, split_invariance, write_identity};
use super::*;
use crate::message::{Headers, Message, Method, Request, Response, Status};

const LIMITS: fn() -> ParseLimits = ParseLimits::default;

macro_rules! recorded {
    ($($name:literal),*) => {
        &[$(
            (
                $name,
                include_bytes!(concat!("../../../../tests/testdata/rtsp/", $name, ".client.bin")),
                include_bytes!(concat!("../../../../tests/testdata/rtsp/", $name, ".server.bin")),
            )
        ),*]
    };
}

/// Name, bytes of the client, bytes of the server.
const CONVERSATIONS: &[(&str, &[u8], &[u8])] = recorded![
    "ffmpeg-play-tcp",
    "ffmpeg-play-udp",
    "ffmpeg-publish-tcp",
    "gst-play-tcp",
    "gst-play-udp",
    "gst-play-version-2",
    "gst-publish-tcp",
    "vlc-play"
];

/// Client bytes as we read them from a viewer, server bytes as we read them from a camera.
fn streams() -> impl Iterator<Item = (&'static str, Strictness, &'static [u8])> {
    CONVERSATIONS.iter().flat_map(|&(name, client, server)| {
        [(name, Strictness::Downstream, client), (name, Strictness::Upstream, server)]
    })
}

fn one_shot(strictness: Strictness, bytes: &[u8]) -> Outcome {
    demultiplex(strictness, LIMITS(), [bytes])
}

fn messages(outcome: &Outcome) -> Vec<&Message> {
    outcome
        .items
        .iter()
        .filter_map(|item| match item {
            Item::Message(Parsed::Message(message)) => Some(message),
            _ => None,
        })
        .collect()
}

fn methods(outcome: &Outcome) -> Vec<&str> {
    messages(outcome)
        .into_iter()
        .filter_map(|message| match message {
            Message::Request(request) => Some(request.method.as_str()),
            Message::Response(_) => None,
        })
        .collect()
}

fn frames(outcome: &Outcome) -> Vec<(u8, &[u8])> {
    outcome
        .items
        .iter()
        .filter_map(|item| match item {
            Item::Frame { channel, payload } => Some((*channel, &payload[..])),
            Item::Message(_) => None,
        })
        .collect()
}

fn frame(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'$', channel];
    bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Conformance case 1, ST1.
#[test]
fn recorded_conversations_are_understood() {
    let client = |name| {
        let (_, bytes, _) = CONVERSATIONS.iter().find(|(n, _, _)| *n == name).unwrap();
        one_shot(Strictness::Downstream, bytes)
    };
    let play = ["OPTIONS", "DESCRIBE", "SETUP", "SETUP", "PLAY"];
    for name in ["ffmpeg-play-tcp", "ffmpeg-play-udp", "gst-play-tcp", "gst-play-udp"] {
        assert_eq!(methods(&client(name))[..5], play, "{name}");
    }
    assert_eq!(methods(&client("ffmpeg-publish-tcp"))[..4], ["OPTIONS", "ANNOUNCE", "SETUP", "RECORD"]);
    assert!(methods(&client("gst-publish-tcp")).contains(&"RECORD"));
    assert!(frames(&client("ffmpeg-publish-tcp")).len() > 20);
    for (name, strictness, bytes) in streams() {
        let outcome = one_shot(strictness, bytes);
        assert_eq!(outcome.error, None, "{name} {strictness:?}");
        assert!(!outcome.items.is_empty(), "{name}");
        let rtp = frames(&outcome).into_iter().all(|(channel, payload)| channel < 4 && payload[0] >> 6 == 2);
        assert!(rtp, "{name}: a frame is not RTP or RTCP");
    }
}

/// Conformance case 1: the same at 1-byte splits and at every single split point of the first 6 KiB.
#[test]
fn recorded_conversations_are_the_same_at_every_split() {
    for (name, strictness, bytes) in streams() {
        let whole = one_shot(strictness, bytes);
        assert_eq!(demultiplex(strictness, LIMITS(), bytes.chunks(1)), whole, "{name} bytewise");
        let bytes = &bytes[..bytes.len().min(6 * 1024)];
        let whole = one_shot(strictness, bytes);
        for at in 1..bytes.len() {
            let (first, second) = bytes.split_at(at);
            assert_eq!(demultiplex(strictness, LIMITS(), [first, second]), whole, "{name} at {at}");
        }
    }
}

/// RTSP-1, conformance case 3: rtspsrc asks for 2.0 first.
#[test]
fn version_2_requests_keep_the_framing_and_their_cseq() {
    let (_, bytes, _) = CONVERSATIONS.iter().find(|(name, _, _)| *name == "gst-play-version-2").unwrap();
    let outcome = one_shot(Strictness::Downstream, bytes);
    let cseqs: Vec<_> = outcome
        .items
        .iter()
        .filter_map(|item| match item {
            Item::Message(Parsed::Malformed { error, cseq, .. }) => {
                assert_eq!(error.rule, Rule::Version);
                assert_eq!(error.status(), Status::VERSION_NOT_SUPPORTED);
                assert!(!error.is_fatal());
                *cseq
            }
            _ => None,
        })
        .collect();
    assert_eq!(cseqs, [1, 2, 3, 4, 5, 6]);
}

/// An independent parser sees the same messages.
#[test]
fn rtsp_types_agrees_on_recorded_messages() {
    let mut seen = 0;
    for (name, strictness, bytes) in streams() {
        let outcome = one_shot(strictness, bytes);
        let mut ours = outcome.items.iter();
        let mut rest = bytes;
        while let Ok((theirs, used)) = rtsp_types::Message::<Vec<u8>>::parse(rest) {
            rest = &rest[used..];
            match (&theirs, ours.next().unwrap()) {
                (rtsp_types::Message::Data(data), Item::Frame { channel, payload }) => {
                    assert_eq!((data.channel_id(), data.as_slice()), (*channel, &payload[..]));
                }
                (
                    rtsp_types::Message::Request(theirs),
                    Item::Message(Parsed::Message(Message::Request(ours))),
                ) => {
                    assert_eq!(<&str>::from(theirs.method()), ours.method.as_str());
                    assert_eq!(theirs.request_uri().unwrap().as_str(), ours.uri);
                    assert_eq!(&theirs.body()[..], &ours.body[..]);
                    same_fields(theirs.headers(), &ours.headers);
                }
                (
                    rtsp_types::Message::Response(theirs),
                    Item::Message(Parsed::Message(Message::Response(ours))),
                ) => {
                    assert_eq!(u16::from(theirs.status()), ours.status.0);
                    assert_eq!(theirs.reason_phrase(), ours.reason);
                    assert_eq!(&theirs.body()[..], &ours.body[..]);
                    same_fields(theirs.headers(), &ours.headers);
                }
                (_, Item::Message(Parsed::Malformed { error, .. })) => assert_eq!(error.rule, Rule::Version),
                (theirs, ours) => panic!("{name}: {theirs:?} against {ours:?}"),
            }
            seen += 1;
        }
        assert_eq!(ours.next(), None, "{name}");
    }
    assert!(seen > 100, "{seen}");
}

/// `rtsp-types` sorts fields by name and joins repeated ones.
fn same_fields<'a>(
    theirs: impl Iterator<Item = (&'a rtsp_types::HeaderName, &'a rtsp_types::HeaderValue)>,
    ours: &Headers,
) {
    let theirs: Vec<_> = theirs.collect();
    for (name, value) in &theirs {
        let joined = ours.get_all(name.as_str()).collect::<Vec<_>>().join(", ");
        assert_eq!(joined, value.as_str().trim(), "{name}");
    }
    assert!(ours.iter().all(|(name, _)| theirs.iter().any(|(n, _)| n.as_str().eq_ignore_ascii_case(name))));
}

/// ST3: a reply and a frame in one segment are both delivered.
#[test]
fn reply_and_frames_in_one_segment_are_both_delivered() {
    let mut bytes = b"RTSP/1.0 200 OK\r\nCSeq: 5\r\n\r\n".to_vec();
    bytes.extend(frame(0, b"one"));
    bytes.extend(frame(2, b"two"));
    let outcome = one_shot(Strictness::Upstream, &bytes);
    assert_eq!(messages(&outcome).len(), 1);
    assert_eq!(frames(&outcome), [(0, &b"one"[..]), (2, b"two")]);
}

/// ST2: SDP bytes arrive unchanged, `$` inside a body is body (RTSP-40), at every split.
#[test]
fn dollar_inside_a_body_is_body_at_every_split() {
    let body = b"v=0\r\n$\x00\x00\x03abc\r\ns=\xff\xfe\r\n\r\n$$";
    let mut bytes = b"ANNOUNCE rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nContent-Length: ".to_vec();
    bytes.extend(format!("{}\r\n\r\n", body.len()).as_bytes());
    bytes.extend(body);
    bytes.extend(frame(1, &[0x24; 300]));
    bytes.extend(b"\r\n\nOPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n");
    let whole = one_shot(Strictness::Downstream, &bytes);
    assert_eq!(whole.error, None);
    let [Message::Request(announce), Message::Request(options)] = messages(&whole)[..] else {
        panic!("{whole:?}")
    };
    assert_eq!((&announce.body[..], options.cseq()), (&body[..], Some(2)));
    assert_eq!(frames(&whole), [(1, &[0x24; 300][..])]);
    for at in 1..bytes.len() {
        let (first, second) = bytes.split_at(at);
        assert_eq!(demultiplex(Strictness::Downstream, LIMITS(), [first, second]), whole, "at {at}");
    }
}

/// ST4: constant stack, and constant memory.
#[test]
fn million_empty_frames_are_skipped() {
    let empty = [b'$', 7, 0, 0].repeat(1000);
    let mut demux = Demux::new(Strictness::Downstream, LIMITS());
    for _ in 0..1000 {
        demux.feed(&empty);
        assert_eq!(demux.poll(), Ok(None));
    }
    assert_eq!(demux.empty_frames(), 1_000_000);
    assert!(demux.capacity() <= 16 * 1024, "{}", demux.capacity());

    let outcome = one_shot(Strictness::Downstream, &[b'$', 7, 0, 0].repeat(1_000_000));
    assert_eq!((outcome.items.len(), outcome.error, outcome.empty_frames), (0, None, 1_000_000));
}

#[test]
fn frame_payload_shares_the_read_buffer() {
    let mut demux = Demux::new(Strictness::Upstream, LIMITS());
    let buffer = demux.read_buf();
    buffer.extend_from_slice(&frame(0, &[1; 100]));
    let address = buffer.as_ptr() as usize + 4;
    let Ok(Some(Item::Frame { payload, .. })) = demux.poll() else { panic!() };
    assert_eq!(payload.as_ptr() as usize, address);
}

/// SEC-7: the length field of a frame allocates nothing.
#[test]
fn declared_lengths_allocate_nothing() {
    let mut demux = Demux::new(Strictness::Downstream, LIMITS());
    demux.feed(&[b'$', 0, 0xff, 0xff, 1, 2, 3]);
    assert_eq!((demux.poll(), demux.pending()), (Ok(None), Pending::Frame));
    assert!(demux.capacity() < 4096);
    let mut demux = Demux::new(Strictness::Downstream, LIMITS());
    demux.feed(b"ANNOUNCE rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 65536\r\n\r\n");
    assert_eq!((demux.poll(), demux.pending()), (Ok(None), Pending::Body(65536)));
    assert!(demux.capacity() < 4096);
}

/// ST12, budget: what an idle connection pins.
#[test]
fn idle_connection_pins_little_memory() {
    let (_, bytes, _) = CONVERSATIONS.iter().find(|(name, _, _)| *name == "gst-play-tcp").unwrap();
    let mut demux = Demux::new(Strictness::Downstream, LIMITS());
    for piece in bytes.chunks(700) {
        demux.read_buf().extend_from_slice(piece);
        while let Ok(Some(_)) = demux.poll() {}
    }
    demux.read_buf();
    assert!(demux.capacity() <= 16 * 1024, "{}", demux.capacity());
}

#[test]
fn read_buffer_is_given_back_between_messages_and_kept_between_frames() {
    let mut demux = Demux::new(Strictness::Downstream, LIMITS());
    let mut feed = |bytes: &[u8]| {
        demux.read_buf().extend_from_slice(bytes);
        while let Ok(Some(_)) = demux.poll() {}
        demux.capacity()
    };
    let options = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n";
    assert_eq!(feed(options), 0);
    assert!(feed(&frame(0, &[1; 100])) > 0, "the next frame comes at once");
    assert_eq!(feed(options), 0);
    assert!(feed(b"OPTIONS *") > 0, "what has come of a message stays");
    assert_eq!(feed(b" RTSP/1.0\r\nCSeq: 2\r\n\r\n"), 0);
    assert_eq!(feed(b""), 0, "nor is room kept that was made in vain");
}

/// A camera's burst makes the buffer grow, so that one read takes what is there.
#[test]
fn read_buffer_grows_while_reads_fill_it() {
    let mut demux = Demux::new(Strictness::Upstream, LIMITS());
    let packet = frame(0, &[0x80; 1400]);
    let mut feed: Vec<u8> = packet.repeat(800);
    while !feed.is_empty() {
        let buffer = demux.read_buf();
        let room = (buffer.capacity() - buffer.len()).min(feed.len());
        assert!(room >= MIN_ROOM || room == feed.len());
        buffer.extend_from_slice(&feed[..room]);
        feed.drain(..room);
        while let Ok(Some(_)) = demux.poll() {}
    }
    assert!((MAX_CHUNK / 2..=2 * MAX_CHUNK).contains(&demux.chunk), "{}", demux.chunk);
}

#[test]
fn byte_that_starts_nothing_is_a_boundary_error_for_good() {
    let mut bytes = frame(0, b"x");
    bytes.extend(b"\r\n\x80OPTIONS");
    let mut demux = Demux::new(Strictness::Upstream, LIMITS());
    demux.feed(&bytes);
    assert!(matches!(demux.poll(), Ok(Some(Item::Frame { .. }))));
    let error = ParseError { offset: 7, rule: Rule::Boundary };
    assert_eq!(demux.poll(), Err(error));
    demux.feed(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    assert_eq!(demux.poll(), Err(error));
}

#[test]
fn frame_over_its_limit_ends_the_stream() {
    let limits = ParseLimits { frame: 4096, ..LIMITS() };
    let good = demultiplex(Strictness::Downstream, limits, [&frame(0, &[1; 4096])[..]]);
    assert_eq!(frames(&good).len(), 1);
    let bad = demultiplex(Strictness::Downstream, limits, [&frame(0, &[1; 4097])[..]]);
    assert_eq!(bad.error, Some(ParseError { offset: 0, rule: Rule::FrameLength }));
}

prop_compose! {
    fn header()(name in "X-[A-Za-z0-9-]{1,12}", value in "([!-~]([ -~]{0,40}[!-~])?)?") -> (String, String) {
        (name, value)
    }
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 1..200)]
}

prop_compose! {
    fn request()(
        method in "[A-Z][A-Z_]{0,11}", uri in "rtsp://[a-z]{1,10}/[!-~]{0,40}", cseq in any::<u32>(),
        fields in prop::collection::vec(header(), 0..8), body in body()
    ) -> Message {
        let mut request = Request::new(Method::from_token(&method), uri).with("CSeq", cseq.to_string());
        for (name, value) in fields {
            request.headers.push(name, value);
        }
        request.body = body.into();
        Message::Request(request)
    }
}

prop_compose! {
    fn response()(
        status in 100u16..1000, reason in "([!-~]([ -~]{0,20}[!-~])?)?", cseq in any::<u32>(),
        fields in prop::collection::vec(header(), 0..8), body in body()
    ) -> Message {
        let mut response = Response::new(Status(status)).with("CSeq", cseq.to_string());
        response.reason = reason;
        for (name, value) in fields {
            response.headers.push(name, value);
        }
        response.body = body.into();
        Message::Response(response)
    }
}

fn unit() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        request().prop_map(|message| crate::write::message(&message).to_vec()),
        response().prop_map(|message| crate::write::message(&message).to_vec()),
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(c, payload)| frame(c, &payload)),
        Just(b"\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 1..6),
        Just(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ]
}

proptest! {
    /// RTSP-40 for streams that are mostly well-formed, from viewers and cameras.
    #[test]
    fn any_split_gives_the_same_result(
        units in prop::collection::vec(unit(), 0..12), cuts in prop::collection::vec(1u8..64, 1..16)
    ) {
        let stream = units.concat();
        for strictness in [Strictness::Downstream, Strictness::Upstream] {
            let whole = one_shot(strictness, &stream);
            prop_assert_eq!(&demultiplex(strictness, LIMITS(), pieces(&stream, &cuts)), &whole);
            prop_assert_eq!(&demultiplex(strictness, LIMITS(), stream.chunks(1)), &whole);
        }
    }

    /// The same with limits so small that they decide.
    #[test]
    fn any_split_breaks_the_same_limit(
        units in prop::collection::vec(unit(), 0..6), cuts in prop::collection::vec(1u8..64, 1..16)
    ) {
        let stream = units.concat();
        let limits = ParseLimits {
            start_line: 40, header_line: 30, headers: 3, head: 90, body_sdp: 100, body: 50, frame: 100,
        };
        for strictness in [Strictness::Downstream, Strictness::Upstream] {
            let whole = demultiplex(strictness, limits, [&stream[..]]);
            prop_assert_eq!(&demultiplex(strictness, limits, pieces(&stream, &cuts)), &whole);
            prop_assert_eq!(&demultiplex(strictness, limits, stream.chunks(1)), &whole);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..400)) {
        split_invariance(&data);
    }

    #[test]
    fn what_is_written_is_what_is_parsed(message in prop_oneof![request(), response()]) {
        write_identity(&message, Strictness::Downstream);
        write_identity(&message, Strictness::Upstream);
    }

    #[test]
    fn rtsp_types_agrees_on_what_is_written(message in prop_oneof![request(), response()]) {
        let bytes = crate::write::message(&message);
        if let Ok((theirs, used)) = rtsp_types::Message::<Vec<u8>>::parse(&bytes[..]) {
            prop_assert_eq!(used, bytes.len());
            match (theirs, message) {
                (rtsp_types::Message::Request(theirs), Message::Request(ours)) => {
                    prop_assert_eq!(&theirs.body()[..], &ours.body[..]);
                    prop_assert_eq!(<&str>::from(theirs.method()), ours.method.as_str());
                }
                (rtsp_types::Message::Response(theirs), Message::Response(ours)) => {
                    prop_assert_eq!(&theirs.body()[..], &ours.body[..]);
                    prop_assert_eq!(u16::from(theirs.status()), ours.status.0);
                }
                (theirs, ours) => prop_assert!(false, "{:?} against {:?}", theirs, ours),
            }
        }
    }
}
