//! How much one identity may hold: sessions, legs, SETUPs (SEC-5, R61). Checked before anything is made.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::config::{IdentityLimits, Limits};

pub(crate) mod inventory;

/// Entries looked at per SETUP to forget idle ones: more than one, so that they become fewer.
const LOOKS: usize = 2;

/// Time after which a bucket is full again.
const IDLE: Duration = Duration::from_secs(60);

/// Who a quota is counted for: an authenticated user, else the peer's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Identity {
    /// Anonymous. Of an IPv6 address its /64: whoever has one address has all of them.
    Address(IpAddr),
    /// Authenticated.
    User(String),
}

impl Identity {
    /// Of an anonymous peer.
    pub(crate) fn of_peer(ip: IpAddr) -> Self {
        Self::Address(match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        })
    }
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
    /// Every identity of `uses` once, in the order in which they are looked at.
    rounds: VecDeque<Identity>,
}

impl Quotas {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            per_address: limits.per_address,
            per_user: limits.per_user,
            uses: HashMap::new(),
            rounds: VecDeque::new(),
        }
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
        self.forget_idle(now);
        let usage = self.uses.entry(identity.clone()).or_insert_with(|| {
            self.rounds.push_back(identity.clone());
            Use { sessions: 0, legs: 0, tokens: full, refilled: now }
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

    /// Looks at the next few: a bucket that has had time to fill says nothing any more.
    fn forget_idle(&mut self, now: Instant) {
        for _ in 0..LOOKS {
            let Some(identity) = self.rounds.pop_front() else { return };
            let is_idle = self.uses.get(&identity).is_none_or(|usage| {
                usage.sessions + usage.legs == 0 && now.saturating_duration_since(usage.refilled) >= IDLE
            });
            if is_idle {
                self.uses.remove(&identity);
            } else {
                self.rounds.push_back(identity);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant has no other constructor; only differences matter"
        )]
        Instant::now()
    }

    fn peer(text: &str) -> Identity {
        Identity::of_peer(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_identity() {
        assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
        assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
        assert_ne!(peer("203.0.113.5"), peer("203.0.113.6"));
    }

    #[test]
    fn identities_that_hold_nothing_are_forgotten_and_others_are_not() {
        let (mut quotas, start) = (Quotas::new(&Limits::default()), now());
        let holder = peer("203.0.113.5");
        quotas.take_setup(start, &holder).unwrap();
        quotas.add_session(&holder).unwrap();
        for n in 0..1000u128 {
            let identity = Identity::of_peer(Ipv6Addr::from_bits(n << 64).into());
            quotas.take_setup(start, &identity).unwrap();
        }
        assert_eq!(quotas.uses.len(), 1001, "a bucket that was used is remembered");
        for _ in 0..1000 {
            quotas.take_setup(start + IDLE, &peer("203.0.113.6")).unwrap();
        }
        assert_eq!(quotas.uses.len(), 2);
        assert_eq!(quotas.rounds.len(), 2);
        assert!(quotas.add_session(&holder).is_ok());
    }
}
