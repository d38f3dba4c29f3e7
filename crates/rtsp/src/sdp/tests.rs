use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::transport::Profile;

fn fixtures() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/testdata/sdp");
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "sdp"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    assert!(all.len() >= 18, "fixtures are missing");
    all
}

fn fixture(name: &str) -> Sdp {
    let (_, bytes) = fixtures().into_iter().find(|(n, _)| n == name).unwrap();
    Sdp::parse(&bytes).unwrap()
}

fn viewer() -> ViewerEdit {
    ViewerEdit::new(7, 1, IpAddr::V4(Ipv4Addr::new(10, 9, 8, 7)))
}

fn text(sdp: &Sdp) -> String {
    String::from_utf8_lossy(&sdp.to_bytes()).into_owned()
}

#[test]
fn a_description_that_is_not_edited_is_written_as_it_was() {
    for (name, bytes) in fixtures() {
        let written = Sdp::parse(&bytes).unwrap().to_bytes();
        // VStarcam has a line of blanks and blanks at line ends; H264DVR blanks at line ends.
        if !matches!(name.as_str(), "vstarcam" | "h264dvr") {
            assert_eq!(written, bytes, "{name}");
        }
        assert_eq!(Sdp::parse(&written).unwrap().to_bytes(), written, "{name}");
    }
}

#[test]
fn every_fixture_becomes_ours() {
    for (name, bytes) in fixtures() {
        let source = Sdp::parse(&bytes).unwrap();
        let ours = source.for_viewer(&viewer());
        let written = text(&ours);
        assert!(written.starts_with("v=0\r\no=- 7 1 IN IP4 10.9.8.7\r\ns="), "{name}: {written}");
        assert_eq!(ours.session_control(), Some("*"), "{name}");
        assert_eq!(ours.media().len(), source.media().len(), "{name}: SDP-3");
        for (index, track) in ours.tracks().iter().enumerate() {
            assert_eq!(track.control, Some(format!("trackID={index}")), "{name}: RTSP-30");
            assert_eq!(track.port, 0, "{name}: SDP-3");
            assert!(!track.has_keys, "{name}: SDP-6");
        }
        for (before, after) in source.tracks().iter().zip(ours.tracks()) {
            assert_eq!(before.payload_types, after.payload_types, "{name}");
            assert_eq!(before.codec, after.codec, "{name}");
            assert_eq!(before.clock_rate, after.clock_rate, "{name}");
            assert_eq!(before.fmtp, after.fmtp, "{name}: SDP-4");
            assert_eq!(before.kind, after.kind, "{name}");
        }
        assert_eq!(written.matches("\r\nc=").count(), 1, "{name}: SDP-2");
        assert!(written.contains("\r\nc=IN IP4 0.0.0.0\r\n"), "{name}: SDP-2");
        assert_eq!(written.matches("\r\nt=").count(), 1, "{name}");
    }
}

/// SDP-9, case 43.
#[test]
fn editing_twice_changes_nothing_more() {
    for (name, bytes) in fixtures() {
        for detail in [Detail::Full, Detail::Minimal] {
            for profile in [ProfilePolicy::Avp, ProfilePolicy::AsSource] {
                let edit = ViewerEdit { detail, profile, ..viewer() };
                let once = Sdp::parse(&bytes).unwrap().for_viewer(&edit).to_bytes();
                let twice = Sdp::parse(&once).unwrap().for_viewer(&edit).to_bytes();
                assert_eq!(once, twice, "{name}");
            }
        }
    }
}

/// SDP-9, SEC-12, case 11.
#[test]
fn nothing_of_the_source_is_left() {
    for (name, bytes) in fixtures() {
        let written = text(&Sdp::parse(&bytes).unwrap().for_viewer(&viewer()));
        for secret in [
            "192.168.",
            "192.0.2.77",
            "2001:db8",
            "239.1.2.3",
            "34.227.104",
            "studio-pc",
            "rtsp://",
            "http://",
            "secret",
            ":554",
            "5001",
            "crypto",
            "mikey",
            "k=prompt",
            "user1@host",
            "admin@",
        ] {
            assert!(!written.contains(secret), "{name} leaks {secret}:\n{written}");
        }
    }
    let edit = ViewerEdit { hidden: vec!["Camera.example.net".to_owned()], ..viewer() };
    let written = text(&fixture("multicast_srtp").for_viewer(&edit));
    assert!(!written.contains("camera.example.net"), "{written}");
}

