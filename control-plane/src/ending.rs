//! The end of the process: no new sessions, then BYE to every leg, TEARDOWN to every camera, and gone
//! (RTP-24). With a drain it waits until the legs have left by themselves, or for its time to be up.

use std::time::{Duration, Instant};

use msm_graph::StreamId;

use crate::ControlPlane;
use crate::catalog::Source;
use crate::event::{Action, Now};
use crate::timer::Wake;

/// How far it has come.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Legs may stay until then; `None` once they have been ended.
    until: Option<Instant>,
    /// When we leave whatever is still open.
    deadline: Option<Instant>,
    /// BYEs that are not out yet.
    pub(crate) goodbyes: usize,
    finished: bool,
    armed: Option<Instant>,
}

impl ControlPlane {
    pub(crate) fn handle_shutdown(&mut self, now: Now, drain: Duration) {
        let until = now.instant + drain;
        match &mut self.ending {
            // A second request ends what the first one let be.
            Some(ending) => {
                if let Some(old) = &mut ending.until {
                    *old = until.min(*old);
                }
            }
            None => {
                self.ending = Some(Ending {
                    until: Some(until),
                    deadline: None,
                    goodbyes: 0,
                    finished: false,
                    armed: None,
                });
            }
        }
        if let Some(ending) = &mut self.ending {
            ending.armed = None;
            self.timers.arm(&mut ending.armed, until, Wake::Ending);
        }
    }

    pub(crate) fn handle_ending_timeout(&mut self, _now: Now) {
        if let Some(ending) = &mut self.ending {
            ending.armed = None;
        }
    }

    /// Goes on with the end of the process, as far as it can go now.
    pub(crate) fn check_ending(&mut self, now: Now) {
        let Some(ending) = &self.ending else { return };
        if ending.finished {
            return;
        }
        if let Some(until) = ending.until {
            let has_legs = !self.session_legs.is_empty();
            if has_legs && until > now.instant {
                return;
            }
            return self.end_everything(now);
        }
        let Some(ending) = &mut self.ending else { return };
        let is_due = ending.deadline.is_some_and(|at| at <= now.instant);
        if is_due || (ending.goodbyes == 0 && self.upstream_conns.is_empty()) {
            ending.finished = true;
            self.actions.push_back(Action::Finished);
        }
    }

    fn end_everything(&mut self, now: Now) {
        let deadline = now.instant + self.config.times.shutdown;
        if let Some(ending) = &mut self.ending {
            ending.until = None;
            ending.deadline = Some(deadline);
            ending.armed = None;
            self.timers.arm(&mut ending.armed, deadline, Wake::Ending);
        }
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for key in sessions {
            self.end_session(now, key, "shutdown", true);
        }
        let pulls: Vec<StreamId> = self
            .catalog
            .streams
            .values()
            .filter(|stream| matches!(stream.source, Source::Pull(_)))
            .map(|stream| stream.id)
            .collect();
        for id in pulls {
            if let Some(stream) = self.catalog.get_mut(id) {
                stream.waiting.clear();
            }
            self.update_demand(now, id);
            if let Some(upstream) = self.upstream_mut(id) {
                upstream.close(now.instant);
            }
            self.run_upstream(now, id);
        }
        self.check_ending(now);
    }
}
