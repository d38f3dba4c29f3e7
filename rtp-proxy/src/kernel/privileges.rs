//! What this process may do, by its effective capabilities.

use std::fs;
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::unistd::{AccessFlags, Uid, User, faccessat};

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What the fast path needs. Without CAP_PERFMON the verifier refuses sums of a pointer and a variable, by which a
/// packet's fields are found; so it does for everybody but root.
const NEEDED: [(u32, &str); 3] =
    [(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_PERFMON, "CAP_PERFMON")];

/// A line of this thread's status.
fn status(key: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

/// A set of capabilities as a bit mask.
fn mask(key: &str) -> u64 {
    u64::from_str_radix(&status(key), 16).unwrap_or(0)
}

fn effective() -> u64 {
    mask("CapEff")
}

fn has(mask: u64, capability: u32) -> bool {
    mask >> capability & 1 == 1
}

/// Names of the capabilities that the fast path needs and `mask` lacks. CAP_SYS_ADMIN stands in for
/// CAP_BPF and CAP_PERFMON, as kernels before 5.8 had it.
fn lacking(mask: u64) -> Vec<&'static str> {
    let granted =
        |capability| has(mask, capability) || (capability != CAP_NET_ADMIN && has(mask, CAP_SYS_ADMIN));
    NEEDED.into_iter().filter(|(capability, _)| !granted(*capability)).map(|(_, name)| name).collect()
}

/// `CAP_A, CAP_B and CAP_C`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Everything that the fast path needs, in words.
pub fn needed() -> String {
    listed(&NEEDED.map(|(_, name)| name))
}

/// How a program at `program` gets what is missing: what to do depends on what keeps it from it.
pub fn how_to_get(program: &str) -> String {
    let bounds = mask("CapBnd");
    if NEEDED.iter().any(|(capability, _)| !has(bounds, *capability)) {
        return "a container or unit leaves them out: docker run --cap-add=BPF --cap-add=NET_ADMIN \
                --cap-add=PERFMON, or CapabilityBoundingSet= and AmbientCapabilities= of the unit"
            .to_owned();
    }
    let names = NEEDED.map(|(_, name)| name);
    if status("NoNewPrivs") == "1" {
        let names = names.join(" ");
        return format!("what a file has does not count here (no_new_privs): AmbientCapabilities={names}");
    }
    let names = names.join(",").to_lowercase();
    format!("sudo setcap {names}+ep {program}, or run as root")
}

/// Name of the user that this process acts as.
pub fn user() -> String {
    let uid = Uid::effective();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Whether entries may be made in a directory.
pub fn may_write(directory: &Path) -> bool {
    // Judged by the effective user and its capabilities, as the making of them will be.
    let flags = nix::fcntl::AtFlags::AT_EACCESS;
    faccessat(AT_FDCWD, directory, AccessFlags::W_OK | AccessFlags::X_OK, flags).is_ok()
}

/// Inode of the initial PID namespace (`PROC_PID_INIT_INO` of linux/proc_ns.h): others do not show every process.
const INITIAL_PIDS: &str = "pid:[4026531836]";

/// Whether the namespaces of every process of the machine can be looked up.
pub fn may_see_processes() -> bool {
    let pids = fs::read_link("/proc/thread-self/ns/pid");
    has(effective(), CAP_SYS_PTRACE) && pids.is_ok_and(|pids| pids.as_os_str() == INITIAL_PIDS)
}

/// Whether the modes of files bind us.
pub fn may_write_everything() -> bool {
    has(effective(), CAP_DAC_OVERRIDE)
}

/// Whether sockets may have larger buffers than `net.core.rmem_max`.
pub fn may_force_buffers() -> bool {
    has(effective(), CAP_NET_ADMIN)
}

/// Whether this is the initial user namespace: in others the kernel loads no programs, whatever the
/// capabilities say there.
pub fn in_initial_user_namespace() -> bool {
    // Only the initial one maps every id onto itself.
    let map = fs::read_to_string("/proc/thread-self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// What is missing and what to do, `None` if nothing is.
pub fn missing() -> Option<String> {
    let lacking = lacking(effective());
    if lacking.is_empty() {
        let here = in_initial_user_namespace();
        return (!here).then(|| "the kernel loads no programs in a user namespace".to_owned());
    }
    Some(format!("{} missing; rtp-proxy doctor says how to get it", listed(&lacking)))
}

/// Whether file systems may be mounted.
pub fn may_mount() -> bool {
    has(effective(), CAP_SYS_ADMIN)
}

/// As [`missing`], only the names, in words; `None` if nothing is missing.
pub fn missing_names() -> Option<String> {
    let lacking = lacking(effective());
    (!lacking.is_empty()).then(|| listed(&lacking))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(lacking(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(lacking(1 << CAP_BPF | 1 << CAP_NET_ADMIN), ["CAP_PERFMON"]);
        assert!(lacking(1 << CAP_BPF | 1 << CAP_NET_ADMIN | 1 << CAP_PERFMON).is_empty());
        assert!(lacking(1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN).is_empty());
        assert_eq!(lacking(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(listed(&lacking(0)), needed());
        assert_eq!(needed(), "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
    }
}
