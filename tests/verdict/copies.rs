//! Copies under real traffic: who gets which bytes, by which address family, mode, burst and checksum state.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use msm_fastpath::limits::COUNT_NOT_OURS;
use msm_fastpath::{FlowEntry, GroupMode, LegEntry};
use nix::sys::socket::{setsockopt, sockopt};

use crate::programs::Programs;
use crate::scene::{Addresses, Scene, copy, packet, receive, up};

pub(crate) const MODES: [GroupMode; 3] = [GroupMode::Opaque, GroupMode::Common, GroupMode::PerLeg];

/// Segments, bytes of each, bytes of the last one: every size that matters.
pub(crate) const BURSTS: [(u16, usize, usize); 13] = [
    (1, 172, 172),
    (1, 1_200, 1_200),
    (2, 172, 12),
    (2, 172, 172),
    (32, 1_200, 700),
    (63, 172, 100),
    (64, 172, 172),
    (65, 172, 13),
    (127, 172, 171),
    (128, 172, 172),
    (128, 12, 12),
    (3, 173, 99),
    (1, 12, 12),
];

/// Sends one run of segments as one super-packet, or as one plain datagram.
pub(crate) fn send(
    sender: &UdpSocket,
    first: u16,
    segments: u16,
    len: usize,
    last_len: usize,
) -> Result<Vec<Vec<u8>>> {
    let packets: Vec<Vec<u8>> = (0..segments)
        .map(|index| packet(first.wrapping_add(index), if index + 1 == segments { last_len } else { len }))
        .collect();
    setsockopt(&sender.as_fd(), sockopt::UdpGsoSegment, &(len as i32))?;
    sender.send(&packets.concat()).with_context(|| format!("{segments} segments of {len} bytes"))?;
    Ok(packets)
}

/// Every leg gets every packet, edited as its mode says, and nothing else.
fn all_arrive(receivers: &[UdpSocket], packets: &[Vec<u8>], mode: GroupMode, what: &str) -> Result<()> {
    for (number, socket) in receivers.iter().enumerate() {
        for (index, packet) in packets.iter().enumerate() {
            let what = || format!("{what}, {mode:?}: packet {index} at leg {number}");
            let found = receive(socket).with_context(what)?;
            assert!(found == copy(packet, mode, number as u16), "{}", what());
        }
    }
    Ok(())
}

/// What was sent is counted, and nothing as unsent.
pub(crate) fn counted(scene: &Scene, legs: &[LegEntry], packets: u64, what: &str) -> Result<()> {
    for leg in legs {
        let stats = scene.programs.leg_stats(leg.id)?;
        assert_eq!((stats.packets, stats.dropped), (packets, 0), "{what}: leg {}", leg.id);
    }
    Ok(())
}

/// In each mode over each family: single packets, and super-packets of every size that matters.
fn every_mode_and_burst(scene: &mut Scene, what: &str) -> Result<()> {
    const LEGS: u16 = 3;
    for v6 in [false, true] {
        let addresses = Addresses::new(v6);
        let sender = scene.sender(&addresses)?;
        let receivers = scene.receivers(&addresses, LEGS)?;
        for mode in MODES {
            let legs = scene.legs(&addresses, LEGS);
            scene.install(&addresses, mode, 0, &legs)?;
            let mut seq = 65_500_u16;
            let mut sent = 0;
            for (segments, len, last_len) in BURSTS {
                let what = format!("{what}, v6 {v6}, {segments} of {len} and {last_len}");
                let packets = send(&sender, seq, segments, len, last_len).context(what.clone())?;
                all_arrive(&receivers, &packets, mode, &what)?;
                seq = seq.wrapping_add(segments);
                sent += u64::from(segments);
            }
            counted(scene, &legs, sent, what)?;
            let stats = scene.programs.stats(0)?;
            assert_eq!((stats.packets, stats.highest as u16), (sent, seq.wrapping_sub(1)), "{what}");
            assert_eq!((stats.strange, stats.reordered, stats.duplicate), (0, 0, 0), "{what}");
        }
    }
    Ok(())
}

#[test]
fn every_segment_reaches_every_leg_in_every_mode() -> Result<()> {
    let Some(mut scene) = Scene::new("every_segment_reaches_every_leg_in_every_mode")? else { return Ok(()) };
    every_mode_and_burst(&mut scene, "offloads on")
}

