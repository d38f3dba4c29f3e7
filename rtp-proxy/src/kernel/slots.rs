//! Which indices of the kernel's tables a worker may use: leg slots, leg ids and flow statistics.
//!
//! Pure, and of one worker: the tables are divided among the workers at start, so nobody asks anybody. An
//! index that was given back rests for [`QUARANTINE`] before the next holder writes to it, because a packet
//! that found the old flow entry may still be on its way through it (ADR 0005).
//!
//! One stream gets at most its part of the share. Whoever publishes one stream can publish many, so the last of a share
//! is kept besides for sources in networks that hold little of it: no source takes the fast path from all others.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};
use std::net::{IpAddr, Ipv6Addr};
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

/// What every stream may hold however small its worker's share is, though never more than half of it: two tracks
/// with full groups.
const FLOOR: u32 = 2 * MAX_LEGS;

/// Networks that may take their part of the reserve before it is used up.
const SMALL_HOLDERS: u32 = 4;

/// How a worker's share is divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    /// Part of the share that one stream may hold, above 0 to 1.
    pub part: f64,
    /// But so many in any case, as far as half of the share has them.
    pub floor: u32,
    /// Part of the share that is kept for sources in networks that hold little, from 0 on.
    pub reserve: f64,
}

impl Quota {
    /// Everything is anybody's.
    pub const NONE: Self = Self { part: 1.0, floor: 0, reserve: 0.0 };
}

impl Default for Quota {
    /// A quarter: a stream that is joined without end leaves the others three of them. The last eighth is kept.
    fn default() -> Self {
        Self { part: 0.25, floor: FLOOR, reserve: 0.125 }
    }
}

/// On whose account something is taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    stream: String,
    network: IpAddr,
}

impl Holder {
    /// A stream whose source is `source`. Of an IPv6 address its /64 counts: whoever has one address has all of them.
    pub fn new(stream: &str, source: IpAddr) -> Self {
        let network = match source.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
            IpAddr::V4(ip) => ip.into(),
        };
        Self { stream: stream.to_owned(), network }
    }

    /// Name of the stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }
}

/// What is divided.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Slots,
    Ids,
    Flows,
}

impl Kind {
    /// For people, to whom a leg's id is the leg.
    fn words(self) -> &'static str {
        match self {
            Self::Slots => "leg slots",
            Self::Ids => "legs",
            Self::Flows => "flows",
        }
    }
}

/// How many of each [`Kind`].
type Held = [u32; 3];

/// Bounds of one [`Kind`].
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Of one stream.
    most: u32,
    /// What is kept.
    reserve: u32,
    /// A network that holds no more may take from what is kept.
    small: u32,
}

impl Bounds {
    fn of(share: &Range<u32>, quota: Quota) -> Self {
        let part = |part: f64| share.len() as f64 * part;
        let floor = quota.floor.min(share.len() as u32 / 2);
        let reserve = part(quota.reserve) as u32;
        Self {
            most: (part(quota.part).ceil() as u32).max(floor).max(1),
            reserve,
            small: (reserve / SMALL_HOLDERS).max(1),
        }
    }
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

/// What each of those holds that hold anything.
type Accounts<T> = HashMap<T, Held, BuildHasherDefault<DefaultHasher>>;

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
    streams: Accounts<String>,
    networks: Accounts<IpAddr>,
    bounds: [Bounds; 3],
}

impl Slots {
    /// All of `extent` is free.
    pub fn new(extent: &Extent, quota: Quota) -> Self {
        let mut slots = Self {
            ranges: std::array::from_fn(|_| BTreeSet::new()),
            free_ids: extent.ids.clone().collect(),
            free_flows: extent.flows.clone().rev().collect(),
            resting_ranges: Resting { items: VecDeque::new() },
            resting_ids: Resting { items: VecDeque::new() },
            resting_flows: Resting { items: VecDeque::new() },
            streams: Accounts::default(),
            networks: Accounts::default(),
            bounds: [&extent.legs, &extent.ids, &extent.flows].map(|share| Bounds::of(share, quota)),
        };
        slots.add_slots(extent.legs.clone());
        slots
    }

    /// An index of flow statistics.
    ///
    /// # Errors
    /// [`UserReason::Full`], with the name of what is full or whose part of it is.
    pub fn take_flow(&mut self, holder: &Holder, now: Instant) -> Result<u32, UserReason> {
        while let Some(flow) = self.resting_flows.rested(now) {
            self.free_flows.push(flow);
        }
        self.admit(Kind::Flows, holder, 1, self.free_flows.len() as u32)?;
        let flow = self.free_flows.pop().ok_or_else(|| full(Kind::Flows))?;
        self.add(holder, Kind::Flows, 1);
        Ok(flow)
    }

