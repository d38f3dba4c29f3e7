//! B1's cross-check: the sum of what everybody used, beside what nobody used.
//!
//! On every core a program of the scheduler's idle class takes whatever no one else wants. Wall clock less what it got
//! is what all others took, whoever they were, kernel threads that no list of ours names among them, and the benchmark's
//! own sum must explain it. Interrupts are in neither account where the kernel does not time them
//! (`CONFIG_IRQ_TIME_ACCOUNTING`): they are booked to whom they interrupt. A core that is never idle does not sleep, and so
//! what is woken costs less here than in the rounds: both accounts are of the same runs, and of no others.

use std::fmt::Write as _;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::cpu::{self, KernelThreads, Pinned, pin};
use msm_tests::bench::setting::Setting;
use msm_tests::bench::stats::median;
use serde_json::json;

use super::catalogue::{AUDIO, OPEN_RATE, Run, ours};
use super::course::{Course, Traffic};
use super::fast::{Fast, Mode};
use super::generator::Shape;
use super::lane::Lane;
use super::proxy;
use super::report::{Outcome, Target};
use super::topology::{Kind, Topology};

/// Packets per second of the fast path: half a core.
const RATE: u32 = 20_000;
/// Runs of each lane.
const TIMES: usize = 5;
/// What the sum may leave unexplained, in percent: switching from one task to the next is nobody's.
const UNEXPLAINED: f64 = 5.0;
/// Takes all it gets, and ends with the benchmark, also where that was killed.
const SOAK: &str = "while kill -0 $PPID; do n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; done";
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// One run by both accounts, in ns of one core.
#[derive(Debug, Clone, Copy)]
struct Accounts {
    copies: u64,
    /// Generator, contender, kernel threads: what the rounds count.
    sum: u64,
    /// Other tasks.
    others: u64,
    /// What the idle class did not get.
    taken: u64,
}

impl Accounts {
    /// Share of what was taken that neither the sum nor the other tasks explain, in percent.
    fn unexplained(self) -> f64 {
        100.0 * (self.taken as f64 - (self.sum + self.others) as f64) / self.taken.max(1) as f64
    }

    fn per_copy(self, ns: u64) -> f64 {
        ns as f64 / self.copies.max(1) as f64
    }
}

/// One program per core that takes what is left.
struct Soakers(Vec<Pinned>);

impl Soakers {
    fn start() -> Result<Self> {
        let cores = std::fs::read_to_string("/proc/cpuinfo")?;
        let cores = cores.lines().filter(|line| line.starts_with("processor")).count();
        let args = ["--idle", "0", "sh", "-c", SOAK].map(str::to_owned);
        let one = |core| Pinned::start(None, core, FilePath::new("chrt"), &args);
        let mut all = Self((0..cores).map(one).collect::<Result<_>>()?);
        std::thread::sleep(Duration::from_millis(200));
        ensure!(all.0.iter_mut().all(Pinned::is_running), "chrt does not run");
        Ok(all)
    }

    fn cpu(&self) -> Result<u64> {
        self.0.iter().map(Pinned::cpu).sum()
    }
}

fn measured(
    lane: &mut Lane,
    topology: &Topology,
    soakers: &Soakers,
    softirqs: &KernelThreads,
    how_long: Duration,
) -> Result<Accounts> {
    pin(lane.core)?;
    let threads = softirqs.and(&lane.threads);
    for leg in &lane.legs {
        leg.sink.drain()?;
    }
    let received = lane.received(topology)?;
    let machine = cpu::Machine::now()?;
    let (outside, start) = (cpu::own()?, Instant::now());
    let (soaked, own, process, kernel) = (soakers.cpu()?, cpu::own()?, lane.path.cpu()?, threads.cpu());
    let sent = lane.drive(how_long)?;
    lane.settle(topology, received, sent)?;
    let (process, kernel) = (lane.path.cpu()? - process, threads.cpu() - kernel);
    let (own, soaked) = (cpu::own()? - own, soakers.cpu()? - soaked);
    let wall = start.elapsed().as_nanos() as u64 * soakers.0.len() as u64;
    let used = cpu::Machine::now()?.since(&machine);
    let ours = process + kernel + cpu::own()? - outside;
    Ok(Accounts {
        copies: lane.received(topology)?.since(received).datagrams(lane.generator.size),
        sum: own + process + kernel,
        // Somebody's last slice may have been booked after the first look.
        others: used.busy_ns.saturating_sub(ours + soaked),
        taken: wall.saturating_sub(soaked),
    })
}

