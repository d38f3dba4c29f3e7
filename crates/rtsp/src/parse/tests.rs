use super::*;
use crate::demux::Item;
use crate::demux::check::demultiplex;

fn parse(strictness: Strictness, text: &[u8]) -> Result<Vec<Parsed>, ParseError> {
    let outcome = demultiplex(strictness, ParseLimits::default(), [text]);
    let parsed = outcome.items.into_iter().filter_map(|item| match item {
        Item::Message(parsed) => Some(parsed),
        Item::Frame { .. } => None,
    });
    match outcome.error {
        Some(error) => Err(error),
        None => Ok(parsed.collect()),
    }
}

fn request(text: &str) -> Request {
    match &parse(Strictness::Downstream, text.as_bytes()).unwrap()[..] {
        [Parsed::Message(Message::Request(request))] => request.clone(),
        other => panic!("{text:?}: {other:?}"),
    }
}

fn response(text: &[u8]) -> Response {
    match &parse(Strictness::Upstream, text).unwrap()[..] {
        [Parsed::Message(Message::Response(response))] => response.clone(),
        other => panic!("{other:?}"),
    }
}

/// The rule that ends the connection, and the byte.
fn fatal(text: impl AsRef<[u8]>) -> (Rule, u64) {
    let error = parse(Strictness::Downstream, text.as_ref()).unwrap_err();
    assert!(error.is_fatal());
    (error.rule, error.offset)
}

/// The rule that is answered while the connection goes on: the OPTIONS behind it is understood.
fn soft(text: impl AsRef<[u8]>) -> (Rule, Option<u32>) {
    let mut stream = text.as_ref().to_vec();
    stream.extend(b"OPTIONS * RTSP/1.0\r\nCSeq: 99\r\n\r\n");
    let parsed = parse(Strictness::Downstream, &stream).unwrap();
    let [Parsed::Malformed { error, cseq, .. }, Parsed::Message(_)] = &parsed[..] else {
        panic!("{parsed:?}")
    };
    assert!(!error.is_fatal());
    (error.rule, *cseq)
}

/// Conformance case 2, RTSP-2.
#[test]
fn cseq_of_vlc_and_of_cameras_is_read() {
    assert_eq!(request("SETUP rtsp://h/a RTSP/1.0\r\nCSeq: 0\r\n\r\n").cseq(), Some(0));
    assert_eq!(request("OPTIONS * RTSP/1.0\r\nCseq:7\r\n\r\n").cseq(), Some(7));
    assert_eq!(request("OPTIONS * RTSP/1.0\r\ncseq: \t 7 \t\r\n\r\n").cseq(), Some(7));
    assert_eq!(request("OPTIONS * RTSP/1.0\r\nCSeq: 0007\r\n\r\n").cseq(), Some(7));
    assert_eq!(response(b"RTSP/1.0 200 OK\r\nCseq: 1 \r\n\r\n").cseq(), Some(1));
}

/// Conformance case 2, RTSP-2: `400` without CSeq, connection open.
#[test]
fn request_without_a_numeric_cseq_is_answered_and_the_connection_lives() {
    assert_eq!(soft("OPTIONS * RTSP/1.0\r\n\r\n"), (Rule::CSeq, None));
    for value in ["", "x", "-1", "+1", "1.0", "4294967296", "1 2"] {
        assert_eq!(
            soft(format!("OPTIONS * RTSP/1.0\r\nCSeq: {value}\r\n\r\n")),
            (Rule::CSeq, None),
            "{value}"
        );
    }
    let status = Rule::CSeq.status();
    assert_eq!(status, Status::BAD_REQUEST);
}

/// Conformance case 2, RTSP-4.
#[test]
fn repeated_framing_fields_close_and_soft_ones_do_not() {
    for field in ["CSeq: 1", "cseq: 2", "Session: a", "Authorization: Basic x", "Content-Length: 0"] {
        let text = format!("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n{field}\r\n{field}\r\n\r\n");
        assert_eq!(fatal(&text).0, Rule::Duplicate, "{field}");
    }
    let text = "SETUP rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP\r\nTransport: RTP/AVP/TCP\r\n\r\n";
    assert_eq!(fatal(text), (Rule::Duplicate, 56));
    let text = "SETUP rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP\r\nTransport: RTP/AVP\r\n\r\n";
    assert_eq!(request(text).headers.get_all("Transport").count(), 2);
    let text = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: a\r\nUser-Agent: b\r\n\r\n";
    assert_eq!(request(text).headers.get("user-agent"), Some("a"));
}