#[test]
fn receivers_that_check_find_every_checksum_right() -> Result<()> {
    let Some(mut scene) = Scene::new("receivers_that_check_find_every_checksum_right")? else {
        return Ok(());
    };
    // The kernel completes partial checksums as it sends, and the viewer's stack checks them.
    Scene::complete_checksums(&scene.host, &scene.devices[2])?;
    every_mode_and_burst(&mut scene, "checksums completed on the way out")?;
    no_checksum_errors(&scene)
}

#[test]
fn checksums_that_the_sender_completed_stay_right() -> Result<()> {
    let Some(mut scene) = Scene::new("checksums_that_the_sender_completed_stay_right")? else {
        return Ok(());
    };
    // Without offload the sender's kernel cuts super-packets up and writes every checksum itself.
    Scene::complete_checksums(&scene.source, &scene.devices[0])?;
    every_mode_and_burst(&mut scene, "checksums of the sender")?;
    no_checksum_errors(&scene)
}

#[test]
fn the_same_program_does_the_same_on_clsact() -> Result<()> {
    let test = "the_same_program_does_the_same_on_clsact";
    let Some(mut scene) = Scene::with(test, Programs::attach_tc)? else { return Ok(()) };
    every_mode_and_burst(&mut scene, "clsact")?;
    what_is_not_ours_passes(&mut scene)
}

#[test]
fn programs_behind_this_one_see_what_is_not_ours() -> Result<()> {
    let Some(mut scene) = Scene::new("programs_behind_this_one_see_what_is_not_ours")? else { return Ok(()) };
    // Another's program: a second load of this one, with tables and counters of its own.
    let Some(mut other) = crate::kernel("programs_behind_this_one_see_what_is_not_ours")? else {
        return Ok(());
    };
    let device = scene.devices[1].clone();
    let link = scene.host.inside(|| other.attach_tcx(&device))??;
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 1)?);
    let legs = scene.legs(&addresses, 1);
    scene.install(&addresses, GroupMode::Opaque, 0, &legs)?;
    sender.send(&packet(1, 100))?;
    receive(&receivers[0])?;
    let before = other.counters()?.total();
    sender.send(&packet(2, 100))?;
    receive(&receivers[0])?;
    assert_eq!(other.counters()?.total(), before, "what is ours is not shown to others");
    what_is_not_ours_passes(&mut scene)?;
    assert!(other.counters()?.at(COUNT_NOT_OURS) > 10, "others see their own");
    drop(link);
    Ok(())
}

/// TCP, and UDP without a flow, byte for byte.
fn what_is_not_ours_passes(scene: &mut Scene) -> Result<()> {
    let listener = scene.host.inside(|| std::net::TcpListener::bind("10.9.0.2:0"))??;
    let address = listener.local_addr()?;
    let mut stream = scene.source.inside(move || std::net::TcpStream::connect(address))??;
    let (mut accepted, _) = listener.accept()?;
    let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    let mut found = vec![0; sent.len()];
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| stream.write_all(&sent));
        accepted.read_exact(&mut found)?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(())
    })?;
    assert!(found == sent, "tcp");
    let receiver = scene.host.inside(|| UdpSocket::bind("10.9.0.2:7000"))??;
    receiver.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    let sender = scene.source.inside(|| UdpSocket::bind("10.9.0.1:0"))??;
    setsockopt(&sender.as_fd(), sockopt::UdpGsoSegment, &500)?;
    sender.send_to(&sent[..4_900], "10.9.0.2:7000")?;
    for segment in sent[..4_900].chunks(500) {
        assert!(receive(&receiver)? == segment, "udp");
    }
    Ok(())
}

