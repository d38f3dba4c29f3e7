use netlink_packet_route::AddressFamily;

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn link(ifindex: u32, name: &str) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
        ethernet: true,
        up: true,
        veth: false,
        elsewhere: false,
        controller: None,
    }
}

fn net(links: impl IntoIterator<Item = Link>) -> Net {
    Net { links: links.into_iter().map(|link| (link.ifindex, link)).collect() }
}

fn direct(ifindex: u32) -> Route {
    Route { ifindex, gateway: None, mtu: None, kind: RouteKind::Unicast }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const KNOWN: Option<Neighbour> = Some(Neighbour::Known { mac: MAC, confirmed: false });

#[test]
fn a_hop_has_the_addresses_of_both_ends_and_the_smaller_mtu() {
    let net = net([link(3, "eth0")]);
    let hop = net.hop(ip("10.0.0.9"), &direct(3), KNOWN).unwrap();
    assert_eq!((hop.ifindex, hop.src_mac, hop.dst_mac, hop.mtu), (3, [2, 0, 0, 0, 0, 3], MAC, 1500));
    for (path, expected) in [(1400, 1400), (9000, 1500)] {
        let route = Route { mtu: Some(path), ..direct(3) };
        assert_eq!(net.hop(ip("10.0.0.9"), &route, KNOWN).unwrap().mtu, expected);
    }
}

#[test]
fn the_router_is_asked_for_its_address_where_there_is_one() {
    let peer = ip("192.0.2.7");
    let routed = Route { gateway: Some(ip("10.0.0.1")), ..direct(3) };
    assert_eq!(Net::neighbour_of(peer, &routed), Some((3, ip("10.0.0.1"))));
    assert_eq!(Net::neighbour_of(peer, &direct(3)), Some((3, peer)));
    assert_eq!(Net::neighbour_of(peer, &Route { kind: RouteKind::Local, ..direct(1) }), None);
}

#[test]
fn a_neighbour_that_is_not_known_keeps_the_leg_with_the_worker() {
    let net = net([link(3, "eth0")]);
    for neighbour in [None, Some(Neighbour::Pending), Some(Neighbour::Failed)] {
        let refused = net.hop(ip("10.0.0.9"), &direct(3), neighbour).unwrap_err();
        assert_eq!(refused, UserReason::Unresolved(ip("10.0.0.9")));
    }
}

#[test]
fn what_has_no_ethernet_headers_is_said_by_name() {
    let tun = Link { ethernet: false, mac: None, ..link(4, "tun0") };
    let net = net([tun]);
    let refused = net.hop(ip("10.0.0.9"), &direct(4), KNOWN).unwrap_err();
    assert_eq!(refused.to_string(), "tun0 has no Ethernet headers");
    let local = Route { kind: RouteKind::Local, ..direct(1) };
    assert_eq!(net.ethernet(ip("10.0.0.1"), &local).unwrap_err().as_str(), "no_ethernet");
}

#[test]
fn ports_of_bridges_and_interfaces_that_are_down_are_not_used() {
    let port = Link { controller: Some(9), ..link(3, "veth1") };
    let down = Link { up: false, ..link(4, "eth1") };
    let net = net([port, down, link(9, "br0")]);
    let said = |ifindex| net.ethernet(ip("10.0.0.9"), &direct(ifindex)).unwrap_err().to_string();
    assert_eq!(said(3), "nothing can be attached to veth1: a port of br0, which takes its packets");
    assert_eq!(said(4), "nothing can be attached to eth1: down");
    assert!(
        net.ethernet(ip("10.0.0.9"), &direct(9)).is_ok(),
        "the bridge itself is an interface like others"
    );
}

#[test]
fn only_a_veth_into_another_namespace_is_local() {
    for (veth, elsewhere, local) in [(true, true, true), (true, false, false), (false, true, false)] {
        let net = net([Link { veth, elsewhere, ..link(3, "v") }]);
        assert_eq!(net.hop(ip("10.0.0.9"), &direct(3), KNOWN).unwrap().local, local);
    }
}

#[test]
fn groups_have_mac_addresses_of_their_own() {
    let net = net([link(3, "eth0")]);
    let route = Route { kind: RouteKind::Multicast, ..direct(3) };
    let mac = |group| net.hop(ip(group), &route, None).unwrap().dst_mac;
    assert_eq!(mac("239.129.2.3"), [1, 0, 0x5e, 1, 2, 3]);
    assert_eq!(mac("ff05::1:203"), [0x33, 0x33, 0, 1, 2, 3]);
}

#[test]
fn neighbour_messages_are_read_by_state() {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = 3;
    let address = "10.0.0.9".parse().unwrap();
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    let read = |message: &NeighbourMessage| neighbour(message).unwrap();
    message.header.state = NeighbourState::Reachable;
    assert_eq!(read(&message), ((3, ip("10.0.0.9")), Neighbour::Pending), "an address is missing");
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
    for (state, expected) in [
        (NeighbourState::Reachable, Neighbour::Known { mac: MAC, confirmed: true }),
        (NeighbourState::Permanent, Neighbour::Known { mac: MAC, confirmed: true }),
        (NeighbourState::Stale, Neighbour::Known { mac: MAC, confirmed: false }),
        (NeighbourState::Failed, Neighbour::Failed),
        (NeighbourState::Incomplete, Neighbour::Pending),
    ] {
        message.header.state = state;
        assert_eq!(read(&message).1, expected);
    }
}
