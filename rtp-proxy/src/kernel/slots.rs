//! Which indices of the kernel's tables a worker may use: leg slots, leg ids and flow statistics.
//!
//! Pure, and of one worker: the tables are divided among the workers at start, so nobody asks anybody. An
//! index that was given back rests for [`QUARANTINE`] before the next holder writes to it, because a packet
//! that found the old flow entry may still be on its way through it (ADR 0005). One tenant, which is one
//! stream, gets at most its part of the share.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::ops::Range;
use std::time::{Duration, Instant};

use msm_fastpath::limits::MAX_LEGS;

use super::hop::UserReason;

/// How long an index rests. A packet leaves a program within microseconds; this also outlasts a virtual
/// machine that was stopped for a moment.
pub const QUARANTINE: Duration = Duration::from_secs(1);

/// Largest order of a range: 2^9 = [`MAX_LEGS`].
const ORDERS: usize = MAX_LEGS.ilog2() as usize + 1;

/// What one worker may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Slots of legs.
    pub legs: Range<u32>,
    /// Ids of legs: gates and counters.
    pub ids: Range<u32>,
    /// Indices of flow statistics.
    pub flows: Range<u32>,
}

impl Extent {
    /// The part of worker `index` of `workers`, of tables with `legs` legs and `flows` flows.
    pub fn part(legs: u32, flows: u32, index: usize, workers: usize) -> Self {
        let part = |total: u32| {
            let workers = workers.max(1) as u64;
            let at = |n: u64| (u64::from(total) * n / workers) as u32;
            at(index as u64)..at(index as u64 + 1)
        };
        Self { legs: part(legs), ids: part(legs), flows: part(flows) }
    }

    /// Whether nothing can be had.
    pub fn is_empty(&self) -> bool {
        self.legs.is_empty() || self.flows.is_empty()
    }
}

/// Consecutive leg slots of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotRange {
    /// The first slot.
    pub first: u32,
    /// How many there are: a power of two, so that there is room for viewers that join.
    pub len: u16,
}

impl SlotRange {
    fn order(self) -> usize {
        usize::from(self.len).ilog2() as usize
    }
}

/// What every tenant may hold however small its worker's share is: two tracks with full groups.
const FLOOR: u32 = 2 * MAX_LEGS;

/// Most of its worker's share that one tenant may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    /// Part of the share, above 0 to 1.
    pub part: f64,
    /// But so many in any case, as far as the share has them.
    pub floor: u32,
}

