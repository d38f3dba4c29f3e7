//! B7: from the sender's `send` call to the kernel's receive stamp at the viewer.
//!
//! The sender writes its clock into the payload; the viewer's socket stamps arrivals (`SO_TIMESTAMPNS`, same
//! clock). Nobody is woken to read: packets wait in the socket until the run is over. Stamps are taken when a
//! packet enters a device's receive path, not before the queue of a CPU: see [`Stamps`].

use std::io::IoSliceMut;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::stats::{Shuffle, interval, median, quantile};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use serde_json::json;

use super::lane::{Lane, Leg};
use super::packet;
use super::plot::{self, Bar};
use super::report::{Outcome, Target};
use super::rounds::Plan;
use super::topology::Topology;

/// Samples per round and contender.
pub(crate) const SAMPLES: u32 = 20_000;
/// The quantiles that are reported.
const QUANTILES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")];
const PREQUEUE: &str = "/proc/sys/net/core/netdev_tstamp_prequeue";

/// Has arrivals stamped where the last device delivers them. By default the kernel stamps before the queue of
/// the CPU; a redirect then clears the stamp, and the socket would be given the time at which it is read.
/// The setting is the whole machine's and is put back.
#[derive(Debug)]
pub(crate) struct Stamps(String);

impl Stamps {
    pub(crate) fn after_the_queue() -> Result<Self> {
        let before = std::fs::read_to_string(PREQUEUE).context(PREQUEUE)?;
        std::fs::write(PREQUEUE, "0").context(PREQUEUE)?;
        Ok(Self(before))
    }
}

impl Drop for Stamps {
    fn drop(&mut self) {
        std::fs::write(PREQUEUE, self.0.trim()).ok();
    }
}

/// What B7 asks of a quantile.
pub(crate) enum Claim {
    /// `against` is so many times slower than `ours`, at least.
    Faster { ours: String, against: String, quantile: usize, least: f64 },
    /// So many µs at most.
    Within { ours: String, quantile: usize, most: f64 },
}

/// Latencies of one traffic: per contender, per round, the quantiles in µs.
pub(crate) struct Latencies {
    label: String,
    names: Vec<String>,
    rounds: Vec<Vec<[f64; 3]>>,
    samples: usize,
}

/// Runs the rounds.
pub(crate) fn measure(
    label: &str,
    topology: &Topology,
    mut lanes: Vec<Lane>,
    plan: &Plan,
    shuffle: &mut Shuffle,
    outcome: &mut Outcome,
) -> Result<Latencies> {
    let _stamps = Stamps::after_the_queue()?;
    let mut fit = Vec::new();
    for mut lane in lanes.drain(..) {
        match lane.gate(topology) {
            Ok(_) => {
                lane.generator.stamped = true;
                for leg in &lane.legs {
                    setsockopt(&leg.sink.rtp, sockopt::ReceiveTimestampns, &true)?;
                }
                fit.push(lane);
            }
            Err(reason) => {
                eprintln!("{label}: {}: DISQUALIFIED: {reason:#}", lane.name);
                outcome.skipped.push((lane.name, format!("{label}: disqualified: {reason:#}")));
            }
        }
    }
    let names = fit.iter().map(|l| l.name.clone()).collect();
    let mut latencies = Latencies { label: label.to_owned(), names, rounds: Vec::new(), samples: 0 };
    // The first round warms caches and branch predictors.
    for round in 0..=plan.rounds {
        let mut found = vec![[f64::NAN; 3]; fit.len()];
        for index in shuffle.order(fit.len()) {
            let lane = &mut fit[index];
            let (samples, lost) = run(lane, topology).with_context(|| lane.name.clone())?;
            if lost > 0 {
                outcome.doubts.push(format!("{label}: {}: {lost} copies lost in a round", lane.name));
            }
            if round > 0 {
                latencies.samples = samples.len();
            }
            found[index] = QUANTILES.map(|(q, _)| quantile(&samples, q));
        }
        if round > 0 {
            latencies.rounds.push(found);
        }
    }
    Ok(latencies)
}

/// Samples in µs, and copies that did not arrive.
fn run(lane: &mut Lane, topology: &Topology) -> Result<(Vec<f64>, u64)> {
    for leg in &lane.legs {
        leg.sink.drain()?;
    }
    let rate = lane.generator.rate.context("latency is measured at a pace")?;
    let packets = SAMPLES / lane.legs.len().max(1) as u32;
    let how_long = Duration::from_secs_f64(f64::from(packets) / f64::from(rate));
    let before = lane.received(topology)?;
    let sent = lane.path.drive(&mut lane.generator, how_long)?;
    lane.settle(topology, before, sent)?;
    let mut samples = Vec::new();
    for leg in &lane.legs {
        read(leg, &mut samples)?;
    }
    let expected = sent * lane.legs.len() as u64;
    let lost = expected.saturating_sub(samples.len() as u64);
    Ok((samples, lost))
}

