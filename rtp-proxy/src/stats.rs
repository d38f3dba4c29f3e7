//! What the data path counts, as one consistent reading.
//!
//! Owns the shape of a snapshot. Who renders it (metrics, `/v1/streams`, the demo) does not matter here.

use std::net::SocketAddr;
use std::time::Duration;

use msm_graph::{LegId, StreamId, TrackId};

use crate::kernel::hop::{Rung, UserReason};

/// Everything the workers know, read at one moment. Totals never decrease while the process lives.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// One entry per stream with a row on this node.
    pub streams: Vec<StreamStats>,
    /// Dropped packets by reason (`msm_fastpath::DropReason` names), over all streams and sockets.
    pub drops: Vec<(&'static str, u64)>,
    /// Packets that the fast path left to the kernel's own stack, by why (`msm_fastpath::PassReason` names).
    pub passes: Vec<(&'static str, u64)>,
    /// Bounded queues by name.
    pub queues: Vec<QueueStats>,
    /// UDP sockets of the data path.
    pub sockets: Vec<SocketStats>,
    /// CPU time by thread of the data path.
    pub threads: Vec<ThreadStats>,
}

impl Snapshot {
    /// Adds what another worker knows. Sums under one name are added up, the smallest buffer counts.
    pub fn merge(&mut self, other: Self) {
        self.streams.extend(other.streams);
        self.threads.extend(other.threads);
        for (sums, counts) in [(&mut self.drops, other.drops), (&mut self.passes, other.passes)] {
            for (reason, count) in counts {
                match sums.iter_mut().find(|(name, _)| *name == reason) {
                    Some((_, sum)) => *sum += count,
                    None => sums.push((reason, count)),
                }
            }
        }
        for queue in other.queues {
            match self.queues.iter_mut().find(|mine| mine.queue == queue.queue) {
                Some(mine) => {
                    mine.depth += queue.depth;
                    mine.dropped += queue.dropped;
                }
                None => self.queues.push(queue),
            }
        }
        for socket in other.sockets {
            match self.sockets.iter_mut().find(|mine| mine.socket == socket.socket) {
                Some(mine) => {
                    mine.receive_buffer = mine.receive_buffer.min(socket.receive_buffer);
                    mine.overflows += socket.overflows;
                }
                None => self.sockets.push(socket),
            }
        }
    }
}

/// One stream.
#[derive(Debug, Clone)]
pub struct StreamStats {
    /// The stream.
    pub stream: StreamId,
    /// Name of its route.
    pub name: String,
    /// Number of the data thread that owns it: its cost is in the CPU time of that thread.
    pub worker: usize,
    /// Tracks of its row.
    pub tracks: Vec<TrackStats>,
    /// Legs that are attached now.
    pub legs: Vec<LegStats>,
    /// Packets sent to legs, those that left included.
    pub out_packets: u64,
    /// RTP bytes sent to legs, those that left included.
    pub out_bytes: u64,
    /// Splices behind the legs' backs: restarts and switches of the source.
    pub source_switches: u64,
}

/// One track as it arrives.
#[derive(Debug, Clone)]
pub struct TrackStats {
    /// The track.
    pub track: TrackId,
    /// Encoding name in upper case.
    pub codec: String,
    /// RTP clock rate in Hz.
    pub clock_rate: u32,
    /// RTP packets admitted, over all generations of the input.
    pub packets: u64,
    /// Bytes of those packets, RTP headers included.
    pub bytes: u64,
    /// Packets lost by RFC 3550 A.3; late and doubled packets make it negative, which reads as 0.
    pub lost: u64,
    /// Packets that arrived behind a later one.
    pub reordered: u64,
    /// Packets that arrived twice.
    pub duplicate: u64,
    /// Interarrival jitter (RFC 3550 A.8).
    pub jitter: Duration,
    /// `udp` or `tcp`; `None` while there is no input.
    pub transport: Option<&'static str>,
    /// Source of the media: RTP address of a UDP input, address of the connection otherwise.
    pub peer: Option<SocketAddr>,
    /// Age of the last admitted packet.
    pub last_packet: Option<Duration>,
    /// SSRC admitted now, as the source sends it.
    pub ssrc: Option<u32>,
}

/// One leg.
#[derive(Debug, Clone)]
pub struct LegStats {
    /// The leg.
    pub leg: LegId,
    /// Log field: first characters of its RTSP session id.
    pub session: String,
    /// The viewer's RTSP address.
    pub peer: SocketAddr,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// What carries it; where its tracks differ, the slowest.
    pub rung: Rung,
    /// Why the worker carries it, if it does.
    pub rung_reason: Option<UserReason>,
    /// `disabled`, `armed`, `active` or `paused`.
    pub state: &'static str,
    /// RTP packets sent, all tracks.
    pub packets: u64,
    /// Bytes of those packets, RTP headers included.
    pub bytes: u64,
    /// Packets lost by the viewer's own receiver reports, summed over tracks; `None` without a report.
    pub lost: Option<u64>,
    /// Worst jitter among its tracks by the viewer's own receiver reports.
    pub jitter: Option<Duration>,
    /// Round trip from LSR and DLSR of its last report.
    pub rtt: Option<Duration>,
    /// Age of its last receiver report.
    pub last_report: Option<Duration>,
    /// Packets that this leg did not get, by reason.
    pub dropped: Vec<(&'static str, u64)>,
}

/// One named queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// Name, stable: `interleaved`, `frames`, `commands`, `reports`.
    pub queue: &'static str,
    /// Entries (or bytes for `interleaved`) waiting now, over all queues of that name.
    pub depth: u64,
    /// Entries dropped because it was full.
    pub dropped: u64,
}

/// One kind of UDP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketStats {
    /// Name, stable: `player_rtp`, `player_rtcp`, `input_rtp`, `input_rtcp`.
    pub socket: &'static str,
    /// Smallest receive buffer in force among them, bytes as the kernel reports them.
    pub receive_buffer: u64,
    /// Packets the kernel dropped because a buffer was full (`SO_RXQ_OVFL`).
    pub overflows: u64,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadStats {
    /// Its name.
    pub thread: String,
    /// CPU time it has used.
    pub cpu: Duration,
}
