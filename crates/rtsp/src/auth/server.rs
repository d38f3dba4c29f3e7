//! Checks viewers and publishers (RTSP-34, RTSP-36, RTSP-37).

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::challenge::write_digest;
use super::{
    Algorithm, BasicPolicy, Credentials, DigestInput, digest_response, hex, parse_parameters, quote,
    split_list, unescape,
};
use crate::message::Method;
use crate::url::RequestTarget;

/// Failed attempts on one connection after which it is closed (`docs/protocols/rtsp.md`, Authentication).
pub const MAX_FAILURES: u8 = 3;

/// Life of a nonce (RTSP-37).
pub const NONCE_LIFETIME: Duration = Duration::from_mins(5);

/// Digests that are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DigestOffer {
    /// MD5 alone, which every client has.
    #[default]
    Md5,
    /// SHA-256 first, then MD5: ffmpeg keeps the last challenge and fails on SHA-256, GStreamer skips it
    /// (RTSP-36).
    Sha256ThenMd5,
}

/// Who may use a route, and how that is asked.
#[derive(Debug, Clone, Default)]
pub struct ServerAuth {
    /// Realm of the challenges.
    pub realm: String,
    /// Accounts.
    pub accounts: Vec<Credentials>,
    /// Digests offered.
    pub digest: DigestOffer,
    /// Basic: only on RTSPS.
    pub basic: BasicPolicy,
}

/// A request as authentication sees it.
#[derive(Debug, Clone, Copy)]
pub struct AuthRequest<'a> {
    /// Method.
    pub method: &'a Method,
    /// Request-URI as sent.
    pub uri: &'a str,
    /// Value of `Authorization`, if any.
    pub authorization: Option<&'a str>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The user is who it claims to be.
    Granted {
        /// Its name.
        user: String,
    },
    /// `401`.
    Unauthorized {
        /// One `WWW-Authenticate` field each, in this order.
        challenges: Vec<String>,
        /// The user name tried, if this was a failure to record ([`super::FailureLimiter`]).
        failed: Option<String>,
        /// Close the connection after the answer: [`MAX_FAILURES`] are reached.
        close: bool,
    },
}

/// Credentials of a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestAuthorization {
    /// `username`
    pub user: String,
    /// `realm`
    pub realm: String,
    /// `nonce`
    pub nonce: String,
    /// `uri`
    pub uri: String,
    /// `response`
    pub response: String,
    /// `algorithm`; MD5 where none is named.
    pub algorithm: Algorithm,
    /// `nc` and `cnonce` if `qop=auth`.
    pub qop: Option<(String, String)>,
}

/// Value of an `Authorization` field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorization {
    /// Basic.
    Basic(Credentials),
    /// Digest.
    Digest(DigestAuthorization),
}

impl Authorization {
    /// Reads the field; `None` for an unknown scheme or algorithm, missing parameters, bad base64.
    pub fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(|c: char| c.is_ascii_whitespace())?;
        if scheme.eq_ignore_ascii_case("Basic") {
            let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
            let (user, password) = pair.split_once(':')?;
            return Some(Self::Basic(Credentials::new(user, password)));
        }
        if !scheme.eq_ignore_ascii_case("Digest") {
            return None;
        }
        let parameters: Vec<_> = parse_parameters(split_list(rest)).collect();
        let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        let qop = match get("qop").filter(|q| !q.is_empty()) {
            None => None,
            Some(qop) if qop.eq_ignore_ascii_case("auth") => {
                Some((get("nc")?.to_owned(), get("cnonce")?.to_owned()))
            }
            Some(_) => return None,
        };
        Some(Self::Digest(DigestAuthorization {
            user: unescape(get("username")?),
            realm: unescape(get("realm")?),
            nonce: get("nonce")?.to_owned(),
            uri: get("uri")?.to_owned(),
            response: get("response")?.to_owned(),
            algorithm: match get("algorithm").filter(|a| !a.is_empty()) {
                None => Algorithm::Md5,
                Some(token) => Algorithm::from_token(token)?,
            },
            qop,
        }))
    }

    /// The user named.
    pub fn user(&self) -> &str {
        match self {
            Self::Basic(credentials) => credentials.user(),
            Self::Digest(digest) => &digest.user,
        }
    }
}

/// Authentication state of one accepted connection: its nonce and its failures.
#[derive(Debug, Clone, Default)]
pub struct ConnAuth {
    pub(super) nonce: Option<(String, Instant)>,
    pub(super) failures: u8,
}

/// What checking credentials gave.
enum Check {
    Right,
    /// Right, with a nonce that is not ours or is too old: not a failure.
    Stale,
    Wrong,
}