impl Default for Quota {
    /// A quarter: a stream that is joined without end leaves the others three of them.
    fn default() -> Self {
        Self { part: 0.25, floor: FLOOR }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Held {
    slots: u32,
    ids: u32,
    flows: u32,
}

/// What was given back, and from when it may be used again.
#[derive(Debug)]
struct Resting<T> {
    items: VecDeque<(Instant, T)>,
}

impl<T: Copy> Resting<T> {
    fn put(&mut self, item: T, now: Instant) {
        self.items.push_back((now + QUARANTINE, item));
    }

    fn rested(&mut self, now: Instant) -> Option<T> {
        let (from, item) = *self.items.front()?;
        (from <= now).then(|| self.items.pop_front()).map(|_| item)
    }
}

type Tenants = HashMap<String, Held, BuildHasherDefault<std::hash::DefaultHasher>>;

/// The indices of one worker.
#[derive(Debug)]
pub struct Slots {
    /// Free ranges by order; each starts at a multiple of its size.
    ranges: [BTreeSet<u32>; ORDERS],
    free_ids: BTreeSet<u32>,
    free_flows: Vec<u32>,
    resting_ranges: Resting<SlotRange>,
    resting_ids: Resting<u32>,
    resting_flows: Resting<u32>,
    tenants: Tenants,
    most: Held,
}

impl Slots {
    /// All of `extent` is free.
    pub fn new(extent: &Extent, quota: Quota) -> Self {
        let most =
            |range: &Range<u32>| ((range.len() as f64 * quota.part).ceil() as u32).max(quota.floor).max(1);
        let mut slots = Self {
            ranges: std::array::from_fn(|_| BTreeSet::new()),
            free_ids: extent.ids.clone().collect(),
            free_flows: extent.flows.clone().rev().collect(),
            resting_ranges: Resting { items: VecDeque::new() },
            resting_ids: Resting { items: VecDeque::new() },
            resting_flows: Resting { items: VecDeque::new() },
            tenants: Tenants::default(),
            most: Held { slots: most(&extent.legs), ids: most(&extent.ids), flows: most(&extent.flows) },
        };
        slots.add_slots(extent.legs.clone());
        slots
    }

    /// An index of flow statistics.
    ///
    /// # Errors
    /// [`UserReason::Full`], with the name of what is full.
    pub fn take_flow(&mut self, tenant: &str, now: Instant) -> Result<u32, UserReason> {
        while let Some(flow) = self.resting_flows.rested(now) {
            self.free_flows.push(flow);
        }
        let held = self.tenants.get(tenant).copied().unwrap_or_default();
        if held.flows >= self.most.flows {
            return Err(share_used(tenant, self.most.flows, "flows"));
        }
        let flow = self.free_flows.pop().ok_or_else(|| full("flows"))?;
        self.held(tenant).flows += 1;
        Ok(flow)
    }

    /// Slots for at least `legs` legs, at most [`MAX_LEGS`].
    ///
    /// # Errors
    /// As [`Slots::take_flow`].
    pub fn take_slots(&mut self, tenant: &str, legs: u16, now: Instant) -> Result<SlotRange, UserReason> {
        if u32::from(legs) > MAX_LEGS {
            return Err(UserReason::Full(format!("one track has at most {MAX_LEGS} legs there")));
        }
        while let Some(range) = self.resting_ranges.rested(now) {
            self.put_range(range.first, range.order());
        }
        let capacity = legs.max(1).next_power_of_two();
        let held = self.tenants.get(tenant).copied().unwrap_or_default();
        if held.slots + u32::from(capacity) > self.most.slots {
            return Err(share_used(tenant, self.most.slots, "leg slots"));
        }
        let order = usize::from(capacity).ilog2() as usize;
        let first = self.cut(order).ok_or_else(|| full("leg slots"))?;
        self.held(tenant).slots += u32::from(capacity);
        Ok(SlotRange { first, len: capacity })
    }

    /// The id of a leg that sits in `slot` first: that number, if it is free. The programs ask for the memory of gate
    /// and counters there before they have read the leg; with another id all is the same, and slower when cold.
    ///
    /// # Errors
    /// As [`Slots::take_flow`].
    pub fn take_id(&mut self, tenant: &str, slot: u32, now: Instant) -> Result<u32, UserReason> {
        while let Some(id) = self.resting_ids.rested(now) {
            self.free_ids.insert(id);
        }
        let held = self.tenants.get(tenant).copied().unwrap_or_default();
        if held.ids >= self.most.ids {
            return Err(share_used(tenant, self.most.ids, "legs"));
        }
        // Else the highest: slots are given out from the lowest on, so it is wanted last.
        let id =
            self.free_ids.take(&slot).or_else(|| self.free_ids.pop_last()).ok_or_else(|| full("legs"))?;
        self.held(tenant).ids += 1;
        Ok(id)
    }

    /// Gives back what [`Slots::take_flow`] or a claim gave, once no published entry names it.
    pub fn give_flow(&mut self, tenant: &str, flow: u32, now: Instant) {
        self.release(tenant, Held { flows: 1, ..Held::default() });
        self.resting_flows.put(flow, now);
    }

    /// Gives back what [`Slots::take_slots`] or a claim gave, once no published entry names it.
    pub fn give_slots(&mut self, tenant: &str, range: SlotRange, now: Instant) {
        self.release(tenant, Held { slots: u32::from(range.len), ..Held::default() });
        self.resting_ranges.put(range, now);
    }

    /// Gives back what [`Slots::take_id`] or a claim gave, once no published leg names it.
    pub fn give_id(&mut self, tenant: &str, id: u32, now: Instant) {
        self.release(tenant, Held { ids: 1, ..Held::default() });
        self.resting_ids.put(id, now);
    }

    /// Counts what a claim brought to its new holder, who gives it back like its own. A claim is never
    /// refused: it forwards already.
    pub(super) fn adopt(&mut self, tenant: &str, range: Option<SlotRange>, ids: usize) {
        let held = self.held(tenant);
        held.flows += 1;
        held.ids += ids as u32;
        held.slots += range.map_or(0, |range| u32::from(range.len));
    }

    /// Takes away what the state of an earlier process uses: nobody is given it until it comes back.
    pub(super) fn reserve(&mut self, flows: &BTreeSet<u32>, ids: &BTreeSet<u32>, ranges: &[SlotRange]) {
        self.free_flows.retain(|flow| !flows.contains(flow));
        self.free_ids.retain(|id| !ids.contains(id));
        for range in ranges {
            self.carve(*range);
        }
    }

    /// What [`Slots::reserve`] took away, and nobody claimed, is free again after its rest.
    pub(super) fn restore(
        &mut self,
        flows: impl IntoIterator<Item = u32>,
        ids: impl IntoIterator<Item = u32>,
        ranges: impl IntoIterator<Item = SlotRange>,
        now: Instant,
    ) {
        flows.into_iter().for_each(|flow| self.resting_flows.put(flow, now));
        ids.into_iter().for_each(|id| self.resting_ids.put(id, now));
        ranges.into_iter().for_each(|range| self.resting_ranges.put(range, now));
    }

    /// Legs, of all tenants, that are held now.
    pub fn legs_held(&self) -> u32 {
        self.tenants.values().map(|held| held.ids).sum()
    }

    fn held(&mut self, tenant: &str) -> &mut Held {
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.to_owned(), Held::default());
        }
        self.tenants.get_mut(tenant).expect("it was inserted above")
    }

