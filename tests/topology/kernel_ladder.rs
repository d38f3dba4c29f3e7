//! Rungs of interfaces, the programs of others, and interfaces that come and go.

use std::net::UdpSocket;

use anyhow::Result;
use msm_fastpath::limits::COUNT_NOT_OURS;
use rtp_proxy::kernel::OBJECT;
use rtp_proxy::kernel::counters::Reader;
use rtp_proxy::kernel::hop::{Rung, UserReason, Want, Way};
use rtp_proxy::kernel::ladder::{Ladder, Pinning, tc_handle};
use rtp_proxy::kernel::load::{Capacity, Kernel};
use rtp_proxy::kernel::pins::{self, Pins};
use rtp_proxy::kernel::service::Settings;
use rtp_proxy::kernel::table::Table as _;

use crate::kernel_scene::{Scene, Traffic, account, at, from_camera, to_viewer};

const PORT: u16 = 5004;

#[test]
fn the_tc_rung_forwards_is_found_again_and_keeps_a_clsact_that_is_not_ours() -> Result<()> {
    let test = "the_tc_rung_forwards_is_found_again_and_keeps_a_clsact_that_is_not_ours";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    scene.node.output("tc", &["qdisc", "add", "dev", &scene.inner, "clsact"])?;
    let settings = Settings { max_rung: Rung::Tc, ..scene.settings() };
    let mut held = scene.start(&settings)?;
    assert_eq!(held.ingress()?.rung, Rung::Tc);
    let flow = held.forward(PORT)?;
    let traffic = Traffic::start(&scene, PORT)?;
    let mut seqs = traffic.pass(100)?;
    let handle = |filters: &str| filters.matches("handle 0x").count();
    assert_eq!(handle(&scene.filters()?), 1, "{}", scene.filters()?);
    // The next process puts its program into the same filter.
    held.path.stop(true);
    let mut held = scene.start_again(&settings)?;
    assert_eq!((held.path.adopted(), held.ingress()?.rung), (1, Rung::Tc));
    assert_eq!(handle(&scene.filters()?), 1, "{}", scene.filters()?);
    assert!(held.share.claim(&flow.key, &account()).is_some());
    seqs.extend(traffic.pass(100)?);
    let (sent, rest) = traffic.end()?;
    seqs.extend(rest);
    assert_eq!(seqs, (0..sent).collect::<Vec<_>>());
    assert_eq!(held.share.table.flow_stats(flow.index)?.packets, u64::from(sent));
    held.path.stop(false);
    assert_eq!(handle(&scene.filters()?), 0, "{}", scene.filters()?);
    assert!(scene.qdiscs()?.contains("clsact"), "it was there before us: {}", scene.qdiscs()?);
    Ok(())
}

/// Sends datagrams that are nobody's media.
fn strangers(scene: &Scene, count: usize) -> Result<()> {
    let socket = scene.camera.inside(|| UdpSocket::bind("10.7.1.2:0"))??;
    for _ in 0..count {
        socket.send_to(b"not media", at("10.7.1.1", 9))?;
    }
    Ok(())
}

#[test]
fn programs_of_others_before_and_behind_ours_keep_seeing_their_traffic() -> Result<()> {
    let test = "programs_of_others_before_and_behind_ours_keep_seeing_their_traffic";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let small = Capacity { flows: 1, legs: 1, ports: 1 };
    // Without flows our program counts and passes on: a stranger's program as good as any.
    let mut before = Kernel::load_with(OBJECT, small, None)?;
    let _first = scene.node.inside(|| before.attach_tcx(&scene.inner))??;
    let mut held = scene.start(&scene.settings())?;
    assert_eq!(held.ingress()?.rung, Rung::Tcx);
    let mut behind = Kernel::load_with(OBJECT, small, None)?;
    let _last = scene.node.inside(|| behind.attach_tcx(&scene.inner))??;
    held.forward(PORT)?;
    strangers(&scene, 50)?;
    let traffic = Traffic::start(&scene, PORT)?;
    traffic.pass(100)?;
    let (sent, _) = traffic.end()?;
    let seen = |kernel: &Kernel| Reader::open(kernel).unwrap().counter(COUNT_NOT_OURS);
    assert!(seen(&before) >= u64::from(sent) + 50, "the first one sees media too: {}", seen(&before));
    assert!((50..u64::from(sent)).contains(&seen(&behind)), "the last one sees the rest: {}", seen(&behind));
    held.path.stop(false);
    Ok(())
}

