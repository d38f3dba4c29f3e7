use super::*;

#[test]
fn a_key_holds_network_order() {
    let key = FlowKey::new("10.0.0.1:5004".parse().unwrap(), "10.0.0.2:8060".parse().unwrap(), 7);
    assert_eq!(key.src, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
    assert_eq!((key.src_port, key.dst_port, key.ifindex), ([0x13, 0x8c], [0x1f, 0x7c], 7));
}

#[test]
fn a_family_is_never_mistaken_for_the_other() {
    let v4 = FlowKey::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), 1);
    let v6 = FlowKey::new("[::10.0.0.1]:1".parse().unwrap(), "[::10.0.0.2]:2".parse().unwrap(), 1);
    assert_ne!(v4, v6);
    for text in ["10.0.0.1", "fd00::1", "::", "::10.0.0.1"] {
        let addr: IpAddr = text.parse().unwrap();
        assert_eq!(address(octets(addr)), addr);
    }
}

#[test]
fn kinds_give_their_number_back_and_unknown_numbers_do_not() {
    for kind in [FlowKind::Rtp, FlowKind::Rtcp, FlowKind::Muxed, FlowKind::Opaque] {
        assert_eq!(FlowKind::from_u8(kind as u8), Some(kind));
    }
    assert_eq!(FlowKind::from_u8(4), None);
}

#[test]
fn layouts_have_no_hole() {
    for layout in abi::LAYOUTS {
        let mut at = 0;
        for field in layout.fields {
            assert_eq!(field.offset, at, "{}.{}", layout.name, field.name);
            at += field.size;
        }
        assert_eq!(at, layout.size, "{}", layout.name);
    }
}
