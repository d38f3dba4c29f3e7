//! Bodies of the fuzz targets (`tests/fuzz`): one function per parser that a peer reaches, each total and
//! with an invariant to break. A plain `cargo test` replays the committed corpora through them.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::auth::{
    AuthRequest, Authorization, BasicPolicy, ClientAuth, ConnAuth, Credentials, DigestOffer, ServerAuth,
    Verdict, parse_challenges,
};
use crate::conn::{Conn, ConnEvent, ConnLimits, Role};
use crate::demux::Item;
use crate::demux::check::demultiplex;
use crate::headers::{Range, RtpInfo, SessionHeader, methods};
use crate::message::{Message, Method, Response, Status};
use crate::parse::{ParseLimits, Parsed, Strictness};
use crate::sdp::{Detail, ProfilePolicy, Sdp, TimestampPolicy, ViewerEdit};
use crate::transport::{
    LowerPolicy, PortRange, Profile, TransportPolicy, TransportSpec, accept_answer, check_destination,
    negotiate, parse_transport,
};
use crate::url::{RequestTarget, SourceUrl, content_base, join_control, strip_userinfo, track_url};

/// Parser and demultiplexer: any cut gives the same units, a parsed message survives writing (RTSP-40). The
/// first byte says how many of the following ones are cut lengths.
pub fn rtsp(data: &[u8]) {
    crate::demux::check::split_invariance(data);
}

/// `Transport` (RTSP-12 to RTSP-17): what is chosen is written so that it reads back the same.
pub fn transport(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let peer = [10, 0, 0, 1].into();
    let asked = TransportSpec::udp_request(Profile::Avp, PortRange::pair(8062, 8063));
    let _ = accept_answer(Some(&text), &asked);
    let Ok(specs) = parse_transport(&text) else { return };
    for lower in [LowerPolicy::Any, LowerPolicy::UdpOnly, LowerPolicy::TcpOnly] {
        let policy = TransportPolicy { lower, ..TransportPolicy::default() };
        let Ok(spec) = negotiate(&specs, policy) else { continue };
        let _ = check_destination(spec, peer);
        let answer = spec.udp_answer(PortRange::pair(8060, 8061), peer, Some(1));
        for written in [
            answer.to_string(),
            spec.tcp_answer(crate::transport::ChannelRange::pair(0, 1), None).to_string(),
        ] {
            let read = parse_transport(&written).expect("what we write is a transport");
            assert_eq!(read.len(), 1, "{written}");
        }
        assert_eq!(parse_transport(&answer.to_string()).ok().and_then(|mut s| s.pop()), Some(answer));
    }
}

/// SDP: an edit is idempotent, keeps the number of media, and leaves no address of `o=` or `c=` (SDP-9).
pub fn sdp(data: &[u8]) {
    let Ok(source) = Sdp::parse(data) else { return };
    let tracks = source.tracks();
    assert!(tracks.iter().all(|track| track.clock_rate > 0));
    let default = ViewerEdit::new(1, 1, [10, 9, 8, 7].into());
    let other = ViewerEdit {
        detail: Detail::Minimal,
        profile: ProfilePolicy::AsSource,
        timestamps: TimestampPolicy::Transparent,
        hidden: vec!["camera.example".to_owned()],
        ..ViewerEdit::new(u64::MAX, 2, std::net::Ipv6Addr::LOCALHOST.into())
    };
    for edit in [default, other] {
        let once = source.for_viewer(&edit);
        let bytes = once.to_bytes();
        // Added lines may carry a description of the greatest size over the limits; then there is no second edit.
        if let Ok(again) = Sdp::parse(&bytes) {
            assert_eq!(again, once);
            assert_eq!(again.for_viewer(&edit), once);
        }
        let edited = once.tracks();
        assert_eq!(edited.len(), tracks.len());
        for (before, after) in tracks.iter().zip(&edited) {
            assert!(!after.has_keys && after.port == 0 && after.connection.is_none());
            assert_eq!(after.control, Some(crate::url::track_control(after.index)));
            assert_eq!(before.codec, after.codec);
        }
    }
}

