use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;

use super::*;

fn resource(uri: &str) -> ResourceUrl {
    match RequestTarget::parse(uri) {
        Ok(RequestTarget::Resource(url)) => url,
        other => panic!("{uri}: {other:?}"),
    }
}

fn rule(uri: &str) -> UrlRule {
    RequestTarget::parse(uri).unwrap_err().rule
}

#[test]
fn a_request_uri_names_a_route_and_perhaps_a_track() {
    for (uri, name, query, track) in [
        ("rtsp://h/cam", "cam", None, None),
        ("RTSP://H:8554/cam/", "cam", None, None),
        ("rtsps://h/cam", "cam", None, None),
        ("rtsp://h", "", None, None),
        ("rtsp://h/", "", None, None),
        ("rtsp://h:8554?x=1", "", Some("x=1"), None),
        ("/cam", "cam", None, None),
        ("rtsp://[2001:db8::1]:8554/a/b", "a/b", None, None),
        ("rtsp://h//a//b/", "a/b", None, None),
        ("rtsp://h/a/./b", "a/b", None, None),
        ("rtsp://h/%63am%2d1", "cam-1", None, None),
        ("rtsp://h/a%2fb", "a%2Fb", None, None),
        ("rtsp://h/cam?user=x", "cam", Some("user=x"), None),
        // ffmpeg's and GStreamer's dialects (RTSP-30).
        ("rtsp://h/cam/trackID=1", "cam", None, Some(1)),
        ("rtsp://h/cam/trackID=1/", "cam", None, Some(1)),
        ("rtsp://h/cam?x=1/trackID=2", "cam", Some("x=1"), Some(2)),
        ("rtsp://h/cam?x=1/trackID=2/", "cam", Some("x=1"), Some(2)),
        ("rtsp://h/cam/trackID=2?x=1", "cam", Some("x=1"), Some(2)),
        ("rtsp://h/cam/trackID=2?x=1/", "cam", Some("x=1"), Some(2)),
        ("rtsp://h/cam?x=1/", "cam", Some("x=1"), None),
        ("rtsp://h/cam/trackid=31", "cam", None, Some(31)),
        ("rtsp://h/cam/trackID=4/trackID=1", "cam", None, Some(1)),
        ("rtsp://h/cam/trackID=4/./?x/trackID=1", "cam", Some("x"), Some(1)),
        // Not ours: these are names and queries.
        ("rtsp://h/cam/trackID=", "cam/trackID=", None, None),
        ("rtsp://h/cam/trackID=1x", "cam/trackID=1x", None, None),
        ("rtsp://h/cam/trackID=12345", "cam/trackID=12345", None, None),
        ("rtsp://h/cam?trackID=1", "cam", Some("trackID=1"), None),
    ] {
        let url = resource(uri);
        assert_eq!((url.name.as_str(), url.query.as_deref(), url.track), (name, query, track), "{uri}");
    }
    assert_eq!(RequestTarget::parse("*"), Ok(RequestTarget::Server));
}

/// SEC-10.
#[test]
fn forbidden_bytes_and_forms_are_refused() {
    for (uri, wanted) in [
        ("rtsp://h/a b", UrlRule::Character),
        ("rtsp://h/a\tb", UrlRule::Character),
        ("rtsp://h/a\r\nCSeq: 1", UrlRule::Character),
        ("rtsp://h/caf\u{e9}", UrlRule::Character),
        ("rtsp://h/a\"b", UrlRule::Character),
        ("rtsp://h/a\\b", UrlRule::Character),
        ("rtsp://h/a#b", UrlRule::Fragment),
        ("rtsp://u:p@h/a", UrlRule::UserInfo),
        ("rtsp://u@h/a", UrlRule::UserInfo),
        ("rtsp://h/../etc", UrlRule::DotSegment),
        ("rtsp://h/a/..", UrlRule::DotSegment),
        ("rtsp://h/%2e%2E/etc", UrlRule::DotSegment),
        ("rtsp://h/a?b/../c", UrlRule::DotSegment),
        ("rtsp://h/%0a", UrlRule::Escape),
        ("rtsp://h/%00", UrlRule::Escape),
        ("rtsp://h/%7F", UrlRule::Escape),
        ("rtsp://h/%4", UrlRule::Escape),
        ("rtsp://h/%zz", UrlRule::Escape),
        ("http://h/a", UrlRule::Scheme),
        ("rtspu://h/a", UrlRule::Scheme),
        ("cam", UrlRule::Scheme),
        ("", UrlRule::Scheme),
        ("rtsp:///a", UrlRule::Host),
        ("rtsp://[::1/a", UrlRule::Host),
        ("rtsp://[fe80::1%25eth0]/a", UrlRule::Host),
        ("rtsp://[1.2.3.4]/a", UrlRule::Host),
        ("rtsp://a,b/", UrlRule::Host),
        ("rtsp://h:0/a", UrlRule::Port),
        ("rtsp://h:65536/a", UrlRule::Port),
        ("rtsp://h:+1/a", UrlRule::Port),
        ("rtsp://h:x/a", UrlRule::Port),
    ] {
        assert_eq!(rule(uri), wanted, "{uri:?}");
    }
    let long = format!("rtsp://h/{}", "a".repeat(MAX_URL_LEN));
    assert_eq!(rule(&long), UrlRule::TooLong);
    assert_eq!(RequestTarget::parse("rtsp://h/a b").unwrap_err().offset, 10);
}

