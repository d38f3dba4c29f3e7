//! The compiled program against the functions it is made of, run on the host, on random tables and frames.

use anyhow::{Context as _, Result};
use msm_fastpath::csum::Delta;
use msm_fastpath::flow::mapped;
use msm_fastpath::gso::Segments;
use msm_fastpath::limits::{
    COUNT_FORWARD, COUNT_NOT_OURS, COUNT_TO_USER, STRANGE_PER_SECOND, VERDICT_COUNTERS,
};
use msm_fastpath::progress::Arrival;
use msm_fastpath::{
    Admission, Checksum, Course, DropReason, Family, FlowEntry, FlowKind, FlowStats, Gate, GateEntry,
    GroupMode, Head, LegEntry, PassReason, PayloadTypes, Progress, RtpEdit, RtpFixed, Step, decide_flow,
    is_of_track, rewrite,
};
use msm_tests::lab::Lab;
use msm_tests::privilege::{Need, granted};

use crate::frame::Frame;
use crate::programs::Programs;
use crate::random::{Random, cases};
use crate::run::run_tcx;
use crate::{LOOPBACK, PAYLOAD_TYPE, SSRC, kernel, key, key6};

const NEXT: i32 = -1;
const OK: i32 = 0;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
const STATS: u32 = 3;
const SLOT: u32 = 40;
const ID: u32 = 77;

/// One case: what is installed, and what comes.
#[derive(Debug, Clone)]
struct Case {
    family: Family,
    entry: FlowEntry,
    stats: FlowStats,
    legs: Vec<(LegEntry, Gate)>,
    frame: Vec<u8>,
    gso_size: u32,
    summed: bool,
}

/// What is to become of it.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    verdict: i32,
    frame: Vec<u8>,
    counted: Vec<u32>,
    stats: FlowStats,
    legs: Vec<LegOutcome>,
}

/// What is to become of a leg.
#[derive(Debug, PartialEq, Eq)]
struct LegOutcome {
    gate: GateEntry,
    sent: u64,
    unsent: u64,
}

