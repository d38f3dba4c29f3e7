//! Source, contender and sinks of the closed loop.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::bench::sink::Sink;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, sendto};
use tokio::runtime::Runtime;

use super::super::contender::{PROXY, SEGMENTING, TOKIO, source};
use super::super::generator::{Shape, fill};
use super::super::relays::{Segmenting, Tokio};
use super::SOURCE;
use super::worker::DataWorker;

/// Largest burst.
const BURST: usize = 32;
/// A lost packet ends a loop with an error instead of standing still.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bursts between two looks at the clock.
const LOOK: usize = 8;
/// Packets of the gate that are on their way before they are read: what a sink's buffer has room for.
const GATED: usize = 64;

/// A paced source's counterpart: it sends when it is told to.
pub(crate) struct Source {
    socket: UdpSocket,
    to: SockaddrIn,
    /// Number of the next packet, extended.
    next: u32,
    size: usize,
    packets: Vec<u8>,
    headers: MultiHeaders<SockaddrIn>,
}

impl Source {
    fn new(socket: UdpSocket, to: SocketAddrV4, size: usize) -> Self {
        let headers = MultiHeaders::preallocate(BURST, None);
        Self { socket, to: to.into(), next: 0, size, packets: vec![0; size * BURST], headers }
    }

    /// Sends one burst; returns its packets.
    pub(crate) fn burst(&mut self, shape: Shape) -> Result<usize> {
        let count = match shape {
            Shape::Single => 1,
            Shape::Burst(count) => count.min(BURST),
        };
        for packet in self.packets.chunks_exact_mut(self.size).take(count) {
            fill(packet, self.next);
            self.next = self.next.wrapping_add(1);
        }
        let fd = self.socket.as_raw_fd();
        let packets = self.packets.chunks_exact(self.size).take(count);
        if let Shape::Single = shape {
            sendto(fd, &self.packets[..self.size], &self.to, MsgFlags::empty()).context("sendto")?;
        } else {
            let slices: Vec<_> = packets.map(|packet| [IoSlice::new(packet)]).collect();
            let to = [Some(self.to); BURST];
            let none: [ControlMessage<'_>; 0] = [];
            let sent = sendmmsg(fd, &mut self.headers, slices.iter(), to, none, MsgFlags::empty());
            let sent = sent.context("sendmmsg")?.count();
            ensure!(sent == count, "sendmmsg sent {sent} of {count}");
        }
        Ok(count)
    }
}

enum Path {
    /// The source's packets end where they are sent to.
    Nothing,
    Worker(Box<DataWorker>),
    /// Source and relay are one task.
    Tokio(Box<Runtime>, Box<Tokio>),
    Segmenting(Box<Segmenting>),
}

/// A contender between a source and its sinks.
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    source: Source,
    path: Path,
    sinks: Vec<Sink>,
}

/// Every contender with sinks of its own, and the source alone.
pub(crate) fn all(fan_out: usize, size: usize) -> Result<Vec<Lane>> {
    let relay = |name, make: fn(UdpSocket, &[SocketAddrV4]) -> Result<Path>| -> Result<Lane> {
        let sinks = sinks(fan_out)?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let to = v4(socket.local_addr()?)?;
        let viewers = sinks.iter().map(|sink| v4(sink.address())).collect::<Result<Vec<_>>>()?;
        let (from, _) = source(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Lane { name, source: Source::new(from, to, size), path: make(socket, &viewers)?, sinks })
    };
    Ok(vec![
        worker(fan_out, size)?,
        relay(TOKIO, |socket, viewers| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let relay = {
                let _inside = runtime.enter();
                Tokio::new(socket, viewers)?
            };
            Ok(Path::Tokio(Box::new(runtime), Box::new(relay)))
        })?,
        relay(SEGMENTING, |socket, viewers| {
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(Path::Segmenting(Box::new(Segmenting::new(socket, viewers)?)))
        })?,
        alone(size)?,
    ])
}