#[test]
fn a_capped_ladder_says_why_everything_is_with_the_workers() -> Result<()> {
    let Some(scene) = Scene::new("a_capped_ladder_says_why_everything_is_with_the_workers")? else {
        return Ok(());
    };
    let settings = Settings { max_rung: Rung::User, ..scene.settings() };
    let refused = scene.start(&settings).err().map(|error| error.to_string());
    assert_eq!(refused.as_deref(), Some("--max-rung user"));
    let settings = Settings { interfaces: vec!["eth7".to_owned()], ..scene.settings() };
    let mut held = scene.start(&settings)?;
    held.share.ways.want(from_camera());
    let why = held.until(from_camera(), |way| match way {
        Way::Ingress(Err(UserReason::NotNamed(name))) => Some(name.clone()),
        _ => None,
    })?;
    assert_eq!(why, scene.inner);
    held.path.stop(false);
    Ok(())
}

#[test]
fn two_proxies_of_one_namespace_do_not_share_an_instance() -> Result<()> {
    let Some(scene) = Scene::new("two_proxies_of_one_namespace_do_not_share_an_instance")? else {
        return Ok(());
    };
    let first = scene.start(&scene.settings())?;
    let refused = scene.start(&scene.settings()).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("another rtp-proxy (instance 8060)"), "{refused}");
    let other = Settings { instance: Some("9060".to_owned()), ..scene.settings() };
    let second = scene.start(&other)?;
    second.path.stop(false);
    first.path.stop(false);
    Ok(())
}

#[test]
fn an_interface_that_vanishes_is_told_and_one_that_appears_later_is_used() -> Result<()> {
    let test = "an_interface_that_vanishes_is_told_and_one_that_appears_later_is_used";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    let mut held = scene.start(&scene.settings())?;
    held.forward(PORT)?;
    let old = held.hop()?.ifindex;
    let was = scene.inner.clone();
    scene.node.ip(&["link", "del", &scene.outer])?;
    scene.node.ip(&["link", "del", &was])?;
    held.until(to_viewer(), |way| matches!(way, Way::Hop(Err(_))).then_some(()))?;
    held.until(from_camera(), |way| matches!(way, Way::Ingress(Err(_))).then_some(()))?;
    let (node, camera, viewer) = (scene.node.clone(), scene.camera.clone(), scene.viewer.clone());
    scene.inner = scene.lab.cable(&node, &["10.7.1.1/24"], &camera, &["10.7.1.2/24"])?.0;
    scene.outer = scene.lab.cable(&node, &["10.7.2.1/24"], &viewer, &["10.7.2.2/24"])?.0;
    let hop = held.until(to_viewer(), |way| match way {
        Way::Hop(Ok(hop)) => Some(hop.clone()),
        _ => None,
    })?;
    assert_ne!(hop.ifindex, old);
    let ingress = held.until(from_camera(), |way| match way {
        Way::Ingress(Ok(ingress)) => Some(ingress.clone()),
        _ => None,
    })?;
    assert_eq!((ingress.interface, ingress.rung), (scene.inner.clone(), Rung::Tcx));
    let flow = held.forward(PORT + 2)?;
    let traffic = Traffic::start(&scene, PORT + 2)?;
    traffic.pass(50)?;
    traffic.end()?;
    assert!(held.share.table.leg_stats(flow.id)?.packets >= 50);
    held.path.stop(false);
    Ok(())
}

#[test]
fn an_interface_that_is_renamed_keeps_its_program_and_is_left_clean() -> Result<()> {
    let test = "an_interface_that_is_renamed_keeps_its_program_and_is_left_clean";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    let settings = Settings { max_rung: Rung::Tc, ..scene.settings() };
    let mut held = scene.start(&settings)?;
    assert_eq!(held.ingress()?.rung, Rung::Tc);
    held.forward(PORT)?;
    scene.rename("door")?;
    held.until(from_camera(), |way| {
        matches!(way, Way::Ingress(Ok(ingress)) if ingress.interface == "door").then_some(())
    })?;
    // And once more while nobody is there to see it.
    held.path.stop(true);
    scene.rename("gate")?;
    let mut held = scene.start(&settings)?;
    let ingress = held.ingress()?;
    assert_eq!((ingress.interface.as_str(), ingress.rung), ("gate", Rung::Tc));
    assert_eq!(scene.filters()?.matches("handle 0x").count(), 1, "{}", scene.filters()?);
    scene.rename("well")?;
    held.path.stop(false);
    assert_eq!(scene.filters()?.matches("handle 0x").count(), 0, "{}", scene.filters()?);
    assert!(!scene.qdiscs()?.contains("clsact"), "it was ours: {}", scene.qdiscs()?);
    Ok(())
}

