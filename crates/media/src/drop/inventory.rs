//! Counters of drops when a proxy hands over. By name: a program may know other reasons than the next.

use serde::{Deserialize, Serialize};

use super::{DropReason, Drops};

/// [`Drops`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DropsInventory(Vec<(String, u64)>);

impl DropsInventory {
    /// Of counters of one's own.
    pub fn of(counts: impl IntoIterator<Item = (DropReason, u64)>) -> Self {
        Self(counts.into_iter().map(|(reason, count)| (reason.as_str().to_owned(), count)).collect())
    }

    /// Reasons that this program knows, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        self.0.iter().filter_map(|(name, count)| {
            let reason = DropReason::ALL.into_iter().find(|reason| reason.as_str() == name)?;
            Some((reason, *count))
        })
    }
}

impl Drops {
    /// Writes them down.
    pub fn inventory(&self) -> DropsInventory {
        DropsInventory::of(self.iter())
    }

    /// As they were, without reasons that this program does not know.
    pub fn restore(inventory: &DropsInventory) -> Self {
        let mut drops = Self::default();
        for (reason, count) in inventory.iter() {
            if let Some(counter) = drops.0.get_mut(reason.index()) {
                *counter = count;
            }
        }
        drops
    }
}
