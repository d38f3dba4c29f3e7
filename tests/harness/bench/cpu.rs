//! Whose CPU time counts: processes pinned to a core, kernel threads, and what everyone else used meanwhile.
//!
//! Times come from the scheduler's own accounting (`CLOCK_PROCESS_CPUTIME_ID`, `schedstat`), never from
//! `/proc/stat` by mode: that is sampled at the tick, and paced traffic keeps step with the tick.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::lab::Node;

/// A child process on one core that does not outlive its owner.
#[derive(Debug)]
pub struct Pinned(Child);

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Pinned {
    /// Starts `program` on one core, inside a node's namespace when there is one. Its output goes nowhere.
    pub fn start(node: Option<&Node>, core: usize, program: &Path, args: &[String]) -> Result<Self> {
        Self::start_on(node, &core.to_string(), program, args)
    }

    /// The same on a list of cores, as `taskset -c` takes it.
    pub fn start_on(node: Option<&Node>, cores: &str, program: &Path, args: &[String]) -> Result<Self> {
        // `ip netns exec` and `taskset` replace themselves: the process id stays.
        let mut command = match node {
            Some(node) => node.command("taskset"),
            None => Command::new("taskset"),
        };
        command.args(["-c", cores]).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().with_context(|| format!("starting {}", program.display()))?))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// CPU ns of all its threads, ended ones included.
    pub fn cpu(&self) -> Result<u64> {
        process(self.pid())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

/// CPU ns of this process.
pub fn own() -> Result<u64> {
    ns(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU ns of another process, all threads.
pub fn process(pid: u32) -> Result<u64> {
    ns(nix::time::clock_getcpuclockid(Pid::from_raw(pid as i32)).context("the process's CPU clock")?)
}

fn ns(clock: ClockId) -> Result<u64> {
    let t = clock_gettime(clock)?;
    Ok((t.tv_sec() * 1_000_000_000 + t.tv_nsec()) as u64)
}

/// Pins the calling thread.
pub fn pin(core: usize) -> Result<()> {
    pin_task(0, core)
}

/// Pins another task: a kernel thread, for example.
pub fn pin_task(pid: u32, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).context("core number")?;
    sched_setaffinity(Pid::from_raw(pid as i32), &set).context("pinning")
}

/// Kernel threads that do network work.
#[derive(Debug, Clone, Default)]
pub struct KernelThreads(Vec<u32>);

impl KernelThreads {
    /// Those whose name starts with `prefix` now: `ksoftirqd/`, `napi/`.
    pub fn named(prefix: &str) -> Result<Self> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // Only kernel threads have no executable.
            if name.starts_with(prefix) && std::fs::read_link(format!("/proc/{pid}/exe")).is_err() {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(Self(found))
    }

    /// Those of `self` that `before` lacks.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().filter(|pid| !before.0.contains(pid)).copied().collect())
    }

    /// All of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self([&self.0[..], &other.0].concat())
    }

    /// Their process ids.
    pub fn pids(&self) -> &[u32] {
        &self.0
    }

    /// CPU ns of all of them; one that has ended counts nothing.
    pub fn cpu(&self) -> u64 {
        self.0.iter().map(|pid| schedstat(&format!("/proc/{pid}/schedstat"))).sum()
    }
}

fn schedstat(path: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// What the whole machine has used at one moment.
#[derive(Debug, Clone)]
pub struct Machine {
    /// CPU ns by task.
    tasks: HashMap<u32, u64>,
    /// Ticks stolen by the hypervisor, all cores.
    steal: u64,
}

/// What happened between two moments.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    /// CPU ns of all tasks. Tasks that ended in between are missing.
    pub busy_ns: u64,
    /// Time that the hypervisor gave to others, in ns of one core.
    pub steal_ns: u64,
}

impl Machine {
    /// Reads the time of every task: some milliseconds of work, to be done outside measured windows.
    pub fn now() -> Result<Self> {
        let mut tasks = HashMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten() {
                let Some(tid) = thread.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                    continue;
                };
                tasks.insert(tid, schedstat(&format!("/proc/{pid}/task/{tid}/schedstat")));
            }
        }
        // "cpu  user nice system idle iowait irq softirq steal ...", in ticks of 10 ms
        let stat = std::fs::read_to_string("/proc/stat")?;
        let steal = stat.lines().next().and_then(|l| l.split_ascii_whitespace().nth(8));
        Ok(Self { tasks, steal: steal.and_then(|s| s.parse().ok()).unwrap_or(0) })
    }

    /// What was used since an earlier moment. A task that is new counts with all it has used.
    pub fn since(&self, before: &Self) -> Use {
        let busy = self.tasks.iter().map(|(tid, ns)| {
            let earlier = before.tasks.get(tid).copied().unwrap_or(0);
            ns.saturating_sub(earlier)
        });
        Use {
            busy_ns: busy.sum(),
            steal_ns: self.steal.saturating_sub(before.steal).saturating_mul(10_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_seen_by_both_accounts() {
        let (machine, own_before) = (Machine::now().unwrap(), own().unwrap());
        // CPU time, not wall clock: however slow the machine, this much is used. By this thread: others of the process
        // may end meanwhile, and theirs is in no account of tasks then.
        let thread = || ns(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        let before = thread();
        while thread() < before + 40_000_000 {}
        let used = Machine::now().unwrap().since(&machine);
        // A task's account is as old as the last tick.
        assert!(used.busy_ns >= 25_000_000, "{used:?}");
        assert!(own().unwrap() - own_before >= 40_000_000);
    }
}
