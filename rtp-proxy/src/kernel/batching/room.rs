//! Whether merging could lose packets that are not lost without it.
//!
//! Without it the sender's own call carries a packet to all viewers, and the next one waits. Merged, packets wait in a
//! ring of the veth, which throws away what it has no room for; and the thread that reads it puts all copies of a
//! poll into the backlog of its CPU before anybody works on that.

use std::fmt;
use std::time::{Duration, Instant};

/// Packets that the ring of a veth holds (`VETH_RING_SIZE`).
const RING: f64 = 256.0;
/// Packets of one poll (`NAPI_POLL_WEIGHT`): merged they are fewer, but a packet of every flow is merged with none.
pub(crate) const POLL: u64 = 64;
/// What `net.core.netdev_max_backlog` is where nobody set it; a network namespace cannot read it.
pub(in crate::kernel) const BACKLOG: u64 = 1_000;
/// What is advised at least.
const ADVISED: u64 = 8_192;
/// A ring that overflowed is left alone for so long: bursts vary, a key frame comes back.
const AFTER_LOSS: Duration = Duration::from_secs(3_600);

/// What speaks against merging although it would pay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::kernel) enum Obstacle {
    /// So many viewers of one flow have more copies of a poll than `net.core.netdev_max_backlog`.
    Backlog { viewers: u64, backlog: u64 },
    /// Packets that come at once if the bursts of all flows meet.
    Ring(f64),
    /// Packets that the ring threw away while merging was on.
    Lost(u64),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backlog { viewers, backlog } => {
                let wanted = (viewers * POLL).next_power_of_two().max(ADVISED);
                write!(
                    f,
                    "net.core.netdev_max_backlog is {backlog}, and {viewers} viewers may need {}; run `sysctl -w \
                     net.core.netdev_max_backlog={wanted}`",
                    viewers * POLL
                )
            }
            Self::Ring(packets) => {
                write!(
                    f,
                    "{packets:.0} packets come without a pause, and the interface holds {RING} that wait"
                )
            }
            Self::Lost(packets) => {
                write!(f, "the interface had no room for {packets} packets while they were merged")
            }
        }
    }
}

/// What came in by an interface, as far as room is concerned.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Load {
    /// Viewers of the flow that has most.
    pub(super) viewers: u64,
    /// Sum of the mean bursts of its flows.
    pub(super) together: f64,
    /// `net.core.netdev_max_backlog`.
    pub(super) backlog: u64,
}

/// What the ring of one interface has thrown away.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Ever, as of the last look.
    seen: Option<u64>,
    /// Last time while bursts were merged.
    last: Option<(Instant, u64)>,
}

impl Losses {
    /// Takes in how many packets the far end could not send since it exists, where that is known. Returns how many of
    /// them are merging's: those since the last look, if `on`.
    pub(super) fn handle_look(&mut self, now: Instant, ever: Option<u64>, on: bool) -> u64 {
        let before = std::mem::replace(&mut self.seen, ever);
        let new = ever.zip(before).map_or(0, |(ever, before)| ever.saturating_sub(before));
        if !on || new == 0 {
            return 0;
        }
        self.last = Some((now, new));
        new
    }

    /// What speaks against merging, `on` as it is now.
    pub(super) fn obstacle(&self, now: Instant, load: &Load, on: bool) -> Option<Obstacle> {
        if load.viewers * POLL > load.backlog {
            return Some(Obstacle::Backlog { viewers: load.viewers, backlog: load.backlog });
        }
        let recently = self.last.filter(|(at, _)| now.saturating_duration_since(*at) < AFTER_LOSS);
        if let Some((_, packets)) = recently {
            return Some(Obstacle::Lost(packets));
        }
        // A burst may be twice the mean.
        (load.together > if on { RING } else { RING / 2.0 }).then_some(Obstacle::Ring(load.together))
    }
}
