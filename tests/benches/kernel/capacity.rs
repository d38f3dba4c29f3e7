//! B6: the highest rate without loss.
//!
//! A relay has core 0 to itself, generator and sinks are on core 1. The fast path has no such rate on veth:
//! it runs in the sender's own call, so a saturated sender is what is found, and says so. What two cores carry
//! is found with two such senders, each in a pod and on a core of its own.

use std::fmt::Write as _;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::bench::cpu::{KernelThreads, pin};
use msm_tests::bench::stats::median;
use serde_json::json;

use super::catalogue::{AUDIO, Entry, NAIVE, OPEN_RATE, Run, SEGMENTING, TOKIO};
use super::course::{Course, Traffic};
use super::fast::Mode;
use super::generator::{Generator, Shape};
use super::lane::Lane;
use super::report::{Outcome, Target};
use super::rtpengine;
use super::topology::{Kind, Topology};

/// Steps of the search, and runs that confirm its end.
const STEPS: usize = 12;
const CONFIRMATIONS: usize = 3;
/// Lower rates that are tried where the one that was found is not confirmed: down to a quarter.
const LOWER: usize = 16;
/// Where the search starts: beyond what any relay here reaches.
const CEILING: f64 = 60_000.0;

/// Runs of a confirmation beside foreign load, after which the last one counts.
const DISTURBED: usize = 3;
/// Share of a core that others may use while a loss counts.
const FOREIGN: f64 = 0.10;

/// What a run at one rate showed.
#[derive(Debug, Clone, Copy)]
struct Trial {
    rate: f64,
    offered: f64,
    lost: u64,
    copies: u64,
    /// Share of a core that others used meanwhile.
    foreign: f64,
}

impl Trial {
    /// A generator that does not reach the rate says nothing about it.
    fn is_good(&self) -> bool {
        self.lost == 0 && self.offered > 0.97 * self.rate
    }
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rate, offered, lost, copies, foreign } = self;
        write!(
            f,
            "at {rate:.0} packets/s {lost} of {} copies were lost, {offered:.0} packets/s were offered, and others used \
             {:.0} % of a core",
            lost + copies,
            100.0 * foreign
        )
    }
}

/// Packets per second without loss.
///
/// # Errors
/// None was confirmed, and what the last try showed.
pub(crate) fn search(lane: &mut Lane, topology: &Topology, each: Duration) -> Result<f64> {
    let softirqs = KernelThreads::named("ksoftirqd/")?;
    let (mut good, mut bad) = (100.0_f64, CEILING);
    let fragile = lane.name == rtpengine::NAME;
    let mut at = |rate: f64, how_long| -> Result<Trial> {
        lane.generator.rate = Some(rate as u32);
        let cost = lane.run(topology, &softirqs, how_long)?;
        let wall = cost.wall_ns as f64;
        Ok(Trial {
            rate,
            offered: cost.sent as f64 / (wall / 1e9),
            lost: cost.lost,
            copies: cost.copies,
            foreign: cost.foreign_ns as f64 / wall,
        })
    };
    if fragile {
        // From below: it does not come back from an overload, nor would a confirmation tell more.
        let mut rate = f64::from(rtpengine::RATE);
        let mut found = None;
        while rate < CEILING {
            let trial = at(rate, each)?;
            if !trial.is_good() {
                return found.with_context(|| format!("no rate confirmed: {trial}"));
            }
            found = Some(rate);
            rate *= 1.15;
        }
        return found.context("no rate was tried");
    }
    for _ in 0..STEPS {
        // Equal ratios: the answer may be anywhere between hundreds and tens of thousands.
        let rate = (good * bad).sqrt();
        if at(rate, each)?.is_good() {
            good = rate;
        } else {
            bad = rate;
        }
    }
    // Down in steps of 8 % until all confirm: buffers of megabytes hide an overload from the short runs of the search.
    let mut last = None;
    for _ in 0..LOWER {
        let mut confirmed = 0;
        while confirmed < CONFIRMATIONS {
            let mut trial = at(good, each * 5)?;
            for _ in 1..DISTURBED {
                if trial.is_good() || trial.foreign < FOREIGN {
                    break;
                }
                trial = at(good, each * 5)?;
            }
            if !trial.is_good() {
                last = Some(trial);
                break;
            }
            confirmed += 1;
        }
        if confirmed == CONFIRMATIONS {
            return Ok(good);
        }
        good *= 0.92;
    }
    bail!("no rate confirmed: {}", last.map(|trial| trial.to_string()).unwrap_or_default())
}

