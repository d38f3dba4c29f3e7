//! A connection when a proxy hands over: the next one goes on at the very byte, in both directions.

use std::sync::Arc;
use std::time::Instant;

use msm_handover::{Anchor, Blob, Malformed, Moment};
use serde::{Deserialize, Serialize};

use super::queue::inventory::{FrameInventory, LaneInventory};
use super::queue::{ChannelSet, Frame, Lane};
use super::{
    Conn, ConnCounters, ConnLimits, Demux, Offered, Outstanding, Pending, Reply, Role, Strictness, Unit,
};
use crate::demux::inventory::DemuxInventory;

/// A [`Conn`], written down. Its limits are not: those of the next program hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnInventory {
    /// We dialled it.
    client: bool,
    demux: DemuxInventory,
    counters: CountersInventory,
    outstanding: Vec<OutstandingInventory>,
    session: bool,
    got_byte: bool,
    active: Moment,
    /// What is unfinished, where it starts, since when.
    pending: Option<(PendingInventory, u64, Moment)>,
    closing: Option<Moment>,
    partial: Option<PartialInventory>,
    messages: Vec<Blob>,
    rtcp: LaneInventory,
    rtp: LaneInventory,
    hold: Vec<u8>,
    release: Vec<u8>,
    blocked: Option<Moment>,
    #[serde(default)]
    refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PendingInventory {
    Head,
    Body(usize),
    Frame,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct OutstandingInventory {
    cseq: Option<u32>,
    reply: Option<Blob>,
    close_after: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PartialInventory {
    written: usize,
    #[serde(default)]
    message: Option<Blob>,
    #[serde(default)]
    frame: Option<FrameInventory>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct CountersInventory {
    messages_in: u64,
    frames_in: u64,
    stray_responses: u64,
    camera_requests: u64,
    rejected: u64,
    stray_replies: u64,
    stray_frames: u32,
    frames_out: u64,
    rtp_full: u64,
    rtp_late: u64,
    rtcp_dropped: u64,
}

impl Conn {
    /// Writes it down. Nothing may be offered to the socket at that time: between
    /// [`Conn::advance`] and the next [`Conn::poll_transmit`].
    pub fn inventory(&self, at: &Anchor) -> ConnInventory {
        let moment = |instant: Option<Instant>| instant.map(|instant| at.moment(instant));
        let (pending, start, since) = self.pending;
        let pending = match pending {
            Pending::Nothing => None,
            Pending::Head => Some(PendingInventory::Head),
            Pending::Body(length) => Some(PendingInventory::Body(length)),
            Pending::Frame => Some(PendingInventory::Frame),
        };
        let outstanding = self.outstanding.iter().map(|entry| OutstandingInventory {
            cseq: entry.cseq,
            reply: entry.reply.as_ref().map(|reply| reply.bytes.clone().into()),
            close_after: entry.reply.as_ref().is_some_and(|reply| reply.close_after),
        });
        let partial = self.partial.as_ref().map(|(unit, written)| match unit {
            Unit::Message(bytes) => {
                PartialInventory { written: *written, message: Some(bytes.clone().into()), frame: None }
            }
            Unit::Frame(frame) => {
                PartialInventory { written: *written, message: None, frame: Some(frame.inventory(at)) }
            }
        });
        let c = &self.counters;
        ConnInventory {
            client: self.role == Role::Client,
            demux: self.demux.inventory(),
            counters: CountersInventory {
                messages_in: c.messages_in,
                frames_in: c.frames_in,
                stray_responses: c.stray_responses,
                camera_requests: c.camera_requests,
                rejected: c.rejected,
                stray_replies: c.stray_replies,
                stray_frames: c.stray_frames,
                frames_out: c.frames_out,
                rtp_full: c.rtp_full,
                rtp_late: c.rtp_late,
                rtcp_dropped: c.rtcp_dropped,
            },
            outstanding: outstanding.collect(),
            session: self.session,
            got_byte: self.got_byte,
            active: at.moment(self.active),
            pending: pending.map(|pending| (pending, start, at.moment(since))),
            closing: moment(self.closing),
            partial,
            messages: self.messages.iter().map(|bytes| bytes.clone().into()).collect(),
            rtcp: self.rtcp.inventory(at),
            rtp: self.rtp.inventory(at),
            hold: self.hold.list(),
            release: self.release.list(),
            blocked: moment(self.blocked),
            refused: self.refused,
        }
    }

    /// As it was, under these limits.
    ///
    /// # Errors
    /// Parts that contradict each other.
    pub fn restore(
        inventory: ConnInventory,
        limits: impl Into<Arc<ConnLimits>>,
        at: &Anchor,
    ) -> Result<Self, Malformed> {
        let limits = limits.into();
        let instant = |moment: Option<Moment>| moment.map(|moment| at.instant(moment));
        let (role, strictness) = if inventory.client {
            (Role::Client, Strictness::Upstream)
        } else {
            (Role::Server, Strictness::Downstream)
        };
        let active = at.instant(inventory.active);
        let pending = match inventory.pending {
            None => (Pending::Nothing, 0, active),
            Some((pending, start, since)) => {
                let pending = match pending {
                    PendingInventory::Head => Pending::Head,
                    PendingInventory::Body(length) => Pending::Body(length),
                    PendingInventory::Frame => Pending::Frame,
                };
                (pending, start, at.instant(since))
            }
        };
        let partial = match inventory.partial {
            None => None,
            Some(PartialInventory { written, message: Some(bytes), frame: None }) => {
                Some((Unit::Message(bytes.0), written))
            }
            Some(PartialInventory { written, message: None, frame: Some(frame) }) => {
                Some((Unit::Frame(Frame::restore(frame, at)?), written))
            }
            Some(_) => return Err(Malformed::new("connection", "half a unit of two kinds")),
        };
        if partial.as_ref().is_some_and(|(unit, written)| *written >= unit.len()) {
            return Err(Malformed::new("connection", "a part that is longer than the whole"));
        }
        let outstanding = inventory.outstanding.into_iter().map(|entry| Outstanding {
            cseq: entry.cseq,
            reply: entry.reply.map(|bytes| Reply { bytes: bytes.0, close_after: entry.close_after }),
        });
        let c = inventory.counters;
        let messages: std::collections::VecDeque<_> =
            inventory.messages.into_iter().map(|bytes| bytes.0).collect();
        Ok(Self {
            role,
            demux: Demux::restore(inventory.demux, strictness, limits.parse)?,
            limits,
            counters: ConnCounters {
                messages_in: c.messages_in,
                frames_in: c.frames_in,
                empty_frames: 0,
                stray_responses: c.stray_responses,
                camera_requests: c.camera_requests,
                rejected: c.rejected,
                stray_replies: c.stray_replies,
                stray_frames: c.stray_frames,
                frames_out: c.frames_out,
                rtp_full: c.rtp_full,
                rtp_late: c.rtp_late,
                rtcp_dropped: c.rtcp_dropped,
            },
            outstanding: outstanding.collect(),
            session: inventory.session,
            got_byte: inventory.got_byte,
            active,
            pending,
            closing: instant(inventory.closing),
            partial,
            message_bytes: messages.iter().map(bytes::Bytes::len).sum(),
            messages,
            rtcp: Lane::restore(inventory.rtcp, at)?,
            rtp: Lane::restore(inventory.rtp, at)?,
            hold: ChannelSet::of(&inventory.hold),
            release: ChannelSet::of(&inventory.release),
            blocked: instant(inventory.blocked),
            refused: inventory.refused,
            offered: Offered::default(),
        })
    }
}

#[cfg(test)]
mod tests;