fn random_case(random: &mut Random) -> Case {
    let family = random.of(&[Family::V4, Family::V6]);
    let mut types = PayloadTypes::of(&[PAYLOAD_TYPE]);
    if random.one_in(3) {
        types = PayloadTypes { low: random.next(), high: random.next() | 1 << (PAYLOAD_TYPE - 64) };
    }
    let admission =
        if random.one_in(3) { Admission::any_ssrc(types) } else { Admission::only_ssrc(types, SSRC) };
    let edit = |random: &mut Random| {
        if random.one_in(3) {
            RtpEdit::TRANSPARENT
        } else {
            RtpEdit::projected(random.next() as u32, random.next() as u16, random.next() as u32)
        }
    };
    let mut flags = 0;
    if random.one_in(3) {
        flags |= FlowEntry::FORWARD_RTCP;
    }
    if random.one_in(3) {
        flags |= FlowEntry::COPY_TO_USER;
    }
    let entry = FlowEntry {
        edit: edit(random),
        first_leg: SLOT,
        legs: random.of(&[0, 1, 1, 1, 2, 3, 4]),
        kind: random.of(&[0, 0, 0, 0, 1, 2, 2, 3, 4]),
        mode: random.of(&[0, 0, 1, 1, 2, 2, 3, 4]),
        flags,
        ..FlowEntry::new(FlowKind::Rtp, admission, STATS, 90_000)
    };
    let highest = 0x1_0000 + random.below(0x2_0000);
    let timestamp = random.next() as u32;
    let seen = u8::from(!random.one_in(4));
    let stats = FlowStats {
        highest,
        window: random.next() | 1,
        last_timestamp: timestamp,
        seen,
        // Long ago, or another CPU was later: a burst begins, or does not.
        last_arrival: random.of(&[0, u64::MAX]),
        bursts: random.of(&[0, u32::MAX]),
        handed: random.of(&[0, 0, 0, 1, STRANGE_PER_SECOND - 1, STRANGE_PER_SECOND, STRANGE_PER_SECOND + 1]),
        ..FlowStats::ZERO
    };
    // The frame: mostly what the flow admits, with one thing wrong now and then.
    let segments = if random.one_in(3) { random.of(&[1, 2, 3, 63, 64, 65, 127, 128, 129]) } else { 1 };
    // A test run takes less than a page.
    let size = random.of(&[12, 13, 20, 71, 72, 172, 11, 1_200]).min(3_400 / segments);
    let first =
        (highest as u16).wrapping_add(random.of(&[1, 1, 1, 2, 20, 0, 65_535, 65_430, 2_999, 3_000, 30_000]));
    let mut payload = Vec::new();
    let odd = if random.one_in(4) { random.below(segments) } else { u64::MAX };
    // Padding, extension and contributing sources: of all, of one, of none.
    let low = random.below(64) as u8;
    let said = random.of(&[0, 0, low]);
    let odd_said = if random.one_in(3) { random.below(segments) } else { u64::MAX };
    for index in 0..segments {
        let mut packet = vec![0x80 | said, PAYLOAD_TYPE];
        if index == odd_said {
            packet[0] = 0x80 | random.below(64) as u8;
        }
        packet.extend(first.wrapping_add(index as u16).to_be_bytes());
        packet.extend(timestamp.wrapping_add(index as u32 * 160).to_be_bytes());
        packet.extend(SSRC.to_be_bytes());
        if index == odd {
            let byte = random.of(&[0, 1, 1, 2, 4, 11]);
            packet[byte] = random.next() as u8;
        }
        packet.resize(size as usize, random.next() as u8);
        payload.extend(packet);
    }
    if segments > 1 && random.one_in(2) {
        payload.truncate(payload.len() - random.below(size.min(12)) as usize);
    }
    let mut frame = Frame::udp(5004, 8062, &payload);
    if family == Family::V6 {
        frame = frame.v6();
    }
    // Cut off, a super-packet would be a plain datagram with a segment size, which no interface sends.
    if segments == 1 && random.one_in(8) {
        frame.udp_len_error = random.of(&[-1, 1, -9]);
    }
    let mut bytes = frame.bytes();
    let (tos, ttl) = (random.next() as u8, random.of(&[0, 1, 2, 64, 255]));
    set_tos_ttl(&mut bytes, family, tos, ttl);
    if random.one_in(4) {
        // No checksum: fine on IPv4 only.
        let at = family.udp_offset() + 6;
        bytes[at..at + 2].fill(0);
    }
    let gso_size = if segments > 1 { size as u32 } else { 0 };
    let legs = (0..u32::from(entry.legs)).map(|number| {
        let edit = edit(random);
        let leg = LegEntry { id: ID + number, ..random_leg(random, family, edit, size as u32) };
        (leg, random_gate(random, highest))
    });
    let legs = legs.collect();
    Case { family, entry, stats, legs, frame: bytes, gso_size, summed: random.one_in(2) }
}

fn random_gate(random: &mut Random, highest: u64) -> Gate {
    let gate_at = (highest as u16).wrapping_add(random.below(8) as u16).wrapping_sub(3);
    random.of(&[
        Gate::Active,
        Gate::Active,
        Gate::Active,
        Gate::Disabled,
        Gate::Armed(gate_at),
        Gate::Draining(gate_at),
    ])
}

fn set_tos_ttl(frame: &mut [u8], family: Family, tos: u8, ttl: u8) {
    match family {
        Family::V4 => {
            frame[15] = tos;
            frame[22] = ttl;
            frame[24..26].fill(0);
            let check = msm_fastpath::csum::ipv4(&frame[14..34]);
            frame[24..26].copy_from_slice(&check.to_be_bytes());
        }
        Family::V6 => {
            frame[14] = 0x60 | tos >> 4;
            frame[15] = tos << 4 | 0x05;
            frame[21] = ttl;
        }
    }
}

