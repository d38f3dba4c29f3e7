//! Merged bursts on both sides: sockets that receive whole super-packets, and plain senders whose datagrams the
//! source's interface merges.

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_fastpath::limits::{COUNT_FORWARD, COUNT_TO_USER};
use msm_fastpath::{FlowEntry, FlowKind, GroupMode};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::copies::{BURSTS, MODES, counted, no_checksum_errors, send};
use crate::frame::Frame;
use crate::run::run_tcx;
use crate::scene::{Addresses, Scene, copy, packet, receive};

/// The next buffer of a socket that takes super-packets: its datagrams.
pub(crate) fn receive_merged(socket: &UdpSocket) -> Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0; 65_536];
    let mut space = nix::cmsg_space!(i32);
    let (len, size) = {
        let mut vectors = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), MsgFlags::empty())?;
        let size = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(size) => Some(size as usize),
            _ => None,
        });
        (message.bytes, size)
    };
    buffer.truncate(len);
    Ok(match size {
        Some(size) => buffer.chunks(size).map(<[u8]>::to_vec).collect(),
        None => vec![buffer],
    })
}

fn merging(receivers: &[UdpSocket]) -> Result<()> {
    for socket in receivers {
        setsockopt(&socket.as_fd(), sockopt::UdpGroSegment, &true)?;
    }
    Ok(())
}

/// Every datagram of a run at one leg, whatever buffers it comes in. Returns how many buffers those were.
fn all_arrive_merged(socket: &UdpSocket, packets: &[Vec<u8>], mode: GroupMode, number: u16) -> Result<usize> {
    let (mut at, mut buffers) = (0, 0);
    while at < packets.len() {
        let found = receive_merged(socket).with_context(|| format!("datagram {at} of {}", packets.len()))?;
        ensure!(
            at + found.len() <= packets.len(),
            "{} datagrams after {at} of {}",
            found.len(),
            packets.len()
        );
        for datagram in found {
            ensure!(datagram == copy(&packets[at], mode, number), "datagram {at} of {}", packets.len());
            at += 1;
        }
        buffers += 1;
    }
    Ok(buffers)
}

#[test]
fn receivers_of_super_packets_find_every_segment_right() -> Result<()> {
    const LEGS: u16 = 3;
    let Some(mut scene) = Scene::new("receivers_of_super_packets_find_every_segment_right")? else {
        return Ok(());
    };
    for v6 in [false, true] {
        let addresses = Addresses::new(v6);
        let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, LEGS)?);
        merging(&receivers)?;
        for mode in MODES {
            let legs = scene.legs(&addresses, LEGS);
            scene.install(&addresses, mode, 0, &legs)?;
            let (mut seq, mut sent) = (65_500_u16, 0);
            for (segments, len, last_len) in BURSTS {
                let packets = send(&sender, seq, segments, len, last_len)?;
                for (number, socket) in receivers.iter().enumerate() {
                    let what =
                        || format!("v6 {v6}, {mode:?}, {segments} of {len} and {last_len}, leg {number}");
                    let buffers =
                        all_arrive_merged(socket, &packets, mode, number as u16).with_context(what)?;
                    assert_eq!(buffers, 1, "it arrives in one piece: {}", what());
                }
                seq = seq.wrapping_add(segments);
                sent += u64::from(segments);
            }
            counted(&scene, &legs, sent, &format!("v6 {v6}, {mode:?}"))?;
        }
    }
    Ok(())
}

/// The source's interface as the proxy sets it for a source of bursts, and with `list` as no proxy does.
fn merge_at_the_source(scene: &Scene, list: bool) -> Result<()> {
    let device = &scene.devices[1];
    let mut arguments = vec!["-K", device, "gro", "on", "rx-udp-gro-forwarding", "on"];
    if list {
        arguments.extend(["rx-gro-list", "on"]);
    }
    scene.host.output("ethtool", &arguments)?;
    // What waits for a neighbour leaves when that answers, beside what is sent then: out of order.
    let mac = scene.mac_of_input()?.map(|byte| format!("{byte:02x}")).join(":");
    for v6 in [false, true] {
        let input = Addresses::new(v6).input.ip().to_string();
        let to = ["neigh", "replace", &input, "lladdr", &mac, "dev", &scene.devices[0], "nud", "permanent"];
        scene.source.ip(&to)?;
    }
    let threaded = format!("echo 1 > /sys/class/net/{device}/threaded");
    scene.host.output("sh", &["-c", &threaded]).map(drop)
}

