//! The property that every stream has: the outcome does not depend on how its bytes arrive (RTSP-40).
//! For property tests and fuzz targets.

use super::{Demux, Item};
use crate::message::{Message, Request};
use crate::parse::{ParseError, ParseLimits, Parsed, Strictness};
use crate::write;

/// Everything one stream yields.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Units in order.
    pub items: Vec<Item>,
    /// The error that ended it.
    pub error: Option<ParseError>,
    /// Frames skipped for being empty.
    pub empty_frames: u64,
}

/// Demultiplexes `pieces` one after the other.
pub fn demultiplex<'a>(
    strictness: Strictness,
    limits: ParseLimits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Outcome {
    let mut demux = Demux::new(strictness, limits);
    let mut items = Vec::new();
    let mut error = None;
    for piece in pieces {
        demux.read_buf().extend_from_slice(piece);
        loop {
            match demux.poll() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(fatal) => {
                    error = Some(fatal);
                    break;
                }
            }
        }
    }
    Outcome { items, error, empty_frames: demux.empty_frames() }
}

/// Cuts `data` into pieces whose lengths, each at least 1, are taken from `cuts` in turn.
pub fn pieces<'a>(data: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut rest = data;
    let mut out = Vec::new();
    let mut lengths = cuts.iter().cycle();
    while !rest.is_empty() {
        let length = usize::from(lengths.next().copied().unwrap_or(u8::MAX)).clamp(1, rest.len());
        let (piece, tail) = rest.split_at(length);
        out.push(piece);
        rest = tail;
    }
    out
}

/// Panics if `data` means something else in pieces than in one: the body of a fuzz target. The first byte
/// gives the number of bytes after it that say where to cut.
pub fn split_invariance(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let (cuts, stream) = rest.split_at(usize::from(count % 16).min(rest.len()));
    for strictness in [Strictness::Downstream, Strictness::Upstream] {
        let limits = ParseLimits::default();
        let whole = demultiplex(strictness, limits, [stream]);
        let cut = demultiplex(strictness, limits, pieces(stream, cuts));
        assert_eq!(whole, cut, "{strictness:?}");
        let bytewise = demultiplex(strictness, limits, stream.chunks(1));
        assert_eq!(whole, bytewise, "{strictness:?}");
        for item in whole.items {
            if let Item::Message(Parsed::Message(message)) = item {
                write_identity(&message, strictness);
            }
        }
    }
}

/// Panics if a message that was parsed is not the same after writing and parsing it again.
pub fn write_identity(message: &Message, strictness: Strictness) {
    let limits = ParseLimits {
        start_line: 64 * 1024,
        head: 128 * 1024,
        header_line: 64 * 1024,
        ..ParseLimits::default()
    };
    let bytes = write::message(message);
    let again = demultiplex(strictness, limits, [&bytes[..]]);
    let [Item::Message(Parsed::Message(again))] = &again.items[..] else {
        panic!("{again:?} from {bytes:?}");
    };
    assert_eq!(normal(again), normal(message));
}

/// `CSeq` first, `Content-Length` left to the writer: the form in which written messages compare.
fn normal(message: &Message) -> Message {
    let mut message = message.clone();
    let headers = match &mut message {
        Message::Request(Request { headers, .. }) => headers,
        Message::Response(response) => &mut response.headers,
    };
    headers.remove("Content-Length");
    let mut sorted = crate::message::Headers::new();
    for first in [true, false] {
        for (name, value) in headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("CSeq") == first) {
            sorted.push(name, value);
        }
    }
    *headers = sorted;
    message
}