/// SDP-8: an independent parser takes every output.
#[test]
fn sdp_types_accepts_what_we_write_and_agrees_on_it() {
    for (name, bytes) in fixtures() {
        let ours = Sdp::parse(&bytes).unwrap().for_viewer(&viewer());
        // The oracle wants UTF-8 in attributes only where it looks at them.
        let oracle = sdp_types::Session::parse(&ours.to_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(oracle.origin.sess_id, "7", "{name}");
        assert_eq!(oracle.medias.len(), ours.media().len(), "{name}");
        for (media, track) in oracle.medias.iter().zip(ours.tracks()) {
            assert_eq!(media.port, track.port, "{name}");
            let control = media.attributes.iter().find(|a| a.attribute == "control").unwrap();
            assert_eq!(control.value, track.control, "{name}");
        }
    }
}

#[test]
fn sdp_types_agrees_on_well_formed_sources() {
    for name in ["hikvision", "dahua", "reolink", "wowza", "vlc", "gst_rtsp_server", "ffmpeg_announce"] {
        let sdp = fixture(name);
        let oracle = sdp_types::Session::parse(&sdp.to_bytes()).unwrap();
        assert_eq!(oracle.medias.len(), sdp.media().len(), "{name}");
        for (media, track) in oracle.medias.iter().zip(sdp.tracks()) {
            let formats: Vec<u8> = media.fmt.split(' ').map(|f| f.parse().unwrap()).collect();
            assert_eq!(formats, track.payload_types, "{name}");
            let value = |n: &str| media.attributes.iter().find(|a| a.attribute == n).unwrap().value.clone();
            let rtpmap = value("rtpmap").unwrap();
            let (codec, rest) = rtpmap.split_once(' ').unwrap().1.split_once('/').unwrap();
            assert_eq!(codec.to_ascii_uppercase(), track.codec, "{name}");
            assert_eq!(rest.split('/').next().unwrap(), track.clock_rate.to_string(), "{name}");
            assert_eq!(value("control"), track.control, "{name}");
        }
    }
}

#[test]
fn tracks_say_what_a_row_needs() {
    let codecs = |name: &str| -> Vec<(String, u32, Vec<u8>)> {
        fixture(name).tracks().into_iter().map(|t| (t.codec, t.clock_rate, t.payload_types)).collect()
    };
    let one = |codec: &str, clock: u32, pt: u8| (codec.to_owned(), clock, vec![pt]);
    assert_eq!(codecs("hikvision"), [one("H264", 90000, 96), one("VND.ONVIF.METADATA", 90000, 107)]);
    assert_eq!(codecs("gw4089ip"), [one("H264", 90000, 96), one("PCMU", 8000, 8)]);
    assert_eq!(codecs("anpviz"), [one("H264", 90000, 96), one("MPEG4-GENERIC", 16000, 0)]);
    assert_eq!(codecs("ubiquiti"), [one("H264", 90000, 96), one("OPUS", 48000, 96)]);
    assert_eq!(codecs("h264dvr"), [one("H264", 90000, 96), one("PCMA", 8000, 8)]);
    assert_eq!(codecs("vstarcam"), [one("H264", 90000, 96), one("PCMA", 8000, 8)]);
    assert_eq!(codecs("multicast_srtp")[1], ("PCMU".to_owned(), 8000, vec![0, 8]));
    assert_eq!(fixture("ubiquiti").tracks()[1].fmtp.as_deref(), Some(""));
    assert_eq!(fixture("ubiquiti").tracks()[1].channels, 2);
    assert_eq!(fixture("reolink").tracks()[0].bandwidth_kbps, Some(500));
    assert_eq!(fixture("hikvision").tracks()[0].direction, Direction::RecvOnly);
    assert_eq!(fixture("gst_rtsp_server").tracks()[1].profile, Some(Profile::Avpf));
}

#[test]
fn media_that_cannot_be_played_keep_their_index() {
    let tracks = fixture("tp_link").tracks();
    assert_eq!(tracks[2].unusable, Some(Unusable::NoPayloadType));
    assert_eq!((tracks[0].unusable, tracks[1].unusable), (None, None));
    let tracks = fixture("multicast_srtp").tracks();
    assert_eq!(tracks[0].unusable, Some(Unusable::Encrypted));
    assert_eq!(tracks[1].unusable, None);
    let tracks = Sdp::parse(b"v=0\nm=video 0 udp 33\nm=audio 0 RTP/AVP 0\n").unwrap().tracks();
    assert_eq!(tracks[0].unusable, Some(Unusable::NotRtp));
    assert_eq!(tracks[1].index, 1);
}

#[test]
fn a_static_payload_type_needs_no_rtpmap_and_a_missing_one_gets_the_default_clock() {
    let sdp = Sdp::parse(b"m=audio 0 RTP/AVP 9\nm=video 0 RTP/AVP 26\nm=video 0 RTP/AVP 120\nm=audio 0 RTP/AVP 120\na=rtpmap:120 X/0\n").unwrap();
    let rates: Vec<_> = sdp.tracks().into_iter().map(|t| (t.codec, t.clock_rate)).collect();
    let expected = [("G722", 8000), ("JPEG", 90000), ("", 90000), ("X", 8000)];
    assert_eq!(rates, expected.map(|(c, r)| (c.to_owned(), r)));
}

#[test]
fn the_profile_of_the_legs_decides_proto_and_feedback() {
    let sdp = fixture("gst_rtsp_server");
    let avp = text(&sdp.for_viewer(&viewer()));
    assert!(!avp.contains("AVPF") && !avp.contains("rtcp-fb"), "{avp}");
    let same = text(&sdp.for_viewer(&ViewerEdit { profile: ProfilePolicy::AsSource, ..viewer() }));
    assert!(same.contains("m=audio 0 RTP/AVPF 97") && same.contains("a=rtcp-fb:97 nack"), "{same}");
    assert!(!same.contains("rtcp-mux"), "{same}");
}

#[test]
fn ssrc_and_reference_clocks_pass_only_transparent_legs() {
    let sdp = fixture("gst_rtsp_server");
    let projected = text(&sdp.for_viewer(&viewer()));
    assert!(!projected.contains("a=ssrc") && !projected.contains("a=mediaclk"), "SDP-5");
    let edit = ViewerEdit { timestamps: TimestampPolicy::Transparent, ..viewer() };
    let kept = text(&sdp.for_viewer(&edit));
    assert!(kept.contains("a=ssrc:1716239210 cname") && kept.contains("a=mediaclk:sender"), "{kept}");
}

#[test]
fn lines_that_recorders_use_pass_unless_the_route_is_minimal() {
    let full = text(&fixture("hikvision").for_viewer(&viewer()));
    assert!(full.contains("a=Media_header:MEDIAINFO=494D4B48"), "{full}");
    assert!(full.contains("b=AS:5100") && full.contains("a=recvonly"), "{full}");
    let minimal = text(&fixture("hikvision").for_viewer(&ViewerEdit { detail: Detail::Minimal, ..viewer() }));
    assert!(!minimal.contains("Media_header"), "{minimal}");
    assert!(minimal.contains("a=fmtp:96 profile-level-id=420029"), "{minimal}");
}

#[test]
fn an_ipv6_client_sees_its_own_family() {
    let edit = ViewerEdit::new(1, 1, "2001:db8:1::5".parse().unwrap());
    let written = text(&fixture("dahua").for_viewer(&edit));
    assert!(written.contains("o=- 1 1 IN IP6 2001:db8:1::5\r\n"), "RTP-40: {written}");
    assert!(written.contains("c=IN IP6 ::\r\n"), "{written}");
}

#[test]
fn missing_lines_are_inserted_in_the_order_of_the_rfc() {
    let sdp = Sdp::parse(b"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000").unwrap();
    assert_eq!(
        text(&sdp.for_viewer(&viewer())),
        "v=0\r\no=- 7 1 IN IP4 10.9.8.7\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n\
         m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n"
    );
}

#[test]
fn a_media_line_without_formats_gets_no_codec() {
    let ours = Sdp::parse(b"m=audio 5 RTP/AVP\nm=video\n").unwrap().for_viewer(&viewer());
    assert_eq!(ours.media()[0][0].as_bytes(), b"m=audio 0 RTP/AVP *");
    assert_eq!(ours.media()[1][0].as_bytes(), b"m=video 0 RTP/AVP *");
    assert_eq!(ours.tracks()[0].codec, "");
}

#[test]
fn bytes_that_are_not_utf8_pass_in_lines_that_pass() {
    let sdp = Sdp::parse(b"v=0\ns=B\xfcro\nm=audio 0 RTP/AVP 0\na=x-name:\xe9t\xe9\n").unwrap();
    let out = sdp.for_viewer(&viewer()).to_bytes();
    assert!(out.windows(8).any(|w| w == b"\r\ns=B\xfcro"));
    assert!(out.windows(7).any(|w| w == b"e:\xe9t\xe9\r\n"));
}

#[test]
fn a_carriage_return_or_nul_inside_a_line_hides_no_second_line() {
    let sdp = Sdp::parse(b"v=0\ns=x\rc=IN IP4 192.0.2.9\0a=crypto:1 x\nm=audio 0 RTP/AVP 0\n").unwrap();
    assert_eq!(sdp.session().len(), 4);
    let out = text(&sdp.for_viewer(&viewer()));
    assert!(!out.contains("192.0.2.9") && !out.contains("crypto"), "{out}");
}

#[test]
fn a_name_is_only_hidden_as_a_whole_word() {
    let sdp = Sdp::parse(
        b"v=0\no=- 1 1 IN IP4 10.1.1.1\ns=x\nm=audio 0 RTP/AVP 0\na=x-a:10.1.1.10\na=x-b:at 10.1.1.1;\n",
    )
    .unwrap();
    let out = text(&sdp.for_viewer(&viewer()));
    assert!(out.contains("x-a") && !out.contains("x-b"), "{out}");
}

#[test]
fn limits_hold() {
    let many = |n: usize, line: &str| format!("v=0\n{}", line.repeat(n)).into_bytes();
    assert!(Sdp::parse(&many(MAX_MEDIA, "m=audio 0 RTP/AVP 0\n")).is_ok());
    assert_eq!(Sdp::parse(&many(MAX_MEDIA + 1, "m=audio 0 RTP/AVP 0\n")), Err(SdpError::TooManyMedia));
    assert!(Sdp::parse(&many(MAX_LINES - 1, "a=x\n")).is_ok());
    assert_eq!(Sdp::parse(&many(MAX_LINES, "a=x\n")), Err(SdpError::TooManyLines));
    let line = |n: usize| format!("v=0\na={}\n", "x".repeat(n - 2)).into_bytes();
    assert!(Sdp::parse(&line(MAX_LINE_LEN)).is_ok());
    assert_eq!(Sdp::parse(&line(MAX_LINE_LEN + 1)), Err(SdpError::LineTooLong { line: 2 }));
    let long = vec![b'\n'; MAX_SDP_LEN + 1];
    assert_eq!(Sdp::parse(&long), Err(SdpError::TooLong { len: MAX_SDP_LEN + 1 }));
    assert_eq!(Sdp::parse(b"<html>404</html>"), Err(SdpError::NotSdp));
    assert_eq!(Sdp::parse(b""), Err(SdpError::NotSdp));
}

/// Lines that look like SDP, with hosts in places where sources put them.
fn sdp_like() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("v=0".to_owned()),
        "o=[a-z-]{1,4} [0-9]{1,6} [0-9]{1,3}( 1)? IN IP4 (10\\.1\\.1\\.[0-9]|camera\\.lan)",
        "c=IN IP4 (10\\.1\\.1\\.[0-9]|239\\.0\\.0\\.[0-9]/16)",
        "[sieupbtrzkax]=[ -~]{0,30}",
        "a=(tool|control|rtpmap|fmtp|rtcp|ssrc|crypto|range|recvonly|x-y|rtcp-fb|mid):?[ -~]{0,30}",
        "a=control:rtsp://(u:p@)?(10\\.1\\.1\\.[0-9]|camera\\.lan)(:8554)?/[a-z?=&]{0,8}",
        "a=x-server:(10\\.1\\.1\\.[0-9]|camera\\.lan)",
        "m=(video|audio|application|application/TP-LINK) [0-9/]{1,6} (RTP/(S?AVPF?)|udp)( [0-9]{1,3}){0,3}",
    ];
    let end = prop_oneof![Just("\r\n"), Just("\n"), Just("\r"), Just(" \r\n\t\r\n")];
    proptest::collection::vec((line, end), 1..40)
        .prop_map(|lines| lines.into_iter().flat_map(|(l, e)| (l + e).into_bytes()).collect())
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(sdp) = Sdp::parse(&body) {
            let once = sdp.for_viewer(&viewer());
            let again = Sdp::parse(&once.to_bytes()).unwrap();
            prop_assert_eq!(&again, &once);
            prop_assert_eq!(again.for_viewer(&viewer()), once);
        }
    }

    #[test]
    fn an_edit_is_idempotent_and_hides_the_source(body in sdp_like()) {
        if let Ok(sdp) = Sdp::parse(&body) {
            let once = sdp.for_viewer(&viewer());
            let again = Sdp::parse(&once.to_bytes()).unwrap();
            prop_assert_eq!(again.for_viewer(&viewer()), once.clone());
            prop_assert_eq!(once.tracks().len(), sdp.tracks().len());
            let written = text(&once);
            let named = |w: &str| text(&sdp).lines().any(|l| l.starts_with(['o', 'c']) && l.ends_with(w));
            if named("camera.lan") {
                let attributes = written.lines().filter(|l| !l.contains("rtpmap") && !l.contains("fmtp"));
                prop_assert!(attributes.clone().all(|l| !l.contains("camera.lan")), "{}", written);
            }
            prop_assert!(!written.contains("rtsp://") || written.contains("fmtp") || written.contains("rtpmap"));
        }
    }

    #[test]
    fn writing_and_reading_gives_the_same_lines(body in sdp_like()) {
        if let Ok(sdp) = Sdp::parse(&body) {
            prop_assert_eq!(Sdp::parse(&sdp.to_bytes()).unwrap(), sdp);
        }
    }
}
