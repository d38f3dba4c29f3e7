//! The digest itself (RFC 2617 section 3.2.2, RFC 7616 section 3.4).

use md5::Md5;
use sha2::{Digest, Sha256};

use super::{Credentials, hex};

/// Hash of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `MD5`, also where none is named.
    Md5,
    /// `SHA-256`
    Sha256,
}

impl Algorithm {
    /// The algorithm named by `token`, without case. The `-sess` variants are not implemented.
    pub fn from_token(token: &str) -> Option<Self> {
        if token.eq_ignore_ascii_case("MD5") {
            Some(Self::Md5)
        } else if token.eq_ignore_ascii_case("SHA-256") {
            Some(Self::Sha256)
        } else {
            None
        }
    }

    /// Name in a header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha256 => "SHA-256",
        }
    }

    fn hash(self, parts: &[&str]) -> String {
        let text = parts.join(":");
        match self {
            Self::Md5 => hex(&Md5::digest(text.as_bytes())),
            Self::Sha256 => hex(&Sha256::digest(text.as_bytes())),
        }
    }
}

/// What a digest covers besides the credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestInput<'a> {
    /// Hash.
    pub algorithm: Algorithm,
    /// Realm of the challenge.
    pub realm: &'a str,
    /// Nonce of the challenge.
    pub nonce: &'a str,
    /// Request method.
    pub method: &'a str,
    /// The `uri` parameter, byte for byte.
    pub uri: &'a str,
    /// `nc` and `cnonce` with `qop=auth`; `None` without `qop` (GStreamer).
    pub qop: Option<(&'a str, &'a str)>,
}

/// The `response` parameter: lower-case hex.
///
/// Source: RFC 7616 section 3.4.1.
pub fn digest_response(credentials: &Credentials, input: DigestInput<'_>) -> String {
    let hash = |parts: &[&str]| input.algorithm.hash(parts);
    let secret = hash(&[credentials.user(), input.realm, credentials.password().expose()]);
    let request = hash(&[input.method, input.uri]);
    match input.qop {
        Some((nc, cnonce)) => hash(&[&secret, input.nonce, nc, cnonce, "auth", &request]),
        None => hash(&[&secret, input.nonce, &request]),
    }
}
