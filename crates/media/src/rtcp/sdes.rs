//! Source descriptions.

use super::{packet_type, word, write_packet};

/// Item type of a CNAME (RFC 3550 section 6.5.1).
pub const CNAME: u8 = 1;

/// A source description. Chunks that do not fit end the iteration: a sloppy SDES must not cost the
/// sender report beside it.
#[derive(Debug, Clone, Copy)]
pub struct Sdes<'a> {
    count: u8,
    body: &'a [u8],
}

/// One chunk: a source and its items.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    ssrc: u32,
    items: &'a [u8],
}

impl<'a> Sdes<'a> {
    pub(crate) fn new(count: u8, body: &'a [u8]) -> Self {
        Self { count, body }
    }

    /// The chunks in order.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk<'a>> + use<'a> {
        let mut rest = self.body;
        let mut left = self.count;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let ssrc = word(rest, 0)?;
            let items = rest.get(4..)?;
            let len = items_len(items)?;
            // Items end with a zero byte and are padded to a word: at least one byte, at most four.
            rest = items.get((len + 1).next_multiple_of(4)..).unwrap_or_default();
            Some(Chunk { ssrc, items: items.get(..len)? })
        })
    }

    /// CNAME of the first chunk that has one, with its source.
    pub fn cname(&self) -> Option<(u32, &'a [u8])> {
        self.chunks().find_map(|chunk| {
            let (_, cname) = chunk.items().find(|(kind, _)| *kind == CNAME)?;
            Some((chunk.ssrc, cname))
        })
    }
}

/// Length of the items before their terminating zero byte; `None` if they run out of the packet.
fn items_len(items: &[u8]) -> Option<usize> {
    let mut at = 0;
    while *items.get(at)? != 0 {
        at += 2 + usize::from(*items.get(at + 1)?);
    }
    Some(at)
}

impl<'a> Chunk<'a> {
    /// The source that is described.
    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// Items as `(type, text)`; the text is UTF-8 if the sender kept the rules.
    pub fn items(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut rest = self.items;
        std::iter::from_fn(move || {
            let (&[kind, len], body) = rest.split_first_chunk::<2>()?;
            let (text, tail) = body.split_at_checked(usize::from(len))?;
            rest = tail;
            Some((kind, text))
        })
    }
}

/// Appends an SDES with one chunk and its CNAME, cut at 255 bytes.
///
/// Source: RFC 3550 section 6.5.
pub fn write_cname(out: &mut Vec<u8>, ssrc: u32, cname: &[u8]) {
    let cname = cname.get(..255).unwrap_or(cname);
    let mut body = Vec::with_capacity(4 + 2 + cname.len() + 4);
    body.extend(ssrc.to_be_bytes());
    body.extend([CNAME, cname.len() as u8]);
    body.extend(cname);
    body.push(0); // end of the items; the rest of the word is zeros too
    write_packet(out, 1, packet_type::SDES, &body);
}
