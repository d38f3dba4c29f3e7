//! The flow of a track in the kernel: opened with the first leg, published by one update.

use std::time::Instant;

use msm_fastpath::{Admission, FlowEntry, FlowKind, GroupMode, RtpEdit};
use msm_media::{Standing, TrackInput};

use super::leaving::Leaving;
use super::seats::{NoSeat, Seats};
use super::{HOLD, Kernel, Offload, Source, wire};
use crate::kernel::slots::Holder;
use crate::kernel::table::TableError;

/// Whether the worker has seen how far the kernel had come when it was alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// It has.
    No,
    /// Not yet, and how far is not known.
    Unknown,
    /// Not yet; up to this number.
    UpTo(u64),
}

/// What comes up to the worker of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Every packet, since this moment.
    Copies { since: Instant, behind: Behind },
    /// What does not continue the run.
    Alone { since: Instant },
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) holder: Holder,
    pub(super) source: Source,
    pub(super) run: u32,
    pub(super) stats: u32,
    pub(super) seats: Seats,
    pub(super) entry: FlowEntry,
    pub(super) sight: Sight,
    /// Copies stay on.
    pub(super) hold_until: Instant,
    /// A gate has opened: the program sees the packets.
    pub(super) met: bool,
    /// Batches in a row with what the program should have seen first.
    pub(super) bypassed: u32,
    /// When something came up last that the program had not seen.
    pub(super) strayed_at: Option<Instant>,
    /// Everything that came before this moment has been read.
    pub(super) emptied_at: Option<Instant>,
    /// When the program saw a packet last, as of the last look.
    pub(super) arrived: Option<Instant>,
    /// It is being taken back: its entry is removed.
    pub(super) leaving: Option<Leaving>,
}

impl Offload {
    /// A flow with nobody in it.
    pub(super) fn open(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        media: &mut TrackInput,
        source: Source,
        standing: &Standing,
    ) -> Result<(), NoSeat> {
        let holder = Holder::new(&self.stream, source.peer.ip());
        let stats = kernel.slots.take_flow(&holder, now).map_err(NoSeat::Full)?;
        let seats = match Seats::new(&holder, kernel.slots, now) {
            Ok(seats) => seats,
            Err(reason) => {
                kernel.slots.give_flow(&holder, stats, now);
                return Err(NoSeat::Full(reason));
            }
        };
        kernel.table.name_flow(stats, &self.stream, source.peer);
        let admission = Admission::only_ssrc(standing.payload_types, standing.ssrc);
        let entry = FlowEntry::new(FlowKind::Rtp, admission, stats, source.clock_rate);
        media.begin_elsewhere();
        let start = wire::start_of(standing, source.clock_rate, &kernel.epoch);
        self.run = standing.run;
        self.tried = source.ingress.ifindex;
        self.seen = (standing.highest, standing.window);
        self.flow = Some(Flow {
            holder,
            source,
            run: standing.run,
            stats,
            seats,
            entry,
            // Without a flow every packet comes up.
            sight: Sight::Copies { since: now, behind: Behind::No },
            hold_until: now + HOLD,
            met: false,
            bypassed: 0,
            strayed_at: None,
            emptied_at: None,
            arrived: None,
            leaving: None,
        });
        kernel.table.put_flow_stats(stats, &start)?;
        Ok(())
    }

    /// Makes the flow entry what it must be, in one update.
    pub(super) fn publish(
        &mut self,
        now: Instant,
        kernel: &mut Kernel<'_>,
        copies: bool,
    ) -> Result<(), TableError> {
        let Self { flow: Some(flow), legs, .. } = self else { return Ok(()) };
        if flow.leaving.is_some() {
            return Ok(());
        }
        let edits: Vec<_> = legs.iter().filter_map(|leg| Some(leg.written.as_ref()?.edit)).collect();
        let mode = GroupMode::for_edits(&edits);
        let (first_leg, walked) = flow.seats.walked();
        let entry = FlowEntry {
            edit: edits
                .first()
                .copied()
                .filter(|_| mode == GroupMode::Common)
                .unwrap_or(RtpEdit::TRANSPARENT),
            first_leg,
            legs: walked,
            mode: mode as u8,
            flags: if copies { FlowEntry::COPY_TO_USER } else { 0 },
            ..flow.entry
        };
        flow.sight = match (copies, flow.sight) {
            (true, Sight::Alone { .. }) => Sight::Copies { since: now, behind: Behind::Unknown },
            (false, Sight::Copies { .. }) => Sight::Alone { since: now },
            (_, sight) => sight,
        };
        if entry != flow.entry {
            let key = flow.source.key();
            kernel.table.put_flow(&key, &entry.under(&key))?;
            flow.entry = entry;
            flow.seats.published(&flow.holder, kernel.slots, now);
        }
        Ok(())
    }
}