#[test]
fn a_rung_that_fails_half_way_leaves_nothing_on_the_interface() -> Result<()> {
    let Some(scene) = Scene::new("a_rung_that_fails_half_way_leaves_nothing_on_the_interface")? else {
        return Ok(());
    };
    let small = Capacity { flows: 1, legs: 1, ports: 1 };
    let kernel = Kernel::load_with(OBJECT, small, None)?;
    scene.node.inside(|| {
        let bpffs = scene.bpffs.path();
        let pins = Pins::plan(&bpffs, "half", &pins::abi());
        let planned = Pinning::Planned(pins, bpffs);
        let mut ladder = Ladder::new(kernel, planned, Rung::Tc, tc_handle("half"));
        // Its name has been given to another interface in between.
        let refused = ladder.attach(u32::MAX >> 1, &scene.inner, Rung::Tcx);
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(ladder.remove(), Vec::<String>::new());
    })?;
    assert!(!scene.qdiscs()?.contains("clsact"), "{}", scene.qdiscs()?);
    Ok(())
}

#[test]
fn a_camera_behind_a_bridge_comes_in_by_the_bridge() -> Result<()> {
    let Some(scene) = Scene::new("a_camera_behind_a_bridge_comes_in_by_the_bridge")? else { return Ok(()) };
    scene.node.ip(&["link", "add", "br0", "type", "bridge"])?;
    scene.node.ip(&["addr", "flush", "dev", &scene.inner])?;
    scene.node.ip(&["link", "set", &scene.inner, "master", "br0"])?;
    scene.node.ip(&["addr", "add", "10.7.1.1/24", "dev", "br0"])?;
    scene.node.ip(&["link", "set", "br0", "up"])?;
    let mut held = scene.start(&scene.settings())?;
    assert_eq!(held.ingress()?.interface, "br0");
    let flow = held.forward(PORT)?;
    let traffic = Traffic::start(&scene, PORT)?;
    traffic.pass(100)?;
    traffic.end()?;
    assert!(held.share.table.leg_stats(flow.id)?.packets >= 100);
    held.path.stop(false);
    Ok(())
}

#[test]
fn ways_of_ipv6_are_found_like_those_of_ipv4() -> Result<()> {
    let Some(scene) = Scene::new("ways_of_ipv6_are_found_like_those_of_ipv4")? else { return Ok(()) };
    let mut held = scene.start(&scene.settings())?;
    let hop = Want::Hop { peer: "fd07:2::2".parse()?, local: "fd07:2::1".parse()? };
    held.share.ways.want(hop);
    let v6 = held.until(hop, |way| match way {
        Way::Hop(Ok(hop)) => Some(hop.clone()),
        _ => None,
    })?;
    assert_eq!(v6, held.hop()?);
    let ingress = Want::Ingress { peer: "fd07:1::2".parse()?, local: "fd07:1::1".parse()? };
    held.share.ways.want(ingress);
    let v6 = held.until(ingress, |way| match way {
        Way::Ingress(Ok(ingress)) => Some(ingress.clone()),
        _ => None,
    })?;
    assert_eq!(v6, held.ingress()?);
    // This host is no hop: media for itself stays with the worker.
    let own = Want::Hop { peer: "10.7.1.1".parse()?, local: "10.7.2.1".parse()? };
    held.share.ways.want(own);
    held.until(own, |way| matches!(way, Way::Hop(Err(UserReason::NoEthernet(_)))).then_some(()))?;
    held.path.stop(false);
    Ok(())
}

#[test]
fn what_an_ipsec_policy_speaks_of_is_never_sent_past_it() -> Result<()> {
    let Some(scene) = Scene::new("what_an_ipsec_policy_speaks_of_is_never_sent_past_it")? else {
        return Ok(());
    };
    let mut held = scene.start(&scene.settings())?;
    held.hop()?;
    let selector = ["src", "10.7.2.0/24", "dst", "10.7.2.2/32", "dir", "out"];
    let template = ["tmpl", "src", "10.7.2.1", "dst", "10.7.2.2", "proto", "esp", "mode", "transport"];
    scene.node.ip(&[&["xfrm", "policy", "add"], &selector[..], &template[..]].concat())?;
    let why = held.until(to_viewer(), |way| match way {
        Way::Hop(Err(why)) => Some(why.to_string()),
        _ => None,
    })?;
    assert_eq!(why, "an IPsec policy of this host needs the worker");
    held.ingress()?;
    scene.node.ip(&[&["xfrm", "policy", "delete"], &selector[..]].concat())?;
    held.until(to_viewer(), |way| matches!(way, Way::Hop(Ok(_))).then_some(()))?;
    held.path.stop(false);
    Ok(())
}