#[test]
fn authorities_are_read_and_written() {
    for (text, port) in
        [("h", None), ("h:8554", Some(8554)), ("10.0.0.1:1", Some(1)), ("[::1]:554", Some(554))]
    {
        let authority = Authority::parse(text).unwrap();
        assert_eq!(authority.port, port, "{text}");
        assert_eq!(authority.to_string(), text);
    }
    assert_eq!(Authority::parse("h:").unwrap().port, None);
    assert_eq!(Authority::parse("A.B").unwrap().host, Host::Name("a.b".to_owned()));
}

/// RTSP-30: what we write in the description comes back in either dialect.
#[test]
fn clients_of_either_dialect_name_the_track_we_wrote() {
    let local: SocketAddr = (Ipv4Addr::LOCALHOST, 8554).into();
    for uri in ["rtsp://h:8554/cam", "rtsp://h:8554/cam/", "rtsp://h/cam?a=1&b=2", "/cam", "rtsp://h/a/b?x"] {
        let base = content_base(uri, local);
        assert!(base.ends_with('/') && !base.ends_with("//"), "{base}");
        for track in [0, 1, 31] {
            let ffmpeg = track_url(&base, track);
            let gstreamer = match uri.split_once('?') {
                Some((path, query)) => format!("{path}/{}?{query}", track_control(track)),
                None => ffmpeg.clone(),
            };
            for setup in [&ffmpeg, &gstreamer, &format!("{ffmpeg}/")] {
                let url = resource(setup);
                assert_eq!(url.track, Some(track), "{setup}");
                assert!(url.is_same_stream(&resource(uri)), "{setup}");
                assert_eq!(url.query, resource(uri).query, "{setup}");
            }
        }
        assert!(resource(&base).is_same_stream(&resource(uri)));
    }
    assert_eq!(content_base("*", local), "rtsp://127.0.0.1:8554/");
    assert_eq!(content_base("rtsp://h/cam?x=1", local), "rtsp://h/cam?x=1/");
}

/// ffmpeg and GStreamer as publishers.
#[test]
fn publishers_controls_are_found_in_either_dialect() {
    let controls = [Some("streamid=0"), Some("streamid=1")];
    let announce = resource("rtsp://h:8554/live/cam");
    let at = |setup: &str| announce.media_index(&controls, &resource(setup));
    assert_eq!(at("rtsp://h:8554/live/cam/streamid=0"), Some(0));
    assert_eq!(at("rtsp://h:8554/live/cam/streamid=1"), Some(1));
    assert_eq!(at("rtsp://h:8554/live/cam/streamid=1/"), Some(1));
    assert_eq!(at("rtsp://h:8554/live/cam/streamid=2"), None);
    assert_eq!(at("rtsp://h:8554/live/cam"), None, "two media: the aggregate is ambiguous");
    assert_eq!(at("rtsp://h:8554/live/other/streamid=1"), None);

    let announce = resource("rtsp://h/live/cam?key=1");
    let at = |setup: &str| announce.media_index(&[Some("stream=0"), Some("stream=1")], &resource(setup));
    assert_eq!(at("rtsp://h/live/cam?key=1/stream=1"), Some(1), "ffmpeg's dialect");
    assert_eq!(at("rtsp://h/live/cam/stream=1?key=1"), Some(1), "GStreamer's dialect");
    assert_eq!(at("rtsp://h/live/cam/stream=1"), None);

    let announce = resource("rtsp://h/cam");
    assert_eq!(announce.media_index(&[None], &resource("rtsp://h/cam/")), Some(0));
    assert_eq!(announce.media_index(&[Some("x")], &resource("rtsp://h/cam")), Some(0));
    let absolute = [Some("rtsp://h/cam/a"), Some("rtsp://other:8554/cam/b/")];
    assert_eq!(announce.media_index(&absolute, &resource("rtsp://h/cam/b")), Some(1));
    assert_eq!(announce.media_index(&[], &resource("rtsp://h/cam")), None);
}