/// Packets of this run are numbered on from `seq`; the last one is shorter.
fn burst(sender: &UdpSocket, seq: u16, count: u16) -> Result<Vec<Vec<u8>>> {
    let packets: Vec<_> = (0..count)
        .map(|index| packet(seq.wrapping_add(index), if index + 1 == count { 100 } else { 172 }))
        .collect();
    for packet in &packets {
        sender.send(packet)?;
    }
    Ok(packets)
}

/// Bursts are sent until the interface has merged so many of them; that depends on when its thread wakes up.
const MERGED: u64 = 5;
const BURST: u16 = 32;

#[test]
fn bursts_of_a_plain_sender_are_merged_and_every_datagram_is_right() -> Result<()> {
    let test = "bursts_of_a_plain_sender_are_merged_and_every_datagram_is_right";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    merge_at_the_source(&scene, false)?;
    // What the sender left to be summed, and what it summed itself.
    for offload in ["on", "off"] {
        scene.source.output("ethtool", &["-K", &scene.devices[0], "tx", offload])?;
        for v6 in [false, true] {
            let addresses = Addresses::new(v6);
            let sender = scene.sender(&addresses)?;
            // One leg takes merged buffers, the others do not.
            let receivers = scene.receivers(&addresses, 3)?;
            merging(&receivers[..1])?;
            for mode in MODES {
                let what = format!("offload {offload}, v6 {v6}, {mode:?}");
                let legs = scene.legs(&addresses, 3);
                scene.install(&addresses, mode, 0, &legs)?;
                let (mut seq, mut sent, mut merged) = (65_400_u16, 0, 0);
                let deadline = Instant::now() + Duration::from_secs(20);
                while merged < MERGED {
                    ensure!(Instant::now() < deadline, "{what}: nothing is merged");
                    let before = scene.programs.counters()?.at(COUNT_FORWARD);
                    let packets = burst(&sender, seq, BURST)?;
                    for (number, socket) in receivers.iter().enumerate() {
                        all_arrive_merged(socket, &packets, mode, number as u16)
                            .with_context(|| format!("{what}, from {seq} at leg {number}"))?;
                    }
                    let buffers = scene.programs.counters()?.at(COUNT_FORWARD) - before;
                    merged += u64::from(buffers < u64::from(BURST));
                    seq = seq.wrapping_add(BURST);
                    sent += u64::from(BURST);
                }
                counted(&scene, &legs, sent, &what)?;
                let stats = scene.programs.stats(0)?;
                assert_eq!((stats.packets, stats.strange, stats.reordered), (sent, 0, 0), "{what}");
            }
        }
    }
    no_checksum_errors(&scene)
}

/// A list of whole packets that hang together (`rx-gro-list`) reaches the legs right, or the worker as it came.
#[test]
fn lists_of_packets_are_the_workers_or_right() -> Result<()> {
    let Some(mut scene) = Scene::new("lists_of_packets_are_the_workers_or_right")? else { return Ok(()) };
    merge_at_the_source(&scene, true)?;
    for (offload, is_whole) in [("on", false), ("off", true)] {
        scene.source.output("ethtool", &["-K", &scene.devices[0], "tx", offload])?;
        for v6 in [false, true] {
            let addresses = Addresses::new(v6);
            let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
            let input = addresses.input;
            let worker = scene.host.inside(move || UdpSocket::bind(input))??;
            worker.set_nonblocking(true)?;
            for mode in MODES {
                let what = format!("offload {offload}, v6 {v6}, {mode:?}");
                let legs = scene.legs(&addresses, 2);
                scene.install(&addresses, mode, 0, &legs)?;
                let (mut seq, mut forwarded, mut handed, mut merged) = (1_u16, 0, 0, 0);
                let deadline = Instant::now() + Duration::from_secs(20);
                while merged < MERGED {
                    ensure!(Instant::now() < deadline, "{what}: nothing is merged");
                    let before = scene.programs.counters()?;
                    let mut rest = burst(&sender, seq, BURST)?.into_iter();
                    // What the program did not forward went up, in order and as it was.
                    let mut up = Vec::new();
                    while up.len() as u64 + (scene.programs.stats(0)?.packets - forwarded) < u64::from(BURST)
                    {
                        ensure!(Instant::now() < deadline, "{what}: {} went up", up.len());
                        up.extend(std::iter::from_fn(|| receive(&worker).ok()));
                    }
                    up.extend(std::iter::from_fn(|| receive(&worker).ok()));
                    let mut ours = Vec::new();
                    for datagram in up {
                        ours.extend(rest.by_ref().take_while(|packet| *packet != datagram));
                    }
                    ours.extend(rest);
                    forwarded += ours.len() as u64;
                    for (number, socket) in receivers.iter().enumerate() {
                        for packet in &ours {
                            let found = receive(socket).with_context(|| what.clone())?;
                            ensure!(found == copy(packet, mode, number as u16), "{what}, leg {number}");
                        }
                    }
                    let after = scene.programs.counters()?;
                    let in_one = |index| after.at(index) - before.at(index);
                    merged += u64::from(in_one(COUNT_TO_USER) + in_one(COUNT_FORWARD) < u64::from(BURST));
                    handed += in_one(COUNT_TO_USER);
                    seq = seq.wrapping_add(BURST);
                }
                // What has partial sums is the program's, what has complete ones never.
                assert_eq!(handed > 0, is_whole, "{what}");
                assert_eq!(scene.programs.stats(0)?.packets, forwarded, "{what}");
                counted(&scene, &legs, forwarded, &what)?;
            }
        }
    }
    no_checksum_errors(&scene)
}

