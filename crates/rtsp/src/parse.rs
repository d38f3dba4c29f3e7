//! Messages from bytes.
//!
//! Owns the grammar of heads and bodies and its limits. It does not answer anybody: an error says what to
//! answer and whether the framing can still be trusted. Lines are judged in order and each one only when it
//! is complete or too long, so the outcome does not depend on how the bytes arrived (RTSP-40).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::message::{Headers, Message, Method, Request, Response, Status, Version};

pub mod inventory;
mod line;
#[cfg(test)]
mod tests;

/// How much of RFC 2326 the peer is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// From viewers and publishers: exact CRLF, no control bytes, no raw non-ASCII (SEC-9, SEC-10).
    Downstream,
    /// From cameras: bare LF, stray blanks, lines without colon and text that is not UTF-8 pass.
    Upstream,
}

/// Bounds of what is parsed (`docs/protocols/rtsp.md`, Limits), in bytes where not said otherwise.
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
    /// What the sender of the bytes gets (`docs/protocols/rtsp.md`, Messages).
    pub fn status(&self) -> Status {
        self.rule.status()
    }

    /// Whether the framing is in doubt, so that the connection has to be closed.
    pub fn is_fatal(&self) -> bool {
        self.rule.is_fatal()
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:ident, $fate:ident;)*) => {
        /// A rule of the grammar that bytes can break.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Stable name for logs and counters.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The status it is answered with (`docs/protocols/rtsp.md`, Messages).
            pub fn status(self) -> Status {
                match self { $(Self::$name => Status::$status,)* }
            }

            /// Whether the framing is in doubt, so that the connection has to be closed.
            pub fn is_fatal(self) -> bool {
                match self { $(Self::$name => rules!(@ $fate),)* }
            }
        }
    };
    (@ close) => { true };
    (@ open) => { false };
}

rules! {
    /// At a message boundary stands a byte that starts neither a frame nor a message (1.6).
    Boundary = "boundary", BAD_REQUEST, close;
    /// A start line that is not `method uri version` or `version status reason`.
    StartLine = "start_line", BAD_REQUEST, close;
    /// A protocol other than RTSP.
    Protocol = "protocol", BAD_REQUEST, close;
    /// RTSP, but not 1.0 (RTSP-1).
    Version = "version", VERSION_NOT_SUPPORTED, open;
    /// A request line over its limit.
    StartLineLength = "start_line_length", URI_TOO_LONG, close;
    /// A header line over its limit.
    HeaderLength = "header_length", BAD_REQUEST, close;
    /// Too many fields.
    HeaderCount = "header_count", BAD_REQUEST, close;
    /// A head over its limit.
    HeadLength = "head_length", BAD_REQUEST, close;
    /// A line that does not end in CRLF (SEC-9).
    LineEnd = "line_end", BAD_REQUEST, close;
    /// A folded field (RTSP-5).
    Folded = "folded", BAD_REQUEST, close;
    /// A field without colon, or whose name is not a token.
    HeaderName = "header_name", BAD_REQUEST, close;
    /// A control byte (SEC-10).
    Control = "control", BAD_REQUEST, close;
    /// Raw non-ASCII text (SEC-10).
    NonAscii = "non_ascii", BAD_REQUEST, open;
    /// A field of framing or identity twice, or `Transport` twice with different values (RTSP-4).
    Duplicate = "duplicate", BAD_REQUEST, close;
    /// `Content-Length` that is not 1 to 7 digits (SEC-9).
    ContentLength = "content_length", BAD_REQUEST, close;
    /// `Transfer-Encoding` (SEC-9).
    TransferEncoding = "transfer_encoding", BAD_REQUEST, close;
    /// A body over its limit.
    BodyLength = "body_length", CONTENT_TOO_LARGE, close;
    /// A request without a `CSeq` that is a number (RTSP-2).
    CSeq = "cseq", BAD_REQUEST, open;
    /// An interleaved frame over its limit.
    FrameLength = "frame_length", BAD_REQUEST, close;
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message as it was framed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// Well-formed.
    Message(Message),
    /// Its end is known, its content is not acceptable: answer `error.status()` and go on.
    Malformed {
        /// The first rule that it broke; not a fatal one.
        error: ParseError,
        /// Its `CSeq`, for the answer.
        cseq: Option<u32>,
        /// Whether it is a response, which is not answered.
        response: bool,
    },
}

