//! Viewers of an earlier process that the kernel serves on: they have no session here, so nobody else tells of them.

use std::net::SocketAddr;

use super::share::Left;
use super::table::Table as _;
use super::tables::KernelTable;

/// Most that are told of: each takes a system call.
const MOST: usize = 1_024;

/// A viewer that has not set up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerViewer {
    /// Where its media goes: one of its tracks.
    pub to: SocketAddr,
    /// RTP packets that the kernel has sent there, those of the earlier process's time included.
    pub packets: u64,
    /// Their bytes, from the RTP header on.
    pub bytes: u64,
}

/// What is left of an earlier process, for those who ask.
#[derive(Debug)]
pub(super) struct Former {
    left: Left,
    table: KernelTable,
}

impl Former {
    pub(super) fn new(left: Left, table: KernelTable) -> Self {
        Self { left, table }
    }

    /// The first 1,024 by address.
    pub(super) fn viewers(&self) -> Vec<FormerViewer> {
        let viewers = self.left.viewers(MOST).into_iter();
        viewers
            .map(|(to, legs)| {
                let sent: Vec<_> = legs.iter().filter_map(|id| self.table.leg_stats(*id).ok()).collect();
                let packets = sent.iter().map(|stats| stats.packets).sum();
                let bytes = sent.iter().map(|stats| stats.bytes).sum();
                FormerViewer { to, packets, bytes }
            })
            .collect()
    }
}
