//! Both programs on a table of frames, by the kernel's test run.

use anyhow::{Context as _, Result};
use aya::TestRunOptions;
use aya::programs::TestRun as _;
use msm_fastpath::limits::{COUNT_FORWARD, COUNT_TO_USER, VERDICT_COUNTERS};
use msm_fastpath::{Course, DropReason, FlowEntry, FlowKind, PassReason, PortKey};

use crate::frame::{Frame, rtcp, rtp};
use crate::programs::Programs;
use crate::{LOOPBACK, PAYLOAD_TYPE, SSRC, entry, kernel, key, key6};

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Pass(PassReason),
    /// To the legs; these flows have none, and the worker gets a copy.
    Forward,
    ToUser,
    /// To the worker, counted as strange.
    Strange,
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
            Self::Pass(_) => TCX_NEXT,
            Self::Forward | Self::ToUser | Self::Strange => TC_ACT_OK,
            Self::Drop(_) => TC_ACT_SHOT,
        }
    }

    fn xdp(self) -> u32 {
        if let Self::Drop(_) = self { XDP_DROP } else { XDP_PASS }
    }

    fn counter(self) -> u32 {
        match self {
            Self::Pass(reason) => reason.counter(),
            Self::Forward => COUNT_FORWARD,
            Self::ToUser | Self::Strange => COUNT_TO_USER,
            Self::Drop(reason) => VERDICT_COUNTERS + reason.index() as u32,
        }
    }
}

