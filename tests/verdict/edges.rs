//! The edges of the copies: gates, what does not fit, what goes away, what other hosts forge.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use msm_fastpath::flow::PortKey;
use msm_fastpath::limits::{ASK_DEVICE, COUNT_TO_USER, STRANGE_PER_SECOND};
use msm_fastpath::{
    DropReason, EventKind, FlowEntry, FlowKey, FlowKind, FlowStats, Gate, GateEntry, GroupMode, LegEntry,
};
use nix::sys::socket::{setsockopt, sockopt};

use crate::frame::rtp;
use crate::scene::{Addresses, Scene, copy, packet, receive, up};
use crate::{PAYLOAD_TYPE, SSRC, entry};

/// The host's socket that waits behind the program: the worker's.
fn worker(scene: &Scene, addresses: &Addresses) -> Result<UdpSocket> {
    let input = addresses.input;
    let worker = scene.host.inside(move || UdpSocket::bind(input))??;
    worker.set_read_timeout(Some(Duration::from_secs(5)))?;
    setsockopt(&worker.as_fd(), sockopt::RcvBufForce, &(8 << 20))?;
    Ok(worker)
}

/// Packets that left by the host's end of the viewer's cable.
fn transmitted(scene: &Scene) -> Result<u64> {
    let path = format!("/sys/class/net/{}/statistics/tx_packets", scene.devices[2]);
    Ok(scene.host.output("cat", &[&path])?.trim().parse()?)
}

fn nothing_waits(socket: &UdpSocket, what: &str) -> Result<()> {
    socket.set_nonblocking(true)?;
    assert!(receive(socket).is_err(), "{what}");
    socket.set_nonblocking(false)?;
    Ok(())
}

#[test]
fn a_local_last_copy_is_handed_to_the_viewers_namespace() -> Result<()> {
    let Some(mut scene) = Scene::new("a_local_last_copy_is_handed_to_the_viewers_namespace")? else {
        return Ok(());
    };
    for v6 in [false, true] {
        let addresses = Addresses::new(v6);
        let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
        for count in [1, 2] {
            let mut legs = scene.legs(&addresses, count);
            let last = legs.last_mut().context("a leg")?;
            last.flags |= LegEntry::LOCAL;
            scene.install(&addresses, GroupMode::PerLeg, 0, &legs)?;
            let before = transmitted(&scene)?;
            for seq in 0..20 {
                let packet = packet(seq, 172);
                sender.send(&packet)?;
                for number in 0..count {
                    let found = receive(&receivers[usize::from(number)])?;
                    assert_eq!(found, copy(&packet, GroupMode::PerLeg, number), "v6 {v6}");
                }
            }
            // Only clones leave by the host's end; a few neighbour discoveries may too.
            let left = transmitted(&scene)? - before;
            assert_eq!(left / 20, u64::from(count) - 1, "{left} packets");
        }
    }
    Ok(())
}

#[test]
fn a_leg_starts_and_stops_at_its_number() -> Result<()> {
    let Some(mut scene) = Scene::new("a_leg_starts_and_stops_at_its_number")? else { return Ok(()) };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
    let worker = worker(&scene, &addresses)?;
    let legs = scene.legs(&addresses, 2);
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    let id = legs[1].id;
    scene.programs.put_gate(id, Gate::Armed(5))?;
    let mut numbers = (0..5).chain([6, 5, 7, 8]);
    for seq in numbers.by_ref() {
        sender.send(&packet(seq, 100))?;
        assert_eq!(receive(&receivers[0])?, packet(seq, 100));
    }
    // 5 is missing when 6 opens the gate, and passes late, as every leg gets it.
    for seq in [6, 5, 7, 8] {
        assert_eq!(receive(&receivers[1])?, packet(seq, 100));
    }
    let gate = scene.programs.gate(id)?;
    assert_eq!((gate.state, gate.moved_at()), (GateEntry::from(Gate::Active).state, Some(6)));
    // It drains: the packet that shuts the gate goes up to the worker, and only that.
    scene.programs.put_gate(id, Gate::Draining(11))?;
    for seq in [9, 10, 12, 11, 13] {
        sender.send(&packet(seq, 100))?;
        assert_eq!(receive(&receivers[0])?, packet(seq, 100));
    }
    for seq in [9, 10] {
        assert_eq!(receive(&receivers[1])?, packet(seq, 100));
    }
    nothing_waits(&receivers[1], "the gate is shut")?;
    assert_eq!(receive(&worker)?, packet(12, 100), "bit for bit as it came");
    nothing_waits(&worker, "the worker gets the packet of the gate and no more")?;
    let gate = scene.programs.gate(id)?;
    assert_eq!((gate.state, gate.moved_at()), (GateEntry::from(Gate::Disabled).state, Some(12)));
    let events = scene.programs.events()?;
    let kinds: Vec<_> =
        events.iter().map(|event| (EventKind::from_u8(event.kind), event.leg, event.seq)).collect();
    assert_eq!(kinds, [(Some(EventKind::Started), id, 6), (Some(EventKind::Stopped), id, 12)]);
    Ok(())
}

