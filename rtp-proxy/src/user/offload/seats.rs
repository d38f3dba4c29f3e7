//! The slots of one flow and who sits in them.
//!
//! A seat is a slot with the gate and the counters of one id, and keeps that id as long as the flow has it: a
//! slot that was left goes on naming a gate that is shut. The next leg takes such a seat once no packet can
//! still be at it. When all are taken the entries move to a range of twice the size, gates and counters
//! staying where they are, and the flow entry that names the new range is one update.

use std::time::{Duration, Instant};

use msm_fastpath::{Gate, LegEntry};
use msm_graph::LegId;

use crate::kernel::hop::UserReason;
use crate::kernel::slots::{Holder, SlotRange, Slots};
use crate::kernel::table::{Table, TableError};
use crate::user::room;

/// How long a packet may be on its way through a program that found what has just been replaced.
pub(crate) const GRACE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Seat {
    id: u32,
    taken_by: Option<LegId>,
    free_since: Instant,
    entry: Option<LegEntry>,
}

/// The seats of a flow.
#[derive(Debug)]
pub(crate) struct Seats {
    range: SlotRange,
    all: Vec<Seat>,
    /// A range that is left with the next publication.
    left: Option<SlotRange>,
}

/// Why a leg has no seat.
#[derive(Debug)]
pub(crate) enum NoSeat {
    /// There is none.
    Full(UserReason),
    /// The kernel refused.
    Table(TableError),
}

impl From<TableError> for NoSeat {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

impl Seats {
    /// Seats for one leg.
    pub(crate) fn new(holder: &Holder, slots: &mut Slots, now: Instant) -> Result<Self, UserReason> {
        Ok(Self { range: slots.take_slots(holder, 1, now)?, all: Vec::new(), left: None })
    }

    /// Gives a leg a seat; its gate is shut and its counters are zero.
    pub(crate) fn take(
        &mut self,
        leg: LegId,
        holder: &Holder,
        slots: &mut Slots,
        table: &mut dyn Table,
        now: Instant,
    ) -> Result<usize, NoSeat> {
        let rested = |seat: &Seat| seat.taken_by.is_none() && now >= seat.free_since + GRACE;
        let index = if let Some(index) = self.all.iter().position(rested) {
            index
        } else {
            if self.all.len() >= usize::from(self.range.len) {
                self.grow(holder, slots, table, now)?;
            }
            let slot = self.range.first + self.all.len() as u32;
            let id = slots.take_id(holder, slot, now).map_err(NoSeat::Full)?;
            room::append(&mut self.all, Seat { id, taken_by: None, free_since: now, entry: None });
            self.all.len() - 1
        };
        if let Some(seat) = self.all.get_mut(index) {
            table.put_gate(seat.id, Gate::Disabled.into())?;
            table.clear_leg_stats(seat.id)?;
            seat.taken_by = Some(leg);
        }
        Ok(index)
    }

    fn grow(
        &mut self,
        holder: &Holder,
        slots: &mut Slots,
        table: &mut dyn Table,
        now: Instant,
    ) -> Result<(), NoSeat> {
        let wider = u16::try_from(self.all.len() + 1).unwrap_or(u16::MAX);
        let range = slots.take_slots(holder, wider, now).map_err(NoSeat::Full)?;
        for (index, seat) in self.all.iter().enumerate() {
            if let Some(entry) = &seat.entry
                && let Err(error) = table.put_leg(range.first + index as u32, entry)
            {
                slots.give_slots(holder, range, now);
                return Err(error.into());
            }
        }
        let old = std::mem::replace(&mut self.range, range);
        if self.left.is_some() {
            // The published one is left already; this one was never published.
            slots.give_slots(holder, old, now);
        } else {
            self.left = Some(old);
        }
        Ok(())
    }

    /// Writes the leg of a seat whose gate is shut.
    pub(crate) fn write(
        &mut self,
        index: usize,
        entry: LegEntry,
        table: &mut dyn Table,
    ) -> Result<(), TableError> {
        let Some(seat) = self.all.get_mut(index) else { return Ok(()) };
        table.put_leg(self.range.first + index as u32, &entry)?;
        seat.entry = Some(entry);
        Ok(())
    }

    /// The index of a seat's gate and counters.
    pub(crate) fn id(&self, index: usize) -> Option<u32> {
        self.all.get(index).map(|seat| seat.id)
    }

    /// The leg has left; its gate is shut.
    pub(crate) fn free(&mut self, index: usize, now: Instant) {
        if let Some(seat) = self.all.get_mut(index) {
            seat.taken_by = None;
            seat.free_since = now;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.iter().all(|seat| seat.taken_by.is_none())
    }

    /// First slot and how many to walk: up to the last that is taken.
    pub(crate) fn walked(&self) -> (u32, u16) {
        let last = self.all.iter().rposition(|seat| seat.taken_by.is_some());
        (self.range.first, last.map_or(0, |last| last as u16 + 1))
    }

    /// The flow entry names the range as it is now.
    pub(crate) fn published(&mut self, holder: &Holder, slots: &mut Slots, now: Instant) {
        if let Some(left) = self.left.take() {
            slots.give_slots(holder, left, now);
        }
    }

    /// No flow entry names them any more.
    pub(crate) fn give_back(self, holder: &Holder, slots: &mut Slots, now: Instant) {
        for range in std::iter::once(self.range).chain(self.left) {
            slots.give_slots(holder, range, now);
        }
        for seat in self.all {
            slots.give_id(holder, seat.id, now);
        }
    }
}
