//! What one worker owns of the fast path, and what it can take over from an earlier process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use msm_fastpath::flow::{address, octets};
use msm_fastpath::{FlowEntry, FlowKey, FlowStats, Gate, GateEntry, LegEntry};

use super::hop::Want;
use super::slots::{Extent, Holder, SlotRange, Slots};
use super::table::{Table, TableError};
use super::tables::KernelTable;
use super::ways::{Note, Ways};

/// A worker's part of the fast path. `T` is [`KernelTable`] but in tests.
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
    /// Until when that may go on.
    left_until: Instant,
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

/// Where a viewer of an earlier process gets its media: address and port as a [`LegEntry`] has them.
type ViewerId = ([u8; 16], [u8; 2]);

#[derive(Debug, Default)]
struct Book {
    /// Flows that nobody has claimed yet.
    flows: BTreeMap<FlowId, (FlowKey, AdoptedFlow)>,
    /// Gates of viewers that have not set up again, in flows that are claimed as in others.
    viewers: BTreeMap<ViewerId, Vec<u32>>,
}

/// What an earlier process left. Looked at when a flow or a viewer starts and when the grace is over, never per
/// packet.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    book: Arc<Mutex<Book>>,
}

impl Left {
    /// Reads what is published.
    ///
    /// # Errors
    /// [`TableError`].
    pub(super) fn read(table: &KernelTable) -> Result<Self, TableError> {
        let mut book = Book::default();
        for (key, entry) in table.published()? {
            let flow = read_flow(table, entry)?;
            for leg in flow.legs.iter().filter(|leg| leg.is_open()) {
                book.viewers.entry((leg.entry.dst, leg.entry.dst_port)).or_default().push(leg.entry.id);
            }
            book.flows.insert(flow_id(&key), (key, flow));
        }
        Ok(Self { book: Arc::new(Mutex::new(book)) })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.book().flows.len()
    }

    fn claim(&self, key: &FlowKey) -> Option<AdoptedFlow> {
        self.book().flows.remove(&flow_id(key)).map(|(_, flow)| flow)
    }

    /// The first `most` viewers that have not set up again, with the ids of their legs.
    pub(super) fn viewers(&self, most: usize) -> Vec<(SocketAddr, Vec<u32>)> {
        let viewer = |(ip, port): &ViewerId| SocketAddr::new(address(*ip), u16::from_be_bytes(*port));
        self.book().viewers.iter().take(most).map(|(id, legs)| (viewer(id), legs.clone())).collect()
    }

    /// Ends everything that nobody claimed: `remove` takes a flow out of the kernel and says whether it is gone.
    /// Whoever claims a flow meanwhile gets it whole, or finds that it is gone; a worker waits no longer than for one.
    /// Returns the flows whose indices are nobody's any more.
    pub(super) fn end(&self, mut remove: impl FnMut(&FlowKey) -> bool) -> Vec<(FlowKey, AdoptedFlow)> {
        let mut ended = Vec::new();
        loop {
            let mut book = self.book();
            let Some((_, (key, flow))) = book.flows.pop_first() else { return ended };
            book.forget_viewers(&flow);
            if remove(&key) {
                ended.push((key, flow));
            }
        }
    }

    /// Takes the indices in use out of a worker's.
    pub(super) fn reserve(&self, slots: &mut Slots) {
        let flows = &self.book().flows;
        let stats: BTreeSet<u32> = flows.values().map(|(_, flow)| flow.entry.stats).collect();
        let ids: BTreeSet<u32> = flows.values().flat_map(|(_, flow)| flow.ids()).collect();
        let ranges: Vec<SlotRange> = flows.values().filter_map(|(_, flow)| flow.range).collect();
        slots.reserve(&stats, &ids, &ranges);
    }
}

impl Book {
    /// The flow ends: its gates are somebody else's from now on.
    fn forget_viewers(&mut self, flow: &AdoptedFlow) {
        for leg in &flow.legs {
            let viewer = (leg.entry.dst, leg.entry.dst_port);
            if let Some(gates) = self.viewers.get_mut(&viewer) {
                gates.retain(|id| *id != leg.entry.id);
                if gates.is_empty() {
                    self.viewers.remove(&viewer);
                }
            }
        }
    }
}

impl AdoptedLeg {
    /// Whether packets pass, or will.
    fn is_open(&self) -> bool {
        Gate::try_from(self.gate).is_ok_and(|gate| gate != Gate::Disabled)
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
        Self { table, slots, ways, left: Left::default(), left_until: Instant::now() }
    }

    pub(super) fn with_left(self, left: Left, left_until: Instant) -> Self {
        Self { left, left_until, ..self }
    }

    /// Until when flows of an earlier process may go on.
    pub fn left_until(&self) -> Instant {
        self.left_until
    }

    /// A viewer sets up: what an earlier process sent to the same address and port is not sent any more.
    pub fn replace_viewer(&mut self, viewer: SocketAddr) {
        let gates = self.left.book().viewers.remove(&(octets(viewer.ip()), viewer.port().to_be_bytes()));
        for id in gates.into_iter().flatten() {
            let _ = self.table.put_gate(id, Gate::Disabled.into());
        }
    }

    /// Whether a flow that was claimed still has viewers that have not set up again.
    pub fn has_viewers(&self, flow: &AdoptedFlow) -> bool {
        let gate = |leg: &AdoptedLeg| self.table.gate(leg.entry.id).ok();
        flow.legs.iter().any(|leg| gate(leg).is_some_and(|gate| AdoptedLeg { gate, ..*leg }.is_open()))
    }

    /// Ends a flow that was claimed: it is forwarded no more, and its indices are free after their rest.
    ///
    /// # Errors
    /// If the kernel does not let go of it; then nobody gets its indices.
    pub fn end_claimed(
        &mut self,
        key: &FlowKey,
        flow: &AdoptedFlow,
        holder: &Holder,
        now: Instant,
    ) -> Result<(), TableError> {
        let removed = self.table.remove_flow(key);
        self.left.book().forget_viewers(flow);
        for id in flow.ids() {
            let _ = self.table.put_gate(id, Gate::Disabled.into());
        }
        removed?;
        for id in flow.ids() {
            self.slots.give_id(holder, id, now);
        }
        if let Some(range) = flow.range {
            self.slots.give_slots(holder, range, now);
        }
        self.slots.give_flow(holder, flow.entry.stats, now);
        Ok(())
    }

    /// Takes over a flow that an earlier process published: it forwards on, and its indices are this
    /// worker's from now on, to be given back like its own. Nobody else gets it.
    pub fn claim(&mut self, key: &FlowKey, holder: &Holder) -> Option<AdoptedFlow> {
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
        self.slots.adopt(holder, flow.range, flow.ids().len());
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

#[cfg(test)]
mod tests;
