//! The RTP times of a PLAY's answer: one moment for all tracks (RTSP-31).
//!
//! Players put picture and sound together by these until the first sender report, and step their clock if
//! that says something else (RTSP-32). Gates open at packets, and packets of two tracks are never of the
//! same moment; only the source's own reports tell which are.

use crate::clock::ClockRate;
use crate::input::TrackInput;
use crate::leg::LegTrack;
use crate::timeline::ticks_of;

/// Tracks whose reports lie further apart than this do not have one clock.
const ONE_CLOCK: i64 = 1_000_000;

/// Where a track starts: its RTP time, and the source's wall clock at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// RTP timestamp, as it leaves.
    pub rtptime: u32,
    /// Ticks per second of that timestamp.
    pub clock: ClockRate,
    /// Microseconds since any epoch, the same for all tracks of a source.
    pub wall: i64,
}

impl LegTrack {
    /// The moment at which this track starts; `None` while that, or the source's clock, is not known.
    pub fn moment(&self, input: &TrackInput) -> Option<Moment> {
        let (start, projection) = (self.start?, self.projection?);
        if projection.run() != input.current()?.run {
            return None;
        }
        let wall = input.wall(start.rtptime.wrapping_sub(projection.dts()))?;
        Some(Moment { rtptime: start.rtptime, clock: input.clock(), wall })
    }
}

/// The RTP times of the earliest of these moments; of each its own where a source's tracks have no common
/// clock.
pub fn align(moments: &[Moment]) -> Vec<u32> {
    let earliest = moments.iter().map(|moment| moment.wall).min().unwrap_or(0);
    let one_clock = moments.iter().all(|moment| moment.wall.saturating_sub(earliest) <= ONE_CLOCK);
    let before = |moment: &Moment| {
        let micros = if one_clock { moment.wall.saturating_sub(earliest) } else { 0 };
        moment.rtptime.wrapping_sub(ticks_of(micros, moment.clock) as u32)
    };
    moments.iter().map(before).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codec;
    use crate::leg::LegConfig;
    use crate::testing::{Rig, Source, config};

    fn moment(rtptime: u32, hz: u32, wall: i64) -> Moment {
        Moment { rtptime, clock: ClockRate::new(hz).expect("a clock rate"), wall }
    }

    #[test]
    fn all_tracks_name_the_moment_of_the_earliest() {
        let picture = moment(100, 90_000, 5_040_000);
        let sound = moment(50_000, 8_000, 5_000_000);
        assert_eq!(align(&[picture, sound]), [100_u32.wrapping_sub(3_600), 50_000]);
        assert_eq!(align(&[sound, picture]), [50_000, 100_u32.wrapping_sub(3_600)]);
        assert_eq!(align(&[picture]), [100]);
        assert_eq!(align(&[]), [0_u32; 0]);
    }

    #[test]
    fn a_viewer_that_joins_late_learns_the_moment_from_the_reports_however_late_packets_are() {
        let mut rig = Rig::new(Codec::Other);
        let mut source = Source { ssrc: 7, seq: 10, ts: 90_000 };
        let report = source.sender_report(100 << 32);
        // Frame and report are of one moment; the packet comes 60 ms late, the viewer 30 ms after it.
        rig.tick(60);
        let packet = source.packet(b"x");
        rig.receive(&[packet]);
        let mut leg = LegTrack::new(LegConfig::default());
        rig.tick(30);
        leg.arm(rig.now, &rig.input);
        assert_eq!(leg.moment(&rig.input), None, "no report yet");
        rig.input.handle_rtcp(rig.now, &report).expect("a report");
        let moment = leg.moment(&rig.input).expect("known by the report");
        assert_eq!((moment.rtptime, moment.wall), (90_000 + 30 * 90, 100_030_000));

        // Its next life has other stamps; the leg's own go on, and name the same moments.
        rig.tick(5_000);
        rig.input.replace(rig.now, config(Codec::Other));
        let mut source = Source { ssrc: 8, seq: 500, ts: 1 };
        let report = source.sender_report(105 << 32);
        let packet = source.packet(b"y");
        rig.relay(&mut leg, &[packet]);
        rig.input.handle_rtcp(rig.now, &report).expect("a report");
        leg.arm(rig.now, &rig.input);
        let moment = leg.moment(&rig.input).expect("known by the report");
        assert!(!leg.is_transparent() && moment.rtptime != 1, "{moment:?}");
        assert_eq!(moment.wall, 105_000_000);
    }

    #[test]
    fn tracks_without_a_common_clock_keep_their_own() {
        let picture = moment(100, 90_000, 0);
        let sound = moment(50_000, 8_000, i64::MAX);
        assert_eq!(align(&[picture, sound]), [100, 50_000]);
        let sound = moment(50_000, 8_000, 1_000_001);
        assert_eq!(align(&[picture, sound]), [100, 50_000]);
    }
}