const RATE: &str = "copies per second";
/// Asked for, and hard to meet: here a relay is called by a saturated generator for whatever waits, and the fast path pays for
/// its sender.
const BEST: &str = "fast path ÷ best relay, copies per second of a core";

impl Run {
    /// B6: the highest rate without loss.
    pub(crate) fn b6(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B6", "Zero-loss rate");
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let paced = traffic.paced(OPEN_RATE);
        let mut entry = Entry::new(&course);
        entry.add(NAIVE, course.open_loop(NAIVE, "naive", paced));
        entry.add(TOKIO, course.open_loop(TOKIO, "tokio", paced));
        entry.add(SEGMENTING, course.open_loop(SEGMENTING, "segmenting", paced));
        entry.rtpengine(traffic);
        entry.user_path(paced);
        entry.lanes.retain(|lane| !lane.legs.is_empty());
        let relays = std::mem::take(&mut entry.lanes);
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.fast(Kind::Second, Mode::PerLeg, traffic);
        let kernel = std::mem::take(&mut entry.lanes);
        outcome.skipped.append(&mut entry.skipped);
        let best = self.relays(&course.topology, relays, &mut outcome);
        if let Ok([first, second]) = <[Lane; 2]>::try_from(kernel) {
            let floors = [Kind::Inline, Kind::Second].map(|kind| course.floor_from(kind, traffic));
            let [alone, beside] = floors;
            self.senders(&course.topology, (first, second), (alone?, beside?), best, &mut outcome)?;
        }
        outcome.draw_found("kernel-b6.svg", "B6: most copies per second, 172 B, 1→16", RATE);
        Ok(outcome)
    }

    /// Searches for each relay; returns the best rate of copies.
    fn relays(&self, topology: &Topology, relays: Vec<Lane>, outcome: &mut Outcome) -> f64 {
        let mut best: f64 = 0.0;
        let mut table = String::from(
            "172 B, single packets, 1→16; the relay alone on its core, zero loss.\n\n| contender | how | packets/s in | copies/s out |\n|---|---|---|---|\n",
        );
        for mut lane in relays {
            let name = lane.name.clone();
            lane.core = 1;
            let found = lane.admit(topology).and_then(|_| lane.count());
            let found = found.and_then(|()| search(&mut lane, topology, self.plan.each));
            let rate = match found {
                Ok(rate) => rate,
                Err(reason) => {
                    let _ = writeln!(table, "| {name} | {reason:#} | | |");
                    eprintln!("B6: {name}: {reason:#}");
                    outcome.find(&name, RATE, Vec::new(), Target::Nothing);
                    outcome.skipped.push((name, format!("{reason:#}")));
                    continue;
                }
            };
            let copies = rate * lane.legs.len() as f64;
            best = best.max(copies);
            let how = if name == rtpengine::NAME { "last of rising rates" } else { "confirmed" };
            let _ = writeln!(table, "| {name} | {how} | {rate:.0} | {copies:.0} |");
            eprintln!("B6: {name}: {copies:.0} copies/s");
            outcome.find(&name, RATE, vec![copies], Target::Nothing);
        }
        outcome.tables.push(table);
        best
    }

