//! `cargo xtask bench --gate`: has the packet path become slower? Ratios of CPU time alone, for the machine of a CI
//! differs from every other one, and is busy.
//!
//! A ratio fails below 90 % of its target or of the value that was accepted last, and so does one that could not be
//! measured. One bad figure on a busy machine proves nothing: a benchmark that fails is run again, and the best of its
//! medians counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{BenchArgs, RESULTS, build, program};

/// What was accepted last, by name.
const ACCEPTED: &str = "gate.json";
/// Share of target and accepted value below which a ratio fails.
const ENOUGH: f64 = 0.9;
/// Runs of a benchmark before a ratio has failed.
const ATTEMPTS: usize = 3;
const ROUNDS: &str = "9";
const SECONDS: &str = "0.2";

/// One ratio, how many times dearer the other contender is.
#[derive(Debug, Clone, PartialEq)]
struct Ratio {
    name: String,
    /// NaN where it could not be measured.
    median: f64,
    target: Option<f64>,
}

/// What is to be thought of a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It misses its target, by less than what is tolerated.
    BelowTarget,
    Failed,
}

type Accepted = BTreeMap<String, f64>;

/// Runs the gate; `record` accepts what it finds.
pub(super) fn run(args: &BenchArgs) -> Result<()> {
    build(&["--package", "rtp-proxy", "--bin", "rtp-proxy"])?;
    let examples = ["bench_kernel", "bench_user_path", "bench_relay"];
    build(&[&["--package", "msm-tests"], examples.map(|name| ["--example", name]).as_flattened()].concat())?;
    let file = Path::new(RESULTS).join(ACCEPTED);
    let accepted: Accepted = match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| file.display().to_string())?,
        Err(_) => Accepted::new(),
    };
    let mut found = measured(&accepted, || fast_path(args))?;
    found.extend(measured(&accepted, || user_path(args))?);
    print!("{}", table(&found, &accepted));
    if args.record {
        let names = found.iter().filter(|ratio| ratio.median.is_finite());
        let new: Accepted = names.map(|ratio| (ratio.name.clone(), round(ratio.median))).collect();
        fs::write(&file, format!("{:#}\n", json!(new)))?;
        println!("accepted: {}", file.display());
        return Ok(());
    }
    let failed: Vec<&str> = found
        .iter()
        .filter(|ratio| judge(ratio, &accepted) == Verdict::Failed)
        .map(|ratio| ratio.name.as_str())
        .chain(missing(&found, &accepted))
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("slower than accepted, or not measured: {}", failed.join("; "))
    }
}

/// The best medians of as many runs as it takes.
fn measured(accepted: &Accepted, mut run: impl FnMut() -> Result<Vec<Ratio>>) -> Result<Vec<Ratio>> {
    let mut best = run()?;
    for _ in 1..ATTEMPTS {
        if best.iter().all(|ratio| judge(ratio, accepted) != Verdict::Failed) {
            break;
        }
        eprintln!("once more: {}", table(&best, accepted));
        better(&mut best, run()?);
    }
    Ok(best)
}

fn better(best: &mut Vec<Ratio>, again: Vec<Ratio>) {
    for ratio in again {
        match best.iter_mut().find(|known| known.name == ratio.name) {
            Some(known) => known.median = known.median.max(ratio.median),
            None => best.push(ratio),
        }
    }
}

/// What was accepted once and is not there any more.
fn missing<'a>(found: &'a [Ratio], accepted: &'a Accepted) -> impl Iterator<Item = &'a str> {
    accepted.keys().filter(|name| found.iter().all(|ratio| ratio.name != **name)).map(String::as_str)
}

fn judge(ratio: &Ratio, accepted: &Accepted) -> Verdict {
    let accepted = accepted.get(&ratio.name).copied();
    let least = ENOUGH * ratio.target.unwrap_or(0.0).max(accepted.unwrap_or(0.0));
    if ratio.median.is_nan() || ratio.median < least {
        Verdict::Failed
    } else if ratio.target.is_some_and(|target| ratio.median < target) {
        Verdict::BelowTarget
    } else {
        Verdict::Good
    }
}

fn table(found: &[Ratio], accepted: &Accepted) -> String {
    let mut text = String::from("| ratio | median | target | accepted | |\n|---|---|---|---|---|\n");
    let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    for ratio in found {
        let said = match judge(ratio, accepted) {
            Verdict::Good => "good",
            Verdict::BelowTarget => "below target",
            Verdict::Failed if ratio.median.is_nan() => "**not measured**",
            Verdict::Failed => "**slower**",
        };
        let (target, before) = (number(ratio.target), number(accepted.get(&ratio.name).copied()));
        let _ = writeln!(text, "| {} | {:.2} | {target} | {before} | {said} |", ratio.name, ratio.median);
    }
    for name in missing(found, accepted) {
        let _ = writeln!(text, "| {name} | | | {} | **not measured** |", number(accepted.get(name).copied()));
    }
    text
}

fn fast_path(args: &BenchArgs) -> Result<Vec<Ratio>> {
    let folder = std::env::temp_dir().join("msm-gate");
    let document = outcome(
        program(args, "bench_kernel").arg("gate").arg("--results").arg(&folder),
        &folder.join("gate.json"),
    )?;
    Ok(of_fast_path(&document))
}

