//! The kernel's maps as one worker writes and reads them: [`Table`] on file descriptors of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::sys::SyscallError;
use msm_fastpath::progress::Pace;
use msm_fastpath::{FlowEntry, FlowKey, FlowStats, Gate, GateEntry, LegEntry, LegStats, PortKey};

use super::load::{Kernel, LoadError};
use super::names::Names;
use super::pins::Pins;
use super::table::{Table, TableError};

/// Names of the maps, as the object has them.
pub(super) mod name {
    pub(crate) const FLOWS: &str = "FLOWS";
    pub(crate) const FLOW_STATS: &str = "FLOW_STATS";
    pub(crate) const LEGS: &str = "LEGS";
    pub(crate) const GATES: &str = "GATES";
    pub(crate) const LEG_STATS: &str = "LEG_STATS";
    pub(crate) const PORTS: &str = "PORTS";
    pub(crate) const COUNTERS: &str = "COUNTERS";
    pub(crate) const EVENTS: &str = "EVENTS";

    /// Every map that is pinned.
    pub(crate) const ALL: [&str; 8] = [FLOWS, FLOW_STATS, LEGS, GATES, LEG_STATS, PORTS, COUNTERS, EVENTS];
}

/// Media addresses that were written since this process started; the others are an earlier one's.
pub(super) type PortsWritten = Arc<Mutex<BTreeSet<PortId>>>;

/// One worker's way to the maps.
pub struct KernelTable {
    flows: HashMap<MapData, FlowKey, FlowEntry>,
    flow_stats: Array<MapData, FlowStats>,
    legs: Array<MapData, LegEntry>,
    gates: Array<MapData, GateEntry>,
    leg_stats: PerCpuArray<MapData, LegStats>,
    ports: HashMap<MapData, PortKey, u32>,
    cpus: usize,
    ports_written: PortsWritten,
    /// Media addresses that this worker has closed to everything without a flow.
    closed: BTreeSet<PortId>,
    names: Names,
}

impl std::fmt::Debug for KernelTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelTable").finish_non_exhaustive()
    }
}

impl KernelTable {
    /// Opens the maps of loaded programs once more.
    ///
    /// # Errors
    /// [`LoadError::Map`] if one is missing or of another layout.
    pub(super) fn open(kernel: &Kernel, ports_written: &PortsWritten) -> Result<Self, LoadError> {
        Self::from_maps(|map| kernel.map_again(map), ports_written)
    }

    /// Opens maps that a proxy pinned, which need not run any more.
    ///
    /// # Errors
    /// As for a map of another layout, [`LoadError::Map`].
    pub fn pinned(pins: &Pins) -> Result<Self, LoadError> {
        let open = |map| MapData::from_pin(pins.object(map)).map_err(|_| LoadError::Map { map });
        Self::from_maps(open, &PortsWritten::default())
    }

    fn from_maps(
        open: impl Fn(&'static str) -> Result<MapData, LoadError>,
        ports_written: &PortsWritten,
    ) -> Result<Self, LoadError> {
        let cpus = aya::util::nr_cpus().map_err(|_| LoadError::Map { map: name::LEG_STATS })?;
        Ok(Self {
            flows: typed(name::FLOWS, open(name::FLOWS)?)?,
            flow_stats: typed(name::FLOW_STATS, open(name::FLOW_STATS)?)?,
            legs: typed(name::LEGS, open(name::LEGS)?)?,
            gates: typed(name::GATES, open(name::GATES)?)?,
            leg_stats: typed(name::LEG_STATS, open(name::LEG_STATS)?)?,
            ports: typed(name::PORTS, open(name::PORTS)?)?,
            cpus,
            ports_written: Arc::clone(ports_written),
            closed: BTreeSet::new(),
            names: Names::default(),
        })
    }

    /// Names what it writes there.
    pub(super) fn with_names(self, names: &Names) -> Self {
        Self { names: names.clone(), ..self }
    }

    /// Number of legs and of flows that the maps hold.
    pub(super) fn capacity(&self) -> (u32, u32) {
        (self.legs.len(), self.self_test_index())
    }

    /// Index of flow statistics that is no flow's: the self-test's.
    pub(super) fn self_test_index(&self) -> u32 {
        self.flow_stats.len().saturating_sub(1)
    }

    /// Every published flow.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn published(&self) -> Result<Vec<(FlowKey, FlowEntry)>, TableError> {
        self.flows.iter().map(|item| item.map_err(refused(name::FLOWS))).collect()
    }