/// The data worker with one stream and a leg per sink.
fn worker(fan_out: usize, size: usize) -> Result<Lane> {
    let sinks = sinks(fan_out)?;
    let (from, ports) = source(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let worker = DataWorker::start(ports)?;
    let mut source = Source::new(from, v4(worker.input())?, size);
    // Viewers join a stream that flows: its first packets make its SSRC known.
    for _ in 0..4 {
        source.burst(Shape::Single)?;
    }
    worker.turn();
    for sink in &sinks {
        worker.play(sink.address())?;
    }
    Ok(Lane { name: PROXY, source, path: Path::Worker(Box::new(worker)), sinks })
}

fn alone(size: usize) -> Result<Lane> {
    let sinks = sinks(1)?;
    let (from, _) = source(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let to = v4(sinks[0].address())?;
    Ok(Lane { name: SOURCE, source: Source::new(from, to, size), path: Path::Nothing, sinks })
}

fn sinks(count: usize) -> Result<Vec<Sink>> {
    (0..count).map(|_| Sink::open(Ipv4Addr::LOCALHOST.into())).collect()
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    let SocketAddr::V4(address) = address else { bail!("IPv4 only") };
    Ok(address)
}

impl Lane {
    /// Copies of one packet.
    pub(crate) fn fan_out(&self) -> u64 {
        self.sinks.len() as u64
    }

    /// Sends and forwards bursts while `goes_on` says so, which is asked after each with the packets sent so
    /// far. Returns these.
    fn forward(&mut self, shape: Shape, mut goes_on: impl FnMut(u64) -> bool) -> Result<u64> {
        let source = &mut self.source;
        let mut sent = 0;
        match &mut self.path {
            Path::Nothing => loop {
                sent += source.burst(shape)? as u64;
                if !goes_on(sent) {
                    return Ok(sent);
                }
            },
            Path::Worker(worker) => worker.drive(|worker| {
                sent += source.burst(shape)? as u64;
                worker.turn();
                Ok(goes_on(sent))
            })?,
            Path::Tokio(runtime, relay) => runtime.block_on(async {
                loop {
                    let packets = source.burst(shape)?;
                    for _ in 0..packets {
                        relay.forward().await?;
                    }
                    sent += packets as u64;
                    if !goes_on(sent) {
                        return anyhow::Ok(());
                    }
                }
            })?,
            Path::Segmenting(relay) => loop {
                let packets = source.burst(shape)?;
                let mut done = 0;
                while done < packets {
                    done += relay.forward()?;
                }
                sent += packets as u64;
                if !goes_on(sent) {
                    break;
                }
            },
        }
        Ok(sent)
    }

    /// Sends and forwards for about `how_long`; returns packets sent.
    pub(crate) fn drive(&mut self, shape: Shape, how_long: Duration) -> Result<u64> {
        let until = Instant::now() + how_long;
        let mut bursts = 0_usize;
        self.forward(shape, |_| {
            bursts += 1;
            !bursts.is_multiple_of(LOOK) || Instant::now() < until
        })
    }

    /// Every sink reads every packet of a short run: nothing lost, doubled, reordered or altered.
    pub(crate) fn gate(&mut self) -> Result<()> {
        let mut expected = vec![0; self.source.size];
        let mut packet = [0_u8; 2048];
        for shape in [Shape::Single, Shape::Burst(BURST)] {
            for _ in 0..4 {
                let first = self.source.next;
                let sent = self.forward(shape, |sent| sent < GATED as u64)?;
                for (index, sink) in self.sinks.iter().enumerate() {
                    for number in 0..sent as u32 {
                        let len = sink.rtp.recv(&mut packet).with_context(|| {
                            format!("sink {index} got {number} of {sent} {}", shape.name())
                        })?;
                        let want = first.wrapping_add(number);
                        fill(&mut expected, want);
                        ensure!(
                            packet[..len] == expected,
                            "sink {index}: packet {want} altered or out of order"
                        );
                    }
                }
            }
        }
        for (index, sink) in self.sinks.iter().enumerate() {
            sink.rtp.set_nonblocking(true)?;
            ensure!(sink.rtp.recv(&mut packet).is_err(), "sink {index}: more packets than were sent");
            sink.rtp.set_nonblocking(false)?;
        }
        Ok(())
    }

    /// Sinks stop reading; the kernel counts.
    pub(crate) fn measure_only(&self) -> Result<()> {
        self.sinks.iter().try_for_each(Sink::drop_all)
    }

    /// Copies that the kernel dropped at the sinks.
    pub(crate) fn arrived(&self) -> Result<u64> {
        self.sinks.iter().map(Sink::drops).sum()
    }
}
