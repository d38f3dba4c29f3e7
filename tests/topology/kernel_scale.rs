//! Ten thousand streams for four viewers each, by the whole proxy: every session set up by RTSP, every leg carried by
//! the kernel, every copy counted at the socket that it is for.
//!
//! The proxy runs inside this process, because so many sessions of one address need other limits than its users have.
//! `MSM_TEST_STREAMS=10000` says how many streams there are and writes `docs/results/scale.md`.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::lab::Node;
use msm_tests::privilege::{Need, environment, granted};
use msm_tests::process::wait_for;
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, sockopt};

use crate::fast_path::{PROXY_AT_CAMERA, PROXY_AT_VIEWERS, Scene};
use crate::record;

const ENV_STREAMS: &str = "MSM_TEST_STREAMS";
/// Streams without the environment: enough that they share port pairs.
const STREAMS: usize = 200;
const VIEWERS: usize = 4;
/// Packets of every stream once all legs are where they belong.
const ROUNDS: usize = 50;
const BYTES: usize = 172;
/// Tracks of one address: a camera's have a port pair of the proxy each, and there are 62.
const PORTS: usize = 50;
const FIRST_PORT: u16 = 10_000;
/// Packets on their way at once: sockets and the backlog hold the copies of so many.
const AT_ONCE: usize = 100;

/// All tracks of one side: a few ports at many addresses, and few RTSP connections: a socket
/// for each would be more files than a process may open.
struct Side {
    node: Node,
    /// RTP on even ports, RTCP beside it.
    rtp: Vec<UdpSocket>,
    _rtcp: Vec<UdpSocket>,
    connections: Vec<Rtsp>,
    /// A publisher has a connection of its own and ends it at once: media over UDP goes on without.
    tracks_of_a_connection: usize,
    server: SocketAddr,
    network: [u8; 2],
}

impl Side {
    /// Every address of `network` is local in `node`, and the proxy finds it there.
    fn open(
        scene: &Scene,
        (node, at): (&Node, &str),
        server: &str,
        network: [u8; 2],
        tracks_of_a_connection: usize,
    ) -> Result<Self> {
        let [a, b] = network;
        let prefix = format!("{a}.{b}.0.0/16");
        node.ip(&["route", "add", "local", &prefix, "dev", "lo"])?;
        scene.proxy.ip(&["route", "add", &prefix, "via", at])?;
        let bind = |odd: u16| -> Result<Vec<UdpSocket>> {
            let port = |number: usize| FIRST_PORT + 2 * number as u16 + odd;
            (0..PORTS).map(|number| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port(number)))?)).collect()
        };
        let (rtp, rtcp) = node.inside(|| -> Result<_> { Ok((bind(0)?, bind(1)?)) })??;
        for socket in &rtp {
            socket.set_nonblocking(true)?;
            socket::setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
            socket::setsockopt(socket, sockopt::RcvBufForce, &(16 << 20))?;
        }
        let server = format!("{server}:8554").parse()?;
        Ok(Self {
            node: node.clone(),
            rtp,
            _rtcp: rtcp,
            connections: Vec::new(),
            tracks_of_a_connection,
            server,
            network,
        })
    }

    /// Address of the track `number`.
    fn address(&self, number: usize) -> Ipv4Addr {
        let [high, low] = (1 + (number / PORTS) as u16).to_be_bytes();
        Ipv4Addr::from([self.network[0], self.network[1], high, low])
    }

    /// The track `number` of an address and port, the other way round.
    fn number(address: Ipv4Addr, port: usize) -> usize {
        let [.., high, low] = address.octets();
        (usize::from(u16::from_be_bytes([high, low])) - 1) * PORTS + port
    }

    fn port(number: usize) -> u16 {
        FIRST_PORT + 2 * (number % PORTS) as u16
    }

    /// The connection on which the next track, `number`, is to be asked for.
    fn connection(&mut self, number: usize) -> Result<&mut Rtsp> {
        if number.is_multiple_of(self.tracks_of_a_connection) {
            let (server, from) = (self.server, self.address(number));
            if self.tracks_of_a_connection == 1 {
                self.connections.clear();
            }
            self.connections.push(self.node.inside(|| Rtsp::connect(server, Some(from.into())))??);
        }
        let connection = self.connections.last_mut().context("the first track comes first")?;
        connection.begin_another();
        Ok(connection)
    }
}

/// A stream, and where it has got to.
struct Source {
    rtp: UdpSocket,
    from: Ipv4Addr,
    to: SocketAddrV4,
    ssrc: u32,
    next: u16,
}