    /// What one and two senders that never wait get through the fast path, and through nothing at all.
    fn senders(
        &self,
        topology: &Topology,
        (mut first, mut second): (Lane, Lane),
        (mut alone, mut beside): (Lane, Lane),
        best: f64,
        outcome: &mut Outcome,
    ) -> Result<()> {
        for lane in [&mut first, &mut second] {
            lane.admit(topology)?;
            lane.count()?;
        }
        let (mut one, mut two, mut gain, mut machine) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut lost = 0;
        for round in 0..=self.plan.rounds {
            let each = self.plan.each;
            let single = together(&mut first, None, topology, each)?;
            let double = together(&mut first, Some(&mut second), topology, each)?;
            let floor = together(&mut alone, None, topology, each)?;
            let floors = together(&mut alone, Some(&mut beside), topology, each)?;
            if round > 0 {
                lost += single.lost + double.lost;
                one.push(16.0 * single.rate);
                two.push(16.0 * double.rate);
                gain.push(double.rate / single.rate);
                machine.push(floors.rate / floor.rate);
            }
        }
        outcome
            .raw
            .push(json!({"one_sender_copies_per_s": one, "two_senders_copies_per_s": two, "lost": lost,
            "gain": gain, "gain_of_generators_alone": machine}));
        let ratio = vec![median(&one) / best];
        outcome.find("rtp-proxy fast path, per leg", RATE, one, Target::Nothing);
        outcome.find("rtp-proxy fast path, per leg, two senders on two cores", RATE, two, Target::Nothing);
        outcome.find("fast path, two senders ÷ one", "times", gain, Target::AtLeast(1.7));
        outcome.find("generators alone, two ÷ one", "times", machine, Target::Nothing);
        outcome.find(BEST, "times", ratio, Target::AtLeast(4.0));
        outcome.find("fast path, copies lost", "copies", vec![lost as f64], Target::AtMost(0.0));
        outcome.tables.push(
            "The sender is the data path of the kernel's rows and pays for itself out of the same core, so it \
             cannot offer 1.5 times what they carry: their rate is what a saturated sender gets rid of, no \
             capacity, and the ratio that counts is B1's. Relays on two cores: not measured, the generator needs \
             one of them.\n"
                .to_owned(),
        );
        Ok(())
    }
}

/// What a run of one or two senders carried.
struct Carried {
    /// Packets per second of all senders.
    rate: f64,
    lost: u64,
}

/// Runs one lane on core 0 and another one at the same time on core 1.
fn together(
    lane: &mut Lane,
    other: Option<&mut Lane>,
    topology: &Topology,
    how_long: Duration,
) -> Result<Carried> {
    let legs = lane.legs.len() as u64;
    for leg in lane.legs.iter().chain(other.iter().flat_map(|o| &o.legs)) {
        leg.sink.drain()?;
    }
    let before = lane.received(topology)?;
    let timed = |generator: &mut Generator| -> Result<(u64, f64)> {
        let start = Instant::now();
        let sent = generator.run(how_long, |_| Ok(()))?;
        Ok((sent, sent as f64 / start.elapsed().as_secs_f64()))
    };
    pin(0)?;
    let (sent, rate) = match other {
        None => timed(&mut lane.generator)?,
        Some(other) => {
            let parts = other.generator.parts();
            let both = Barrier::new(2);
            let (ours, (theirs, heads)) = std::thread::scope(|scope| -> Result<_> {
                let beside = scope.spawn(|| -> Result<_> {
                    let ready = pin(1).and_then(|()| Generator::resume(parts));
                    both.wait();
                    let mut generator = ready?;
                    Ok((timed(&mut generator)?, generator.heads()))
                });
                both.wait();
                let ours = timed(&mut lane.generator);
                let theirs = beside.join().map_err(|_| anyhow::anyhow!("the second sender panicked"))?;
                Ok((ours?, theirs?))
            })?;
            other.generator.skip_to(&heads);
            (ours.0 + theirs.0, ours.1 + theirs.1)
        }
    };
    ensure!(sent > 0, "nothing was sent");
    // Both lanes end in the same pods, whose devices count for both.
    lane.settle(topology, before, sent)?;
    let arrived = lane.received(topology)?.since(before).datagrams(lane.generator.size);
    Ok(Carried { rate, lost: (sent * legs).saturating_sub(arrived) })
}