fn read(leg: &Leg, samples: &mut Vec<f64>) -> Result<()> {
    let mut buffer = vec![0_u8; 2048];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let fd = leg.sink.rtp.as_raw_fd();
        let Ok(message) = recvmsg::<()>(fd, &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT) else {
            return Ok(());
        };
        let stamp = message.cmsgs()?.find_map(|c| match c {
            ControlMessageOwned::ScmTimestampns(t) => Some(t.tv_sec() * 1_000_000_000 + t.tv_nsec()),
            _ => None,
        });
        let len = message.bytes;
        let sent = packet::stamp_of(&buffer[..len]);
        if let (Some(stamp), Some(sent)) = (stamp, sent) {
            ensure!(
                (0..1_000_000_000).contains(&(stamp - sent)),
                "a stamp {} ns after sending",
                stamp - sent
            );
            samples.push((stamp - sent) as f64 / 1_000.0);
        }
    }
}

impl Latencies {
    fn of(&self, name: &str, quantile: usize) -> Vec<f64> {
        let Some(at) = self.names.iter().position(|n| n == name) else { return Vec::new() };
        self.rounds.iter().map(|r| r[at][quantile]).collect()
    }

    /// A line about one claim: the edge of the interval decides that is worse for us.
    fn judge(&self, claim: &Claim) -> String {
        let (what, quantile, values, target) = match claim {
            Claim::Faster { ours, against, quantile, least } => {
                let own = self.of(ours, *quantile);
                let ratios = self.of(against, *quantile).iter().zip(own).map(|(a, o)| a / o).collect();
                (format!("{against} ÷ {ours}"), *quantile, ratios, Target::AtLeast(*least))
            }
            Claim::Within { ours, quantile, most } => {
                (ours.clone(), *quantile, self.of(ours, *quantile), Target::AtMost(*most))
            }
        };
        let (low, high) = interval(&values);
        format!(
            "| {what} | {} | {:.2} [{low:.2}, {high:.2}] | {} |\n",
            QUANTILES[quantile].1,
            median(&values),
            target.judge(&values)
        )
    }

    /// Puts table, raw rounds and picture into the report.
    pub(crate) fn report(&self, claims: &[Claim], outcome: &mut Outcome, plot: Option<&str>) {
        use std::fmt::Write as _;
        let mut table = format!(
            "{}, {} samples per round and contender, {} rounds; µs from `send` to the receive stamp, median \
             of the rounds and its 95 % interval.\n\n| path | p50 | p99 | p99.9 |\n|---|---|---|---|\n",
            self.label,
            self.samples,
            self.rounds.len()
        );
        for name in &self.names {
            let cells: Vec<String> = (0..QUANTILES.len())
                .map(|q| {
                    let values = self.of(name, q);
                    let (low, high) = interval(&values);
                    format!("{:.1} [{low:.1}, {high:.1}]", median(&values))
                })
                .collect();
            let _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
        }
        if !claims.is_empty() {
            table.push_str("\n| latency | quantile | ratio or µs, 95 % interval | target | met |\n|---|---|---|---|---|\n");
        }
        for claim in claims {
            table.push_str(&self.judge(claim));
        }
        outcome.tables.push(table);
        outcome.raw.push(json!({"traffic": self.label, "samples": self.samples, "contenders": self.names,
            "quantiles": QUANTILES.map(|(_, n)| n), "rounds_us": self.rounds}));
        if let Some(file) = plot {
            let bars: Vec<Bar> = self
                .names
                .iter()
                .flat_map(|name| {
                    QUANTILES.iter().enumerate().take(2).map(move |(q, (_, q_name))| (name, q, q_name))
                })
                .map(|(name, q, q_name)| {
                    let values = self.of(name, q);
                    let (low, high) = interval(&values);
                    let ours = name.starts_with("rtp-proxy kernel");
                    Bar { label: format!("{name} {q_name}"), value: median(&values), low, high, ours }
                })
                .collect();
            outcome.plots.push((file.to_owned(), plot::bars(&format!("B7: {}", self.label), "µs", &bars)));
        }
    }
}
