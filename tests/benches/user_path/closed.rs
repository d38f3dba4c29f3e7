//! The closed loop: source, contender and sinks in one thread on one core.
//!
//! The contender is called after each burst, so nobody sleeps and nobody is woken; that flatters every
//! contender. The relays are those of the fast path's closed loop. Ours is the data worker of `rtp-proxy`,
//! set up by the operations that `standalone` sends and run by this thread instead of its own.
//!
//! Cost is the CPU time of this process and of its core's ksoftirqd. *Gross* is all of it; *net* is less what
//! the source alone needs for as many packets to a socket that drops them, measured in the same round.

pub(crate) mod lane;
pub(crate) mod table;
mod worker;

use std::time::{Duration, Instant};

use anyhow::Result;
use msm_tests::bench::cpu::{KernelThreads, Machine, own, pin};
use msm_tests::bench::stats::Shuffle;

use super::generator::Shape;
use lane::Lane;

/// Name of the source alone.
pub(crate) const SOURCE: &str = "source alone";
/// The core that everything runs on.
const CORE: usize = 0;
/// Largest share of a core that others may use, and that the hypervisor may take, while a run counts.
const FOREIGN: f64 = 0.10;
const STEAL: f64 = 0.02;

/// Runs of one contender after which the last one counts.
const ATTEMPTS: usize = 3;

/// How long, how often, and on how quiet a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) each: Duration,
    /// Runs beside foreign load are repeated; without it they count, and are counted.
    pub(crate) strict: bool,
}

/// What one run used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) sent: u64,
    pub(crate) copies: u64,
    pub(crate) lost: u64,
    pub(crate) ns: u64,
}

/// One traffic, and what each contender used for it, round by round.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) fan_out: usize,
    pub(crate) size: usize,
    pub(crate) shape: Shape,
    pub(crate) rounds: Vec<Vec<(&'static str, Cost)>>,
    /// Runs that were repeated because others used the machine.
    pub(crate) repeated: usize,
    /// Runs that count although others did.
    pub(crate) disturbed: usize,
}

impl Case {
    fn of<'a>(round: &'a [(&'static str, Cost)], name: &str) -> Option<&'a Cost> {
        round.iter().find(|(known, _)| *known == name).map(|(_, cost)| cost)
    }

    /// CPU ns per copy with the source.
    pub(crate) fn gross(&self, name: &str) -> Vec<f64> {
        let costs = self.rounds.iter().filter_map(|round| Self::of(round, name));
        costs.map(|cost| cost.ns as f64 / cost.copies.max(1) as f64).collect()
    }

    /// CPU ns per copy less what the source needs.
    pub(crate) fn net(&self, name: &str) -> Vec<f64> {
        let net = |round: &Vec<(&'static str, Cost)>| {
            let (cost, alone) = (Self::of(round, name)?, Self::of(round, SOURCE)?);
            let alone = alone.ns as f64 / alone.sent.max(1) as f64;
            Some((cost.ns as f64 - alone * cost.sent as f64) / cost.copies.max(1) as f64)
        };
        self.rounds.iter().filter_map(net).collect()
    }

    /// Copies that did not arrive, and those that did.
    pub(crate) fn lost(&self, name: &str) -> (u64, u64) {
        let costs = self.rounds.iter().filter_map(|round| Self::of(round, name));
        costs.fold((0, 0), |(lost, copies), cost| (lost + cost.lost, copies + cost.copies))
    }
}

/// Runs every fan-out, size and shape. Contenders that fail the gate are named in `disqualified`.
pub(crate) fn measure(
    plan: Plan,
    fan_outs: impl Iterator<Item = usize>,
    sizes: &[usize],
    only: Option<&str>,
    disqualified: &mut Vec<String>,
) -> Result<Vec<Case>> {
    pin(CORE)?;
    let softirqs = KernelThreads::named(&format!("ksoftirqd/{CORE}"))?;
    let mut shuffle = Shuffle::seeded(0x6d73_6d01);
    let mut cases = Vec::new();
    for fan_out in fan_outs {
        for &size in sizes {
            let mut lanes = Vec::new();
            for mut lane in lane::all(fan_out, size)? {
                if only.is_some_and(|only| lane.name != only && lane.name != SOURCE) {
                    continue;
                }
                match lane.gate() {
                    Ok(()) => {
                        lane.measure_only()?;
                        lanes.push(lane);
                    }
                    Err(reason) => {
                        disqualified.push(format!("{} 1→{fan_out} {size} B: {reason:#}", lane.name));
                    }
                }
            }
            for shape in [Shape::Single, Shape::Burst(32)] {
                let mut case = Case { fan_out, size, shape, rounds: Vec::new(), repeated: 0, disturbed: 0 };
                // One round warms caches and is not kept.
                for lane in &mut lanes {
                    lane.drive(shape, plan.each)?;
                }
                for _ in 0..plan.rounds {
                    let mut round = Vec::new();
                    for index in shuffle.order(lanes.len()) {
                        let lane = &mut lanes[index];
                        round.push((lane.name, run(lane, plan, &softirqs, &mut case)?));
                    }
                    case.rounds.push(round);
                }
                eprintln!("{}", case.line());
                cases.push(case);
            }
        }
    }
    Ok(cases)
}

/// One run of one contender, repeated while others use the machine if the plan says so.
fn run(lane: &mut Lane, plan: Plan, softirqs: &KernelThreads, case: &mut Case) -> Result<Cost> {
    let mut attempts = 0;
    loop {
        let machine = Machine::now()?;
        let (started, arrived) = (Instant::now(), lane.arrived()?);
        let before = own()? + softirqs.cpu();
        let sent = lane.drive(case.shape, plan.each)?;
        let ns = own()? + softirqs.cpu() - before;
        let wall = started.elapsed().as_nanos() as f64;
        let copies = lane.arrived()? - arrived;
        let cost = Cost { sent, copies, lost: (sent * lane.fan_out()).saturating_sub(copies), ns };
        let used = Machine::now()?.since(&machine);
        let foreign = used.busy_ns.saturating_sub(ns) as f64;
        // Steal is counted in ticks of 10 ms: one is no finding.
        let steal = used.steal_ns.saturating_sub(10_000_000) as f64;
        if foreign <= FOREIGN * wall && steal <= STEAL * wall {
            return Ok(cost);
        }
        attempts += 1;
        if !plan.strict || attempts == ATTEMPTS {
            case.disturbed += 1;
            return Ok(cost);
        }
        case.repeated += 1;
    }
}
