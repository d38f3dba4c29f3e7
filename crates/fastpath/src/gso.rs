//! Segments of a super-packet.
//!
//! A super-packet is several datagrams of one flow in one buffer: equal sizes, the last may be shorter.
//! Segments are counted from length and segment size, never from `gso_segs`, which is 0 on packets from
//! tun or AF_PACKET with a vnet header.

use crate::limits::MAX_SEGMENTS;

/// Where the segments of one super-packet lie in its UDP payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    len: u32,
    size: u32,
    count: u32,
}

impl Segments {
    /// One empty datagram.
    pub const ONE: Self = Self { len: 0, size: 0, count: 1 };

    /// `len`: UDP payload in bytes. `size`: segment size in bytes; 0 means that it is one plain datagram.
    ///
    /// Returns `None` beyond [`MAX_SEGMENTS`]: such a packet goes to user space. An empty payload is one
    /// empty segment.
    #[inline]
    pub const fn new(len: u32, size: u32) -> Option<Self> {
        let count = if size == 0 || len == 0 { 1 } else { len.div_ceil(size) };
        if count > MAX_SEGMENTS { None } else { Some(Self { len, size, count }) }
    }

    /// Number of segments, 1 to [`MAX_SEGMENTS`].
    #[inline]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of all segments together.
    #[inline]
    pub const fn bytes(&self) -> u32 {
        self.len
    }

    /// Bytes of the largest segment.
    #[inline]
    pub const fn largest(&self) -> u32 {
        if self.count == 1 { self.len } else { self.size }
    }

    /// Offset and length in bytes of segment `index`, `None` if there is no such segment.
    #[inline]
    pub const fn get(&self, index: u32) -> Option<(u32, u32)> {
        if index >= self.count {
            return None;
        }
        let offset = index * self.size;
        let rest = self.len - offset;
        Some((offset, if self.count == 1 || rest < self.size { rest } else { self.size }))
    }

    /// Offsets and lengths in bytes, in order.
    pub fn iter(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.count).filter_map(move |index| self.get(index))
    }
}

#[cfg(test)]
mod tests;