#[test]
fn routes_neighbours_and_mtu_are_followed() -> Result<()> {
    let Some(scene) = Scene::new("routes_neighbours_and_mtu_are_followed")? else { return Ok(()) };
    let mut held = scene.start(&scene.settings())?;
    let hop = held.hop()?;
    assert_eq!((hop.interface.as_str(), hop.mtu, hop.local), (scene.outer.as_str(), 1500, true));
    let until = |held: &mut crate::kernel_scene::Held, mtu| {
        held.until(to_viewer(), |way| match way {
            Way::Hop(Ok(hop)) if hop.mtu == mtu => Some(hop.clone()),
            _ => None,
        })
    };
    scene.node.ip(&["link", "set", &scene.outer, "mtu", "1400"])?;
    until(&mut held, 1400)?;
    scene.node.ip(&["route", "add", "10.7.2.2/32", "dev", &scene.outer, "mtu", "1300"])?;
    until(&mut held, 1300)?;
    scene.node.ip(&["route", "del", "10.7.2.2/32", "dev", &scene.outer])?;
    until(&mut held, 1400)?;
    // The viewer's machine gets another card.
    let device = scene.viewer.output("sh", &["-c", "ls /sys/class/net | grep -v lo"])?;
    let device = device.split_whitespace().find(|name| name.starts_with('v')).unwrap_or_default().to_owned();
    scene.viewer.ip(&["link", "set", &device, "address", "02:00:00:00:00:77"])?;
    scene.viewer.output("sh", &["-c", &format!("ping -c 1 -W 2 -I {device} 10.7.2.1 >/dev/null || true")])?;
    scene.node.ip(&["neigh", "del", "10.7.2.2", "dev", &scene.outer])?;
    let mac = [2, 0, 0, 0, 0, 0x77];
    held.until(to_viewer(), |way| matches!(way, Way::Hop(Ok(hop)) if hop.dst_mac == mac).then_some(()))?;
    // Nobody is there any more.
    scene.viewer.ip(&["link", "set", &device, "down"])?;
    held.until(to_viewer(), |way| matches!(way, Way::Hop(Err(_))).then_some(()))?;
    held.path.stop(false);
    Ok(())
}

#[test]
fn a_next_hop_that_is_replaced_is_followed_though_no_route_says_so() -> Result<()> {
    let test = "a_next_hop_that_is_replaced_is_followed_though_no_route_says_so";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    scene.node.output("sh", &["-c", "echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode"])?;
    for (router, mac) in [("10.7.2.3", "02:00:00:00:00:73"), ("10.7.2.4", "02:00:00:00:00:74")] {
        scene.node.ip(&["neigh", "add", router, "lladdr", mac, "dev", &scene.outer, "nud", "permanent"])?;
    }
    let mut held = scene.start(&scene.settings())?;
    scene.node.ip(&["nexthop", "add", "id", "71", "via", "10.7.2.3", "dev", &scene.outer])?;
    scene.node.ip(&["route", "add", "10.9.0.0/16", "nhid", "71"])?;
    let want = Want::Hop { peer: "10.9.0.5".parse()?, local: "10.7.2.1".parse()? };
    held.share.ways.want(want);
    for (router, last) in [("10.7.2.3", 0x73), ("10.7.2.4", 0x74), ("10.7.2.3", 0x73)] {
        scene.node.ip(&["nexthop", "replace", "id", "71", "via", router, "dev", &scene.outer])?;
        held.until(want, |way| matches!(way, Way::Hop(Ok(hop)) if hop.dst_mac[5] == last).then_some(()))?;
    }
    held.path.stop(false);
    Ok(())
}

#[test]
fn thousands_of_viewers_are_answered_and_a_full_table_is_said() -> Result<()> {
    let test = "thousands_of_viewers_are_answered_and_a_full_table_is_said";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let settings = Settings { capacity: Capacity { flows: 8, legs: 64, ports: 4 }, ..scene.settings() };
    let mut held = scene.start(&settings)?;
    let local = "10.7.2.1".parse()?;
    let wants: Vec<_> = (0..4000_u32)
        .map(|n| {
            let [_, _, c, d] = n.to_be_bytes();
            Want::Hop { peer: [10, 9, c, d].into(), local }
        })
        .collect();
    for want in &wants {
        held.share.ways.want(*want);
    }
    // All of them lie behind one router.
    scene.node.ip(&["route", "add", "10.9.0.0/16", "via", "10.7.2.2"])?;
    for want in &wants {
        held.until(*want, |way| matches!(way, Way::Hop(Ok(_))).then_some(()))?;
    }
    let flow = held.forward(PORT)?;
    let entry = held.share.table.published()?[0].1;
    let mut refused = None;
    for port in 6000..6100 {
        let key = crate::kernel_scene::flow_key(port, flow.key.ifindex);
        if let Err(error) = held.share.table.put_flow(&key, &entry) {
            refused = Some(error.to_string());
            break;
        }
    }
    assert_eq!(refused.as_deref(), Some("the kernel's FLOWS map is full"));
    let traffic = Traffic::start(&scene, PORT)?;
    traffic.pass(50)?;
    traffic.end()?;
    held.path.stop(false);
    Ok(())
}
