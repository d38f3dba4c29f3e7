//! Random super-packets over a veth, with the partial checksums that no test run can make, against the host's own
//! functions.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use msm_fastpath::gso::Segments;
use msm_fastpath::{
    Arrival, FlowEntry, FlowKey, FlowKind, FlowStats, Gate, GateEntry, GroupMode, LegEntry, Progress,
    RtpEdit, RtpFixed, rewrite,
};
use nix::sys::socket::{setsockopt, sockopt};

use crate::copies::{MODES, no_checksum_errors};
use crate::random::{Random, cases};
use crate::scene::{Addresses, Scene, receive};
use crate::{PAYLOAD_TYPE, SSRC, entry};

const LEGS: u16 = 4;

/// One super-packet, and what is installed for it.
#[derive(Debug)]
struct Case {
    mode: GroupMode,
    common: RtpEdit,
    to_user: bool,
    stats: FlowStats,
    legs: Vec<(LegEntry, Gate)>,
    /// Bytes of each datagram; the last one may be shorter.
    size: usize,
    packets: Vec<Vec<u8>>,
}

fn random_edit(random: &mut Random) -> RtpEdit {
    if random.one_in(4) {
        RtpEdit::TRANSPARENT
    } else {
        RtpEdit::projected(random.next() as u32, random.next() as u16, random.next() as u32)
    }
}

fn random_case(random: &mut Random, scene: &Scene, addresses: &Addresses) -> Case {
    let highest = 0x1_0000 + random.below(0x2_0000);
    let timestamp = random.next() as u32;
    let stats = FlowStats {
        highest,
        window: random.next() | 1,
        last_timestamp: timestamp,
        seen: 1,
        ..FlowStats::ZERO
    };
    let count = random.of(&[1, 2, 3, 17, 32, 63, 64, 65, 100, 127, 128]);
    let size = random.of(&[12, 13, 20, 172, 173, 400, 1_200]).min(60_000 / count);
    let last = 12 + random.below(size as u64 - 11) as usize;
    let first = (highest as u16).wrapping_add(random.of(&[1, 1, 1, 2, 20, 2_000, 0, 65_500]));
    let packets = (0..count).map(|index| {
        // A datagram may come late, or twice, within one burst.
        let seq = first.wrapping_add(index as u16).wrapping_sub(random.of(&[0, 0, 0, 0, 0, 0, 1, 3]));
        let time = timestamp.wrapping_add(random.below(800_000) as u32);
        let header = RtpFixed::new(PAYLOAD_TYPE, random.one_in(9), seq, time, SSRC);
        let mut packet = header.to_bytes().to_vec();
        packet.resize_with(if index + 1 == count { last } else { size }, || random.next() as u8);
        packet
    });
    let packets = packets.collect();
    let gate_at = (highest as u16).wrapping_add(random.below(8) as u16).wrapping_sub(3);
    let legs = (0..LEGS).map(|number| {
        let leg = LegEntry { edit: random_edit(random), ..scene.leg(addresses, number) };
        let gates =
            [Gate::Active, Gate::Active, Gate::Disabled, Gate::Armed(gate_at), Gate::Draining(gate_at)];
        (leg, random.of(&gates))
    });
    let legs = legs.collect();
    Case {
        mode: random.of(&MODES),
        common: random_edit(random),
        to_user: random.one_in(3),
        stats,
        legs,
        size,
        packets,
    }
}

impl Case {
    fn install(&self, scene: &mut Scene, addresses: &Addresses) -> Result<()> {
        for (slot, (leg, gate)) in self.legs.iter().enumerate() {
            scene.programs.put_leg(slot as u32, leg)?;
            scene.programs.put_gate(leg.id, *gate)?;
            scene.programs.clear_leg_stats(leg.id)?;
        }
        scene.programs.put_stats(0, self.stats)?;
        let key = FlowKey::new(addresses.source, addresses.input, scene.ingress);
        let flags = if self.to_user { FlowEntry::COPY_TO_USER } else { 0 };
        let entry =
            FlowEntry { mode: self.mode as u8, flags, legs: LEGS, edit: self.common, ..entry(FlowKind::Rtp) };
        scene.programs.put_flow(&key, &entry)
    }