    /// Slots for at least `legs` legs, at most [`MAX_LEGS`].
    ///
    /// # Errors
    /// As [`Slots::take_flow`].
    pub fn take_slots(&mut self, holder: &Holder, legs: u16, now: Instant) -> Result<SlotRange, UserReason> {
        if u32::from(legs) > MAX_LEGS {
            return Err(UserReason::Full(format!("one track has at most {MAX_LEGS} legs there")));
        }
        while let Some(range) = self.resting_ranges.rested(now) {
            self.put_range(range.first, range.order());
        }
        let capacity = legs.max(1).next_power_of_two();
        let free = self.ranges.iter().enumerate().map(|(order, ranges)| ranges.len() << order).sum::<usize>();
        self.admit(Kind::Slots, holder, u32::from(capacity), free as u32)?;
        let order = usize::from(capacity).ilog2() as usize;
        let first = self.cut(order).ok_or_else(|| full(Kind::Slots))?;
        self.add(holder, Kind::Slots, u32::from(capacity));
        Ok(SlotRange { first, len: capacity })
    }

    /// The id of a leg that sits in `slot` first: that number, if it is free. The programs ask for the memory of gate
    /// and counters there before they have read the leg; with another id all is the same, and slower when cold.
    ///
    /// # Errors
    /// As [`Slots::take_flow`].
    pub fn take_id(&mut self, holder: &Holder, slot: u32, now: Instant) -> Result<u32, UserReason> {
        while let Some(id) = self.resting_ids.rested(now) {
            self.free_ids.insert(id);
        }
        self.admit(Kind::Ids, holder, 1, self.free_ids.len() as u32)?;
        // Else the highest: slots are given out from the lowest on, so it is wanted last.
        let id = self.free_ids.take(&slot).or_else(|| self.free_ids.pop_last());
        let id = id.ok_or_else(|| full(Kind::Ids))?;
        self.add(holder, Kind::Ids, 1);
        Ok(id)
    }

    /// Gives back what [`Slots::take_flow`] or a claim gave, once no published entry names it.
    pub fn give_flow(&mut self, holder: &Holder, flow: u32, now: Instant) {
        self.release(holder, Kind::Flows, 1);
        self.resting_flows.put(flow, now);
    }

    /// Gives back what [`Slots::take_slots`] or a claim gave, once no published entry names it.
    pub fn give_slots(&mut self, holder: &Holder, range: SlotRange, now: Instant) {
        self.release(holder, Kind::Slots, u32::from(range.len));
        self.resting_ranges.put(range, now);
    }

    /// Gives back what [`Slots::take_id`] or a claim gave, once no published leg names it.
    pub fn give_id(&mut self, holder: &Holder, id: u32, now: Instant) {
        self.release(holder, Kind::Ids, 1);
        self.resting_ids.put(id, now);
    }

    /// Counts what a claim brought to its new holder, who gives it back like its own. A claim is never
    /// refused: it forwards already.
    pub(super) fn adopt(&mut self, holder: &Holder, range: Option<SlotRange>, ids: usize) {
        self.add(holder, Kind::Flows, 1);
        self.add(holder, Kind::Ids, ids as u32);
        self.add(holder, Kind::Slots, range.map_or(0, |range| u32::from(range.len)));
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

    /// Legs, of all streams, that are held now.
    pub fn legs_held(&self) -> u32 {
        self.streams.values().map(|held| held[Kind::Ids as usize]).sum()
    }

    /// Whether a holder may have `more` of what `free` are left of.
    fn admit(&self, kind: Kind, holder: &Holder, more: u32, free: u32) -> Result<(), UserReason> {
        let Bounds { most, reserve, small } = self.bounds[kind as usize];
        let of_stream = self.streams.get(&holder.stream).map_or(0, |held| held[kind as usize]);
        if of_stream + more > most {
            let Holder { stream, .. } = holder;
            return Err(UserReason::Full(format!("{stream} has its share of {most} {}", kind.words())));
        }
        let left = free.checked_sub(more).ok_or_else(|| full(kind))?;
        let of_network = self.networks.get(&holder.network).map_or(0, |held| held[kind as usize]);
        if left < reserve && of_network + more > small {
            let network = holder.network;
            return Err(UserReason::Full(format!(
                "the last {reserve} {} of this worker are for others than {network}, which has {of_network}",
                kind.words()
            )));
        }
        Ok(())
    }

    fn add(&mut self, holder: &Holder, kind: Kind, more: u32) {
        if let Some(held) = self.streams.get_mut(&holder.stream) {
            held[kind as usize] += more;
        } else {
            self.streams.entry(holder.stream.clone()).or_default()[kind as usize] = more;
        }
        self.networks.entry(holder.network).or_default()[kind as usize] += more;
    }

    fn release(&mut self, holder: &Holder, kind: Kind, less: u32) {
        release(&mut self.streams, &holder.stream, kind, less);
        release(&mut self.networks, &holder.network, kind, less);
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

/// Who holds nothing any more is forgotten.
fn release<T: Eq + Hash>(accounts: &mut Accounts<T>, who: &T, kind: Kind, less: u32) {
    let Some(held) = accounts.get_mut(who) else { return };
    held[kind as usize] = held[kind as usize].saturating_sub(less);
    if *held == Held::default() {
        accounts.remove(who);
    }
}

fn full(kind: Kind) -> UserReason {
    UserReason::Full(format!("every one of the {} of this worker is in use", kind.words()))
}

#[cfg(test)]
mod tests;