fn random_leg(random: &mut Random, family: Family, edit: RtpEdit, size: u32) -> LegEntry {
    let v6 = |last: u8| {
        let mut address = [0; 16];
        (address[0], address[1], address[15]) = (0xfd, 0x0a, last);
        address
    };
    let (last_src, last_dst) = (random.next() as u8, random.next() as u8);
    let (old, new) = match family {
        Family::V4 => (
            [mapped([10, 9, 0, 1]), mapped([10, 9, 0, 2])],
            [mapped([10, 10, 1, last_src]), mapped([10, 10, 2, last_dst])],
        ),
        Family::V6 => {
            let old = |last| {
                let mut address = v6(last);
                address[1] = 0x09;
                address
            };
            ([old(1), old(2)], [v6(last_src), v6(last_dst)])
        }
    };
    let from = if family == Family::V4 { 12 } else { 0 };
    let (src_port, dst_port) = (random.next() as u16, random.next() as u16);
    let address = Delta::NONE
        .replace_bytes(&old[0][from..], &new[0][from..])
        .replace_bytes(&old[1][from..], &new[1][from..]);
    let port = Delta::NONE.replace16(5004, src_port).replace16(8062, dst_port);
    let mut flags = random.of(&[LegEntry::HAIRPIN, LegEntry::HAIRPIN, LegEntry::HAIRPIN, 0]);
    flags |= random.of(&[0, LegEntry::SET_DSCP, LegEntry::LOCAL]);
    LegEntry {
        edit,
        src: new[0],
        dst: new[1],
        dst_mac: random.next().to_be_bytes()[..6].try_into().expect("six bytes"),
        src_mac: random.next().to_be_bytes()[..6].try_into().expect("six bytes"),
        src_port: src_port.to_be_bytes(),
        dst_port: dst_port.to_be_bytes(),
        ifindex: LOOPBACK,
        id: ID,
        address_delta: address.0,
        port_delta: port.0,
        mtu: random.of(&[1_500, 1_500, 1_500, 9_000, (size + 27) as u16, (size + 48) as u16]),
        ttl: random.of(&[0, 0, 64]),
        dscp: random.below(64) as u8,
        flags,
        pad: [0; 3],
    }
}

/// The same by the functions of `msm_fastpath` alone.
fn expect(case: &Case) -> Expected {
    let mut expected = Expected {
        verdict: NEXT,
        frame: case.frame.clone(),
        counted: Vec::new(),
        stats: case.stats,
        legs: case
            .legs
            .iter()
            .map(|(_, gate)| LegOutcome { gate: GateEntry::from(*gate), sent: 0, unsent: 0 })
            .collect(),
    };
    let head = Head::of(&case.frame);
    let len = case.frame.len() as u32;
    let datagram = match case.family {
        Family::V4 => head.datagram_v4(len),
        Family::V6 => head.datagram_v6(len),
    };
    let Some(datagram) = datagram else {
        expected.counted.push(head.pass_reason(case.family).counter());
        return expected;
    };
    if case.entry.mode == GroupMode::ToUser as u8 {
        expected.counted.push(COUNT_TO_USER);
        expected.verdict = OK;
        return expected;
    }
    let header = (datagram.payload_len >= 12).then(|| head.rtp(case.family));
    let segments = Segments::new(datagram.payload_len, case.gso_size);
    let run = match decide_flow(header.as_ref(), datagram.payload_len as usize, &case.entry) {
        Course::Forward => segments.ok_or(Some(DropReason::RateLimit)),
        Course::ToUser => Err(None),
        Course::Strange(reason) => Err(Some(reason)),
    };
    match run.and_then(|segments| follow(case, &head, segments).ok_or(Some(DropReason::RateLimit))) {
        Err(strange) => hand_up(&mut expected, strange),
        // Test runs know no partial checksums, and super-packets with others are the worker's.
        Ok((segments, ..)) if segments.count() > 1 => {
            expected.counted.push(COUNT_TO_USER);
            expected.verdict = OK;
        }
        Ok((segments, progress, arrival)) => {
            let is_rtp = is_rtp(&case.entry, &head.rtp(case.family));
            progress.store(&mut expected.stats, &segments, &arrival);
            expected.counted.push(COUNT_FORWARD);
            let newest = is_rtp && Progress::of(&case.stats).is_newest(head.rtp(case.family).seq());
            let copied = forward(case, &mut expected, &head, segments, is_rtp, newest);
            progress.settle(&mut expected.stats, &segments, copied);
        }
    }
    expected
}

fn is_rtp(entry: &FlowEntry, header: &RtpFixed) -> bool {
    entry.kind == FlowKind::Rtp as u8 || entry.kind == FlowKind::Muxed as u8 && !header.is_rtcp()
}