impl Source {
    fn open(cameras: &mut Side, number: usize) -> Result<Self> {
        let (from, port, server) = (cameras.address(number), Side::port(number), cameras.server);
        let url = format!("rtsp://{server}/{}", name(number));
        let input = cameras.connection(number)?.publish(&url, (port, port + 1));
        let to =
            SocketAddrV4::new(PROXY_AT_CAMERA.parse()?, input.with_context(|| format!("source {number}"))?);
        let rtp = cameras.rtp[number % PORTS].try_clone()?;
        Ok(Self { rtp, from, to, ssrc: 1 + number as u32, next: 0 })
    }

    /// One packet of silence in G.711's size.
    fn send(&mut self) -> Result<()> {
        let mut packet = [0xD5; BYTES];
        packet[..2].copy_from_slice(&[0x80, 96]);
        packet[2..4].copy_from_slice(&self.next.to_be_bytes());
        packet[4..8].copy_from_slice(&(u32::from(self.next) * 160).to_be_bytes());
        packet[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
        self.next = self.next.wrapping_add(1);
        let ipi_spec_dst = libc::in_addr { s_addr: u32::from(self.from).to_be() };
        let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
        let to = SockaddrIn::from(self.to);
        let pieces = [std::io::IoSlice::new(&packet)];
        let from = [ControlMessage::Ipv4PacketInfo(&info)];
        socket::sendmsg(self.rtp.as_raw_fd(), &pieces, &from, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("camera{number}")
}

/// What came since the last look, by leg and in order: leg, SSRC, sequence.
fn received(viewers: &Side) -> Result<Vec<(usize, u32, u16)>> {
    let mut all = Vec::new();
    let mut packet = [0; 2 * BYTES];
    let mut space = nix::cmsg_space!(libc::in_pktinfo);
    for (port, socket) in viewers.rtp.iter().enumerate() {
        loop {
            let mut pieces = [std::io::IoSliceMut::new(&mut packet)];
            let fd = socket.as_raw_fd();
            let got = match socket::recvmsg::<()>(fd, &mut pieces, Some(&mut space), MsgFlags::empty()) {
                Err(nix::Error::EAGAIN) => break,
                got => got?,
            };
            let info = got.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
                _ => None,
            });
            let (bytes, info) = (got.bytes, info.context("no destination")?);
            let to = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
            ensure!(bytes == BYTES, "{bytes} bytes came to {to}");
            let number = u16::from_be_bytes([packet[2], packet[3]]);
            let ssrc = u32::from_be_bytes([packet[8], packet[9], packet[10], packet[11]]);
            all.push((Side::number(to, port), ssrc, number));
        }
    }
    // What one leg got stays in its order.
    all.sort_by_key(|(leg, ..)| *leg);
    Ok(all)
}

/// One packet of every stream, and all copies of them: exactly one for each viewer of it.
fn round(sources: &mut [Source], viewers: &Side) -> Result<()> {
    for some in sources.chunks_mut(AT_ONCE) {
        let copies = |source: &Source| {
            let (ssrc, next, first) = (source.ssrc, source.next, (source.ssrc as usize - 1) * VIEWERS);
            (first..first + VIEWERS).map(move |leg| (leg, ssrc, next))
        };
        let due: Vec<_> = some.iter().flat_map(copies).collect();
        some.iter_mut().try_for_each(Source::send)?;
        let got = received(viewers)?;
        let wrong = got.iter().zip(&due).find(|(got, due)| got != due);
        ensure!(
            got.len() == due.len() && wrong.is_none(),
            "{} of {} copies; {wrong:?}",
            got.len(),
            due.len()
        );
    }
    Ok(())
}

/// Everybody joins, one after the other, while the stream that is joined flows: PLAY waits for a packet to name.
fn join(viewers: &mut Side, sources: &mut [Source]) -> Result<()> {
    let (joined, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let all = sources.len() * VIEWERS;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                let stream = joined.load(Ordering::Relaxed) / VIEWERS;
                sources.get_mut(stream).map_or(Ok(()), Source::send)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        let server = viewers.server;
        let mut one = |number: usize| {
            let url = format!("rtsp://{server}/{}", name(number / VIEWERS));
            let played = viewers.connection(number)?.play(&url, Side::port(number));
            joined.store(number + 1, Ordering::Relaxed);
            played.with_context(|| format!("viewer {number}"))
        };
        let played = (0..all).try_for_each(&mut one);
        ended.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        played
    })
}

