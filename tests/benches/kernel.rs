//! The kernel fast path against user-space relays and against what the kernel does by itself.
//!
//! The figure is CPU time per delivered copy: the generator's process (in whose softirq the kernel forwards),
//! the contender's process, ksoftirqd and NAPI threads. Contenders take turns in random order within each
//! round, and ratios are taken round by round. Before anything is measured, every contender passes a gate:
//! each sink reads each packet of a short run, header, payload and checksum. During the runs one copy in 128
//! is kept and compared afterwards.
//!
//! Core 0 has the generator and the data path, core 1 the NAPI threads. Needs root.

#![expect(clippy::print_stdout, reason = "the report is the program's output")]

mod kernel {
    pub(crate) mod bare;
    pub(crate) mod bursts;
    pub(crate) mod capacity;
    pub(crate) mod catalogue;
    pub(crate) mod course;
    pub(crate) mod fast;
    pub(crate) mod figures;
    pub(crate) mod floor;
    pub(crate) mod gate;
    pub(crate) mod generator;
    pub(crate) mod joins;
    pub(crate) mod lane;
    pub(crate) mod latency;
    pub(crate) mod memory;
    pub(crate) mod packet;
    pub(crate) mod path;
    pub(crate) mod plot;
    pub(crate) mod proxy;
    pub(crate) mod relays;
    pub(crate) mod report;
    pub(crate) mod results;
    pub(crate) mod rounds;
    pub(crate) mod rtpengine;
    pub(crate) mod scale;
    pub(crate) mod soaker;
    pub(crate) mod streams;
    pub(crate) mod tap;
    pub(crate) mod topology;
}

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kernel::catalogue::Run;
use kernel::course::Programs;
use kernel::report::Outcome;
use kernel::results::Conditions;
use kernel::rounds::Plan;
use kernel::{figures, results};
use msm_tests::bench::cpu::pin;
use msm_tests::bench::setting::give_back;
use msm_tests::bench::stats::Shuffle;
use msm_tests::privilege::{Need, missing};

struct Options {
    plan: Plan,
    programs: Programs,
    /// One file per benchmark is written here.
    results: Option<PathBuf>,
    /// Nothing is run: the report is made of what is recorded here.
    report: Option<PathBuf>,
    /// Pictures of the report go here.
    plots: Option<PathBuf>,
    /// The record of the user-space path, for its picture.
    user: Option<PathBuf>,
    only: Vec<String>,
}

