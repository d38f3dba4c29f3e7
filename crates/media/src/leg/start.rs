//! Where a leg starts, and what a PLAY's answer says of it: its first packet, and RTP times of one moment for
//! all tracks (RTSP-31).
//!
//! Players put picture and sound together by these until the first sender report, and step their clock if
//! that says something else (RTSP-32). Gates open at packets, and packets of two tracks are never of the
//! same moment; only the source's own reports tell which are.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Gate, LegTrack};
use crate::clock::ClockRate;
use crate::input::{Arrival, TrackInput};
use crate::project::{Head, Projection};
use crate::timeline::ticks_of;

/// Tracks whose reports lie further apart than this do not have one clock.
const ONE_CLOCK: i64 = 1_000_000;

/// Where the gate of a leg opened: exactly what RTP-Info says (RTSP-31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Sequence number of the first packet that leaves.
    pub seq: u16,
    /// RTP timestamp, as it leaves, of the moment the gate opened.
    pub rtptime: u32,
    /// SSRC of everything that leaves.
    pub ssrc: u32,
}

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

/// A frame of which a leg would get a part only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Missed {
    run: u32,
    ts: u32,
    /// Highest extended number that had come: what comes late or again from before starts nothing.
    up_to: u64,
}

impl Missed {
    pub(super) fn has(&self, arrival: &Arrival) -> bool {
        self.run == arrival.run && (self.ts == arrival.ts || arrival.ext <= self.up_to)
    }
}

impl LegTrack {
    /// Opens the gate with the next packet of the input. Returns where that is; `None` while the input
    /// has delivered nothing, or amid a frame, of which a viewer would get a part that some take for an error
    /// (retina): then the gate opens with the first packet after that, and [`Self::start`] knows where. On an
    /// open gate, where the leg stands now (PLAY in Playing, RTSP-26).
    pub fn arm(&mut self, now: Instant, input: &TrackInput) -> Option<Start> {
        let Some(current) = input.newest() else {
            self.wait_behind(None);
            return None;
        };
        if !matches!(self.gate, Gate::Open { .. })
            && let Some(frame) = input.frame_in_progress(now)
        {
            self.wait_behind(Some(Missed { run: current.run, ts: frame, up_to: current.head.ext }));
            return None;
        }
        let clock = input.clock();
        let next = current.head.ext + 1;
        let next_ts = current.head.ts_at(now, clock);
        let projection = match self.projection {
            None => Projection::transparent(current.run, current.ssrc),
            Some(mut projection) => {
                if projection.run() != current.run {
                    // The source changed while the gate was shut: the leg's sequence and timeline go on.
                    let out = self.continuation(&projection, now, input, (current.run, next_ts));
                    projection.splice(current.run, (next as u16, next_ts), out);
                    self.splicing = None;
                    self.sent.splices += 1;
                }
                projection
            }
        };
        if !matches!(self.gate, Gate::Open { .. }) || self.projection != Some(projection) {
            self.gate = Gate::Open { from: next };
        }
        self.projection = Some(projection);
        // What is promised counts as sent: a splice before the first packet starts exactly there.
        self.head = Some(Head { ext: next - 1, ts: next_ts, at: now });
        let mapped = projection.map(next as u16, next_ts);
        self.start = Some(Start { seq: mapped.seq, rtptime: mapped.ts, ssrc: mapped.ssrc });
        self.start
    }

    fn wait_behind(&mut self, missed: Option<Missed>) {
        if self.gate == Gate::Disabled {
            self.gate = Gate::Waiting;
            self.start = None;
        }
        self.missed = missed;
    }

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
    use crate::leg::LegConfig;
    use crate::rtp::PacketBuilder;
    use crate::testing::{Rig, Source, config, fields};
    use crate::{Codec, InputConfig};

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
    fn a_viewer_that_joins_amid_a_frame_starts_with_the_next_one() {
        let mut rig = Rig::new(Codec::H264);
        let mut source = Source { ssrc: 7, seq: 10, ts: 90_000 };
        let mut frame = |packets: usize, is_whole: bool| {
            source.ts = source.ts.wrapping_add(3_600);
            (1..=packets)
                .map(|number| {
                    let packet = PacketBuilder::new(96, source.seq, source.ts, source.ssrc);
                    source.seq += 1;
                    if number == packets && is_whole { packet.marker() } else { packet }.build(b"x")
                })
                .collect::<Vec<_>>()
        };
        let numbers = |packets: &[Vec<u8>]| fields(packets).iter().map(|(seq, ..)| *seq).collect::<Vec<_>>();
        let arm = |rig: &Rig| {
            let mut leg = LegTrack::new(LegConfig::default());
            let start = leg.arm(rig.now, &rig.input);
            (leg, start.map(|start| start.seq))
        };

        // Packets 10 and 11 of 10 to 13 are gone when it comes.
        let first = frame(4, true);
        rig.receive(&first[..2]);
        let (mut amid, start) = arm(&rig);
        assert_eq!(start, None);
        assert_eq!(rig.relay(&mut amid, &first[2..]), [[0_u8; 0]; 0]);
        // The mark ended the frame: what is next is known before it comes.
        assert_eq!(amid.arm(rig.now, &rig.input).map(|start| start.seq), Some(14));
        let (mut behind, start) = arm(&rig);
        assert_eq!(start, Some(14));
        rig.tick(40);
        let second = frame(2, false);
        assert_eq!(numbers(&rig.relay(&mut amid, &second)), [14, 15]);
        assert_eq!(numbers(&rig.sends(&mut behind, &second)), [14, 15]);

        // A source that marks nothing: the next frame's first packet tells, or silence.
        let (mut unmarked, start) = arm(&rig);
        assert_eq!(start, None);
        rig.tick(40);
        let third = frame(3, false);
        assert_eq!(numbers(&rig.relay(&mut unmarked, &third)), [16, 17, 18]);
        assert_eq!(unmarked.start().map(|start| start.seq), Some(16), "RTSP-31: exactly");
        let (mut late, start) = arm(&rig);
        assert_eq!(start, None);
        rig.tick(20);
        assert_eq!(late.arm(rig.now, &rig.input).map(|start| start.seq), Some(19));
    }

    #[test]
    fn sound_has_no_frames_to_wait_for() {
        let mut rig = Rig::new(Codec::Other);
        let sound = InputConfig { clock: ClockRate::new(8_000).expect("a rate"), ..config(Codec::Other) };
        rig.input = TrackInput::new(rig.now, sound);
        let packet = Source { ssrc: 7, seq: 10, ts: 0 }.packet(b"x");
        rig.receive(&[packet]);
        let mut leg = LegTrack::new(LegConfig::default());
        assert_eq!(leg.arm(rig.now, &rig.input).map(|start| start.seq), Some(11));
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
