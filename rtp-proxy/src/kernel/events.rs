//! The ring of rare events: log lines at a limited rate, and counts.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use msm_fastpath::{Event, EventKind};
use tracing::field::display;
use tracing::{debug, info, warn};
use zerocopy::FromBytes as _;

use super::load::{Kernel, LoadError};
use super::names::{FlowName, Names};
use super::tables::name;

/// Lines per kind and [`PERIOD`].
const LINES: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);
/// Events that are read before other work gets its turn.
const BATCH: usize = 256;

/// The ring.
pub(super) struct Ring {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Ring {
    /// # Errors
    /// [`LoadError::Map`].
    pub(super) fn open(kernel: &Kernel) -> Result<Self, LoadError> {
        Ok(Self { ring: kernel.open_map(name::EVENTS)? })
    }

    /// Reads events, a batch at most. Returns whether there may be more.
    pub(super) fn read(&mut self, mut event: impl FnMut(Event)) -> bool {
        for _ in 0..BATCH {
            let Some(item) = self.ring.next() else { return false };
            if let Ok((read, _)) = Event::read_from_prefix(&item) {
                event(read);
            }
        }
        true
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

/// What becomes of events.
pub(super) struct Events {
    rates: HashMap<u8, Rate>,
    names: Names,
}

/// Stable name of a kind's log line.
pub(super) fn log_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Started => "kernel.leg_started",
        EventKind::Stopped => "kernel.leg_stopped",
        EventKind::NewSsrc => "kernel.new_ssrc",
        EventKind::NoRtp => "kernel.no_rtp",
        EventKind::BurstLoss => "kernel.burst_loss",
        EventKind::RateLimited => "kernel.rate_limited",
    }
}

impl Events {
    pub(super) fn new(names: Names) -> Self {
        Self { rates: HashMap::new(), names }
    }

    /// Whether a line may be written now, with the number of those that were not since the last one.
    fn line(&mut self, kind: u8, now: Instant) -> Option<u64> {
        let rate = self.rates.entry(kind).or_default();
        if rate.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            rate.since = Some(now);
            rate.lines = 0;
        }
        if rate.lines >= LINES {
            rate.suppressed += 1;
            return None;
        }
        rate.lines += 1;
        Some(std::mem::take(&mut rate.suppressed))
    }

    /// Writes the line of an event. A kind of newer programs is left out.
    pub(super) fn handle(&mut self, event: &Event, now: Instant) {
        let Some(kind) = EventKind::from_u8(event.kind) else { return };
        let Some(suppressed) = self.line(event.kind, now) else { return };
        let (seq, name) = (event.seq, log_name(kind));
        let ssrc = format_args!("{:08x}", event.ssrc);
        // What an earlier process left has no name yet.
        let (flow, stream, source) = match self.names.flow(event.flow) {
            Some(FlowName { stream, source }) => (None, Some(stream), Some(display(source))),
            None => (Some(event.flow), None, None),
        };
        let known = self.names.leg(event.leg);
        let (leg, peer) = (known.is_none().then_some(event.leg), known.map(display));
        match kind {
            EventKind::Started | EventKind::Stopped => {
                let what = match kind {
                    EventKind::Started => "the kernel carries the leg",
                    _ => "the kernel let the leg go",
                };
                debug!(event = name, name = stream, flow, peer, leg, seq, suppressed, "{what}");
            }
            EventKind::NewSsrc => {
                info!(event = name, name = stream, flow, source, %ssrc, seq, suppressed, "an SSRC that is not admitted");
            }
            EventKind::NoRtp => {
                debug!(
                    event = name,
                    name = stream,
                    flow,
                    source,
                    suppressed,
                    "something that is no RTP on an RTP flow"
                );
            }
            EventKind::BurstLoss => {
                warn!(event = name, name = stream, flow, source, %ssrc, seq, suppressed, "many packets in a row are missing on arrival");
            }
            EventKind::RateLimited => {
                warn!(
                    event = name,
                    name = stream,
                    flow,
                    source,
                    suppressed,
                    "more strange packets than a source sends: dropped"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_kind_are_limited_and_the_suppressed_ones_counted() {
        let mut events = Events::new(Names::default());
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(events.line(3, start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(events.line(3, start), None);
        }
        assert_eq!(events.line(5, start), Some(0), "another kind has a rate of its own");
        assert_eq!(events.line(3, start + PERIOD), Some(7));
        assert_eq!(events.line(3, start + PERIOD), Some(0));
    }
}