/// Legs over UDP on rung `tcx`, by the metrics.
fn carried(scene: &Scene) -> Result<usize> {
    let page = scene.get("/metrics")?;
    let line = page.lines().find(|line| {
        line.starts_with("msm_legs{") && line.contains(r#"rung="tcx""#) && line.contains(r#"kind="udp""#)
    });
    Ok(line.and_then(|line| line.rsplit(' ').next()).context("no msm_legs")?.parse::<f64>()? as usize)
}

/// What there was and how long it took.
struct Outcome {
    streams: usize,
    published: Duration,
    joined: Duration,
    carried: Duration,
    sent: Duration,
    metrics: Duration,
}

fn run(streams: usize) -> Result<Outcome> {
    let legs = streams * VIEWERS;
    let mut scene = Scene::with(move |config| {
        (config.plane.times.session_enforced, config.plane.times.grace) =
            (Duration::from_hours(1), Duration::from_hours(1));
        let limits = &mut config.plane.limits;
        limits.published_streams = streams;
        (limits.per_address.setup_burst, limits.per_address.setup_per_second) = (10_000, 10_000);
    })?;
    let mut cameras = Side::open(&scene, (&scene.camera, "10.90.1.2"), PROXY_AT_CAMERA, [10, 91], 1)?;
    let mut viewers = Side::open(&scene, (&scene.viewers, "10.90.2.2"), PROXY_AT_VIEWERS, [10, 92], PORTS)?;

    let start = Instant::now();
    let sources: Result<Vec<_>> = (0..streams).map(|number| Source::open(&mut cameras, number)).collect();
    let (mut sources, published) = (sources?, start.elapsed());
    // An SSRC is known after some packets.
    for _ in 0..4 {
        sources.iter_mut().try_for_each(Source::send)?;
    }

    let start = Instant::now();
    join(&mut viewers, &mut sources)?;
    let joined = start.elapsed();

    let (start, mut seen) = (Instant::now(), 0);
    let all = wait_for("every leg to be in the kernel", Duration::from_secs(120), || {
        sources.iter_mut().try_for_each(Source::send).ok()?;
        seen = carried(&scene).ok()?;
        (seen == legs).then_some(())
    });
    all.with_context(|| format!("{seen} of {legs} legs are there"))?;
    let moved = start.elapsed();

    std::thread::sleep(Duration::from_millis(500));
    received(&viewers)?;
    let start = Instant::now();
    for number in 0..ROUNDS {
        round(&mut sources, &viewers).with_context(|| format!("round {number}"))?;
    }
    let sent = start.elapsed();
    let start = Instant::now();
    ensure!(carried(&scene)? == legs, "legs left the kernel meanwhile");
    let metrics = start.elapsed();
    drop((viewers, cameras));
    scene.end()?;
    Ok(Outcome { streams, published, joined, carried: moved, sent, metrics })
}

impl Outcome {
    fn report(&self) -> Result<String> {
        let mut text = String::new();
        let Self { streams, .. } = self;
        let legs = streams * VIEWERS;
        let copies = legs * ROUNDS;
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        writeln!(text, "# Many streams in one proxy, by RTSP\n")?;
        writeln!(
            text,
            "`{ENV_STREAMS}={streams} cargo test -p msm-tests --test topology every_copy_of_many_streams` writes this file.\n"
        )?;
        writeln!(
            text,
            "{}. Cameras, proxy and viewers each in a network\nnamespace of their own; the proxy runs inside the test \
             program, with limits for so many (its users have 1,024\npublished streams by default). What a copy costs then is B8 in \
             [benchmarks.md](../benchmarks.md), what a leg holds B16.\n",
            record::stamp(build)?
        )?;
        writeln!(
            text,
            "{streams} published streams, {VIEWERS} viewers each over UDP: {legs} RTSP sessions and legs, all of them on rung `tcx` by\n\
             `msm_legs`; {PORTS} tracks share an address. Then {ROUNDS} packets of {BYTES} bytes of every stream in\n\
             turn: each viewer must get each packet of its stream once and in order, and nothing else.\n"
        )?;
        writeln!(text, "| | |\n|---|---|")?;
        let per_second = |count: usize, took: Duration| count as f64 / took.as_secs_f64();
        for (what, count, took) in [
            ("published, one after the other", *streams, self.published),
            ("joined (DESCRIBE, SETUP, PLAY), one after the other", legs, self.joined),
        ] {
            writeln!(text, "| {what} | {:.1} s, {:.0}/s |", took.as_secs_f64(), per_second(count, took))?;
        }
        writeln!(text, "| until the last leg was in the kernel | {:.1} s |", self.carried.as_secs_f64())?;
        writeln!(
            text,
            "| copies, none lost, none too many, none out of order | {copies} in {:.1} s, sent and read by one thread |",
            self.sent.as_secs_f64()
        )?;
        writeln!(text, "| `/metrics` with all of it | {:.0} ms |", self.metrics.as_secs_f64() * 1e3)?;
        Ok(text)
    }
}

#[test]
fn every_copy_of_many_streams_reaches_the_socket_that_it_is_for() -> Result<()> {
    if !granted("every_copy_of_many_streams_reaches_the_socket_that_it_is_for", &[Need::Kernel]) {
        return Ok(());
    }
    let asked = environment(ENV_STREAMS).map(|text| text.parse().context(ENV_STREAMS)).transpose()?;
    let report = run(asked.unwrap_or(STREAMS))?.report()?;
    eprintln!("{report}");
    if asked.is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results/scale.md"), &report)?;
    }
    Ok(())
}
