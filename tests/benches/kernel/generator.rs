//! The source: RTP from sockets of the source pod.
//!
//! Closed loop: whatever forwards has done so when the next burst leaves, because it runs in the sender's
//! own softirq or is called in between. Paced: bursts leave at their time, whoever is late.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use msm_tests::bench::stats::Shuffle;
use msm_tests::lab::Node;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

use super::packet;

/// How packets leave the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One `sendto` per packet: one softirq each.
    Single,
    /// So many by one `sendmmsg` of plain datagrams, as an encoder sends a frame.
    Burst(usize),
    /// So many as one super-packet (`UDP_SEGMENT`).
    Super(usize),
}

impl Shape {
    pub(crate) fn packets(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Burst(n) | Self::Super(n) => n,
        }
    }

    /// Packets that the kernel carries as one.
    pub(crate) fn segments(self) -> usize {
        if let Self::Super(n) = self { n } else { 1 }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Single => write!(f, "single packets"),
            Self::Burst(n) => write!(f, "bursts of {n} by sendmmsg"),
            Self::Super(n) => write!(f, "super-packets of {n}"),
        }
    }
}

/// One stream: a socket, where it sends to, and its next packet.
struct Stream {
    socket: Arc<UdpSocket>,
    to: SockaddrIn,
    /// Extended number of the next packet.
    next: u32,
}

/// The traffic of one contender.
pub(crate) struct Generator {
    streams: Vec<Stream>,
    /// Streams take turns in this order.
    order: Vec<usize>,
    turn: usize,
    pub(crate) shape: Shape,
    pub(crate) size: usize,
    /// Streams that take turns, the first of `order`.
    pub(crate) active: usize,
    /// Packets per second of all streams together; closed loop without it.
    pub(crate) rate: Option<u32>,
    /// What is due within such a time leaves at its end, as of many sources of which none waits for another; each
    /// burst at its own time without it.
    pub(crate) tick: Option<Duration>,
    /// Each packet carries the time it was sent at.
    pub(crate) stamped: bool,
    packets: Vec<u8>,
    headers: MultiHeaders<SockaddrIn>,
}

impl Generator {
    /// One stream per target, each on a source port of its own, sent in an order that no prefetcher knows.
    /// Routing chooses the source's address.
    pub(crate) fn open(pod: &Node, targets: &[SocketAddrV4], shape: Shape, size: usize) -> Result<Self> {
        let sockets = pod.inside(|| {
            let any = Ipv4Addr::UNSPECIFIED;
            targets.iter().map(|_| UdpSocket::bind((any, 0))).collect::<std::io::Result<Vec<_>>>()
        })??;
        Self::from_sockets(sockets.into_iter().zip(targets.iter().copied()).collect(), shape, size)
    }

    /// The same from sockets that are open already.
    pub(crate) fn from_sockets(
        sockets: Vec<(UdpSocket, SocketAddrV4)>,
        shape: Shape,
        size: usize,
    ) -> Result<Self> {
        let sockets = sockets.into_iter().map(|(socket, to)| (Arc::new(socket), to));
        Self::on(sockets.collect(), shape, size)
    }

    /// One stream per target from so many sockets in turn: more streams than there are ports.
    pub(crate) fn spread(
        pod: &Node,
        sockets: usize,
        targets: &[SocketAddrV4],
        shape: Shape,
        size: usize,
    ) -> Result<Self> {
        let any = Ipv4Addr::UNSPECIFIED;
        let open = || (0..sockets).map(|_| UdpSocket::bind((any, 0))).collect::<std::io::Result<Vec<_>>>();
        let sockets: Vec<Arc<UdpSocket>> = pod.inside(open)??.into_iter().map(Arc::new).collect();
        let streams =
            targets.iter().enumerate().map(|(at, to)| (Arc::clone(&sockets[at % sockets.len()]), *to));
        Self::on(streams.collect(), shape, size)
    }

    /// What another thread needs to go on with the same streams.
    pub(crate) fn parts(&self) -> Parts {
        let target = |to: &SockaddrIn| SocketAddrV4::new(to.ip(), to.port());
        Parts {
            streams: self.streams.iter().map(|s| (Arc::clone(&s.socket), target(&s.to))).collect(),
            heads: self.heads(),
            shape: self.shape,
            size: self.size,
        }
    }

    /// Goes on where another one stopped.
    pub(crate) fn resume(parts: Parts) -> Result<Self> {
        let mut generator = Self::on(parts.streams, parts.shape, parts.size)?;
        generator.skip_to(&parts.heads);
        Ok(generator)
    }

    /// Streams go on with these packets.
    pub(crate) fn skip_to(&mut self, heads: &[u32]) {
        for (stream, next) in self.streams.iter_mut().zip(heads) {
            stream.next = *next;
        }
    }

    /// The same traffic to elsewhere, from the same sockets: they are scarce.
    pub(crate) fn aside(&self, to: SocketAddrV4) -> Result<Self> {
        let sockets = self.streams.iter().map(|s| (Arc::clone(&s.socket), to)).collect();
        let aside = Self::on(sockets, self.shape, self.size)?;
        Ok(Self { active: self.active, rate: self.rate, tick: self.tick, ..aside })
    }

