//! `cargo xtask bench`: builds the release proxy and the contenders, runs the benchmark, keeps the rounds
//! and puts the tables into `docs/benchmarks.md`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

/// What `cargo xtask bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Which part to run: copies, latency, memory; all of them without it
    part: Option<String>,
    /// Rounds per case; the committed figures come from 9 or more
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of traffic per contender and round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Write the tables into docs/benchmarks.md and the rounds into tests/benches/results
    #[arg(long)]
    record: bool,
}

const BEGIN: &str = "<!-- user path: begin, written by cargo xtask bench --record -->";
const END: &str = "<!-- user path: end -->";

/// Runs the benchmark of the user-space path.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    build(&["--package", "rtp-proxy", "--bin", "rtp-proxy"])?;
    build(&["--package", "msm-tests", "--example", "bench_user_path", "--example", "bench_relay"])?;
    let results = Path::new("tests/benches/results");
    fs::create_dir_all(results)?;
    let json = if args.record {
        results.join("user-path.json")
    } else {
        std::env::temp_dir().join("user-path.json")
    };
    let target = crate::target_dir();
    let mut command = Command::new(target.join("release/examples/bench_user_path"));
    command
        .args(["--rounds", &args.rounds.to_string(), "--seconds", &args.seconds.to_string()])
        .arg("--proxy")
        .arg(target.join("release/rtp-proxy"))
        .arg("--relay")
        .arg(target.join("release/examples/bench_relay"))
        .arg("--json")
        .arg(&json);
    if let Some(part) = &args.part {
        command.args(["--only", part]);
    }
    let output = command.stderr(std::process::Stdio::inherit()).output().context("running the benchmark")?;
    let tables = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{tables}");
    println!("rounds: {}", json.display());
    if args.record {
        record(&tables)?;
    }
    if !output.status.success() {
        bail!("the benchmark failed: {}", output.status);
    }
    Ok(())
}

fn build(what: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("cargo").args(["build", "--release", "--locked"]).args(what).status()?;
    if !status.success() {
        bail!("cargo build failed");
    }
    Ok(())
}

/// Replaces the generated part of `docs/benchmarks.md`.
fn record(tables: &str) -> anyhow::Result<()> {
    let path = "docs/benchmarks.md";
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else {
        bail!("{path} has lost the marks of its generated part: {BEGIN} and {END}");
    };
    let head = &text[..begin + BEGIN.len()];
    fs::write(path, format!("{head}\n{}\n{}", tables.trim_end(), &text[end..]))?;
    Ok(())
}