    /// How the packets of the published flows of some interfaces come, and how many viewers they have, for who
    /// decides about merging their bursts:
    /// three system calls per flow and two per leg. A flow that changes while it is asked for may be left out.
    pub fn paces(&self, of: impl Fn(u32) -> bool) -> Vec<(FlowKey, Pace, u16)> {
        let most = self.flow_stats.len() as usize;
        let published = self.flows.iter().take(most).filter_map(Result::ok);
        let flows = published.filter(|(key, _)| of(key.ifindex));
        let pace = |entry: &FlowEntry| self.flow_stats(entry.stats).ok().map(|stats| stats.pace());
        flows.filter_map(|(key, entry)| Some((key, pace(&entry)?, self.viewers(&entry)))).collect()
    }

    /// Legs of a flow whose gates are not shut: of those that it walks through some are nobody's any more.
    fn viewers(&self, entry: &FlowEntry) -> u16 {
        let last = entry.first_leg.saturating_add(entry.legs.into());
        let is_shut = |slot| {
            let gate = self.legs.get(&slot, 0).and_then(|leg| self.gates.get(&leg.id, 0));
            gate.map_or(true, |gate| Gate::try_from(gate) == Ok(Gate::Disabled))
        };
        (entry.first_leg..last).filter(|slot| !is_shut(*slot)).count() as u16
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn leg(&self, slot: u32) -> Result<LegEntry, TableError> {
        self.legs.get(&slot, 0).map_err(refused(name::LEGS))
    }

    /// Every media address that is known.
    pub(super) fn port_keys(&self) -> Vec<PortKey> {
        self.ports.keys().filter_map(Result::ok).collect()
    }

    /// Media addresses that only known sources reach.
    pub fn closed_ports(&self) -> usize {
        self.ports.iter().filter_map(Result::ok).filter(|(_, value)| *value == PortKey::STRICT).count()
    }
}

impl Kernel {
    /// The tables, for a program that fills them without workers.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn table(&self) -> Result<KernelTable, LoadError> {
        KernelTable::open(self, &PortsWritten::default())
    }

    /// A map of the loaded programs, by a descriptor of its own.
    fn map_again(&self, map: &'static str) -> Result<MapData, LoadError> {
        let missing = || LoadError::Map { map };
        let data = self.ebpf.map(map).and_then(map_data).ok_or_else(missing)?;
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|_| missing())?;
        MapData::from_fd(fd).map_err(|_| missing())
    }

    /// As [`Kernel::map_again`], of the type that is expected.
    pub(super) fn open_map<M: TryFrom<aya::maps::Map, Error = MapError>>(
        &self,
        map: &'static str,
    ) -> Result<M, LoadError> {
        typed(map, self.map_again(map)?)
    }
}

/// A map as the type that it is expected to be, by the kernel's own word about its kind and sizes.
pub(super) fn typed<M: TryFrom<aya::maps::Map, Error = MapError>>(
    map: &'static str,
    data: MapData,
) -> Result<M, LoadError> {
    let missing = |_| LoadError::Map { map };
    M::try_from(aya::maps::Map::from_map_data(data).map_err(missing)?).map_err(missing)
}