    fn release(&mut self, tenant: &str, less: Held) {
        let Some(held) = self.tenants.get_mut(tenant) else { return };
        held.slots = held.slots.saturating_sub(less.slots);
        held.ids = held.ids.saturating_sub(less.ids);
        held.flows = held.flows.saturating_sub(less.flows);
        if *held == Held::default() {
            self.tenants.remove(tenant);
        }
    }

    /// Takes a range of `order` out of the smallest free one that holds it.
    fn cut(&mut self, order: usize) -> Option<u32> {
        let mut from = (order..ORDERS).find(|order| !self.ranges[*order].is_empty())?;
        let first = self.ranges[from].pop_first()?;
        while from > order {
            from -= 1;
            self.ranges[from].insert(first + (1 << from));
        }
        Some(first)
    }

    /// Makes a range free, together with its other half where that is free too.
    fn put_range(&mut self, mut first: u32, mut order: usize) {
        while order + 1 < ORDERS && self.ranges[order].remove(&(first ^ (1 << order))) {
            first &= !(1 << order);
            order += 1;
        }
        self.ranges[order].insert(first);
    }

    fn add_slots(&mut self, mut slots: Range<u32>) {
        while !slots.is_empty() {
            let aligned = slots.start.trailing_zeros().min(ORDERS as u32 - 1);
            let fits = (slots.len() as u32).ilog2().min(aligned);
            self.put_range(slots.start, fits as usize);
            slots.start += 1 << fits;
        }
    }

    /// Removes a range from the free ones, as far as it is among them.
    fn carve(&mut self, range: SlotRange) {
        let taken = range.first..range.first + u32::from(range.len);
        for order in 0..ORDERS {
            let size = 1 << order;
            let from = taken.start.saturating_sub(size - 1);
            let hit: Vec<u32> = self.ranges[order].range(from..taken.end).copied().collect();
            for first in hit {
                self.ranges[order].remove(&first);
                self.add_slots(first..taken.start.max(first));
                self.add_slots(taken.end.min(first + size)..first + size);
            }
        }
    }
}

fn full(what: &str) -> UserReason {
    UserReason::Full(format!("every one of the {what} of this worker is in use"))
}

fn share_used(tenant: &str, most: u32, what: &str) -> UserReason {
    UserReason::Full(format!("{tenant} has its share of {most} {what}"))
}

#[cfg(test)]
mod tests;
