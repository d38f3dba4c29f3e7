//! Messages and interleaved frames from one byte stream (RFC 2326 section 10.12).
//!
//! Owns the read buffer and decides at each message boundary what comes next: `$` a frame, an upper-case
//! letter a message, CR or LF nothing (RTSP-5). Payloads are slices of the read buffer; memory grows with
//! what was received, never with what was declared.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use bytes::{Buf as _, Bytes, BytesMut};

use crate::parse::{ParseError, ParseLimits, Parsed, Parser, Progress, Rule, Strictness};

pub mod check;
pub mod inventory;
#[cfg(test)]
mod tests;

/// Smallest free room of the read buffer offered to a read, in bytes.
const MIN_ROOM: usize = 2048;
/// First size of the read buffer.
const MIN_CHUNK: usize = 4096;
/// Size it grows to while reads fill it: a video frame of a camera in one read.
const MAX_CHUNK: usize = 64 * 1024;
/// `$`, channel, length (big endian).
const FRAME_HEADER: usize = 4;

/// A unit of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A message, well-formed or not.
    Message(Parsed),
    /// An interleaved frame that is not empty.
    Frame {
        /// Channel number.
        channel: u8,
        /// What follows the four byte header.
        payload: Bytes,
    },
}

/// What the stream is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// Nothing: the next byte starts a unit.
    Nothing,
    /// A head.
    Head,
    /// A body of this many bytes.
    Body(usize),
    /// A `$` frame.
    Frame,
}

/// Demultiplexer of one receiving direction.
#[derive(Debug)]
pub struct Demux {
    buffer: BytesMut,
    /// Stream offset of the buffer's first byte.
    offset: u64,
    /// Stream offset of the first byte of the unit in progress.
    unit: u64,
    chunk: usize,
    /// Stream offset of the last byte that the buffer had room for when it was last handed out.
    lent: Option<u64>,
    parser: Parser,
    frame_limit: usize,
    failed: Option<ParseError>,
    /// Whether the last unit was a frame: more will follow at once, and the buffer is kept.
    framed: bool,
    empty_frames: u64,
}

impl Demux {
    /// A demultiplexer at the start of a stream. Allocates nothing yet.
    pub fn new(strictness: Strictness, limits: ParseLimits) -> Self {
        Self {
            buffer: BytesMut::new(),
            offset: 0,
            unit: 0,
            chunk: MIN_CHUNK,
            lent: None,
            parser: Parser::new(strictness, limits),
            frame_limit: limits.frame,
            failed: None,
            framed: false,
            empty_frames: 0,
        }
    }

    /// The buffer to append received bytes to, with room for at least 2 KiB.
    pub fn read_buf(&mut self) -> &mut BytesMut {
        let received = self.offset + self.buffer.len() as u64;
        if self.lent.is_some_and(|full| received >= full) {
            self.chunk = (self.chunk * 2).min(MAX_CHUNK);
        }
        if self.buffer.capacity() - self.buffer.len() < MIN_ROOM {
            self.buffer.reserve(self.chunk);
        }
        self.lent = Some(received + (self.buffer.capacity() - self.buffer.len()) as u64);
        &mut self.buffer
    }

    /// Appends a copy of `bytes`.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next unit; `None`: more bytes are needed. Between two messages the read buffer is given back.
    ///
    /// # Errors
    /// A fatal [`ParseError`], again on every later call: the framing is lost.
    pub fn poll(&mut self) -> Result<Option<Item>, ParseError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let item = self.next_item().inspect_err(|error| self.failed = Some(*error))?;
        match &item {
            Some(item) => self.framed = matches!(item, Item::Frame { .. }),
            // Thousands of connections wait between two messages: none keeps room for the next one meanwhile.
            None if self.buffer.is_empty() && !self.framed => self.buffer = BytesMut::new(),
            None => {}
        }
        Ok(item)
    }

    fn next_item(&mut self) -> Result<Option<Item>, ParseError> {
        // A loop, not recursion: a peer may send any number of empty frames (ST4).
        while self.parser.progress() == Progress::Idle {
            self.unit = self.offset;
            match self.buffer.first() {
                None => return Ok(None),
                Some(b'$') => {
                    let Some((channel, payload)) = self.take_frame()? else { return Ok(None) };
                    if !payload.is_empty() {
                        return Ok(Some(Item::Frame { channel, payload }));
                    }
                    self.empty_frames += 1;
                }
                Some(b'\r' | b'\n') => self.skip(1),
                Some(b'A'..=b'Z') => break,
                Some(_) => return Err(ParseError { offset: self.offset, rule: Rule::Boundary }),
            }
        }
        Ok(self.parser.feed(&mut self.buffer, &mut self.offset)?.map(Item::Message))
    }

    fn take_frame(&mut self) -> Result<Option<(u8, Bytes)>, ParseError> {
        let &[_, channel, high, low, ..] = &self.buffer[..] else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > self.frame_limit {
            return Err(ParseError { offset: self.offset, rule: Rule::FrameLength });
        }
        if self.buffer.len() < FRAME_HEADER + length {
            return Ok(None);
        }
        self.skip(FRAME_HEADER);
        if length == 0 {
            return Ok(Some((channel, Bytes::new())));
        }
        self.offset += length as u64;
        Ok(Some((channel, self.buffer.split_to(length).freeze())))
    }

    /// `count` is at most the buffer's length.
    fn skip(&mut self, count: usize) {
        self.buffer.advance(count);
        self.offset += count as u64;
    }

    /// What the bytes received so far leave unfinished, as of the last [`Demux::poll`].
    pub fn pending(&self) -> Pending {
        match self.parser.progress() {
            Progress::Head => Pending::Head,
            Progress::Body(length) => Pending::Body(length),
            Progress::Idle if self.buffer.first() == Some(&b'$') => Pending::Frame,
            Progress::Idle => Pending::Nothing,
        }
    }

    /// Stream offset at which the unfinished unit starts: tells one from the next.
    pub fn pending_since(&self) -> u64 {
        self.unit
    }

    /// Frames of length 0, which are skipped (RTSP-42).
    pub fn empty_frames(&self) -> u64 {
        self.empty_frames
    }

    /// Bytes the read buffer can hold without growing: the memory this connection pins.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}
