//! Resident memory of the proxy: idle, and while it carries 64 cameras.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use msm_tests::bench::cpu::Pinned;
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::bench::sink::Sink;

use super::contender::{source, start_proxy};
use super::generator::fill;

const CAMERAS: usize = 64;

#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) idle_kib: u64,
    pub(crate) idle_anonymous_kib: u64,
    pub(crate) cameras: usize,
    pub(crate) loaded_kib: u64,
    pub(crate) loaded_anonymous_kib: u64,
}

/// 64 cameras on addresses of their own, each with one viewer, 100 packets/s of 1,200 B in bursts of 10.
pub(crate) fn measure(program: &Path) -> anyhow::Result<Memory> {
    let (process, rtsp) = start_proxy(program)?;
    std::thread::sleep(Duration::from_secs(1));
    let (idle_kib, idle_anonymous_kib) = resident(&process)?;
    let mut sessions = Vec::new();
    let mut sources = Vec::new();
    let mut sinks = Vec::new();
    for camera in 0..CAMERAS {
        let address = Ipv4Addr::new(127, 0, 1, 1 + camera as u8);
        let url = format!("rtsp://{rtsp}/camera{camera}");
        let (source, ports) = source(SocketAddr::from((address, 0)))?;
        let mut publisher = Rtsp::connect(rtsp, Some(address.into()))?;
        let port = publisher.publish(&url, ports)?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut packet = [0_u8; 1200];
        for sequence in 0..4 {
            fill(&mut packet, sequence);
            source.send_to(&packet, to)?;
        }
        let sink = Sink::open(Ipv4Addr::LOCALHOST.into())?;
        let mut viewer = Rtsp::connect(rtsp, None)?;
        viewer.play(&url, sink.port())?;
        sink.drop_all()?;
        sessions.extend([publisher, viewer]);
        sources.push((source, to));
        sinks.push(sink);
    }
    let start = Instant::now();
    let mut sequence = 4_u32;
    let mut packet = [0_u8; 1200];
    while start.elapsed() < Duration::from_secs(5) {
        for (source, to) in &sources {
            for offset in 0..10 {
                fill(&mut packet, sequence + offset);
                source.send_to(&packet, *to)?;
            }
        }
        sequence += 10;
        let due = start + Duration::from_millis(100) * (sequence / 10);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let (loaded_kib, loaded_anonymous_kib) = resident(&process)?;
    Ok(Memory { idle_kib, idle_anonymous_kib, cameras: CAMERAS, loaded_kib, loaded_anonymous_kib })
}

/// `VmRSS` and `RssAnon` in KiB.
fn resident(process: &Pinned) -> anyhow::Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok((field("VmRSS:"), field("RssAnon:")))
}
