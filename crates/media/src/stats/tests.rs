//! Loss and jitter by hand, and against tshark.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::rtp::PacketBuilder;
use crate::testing::{ms, start};

const AUDIO: u32 = 8_000;

fn stats(now: Instant, hz: u32) -> ReceiverStats {
    ReceiverStats::new(now, ClockRate::new(hz).unwrap())
}

/// `(arrival in microseconds, seq, ts)`
type Packet = (u64, u16, u32);

/// Plays packets into statistics that began at `epoch`; returns the highest and the mean jitter in seconds.
fn feed(stats: &mut ReceiverStats, epoch: Instant, packets: &[Packet]) -> (f64, f64) {
    let (mut max, mut sum) = (0.0_f64, 0.0);
    for (at, seq, ts) in packets {
        let arrival = stats.arrival(epoch + Duration::from_micros(*at));
        stats.observe(arrival, *seq, *ts, 172);
        max = max.max(stats.jitter_seconds());
        sum += stats.jitter_seconds();
    }
    (max, sum / packets.len() as f64)
}

#[test]
fn loss_counts_over_wrap_duplicate_and_reordering() {
    let packets: Vec<_> = [65_534_u16, 65_535, 1, 0, 0, 4].iter().map(|seq| (0, *seq, 0)).collect();
    let now = start();
    let mut stats = stats(now, AUDIO);
    feed(&mut stats, now, &packets);
    let totals = stats.totals();
    assert_eq!((totals.packets, totals.expected, totals.reordered, totals.duplicates), (6, 7, 1, 1));
    assert_eq!((totals.lost(), totals.missing()), (1, 2), "RFC 3550 A.3 counts a duplicate against a loss");
    let report = stats.report().unwrap();
    assert_eq!((report.cumulative_lost, report.highest, report.fraction_lost), (1, 0x1_0004, 36));
}

#[test]
fn fraction_is_that_of_the_last_interval() {
    let now = start();
    let mut stats = stats(now, AUDIO);
    let feed = |stats: &mut ReceiverStats, seqs: &[u16]| {
        for seq in seqs {
            stats.observe(0.0, *seq, 0, 172);
        }
    };
    assert_eq!(stats.report(), None, "nothing to report on");
    feed(&mut stats, &[1, 2, 4]);
    assert_eq!(stats.report().unwrap().fraction_lost, 64);
    feed(&mut stats, &[5, 6]);
    assert_eq!(stats.report().unwrap().fraction_lost, 0);
    assert_eq!(stats.report().unwrap().fraction_lost, 0, "nothing expected in an empty interval");
    feed(&mut stats, &[6, 6, 6, 7]);
    let report = stats.report().unwrap();
    assert_eq!((report.fraction_lost, report.cumulative_lost), (0, -2), "more received than expected");
}

#[test]
fn cumulative_loss_is_clamped_to_24_bits() {
    let now = start();
    let mut stats = stats(now, AUDIO);
    stats.observe(0.0, 0, 0, 172);
    for _ in 0..0x80_0010_u32 {
        stats.observe(0.0, 0, 0, 1);
    }
    assert_eq!(stats.cumulative_lost(), -0x80_0000);
}

#[test]
fn a_restart_starts_reports_over_and_keeps_totals() {
    let now = start();
    let mut stats = stats(now, AUDIO);
    for seq in [1, 2, 5] {
        stats.observe(0.0, seq, 0, 100);
    }
    stats.end_run();
    stats.end_run();
    assert_eq!(stats.report(), None);
    for seq in [40_000, 40_001] {
        stats.observe(0.0, seq, 0, 100);
    }
    let totals = stats.totals();
    assert_eq!((totals.packets, totals.expected, totals.bytes, totals.restarts), (5, 7, 500, 1));
    assert_eq!(totals.lost(), 2);
    let report = stats.report().unwrap();
    assert_eq!((report.cumulative_lost, report.highest), (0, 40_001));
}

