//! One track of a leg when a proxy hands over.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use msm_graph::{ConnId, LegId};
use msm_handover::{Anchor, Blob, Malformed};
use msm_media::LegTrack;
use msm_media::drop::inventory::DropsInventory;
use msm_media::jitter::inventory::ReorderInventory;
use msm_media::jitter::{MIN_WINDOW, Reorder};
use msm_media::leg::inventory::LegInventory;
use serde::{Deserialize, Serialize};

use super::{Drops, GateState, InOrder, LegOut, Way};
use crate::user::PlayerSockets;
use crate::user::stream::LegKernel;
use crate::user::tcp::{ConnWay, Frame};
use crate::user::udp::{self, Destination};
use crate::user::worker::leg_config;

/// A [`LegOut`], written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LegOutInventory {
    leg: LegId,
    #[serde(default)]
    media: LegInventory,
    #[serde(default)]
    feedback: bool,
    way: WayInventory,
    #[serde(default)]
    state: StateInventory,
    #[serde(default)]
    report_due: bool,
    #[serde(default)]
    packets: u64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    drops: DropsInventory,
}

impl LegOutInventory {
    /// Addresses that its viewer's RTCP may come from, with the leg.
    pub(crate) fn viewers(&self) -> impl Iterator<Item = (SocketAddr, LegId)> + '_ {
        let addresses = match &self.way {
            WayInventory::Udp { rtp, rtcp, .. } => [Some(*rtp), Some(*rtcp)],
            WayInventory::Channels { .. } => [None, None],
        };
        addresses.into_iter().flatten().map(|addr| (addr, self.leg))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WayInventory {
    Udp {
        rtp: SocketAddr,
        rtcp: SocketAddr,
        #[serde(default)]
        source: Option<IpAddr>,
        #[serde(default)]
        segmented: bool,
    },
    Channels {
        conn: ConnId,
        rtp: u8,
        rtcp: u8,
        #[serde(default)]
        run: Option<u32>,
        #[serde(default)]
        waiting: ReorderInventory<FrameInventory>,
    },
}

/// Rewritten packet header, if there is one; the rest.
type FrameInventory = (Option<[u8; 12]>, Blob);

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateInventory {
    #[default]
    Disabled,
    Armed,
    Active,
    Paused,
}

impl Drops {
    pub(crate) fn inventory(&self) -> DropsInventory {
        DropsInventory::of(msm_fastpath::DropReason::ALL.into_iter().zip(self.0).filter(|(_, n)| *n > 0))
    }

    pub(crate) fn restore(inventory: &DropsInventory) -> Self {
        let mut drops = Self::default();
        for (reason, count) in inventory.iter() {
            drops.count(reason, count);
        }
        drops
    }
}

impl InOrder {
    fn inventory(&self, at: &Anchor) -> (Option<u32>, ReorderInventory<FrameInventory>) {
        let frame = |(head, tail): &Frame| (*head, Blob(tail.clone()));
        (self.run, self.waiting.inventory(at, frame))
    }

    fn restore(run: Option<u32>, waiting: ReorderInventory<FrameInventory>, at: &Anchor) -> Self {
        let frame = |(head, tail): FrameInventory| -> (Option<[u8; 12]>, Bytes) { (head, tail.0) };
        Self { run, waiting: Reorder::restore(waiting, MIN_WINDOW, at, frame) }
    }
}

impl LegOut {
    /// Writes it down, between two batches.
    pub(crate) fn inventory(&self, at: &Anchor) -> LegOutInventory {
        let way = match &self.way {
            Way::Udp { rtp, rtcp, segmented, .. } => WayInventory::Udp {
                rtp: rtp.addr(),
                rtcp: rtcp.addr(),
                source: rtp.source(),
                segmented: *segmented,
            },
            Way::Channels { conn, rtp, rtcp, order } => {
                let (run, waiting) = order.inventory(at);
                WayInventory::Channels { conn: conn.id(), rtp: *rtp, rtcp: *rtcp, run, waiting }
            }
        };
        LegOutInventory {
            leg: self.leg,
            media: self.media.inventory(at),
            feedback: self.media.config().feedback,
            way,
            state: match self.state {
                GateState::Disabled => StateInventory::Disabled,
                GateState::Armed => StateInventory::Armed,
                GateState::Active => StateInventory::Active,
                GateState::Paused => StateInventory::Paused,
            },
            report_due: self.report_due,
            packets: self.packets,
            bytes: self.bytes,
            drops: self.drops.get().inventory(),
        }
    }

    /// As it was. `way_to`: the way to a connection.
    ///
    /// # Errors
    /// A viewer of an address family that no player port is open in.
    pub(crate) fn restore(
        inventory: LegOutInventory,
        players: &PlayerSockets,
        way_to: impl FnOnce(ConnId) -> ConnWay,
        at: &Anchor,
    ) -> Result<Self, Malformed> {
        let mut kernel = LegKernel::default();
        let (way, interleaved) = match inventory.way {
            WayInventory::Udp { rtp, rtcp, source, segmented } => {
                let pair = players
                    .towards(rtp)
                    .ok_or_else(|| Malformed::new("leg", "of a family without player port"))?;
                kernel = LegKernel::of(rtp, source, pair.ports.rtp);
                let way = Way::Udp {
                    rtp_socket: udp::descriptor(&*pair.rtp),
                    rtcp_socket: udp::descriptor(&*pair.rtcp),
                    rtp: Destination::new(rtp, source),
                    rtcp: Destination::new(rtcp, source),
                    segmented,
                };
                (way, false)
            }
            WayInventory::Channels { conn, rtp, rtcp, run, waiting } => {
                let order = InOrder::restore(run, waiting, at);
                (Way::Channels { conn: way_to(conn), rtp, rtcp, order }, true)
            }
        };
        Ok(Self {
            leg: inventory.leg,
            media: LegTrack::restore(inventory.media, leg_config(inventory.feedback, interleaved), at),
            way,
            state: match inventory.state {
                StateInventory::Disabled => GateState::Disabled,
                StateInventory::Armed => GateState::Armed,
                StateInventory::Active => GateState::Active,
                StateInventory::Paused => GateState::Paused,
            },
            report_due: inventory.report_due,
            packets: inventory.packets,
            bytes: inventory.bytes,
            drops: Drops::restore(&inventory.drops).into(),
            kernel,
        })
    }
}