    fn on(sockets: Vec<(Arc<UdpSocket>, SocketAddrV4)>, shape: Shape, size: usize) -> Result<Self> {
        let mut streams = Vec::new();
        for (socket, to) in sockets {
            if let Shape::Super(_) = shape {
                setsockopt(&*socket, sockopt::UdpGsoSegment, &(size as i32)).context("UDP_SEGMENT")?;
            }
            streams.push(Stream { socket, to: to.into(), next: 0 });
        }
        let mut generator = Self {
            order: Shuffle::seeded(0x6d73_6d00).order(streams.len()),
            active: streams.len(),
            streams,
            turn: 0,
            tick: None,
            shape,
            size,
            rate: None,
            stamped: false,
            packets: Vec::new(),
            headers: MultiHeaders::preallocate(shape.packets(), None),
        };
        generator.packets = vec![0; size * shape.packets()];
        generator.packets.chunks_exact_mut(size).for_each(packet::body);
        Ok(generator)
    }

    /// Source port and target of each stream.
    pub(crate) fn paths(&self) -> Result<Vec<(u16, SocketAddrV4)>> {
        let path =
            |s: &Stream| Ok((s.socket.local_addr()?.port(), SocketAddrV4::new(s.to.ip(), s.to.port())));
        self.streams.iter().map(path).collect()
    }

    /// Extended number of each stream's next packet.
    pub(crate) fn heads(&self) -> Vec<u32> {
        self.streams.iter().map(|s| s.next).collect()
    }

    /// Sends one burst of the stream whose turn it is; returns its packets.
    pub(crate) fn burst(&mut self) -> Result<usize> {
        let at = self.order[self.turn];
        self.turn = (self.turn + 1) % self.active.clamp(1, self.order.len());
        let stream = &mut self.streams[at];
        let stamp = if self.stamped { Some(now()?) } else { None };
        for packet in self.packets.chunks_exact_mut(self.size) {
            packet::number(packet, at as u32, stream.next);
            if let Some(stamp) = stamp {
                packet::stamp(packet, stamp);
            }
            stream.next = stream.next.wrapping_add(1);
        }
        let fd = stream.socket.as_raw_fd();
        if let Shape::Burst(count) = self.shape {
            let slices: Vec<_> = self.packets.chunks_exact(self.size).map(|p| [IoSlice::new(p)]).collect();
            let to = vec![Some(stream.to); count];
            let none: [ControlMessage<'_>; 0] = [];
            let sent = sendmmsg(fd, &mut self.headers, slices.iter(), &to, none, MsgFlags::empty());
            let sent = sent.context("sendmmsg")?.count();
            anyhow::ensure!(sent == count, "sendmmsg sent {sent} of {count}");
        } else {
            nix::sys::socket::sendto(fd, &self.packets, &stream.to, MsgFlags::empty()).context("sendto")?;
        }
        Ok(self.shape.packets())
    }

    /// Sends for about `how_long`, calls `after` with the packets of each burst, returns packets sent.
    pub(crate) fn run(
        &mut self,
        how_long: Duration,
        mut after: impl FnMut(usize) -> Result<()>,
    ) -> Result<u64> {
        let mut pace = Pace::new(self, how_long)?;
        let mut sent = 0;
        while pace.goes_on(sent)? {
            let packets = self.burst()?;
            after(packets)?;
            sent += packets as u64;
        }
        Ok(sent)
    }
}

/// The streams of a generator, for another thread.
pub(crate) struct Parts {
    streams: Vec<(Arc<UdpSocket>, SocketAddrV4)>,
    heads: Vec<u32>,
    shape: Shape,
    size: usize,
}

/// When the next burst leaves.
pub(crate) struct Pace {
    until: Instant,
    start: TimeSpec,
    /// ns per packet, if paced.
    gap: Option<f64>,
    /// ns of a tick, ticks so far, packets that they released.
    ticks: Option<(f64, u64, u64)>,
    turns: u32,
}

impl Pace {
    pub(crate) fn new(generator: &Generator, how_long: Duration) -> Result<Self> {
        Ok(Self {
            until: Instant::now() + how_long,
            start: clock_gettime(ClockId::CLOCK_MONOTONIC)?,
            gap: generator.rate.map(|rate| 1e9 / f64::from(rate.max(1))),
            ticks: generator.tick.map(|tick| (tick.as_nanos() as f64, 0, 0)),
            turns: 0,
        })
    }

    /// Waits for the time of the burst after `sent` packets; false when the run is over.
    pub(crate) fn goes_on(&mut self, sent: u64) -> Result<bool> {
        if let (Some(gap), Some((tick, count, released))) = (self.gap, &mut self.ticks) {
            while sent >= *released {
                *count += 1;
                *released = (*tick * *count as f64 / gap) as u64;
                if sent < *released {
                    let due =
                        self.start + TimeSpec::from_duration(Duration::from_nanos(*count * *tick as u64));
                    clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &due)?;
                    return Ok(Instant::now() < self.until);
                }
            }
            return Ok(true);
        }
        if let Some(gap) = self.gap {
            let due = self.start + TimeSpec::from_duration(Duration::from_nanos((gap * sent as f64) as u64));
            clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &due)?;
            return Ok(Instant::now() < self.until);
        }
        self.turns += 1;
        // A look at the clock every few bursts is enough.
        Ok(!self.turns.is_multiple_of(8) || Instant::now() < self.until)
    }
}

/// The clock that receive stamps are taken from, in ns.
pub(crate) fn now() -> Result<i64> {
    let t = clock_gettime(ClockId::CLOCK_REALTIME)?;
    Ok(t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}
