//! A lane: one contender with its source, its path and its sinks.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::cpu::{self, KernelThreads, pin};
use msm_tests::bench::sink::Sink;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::{Deserialize, Serialize};

use super::generator::Generator;
use super::packet::Expect;
use super::path::Path;
use super::tap::{Sums, Tap};
use super::topology::{Overflows, Pod, Received, Topology, waiting};

/// Copies of one run that a sink keeps for inspection: about one in so many.
const SAMPLE: u16 = 64;
/// Room for what a run's sample weighs.
const SINK_BUFFER: usize = 64 << 20;

/// One contender.
pub(crate) struct Lane {
    pub(crate) name: String,
    /// Version of a foreign program, the rung of ours.
    pub(crate) version: String,
    pub(crate) generator: Generator,
    pub(crate) path: Path,
    pub(crate) legs: Vec<Leg>,
    /// Name of the lane that is the generator alone, sending the same way.
    pub(crate) floor: String,
    /// Super-packets reach the sinks whole.
    pub(crate) merged: bool,
    /// Kernel threads that work for this contender, beside ksoftirqd.
    pub(crate) threads: KernelThreads,
    /// The generator's core.
    pub(crate) core: usize,
    /// It has passed the gate, and its sinks may keep a sample only.
    pub(crate) passed: bool,
    /// Over the bridge: copies arrive by the pods' second device.
    pub(crate) bridged: bool,
}

/// One viewer of a lane.
pub(crate) struct Leg {
    /// Number of its pod.
    pub(crate) pod: usize,
    pub(crate) sink: Sink,
    pub(crate) expect: Expect,
}

/// CPU ns and packets of one run.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) sent: u64,
    pub(crate) copies: u64,
    pub(crate) lost: u64,
    /// This process: the generator, and whatever runs in its softirq or closed loop.
    pub(crate) generator_ns: u64,
    /// The contender's process.
    pub(crate) process_ns: u64,
    /// ksoftirqd and NAPI threads.
    pub(crate) kernel_ns: u64,
    pub(crate) wall_ns: u64,
    /// Super-packets or packets that reached the pods' devices.
    pub(crate) frames: u64,
    /// Copies read back and compared after the run.
    pub(crate) verified: u64,
    /// CPU time of tasks outside the benchmark.
    pub(crate) foreign_ns: u64,
    pub(crate) steal_ns: u64,
}

impl Cost {
    pub(crate) fn total_ns(&self) -> u64 {
        self.generator_ns + self.process_ns + self.kernel_ns
    }

    /// With the generator.
    pub(crate) fn gross(&self) -> f64 {
        self.total_ns() as f64 / self.copies.max(1) as f64
    }

    /// Less what the generator alone needs for as many packets.
    pub(crate) fn net(&self, floor_per_packet: f64) -> f64 {
        (self.total_ns() as f64 - floor_per_packet * self.sent as f64) / self.copies.max(1) as f64
    }
}

/// Opens a sink in a pod.
pub(crate) fn sink(pod: &Pod, port: u16, merged: bool) -> Result<Sink> {
    let sink = pod.node.inside(|| Sink::bind((Ipv4Addr::UNSPECIFIED, port).into()))??;
    let granted = sink.force_buffer(SINK_BUFFER)?;
    ensure!(granted >= SINK_BUFFER, "a receive buffer of {granted} bytes instead of {SINK_BUFFER}");
    if merged {
        sink.take_super_packets()?;
    }
    Ok(sink)
}

impl Lane {
    pub(crate) fn received(&self, topology: &Topology) -> Result<Received> {
        let mut all = Received::default();
        let mut pods: Vec<usize> = self.legs.iter().map(|l| l.pod).collect();
        pods.sort_unstable();
        pods.dedup();
        for number in pods {
            let pod = &topology.pods[number];
            let counters = if self.bridged { pod.bridged_counters.as_ref() } else { Some(&pod.counters) };
            let now = counters.context("this network has no bridge")?.read()?;
            all.bytes += now.bytes;
            all.packets += now.packets;
            all.dropped += now.dropped;
        }
        Ok(all)
    }

    /// The gate, again where the machine's own queues overflowed meanwhile: that says nothing about whoever is
    /// behind them. What is wrong without such an overflow is wrong at once.
    pub(crate) fn admit(&mut self, topology: &Topology) -> Result<Sums> {
        if self.passed {
            return Ok(Sums::default());
        }
        let mut attempts = 0;
        loop {
            let before = Overflows::now(topology)?;
            let reason = match self.gate(topology) {
                Ok(sums) => {
                    self.passed = true;
                    return Ok(sums);
                }
                Err(reason) => reason,
            };
            let lost = Overflows::now(topology)?.since(before);
            attempts += 1;
            if lost == Overflows::default() || attempts == 3 {
                return Err(reason.context(lost.to_string()));
            }
            eprintln!("{}: gate again: {lost}: {reason:#}", self.name);
        }
    }

