//! Reports: what we send to sources and viewers, and what we learn from them.
//!
//! Receivers' RTCP ends at every leg; a source sees one reporter, whatever the number of viewers
//! (RTP-22). Owns intervals, limits and the mapping of sender reports; the packets are built in
//! [`crate::rtcp`].

use std::time::{Duration, Instant};

use crate::clock::{RtpTime, from_short, to_short};
use crate::rtcp::rr::ReportBlock;
use crate::rtcp::sr::SenderInfo;
use crate::stats::Reception;

pub mod inventory;

/// Interval of receiver reports towards a source: the minimum of RTP-28 and the maximum of RTSP-24 in
/// one.
pub const RR_INTERVAL: Duration = Duration::from_secs(5);
/// The first one comes sooner (RFC 3550 section 6.2).
pub const RR_FIRST: Duration = Duration::from_millis(2_500);
/// Silence after a request for a key frame went up: at most two per second and source (RTP-25).
pub const PLI_SOURCE_INTERVAL: Duration = Duration::from_millis(500);
/// At most one request per second and leg (RTP-25).
pub const PLI_LEG_INTERVAL: Duration = Duration::from_secs(1);
/// Reports of more than half lost that open the circuit breaker (RTP-29).
pub const BREAKER_REPORTS: u8 = 3;
/// Reports closer than this to the last counted one do not count for the breaker.
const BREAKER_SPACING: Duration = Duration::from_secs(1);

/// When receiver reports are due. Later ones are spread over the last tenth of the interval, so that the
/// reports of many tracks do not leave in step (RFC 3550 section 6.3.5, within the bound of RTSP-24).
#[derive(Debug, Clone)]
pub struct RrSchedule {
    due: Instant,
    state: u32,
}

impl RrSchedule {
    /// A schedule that begins now. `seed`: any number that differs between tracks, such as our SSRC.
    pub fn new(now: Instant, seed: u32) -> Self {
        Self { due: now + RR_FIRST, state: seed }
    }

    /// When the next one is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether one is due now; the next one is scheduled then.
    pub fn take(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let spread = RR_INTERVAL / 10 * (self.state >> 24) / 255;
        self.due = now + RR_INTERVAL * 9 / 10 + spread;
        true
    }
}

/// The last sender report of a source, as report blocks refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastSr {
    /// What it said.
    pub info: SenderInfo,
    /// When it came.
    pub at: Instant,
}

/// The report block about a source from what was received of it and from its last sender report.
///
/// Source: RFC 3550 section 6.4.1; RTP-22.
pub fn block(ssrc: u32, reception: &Reception, last_sr: Option<&LastSr>, now: Instant) -> ReportBlock {
    let (lsr, dlsr) =
        last_sr.map_or((0, 0), |sr| (sr.info.ntp.middle(), to_short(now.saturating_duration_since(sr.at))));
    ReportBlock {
        ssrc,
        fraction_lost: reception.fraction_lost,
        cumulative_lost: reception.cumulative_lost,
        highest: reception.highest,
        jitter: reception.jitter,
        lsr,
        dlsr,
    }
}

/// Maps the sender information of a source to a projected leg: same NTP time, the leg's timestamp of
/// the same moment, the leg's SSRC and the leg's own counts (RTP-21). Exact: no tick is lost.
pub fn map_sr(source: &SenderInfo, ssrc: u32, dts: u32, packets: u64, octets: u64) -> SenderInfo {
    SenderInfo {
        ssrc,
        ntp: source.ntp,
        rtp: RtpTime(source.rtp.0.wrapping_add(dts)),
        packets: packets as u32,
        octets: octets as u32,
    }
}

/// What a viewer reported last about one leg (RTP-23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegReport {
    /// Share of packets lost between the last two reports, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost on the leg, signed 24 bits.
    pub cumulative_lost: i32,
    /// Highest sequence number received, with its cycles.
    pub highest: u32,
    /// Interarrival jitter in ticks.
    pub jitter: u32,
    /// Round trip to the viewer; `None` until it echoed a sender report.
    pub rtt: Option<Duration>,
    /// When the report came.
    pub at: Instant,
}

/// Sender reports that went to a viewer, to compute round trips from its answers: the last four.
#[derive(Debug, Clone, Default)]
pub struct SentSrs {
    sent: [Option<(u32, Instant)>; 4],
    next: usize,
}

impl SentSrs {
    /// Remembers that the report with this middle of its NTP time left now.
    pub fn note(&mut self, lsr: u32, now: Instant) {
        if let Some(slot) = self.sent.get_mut(self.next % 4) {
            *slot = Some((lsr, now));
        }
        self.next = (self.next + 1) % 4;
    }

    /// The round trip that a report block implies, if it names a report that was sent. Never negative:
    /// a delay longer than the time that passed makes it zero.
    pub fn round_trip(&self, lsr: u32, dlsr: u32, now: Instant) -> Option<Duration> {
        if lsr == 0 {
            return None;
        }
        let sent = self.sent.iter().flatten().filter(|(mid, _)| *mid == lsr).map(|(_, at)| *at).max()?;
        Some(now.saturating_duration_since(sent).saturating_sub(from_short(dlsr)))
    }
}

/// Lets the first request for a key frame through, then keeps silent for an interval (RTP-25).
#[derive(Debug, Clone, Default)]
pub struct KeyFrameLimiter {
    last: Option<Instant>,
}

impl KeyFrameLimiter {
    /// Whether a request may pass now; notes it if so.
    pub fn admit(&mut self, now: Instant, interval: Duration) -> bool {
        let admitted = self.last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if admitted {
            self.last = Some(now);
        }
        admitted
    }
}

/// Simplified circuit breaker: opens after three reports in a row of more than half lost.
///
/// Source: RFC 8083 section 4, without 4.3; RTP-29.
#[derive(Debug, Clone, Default)]
pub struct CircuitBreaker {
    bad: u8,
    last: Option<Instant>,
}

impl CircuitBreaker {
    /// Takes the loss of one report. Returns whether the breaker is open.
    pub fn observe(&mut self, now: Instant, fraction_lost: u8) -> bool {
        if fraction_lost <= 128 {
            self.bad = 0;
            self.last = Some(now);
        } else if self.last.is_none_or(|last| now.saturating_duration_since(last) >= BREAKER_SPACING) {
            self.bad = self.bad.saturating_add(1);
            self.last = Some(now);
        }
        self.bad >= BREAKER_REPORTS
    }
}

#[cfg(test)]
mod tests;
