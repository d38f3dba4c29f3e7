//! Copies under real traffic: who gets which bytes, by which address family, mode, burst and checksum state.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use msm_fastpath::{FlowEntry, GroupMode, LegEntry};
use nix::sys::socket::{setsockopt, sockopt};

use crate::scene::{Addresses, Scene, copy, packet, receive};

const MODES: [GroupMode; 3] = [GroupMode::Opaque, GroupMode::Common, GroupMode::PerLeg];

/// Sends one run of segments as one super-packet, or as one plain datagram.
fn send(sender: &UdpSocket, first: u16, segments: u16, len: usize, last_len: usize) -> Result<Vec<Vec<u8>>> {
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
fn counted(scene: &Scene, legs: &[LegEntry], packets: u64, what: &str) -> Result<()> {
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
            for (segments, len, last_len) in [
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
            ] {
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

fn no_checksum_errors(scene: &Scene) -> Result<()> {
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
