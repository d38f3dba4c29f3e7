//! What authentication knows when a proxy hands over. Nonces, keys and names of users are secrets: the
//! `Debug` of these says nothing.

use std::fmt;
use std::net::IpAddr;

use msm_handover::{Anchor, Malformed, Moment};
use serde::{Deserialize, Serialize};

use super::client::ClientAuth;
use super::limiter::{FailureLimiter, Window};
use super::server::ConnAuth;
use super::{Algorithm, BasicPolicy, Challenge, Credentials, DigestChallenge};

macro_rules! silent {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )*};
}

silent!(CredentialsInventory ConnAuthInventory ClientAuthInventory LimiterInventory);

/// [`Credentials`], written down.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CredentialsInventory {
    user: String,
    password: String,
}

impl Credentials {
    /// Writes them down.
    pub fn inventory(&self) -> CredentialsInventory {
        CredentialsInventory { user: self.user.clone(), password: self.password.expose().to_owned() }
    }

    /// As they were.
    pub fn restore(inventory: CredentialsInventory) -> Self {
        Self::new(inventory.user, inventory.password)
    }
}

/// A [`ConnAuth`], written down.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnAuthInventory {
    nonce: Option<(String, Moment)>,
    failures: u8,
}

impl ConnAuth {
    /// Writes it down.
    pub fn inventory(&self, at: &Anchor) -> ConnAuthInventory {
        let nonce = self.nonce.as_ref().map(|(nonce, made)| (nonce.clone(), at.moment(*made)));
        ConnAuthInventory { nonce, failures: self.failures }
    }

    /// As it was.
    pub fn restore(inventory: ConnAuthInventory, at: &Anchor) -> Self {
        let nonce = inventory.nonce.map(|(nonce, made)| (nonce, at.instant(made)));
        Self { nonce, failures: inventory.failures }
    }
}

/// A [`FailureLimiter`], written down.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LimiterInventory {
    /// Address, user, start of the minute, failures.
    entries: Vec<(IpAddr, String, Moment, u32)>,
}

impl FailureLimiter {
    /// Writes it down.
    pub fn inventory(&self, at: &Anchor) -> LimiterInventory {
        let entry = |((address, user), window): (&(IpAddr, String), &Window)| {
            (*address, user.clone(), at.moment(window.started), window.failures)
        };
        LimiterInventory { entries: self.entries.iter().map(entry).collect() }
    }

    /// As it was.
    pub fn restore(inventory: LimiterInventory, at: &Anchor) -> Self {
        let entry = |(address, user, started, failures)| {
            ((address, user), Window { started: at.instant(started), failures })
        };
        Self { entries: inventory.entries.into_iter().map(entry).collect() }
    }
}

/// A [`ClientAuth`], written down, without its credentials.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientAuthInventory {
    challenge: Option<ChallengeInventory>,
    nonce_count: u32,
    attempts: u8,
}

#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct ChallengeInventory {
    /// `None` for Basic.
    algorithm: Option<String>,
    realm: String,
    nonce: String,
    opaque: Option<String>,
    names_algorithm: bool,
    qop_auth: bool,
    stale: bool,
}

impl ClientAuth {
    /// Writes it down.
    pub fn inventory(&self) -> ClientAuthInventory {
        let challenge = self.challenge.as_ref().map(|challenge| match challenge {
            Challenge::Basic { realm } => {
                ChallengeInventory { realm: realm.clone(), ..ChallengeInventory::default() }
            }
            Challenge::Digest(digest) => ChallengeInventory {
                algorithm: Some(digest.algorithm.as_str().to_owned()),
                realm: digest.realm.clone(),
                nonce: digest.nonce.clone(),
                opaque: digest.opaque.clone(),
                names_algorithm: digest.names_algorithm,
                qop_auth: digest.qop_auth,
                stale: digest.stale,
            },
        });
        ClientAuthInventory { challenge, nonce_count: self.nonce_count, attempts: self.attempts }
    }

    /// As it was, with the credentials of the route.
    ///
    /// # Errors
    /// An algorithm that this program does not know.
    pub fn restore(
        inventory: ClientAuthInventory,
        credentials: Option<Credentials>,
        basic: BasicPolicy,
    ) -> Result<Self, Malformed> {
        let challenge = match inventory.challenge {
            None => None,
            Some(ChallengeInventory { algorithm: None, realm, .. }) => Some(Challenge::Basic { realm }),
            Some(ChallengeInventory {
                algorithm: Some(name),
                realm,
                nonce,
                opaque,
                names_algorithm,
                qop_auth,
                stale,
            }) => {
                let algorithm = Algorithm::from_token(&name)
                    .ok_or_else(|| Malformed::new("challenge", "of an unknown algorithm"))?;
                Some(Challenge::Digest(DigestChallenge {
                    realm,
                    nonce,
                    opaque,
                    algorithm,
                    names_algorithm,
                    qop_auth,
                    stale,
                }))
            }
        };
        Ok(Self {
            credentials,
            basic,
            challenge,
            nonce_count: inventory.nonce_count,
            attempts: inventory.attempts,
        })
    }
}