/// Authentication: a challenge that we answer is answered in a form we can read; nothing that does not know
/// the password is granted.
pub fn auth(now: Instant, data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = parse_challenges(text.lines());
    let realm = ServerAuth {
        realm: "mesh".to_owned(),
        accounts: vec![Credentials::new("user", "a password that no corpus holds")],
        digest: DigestOffer::Sha256ThenMd5,
        basic: BasicPolicy::Allow,
    };
    let mut conn = ConnAuth::new();
    for line in text.lines() {
        let _ = Authorization::parse(line);
        let request =
            AuthRequest { method: &Method::Describe, uri: "rtsp://h/cam", authorization: Some(line) };
        let verdict = conn.verify(now, &realm, request, [7; 16]);
        assert!(matches!(verdict, Verdict::Unauthorized { .. }), "{line:?}");
    }
    let mut client = ClientAuth::new(Some(Credentials::new("us\"er", "p")), BasicPolicy::Allow);
    if client.handle_unauthorized(text.lines()).is_ok() {
        let value =
            client.authorization(&Method::Describe, "rtsp://h/cam", [1; 8]).expect("a challenge is there");
        assert!(!value.bytes().any(|b| b == b'\r' || b == b'\n'));
        assert!(Authorization::parse(&value).is_some(), "{value}");
    }
}

/// `Session`, `RTP-Info`, `Range`, `Public` of sources: what is written reads back the same.
pub fn headers(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        if let Ok(session) = SessionHeader::parse(line) {
            assert_eq!(SessionHeader::id_of(line), session.id);
            assert_eq!(SessionHeader::parse(&session.to_string()).as_ref(), Ok(&session));
        }
        let entries = RtpInfo::parse_list(line);
        if let Some(written) = RtpInfo::format_list(&entries) {
            let complete: Vec<_> =
                entries.iter().filter(|e| e.seq.is_some() && e.rtptime.is_some()).cloned().collect();
            assert_eq!(RtpInfo::parse_list(&written), complete, "{written}");
        }
        let _ = Range::parse(line);
        let _ = methods(line).len();
    }
}

/// URLs: lines are a request-URI, a base and a control; what comes out fits into a request line, and a
/// canonical name is its own name (SEC-9, SEC-10).
pub fn url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let [uri, base, control] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let local = ([10, 0, 0, 9], 8554).into();
    if let Ok(RequestTarget::Resource(url)) = RequestTarget::parse(uri) {
        assert!(url.name.is_ascii() && !url.name.split('/').any(|s| s == ".."));
        let again = RequestTarget::parse(&format!("/{}", url.name));
        assert_eq!(again.as_ref().map(RequestTarget::name), Ok(url.name.as_str()));
        let content_base = content_base(uri, local);
        if url.track.is_none() && content_base.len() < 2000 {
            let joined = RequestTarget::parse(&track_url(&content_base, 3));
            let Ok(RequestTarget::Resource(track)) = joined else { panic!("{joined:?}") };
            assert_eq!((track.track, track.is_same_stream(&url)), (Some(3), true), "{uri}");
        }
        let _ = url.media_index(&[Some(control), None], &url);
        let _ = url.is_parent_of(&url);
    }
    if let Ok(source) = SourceUrl::parse(uri) {
        assert!(!source.to_string().contains('@') || source.path.contains('@'));
        let base = source.control_base(Some(base), Some(control));
        assert!(base.bytes().all(|b| b.is_ascii_graphic()), "{base:?}");
    }
    let joined = join_control(base, Some(control));
    assert!(joined.bytes().all(|b| b.is_ascii_graphic()), "{joined:?}");
    let _ = strip_userinfo(uri);
}