/// Segments and progress of a packet that continues the run.
fn follow(case: &Case, head: &Head, segments: Segments) -> Option<(Segments, Progress, Arrival)> {
    let mut progress = Progress::of(&case.stats);
    let arrival = Arrival { at: 1_000_000_000, ..Arrival::new(0, case.entry.clock_rate) };
    let first = head.rtp(case.family);
    if is_rtp(&case.entry, &first) {
        for (offset, len) in segments.iter() {
            let at = case.family.payload_offset() + offset as usize;
            let rtp = RtpFixed::from_bytes(*case.frame.get(at..)?.first_chunk::<12>()?);
            let ours = segments.count() == 1 || is_of_track(&rtp, len as usize, &first, &case.entry);
            if !ours || !progress.continues(rtp.seq(), rtp.timestamp(), &arrival) {
                return None;
            }
            progress.take(rtp.seq(), rtp.timestamp(), &arrival);
        }
    }
    Some((segments, progress, arrival))
}

fn hand_up(expected: &mut Expected, strange: Option<DropReason>) {
    // The second of the rate limit has just begun.
    let given = expected.stats.hand_up(expected.stats.handed_since);
    if given.granted {
        expected.verdict = OK;
        expected.counted.push(COUNT_TO_USER);
        expected.stats.strange += u64::from(strange.is_some());
    } else {
        expected.verdict = SHOT;
        let reason = strange.unwrap_or(DropReason::RateLimit);
        expected.counted.push(VERDICT_COUNTERS + reason as u32);
    }
}

/// The copies, one after the other. Returns whether the worker gets the packet.
fn forward(
    case: &Case,
    expected: &mut Expected,
    head: &Head,
    segments: Segments,
    is_rtp: bool,
    newest: bool,
) -> bool {
    let mut to_user = case.entry.flags & FlowEntry::COPY_TO_USER != 0;
    let family = case.family;
    let numbered = FlowKind::from_u8(case.entry.kind).is_some_and(FlowKind::has_numbers);
    expected.verdict = SHOT;
    let (mut frame, mut copy) = (case.frame.clone(), Head::EMPTY);
    for (index, (leg, _)) in case.legs.iter().enumerate() {
        let outcome = &mut expected.legs[index];
        let (gate, step) = if numbered {
            outcome.gate.step(head.rtp(family).seq(), newest)
        } else {
            outcome.gate.step_unnumbered()
        };
        outcome.gate = gate;
        to_user |= step == Step::Stop;
        if !step.passes() {
            continue;
        }
        match dress(case, head, segments, is_rtp, leg, &mut copy) {
            Ok(written) => {
                outcome.sent = 1;
                frame[..written].copy_from_slice(&copy.frame()[..written]);
                if index + 1 == case.legs.len() && !to_user {
                    expected.verdict = REDIRECT;
                }
            }
            Err(reason) => {
                outcome.unsent = 1;
                expected.counted.push(VERDICT_COUNTERS + reason as u32);
            }
        }
    }
    if to_user {
        // As it came, whatever was written over it for the copies.
        expected.verdict = OK;
    } else {
        expected.frame = frame;
    }
    to_user
}

/// The headers of a leg's copy, and how many of the frame's bytes they are.
fn dress(
    case: &Case,
    head: &Head,
    segments: Segments,
    is_rtp: bool,
    leg: &LegEntry,
    copy: &mut Head,
) -> Result<usize, DropReason> {
    let family = case.family;
    let mode = GroupMode::from_u8(case.entry.mode);
    let rtp = (is_rtp && mode != Some(GroupMode::Opaque)).then(|| {
        let edit = if mode == Some(GroupMode::PerLeg) { &leg.edit } else { &case.entry.edit };
        rewrite(&head.rtp(family), edit)
    });
    let at = family.udp_offset() + 6;
    let checksum = if case.frame[at..at + 2] == [0, 0] { Checksum::Absent } else { Checksum::Complete };
    if segments.largest() + (family.payload_offset() - 14) as u32 > u32::from(leg.mtu) {
        return Err(DropReason::Mtu);
    }
    if leg.flags & LegEntry::HAIRPIN == 0 {
        return Err(DropReason::Loop);
    }
    copy.readdress(head, family, leg, checksum, rtp)?;
    Ok(family.payload_offset() + if rtp.is_some() { 12 } else { 0 })
}