    /// Every sink reads every packet of a short run: nothing lost, doubled, reordered or altered, every
    /// checksum right.
    pub(crate) fn gate(&mut self, topology: &Topology) -> Result<Sums> {
        if self.legs.is_empty() {
            return Ok(Sums::default());
        }
        let taps = self.legs.iter().map(|l| Tap::open(&topology.pods[l.pod].node));
        let taps = taps.collect::<Result<Vec<_>>>()?;
        for leg in &self.legs {
            leg.sink.drain()?;
        }
        let first = self.generator.heads();
        let (rate, active) = (self.generator.rate, self.generator.active);
        self.generator.active = active.min(GATE_STREAMS);
        // Two bursts of every stream at least.
        let packets = 2 * self.generator.active * self.generator.shape.packets();
        let pace = if first.len() > 1 { 40_000 } else { 2_000 };
        self.generator.rate = rate.or(Some(pace));
        let how_long = GATE.max(Duration::from_secs_f64(packets as f64 / f64::from(pace)));
        let before = self.received(topology)?;
        let sent = self.drive(how_long)?;
        (self.generator.rate, self.generator.active) = (rate, active);
        self.settle(topology, before, sent)?;
        let (size, next) = (self.generator.size, self.generator.heads());
        let mut sums = Sums::default();
        for (number, leg) in self.legs.iter_mut().enumerate() {
            let mut want = first.clone();
            leg.read(size, |stream, packet| {
                let want = want.get_mut(stream as usize).context("a stream that nobody sends")?;
                ensure!(packet == *want, "stream {stream}: packet {packet} where {want} was due");
                *want = want.wrapping_add(1);
                Ok(())
            })
            .with_context(|| format!("leg {number}"))?;
            let missing = want.iter().zip(&next).find(|(want, next)| want != next);
            ensure!(missing.is_none(), "leg {number}: it ended at {missing:?} of what was sent");
            let found = taps[number].check(leg.sink.port()).with_context(|| format!("leg {number}"))?;
            ensure!(found.complete + found.partial > 0, "leg {number}: no frame reached its pod");
            sums.complete += found.complete;
            sums.partial += found.partial;
        }
        Ok(sums)
    }

    /// From now on the sinks keep a sample only.
    pub(crate) fn count(&self) -> Result<()> {
        let burst = self.generator.shape.packets() as u16;
        // A super-packet is kept or dropped by its first segment.
        let (every, first) = if self.merged && burst > 1 { (SAMPLE * 32, burst) } else { (SAMPLE, 1) };
        self.legs.iter().try_for_each(|leg| leg.sink.keep_sample(every, first))
    }

    /// One run.
    pub(crate) fn run(
        &mut self,
        topology: &Topology,
        softirqs: &KernelThreads,
        how_long: Duration,
    ) -> Result<Cost> {
        pin(self.core)?;
        let threads = softirqs.and(&self.threads);
        for leg in &self.legs {
            leg.sink.drain()?;
        }
        let drops = self.drops()?;
        let received = self.received(topology)?;
        let machine = cpu::Machine::now()?;
        let (start, own, process, kernel) =
            (std::time::Instant::now(), cpu::own()?, self.path.cpu()?, threads.cpu());
        let sent = self.drive(how_long)?;
        let own_end = cpu::own()?;
        let wall = start.elapsed();
        // Whoever runs beside us gets the time to forward what is left.
        self.settle(topology, received, sent)?;
        let mut cost = Cost {
            sent,
            generator_ns: own_end - own,
            process_ns: self.path.cpu()? - process,
            kernel_ns: threads.cpu() - kernel,
            wall_ns: wall.as_nanos() as u64,
            ..Cost::default()
        };
        let used = cpu::Machine::now()?.since(&machine);
        cost.steal_ns = used.steal_ns;
        // What this process did around the window is no foreign use either.
        cost.foreign_ns = used.busy_ns.saturating_sub(cost.process_ns + cost.kernel_ns + (cpu::own()? - own));
        let received = self.received(topology)?.since(received);
        cost.frames = received.packets;
        let size = self.generator.size;
        let dropped = self.drops()? - drops;
        let (mut kept, mut frames) = (0, 0);
        for (number, leg) in self.legs.iter_mut().enumerate() {
            let mut last: HashMap<u32, u32> = HashMap::new();
            let (packets, messages) = leg
                .read(size, |stream, packet| {
                    let last = last.insert(stream, packet);
                    let in_order = last.is_none_or(|last| packet.wrapping_sub(last) as i32 > 0);
                    ensure!(in_order, "stream {stream}: packet {packet} after {last:?}");
                    Ok(())
                })
                .with_context(|| format!("leg {number}, a sample of the run"))?;
            kept += packets;
            frames += messages;
        }
        cost.verified = kept;
        if self.merged {
            // The socket counts super-packets; the device's bytes say how many segments they were.
            ensure!(
                dropped + frames == received.packets,
                "{} packets reached the pods and {} their sockets",
                received.packets,
                dropped + frames
            );
            cost.copies = received.datagrams(size);
        } else {
            cost.copies = dropped + kept;
        }
        cost.lost = (sent * self.legs.len() as u64).saturating_sub(cost.copies);
        Ok(cost)
    }

