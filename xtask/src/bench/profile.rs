//! `cargo xtask bench profile`: where the time of a row of the report goes, by `perf`.
//!
//! Samples of the cores' clocks with their stacks, taken while one contender of one case runs. Only what runs inside a send
//! call of the generator, in a NAPI thread or in ksoftirqd counts, so that setting the scene is not in it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::{BenchArgs, Part, build, program, record};

/// The generated part of the results.
const PART: Part = Part {
    path: "docs/results/profiles.md",
    begin: "<!-- profiles: begin, written by cargo xtask bench profile --record -->",
    end: "<!-- profiles: end -->",
};

/// One row of the report to be looked into.
struct Subject {
    title: &'static str,
    id: &'static str,
    /// Part of the case's label, and of the contender's name.
    case: &'static str,
    lane: &'static str,
}

const SUBJECTS: [Subject; 9] = [
    Subject {
        title: "B1: 172 B, single packets, 1→16, per leg",
        id: "B1",
        case: "172 B",
        lane: "fast path, per leg",
    },
    Subject {
        title: "B3: 1200 B, bursts of 32 merged, 1→16, per leg",
        id: "B3",
        case: "bursts of 32 by sendmmsg, 1→16, plain",
        lane: "per leg, batched",
    },
    Subject {
        title: "B4: 172 B, super-packets of 32, 1→16, per leg",
        id: "B4",
        case: "172 B, super-packets of 32, 1→16, UDP_GRO",
        lane: "fast path, per leg",
    },
    Subject {
        title: "B4: 1200 B, super-packets of 32, 1→16, common",
        id: "B4",
        case: "1200 B, super-packets of 32, 1→16, UDP_GRO",
        lane: "fast path, common",
    },
    Subject {
        title: "B5: 172 B, single packets, 1→1, per leg",
        id: "B5",
        case: "172 B",
        lane: "fast path, per leg",
    },
    Subject {
        title: "B8: one stream for four viewers",
        id: "B8",
        case: "172 B, single packets",
        lane: "1 × 4",
    },
    Subject {
        title: "B8: 10,000 streams for four viewers each",
        id: "B8",
        case: "172 B, single packets",
        lane: "10000 × 4",
    },
    Subject { title: "B17: audio, four viewers each", id: "B17", case: "audio", lane: "fast path, per leg" },
    Subject {
        title: "B17: video in bursts of 32 merged, four viewers each",
        id: "B17",
        case: "video: ",
        lane: "per leg, batched",
    },
];

/// What a stack is doing, by the innermost of its functions that tells.
const STAGES: [(&str, &[&str]); 6] = [
    (
        "the viewer's kernel: route, IP, UDP, socket",
        &[
            "ip_rcv",
            "ip_list_rcv",
            "ip_route_input",
            "ip_local_deliver",
            "ip_protocol_deliver",
            "udp_rcv",
            "udp_unicast_rcv",
        ],
    ),
    ("clones and their way into a queue", &["bpf_clone_redirect"]),
    ("the program and its other helpers", &["bpf_prog_"]),
    ("merging", &["dev_gro_receive", "gro_receive_skb", "napi_gro_receive", "__gro_flush", "gro_complete"]),
    (
        "queues, cables, the hook",
        &["__netif_receive_skb", "process_backlog", "veth_poll", "__napi_poll", "net_rx_action"],
    ),
    ("the generator's own send call", &["__x64_sys_send", "__sys_send"]),
];
const THREADS: &str = "kernel threads besides: RCU, waking";
/// What makes a stack count, whoever it belongs to.
const ROOTS: [&str; 4] = ["__x64_sys_sendto", "__x64_sys_sendmmsg", "napi_threaded_poll", "run_ksoftirqd"];
/// Tasks that count; a NAPI thread is known to `perf` by the name of its parent.
const TASKS: [&str; 4] = ["bench_kernel", "kthreadd", "napi/", "ksoftirqd/"];
/// Rows of a table of symbols.
const SYMBOLS: usize = 14;

/// Takes the profiles of the named benchmarks, or all.
pub(super) fn run(args: &BenchArgs, ids: &[String]) -> anyhow::Result<()> {
    build(&["--package", "rtp-proxy", "--bin", "rtp-proxy"])?;
    build(&["--package", "msm-tests", "--example", "bench_kernel", "--example", "bench_relay"])?;
    if args.record && !ids.is_empty() {
        bail!("the recorded profiles are all of them");
    }
    let mut tables = format!("{}\n", conditions(args)?);
    let wanted = |subject: &&Subject| ids.is_empty() || ids.iter().any(|id| id == subject.id);
    for subject in SUBJECTS.iter().filter(wanted) {
        let table = profile(args, subject).with_context(|| subject.title.to_owned())?;
        println!("{table}");
        tables.push_str(&table);
    }
    if args.record { record(&tables, &PART) } else { Ok(()) }
}

fn conditions(args: &BenchArgs) -> anyhow::Result<String> {
    let said = |program: &str, args: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "`cargo xtask bench profile --rounds {} --seconds {} --record`, {} UTC, kernel {}, load average {} at the start.\n",
        args.rounds,
        args.seconds,
        said("date", &["-u", "+%Y-%m-%d %H:%M"])?,
        said("uname", &["-r"])?,
        load.split(' ').next().unwrap_or_default()
    ))
}

