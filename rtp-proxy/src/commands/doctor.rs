//! `rtp-proxy doctor`: what the fast path needs, what of it is there, and the exact fix for the rest.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::Outcome;
use crate::kernel::batching::room::POLL;
use crate::kernel::counters;
use crate::kernel::device;
use crate::kernel::pins::{self, Pins};
use crate::kernel::privileges;
use crate::kernel::probe::{self, Answer};

/// Packets that one CPU's backlog is to take before it drops: the copies of one poll for 256 viewers.
const BACKLOG: u64 = 256 * POLL;
/// What the workers ask for, as `user::Settings` has it.
const RECEIVE_BUFFER: u64 = 8 << 20;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Good,
    /// It works, but not as well as it might.
    Warn,
    /// The fast path does not work without.
    Bad,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    mark: Mark,
    what: String,
    fix: Option<String>,
}

fn good(what: impl Into<String>) -> Check {
    Check { mark: Mark::Good, what: what.into(), fix: None }
}

fn warn(what: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { mark: Mark::Warn, what: what.into(), fix: Some(fix.into()) }
}

fn bad(what: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { mark: Mark::Bad, what: what.into(), fix: Some(fix.into()) }
}

/// Checks everything. Not well if something is missing without which media stays with the workers.
pub fn run(bpffs: &Path) -> Outcome {
    let mut checks = vec![built(), privileged(), namespace(), memlock(), bpf_file_system(bpffs)];
    if checks.iter().all(|check| check.mark != Mark::Bad) {
        checks.extend(programs());
    }
    checks.extend([batching(), jit(), receive_buffer(), backlog()].into_iter().flatten());
    checks.extend(left_behind(bpffs));
    let mut text = String::new();
    for check in &checks {
        let mark = match check.mark {
            Mark::Good => '√',
            Mark::Warn => '‼',
            Mark::Bad => '×',
        };
        let _ = writeln!(text, "{mark} {}", check.what);
        if let Some(fix) = &check.fix {
            let _ = writeln!(text, "    > {fix}");
        }
    }
    let ok = checks.iter().all(|check| check.mark != Mark::Bad);
    text.push_str(if ok {
        "media is forwarded in the kernel where it can be\n"
    } else {
        "media stays with the workers until that is done; everything works all the same\n"
    });
    Outcome { text, ok }
}

fn read(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn built() -> Check {
    if crate::kernel::OBJECT.is_some() {
        good("kernel programs are built in")
    } else {
        bad(
            "this binary was built without kernel programs",
            "cargo xtask setup && cargo build --release; release binaries have them",
        )
    }
}

fn privileged() -> Check {
    let user = privileges::user();
    let Some(lacking) = privileges::missing_names() else {
        return good(format!("{user} has {}", privileges::needed()));
    };
    let program =
        std::env::current_exe().map_or_else(|_| "rtp-proxy".to_owned(), |path| path.display().to_string());
    bad(format!("{user} lacks {lacking}"), privileges::how_to_get(&program))
}

fn namespace() -> Check {
    if privileges::in_initial_user_namespace() {
        good("the initial user namespace")
    } else {
        bad(
            "in a user namespace, where the kernel loads no programs for anybody",
            "run outside it: no --userns, no rootless container",
        )
    }
}

/// Before Linux 5.11 maps count against RLIMIT_MEMLOCK.
fn memlock() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if version(release) >= (5, 11) {
        return good(format!("Linux {release}, locked memory is not limited for maps"));
    }
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft < 256 << 20 => bad(
            format!("Linux {release}: locked memory is limited to {soft} bytes"),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit",
        ),
        _ => good(format!("Linux {release}, enough locked memory")),
    }
}

/// Major and minor of a kernel release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn bpf_file_system(path: &Path) -> Check {
    let shown = path.display();
    let there = pins::is_bpffs(path);
    let why = match Pins::plan(path, "", "").may_make(path) {
        Ok(()) if there => {
            return good(format!("bpffs at {shown}: forwarding goes on while the proxy restarts"));
        }
        Ok(()) => return good(format!("no bpffs at {shown} yet: the proxy mounts one")),
        Err(why) => why,
    };
    let user = privileges::user();
    let mount = if there { String::new() } else { format!("sudo mount -t bpf bpf {shown} && ") };
    warn(
        format!("{why}: forwarding ends with the proxy, and there is no tc rung"),
        // Everybody's pins lie there; what is in it has modes of its own.
        format!("{mount}sudo chmod a+x {shown} && sudo install -d -o {user} {shown}/{}", pins::FOLDER),
    )
}

