//! Packets of one interleaved leg, put in sequence again where they came out of it (RTP-12).
//!
//! A viewer on TCP expects what TCP gives: nothing overtakes. What a UDP source's network reordered waits
//! for what is missing, 20 ms at most; packets in sequence pass by at the cost of a comparison.

use std::time::Instant;

use msm_media::Arrival;
use msm_media::jitter::{MIN_WINDOW, Reorder};

use crate::user::tcp::Frame;

/// The sequence of one leg.
#[derive(Debug)]
pub(crate) struct InOrder {
    pub(super) run: Option<u32>,
    pub(super) waiting: Reorder<Frame>,
}

impl InOrder {
    pub(crate) fn new() -> Self {
        Self { run: None, waiting: Reorder::new(MIN_WINDOW) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a packet may be sent at once.
    pub(crate) fn pass(&mut self, arrival: &Arrival) -> bool {
        if self.run != Some(arrival.run) {
            if !self.waiting.is_empty() {
                return false;
            }
            self.run = Some(arrival.run);
            let _ = self.waiting.reset();
        }
        self.waiting.pass(arrival.ext)
    }

    /// Takes a packet that may not, or that follows one. What may be sent now goes to `out`. Returns false
    /// if it came too late.
    pub(crate) fn push(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        frame: Frame,
        out: &mut Vec<Frame>,
    ) -> bool {
        if self.run != Some(arrival.run) {
            out.append(&mut self.reset());
            self.run = Some(arrival.run);
        }
        let late = self.waiting.push(now, arrival.ext, frame).is_some();
        self.pop(now, out);
        !late
    }

    /// What has waited long enough.
    pub(crate) fn pop(&mut self, now: Instant, out: &mut Vec<Frame>) {
        while let Some((_, frame)) = self.waiting.pop(now) {
            out.push(frame);
        }
    }

    /// Everything that waits, in sequence; what comes next starts anew.
    pub(crate) fn reset(&mut self) -> Vec<Frame> {
        self.run = None;
        self.waiting.reset().map(|(_, frame)| frame).collect()
    }
}
