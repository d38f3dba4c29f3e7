//! What this process may do, by its effective capabilities.

use std::fs;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// A bit mask of capabilities.
fn effective() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(hex.trim(), 16).unwrap_or(0)
}

/// Names of the capabilities that the kernel path needs and `mask` lacks. CAP_SYS_ADMIN stands in for
/// CAP_BPF, as kernels before 5.8 had it.
fn lacking(mask: u64) -> Vec<&'static str> {
    let has = |capability: u32| mask >> capability & 1 == 1;
    let mut lacking = Vec::new();
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        lacking.push("CAP_BPF");
    }
    if !has(CAP_NET_ADMIN) {
        lacking.push("CAP_NET_ADMIN");
    }
    lacking
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
    Some(format!("{} missing; rtp-proxy doctor says how to get it", lacking.join(" and ")))
}

/// Whether file systems may be mounted.
pub fn may_mount() -> bool {
    effective() >> CAP_SYS_ADMIN & 1 == 1
}

/// As [`missing`], only the names.
pub fn missing_names() -> Vec<&'static str> {
    lacking(effective())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(lacking(0), ["CAP_BPF", "CAP_NET_ADMIN"]);
        assert_eq!(lacking(1 << CAP_BPF), ["CAP_NET_ADMIN"]);
        assert!(lacking(1 << CAP_BPF | 1 << CAP_NET_ADMIN).is_empty());
        assert!(lacking(1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN).is_empty());
    }
}
