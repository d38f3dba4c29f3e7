//! What each stage of the kernel's path costs: the compiled program on one frame, again and again, by the
//! kernel's own test run.
//!
//! Every case stops one stage further on than the one before, so the differences are the stages. The frame is
//! the same in every repetition: a leg readdresses it to the addresses that it has. Copies go to a
//! dummy device, so what a receiver costs is not in it (`cargo xtask bench kernel` has that). An argument names
//! another object than the proxy's own.

#![expect(clippy::print_stdout, reason = "the report is the program's output")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::TestRunOptions;
use aya::maps::{Array, HashMap};
use aya::programs::{SchedClassifier, TestRun as _};
use aya::{Ebpf, EbpfLoader};
use msm_fastpath::{
    Admission, FlowEntry, FlowKey, FlowKind, Gate, GateEntry, GroupMode, LegEntry, PayloadTypes, RtpEdit,
    RtpFixed,
};
use msm_tests::lab::Lab;
use msm_tests::privilege::{Need, granted};
use rtp_proxy::kernel::OBJECT;

const REPEAT: u32 = 200_000;
const ROUNDS: usize = 9;
const LOOPBACK: u32 = 1;
const SSRC: u32 = 0x0a0b_0c0d;

fn frame(protocol: u8, src_port: u16, payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    let ip_len = 28 + payload as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(ip_len.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    let check = msm_fastpath::csum::ipv4(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    frame.extend(ip);
    let mut udp = Vec::new();
    udp.extend(src_port.to_be_bytes());
    udp.extend(8062_u16.to_be_bytes());
    udp.extend((8 + payload as u16).to_be_bytes());
    udp.extend([0, 0]);
    // Every 172 bytes begin with a header: one of the run, again and again.
    while udp.len() < 8 + payload {
        let header = RtpFixed::new(96, false, 7, 1_120, SSRC).to_bytes();
        udp.extend(header);
        udp.resize(udp.len() + 160, 0xd5);
    }
    udp.truncate(8 + payload);
    let pseudo = msm_fastpath::csum::pseudo_v4([10, 9, 0, 1], [10, 9, 0, 2], 8 + payload as u16);
    let check = msm_fastpath::csum::udp(pseudo, &udp);
    udp[6..8].copy_from_slice(&check.to_be_bytes());
    frame.extend(udp);
    frame
}

fn set<T: aya::Pod>(ebpf: &mut Ebpf, map: &str, index: u32, value: T) -> Result<()> {
    Ok(Array::<_, T>::try_from(ebpf.map_mut(map).context("map")?)?.set(index, value, 0)?)
}

fn flow(ebpf: &mut Ebpf, mode: GroupMode, legs: u16) -> Result<()> {
    let key = FlowKey::new(([10, 9, 0, 1], 5004).into(), ([10, 9, 0, 2], 8062).into(), LOOPBACK);
    let admission = Admission::only_ssrc(PayloadTypes::of(&[96]), SSRC);
    let entry = FlowEntry { mode: mode as u8, legs, ..FlowEntry::new(FlowKind::Rtp, admission, 0, 90_000) };
    let mut flows = HashMap::<_, FlowKey, FlowEntry>::try_from(ebpf.map_mut("FLOWS").context("map")?)?;
    Ok(flows.insert(key, entry.under(&key), 0)?)
}

/// The leg to the addresses that the frame has.
fn leg(id: u32, ifindex: u32, edit: RtpEdit) -> LegEntry {
    LegEntry {
        edit,
        src: msm_fastpath::flow::mapped([10, 9, 0, 1]),
        dst: msm_fastpath::flow::mapped([10, 9, 0, 2]),
        dst_mac: [2, 0, 0, 0, 0, 2],
        src_mac: [2, 0, 0, 0, 0, 1],
        src_port: 5004_u16.to_be_bytes(),
        dst_port: 8062_u16.to_be_bytes(),
        ifindex,
        id,
        address_delta: 0,
        port_delta: 0,
        mtu: 1_500,
        ttl: 64,
        dscp: 0,
        flags: 0,
        pad: [0; 3],
    }
}

/// Median over rounds of ns per run. `gso_size`: segment size of a super-packet, 0 for a plain frame.
fn time(ebpf: &Ebpf, frame: &[u8], gso_size: u32, repeat: u32) -> Result<f64> {
    let program: &SchedClassifier = ebpf.program("tcx_ingress").context("program")?.try_into()?;
    let mut rounds = Vec::new();
    // `gso_size` within `__sk_buff`.
    let mut context = [0; 192];
    context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
    for _ in 0..ROUNDS {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        rounds.push(Duration::as_nanos(&program.test_run(options)?.duration) as f64);
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[ROUNDS / 2])
}

fn measure() -> Result<()> {
    let sink = nix::net::if_::if_nametoindex("sink0")?;
    // Another object than the proxy's, to compare the two.
    let given = std::env::args().nth(1).map(std::fs::read).transpose()?;
    let object = given.as_deref().or(OBJECT).context("no kernel programs")?;
    let mut ebpf = EbpfLoader::new().load(object)?;
    let program: &mut SchedClassifier = ebpf.program_mut("tcx_ingress").context("program")?.try_into()?;
    program.load()?;
    let rtp = frame(17, 5004, 172);
    let show = |name: &str, ns: f64| println!("| {name} | {ns:.0} |");
    println!("| stage | ns |\n|---|---|");
    show("another protocol (TCP)", time(&ebpf, &frame(6, 5004, 172), 0, REPEAT)?);
    show("UDP without a flow", time(&ebpf, &frame(17, 5010, 172), 0, REPEAT)?);
    flow(&mut ebpf, GroupMode::ToUser, 0)?;
    show("a flow that is the worker's", time(&ebpf, &rtp, 0, REPEAT)?);
    flow(&mut ebpf, GroupMode::Opaque, 0)?;
    show("judged and booked, no leg", time(&ebpf, &rtp, 0, REPEAT)?);
    let long = frame(17, 5004, 18 * 172);
    let walked = time(&ebpf, &long, 172, REPEAT)? - time(&ebpf, &rtp, 0, REPEAT)?;
    show("each further segment of a super-packet", walked / 17.0);
    for slot in 0..256 {
        set(&mut ebpf, "LEGS", slot, leg(slot, sink, RtpEdit::TRANSPARENT))?;
    }
    flow(&mut ebpf, GroupMode::Opaque, 1)?;
    show("one leg whose gate is shut", time(&ebpf, &rtp, 0, REPEAT)?);
    for slot in 0..256 {
        set(&mut ebpf, "GATES", slot, GateEntry::from(Gate::Active))?;
    }
    show("one leg, the packet itself redirected", time(&ebpf, &rtp, 0, REPEAT)?);
    for legs in [2, 16, 64, 256] {
        flow(&mut ebpf, GroupMode::Opaque, legs)?;
        let ns = time(&ebpf, &rtp, 0, 20_000)?;
        show(&format!("{legs} legs, per copy"), ns / f64::from(legs));
    }
    flow(&mut ebpf, GroupMode::PerLeg, 16)?;
    show("16 legs with edits of their own, per copy", time(&ebpf, &rtp, 0, 20_000)? / 16.0);
    Ok(())
}

fn main() -> Result<()> {
    if !granted("bench_stages", &[Need::Namespaces, Need::Kernel]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let node = lab.node("stages")?;
    node.ip(&["link", "add", "sink0", "type", "bridge"])?;
    node.ip(&["link", "set", "sink0", "up"])?;
    node.inside(measure)?
}
