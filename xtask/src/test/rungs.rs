//! `cargo xtask test --rung`: the cases that must pass on every rung, each judged by counters, and their table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use msm_tests::ground::{CASES, Carried, ENV_REPORT, ENV_RUNG, Line, Reported, Rung};
use msm_tests::privilege::{self, Need};
use msm_tests::process::output;
use serde::{Deserialize, Serialize};

use super::{SUITES, Tally, TestArgs, observe, program_of, under_test};
use crate::say;

/// Where the full run is recorded.
const RESULTS: &str = "docs/results/rungs.md";
/// Directories with cases.
const DIRECTORIES: [&str; 3] = ["conformance", "topology", "interop"];

/// Cases that every run shows on clsact too: joins, a splice, what comes back up, and a mixed group.
const ON_TC: [&str; 5] = [
    "transports::udp_media_comes_from_the_address_named_and_rtcp_goes_back_to_it",
    "joining::the_first_packet_of_every_join_is_the_one_in_rtp_info",
    "splice::a_rebooted_camera_continues_every_leg_at_the_next_sequence_number",
    "reports::a_camera_with_many_viewers_gets_one_stream_of_receiver_reports",
    "families::an_ipv6_viewer_plays_an_ipv4_camera_and_an_ipv4_viewer_an_ipv6_camera",
];

/// What the table is made of: a run of one directory on one rung replaces its own part.
const ROUNDS: &str = "tests/results/rungs.jsonl";

/// What one test showed on one rung.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Shown {
    suite: String,
    test: String,
    rung: String,
    /// When its part was run.
    at: String,
    /// None: it failed, or said nothing of what carried it.
    lines: Option<Vec<Line>>,
}

/// Runs cases on rungs: those of one directory or all, on one rung or all.
pub(super) fn run(tally: &mut Tally, args: &TestArgs, rungs: &[Rung]) -> Result<()> {
    let names: Vec<&str> = DIRECTORIES
        .into_iter()
        .filter(|name| args.which.as_deref().is_none_or(|which| which == *name || which == "rungs"))
        .collect();
    ensure!(!names.is_empty(), "--rung is for {}", DIRECTORIES.join(", "));
    ensure!(!args.record || args.only.is_none(), "a part of a directory's cases is not recorded");
    for name in names {
        for rung in rungs {
            let shown = one(tally, args, name, *rung, &[])?;
            if args.record && !shown.is_empty() {
                record(name, *rung, shown)?;
            }
        }
    }
    Ok(())
}

/// Puts a run in the place of the former one of its directory and rung, and writes the table.
fn record(name: &str, rung: Rung, shown: Vec<Shown>) -> Result<()> {
    let text = std::fs::read_to_string(ROUNDS).unwrap_or_default();
    let mut all: Vec<Shown> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    all.retain(|former| former.suite != name || former.rung != rung.name());
    all.extend(shown);
    let mut text = String::new();
    for one in &all {
        writeln!(text, "{}", serde_json::to_string(one)?)?;
    }
    std::fs::write(ROUNDS, text).context(ROUNDS)?;
    std::fs::write(RESULTS, table(&all)?).context(RESULTS)?;
    say(&format!("wrote {RESULTS}"));
    Ok(())
}

/// The cases of one directory that are run with all the other tests: all on the best rung, a few on the next.
pub(super) fn selection(tally: &mut Tally, args: &TestArgs, name: &str) -> Result<()> {
    one(tally, args, name, Rung::Tcx, &[])?;
    if name != "interop" {
        one(tally, args, name, Rung::Tc, &ON_TC)?;
    }
    Ok(())
}

/// `among`: the tests to run, all if there is none.
fn one(tally: &mut Tally, args: &TestArgs, name: &str, rung: Rung, among: &[&str]) -> Result<Vec<Shown>> {
    let suite = SUITES.into_iter().find(|suite| suite.name == name).context("no such directory")?;
    let headline = format!("rung {}, {name}", rung.name());
    let chosen = |test: &str| {
        args.only.as_deref().is_none_or(|only| test.contains(only))
            && (among.is_empty() || among.contains(&test))
    };
    let tests: Vec<&str> =
        CASES.iter().filter(|case| case.suite == name && chosen(case.test)).map(|case| case.test).collect();
    let mut shown = Vec::new();
    if tests.is_empty() && name != "interop" {
        return Ok(shown);
    }
    if let Some(reason) = privilege::missing(Need::Kernel).filter(|_| rung.is_kernel()) {
        tally.failed += u64::from(privilege::is_ci());
        tally.lines.push(format!("{headline}: skipped: {reason}"));
        return Ok(shown);
    }
    let mut command = Command::new(program_of(suite)?);
    if name == "interop" {
        command.args(args.only.iter().flat_map(|only| ["--only", only]));
    } else {
        command.args(["--exact", "--test-threads", "2"]).args(&tests);
    }
    let report = Report::new();
    under_test(&mut command).env(ENV_RUNG, rung.name()).env(ENV_REPORT, &report.0);
    let run = observe(tally, &headline, &mut command)?;
    let mut lines = report.read()?;
    let at = output("date", &["-u", "+%Y-%m-%d %H:%M"])?.trim().to_owned();
    let mut show = |test: &str, lines: Option<Vec<Line>>| {
        let (suite, rung) = (name.to_owned(), rung.name().to_owned());
        shown.push(Shown { suite, test: test.to_owned(), rung, at: at.clone(), lines });
    };
    for test in tests {
        let is_wrong = run.failed.iter().any(|failed| failed == test);
        let found = lines.remove(test).map(|(_, found)| found).filter(|_| !is_wrong);
        if found.is_none() && !is_wrong && !run.skipped {
            // A test that forgets to judge must not count as passed.
            tally.failed += 1;
            tally.lines.push(format!("    {test} did not say what carried its media"));
        }
        show(test, found);
    }
    for (test, (_, found)) in lines {
        show(&test, Some(found));
    }
    for failed in run.failed.iter().filter(|_| name == "interop") {
        show(failed, None);
    }
    Ok(shown)
}