    /// Sends for about `how_long` from the generator's core; returns packets sent.
    pub(crate) fn drive(&mut self, how_long: Duration) -> Result<u64> {
        pin(self.core)?;
        self.path.drive(&mut self.generator, how_long)
    }

    /// Waits until everything that was sent since `before` has arrived, or nothing arrives any more.
    pub(crate) fn settle(&self, topology: &Topology, before: Received, sent: u64) -> Result<()> {
        let expected = sent * self.legs.len() as u64;
        let (mut last, mut idle) = (0, 0);
        while idle < 50 {
            let now = self.received(topology)?.since(before).datagrams(self.generator.size);
            if now >= expected {
                return self.rest();
            }
            idle = if now == last { idle + 1 } else { 0 };
            last = now;
            std::thread::sleep(QUIET);
        }
        Ok(())
    }

    /// Waits until what the devices have counted is in the sockets. A device counts what enters the queue of a CPU;
    /// a NAPI thread leaves thousands of copies there, and ksoftirqd, which works them off then, gets its share of
    /// the core and no more.
    fn rest(&self) -> Result<()> {
        let (mut last, mut empty) = (None, 0);
        for _ in 0..REST {
            empty = if waiting()? == 0 { empty + 1 } else { 0 };
            let threads = self.threads.cpu();
            // Twice: the last one may be on its way from the queue to its socket.
            if empty >= 2 && (self.threads.pids().is_empty() || last == Some(threads)) {
                return Ok(());
            }
            last = Some(threads);
            std::thread::sleep(SHORT);
        }
        Ok(())
    }

    fn drops(&self) -> Result<u64> {
        self.legs.iter().map(|l| l.sink.drops()).sum()
    }
}

/// Streams that the gate looks at, and what it holds of each: the sinks keep them all.
const GATE_STREAMS: usize = 10_000;
/// Length of the gate's run.
const GATE: Duration = Duration::from_millis(150);
/// Between two looks at what has arrived.
const QUIET: Duration = Duration::from_millis(20);
/// Between two looks at the queues of the CPUs, and how many at most: 10 s.
const SHORT: Duration = Duration::from_millis(5);
const REST: usize = 2_000;

impl Leg {
    /// Reads and counts what waits.
    pub(crate) fn waiting(&self) -> Result<u64> {
        let mut packet = [0_u8; 64];
        let mut packets = 0;
        self.sink.rtp.set_nonblocking(true)?;
        while self.sink.rtp.recv(&mut packet).is_ok() {
            packets += 1;
        }
        self.sink.rtp.set_nonblocking(false)?;
        Ok(packets)
    }

    /// Reads what waits and compares every packet; returns packets and super-packets.
    fn read(&mut self, size: usize, mut each: impl FnMut(u32, u32) -> Result<()>) -> Result<(u64, u64)> {
        let mut buffer = vec![0_u8; 65_536];
        let mut control = cmsg_space!(i32);
        let (mut packets, mut messages) = (0, 0);
        loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let fd = self.sink.rtp.as_raw_fd();
            let Ok(message) = recvmsg::<()>(fd, &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)
            else {
                return Ok((packets, messages));
            };
            let segment = message.cmsgs()?.find_map(|c| match c {
                ControlMessageOwned::UdpGroSegments(size) => Some(size as usize),
                _ => None,
            });
            let len = message.bytes;
            messages += 1;
            for packet in buffer[..len].chunks(segment.unwrap_or(len).max(1)) {
                let (stream, number) = self.expect.check(packet, size)?;
                each(stream, number)?;
                packets += 1;
            }
        }
    }
}