#[test]
fn a_leg_of_a_flow_without_numbers_starts_and_stops_at_the_next_packet() -> Result<()> {
    let test = "a_leg_of_a_flow_without_numbers_starts_and_stops_at_the_next_packet";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
    let worker = worker(&scene, &addresses)?;
    let legs = scene.legs(&addresses, 2);
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    let key = FlowKey::new(addresses.source, addresses.input, scene.ingress);
    scene.programs.put_flow(&key, &FlowEntry { legs: 2, ..entry(FlowKind::Opaque) })?;
    // Shorter than an RTP header, so nothing in it can be taken for a number.
    let datagram = |number: u8| [number; 9];
    let gate = |scene: &Scene| scene.programs.gate(legs[1].id);
    let pass = |number: u8, with_second: bool| -> Result<()> {
        sender.send(&datagram(number))?;
        assert_eq!(receive(&receivers[0])?, datagram(number));
        if with_second {
            assert_eq!(receive(&receivers[1])?, datagram(number));
        }
        Ok(())
    };
    scene.programs.put_gate(legs[1].id, Gate::Disabled)?;
    pass(1, false)?;
    scene.programs.put_gate(legs[1].id, Gate::Armed(40_000))?;
    pass(2, true)?;
    assert_eq!(gate(&scene)?.state, GateEntry::from(Gate::Active).state);
    assert!(gate(&scene)?.moved_at().is_some());
    pass(3, true)?;
    nothing_waits(&worker, "nothing has gone up so far")?;
    scene.programs.put_gate(legs[1].id, Gate::Draining(40_000))?;
    pass(4, false)?;
    assert_eq!(receive(&worker)?, datagram(4), "the worker goes on with the packet that shuts the gate");
    assert_eq!(gate(&scene)?.state, GateEntry::from(Gate::Disabled).state);
    assert!(gate(&scene)?.moved_at().is_some());
    pass(5, false)?;
    nothing_waits(&receivers[1], "the gate is shut")?;
    nothing_waits(&worker, "the worker gets the packet of the gate and no more")?;
    let told: Vec<_> = scene.programs.events()?.iter().map(|event| (event.kind, event.seq)).collect();
    assert_eq!(told, [(EventKind::Started as u8, 0), (EventKind::Stopped as u8, 0)]);
    Ok(())
}

#[test]
fn rtcp_between_rtp_moves_no_gate() -> Result<()> {
    let Some(mut scene) = Scene::new("rtcp_between_rtp_moves_no_gate")? else { return Ok(()) };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 1)?);
    let legs = scene.legs(&addresses, 1);
    scene.install(&addresses, GroupMode::Opaque, FlowEntry::FORWARD_RTCP, &legs)?;
    let key = FlowKey::new(addresses.source, addresses.input, scene.ingress);
    let muxed = FlowEntry { legs: 1, flags: FlowEntry::FORWARD_RTCP, ..entry(FlowKind::Muxed) };
    scene.programs.put_flow(&key, &muxed)?;
    let report = [&[0x80, 200, 0, 6][..], &[7; 24]].concat();
    let armed = GateEntry::from(Gate::Armed(5));
    scene.programs.put_gate(legs[0].id, Gate::Armed(5))?;
    sender.send(&report)?;
    sender.send(&packet(4, 100))?;
    sender.send(&report)?;
    nothing_waits(&receivers[0], "the gate is armed")?;
    assert_eq!(scene.programs.gate(legs[0].id)?, armed);
    sender.send(&packet(5, 100))?;
    sender.send(&report)?;
    assert_eq!(receive(&receivers[0])?, packet(5, 100));
    assert_eq!(receive(&receivers[0])?, report);
    Ok(())
}

