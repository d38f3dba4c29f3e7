//! A contender: a process that takes RTP on one port and sends a copy to each of N sinks.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use msm_tests::bench::cpu::{Pinned, pin};
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::bench::sink::Sink;
use msm_tests::process::free_port;

use super::generator::{self, Shape, fill};

/// What one run cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) sent: u64,
    pub(crate) copies: u64,
    pub(crate) lost: u64,
    /// CPU ns of the contender's process per delivered copy.
    pub(crate) ns_per_copy: f64,
}

/// Name of ours.
pub(crate) const PROXY: &str = "rtp-proxy";
/// Names of the relays; the first word is what `bench_relay` calls them.
pub(crate) const TOKIO: &str = "tokio relay";
pub(crate) const SEGMENTING: &str = "segmenting relay";
/// Name of another build of the proxy.
pub(crate) const BASELINE: &str = "baseline";

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    process: Pinned,
    source: UdpSocket,
    to: SocketAddr,
    sinks: Vec<Sink>,
    /// Number of the next packet, extended.
    sequence: u32,
    /// RTSP connections that keep the legs alive.
    _sessions: Vec<Rtsp>,
}

/// `rtp-proxy standalone` with one published stream and `fan_out` viewers.
pub(crate) fn proxy(program: &Path, fan_out: usize) -> anyhow::Result<Contender> {
    serve(start_proxy(program)?, fan_out)
}