/// SEC-9.
#[test]
fn what_could_smuggle_a_message_closes() {
    let head = "SET_PARAMETER rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\n";
    let at = head.len() as u64;
    for (line, rule) in [
        ("Transfer-Encoding: chunked\r\n", Rule::TransferEncoding),
        ("Content-Length: \r\n", Rule::ContentLength),
        ("Content-Length: +5\r\n", Rule::ContentLength),
        ("Content-Length: -1\r\n", Rule::ContentLength),
        ("Content-Length: 0x5\r\n", Rule::ContentLength),
        ("Content-Length: 5, 5\r\n", Rule::ContentLength),
        ("Content-Length: 00000005\r\n", Rule::ContentLength),
        ("Content-Length : 5\r\n", Rule::HeaderName),
        ("Content-Length\r\n", Rule::HeaderName),
        (": x\r\n", Rule::HeaderName),
        ("A B: x\r\n", Rule::HeaderName),
        (" folded\r\n", Rule::Folded),
        ("\tfolded\r\n", Rule::Folded),
    ] {
        assert_eq!(fatal(format!("{head}{line}\r\n")), (rule, at), "{line:?}");
    }
    for (line, rule, byte) in [
        ("X: y\n", Rule::LineEnd, 4),
        ("X: a\rb\r\n", Rule::LineEnd, 4),
        ("X: y\r\r\n", Rule::LineEnd, 4),
        ("X: a\0b\r\n", Rule::Control, 4),
        ("X: \x1b[2J\r\n", Rule::Control, 3),
        ("X: \x7f\r\n", Rule::Control, 3),
    ] {
        assert_eq!(fatal(format!("{head}{line}\r\n")), (rule, at + byte), "{line:?}");
    }
    assert_eq!(fatal("OPTIONS * RTSP/1.0\nCSeq: 1\n\n"), (Rule::LineEnd, 18));
}

#[test]
fn start_lines_that_are_none_close() {
    for line in [
        "OPTIONS",
        "OPTIONS *",
        "OPTIONS  * RTSP/1.0",
        "OPTIONS * RTSP/1.0 ",
        "O(S * RTSP/1.0",
        "OPTIONS * RTSP/1",
    ] {
        let (rule, offset) = fatal(format!("{line}\r\n"));
        assert!(matches!(rule, Rule::StartLine | Rule::Protocol) && offset == 0, "{line}: {rule}");
    }
    assert_eq!(fatal("DESCRIBE rtsp://h/my cam RTSP/1.0\r\n"), (Rule::StartLine, 0));
    assert_eq!(fatal("DESCRIBE rtsp://h/\t RTSP/1.0\r\n"), (Rule::StartLine, 0));
    assert_eq!(fatal("GET /x HTTP/1.1\r\n"), (Rule::Protocol, 0));
    assert_eq!(fatal("RTSP/1.0 2OO OK\r\n"), (Rule::StartLine, 0));
    assert_eq!(fatal("RTSP/1.0 1000 OK\r\n"), (Rule::StartLine, 0));
    for byte in [0u8, b' ', b'a', b'1', 0x80, 0xff] {
        assert_eq!(fatal([byte]), (Rule::Boundary, 0));
    }
}

/// RTSP-1: `505` with the CSeq, connection open.
#[test]
fn other_versions_are_answered_with_their_cseq() {
    for version in ["2.0", "0.9", "1.1", "10.0"] {
        assert_eq!(
            soft(format!("OPTIONS * RTSP/{version}\r\nCSeq: 3\r\n\r\n")),
            (Rule::Version, Some(3)),
            "{version}"
        );
    }
    assert_eq!(Rule::Version.status(), Status::VERSION_NOT_SUPPORTED);
}

/// SEC-10.
#[test]
fn raw_non_ascii_is_answered_and_keeps_the_framing() {
    let text = "ANNOUNCE rtsp://h/\u{fc} RTSP/1.0\r\nCSeq: 3\r\nContent-Length: 3\r\n\r\nv=0";
    assert_eq!(soft(text), (Rule::NonAscii, Some(3)));
    assert_eq!(soft(b"OPTIONS * RTSP/1.0\r\nCSeq: 3\r\nX: \xff\xfe\r\n\r\n"), (Rule::NonAscii, Some(3)));
    assert_eq!(fatal("OPTIONS * RTSP/1.0\r\nX\u{fc}: 3\r\n\r\n").0, Rule::HeaderName);
}

