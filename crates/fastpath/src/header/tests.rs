use proptest::prelude::*;

use super::*;

#[test]
fn views_need_exactly_their_length() {
    let bytes = [0u8; 64];
    for len in 0..bytes.len() {
        let cut = &bytes[..len];
        assert_eq!(Eth::parse(cut).is_some(), len >= ETH_LEN, "{len}");
        assert_eq!(Ipv4::parse(cut).is_some(), len >= IPV4_LEN, "{len}");
        assert_eq!(Ipv6::parse(cut).is_some(), len >= IPV6_LEN, "{len}");
        assert_eq!(Udp::parse(cut).is_some(), len >= UDP_LEN, "{len}");
        assert_eq!(RtpFixed::parse(cut).is_some(), len >= RTP_FIXED_LEN, "{len}");
    }
}

#[test]
fn views_lie_at_any_address() {
    let mut bytes = [0u8; 40];
    for shift in 0..8 {
        let rtp = RtpFixed::parse_mut(&mut bytes[shift..]).unwrap();
        rtp.set_ssrc(0x0102_0304);
        assert_eq!(bytes[shift + 8..shift + 12], [1, 2, 3, 4]);
        bytes = [0; 40];
    }
}

#[test]
fn a_captured_frame_reads_as_tshark_shows_it() {
    // Ethernet, IPv4 10.0.0.1 -> 10.0.0.2 TTL 64 DSCP AF41, UDP 5004 -> 8060, RTP PT 96 M seq 4660.
    let frame: [u8; 54] = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00, //
        0x45, 0x88, 0, 40, 0xab, 0xcd, 0x40, 0, 64, 17, 0x12, 0x34, 10, 0, 0, 1, 10, 0, 0, 2, //
        0x13, 0x8c, 0x1f, 0x7c, 0, 20, 0xbe, 0xef, //
        0x80, 0xe0, 0x12, 0x34, 0, 0, 0x03, 0xe8, 0xca, 0xfe, 0xba, 0xbe,
    ];
    let eth = Eth::parse(&frame).unwrap();
    assert_eq!((eth.ethertype(), eth.dst()[5], eth.src()[5]), (ETHERTYPE_IPV4, 2, 1));
    let ip = Ipv4::parse(&frame[14..]).unwrap();
    assert!(ip.is_plain() && !ip.is_fragment());
    assert_eq!((ip.total_len(), ip.ttl(), ip.protocol(), ip.tos()), (40, 64, PROTO_UDP, 0x88));
    assert_eq!((ip.check(), ip.src(), ip.dst()), (0x1234, [10, 0, 0, 1], [10, 0, 0, 2]));
    let udp = Udp::parse(&frame[34..]).unwrap();
    assert_eq!((udp.src_port(), udp.dst_port(), udp.udp_len(), udp.check()), (5004, 8060, 20, 0xbeef));
    let rtp = RtpFixed::parse(&frame[42..]).unwrap();
    assert_eq!((rtp.version(), rtp.payload_type(), rtp.marker(), rtp.seq()), (2, 96, true, 4660));
    assert_eq!((rtp.timestamp(), rtp.ssrc(), rtp.csrc_count()), (1000, 0xcafe_babe, 0));
    assert!(!rtp.padding() && !rtp.extension());
}

#[test]
fn ipv6_fields_read_at_their_offsets() {
    let mut bytes = [0u8; 40];
    bytes[..8].copy_from_slice(&[0x68, 0x81, 0x23, 0x45, 0x00, 0x30, 17, 63]);
    bytes[23] = 1;
    bytes[39] = 2;
    let ip = Ipv6::parse(&bytes).unwrap();
    assert!(ip.is_plain());
    assert_eq!((ip.tos(), ip.payload_len(), ip.next_header(), ip.hop_limit()), (0x88, 48, 17, 63));
    assert_eq!((ip.src()[15], ip.dst()[15]), (1, 2));
    bytes[0] = 0x45;
    assert!(!Ipv6::parse(&bytes).unwrap().is_plain());
}

#[test]
fn first_and_last_fragments_are_both_fragments() {
    let mut bytes = [0u8; 20];
    bytes[0] = 0x45;
    for (flags, fragment) in
        [([0x00, 0x00], false), ([0x40, 0x00], false), ([0x20, 0x00], true), ([0x00, 0x01], true)]
    {
        bytes[6..8].copy_from_slice(&flags);
        assert_eq!(Ipv4::parse(&bytes).unwrap().is_fragment(), fragment, "{flags:?}");
    }
    bytes[0] = 0x46;
    assert!(!Ipv4::parse(&bytes).unwrap().is_plain(), "a header with options is not plain");
}

#[test]
fn second_bytes_192_to_223_are_rtcp() {
    // RFC 5761 section 4: RTCP packet types, and the payload types 64 to 95 with a marker they shadow.
    for byte in 0..=255u8 {
        assert_eq!(is_rtcp(byte), (192..=223).contains(&byte), "{byte}");
    }
    assert!(RtpFixed::new(72, true, 0, 0, 0).is_rtcp());
    assert!(!RtpFixed::new(96, true, 0, 0, 0).is_rtcp());
}

proptest! {
    #[test]
    fn reading_what_was_set_gives_it_back(
        pt in 0u8..128, marker: bool, seq: u16, timestamp: u32, ssrc: u32, first: u8,
    ) {
        let mut bytes = [0u8; 12];
        bytes[0] = first;
        let rtp = RtpFixed::parse_mut(&mut bytes).unwrap();
        rtp.set_payload_type(pt);
        rtp.set_marker(marker);
        rtp.set_seq(seq);
        rtp.set_timestamp(timestamp);
        rtp.set_ssrc(ssrc);
        let rtp = *rtp;
        prop_assert_eq!(bytes[0], first, "setters keep the first byte");
        prop_assert_eq!(
            (rtp.payload_type(), rtp.marker(), rtp.seq(), rtp.timestamp(), rtp.ssrc()),
            (pt, marker, seq, timestamp, ssrc)
        );
        prop_assert_eq!(RtpFixed::from_bytes(bytes), rtp);
        prop_assert_eq!(rtp.to_bytes(), bytes);
        let mut built = RtpFixed::new(pt, marker, seq, timestamp, ssrc).to_bytes();
        built[0] = first;
        prop_assert_eq!(built, bytes);
    }
}
