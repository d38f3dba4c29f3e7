//! Why a packet went nowhere.

/// Reason for which RTP or RTCP was dropped: a counter, never an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Not RTP or RTCP as RTP-1 and RTP-20 want it.
    Malformed,
    /// Payload type that the SDP does not name.
    PayloadType,
    /// SSRC other than that of the established source.
    Ssrc,
    /// Sender other than the one that was signalled or learned (SEC-2).
    UnknownSource,
    /// Sequence or timestamp jump that no second packet confirmed (RTP-7).
    Jump,
    /// Own egress SSRC came back (RTP-5).
    Loop,
    /// Sequence number seen already, on a leg that must not repeat it (RTP-8).
    Duplicate,
    /// Older than the start of the leg or than what the leg can still place.
    Late,
    /// Between a splice and the key frame at which video resumes (RTP-6).
    KeyFrame,
}

impl DropReason {
    /// Number of reasons, for tables of counters.
    pub const COUNT: usize = 9;

    /// All reasons in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Malformed,
        Self::PayloadType,
        Self::Ssrc,
        Self::UnknownSource,
        Self::Jump,
        Self::Loop,
        Self::Duplicate,
        Self::Late,
        Self::KeyFrame,
    ];

    /// Stable name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::PayloadType => "payload_type",
            Self::Ssrc => "ssrc",
            Self::UnknownSource => "unknown_source",
            Self::Jump => "jump",
            Self::Loop => "loop",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::KeyFrame => "key_frame",
        }
    }
}

/// A counter per [`DropReason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops([u64; DropReason::COUNT]);

impl Drops {
    /// Counts one packet.
    pub fn count(&mut self, reason: DropReason) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += 1;
        }
    }

    /// Packets dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Packets dropped for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds the counters of another table.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Reasons that counted at least one packet.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }
}