/// Section 10, each limit at its last good and first bad value.
#[test]
fn limits_hold_to_the_byte() {
    let line = |length: usize| {
        let fill = length - "DESCRIBE rtsp:// RTSP/1.0".len();
        format!("DESCRIBE rtsp://{} RTSP/1.0\r\nCSeq: 1\r\n\r\n", "a".repeat(fill))
    };
    assert_eq!(request(&line(2112)).uri.len(), 2112 - 18);
    assert_eq!(fatal(line(2113)), (Rule::StartLineLength, 2114));
    assert_eq!(Rule::StartLineLength.status(), Status::URI_TOO_LONG);

    let head = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n";
    let field = |length: usize| format!("{head}X: {}\r\n\r\n", "a".repeat(length - 3));
    request(&field(8 * 1024));
    assert_eq!(fatal(field(8 * 1024 + 1)), (Rule::HeaderLength, head.len() as u64 + 8194));

    let fields = |count: usize| format!("{head}{}\r\n", "X: y\r\n".repeat(count - 1));
    assert_eq!(request(&fields(64)).headers.len(), 64);
    assert_eq!(fatal(fields(65)), (Rule::HeaderCount, head.len() as u64 + 63 * 6));

    let whole = |length: usize| {
        let fill = length - head.len() - 2;
        let (lines, rest) = (fill / 8000, fill % 8000);
        let line = |length: usize| format!("X: {}\r\n", "a".repeat(length - 5));
        format!("{head}{}{}\r\n", line(8000).repeat(lines), line(rest))
    };
    request(&whole(32 * 1024));
    assert_eq!(fatal(whole(32 * 1024 + 1)), (Rule::HeadLength, 32 * 1024));
}

/// Section 10: refused when the head is complete, before any byte of the body.
#[test]
fn bodies_over_their_limit_are_refused_by_the_head() {
    let head = |method: &str, fields: &str, length: usize| {
        format!("{method} rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\n{fields}Content-Length: {length}\r\n\r\n")
    };
    for (method, fields, limit) in [
        ("ANNOUNCE", "", 65536),
        ("SET_PARAMETER", "", 4096),
        ("GET_PARAMETER", "Content-Type: text/parameters\r\n", 4096),
        ("SET_PARAMETER", "Content-Type: Application/SDP;x=y\r\n", 65536),
    ] {
        let good = format!("{}{}", head(method, fields, limit), "a".repeat(limit));
        assert_eq!(request(&good).body.len(), limit, "{method}");
        let bad = head(method, fields, limit + 1);
        assert_eq!(fatal(&bad), (Rule::BodyLength, bad.len() as u64), "{method}");
    }
    assert_eq!(Rule::BodyLength.status(), Status::CONTENT_TOO_LARGE);
    let answer = [&b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 5000\r\n\r\n"[..], &[b'a'; 5000]].concat();
    assert_eq!(response(&answer).body.len(), 5000);
}

#[test]
fn body_is_exactly_as_long_as_declared() {
    let text = "SET_PARAMETER * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 5\r\n\r\na: b\nOPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n";
    let parsed = parse(Strictness::Downstream, text.as_bytes()).unwrap();
    let [Parsed::Message(Message::Request(first)), Parsed::Message(Message::Request(second))] = &parsed[..]
    else {
        panic!("{parsed:?}")
    };
    assert_eq!((&first.body[..], second.cseq()), (&b"a: b\n"[..], Some(2)));
    assert!(request("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 0\r\n\r\n").body.is_empty());
}

/// What real cameras send, and what is like it.
#[test]
fn sloppy_cameras_are_understood() {
    let answer = response(
        b"RTSP/1.0 200 OK\nCseq: 2\nSession:        708345999;timeout=60\nno colon here\n X: continued\n\
          Content-Length : 3\nServer: caf\xe9\x01\x02\nSession: 708345999\nContent-Length: 3\n\nv=0",
    );
    assert_eq!(answer.cseq(), Some(2));
    assert_eq!(answer.headers.get("Session"), Some("708345999;timeout=60"));
    assert_eq!(answer.headers.get("Server"), Some("caf\u{fffd}"));
    assert_eq!(&answer.body[..], b"v=0");
    assert_eq!(answer.headers.get("X"), None);
    assert_eq!(response(b"RTSP/1.0 454 \r\n\r\n").status, Status::SESSION_NOT_FOUND);
    assert_eq!(response(b"RTSP/1.0 200\r\n\r\n").reason, "");
    assert_eq!(response(b"RTSP/1.1 200 OK\r\nCSeq: 1\r\n\r\n").version.minor, 1);
}

#[test]
fn contradicting_lengths_of_a_camera_close() {
    let error = parse(Strictness::Upstream, b"RTSP/1.0 200 OK\nContent-Length: 3\nContent-Length: 4\n\n")
        .unwrap_err();
    assert_eq!(error.rule, Rule::Duplicate);
}

#[test]
fn rules_have_distinct_stable_names() {
    let mut names: Vec<_> = Rule::ALL.iter().map(|rule| rule.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Rule::ALL.len());
    assert!(Rule::ALL.iter().all(|rule| (400..600).contains(&rule.status().0)));
    assert_eq!(ParseError { offset: 7, rule: Rule::Folded }.to_string(), "folded at byte 7");
}