/// A connection under arbitrary reads, answers, frames, partial writes and waits: what it writes is whole
/// messages and frames, answers in the order of the requests, and no frame of a held channel (RTSP-6,
/// RTSP-44).
pub fn conn(now: Instant, data: &[u8]) {
    const HELD: u8 = 3;
    let limits = ConnLimits { rtp_bytes: 8192, rtcp_bytes: 2048, ..ConnLimits::default() };
    let (rtp_bytes, outstanding) = (limits.rtp_bytes, limits.outstanding);
    let mut conn = Conn::new(Role::Server, limits, now);
    let mut now = now;
    let mut rest = data;
    let mut wire = Vec::new();
    let mut waiting: Vec<u32> = Vec::new();
    let mut asked: Vec<u32> = Vec::new();
    let mut closing = false;
    conn.hold_media(&[HELD]);
    while let Some((&step, after)) = rest.split_first() {
        let (argument, after) = after.split_first().map_or((0, after), |(a, after)| (*a, after));
        rest = after;
        match step % 7 {
            0 | 1 => {
                let (piece, after) = rest.split_at(usize::from(argument).min(rest.len()));
                rest = after;
                conn.handle_bytes(now, piece);
            }
            2 if !waiting.is_empty() => {
                let cseq = waiting.remove(usize::from(argument) % waiting.len());
                let response = Response::new(Status::OK).with("CSeq", cseq.to_string());
                assert!(conn.push_response(response, argument == 255, now) || closing, "{cseq} waits");
                closing |= argument == 255;
            }
            3 => {
                let _ = conn.push_rtp(
                    argument % 4,
                    &[0x80; 12],
                    Bytes::from(vec![argument; argument.into()]),
                    now,
                );
            }
            4 => {
                let _ = conn.push_rtcp(argument % 4, Bytes::from_static(&[0x80, 201, 0, 1, 0, 0, 0, 1]), now);
            }
            5 => transmit(&mut conn, now, usize::from(argument) * 4, &mut wire),
            _ => {
                now += Duration::from_millis(u64::from(argument) * 8);
                if conn.handle_timeout(now).is_some() {
                    return;
                }
            }
        }
        while let Some(event) = conn.poll_event(now) {
            if let ConnEvent::Request(request) = event {
                let cseq = request.cseq().expect("the connection answers requests without CSeq itself");
                // Equal numbers cannot be told apart by their answers.
                if asked.contains(&cseq) {
                    return;
                }
                asked.push(cseq);
                waiting.push(cseq);
            }
        }
        assert!(conn.rtp_depth() <= rtp_bytes && waiting.len() <= outstanding);
        if conn.is_finished() {
            break;
        }
    }
    let mut before = usize::MAX;
    while wire.len() != before {
        before = wire.len();
        transmit(&mut conn, now, usize::MAX, &mut wire);
    }
    wire.extend_from_slice(b"RTSP/1.0 299 End\r\nCSeq: 1\r\n\r\n");
    let read = demultiplex(Strictness::Upstream, ParseLimits::default(), [&wire[..]]);
    assert_eq!(read.error, None);
    let mut answered = Vec::new();
    let mut ended = false;
    for item in read.items {
        match item {
            Item::Frame { channel, .. } => assert_ne!(channel, HELD),
            Item::Message(Parsed::Message(Message::Response(response))) => {
                ended = response.status.0 == 299;
                answered.extend(response.cseq().filter(|_| response.status == Status::OK));
            }
            Item::Message(other) => panic!("{other:?} was written"),
        }
    }
    assert!(ended, "the last message is whole");
    answered.retain(|cseq| asked.contains(cseq));
    assert!(asked.starts_with(&answered), "{answered:?} for {asked:?}");
}

/// Writes at most `room` bytes of what is due.
fn transmit(conn: &mut Conn, now: Instant, room: usize, wire: &mut Vec<u8>) {
    let mut bufs = [IoSlice::new(&[]); 8];
    let count = conn.poll_transmit(now, &mut bufs);
    let mut written = 0;
    for buf in bufs.iter().take(count) {
        let part = buf.get(..buf.len().min(room - written)).unwrap_or_default();
        wire.extend_from_slice(part);
        written += part.len();
    }
    conn.advance(written, now);
}
