//! What follows when a camera refuses, fails or is lost: the other transport, another attempt, or rest.

use std::time::Instant;

use msm_rtsp::auth::AuthFailure;
use msm_rtsp::client::{ClientError, ClientOutput, Step};
use msm_rtsp::message::Status;
use msm_rtsp::transport::LowerTransport;

use super::{BASIC_NOT_ALLOWED, FAILURES_PER_LINE, LOST, Phase, UNAUTHORIZED, Upstream, UpstreamOutput};
use crate::config::PullTransport;

impl Upstream {
    pub(super) fn handle_failure(&mut self, now: Instant, error: ClientError) {
        let is_auto = self.route.transport == PullTransport::Auto;
        match error {
            ClientError::Refused { step: Step::Setup(_), status: Status::UNSUPPORTED_TRANSPORT }
                if is_auto =>
            {
                let is_first = self.agreed.iter().all(Option::is_none);
                match self.lower {
                    LowerTransport::Udp if !self.refused_tcp => {
                        self.prefers_tcp = true;
                        self.outputs.push_back(UpstreamOutput::Note("upstream.fallback", "461"));
                    }
                    LowerTransport::Tcp if !self.refused_tcp => {
                        // It took UDP before, or never said: UDP once more, then that is its answer.
                        self.refused_tcp = true;
                        self.prefers_tcp = false;
                    }
                    _ => {
                        self.refused_tcp = false;
                        return self.fail(now, Status::BAD_GATEWAY, "transport");
                    }
                }
                if is_first { self.open(now) } else { self.reopen(now, "transport") }
            }
            // A media that cannot be set up does not take the others with it.
            ClientError::Refused { step: Step::Setup(media), status }
                if self.media.len() > 1 && status != Status::NOT_ENOUGH_BANDWIDTH =>
            {
                self.outputs.push_back(UpstreamOutput::Note("upstream.media_refused", "setup"));
                self.next = media + 1;
                self.set_up_next(now);
            }
            ClientError::Timeout(_) => {
                self.fail_with(now, Status::GATEWAY_TIMEOUT, "timeout", error.to_string());
            }
            ClientError::Unauthorized(AuthFailure::BasicNotAllowed) => {
                self.fail(now, Status::BAD_GATEWAY, BASIC_NOT_ALLOWED);
            }
            ClientError::Unauthorized(_) => {
                self.fail_with(now, Status::BAD_GATEWAY, UNAUTHORIZED, error.to_string());
            }
            ClientError::Refused { .. } => {
                self.fail_with(now, Status::BAD_GATEWAY, "refused", error.to_string());
            }
            ClientError::Malformed { .. } => {
                self.fail_with(now, Status::BAD_GATEWAY, "malformed", error.to_string());
            }
        }
    }

    /// Sound comes by UDP and the picture never did: its packets are larger, and what drops those on the way
    /// lets TCP pass (RTSP-15). Once only: a camera without picture has none by TCP either.
    pub(crate) fn observe_missing_picture(&mut self, now: Instant) {
        let may_fall_back = self.phase == Phase::Playing
            && self.lower == LowerTransport::Udp
            && self.route.transport == PullTransport::Auto
            && !self.refused_tcp;
        if may_fall_back {
            self.prefers_tcp = true;
            self.outputs.push_back(UpstreamOutput::Note("upstream.fallback", "no_picture"));
            self.reopen(now, "fallback");
        }
    }

    pub(super) fn take_inputs_away(&mut self) {
        self.stage = self.stage.wrapping_add(1);
        if self.has_inputs {
            self.has_inputs = false;
            self.outputs.push_back(UpstreamOutput::Away);
        }
    }

    pub(super) fn drop_conn(&mut self) {
        self.client = None;
        self.peer = None;
        self.local = None;
        if let Some(conn) = self.conn.take() {
            self.outputs.push_back(UpstreamOutput::Close(conn));
        }
    }

    pub(super) fn fail(&mut self, now: Instant, status: Status, reason: &'static str) {
        self.fail_with(now, status, reason, String::new());
    }

    /// Opening did not work: tells who waits, and tries again while viewers stay.
    pub(super) fn fail_with(&mut self, now: Instant, status: Status, reason: &'static str, detail: String) {
        self.take_inputs_away();
        self.drop_conn();
        self.linger = None;
        self.probe = None;
        // A refusal for want of credentials is never answered from memory (RTSP-28).
        self.failure = (![UNAUTHORIZED, BASIC_NOT_ALLOWED].contains(&reason)).then_some((now, status));
        let is_asked_for = std::mem::take(&mut self.demand.waiting);
        let is_news = is_asked_for || self.failures.is_multiple_of(FAILURES_PER_LINE);
        self.failures = self.failures.wrapping_add(1);
        self.back_off(now);
        self.outputs.push_back(UpstreamOutput::Failed { status, reason, detail, is_news });
        self.tell_if_gone();
    }

    /// A camera that played is gone; the legs stay.
    pub(super) fn lose(&mut self, now: Instant, reason: &'static str) {
        self.take_inputs_away();
        self.drop_conn();
        self.linger = None;
        self.probe = None;
        self.outputs.push_back(UpstreamOutput::Note(LOST, reason));
        self.back_off(now);
        self.tell_if_gone();
    }

    fn back_off(&mut self, now: Instant) {
        if !self.demand.playing {
            return self.enter(Phase::Idle);
        }
        let (first, longest) = self.times.backoff;
        let wait = first.saturating_mul(1 << self.attempts.min(8)).min(longest);
        self.attempts = self.attempts.saturating_add(1);
        self.enter(Phase::Backoff);
        self.deadline = Some(now + wait);
    }

    /// Takes leave of the camera as well as it can be done without waiting, and dials it anew.
    pub(super) fn reopen(&mut self, now: Instant, reason: &'static str) {
        self.outputs.push_back(UpstreamOutput::Note("upstream.reopen", reason));
        self.take_inputs_away();
        if let Some(client) = &mut self.client {
            client.teardown(now);
            while let Some(output) = client.poll_output() {
                if let (ClientOutput::Send(request), Some(conn)) = (output, self.conn) {
                    self.outputs.push_back(UpstreamOutput::Send(conn, request));
                }
            }
        }
        self.drop_conn();
        self.linger = None;
        self.probe = None;
        self.enter(Phase::Idle);
        self.progress(now);
        self.tell_if_gone();
    }

    /// Nothing is open and nothing is wanted. What the camera said about transports is forgotten: the way to
    /// it may have changed when it is opened the next time (RTSP-15).
    pub(super) fn tell_if_gone(&mut self) {
        if self.phase == Phase::Idle {
            self.prefers_tcp = false;
            self.refused_tcp = false;
            self.outputs.push_back(UpstreamOutput::Gone);
        }
    }

    pub(super) fn finish_closing(&mut self, now: Instant) {
        self.drop_conn();
        self.rest(now);
    }

    /// Nothing is open any more; demand that came meanwhile starts over.
    pub(super) fn rest(&mut self, now: Instant) {
        self.take_inputs_away();
        self.drop_conn();
        self.linger = None;
        self.enter(Phase::Idle);
        self.progress(now);
        self.tell_if_gone();
    }
}
