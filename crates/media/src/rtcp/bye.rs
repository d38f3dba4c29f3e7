//! Goodbyes.

use super::{packet_type, write_packet};

/// A BYE: sources that leave. Consumed where it enters the mesh, never forwarded (RTP-24).
#[derive(Debug, Clone, Copy)]
pub struct Bye<'a> {
    sources: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Bye<'a> {
    pub(crate) fn parse(count: u8, body: &'a [u8]) -> Option<Self> {
        let (sources, rest) = body.split_at_checked(4 * usize::from(count))?;
        Some(Self { sources, rest })
    }

    /// The sources that leave; may be none.
    pub fn ssrcs(&self) -> impl Iterator<Item = u32> + 'a {
        self.sources.as_chunks::<4>().0.iter().map(|ssrc| u32::from_be_bytes(*ssrc))
    }

    /// Their reason, if they gave one.
    pub fn reason(&self) -> Option<&'a [u8]> {
        let (&len, text) = self.rest.split_first()?;
        text.get(..usize::from(len))
    }
}

/// Appends a BYE of one source.
///
/// Source: RFC 3550 section 6.6.
pub fn write_bye(out: &mut Vec<u8>, ssrc: u32) {
    write_packet(out, 1, packet_type::BYE, &ssrc.to_be_bytes());
}
