//! What a connection writes: answers in their turn, requests, and interleaved frames behind them.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Instant;

use bytes::Bytes;

use super::queue::{ChannelSet, Frame};
use super::{Conn, FrameDrop, Offer, Offered, Reply, Unit};
use crate::message::{Request, Response};
use crate::write;

impl Unit {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Message(bytes) => bytes.len(),
            Self::Frame(frame) => frame.len(),
        }
    }

    /// The part from byte `skip` on.
    fn rest(&self, skip: usize) -> [&[u8]; 2] {
        let [first, second] = match self {
            Self::Message(bytes) => [&bytes[..], &[][..]],
            Self::Frame(frame) => frame.slices(),
        };
        let behind = skip.saturating_sub(first.len());
        [first.get(skip..).unwrap_or_default(), second.get(behind..).unwrap_or_default()]
    }
}

/// Queue that the next written unit comes from.
enum Turn {
    Message,
    Rtcp,
    Rtp,
}

impl Conn {
    /// Answers the oldest unanswered request of the response's `CSeq` (without one: the oldest of all).
    /// Answers leave in order of the requests, whatever the order of the calls (RTSP-6). With `close_after`
    /// nothing is read any more and nothing but RTCP is sent behind it. Returns false, and drops it, when no
    /// request waits for it.
    pub fn push_response(&mut self, mut response: Response, close_after: bool, now: Instant) -> bool {
        let cseq = response.cseq();
        let found = self.outstanding.iter_mut().find(|entry| {
            entry.reply.is_none() && (response.headers.get("CSeq").is_none() || entry.cseq == cseq)
        });
        let Some(entry) = found else {
            self.counters.stray_replies += 1;
            return false;
        };
        if cseq.is_none()
            && let Some(number) = entry.cseq
        {
            response.headers.set("CSeq", number.to_string());
        }
        entry.reply = Some(Reply { bytes: write::response(&response), close_after });
        self.flush_replies(now);
        true
    }

    /// Moves the answers that are due to the output.
    pub(super) fn flush_replies(&mut self, now: Instant) {
        while let Some(reply) = self.outstanding.front_mut().and_then(|entry| entry.reply.take()) {
            self.outstanding.pop_front();
            self.queue_message(reply.bytes, now);
            if reply.close_after {
                self.close(now);
            }
        }
        if self.outstanding.is_empty() {
            // Between two requests it holds nothing, and needs no room.
            self.outstanding = VecDeque::new();
        }
        let waiting = self.outstanding.iter().any(|entry| entry.reply.is_some());
        if !waiting && !self.release.is_empty() {
            let channels = std::mem::take(&mut self.release);
            self.release_now(channels, now);
        }
    }

    /// Sends a request (client role); its `CSeq` is the owner's, who matches the responses.
    pub fn push_request(&mut self, request: &Request, now: Instant) {
        if self.closing.is_none() {
            self.queue_message(write::request(request), now);
        }
    }

    pub(super) fn queue_message(&mut self, bytes: Bytes, now: Instant) {
        self.note_output(now);
        self.message_bytes += bytes.len();
        self.messages.push_back(bytes);
    }

    /// Queues an RTCP compound as one frame, ahead of RTP; a full queue drops its oldest frame.
    pub fn push_rtcp(&mut self, channel: u8, payload: Bytes, now: Instant) -> Offer {
        let frame = match self.frame(channel, &[], payload, now) {
            Ok(frame) => frame,
            Err(reason) => {
                self.counters.rtcp_dropped += 1;
                return Offer::Dropped(reason);
            }
        };
        while self.rtcp.bytes() + frame.len() > self.limits.rtcp_bytes {
            self.counters.rtcp_dropped += 1;
            if !self.rtcp.drop_oldest(self.offered.rtcp) {
                return Offer::Dropped(FrameDrop::QueueFull);
            }
        }
        self.note_output(now);
        self.rtcp.push(frame, self.hold.contains(channel));
        Offer::Queued
    }

    /// Queues one RTP packet as a frame of `head` followed by `tail`.
    ///
    /// `head`: at most 12 bytes, copied: the rewritten fixed header of a projected leg, or empty. `tail`: the
    /// rest of the packet, shared with the other legs. Frames that waited longer than
    /// [`ConnLimits::rtp_age`] for the peer to read make room first; what is full then drops this one (RTSP-44).
    pub fn push_rtp(&mut self, channel: u8, head: &[u8], tail: Bytes, now: Instant) -> Offer {
        let had_output = self.wants_write();
        self.drop_late(now);
        let frame = match self.frame(channel, head, tail, now) {
            Ok(frame) => frame,
            Err(reason) => return Offer::Dropped(reason),
        };
        if self.rtp.bytes() + frame.len() > self.limits.rtp_bytes {
            self.counters.rtp_full += 1;
            return Offer::Dropped(FrameDrop::QueueFull);
        }
        if !had_output {
            self.blocked = Some(now);
        }
        self.rtp.push(frame, self.hold.contains(channel));
        Offer::Queued
    }

    fn frame(&self, channel: u8, head: &[u8], tail: Bytes, now: Instant) -> Result<Frame, FrameDrop> {
        if self.closing.is_some() {
            return Err(FrameDrop::Closing);
        }
        Frame::new(channel, head, tail, now).ok_or(FrameDrop::TooLong)
    }

