//! Interleaved frames that wait for the socket.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

pub(super) mod inventory;

/// Longest rewritten packet header that a frame carries by value.
pub(super) const MAX_HEAD: usize = 12;

/// A set of channel numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ChannelSet([u128; 2]);

impl ChannelSet {
    pub(super) const ALL: Self = Self([u128::MAX; 2]);

    pub(super) fn of(channels: &[u8]) -> Self {
        channels.iter().fold(Self::default(), |mut set, &channel| {
            if let Some(word) = set.0.get_mut(usize::from(channel >> 7)) {
                *word |= 1 << (channel & 127);
            }
            set
        })
    }

    pub(super) fn contains(self, channel: u8) -> bool {
        self.0.get(usize::from(channel >> 7)).is_some_and(|word| word & (1 << (channel & 127)) != 0)
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self([self.0[0] | other.0[0], self.0[1] | other.0[1]])
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self([self.0[0] & !other.0[0], self.0[1] & !other.0[1]])
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// One `$` frame: header and rewritten packet header by value, the rest shared.
#[derive(Debug)]
pub(super) struct Frame {
    head: [u8; 4 + MAX_HEAD],
    head_len: u8,
    tail: Bytes,
    at: Instant,
}

impl Frame {
    /// `None` when the length field cannot say it, or `head` is over [`MAX_HEAD`].
    pub(super) fn new(channel: u8, head: &[u8], tail: Bytes, at: Instant) -> Option<Self> {
        let length = u16::try_from(head.len() + tail.len()).ok()?;
        let [high, low] = length.to_be_bytes();
        let mut bytes = [0; 4 + MAX_HEAD];
        bytes[..4].copy_from_slice(&[b'$', channel, high, low]);
        bytes.get_mut(4..4 + head.len())?.copy_from_slice(head);
        Some(Self { head: bytes, head_len: 4 + head.len() as u8, tail, at })
    }

    pub(super) fn channel(&self) -> u8 {
        self.head[1]
    }

    /// Bytes on the wire.
    pub(super) fn len(&self) -> usize {
        usize::from(self.head_len) + self.tail.len()
    }

    pub(super) fn slices(&self) -> [&[u8]; 2] {
        [self.head.get(..usize::from(self.head_len)).unwrap_or_default(), &self.tail]
    }
}

/// Frames of one priority: those that may be written, in order, and those held back.
#[derive(Debug, Default)]
pub(super) struct Lane {
    ready: VecDeque<Frame>,
    held: VecDeque<Frame>,
    bytes: usize,
}

impl Lane {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn push(&mut self, frame: Frame, held: bool) {
        self.bytes += frame.len();
        if held { self.held.push_back(frame) } else { self.ready.push_back(frame) }
    }

    /// Drops what became ready before `limit`, unless `keep` units are offered. Returns how many.
    pub(super) fn drop_older(&mut self, limit: Instant, keep: usize) -> u64 {
        let mut dropped = 0;
        while keep == 0 && self.ready.front().is_some_and(|frame| frame.at < limit) {
            self.drop_oldest(keep);
            dropped += 1;
        }
        dropped
    }

    /// Drops the frame next in turn (unless `keep` are offered), else the oldest held one. False when there
    /// is none to drop.
    pub(super) fn drop_oldest(&mut self, keep: usize) -> bool {
        let frame = if keep == 0 { self.ready.pop_front() } else { None };
        let Some(frame) = frame.or_else(|| self.held.pop_front()) else { return false };
        self.bytes -= frame.len();
        true
    }

    /// Held frames of `channels` follow those that are ready; their age counts from `now`, since the wait was
    /// ours.
    pub(super) fn release(&mut self, channels: ChannelSet, now: Instant) {
        for mut frame in std::mem::take(&mut self.held) {
            if channels.contains(frame.channel()) {
                frame.at = now;
                self.ready.push_back(frame);
            } else {
                self.held.push_back(frame);
            }
        }
    }

    /// Drops the frames of `channels`, the first `offered` of those that are ready excepted.
    pub(super) fn clear(&mut self, channels: ChannelSet, offered: usize) {
        let mut index = 0;
        let bytes = &mut self.bytes;
        self.ready.retain(|frame| {
            index += 1;
            let keep = index <= offered || !channels.contains(frame.channel());
            *bytes -= if keep { 0 } else { frame.len() };
            keep
        });
        self.clear_held(channels);
    }

    /// Drops the held frames of `channels`.
    pub(super) fn clear_held(&mut self, channels: ChannelSet) {
        let bytes = &mut self.bytes;
        self.held.retain(|frame| {
            let keep = !channels.contains(frame.channel());
            *bytes -= if keep { 0 } else { frame.len() };
            keep
        });
    }

    pub(super) fn ready(&self) -> impl ExactSizeIterator<Item = &Frame> {
        self.ready.iter()
    }

    /// Takes the frame next in turn.
    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.ready.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}
