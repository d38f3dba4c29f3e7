//! Messages that are on their way when a proxy hands over.

use msm_handover::Blob;
use serde::{Deserialize, Serialize};

use super::{Headers, Method, Request, Response, Status, Version};

/// A [`Request`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestInventory {
    method: String,
    uri: String,
    version: (u8, u8),
    headers: Vec<(String, String)>,
    body: Blob,
}

/// A [`Response`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResponseInventory {
    version: (u8, u8),
    status: u16,
    reason: String,
    headers: Vec<(String, String)>,
    body: Blob,
}

/// The fields of `headers`, in order.
pub(crate) fn list(headers: &Headers) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The opposite of [`list`].
pub(crate) fn headers(list: Vec<(String, String)>) -> Headers {
    Headers(list)
}

pub(crate) fn version((major, minor): (u8, u8)) -> Version {
    Version { major, minor }
}

impl Request {
    /// Writes it down.
    pub fn inventory(&self) -> RequestInventory {
        RequestInventory {
            method: self.method.as_str().to_owned(),
            uri: self.uri.clone(),
            version: (self.version.major, self.version.minor),
            headers: list(&self.headers),
            body: self.body.clone().into(),
        }
    }

    /// As it was.
    pub fn restore(inventory: RequestInventory) -> Self {
        Self {
            method: Method::from_token(&inventory.method),
            uri: inventory.uri,
            version: version(inventory.version),
            headers: headers(inventory.headers),
            body: inventory.body.0,
        }
    }
}

impl Response {
    /// Writes it down.
    pub fn inventory(&self) -> ResponseInventory {
        ResponseInventory {
            version: (self.version.major, self.version.minor),
            status: self.status.0,
            reason: self.reason.clone(),
            headers: list(&self.headers),
            body: self.body.clone().into(),
        }
    }

    /// As it was.
    pub fn restore(inventory: ResponseInventory) -> Self {
        Self {
            version: version(inventory.version),
            status: Status(inventory.status),
            reason: inventory.reason,
            headers: headers(inventory.headers),
            body: inventory.body.0,
        }
    }
}