/// Where the parser stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Between messages.
    Idle,
    /// Inside a head.
    Head,
    /// Inside a body of this many bytes.
    Body(usize),
}

#[derive(Debug)]
enum Start {
    Request { method: Method, uri: String, version: Version },
    Response { version: Version, status: Status, reason: String },
}

/// Parser of one message at a time.
#[derive(Debug)]
pub struct Parser {
    strictness: Strictness,
    limits: ParseLimits,
    /// Bytes of the buffer searched without finding a line end.
    searched: usize,
    /// Bytes of the head taken so far.
    head: usize,
    start: Option<Start>,
    headers: Headers,
    soft: Option<ParseError>,
    /// Of the `CSeq` line, else of the start line.
    cseq_offset: u64,
    /// Body bytes to wait for, once the head is complete.
    body: Option<usize>,
}

impl Parser {
    /// A parser between messages.
    pub fn new(strictness: Strictness, limits: ParseLimits) -> Self {
        Self {
            strictness,
            limits,
            searched: 0,
            head: 0,
            start: None,
            headers: Headers::new(),
            soft: None,
            cseq_offset: 0,
            body: None,
        }
    }

    /// Where it stands.
    pub fn progress(&self) -> Progress {
        match (self.body, self.head, self.searched) {
            (Some(length), _, _) => Progress::Body(length),
            (None, 0, 0) => Progress::Idle,
            _ => Progress::Head,
        }
    }

    /// Takes what it can from the front of `buffer`, whose first byte is byte `*offset` of the stream, and
    /// moves `offset` along. `None`: more bytes are needed; call again with them appended.
    ///
    /// # Errors
    /// A fatal [`ParseError`]: the parser must not be used again.
    pub fn feed(&mut self, buffer: &mut BytesMut, offset: &mut u64) -> Result<Option<Parsed>, ParseError> {
        loop {
            if let Some(length) = self.body {
                if buffer.len() < length {
                    return Ok(None);
                }
                // Copied: a session description is kept longer than the read buffer should be.
                let body = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                buffer.advance(length);
                *offset += length as u64;
                return Ok(Some(self.finish(body)));
            }
            let limit = self.line_limit();
            let Some(end) = self.find_line_end(buffer, limit, *offset)? else { return Ok(None) };
            let taken = end + 1;
            let complete = self.take_line(buffer.get(..taken).unwrap_or_default(), *offset)?;
            buffer.advance(taken);
            self.searched = 0;
            self.head += taken;
            *offset += taken as u64;
            if complete {
                self.body = Some(self.body_length(*offset)?);
            }
        }
    }

    /// Longest line, line end included, that may come next, and the rule that a longer one breaks.
    fn line_limit(&self) -> (usize, Rule) {
        let (line, rule) = match self.start {
            None => (self.limits.start_line, Rule::StartLineLength),
            Some(_) => (self.limits.header_line, Rule::HeaderLength),
        };
        let rest = self.limits.head.saturating_sub(self.head);
        if rest < line + 2 { (rest, Rule::HeadLength) } else { (line + 2, rule) }
    }

    fn find_line_end(
        &mut self,
        buffer: &BytesMut,
        (limit, rule): (usize, Rule),
        offset: u64,
    ) -> Result<Option<usize>, ParseError> {
        let fresh = buffer.get(self.searched..).unwrap_or_default();
        let end = memchr::memchr(b'\n', fresh).map(|at| self.searched + at);
        self.searched = buffer.len();
        if end.unwrap_or(buffer.len()) >= limit {
            return Err(ParseError { offset: offset + limit as u64, rule });
        }
        Ok(end)
    }

