use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteMessage;

use super::super::net::RouteKind;
use super::super::ways::{Inbox, channels};
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const NEW_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

/// A network that answers what a test wrote into it.
#[derive(Default)]
struct Fake {
    routes: HashMap<IpAddr, Route>,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    resolved: Vec<NeighbourKey>,
    attached: Vec<u32>,
    detached: Vec<u32>,
    /// Interfaces that are there although no list has them.
    hidden: Vec<u32>,
    refuse: bool,
}

impl Outside for Fake {
    fn policies(&mut self) -> Option<Policies> {
        None
    }

    fn route(&mut self, peer: IpAddr, _local: IpAddr) -> Option<Route> {
        self.routes.get(&peer).copied()
    }

    fn neighbour(&mut self, key: NeighbourKey) -> Option<Neighbour> {
        self.neighbours.get(&key).copied()
    }

    fn resolve(&mut self, key: NeighbourKey) {
        self.resolved.push(key);
    }

    fn attach(&mut self, link: &Link) -> Result<Rung, UserReason> {
        if self.refuse {
            let why = "tcx: no".to_owned();
            return Err(UserReason::Interface { interface: link.name.clone(), why });
        }
        if !self.attached.contains(&link.ifindex) {
            self.attached.push(link.ifindex);
        }
        Ok(Rung::Tcx)
    }

    fn is_there(&mut self, ifindex: u32) -> bool {
        self.hidden.contains(&ifindex)
    }

    fn detached(&mut self, ifindex: u32) {
        self.attached.retain(|attached| *attached != ifindex);
        self.detached.push(ifindex);
    }
}

struct Scene {
    hops: Hops,
    fake: Fake,
    inboxes: Vec<Inbox>,
    now: Instant,
}

fn peer(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn hop_to(last: u8) -> Want {
    Want::Hop { peer: peer(last), local: peer(1) }
}

fn from(last: u8) -> Want {
    Want::Ingress { peer: peer(last), local: peer(1) }
}

fn link_message(ifindex: u32, name: &str, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, ifindex as u8]),
    ];
    message
}

