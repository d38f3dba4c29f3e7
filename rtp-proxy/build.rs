//! Compiles the kernel programs into the proxy, where the toolchain for that is installed.
//!
//! Without it the proxy is built all the same, with the user path only, and one warning says so. The
//! compiled object is kept in `target/ebpf` of the workspace and shared by every profile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "build/toolchain.rs"]
#[expect(unreachable_pub, reason = "the file is a module of `cargo xtask ebpf` too")]
mod toolchain;

use toolchain::{ENV_OBJECT, ENV_RUSTC, ENV_SKIP, Toolchain};

/// Name of the variable that hands the object's path to `src/kernel.rs`.
const ENV_EMBED: &str = "MSM_KERNEL_OBJECT";

#[expect(clippy::disallowed_methods, reason = "a build script is configured by its environment")]
fn env(name: &str) -> Result<String, std::env::VarError> {
    std::env::var(name)
}

fn main() -> io::Result<()> {
    println!("cargo:rustc-check-cfg=cfg(msm_kernel_object)");
    let manifest = PathBuf::from(env("CARGO_MANIFEST_DIR").map_err(io::Error::other)?);
    let workspace = manifest.parent().unwrap_or(&manifest).to_owned();
    for name in [ENV_OBJECT, ENV_SKIP, ENV_RUSTC, "CI"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for path in ["build.rs", "build/toolchain.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    if let Some(commit) = commit(&workspace) {
        println!("cargo:rustc-env=MSM_COMMIT={commit}");
    }
    match object(&workspace)? {
        Ok(object) => {
            let embedded = PathBuf::from(env("OUT_DIR").map_err(io::Error::other)?).join("rtp-proxy-ebpf.o");
            fs::copy(&object, &embedded)?;
            println!("cargo:rustc-env={ENV_EMBED}={}", embedded.display());
            println!("cargo:rustc-cfg=msm_kernel_object");
        }
        Err(Some(reason)) => {
            println!("cargo:warning=built without kernel programs, user path only: {reason}");
        }
        Err(None) => {}
    }
    Ok(())
}

/// The object to embed, or why there is none; no reason where nobody expects one.
fn object(workspace: &Path) -> io::Result<Result<PathBuf, Option<String>>> {
    if let Ok(prebuilt) = env(ENV_OBJECT) {
        println!("cargo:rerun-if-changed={prebuilt}");
        return match fs::metadata(&prebuilt) {
            Ok(_) => Ok(Ok(PathBuf::from(prebuilt))),
            Err(error) => Err(io::Error::new(error.kind(), format!("{ENV_OBJECT}={prebuilt}: {error}"))),
        };
    }
    // Clippy looks at the user half only; its build scripts have a directory of their own.
    if env(ENV_SKIP).is_ok_and(|value| value != "0") || env("RUSTC_WORKSPACE_WRAPPER").is_ok() {
        return Ok(Err(None));
    }
    for path in [
        "rtp-proxy-ebpf/src",
        "rtp-proxy-ebpf/Cargo.toml",
        "crates/fastpath/src",
        "crates/fastpath/Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={}", workspace.join(path).display());
    }
    let chosen = match toolchain::choose(&env) {
        Ok(chosen) => chosen,
        Err(missing) => {
            // A linker that appears is the last step of `cargo xtask setup`: look again then.
            if let Some(bin) = toolchain::cargo_bin(&env).filter(|bin| bin.is_dir()) {
                println!("cargo:rerun-if-changed={}", bin.display());
            }
            return Ok(Err(Some(format!("{}; `cargo xtask setup` installs it", missing.headline()))));
        }
    };
    match compile(&chosen, workspace) {
        Ok(object) => Ok(Ok(object)),
        Err(output) if env("CI").is_ok_and(|value| value != "0" && value != "false") => {
            Err(io::Error::other(format!("compiling the kernel programs with {chosen}:\n{output}")))
        }
        Err(output) => {
            let last = output.lines().rfind(|line| line.contains("error")).unwrap_or("no output");
            Ok(Err(Some(format!("{chosen} failed: {last}; `cargo xtask ebpf` shows all of it"))))
        }
    }
}

/// Compiles into `target/ebpf` beside the sources, so that profiles and target directories share it; into
/// this build's own directory where the sources are read-only.
fn compile(chosen: &Toolchain, workspace: &Path) -> Result<PathBuf, String> {
    let shared = workspace.join("target/ebpf");
    let target_dir = if fs::create_dir_all(&shared).is_ok() {
        shared
    } else {
        PathBuf::from(env("OUT_DIR").map_err(|error| error.to_string())?).join("ebpf")
    };
    toolchain::build(chosen, workspace, &target_dir, &env)
}

/// The commit of a release build. Debug builds do without: each commit would compile the proxy anew.
fn commit(workspace: &Path) -> Option<String> {
    if env("PROFILE").is_ok_and(|profile| profile != "release") {
        return None;
    }
    let git = workspace.join(".git");
    for path in ["HEAD", "logs/HEAD"] {
        let path = git.join(path);
        if path.is_file() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    let output =
        Command::new("git").current_dir(workspace).args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned())
}