#[test]
fn what_does_not_fit_is_dropped_for_its_leg_alone() -> Result<()> {
    let Some(mut scene) = Scene::new("what_does_not_fit_is_dropped_for_its_leg_alone")? else {
        return Ok(());
    };
    let addresses = Addresses::new(false);
    let sender = scene.sender(&addresses)?;
    setsockopt(&sender.as_fd(), sockopt::Ipv4Ttl, &1)?;
    let receivers = scene.receivers(&addresses, 5)?;
    let mut legs = scene.legs(&addresses, 5);
    // The TTL of these packets is used up, so a leg needs one of its own.
    for leg in &mut legs {
        leg.ttl = 64;
    }
    legs[0].mtu = 127;
    legs[1].ttl = 0;
    legs[2].ifindex = scene.ingress;
    legs[3].ifindex = 0x7fff_0000;
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    let before = scene.programs.counters()?;
    for seq in 0..10 {
        sender.send(&packet(seq, 100))?;
        assert_eq!(receive(&receivers[4])?, packet(seq, 100));
    }
    let after = scene.programs.counters()?;
    for (leg, reason) in
        [(0, DropReason::Mtu), (1, DropReason::Ttl), (2, DropReason::Loop), (3, DropReason::RingFull)]
    {
        assert_eq!(after.dropped(reason) - before.dropped(reason), 10, "{reason}");
        let stats = scene.programs.leg_stats(legs[leg].id)?;
        assert_eq!((stats.packets, stats.dropped, stats.reason()), (0, 10, reason), "{reason}");
    }
    Ok(())
}

#[test]
fn a_viewer_interface_that_vanishes_hurts_nobody_else() -> Result<()> {
    let Some(mut scene) = Scene::new("a_viewer_interface_that_vanishes_hurts_nobody_else")? else {
        return Ok(());
    };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
    const SENT: u16 = 80;
    // In between the copy is a clone; the last one is the packet itself.
    for (place, flags) in [(1, 0), (2, 0), (2, LegEntry::LOCAL)] {
        scene.host.ip(&["link", "add", "gone0", "type", "veth", "peer", "name", "gone1"])?;
        scene.host.ip(&["link", "set", "gone0", "up"])?;
        scene.host.ip(&["link", "set", "gone1", "up"])?;
        up(&scene.host, "gone0")?;
        let gone = scene.host.inside(|| nix::net::if_::if_nametoindex("gone0"))??;
        let mut legs = scene.legs(&addresses, 2);
        let ghost = LegEntry { ifindex: gone, id: 3_000, flags, ..scene.leg(&addresses, 2) };
        legs.insert(place, ghost);
        scene.install(&addresses, GroupMode::PerLeg, 0, &legs)?;
        let before = scene.programs.counters()?.dropped(DropReason::RingFull);
        for seq in 0..SENT {
            if seq == 10 {
                scene.host.ip(&["link", "del", "gone0"])?;
            }
            let packet = packet(seq, 172);
            sender.send(&packet)?;
            for (number, socket) in receivers.iter().enumerate() {
                let expected = copy(&packet, GroupMode::PerLeg, number as u16);
                assert_eq!(receive(socket)?, expected, "packet {seq}, ghost at {place}");
            }
        }
        let stats = scene.programs.leg_stats(ghost.id)?;
        assert_eq!(stats.packets + stats.dropped, u64::from(SENT), "ghost at {place}, flags {flags}");
        // A clone is refused. For the last copy the interface is asked for now and then.
        let late = if place == 2 { u64::from(ASK_DEVICE) } else { 0 };
        assert!((10..=10 + late).contains(&stats.packets), "{stats:?}: ghost at {place}, flags {flags}");
        assert_eq!(scene.programs.counters()?.dropped(DropReason::RingFull) - before, stats.dropped);
    }
    Ok(())
}