/// The file in which tests say what they showed.
struct Report(PathBuf);

impl Report {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("msm-rungs-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        Self(path)
    }

    /// Number of the case and lines, by test.
    fn read(&self) -> Result<BTreeMap<String, (String, Vec<Line>)>> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let mut found: BTreeMap<String, (String, Vec<Line>)> = BTreeMap::new();
        for line in text.lines() {
            let Reported { case, test, line, .. } = serde_json::from_str(line)?;
            found.entry(test).or_insert((case, Vec::new())).1.push(line);
        }
        Ok(found)
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn table(shown: &[Shown]) -> Result<String> {
    let kernel = output("uname", &["-sr"])?;
    let passed = shown.iter().filter(|one| one.lines.is_some()).count();
    let mut text = format!(
        "# Cases on every rung\n\n\
         `cargo xtask test rungs --record` writes this file; with a directory and `--rung` only that part of it is run \
         again.\n\n\
         {}, release build: **{passed} of {} passed**. The proxy stands in a network namespace of its own, cameras \
         and publishers in a second one, viewers in a third, joined by two veth pairs. A test passes on a rung only if \
         its viewers over UDP were carried by that rung while they got media: `/v1/streams` must name the rung and \
         its counter must grow there, `msm_legs` must count the legs, and the kernel's own counters of legs, read from \
         its tables past the proxy, must stand at half of that at least (they are looked at several times a second and \
         begin anew with every leg). On `user` they must stand at 0.\n\n",
        kernel.trim(),
        shown.len(),
    );
    for directory in DIRECTORIES {
        let parts = shown.iter().filter(|one| one.suite == directory);
        let parts: BTreeSet<String> = parts.map(|one| format!("{} at {} UTC", one.rung, one.at)).collect();
        writeln!(text, "- {directory}: {}", parts.into_iter().collect::<Vec<_>>().join(", "))?;
    }
    text += "\n";
    text += "Each cell: viewers over UDP that got media on the rung, of those that got media; packets that they got \
             while on the rung, of all; packets by the kernel's own counters.\n\n";
    heads(&mut text, "case | test");
    for case in CASES {
        let note = match case.carried {
            Carried::Kernel => "",
            Carried::Worker { .. } => " ¹",
            Carried::Mixed { .. } => " ²",
        };
        write!(text, "| {}{note} | `{}` |", case.number, case.test)?;
        cells(&mut text, shown, (case.suite, case.test), false)?;
    }
    text += "\n¹ carried by the workers on every rung, which is asserted together with the reason that `/v1/streams` gives \
             for each leg over UDP:\n\n";
    for case in CASES {
        if let Carried::Worker { because, shown } = case.carried {
            let told = shown.map_or("no leg over UDP".to_owned(), |shown| format!("\"{shown}\""));
            writeln!(text, "- case {}: {because} ({told}).", case.number)?;
        }
    }
    text += "\n² a mixed group: the legs that give this reason got every packet from the workers, while others of the same \
             stream got theirs on the rung, by the same counters:\n\n";
    for case in CASES {
        if let Carried::Mixed { because, shown } = case.carried {
            writeln!(text, "- case {}: {because} (\"{shown}\").", case.number)?;
        }
    }
    text += "\n## Real programs: the interop selection\n\n\
             The figures are those of all viewers over UDP of the cell's source. The kernel's own counters know no \
             streams: they are judged once for all cells, as above. Viewers over TCP, and all viewers of a source on TCP, \
             are the workers' on every rung; of those over UDP that is asserted by the reason that each gives.\n\n";
    heads(&mut text, "cell");
    let names: BTreeSet<&str> =
        shown.iter().filter(|one| one.suite == "interop").map(|one| one.test.as_str()).collect();
    for name in names {
        write!(text, "| {name} |")?;
        cells(&mut text, shown, ("interop", name), true)?;
    }
    Ok(text)
}

fn heads(text: &mut String, first: &str) {
    let names = Rung::ALL.map(Rung::name);
    let columns = first.matches('|').count() + 1 + names.len();
    writeln!(text, "| {first} | {} |\n|{}", names.join(" | "), "---|".repeat(columns)).ok();
}

fn cells(text: &mut String, shown: &[Shown], (suite, test): (&str, &str), in_common: bool) -> Result<()> {
    for rung in Rung::ALL {
        let is_it = |one: &&Shown| one.suite == suite && one.test == test && one.rung == rung.name();
        let said = match shown.iter().find(is_it).map(|one| &one.lines) {
            None => "-".to_owned(),
            Some(None) => "**failed**".to_owned(),
            Some(Some(lines)) => {
                let sum = |of: fn(&Line) -> u64| lines.iter().map(of).sum::<u64>();
                let legs = (sum(|line| line.carried as u64), sum(|line| line.legs as u64));
                let packets = (sum(|line| line.on_rung), sum(|line| line.packets));
                if legs.1 == 0 {
                    "passed".to_owned()
                } else if in_common {
                    format!("{} of {}; {} of {}", legs.0, legs.1, packets.0, packets.1)
                } else {
                    let kernel = sum(|line| line.in_kernel);
                    format!("{} of {}; {} of {}; {kernel}", legs.0, legs.1, packets.0, packets.1)
                }
            }
        };
        write!(text, " {said} |")?;
    }
    *text += "\n";
    Ok(())
}
