//! Bytes that are no good RTSP, and peers that hold connections: sections 10 and 11 of the protocols.
//!
//! Every case runs beside eight viewers of another stream who must not notice it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use msm_tests::process::Scratch;
use msm_tests::proxy::Proxy;
use msm_tests::rtsp::{Connection, authority};

use crate::healthy::{Healthy, LIMIT, proxy, wait_for_metric};

/// An address of its own for every attacker: limits count by address.
pub(crate) fn attacker(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 6, host))
}

fn connect(proxy: &Proxy, host: u8) -> TcpStream {
    let connection = Connection::open_from(&proxy.url("x"), Some(attacker(host))).unwrap();
    let stream = connection.into_parts().0;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Everything until the proxy closes; `None` when it does not within the limit.
fn read_to_close(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Some(String::from_utf8_lossy(&text).into_owned()),
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(_) => return Some(String::from_utf8_lossy(&text).into_owned()),
        }
    }
}

/// What comes until it contains `mark`, or until nothing more comes.
fn read_until(stream: &mut TcpStream, mark: &str) -> String {
    let mut text = String::new();
    let mut chunk = [0; 8192];
    while !text.contains(mark) {
        match stream.read(&mut chunk) {
            Ok(length) if length > 0 => text += &String::from_utf8_lossy(&chunk[..length]),
            _ => break,
        }
    }
    text
}

/// Status codes of the answers in a text.
fn statuses(text: &str) -> Vec<u16> {
    text.lines().filter_map(|line| line.strip_prefix("RTSP/1.0 ")?.split(' ').next()?.parse().ok()).collect()
}

/// One text per number, behind each other.
fn repeated(numbers: std::ops::RangeInclusive<u32>, text: impl Fn(u32) -> String) -> String {
    numbers.map(text).collect::<Vec<_>>().concat()
}

/// What must happen to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Open,
    Closed,
}

