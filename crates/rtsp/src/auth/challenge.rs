//! `WWW-Authenticate`: read and written.

use super::{Algorithm, parse_parameters, quote, split_list};

/// Most challenges looked at in one response.
const MAX_CHALLENGES: usize = 8;

/// A digest challenge. Texts are as between the quotes, escapes kept, so that they can be sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestChallenge {
    /// `realm`
    pub realm: String,
    /// `nonce`
    pub nonce: String,
    /// `opaque`, sent back as it is.
    pub opaque: Option<String>,
    /// `algorithm`; MD5 where none is named.
    pub algorithm: Algorithm,
    /// Whether `algorithm` was named: then the answer names it too.
    pub names_algorithm: bool,
    /// Whether `qop` offers `auth`.
    pub qop_auth: bool,
    /// `stale=true`: the credentials were right, the nonce was old.
    pub stale: bool,
}

/// A challenge that we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// Basic.
    Basic {
        /// `realm`
        realm: String,
    },
    /// Digest with an algorithm that we know.
    Digest(DigestChallenge),
}

/// Reads the challenges of all `WWW-Authenticate` fields of a response, one or many per field (RTSP-38).
/// Schemes and algorithms that we do not know are skipped.
pub fn parse_challenges<'a>(values: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in values {
        let mut current: Option<(&str, Vec<&str>)> = None;
        for part in split_list(value) {
            // `Digest realm="x"` opens a challenge; `nonce="x"` and `nonce = "x"` belong to it.
            let opens = match part.split_once(|c: char| c.is_ascii_whitespace()) {
                Some((token, rest)) if !token.contains('=') && !rest.trim_start().starts_with('=') => {
                    Some((token, rest.trim()))
                }
                None if !part.contains('=') => Some((part, "")),
                _ => None,
            };
            match (opens, &mut current) {
                (Some((scheme, first)), _) => {
                    finish(current.take(), &mut challenges);
                    current = Some((scheme, vec![first]));
                }
                (None, Some((_, parameters))) => parameters.push(part),
                (None, None) => {}
            }
        }
        finish(current, &mut challenges);
    }
    challenges
}

fn finish(current: Option<(&str, Vec<&str>)>, challenges: &mut Vec<Challenge>) {
    let Some((scheme, parameters)) = current else { return };
    if challenges.len() >= MAX_CHALLENGES {
        return;
    }
    let parameters: Vec<_> = parse_parameters(parameters.into_iter()).collect();
    let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
    if scheme.eq_ignore_ascii_case("Basic") {
        challenges.push(Challenge::Basic { realm: get("realm").unwrap_or_default().to_owned() });
    } else if scheme.eq_ignore_ascii_case("Digest") {
        let algorithm = match get("algorithm").filter(|a| !a.is_empty()) {
            None => Some(Algorithm::Md5),
            Some(token) => Algorithm::from_token(token),
        };
        let qop = get("qop").filter(|q| !q.trim().is_empty());
        let qop_auth = qop.is_some_and(|q| q.split(',').any(|q| q.trim().eq_ignore_ascii_case("auth")));
        let (Some(algorithm), Some(nonce)) = (algorithm, get("nonce")) else { return };
        if qop.is_some() && !qop_auth {
            return;
        }
        challenges.push(Challenge::Digest(DigestChallenge {
            realm: get("realm").unwrap_or_default().to_owned(),
            nonce: nonce.to_owned(),
            opaque: get("opaque").map(str::to_owned),
            algorithm,
            names_algorithm: get("algorithm").is_some_and(|a| !a.is_empty()),
            qop_auth,
            stale: get("stale").is_some_and(|s| s.eq_ignore_ascii_case("true")),
        }));
    }
}

/// A Digest challenge of ours. `qop` is offered always: ffmpeg uses it, GStreamer answers without it, both
/// are accepted (RTSP-36).
pub(super) fn write_digest(realm: &str, nonce: &str, algorithm: Algorithm, stale: bool) -> String {
    let stale = if stale { ", stale=true" } else { "" };
    format!(
        "Digest realm={}, nonce=\"{nonce}\", algorithm={}, qop=\"auth\"{stale}",
        quote(realm),
        algorithm.as_str()
    )
}
