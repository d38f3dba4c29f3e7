//! What is going on, for people and programs: `GET /v1/streams`, and the sample behind `/metrics`.
//!
//! Pure: merges what the session logic knows with one reading of the data path.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use msm_control_plane::status::StreamStatus;
use msm_graph::StreamId;
use msm_runtime::metrics::{RtpTotals, Sample, StreamSample};
use serde::Serialize;

use crate::kernel::batching::BatchingStatus;
use crate::kernel::former::FormerViewer;
use crate::kernel::hop::{Rung, UserReason};
use crate::kernel::service::InterfaceStatus;
use crate::stats::{LegStats, Snapshot, StreamStats};

/// Body of `GET /v1/streams`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Streams {
    /// Every stream that is configured or published, by name.
    pub streams: Vec<Stream>,
    /// The fast path.
    pub kernel: Kernel,
}

/// The fast path of the process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernel {
    /// Whether there is one.
    pub on: bool,
    /// Why not; `null` if there is one.
    pub reason: Option<String>,
    /// Interfaces that were tried, by name.
    pub interfaces: Vec<Interface>,
    /// Viewers from before a restart that the kernel serves on and that have not set up again, the first 1,024 by
    /// address. They are in no stream's `legs`.
    pub former_viewers: Vec<Former>,
}

/// A viewer without a session, one entry per track.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Former {
    /// Address and port that its media goes to.
    pub to: String,
    /// RTP packets sent to it, before the restart and since.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl From<&FormerViewer> for Former {
    fn from(viewer: &FormerViewer) -> Self {
        Self { to: viewer.to.to_string(), packets: viewer.packets, bytes: viewer.bytes }
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What carries the media that comes in by it: `tcx`, `tc` or `user`.
    pub rung: &'static str,
    /// Why it is by no better one; `null` on `tcx`.
    pub reason: Option<String>,
    /// Whether bursts that come in by it are merged; `null` while the kernel forwards nothing of it.
    pub batching: Option<Batching>,
}

/// Merging the bursts of sources.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Batching {
    /// Bursts are merged.
    pub on: bool,
    /// Mean burst in packets; `null` while no media comes.
    pub burst: Option<f64>,
    /// Seconds since it was switched last; `null` if it never was.
    pub since_seconds: Option<u64>,
    /// Why it could not be switched; `null` otherwise.
    pub reason: Option<String>,
}

impl From<&BatchingStatus> for Batching {
    fn from(status: &BatchingStatus) -> Self {
        Self {
            on: status.on,
            burst: status.burst,
            since_seconds: status.since.map(|since| since.as_secs()),
            reason: status.refused.clone(),
        }
    }
}

impl From<&Result<Vec<InterfaceStatus>, UserReason>> for Kernel {
    fn from(found: &Result<Vec<InterfaceStatus>, UserReason>) -> Self {
        let interface = |status: &InterfaceStatus| Interface {
            name: status.interface.clone(),
            rung: status.rung.as_ref().map_or(Rung::User, |rung| *rung).as_str(),
            reason: status.rung.as_ref().err().map(ToString::to_string).or_else(|| status.why.clone()),
            batching: status.batching.as_ref().map(Batching::from),
        };
        Self {
            on: found.is_ok(),
            reason: found.as_ref().err().map(ToString::to_string),
            interfaces: found.iter().flatten().map(interface).collect(),
            former_viewers: Vec::new(),
        }
    }
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stream {
    /// Path without the leading `/`.
    pub name: String,
    /// What it is doing, from a closed set.
    pub state: &'static str,
    /// Why its source could not be reached or was lost, in people's words; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where its media comes from.
    pub source: Source,
    /// Tracks in SDP order; empty until they are known.
    pub tracks: Vec<Track>,
    /// Viewers.
    pub legs: Vec<Leg>,
}

/// Where the media of a stream comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// `pull` or `publish`.
    pub kind: &'static str,
    /// `udp` or `tcp`; `null` while nothing is set up.
    pub transport: Option<&'static str>,
    /// Address of the camera's or publisher's RTSP connection.
    pub peer: Option<String>,
}

/// One track as it arrives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Track {
    /// Encoding name.
    pub codec: String,
    /// RTP clock rate in Hz.
    pub clock_rate: u32,
    /// RTP packets that arrived.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Gaps on arrival.
    pub lost: u64,
    /// Interarrival jitter (RFC 3550 A.8).
    pub jitter_seconds: f64,
    /// Present and true when this track delivers nothing while others of the stream do.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
}

/// One viewer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Leg {
    /// Address of its RTSP connection.
    pub peer: String,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// What carries it: `tcx`, `tc` or `user`; where its tracks differ, the slowest.
    pub rung: &'static str,
    /// Why it is not in the kernel; `null` if it is.
    pub rung_reason: Option<String>,
    /// `disabled`, `armed`, `active` or `paused`.
    pub state: &'static str,
    /// RTP packets sent to it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lost by the viewer's own report; `null` until it made one.
    pub lost: Option<u64>,
    /// Jitter by the viewer's own report; `null` until it made one.
    pub jitter_seconds: Option<f64>,
    /// Packets it did not get, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

