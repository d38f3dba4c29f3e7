//! `cargo xtask fuzz`: builds a fuzz target with coverage instrumentation and runs it.
//!
//! The flags are those of cargo-fuzz, set directly, so that a stable toolchain is enough
//! (`RUSTC_BOOTSTRAP=1`) and nothing has to be installed. New inputs are collected below `tests/fuzz/target`;
//! `--keep` copies those that add coverage into the committed corpus.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{cargo, describe, root, run as run_command, say};

/// Longest input that is kept, in bytes: the corpus is read by people and replayed by every build.
const MAX_KEPT_LEN: &str = "4096";

/// Where results are recorded.
const RECORD: &str = "docs/fuzzing.md";

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Target to run, `all` for each in turn; without one the targets are listed
    target: Option<String>,
    /// How long to run each target: 90s, 10m, 1h
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = parse_time)]
    time: Duration,
    /// Copy what adds coverage into the committed corpus
    #[arg(long)]
    keep: bool,
    /// Append the result to docs/fuzzing.md
    #[arg(long)]
    record: bool,
    /// Build with AddressSanitizer as well: for the unsafe code of dependencies
    #[arg(long)]
    asan: bool,
}

/// What libFuzzer said of a run.
#[derive(Debug, Default)]
struct Outcome {
    executions: u64,
    coverage: u64,
    features: u64,
    corpus: u64,
    crashed: bool,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let targets = targets()?;
    let Some(wanted) = &args.target else {
        for target in targets {
            println!("{target}");
        }
        return Ok(());
    };
    let chosen: Vec<_> = targets.iter().filter(|t| wanted == "all" || *t == wanted).collect();
    ensure!(!chosen.is_empty(), "no fuzz target {wanted}; there are: {}", targets.join(" "));
    let triple = host_triple()?;
    let mut crashed = Vec::new();
    for target in chosen {
        say(&format!("fuzz {target} for {} s", args.time.as_secs()));
        let binary = build(target, &triple, args.asan)?;
        let outcome = fuzz(target, &binary, args.time)?;
        println!("{outcome:?}");
        if args.keep {
            keep(target, &binary)?;
        }
        if args.record {
            record(target, args, &outcome)?;
        }
        if outcome.crashed {
            crashed.push(target.as_str());
        }
    }
    ensure!(crashed.is_empty(), "crashed: {}; the inputs are in tests/fuzz/artifacts", crashed.join(" "));
    Ok(())
}

fn fuzz_dir() -> PathBuf {
    root().join("tests/fuzz")
}

/// Names of the targets: their files.
fn targets() -> Result<Vec<String>> {
    let dir = fuzz_dir().join("targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let triple = text.lines().find_map(|line| line.strip_prefix("host: "));
    triple.map(str::to_owned).context("rustc -vV names no host")
}

/// Builds one target. `--target` keeps the instrumentation out of build scripts and macros.
fn build(target: &str, triple: &str, asan: bool) -> Result<PathBuf> {
    let mut flags = vec![
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Cllvm-args=-sanitizer-coverage-stack-depth",
        "-Ccodegen-units=1",
        "--cfg=fuzzing",
    ];
    if asan {
        flags.push("-Zsanitizer=address");
    }
    let target_dir = fuzz_dir().join(if asan { "target/asan" } else { "target" });
    let mut command = cargo(&["build", "--release", "--locked", "--bin", target, "--target", triple]);
    command
        .arg("--manifest-path")
        .arg(fuzz_dir().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    run_command(&mut command)?;
    Ok(target_dir.join(triple).join("release").join(target))
}

/// Directory of inputs found by runs on this machine.
fn found_dir(target: &str) -> PathBuf {
    fuzz_dir().join("target/corpus").join(target)
}

fn fuzz(target: &str, binary: &Path, time: Duration) -> Result<Outcome> {
    let (found, artifacts) = (found_dir(target), fuzz_dir().join("artifacts").join(target));
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&artifacts)?;
    let mut command = Command::new(binary);
    command
        .arg(format!("-max_total_time={}", time.as_secs()))
        .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=256"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        // The first directory receives what is found, the second is only read.
        .arg(&found)
        .arg(fuzz_dir().join("corpus").join(target))
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start: {}", describe(&command)))?;
    let stderr = child.stderr.take().context("stderr is piped")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        read_line(&line, &mut outcome);
        // The panic and the trace of a crash, and a sign of life now and then.
        if !line.starts_with('#') || line.contains("pulse") {
            eprintln!("{line}");
        }
    }
    outcome.crashed = !child.wait()?.success();
    Ok(outcome)
}

