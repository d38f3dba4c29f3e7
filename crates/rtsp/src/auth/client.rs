//! Answers the challenges of sources (RTSP-38).

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::{
    Algorithm, BasicPolicy, Challenge, Credentials, DigestInput, digest_response, hex, parse_challenges,
    quote, unescape,
};
use crate::message::Method;

/// `401`s in a row, with a new nonce each, after which a source is believed.
const MAX_ATTEMPTS: u8 = 2;

/// Why a `401` cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthFailure {
    /// The route has no credentials.
    #[error("the source asks for credentials and the route has none")]
    NoCredentials,
    /// No scheme or algorithm that we know.
    #[error("the source offers no authentication scheme that we know")]
    NoUsableChallenge,
    /// Basic and nothing better, where the route does not allow it.
    #[error("the source asks for Basic, which sends the password in clear")]
    BasicNotAllowed,
    /// The credentials were sent and refused.
    #[error("the source refused the credentials")]
    Rejected,
}

/// Authentication towards one source, over one connection (nonces are per connection).
#[derive(Debug, Clone)]
pub struct ClientAuth {
    pub(super) credentials: Option<Credentials>,
    pub(super) basic: BasicPolicy,
    pub(super) challenge: Option<Challenge>,
    pub(super) nonce_count: u32,
    pub(super) attempts: u8,
}

impl ClientAuth {
    /// Credentials come from the route, never from a client's URL.
    pub fn new(credentials: Option<Credentials>, basic: BasicPolicy) -> Self {
        Self { credentials, basic, challenge: None, nonce_count: 0, attempts: 0 }
    }

    /// Takes the `WWW-Authenticate` values of a `401`: SHA-256 before MD5 before Basic. `Ok`: send the
    /// request again, with a new [`ClientAuth::authorization`].
    pub fn handle_unauthorized<'a>(
        &mut self,
        values: impl Iterator<Item = &'a str>,
    ) -> Result<(), AuthFailure> {
        if self.credentials.is_none() {
            return Err(AuthFailure::NoCredentials);
        }
        let best = parse_challenges(values)
            .into_iter()
            .max_by_key(|c| match c {
                Challenge::Digest(d) if d.algorithm == Algorithm::Sha256 => 2,
                Challenge::Digest(_) => 1,
                Challenge::Basic { .. } => 0,
            })
            .ok_or(AuthFailure::NoUsableChallenge)?;
        // The best of all: a source that offers Digest as well is answered with that.
        if self.basic == BasicPolicy::Refuse && matches!(best, Challenge::Basic { .. }) {
            return Err(AuthFailure::BasicNotAllowed);
        }
        if let Some(sent) = &self.challenge {
            let is_new = match (sent, &best) {
                (Challenge::Digest(old), Challenge::Digest(new)) => new.stale || old.nonce != new.nonce,
                (Challenge::Basic { .. }, Challenge::Basic { .. }) => false,
                _ => true,
            };
            if !is_new || self.attempts >= MAX_ATTEMPTS {
                return Err(AuthFailure::Rejected);
            }
        }
        self.attempts = self.attempts.saturating_add(1);
        self.nonce_count = 0;
        self.challenge = Some(best);
        Ok(())
    }

    /// A response other than `401` arrived: the next one is answered again.
    pub fn handle_success(&mut self) {
        self.attempts = 0;
    }

    /// A new connection: nonces of the old one are void.
    pub fn reset(&mut self) {
        self.challenge = None;
        self.nonce_count = 0;
        self.attempts = 0;
    }

    /// Value of `Authorization` for the next request; `None` until a challenge came.
    ///
    /// `uri`: the request-URI, byte for byte. `cnonce`: random bytes, new for each request.
    pub fn authorization(&mut self, method: &Method, uri: &str, cnonce: [u8; 8]) -> Option<String> {
        let credentials = self.credentials.as_ref()?;
        match self.challenge.as_ref()? {
            Challenge::Basic { .. } => {
                let pair = format!("{}:{}", credentials.user(), credentials.password().expose());
                Some(format!("Basic {}", STANDARD.encode(pair)))
            }
            Challenge::Digest(challenge) => {
                self.nonce_count = self.nonce_count.saturating_add(1);
                let nc = format!("{:08x}", self.nonce_count);
                let cnonce = hex(&cnonce);
                let response = digest_response(
                    credentials,
                    DigestInput {
                        algorithm: challenge.algorithm,
                        realm: &unescape(&challenge.realm),
                        nonce: &challenge.nonce,
                        method: method.as_str(),
                        uri,
                        qop: challenge.qop_auth.then_some((&nc, &cnonce)),
                    },
                );
                // The order is ffmpeg's: some cameras parse by position.
                let mut value = format!(
                    "Digest username={}, realm=\"{}\", nonce=\"{}\", uri=\"{uri}\", response=\"{response}\"",
                    quote(credentials.user()),
                    challenge.realm,
                    challenge.nonce
                );
                // Writing to a String cannot fail.
                if challenge.names_algorithm {
                    let _ = write!(value, ", algorithm={}", challenge.algorithm.as_str());
                }
                if let Some(opaque) = &challenge.opaque {
                    let _ = write!(value, ", opaque=\"{opaque}\"");
                }
                if challenge.qop_auth {
                    let _ = write!(value, ", qop=auth, nc={nc}, cnonce=\"{cnonce}\"");
                }
                Some(value)
            }
        }
    }
}
