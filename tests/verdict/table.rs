//! Both programs on a table of frames, by the kernel's test run.

use anyhow::{Context as _, Result};
use aya::TestRunOptions;
use aya::programs::TestRun as _;
use msm_fastpath::limits::{COUNT_FORWARD, COUNT_NOT_OURS, COUNT_TO_USER, COUNT_UNPARSED, VERDICT_COUNTERS};
use msm_fastpath::{
    Admission, DropReason, FlowEntry, FlowKind, PayloadTypes, RtpFixed, Verdict, decide_flow,
};
use rtp_proxy::kernel::load::Kernel;

use crate::frame::{Frame, rtcp, rtp};
use crate::{LOOPBACK, PAYLOAD_TYPE, SSRC, entry, kernel, key, key6};

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    NotOurs,
    Unparsed,
    Forward,
    ToUser,
    Drop(DropReason),
}

const TCX_NEXT: u32 = u32::MAX;
const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

impl Expect {
    fn tcx(self) -> u32 {
        match self {
            Self::NotOurs | Self::Unparsed => TCX_NEXT,
            Self::Forward | Self::ToUser => TC_ACT_OK,
            Self::Drop(_) => TC_ACT_SHOT,
        }
    }

    fn xdp(self) -> u32 {
        if let Self::Drop(_) = self { XDP_DROP } else { XDP_PASS }
    }

    fn counter(self) -> u32 {
        match self {
            Self::NotOurs => COUNT_NOT_OURS,
            Self::Unparsed => COUNT_UNPARSED,
            Self::Forward => COUNT_FORWARD,
            Self::ToUser => COUNT_TO_USER,
            Self::Drop(reason) => VERDICT_COUNTERS + reason.index() as u32,
        }
    }
}

impl From<Verdict> for Expect {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Forward => Self::Forward,
            Verdict::ToUser => Self::ToUser,
            Verdict::Drop(reason) => Self::Drop(reason),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Hook {
    Tcx,
    Xdp,
}

/// Runs one program on one frame: its return value and the frame as it left.
fn run(kernel: &Kernel, hook: Hook, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
    let mut out = vec![0; frame.len() + 256];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = match hook {
        Hook::Tcx => kernel.tcx()?.test_run(options)?,
        Hook::Xdp => kernel.xdp()?.test_run(options)?,
    };
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// One frame through both programs: verdict, exactly one count under the right heading, bytes untouched.
fn check(kernel: &Kernel, name: &str, frame: &[u8], expect: Expect) -> Result<()> {
    check_by(kernel, &[Hook::Tcx, Hook::Xdp], name, frame, expect)
}

fn check_by(kernel: &Kernel, hooks: &[Hook], name: &str, frame: &[u8], expect: Expect) -> Result<()> {
    for &hook in hooks {
        let before = kernel.counters()?;
        let (verdict, out) = run(kernel, hook, frame).with_context(|| format!("{name} by {hook:?}"))?;
        let after = kernel.counters()?;
        let expected = match hook {
            Hook::Tcx => expect.tcx(),
            Hook::Xdp => expect.xdp(),
        };
        assert_eq!(verdict, expected, "{name} by {hook:?}: {expect:?}");
        let counter = expect.counter();
        assert_eq!(after.verdict(counter), before.verdict(counter) + 1, "{name} by {hook:?}: {expect:?}");
        assert_eq!(after.total(), before.total() + 1, "{name} by {hook:?} counts once");
        assert_eq!(out, frame, "{name} by {hook:?} is left as it was");
    }
    Ok(())
}

fn install(kernel: &mut Kernel) -> Result<()> {
    for (kind, src_port, dst_port) in [
        (FlowKind::Rtp, 5004, 8062),
        (FlowKind::Rtcp, 5005, 8063),
        (FlowKind::Opaque, 5006, 8064),
        (FlowKind::Muxed, 5008, 8066),
    ] {
        kernel.insert_flow(&key(src_port, dst_port, LOOPBACK), &entry(kind))?;
        kernel.insert_flow(&key6(src_port, dst_port, LOOPBACK), &entry(kind))?;
    }
    kernel.insert_flow(&key(6000, 8062, LOOPBACK + 100), &entry(FlowKind::Rtp))?;
    Ok(())
}

#[test]
fn frames_get_the_verdict_of_the_table() -> Result<()> {
    let Some(mut kernel) = kernel("frames_get_the_verdict_of_the_table")? else { return Ok(()) };
    install(&mut kernel)?;
    let ours = || Frame::udp(5004, 8062, &rtp(PAYLOAD_TYPE, 7, SSRC));
    let to = |src_port, dst_port, payload: &[u8]| Frame::udp(src_port, dst_port, payload);
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 0x08, 0x06], &[0; 28]].concat();
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();

