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
    pub(crate) mod capacity;
    pub(crate) mod catalogue;
    pub(crate) mod course;
    pub(crate) mod fast;
    pub(crate) mod floor;
    pub(crate) mod generator;
    pub(crate) mod lane;
    pub(crate) mod latency;
    pub(crate) mod packet;
    pub(crate) mod path;
    pub(crate) mod plot;
    pub(crate) mod relays;
    pub(crate) mod report;
    pub(crate) mod rounds;
    pub(crate) mod rtpengine;
    pub(crate) mod scale;
    pub(crate) mod tap;
    pub(crate) mod topology;
    pub(crate) mod user_path;
}

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kernel::catalogue::Run;
use kernel::course::Programs;
use kernel::report::{self, Outcome};
use kernel::rounds::Plan;
use msm_tests::bench::cpu::pin;
use msm_tests::bench::stats::Shuffle;
use msm_tests::privilege::{Need, missing};
use serde_json::json;

struct Options {
    plan: Plan,
    programs: Programs,
    json: Option<PathBuf>,
    plots: Option<PathBuf>,
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
        },
        programs: Programs {
            relay: PathBuf::from("target/release/examples/bench_relay"),
            proxy: PathBuf::from("target/release/rtp-proxy"),
            object: None,
        },
        json: None,
        plots: None,
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
            "--object" => options.programs.object = Some(std::fs::read(value()?)?),
            "--json" => options.json = Some(value()?.into()),
            "--plots" => options.plots = Some(value()?.into()),
            part if !part.starts_with('-') => options.only.push(part.to_ascii_uppercase()),
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    if let Some(reason) = missing(Need::Kernel) {
        bail!("{reason}");
    }
    pin(0)?;
    let mut run = Run {
        programs: options.programs.clone(),
        plan: options.plan.clone(),
        shuffle: Shuffle::seeded(0x6d73_6d04),
    };
    let mut raw = Vec::new();
    let mut failed = Vec::new();
    println!("{}", preamble(&options));
    for (id, benchmark) in CATALOGUE {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == id) {
            continue;
        }
        let started = Instant::now();
        // One that fails does not take the others with it, but does fail the whole.
        match benchmark(&mut run) {
            Ok(mut outcome) => {
                outcome.doubt();
                println!("{}", outcome.to_markdown(&options.plan));
                for (file, content) in
                    options.plots.iter().flat_map(|f| outcome.plots.iter().map(move |p| (f.join(&p.0), &p.1)))
                {
                    std::fs::write(&file, content).with_context(|| file.display().to_string())?;
                }
                raw.push(outcome.to_json());
            }
            Err(reason) => {
                eprintln!("{id} failed: {reason:#}");
                failed.push(id);
            }
        }
        eprintln!("{id} took {:.0} s", started.elapsed().as_secs_f64());
    }
    if let Some(path) = &options.json {
        let all = json!({"rounds": options.plan.rounds, "seconds": options.plan.each.as_secs_f64(),
                         "strict": options.plan.strict, "kernel": report::kernel(), "benchmarks": raw});
        std::fs::write(path, format!("{all:#}\n")).with_context(|| path.display().to_string())?;
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// A benchmark of the catalogue.
type Benchmark = fn(&mut Run) -> Result<Outcome>;

const CATALOGUE: [(&str, Benchmark); 8] = [
    ("B1", Run::b1),
    ("B2", Run::b2),
    ("B3", Run::b3),
    ("B4", Run::b4),
    ("B5", Run::b5),
    ("B6", Run::b6),
    ("B7", Run::b7),
    ("B8", Run::b8),
];

/// What the figures were measured on.
fn preamble(options: &Options) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    format!(
        "{}, {cores} × {}, {} rounds of {} s, interleaved in random order; medians, 95 % bootstrap intervals. {}\n",
        report::kernel(),
        model.trim_start_matches([' ', '\t', ':']),
        options.plan.rounds,
        options.plan.each.as_secs_f64(),
        if options.plan.strict {
            format!(
                "Runs were repeated while others used more than {:.0} % of a core or the hypervisor took more than {:.0} %.",
                100.0 * options.plan.foreign,
                100.0 * options.plan.steal
            )
        } else {
            "**The machine was not required to be quiet.**".to_owned()
        }
    )
}
