//! Basic and Digest authentication, both sides (RFC 2617, RFC 7616, RFC 7617).
//!
//! [`ServerAuth`] and [`ConnAuth`] check viewers and publishers (RTSP-34, RTSP-36, RTSP-37), [`ClientAuth`]
//! answers sources (RTSP-38), [`FailureLimiter`] slows guessing (SEC-13). Random bytes and time are
//! arguments. Secrets have no `Display`, and their `Debug` shows nothing (SEC-12).

use std::fmt;

pub use challenge::{Challenge, DigestChallenge, parse_challenges};
pub use client::{AuthFailure, ClientAuth};
pub use digest::{Algorithm, DigestInput, digest_response};
pub use limiter::{FailureLimiter, MAX_FAILURES_PER_MINUTE};
pub use server::{
    AuthRequest, Authorization, ConnAuth, DigestAuthorization, DigestOffer, MAX_FAILURES, NONCE_LIFETIME,
    ServerAuth, Verdict,
};

mod challenge;
mod client;
mod digest;
pub mod inventory;
mod limiter;
mod server;
#[cfg(test)]
mod tests;

/// A text that must not be printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Use it to compute, never to print.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// User name and password.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    user: String,
    password: Secret,
}

impl Credentials {
    /// A user with a password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: Secret::new(password) }
    }

    /// User name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Password.
    pub fn password(&self) -> &Secret {
        &self.password
    }
}

/// Whether passwords may travel in Basic's base64, which is clear text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BasicPolicy {
    /// Never: as server Basic is not offered, as client a source that offers nothing else is not answered.
    #[default]
    Refuse,
    /// As server on RTSPS (RTSP-36), as client where the route says so (RTSP-38).
    Allow,
}

/// `name=value` pairs of a challenge or of credentials; values without their quotes, still escaped, so that
/// they can be put between quotes again. Pairs whose value could not are left out.
fn parse_parameters<'a>(parts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = (String, &'a str)> {
    parts.filter_map(|part| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim();
        let value = match value.strip_prefix('"') {
            Some(rest) => quoted(rest)?,
            None if value.contains(['"', '\\']) => return None,
            None => value,
        };
        // A carriage return from a source would end our own header line (SEC-9).
        if value.contains(char::is_control) {
            return None;
        }
        Some((name.trim().to_ascii_lowercase(), value))
    })
}

/// What stands before the closing quote; `None` without one.
fn quoted(text: &str) -> Option<&str> {
    let mut escaped = false;
    let end = text.bytes().position(|b| {
        let closes = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        closes
    })?;
    text.get(..end)
}

/// Splits at commas outside of quoted strings; blanks around the parts are cut, empty parts skipped.
fn split_list(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let end = rest.bytes().position(|b| {
            if escaped {
                escaped = false;
                return false;
            }
            match b {
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            b == b',' && !quoted
        });
        let (part, after) = match end.and_then(|end| rest.split_at_checked(end)) {
            Some((part, after)) => (part, after.get(1..).unwrap_or_default()),
            None => (rest, ""),
        };
        rest = after;
        Some(part.trim())
    })
    .filter(|part| !part.is_empty())
}

/// Removes the backslashes of a quoted string.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

/// Makes `text` fit between quotes of a header line.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars().filter(|c| !c.is_control()) {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}
