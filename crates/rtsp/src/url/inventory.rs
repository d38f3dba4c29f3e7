//! URLs that a stream was announced under, when a proxy hands over.

use msm_handover::Malformed;
use serde::{Deserialize, Serialize};

use super::{Authority, ResourceUrl};

/// A [`ResourceUrl`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UrlInventory {
    authority: Option<String>,
    name: String,
    query: Option<String>,
    track: Option<usize>,
    key: String,
}

impl ResourceUrl {
    /// Writes it down.
    pub fn inventory(&self) -> UrlInventory {
        UrlInventory {
            authority: self.authority.as_ref().map(ToString::to_string),
            name: self.name.clone(),
            query: self.query.clone(),
            track: self.track,
            key: self.key.clone(),
        }
    }

    /// As it was.
    ///
    /// # Errors
    /// An authority that is none.
    pub fn restore(inventory: UrlInventory) -> Result<Self, Malformed> {
        let parse = |text: String| Authority::parse(&text).map_err(|e| Malformed::new("url", e.to_string()));
        Ok(Self {
            authority: inventory.authority.map(parse).transpose()?,
            name: inventory.name,
            query: inventory.query,
            track: inventory.track,
            key: inventory.key,
        })
    }
}