impl ConnAuth {
    /// A new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks one request.
    ///
    /// `nonce`: random bytes, used only if a new nonce is made. Ask [`super::FailureLimiter`] first.
    pub fn verify(
        &mut self,
        now: Instant,
        auth: &ServerAuth,
        request: AuthRequest<'_>,
        nonce: [u8; 16],
    ) -> Verdict {
        let Some(value) = request.authorization else { return self.challenge(now, auth, nonce, false) };
        let authorization = Authorization::parse(value);
        let check = match &authorization {
            Some(Authorization::Basic(sent)) if auth.basic == BasicPolicy::Allow => check_basic(auth, sent),
            Some(Authorization::Digest(sent)) => self.check_digest(now, auth, request, sent),
            _ => Check::Wrong,
        };
        let user = authorization.as_ref().map(|a| a.user().to_owned()).unwrap_or_default();
        match check {
            Check::Right => {
                self.failures = 0;
                Verdict::Granted { user }
            }
            Check::Stale => self.challenge(now, auth, nonce, true),
            Check::Wrong => {
                self.failures = self.failures.saturating_add(1);
                let close = self.failures >= MAX_FAILURES;
                match self.challenge(now, auth, nonce, false) {
                    Verdict::Unauthorized { challenges, .. } => {
                        Verdict::Unauthorized { challenges, failed: Some(user), close }
                    }
                    granted @ Verdict::Granted { .. } => granted,
                }
            }
        }
    }

    fn challenge(&mut self, now: Instant, auth: &ServerAuth, random: [u8; 16], stale: bool) -> Verdict {
        let nonce = match &self.nonce {
            Some((nonce, made)) if is_fresh(now, *made) => nonce.clone(),
            _ => {
                let nonce = hex(&random);
                self.nonce = Some((nonce.clone(), now));
                nonce
            }
        };
        let digest = |algorithm| write_digest(&auth.realm, &nonce, algorithm, stale);
        let mut challenges = match auth.digest {
            DigestOffer::Md5 => vec![digest(Algorithm::Md5)],
            DigestOffer::Sha256ThenMd5 => vec![digest(Algorithm::Sha256), digest(Algorithm::Md5)],
        };
        if auth.basic == BasicPolicy::Allow {
            challenges.push(format!("Basic realm={}", quote(&auth.realm)));
        }
        Verdict::Unauthorized { challenges, failed: None, close: false }
    }

    fn check_digest(
        &self,
        now: Instant,
        auth: &ServerAuth,
        request: AuthRequest<'_>,
        sent: &DigestAuthorization,
    ) -> Check {
        let offered = sent.algorithm == Algorithm::Md5 || auth.digest == DigestOffer::Sha256ThenMd5;
        if !offered || sent.realm != auth.realm || !is_uri_accepted(request, &sent.uri) {
            return Check::Wrong;
        }
        // An unknown user costs what a known one does.
        let unknown = Credentials::new("", "");
        let account = auth.accounts.iter().find(|a| a.user() == sent.user);
        let expected = digest_response(
            account.unwrap_or(&unknown),
            DigestInput {
                algorithm: sent.algorithm,
                realm: &auth.realm,
                nonce: &sent.nonce,
                method: request.method.as_str(),
                uri: &sent.uri,
                qop: sent.qop.as_ref().map(|(nc, cnonce)| (nc.as_str(), cnonce.as_str())),
            },
        );
        let response = sent.response.to_ascii_lowercase();
        let equal = bool::from(expected.as_bytes().ct_eq(response.as_bytes()));
        if !equal || account.is_none() {
            return Check::Wrong;
        }
        match &self.nonce {
            Some((nonce, made)) if *nonce == sent.nonce && is_fresh(now, *made) => Check::Right,
            _ => Check::Stale,
        }
    }
}

fn is_fresh(now: Instant, made: Instant) -> bool {
    now.saturating_duration_since(made) < NONCE_LIFETIME
}

fn check_basic(auth: &ServerAuth, sent: &Credentials) -> Check {
    let unknown = Credentials::new("", "");
    let account = auth.accounts.iter().find(|a| a.user() == sent.user());
    let expected = account.unwrap_or(&unknown).password().expose().as_bytes();
    let equal = bool::from(expected.ct_eq(sent.password().expose().as_bytes()));
    if equal && account.is_some() { Check::Right } else { Check::Wrong }
}

/// RTSP-37: the request-URI itself; its path and query (Bosch BVMS); the stream's base with or without a
/// slash, also for SETUP (VLC 3, HappyTime).
fn is_uri_accepted(request: AuthRequest<'_>, uri: &str) -> bool {
    if uri == request.uri {
        return true;
    }
    let (Ok(RequestTarget::Resource(wanted)), Ok(RequestTarget::Resource(sent))) =
        (RequestTarget::parse(request.uri), RequestTarget::parse(uri))
    else {
        return false;
    };
    let same_host = match (&wanted.authority, &sent.authority) {
        (Some(wanted), Some(sent)) => wanted.host == sent.host,
        _ => true,
    };
    let is_setup = *request.method == Method::Setup;
    same_host && (wanted.is_same_resource(&sent) || (is_setup && sent.is_parent_of(&wanted)))
}
