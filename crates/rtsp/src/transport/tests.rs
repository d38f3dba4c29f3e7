use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn one(value: &str) -> TransportSpec {
    let mut specs = parse_transport(value).unwrap_or_else(|e| panic!("{value}: {e}"));
    assert_eq!(specs.len(), 1, "{value}");
    specs.remove(0)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// RTSP-12: what clients and sources write.
#[test]
fn every_spelling_is_read() {
    let udp = |a, b| TransportSpec::udp_request(Profile::Avp, PortRange::pair(a, b));
    let tcp = |a, b| TransportSpec::tcp_request(Profile::Avp, ChannelRange::pair(a, b));
    let play = |spec: TransportSpec| TransportSpec { mode: Some(Mode::Play), ..spec };
    for (value, wanted) in [
        // ffmpeg, then GStreamer's and VLC's forms.
        ("RTP/AVP/UDP;unicast;client_port=14290-14291", udp(14290, 14291)),
        ("RTP/AVP;unicast;client_port=5000-5001;mode=play", play(udp(5000, 5001))),
        ("RTP/AVP;unicast;client_port=5000-5001;mode=\"PLAY\"", play(udp(5000, 5001))),
        ("rtp/avp ; client_port = 5000 - 5001 ;UNICAST; Mode= Play", play(udp(5000, 5001))),
        ("RTP/AVP/TCP;unicast;interleaved=0-1", tcp(0, 1)),
        ("RTP/AVP/TCP;interleaved=2-3;unicast", tcp(2, 3)),
        // Luckfox rkipc: the SSRC first, no `unicast`.
        ("RTP/AVP/TCP;ssrc=22345684;interleaved=0-1", TransportSpec { ssrc: Some(0x2234_5684), ..tcp(0, 1) }),
        // Hikvision iDS-2CD9396: a leading blank and 7 digits.
        (
            "RTP/AVP/TCP;unicast;interleaved=0-1;ssrc= d6d6627;mode=\"play\"",
            TransportSpec { ssrc: Some(0x0d6d_6627), ..play(tcp(0, 1)) },
        ),
        // H264DVR.
        ("RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=0", tcp(0, 1)),
        ("RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=notahexnumber", tcp(0, 1)),
        ("RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=123456789", tcp(0, 1)),
        // Old ffmpeg publishing.
        (
            "RTP/AVP/UDP;unicast;client_port=1-2;mode=receive",
            TransportSpec { mode: Some(Mode::Record), ..udp(1, 2) },
        ),
        (
            "RTP/AVP;unicast;client_port=9;x-unknown;y=\"a;b,c\"",
            TransportSpec {
                client_port: Some(PortRange { rtp: 9, rtcp: None }),
                ..TransportSpec::new(Profile::Avp, LowerTransport::Udp)
            },
        ),
        ("RTP/SAVPF/TCP", TransportSpec::new(Profile::Savpf, LowerTransport::Tcp)),
    ] {
        assert_eq!(one(value), wanted, "{value}");
    }
    let reolink =
        one("RTP/AVP;unicast;destination=192.168.5.9;source=192.168.5.206;client_port=1-2;server_port=3-4");
    assert_eq!(reolink.destination.as_deref(), Some("192.168.5.9"));
    assert_eq!(reolink.source.as_deref(), Some("192.168.5.206"));
    assert_eq!(one("x-real-rdt/tcp;client_port=1").protocol, Protocol::Other("x-real-rdt/tcp".to_owned()));
    assert_eq!(one("RTP/AVP/SCTP").lower(), None);
}

#[test]
fn what_is_no_transport_is_refused_with_its_place() {
    let rule = |value: &str| parse_transport(value).map_err(|e| (e.offset, e.rule)).unwrap_err();
    assert_eq!(rule(""), (0, TransportRule::Empty));
    assert_eq!(rule(" , ,"), (0, TransportRule::Empty));
    assert_eq!(rule("RTP/AVP;client_port=0-1"), (8, TransportRule::Port));
    assert_eq!(rule("RTP/AVP;client_port=70000"), (8, TransportRule::Port));
    assert_eq!(rule("RTP/AVP;client_port=1-2-3"), (8, TransportRule::Port));
    assert_eq!(rule("RTP/AVP;client_port=+1"), (8, TransportRule::Port));
    assert_eq!(rule("RTP/AVP,RTP/AVP/TCP;interleaved=256"), (20, TransportRule::Channel));
    assert_eq!(rule("RTP/AVP\r\nX: y"), (7, TransportRule::Control));
}

#[test]
fn an_answer_echoes_no_text_that_is_not_a_word() {
    let offer = one("RTP/AVP;client_port=1-2;mode=\";interleaved=0-1,RTP\"");
    assert_eq!(offer.mode, None);
    let answer = offer.udp_answer(PortRange::pair(8060, 8061), ip("10.0.0.9"), None);
    assert_eq!(one(&answer.to_string()), answer);
}

#[test]
fn sixteen_transports_are_looked_at() {
    let value = vec!["RTP/AVP;client_port=1-2"; 50].join(",");
    assert_eq!(parse_transport(&value).unwrap().len(), MAX_SPECS);
}

/// RTSP-13, case 5.
#[test]
fn the_first_supported_transport_is_taken() {
    let take = |value: &str, lower| {
        let offers = parse_transport(value).unwrap();
        let policy = TransportPolicy { lower, ..TransportPolicy::default() };
        negotiate(&offers, policy).map(|spec| offers.iter().position(|o| o == spec).unwrap())
    };
    let both = "RTP/AVP;unicast;client_port=1-2,RTP/AVP/TCP;unicast;interleaved=0-1";
    assert_eq!(take(both, LowerPolicy::Any), Ok(0));
    assert_eq!(take(both, LowerPolicy::UdpOnly), Ok(0));
    assert_eq!(take(both, LowerPolicy::TcpOnly), Ok(1));
    let refused = |value: &str, lower| take(value, lower).unwrap_err().offered;
    assert_eq!(refused("RTP/AVP;unicast;client_port=1-2", LowerPolicy::TcpOnly), 1);
    assert_eq!(refused("RTP/AVP/TCP;interleaved=0-1", LowerPolicy::UdpOnly), 1);
    for value in [
        "RTP/AVP;multicast;port=5000-5001",
        "RTP/AVP;multicast;client_port=5000-5001",
        "RTP/SAVP;unicast;client_port=1-2",
        "RTP/SAVPF/TCP;interleaved=0-1",
        "RTP/AVP;unicast",
        "RTP/AVP;unicast;client_port=65535",
        "RTP/AVP;unicast;client_port=4-4",
        "x-real-rdt/udp;client_port=1-2",
    ] {
        assert_eq!(refused(value, LowerPolicy::Any), 1, "{value}");
    }
    // GStreamer's retry after 461.
    assert_eq!(take("RTP/AVP;multicast,RTP/AVP/TCP;unicast;interleaved=0-1", LowerPolicy::Any), Ok(1));
    assert_eq!(take("RTP/AVPF;client_port=7", LowerPolicy::Any), Ok(0));
}

#[test]
fn a_tls_connection_refuses_plain_udp() {
    let policy = TransportPolicy { link: LinkSecurity::Tls, ..TransportPolicy::default() };
    let offers = parse_transport("RTP/AVP;client_port=1-2,RTP/AVP/TCP;interleaved=0-1").unwrap();
    assert_eq!(negotiate(&offers, policy).unwrap().lower(), Some(LowerTransport::Tcp));
}

/// RTSP-14, RTSP-17, RTSP-18.
#[test]
fn answers_say_where_media_comes_from() {
    let offer = one("RTP/AVP/UDP;unicast;client_port=14290-14291");
    let answer = offer.udp_answer(PortRange::pair(8060, 8061), ip("10.0.0.9"), Some(0x00AB_CDEF));
    assert_eq!(
        answer.to_string(),
        "RTP/AVP;unicast;client_port=14290-14291;source=10.0.0.9;server_port=8060-8061;ssrc=00ABCDEF"
    );
    let offer = one("RTP/AVP/TCP;interleaved=0-1;mode=record;ssrc=1;destination=1.2.3.4");
    let answer = offer.tcp_answer(ChannelRange::pair(10, 11), None);
    assert_eq!(answer.to_string(), "RTP/AVP/TCP;unicast;interleaved=10-11;mode=record");
}

/// RTSP-16, SEC-1, case 20.
#[test]
fn a_destination_other_than_the_peer_is_prohibited() {
    let check = |value: &str, peer: &str| check_destination(&one(value), ip(peer)).is_ok();
    assert!(check("RTP/AVP;client_port=1-2", "10.0.0.1"));
    assert!(check("RTP/AVP;destination;client_port=1-2", "10.0.0.1"));
    assert!(check("RTP/AVP;destination=10.0.0.1;client_port=1-2", "10.0.0.1"));
    assert!(check("RTP/AVP;destination=10.0.0.1;client_port=1-2", "::ffff:10.0.0.1"));
    assert!(check("RTP/AVP;destination=[2001:db8::1];client_port=1-2", "2001:db8::1"));
    assert!(!check("RTP/AVP;destination=10.0.0.2;client_port=1-2", "10.0.0.1"));
    assert!(!check("RTP/AVP;destination=localhost;client_port=1-2", "127.0.0.1"));
    assert!(!check("RTP/AVP;destination=\"10.0.0.2\";client_port=1-2", "10.0.0.1"));
}

/// RTSP-15, RTSP-17, case 15.
#[test]
fn answers_of_sources_are_taken_as_they_come() {
    let udp = TransportSpec::udp_request(Profile::Avp, PortRange::pair(8062, 8063));
    let tcp = TransportSpec::tcp_request(Profile::Avp, ChannelRange::pair(2, 3));
    let ports = |value: Option<&str>| match accept_answer(value, &udp) {
        Ok(Agreed::Udp { rtp, rtcp, .. }) => (rtp, rtcp),
        other => panic!("{value:?}: {other:?}"),
    };
    assert_eq!(
        ports(Some("RTP/AVP;unicast;client_port=1-2;server_port=41041-41042")),
        (Some(41041), Some(41042))
    );
    assert_eq!(ports(Some("RTP/AVP;unicast;server_port=6000")), (Some(6000), Some(6001)));
    assert_eq!(ports(Some("RTP/AVP;unicast;client_port=8062-8063")), (None, None));
    assert_eq!(ports(None), (None, None));
    let channels = |value: &str| match accept_answer(Some(value), &tcp) {
        Ok(Agreed::Tcp { channels, .. }) => channels,
        other => panic!("{value}: {other:?}"),
    };
    assert_eq!(channels("RTP/AVP/TCP;interleaved=8-9"), ChannelRange::pair(8, 9));
    assert_eq!(channels("RTP/AVP/TCP;interleaved=4"), ChannelRange::pair(4, 5));
    assert_eq!(channels("RTP/AVP/TCP;unicast"), ChannelRange::pair(2, 3));
    assert_eq!(channels("RTP/AVP;unicast;interleaved=6-7"), ChannelRange::pair(6, 7));
    let answer = "RTP/AVP;unicast;destination=6.6.6.6;source=192.168.5.206;server_port=1-2;ssrc=d6d6627";
    assert_eq!(
        accept_answer(Some(answer), &udp),
        Ok(Agreed::Udp {
            rtp: Some(1),
            rtcp: Some(2),
            source: Some(ip("192.168.5.206")),
            ssrc: Some(0x0d6d_6627)
        })
    );
    assert!(matches!(
        accept_answer(Some("RTP/AVP/TCP;interleaved=0-1"), &udp),
        Err(AnswerError::Lower { .. })
    ));
    assert!(matches!(accept_answer(Some("RTP/AVP;multicast;port=1-2"), &udp), Err(AnswerError::Multicast)));
    assert!(matches!(accept_answer(Some("RTP/AVP;server_port=x"), &udp), Err(AnswerError::Syntax(_))));
    assert_eq!(accept_answer(Some("RTP/AVP/TCP;interleaved=255"), &tcp), Err(AnswerError::Channel));
}

/// RTSP-17, SEC-8, case 6.
#[test]
fn two_sessions_on_a_connection_share_no_channel() {
    let mut table = ChannelTable::new();
    let asked = Some(ChannelRange::pair(0, 1));
    assert_eq!(table.allocate(asked, "a"), Some(ChannelRange::pair(0, 1)));
    assert_eq!(table.allocate(asked, "b"), Some(ChannelRange::pair(2, 3)));
    assert_eq!(table.allocate(Some(ChannelRange::pair(1, 2)), "c"), Some(ChannelRange::pair(4, 5)));
    assert_eq!(
        table.allocate(Some(ChannelRange { rtp: 9, rtcp: None }), "d"),
        Some(ChannelRange::pair(9, 10))
    );
    assert_eq!(table.allocate(None, "e"), Some(ChannelRange::pair(6, 7)));
    assert_eq!(table.owner(3), Some((&"b", ChannelRole::Rtcp)));
    assert_eq!(table.owner(9), Some((&"d", ChannelRole::Rtp)));
    assert_eq!(table.owner(8), None);
    table.release(&"a");
    assert_eq!(table.owner(0), None);
    // A second SETUP of the same media frees its first channels (RTSP-19).
    assert_eq!(table.allocate(asked, "b"), Some(ChannelRange::pair(0, 1)));
    assert_eq!(table.owner(2), None);
    table.release_where(|owner| *owner != "b");
    assert_eq!(table.lowest_free(), Some(ChannelRange::pair(2, 3)));
    table.release(&"b");
    assert!(table.is_empty());
}

#[test]
fn a_connection_without_free_channels_gives_none() {
    let mut table = ChannelTable::new();
    for owner in 0..128 {
        assert!(table.allocate(None, owner).is_some());
    }
    assert_eq!(table.allocate(None, 128), None);
    assert_eq!(table.lowest_free(), None);
    // As client: a source's pair is taken if nobody else has it.
    assert!(!table.bind(ChannelRange::pair(0, 1), 128));
    assert!(table.bind(ChannelRange::pair(2, 3), 1));
    assert!(!table.bind(ChannelRange { rtp: 255, rtcp: None }, 127));
    assert!(!table.bind(ChannelRange::pair(2, 2), 1));
}

/// The oracle where it can parse: well-formed headers.
#[test]
fn rtsp_types_reads_the_same_from_what_we_write() {
    for spec in [
        one("RTP/AVP;unicast;client_port=4588-4589;server_port=6256-6257;mode=\"PLAY\""),
        one("RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=12345678"),
        one("RTP/SAVPF;unicast;client_port=10-11"),
        one("RTP/AVP;multicast;destination=239.1.2.3;port=10-11;ttl=3"),
    ] {
        let mut response =
            rtsp_types::Response::builder(rtsp_types::Version::V1_0, rtsp_types::StatusCode::Ok)
                .build(rtsp_types::Empty);
        response.insert_header(rtsp_types::headers::TRANSPORT, spec.to_string());
        let oracle = response.typed_header::<rtsp_types::headers::Transports>().unwrap().unwrap();
        let rtsp_types::headers::Transport::Rtp(oracle) = &oracle[0] else { panic!("{spec}") };
        let params = &oracle.params;
        let ports = |p: Option<PortRange>| p.map(|p| (p.rtp, p.rtcp));
        assert_eq!(params.client_port, ports(spec.client_port), "{spec}");
        assert_eq!(params.server_port, ports(spec.server_port), "{spec}");
        assert_eq!(params.interleaved, spec.interleaved.map(|c| (c.rtp, c.rtcp)), "{spec}");
        assert_eq!(params.multicast, spec.multicast, "{spec}");
        assert_eq!(params.unicast, !spec.multicast, "{spec}");
        let tcp = oracle.lower_transport == Some(rtsp_types::headers::RtpLowerTransport::Tcp);
        assert_eq!(tcp, spec.lower() == Some(LowerTransport::Tcp), "{spec}");
    }
}

fn specs() -> impl Strategy<Value = TransportSpec> {
    let profile =
        prop_oneof![Just(Profile::Avp), Just(Profile::Avpf), Just(Profile::Savp), Just(Profile::Savpf)];
    let lower = prop_oneof![Just(LowerTransport::Udp), Just(LowerTransport::Tcp)];
    let ports = || {
        proptest::option::of(
            (1u16.., proptest::option::of(1u16..)).prop_map(|(rtp, rtcp)| PortRange { rtp, rtcp }),
        )
    };
    let channels = proptest::option::of(
        (any::<u8>(), any::<Option<u8>>()).prop_map(|(rtp, rtcp)| ChannelRange { rtp, rtcp }),
    );
    let host = || proptest::option::of("[a-z0-9.:]{1,12}");
    let mode = prop_oneof![
        Just(None),
        Just(Some(Mode::Play)),
        Just(Some(Mode::Record)),
        "x[a-z]{1,5}".prop_map(|m| Some(Mode::Other(m)))
    ];
    let numbers = (any::<bool>(), any::<Option<u8>>(), proptest::option::of(1u32..), mode);
    (profile, lower, (ports(), ports(), ports(), channels), host(), host(), numbers).prop_map(
        |(profile, lower, (client_port, server_port, port, interleaved), source, destination, rest)| {
            let (multicast, ttl, ssrc, mode) = rest;
            TransportSpec {
                protocol: Protocol::Rtp(profile, lower),
                multicast,
                client_port,
                server_port,
                port,
                interleaved,
                source,
                destination,
                ttl,
                ssrc,
                mode,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(list in proptest::collection::vec(specs(), 1..4)) {
        let value = list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        prop_assert_eq!(parse_transport(&value).unwrap(), list);
    }

    #[test]
    fn any_text_is_read_or_refused(value in "\\PC{0,80}|[ -~]{0,80}|(RTP/AVP(/TCP)?;?[a-z_]{0,11}=?[0-9-]{0,9}[;,]?){0,6}") {
        let asked = TransportSpec::udp_request(Profile::Avp, PortRange::pair(2, 3));
        let _ = accept_answer(Some(&value), &asked);
        if let Ok(specs) = parse_transport(&value) {
            for spec in &specs {
                let _ = check_destination(spec, ip("10.0.0.1"));
            }
            if let Ok(spec) = negotiate(&specs, TransportPolicy::default()) {
                let again = parse_transport(&spec.to_string()).unwrap();
                prop_assert_eq!(&again[0], spec);
            }
        }
    }

    #[test]
    fn a_channel_has_one_owner_whatever_happens(
        steps in proptest::collection::vec((0u8..4, 0u8..6, any::<u8>(), any::<Option<u8>>()), 0..60),
    ) {
        let mut table = ChannelTable::new();
        let mut held: BTreeMap<u8, ChannelRange> = BTreeMap::new();
        for (action, owner, rtp, rtcp) in steps {
            let asked = ChannelRange { rtp, rtcp };
            match action {
                0 | 1 => {
                    let given = table.allocate((action == 0).then_some(asked), owner).unwrap();
                    held.insert(owner, given);
                }
                2 => {
                    if table.bind(asked, owner) {
                        held.insert(owner, ChannelRange::pair(rtp, asked.rtcp_channel().unwrap()));
                    }
                }
                _ => {
                    table.release(&owner);
                    held.remove(&owner);
                }
            }
            let mut seen = 0;
            for (owner, pair) in &held {
                prop_assert_eq!(table.owner(pair.rtp), Some((owner, ChannelRole::Rtp)));
                prop_assert_eq!(table.owner(pair.rtcp.unwrap()), Some((owner, ChannelRole::Rtcp)));
                seen += 2;
            }
            prop_assert_eq!((0..=255u8).filter(|c| table.owner(*c).is_some()).count(), seen);
        }
    }
}
