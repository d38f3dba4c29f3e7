//! Why a packet was dropped: one closed list for kernel, workers and metrics.

/// Why a packet was dropped. The list is closed: it is the label set of
/// `msm_dropped_packets_total{reason}`, and its numbers index the kernel's counters.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// Not a packet of the protocol that its flow carries: too short, wrong version, broken lengths.
    Malformed = 0,
    /// From an address that is not the flow's peer (SEC-2, RTP-1).
    UnknownSource = 1,
    /// An SSRC that is not admitted on the flow, probation after a change included (RTP-6).
    Ssrc = 2,
    /// A payload type that was not negotiated (RTP-1).
    PayloadType = 3,
    /// A sequence number that was forwarded already.
    Duplicate = 4,
    /// Arrived after its place in the sequence was given up.
    Late = 5,
    /// An SRTP index that was seen already.
    Replay = 6,
    /// An SRTP authentication tag that does not match.
    Auth = 7,
    /// No key for a packet that is to be protected or unprotected.
    NoKey = 8,
    /// Reached a port of ours, but no flow is installed for it.
    NoFlow = 9,
    /// The bounded queue in front of a leg or worker was full, or the packet outlived its age limit there.
    QueueFull = 10,
    /// A ring of the kernel or a device was full.
    RingFull = 11,
    /// The socket's receive buffer overflowed (`SO_RXQ_OVFL`).
    SocketOverflow = 12,
    /// The per-CPU backlog of the kernel overflowed (`softnet_stat`).
    Softnet = 13,
    /// Larger than the way out allows.
    Mtu = 14,
    /// The hop limit was used up.
    Ttl = 15,
    /// A policy said no, for example a picture that is withheld until the next key frame after a splice.
    Policy = 16,
    /// Above a configured rate.
    RateLimit = 17,
    /// A packet of our own came back.
    Loop = 18,
    /// A FEC packet that does not match its protected packets.
    FecInvalid = 19,
}

impl DropReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 20] = [
        Self::Malformed,
        Self::UnknownSource,
        Self::Ssrc,
        Self::PayloadType,
        Self::Duplicate,
        Self::Late,
        Self::Replay,
        Self::Auth,
        Self::NoKey,
        Self::NoFlow,
        Self::QueueFull,
        Self::RingFull,
        Self::SocketOverflow,
        Self::Softnet,
        Self::Mtu,
        Self::Ttl,
        Self::Policy,
        Self::RateLimit,
        Self::Loop,
        Self::FecInvalid,
    ];

    /// The stable name: metric label, log field and JSON key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSource => "unknown_source",
            Self::Ssrc => "ssrc",
            Self::PayloadType => "payload_type",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::Replay => "replay",
            Self::Auth => "auth",
            Self::NoKey => "no_key",
            Self::NoFlow => "no_flow",
            Self::QueueFull => "queue_full",
            Self::RingFull => "ring_full",
            Self::SocketOverflow => "socket_overflow",
            Self::Softnet => "softnet",
            Self::Mtu => "mtu",
            Self::Ttl => "ttl",
            Self::Policy => "policy",
            Self::RateLimit => "rate_limit",
            Self::Loop => "loop",
            Self::FecInvalid => "fec_invalid",
        }
    }

    /// Position in [`DropReason::ALL`], for arrays of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason with this position, `None` if there is none: for the user half that reads counters.
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }
}

impl core::fmt::Display for DropReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;
