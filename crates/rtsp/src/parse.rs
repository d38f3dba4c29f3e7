//! Messages from bytes.
//!
//! Owns the grammar of heads and bodies and its limits. It does not answer anybody: an error says what to
//! answer and whether the framing can still be trusted.

use crate::message::Status;

/// How much of RFC 2326 the peer is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// From viewers and publishers: exact CRLF, no control bytes, no raw non-ASCII (SEC-9, SEC-10).
    Downstream,
    /// From cameras: bare LF, stray blanks, lines without colon and text that is not UTF-8 pass.
    Upstream,
}

/// Bounds of what is parsed (protocols.md section 10), in bytes where not said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseLimits {
    /// Request or status line without its line end.
    pub start_line: usize,
    /// Header line without its line end.
    pub header_line: usize,
    /// Number of header fields.
    pub headers: usize,
    /// Whole head.
    pub head: usize,
    /// Body that is or may be SDP.
    pub body_sdp: usize,
    /// Any other body.
    pub body: usize,
    /// Payload of an interleaved frame.
    pub frame: usize,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self {
            start_line: 2112,
            header_line: 8 * 1024,
            headers: 64,
            head: 32 * 1024,
            body_sdp: 64 * 1024,
            body: 4 * 1024,
            frame: 65535,
        }
    }
}

/// What was wrong with received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{rule} at byte {offset}")]
pub struct ParseError {
    /// Byte of the stream, counted from 0, at which the rule was broken.
    pub offset: u64,
    /// The rule.
    pub rule: Rule,
}

impl ParseError {
    /// What the sender of the bytes gets (protocols.md section 11).
    pub fn status(&self) -> Status {
        self.rule.status()
    }

    /// Whether the framing is in doubt, so that the connection has to be closed.
    pub fn is_fatal(&self) -> bool {
        self.rule.is_fatal()
    }
}

/// A rule of the grammar that bytes can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// At a message boundary stands a byte that starts neither a frame nor a message.
    Boundary,
}

impl Rule {
    /// The status it is answered with.
    pub fn status(self) -> Status {
        Status::BAD_REQUEST
    }

    /// Whether the framing is in doubt.
    pub fn is_fatal(self) -> bool {
        true
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("boundary")
    }
}
