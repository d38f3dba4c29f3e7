//! Quotas when a proxy hands over: nobody gets a second helping by it.

use std::net::IpAddr;

use msm_handover::{Anchor, Moment};
use serde::{Deserialize, Serialize};

use super::{Identity, Limits, Quotas, Use};

/// An [`Identity`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IdentityInventory {
    Address(IpAddr),
    User(String),
}

impl From<&Identity> for IdentityInventory {
    fn from(identity: &Identity) -> Self {
        match identity {
            Identity::Address(ip) => Self::Address(*ip),
            Identity::User(user) => Self::User(user.clone()),
        }
    }
}

impl From<IdentityInventory> for Identity {
    fn from(inventory: IdentityInventory) -> Self {
        match inventory {
            IdentityInventory::Address(ip) => Self::Address(ip),
            IdentityInventory::User(user) => Self::User(user),
        }
    }
}

/// [`Quotas`], written down, in the order in which idle ones are looked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct QuotasInventory(Vec<UseInventory>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct UseInventory {
    identity: IdentityInventory,
    #[serde(default)]
    sessions: u32,
    #[serde(default)]
    legs: u32,
    /// Thousandths of a SETUP.
    #[serde(default)]
    tokens: u64,
    #[serde(default)]
    refilled: Moment,
}

impl Quotas {
    /// Writes them down.
    pub(crate) fn inventory(&self, at: &Anchor) -> QuotasInventory {
        let uses = self.rounds.iter().filter_map(|identity| {
            let usage = self.uses.get(identity)?;
            Some(UseInventory {
                identity: identity.into(),
                sessions: usage.sessions,
                legs: usage.legs,
                tokens: usage.tokens,
                refilled: at.moment(usage.refilled),
            })
        });
        QuotasInventory(uses.collect())
    }

    /// As they were, under these limits.
    pub(crate) fn restore(inventory: QuotasInventory, limits: &Limits, at: &Anchor) -> Self {
        let mut quotas = Self::new(limits);
        for UseInventory { identity, sessions, legs, tokens, refilled } in inventory.0 {
            let identity = Identity::from(identity);
            quotas.rounds.push_back(identity.clone());
            quotas.uses.insert(identity, Use { sessions, legs, tokens, refilled: at.instant(refilled) });
        }
        quotas
    }
}