    /// What a leg gets of each datagram.
    fn edit(&self, leg: &LegEntry) -> RtpEdit {
        match self.mode {
            GroupMode::PerLeg => leg.edit,
            GroupMode::Common => self.common,
            GroupMode::Opaque | GroupMode::ToUser => RtpEdit::TRANSPARENT,
        }
    }

    /// The books after it, the clock aside; `copied`: whether the worker gets it.
    fn books(&self, copied: bool) -> Option<FlowStats> {
        let len: usize = self.packets.iter().map(Vec::len).sum();
        let segments = Segments::new(len as u32, self.size as u32)?;
        let mut progress = Progress::of(&self.stats);
        let arrival = Arrival::new(0, 90_000);
        for packet in &self.packets {
            let rtp = RtpFixed::from_bytes(*packet.first_chunk()?);
            if !progress.continues(rtp.seq(), rtp.timestamp(), &arrival) {
                return None;
            }
            progress.take(rtp.seq(), rtp.timestamp(), &arrival);
        }
        let mut stats = self.stats;
        progress.store(&mut stats, &segments, &arrival);
        progress.settle(&mut stats, &segments, copied);
        Some(stats)
    }
}

/// What does not depend on the clock.
fn timeless(stats: FlowStats) -> FlowStats {
    FlowStats {
        last_arrival: 0,
        timestamp_at: 0,
        handed_since: 0,
        handed: 0,
        transit: 0,
        jitter: 0,
        bursts: 0,
        ..stats
    }
}

#[test]
fn random_super_packets_are_edited_as_the_host_edits_them() -> Result<()> {
    let test = "random_super_packets_are_edited_as_the_host_edits_them";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    // The kernel completes the sums as it sends, and the viewer's stack checks them.
    Scene::complete_checksums(&scene.host, &scene.devices[2])?;
    let mut random = Random::seeded(test)?;
    let mut copies = 0;
    for v6 in [false, true] {
        let addresses = Addresses::new(v6);
        let (sender, receivers) = (scene.sender(&addresses)?, scene.receivers(&addresses, LEGS)?);
        let input = addresses.input;
        let worker = scene.host.inside(move || std::net::UdpSocket::bind(input))??;
        worker.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        setsockopt(&worker.as_fd(), sockopt::RcvBufForce, &(8 << 20))?;
        for number in 0..cases(200)? {
            let case = random_case(&mut random, &scene, &addresses);
            let what = || format!("v6 {v6}, case {number}: {:.1500}", format!("{case:?}"));
            case.install(&mut scene, &addresses)?;
            setsockopt(&sender.as_fd(), sockopt::UdpGsoSegment, &(case.size as i32))?;
            sender.send(&case.packets.concat()).with_context(what)?;
            let first = RtpFixed::from_bytes(*case.packets[0].first_chunk().context("a header")?);
            let newest = Progress::of(&case.stats).is_newest(first.seq());
            let mut to_user = case.to_user;
            for ((leg, gate), socket) in case.legs.iter().zip(&receivers) {
                let (gate, step) = GateEntry::from(*gate).step(first.seq(), newest);
                to_user |= step == msm_fastpath::Step::Stop;
                let passed = if step.passes() { case.packets.as_slice() } else { &[] };
                for packet in passed {
                    let found = receive(socket).with_context(what)?;
                    let header = RtpFixed::from_bytes(*packet.first_chunk().context("a header")?);
                    let expected =
                        [&rewrite(&header, &case.edit(leg)).to_bytes()[..], &packet[12..]].concat();
                    assert!(found == expected, "leg {}, {}", leg.id, what());
                    copies += 1;
                }
                assert_eq!(scene.programs.gate(leg.id)?, gate, "leg {}, {}", leg.id, what());
                let stats = scene.programs.leg_stats(leg.id)?;
                assert_eq!((stats.packets, stats.dropped), (passed.len() as u64, 0), "{}", what());
            }
            for packet in case.packets.iter().filter(|_| to_user) {
                assert!(receive(&worker).with_context(what)? == *packet, "bit for bit, {}", what());
            }
            let books = case.books(to_user).with_context(what)?;
            assert_eq!(timeless(scene.programs.stats(0)?), timeless(books), "{}", what());
        }
        for socket in receivers.iter().chain([&worker]) {
            socket.set_nonblocking(true)?;
            assert!(receive(socket).is_err(), "nothing else comes");
        }
    }
    eprintln!("{copies} datagrams compared");
    no_checksum_errors(&scene)
}
