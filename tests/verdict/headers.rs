//! Headers that are not at fixed offsets: what is behind them arrives by the kernel's own stack, byte for byte.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use msm_fastpath::limits::COUNT_TO_USER;
use msm_fastpath::{FlowEntry, GroupMode, PassReason};

use crate::foreign::{Setup, Tap, frame, frame6, setup_for, whole, whole6};
use crate::scene::{packet, receive};

#[test]
fn extension_headers_and_fragments_of_ipv6_take_the_kernels_own_way() -> Result<()> {
    let test = "extension_headers_and_fragments_of_ipv6_take_the_kernels_own_way";
    let flags = FlowEntry::COPY_TO_USER;
    let Some(Setup { scene, mut raw, viewer, worker }) = setup_for(test, true, GroupMode::Common, flags)?
    else {
        return Ok(());
    };
    let before = scene.programs.counters()?;
    // Hop-by-hop options and destination options, six bytes of padding each.
    for (seq, next) in [(1, 0), (2, 60)] {
        let frame = frame6(&scene, &packet(seq, 172), next, &[17, 0, 1, 4, 0, 0, 0, 0])?;
        raw.send(&whole6(frame, 62))?;
        assert_eq!(receive(&worker).context("extension header")?, packet(seq, 172), "next header {next}");
    }
    // Both, one behind the other.
    let both = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
    raw.send(&whole6(frame6(&scene, &packet(3, 172), 0, &both)?, 70))?;
    assert_eq!(receive(&worker).context("two extension headers")?, packet(3, 172));
    // Two fragments, which the kernel puts together, and one that is a whole packet (RFC 6946).
    let datagram = whole6(frame6(&scene, &packet(4, 1_000), 17, &[])?, 54);
    for (offset, more, part) in [(0_u16, 1_u16, &datagram[54..54 + 512]), (512, 0, &datagram[54 + 512..])] {
        raw.send(&fragment(&datagram, offset | more, part))?;
    }
    assert_eq!(receive(&worker).context("fragments")?, packet(4, 1_000));
    let datagram = whole6(frame6(&scene, &packet(5, 172), 17, &[])?, 54);
    raw.send(&fragment(&datagram, 0, &datagram[54..]))?;
    assert_eq!(receive(&worker).context("an atomic fragment")?, packet(5, 172));
    let after = scene.programs.counters()?;
    assert_eq!(after.passed(PassReason::Fragment) - before.passed(PassReason::Fragment), 3);
    assert!(after.passed(PassReason::IpOptions) - before.passed(PassReason::IpOptions) >= 3);
    assert_eq!(after.at(COUNT_TO_USER), before.at(COUNT_TO_USER));
    assert_eq!(scene.programs.stats(0)?.packets, 0);
    viewer.set_nonblocking(true)?;
    assert!(receive(&viewer).is_err(), "nothing of it reaches a leg");
    Ok(())
}

/// A fragment of an IPv6 packet without extension headers. `offset`: in bytes, with the flag for more.
fn fragment(whole: &[u8], offset: u16, part: &[u8]) -> Vec<u8> {
    let mut frame = whole[..54].to_vec();
    frame[18..20].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
    frame[20] = 44;
    frame.extend([17, 0]);
    frame.extend(offset.to_be_bytes());
    frame.extend([0, 0, 0, 9]);
    frame.extend(part);
    frame
}

#[test]
fn tagged_frames_pass_to_whoever_they_are_for() -> Result<()> {
    let test = "tagged_frames_pass_to_whoever_they_are_for";
    for v6 in [false, true] {
        let flags = FlowEntry::COPY_TO_USER;
        let Some(Setup { scene, mut raw, viewer, worker }) = setup_for(test, v6, GroupMode::Common, flags)?
        else {
            return Ok(());
        };
        let tap = scene.host.inside(|| Tap::open(&scene.devices[1]))??;
        let datagram = |seq| -> Result<Vec<u8>> {
            if v6 {
                Ok(whole6(frame6(&scene, &packet(seq, 172), 17, &[])?, 54))
            } else {
                Ok(whole(frame(&scene, &packet(seq, 172), &[], 0x4000)?, 34, None))
            }
        };
        let before = scene.programs.counters()?;
        // VLAN 0 is a priority alone (802.1p): the kernel's own stack takes the packet, under both kinds of tag.
        for (seq, kind) in [(1, [0x81, 0]), (2, [0x88, 0xa8])] {
            let tagged = with_tag(&datagram(seq)?, kind, [0xa0, 0]);
            raw.send(&tagged)?;
            let found = receive(&worker).with_context(|| format!("v6 {v6}, tag {kind:x?}"))?;
            assert_eq!(found, packet(seq, 172), "v6 {v6}, tag {kind:x?}");
        }
        // A VLAN that this host does not have: who watches the device behind the program sees the frame as it was.
        let untagged = datagram(3)?;
        raw.send(&with_tag(&untagged, [0x81, 0], [0, 5]))?;
        if !v6 {
            let seen = std::iter::repeat_with(|| tap.next_from(5004)).nth(2).context("three frames")??;
            assert_eq!(seen, untagged, "the kernel has taken the tag off");
        }
        let counted = || Ok::<_, anyhow::Error>(scene.programs.counters()?.passed(PassReason::Vlan));
        let deadline = Instant::now() + Duration::from_secs(10);
        while counted()? < before.passed(PassReason::Vlan) + 3 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(counted()?, before.passed(PassReason::Vlan) + 3, "v6 {v6}");
        assert_eq!(scene.programs.counters()?.at(COUNT_TO_USER), before.at(COUNT_TO_USER));
        assert_eq!(scene.programs.stats(0)?.packets, 0, "the flow is not that of a tagged frame");
        viewer.set_nonblocking(true)?;
        assert!(receive(&viewer).is_err(), "nothing of it reaches a leg");
    }
    Ok(())
}

fn with_tag(frame: &[u8], kind: [u8; 2], tag: [u8; 2]) -> Vec<u8> {
    [&frame[..12], &kind, &tag, &frame[12..]].concat()
}