/// Loads the programs and tries the hooks, in a network namespace made for it where that is allowed.
fn programs() -> Vec<Check> {
    let report = match probe::run() {
        Ok(report) => report,
        Err(why) => {
            return vec![bad(
                format!("the kernel refuses the programs: {why}"),
                "a newer kernel: 5.17 or later, TCX from 6.6",
            )];
        }
    };
    let mut checks = vec![good(format!("programs load ({} instructions verified)", report.instructions))];
    checks.push(match (&report.tcx, &report.tc) {
        (Answer::Works, _) => good("TCX works"),
        (Answer::Refused(why), Answer::Works) => {
            warn(format!("no TCX ({why}), tc instead"), "Linux 6.6 or later has TCX")
        }
        (Answer::Refused(tcx), Answer::Refused(tc)) => bad(
            format!("neither TCX ({tcx}) nor tc ({tc})"),
            "Linux 6.6, or a kernel with CONFIG_NET_CLS_BPF",
        ),
        (Answer::Known, _) => good("TCX is there; attaching was not tried, for that takes root"),
        (Answer::Refused(why), _) => {
            warn(format!("no TCX ({why}); tc was not tried"), "sudo rtp-proxy doctor tries it")
        }
        (Answer::NotTried, _) => warn("TCX and tc were not tried", "sudo rtp-proxy doctor tries them"),
    });
    let rung = match (&report.tcx, &report.tc) {
        (Answer::Works | Answer::Known, _) => "tcx",
        (_, Answer::Works) => "tc",
        (_, Answer::NotTried) => "not tried",
        _ => "user",
    };
    for interface in &report.interfaces {
        checks.push(match &interface.why_not {
            None => {
                let others = match interface.others {
                    0 => String::new(),
                    1 => ", behind a program of others".to_owned(),
                    more => format!(", behind {more} programs of others"),
                };
                good(format!("media that comes in by {}: {rung}{others}", interface.name))
            }
            Some(why) => good(format!("media that comes in by {}: user ({why})", interface.name)),
        });
    }
    checks
}

/// Only whoever has the fast path can use it.
fn batching() -> Option<Check> {
    if privileges::missing().is_some() {
        return None;
    }
    Some(match device::lacking() {
        None => good("bursts of sources behind a veth can be merged"),
        Some(why) => warn(
            format!("bursts of sources behind a veth are not merged: {why}"),
            if privileges::may_write_everything() {
                "Linux 5.12 or later, and /sys mounted writable"
            } else {
                "CAP_DAC_OVERRIDE beside the other capabilities, which is nearly root: only where bursts are large"
            },
        ),
    })
}

fn jit() -> Option<Check> {
    (read("/proc/sys/net/core/bpf_jit_enable")? == 0)
        .then(|| warn("programs are interpreted, not compiled", "sudo sysctl -w net.core.bpf_jit_enable=1"))
}

fn receive_buffer() -> Option<Check> {
    let max = read("/proc/sys/net/core/rmem_max")?;
    if privileges::may_force_buffers() {
        return Some(good(format!("net.core.rmem_max {max}, which does not bind the workers' sockets")));
    }
    Some(if max >= RECEIVE_BUFFER {
        good(format!("net.core.rmem_max {max}"))
    } else {
        warn(
            format!("net.core.rmem_max {max}: bursts may overflow the workers' sockets"),
            format!("sudo sysctl -w net.core.rmem_max={RECEIVE_BUFFER}"),
        )
    })
}

/// One packet becomes as many as there are legs before the backlog is looked at again.
fn backlog() -> Option<Check> {
    let max = read("/proc/sys/net/core/netdev_max_backlog")?;
    let lost = counters::softnet();
    let lost = if lost > 0 { format!(" ({lost} packets lost there since the start)") } else { String::new() };
    Some(if max >= BACKLOG {
        good(format!("net.core.netdev_max_backlog {max}{lost}"))
    } else {
        warn(
            format!(
                "net.core.netdev_max_backlog {max}: a burst to many viewers of one machine overflows it{lost}"
            ),
            format!("sudo sysctl -w net.core.netdev_max_backlog={BACKLOG}"),
        )
    })
}

fn left_behind(bpffs: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    for found in pins::find(bpffs) {
        if !pins::is_running(&found.instance) {
            checks.push(warn(
                format!("{} was left by a proxy that is not running", found.pins.path().display()),
                "start it again within its grace to go on, or: rtp-proxy uninstall",
            ));
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.18.5+"), (6, 18));
        assert_eq!(version("5.9-rc1"), (5, 9));
        assert!(version("5.10.0-28-amd64") < (5, 11) && version("6.1") > (5, 11));
        assert_eq!(version("nonsense"), (0, 0));
    }
}
