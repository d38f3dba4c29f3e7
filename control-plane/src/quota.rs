//! How much one identity may hold: sessions, legs, SETUPs (SEC-5, R61). Checked before anything is made.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::config::{IdentityLimits, Limits};

/// Entries kept before idle ones are forgotten.
const PRUNE_AT: usize = 8192;

/// Who a quota is counted for: an authenticated user, else the peer's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Identity {
    /// Anonymous.
    Address(IpAddr),
    /// Authenticated.
    User(String),
}

#[derive(Debug)]
struct Use {
    sessions: u32,
    legs: u32,
    /// SETUPs left, in thousandths.
    tokens: u64,
    refilled: Instant,
}

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// Too many sessions: `453`.
    Sessions,
    /// Too many legs: `453`.
    Legs,
    /// Too many SETUPs at once: `503` with `Retry-After`.
    Rate,
}

impl Excess {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "quota_sessions",
            Self::Legs => "quota_legs",
            Self::Rate => "quota_setup_rate",
        }
    }
}

/// Counts of every identity.
#[derive(Debug)]
pub(crate) struct Quotas {
    per_address: IdentityLimits,
    per_user: IdentityLimits,
    uses: HashMap<Identity, Use>,
}

impl Quotas {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { per_address: limits.per_address, per_user: limits.per_user, uses: HashMap::new() }
    }

    fn limits(&self, identity: &Identity) -> IdentityLimits {
        match identity {
            Identity::Address(_) => self.per_address,
            Identity::User(_) => self.per_user,
        }
    }

    /// Takes one SETUP from the bucket.
    pub(crate) fn take_setup(&mut self, now: Instant, identity: &Identity) -> Result<(), Excess> {
        let limits = self.limits(identity);
        let full = u64::from(limits.setup_burst) * 1000;
        if self.uses.len() >= PRUNE_AT {
            // A bucket that has had time to fill says nothing any more.
            self.uses.retain(|_, u| u.sessions + u.legs > 0 || (now - u.refilled).as_secs() < 60);
        }
        let usage = self.uses.entry(identity.clone()).or_insert(Use {
            sessions: 0,
            legs: 0,
            tokens: full,
            refilled: now,
        });
        let gained = (now - usage.refilled).as_millis() as u64 * u64::from(limits.setup_per_second);
        usage.tokens = usage.tokens.saturating_add(gained).min(full);
        usage.refilled = now;
        if usage.tokens < 1000 {
            return Err(Excess::Rate);
        }
        usage.tokens -= 1000;
        Ok(())
    }

    /// Counts a session if there is room for it.
    pub(crate) fn add_session(&mut self, identity: &Identity) -> Result<(), Excess> {
        let limit = self.limits(identity).sessions;
        match self.uses.get_mut(identity) {
            Some(usage) if usage.sessions < limit => usage.sessions += 1,
            _ => return Err(Excess::Sessions),
        }
        Ok(())
    }

    /// Counts a leg, which is one track of a session, if there is room for it.
    pub(crate) fn add_leg(&mut self, identity: &Identity) -> Result<(), Excess> {
        let limit = self.limits(identity).legs;
        match self.uses.get_mut(identity) {
            Some(usage) if usage.legs < limit => usage.legs += 1,
            _ => return Err(Excess::Legs),
        }
        Ok(())
    }

    /// Takes back what a session held.
    pub(crate) fn release(&mut self, identity: &Identity, sessions: u32, legs: u32) {
        if let Some(usage) = self.uses.get_mut(identity) {
            usage.sessions = usage.sessions.saturating_sub(sessions);
            usage.legs = usage.legs.saturating_sub(legs);
        }
    }
}
