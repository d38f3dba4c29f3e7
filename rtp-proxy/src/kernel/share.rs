//! What one worker owns of the kernel path, and what it can take over from an earlier process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use msm_fastpath::{FlowEntry, FlowKey, FlowStats, GateEntry, LegEntry};

use super::hop::Want;
use super::slots::{Extent, SlotRange, Slots};
use super::table::{Table, TableError};
use super::tables::KernelTable;
use super::ways::{Note, Ways};

/// A worker's part of the kernel path. `T` is [`KernelTable`] but in tests.
#[derive(Debug)]
pub struct Share<T = KernelTable> {
    /// Writes and reads.
    pub table: T,
    /// Which indices it may use.
    pub slots: Slots,
    /// Where packets come from and go to.
    pub ways: Ways,
    /// What an earlier process left.
    left: Left,
}

/// A flow that an earlier process published and that forwards on.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptedFlow {
    /// As it is published.
    pub entry: FlowEntry,
    /// Its progress when it was read.
    pub stats: FlowStats,
    /// The slots of its legs, `None` if it has none.
    pub range: Option<SlotRange>,
    /// Its legs: slot, entry and gate.
    pub legs: Vec<AdoptedLeg>,
}

/// A leg of an [`AdoptedFlow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdoptedLeg {
    /// Its slot.
    pub slot: u32,
    /// What is in it.
    pub entry: LegEntry,
    /// Its gate.
    pub gate: GateEntry,
}

/// A flow's key as something ordered.
pub(super) type FlowId = ([u8; 16], [u8; 16], [u8; 2], [u8; 2], u32);

pub(super) fn flow_id(key: &FlowKey) -> FlowId {
    (key.src, key.dst, key.src_port, key.dst_port, key.ifindex)
}

/// Flows that nobody has claimed yet. Looked at when a flow starts and when the grace is over, never per
/// packet.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    flows: Arc<Mutex<BTreeMap<FlowId, (FlowKey, AdoptedFlow)>>>,
}

impl Left {
    /// Reads what is published.
    ///
    /// # Errors
    /// [`TableError`].
    pub(super) fn read(table: &KernelTable) -> Result<Self, TableError> {
        let mut flows = BTreeMap::new();
        for (key, entry) in table.published()? {
            flows.insert(flow_id(&key), (key, read_flow(table, entry)?));
        }
        Ok(Self { flows: Arc::new(Mutex::new(flows)) })
    }

    pub(super) fn len(&self) -> usize {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn claim(&self, key: &FlowKey) -> Option<AdoptedFlow> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.remove(&flow_id(key)).map(|(_, flow)| flow)
    }

    /// Everything that nobody claimed.
    pub(super) fn take(&self) -> Vec<(FlowKey, AdoptedFlow)> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *flows).into_values().collect()
    }

    /// Takes the indices in use out of a worker's.
    pub(super) fn reserve(&self, slots: &mut Slots) {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let stats: BTreeSet<u32> = flows.values().map(|(_, flow)| flow.entry.stats).collect();
        let ids: BTreeSet<u32> = flows.values().flat_map(|(_, flow)| flow.ids()).collect();
        let ranges: Vec<SlotRange> = flows.values().filter_map(|(_, flow)| flow.range).collect();
        slots.reserve(&stats, &ids, &ranges);
    }
}

impl AdoptedFlow {
    /// Ids of its legs, each once.
    pub(super) fn ids(&self) -> BTreeSet<u32> {
        self.legs.iter().map(|leg| leg.entry.id).collect()
    }
}

fn read_flow(table: &KernelTable, entry: FlowEntry) -> Result<AdoptedFlow, TableError> {
    let (capacity, _) = table.capacity();
    let slots = entry.first_leg..entry.first_leg.saturating_add(u32::from(entry.legs)).min(capacity);
    let mut legs = Vec::with_capacity(slots.len());
    for slot in slots {
        let leg = table.leg(slot)?;
        legs.push(AdoptedLeg { slot, entry: leg, gate: table.gate(leg.id)? });
    }
    let range =
        (entry.legs > 0).then(|| SlotRange { first: entry.first_leg, len: entry.legs.next_power_of_two() });
    Ok(AdoptedFlow { entry, stats: table.flow_stats(entry.stats)?, range, legs })
}

impl<T: Table> Share<T> {
    /// A share with nothing left by an earlier process.
    pub fn new(table: T, slots: Slots, ways: Ways) -> Self {
        Self { table, slots, ways, left: Left::default() }
    }

    pub(super) fn with_left(self, left: Left) -> Self {
        Self { left, ..self }
    }

    /// Takes over a flow that an earlier process published: it forwards on, and its indices are this
    /// worker's from now on, to be given back like its own. Nobody else gets it.
    pub fn claim(&mut self, key: &FlowKey, tenant: &str) -> Option<AdoptedFlow> {
        let mut flow = self.left.claim(key)?;
        // It went on counting since it was read.
        if let Ok(stats) = self.table.flow_stats(flow.entry.stats) {
            flow.stats = stats;
        }
        for leg in &mut flow.legs {
            if let Ok(gate) = self.table.gate(leg.entry.id) {
                leg.gate = gate;
            }
        }
        self.slots.adopt(tenant, flow.range, flow.ids().len());
        Some(flow)
    }

    /// Takes a note over. Returns the want whose answer is new.
    pub fn handle(&mut self, note: Note, now: Instant) -> Option<Want> {
        match note {
            Note::Way(want, way) => self.ways.put(want, way).then_some(want),
            Note::Returned { flows, ids, ranges } => {
                self.slots.restore(flows, ids, ranges, now);
                None
            }
        }
    }
}

/// Divides what nobody claimed among the workers whose share it lies in.
pub(super) fn returned(flows: &[(FlowKey, AdoptedFlow)], extents: &[Extent]) -> Vec<Note> {
    extents
        .iter()
        .map(|extent| Note::Returned {
            flows: flows
                .iter()
                .map(|(_, flow)| flow.entry.stats)
                .filter(|index| extent.flows.contains(index))
                .collect(),
            ids: flows.iter().flat_map(|(_, flow)| flow.ids()).filter(|id| extent.ids.contains(id)).collect(),
            ranges: flows
                .iter()
                .filter_map(|(_, flow)| flow.range)
                .filter(|range| extent.legs.contains(&range.first))
                .collect(),
        })
        .collect()
}
