//! Added one-way latency of the first copy: `send()` call to the kernel's receive stamp at the viewer.
//!
//! The sender writes its clock into the payload; the viewer's socket stamps arrivals (`SO_TIMESTAMPNS`,
//! same clock). Nobody is woken to read: packets wait in the socket until the run is over, so that the
//! wake-up of a reader is not in the figure.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use msm_tests::bench::cpu::pin;
use msm_tests::bench::sink::Sink;
use msm_tests::bench::stats::{Shuffle, quantile};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};

use super::contender::{Contender, TOKIO, proxy, relay, source};
use super::generator::fill;

/// Quantiles in µs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

#[derive(Debug)]
pub(crate) struct Latency {
    pub(crate) samples: usize,
    /// Sender to viewer without anything between.
    pub(crate) direct: Quantiles,
    pub(crate) relay: Quantiles,
    pub(crate) proxy: Quantiles,
}

const SIZE: usize = 172;
const PER_ROUND: usize = 1_500;

/// One packet per millisecond to each in turn.
pub(crate) fn measure(proxy_path: &Path, relay_path: &Path, rounds: usize) -> anyhow::Result<Latency> {
    pin(1)?;
    let mut contenders = [proxy(proxy_path, 1)?, relay(relay_path, TOKIO, 1)?];
    let mut direct_sequence = 0;
    for contender in &contenders {
        setsockopt(&contender.sink().rtp, sockopt::ReceiveTimestampns, &true)?;
    }
    let direct = Sink::open(Ipv4Addr::LOCALHOST.into())?;
    setsockopt(&direct.rtp, sockopt::ReceiveTimestampns, &true)?;
    let (from, _) = source(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut samples: [Vec<f64>; 3] = Default::default();
    let mut shuffle = Shuffle::seeded(7);
    for round in 0..rounds {
        for index in shuffle.order(3) {
            let fresh = match contenders.get_mut(index) {
                Some(c) => {
                    let mut sequence = c.sequence();
                    let fresh = run(&mut sequence, c.source(), c.to(), &c.sink().rtp)?;
                    c.set_sequence(sequence);
                    fresh
                }
                None => run(&mut direct_sequence, &from, direct.address(), &direct.rtp)?,
            };
            // The first round warms caches and branch predictors.
            if round > 0 || rounds == 1 {
                samples[index].extend(fresh);
            }
        }
    }
    let [proxy, relay, direct] = &samples;
    Ok(Latency { samples: proxy.len(), direct: of(direct), relay: of(relay), proxy: of(proxy) })
}

fn of(samples: &[f64]) -> Quantiles {
    Quantiles { p50: quantile(samples, 0.5), p99: quantile(samples, 0.99) }
}

fn now() -> anyhow::Result<i64> {
    let t = clock_gettime(ClockId::CLOCK_REALTIME)?;
    Ok(t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

fn run(sequence: &mut u32, from: &UdpSocket, to: SocketAddr, sink: &UdpSocket) -> anyhow::Result<Vec<f64>> {
    let mut packet = [0_u8; SIZE];
    let start = Instant::now();
    for sent in 1..=PER_ROUND {
        fill(&mut packet, *sequence);
        *sequence = sequence.wrapping_add(1);
        packet[16..24].copy_from_slice(&now()?.to_be_bytes());
        from.send_to(&packet, to)?;
        if let Some(wait) =
            (start + Duration::from_millis(sent as u64)).checked_duration_since(Instant::now())
        {
            std::thread::sleep(wait);
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    sink.set_nonblocking(true)?;
    let mut samples = Vec::with_capacity(PER_ROUND);
    loop {
        let mut buffer = [0_u8; 2048];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let Ok(message) = recvmsg::<()>(sink.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())
        else {
            break;
        };
        let length = message.bytes;
        let stamp = message.cmsgs()?.find_map(|c| match c {
            ControlMessageOwned::ScmTimestampns(t) => Some(t.tv_sec() * 1_000_000_000 + t.tv_nsec()),
            _ => None,
        });
        if let (Some(stamp), true) = (stamp, length == SIZE) {
            let mut sent = [0; 8];
            sent.copy_from_slice(&buffer[16..24]);
            let sent = i64::from_be_bytes(sent);
            // Packets of the set-up carry a pattern instead of a time.
            if (0..1_000_000_000).contains(&(stamp - sent)) {
                samples.push((stamp - sent) as f64 / 1_000.0);
            }
        }
    }
    Ok(samples)
}

impl Contender {
    fn sink(&self) -> &Sink {
        &self.sinks()[0]
    }
}
