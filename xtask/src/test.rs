//! `cargo xtask test`: every tier that privileges and installed programs allow; says what it skipped and why.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::ground::Rung;
use msm_tests::privilege::{self, ENV_PROXY, ENV_SKIPS, Need};

use crate::{cargo, describe, run as run_command, say, setup, target_dir};

mod endurance;
mod rungs;

/// What `cargo xtask test` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// A tier (0 to 3) or a directory of tests/, or `rungs`: the cases that must pass on every rung, on each of
    /// them, or `endurance`: joins and leaves without end; every tier without it
    which: Option<String>,
    /// Only the cases that must pass on every rung, on this one: user, tc or tcx
    #[arg(long)]
    rung: Option<String>,
    /// With `rungs` or `--rung`: write what was run into docs/results/rungs.md; with `endurance` into
    /// docs/results/endurance.md
    #[arg(long)]
    record: bool,
    /// Whole matrices instead of the selections for CI; interop writes docs/interop.md
    #[arg(long)]
    all: bool,
    /// With `endurance`: build the proxy with a sanitizer, address or thread
    #[arg(long)]
    sanitizer: Option<String>,
    /// With `endurance`: how many joins
    #[arg(long)]
    joins: Option<u64>,
    /// Install nothing
    #[arg(long)]
    no_setup: bool,
    /// Only tests whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// A directory of tests.
#[derive(Debug, Clone, Copy)]
struct Suite {
    tier: u8,
    name: &'static str,
    /// Starts the proxy, so it is built first, as it is released.
    proxy: bool,
}

/// Tiers of tests/ by directory; tier 0 has the tests beside the code besides.
const SUITES: [Suite; 8] = [
    Suite { tier: 0, name: "corpora", proxy: false },
    Suite { tier: 0, name: "conformance", proxy: true },
    Suite { tier: 0, name: "sim", proxy: false },
    Suite { tier: 1, name: "topology", proxy: true },
    Suite { tier: 1, name: "hostile", proxy: true },
    Suite { tier: 1, name: "cni", proxy: true },
    Suite { tier: 2, name: "verdict", proxy: false },
    Suite { tier: 3, name: "interop", proxy: true },
];

#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    lines: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    if !args.no_setup {
        setup::install(&[setup::DEMO, setup::TESTS].concat(), false)?;
    }
    let mut tally = Tally::default();
    if args.rung.is_some() || args.which.as_deref() == Some("rungs") {
        let named = args.rung.as_deref().map(|name| Rung::named(name).context("--rung is user, tc or tcx"));
        let rungs = named.transpose()?.map_or(Rung::ALL.to_vec(), |rung| vec![rung]);
        build_proxy()?;
        rungs::run(&mut tally, args, &rungs)?;
        return conclude(&tally);
    }
    if args.which.as_deref() == Some("endurance") {
        endurance::run(&mut tally, args)?;
        return conclude(&tally);
    }
    let wanted = |tier: u8, name: &str| match args.which.as_deref() {
        None => true,
        Some(which) => which == tier.to_string() || which == name,
    };
    if wanted(0, "unit") {
        let mut command = cargo(&["test", "--workspace", "--exclude", "msm-tests", "--locked"]);
        observe(&mut tally, "tier 0, beside the code", &mut command)?;
        observe(
            &mut tally,
            "tier 0, harness",
            &mut cargo(&["test", "-p", "msm-tests", "--lib", "--locked"]),
        )?;
    }
    let manifest = std::fs::read_to_string("tests/Cargo.toml")?;
    let suites: Vec<Suite> = SUITES
        .into_iter()
        .filter(|suite| {
            manifest.contains(&format!("[[test]]\nname = \"{}\"", suite.name))
                && wanted(suite.tier, suite.name)
        })
        .collect();
    ensure!(!suites.is_empty() || wanted(0, "unit"), "no such tier or directory");
    if suites.iter().any(|suite| suite.proxy) {
        build_proxy()?;
    }
    for suite in suites {
        run_suite(&mut tally, suite, args)?;
        if matches!(suite.name, "conformance" | "topology" | "interop") && !args.all {
            rungs::selection(&mut tally, args, suite.name)?;
        }
    }
    conclude(&tally)
}

fn build_proxy() -> Result<()> {
    say("building the proxy as it is released, and the viewers of this repository");
    run_command(&mut cargo(&["build", "--release", "--locked", "-p", "rtp-proxy"]))?;
    run_command(&mut cargo(&["build", "--locked", "-p", "msm-tests", "--examples"]))
}

