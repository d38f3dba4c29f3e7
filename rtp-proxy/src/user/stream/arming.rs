//! PLAY and PAUSE: the gates of a leg, and the answers that wait for its first packets.

use std::time::{Duration, Instant};

use msm_graph::{LegId, LegStart};
use msm_media::leg::start::{Moment, align};
use tokio::sync::oneshot;

use super::{Entry, Input, Stream};
use crate::user::leg::{GateState, Way};
use crate::user::worker::Shared;

/// After the first track of a leg has started, the others get this long (an idle metadata track would
/// delay every PLAY otherwise).
const OTHER_TRACKS: Duration = Duration::from_millis(500);

/// A PLAY that waits for its first packets.
#[derive(Debug)]
pub(super) struct Arming {
    pub(super) leg: LegId,
    pub(super) deadline: Instant,
    /// The gates are not opened yet: every packet comes here from this moment on.
    pub(super) ready_at: Option<Instant>,
    pub(super) started: Vec<LegStart>,
    pub(super) answer: oneshot::Sender<Vec<LegStart>>,
}

impl Stream {
    /// Opens the gates of a leg; `answer` gets what opened, at the latest after `wait`.
    pub(crate) fn arm(
        &mut self,
        now: Instant,
        leg: LegId,
        wait: Duration,
        answer: oneshot::Sender<Vec<LegStart>>,
        shared: &Shared,
    ) {
        let Some(answer) = self.arm_again(now, leg, wait, answer) else { return };
        self.arming.retain(|arming| arming.leg != leg);
        // RTSP-44: no frame before the response that names its sequence number. Where that cannot be had,
        // the answer is dropped and no gate opens.
        let held = self.outs(leg).all(|(_, _, out)| match &out.way {
            Way::Channels { conn, rtp, rtcp, .. } => conn.hold([*rtp, *rtcp]),
            Way::Udp { .. } => true,
        });
        if !held {
            return;
        }
        for track in &mut self.tracks {
            if let Some(Input { entry: Entry::Udp { lock, .. }, .. }) = &mut track.input {
                // SEC-2: a port may be learned within 3 s of PLAY.
                lock.reopen(now);
            }
        }
        let ready_at = self.watch(now, leg, shared);
        self.arming.push(Arming { leg, deadline: now + wait, ready_at, started: Vec::new(), answer });
        if ready_at.is_none() {
            self.open_gates(now, leg);
        }
        self.answer_armed(now);
    }

    /// Opens the gates of those who waited until every packet comes here.
    pub(super) fn arm_waiting(&mut self, now: Instant, shared: &Shared) {
        let is_ready = |arming: &Arming| arming.ready_at.is_some_and(|at| at <= now);
        if !self.arming.iter().any(is_ready) {
            return;
        }
        self.look(now, shared);
        for index in 0..self.arming.len() {
            let ready = self.arming.get(index).filter(|arming| is_ready(arming)).map(|arming| arming.leg);
            // Where the leg goes on is known when it is known where it stopped.
            let Some(leg) = ready.filter(|leg| !self.is_stopping(*leg)) else { continue };
            if let Some(arming) = self.arming.get_mut(index) {
                arming.ready_at = None;
            }
            self.open_gates(now, leg);
        }
    }

    fn open_gates(&mut self, now: Instant, leg: LegId) {
        let mut started = Vec::new();
        for (input, track, out) in self.outs(leg) {
            if !out.media.is_armed() {
                out.forget_order();
            }
            out.state = GateState::Armed;
            out.report_due = true;
            if let Some(start) = out.media.arm(now, input) {
                started.push(LegStart { track, seq: start.seq, rtptime: start.rtptime, ssrc: start.ssrc });
            }
        }
        if let Some(arming) = self.arming.iter_mut().find(|arming| arming.leg == leg) {
            arming.started = started;
        }
    }

    /// Answers the PLAYs whose tracks have started or that have waited long enough.
    pub(super) fn answer_armed(&mut self, now: Instant) {
        if self.arming.is_empty() {
            return;
        }
        for mut arming in std::mem::take(&mut self.arming) {
            if arming.ready_at.is_some() {
                self.arming.push(arming);
                continue;
            }
            let had = arming.started.len();
            let mut tracks = 0;
            for (input, track, out) in self.outs(arming.leg) {
                tracks += 1;
                if arming.started.iter().any(|start| start.track == track) {
                    continue;
                }
                // One that waits for the end of a frame knows it now, or nothing more comes of it.
                if let Some(start) = out.media.start().or_else(|| out.media.arm(now, input)) {
                    let start = LegStart { track, seq: start.seq, rtptime: start.rtptime, ssrc: start.ssrc };
                    arming.started.push(start);
                }
            }
            if had == 0 && !arming.started.is_empty() {
                arming.deadline = arming.deadline.min(now + OTHER_TRACKS);
            }
            if arming.started.len() >= tracks || now >= arming.deadline {
                arming.started.sort_by_key(|start| start.track);
                self.align(arming.leg, &mut arming.started);
                let _ = arming.answer.send(arming.started);
            } else {
                self.arming.push(arming);
            }
        }
    }

    /// RTSP-31: RTP times of one moment, where the source's reports tell it of every track.
    fn align(&mut self, leg: LegId, started: &mut [LegStart]) {
        let moment = |start: &LegStart| {
            let (input, _, out) = self.outs(leg).find(|(_, track, _)| *track == start.track)?;
            out.media.moment(input)
        };
        let moments: Option<Vec<Moment>> = started.iter().map(moment).collect();
        for (start, rtptime) in started.iter_mut().zip(align(&moments.unwrap_or_default())) {
            start.rtptime = rtptime;
        }
    }

    pub(crate) fn pause(&mut self, now: Instant, leg: LegId, shared: &Shared) {
        self.stop_in_kernel(now, leg, shared);
        self.arming.retain(|arming| arming.leg != leg);
        for (_, _, out) in self.outs(leg) {
            out.media.pause();
            out.forget_waiting();
            out.state = GateState::Paused;
        }
    }
}
