//! What a source is sent: receiver reports and requests for key frames (RTP-22, RTP-25).

use std::time::Instant;

use super::{InputOutput, TrackInput};
use crate::report::{self, PLI_SOURCE_INTERVAL, RR_INTERVAL};
use crate::rtcp::feedback::write_pli;
use crate::rtcp::rr::write_rr;
use crate::rtcp::sdes::write_cname;

impl TrackInput {
    /// A leg wants a key frame. At most two requests per second go up, and none to a source that has no
    /// feedback (RTP-25). Returns whether one is on its way.
    pub fn request_key_frame(&mut self, now: Instant) -> bool {
        let Some(current) = self.current.filter(|_| self.config.feedback) else { return false };
        if !self.key_frames.admit(now, PLI_SOURCE_INTERVAL) {
            return false;
        }
        let mut out = self.receiver_report(now);
        write_pli(&mut out, self.config.own_ssrc, current.ssrc);
        self.output(InputOutput::Rtcp(out));
        true
    }

    /// Whether a receiver report will be sent: what is known elsewhere is to be taken in first.
    pub fn is_report_due(&self, now: Instant) -> bool {
        self.rr.due() <= now
    }

    /// Sends the receiver report if it is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.rr.take(now) {
            let report = self.receiver_report(now);
            self.output(InputOutput::Rtcp(report));
        }
    }

    /// RR and SDES: one stream of them per source, whatever the number of viewers (RTP-22). Without a
    /// block when nothing came for two intervals (RFC 3550 section 6.4).
    fn receiver_report(&mut self, now: Instant) -> Vec<u8> {
        let heard = self.last_arrival.is_some_and(|at| now.saturating_duration_since(at) < 2 * RR_INTERVAL);
        let last_sr = self.sender_report();
        let reception = self.current.filter(|_| heard).and_then(|current| {
            let reception = self.stats.report()?;
            Some(report::block(current.ssrc, &reception, last_sr.as_ref(), now))
        });
        let mut out = Vec::with_capacity(64);
        write_rr(&mut out, self.config.own_ssrc, reception.as_slice());
        write_cname(&mut out, self.config.own_ssrc, self.config.cname.as_bytes());
        out
    }
}
