//! B7: from the sender's `send` call to the kernel's receive stamp at the viewer.
//!
//! The sender writes its clock into the payload; the viewer's socket stamps arrivals (`SO_TIMESTAMPNS`, same
//! clock). Nobody is woken to read: packets wait in the socket until the run is over. Stamps are taken when a
//! packet enters a device's receive path, not before the queue of a CPU: see [`stamps_after_the_queue`].

use std::io::IoSliceMut;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::setting::Setting;
use msm_tests::bench::stats::{Shuffle, interval, median, quantile};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::catalogue::{AUDIO, ELSEWHERE, Entry, NAIVE, OPEN_RATE, ROUTED, Run, TOKIO, ours};
use super::course::{Course, Traffic};
use super::fast::Mode;
use super::figures::Figure;
use super::generator::Shape;
use super::lane::{Lane, Leg};
use super::report::{Outcome, Target};
use super::rounds::Plan;
use super::scale::backlog_of;
use super::topology::{Kind, Topology};
use super::{capacity, packet, proxy};

/// Samples per round and contender.
pub(crate) const SAMPLES: u32 = 20_000;
/// The quantiles that are reported.
const QUANTILES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")];
const PREQUEUE: &str = "/proc/sys/net/core/netdev_tstamp_prequeue";

/// Has arrivals stamped where the last device delivers them. By default the kernel stamps before the queue of
/// the CPU; a redirect then clears the stamp, and the socket would be given the time at which it is read.
pub(crate) fn stamps_after_the_queue() -> Result<Setting> {
    Setting::change(PREQUEUE, "0")
}

/// What B7 asks of a quantile.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Claim {
    /// `against` is so many times slower than `ours`, at least.
    Faster { ours: String, against: String, quantile: usize, least: f64 },
    /// So many µs at most.
    Within { ours: String, quantile: usize, most: f64 },
}

/// Steps of the histogram per octave, and their number: up to 130 ms.
pub(crate) const STEPS: usize = 8;
const BUCKETS: usize = 17 * STEPS;

/// Latencies of one traffic: per contender, per round, the quantiles in µs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) label: String,
    pub(crate) names: Vec<String>,
    pub(crate) rounds: Vec<Vec<[f64; 3]>>,
    samples: usize,
    /// Per contender, all rounds together: samples of 2^(n / STEPS) µs and more.
    pub(crate) histograms: Vec<Vec<u64>>,
    pub(crate) claims: Vec<Claim>,
}

impl Run {
    /// B7: latency at 10,000 packets/s for one viewer, and for sixteen at half of what the plainest relay bears.
    pub(crate) fn b7(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B7", "Added latency");
        let _backlog = backlog_of(16_384)?;
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic =
            Traffic { shape: Shape::Single, size: AUDIO, legs: 1, merged: false, rate: Some(10_000) };
        self.hop(&course, traffic, "172 B, 10000 packets/s, 1→1", &mut outcome)?;
        let traffic = Traffic { legs: 16, ..traffic.paced(OPEN_RATE) };
        let mut relay = course.open_loop(NAIVE, "naive", traffic)?;
        relay.core = 1;
        relay.admit(&course.topology)?;
        relay.count()?;
        let most = capacity::search(&mut relay, &course.topology, self.plan.each)?;
        drop(relay);
        let traffic = traffic.paced((most / 2.0) as u32);
        let label = format!("172 B, {:.0} packets/s (half of what the naive relay bears), 1→16", most / 2.0);
        self.hop(&course, traffic, &label, &mut outcome)?;
        Ok(outcome)
    }

    fn hop(&mut self, course: &Course, traffic: Traffic, label: &str, outcome: &mut Outcome) -> Result<()> {
        let inline = ours(Kind::Inline, Mode::PerLeg);
        let legs = traffic.legs;
        let mut entry = Entry::new(course);
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.fast(Kind::Batched, Mode::PerLeg, traffic);
        entry.bare(Mode::Opaque, traffic);
        if legs == 1 {
            entry.add(ROUTED, course.routed(traffic));
        }
        entry.add(NAIVE, course.open_loop(NAIVE, "naive", traffic));
        entry.add(TOKIO, course.open_loop(TOKIO, "tokio", traffic));
        if legs == 1 {
            entry.add(ELSEWHERE, course.open_streams(1, ELSEWHERE, "naive", traffic, 1));
        }
        entry.user_path(traffic);
        // No packet of the generator alone arrives.
        entry.lanes.retain(|lane| !lane.legs.is_empty());
        if legs > 1 {
            // A relay at half its load needs its core.
            entry.lanes.iter_mut().for_each(|lane| lane.core = 1);
        }
        outcome.skipped.append(&mut entry.skipped);
        let lanes = std::mem::take(&mut entry.lanes);
        let mut found = measure(label, &course.topology, lanes, &self.plan, &mut self.shuffle, outcome)?;
        for (quantile, least) in [5.0, 4.0, 3.0].into_iter().enumerate() {
            let (ours, against) = (inline.clone(), NAIVE.to_owned());
            found.claims.push(Claim::Faster { ours, against, quantile, least });
        }
        if legs == 1 {
            let (ours, against) = (inline.clone(), ROUTED.to_owned());
            found.claims.push(Claim::Faster { ours, against, quantile: 0, least: 1.0 / 0.75 });
            let (ours, against) = (inline.clone(), ELSEWHERE.to_owned());
            found.claims.push(Claim::Faster { ours, against, quantile: 0, least: 5.0 });
        }
        // What the requirements ask of a hop (M04). With many legs the median is that of the middle one, which waits for
        // those before it: the floor's line says how much of that is anybody's.
        for (ours, limits) in [(inline, [10.0, 50.0]), (proxy::NAME.to_owned(), [100.0, 1_000.0])] {
            for (quantile, most) in limits.into_iter().enumerate() {
                found.claims.push(Claim::Within { ours: ours.clone(), quantile, most });
            }
        }
        outcome.latencies.push(found);
        outcome.figures.push(Figure::Latency {
            file: format!("kernel-b7-{legs}.svg"),
            title: format!("B7: {label}"),
            traffic: outcome.latencies.len() - 1,
        });
        Ok(())
    }
}

