//! Commands of this repository; one verb per file. `cargo xtask --help` lists them.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "talking to the person at the terminal is this program's job")]

mod bench;
mod check;
mod demo;
mod ebpf;
mod fuzz;
mod setup;
mod test;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use msm_tests::privilege::environment;

/// Commands of this repository.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing for building and testing, saying what and why
    Setup(setup::SetupArgs),
    /// Everything CI checks without privilege: format, lints, licences, layers, sizes, docs, tier 0
    Check(check::CheckArgs),
    /// Build the kernel programs; load and verify them
    Ebpf(ebpf::EbpfArgs),
    /// Run the test tiers that privileges and installed programs allow
    Test(test::TestArgs),
    /// Real cameras, the proxy and real viewers on this machine, with live figures
    Demo(demo::DemoArgs),
    /// Measure the packet path against a plain relay
    Bench(bench::BenchArgs),
    /// Fuzz one parser, or all of them
    Fuzz(fuzz::FuzzArgs),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    match start(verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(verb: Verb) -> Result<()> {
    std::env::set_current_dir(root())?;
    match verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Ebpf(args) => ebpf::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
    }
}

/// Root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    environment("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// `cargo` with arguments.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(environment("CARGO").unwrap_or_else(|| "cargo".to_owned()));
    command.args(args);
    command
}

/// Runs a command to its end, with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = describe(command);
    let status = command.status().with_context(|| format!("cannot start: {text}"))?;
    ensure!(status.success(), "failed ({status}): {text}");
    Ok(())
}

/// A command as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
    let args = command.get_args().map(|arg| arg.to_string_lossy());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

/// A headline of a step.
pub(crate) fn say(text: &str) {
    println!("\n== {text}");
}