#[test]
fn a_jump_is_not_counted() {
    let now = start();
    let mut stats = stats(now, AUDIO);
    stats.observe(0.0, 1, 0, 100);
    assert_eq!(stats.observe(0.0, 20_000, 0, 100).1, SeqStep::Jump);
    assert_eq!((stats.totals().packets, stats.totals().expected), (1, 1));
}

#[test]
fn jitter_of_frames_is_free_of_the_pacing_within_them() {
    let now = start();
    let mut stats = stats(now, 90_000);
    for frame in 0..500_u32 {
        for packet in 0..10_u32 {
            let arrival = stats.arrival(now + ms(40) * frame + ms(1) * packet);
            stats.observe(arrival, (frame * 10 + packet) as u16, frame * 3_600, 1_200);
        }
    }
    assert!(stats.frame_jitter_seconds() < 1e-6, "{}", stats.frame_jitter_seconds());
    assert!(stats.jitter_seconds() > 1e-3, "RFC 3550 A.8 runs on every packet");
}

#[test]
fn rate_is_measured_over_full_seconds() {
    let now = start();
    let mut stats = stats(now, 90_000);
    for i in 0..2_000_u32 {
        let at = now + Duration::from_micros(500) * i;
        stats.observe(stats.arrival(at), i as u16, i, 1_200);
        stats.note_time(at);
    }
    stats.note_time(now + ms(1_000));
    assert_eq!(stats.packets_per_second(), 2_000);
}

/// A simple generator, so that the capture is the same in every run.
struct Lcg(u32);

impl Lcg {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % bound
    }
}

/// Audio of 20 ms per packet that wraps, with network jitter, and what the network did to it.
fn impaired(seed: u32, lose: u32, duplicate: u32, reorder: u32) -> Vec<Packet> {
    let mut random = Lcg(seed);
    let mut out = Vec::new();
    for i in 0..2_000_u32 {
        let at = u64::from(i) * 20_000 + u64::from(random.below(8_000));
        let packet = (at, (64_500 + i) as u16, i * 160);
        if lose > 0 && random.below(lose) == 0 && i > 0 && i < 1_999 {
            continue;
        }
        out.push(packet);
        if duplicate > 0 && random.below(duplicate) == 0 {
            out.push((at + 100, packet.1, packet.2));
        }
    }
    if reorder > 0 {
        for i in 1..out.len() - 1 {
            if random.below(reorder) == 0 {
                let (a, b) = (out[i], out[i + 1]);
                out[i] = (a.0, b.1, b.2);
                out[i + 1] = (b.0, a.1, a.2);
            }
        }
    }
    out.sort_by_key(|packet| packet.0);
    out
}

