//! Counters of packets that went nowhere, by the closed list of reasons.

pub use msm_fastpath::DropReason;

pub mod inventory;

/// A counter per [`DropReason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// Nothing counted.
    pub(crate) const NONE: Self = Self([0; DropReason::ALL.len()]);

    /// Counts one packet.
    #[inline]
    pub fn count(&mut self, reason: DropReason) {
        if let Some(counter) = self.0.get_mut(reason.index()) {
            *counter += 1;
        }
    }

    /// Packets dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason.index()).copied().unwrap_or(0)
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
