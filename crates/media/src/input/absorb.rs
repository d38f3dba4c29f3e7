//! A run that goes on elsewhere: in the kernel ([`crate::elsewhere`]).

use std::time::Instant;

use super::{InputEvent, InputOutput, QUIET_AFTER, RunHead, TrackInput};
use crate::elsewhere::{Ahead, Elsewhere, Standing};
use crate::project::Head;

impl TrackInput {
    /// Where the input stands, `None` without a run.
    pub fn standing(&self) -> Option<Standing> {
        let current = self.current?;
        Some(Standing {
            run: current.run,
            ssrc: current.ssrc,
            payload_types: self.admission.payload_types,
            highest: current.head.ext,
            window: self.stats.window(),
            ts: current.head.ts,
            ts_at: current.head.at,
            arrival: self.last_arrival?,
            jitter: self.stats.jitter_ticks(),
            packets: self.stats.run_packets(),
        })
    }

    /// Whether nothing speaks for another run: no packet is held to be confirmed.
    pub fn is_steady(&self) -> bool {
        self.current.is_some() && self.suspect.is_none()
    }

    /// From now on packets are counted elsewhere too, from zero.
    pub fn begin_elsewhere(&mut self) {
        self.stats.fold();
        self.ahead = None;
    }

    /// Takes in how far the run has come, when nothing of it can come here any more. Not to be called for
    /// another run than the one that was handed over.
    pub fn absorb(&mut self, now: Instant, elsewhere: &Elsewhere) {
        self.ahead = None;
        self.stats.absorb(elsewhere, true);
        self.stats.note_time(now);
        self.note_frame_elsewhere(elsewhere);
        if let Some(current) = &mut self.current {
            current.head.raise(elsewhere.highest, elsewhere.ts, elsewhere.ts_at);
        }
        self.follow_elsewhere(elsewhere.ts, elsewhere.ts_at);
        self.heard(elsewhere.arrival);
    }

    /// Takes in how far the run has come, before a batch that may hold packets which were seen there too.
    /// `alone`: copies do not come here; what comes does not continue the run.
    pub fn expect(&mut self, elsewhere: &Elsewhere, alone: bool) {
        self.stats.absorb(elsewhere, false);
        self.note_frame_elsewhere(elsewhere);
        if alone {
            self.stats.reach(elsewhere.highest);
        }
        self.ahead = Some(Ahead { highest: elsewhere.highest, window: elsewhere.window, alone });
        if let Some(current) = &mut self.current {
            let ext = current.head.ext;
            current.head.raise(ext, elsewhere.ts, elsewhere.ts_at);
        }
        self.follow_elsewhere(elsewhere.ts, elsewhere.ts_at);
        self.heard(elsewhere.arrival);
    }

    /// Takes in what was counted elsewhere and nothing else.
    pub fn count_elsewhere(&mut self, elsewhere: &Elsewhere) {
        self.stats.count_elsewhere(elsewhere.counts);
    }

    /// Every packet comes here again, and those that did not have been taken in.
    pub fn end_expect(&mut self) {
        self.ahead = None;
    }

    /// The current run with the highest number that is known of, here or elsewhere.
    pub(crate) fn newest(&self) -> Option<RunHead> {
        let current = self.current?;
        let ext = self.ahead.map_or(0, |ahead| ahead.highest).max(current.head.ext);
        Some(RunHead { head: Head { ext, ..current.head }, ..current })
    }

    /// Markers are not seen elsewhere: the newest frame may go on.
    fn note_frame_elsewhere(&mut self, elsewhere: &Elsewhere) {
        if self.newest().is_some_and(|newest| newest.head.ext < elsewhere.highest) {
            self.frame = Some(elsewhere.ts);
        }
    }

    fn heard(&mut self, at: Instant) {
        if self.last_arrival.is_some_and(|last| last >= at) {
            return;
        }
        let quiet = self.last_arrival.is_none_or(|last| at.saturating_duration_since(last) >= QUIET_AFTER);
        self.last_arrival = Some(at);
        if quiet {
            self.output(InputOutput::Event(InputEvent::Active));
        }
    }
}
