//! Frames that wait for the socket, when a proxy hands over.

use msm_handover::{Anchor, Blob, Malformed, Moment};
use serde::{Deserialize, Serialize};

use super::{ChannelSet, Frame, Lane};

/// A [`Frame`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::conn) struct FrameInventory {
    channel: u8,
    /// Rewritten packet header.
    head: Blob,
    tail: Blob,
    at: Moment,
}

/// A [`Lane`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::conn) struct LaneInventory {
    ready: Vec<FrameInventory>,
    held: Vec<FrameInventory>,
}

impl ChannelSet {
    pub(in crate::conn) fn list(self) -> Vec<u8> {
        (0..=u8::MAX).filter(|channel| self.contains(*channel)).collect()
    }
}

impl Frame {
    pub(in crate::conn) fn inventory(&self, at: &Anchor) -> FrameInventory {
        let head = self.head.get(4..usize::from(self.head_len)).unwrap_or_default();
        FrameInventory {
            channel: self.channel(),
            head: head.into(),
            tail: self.tail.clone().into(),
            at: at.moment(self.at),
        }
    }

    pub(in crate::conn) fn restore(inventory: FrameInventory, at: &Anchor) -> Result<Self, Malformed> {
        let FrameInventory { channel, head, tail, at: moment } = inventory;
        Self::new(channel, &head.0, tail.0, at.instant(moment))
            .ok_or_else(|| Malformed::new("frame", "too long"))
    }
}

impl Lane {
    pub(in crate::conn) fn inventory(&self, at: &Anchor) -> LaneInventory {
        let list =
            |frames: &std::collections::VecDeque<Frame>| frames.iter().map(|f| f.inventory(at)).collect();
        LaneInventory { ready: list(&self.ready), held: list(&self.held) }
    }

    pub(in crate::conn) fn restore(inventory: LaneInventory, at: &Anchor) -> Result<Self, Malformed> {
        let mut lane = Self::default();
        for (frames, held) in [(inventory.ready, false), (inventory.held, true)] {
            for frame in frames {
                lane.push(Frame::restore(frame, at)?, held);
            }
        }
        Ok(lane)
    }
}