impl From<Course> for Expect {
    fn from(course: Course) -> Self {
        match course {
            Course::Forward => Self::Forward,
            Course::ToUser => Self::ToUser,
            Course::Strange(_) => Self::Strange,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Hook {
    Tcx,
    Xdp,
}

/// Runs one program on one frame: its return value and the frame as it left.
fn run(kernel: &Programs, hook: Hook, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
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
fn check(kernel: &Programs, name: &str, frame: &[u8], expect: Expect) -> Result<()> {
    check_by(kernel, &[Hook::Tcx, Hook::Xdp], name, frame, expect)
}

fn check_by(kernel: &Programs, hooks: &[Hook], name: &str, frame: &[u8], expect: Expect) -> Result<()> {
    for &hook in hooks {
        let before = kernel.counters()?;
        let (verdict, out) = run(kernel, hook, frame).with_context(|| format!("{name} by {hook:?}"))?;
        let after = kernel.counters()?;
        let expected = match hook {
            Hook::Tcx => expect.tcx(),
            Hook::Xdp => expect.xdp(),
        };
        assert_eq!(verdict, expected, "{name} by {hook:?}: {expect:?}");
        // XDP counts what it drops; the rest is counted where it goes on to.
        let counts = u64::from(matches!((hook, expect), (Hook::Tcx, _) | (_, Expect::Drop(_))));
        let counter = expect.counter();
        assert_eq!(after.at(counter), before.at(counter) + counts, "{name} by {hook:?}: {expect:?}");
        assert_eq!(after.total(), before.total() + counts, "{name} by {hook:?} counts once");
        assert_eq!(out, frame, "{name} by {hook:?} is left as it was");
    }
    Ok(())
}

fn install(kernel: &mut Programs) -> Result<()> {
    let flows = [
        (FlowKind::Rtp, 5004, 8062),
        (FlowKind::Rtcp, 5005, 8063),
        (FlowKind::Opaque, 5006, 8064),
        (FlowKind::Muxed, 5008, 8066),
    ];
    for (index, (kind, src_port, dst_port)) in flows.into_iter().enumerate() {
        let flags = FlowEntry::COPY_TO_USER;
        let stats = 2 * index as u32;
        let (v4, v6) =
            (FlowEntry { stats, flags, ..entry(kind) }, FlowEntry { stats: stats + 1, flags, ..entry(kind) });
        kernel.put_flow(&key(src_port, dst_port, LOOPBACK), &v4)?;
        kernel.put_flow(&key6(src_port, dst_port, LOOPBACK), &v6)?;
    }
    kernel.put_flow(&key(6000, 8062, LOOPBACK + 100), &entry(FlowKind::Rtp))?;
    kernel.put_port(&PortKey::new(([10, 9, 0, 2], 8070).into()), PortKey::STRICT)?;
    kernel.put_port(&PortKey::new(([0xfd09, 0, 0, 0, 0, 0, 0, 2], 8070).into()), PortKey::STRICT)
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
        ("another destination port", to(5004, 8076, &rtp(PAYLOAD_TYPE, 7, SSRC)).bytes()),
        ("another source port", to(5010, 8062, &rtp(PAYLOAD_TYPE, 7, SSRC)).bytes()),
        ("another source address", Frame { src: 9, ..ours() }.bytes()),
        ("a port that waits for its source", to(5004, 8072, &rtp(PAYLOAD_TYPE, 7, SSRC)).bytes()),
        ("a flow of another interface", to(6000, 8062, &rtp(PAYLOAD_TYPE, 7, SSRC)).bytes()),
    ];
    for (name, frame) in not_ours {
        check(&kernel, name, &frame, Expect::Pass(PassReason::NotOurs))?;
    }

    let unparsed = [
        ("vlan", Frame { vlan: true, ..ours() }, PassReason::Vlan),
        ("ipv4 options", Frame { options: vec![1, 1, 1, 1], ..ours() }, PassReason::IpOptions),
        ("first fragment", Frame { fragment: 0x2000, ..ours() }, PassReason::Fragment),
        ("later fragment", Frame { fragment: 0x0010, ..ours() }, PassReason::Fragment),
        ("hop-by-hop header", Frame { protocol: 0, ..ours().v6() }, PassReason::IpOptions),
        ("routing header", Frame { protocol: 43, ..ours().v6() }, PassReason::IpOptions),
        ("fragment header", Frame { protocol: 44, ..ours().v6() }, PassReason::Fragment),
        ("destination options", Frame { protocol: 60, ..ours().v6() }, PassReason::IpOptions),
        ("an ip length beyond the frame", Frame { ip_len_error: 1, ..ours() }, PassReason::Malformed),
        ("an ipv6 length beyond the frame", Frame { ip_len_error: 1, ..ours().v6() }, PassReason::Malformed),
        ("a udp length beyond the packet", Frame { udp_len_error: 1, ..ours() }, PassReason::Malformed),
        ("a udp length below its header", Frame { udp_len_error: -173, ..ours() }, PassReason::Malformed),
        ("an ip length below its header", Frame { ip_len_error: -190, ..ours() }, PassReason::Malformed),
    ];
    for (name, frame, reason) in unparsed {
        check(&kernel, name, &frame.bytes(), Expect::Pass(reason))?;
    }

    let (rtp_ok, rr) = (rtp(PAYLOAD_TYPE, 7, SSRC), rtcp(SSRC));
    let other_ssrc = rtp(PAYLOAD_TYPE, 7, SSRC + 1);
    let other_type = rtp(PAYLOAD_TYPE + 1, 7, SSRC);
    let marked = rtp(PAYLOAD_TYPE | 0x80, 7, SSRC);
    // Version 2, then padding, extension and the number of contributing sources.
    let saying = |first: u8, len: usize| [&[first][..], &rtp_ok[1..len]].concat();
    let unknown = Expect::Drop(DropReason::UnknownSource);
    let ours = [
        ("a strict address", to(5004, 8070, &rtp_ok), unknown),
        ("rtp", to(5004, 8062, &rtp_ok), Expect::Forward),
        ("rtp with marker", to(5004, 8062, &marked), Expect::Forward),
        ("rtp in a padded frame", Frame { trailer: 18, ..to(5004, 8062, &rtp_ok) }, Expect::Forward),
        ("a bare rtp header", to(5004, 8062, &rtp_ok[..12]), Expect::Forward),
        ("wrong ssrc", to(5004, 8062, &other_ssrc), Expect::Strange),
        ("wrong payload type", to(5004, 8062, &other_type), Expect::Strange),
        ("rtcp on the rtp port", to(5004, 8062, &rr), Expect::Strange),
        ("stun on the rtp port", to(5004, 8062, &stun), Expect::Strange),
        ("eleven bytes", to(5004, 8062, &rtp_ok[..11]), Expect::Strange),
        ("an empty datagram", to(5004, 8062, &[]), Expect::Strange),
        ("fifteen sources and no more", to(5004, 8062, &saying(0x8f, 72)), Expect::Forward),
        ("fifteen sources, cut", to(5004, 8062, &saying(0x8f, 71)), Expect::Strange),
        ("one source, cut", to(5004, 8062, &saying(0x81, 15)), Expect::Strange),
        ("one source that is not there", to(5004, 8062, &saying(0x81, 12)), Expect::Strange),
        ("an extension that is not there", to(5004, 8062, &saying(0x90, 12)), Expect::Forward),
        ("padding that is not there", to(5004, 8062, &saying(0xa0, 12)), Expect::Forward),
        ("rtcp", to(5005, 8063, &rr), Expect::ToUser),
        ("anything on an opaque flow", to(5006, 8064, &stun), Expect::Forward),
        ("an empty datagram on an opaque flow", to(5006, 8064, &[]), Expect::Forward),
        ("muxed rtp", to(5008, 8066, &rtp_ok), Expect::Forward),
        ("muxed rtcp", to(5008, 8066, &rr), Expect::ToUser),
        ("muxed wrong ssrc", to(5008, 8066, &other_ssrc), Expect::Strange),
        ("muxed sources, cut", to(5008, 8066, &saying(0x8f, 71)), Expect::Strange),
        ("anything cut on an opaque flow", to(5006, 8064, &saying(0x8f, 71)), Expect::Forward),
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
            check_by(&kernel, hooks, &name, &whole[..len], Expect::Pass(PassReason::Malformed))?;
        }
        check(&kernel, "whole", &whole, Expect::Forward)?;
    }
    Ok(())
}

#[test]
fn flow_statistics_follow_the_verdicts() -> Result<()> {
    let Some(mut kernel) = kernel("flow_statistics_follow_the_verdicts")? else { return Ok(()) };
    install(&mut kernel)?;
    let numbers = [(7, SSRC), (8, SSRC), (9, SSRC + 1), (10, SSRC), (9, SSRC), (9, SSRC), (4_000, SSRC)];
    for (seq, ssrc) in numbers {
        run(&kernel, Hook::Tcx, &Frame::udp(5004, 8062, &rtp(PAYLOAD_TYPE, seq, ssrc)).bytes())?;
    }
    let stats = kernel.stats(0)?;
    assert_eq!((stats.packets, stats.bytes, stats.strange), (5, 5 * 172, 2));
    assert_eq!((stats.copied, stats.copied_bytes, stats.dropped), (5, 5 * 172, 0));
    assert_eq!((stats.reordered, stats.duplicate), (0, 0), "the worker counts those of its copies");
    assert_eq!((stats.highest, stats.window, stats.seen), (0x1_0000 + 10, 0b1111, 1));
    assert_eq!(stats.last_timestamp, 10 * 160);
    assert!(stats.timestamp_at > 0 && stats.timestamp_at <= stats.last_arrival);
    kernel.remove_flow(&key(5004, 8062, LOOPBACK))?;
    let frame = Frame::udp(5004, 8062, &rtp(PAYLOAD_TYPE, 11, SSRC));
    check(&kernel, "after removal", &frame.bytes(), Expect::Pass(PassReason::NotOurs))
}
