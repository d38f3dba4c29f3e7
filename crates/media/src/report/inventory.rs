//! Schedules, limits and reports when a proxy hands over.

use std::time::Duration;

use msm_handover::{Anchor, Moment};
use serde::{Deserialize, Serialize};

use super::{CircuitBreaker, KeyFrameLimiter, LegReport, RrSchedule, SenderInfo, SentSrs};
use crate::clock::{Ntp, RtpTime};

/// A [`RrSchedule`], written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RrInventory {
    due: Moment,
    state: u32,
}

impl RrSchedule {
    pub(crate) fn inventory(&self, at: &Anchor) -> RrInventory {
        RrInventory { due: at.moment(self.due), state: self.state }
    }

    pub(crate) fn restore(inventory: RrInventory, at: &Anchor) -> Self {
        Self { due: at.instant(inventory.due), state: inventory.state }
    }
}

/// A [`SenderInfo`], written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SenderInventory {
    ssrc: u32,
    ntp: u64,
    rtp: u32,
    packets: u32,
    octets: u32,
}

impl From<SenderInfo> for SenderInventory {
    fn from(info: SenderInfo) -> Self {
        let SenderInfo { ssrc, ntp, rtp, packets, octets } = info;
        Self { ssrc, ntp: ntp.0, rtp: rtp.0, packets, octets }
    }
}

impl From<SenderInventory> for SenderInfo {
    fn from(inventory: SenderInventory) -> Self {
        let SenderInventory { ssrc, ntp, rtp, packets, octets } = inventory;
        Self { ssrc, ntp: Ntp(ntp), rtp: RtpTime(rtp), packets, octets }
    }
}

/// A [`LegReport`], written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LegReportInventory {
    fraction_lost: u8,
    cumulative_lost: i32,
    highest: u32,
    jitter: u32,
    rtt: Option<Duration>,
    at: Moment,
}

impl LegReport {
    pub(crate) fn inventory(&self, at: &Anchor) -> LegReportInventory {
        LegReportInventory {
            fraction_lost: self.fraction_lost,
            cumulative_lost: self.cumulative_lost,
            highest: self.highest,
            jitter: self.jitter,
            rtt: self.rtt,
            at: at.moment(self.at),
        }
    }

    pub(crate) fn restore(inventory: LegReportInventory, at: &Anchor) -> Self {
        Self {
            fraction_lost: inventory.fraction_lost,
            cumulative_lost: inventory.cumulative_lost,
            highest: inventory.highest,
            jitter: inventory.jitter,
            rtt: inventory.rtt,
            at: at.instant(inventory.at),
        }
    }
}

/// [`SentSrs`], written down: oldest first.
pub(crate) type SentSrsInventory = Vec<(u32, Moment)>;

impl SentSrs {
    pub(crate) fn inventory(&self, at: &Anchor) -> SentSrsInventory {
        let newest = self.sent.iter().cycle().skip(self.next).take(self.sent.len());
        newest.flatten().map(|(lsr, sent)| (*lsr, at.moment(*sent))).collect()
    }

    pub(crate) fn restore(inventory: SentSrsInventory, at: &Anchor) -> Self {
        let mut restored = Self::default();
        for (lsr, sent) in inventory {
            restored.note(lsr, at.instant(sent));
        }
        restored
    }
}

impl KeyFrameLimiter {
    pub(crate) fn inventory(&self, at: &Anchor) -> Option<Moment> {
        self.last.map(|last| at.moment(last))
    }

    pub(crate) fn restore(last: Option<Moment>, at: &Anchor) -> Self {
        Self { last: last.map(|last| at.instant(last)) }
    }
}

impl CircuitBreaker {
    pub(crate) fn inventory(&self, at: &Anchor) -> (u8, Option<Moment>) {
        (self.bad, self.last.map(|last| at.moment(last)))
    }

    pub(crate) fn restore((bad, last): (u8, Option<Moment>), at: &Anchor) -> Self {
        Self { bad, last: last.map(|last| at.instant(last)) }
    }
}