/// The figures that `bench_kernel` computed.
fn of_fast_path(document: &Value) -> Vec<Ratio> {
    let found = document["found"].as_array().into_iter().flatten();
    let ratio = |found: &Value| Ratio {
        name: found["what"].as_str().unwrap_or_default().to_owned(),
        median: median(found["values"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()),
        target: found["target"]["AtLeast"].as_f64(),
    };
    found.map(ratio).collect()
}

fn user_path(args: &BenchArgs) -> Result<Vec<Ratio>> {
    let file = std::env::temp_dir().join("msm-gate-user-path.json");
    let mut command = program(args, "bench_user_path");
    let document =
        outcome(command.args(["--only", "closed", "--viewers", "16", "--json"]).arg(&file), &file)?;
    Ok(of_user_path(&document))
}

/// The tokio relay by our worker, each traffic of the closed loop, sources included.
fn of_user_path(document: &Value) -> Vec<Ratio> {
    let cases = document["closed"].as_array().into_iter().flatten();
    let ratio = |case: &Value| {
        let cost = |round: &Value, name: &str| {
            let mut runs = round.as_array().into_iter().flatten();
            let run = runs.find(|run| run["contender"] == name)?;
            Some(run["cpu_ns"].as_f64()? / run["copies"].as_f64().filter(|copies| *copies > 0.0)?)
        };
        let rounds = case["rounds"].as_array().into_iter().flatten();
        let values = rounds.filter_map(|round| Some(cost(round, "tokio relay")? / cost(round, "rtp-proxy")?));
        let shape = case["shape"].as_str().unwrap_or_default();
        Ratio {
            name: format!(
                "user path: {} B, {shape}, 1→{}: tokio relay ÷ rtp-proxy",
                case["bytes"], case["viewers"]
            ),
            median: median(values.collect()),
            target: Some(if shape.starts_with("bursts") { 3.0 } else { 1.0 }),
        }
    };
    cases.map(ratio).collect()
}

/// What a benchmark writes into a file, short as it is to be.
fn outcome(command: &mut Command, file: &Path) -> Result<Value> {
    // What an earlier run left there is no figure of this one.
    fs::remove_file(file).ok();
    let status = command.args(["--rounds", ROUNDS, "--seconds", SECONDS]).stdout(Stdio::null()).status()?;
    let text =
        fs::read(file).with_context(|| format!("the benchmark ended with {status} and left no figures"))?;
    Ok(serde_json::from_slice(&text)?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match (values.get(upper), values.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => f64::midpoint(values[upper - 1], *value),
        (None, _) => f64::NAN,
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(name: &str, median: f64, target: Option<f64>) -> Ratio {
        Ratio { name: name.to_owned(), median, target }
    }

    #[test]
    fn a_ratio_fails_below_ninety_percent_of_target_or_accepted_value() {
        let accepted = Accepted::from([("b".to_owned(), 4.0)]);
        for (ratio, verdict) in [
            (ratio("a", 3.0, Some(3.0)), Verdict::Good),
            (ratio("a", 2.71, Some(3.0)), Verdict::BelowTarget),
            (ratio("a", 2.69, Some(3.0)), Verdict::Failed),
            (ratio("b", 3.61, Some(3.0)), Verdict::Good),
            (ratio("b", 3.59, Some(3.0)), Verdict::Failed),
            (ratio("c", 0.1, None), Verdict::Good),
            (ratio("c", f64::NAN, None), Verdict::Failed),
        ] {
            assert_eq!(judge(&ratio, &accepted), verdict, "{ratio:?}");
        }
    }

    #[test]
    fn what_was_accepted_and_is_not_there_any_more_is_missed() {
        let accepted = Accepted::from([("a".to_owned(), 4.0), ("b".to_owned(), 4.0)]);
        let found = [ratio("a", 4.0, None)];
        assert_eq!(missing(&found, &accepted).collect::<Vec<_>>(), ["b"]);
        assert!(table(&found, &accepted).contains("| b | | | 4.00 | **not measured** |"));
    }

    #[test]
    fn one_bad_run_of_a_busy_machine_is_run_again() {
        let mut runs = [2.0, 1.0, 3.5, 9.0].into_iter();
        let found = measured(&Accepted::new(), || Ok(vec![ratio("a", runs.next().unwrap(), Some(3.0))]));
        assert_eq!(found.unwrap(), [ratio("a", 3.5, Some(3.0))]);
        assert_eq!(runs.next(), Some(9.0), "and not once it is good");
        let found = measured(&Accepted::new(), || Ok(vec![ratio("a", 2.0, Some(3.0))])).unwrap();
        assert_eq!(judge(&found[0], &Accepted::new()), Verdict::Failed);
    }

    #[test]
    fn ratios_are_read_from_what_the_benchmarks_write() {
        let kernel = json!({"found": [
            {"what": "x", "unit": "times", "values": [3.0, 5.0, 4.0], "target": {"AtLeast": 3.0}},
            {"what": "y", "unit": "times", "values": [], "target": "Nothing"}]});
        let found = of_fast_path(&kernel);
        assert_eq!(found[0], ratio("x", 4.0, Some(3.0)));
        assert!(found[1].median.is_nan() && found[1].target.is_none());
        let run = |name: &str, ns: u64| json!({"contender": name, "copies": 10, "cpu_ns": ns});
        let user = json!({"closed": [{"bytes": 172, "viewers": 16, "shape": "bursts of 32", "rounds": [
            [run("tokio relay", 80), run("rtp-proxy", 20)], [run("rtp-proxy", 20), run("tokio relay", 40)]]}]});
        let name = "user path: 172 B, bursts of 32, 1→16: tokio relay ÷ rtp-proxy";
        assert_eq!(of_user_path(&user), [ratio(name, 3.0, Some(3.0))]);
    }
}
