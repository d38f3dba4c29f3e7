//! `cargo xtask check`: what CI runs without privilege.

mod docs;
mod layers;
mod lints;
mod size;
mod units;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use msm_tests::privilege::is_ci;

use crate::{cargo, run as run_command, say, setup};

/// What `cargo xtask check` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Leave out what builds: format, sizes, lints, layers and docs only
    #[arg(long)]
    quick: bool,
}

/// Returns its problems.
type HouseCheck = fn() -> Result<Vec<String>>;

/// Runs the command.
pub(crate) fn run(args: &CheckArgs) -> Result<()> {
    let mut problems = Vec::new();
    say("format");
    let mut format = cargo(&["fmt", "--all", "--check"]);
    if run_command(&mut format).is_err() {
        problems.push("the format is not rustfmt's: run cargo fmt --all".to_owned());
    }
    let house: [(&str, HouseCheck); 5] = [
        ("size of files", size::check),
        ("lint inheritance", lints::check),
        ("dependency direction", layers::check),
        ("documents name what exists", docs::check),
        ("units of systemd", units::check),
    ];
    for (name, check) in house {
        say(name);
        let found = check()?;
        for problem in &found {
            println!("  {problem}");
        }
        problems.extend(found);
    }
    if !args.quick {
        say("licences, sources, bans, duplicates");
        if setup::answers("cargo-deny") {
            // The advisory database is fetched from a server that is not always reachable.
            println!(
                "skipped: advisories, whose database needs a download; run: cargo deny check advisories"
            );
            collect(&mut problems, &mut cargo(&["deny", "check", "bans", "licenses", "sources"]));
        } else if is_ci() {
            problems.push("cargo-deny is not installed: run cargo xtask setup".to_owned());
        } else {
            println!("skipped: cargo-deny is not installed: run cargo xtask setup");
        }
        say("lints");
        let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        collect(&mut problems, &mut cargo(&clippy));
        say("each crate alone");
        for name in layers::members()? {
            collect(&mut problems, &mut cargo(&["check", "--quiet", "--locked", "-p", &name]));
        }
    }
    say("result");
    for problem in &problems {
        println!("  {problem}");
    }
    ensure!(problems.is_empty(), "{} problems", problems.len());
    println!("no problem found");
    Ok(())
}

fn collect(problems: &mut Vec<String>, command: &mut Command) {
    println!("$ {}", crate::describe(command));
    if let Err(error) = run_command(command) {
        problems.push(format!("{error:#}"));
    }
}

/// Files of the repository, tracked or about to be, whose names end so.
fn files(endings: &[&str]) -> Result<Vec<PathBuf>> {
    let listed = msm_tests::process::output("git", &["ls-files", "-co", "--exclude-standard"])?;
    let mut files: Vec<PathBuf> = listed
        .lines()
        .filter(|path| endings.iter().any(|ending| path.ends_with(ending)))
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}
