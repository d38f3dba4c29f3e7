//! Why a packet was left to the kernel's own stack: one closed list for kernel programs and metrics.

/// Why a packet was left to the kernel's own stack. The list is closed: it is the label set of
/// `msm_passed_packets_total{reason}`, and its numbers index the kernel's counters.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PassReason {
    /// Another protocol, or UDP that no flow and no closed port is for.
    NotOurs = 0,
    /// It carries a VLAN tag, whatever is behind it.
    Vlan = 1,
    /// IPv4 options or IPv6 extension headers, behind which UDP is at no fixed offset.
    IpOptions = 2,
    /// A fragment.
    Fragment = 3,
    /// Headers that are cut off or contradict each other: lengths, version, no checksum over IPv6.
    Malformed = 4,
}

impl PassReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 5] = [Self::NotOurs, Self::Vlan, Self::IpOptions, Self::Fragment, Self::Malformed];

    /// The stable name, a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotOurs => "not_ours",
            Self::Vlan => "vlan",
            Self::IpOptions => "ip_options",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
        }
    }

    /// Index in the map of counters.
    pub const fn counter(self) -> u32 {
        self as u32
    }
}

impl core::fmt::Display for PassReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_list() {
        for (index, reason) in PassReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.counter() as usize, index);
        }
    }
}
