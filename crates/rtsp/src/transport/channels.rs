//! Numbers of interleaved channels on one connection (RTSP-17, SEC-8).

use std::collections::BTreeMap;

use super::ChannelRange;

/// What a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelRole {
    /// RTP.
    Rtp,
    /// RTCP.
    Rtcp,
}

/// Channels of one RTSP connection: number to owner and role. A channel has one owner at most, so that two
/// sessions on a connection never share one (SEC-8). At most 256 entries.
///
/// `O`: session and media, whatever the caller names them by.
#[derive(Debug, Clone)]
pub struct ChannelTable<O> {
    pub(super) entries: BTreeMap<u8, (O, ChannelRole)>,
}

impl<O> Default for ChannelTable<O> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<O: Clone + PartialEq> ChannelTable<O> {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// As server: gives `owner` the pair it asked for if both numbers are free on this connection, else the
    /// lowest free even pair. Channels that `owner` had are freed first (RTSP-19). `None` if none is left.
    pub fn allocate(&mut self, asked: Option<ChannelRange>, owner: O) -> Option<ChannelRange> {
        self.release(&owner);
        let asked = asked.and_then(|a| Some((a.rtp, a.rtcp_channel()?)));
        let (rtp, rtcp) = asked
            .filter(|(rtp, rtcp)| rtp != rtcp && self.is_free(*rtp) && self.is_free(*rtcp))
            .or_else(|| {
                (0..=254u8).step_by(2).map(|n| (n, n + 1)).find(|(a, b)| self.is_free(*a) && self.is_free(*b))
            })?;
        self.entries.insert(rtp, (owner.clone(), ChannelRole::Rtp));
        self.entries.insert(rtcp, (owner, ChannelRole::Rtcp));
        Some(ChannelRange::pair(rtp, rtcp))
    }

    /// As client: the lowest free even pair to ask a source for; nothing is taken.
    pub fn lowest_free(&self) -> Option<ChannelRange> {
        (0..=254u8)
            .step_by(2)
            .find(|n| self.is_free(*n) && self.is_free(n + 1))
            .map(|n| ChannelRange::pair(n, n + 1))
    }

    /// As client: records the pair a source answered, whatever was asked (RTSP-17). `false` if another owner
    /// has one of them, or RTP and RTCP are the same; nothing changes then.
    pub fn bind(&mut self, channels: ChannelRange, owner: O) -> bool {
        let Some(rtcp) = channels.rtcp_channel() else { return false };
        let usable = |n: u8| self.entries.get(&n).is_none_or(|(o, _)| *o == owner);
        if channels.rtp == rtcp || !usable(channels.rtp) || !usable(rtcp) {
            return false;
        }
        self.release(&owner);
        self.entries.insert(channels.rtp, (owner.clone(), ChannelRole::Rtp));
        self.entries.insert(rtcp, (owner, ChannelRole::Rtcp));
        true
    }

    /// Who owns `channel`, and what it carries. `None`: drop the frame, count it (RTSP-41).
    pub fn owner(&self, channel: u8) -> Option<(&O, ChannelRole)> {
        self.entries.get(&channel).map(|(owner, role)| (owner, *role))
    }

    /// Frees the channels of `owner`.
    pub fn release(&mut self, owner: &O) {
        self.entries.retain(|_, (o, _)| o != owner);
    }

    /// Frees the channels of every owner that `gone` names, those of an ended session.
    pub fn release_where(&mut self, mut gone: impl FnMut(&O) -> bool) {
        self.entries.retain(|_, (o, _)| !gone(o));
    }

    /// Whether nothing is bound.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn is_free(&self, channel: u8) -> bool {
        !self.entries.contains_key(&channel)
    }
}
