//! What the programs and the kernel around them counted, for metrics.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, PerCpuArray};
use msm_fastpath::limits::VERDICT_COUNTERS;
use msm_fastpath::{DropReason, PassReason};

use super::load::{Kernel, LoadError};
use super::pins::Pins;
use super::tables::{name, typed};

/// Reads the counters on a descriptor of its own.
pub struct Reader {
    counters: PerCpuArray<MapData, u64>,
    /// Losses of the backlogs before this process started.
    softnet_before: u64,
    /// What the rings of interfaces lost whose bursts this process has merged.
    rings: Arc<AtomicU64>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Of programs that this process loaded.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn open(kernel: &Kernel) -> Result<Self, LoadError> {
        Ok(Self::of(kernel.open_map(name::COUNTERS)?))
    }

    /// Of programs that a proxy pinned, which need not run any more.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn pinned(pins: &Pins) -> Result<Self, LoadError> {
        let missing = |_| LoadError::Map { map: name::COUNTERS };
        let data = MapData::from_pin(pins.object(name::COUNTERS)).map_err(missing)?;
        Ok(Self::of(typed(name::COUNTERS, data)?))
    }

    fn of(counters: PerCpuArray<MapData, u64>) -> Self {
        Self { counters, softnet_before: softnet(), rings: Arc::default() }
    }

    /// Where it is told what the rings of interfaces lose while their bursts are merged.
    pub(super) fn rings(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.rings)
    }

    /// The counter at an index of `msm_fastpath::limits`, all CPUs together; 0 if it cannot be read.
    pub fn counter(&self, index: u32) -> u64 {
        self.counters.get(&index, 0).map_or(0, |cpus| cpus.iter().sum())
    }

    /// Packets dropped by reason: by the programs since they were loaded first, by the rings of interfaces while
    /// this process has their bursts merged, and by the per-CPU backlogs of the whole machine since this process started. Reasons without a drop are left out.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let programs =
            DropReason::ALL.map(|reason| (reason, self.counter(VERDICT_COUNTERS + reason.index() as u32)));
        let programs = programs.map(|(reason, count)| match reason {
            DropReason::RingFull => (reason, count + self.rings.load(Ordering::Relaxed)),
            _ => (reason, count),
        });
        let softnet = (DropReason::Softnet, softnet().saturating_sub(self.softnet_before));
        programs
            .into_iter()
            .chain([softnet])
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.as_str(), count))
            .collect()
    }

    /// Packets that the programs left to the kernel's own stack since they were loaded first, by why. Reasons without
    /// a packet are left out.
    pub fn passes(&self) -> Vec<(&'static str, u64)> {
        PassReason::ALL
            .map(|reason| (reason.as_str(), self.counter(reason.counter())))
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// Packets that the per-CPU backlogs of this machine dropped since it started.
pub fn softnet() -> u64 {
    softnet_of(&fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default())
}

/// The second column, hexadecimal, one line per CPU.
fn softnet_of(text: &str) -> u64 {
    text.lines().filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backlog_losses_are_summed_over_cpus() {
        let text = "0000b5c1 0000000a 00000002 0 0\n00000001 00000010 0 0\nnonsense\n";
        assert_eq!(softnet_of(text), 26);
        assert_eq!(softnet_of(""), 0);
    }
}
