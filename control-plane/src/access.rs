//! Who may read and publish which name: our own accounts and realm, terminated here (RTSP-34). What a
//! camera wants to know is the route's business and never leaves downstream.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use msm_handover::Anchor;
use msm_rtsp::auth::inventory::LimiterInventory;
use msm_rtsp::auth::{
    AuthRequest, Authorization, BasicPolicy, ConnAuth, DigestOffer, FailureLimiter, ServerAuth, Verdict,
};
use msm_rtsp::message::Request;

use crate::config::Config;

/// Name that stands for every path.
const EVERY_NAME: &str = "*";

/// The answer to "may this request touch this name?".
#[derive(Debug)]
pub(crate) enum Access {
    /// Anybody may.
    Open,
    /// This user may.
    Granted(String),
    /// `401`; `failed` when wrong credentials were sent, which are answered late (SEC-13).
    Denied { challenges: Vec<String>, failed: bool, close: bool },
    /// Too many wrong credentials lately: `503`, then close.
    Throttled(Duration),
}

/// Accounts per name.
#[derive(Debug)]
pub(crate) struct AccessPolicy {
    by_name: HashMap<String, ServerAuth>,
    everywhere: Option<ServerAuth>,
    limiter: FailureLimiter,
}

impl AccessPolicy {
    pub(crate) fn new(config: &Config) -> Self {
        let fresh = || ServerAuth {
            realm: config.realm.clone(),
            accounts: Vec::new(),
            digest: if config.sha256 { DigestOffer::Sha256ThenMd5 } else { DigestOffer::Md5 },
            basic: BasicPolicy::Refuse,
        };
        let mut by_name: HashMap<String, ServerAuth> = HashMap::new();
        let mut everywhere: Option<ServerAuth> = None;
        for user in &config.users {
            let auth = if user.name == EVERY_NAME {
                everywhere.get_or_insert_with(fresh)
            } else {
                by_name.entry(user.name.trim_matches('/').to_owned()).or_insert_with(fresh)
            };
            auth.accounts.push(user.credentials.clone());
        }
        if let Some(everywhere) = &everywhere {
            for auth in by_name.values_mut() {
                auth.accounts.extend(everywhere.accounts.iter().cloned());
            }
        }
        Self { by_name, everywhere, limiter: FailureLimiter::new() }
    }

    /// Failures of late.
    pub(crate) fn limiter(&self) -> &FailureLimiter {
        &self.limiter
    }

    /// Takes over failures of late.
    pub(crate) fn set_limiter(&mut self, inventory: LimiterInventory, at: &Anchor) {
        self.limiter = FailureLimiter::restore(inventory, at);
    }

    /// Whether anybody may read and publish `name`.
    pub(crate) fn is_open(&self, name: &str) -> bool {
        self.everywhere.is_none() && !self.by_name.contains_key(name)
    }

    /// Checks `request` against the accounts of `name`. `nonce`: random bytes.
    pub(crate) fn check(
        &mut self,
        now: Instant,
        conn: &mut ConnAuth,
        peer: IpAddr,
        name: &str,
        request: &Request,
        nonce: [u8; 16],
    ) -> Access {
        let Some(auth) = self.by_name.get(name).or(self.everywhere.as_ref()) else { return Access::Open };
        let authorization = request.headers.get("Authorization");
        if let Some(user) = authorization.and_then(Authorization::parse).as_ref().map(Authorization::user)
            && let Err(wait) = self.limiter.check(now, peer, user)
        {
            return Access::Throttled(wait);
        }
        let asked = AuthRequest { method: &request.method, uri: &request.uri, authorization };
        match conn.verify(now, auth, asked, nonce) {
            Verdict::Granted { user } => Access::Granted(user),
            Verdict::Unauthorized { challenges, failed, close } => {
                if let Some(user) = &failed {
                    self.limiter.record_failure(now, peer, user);
                }
                Access::Denied { challenges, failed: failed.is_some(), close }
            }
        }
    }
}
