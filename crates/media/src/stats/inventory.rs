//! Statistics when a proxy hands over: the next report block continues the last.

use msm_handover::{Anchor, Malformed, Moment};
use serde::{Deserialize, Serialize};

use super::{ClockRate, Counts, Jitter, ReceiverStats, Run, SeqTracker, Totals};

/// [`ReceiverStats`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StatsInventory {
    epoch: Moment,
    run: Option<RunInventory>,
    before: TotalsInventory,
    rate_since: Moment,
    rate_packets: u64,
    packets_per_second: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct TotalsInventory {
    packets: u64,
    bytes: u64,
    expected: u64,
    reordered: u64,
    duplicates: u64,
    restarts: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct RunInventory {
    first: u64,
    highest: u64,
    misorder: u16,
    seen: Vec<u64>,
    packets: u64,
    bytes: u64,
    reordered: u64,
    duplicates: u64,
    reached: u64,
    jitter: JitterInventory,
    frame_jitter: JitterInventory,
    prior: (u64, u64),
}

/// Numbers as the bits of an IEEE 754 double, so that text loses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct JitterInventory {
    arrival: u64,
    ts: u32,
    value: u64,
}

impl Jitter {
    fn inventory(&self) -> JitterInventory {
        JitterInventory { arrival: self.arrival.to_bits(), ts: self.ts, value: self.value.to_bits() }
    }

    fn restore(inventory: JitterInventory) -> Result<Self, Malformed> {
        let (arrival, value) = (f64::from_bits(inventory.arrival), f64::from_bits(inventory.value));
        if !(arrival.is_finite() && value.is_finite()) {
            return Err(Malformed::new("jitter", "no number"));
        }
        Ok(Self { arrival, ts: inventory.ts, value })
    }
}

impl ReceiverStats {
    /// Writes them down.
    pub fn inventory(&self, at: &Anchor) -> StatsInventory {
        let run = self.run.as_ref().map(|run| RunInventory {
            first: run.seq.first,
            highest: run.seq.highest,
            misorder: run.seq.misorder,
            seen: run.seq.seen.to_vec(),
            packets: run.packets + run.elsewhere.packets,
            bytes: run.bytes + run.elsewhere.bytes,
            reordered: run.reordered + run.elsewhere.reordered,
            duplicates: run.duplicates + run.elsewhere.duplicates,
            reached: run.reached,
            jitter: run.jitter.inventory(),
            frame_jitter: run.frame_jitter.inventory(),
            prior: run.prior,
        });
        let Totals { packets, bytes, expected, reordered, duplicates, restarts } = self.before;
        StatsInventory {
            epoch: at.moment(self.epoch),
            run,
            before: TotalsInventory { packets, bytes, expected, reordered, duplicates, restarts },
            rate_since: at.moment(self.rate_since),
            rate_packets: self.rate_packets,
            packets_per_second: self.packets_per_second,
        }
    }

    /// As they were.
    ///
    /// # Errors
    /// A sequence that goes backwards, numbers that are none.
    pub fn restore(inventory: StatsInventory, clock: ClockRate, at: &Anchor) -> Result<Self, Malformed> {
        let run = match inventory.run {
            None => None,
            Some(run) => {
                if run.highest < run.first {
                    return Err(Malformed::new("sequence", "backwards"));
                }
                let mut seq = SeqTracker::new(0);
                (seq.first, seq.highest) = (run.first, run.highest);
                seq.misorder = run.misorder;
                seq.seen = run.seen.try_into().map_err(|_| Malformed::new("sequence", "of another width"))?;
                Some(Run {
                    seq,
                    packets: run.packets,
                    bytes: run.bytes,
                    reordered: run.reordered,
                    duplicates: run.duplicates,
                    elsewhere: Counts::default(),
                    reached: run.reached,
                    jitter: Jitter::restore(run.jitter)?,
                    frame_jitter: Jitter::restore(run.frame_jitter)?,
                    prior: run.prior,
                })
            }
        };
        let TotalsInventory { packets, bytes, expected, reordered, duplicates, restarts } = inventory.before;
        Ok(Self {
            clock,
            epoch: at.instant(inventory.epoch),
            run,
            before: Totals { packets, bytes, expected, reordered, duplicates, restarts },
            rate_since: at.instant(inventory.rate_since),
            rate_packets: inventory.rate_packets,
            packets_per_second: inventory.packets_per_second,
        })
    }
}