fn conclude(tally: &Tally) -> Result<()> {
    say("summary");
    for line in &tally.lines {
        println!("{line}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

fn run_suite(tally: &mut Tally, suite: Suite, args: &TestArgs) -> Result<()> {
    let headline = format!("tier {}, {}", suite.tier, suite.name);
    let program = program_of(suite)?;
    let mut command = match suite.tier {
        // Root of a user namespace is enough for namespaces and veth pairs.
        1 if !nix::unistd::geteuid().is_root() => {
            let mut command = Command::new("unshare");
            command.arg("-Urnm").arg(&program);
            command
        }
        2 if privilege::missing(Need::Kernel).is_some() => {
            let reason = privilege::missing(Need::Kernel).unwrap_or_default();
            tally.lines.push(format!("{headline}: skipped: {reason}"));
            return Ok(());
        }
        _ => Command::new(&program),
    };
    if suite.name == "interop" {
        if args.all {
            command.args(["--all", "--report", "docs/interop.md"]);
        }
        if let Some(only) = &args.only {
            command.args(["--only", only]);
        }
    } else {
        // Each test has its own namespaces and processes; more than two at once only compete for cores.
        command.args(["--test-threads", "2"]);
        command.args(args.only.as_deref());
        if args.all {
            command.arg("--include-ignored");
        }
    }
    observe(tally, &headline, under_test(&mut command)).map(drop)
}

/// Builds a directory's test program and returns its path.
fn program_of(suite: Suite) -> Result<String> {
    let mut build = cargo(&["test", "--locked", "-p", "msm-tests", "--test", suite.name, "--no-run"]);
    build.args(["--message-format", "json-render-diagnostics"]);
    executable(&mut build, suite.name)
}

/// Names the proxy that is tested.
fn under_test(command: &mut Command) -> &mut Command {
    let proxy = target_dir().join("release/rtp-proxy");
    command.env(ENV_PROXY, std::fs::canonicalize(&proxy).unwrap_or(proxy))
}

/// Builds a test program and returns its path.
fn executable(build: &mut Command, name: &str) -> Result<String> {
    let output = build.stderr(Stdio::inherit()).output().with_context(|| describe(build))?;
    ensure!(output.status.success(), "{name} does not build");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
        .with_context(|| format!("cargo named no executable of {name}"))
}

/// Runs a test command with its output on the terminal and counts what it reports.
fn observe(tally: &mut Tally, headline: &str, command: &mut Command) -> Result<Observed> {
    say(headline);
    println!("$ {}", describe(command));
    let skips = std::env::temp_dir().join(format!("msm-skips-{}", std::process::id()));
    std::fs::remove_file(&skips).ok();
    command.env(ENV_SKIPS, &skips);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| describe(command))?;
    let (mut passed, mut failed) = (0, 0);
    let mut observed = Observed::default();
    let Some(stdout) = child.stdout.take() else { bail!("no output of {headline}") };
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if let Some((ok, bad)) = counts(&line) {
            passed += ok;
            failed += bad;
        }
        observed.failed.extend(failure(&line));
    }
    let status = child.wait()?;
    if !status.success() && failed == 0 {
        // It did not build, or it died.
        failed = 1;
    }
    let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
    std::fs::remove_file(&skips).ok();
    let number = skipped.lines().count() as u64;
    passed -= number.min(passed);
    tally.passed += passed;
    tally.failed += failed;
    tally.lines.push(format!("{headline}: {passed} passed, {failed} failed, {number} skipped"));
    tally.lines.extend(skipped.lines().map(|line| format!("    skipped {line}")));
    observed.skipped = number > 0;
    Ok(observed)
}

/// What became of the tests of one program.
#[derive(Debug, Default)]
struct Observed {
    /// Names of those that failed.
    failed: Vec<String>,
    /// Some were skipped.
    skipped: bool,
}

/// `test name ... FAILED` and `FAILED  cell: reason`.
fn failure(line: &str) -> Option<String> {
    let test = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
    let cell = || line.strip_prefix("FAILED  ")?.split_once(": ").map(|(cell, _)| cell);
    test.or_else(cell).map(str::to_owned)
}

/// `test result: ok. 3 passed; 0 failed; ...` and `interop: 3 passed, 0 failed, ...`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ").or_else(|| line.strip_prefix("interop: "))?;
    let words: Vec<&str> = rest.split([' ', ',', ';', '.']).filter(|word| !word.is_empty()).collect();
    let before = |word: &str| {
        let at = words.iter().position(|other| *other == word)?;
        words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
    };
    Some((before("passed")?, before("failed")?))
}

#[cfg(test)]
mod tests {
    use super::{counts, failure};

    #[test]
    fn results_of_both_kinds_are_counted() {
        assert_eq!(counts("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured"), Some((3, 1)));
        assert_eq!(counts("interop: 20 passed, 2 failed, 22 cells in 61 s"), Some((20, 2)));
        assert_eq!(counts("test rtp::tests::x ... ok"), None);
    }

    #[test]
    fn failures_of_both_kinds_are_named() {
        assert_eq!(failure("test joining::x ... FAILED").as_deref(), Some("joining::x"));
        assert_eq!(
            failure("FAILED  a by udp -> b by tcp: no: frames").as_deref(),
            Some("a by udp -> b by tcp")
        );
        assert_eq!(failure("test joining::x ... ok"), None);
    }
}
