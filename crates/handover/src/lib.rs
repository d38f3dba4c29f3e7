//! How a running proxy hands everything it has to the next one.
//!
//! What a machine knows is written down as its *inventory*: plain structs of their own beside the machine
//! (`msm_rtsp::conn::inventory` and so on), never its internals, because the two programs differ. An
//! inventory is a value: fields that the reader does not know are ignored, fields that the writer did not
//! know are defaults. This crate owns what all of them share: times ([`Moment`]), bytes ([`Blob`]), the
//! messages of a take-over ([`message`]), and, with the feature `socket`, the Unix socket that carries them
//! together with the descriptors (`channel`). It must not know what an inventory says.
//!
//! `docs/adr/0006-planned-upgrade.md` has the reasons.

#![deny(unsafe_code)]
#![deny(missing_docs)]

mod blob;
#[cfg(feature = "socket")]
pub mod channel;
pub mod message;
mod moment;

pub use blob::Blob;
pub use moment::{Anchor, Moment};

/// An inventory that cannot be made into a machine again: the next program gives up and the running one
/// goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("inventory: {what} is {why}")]
pub struct Malformed {
    /// Which part.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Malformed {
    /// A part that is wrong. Secrets are not to be put into `why`.
    pub fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self { what, why: why.into() }
    }
}
