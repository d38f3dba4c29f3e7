//! Finds what can compile the kernel programs, and compiles them. Shared by the build script and
//! `cargo xtask ebpf`, hence only `std`.
//!
//! `aya-build` is not used: it removes `RUSTC` from the environment and insists on rustup, so it cannot
//! reach a distribution's compiler, which often is the only one with library sources.

use std::env::VarError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler to use, first in the order.
pub const ENV_RUSTC: &str = "MSM_EBPF_RUSTC";
/// A prebuilt object to embed instead of compiling.
pub const ENV_OBJECT: &str = "MSM_EBPF_OBJECT";
/// Set to 1: no object, the proxy has the user path only.
pub const ENV_SKIP: &str = "MSM_EBPF_SKIP";
/// Name of the linker.
pub const LINKER: &str = "bpf-linker";
/// Version of the linker that `setup` installs.
pub const LINKER_VERSION: &str = "0.13.0";
/// Target of the object: every supported host is little-endian.
pub const TARGET: &str = "bpfel-unknown-none";

/// Reads one environment variable; passed in, so that a caller decides where configuration comes from.
pub type Env<'a> = &'a dyn Fn(&str) -> Result<String, VarError>;

/// A compiler whose sysroot holds its own library sources, and a linker.
#[derive(Debug, Clone)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub linker: PathBuf,
    /// Where the compiler was found, for the one line that says which was chosen.
    pub origin: &'static str,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) with {}", self.rustc.display(), self.origin, self.linker.display())
    }
}

/// What is missing; its text names every remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Sources,
    Linker,
}

impl Missing {
    /// One line: what is missing.
    pub fn headline(self) -> &'static str {
        match self {
            Self::Sources => "no Rust toolchain with library sources",
            Self::Linker => "no bpf-linker",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headline = self.headline();
        match self {
            Self::Sources => write!(
                f,
                "{headline}; one of\n  rustup component add rust-src\n  apt-get install rustc-web \
                 rust-web-src\n  {ENV_RUSTC}=<a rustc whose sysroot has lib/rustlib/src/rust/library>"
            ),
            Self::Linker => write!(
                f,
                "{headline}; with LLVM not older than the compiler's (rustc -vV):\n  apt-get install \
                 llvm-22-dev libclang-22-dev libpolly-22-dev libzstd-dev zlib1g-dev\n  \
                 LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 cargo install \
                 {LINKER} --version {LINKER_VERSION} --no-default-features --features llvm-22"
            ),
        }
    }
}

/// Chooses the toolchain: the first compiler with library sources of, in order, [`ENV_RUSTC`], the active
/// toolchain, other rustup toolchains, `/usr/bin/rustc`.
///
/// # Errors
/// What is missing. Nothing is installed here: `cargo xtask setup` does that.
pub fn choose(env: Env<'_>) -> Result<Toolchain, Missing> {
    let (rustc, origin) =
        candidates(env).into_iter().find(|(rustc, _)| has_library_sources(rustc)).ok_or(Missing::Sources)?;
    let linker = find_linker(env).ok_or(Missing::Linker)?;
    Ok(Toolchain { rustc, linker, origin })
}

fn candidates(env: Env<'_>) -> Vec<(PathBuf, &'static str)> {
    let mut found = Vec::new();
    if let Ok(rustc) = env(ENV_RUSTC) {
        found.push((PathBuf::from(rustc), "named by MSM_EBPF_RUSTC"));
    }
    found.push((PathBuf::from(env("RUSTC").unwrap_or_else(|_| "rustc".to_owned())), "active toolchain"));
    let rustup = env("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|_| env("HOME").map(|home| Path::new(&home).join(".rustup")));
    if let Ok(entries) = rustup
        .map(|rustup| rustup.join("toolchains"))
        .map_or_else(|_| std::fs::read_dir("/nonexistent"), std::fs::read_dir)
    {
        let mut others: Vec<_> = entries.flatten().map(|entry| entry.path().join("bin/rustc")).collect();
        others.sort();
        found.extend(others.into_iter().map(|rustc| (rustc, "rustup toolchain")));
    }
    found.push((PathBuf::from("/usr/bin/rustc"), "distribution package"));
    found
}

fn has_library_sources(rustc: &Path) -> bool {
    Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .is_some_and(|sysroot| {
            Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
        })
}

fn find_linker(env: Env<'_>) -> Option<PathBuf> {
    let path = env("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(cargo_bin(env))
        .map(|folder| folder.join(LINKER))
        .find(|linker| linker.is_file())
}

/// Where `cargo install` puts programs.
pub fn cargo_bin(env: Env<'_>) -> Option<PathBuf> {
    env("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|_| env("HOME").map(|home| Path::new(&home).join(".cargo")))
        .ok()
        .map(|cargo| cargo.join("bin"))
}

/// Compiles the kernel programs of `workspace` into `target_dir` and returns the object's path. Cargo's own
/// freshness check makes a second call cheap.
///
/// `target_dir` must not be the one of a cargo that is waiting for this call: cargo locks itself out.
///
/// # Errors
/// The compiler's output.
pub fn build(
    toolchain: &Toolchain,
    workspace: &Path,
    target_dir: &Path,
    env: Env<'_>,
) -> Result<PathBuf, String> {
    let arch = std::env::consts::ARCH;
    let cargo = env("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace)
        .args(["build", "--quiet", "--release", "--package", "rtp-proxy-ebpf"])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        // The outer cargo's flags and wrappers are for the host.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .env(
            "RUSTFLAGS",
            format!(
                "--cfg=bpf_target_arch=\"{arch}\" -Cdebuginfo=2 -Clink-arg=--btf -Clinker={}",
                toolchain.linker.display()
            ),
        );
    let output = command.output().map_err(|error| format!("starting cargo: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let object = target_dir.join(TARGET).join("release/rtp-proxy-ebpf");
    if object.is_file() { Ok(object) } else { Err(format!("{} was not written", object.display())) }
}
