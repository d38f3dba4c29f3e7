//! The user-space path against a plain relay: CPU per forwarded copy, loss, added latency, memory.
//!
//! One process per contender, all of them alive for the whole run; a round sends the same traffic to
//! each in random order and reads the CPU time of exactly that process (all its threads, from
//! `/proc/<pid>/task/*/schedstat`) before and after. Sinks are UDP sockets behind a drop-all filter: the
//! full IP and UDP receive path, no reader; the kernel's per-socket drop counter says how many copies
//! arrived. Before anything is measured every contender passes a gate: each sink reads each packet of a
//! short run and compares it with what was sent. A contender that loses, alters or reorders is
//! disqualified and its figures are not printed.

#![expect(clippy::print_stdout, reason = "the report is the program's output")]

#[path = "kernel/relays.rs"]
#[expect(dead_code, reason = "the naive relay is the fast path's contender")]
mod relays;

mod user_path {
    pub(crate) use super::relays;

    pub(crate) mod closed;
    pub(crate) mod contender;
    pub(crate) mod generator;
    pub(crate) mod latency;
    pub(crate) mod memory;
    pub(crate) mod report;
}

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use msm_tests::bench::cpu::pin;
use msm_tests::bench::stats::Shuffle;
use user_path::contender::{SEGMENTING, TOKIO, baseline, proxy, relay};
use user_path::generator::Shape;
use user_path::report::{Case, Report, Round};
use user_path::{closed, latency, memory};

/// Numbers of viewers of the catalogue.
const FAN_OUT: [usize; 3] = [1, 4, 16];
/// G.711 of 20 ms with its RTP header; a video packet.
const SIZES: [usize; 2] = [172, 1200];
/// How long a run of the closed loop is against one of the open loop, which sends at a slow rate.
const CLOSED: f64 = 0.5;

struct Options {
    rounds: usize,
    seconds: f64,
    proxy: PathBuf,
    relay: PathBuf,
    json: Option<PathBuf>,
    only: Option<String>,
    /// Another build of the proxy, measured in the same rounds.
    baseline: Option<PathBuf>,
    /// Only this number of viewers.
    viewers: Option<usize>,
    /// Only this contender of the closed loop, for a profile.
    contender: Option<String>,
    /// Runs of the closed loop beside foreign load are repeated.
    strict: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        rounds: 9,
        seconds: 1.0,
        proxy: PathBuf::from("target/release/rtp-proxy"),
        relay: PathBuf::from("target/release/examples/bench_relay"),
        json: None,
        only: None,
        baseline: None,
        viewers: None,
        contender: None,
        strict: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--proxy" => options.proxy = value()?.into(),
            "--relay" => options.relay = value()?.into(),
            "--json" => options.json = Some(value()?.into()),
            "--only" => options.only = Some(value()?),
            "--baseline" => options.baseline = Some(value()?.into()),
            "--viewers" => options.viewers = Some(value()?.parse()?),
            "--contender" => options.contender = Some(value()?),
            "--strict" => options.strict = true,
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let wanted = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    let mut report = Report::new(options.rounds, options.seconds);
    if wanted("closed") {
        let plan = closed::Plan {
            rounds: options.rounds,
            each: Duration::from_secs_f64(options.seconds * CLOSED),
            strict: options.strict,
        };
        let fan_outs = FAN_OUT.into_iter().filter(|n| options.viewers.is_none_or(|only| only == *n));
        let only = options.contender.as_deref();
        report.closed = closed::measure(plan, fan_outs, &SIZES, only, &mut report.disqualified)?;
    }
    if wanted("copies") {
        copies(&options, &mut report)?;
    }
    if wanted("latency") {
        report.latency = Some(latency::measure(&options.proxy, &options.relay, options.rounds)?);
    }
    if wanted("memory") {
        report.memory = Some(memory::measure(&options.proxy)?);
    }
    if let Some(path) = &options.json {
        std::fs::write(path, report.to_json()).with_context(|| format!("writing {}", path.display()))?;
    }
    println!("{}", report.to_markdown());
    if report.disqualified.is_empty() { Ok(()) } else { bail!("disqualified: {:?}", report.disqualified) }
}

/// CPU ns per copy and loss, for every fan-out, size and shape.
fn copies(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    pin(1)?;
    let mut shuffle = Shuffle::seeded(0x6d73_6d00);
    for fan_out in FAN_OUT.into_iter().filter(|n| options.viewers.is_none_or(|only| only == *n)) {
        for size in SIZES {
            // One pair of processes per fan-out and size: a run never inherits another's state.
            let mut contenders = vec![
                proxy(&options.proxy, fan_out)?,
                relay(&options.relay, TOKIO, fan_out)?,
                relay(&options.relay, SEGMENTING, fan_out)?,
            ];
            if let Some(program) = &options.baseline {
                contenders.push(baseline(program, fan_out)?);
            }
            for contender in &mut contenders {
                if let Err(reason) = contender.gate(size) {
                    eprintln!("{}: 1→{fan_out} {size} B: gate failed: {reason:#}", contender.name);
                    report.disqualified.push(format!("{} 1→{fan_out} {size} B: {reason:#}", contender.name));
                }
            }
            for contender in &mut contenders {
                contender.measure_only()?;
            }
            for shape in [Shape::Single, Shape::Burst(32)] {
                let mut case = Case { fan_out, size, shape, rounds: Vec::new() };
                for _ in 0..options.rounds {
                    let mut round = Round::default();
                    for index in shuffle.order(contenders.len()) {
                        let contender = &mut contenders[index];
                        let cost = contender.run(shape, size, Duration::from_secs_f64(options.seconds))?;
                        round.costs.push((contender.name, cost));
                    }
                    case.rounds.push(round);
                }
                eprintln!("{}", case.line());
                report.cases.push(case);
            }
        }
    }
    Ok(())
}
