//! A half-received message when a proxy hands over.

use msm_handover::Malformed;
use serde::{Deserialize, Serialize};

use super::{Method, ParseError, ParseLimits, Parser, Rule, Start, Status, Strictness};
use crate::message::inventory::{headers, list, version};

/// A [`Parser`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ParserInventory {
    searched: usize,
    head: usize,
    start: Option<StartInventory>,
    headers: Vec<(String, String)>,
    soft: Option<ErrorInventory>,
    cseq_offset: u64,
    body: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StartInventory {
    Request { method: String, uri: String, version: (u8, u8) },
    Response { version: (u8, u8), status: u16, reason: String },
}

/// A [`ParseError`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorInventory {
    offset: u64,
    rule: String,
}

impl ParseError {
    /// Writes it down.
    pub fn inventory(&self) -> ErrorInventory {
        ErrorInventory { offset: self.offset, rule: self.rule.as_str().to_owned() }
    }

    /// As it was.
    ///
    /// # Errors
    /// A rule that this program does not know.
    pub fn restore(inventory: ErrorInventory) -> Result<Self, Malformed> {
        let rule = Rule::ALL.iter().find(|rule| rule.as_str() == inventory.rule);
        let rule = *rule.ok_or_else(|| Malformed::new("parse error", "of an unknown rule"))?;
        Ok(Self { offset: inventory.offset, rule })
    }
}

impl Parser {
    /// Writes it down.
    pub fn inventory(&self) -> ParserInventory {
        let start = self.start.as_ref().map(|start| match start {
            Start::Request { method, uri, version } => StartInventory::Request {
                method: method.as_str().to_owned(),
                uri: uri.clone(),
                version: (version.major, version.minor),
            },
            Start::Response { version, status, reason } => StartInventory::Response {
                version: (version.major, version.minor),
                status: status.0,
                reason: reason.clone(),
            },
        });
        ParserInventory {
            searched: self.searched,
            head: self.head,
            start,
            headers: list(&self.headers),
            soft: self.soft.map(|error| error.inventory()),
            cseq_offset: self.cseq_offset,
            body: self.body,
        }
    }

    /// As it was, under the limits of this program.
    ///
    /// # Errors
    /// See [`ParseError::restore`].
    pub fn restore(
        inventory: ParserInventory,
        strictness: Strictness,
        limits: ParseLimits,
    ) -> Result<Self, Malformed> {
        let start = inventory.start.map(|start| match start {
            StartInventory::Request { method, uri, version: v } => {
                Start::Request { method: Method::from_token(&method), uri, version: version(v) }
            }
            StartInventory::Response { version: v, status, reason } => {
                Start::Response { version: version(v), status: Status(status), reason }
            }
        });
        Ok(Self {
            strictness,
            limits,
            searched: inventory.searched,
            head: inventory.head,
            start,
            headers: headers(inventory.headers),
            soft: inventory.soft.map(ParseError::restore).transpose()?,
            cseq_offset: inventory.cseq_offset,
            body: inventory.body,
        })
    }
}
