//! The maps of the kernel programs: flows in, counters out.

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use msm_fastpath::limits::{COUNTERS, VERDICT_COUNTERS};
use msm_fastpath::{DropReason, FlowEntry, FlowKey, FlowStats};

use super::load::{Kernel, LoadError};

/// Name of the map of flows.
const FLOWS: &str = "FLOWS";
/// Name of the map of flow statistics.
const FLOW_STATS: &str = "FLOW_STATS";
/// Name of the map of counters.
const COUNTERS_MAP: &str = "COUNTERS";

/// Why a map operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The object is not what this proxy expects.
    #[error(transparent)]
    Object(#[from] LoadError),
    /// The kernel refused.
    #[error("map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
}

/// What the programs counted since they were loaded, all CPUs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters([u64; COUNTERS as usize]);

impl Counters {
    /// The counter at an index of `msm_fastpath::limits`; 0 beyond the last.
    pub fn verdict(&self, index: u32) -> u64 {
        self.0.get(index as usize).copied().unwrap_or(0)
    }

    /// Packets dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.verdict(VERDICT_COUNTERS + reason.index() as u32)
    }

    /// Packets counted under any heading: every packet counts exactly once.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

fn refused(map: &'static str) -> impl Fn(MapError) -> MapsError {
    move |source| MapsError::Map { map, source }
}

impl Kernel {
    /// Installs a flow, or replaces its entry in one map update.
    ///
    /// # Errors
    /// [`MapsError::Map`] if the map is full, for example.
    pub fn insert_flow(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<(), MapsError> {
        self.flows()?.insert(key, entry.under(key), 0).map_err(refused(FLOWS))
    }

    /// Removes a flow.
    ///
    /// # Errors
    /// [`MapsError::Map`] if there is no such flow.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<(), MapsError> {
        self.flows()?.remove(key).map_err(refused(FLOWS))
    }

    /// Progress of a flow, by the index in its entry.
    ///
    /// # Errors
    /// [`MapsError::Map`] if the index is beyond the map.
    pub fn flow_statistics(&mut self, index: u32) -> Result<FlowStats, MapsError> {
        self.flow_stats()?.get(&index, 0).map_err(refused(FLOW_STATS))
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// [`MapsError`].
    pub fn counters(&self) -> Result<Counters, MapsError> {
        let map = self
            .ebpf
            .map(COUNTERS_MAP)
            .and_then(|map| PerCpuArray::<_, u64>::try_from(map).ok())
            .ok_or(LoadError::Map { map: COUNTERS_MAP })?;
        let mut counters = [0; COUNTERS as usize];
        for (index, counter) in counters.iter_mut().enumerate() {
            let per_cpu = map.get(&(index as u32), 0).map_err(refused(COUNTERS_MAP))?;
            *counter = per_cpu.iter().sum();
        }
        Ok(Counters(counters))
    }

    fn flows(&mut self) -> Result<HashMap<&mut MapData, FlowKey, FlowEntry>, MapsError> {
        let map = self.ebpf.map_mut(FLOWS).and_then(|map| HashMap::try_from(map).ok());
        Ok(map.ok_or(LoadError::Map { map: FLOWS })?)
    }

    fn flow_stats(&mut self) -> Result<Array<&mut MapData, FlowStats>, MapsError> {
        let map = self.ebpf.map_mut(FLOW_STATS).and_then(|map| Array::try_from(map).ok());
        Ok(map.ok_or(LoadError::Map { map: FLOW_STATS })?)
    }
}
