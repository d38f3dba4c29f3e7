//! `cargo xtask test endurance`: joins and leaves without end, with the proxy as it is released or as a sanitizer
//! watches it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use msm_tests::privilege::ENV_PROXY;
use msm_tests::process::output;

use super::{SUITES, Tally, TestArgs, build_proxy, observe, program_of, under_test};
use crate::{cargo, ebpf, run as run_command, say, target_dir};

const TEST: &str =
    "kernel_endurance::legs_that_join_and_leave_without_end_disturb_nobody_and_leave_nothing_behind";
/// Joins of a run, and how many a second are asked for: more than a sanitizer lets the proxy serve wait for a seat.
const JOINS: u64 = 1_000_000;
const SANITIZED: u64 = 50_000;
const RATE: u32 = 1_000;
/// What a sanitizer is told: bounded memory for what was freed, and the status by which a finding shows at the end.
const OPTIONS: [(&str, &str); 2] = [
    ("ASAN_OPTIONS", "quarantine_size_mb=64:detect_leaks=1:exitcode=97"),
    ("TSAN_OPTIONS", "exitcode=97:halt_on_error=0"),
];

/// Builds the proxy and runs the joins.
pub(super) fn run(tally: &mut Tally, args: &TestArgs) -> Result<()> {
    let joins = args.joins.unwrap_or(if args.sanitizer.is_some() { SANITIZED } else { JOINS });
    let proxy = args.sanitizer.as_deref().map(sanitized).transpose()?;
    if proxy.is_none() {
        build_proxy()?;
    }
    let suite = SUITES.into_iter().find(|suite| suite.name == "topology").context("no such directory")?;
    let mut command = Command::new(program_of(suite)?);
    command.args([TEST, "--exact", "--nocapture"]);
    under_test(&mut command).env("MSM_TEST_ENDURANCE", format!("{joins}:{RATE}")).envs(OPTIONS);
    if let Some(proxy) = &proxy {
        command.env(ENV_PROXY, proxy);
    }
    if args.record {
        let build = args.sanitizer.as_deref().map_or("release build", name_of);
        command.env("MSM_TEST_BUILD", build);
    }
    observe(tally, &format!("endurance, {joins} joins"), &mut command).map(drop)
}

fn name_of(sanitizer: &str) -> &'static str {
    if sanitizer == "thread" { "ThreadSanitizer" } else { "AddressSanitizer" }
}

/// The proxy, watched by a sanitizer. In a directory of its own, without the `RUSTFLAGS` of the environment: the build
/// of the kernel programs would inherit them.
fn sanitized(sanitizer: &str) -> Result<PathBuf> {
    ensure!(matches!(sanitizer, "address" | "thread"), "--sanitizer is address or thread");
    say(&format!("building the proxy with {}", name_of(sanitizer)));
    let triple = output("rustc", &["-vV"])?;
    let triple =
        triple.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let directory = target_dir().join(sanitizer);
    let mut build = cargo(&["build", "--locked", "-p", "rtp-proxy", "--target", triple]);
    build.arg("--target-dir").arg(&directory).env("RUSTC_BOOTSTRAP", "1");
    build.args(["--config", "profile.dev.opt-level=1"]);
    let flags = match sanitizer {
        "thread" => thread(&mut build)?,
        _ => vec!["-Zsanitizer=address".to_owned()],
    };
    let flags = serde_json::to_string(&flags)?;
    build.args(["--config", &format!("target.{triple}.rustflags={flags}")]);
    run_command(&mut build)?;
    let proxy = directory.join(triple).join("debug/rtp-proxy");
    std::fs::canonicalize(&proxy).with_context(|| format!("{}", proxy.display()))
}

/// ThreadSanitizer must see the standard library's own synchronisation, so that is built too: by the compiler that
/// builds the kernel programs, for it has the library's sources. Not every one brings the sanitizer's runtime; LLVM's is
/// the same.
fn thread(build: &mut Command) -> Result<Vec<String>> {
    build.env("RUSTC", ebpf::compiler_with_sources()?).arg("-Zbuild-std=std,panic_unwind");
    let pattern = "ls -1 /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.tsan-x86_64.a";
    let found =
        output("sh", &["-c", pattern]).context("no libclang_rt.tsan; apt-get install libclang-rt-22-dev")?;
    let runtime = found.lines().last().context("no libclang_rt.tsan")?;
    let link = format!(
        "-Clink-args=-Wl,--whole-archive {runtime} -Wl,--no-whole-archive -lm -lpthread -ldl -lc -Wl,--export-dynamic"
    );
    Ok(vec!["-Zsanitizer=thread".to_owned(), "-Zexternal-clangrt".to_owned(), link])
}
