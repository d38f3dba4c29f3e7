//! Rounds: every contender once, in random order, on a machine that does nothing else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use msm_tests::bench::cpu::KernelThreads;
use msm_tests::bench::stats::Shuffle;
use serde::{Deserialize, Serialize};

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
    /// Only contenders whose name contains one of these, between bars, for a profile.
    pub(crate) lanes: Option<String>,
    /// Likewise only cases whose label contains one of these.
    pub(crate) cases: Option<String>,
}

impl Plan {
    /// Whether a contender takes part.
    pub(crate) fn wants(&self, lane: &str) -> bool {
        is_named(self.lanes.as_deref(), lane)
    }

    /// Whether a case is run.
    pub(crate) fn runs(&self, label: &str) -> bool {
        is_named(self.cases.as_deref(), label)
    }

    /// Whether only a part of a benchmark is asked for, to look at it from outside.
    pub(crate) fn is_profile(&self) -> bool {
        self.lanes.is_some() || self.cases.is_some()
    }
}

fn is_named(wanted: Option<&str>, name: &str) -> bool {
    wanted.is_none_or(|wanted| wanted.split('|').any(|part| name.contains(part)))
}

/// One contender of a case as the report knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entrant {
    pub(crate) name: String,
    pub(crate) version: String,
    /// How it runs.
    pub(crate) how: String,
    pub(crate) floor: String,
    pub(crate) legs: usize,
    pub(crate) burst: usize,
    /// NAPI threads work for it: it is not on one core.
    pub(crate) threaded: bool,
}

/// One traffic with its contenders and what they cost, round by round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) label: String,
    pub(crate) size: usize,
    pub(crate) entrants: Vec<Entrant>,
    /// Per round one cost per entrant, in the order of `entrants`.
    pub(crate) rounds: Vec<Vec<Cost>>,
    /// Runs that were repeated or, where that is not asked for, counted although the machine was not quiet.
    pub(crate) disturbed: usize,
    /// Rounds that count although a run of theirs stayed disturbed.
    pub(crate) noisy: usize,
    /// Contenders that failed the gate or a run, with the reason; they have no figures.
    pub(crate) disqualified: Vec<(String, String)>,
}

/// Passes every lane through the gate, then runs the rounds. Who fails either drops out, the others go on.
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
        if !plan.runs(label) || !plan.wants(&lane.name) {
            continue;
        }
        match lane.admit(topology).and_then(|sums| lane.count().map(|()| sums)) {
            Ok(sums) => {
                if !lane.legs.is_empty() {
                    eprintln!(
                        "{label}: {}: gate passed, checksums of {} frames complete, of {} partial",
                        lane.name, sums.complete, sums.partial
                    );
                }
                fit.push(lane);
            }
            Err(reason) => disqualified.push(disqualify(label, &lane.name, &reason)),
        }
    }
    let mut case = Case {
        label: label.to_owned(),
        size: fit.first().map_or(0, |l| l.generator.size),
        entrants: fit.iter().map(entrant).collect(),
        rounds: Vec::new(),
        disturbed: 0,
        noisy: 0,
        disqualified,
    };
    let mut machine = Machine { topology, softirqs: KernelThreads::named("ksoftirqd/")?, plan, given_up: 0 };
    let started = Instant::now();
    // One round warms caches and is not kept.
    let mut warm = false;
    while !fit.is_empty() && case.rounds.len() < plan.rounds {
        match machine.round(&mut fit, shuffle, &mut case) {
            Ok(Some(_)) if !warm => warm = true,
            Ok(Some(costs)) => case.rounds.push(costs),
            Ok(None) => {}
            Err((lane, reason)) => {
                let name = fit.remove(lane).name;
                case.disqualified.push(disqualify(label, &name, &reason));
                case.entrants.remove(lane);
                for costs in &mut case.rounds {
                    costs.remove(lane);
                }
            }
        }
        let done = case.rounds.len();
        eprintln!("{label}: {done} of {} rounds after {:.0} s", plan.rounds, started.elapsed().as_secs_f64());
    }
    Ok(case)
}

fn disqualify(label: &str, name: &str, reason: &anyhow::Error) -> (String, String) {
    eprintln!("{label}: {name}: DISQUALIFIED: {reason:#}");
    (name.to_owned(), format!("{reason:#}"))
}

fn entrant(lane: &Lane) -> Entrant {
    Entrant {
        name: lane.name.clone(),
        version: lane.version.clone(),
        how: lane.path.label().to_owned(),
        floor: lane.floor.clone(),
        legs: lane.legs.len(),
        burst: lane.generator.shape.packets(),
        threaded: !lane.threads.pids().is_empty(),
    }
}

/// Where rounds are run.
struct Machine<'a> {
    topology: &'a Topology,
    softirqs: KernelThreads,
    plan: &'a Plan,
    /// Rounds that could not be run undisturbed.
    given_up: usize,
}

impl Machine<'_> {
    /// One round, or nothing where a contender could not be run undisturbed; the lane that failed otherwise.
    fn round(
        &mut self,
        lanes: &mut [Lane],
        shuffle: &mut Shuffle,
        case: &mut Case,
    ) -> Result<Option<Vec<Cost>>, (usize, anyhow::Error)> {
        let mut costs = vec![Cost::default(); lanes.len()];
        // A machine that does not get quiet costs the report its trust, not the figures.
        let strict = self.plan.strict && self.given_up < self.plan.rounds.div_ceil(2);
        let mut noisy = false;
        for index in shuffle.order(lanes.len()) {
            let lane = &mut lanes[index];
            let mut attempts = 0;
            costs[index] = loop {
                let cost = lane.run(self.topology, &self.softirqs, self.plan.each);
                let cost = cost.with_context(|| lane.name.clone()).map_err(|reason| (index, reason))?;
                if is_quiet(&cost, self.plan) {
                    break cost;
                }
                case.disturbed += 1;
                attempts += 1;
                if !strict {
                    noisy = true;
                    break cost;
                }
                if attempts == 4 {
                    self.given_up += 1;
                    return Ok(None);
                }
            };
        }
        case.noisy += usize::from(noisy && self.plan.strict);
        Ok(Some(costs))
    }
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