/// `#123 NEW cov: 1 ft: 2 corp: 3/4b …` and `stat::number_of_executed_units: 5`.
fn read_line(line: &str, outcome: &mut Outcome) {
    let number = |text: &str| -> Option<u64> {
        let digits = text.trim_start();
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits.get(..end)?.parse().ok()
    };
    let after = |name: &str| line.split_once(name).and_then(|(_, rest)| number(rest));
    if line.starts_with('#') {
        outcome.coverage = after("cov:").unwrap_or(outcome.coverage);
        outcome.features = after("ft:").unwrap_or(outcome.features);
        outcome.corpus = after("corp:").unwrap_or(outcome.corpus);
    }
    outcome.executions = after("stat::number_of_executed_units:").unwrap_or(outcome.executions);
}

/// Merges what was found into the committed corpus: only inputs that add coverage are copied.
fn keep(target: &str, binary: &Path) -> Result<()> {
    let mut command = Command::new(binary);
    command
        .args(["-merge=1", &format!("-max_len={MAX_KEPT_LEN}")])
        .arg(fuzz_dir().join("corpus").join(target))
        .arg(found_dir(target))
        .stderr(Stdio::null());
    run_command(&mut command)
}

/// Appends a row to the table of results.
fn record(target: &str, args: &FuzzArgs, outcome: &Outcome) -> Result<()> {
    let path = root().join(RECORD);
    let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read {RECORD}"))?;
    let (date, seconds) = (date()?, args.time.as_secs());
    let result = if outcome.crashed { "crash" } else { "clean" };
    let sanitizer = if args.asan { " (ASan)" } else { "" };
    let row = format!(
        "| {date} | `{target}`{sanitizer} | {seconds} s | {} | {} | {} | {} | {result} |\n",
        outcome.executions, outcome.coverage, outcome.features, outcome.corpus
    );
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&row);
    fs::write(&path, text).with_context(|| format!("cannot write {RECORD}"))
}

/// Today in UTC, `2026-01-31` (the civil calendar from days, as in Howard Hinnant's `chrono`).
fn date() -> Result<String> {
    let days = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    Ok(format!("{year}-{month:02}-{day:02}"))
}

/// `90s`, `10m`, `1h`, or a number of seconds.
fn parse_time(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..) {
        Some("" | "s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => bail!("write 90s, 10m or 1h"),
    };
    let number: u64 = digits.parse().context("write 90s, 10m or 1h")?;
    ensure!((1..=86400).contains(&number), "between 1 second and a day");
    Ok(Duration::from_secs(number * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_time("10m").unwrap(), Duration::from_mins(10));
        assert_eq!(parse_time("7").unwrap(), Duration::from_secs(7));
        assert!(parse_time("0m").is_err() && parse_time("5d").is_err() && parse_time("m").is_err());
    }

    #[test]
    fn lines_of_libfuzzer_are_read() {
        let mut outcome = Outcome::default();
        read_line(
            "#2048\tpulse  cov: 612 ft: 1503 corp: 91/9213b lim: 21 exec/s: 1024 rss: 40Mb",
            &mut outcome,
        );
        read_line("stat::number_of_executed_units: 81000", &mut outcome);
        read_line("#4096\tDONE   cov: 613 ft: 1504 corp: 92/9214b lim: 21", &mut outcome);
        let Outcome { executions, coverage, features, corpus, crashed } = outcome;
        assert_eq!((executions, coverage, features, corpus, crashed), (81000, 613, 1504, 92, false));
    }
}