/// Runs the rounds.
fn measure(
    label: &str,
    topology: &Topology,
    mut lanes: Vec<Lane>,
    plan: &Plan,
    shuffle: &mut Shuffle,
    outcome: &mut Outcome,
) -> Result<Latencies> {
    let _stamps = stamps_after_the_queue()?;
    let mut fit = Vec::new();
    for mut lane in lanes.drain(..) {
        if !plan.wants(&lane.name) || !plan.runs(label) {
            continue;
        }
        match lane.admit(topology) {
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
    let histograms = vec![vec![0; BUCKETS]; fit.len()];
    let mut latencies = Latencies {
        label: label.to_owned(),
        names,
        rounds: Vec::new(),
        samples: 0,
        histograms,
        claims: Vec::new(),
    };
    // The first round warms caches and branch predictors.
    let mut warm = false;
    while !fit.is_empty() && latencies.rounds.len() < plan.rounds {
        let mut found = vec![[0.0; 3]; fit.len()];
        let mut failed = None;
        for index in shuffle.order(fit.len()) {
            let lane = &mut fit[index];
            match run(lane, topology) {
                Ok((samples, lost)) => {
                    if lost > 0 {
                        outcome.doubts.push(format!("{label}: {}: {lost} copies lost in a round", lane.name));
                    }
                    found[index] = QUANTILES.map(|(q, _)| quantile(&samples, q));
                    if warm {
                        latencies.samples = samples.len();
                        count(&samples, &mut latencies.histograms[index]);
                    }
                }
                Err(reason) => failed = Some((index, reason)),
            }
            if failed.is_some() {
                break;
            }
        }
        if let Some((index, reason)) = failed {
            let name = fit.remove(index).name;
            eprintln!("{label}: {name}: {reason:#}");
            outcome.skipped.push((name, format!("{label}: {reason:#}")));
            latencies.names.remove(index);
            latencies.histograms.remove(index);
            for round in &mut latencies.rounds {
                round.remove(index);
            }
        } else if warm {
            latencies.rounds.push(found);
            eprintln!("{label}: {} of {} rounds", latencies.rounds.len(), plan.rounds);
        } else {
            warm = true;
        }
    }
    Ok(latencies)
}

/// Adds samples to a histogram.
fn count(samples: &[f64], histogram: &mut [u64]) {
    for sample in samples {
        let bucket = (sample.max(1.0).log2() * STEPS as f64) as usize;
        histogram[bucket.min(BUCKETS - 1)] += 1;
    }
}

/// Samples in µs, and copies that did not arrive.
fn run(lane: &mut Lane, topology: &Topology) -> Result<(Vec<f64>, u64)> {
    for leg in &lane.legs {
        leg.sink.drain()?;
    }
    let rate = lane.generator.rate.context("latency is measured at a pace")?;
    // A little more: the pace loses a packet or two to the start.
    let packets = SAMPLES * 21 / 20 / lane.legs.len().max(1) as u32;
    let how_long = Duration::from_secs_f64(f64::from(packets) / f64::from(rate));
    let before = lane.received(topology)?;
    let sent = lane.drive(how_long)?;
    lane.settle(topology, before, sent)?;
    let mut samples = Vec::new();
    for leg in &lane.legs {
        read(leg, &mut samples)?;
    }
    ensure!(!samples.is_empty(), "no stamped packet arrived");
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

    /// The values that a claim is about, what it says, and what is asked.
    pub(crate) fn claimed(&self, claim: &Claim) -> (String, usize, Vec<f64>, Target) {
        match claim {
            Claim::Faster { ours, against, quantile, least } => {
                let own = self.of(ours, *quantile);
                let ratios = self.of(against, *quantile).iter().zip(own).map(|(a, o)| a / o).collect();
                (format!("{against} ÷ {ours}"), *quantile, ratios, Target::AtLeast(*least))
            }
            Claim::Within { ours, quantile, most } => {
                (ours.clone(), *quantile, self.of(ours, *quantile), Target::AtMost(*most))
            }
        }
    }

    /// A line about one claim: the edge of the interval decides that is worse for us.
    fn judge(&self, claim: &Claim) -> String {
        let (what, quantile, values, target) = self.claimed(claim);
        let (low, high) = interval(&values);
        format!(
            "| {what} | {} | {:.2} [{low:.2}, {high:.2}] | {} |\n",
            QUANTILES[quantile].1,
            median(&values),
            target.judge(&values)
        )
    }

    /// Median and interval of a contender's quantile, which is numbered as in the table.
    pub(crate) fn figure(&self, name: &str, quantile: usize) -> (f64, (f64, f64)) {
        let values = self.of(name, quantile);
        (median(&values), interval(&values))
    }

    pub(crate) fn to_markdown(&self) -> String {
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
                    let (middle, (low, high)) = self.figure(name, q);
                    format!("{middle:.1} [{low:.1}, {high:.1}]")
                })
                .collect();
            let _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
        }
        if !self.claims.is_empty() {
            table.push_str("\n| latency | quantile | ratio or µs, 95 % interval | target | met |\n|---|---|---|---|---|\n");
        }
        for claim in &self.claims {
            table.push_str(&self.judge(claim));
        }
        table
    }
}