    let not_ours = [
        ("arp", arp),
        ("tcp", Frame { protocol: 6, ..ours() }.bytes()),
        ("icmp6", Frame { protocol: 58, ..ours().v6() }.bytes()),
        ("another destination port", to(5004, 8070, &rtp(PAYLOAD_TYPE, 7, SSRC)).bytes()),
        ("another source port", to(5010, 8062, &rtp(PAYLOAD_TYPE, 7, SSRC)).bytes()),
        ("another source address", Frame { src: 9, ..ours() }.bytes()),
        ("a flow of another interface", to(6000, 8062, &rtp(PAYLOAD_TYPE, 7, SSRC)).bytes()),
    ];
    for (name, frame) in not_ours {
        check(&kernel, name, &frame, Expect::NotOurs)?;
    }

    let unparsed = [
        ("vlan", Frame { vlan: true, ..ours() }),
        ("ipv4 options", Frame { options: vec![1, 1, 1, 1], ..ours() }),
        ("first fragment", Frame { fragment: 0x2000, ..ours() }),
        ("later fragment", Frame { fragment: 0x0010, ..ours() }),
        ("hop-by-hop header", Frame { protocol: 0, ..ours().v6() }),
        ("fragment header", Frame { protocol: 44, ..ours().v6() }),
        ("an ip length beyond the frame", Frame { ip_len_error: 1, ..ours() }),
        ("an ipv6 length beyond the frame", Frame { ip_len_error: 1, ..ours().v6() }),
        ("a udp length beyond the packet", Frame { udp_len_error: 1, ..ours() }),
        ("a udp length below its header", Frame { udp_len_error: -173, ..ours() }),
        ("an ip length below its header", Frame { ip_len_error: -190, ..ours() }),
    ];
    for (name, frame) in unparsed {
        check(&kernel, name, &frame.bytes(), Expect::Unparsed)?;
    }

    let (rtp_ok, rr) = (rtp(PAYLOAD_TYPE, 7, SSRC), rtcp(SSRC));
    let other_ssrc = rtp(PAYLOAD_TYPE, 7, SSRC + 1);
    let other_type = rtp(PAYLOAD_TYPE + 1, 7, SSRC);
    let marked = rtp(PAYLOAD_TYPE | 0x80, 7, SSRC);
    let ssrc = Expect::Drop(DropReason::Ssrc);
    let payload_type = Expect::Drop(DropReason::PayloadType);
    let ours = [
        ("rtp", to(5004, 8062, &rtp_ok), Expect::Forward),
        ("rtp with marker", to(5004, 8062, &marked), Expect::Forward),
        ("rtp in a padded frame", Frame { trailer: 18, ..to(5004, 8062, &rtp_ok) }, Expect::Forward),
        ("a bare rtp header", to(5004, 8062, &rtp_ok[..12]), Expect::Forward),
        ("wrong ssrc", to(5004, 8062, &other_ssrc), ssrc),
        ("wrong payload type", to(5004, 8062, &other_type), payload_type),
        ("rtcp on the rtp port", to(5004, 8062, &rr), payload_type),
        ("stun on the rtp port", to(5004, 8062, &stun), Expect::ToUser),
        ("eleven bytes", to(5004, 8062, &rtp_ok[..11]), Expect::ToUser),
        ("an empty datagram", to(5004, 8062, &[]), Expect::ToUser),
        ("rtcp", to(5005, 8063, &rr), Expect::ToUser),
        ("anything on an opaque flow", to(5006, 8064, &stun), Expect::Forward),
        ("an empty datagram on an opaque flow", to(5006, 8064, &[]), Expect::Forward),
        ("muxed rtp", to(5008, 8066, &rtp_ok), Expect::Forward),
        ("muxed rtcp", to(5008, 8066, &rr), Expect::ToUser),
        ("muxed wrong ssrc", to(5008, 8066, &other_ssrc), ssrc),
    ];
    for (name, frame, expect) in ours {
        check(&kernel, name, &frame.bytes(), expect)?;
        check(&kernel, &format!("{name} over ipv6"), &frame.v6().bytes(), expect)?;
    }
    Ok(())
}

