//! Channels of a connection when a proxy hands over.

use serde::{Deserialize, Serialize};

use super::{ChannelRole, ChannelTable};

/// A [`ChannelTable`], written down. `O`: the owner, written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChannelsInventory<O> {
    /// Channel, owner, whether it carries RTCP.
    entries: Vec<(u8, O, bool)>,
}

impl<O> Default for ChannelsInventory<O> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<O> ChannelTable<O> {
    /// Writes it down.
    pub fn inventory<W>(&self, owner: impl Fn(&O) -> W) -> ChannelsInventory<W> {
        let entry =
            |(channel, (o, role)): (&u8, &(O, ChannelRole))| (*channel, owner(o), *role == ChannelRole::Rtcp);
        ChannelsInventory { entries: self.entries.iter().map(entry).collect() }
    }

    /// As it was.
    pub fn restore<W>(inventory: ChannelsInventory<W>, owner: impl Fn(W) -> O) -> Self {
        let role = |is_rtcp| if is_rtcp { ChannelRole::Rtcp } else { ChannelRole::Rtp };
        let entries = inventory.entries.into_iter().map(|(n, o, is_rtcp)| (n, (owner(o), role(is_rtcp))));
        Self { entries: entries.collect() }
    }
}