fn serve((process, rtsp): (Pinned, SocketAddr), fan_out: usize) -> anyhow::Result<Contender> {
    let url = format!("rtsp://{rtsp}/bench");
    let (source, ports) = source(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut publisher = Rtsp::connect(rtsp, None)?;
    let port = publisher.publish(&url, ports)?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut sessions = vec![publisher];
    let mut sinks = Vec::new();
    // Viewers join a stream that flows: two packets make its SSRC known.
    let mut packet = [0_u8; 172];
    for sequence in 0..4 {
        fill(&mut packet, sequence);
        source.send_to(&packet, to)?;
    }
    for _ in 0..fan_out {
        let sink = Sink::open(Ipv4Addr::LOCALHOST.into())?;
        let mut viewer = Rtsp::connect(rtsp, None)?;
        viewer.play(&url, sink.port())?;
        sessions.push(viewer);
        sinks.push(sink);
    }
    Ok(Contender { name: PROXY, process, source, to, sinks, sequence: 4, _sessions: sessions })
}

/// Another build of the proxy, on other media ports.
pub(crate) fn baseline(program: &Path, fan_out: usize) -> anyhow::Result<Contender> {
    let started = start_proxy_with(program, &["--rtp-ports", "9060-9187"])?;
    Ok(Contender { name: BASELINE, ..serve(started, fan_out)? })
}

/// Starts the proxy on free ports and waits until it serves RTSP.
pub(crate) fn start_proxy(program: &Path) -> anyhow::Result<(Pinned, SocketAddr)> {
    start_proxy_with(program, &[])
}

fn start_proxy_with(program: &Path, more: &[&str]) -> anyhow::Result<(Pinned, SocketAddr)> {
    let rtsp = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let args = [
        "standalone",
        "--rtsp",
        &rtsp.to_string(),
        "--admin",
        &admin.to_string(),
        "--log-level",
        "warn",
        "--session-timeout",
        "10m",
    ];
    let args: Vec<_> = args.iter().chain(more).map(|arg| (*arg).to_owned()).collect();
    let process = Pinned::start(None, 0, program, &args)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Rtsp::connect(rtsp, None).and_then(|mut c| c.options()).is_err() {
        ensure!(Instant::now() < deadline, "{} does not answer on {rtsp}", program.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((process, rtsp))
}

/// One of the relays to `fan_out` sinks.
pub(crate) fn relay(program: &Path, name: &'static str, fan_out: usize) -> anyhow::Result<Contender> {
    let to = SocketAddr::from((
        Ipv4Addr::LOCALHOST,
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port(),
    ));
    let sinks =
        (0..fan_out).map(|_| Sink::open(Ipv4Addr::LOCALHOST.into())).collect::<anyhow::Result<Vec<_>>>()?;
    let kind = name.split(' ').next().unwrap_or(name);
    let mut args = vec![kind.to_owned(), to.to_string()];
    args.extend(sinks.iter().map(|s| s.address().to_string()));
    let process = Pinned::start(None, 0, program, &args)?;
    std::thread::sleep(Duration::from_millis(300));
    let (source, _) = source(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(Contender { name, process, source, to, sinks, sequence: 4, _sessions: Vec::new() })
}

/// An even UDP port and the next one, as an RTP source announces them. The RTCP socket stays open for
/// the life of the process so that nobody else takes its port.
pub(crate) fn source(from: SocketAddr) -> anyhow::Result<(UdpSocket, (u16, u16))> {
    for _ in 0..200 {
        let rtp = UdpSocket::bind(from)?;
        let port = rtp.local_addr()?.port();
        if port.is_multiple_of(2)
            && let Ok(rtcp) = UdpSocket::bind((from.ip(), port + 1))
        {
            socket2::SockRef::from(&rtp).set_send_buffer_size(4 << 20)?;
            std::mem::forget(rtcp);
            return Ok((rtp, (port, port + 1)));
        }
    }
    bail!("no free pair of UDP ports")
}

impl Contender {
    pub(crate) fn source(&self) -> &UdpSocket {
        &self.source
    }

    pub(crate) fn to(&self) -> SocketAddr {
        self.to
    }

    pub(crate) fn sequence(&self) -> u32 {
        self.sequence
    }

    pub(crate) fn set_sequence(&mut self, next: u32) {
        self.sequence = next;
    }

    pub(crate) fn sinks(&self) -> &[Sink] {
        &self.sinks
    }

    /// Every sink reads every packet of a short run: nothing lost, doubled, reordered or altered.
    pub(crate) fn gate(&mut self, size: usize) -> anyhow::Result<()> {
        for shape in [Shape::Single, Shape::Burst(32)] {
            let first = self.sequence;
            let sent = generator::send(
                &mut self.sequence,
                &self.source,
                self.to,
                shape,
                size,
                Duration::from_millis(160),
            )?;
            let mut expected = vec![0; size];
            let mut packet = [0_u8; 2048];
            for (index, sink) in self.sinks.iter().enumerate() {
                // A leg may see the packets sent while it was set up: skip to this run.
                let mut want = first;
                while want != first.wrapping_add(sent as u32) {
                    let len = sink.rtp.recv(&mut packet).with_context(|| {
                        format!("sink {index} got {} of {sent} {}", want.wrapping_sub(first), shape.name())
                    })?;
                    fill(&mut expected, want);
                    if packet[..len] != expected {
                        let seq = u16::from_be_bytes([packet[2], packet[3]]);
                        ensure!(
                            want == first && (seq.wrapping_sub(first as u16) as i16) < 0,
                            "sink {index}: packet {want} altered or out of order (sequence {seq}, {len} bytes)"
                        );
                        continue;
                    }
                    want = want.wrapping_add(1);
                }
            }
        }
        Ok(())
    }

    /// Sinks stop reading; the kernel counts.
    pub(crate) fn measure_only(&self) -> anyhow::Result<()> {
        self.sinks.iter().try_for_each(Sink::drop_all)
    }

    /// Copies that the kernel dropped at the sinks.
    fn arrived(&self) -> anyhow::Result<u64> {
        self.sinks.iter().map(Sink::drops).sum()
    }

    /// One run: the cost of this contender for this traffic.
    pub(crate) fn run(&mut self, shape: Shape, size: usize, how_long: Duration) -> anyhow::Result<Cost> {
        pin(1)?;
        let before = self.arrived()?;
        let cpu = self.process.cpu()?;
        let sent = generator::send(&mut self.sequence, &self.source, self.to, shape, size, how_long)?;
        // Quiet: what was sent has been forwarded.
        std::thread::sleep(Duration::from_millis(60));
        let cpu = self.process.cpu()? - cpu;
        let copies = self.arrived()? - before;
        let expected = sent * self.sinks.len() as u64;
        Ok(Cost {
            sent,
            copies,
            lost: expected.saturating_sub(copies),
            ns_per_copy: cpu as f64 / copies.max(1) as f64,
        })
    }
}
