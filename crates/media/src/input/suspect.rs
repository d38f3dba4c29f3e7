//! A packet that does not belong to the run: noise, or the first of another run, which the next one confirms.

use std::time::Instant;

use super::batch::{Arrival, Batch};
use super::{InputEvent, InputOutput, MAX_TIME_JUMP, SWITCH_INTERVAL, TrackInput, payload_of};
use crate::drop::DropReason;
use crate::project::Head;
use crate::rtp::RtpView;

/// A packet that would start a new run if the next one confirms it.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) ssrc: u32,
    pub(super) seq: u16,
    pub(super) ts: u32,
    pub(super) at: Instant,
    pub(super) arrival: f64,
    pub(super) len: usize,
    pub(super) payload_len: u16,
    pub(super) resume_point: bool,
    pub(super) reason: DropReason,
    /// In the batch being handled, else in `bytes`.
    pub(super) index: Option<u32>,
}

impl TrackInput {
    /// Whether a timestamp is more than ten seconds from both the last one and the one that is due now:
    /// neither continues the timeline nor fits an interruption of it (RTP-7).
    #[inline]
    pub(super) fn time_jump(&self, now: Instant, ts: u32, head: &Head) -> bool {
        let limit = self.config.clock.hz().saturating_mul(MAX_TIME_JUMP.as_secs() as u32);
        let far = |from: u32| (ts.wrapping_sub(from) as i32).unsigned_abs() > limit;
        ts != head.ts && far(head.ts) && far(head.ts_at(now, self.config.clock))
    }

    /// A packet that does not belong to the run: confirms the one before it, or is held to be confirmed.
    #[expect(clippy::too_many_arguments, reason = "the parts of one packet, taken apart by its only caller")]
    pub(super) fn suspect(
        &mut self,
        now: Instant,
        arrival: f64,
        index: u32,
        packet: &[u8],
        view: RtpView<'_>,
        reason: DropReason,
        batch: &mut Batch,
    ) -> Result<bool, DropReason> {
        let (seq, ts, ssrc) = (view.seq(), view.timestamp(), view.ssrc());
        let soon = |at: Instant| now.saturating_duration_since(at) < SWITCH_INTERVAL;
        if reason == DropReason::Ssrc && self.switched_at.is_some_and(soon) {
            return Err(reason);
        }
        let confirmed =
            self.suspect.as_ref().is_some_and(|first| first.ssrc == ssrc && first.seq.wrapping_add(1) == seq);
        if !confirmed {
            self.forget_suspect(batch);
            let payload = payload_of(&view);
            self.suspect = Some(Suspect {
                ssrc,
                seq,
                ts,
                at: now,
                arrival,
                len: packet.len(),
                payload_len: payload.len() as u16,
                resume_point: self.config.codec.resume_point(payload),
                reason,
                index: Some(index),
            });
            return Ok(false);
        }
        let Some(first) = self.suspect.take() else { return Err(reason) };
        self.stats.end_run();
        self.switched_at = Some(now);
        self.end_run();
        if let Some(before) = self.current.take() {
            self.output(InputOutput::Event(InputEvent::Switched { from: before.ssrc, to: ssrc }));
        }
        self.admit_held(&first, batch);
        let (ext, step) = self.stats.observe(arrival, seq, ts, packet.len());
        if let Some(current) = &mut self.current {
            current.head.raise(ext, ts, now);
        }
        self.push(index, view, ext, step, batch);
        Ok(true)
    }

    /// Starts a run with the packet that was held.
    fn admit_held(&mut self, first: &Suspect, batch: &mut Batch) {
        let (ext, _) = self.stats.observe(first.arrival, first.seq, first.ts, first.len);
        self.start_run(first.at, first.ssrc, ext, first.ts);
        if first.index.is_none() {
            std::mem::swap(&mut batch.held, &mut self.suspect_bytes);
        }
        batch.push(Arrival {
            index: first.index.unwrap_or(Arrival::HELD),
            run: self.runs,
            ext,
            seq: first.seq,
            payload_len: first.payload_len,
            ts: first.ts,
            ssrc: first.ssrc,
            duplicate: false,
            resume_point: first.resume_point,
            only_here: false,
        });
    }

    pub(super) fn forget_suspect(&mut self, batch: &mut Batch) {
        if let Some(suspect) = self.suspect.take() {
            self.count(suspect.reason, batch);
        }
    }
}