/// The last header of these is beyond what a program may address, so nobody could edit it. Over IPv6 a device has
/// segmented them before: with all headers they are longer than the 64 KiB that it takes.
#[test]
fn super_packets_of_nearly_64_kib_are_the_workers_where_headers_change() -> Result<()> {
    let test = "super_packets_of_nearly_64_kib_are_the_workers_where_headers_change";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    for v6 in [false, true] {
        let addresses = Addresses::new(v6);
        let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, 2)?);
        let input = addresses.input;
        let worker = scene.host.inside(move || UdpSocket::bind(input))??;
        worker.set_read_timeout(Some(Duration::from_secs(5)))?;
        setsockopt(&worker, sockopt::RcvBufForce, &(1 << 20))?;
        for mode in MODES {
            let legs = scene.legs(&addresses, 2);
            scene.install(&addresses, mode, 0, &legs)?;
            let (mut seq, mut forwarded) = (65_500_u16, 0);
            for (segments, last_len) in [(55, 1_169), (57, 20), (1, 172)] {
                let what = || format!("v6 {v6}, {mode:?}, {segments} segments, the last of {last_len}");
                let packets = send(&sender, seq, segments, 1_169, last_len)?;
                let theirs = v6 || mode == GroupMode::Opaque || segments != 57;
                forwarded += if theirs { u64::from(segments) } else { 0 };
                for packet in &packets {
                    for (number, socket) in receivers.iter().enumerate().filter(|_| theirs) {
                        let found = receive(socket).with_context(what)?;
                        ensure!(found == copy(packet, mode, number as u16), "{}, leg {number}", what());
                    }
                    if !theirs {
                        ensure!(receive(&worker).with_context(what)? == *packet, "{}", what());
                    }
                }
                seq = seq.wrapping_add(segments);
            }
            counted(&scene, &legs, forwarded, &format!("v6 {v6}, {mode:?}"))?;
        }
    }
    no_checksum_errors(&scene)
}

/// No socket makes such a one: the kernel refuses more than 128 segments of any sender, and merges at most 64.
#[test]
fn more_segments_than_any_loop_walks_are_the_workers() -> Result<()> {
    let test = "more_segments_than_any_loop_walks_are_the_workers";
    let Some(mut kernel) = crate::kernel(test)? else { return Ok(()) };
    for (stats, v6) in [(0, false), (1, true)] {
        let key = if v6 { crate::key6 } else { crate::key };
        let flow = FlowEntry { stats, ..crate::entry(FlowKind::Rtp) };
        kernel.put_flow(&key(5004, 8062, crate::LOOPBACK), &flow)?;
        for (count, strange) in [(128_u16, 0), (129, 1)] {
            let packets: Vec<_> = (0..count).flat_map(|seq| packet(seq, 20)).collect();
            let frame = Frame::udp(5004, 8062, &packets);
            let frame = if v6 { frame.v6() } else { frame }.bytes();
            let before = kernel.counters()?;
            let outcome = run_tcx(&kernel, &frame, 20, false)?;
            let after = kernel.counters()?;
            // To the worker both: test runs know no partial checksums.
            assert_eq!((outcome.verdict, outcome.frame), (0, frame), "{count} segments, v6 {v6}: as it came");
            assert_eq!(after.at(COUNT_TO_USER) - before.at(COUNT_TO_USER), 1);
            let books = kernel.stats(stats)?;
            assert_eq!((books.packets, books.strange), (0, strange), "{count} segments, v6 {v6}");
        }
    }
    Ok(())
}