fn options() -> Result<Options> {
    let mut options = Options {
        plan: Plan {
            rounds: 9,
            each: Duration::from_secs(1),
            strict: false,
            foreign: 0.10,
            steal: 0.02,
            lanes: None,
            cases: None,
        },
        programs: Programs {
            relay: PathBuf::from("target/release/examples/bench_relay"),
            proxy: PathBuf::from("target/release/rtp-proxy"),
            object: None,
        },
        results: None,
        report: None,
        plots: None,
        user: None,
        only: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--rounds" => options.plan.rounds = value()?.parse()?,
            "--seconds" => options.plan.each = Duration::from_secs_f64(value()?.parse()?),
            "--strict" => options.plan.strict = true,
            "--foreign" => options.plan.foreign = value()?.parse()?,
            "--proxy" => options.programs.proxy = value()?.into(),
            "--relay" => options.programs.relay = value()?.into(),
            "--lanes" => options.plan.lanes = Some(value()?),
            "--cases" => options.plan.cases = Some(value()?),
            "--object" => options.programs.object = Some(std::fs::read(value()?)?),
            "--results" => options.results = Some(value()?.into()),
            "--report" => options.report = Some(value()?.into()),
            "--plots" => options.plots = Some(value()?.into()),
            "--user" => options.user = Some(value()?.into()),
            part if !part.starts_with('-') => options.only.push(part.to_ascii_uppercase()),
            other => bail!("unknown option {other}"),
        }
    }
    if let Some(unknown) =
        options.only.iter().filter(|id| **id != GATE.id).find(|id| CATALOGUE.iter().all(|b| b.id != **id))
    {
        bail!("no benchmark {unknown}; there are {}", CATALOGUE.map(|b| b.id).join(", "));
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    if let Some(folder) = &options.report {
        return report(&options, folder);
    }
    if let Some(reason) = missing(Need::Kernel) {
        bail!("{reason}");
    }
    for done in give_back()? {
        eprintln!("left by a benchmark that was killed: {done}");
    }
    open_files()?;
    pin(0)?;
    let named = |benchmark: &&Benchmark| options.only.iter().any(|id| id == benchmark.id);
    let chosen = CATALOGUE.iter().filter(|benchmark| options.only.is_empty() || named(benchmark));
    let chosen: Vec<&Benchmark> = chosen.chain(Some(&GATE).filter(named)).collect();
    let estimates: Vec<f64> = chosen.iter().map(|b| b.estimate(&options.plan)).collect();
    eprintln!(
        "{}: about {:.0} min",
        chosen.iter().map(|b| b.id).collect::<Vec<_>>().join(", "),
        estimates.iter().sum::<f64>() / 60.0
    );
    let mut run = Run {
        programs: options.programs.clone(),
        plan: options.plan.clone(),
        shuffle: Shuffle::seeded(0x6d73_6d04),
    };
    let mut failed = Vec::new();
    for (number, benchmark) in chosen.iter().enumerate() {
        let left = estimates[number..].iter().sum::<f64>() / 60.0;
        eprintln!(
            "== {} of {}: {}, about {:.0} s; about {left:.0} min to the end",
            number + 1,
            chosen.len(),
            benchmark.id,
            estimates[number]
        );
        let started = Instant::now();
        // One that fails does not take the others with it, nor what was recorded of it before; it does fail
        // the whole.
        let done = Conditions::now(&options.plan).and_then(|conditions| {
            let mut outcome = (benchmark.run)(&mut run)?;
            outcome.conditions = Conditions { took: started.elapsed().as_secs_f64(), ..conditions };
            outcome.doubt();
            println!("{}", outcome.to_markdown(PLOTS));
            options.results.iter().try_for_each(|folder| results::store(folder, &outcome))
        });
        if let Err(reason) = done {
            eprintln!("{} failed: {reason:#}", benchmark.id);
            failed.push(benchmark.id);
        }
        eprintln!("{} took {:.0} s", benchmark.id, started.elapsed().as_secs_f64());
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// Where the report finds its pictures.
const PLOTS: &str = "plots";

/// Prints the report of everything that is recorded, and draws it.
fn report(options: &Options, folder: &std::path::Path) -> Result<()> {
    let mut recorded: Vec<Outcome> = Vec::new();
    for benchmark in &CATALOGUE {
        match results::load(folder, benchmark.id) {
            Ok(Some(outcome)) => recorded.push(outcome),
            Ok(None) => eprintln!("{}: not recorded", benchmark.id),
            Err(reason) => eprintln!("{}: {reason:#}", benchmark.id),
        }
    }
    if let Some(plots) = &options.plots {
        let user = options.user.as_ref().map(std::fs::read).and_then(Result::ok);
        let user = user.map(|text| serde_json::from_slice(&text)).transpose()?;
        figures::draw(&recorded, user.as_ref(), plots)?;
    }
    if recorded.is_empty() {
        println!("Not recorded yet.");
    } else {
        println!("![How far each target is met or missed]({PLOTS}/kernel-targets.svg)\n");
    }
    let missing: Vec<&str> =
        CATALOGUE.iter().map(|b| b.id).filter(|id| recorded.iter().all(|o| o.id != *id)).collect();
    if !recorded.is_empty() && !missing.is_empty() {
        println!("Not recorded yet: {}.\n", missing.join(", "));
    }
    for outcome in &recorded {
        println!("{}", outcome.to_markdown(PLOTS));
    }
    Ok(())
}

/// Thousands of sources are thousands of sockets; programs that are started inherit this.
fn open_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("RLIMIT_NOFILE")
}

/// A benchmark of the catalogue.
struct Benchmark {
    id: &'static str,
    run: fn(&mut Run) -> Result<Outcome>,
    /// For the estimate: seconds whatever is asked, runs per round, runs in all whatever the rounds.
    cost: (f64, f64, f64),
}

impl Benchmark {
    /// Seconds that it is going to take, roughly: a quiet machine repeats nothing.
    fn estimate(&self, plan: &Plan) -> f64 {
        let (fixed, per_round, once) = self.cost;
        let run = plan.each.as_secs_f64() + 0.1;
        fixed + run * (per_round * (plan.rounds + 1) as f64 + once)
    }
}

const fn entry(id: &'static str, run: fn(&mut Run) -> Result<Outcome>, cost: (f64, f64, f64)) -> Benchmark {
    Benchmark { id, run, cost }
}

/// Not of the catalogue: what CI compares.
const GATE: Benchmark = entry("GATE", Run::gate, (5.0, 5.0, 0.0));

const CATALOGUE: [Benchmark; 10] = [
    entry("B1", Run::b1, (10.0, 11.0, 0.0)),
    entry("B2", Run::b2, (10.0, 11.0, 0.0)),
    entry("B3", Run::b3, (20.0, 24.0, 0.0)),
    entry("B4", Run::b4, (15.0, 28.0, 0.0)),
    entry("B5", Run::b5, (10.0, 14.0, 0.0)),
    entry("B6", Run::b6, (10.0, 0.0, 160.0)),
    entry("B7", Run::b7, (30.0, 12.0, 0.0)),
    entry("B8", Run::b8, (30.0, 12.0, 8.0)),
    entry("B16", Run::b16, (240.0, 0.0, 0.0)),
    entry("B17", Run::b17, (60.0, 30.0, 120.0)),
];