#[test]
fn strangers_get_nowhere_and_cost_the_source_nothing() -> Result<()> {
    let Some(mut scene) = Scene::new("strangers_get_nowhere_and_cost_the_source_nothing")? else {
        return Ok(());
    };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 1)?);
    let worker = worker(&scene, &addresses)?;
    let legs = scene.legs(&addresses, 1);
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    scene.programs.put_port(&PortKey::new(addresses.input), PortKey::STRICT)?;
    let stranger = scene.source.inside(|| UdpSocket::bind("10.9.0.1:6000"))??;
    let mut handed = 0;
    for seq in 0..400_u16 {
        sender.send(&packet(seq, 100))?;
        // Five SSRCs of their own for each good packet, and five forged sources.
        for number in 1..=5 {
            sender.send(&rtp(PAYLOAD_TYPE, seq, SSRC + number))?;
            stranger.send_to(&rtp(PAYLOAD_TYPE, seq, SSRC), addresses.input)?;
        }
        assert_eq!(receive(&receivers[0])?, packet(seq, 100));
    }
    nothing_waits(&receivers[0], "the viewer gets the source's packets alone")?;
    worker.set_nonblocking(true)?;
    while let Ok(packet) = receive(&worker) {
        assert_ne!(packet[8..12], SSRC.to_be_bytes(), "only unknown SSRCs go up");
        handed += 1;
    }
    let (stats, counters) = (scene.programs.stats(0)?, scene.programs.counters()?);
    assert_eq!((stats.packets, stats.reordered, stats.duplicate), (400, 0, 0));
    assert_eq!((stats.strange, stats.strange + stats.dropped), (handed, 2_000));
    assert_eq!(counters.dropped(DropReason::Ssrc), stats.dropped);
    assert!(handed >= u64::from(STRANGE_PER_SECOND), "{handed}");
    assert_eq!(counters.dropped(DropReason::UnknownSource), 2_000);
    let events = scene.programs.events()?;
    let kinds =
        |kind| events.iter().filter(|event| EventKind::from_u8(event.kind) == Some(kind)).count() as u64;
    let seconds = handed.div_ceil(u64::from(STRANGE_PER_SECOND));
    assert!((1..=seconds).contains(&kinds(EventKind::NewSsrc)), "one event a second: {events:?}");
    assert!((1..=seconds).contains(&kinds(EventKind::RateLimited)), "{events:?}");
    Ok(())
}

#[test]
fn lost_bursts_are_told() -> Result<()> {
    let Some(mut scene) = Scene::new("lost_bursts_are_told")? else { return Ok(()) };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 1)?);
    let legs = scene.legs(&addresses, 1);
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    for seq in [1, 2, 17, 34, 35] {
        sender.send(&packet(seq, 100))?;
        assert_eq!(receive(&receivers[0])?, packet(seq, 100));
    }
    let told: Vec<_> = scene.programs.events()?.iter().map(|event| (event.kind, event.seq)).collect();
    assert_eq!(told, [(EventKind::BurstLoss as u8, 34)]);
    Ok(())
}

#[test]
fn an_entry_of_another_flow_hands_up() -> Result<()> {
    let Some(mut scene) = Scene::new("an_entry_of_another_flow_hands_up")? else { return Ok(()) };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 1)?);
    let worker = worker(&scene, &addresses)?;
    let legs = scene.legs(&addresses, 1);
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    let key = FlowKey::new(addresses.source, addresses.input, scene.ingress);
    let other = FlowKey { src_port: [1, 2], ..key };
    let foreign = FlowEntry { mode: GroupMode::Opaque as u8, legs: 1, ..entry(FlowKind::Rtp) }.under(&other);
    scene.programs.put_flow_as_is(&key, &foreign)?;
    let before = scene.programs.counters()?.at(COUNT_TO_USER);
    sender.send(&packet(1, 100))?;
    assert_eq!(receive(&worker)?, packet(1, 100));
    nothing_waits(&receivers[0], "the memory of a replaced entry may be another flow's already")?;
    assert_eq!(scene.programs.counters()?.at(COUNT_TO_USER), before + 1);
    assert_eq!(scene.programs.stats(0)?, FlowStats::ZERO);
    Ok(())
}

#[test]
fn dscp_is_the_legs_and_ecn_the_packets() -> Result<()> {
    let Some(mut scene) = Scene::new("dscp_is_the_legs_and_ecn_the_packets")? else { return Ok(()) };
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
    setsockopt(&sender.as_fd(), sockopt::Ipv4Tos, &0b0000_1001)?;
    let mut legs = scene.legs(&addresses, 2);
    legs[0].flags = LegEntry::SET_DSCP;
    legs[0].dscp = 34;
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    let expected = [(34 << 2) | 1, 0b0000_1001];
    for (seq, (socket, tos)) in receivers.iter().zip(expected).enumerate() {
        setsockopt(&socket.as_fd(), sockopt::IpRecvTos, &true)?;
        sender.send(&packet(seq as u16, 100))?;
        assert_eq!(received_tos(socket)?, tos);
        for other in &receivers {
            other.set_nonblocking(true)?;
            while receive(other).is_ok() {}
            other.set_nonblocking(false)?;
        }
    }
    Ok(())
}

/// The TOS byte of the next datagram.
fn received_tos(socket: &UdpSocket) -> Result<u8> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::AsRawFd as _;
    let mut space = nix::cmsg_space!(u8, u32);
    let mut buffer = [0; 2_048];
    let mut vectors = [std::io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), MsgFlags::empty())?;
    message
        .cmsgs()?
        .find_map(|message| if let ControlMessageOwned::Ipv4Tos(tos) = message { Some(tos) } else { None })
        .context("no TOS came with it")
}