impl From<&LegStats> for Leg {
    fn from(leg: &LegStats) -> Self {
        Self {
            peer: leg.peer.to_string(),
            transport: leg.transport,
            rung: leg.rung.as_str(),
            rung_reason: leg.rung_reason.as_ref().map(ToString::to_string),
            state: leg.state,
            packets: leg.packets,
            bytes: leg.bytes,
            lost: leg.lost,
            jitter_seconds: leg.jitter.map(|jitter| jitter.as_secs_f64()),
            dropped: leg.dropped.iter().copied().collect(),
        }
    }
}

/// Everything that is known about the streams.
pub fn streams(
    plane: &[StreamStatus],
    snapshot: &Snapshot,
    kernel: &Result<Vec<InterfaceStatus>, UserReason>,
    former: &[FormerViewer],
) -> Streams {
    let by_id = index(snapshot);
    let mut streams: Vec<_> = plane.iter().map(|status| stream(status, data_of(&by_id, status))).collect();
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    let former_viewers = former.iter().map(Former::from).collect();
    Streams { streams, kernel: Kernel { former_viewers, ..kernel.into() } }
}

fn index(snapshot: &Snapshot) -> HashMap<StreamId, &StreamStats> {
    snapshot.streams.iter().map(|stats| (stats.stream, stats)).collect()
}

fn data_of<'a>(by_id: &HashMap<StreamId, &'a StreamStats>, status: &StreamStatus) -> Option<&'a StreamStats> {
    by_id.get(&status.stream?).copied()
}

fn stream(status: &StreamStatus, data: Option<&StreamStats>) -> Stream {
    let tracks = data.map(|data| data.tracks.as_slice()).unwrap_or_default();
    let source = Source {
        kind: status.source.kind,
        transport: status.source.transport.or_else(|| tracks.iter().find_map(|track| track.transport)),
        peer: status.source.peer.map(|peer| peer.to_string()),
    };
    Stream {
        name: status.name.clone(),
        state: status.state,
        error: status.error.clone(),
        source,
        tracks: tracks
            .iter()
            .map(|track| Track {
                codec: track.codec.clone(),
                clock_rate: track.clock_rate,
                packets: track.packets,
                bytes: track.bytes,
                lost: track.lost,
                jitter_seconds: track.jitter.as_secs_f64(),
                silent: status.silent_tracks.contains(&track.track),
            })
            .collect(),
        legs: data.iter().flat_map(|data| &data.legs).map(Leg::from).collect(),
    }
}

/// The same reading as metrics: sums over legs and tracks, no viewer by itself.
pub fn sample(plane: &[StreamStatus], sessions: usize, snapshot: &Snapshot) -> Sample {
    let by_id = index(snapshot);
    let mut threads: Vec<_> = snapshot.threads.iter().map(|t| (t.thread.clone(), t.cpu)).collect();
    threads.push(("control".to_owned(), thread_cpu()));
    Sample {
        streams: plane.iter().map(|status| stream_sample(status, data_of(&by_id, status))).collect(),
        dropped: snapshot.drops.clone(),
        passed: snapshot.passes.clone(),
        queues: snapshot.queues.iter().map(|q| (q.queue, q.depth, q.dropped)).collect(),
        sockets: snapshot.sockets.iter().map(|s| (s.socket, s.receive_buffer, s.overflows)).collect(),
        threads,
        sessions: sessions as u64,
    }
}

fn stream_sample(status: &StreamStatus, data: Option<&StreamStats>) -> StreamSample {
    let mut sample =
        StreamSample { name: status.name.clone(), state: status.state, ..StreamSample::default() };
    let Some(data) = data else { return sample };
    for track in &data.tracks {
        sample.tracks.push((track.codec.clone(), track.clock_rate));
        sample.received.packets += track.packets;
        sample.received.bytes += track.bytes;
        sample.received.lost += track.lost;
        sample.received.reordered += track.reordered;
        sample.received.duplicate += track.duplicate;
        sample.received.jitter = sample.received.jitter.max(track.jitter);
    }
    for rung in [Rung::Tcx, Rung::Tc, Rung::User] {
        for kind in ["udp", "tcp"] {
            let legs = data.legs.iter().filter(|leg| leg.rung == rung && leg.transport == kind).count();
            if legs > 0 {
                sample.legs.push((rung.as_str(), kind, legs as u64));
            }
        }
    }
    for reason in data.legs.iter().filter_map(|leg| leg.rung_reason.as_ref()).map(UserReason::as_str) {
        match sample.user_legs.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, legs)) => *legs += 1,
            None => sample.user_legs.push((reason, 1)),
        }
    }
    sample.round_trip = data.legs.iter().filter_map(|leg| leg.rtt).max();
    sample.sent = RtpTotals {
        packets: data.out_packets,
        bytes: data.out_bytes,
        jitter: data.legs.iter().filter_map(|leg| leg.jitter).max().unwrap_or_default(),
        ..RtpTotals::default()
    };
    sample
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
