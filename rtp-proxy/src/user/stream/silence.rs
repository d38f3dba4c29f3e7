//! Who sends nothing: a whole source, or one of its tracks beside the others.

use std::time::{Duration, Instant};

use msm_graph::{MediaKind, Report};

use super::{Stream, Track};
use crate::user::worker::Shared;

/// How long the input of a track has been silent, and whether it ever delivered; `None` without an input.
fn silence(track: &Track, now: Instant) -> Option<(Duration, bool)> {
    let input = track.input.as_ref()?;
    let arrived = track.media.last_arrival().filter(|at| *at >= input.opened);
    Some((now.duration_since(arrived.unwrap_or(input.opened)), input.delivered || arrived.is_some()))
}

impl Stream {
    /// Tells what has been silent for the row's time, again and again while it lasts.
    pub(super) fn tell_silence(&mut self, now: Instant, shared: &Shared) {
        let (stream, patience) = (self.id, self.silence);
        let is_due = |told: Option<Instant>| told.is_none_or(|told| now.duration_since(told) >= patience);
        let inputs = self.tracks.iter().filter_map(|track| silence(track, now));
        let Some((silent_for, ever)) = inputs.reduce(|a, b| (a.0.min(b.0), a.1 || b.1)) else { return };
        if silent_for >= patience {
            if is_due(self.silent_reported) {
                self.silent_reported = Some(now);
                shared.report(Report::InputSilent { stream, silent_for, ever });
            }
            return;
        }
        for track in &mut self.tracks {
            // Metadata come when something happens.
            let is_steady = matches!(track.row.kind, MediaKind::Video | MediaKind::Audio);
            let Some((silent_for, ever)) = silence(track, now).filter(|_| is_steady) else { continue };
            let (id, Some(input)) = (track.row.track, &mut track.input) else { continue };
            if silent_for >= patience && is_due(input.silent_reported) {
                input.silent_reported = Some(now);
                shared.report(Report::TrackSilent { stream, track: id, silent_for, ever });
            }
        }
    }
}
