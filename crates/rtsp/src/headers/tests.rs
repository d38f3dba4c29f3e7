use proptest::prelude::*;

use super::*;

fn info(url: &str, seq: Option<u16>, rtptime: Option<u32>) -> RtpInfo {
    RtpInfo { url: url.to_owned(), seq, rtptime }
}

/// RTSP-25, values as real servers send them.
#[test]
fn session_of_cameras_is_read_as_they_send_it() {
    for (value, id, seconds) in [
        ("708345999", "708345999", None),
        ("       708345999;timeout=60", "708345999", Some(60)),
        ("A1B2 ; timeout=120", "A1B2", Some(120)),
        ("A1B2;Timeout = \"30\"", "A1B2", Some(30)),
        ("A1B2;timeout=0", "A1B2", Some(60)),
        ("A1B2;timeout=abc", "A1B2", None),
        ("A1B2;timeout=-1", "A1B2", None),
        ("2w8U.I0V-NRlwP-v", "2w8U.I0V-NRlwP-v", None),
        ("A;x;timeout=99999999999;y=1", "A", Some(86400)),
    ] {
        let session = SessionHeader::parse(value).unwrap();
        assert_eq!(
            (session.id.as_str(), session.timeout.map(|timeout| timeout.as_secs())),
            (id, seconds),
            "{value}"
        );
        assert_eq!(SessionHeader::id_of(value), id);
    }
    assert_eq!(SessionHeader::parse(""), Err(HeaderError::NoSessionId));
    assert_eq!(SessionHeader::parse(" ;timeout=5"), Err(HeaderError::NoSessionId));
}

#[test]
fn session_advertises_its_timeout_in_seconds() {
    let session = SessionHeader { id: "abc".to_owned(), timeout: Some(Duration::from_secs(55)) };
    assert_eq!(session.to_string(), "abc;timeout=55");
}

/// RTSP-33.
#[test]
fn rtp_info_of_cameras_is_read_as_they_send_it() {
    for (value, entries) in [
        (
            "url=rtsp://h/a/trackID=0;seq=10;rtptime=20,url=rtsp://h/a/trackID=1;seq=65535;rtptime=4294967295",
            vec![
                info("rtsp://h/a/trackID=0", Some(10), Some(20)),
                info("rtsp://h/a/trackID=1", Some(65535), Some(u32::MAX)),
            ],
        ),
        ("url=trackID=0;seq=1;rtptime=0;", vec![info("trackID=0", Some(1), Some(0))]),
        ("url=a;ssrc=0C1F;seq=5;rtptime=6", vec![info("a", Some(5), Some(6))]),
        ("url=rtsp://h/w;seq=1;rtptime=-1", vec![info("rtsp://h/w", Some(1), None)]),
        ("url=\"rtsp://h/a\" ; SEQ = 3", vec![info("rtsp://h/a", Some(3), None)]),
        ("url=a, url=b;seq=70000", vec![info("a", None, None), info("b", None, None)]),
        ("seq=0;rtptime=0;", vec![]),
        ("", vec![]),
        (",;=,;", vec![]),
    ] {
        assert_eq!(RtpInfo::parse_list(value), entries, "{value}");
    }
}

/// RTSP-31.
#[test]
fn rtp_info_leaves_out_a_media_of_unknown_state() {
    let entries = [
        info("rtsp://h/a/trackID=0", Some(1), Some(2)),
        info("x", None, Some(2)),
        info("y", Some(3), Some(4)),
    ];
    assert_eq!(
        RtpInfo::format_list(&entries).unwrap(),
        "url=rtsp://h/a/trackID=0;seq=1;rtptime=2, url=y;seq=3;rtptime=4"
    );
    assert_eq!(RtpInfo::format_list(&[info("x", None, None)]), None);
}

#[test]
fn range_units_are_read_and_written() {
    let at = |millis| NptTime::At(Duration::from_millis(millis));
    for (value, range, written) in [
        ("npt=now-", Range::LIVE, "npt=now-"),
        ("npt=0-", Range::Npt { start: at(0), end: None }, "npt=0.000-"),
        ("npt=0.000-", Range::Npt { start: at(0), end: None }, "npt=0.000-"),
        ("npt = 10.5 - 20", Range::Npt { start: at(10_500), end: Some(at(20_000)) }, "npt=10.500-20.000"),
        ("npt=1:02:03.25-", Range::Npt { start: at(3_723_250), end: None }, "npt=3723.250-"),
        ("npt=-", Range::Npt { start: at(0), end: None }, "npt=0.000-"),
        ("npt=now-;time=19970123T143720Z", Range::LIVE, "npt=now-"),
        ("clock=19961108T142300Z-", Range::Clock("19961108T142300Z-".to_owned()), "clock=19961108T142300Z-"),
        (
            "smpte-25=10:07:00-10:07:33:05.01",
            Range::Smpte { unit: "smpte-25".to_owned(), text: "10:07:00-10:07:33:05.01".to_owned() },
            "smpte-25=10:07:00-10:07:33:05.01",
        ),
    ] {
        let parsed = Range::parse(value).unwrap();
        assert_eq!(parsed, range, "{value}");
        assert_eq!(parsed.to_string(), written);
    }
    for value in ["", "npt", "npt=x-", "npt=1:2:3:4-", "bytes=0-1", "npt=1.x-", "npt=99999999999999999999-"] {
        assert_eq!(Range::parse(value), None, "{value}");
    }
}

/// RTSP-10.
#[test]
fn unknown_option_tags_are_found_in_every_list() {
    assert_eq!(unknown_tags(["a, play.basic", " ,b"], &["play.basic"]), ["a", "b"]);
    assert!(unknown_tags([], &[]).is_empty());
}

#[test]
fn public_lists_methods() {
    let value = "OPTIONS, DESCRIBE,  FOO";
    assert_eq!(methods(value), [Method::Options, Method::Describe, Method::Unknown("FOO".to_owned())]);
    assert_eq!(format_methods(&methods(value)), "OPTIONS, DESCRIBE, FOO");
    assert_eq!(media_type("application/sdp ; charset=x"), "application/sdp");
}

proptest! {
    #[test]
    fn field_values_never_panic(value in "[ -~]{0,80}") {
        let _ = (SessionHeader::parse(&value), RtpInfo::parse_list(&value), Range::parse(&value), methods(&value));
    }

    #[test]
    fn rtp_info_written_is_rtp_info_read(
        entries in prop::collection::vec(("rtsp://[a-z]{1,8}/[a-zA-Z0-9=?&]{0,12}", any::<u16>(), any::<u32>()), 1..5)
    ) {
        let entries: Vec<_> = entries.iter().map(|(url, seq, time)| info(url, Some(*seq), Some(*time))).collect();
        prop_assert_eq!(RtpInfo::parse_list(&RtpInfo::format_list(&entries).unwrap()), entries);
    }
}
