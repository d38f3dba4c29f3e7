//! The start gate of a leg or input.
//!
//! ```text
//! disabled ──arm(from)──► armed(from) ──first seq ≥ from──► active
//!     ▲                                                       │ drain(until)
//!     └────────── first seq ≥ until ◄──────────────── draining(until)
//! ```
//!
//! The answer to PLAY names a sequence number; the gate starts the leg exactly there. `until` is the first
//! number that is *not* sent, so two holders of one leg that use the same number for `until` and `from`
//! neither lose nor double a packet. Comparisons are serial (RFC 1982): `a` is before `b` if it is 1
//! to 32,768 behind; at 32,768 each is before the other, which that standard leaves open.

use crate::abi;

/// State of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Gate {
    /// Nothing passes.
    #[default]
    Disabled,
    /// Opens with the first packet whose sequence number is not before this one.
    Armed(u16),
    /// Everything passes.
    Active,
    /// Packets before this number pass; the first that is not closes the gate.
    Draining(u16),
}

/// What a gate says about one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The packet does not pass.
    Hold,
    /// The packet passes.
    Pass,
    /// The packet passes, and is the first: the gate has just become active.
    Start,
    /// The packet does not pass: the gate has just closed.
    Stop,
}

impl Step {
    /// Whether the packet passes.
    #[inline]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Pass | Self::Start)
    }
}

/// Whether sequence number `a` is before `b`, in serial arithmetic.
///
/// Numbers exactly 32,768 apart are each before the other: RFC 1982 leaves that open.
#[inline]
pub const fn is_before(a: u16, b: u16) -> bool {
    (a.wrapping_sub(b) as i16) < 0
}

impl Gate {
    /// What happens to the packet with this sequence number, and the state after it.
    ///
    /// `seq`: on the numbering that `arm` and `drain` were given.
    #[inline]
    #[must_use]
    pub const fn step(self, seq: u16) -> (Self, Step) {
        match self {
            Self::Disabled => (self, Step::Hold),
            Self::Armed(from) if is_before(seq, from) => (self, Step::Hold),
            Self::Armed(_) => (Self::Active, Step::Start),
            Self::Active => (self, Step::Pass),
            Self::Draining(until) if is_before(seq, until) => (self, Step::Pass),
            Self::Draining(_) => (Self::Disabled, Step::Stop),
        }
    }

    /// Opens the gate with the first packet that is not before `from`. An active gate stays active; a
    /// draining one is active again, because its packets never stopped.
    #[must_use]
    pub const fn arm(self, from: u16) -> Self {
        match self {
            Self::Disabled | Self::Armed(_) => Self::Armed(from),
            Self::Active | Self::Draining(_) => Self::Active,
        }
    }

    /// Closes the gate before packet `until`. A gate that has not opened is closed at once.
    #[must_use]
    pub const fn drain(self, until: u16) -> Self {
        match self {
            Self::Disabled | Self::Armed(_) => Self::Disabled,
            Self::Active | Self::Draining(_) => Self::Draining(until),
        }
    }

    /// Closes the gate at once.
    #[must_use]
    pub const fn disable(self) -> Self {
        Self::Disabled
    }

    /// Whether packets pass now.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Active | Self::Draining(_))
    }
}

abi! {
    /// A gate as the kernel's maps hold it. The kernel moves it from armed to active and from draining to
    /// disabled, and leaves in `at` the packet at which it did.
    pub struct GateEntry [8] {
        /// 0 disabled, 1 armed, 2 active, 3 draining.
        pub state: u8,
        /// [`GateEntry::MOVED`] or 0.
        pub flags: u8,
        /// `from` or `until`, host order; stays when the kernel moves the gate.
        pub seq: u16,
        /// Sequence number, as it came in, of the first packet that passed, or of the first that no longer
        /// did; valid with [`GateEntry::MOVED`].
        pub at: u16,
        /// Explicit padding, 0.
        pub pad: [u8; 2],
    }
}

impl GateEntry {
    /// Flag: the kernel has moved the gate since user space wrote it; `at` says where.
    pub const MOVED: u8 = 1;

    /// The entry after one packet, and what happens to the packet: [`Gate::step`] on the entry. A gate in an
    /// unknown state holds.
    ///
    /// `newest`: whether the number is higher than all before it on the flow. Only such a packet moves a
    /// gate, so that `at` names one packet and not its duplicate; one from behind passes as the state says. So does
    /// RTCP between the RTP of a flow.
    #[inline]
    #[must_use]
    pub fn step(self, seq: u16, newest: bool) -> (Self, Step) {
        let Ok(gate) = Gate::try_from(self) else { return (self, Step::Hold) };
        if !newest {
            return (self, if gate.is_open() { Step::Pass } else { Step::Hold });
        }
        self.moved(gate.step(seq), seq)
    }

    /// The same on a flow whose packets have no numbers ([`crate::FlowKind::has_numbers`]): the next packet of all
    /// opens an armed gate and shuts a draining one. `at` is 0: it names no packet.
    #[inline]
    #[must_use]
    pub fn step_unnumbered(self) -> (Self, Step) {
        let Ok(gate) = Gate::try_from(self) else { return (self, Step::Hold) };
        // A gate's own number is not before itself.
        self.moved(gate.step(self.seq), 0)
    }

    #[inline]
    fn moved(self, (gate, step): (Gate, Step), seq: u16) -> (Self, Step) {
        match step {
            Step::Start | Step::Stop => {
                let moved = Self::from(gate);
                (Self { flags: Self::MOVED, seq: self.seq, at: seq, ..moved }, step)
            }
            Step::Hold | Step::Pass => (self, step),
        }
    }

    /// Where the kernel moved the gate, if it has since user space wrote it.
    pub const fn moved_at(self) -> Option<u16> {
        if self.flags & Self::MOVED == 0 { None } else { Some(self.at) }
    }
}

impl From<Gate> for GateEntry {
    fn from(gate: Gate) -> Self {
        let (state, seq) = match gate {
            Gate::Disabled => (0, 0),
            Gate::Armed(from) => (1, from),
            Gate::Active => (2, 0),
            Gate::Draining(until) => (3, until),
        };
        Self { state, flags: 0, seq, at: 0, pad: [0; 2] }
    }
}

/// A number that is no gate state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownGate(pub u8);

impl TryFrom<GateEntry> for Gate {
    type Error = UnknownGate;

    fn try_from(entry: GateEntry) -> Result<Self, UnknownGate> {
        match entry.state {
            0 => Ok(Self::Disabled),
            1 => Ok(Self::Armed(entry.seq)),
            2 => Ok(Self::Active),
            3 => Ok(Self::Draining(entry.seq)),
            other => Err(UnknownGate(other)),
        }
    }
}

#[cfg(test)]
mod tests;
