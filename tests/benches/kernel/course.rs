//! The network with everything that runs on it, and how to enter the contenders that are always there.

use std::net::{SocketAddrV4, UdpSocket};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result};
use msm_tests::bench::cpu::{KernelThreads, Pinned};
use msm_tests::privilege::find_program;

use super::floor::Attached;
use super::generator::{Generator, Shape};
use super::lane::{Lane, Leg, sink};
use super::packet::{Edit, Expect};
use super::path::Path;
use super::rtpengine::buffers_of;
use super::topology::{Kind, Topology};

/// What is sent, and to how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) shape: Shape,
    pub(crate) size: usize,
    pub(crate) legs: usize,
    /// Receivers take super-packets whole (`UDP_GRO`).
    pub(crate) merged: bool,
    /// Packets per second; closed loop without it.
    pub(crate) rate: Option<u32>,
}

impl Traffic {
    /// The same at a pace.
    pub(crate) fn paced(self, rate: u32) -> Self {
        Self { rate: Some(rate), ..self }
    }
}

/// Programs that take part.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) relay: PathBuf,
    pub(crate) proxy: PathBuf,
    /// Kernel programs other than those of the proxy.
    pub(crate) object: Option<Vec<u8>>,
}

/// One network, opened for one benchmark.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) topology: Topology,
    pub(crate) programs: Programs,
    next_port: AtomicU16,
    _floors: [Attached; 2],
}

impl Course {
    /// `bridged`: pods hang on a bridge too; the batched cable is always there.
    pub(crate) fn open(programs: &Programs, pods: usize, bridged: bool) -> Result<Self> {
        let mut topology = Topology::open(pods, bridged)?;
        topology.batch_uplink(Kind::Batched)?;
        let floors =
            [Attached::dropping(&topology, Kind::Floor)?, Attached::dropping(&topology, Kind::SecondFloor)?];
        Ok(Self { topology, programs: programs.clone(), next_port: AtomicU16::new(20_000), _floors: floors })
    }

    /// An even port that no other lane has, nor the ports after it for further legs of one pod.
    pub(crate) fn port(&self) -> u16 {
        self.ports(16)
    }

    /// The first of so many ports that no other lane has.
    pub(crate) fn ports(&self, count: u16) -> u16 {
        self.next_port.fetch_add(count, Ordering::Relaxed)
    }

    /// One sink per leg, on the pods in turn.
    pub(crate) fn legs(
        &self,
        traffic: Traffic,
        port: u16,
        expect: impl Fn(usize) -> Expect,
    ) -> Result<Vec<Leg>> {
        let pods = self.topology.pods.len();
        (0..traffic.legs)
            .map(|leg| {
                // Further legs of a pod listen on further ports.
                let port = port + 2 * (leg / pods) as u16;
                let sink = sink(&self.topology.pods[leg % pods], port, traffic.merged)?;
                Ok(Leg { pod: leg % pods, sink, expect: expect(leg) })
            })
            .collect()
    }

    /// A generator in the source pod.
    pub(crate) fn generator(&self, to: &[SocketAddrV4], traffic: Traffic) -> Result<Generator> {
        self.generator_of(Kind::Stack, to, traffic)
    }

    /// A generator in the pod that a cable comes from.
    pub(crate) fn generator_of(
        &self,
        kind: Kind,
        to: &[SocketAddrV4],
        traffic: Traffic,
    ) -> Result<Generator> {
        let pod = self.topology.source_of(kind);
        let mut generator = Generator::open(pod, to, traffic.shape, traffic.size)?;
        generator.rate = traffic.rate;
        Ok(generator)
    }

    /// A lane with the defaults of a closed loop.
    pub(crate) fn lane(
        name: &str,
        generator: Generator,
        path: Path,
        legs: Vec<Leg>,
        traffic: Traffic,
    ) -> Lane {
        Lane {
            name: name.to_owned(),
            version: "in-tree".to_owned(),
            floor: floor_name(traffic.rate),
            generator,
            path,
            legs,
            merged: traffic.merged,
            threads: KernelThreads::default(),
            core: 0,
            passed: false,
            bridged: false,
        }
    }

    /// The generator alone.
    pub(crate) fn floor(&self, traffic: Traffic) -> Result<Lane> {
        let to = SocketAddrV4::new(self.topology.uplink(Kind::Floor).host, self.port());
        let generator = self.generator(&[to], traffic)?;
        Ok(Self::lane(&floor_name(traffic.rate), generator, Path::Kernel, Vec::new(), traffic))
    }

    /// The generator in the pod of a cable alone: the program that drops everything is on that of its own.
    pub(crate) fn floor_from(&self, kind: Kind, traffic: Traffic) -> Result<Lane> {
        let to = SocketAddrV4::new(self.topology.uplink(kind.floor()).host, self.port());
        let generator = self.generator_of(kind, &[to], traffic)?;
        Ok(Self::lane(&floor_name(traffic.rate), generator, Path::Kernel, Vec::new(), traffic))
    }