/// A capture of raw IPv4 with nanosecond times (libpcap, link type 101).
fn capture(streams: &[(u32, &[Packet])]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(0xa1b2_3c4d_u32.to_le_bytes());
    out.extend([2, 0, 4, 0]);
    out.extend([0; 8]);
    out.extend(65_535_u32.to_le_bytes());
    out.extend(101_u32.to_le_bytes());
    let mut offset = 0;
    for (ssrc, packets) in streams {
        for (at, seq, ts) in *packets {
            let rtp = PacketBuilder::new(0, *seq, *ts, *ssrc).build(&[0xd5; 160]);
            let length = 28 + rtp.len();
            let at = offset + at * 1_000;
            out.extend(((at / 1_000_000_000) as u32).to_le_bytes());
            out.extend(((at % 1_000_000_000) as u32).to_le_bytes());
            out.extend((length as u32).to_le_bytes());
            out.extend((length as u32).to_le_bytes());
            out.extend([0x45, 0]);
            out.extend((length as u16).to_be_bytes());
            out.extend([0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
            out.extend([0x13, 0x8c, 0x13, 0x8c]);
            out.extend(((length - 20) as u16).to_be_bytes());
            out.extend([0, 0]);
            out.extend(rtp);
        }
        offset += 100_000_000_000;
    }
    out
}

/// What `tshark -qz rtp,streams` says about a stream.
#[derive(Debug)]
struct Oracle {
    packets: u64,
    lost: i64,
    mean_jitter: f64,
    max_jitter: f64,
}

/// Statistics of the streams in a capture, or why there are none.
fn ask_tshark(capture: &[u8]) -> Result<Vec<(u32, Oracle)>, String> {
    let path = std::env::temp_dir().join(format!("msm-media-{}.pcap", std::process::id()));
    std::fs::write(&path, capture).map_err(|error| format!("{}: {error}", path.display()))?;
    let output = Command::new("tshark")
        .arg("-r")
        .arg(&path)
        .args(["-d", "udp.port==5004,rtp", "-qz", "rtp,streams"])
        .output();
    let _ = std::fs::remove_file(&path);
    let text = String::from_utf8(output.map_err(|error| format!("tshark: {error}"))?.stdout).unwrap();
    let streams = text.lines().filter_map(|line| {
        let (_, fields) = line.split_once(" 0x")?;
        // SSRC, payload, packets, lost, share, three deltas, three jitters
        let fields: Vec<_> = fields.split_whitespace().collect();
        let oracle = Oracle {
            packets: fields.get(2)?.parse().ok()?,
            lost: fields.get(3)?.parse().ok()?,
            mean_jitter: fields.get(9)?.parse().ok()?,
            max_jitter: fields.get(10)?.parse().ok()?,
        };
        Some((u32::from_str_radix(fields.first()?, 16).ok()?, oracle))
    });
    Ok(streams.collect())
}

/// Case 26: our figures equal those of an independent implementation, over wrap, loss, duplicates,
/// reordering, and restarts of the source, which are other SSRCs to both.
#[test]
fn loss_and_jitter_equal_those_of_tshark() {
    let streams: Vec<(u32, Vec<Packet>)> = vec![
        (0x1001, impaired(1, 0, 0, 0)),
        (0x1002, impaired(2, 50, 0, 0)),
        (0x1003, impaired(3, 0, 40, 0)),
        (0x1004, impaired(4, 50, 60, 0)),
        (0x1005, impaired(5, 0, 0, 30)),
        (0x1006, impaired(6, 40, 60, 30)),
    ];
    let borrowed: Vec<_> = streams.iter().map(|(ssrc, packets)| (*ssrc, packets.as_slice())).collect();
    let oracles = match ask_tshark(&capture(&borrowed)) {
        Ok(oracles) => oracles,
        Err(reason) => {
            #[expect(clippy::disallowed_methods, reason = "whether a missing oracle fails is CI's decision")]
            let in_ci = std::env::var_os("CI").is_some();
            assert!(!in_ci, "{reason}");
            eprintln!("skipped: {reason}");
            return;
        }
    };
    assert_eq!(oracles.len(), streams.len());
    let epoch = start();
    let mut stats = stats(epoch, AUDIO);
    for (ssrc, packets) in &streams {
        stats.end_run();
        let before = stats.totals();
        let (max, mean) = feed(&mut stats, epoch, packets);
        let oracle = &oracles.iter().find(|(other, _)| other == ssrc).expect("a stream per SSRC").1;
        let totals = stats.totals();
        let packets = totals.packets - before.packets;
        assert_eq!((packets, totals.lost() - before.lost()), (oracle.packets, oracle.lost), "{ssrc:#x}");
        assert_eq!(i64::from(stats.cumulative_lost()), oracle.lost, "{ssrc:#x}");
        let near = |ours: f64, theirs: f64| (ours * 1_000.0 - theirs).abs() < 0.01;
        assert!(
            near(max, oracle.max_jitter) && near(mean, oracle.mean_jitter),
            "{ssrc:#x}: max {:.3} ms, mean {:.3} ms; tshark: {oracle:?}",
            max * 1_000.0,
            mean * 1_000.0
        );
    }
}
