//! Locks on a peer when a proxy hands over: a port that was learned stays the only one.

use std::net::IpAddr;

use msm_handover::{Anchor, Blob, Moment};
use serde::{Deserialize, Serialize};

use super::{Candidate, PeerLock};

/// A [`PeerLock`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInventory {
    addr: IpAddr,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    until: Moment,
    #[serde(default)]
    candidate: Option<CandidateInventory>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct CandidateInventory {
    port: u16,
    ssrc: u32,
    seq: u16,
    bytes: Blob,
}

impl PeerLock {
    /// Writes it down.
    pub fn inventory(&self, at: &Anchor) -> PeerInventory {
        let candidate = self.candidate.as_ref().map(|candidate| CandidateInventory {
            port: candidate.port,
            ssrc: candidate.ssrc,
            seq: candidate.seq,
            bytes: candidate.bytes.as_slice().into(),
        });
        PeerInventory { addr: self.addr, port: self.port, until: at.moment(self.until), candidate }
    }

    /// As it was. `payload_types`: as for [`PeerLock::new`].
    pub fn restore(inventory: PeerInventory, payload_types: &[u8], at: &Anchor) -> Self {
        let until = at.instant(inventory.until);
        let mut lock = Self::new(until, inventory.addr, inventory.port, payload_types);
        lock.until = until;
        lock.candidate = inventory.candidate.map(|candidate| Candidate {
            port: candidate.port,
            ssrc: candidate.ssrc,
            seq: candidate.seq,
            bytes: candidate.bytes.0.to_vec(),
        });
        lock
    }
}