#[test]
fn copies_leave_a_bridge_port_and_the_worker_behind_the_bridge_gets_its_own() -> Result<()> {
    let test = "copies_leave_a_bridge_port_and_the_worker_behind_the_bridge_gets_its_own";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    // The address moves to a bridge with a MAC address of its own: what comes in by the port is for another host.
    let port = scene.devices[1].clone();
    for arguments in [
        vec!["link", "add", "bridge0", "type", "bridge"],
        vec!["link", "set", "bridge0", "address", "02:00:00:00:0b:0b"],
        vec!["addr", "flush", "dev", &port],
        vec!["link", "set", &port, "master", "bridge0"],
        vec!["addr", "add", "10.9.0.2/24", "dev", "bridge0"],
        vec!["link", "set", "bridge0", "up"],
    ] {
        scene.host.ip(&arguments)?;
    }
    up(&scene.host, "bridge0")?;
    let addresses = Addresses::new(false);
    let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
    let input = addresses.input;
    let worker = scene.host.inside(move || UdpSocket::bind(input))??;
    worker.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    let mut legs = scene.legs(&addresses, 2);
    legs[1].flags |= LegEntry::LOCAL;
    for flags in [0, FlowEntry::COPY_TO_USER] {
        scene.install(&addresses, GroupMode::PerLeg, flags, &legs)?;
        for (first, segments) in [(1, 1), (2, 1), (3, 16)] {
            let packets = send(&sender, first, segments, 172, 172)?;
            all_arrive(&receivers, &packets, GroupMode::PerLeg, "behind a bridge")?;
            for packet in packets.iter().filter(|_| flags != 0) {
                assert!(receive(&worker)? == *packet, "bit for bit");
            }
        }
    }
    Ok(())
}

pub(crate) fn no_checksum_errors(scene: &Scene) -> Result<()> {
    let text = scene.viewer.output("cat", &["/proc/net/snmp", "/proc/net/snmp6"])?;
    let mut names = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("Udp:")) {
        if names.is_empty() {
            names = line.split_whitespace().collect();
            continue;
        }
        let at = names.iter().position(|name| *name == "InCsumErrors").context("InCsumErrors")?;
        assert_eq!(line.split_whitespace().nth(at), Some("0"), "{text}");
    }
    let v6 = text.lines().find(|line| line.starts_with("Udp6InCsumErrors")).context("Udp6InCsumErrors")?;
    assert_eq!(v6.split_whitespace().nth(1), Some("0"));
    Ok(())
}

#[test]
fn hundreds_of_legs_get_their_own_copy() -> Result<()> {
    let Some(mut scene) = Scene::new("hundreds_of_legs_get_their_own_copy")? else { return Ok(()) };
    let addresses = Addresses::new(false);
    let sender = scene.sender(&addresses)?;
    let receivers = scene.receivers(&addresses, 256)?;
    for count in [1, 2, 16, 64, 256] {
        for mode in MODES {
            let legs = scene.legs(&addresses, count);
            scene.install(&addresses, mode, 0, &legs)?;
            for (first, segments) in [(10, 1), (11, 1), (12, 8)] {
                let packets = send(&sender, first, segments, 172, 172)?;
                all_arrive(&receivers[..usize::from(count)], &packets, mode, &format!("{count} legs"))?;
            }
            counted(&scene, &legs, 10, &format!("{count} legs"))?;
        }
    }
    Ok(())
}

#[test]
fn the_worker_gets_its_packet_bit_for_bit() -> Result<()> {
    let Some(mut scene) = Scene::new("the_worker_gets_its_packet_bit_for_bit")? else { return Ok(()) };
    for v6 in [false, true] {
        let addresses = Addresses::new(v6);
        let sender = scene.sender(&addresses)?;
        let receivers = scene.receivers(&addresses, 3)?;
        let input = addresses.input;
        let worker = scene.host.inside(move || UdpSocket::bind(input))??;
        worker.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        for mode in MODES {
            for count in [0, 1, 3] {
                let legs = scene.legs(&addresses, count);
                scene.install(&addresses, mode, FlowEntry::COPY_TO_USER, &legs)?;
                let mut seq = 1;
                for (segments, len, last_len) in
                    [(1, 172, 172), (2, 172, 100), (64, 172, 172), (32, 1_200, 1)]
                {
                    let what = format!("v6 {v6}, {count} legs, {segments} of {len}");
                    // A last segment without an RTP header is a mixture, and goes up alone.
                    let packets = send(&sender, seq, segments, len, last_len)?;
                    for packet in &packets {
                        assert!(receive(&worker).context(what.clone())? == *packet, "{what}, {mode:?}");
                    }
                    if last_len >= 12 {
                        all_arrive(&receivers[..usize::from(count)], &packets, mode, &what)?;
                    }
                    seq += segments;
                }
                let stats = scene.programs.stats(0)?;
                assert_eq!((stats.packets, stats.copied, stats.strange), (67, 67, 1), "{mode:?}");
                counted(&scene, &legs, 67, "copies")?;
            }
        }
    }
    Ok(())
}
