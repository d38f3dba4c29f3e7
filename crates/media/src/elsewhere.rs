//! What became of a run where its input did not see it.
//!
//! A run may be forwarded by the kernel, which counts on from where the input stood ([`Standing`]) and is
//! asked now and then how far it came ([`Elsewhere`]). Packets may come to the input all the same: copies of
//! what the kernel forwards too, and whatever does not continue the run. So three things are kept apart:
//! counters add up, since each packet is counted by exactly one of the two; the highest number is raised
//! only as far as nothing below it can still come here; and a packet that continues what the other one has
//! seen is no jump, however far it is from what came here.

use std::time::Instant;

use msm_fastpath::PayloadTypes;

use crate::seq::{MAX_DROPOUT, SeqTracker, extend};

/// Where an input stands in its run: what another one needs to go on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Number of the run.
    pub run: u32,
    /// SSRC of the run.
    pub ssrc: u32,
    /// Payload types admitted.
    pub payload_types: PayloadTypes,
    /// Highest extended sequence number.
    pub highest: u64,
    /// The 64 numbers up to `highest`: bit n is `highest` - n, set when it came.
    pub window: u64,
    /// Highest timestamp, and when it was first seen.
    pub ts: u32,
    /// See `ts`.
    pub ts_at: Instant,
    /// When the last packet came.
    pub arrival: Instant,
    /// Jitter in ticks of the clock (RFC 3550 appendix A.8).
    pub jitter: f64,
    /// Packets of the run so far.
    pub packets: u64,
}

/// How far a run has come elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Elsewhere {
    /// Highest extended sequence number, in the input's counting.
    pub highest: u64,
    /// As [`Standing::window`].
    pub window: u64,
    /// Highest timestamp.
    pub ts: u32,
    /// When it was first seen.
    pub ts_at: Instant,
    /// When the last packet came.
    pub arrival: Instant,
    /// Jitter in ticks of the clock.
    pub jitter: f64,
    /// What was counted there and not here, since [`crate::TrackInput::begin_elsewhere`].
    pub counts: Counts,
}

/// Packets that did not come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets, duplicates included.
    pub packets: u64,
    /// Bytes of RTP, headers included.
    pub bytes: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicates: u64,
}

/// What the packets of a batch are to be seen against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) highest: u64,
    pub(crate) window: u64,
    /// Whether what continues the run does not come here: a packet that comes does not continue it, or
    /// came before that began.
    pub(crate) alone: bool,
}

impl Ahead {
    /// Raises a tracker to where the other one stood when it saw the packet of this number.
    #[inline]
    pub(crate) fn catch_up(&self, tracker: &mut SeqTracker, seq: u16) {
        let mine = tracker.highest();
        if self.highest <= mine {
            return;
        }
        let number = extend(self.highest, seq);
        if number > mine && number <= self.highest + u64::from(MAX_DROPOUT) {
            tracker.raise(number - 1);
        } else if self.alone && !tracker.reaches_back_to(extend(mine, seq)) {
            tracker.raise(self.highest);
            tracker.mark_window(self.highest, self.window);
        }
    }
}

#[cfg(test)]
mod tests;