fn profile(args: &BenchArgs, subject: &Subject) -> anyhow::Result<String> {
    let data = std::env::temp_dir().join(format!("msm-profile-{}.data", std::process::id()));
    let samples = sampled(args, subject, &data);
    std::fs::remove_file(&data).ok();
    let samples = samples?;
    let total = samples.stages.values().sum::<u64>();
    if total == 0 {
        bail!("not one sample: does the contender take part?");
    }
    let share = |count: u64| 100.0 * count as f64 / total as f64;
    let mut out = format!("### {}\n\n{total} samples.\n\n| share | stage |\n|---|---|\n", subject.title);
    let mut stages: Vec<_> = samples.stages.into_iter().collect();
    stages.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (stage, count) in stages {
        writeln!(out, "| {:.1} % | {stage} |", share(count))?;
    }
    out.push_str("\n| share | symbol | mostly in |\n|---|---|---|\n");
    let mut symbols: Vec<_> = samples.symbols.into_iter().collect();
    symbols.sort_by(|a, b| b.1.total().cmp(&a.1.total()).then_with(|| a.0.cmp(&b.0)));
    for (symbol, counts) in symbols.into_iter().take(SYMBOLS) {
        writeln!(out, "| {:.1} % | `{symbol}` | {} |", share(counts.total()), counts.most())?;
    }
    out.push('\n');
    Ok(out)
}

/// How often a symbol was met, by stage.
#[derive(Debug, Default)]
struct Counts(HashMap<&'static str, u64>);

impl Counts {
    fn total(&self) -> u64 {
        self.0.values().sum()
    }

    fn most(&self) -> &'static str {
        let most = self.0.iter().max_by_key(|(stage, count)| (**count, std::cmp::Reverse(**stage)));
        most.map_or("", |(stage, _)| stage)
    }
}

#[derive(Debug, Default)]
struct Samples {
    stages: HashMap<&'static str, u64>,
    symbols: HashMap<String, Counts>,
}

impl Samples {
    /// One stack, innermost first.
    fn take(&mut self, stack: &[&str]) {
        let Some(leaf) = stack.first() else { return };
        if !stack.iter().any(|symbol| ROOTS.contains(symbol)) {
            return;
        }
        let stage_of = |symbol: &str| {
            STAGES.iter().find(|(_, marks)| marks.iter().any(|mark| symbol.starts_with(mark))).map(|s| s.0)
        };
        let stage = stack.iter().find_map(|symbol| stage_of(symbol)).unwrap_or(THREADS);
        *self.stages.entry(stage).or_default() += 1;
        *self.symbols.entry(short(leaf)).or_default().0.entry(stage).or_default() += 1;
    }
}

/// A program's functions without the tag that every build changes.
fn short(symbol: &str) -> String {
    match symbol.strip_prefix("bpf_prog_").and_then(|rest| rest.split_once('_')) {
        Some((_, name)) => name.to_owned(),
        None => symbol.to_owned(),
    }
}

fn sampled(args: &BenchArgs, subject: &Subject, data: &Path) -> anyhow::Result<Samples> {
    let bench = program(args, "bench_kernel");
    let mut perf = Command::new("perf");
    perf.args(["record", "-q", "-e", "cpu-clock", "-F", "5000", "-g", "-C", "0,1", "-o"]).arg(data).arg("--");
    perf.arg(bench.get_program()).args(bench.get_args());
    perf.args([subject.id, "--cases", subject.case, "--lanes", subject.lane]);
    let status = perf.stdout(Stdio::null()).status().context("perf record")?;
    if !status.success() {
        bail!("perf record: {status}");
    }
    let output = Command::new("perf")
        .args(["script", "-F", "comm,ip,sym", "-i"])
        .arg(data)
        .stderr(Stdio::null())
        .output()
        .context("perf script")?;
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Stacks as `perf script` prints them: a line with the task's name, then a line per function, then an empty one.
fn parse(text: &str) -> Samples {
    let mut samples = Samples::default();
    for sample in text.split("\n\n") {
        let mut lines = sample.lines().skip_while(|line| line.trim().is_empty());
        let task = lines.next().unwrap_or_default().trim();
        if !TASKS.iter().any(|name| task.starts_with(name)) {
            continue;
        }
        let stack: Vec<&str> = lines.filter_map(|line| line.split_whitespace().nth(1)).collect();
        samples.take(&stack);
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_told_by_its_innermost_function_that_says_something() {
        let text = "bench_kernel \n\t ffff skb_clone\n\t ffff bpf_clone_redirect\n\t ffff bpf_prog_12ab_tcx_ingress\n\t \
                    ffff process_backlog\n\t ffff __x64_sys_sendto\n\nkthreadd \n\t ffff bpf_prog_12ab_dress\n\t ffff \
                    napi_threaded_poll\n\nbench_kernel \n\t ffff fib_table_lookup\n\t ffff ip_rcv\n\t ffff \
                    bpf_clone_redirect\n\t ffff __x64_sys_sendmmsg\n\nsshd \n\t ffff __x64_sys_sendto\n\nbench_kernel \
                    \n\t ffff do_mmap\n";
        let found = parse(text);
        assert_eq!(found.stages.values().sum::<u64>(), 3);
        assert_eq!(found.symbols["skb_clone"].most(), STAGES[1].0);
        assert_eq!(found.symbols["dress"].most(), STAGES[2].0);
        assert_eq!(found.symbols["fib_table_lookup"].most(), STAGES[0].0);
    }
}