#[test]
fn a_frame_cut_at_any_offset_passes_untouched() -> Result<()> {
    let Some(mut kernel) = kernel("a_frame_cut_at_any_offset_passes_untouched")? else { return Ok(()) };
    install(&mut kernel)?;
    let frame = Frame::udp(5004, 8062, &rtp(PAYLOAD_TYPE, 7, SSRC));
    for (whole, ip_header) in [(frame.clone().bytes(), 20), (frame.v6().bytes(), 40)] {
        // The kernel's test run refuses less than an Ethernet header, and for TCX, since 6.18, less than
        // the IP header too: `traffic` sends such frames for real.
        for len in 14..whole.len() {
            let hooks: &[Hook] = if len < 14 + ip_header { &[Hook::Xdp] } else { &[Hook::Tcx, Hook::Xdp] };
            let name = format!("cut at {len} of {}", whole.len());
            check_by(&kernel, hooks, &name, &whole[..len], Expect::Unparsed)?;
        }
        check(&kernel, "whole", &whole, Expect::Forward)?;
    }
    Ok(())
}

#[test]
fn flow_statistics_follow_the_verdicts() -> Result<()> {
    let Some(mut kernel) = kernel("flow_statistics_follow_the_verdicts")? else { return Ok(()) };
    install(&mut kernel)?;
    let flow = key(5004, 8062, LOOPBACK);
    let frames = [rtp(PAYLOAD_TYPE, 7, SSRC), rtp(PAYLOAD_TYPE, 8, SSRC), rtp(PAYLOAD_TYPE, 9, SSRC + 1)];
    for payload in &frames {
        run(&kernel, Hook::Tcx, &Frame::udp(5004, 8062, payload).bytes())?;
    }
    let stats = kernel.flow_statistics(&flow)?;
    assert_eq!((stats.packets, stats.bytes, stats.dropped), (2, 2 * 172, 1));
    assert_eq!((stats.last_seq, stats.last_timestamp, stats.seen), (8, 8 * 160, 1));
    kernel.remove_flow(&flow)?;
    check(&kernel, "after removal", &Frame::udp(5004, 8062, &frames[0]).bytes(), Expect::NotOurs)
}

/// The programs and the host agree on random headers, kinds and admissions: both run the same function.
#[test]
fn kernel_and_host_decide_alike() -> Result<()> {
    let Some(mut kernel) = kernel("kernel_and_host_decide_alike")? else { return Ok(()) };
    let flow = key(5004, 8062, LOOPBACK);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift64: the same sequence in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut seen = std::collections::BTreeSet::new();
    for case in 0..3_000 {
        let mut header = [0u8; 12];
        header[..8].copy_from_slice(&random().to_be_bytes());
        if random() % 4 != 0 {
            header[0] = 0x80;
        }
        let ssrc = (random() % 2) as u32;
        header[8..].copy_from_slice(&ssrc.to_be_bytes());
        let types = PayloadTypes { low: random() | random(), high: random() | random() };
        let admission = match random() % 3 {
            0 => Admission::any_ssrc(types),
            _ => Admission::only_ssrc(types, 1),
        };
        let flow_entry = FlowEntry {
            kind: (random() % 5) as u8,
            flags: (random() % 2) as u8,
            ..FlowEntry::new(FlowKind::Rtp, admission, 0, 90_000)
        };
        kernel.insert_flow(&flow, &flow_entry)?;
        let expect = Expect::from(decide_flow(Some(&RtpFixed::from_bytes(header)), &flow_entry));
        let name = format!("case {case}: {header:02x?} with {flow_entry:?}");
        check(&kernel, &name, &Frame::udp(5004, 8062, &header).bytes(), expect)?;
        seen.insert(expect.counter());
    }
    let drops = [DropReason::Ssrc, DropReason::PayloadType].map(|reason| Expect::Drop(reason).counter());
    for counter in [COUNT_FORWARD, COUNT_TO_USER].into_iter().chain(drops) {
        assert!(seen.contains(&counter), "the cases never reach counter {counter}");
    }
    Ok(())
}
