//! Rounds: every contender once, in random order, on a machine that does nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use msm_tests::bench::cpu::KernelThreads;
use msm_tests::bench::stats::Shuffle;

use super::lane::{Cost, Lane};
use super::topology::Topology;

/// How long, how often, and on how quiet a machine.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) each: Duration,
    /// Runs beside foreign load are repeated; without it they count, and are counted.
    pub(crate) strict: bool,
    /// Largest share of one core that tasks outside the benchmark may use.
    pub(crate) foreign: f64,
    /// Largest share of one core that the hypervisor may take.
    pub(crate) steal: f64,
    /// Only contenders whose name contains this, for a profile.
    pub(crate) lanes: Option<String>,
}

/// One contender of a case as the report knows it.
#[derive(Debug, Clone)]
pub(crate) struct Entrant {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) how: &'static str,
    pub(crate) floor: String,
    pub(crate) legs: usize,
    pub(crate) burst: usize,
    /// NAPI threads work for it: it is not on one core.
    pub(crate) threaded: bool,
}

/// One traffic with its contenders and what they cost, round by round.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) label: String,
    pub(crate) size: usize,
    pub(crate) entrants: Vec<Entrant>,
    /// Per round one cost per entrant, in the order of `entrants`.
    pub(crate) rounds: Vec<Vec<Cost>>,
    /// Runs that were repeated or, where that is not asked for, counted although the machine was not quiet.
    pub(crate) disturbed: usize,
    /// Contenders that failed the gate, with the reason; they have no figures.
    pub(crate) disqualified: Vec<(String, String)>,
}

/// Passes every lane through the gate, then runs the rounds.
pub(crate) fn case(
    label: &str,
    topology: &Topology,
    lanes: Vec<Lane>,
    plan: &Plan,
    shuffle: &mut Shuffle,
) -> Result<Case> {
    let mut disqualified = Vec::new();
    let mut fit = Vec::new();
    for mut lane in lanes {
        if plan.lanes.as_ref().is_some_and(|wanted| !lane.name.contains(wanted)) {
            continue;
        }
        match lane.gate(topology) {
            Ok(sums) => {
                if !lane.legs.is_empty() {
                    eprintln!(
                        "{label}: {}: gate passed, checksums of {} frames complete, of {} partial",
                        lane.name, sums.complete, sums.partial
                    );
                }
                lane.count()?;
                fit.push(lane);
            }
            Err(reason) => {
                eprintln!("{label}: {}: DISQUALIFIED: {reason:#}", lane.name);
                disqualified.push((lane.name, format!("{reason:#}")));
            }
        }
    }
    let softirqs = KernelThreads::named("ksoftirqd/")?;
    let mut case = Case {
        label: label.to_owned(),
        size: fit.first().map_or(0, |l| l.generator.size),
        entrants: fit.iter().map(entrant).collect(),
        rounds: Vec::new(),
        disturbed: 0,
        disqualified,
    };
    // One round warms caches and is not kept.
    round(topology, &mut fit, &softirqs, plan, shuffle, &mut 0)?;
    let mut failed = 0;
    while case.rounds.len() < plan.rounds {
        match round(topology, &mut fit, &softirqs, plan, shuffle, &mut case.disturbed)? {
            Some(costs) => case.rounds.push(costs),
            None => failed += 1,
        }
        if failed > plan.rounds {
            bail!("{label}: the machine is not quiet: {failed} rounds had to be given up");
        }
    }
    Ok(case)
}

fn entrant(lane: &Lane) -> Entrant {
    Entrant {
        name: lane.name.clone(),
        version: lane.version.clone(),
        how: lane.path.label(),
        floor: lane.floor.clone(),
        legs: lane.legs.len(),
        burst: lane.generator.shape.packets(),
        threaded: !lane.threads.pids().is_empty(),
    }
}

/// One round, or nothing where a contender could not be run undisturbed.
fn round(
    topology: &Topology,
    lanes: &mut [Lane],
    softirqs: &KernelThreads,
    plan: &Plan,
    shuffle: &mut Shuffle,
    disturbed: &mut usize,
) -> Result<Option<Vec<Cost>>> {
    let mut costs = vec![Cost::default(); lanes.len()];
    for index in shuffle.order(lanes.len()) {
        let lane = &mut lanes[index];
        let mut attempts = 0;
        costs[index] = loop {
            let cost = lane.run(topology, softirqs, plan.each).with_context(|| lane.name.clone())?;
            if is_quiet(&cost, plan) {
                break cost;
            }
            *disturbed += 1;
            attempts += 1;
            if !plan.strict {
                break cost;
            }
            if attempts == 4 {
                return Ok(None);
            }
        };
    }
    Ok(Some(costs))
}

fn is_quiet(cost: &Cost, plan: &Plan) -> bool {
    let wall = cost.wall_ns as f64;
    // Steal is counted in ticks of 10 ms: one is no finding.
    let steal = cost.steal_ns.saturating_sub(10_000_000) as f64;
    cost.foreign_ns as f64 <= plan.foreign * wall && steal <= plan.steal * wall
}

impl Case {
    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.entrants.iter().position(|e| e.name == name)
    }

    /// Cost per copy with the generator, round by round.
    pub(crate) fn gross(&self, name: &str) -> Vec<f64> {
        let Some(at) = self.index(name) else { return Vec::new() };
        self.rounds.iter().map(|round| round[at].gross()).collect()
    }

    /// Cost per copy less the generator's of the same round.
    pub(crate) fn net(&self, name: &str) -> Vec<f64> {
        let Some(at) = self.index(name) else { return Vec::new() };
        let Some(floor) = self.index(&self.entrants[at].floor) else { return Vec::new() };
        self.rounds
            .iter()
            .map(|round| {
                let alone = round[floor].total_ns() as f64 / round[floor].sent.max(1) as f64;
                round[at].net(alone)
            })
            .collect()
    }

    /// Generator's cost per packet.
    pub(crate) fn per_packet(&self, name: &str) -> Vec<f64> {
        let Some(at) = self.index(name) else { return Vec::new() };
        self.rounds.iter().map(|r| r[at].total_ns() as f64 / r[at].sent.max(1) as f64).collect()
    }

    /// Lost copies and copies that arrived.
    pub(crate) fn lost(&self, name: &str) -> (u64, u64) {
        let Some(at) = self.index(name) else { return (0, 0) };
        self.rounds.iter().fold((0, 0), |(lost, copies), r| (lost + r[at].lost, copies + r[at].copies))
    }

    /// Packets that one frame carries where copies arrive: above 1, super-packets stayed whole.
    pub(crate) fn merged(&self, name: &str) -> f64 {
        let Some(at) = self.index(name) else { return 0.0 };
        let (copies, frames) =
            self.rounds.iter().fold((0, 0), |(c, f), r| (c + r[at].copies, f + r[at].frames));
        copies as f64 / frames.max(1) as f64
    }

    /// Share of the wall clock that generator, contender and kernel threads were on a core: about 1 in a
    /// closed loop, or the accounting misses something.
    pub(crate) fn busy(&self, name: &str) -> f64 {
        let Some(at) = self.index(name) else { return 0.0 };
        let sum = |f: fn(&Cost) -> u64| self.rounds.iter().map(|r| f(&r[at])).sum::<u64>() as f64;
        sum(Cost::total_ns) / sum(|c| c.wall_ns).max(1.0)
    }
}
