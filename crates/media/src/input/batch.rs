//! What a receive batch brought, between an input and its legs.

use crate::drop::Drops;
use crate::project::Head;

/// An admitted packet, as the legs see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Position in what was passed to [`super::TrackInput::handle_rtp`], or [`Arrival::HELD`].
    pub index: u32,
    /// Run of the source it belongs to.
    pub run: u32,
    /// Extended sequence number within the run.
    pub ext: u64,
    /// Sequence number on the wire.
    pub seq: u16,
    /// Payload bytes, without header and padding.
    pub payload_len: u16,
    /// Timestamp on the wire.
    pub ts: u32,
    /// SSRC on the wire.
    pub ssrc: u32,
    /// Whether this number was seen before.
    pub duplicate: bool,
    /// Whether a decoder may start here ([`crate::Codec::resume_point`]).
    pub resume_point: bool,
    /// Whether it came here and nowhere else: no other holder of a leg has sent it ([`Batch::mark_only_here`]).
    pub only_here: bool,
}

impl Arrival {
    /// Index of the packet that was held from an earlier batch: its bytes are [`Batch::held`].
    pub const HELD: u32 = u32::MAX;
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunHead {
    /// Number of the run; raised at every restart and never reused.
    pub run: u32,
    /// SSRC of the run.
    pub ssrc: u32,
    /// Its latest packet.
    pub head: Head,
}

/// Which arrivals of a batch one of two holders of a leg sends: those before one place, those from
/// another place on, and those that came [only here](Arrival::only_here).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    before: u32,
    from: u32,
}

impl Part {
    /// Every arrival.
    pub const ALL: Self = Self { before: u32::MAX, from: u32::MAX };
    /// No arrival, but for those that came only here.
    pub const NONE: Self = Self { before: 0, from: u32::MAX };

    /// The arrivals before index `before` of [`Batch::arrivals`] and those from index `from` on.
    pub fn new(before: usize, from: usize) -> Self {
        let index = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        Self { before: index(before), from: index(from) }
    }

    /// Whether the arrival at an index belongs to it.
    #[inline]
    pub fn contains(self, index: usize, arrival: &Arrival) -> bool {
        index < self.before as usize || index >= self.from as usize || arrival.only_here
    }
}

/// What one receive batch brought. Reused from batch to batch.
#[derive(Debug, Default)]
pub struct Batch {
    arrivals: Vec<Arrival>,
    pub(super) held: Vec<u8>,
    pub(super) offered: usize,
    octets: u64,
    duplicates: u32,
    only_here: u32,
    lowest: u64,
    one_run: Option<u32>,
    pub(super) after: Option<RunHead>,
    pub(super) drops: Drops,
}

impl Batch {
    /// Admitted packets in the order of arrival.
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// Bytes of the arrival with index [`Arrival::HELD`].
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Whether every packet offered was admitted and none was held before: arrival `i` is packet `i`.
    pub fn is_whole(&self) -> bool {
        self.arrivals.len() == self.offered && self.held.is_empty()
    }

    /// Payload bytes of all arrivals.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Arrivals that are duplicates.
    pub fn duplicates(&self) -> u32 {
        self.duplicates
    }

    /// Says that an arrival was seen by no other holder of the legs.
    pub fn mark_only_here(&mut self, index: usize) {
        if let Some(arrival) = self.arrivals.get_mut(index).filter(|arrival| !arrival.only_here) {
            arrival.only_here = true;
            self.only_here += 1;
        }
    }

    /// Arrivals that were seen by no other holder of the legs.
    pub fn only_here(&self) -> u32 {
        self.only_here
    }

    /// Where the input stands after the batch.
    pub fn after(&self) -> Option<RunHead> {
        self.after
    }

    /// The run that all arrivals belong to, if it is one.
    pub(crate) fn one_run(&self) -> Option<u32> {
        self.one_run
    }

    /// Lowest extended number of the arrivals, when they are of one run.
    pub(crate) fn lowest(&self) -> u64 {
        self.lowest
    }

    /// Packets of this batch that were dropped, by reason.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    pub(super) fn clear(&mut self) {
        self.arrivals.clear();
        self.held.clear();
        self.offered = 0;
        self.octets = 0;
        self.duplicates = 0;
        self.only_here = 0;
        self.lowest = u64::MAX;
        self.one_run = None;
        self.after = None;
        self.drops = Drops::default();
    }

    #[inline]
    pub(super) fn push(&mut self, arrival: Arrival) {
        self.one_run = if self.arrivals.is_empty() {
            Some(arrival.run)
        } else {
            self.one_run.filter(|run| *run == arrival.run)
        };
        self.lowest = self.lowest.min(arrival.ext);
        self.octets += u64::from(arrival.payload_len);
        self.duplicates += u32::from(arrival.duplicate);
        self.arrivals.push(arrival);
    }
}