fn source(url: &str) -> SourceUrl {
    SourceUrl::parse(url).unwrap()
}

/// RTSP-38: credentials are taken off and not written back.
#[test]
fn credentials_of_a_source_are_kept_apart() {
    let url = source("rtsp://admin:p%40ss:w%2Ford@cam.lan:8554/live?x=1");
    let credentials = url.credentials.clone().unwrap();
    assert_eq!((credentials.user(), credentials.password().expose()), ("admin", "p@ss:w/ord"));
    assert_eq!(url.to_string(), "rtsp://cam.lan:8554/live?x=1");
    assert_eq!(url.port(), 8554);
    assert!(!format!("{url:?}").contains("ss:w"));
    let url = source("rtsp://u:a@b@10.0.0.1/x");
    assert_eq!(url.credentials.as_ref().unwrap().password().expose(), "a@b");
    assert_eq!((url.port(), url.to_string().as_str()), (554, "rtsp://10.0.0.1/x"));
    assert_eq!(source("rtsps://h").port(), 322);
    assert_eq!(source("rtsp://h").credentials, None);
    for bad in ["rtsp://u:p@/x", "rtsp://u:%00@h/x", "h/x", "rtsp://u:p#q@h/x"] {
        assert!(SourceUrl::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(strip_userinfo("rtsp://u:p@h/x@y"), "rtsp://h/x@y");
    assert_eq!(strip_userinfo("rtsp://h/x@y"), "rtsp://h/x@y");
    assert_eq!(strip_userinfo("trackID=1"), "trackID=1");
}

/// RTSP-29, case 12: request URL, Content-Base, Content-Location, control, result.
#[test]
fn control_attributes_resolve_as_each_source_means_them() {
    for (name, request, content_base, content_location, control, wanted) in [
        (
            "Hikvision",
            "rtsp://192.168.5.106/Streaming/Channels/101?transportmode=unicast&Profile=Profile_1",
            Some("rtsp://192.168.5.106:554/Streaming/Channels/101/"),
            None,
            Some(
                "rtsp://192.168.5.106:554/Streaming/Channels/101/trackID=1?transportmode=unicast&Profile=Profile_1",
            ),
            "rtsp://192.168.5.106:554/Streaming/Channels/101/trackID=1?transportmode=unicast&Profile=Profile_1",
        ),
        (
            "Dahua",
            "rtsp://192.168.5.111/cam/realmonitor?channel=1&subtype=1",
            Some("rtsp://192.168.5.111:554/cam/realmonitor?channel=1&subtype=1/"),
            None,
            Some("trackID=0"),
            "rtsp://192.168.5.111:554/cam/realmonitor?channel=1&subtype=1/trackID=0",
        ),
        (
            "GW4089IP, no slash",
            "rtsp://192.168.5.120/live?channel=1&subtype=1",
            Some("rtsp://192.168.5.120/live?channel=1&subtype=1"),
            None,
            Some("trackID=0"),
            "rtsp://192.168.5.120/live?channel=1&subtype=1/trackID=0",
        ),
        (
            "VStarcam, no Content-Base",
            "rtsp://192.168.5.133:10554/tcp/av0_0",
            None,
            None,
            Some("track0"),
            "rtsp://192.168.5.133:10554/tcp/av0_0/track0",
        ),
        (
            "Anjvision, no scheme",
            "rtsp://192.168.1.10/stream0",
            Some("192.168.1.10:554/stream0/"),
            None,
            Some("trackID=0"),
            "rtsp://192.168.1.10:554/stream0/trackID=0",
        ),
        ("Content-Location", "rtsp://h/a", None, Some("rtsp://h/b/"), Some("track1"), "rtsp://h/b/track1"),
        ("path only", "rtsp://h:8554/a", Some("/b/"), None, Some("t"), "rtsp://h:8554/b/t"),
        ("name only", "rtsp://cam:8554/a", Some("cam/b/"), None, Some("t"), "rtsp://cam/b/t"),
        ("nonsense", "rtsp://h/a", Some("stream0"), None, Some("t"), "rtsp://h/a/t"),
        ("http", "rtsp://h/a", Some("http://h/a/"), None, Some("t"), "rtsp://h/a/t"),
        ("aggregate", "rtsp://h/a", Some("rtsp://h/a/"), None, Some("*"), "rtsp://h/a/"),
        ("none", "rtsp://h/a", None, None, None, "rtsp://h/a"),
        ("empty", "rtsp://h/a", None, None, Some(" "), "rtsp://h/a"),
        ("credentials", "rtsp://u:p@h/a", Some("rtsp://u:p@h/a/"), None, Some("t"), "rtsp://h/a/t"),
        ("VLC", "rtsp://h/a", None, None, Some("rtsp://u:p@h:8554/a/trackID=1"), "rtsp://h:8554/a/trackID=1"),
        ("leading slash", "rtsp://h/a", Some("rtsp://h/a/"), None, Some("/t"), "rtsp://h/a/t"),
    ] {
        let base = source(request).control_base(content_base, content_location);
        assert_eq!(join_control(&base, control), wanted, "{name}");
    }
}

/// SEC-9: a control attribute cannot open a header of its own.
#[test]
fn what_a_source_says_fits_into_a_request_line() {
    let joined = join_control("rtsp://h/a b", Some("t RTSP/1.0\r\nX: \u{e9}"));
    assert_eq!(joined, "rtsp://h/a%20b/t%20RTSP/1.0%0D%0AX:%20%C3%A9");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(uri in "\\PC*", base in "\\PC*", control in "\\PC*") {
        if let Ok(RequestTarget::Resource(url)) = RequestTarget::parse(&uri) {
            prop_assert!(!url.name.split('/').any(|s| s.is_empty() && !url.name.is_empty() || s == ".."));
            prop_assert!(url.name.is_ascii());
            // The canonical name is its own name.
            prop_assert_eq!(&resource(&format!("/{}", url.name)).name, &url.name);
            let _ = url.media_index(&[Some(&control)], &url);
        }
        let _ = SourceUrl::parse(&uri);
        let joined = join_control(&base, Some(&control));
        prop_assert!(joined.bytes().all(|b| b.is_ascii_graphic()));
    }

    #[test]
    fn a_joined_control_is_found_again(
        path in "(/[a-zA-Z0-9._~-]{1,8}){1,3}",
        query in proptest::option::of("[a-z]{1,4}=[a-z0-9]{1,4}"),
        controls in proptest::collection::btree_set("[a-z]{1,6}=[0-9]", 1..5),
        pick in any::<prop::sample::Index>(),
    ) {
        prop_assume!(!path.split('/').any(|s| s == ".." || s == "."));
        let url = query.as_ref().map_or_else(|| format!("rtsp://h{path}"), |q| format!("rtsp://h{path}?{q}"));
        let controls: Vec<_> = controls.iter().map(|c| Some(c.as_str())).collect();
        let index = pick.index(controls.len());
        let control = controls[index].unwrap();
        let appended = join_control(&url, Some(control));
        let inserted = query.map_or_else(|| appended.clone(), |q| format!("rtsp://h{path}/{control}?{q}"));
        let base = resource(&url);
        prop_assert_eq!(base.media_index(&controls, &resource(&appended)), Some(index));
        prop_assert_eq!(base.media_index(&controls, &resource(&inserted)), Some(index));
        prop_assert!(base.is_parent_of(&resource(&appended)) && base.is_parent_of(&resource(&inserted)));
    }

    #[test]
    fn an_authority_is_written_as_it_is_read(ip in any::<IpAddr>(), port in 1u16..) {
        let authority = Authority::from(SocketAddr::new(ip, port));
        prop_assert_eq!(Authority::parse(&authority.to_string()).unwrap(), authority);
    }
}
