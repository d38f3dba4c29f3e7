//! `cargo xtask ebpf`: builds the kernel programs; `--check` has this kernel verify them and compares what
//! they share with user space with the golden record.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use msm_tests::privilege::{ENV_SKIPS, environment, find_program};

use crate::setup::{Package, install, package};
use crate::{cargo, root, say};

#[path = "../../rtp-proxy/build/toolchain.rs"]
#[expect(unreachable_pub, dead_code, reason = "the file is a module of rtp-proxy's build script too")]
mod toolchain;

use toolchain::{LINKER, LINKER_VERSION, Missing, Toolchain};

/// What `cargo xtask ebpf` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct EbpfArgs {
    /// Load the programs, print what the verifier counted, compare with rtp-proxy-ebpf/abi.txt
    #[arg(long)]
    check: bool,
    /// Write rtp-proxy-ebpf/abi.txt instead of comparing
    #[arg(long)]
    bless: bool,
}

/// Test of the golden record, in `tests/verdict`.
const GOLDEN_TEST: &str = "abi::layouts_maps_and_budgets_equal_the_golden_record";

/// A compiler with its library sources.
const COMPILER: &[Package] = &[
    package("rustc-web", "a compiler whose library sources are packaged"),
    package("rust-web-src", "those sources: the core library is built for the kernel's target"),
];

/// What the linker is built with; the compiler's LLVM must not be newer.
const LLVM: &[Package] = &[
    package("llvm-22-dev", "bpf-linker links LLVM bitcode"),
    package("libclang-22-dev", "bpf-linker's build"),
    package("libpolly-22-dev", "bpf-linker's build"),
    package("libzstd-dev", "bpf-linker's build"),
    package("zlib1g-dev", "bpf-linker's build"),
    package("g++", "bpf-linker's build"),
];

fn env(name: &str) -> Result<String, std::env::VarError> {
    environment(name).ok_or(std::env::VarError::NotPresent)
}

/// The compiler that builds the kernel programs: it has its library's sources.
pub(crate) fn compiler_with_sources() -> Result<PathBuf> {
    let chosen = toolchain::choose(&env);
    chosen.map(|chosen| chosen.rustc).map_err(|missing| anyhow!("{missing}\nor all of it: cargo xtask setup"))
}

/// Runs the command.
pub(crate) fn run(args: &EbpfArgs) -> Result<()> {
    let chosen =
        toolchain::choose(&env).map_err(|missing| anyhow!("{missing}\nor all of it: cargo xtask setup"))?;
    say(&format!("building the kernel programs with {chosen}"));
    let target = root().canonicalize()?.join("target/ebpf");
    let object = toolchain::build(&chosen, root(), &target, &env).map_err(|output| anyhow!("{output}"))?;
    println!("{} ({} bytes)", object.display(), std::fs::metadata(&object)?.len());
    if args.check || args.bless {
        say("loading the kernel programs");
        let mut test = cargo(&["test", "--quiet", "--package", "msm-tests", "--test", "verdict", "--"]);
        let skips = target.join("skipped");
        std::fs::write(&skips, "")?;
        test.args(["--exact", GOLDEN_TEST, "--nocapture"]).env(ENV_SKIPS, &skips);
        if args.bless {
            test.env("MSM_ABI_BLESS", "1");
        }
        crate::run(&mut test)?;
        // Asked for by name, a skipped test is a failure.
        let skipped = std::fs::read_to_string(&skips)?;
        ensure!(skipped.is_empty(), "{}", skipped.trim());
    }
    Ok(())
}

/// The toolchain part of `cargo xtask setup`: installs what is missing, in the order of least change.
pub(crate) fn setup(dry_run: bool) -> Result<()> {
    let missing = match toolchain::choose(&env) {
        Ok(chosen) => {
            announce(&chosen);
            return Ok(());
        }
        Err(missing) => missing,
    };
    say(&format!("kernel programs: {}", missing.headline()));
    if dry_run {
        println!("{missing}");
        return Ok(());
    }
    if missing == Missing::Sources {
        sources().context("a compiler with library sources; --without-ebpf leaves it out")?;
    }
    if toolchain::choose(&env).err() == Some(Missing::Linker) {
        linker().context("bpf-linker; --without-ebpf leaves it out")?;
    }
    match toolchain::choose(&env) {
        Ok(chosen) => announce(&chosen),
        Err(missing) => bail!("still missing: {missing}"),
    }
    Ok(())
}

fn announce(chosen: &Toolchain) {
    say(&format!("kernel programs are built with {chosen}"));
}

/// rustup first: it needs no root. Its server may be out of reach, so failing is no error yet.
fn sources() -> Result<()> {
    if find_program("rustup").is_some() {
        println!("  $ rustup component add rust-src");
        let added = std::process::Command::new("rustup").args(["component", "add", "rust-src"]).status();
        if added.is_ok_and(|status| status.success())
            && toolchain::choose(&env).err() != Some(Missing::Sources)
        {
            return Ok(());
        }
        println!("  rustup cannot add them; the distribution's packages can");
    }
    install(COMPILER, false)
}

fn linker() -> Result<()> {
    install(LLVM, false)?;
    let mut command = cargo(&["install", LINKER, "--version", LINKER_VERSION]);
    command
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .env("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22")
        // Its place is cargo's own; a target directory of this workspace must not be locked by it.
        .env_remove("CARGO_TARGET_DIR");
    println!("  $ {}   (a minute or two)", crate::describe(&command));
    crate::run(&mut command)
}