fn neighbour_message(last: u8, state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = 3;
    message.header.state = state;
    let IpAddr::V4(address) = peer(last) else { unreachable!() };
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

fn direct(ifindex: u32) -> Route {
    Route { ifindex, gateway: None, mtu: None, kind: RouteKind::Unicast }
}

impl Scene {
    /// Two workers; eth0 leads to 10.0.0.9, whose address is known.
    fn new(named: &[&str]) -> Self {
        let (ends, _asks, notes) = channels(2);
        let named = named.iter().map(|name| (*name).to_owned()).collect();
        let mut fake = Fake::default();
        fake.routes.insert(peer(9), direct(3));
        fake.neighbours.insert((3, peer(9)), Neighbour::Known { mac: MAC, confirmed: true });
        let mut scene = Self {
            hops: Hops::new(named, notes),
            fake,
            inboxes: ends.into_iter().map(|(_, inbox)| inbox).collect(),
            now: Instant::now(),
        };
        scene.hops.replace_links(vec![Link::of(&link_message(3, "eth0", 1500))], &mut scene.fake);
        scene.settle();
        scene
    }

    fn want(&mut self, worker: usize, want: Want) {
        self.hops.want(worker, want, self.now, &mut self.fake);
    }

    fn notice(&mut self, message: RouteNetlinkMessage) {
        self.hops.notice(&message, self.now, &mut self.fake);
    }

    fn settle(&mut self) {
        self.hops.settle(self.now, &mut self.fake);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.hops.handle_timeout(self.now, &mut self.fake);
    }

    /// What a worker was told since, in words: the answers in short.
    fn told(&mut self, worker: usize) -> Vec<String> {
        self.hops.deliver();
        let mut told = Vec::new();
        while let Some(note) = self.inboxes[worker].try_next() {
            let Note::Way(_, way) = note else { panic!("no answer: {note:?}") };
            told.push(match way {
                Way::Hop(Ok(hop)) => format!("{} {:02x?} {}", hop.interface, hop.dst_mac[5], hop.mtu),
                Way::Ingress(Ok(ingress)) => format!("{} by {}", ingress.interface, ingress.rung.as_str()),
                Way::Hop(Err(why)) | Way::Ingress(Err(why)) => why.as_str().to_owned(),
            });
        }
        told
    }
}

#[test]
fn a_want_is_answered_at_once_and_again_when_the_answer_changes() {
    let mut scene = Scene::new(&[]);
    scene.want(0, hop_to(9));
    assert_eq!(scene.told(0), ["eth0 09 1500"]);
    scene.notice(RouteNetlinkMessage::NewNeighbour(neighbour_message(
        9,
        NeighbourState::Reachable,
        Some(NEW_MAC),
    )));
    assert_eq!(scene.told(0), ["eth0 0a 1500"]);
    scene.notice(RouteNetlinkMessage::NewLink(link_message(3, "eth0", 1400)));
    scene.settle();
    assert_eq!(scene.told(0), ["eth0 0a 1400"]);
    scene.fake.routes.insert(peer(9), Route { mtu: Some(1300), ..direct(3) });
    scene.notice(RouteNetlinkMessage::NewRoute(RouteMessage::default()));
    assert!(scene.hops.is_unsettled());
    scene.settle();
    assert_eq!(scene.told(0), ["eth0 0a 1300"]);
    scene.settle();
    assert!(scene.told(0).is_empty(), "nothing changed");
}

#[test]
fn every_worker_that_wants_it_is_told_and_one_that_forgot_is_not() {
    let mut scene = Scene::new(&[]);
    scene.want(0, hop_to(9));
    scene.want(1, hop_to(9));
    assert_eq!((scene.told(0).len(), scene.told(1).len()), (1, 1));
    scene.hops.forget(0, hop_to(9));
    scene.notice(RouteNetlinkMessage::NewNeighbour(neighbour_message(9, NeighbourState::Failed, None)));
    assert!(scene.told(0).is_empty());
    assert_eq!(scene.told(1), ["unresolved"]);
    scene.hops.forget(1, hop_to(9));
    assert!(scene.hops.wants.is_empty() && scene.hops.neighbours.is_empty());
}

#[test]
fn a_neighbour_that_is_not_known_is_asked_for_until_it_answers() {
    let mut scene = Scene::new(&[]);
    scene.fake.routes.insert(peer(7), direct(3));
    scene.want(0, hop_to(7));
    assert_eq!(scene.told(0), ["unresolved"]);
    assert_eq!(scene.fake.resolved, [(3, peer(7))]);
    scene.pass(RETRY);
    scene.pass(RETRY);
    assert_eq!(scene.fake.resolved.len(), 2, "the pause doubles");
    scene.pass(RETRY);
    assert_eq!(scene.fake.resolved.len(), 3);
    let known = neighbour_message(7, NeighbourState::Reachable, Some(MAC));
    scene.notice(RouteNetlinkMessage::NewNeighbour(known));
    assert_eq!(scene.told(0), ["eth0 09 1500"]);
}

#[test]
fn a_neighbour_in_use_is_confirmed_now_and_then_because_programs_do_not() {
    let mut scene = Scene::new(&[]);
    scene.want(0, hop_to(9));
    for round in 1..4 {
        scene.pass(CONFIRM);
        assert_eq!(scene.fake.resolved.len(), round);
    }
}

#[test]
fn an_entry_that_the_kernel_let_go_serves_until_it_is_found_out_again() {
    let mut scene = Scene::new(&[]);
    scene.want(0, hop_to(9));
    scene.told(0);
    scene.fake.neighbours.clear();
    scene.notice(RouteNetlinkMessage::DelNeighbour(neighbour_message(9, NeighbourState::Stale, Some(MAC))));
    assert_eq!(scene.fake.resolved, [(3, peer(9))], "asked for at once");
    scene.notice(RouteNetlinkMessage::NewNeighbour(neighbour_message(9, NeighbourState::Incomplete, None)));
    assert!(scene.told(0).is_empty(), "nothing stops meanwhile");
    scene.pass(GRACE);
    assert_eq!(scene.told(0), ["unresolved"]);
    scene.notice(RouteNetlinkMessage::NewNeighbour(neighbour_message(
        9,
        NeighbourState::Reachable,
        Some(MAC),
    )));
    assert_eq!(scene.told(0), ["eth0 09 1500"]);
}

#[test]
fn another_route_is_another_neighbour() {
    let mut scene = Scene::new(&[]);
    scene.want(0, hop_to(9));
    scene.told(0);
    scene.fake.routes.insert(peer(9), Route { gateway: Some(peer(254)), ..direct(3) });
    scene.hops.unsettle();
    scene.settle();
    assert_eq!(scene.told(0), ["unresolved"]);
    assert_eq!(scene.fake.resolved, [(3, peer(254))]);
    assert_eq!(scene.hops.neighbours.keys().collect::<Vec<_>>(), [&(3, peer(254))]);
}

#[test]
fn an_ingress_gets_the_program_and_loses_it_with_the_interface() {
    let mut scene = Scene::new(&[]);
    scene.want(0, from(9));
    assert_eq!(scene.told(0), ["eth0 by tcx"]);
    assert_eq!(scene.fake.attached, [3]);
    scene.fake.routes.remove(&peer(9));
    scene.notice(RouteNetlinkMessage::DelLink(link_message(3, "eth0", 1500)));
    scene.settle();
    assert_eq!(scene.told(0), ["unresolved"]);
    assert_eq!(scene.fake.detached, [3]);
    // It comes back under another number.
    scene.fake.routes.insert(peer(9), direct(4));
    scene.notice(RouteNetlinkMessage::NewLink(link_message(4, "eth0", 1500)));
    scene.settle();
    assert_eq!(scene.told(0), ["eth0 by tcx"]);
    assert_eq!(scene.fake.attached, [4]);
}

#[test]
fn interfaces_that_are_not_named_are_left_alone_and_named_ones_are_attached_when_they_appear() {
    let mut scene = Scene::new(&["eth1"]);
    scene.want(0, from(9));
    scene.want(0, hop_to(9));
    assert_eq!(scene.told(0), ["not_named", "not_named"]);
    assert!(scene.fake.attached.is_empty());
    scene.notice(RouteNetlinkMessage::NewLink(link_message(5, "eth1", 1500)));
    scene.settle();
    assert_eq!(scene.fake.attached, [5]);
}

#[test]
fn what_no_rung_takes_is_said_with_the_answer_of_each() {
    let mut scene = Scene::new(&[]);
    scene.fake.refuse = true;
    scene.want(0, from(9));
    assert_eq!(scene.told(0), ["interface"]);
}

#[test]
fn links_that_went_unnoticed_are_found_out_by_reading_all() {
    let mut scene = Scene::new(&[]);
    scene.want(0, from(9));
    scene.told(0);
    scene.hops.replace_links(Vec::new(), &mut scene.fake);
    scene.settle();
    assert_eq!(scene.told(0), ["unresolved"]);
    assert_eq!(scene.fake.detached, [3]);
}

#[test]
fn an_interface_that_a_list_leaves_out_is_asked_for_before_it_is_taken_for_gone() {
    let mut scene = Scene::new(&[]);
    scene.want(0, from(9));
    scene.told(0);
    scene.fake.hidden.push(3);
    scene.hops.replace_links(Vec::new(), &mut scene.fake);
    scene.settle();
    assert!(scene.told(0).is_empty() && scene.fake.detached.is_empty(), "{:?}", scene.fake.detached);
    scene.fake.hidden.clear();
    scene.hops.replace_links(Vec::new(), &mut scene.fake);
    scene.settle();
    assert_eq!((scene.told(0), &scene.fake.detached), (vec!["unresolved".to_owned()], &vec![3]));
}

#[test]
fn a_neighbour_whose_notice_was_lost_is_found_out_when_everything_is_asked_for() {
    let mut scene = Scene::new(&[]);
    scene.want(0, hop_to(9));
    scene.told(0);
    let known = |mac| Neighbour::Known { mac, confirmed: true };
    scene.fake.neighbours.insert((3, peer(9)), known(NEW_MAC));
    scene.notice(RouteNetlinkMessage::NewRoute(RouteMessage::default()));
    scene.settle();
    assert!(scene.told(0).is_empty(), "routes change often: neighbours have notices of their own");
    scene.hops.unsettle();
    scene.settle();
    assert_eq!(scene.told(0), ["eth0 0a 1500"]);
    scene.hops.unsettle();
    scene.settle();
    assert!(scene.told(0).is_empty() && scene.fake.resolved.is_empty(), "nothing changed");
    // It was let go, and nobody said so; then that it is there again.
    scene.fake.neighbours.clear();
    scene.hops.unsettle();
    scene.settle();
    assert_eq!(scene.fake.resolved, [(3, peer(9))]);
    scene.fake.neighbours.insert((3, peer(9)), known(MAC));
    scene.pass(GRACE);
    assert_eq!(scene.told(0), ["eth0 09 1500"]);
}

#[test]
fn a_worker_that_is_slow_gets_the_newest_answer_once() {
    let mut scene = Scene::new(&[]);
    for last in 2..=251_u8 {
        scene.fake.routes.insert([10, 1, 0, last].into(), direct(3));
    }
    for round in 0..2 {
        for last in 2..=251_u8 {
            let want = Want::Hop { peer: [10, 1, round, last].into(), local: peer(1) };
            scene.want(0, want);
        }
    }
    scene.want(0, hop_to(9));
    assert!(scene.hops.deliver(), "the queue is full");
    for mtu in [1400, 1300, 1280] {
        scene.notice(RouteNetlinkMessage::NewLink(link_message(3, "eth0", mtu)));
        scene.settle();
    }
    let mut told = scene.told(0);
    while scene.hops.deliver() {
        told.extend(scene.told(0));
    }
    told.extend(scene.told(0));
    let hops: Vec<_> = told.iter().filter(|told| told.starts_with("eth0 09")).collect();
    assert_eq!(hops, ["eth0 09 1280"]);
}