    /// Judges one line with its line end. True: it was the empty line that ends the head.
    fn take_line(&mut self, raw: &[u8], offset: u64) -> Result<bool, ParseError> {
        let text = line::content(raw, self.strictness, offset)?;
        if self.start.is_none() {
            self.start = Some(self.start_line(text, offset)?);
            self.cseq_offset = offset;
            return Ok(false);
        }
        if text.is_empty() {
            return Ok(true);
        }
        if matches!(text.first(), Some(b' ' | b'\t')) {
            return match self.strictness {
                Strictness::Downstream => Err(ParseError { offset, rule: Rule::Folded }),
                // Skipped like any line without a field: what it continues is unknown.
                Strictness::Upstream => Ok(false),
            };
        }
        let Some(field) = line::field(text, self.strictness, offset)? else { return Ok(false) };
        if self.headers.len() >= self.limits.headers {
            return Err(ParseError { offset, rule: Rule::HeaderCount });
        }
        if let Some(error) = field.soft {
            self.soft.get_or_insert(error);
        }
        self.admit(&field.name, &field.value, offset)?;
        self.headers.push(field.name, field.value);
        Ok(false)
    }

    fn start_line(&mut self, text: &[u8], offset: u64) -> Result<Start, ParseError> {
        let parsed = line::start(text, self.strictness, offset)?;
        if let Some(error) = parsed.soft {
            self.soft.get_or_insert(error);
        }
        Ok(parsed.start)
    }

    /// RTSP-4, SEC-9: what may not be repeated or present at all.
    fn admit(&mut self, name: &str, value: &str, offset: u64) -> Result<(), ParseError> {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        let strict = self.strictness == Strictness::Downstream;
        if is("Transfer-Encoding") {
            return Err(ParseError { offset, rule: Rule::TransferEncoding });
        }
        let repeated = match self.headers.get(name) {
            None => false,
            Some(_) if is("CSeq") || is("Session") || is("Authorization") => strict,
            Some(first) if is("Content-Length") => strict || first != value,
            Some(first) if is("Transport") => strict && first != value,
            Some(_) => false,
        };
        if repeated {
            return Err(ParseError { offset, rule: Rule::Duplicate });
        }
        if is("Content-Length") && line::content_length(value).is_none() {
            return Err(ParseError { offset, rule: Rule::ContentLength });
        }
        if is("CSeq") {
            self.cseq_offset = offset;
        }
        Ok(())
    }

    /// `offset`: of the first body byte.
    fn body_length(&self, offset: u64) -> Result<usize, ParseError> {
        let declared = self.headers.get("Content-Length").and_then(line::content_length).unwrap_or(0);
        let content_type = self.headers.get("Content-Type").unwrap_or_default();
        let is_type = |wanted: &str| {
            content_type.get(..wanted.len()).is_some_and(|head| head.eq_ignore_ascii_case(wanted))
        };
        let sdp = match &self.start {
            Some(Start::Request { method: Method::Announce, .. }) => true,
            Some(Start::Request { .. }) | None => is_type("application/sdp"),
            // ffmpeg-based cameras send no Content-Type with their SDP.
            Some(Start::Response { .. }) => !is_type("text/parameters"),
        };
        if declared > if sdp { self.limits.body_sdp } else { self.limits.body } {
            return Err(ParseError { offset, rule: Rule::BodyLength });
        }
        Ok(declared)
    }

    fn finish(&mut self, body: Bytes) -> Parsed {
        let headers = std::mem::take(&mut self.headers);
        let start = self.start.take();
        let mut soft = self.soft.take();
        let cseq_offset = std::mem::take(&mut self.cseq_offset);
        self.head = 0;
        self.body = None;
        match start {
            Some(Start::Response { version, status, reason }) => match soft {
                Some(error) => Parsed::Malformed { error, cseq: None, response: true },
                None => {
                    Parsed::Message(Message::Response(Response { version, status, reason, headers, body }))
                }
            },
            Some(Start::Request { method, uri, version }) => {
                let request = Request { method, uri, version, headers, body };
                let cseq = line::cseq(&request.headers);
                if cseq.is_none() && self.strictness == Strictness::Downstream {
                    soft = soft.or(Some(ParseError { offset: cseq_offset, rule: Rule::CSeq }));
                }
                match soft {
                    Some(error) => Parsed::Malformed { error, cseq, response: false },
                    None => Parsed::Message(Message::Request(request)),
                }
            }
            // Not reached: a body length is known only behind a start line.
            None => Parsed::Malformed {
                error: ParseError { offset: cseq_offset, rule: Rule::StartLine },
                cseq: None,
                response: true,
            },
        }
    }
}