    /// The generator of another lane's streams alone; `kind` is the lane's cable.
    pub(crate) fn floor_of(&self, kind: Kind, name: &str, lane: &Lane, traffic: Traffic) -> Result<Lane> {
        let to = SocketAddrV4::new(self.topology.uplink(kind.floor()).host, self.port());
        Ok(Self::lane(name, lane.generator.aside(to)?, Path::Kernel, Vec::new(), traffic))
    }

    /// A socket of the host, where media for user space is sent to.
    pub(crate) fn input(&self, port: u16) -> Result<(UdpSocket, SocketAddrV4)> {
        let at = SocketAddrV4::new(self.topology.uplink(Kind::Stack).host, port);
        Ok((self.topology.host.inside(|| UdpSocket::bind(at))??, at))
    }

    /// A relay of [`super::relays`] in a closed loop.
    pub(crate) fn closed(
        &self,
        name: &str,
        traffic: Traffic,
        open: impl Fn(UdpSocket, &[SocketAddrV4]) -> Result<Path>,
    ) -> Result<Lane> {
        let port = self.port();
        let (socket, at) = self.input(port)?;
        let legs = self.legs(traffic, port, |_| Expect::Edit(Edit::NONE))?;
        let path = open(socket, &self.viewers(&legs))?;
        Ok(Self::lane(name, self.generator(&[at], traffic)?, path, legs, traffic))
    }

    /// The same relay as a process on the generator's core.
    pub(crate) fn open_loop(&self, name: &str, kind: &str, traffic: Traffic) -> Result<Lane> {
        self.open_streams(0, name, kind, traffic, 1)
    }

    /// The same relay as a process on a core of choice, with so many streams for one socket of its own.
    pub(crate) fn open_streams(
        &self,
        core: usize,
        name: &str,
        kind: &str,
        traffic: Traffic,
        streams: usize,
    ) -> Result<Lane> {
        let port = self.port();
        let at = SocketAddrV4::new(self.topology.uplink(Kind::Stack).host, port);
        let legs = self.legs(traffic, port, |_| Expect::Edit(Edit::NONE))?;
        let mut args = vec![kind.to_owned(), at.to_string()];
        args.extend(self.viewers(&legs).iter().map(ToString::to_string));
        let process = Pinned::start(Some(&self.topology.host), core, &self.programs.relay, &args)?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        let generator = self.generator(&vec![at; streams], traffic)?;
        Ok(Self::lane(name, generator, Path::Process(process), legs, traffic))
    }

    /// socat, for one viewer.
    pub(crate) fn socat(&self, traffic: Traffic) -> Result<Lane> {
        anyhow::ensure!(find_program("socat").is_some(), "socat is not installed");
        let port = self.port();
        let at = SocketAddrV4::new(self.topology.uplink(Kind::Stack).host, port);
        let legs = self.legs(traffic, port, |_| Expect::Edit(Edit::NONE))?;
        let viewer = self.viewers(&legs).into_iter().next().context("socat has one viewer")?;
        let _buffers = buffers_of(8 << 20)?;
        let args =
            ["-u".to_owned(), format!("UDP4-RECV:{port},bind={}", at.ip()), format!("UDP4-SENDTO:{viewer}")];
        let process = Pinned::start(Some(&self.topology.host), 0, FilePath::new("socat"), &args)?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut lane =
            Self::lane("socat", self.generator(&[at], traffic)?, Path::Process(process), legs, traffic);
        let output = std::process::Command::new("socat").arg("-V").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_once("socat version ").and_then(|(_, rest)| rest.split(' ').next());
        version.unwrap_or("unknown").clone_into(&mut lane.version);
        Ok(lane)
    }

    /// The kernel's bridge, flooding; nothing is rewritten.
    pub(crate) fn bridge(&self, traffic: Traffic) -> Result<Lane> {
        let port = self.port();
        let legs = self.legs(traffic, port, |_| Expect::Edit(Edit::NONE))?;
        let to = SocketAddrV4::new(self.topology.uplink(Kind::Bridge).host, port);
        let generator = self.generator(&[to], traffic)?;
        let mut lane = Self::lane("bridge flood", generator, Path::Kernel, legs, traffic);
        lane.bridged = true;
        lane.version = super::report::kernel();
        Ok(lane)
    }

    /// The kernel's routing to the only viewer.
    pub(crate) fn routed(&self, traffic: Traffic) -> Result<Lane> {
        let port = self.port();
        let legs = self.legs(traffic, port, |_| Expect::Edit(Edit::NONE))?;
        let to = self.viewers(&legs);
        let generator = self.generator(&to[..1], traffic)?;
        let mut lane = Self::lane("ip_forward", generator, Path::Kernel, legs, traffic);
        lane.version = super::report::kernel();
        Ok(lane)
    }

    /// Where copies for these legs go.
    pub(crate) fn viewers(&self, legs: &[Leg]) -> Vec<SocketAddrV4> {
        legs.iter().map(|leg| self.topology.pods[leg.pod].at(leg.sink.port())).collect()
    }
}

/// Name of the lane that is the generator alone.
pub(crate) fn floor_name(rate: Option<u32>) -> String {
    match rate {
        None => "generator alone".to_owned(),
        Some(rate) => format!("generator alone, {rate} pps"),
    }
}
