//! `cargo xtask bench`: builds the release proxy and the contenders, runs a benchmark, keeps the rounds
//! and puts tables and plots into `docs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

mod gate;
mod profile;

/// What `cargo xtask bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// What to run: `closed`, `copies`, `latency` or `memory` of the user-space path, all of them without it;
    /// `kernel` for the fast path (needs root), followed by numbers of the catalogue such as B1 or B3;
    /// `profile`, likewise, for where its time goes by `perf`; or `report`, which runs nothing and makes tables
    /// and plots of what is recorded
    parts: Vec<String>,
    /// Rounds per case; the committed figures come from 9 or more
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of traffic per contender and round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Another build of the proxy to measure in the same rounds of the user-space path, as "before"
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,
    /// Only this number of viewers of the user-space path
    #[arg(long)]
    viewers: Option<usize>,
    /// Write the tables into docs/benchmarks.md, the plots into docs/plots and the rounds into
    /// tests/benches/results; the fast path then insists on a machine that does nothing else, and keeps what
    /// was recorded before of benchmarks that are not named
    #[arg(long)]
    record: bool,
    /// With --record: any number of rounds on any machine, to see that recording works; nothing to be committed
    #[arg(long)]
    try_out: bool,
    /// Whether the packet path has become slower, in a minute: fails when a ratio of CPU times is below 90 % of its target or
    /// of what was accepted last; with --record it accepts what it finds. Needs root
    #[arg(long)]
    gate: bool,
    /// Largest share of a core that others may use while a run of the fast path counts
    #[arg(long, default_value_t = 0.10)]
    foreign: f64,
}

/// A generated part of a document.
struct Part {
    path: &'static str,
    begin: &'static str,
    end: &'static str,
}

const USER_PATH: Part = Part {
    path: "docs/benchmarks.md",
    begin: "<!-- user path: begin, written by cargo xtask bench --record -->",
    end: "<!-- user path: end -->",
};

const KERNEL_PATH: Part = Part {
    path: "docs/benchmarks.md",
    begin: "<!-- fast path: begin, written by cargo xtask bench kernel --record -->",
    end: "<!-- fast path: end -->",
};

/// Where the raw rounds lie.
const RESULTS: &str = "tests/benches/results";
const KERNEL_RESULTS: &str = "tests/benches/results/kernel";
const USER_ROUNDS: &str = "user-path.json";

/// Runs one of the two benchmarks.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.gate {
        return gate::run(args);
    }
    if args.parts == ["report"] {
        return report();
    }
    if let Some(("profile", numbers)) = args.parts.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return profile::run(args, numbers);
    }
    build(&["--package", "rtp-proxy", "--bin", "rtp-proxy"])?;
    match args.parts.split_first() {
        Some((first, numbers)) if first == "kernel" => fast_path(args, numbers),
        Some((_, [_, ..])) => bail!("one part of the user-space path at a time, or all of them"),
        _ => user_path(args),
    }
}

fn user_path(args: &BenchArgs) -> anyhow::Result<()> {
    build(&["--package", "msm-tests", "--example", "bench_user_path", "--example", "bench_relay"])?;
    let mut command = program(args, "bench_user_path");
    fs::create_dir_all(RESULTS)?;
    let json = if args.record { PathBuf::from(RESULTS) } else { std::env::temp_dir() }.join(USER_ROUNDS);
    command.arg("--json").arg(&json);
    if let Some(part) = args.parts.first() {
        command.args(["--only", part]);
    }
    if let Some(baseline) = &args.baseline {
        command.arg("--baseline").arg(baseline);
    }
    if args.record {
        if args.rounds < 9 {
            bail!("figures are recorded from 9 rounds or more");
        }
        if !args.parts.is_empty() || args.viewers.is_some() {
            bail!("the recorded report is of all parts");
        }
        command.arg("--strict");
    }
    if let Some(viewers) = args.viewers {
        command.args(["--viewers", &viewers.to_string()]);
    }
    finish(args, &mut command, &json, Some(&USER_PATH))?;
    // Its picture is drawn with those of the fast path.
    if args.record { report() } else { Ok(()) }
}

fn fast_path(args: &BenchArgs, numbers: &[String]) -> anyhow::Result<()> {
    build(&["--package", "msm-tests", "--example", "bench_kernel", "--example", "bench_relay"])?;
    let mut command = program(args, "bench_kernel");
    command.args(["--foreign", &args.foreign.to_string()]).args(numbers);
    if !args.record {
        let rounds = std::env::temp_dir().join("fast-path");
        command.arg("--results").arg(&rounds);
        return finish(args, &mut command, &rounds, None);
    }
    if args.rounds < 9 && !args.try_out {
        bail!("figures are recorded from 9 rounds or more");
    }
    command.arg("--results").arg(KERNEL_RESULTS);
    if !args.try_out {
        command.arg("--strict");
    }
    // One benchmark that fails does not cost the others: what there is goes into the report first.
    let done = command.status().context("running the benchmark")?;
    report()?;
    if !done.success() {
        bail!("not everything could be recorded: {done}");
    }
    Ok(())
}

/// Makes tables and plots of what is recorded.
fn report() -> anyhow::Result<()> {
    build(&["--package", "msm-tests", "--example", "bench_kernel"])?;
    let mut command = Command::new(crate::target_dir().join("release/examples/bench_kernel"));
    command.args(["--report", KERNEL_RESULTS, "--plots", "docs/plots"]);
    command.arg("--user").arg(Path::new(RESULTS).join(USER_ROUNDS));
    let output = command.stderr(std::process::Stdio::inherit()).output().context("making the report")?;
    if !output.status.success() {
        bail!("the report could not be made: {}", output.status);
    }
    record(&String::from_utf8_lossy(&output.stdout), &KERNEL_PATH)
}

/// The command of a benchmark.
fn program(args: &BenchArgs, example: &str) -> Command {
    let target = crate::target_dir();
    let mut command = Command::new(target.join("release/examples").join(example));
    command
        .args(["--rounds", &args.rounds.to_string(), "--seconds", &args.seconds.to_string()])
        .arg("--proxy")
        .arg(target.join("release/rtp-proxy"))
        .arg("--relay")
        .arg(target.join("release/examples/bench_relay"));
    command
}

/// Runs it, prints its tables and records them where that is asked for.
fn finish(args: &BenchArgs, command: &mut Command, rounds: &Path, part: Option<&Part>) -> anyhow::Result<()> {
    let output = command.stderr(std::process::Stdio::inherit()).output().context("running the benchmark")?;
    let tables = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{tables}");
    println!("rounds: {}", rounds.display());
    if !output.status.success() {
        bail!("the benchmark failed: {}", output.status);
    }
    match part {
        Some(part) if args.record => record(&tables, part),
        _ => Ok(()),
    }
}

fn build(what: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("cargo").args(["build", "--release", "--locked"]).args(what).status()?;
    if !status.success() {
        bail!("cargo build failed");
    }
    Ok(())
}

/// Replaces a generated part of a document.
fn record(tables: &str, part: &Part) -> anyhow::Result<()> {
    let path = part.path;
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let (Some(begin), Some(end)) = (text.find(part.begin), text.find(part.end)) else {
        bail!("{path} has lost the marks of its generated part: {} and {}", part.begin, part.end);
    };
    let head = &text[..begin + part.begin.len()];
    fs::write(path, format!("{head}\n{}\n{}", tables.trim_end(), &text[end..]))?;
    Ok(())
}