fn found(programs: &mut Programs, case: &Case) -> Result<Expected> {
    let flow = match case.family {
        Family::V4 => key(5004, 8062, LOOPBACK),
        Family::V6 => key6(5004, 8062, LOOPBACK),
    };
    programs.put_flow(&flow, &case.entry)?;
    // The second of the rate limit begins now, and is not over before the run is.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let handed_since = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
    programs.put_stats(STATS, FlowStats { handed_since, ..case.stats })?;
    for (slot, (leg, gate)) in (SLOT..).zip(&case.legs) {
        programs.put_leg(slot, leg)?;
        programs.put_gate(leg.id, *gate)?;
        programs.clear_leg_stats(leg.id)?;
    }
    let before = programs.counters()?;
    let outcome = run_tcx(programs, &case.frame, case.gso_size, case.summed)?;
    let after = programs.counters()?;
    let mut counted = Vec::new();
    for index in 0..msm_fastpath::limits::COUNTERS {
        for _ in before.at(index)..after.at(index) {
            counted.push(index);
        }
    }
    let legs = case.legs.iter().map(|(leg, _)| {
        let stats = programs.leg_stats(leg.id)?;
        Ok(LegOutcome { gate: programs.gate(leg.id)?, sent: stats.packets, unsent: stats.dropped })
    });
    let legs = legs.collect::<Result<_>>()?;
    Ok(Expected {
        verdict: outcome.verdict,
        frame: outcome.frame,
        counted,
        stats: programs.stats(STATS)?,
        legs,
    })
}

/// What depends on the clock is set equal; that it moved is tested elsewhere.
fn without_clock(stats: FlowStats, reference: &FlowStats) -> FlowStats {
    FlowStats {
        last_arrival: reference.last_arrival,
        timestamp_at: reference.timestamp_at,
        handed_since: reference.handed_since,
        handed: reference.handed,
        transit: reference.transit,
        jitter: reference.jitter,
        ..stats
    }
}

#[test]
fn kernel_and_host_do_the_same() -> Result<()> {
    let test = "kernel_and_host_do_the_same";
    if !granted(test, &[Need::Namespaces]) {
        return Ok(());
    }
    let Some(mut programs) = kernel(test)? else { return Ok(()) };
    // Copies really leave by the namespace's loopback, where nobody listens.
    let mut lab = Lab::new()?;
    let node = lab.node("differential")?;
    node.inside(move || compare(&mut programs))?
}

fn compare(programs: &mut Programs) -> Result<()> {
    let mut random = Random::seeded("kernel_and_host_do_the_same")?;
    let mut seen = std::collections::BTreeMap::<(i32, Vec<u32>), u32>::new();
    for number in 0..cases(4_000)? {
        let case = random_case(&mut random);
        let mut expected = expect(&case);
        expected.counted.sort_unstable();
        // Frames are long; their beginning says enough.
        let what = || format!("case {number}: {:.2000}", format!("{case:?}"));
        let mut found = found(programs, &case).with_context(what)?;
        found.stats = without_clock(found.stats, &expected.stats);
        let frames = (std::mem::take(&mut found.frame), std::mem::take(&mut expected.frame));
        assert_eq!(found, expected, "{}", what());
        let differs = frames.0.iter().zip(&frames.1).position(|(a, b)| a != b);
        assert!(frames.0 == frames.1, "byte {differs:?} of the frame, {}", what());
        *seen.entry((expected.verdict, expected.counted)).or_default() += 1;
    }
    let drop = |reason| VERDICT_COUNTERS + reason as u32;
    let reached = |verdict, counted: &[u32]| seen.get(&(verdict, counted.to_vec())).copied().unwrap_or(0);
    for (verdict, counted) in [
        (NEXT, vec![PassReason::Malformed.counter()]),
        (OK, vec![COUNT_TO_USER]),
        (OK, vec![COUNT_FORWARD]),
        (SHOT, vec![COUNT_FORWARD]),
        (REDIRECT, vec![COUNT_FORWARD]),
        (SHOT, vec![COUNT_FORWARD, drop(DropReason::Mtu)]),
        (SHOT, vec![COUNT_FORWARD, drop(DropReason::Ttl)]),
        (SHOT, vec![COUNT_FORWARD, drop(DropReason::Loop)]),
        (SHOT, vec![drop(DropReason::RateLimit)]),
        (SHOT, vec![drop(DropReason::Malformed)]),
        (SHOT, vec![drop(DropReason::Ssrc)]),
        (SHOT, vec![drop(DropReason::PayloadType)]),
    ] {
        assert!(reached(verdict, &counted) > 5, "the cases hardly reach {verdict} {counted:?}: {seen:?}");
    }
    assert_eq!(reached(NEXT, &[COUNT_NOT_OURS]), 0, "every case has a flow");
    Ok(())
}
