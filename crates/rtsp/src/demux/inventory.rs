//! What was received and not understood yet, when a proxy hands over.

use bytes::BytesMut;
use msm_handover::{Blob, Malformed};
use serde::{Deserialize, Serialize};

use super::{Demux, MIN_CHUNK, ParseError, ParseLimits, Parser, Strictness};
use crate::parse::inventory::{ErrorInventory, ParserInventory};

/// A [`Demux`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DemuxInventory {
    buffer: Blob,
    offset: u64,
    unit: u64,
    parser: ParserInventory,
    failed: Option<ErrorInventory>,
    empty_frames: u64,
}

impl Demux {
    /// Writes it down.
    pub fn inventory(&self) -> DemuxInventory {
        DemuxInventory {
            buffer: self.buffer[..].into(),
            offset: self.offset,
            unit: self.unit,
            parser: self.parser.inventory(),
            failed: self.failed.map(|error| error.inventory()),
            empty_frames: self.empty_frames,
        }
    }

    /// As it was, under the limits of this program.
    ///
    /// # Errors
    /// A parser that is none.
    pub fn restore(
        inventory: DemuxInventory,
        strictness: Strictness,
        limits: ParseLimits,
    ) -> Result<Self, Malformed> {
        let buffer = BytesMut::from(&inventory.buffer.0[..]);
        let parser = Parser::restore(inventory.parser, strictness, limits)?;
        Ok(Self {
            buffer,
            offset: inventory.offset,
            unit: inventory.unit,
            chunk: MIN_CHUNK,
            lent: None,
            parser,
            frame_limit: limits.frame,
            failed: inventory.failed.map(ParseError::restore).transpose()?,
            framed: false,
            empty_frames: inventory.empty_frames,
        })
    }
}
