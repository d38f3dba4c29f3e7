//! What a stream has counted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Entry, LegMeta, Stream, Track};
use crate::stats::{LegStats, StreamStats, TrackStats};
use crate::user::leg::{Drops, GateState};
use crate::user::worker::Shared;

impl Stream {
    pub(crate) fn stats(&self, now: Instant, shared: &Shared) -> StreamStats {
        let tracks = self.tracks.iter().map(|track| track_stats(track, now)).collect();
        StreamStats {
            stream: self.id,
            name: self.name.clone(),
            worker: shared.index,
            tracks,
            legs: self.legs.iter().map(|meta| self.leg_stats(meta, now, shared)).collect(),
            out_packets: self.out_packets,
            out_bytes: self.out_bytes,
            source_switches: self.switches,
        }
    }

    fn leg_stats(&self, meta: &LegMeta, now: Instant, shared: &Shared) -> LegStats {
        let (rung, rung_reason) = self.rung_of(meta.leg, shared);
        let outs: Vec<_> = self
            .tracks
            .iter()
            .filter_map(|track| Some((track, track.legs.iter().find(|out| out.leg == meta.leg)?)))
            .collect();
        let mut drops = Drops::default();
        let (mut lost, mut jitter, mut rtt, mut last) = (None, None, None, None);
        for (track, out) in &outs {
            drops.add(&out.drops.get());
            for (reason, count) in out.media.drops().iter() {
                drops.count(reason, count);
            }
            if let Some(report) = out.media.report() {
                lost = Some(lost.unwrap_or(0) + u64::try_from(report.cumulative_lost).unwrap_or(0));
                let clock = f64::from(track.row.clock_rate.max(1));
                jitter = jitter.max(Some(Duration::from_secs_f64(f64::from(report.jitter) / clock)));
                rtt = report.rtt.or(rtt);
                last = last.max(Some(report.at));
            }
        }
        LegStats {
            leg: meta.leg,
            session: meta.session.clone(),
            peer: meta.peer,
            rung,
            rung_reason,
            transport: outs.first().map_or("udp", |(_, out)| out.transport()),
            state: outs
                .iter()
                .map(|(_, out)| out.state)
                .max_by_key(|s| *s as u8)
                .unwrap_or(GateState::Disabled)
                .as_str(),
            packets: outs.iter().map(|(_, out)| out.packets).sum(),
            bytes: outs.iter().map(|(_, out)| out.bytes).sum(),
            lost,
            jitter,
            rtt,
            last_report: last.map(|at| now.duration_since(at)),
            dropped: drops.named(),
        }
    }

    /// Counters of legs that are attached now.
    pub(crate) fn all_drops(&self) -> Drops {
        let mut all = self.drops;
        for out in self.tracks.iter().flat_map(|track| &track.legs) {
            all.add(&out.drops.get());
            for (reason, count) in out.media.drops().iter() {
                all.count(reason, count);
            }
        }
        all
    }
}

fn track_stats(track: &Track, now: Instant) -> TrackStats {
    let stats = track.media.stats();
    let totals = stats.totals();
    let (transport, peer) = match track.input.as_ref().map(|input| &input.entry) {
        Some(Entry::Udp { peer, lock, .. }) => {
            (Some("udp"), Some(SocketAddr::new(*peer, lock.port().unwrap_or(0))))
        }
        Some(Entry::Channels { peer, .. }) => (Some("tcp"), *peer),
        None => (None, None),
    };
    TrackStats {
        track: track.row.track,
        codec: track.row.codec.clone(),
        clock_rate: track.row.clock_rate,
        packets: totals.packets,
        bytes: totals.bytes,
        lost: u64::try_from(totals.lost()).unwrap_or(0),
        reordered: totals.reordered,
        duplicate: totals.duplicates,
        jitter: Duration::try_from_secs_f64(stats.jitter_seconds()).unwrap_or_default(),
        transport,
        peer,
        last_packet: track.media.last_arrival().map(|at| now.duration_since(at)),
        ssrc: track.media.current().map(|run| run.ssrc),
    }
}