impl Run {
    /// The same lanes by both accounts, and what the kernel says of the program.
    pub(crate) fn both_accounts(&mut self, course: &Course, outcome: &mut Outcome) -> Result<()> {
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let mut fast = Fast::open(course)?;
        let name = ours(Kind::Inline, Mode::PerLeg);
        let paced = traffic.paced(RATE);
        let mut sessions = Vec::new();
        let lanes = vec![
            fast.lane(course, &format!("{name}, {RATE} pps"), Kind::Inline, Mode::PerLeg, paced)?,
            course.open_loop("tokio relay, woken", "tokio", traffic.paced(OPEN_RATE))?,
            proxy::lane(course, traffic.paced(OPEN_RATE), &mut sessions)?,
        ];
        self.idle_account(&course.topology, lanes, outcome)?;
        self.program_account(course, &mut fast, traffic, outcome)
    }

    fn idle_account(&self, topology: &Topology, lanes: Vec<Lane>, outcome: &mut Outcome) -> Result<()> {
        let softirqs = KernelThreads::named("ksoftirqd/")?;
        let mut fit = Vec::new();
        for mut lane in lanes {
            lane.admit(topology).with_context(|| lane.name.clone())?;
            lane.count()?;
            fit.push(lane);
        }
        let soakers = Soakers::start()?;
        let mut table = format!(
            "Cross-check of the accounts, {TIMES} runs each, while a program of the scheduler's idle class takes what is \
             left of every core (so nothing sleeps, and waking costs less than above).\n\n| contender | sum as above, \
             ns/copy | other tasks | all that the idle program did not get | of it unexplained |\n|---|---|---|---|---|\n"
        );
        for mut lane in fit {
            let mut runs = Vec::new();
            for _ in 0..TIMES {
                runs.push(measured(&mut lane, topology, &soakers, &softirqs, self.plan.each)?);
            }
            let of = |value: fn(&Accounts) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
            let unexplained = of(|run| run.unexplained());
            let _ = writeln!(
                table,
                "| {} | {:.0} | {:.0} | {:.0} | {unexplained:.1} % |",
                lane.name,
                of(|run| run.per_copy(run.sum)),
                of(|run| run.per_copy(run.others)),
                of(|run| run.per_copy(run.taken)),
            );
            if unexplained.abs() > UNEXPLAINED {
                outcome.doubts.push(format!(
                    "{}: {unexplained:.1} % of the time that was taken are not in the sum",
                    lane.name
                ));
            }
            outcome.raw.push(json!({"both_accounts": lane.name, "runs": runs.iter().map(|run| json!({
                "copies": run.copies, "sum_ns": run.sum, "others_ns": run.others, "taken_ns": run.taken}))
                .collect::<Vec<_>>()}));
        }
        outcome.tables.push(table);
        Ok(())
    }

    /// In a run of its own, for the kernel reads the clock twice per packet then.
    fn program_account(
        &self,
        course: &Course,
        fast: &mut Fast,
        traffic: Traffic,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let softirqs = KernelThreads::named("ksoftirqd/")?;
        let mut lane = fast.lane(course, "by the kernel's clock", Kind::Inline, Mode::PerLeg, traffic)?;
        lane.admit(&course.topology)?;
        lane.count()?;
        let _counted = Setting::change(STATS, "1")?;
        let (mut inside, mut all) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            let before = fast.spent()?;
            let cost = lane.run(&course.topology, &softirqs, self.plan.each)?;
            let after = fast.spent()?;
            ensure!(after.1 - before.1 >= cost.sent, "the kernel counted fewer runs than packets");
            let spent = after.0.saturating_sub(before.0).as_nanos() as f64;
            inside.push(spent / cost.copies.max(1) as f64);
            all.push(cost.gross());
        }
        let unit = "ns per copy";
        let what = "inside the program by `kernel.bpf_stats_enabled`, clones and queueing included";
        outcome.find(what, unit, inside, Target::Nothing);
        outcome.find("the whole in the same runs, generator included", unit, all, Target::Nothing);
        Ok(())
    }
}