/// What is inside, for the kinds of maps that the programs have.
pub(super) fn map_data(map: &aya::maps::Map) -> Option<&MapData> {
    use aya::maps::Map;
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// A media address as something that can be looked up.
pub(super) type PortId = ([u8; 16], [u8; 2]);

pub(super) fn port_id(key: &PortKey) -> PortId {
    (key.addr, key.port)
}

/// Puts the kernel's answer into words.
fn refused(map: &'static str) -> impl Fn(MapError) -> TableError {
    move |error| match &error {
        MapError::SyscallError(SyscallError { io_error, .. })
            if matches!(io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM | libc::ENOSPC)) =>
        {
            TableError::Full { map }
        }
        MapError::SyscallError(SyscallError { io_error, .. }) => {
            TableError::Refused { map, errno: io_error.to_string() }
        }
        _ => TableError::Refused { map, errno: error.to_string() },
    }
}

fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound)
        || matches!(error, MapError::SyscallError(SyscallError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::ENOENT))
}

fn removed(result: Result<(), MapError>, map: &'static str) -> Result<(), TableError> {
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        other => other.map_err(refused(map)),
    }
}

impl Table for KernelTable {
    fn put_flow(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<(), TableError> {
        self.flows.insert(key, entry.under(key), 0).map_err(refused(name::FLOWS))
    }

    fn remove_flow(&mut self, key: &FlowKey) -> Result<(), TableError> {
        let port = PortKey { addr: key.dst, port: key.dst_port, pad: [0; 2] };
        if self.closed.contains(&port_id(&port)) {
            self.put_port(&port, None)?;
        }
        removed(self.flows.remove(key), name::FLOWS)
    }

    fn put_flow_stats(&mut self, index: u32, stats: &FlowStats) -> Result<(), TableError> {
        self.flow_stats.set(index, stats, 0).map_err(refused(name::FLOW_STATS))
    }

    fn flow_stats(&self, index: u32) -> Result<FlowStats, TableError> {
        self.flow_stats.get(&index, 0).map_err(refused(name::FLOW_STATS))
    }

    fn put_leg(&mut self, slot: u32, entry: &LegEntry) -> Result<(), TableError> {
        self.legs.set(slot, entry, 0).map_err(refused(name::LEGS))
    }

    fn put_gate(&mut self, id: u32, gate: GateEntry) -> Result<(), TableError> {
        self.gates.set(id, gate, 0).map_err(refused(name::GATES))
    }

    fn gate(&self, id: u32) -> Result<GateEntry, TableError> {
        self.gates.get(&id, 0).map_err(refused(name::GATES))
    }

    fn clear_leg_stats(&mut self, id: u32) -> Result<(), TableError> {
        let io = |error| TableError::Refused { map: name::LEG_STATS, errno: format!("{error}") };
        let zero = PerCpuValues::try_from(vec![LegStats::ZERO; self.cpus]).map_err(io)?;
        self.leg_stats.set(id, zero, 0).map_err(refused(name::LEG_STATS))
    }

    fn leg_stats(&self, id: u32) -> Result<LegStats, TableError> {
        let cpus = self.leg_stats.get(&id, 0).map_err(refused(name::LEG_STATS))?;
        Ok(cpus.iter().fold(LegStats::ZERO, |sum, cpu| sum.plus(*cpu)))
    }

    fn put_port(&mut self, key: &PortKey, value: Option<u32>) -> Result<(), TableError> {
        let id = port_id(key);
        let close = value == Some(PortKey::STRICT);
        if close && self.closed.contains(&id) {
            return Ok(());
        }
        match value {
            Some(value) => {
                self.ports_written.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                self.ports.insert(key, value, 0).map_err(refused(name::PORTS))?;
            }
            None => removed(self.ports.remove(key), name::PORTS)?,
        }
        if close {
            self.closed.insert(id);
        } else {
            self.closed.remove(&id);
        }
        Ok(())
    }

    fn name_flow(&mut self, index: u32, stream: &str, source: SocketAddr) {
        self.names.put_flow(index, stream, source);
    }

    fn name_leg(&mut self, id: u32, viewer: SocketAddr) {
        self.names.put_leg(id, viewer);
    }

    fn now(&self) -> u64 {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        now.map_or(0, |now| std::time::Duration::from(now).as_nanos() as u64)
    }
}
