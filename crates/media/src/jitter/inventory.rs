//! Packets that wait for one that is missing, when a proxy hands over.

use msm_handover::{Anchor, Moment};
use serde::{Deserialize, Serialize};

use super::{Duration, Reorder};

/// A [`Reorder`], written down. `W`: a packet, written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReorderInventory<W> {
    next: Option<u64>,
    waiting: Vec<(u64, Moment, W)>,
    late: u64,
}

impl<W> Default for ReorderInventory<W> {
    fn default() -> Self {
        Self { next: None, waiting: Vec::new(), late: 0 }
    }
}

impl<T> Reorder<T> {
    /// Writes it down.
    pub fn inventory<W>(&self, at: &Anchor, packet: impl Fn(&T) -> W) -> ReorderInventory<W> {
        let waiting = self.waiting.iter().map(|(ext, (since, p))| (*ext, at.moment(*since), packet(p)));
        ReorderInventory { next: self.next, waiting: waiting.collect(), late: self.late }
    }

    /// As it was, with the window of this program.
    pub fn restore<W>(
        inventory: ReorderInventory<W>,
        window: Duration,
        at: &Anchor,
        packet: impl Fn(W) -> T,
    ) -> Self {
        let mut restored = Self::new(window);
        restored.next = inventory.next;
        restored.late = inventory.late;
        let waiting = inventory.waiting.into_iter();
        restored.waiting = waiting.map(|(ext, since, p)| (ext, (at.instant(since), packet(p)))).collect();
        restored
    }
}