#[test]
fn every_bad_request_gets_its_status_and_only_lost_framing_costs_the_connection() {
    use Then::{Closed, Open};
    let scratch = Scratch::new("requests").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("healthy");
    let many_headers = repeated(1..=65, |n| format!("X-{n}: 1\r\n"));
    let wide_head = repeated(1..=20, |n| format!("X-{n}: {}\r\n", "a".repeat(2000)));
    let sdp = |body: &str| {
        format!(
            "ANNOUNCE {} RTSP/1.0\r\nCSeq: 1\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}",
            proxy.url("new"),
            body.len()
        )
    };
    let head = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n";
    let cases: Vec<(&str, String, u16, Then)> = vec![
        ("no CSeq", format!("OPTIONS {url} RTSP/1.0\r\n\r\n"), 400, Open),
        ("a CSeq that is no number", format!("OPTIONS {url} RTSP/1.0\r\nCSeq: x\r\n\r\n"), 400, Open),
        // RTSP-4: which of two a middlebox would read is in doubt.
        ("two CSeq", format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\nCSeq: 2\r\n\r\n"), 400, Closed),
        (
            "two Session",
            format!("PLAY {url} RTSP/1.0\r\nCSeq: 1\r\nSession: a\r\nSession: b\r\n\r\n"),
            400,
            Closed,
        ),
        (
            "two Authorization",
            format!("PLAY {url} RTSP/1.0\r\nCSeq: 1\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n"),
            400,
            Closed,
        ),
        (
            "two Content-Length",
            format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"),
            400,
            Closed,
        ),
        (
            "a Content-Length of eight digits",
            format!("ANNOUNCE {url} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 10000000\r\n\r\n"),
            400,
            Closed,
        ),
        (
            "a body that is announced too large",
            format!("ANNOUNCE {url} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 9999999\r\n\r\n"),
            413,
            Closed,
        ),
        (
            "parameters over 4 KiB",
            format!("SET_PARAMETER {url} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 4097\r\n\r\n"),
            413,
            Closed,
        ),
        (
            "Transfer-Encoding",
            format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            400,
            Closed,
        ),
        ("an unknown method", format!("DANCE {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n"), 501, Open),
        ("RTSP 2.0", format!("OPTIONS {url} RTSP/2.0\r\nCSeq: 1\r\n\r\n"), 505, Open),
        (
            "an option tag",
            format!("DESCRIBE {url} RTSP/1.0\r\nCSeq: 1\r\nRequire: funky-feature\r\n\r\n"),
            551,
            Open,
        ),
        ("no session", format!("PLAY {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n"), 454, Open),
        (
            "a session that does not exist",
            format!("PLAY {url} RTSP/1.0\r\nCSeq: 1\r\nSession: 12345678\r\n\r\n"),
            454,
            Open,
        ),
        ("a stream that does not exist", format!("DESCRIBE {url}no RTSP/1.0\r\nCSeq: 1\r\n\r\n"), 404, Open),
        ("a path upwards", format!("DESCRIBE {url}/../x RTSP/1.0\r\nCSeq: 1\r\n\r\n"), 400, Open),
        (
            "a long URI",
            format!("DESCRIBE {url}/{} RTSP/1.0\r\nCSeq: 1\r\n\r\n", "x".repeat(2060)),
            414,
            Closed,
        ),
        ("a long request line", format!("OPTIONS {}", "x".repeat(4000)), 414, Closed),
        (
            "a header line over 8 KiB",
            format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\nX: {}\r\n\r\n", "y".repeat(9000)),
            400,
            Closed,
        ),
        ("65 headers", format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\n{many_headers}\r\n"), 400, Closed),
        ("a head over 32 KiB", format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\n{wide_head}\r\n"), 400, Closed),
        ("garbage", "\u{1}\u{2}\u{3}\u{4}garbage\r\n\r\n".to_owned(), 400, Closed),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".to_owned(), 400, Closed),
        ("a request of another protocol", "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400, Closed),
        (
            "33 media",
            sdp(&format!("{head}{}", "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n".repeat(33))),
            400,
            Open,
        ),
        ("513 lines", sdp(&format!("{head}m=audio 0 RTP/AVP 0\r\n{}", "a=x\r\n".repeat(513))), 400, Open),
        (
            "an SDP line over 4 KiB",
            sdp(&format!("{head}m=audio 0 RTP/AVP 0\r\na={}\r\n", "z".repeat(4200))),
            400,
            Open,
        ),
        ("no SDP at all", sdp("hello"), 400, Open),
    ];
    let before = proxy.metric("msm_rejected_inputs_total", &[]).unwrap();
    let mut wrong = Vec::new();
    for (what, bytes, status, then) in cases {
        let mut stream = connect(&proxy, 1);
        stream.write_all(bytes.as_bytes()).unwrap();
        let (expected, seen) = if then == Open {
            // A second request tells open from closed.
            write!(stream, "OPTIONS {url} RTSP/1.0\r\nCSeq: 77\r\n\r\n").unwrap();
            (vec![status, 200], Some(statuses(&read_until(&mut stream, "CSeq: 77\r\n"))))
        } else {
            (vec![status], read_to_close(&mut stream).as_deref().map(statuses))
        };
        if seen.as_ref() != Some(&expected) {
            wrong.push(format!("{what}: {seen:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(proxy.metric("msm_rejected_inputs_total", &[]).unwrap() >= before + 10.0);
    healthy.check(&proxy, 16).unwrap();
}

#[test]
fn two_hundred_pipelined_requests_are_answered_in_order_and_a_deaf_sender_is_held_back() {
    let scratch = Scratch::new("pipelined").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("healthy");
    let mut stream = connect(&proxy, 2);
    let requests = repeated(1..=200, |n| format!("DESCRIBE {url} RTSP/1.0\r\nCSeq: {n}\r\n\r\n"));
    stream.write_all(requests.as_bytes()).unwrap();
    let text = read_until(&mut stream, "CSeq: 200\r\n");
    let order: Vec<u32> =
        text.lines().filter_map(|line| line.strip_prefix("CSeq: ")?.trim().parse().ok()).collect();
    assert_eq!(order, (1..=200).collect::<Vec<_>>());
    // One that never reads: what it may leave with us is bounded, and then it has to wait.
    let mut deaf = connect(&proxy, 3);
    deaf.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut written = 0_usize;
    while written < 256 << 20 {
        match deaf.write(requests.as_bytes()) {
            Ok(length) => written += length,
            Err(_) => break,
        }
    }
    assert!(written < 64 << 20, "{written} bytes of requests were taken from somebody who reads no answer");
    healthy.check(&proxy, 24).unwrap();
}

#[test]
fn a_million_empty_frames_cost_nothing_and_the_next_request_is_answered() {
    let scratch = Scratch::new("empty-frames").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let mut stream = connect(&proxy, 4);
    let frames = [b'$', 0, 0, 0].repeat(10_000);
    for _ in 0..100 {
        stream.write_all(&frames).unwrap();
    }
    stream
        .write_all(format!("OPTIONS {} RTSP/1.0\r\nCSeq: 9\r\n\r\n", proxy.url("healthy")).as_bytes())
        .unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"RTSP/1.0 200 OK");
    healthy.check(&proxy, 16).unwrap();
}

#[test]
fn frames_on_unknown_channels_are_dropped_and_the_thousandth_closes() {
    let scratch = Scratch::new("channels").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let mut stream = connect(&proxy, 5);
    let frame = msm_tests::probe::frame(77, &[0x80; 40]);
    stream.write_all(&frame.repeat(900)).unwrap();
    stream
        .write_all(format!("OPTIONS {} RTSP/1.0\r\nCSeq: 9\r\n\r\n", proxy.url("healthy")).as_bytes())
        .unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"RTSP/1.0 200 OK", "nine hundred are borne");
    stream.write_all(&frame.repeat(200)).ok();
    assert!(read_to_close(&mut stream).is_some(), "still open after 1,100 stray frames");
    wait_for_metric(&proxy, "msm_rejected_inputs_total", &["stray_frames"], 1.0).unwrap();
    healthy.check(&proxy, 16).unwrap();
}

#[test]
fn slow_and_mute_connections_are_closed_at_their_deadlines() {
    let scratch = Scratch::new("slow").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let url = proxy.url("healthy");
    let options = format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    // What is sent at once, what dribbles after it, and the deadline that ends it (section 10).
    let cases: Vec<(&str, String, &[u8], u64)> = vec![
        ("first_byte", String::new(), b"", 5),
        ("head", format!("OPTIONS {url} RTSP/1.0\r\nX: "), b"x", 10),
        (
            "body",
            format!("ANNOUNCE {url} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 4000\r\n\r\nv=0\r\n"),
            b"x",
            10,
        ),
        ("frame", format!("{options}$\u{0}\u{f}\u{f}"), b"x", 10),
        ("idle", options.clone(), b"", 30),
    ];
    std::thread::scope(|scope| {
        for (host, (reason, first, dribble, seconds)) in cases.iter().enumerate() {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut peers: Vec<TcpStream> = (0..20).map(|_| connect(proxy, 10 + host as u8)).collect();
                let started = Instant::now();
                for peer in &mut peers {
                    peer.write_all(first.as_bytes()).unwrap();
                    peer.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                }
                let mut earliest = None;
                let mut chunk = [0; 4096];
                while !peers.is_empty() {
                    let waited = started.elapsed();
                    assert!(
                        waited < Duration::from_secs(*seconds) + LIMIT,
                        "{reason}: {} of 20 are open after {waited:?}",
                        peers.len()
                    );
                    peers.retain_mut(|peer| {
                        peer.write_all(dribble).ok();
                        match peer.read(&mut chunk) {
                            Ok(0) => false,
                            Ok(_) => true,
                            Err(error) => error.kind() == ErrorKind::WouldBlock,
                        }
                    });
                    if peers.len() < 20 && earliest.is_none() {
                        earliest = Some(started.elapsed());
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
                // Before its time nobody is cut off; a second is the grain of this loop.
                let earliest = earliest.unwrap();
                assert!(
                    earliest + Duration::from_secs(1) >= Duration::from_secs(*seconds),
                    "{reason}: {earliest:?}"
                );
                wait_for_metric(proxy, "msm_rejected_inputs_total", &[&format!("\"{reason}\"")], 20.0)
                    .unwrap();
            });
        }
    });
    healthy.check(&proxy, 16).unwrap();
}

#[test]
fn one_address_never_takes_every_connection() {
    let scratch = Scratch::new("connections").unwrap();
    let proxy = proxy(scratch.path(), &["--max-connections", "64"]).unwrap();
    let healthy = Healthy::start(&proxy).unwrap();
    let address: SocketAddr = authority(&proxy.url("x")).unwrap().parse().unwrap();
    let open: Vec<TcpStream> = (0..100).map(|_| connect(&proxy, 20)).collect();
    wait_for_metric(&proxy, "msm_rejected_inputs_total", &["connections_of_address"], 68.0).unwrap();
    // Somebody else still gets through.
    let mut other = connect(&proxy, 21);
    write!(other, "OPTIONS rtsp://{address}/ RTSP/1.0\r\nCSeq: 1\r\n\r\n").unwrap();
    let mut answer = [0; 15];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"RTSP/1.0 200 OK");
    drop(open);
    healthy.check(&proxy, 16).unwrap();
}