    fn drop_late(&mut self, now: Instant) {
        // What waits for us and not for the peer is not late: after a pause of this process the socket has
        // room for all of it.
        if let Some(limit) = now.checked_sub(self.limits.rtp_age).filter(|_| self.refused) {
            self.counters.rtp_late += self.rtp.drop_older(limit, self.offered.rtp);
        }
    }

    /// Keeps frames of these channels in the queue until [`Conn::release_media`] (RTSP-44). Frames that were
    /// held already are dropped: the response that was to name the first of them was not given.
    pub fn hold_media(&mut self, channels: &[u8]) {
        let channels = ChannelSet::of(channels);
        self.rtcp.clear_held(channels);
        self.rtp.clear_held(channels);
        self.hold = self.hold.union(channels);
        self.release = self.release.without(channels);
    }

    /// Lets frames of these channels follow. Takes effect behind every response pushed before, one that
    /// still waits for the answer to an earlier request included.
    pub fn release_media(&mut self, channels: &[u8], now: Instant) {
        self.release = self.release.union(ChannelSet::of(channels));
        self.flush_replies(now);
    }

    fn release_now(&mut self, channels: ChannelSet, now: Instant) {
        self.note_output(now);
        self.hold = self.hold.without(channels);
        self.rtcp.release(channels, now);
        self.rtp.release(channels, now);
    }

    /// Drops the queued frames of these channels and lifts their hold: their leg is gone.
    pub fn clear_media(&mut self, channels: &[u8]) {
        let channels = ChannelSet::of(channels);
        self.hold = self.hold.without(channels);
        self.release = self.release.without(channels);
        self.rtcp.clear(channels, self.offered.rtcp);
        self.rtp.clear(channels, self.offered.rtp);
    }

    /// The stuck-writer clock starts when the output stops being empty.
    fn note_output(&mut self, now: Instant) {
        if !self.wants_write() {
            self.blocked = Some(now);
        }
    }

    /// Fills `bufs` with what to write next: whole messages, then RTCP, then RTP, but first the rest of an
    /// item that has been written partly. Returns how many slices were filled; 0 means nothing to write. Two
    /// slices at least are needed. Follow with [`Conn::advance`], also when nothing could be written.
    pub fn poll_transmit<'a>(&'a mut self, now: Instant, bufs: &mut [IoSlice<'a>]) -> usize {
        self.offered = Offered::default();
        self.drop_late(now);
        let mut slots = bufs.iter_mut();
        let mut filled = 0;
        let mut put = |parts: [&'a [u8]; 2]| {
            let parts = parts.into_iter().filter(|part| !part.is_empty());
            if slots.len() < parts.clone().count() {
                return false;
            }
            // Parts lead: zip asks its first iterator first, and must not take a slot in vain.
            for (part, slot) in parts.zip(slots.by_ref()) {
                *slot = IoSlice::new(part);
                filled += 1;
            }
            true
        };
        if let Some((unit, skip)) = &self.partial
            && !put(unit.rest(*skip))
        {
            return 0;
        }
        let messages = self.messages.iter().take_while(|bytes| put([bytes, &[]])).count();
        let all = messages == self.messages.len();
        let rtcp = if all { self.rtcp.ready().take_while(|frame| put(frame.slices())).count() } else { 0 };
        let all = all && rtcp == self.rtcp.ready().len();
        let rtp = if all { self.rtp.ready().take_while(|frame| put(frame.slices())).count() } else { 0 };
        self.offered = Offered { messages, rtcp, rtp };
        filled
    }

    /// `written` bytes of the last [`Conn::poll_transmit`] went to the socket; 0 when it would block.
    pub fn advance(&mut self, written: usize, now: Instant) {
        let offered = std::mem::take(&mut self.offered);
        let mut left = written;
        let mut turn = (0..offered.messages)
            .map(|_| Turn::Message)
            .chain((0..offered.rtcp).map(|_| Turn::Rtcp))
            .chain((0..offered.rtp).map(|_| Turn::Rtp));
        let mut current = self.partial.take();
        while left > 0 {
            let Some((unit, skip)) = current.take().or_else(|| Some((self.take(turn.next()?)?, 0))) else {
                break;
            };
            let rest = unit.len().saturating_sub(skip);
            if left < rest {
                current = Some((unit, skip + left));
                break;
            }
            left -= rest;
            if matches!(unit, Unit::Frame(_)) {
                self.counters.frames_out += 1;
            }
        }
        self.refused = current.is_some() || turn.next().is_some();
        self.partial = current;
        if !self.wants_write() {
            self.blocked = None;
        } else if written > 0 {
            self.blocked = Some(now);
        }
    }

    fn take(&mut self, turn: Turn) -> Option<Unit> {
        match turn {
            Turn::Message => {
                let bytes = self.messages.pop_front()?;
                self.message_bytes -= bytes.len();
                if self.messages.is_empty() {
                    self.messages = VecDeque::new();
                }
                Some(Unit::Message(bytes))
            }
            Turn::Rtcp => self.rtcp.pop().map(Unit::Frame),
            Turn::Rtp => self.rtp.pop().map(Unit::Frame),
        }
    }

    /// Whether [`Conn::poll_transmit`] has something to write.
    pub fn wants_write(&self) -> bool {
        self.partial.is_some() || !self.messages.is_empty() || self.rtcp.is_ready() || self.rtp.is_ready()
    }

    /// Bytes of RTP frames that wait, held ones included: the depth of the queue.
    pub fn rtp_depth(&self) -> usize {
        self.rtp.bytes()
    }
}
