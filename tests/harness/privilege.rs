//! The one place that decides whether a test may run: privileges, programs, and what their absence means.
//!
//! A missing one skips with a printed reason on a developer's machine and fails where `CI` is set
//! (`CONTRIBUTING.md`): a skipped test is never reported as passed there.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

/// Set by CI systems: a missing privilege or program is a failure then.
pub const ENV_CI: &str = "CI";
/// A file that receives one line per skipped test; `cargo xtask test` names it and reads it back.
pub const ENV_SKIPS: &str = "MSM_TEST_SKIPS";
/// The proxy binary under test, when it is not the one beside the test's own build.
pub const ENV_PROXY: &str = "MSM_TEST_PROXY";

/// What a test needs beyond an ordinary process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Make network namespaces and veth pairs: root, or root of a user namespace.
    Namespaces,
    /// Load and attach kernel programs: root of the initial user namespace.
    Kernel,
    /// A program on PATH.
    Program(&'static str),
    /// Python bindings of GStreamer's RTSP server.
    GstRtspServer,
}

/// The environment is read here and nowhere else in the tests.
#[expect(clippy::disallowed_methods, reason = "the tests' one place that reads the environment")]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// True when missing privileges fail instead of skipping.
pub fn is_ci() -> bool {
    environment(ENV_CI).is_some_and(|value| value != "0" && value != "false")
}

/// Says why a need is not met, or nothing when it is.
pub fn missing(need: Need) -> Option<String> {
    match need {
        Need::Namespaces if !has_capability(CAP_NET_ADMIN) || !has_capability(CAP_SYS_ADMIN) => {
            Some("network namespaces need root or a user namespace: unshare -Urnm cargo test ...".to_owned())
        }
        Need::Kernel if !has_capability(CAP_NET_ADMIN) || !in_initial_user_namespace() => {
            Some("kernel programs need root of the initial user namespace".to_owned())
        }
        Need::Program(name) if find_program(name).is_none() => Some(format!("{name} is not installed")),
        Need::GstRtspServer if !gst_rtsp_server_works() => {
            Some("python3-gi with gir1.2-gst-rtsp-server-1.0 is not installed".to_owned())
        }
        _ => None,
    }
}

/// True when every need is met. Otherwise prints the reason and returns false, so that the test returns.
///
/// # Panics
/// Where `CI` is set: a test that cannot run there is a failure.
#[must_use]
pub fn granted(test: &str, needs: &[Need]) -> bool {
    let reasons: Vec<String> = needs.iter().filter_map(|need| missing(*need)).collect();
    if reasons.is_empty() {
        return true;
    }
    skip(test, &reasons.join("; "));
    false
}

/// Skips a test for a reason that only the test itself can find out.
///
/// # Panics
/// Where `CI` is set.
pub fn skip(test: &str, reason: &str) {
    assert!(!is_ci(), "{test} cannot run, and CI is set: {reason}");
    eprintln!("skipped {test}: {reason}");
    if let Some(path) = environment(ENV_SKIPS)
        && let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path)
    {
        writeln!(file, "{test}: {reason}").ok();
    }
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    effective >> number & 1 == 1
}

/// Only the initial user namespace maps every id onto itself.
pub fn in_initial_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The full path of a program on PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = environment("PATH").unwrap_or_else(|| "/usr/bin:/bin".to_owned());
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|folder| PathBuf::from(folder).join(name))
        .find(|candidate| candidate.is_file())
}

/// Debian's Python carries the bindings; another `python3` first on PATH usually does not.
pub const PYTHON: &str = "/usr/bin/python3";

fn gst_rtsp_server_works() -> bool {
    std::process::Command::new(PYTHON)
        .args(["-c", "import gi; gi.require_version('GstRtspServer', '1.0')"])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
