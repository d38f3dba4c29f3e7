//! RTCP of a stream's source and viewers, in both directions.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Instant;

use msm_fastpath::DropReason;
use msm_graph::{LegFailure, LegId, Report, TrackId};

use super::{ALIVE_EVERY, Entry, Input, Stream, Track};
use crate::user::io_buffers::IoBuffers;
use crate::user::udp::{self, Destination};
use crate::user::worker::Shared;

/// ICMP errors, one second apart, that end a leg whose viewer sends no RTCP (SEC-28).
const UNREACHABLE: u32 = 3;

impl Stream {
    /// RTCP datagrams arrived on the port of an input.
    pub(crate) fn handle_rtcp_datagrams(
        &mut self,
        now: Instant,
        track: TrackId,
        only: Option<IpAddr>,
        io: &mut IoBuffers,
        shared: &Shared,
    ) {
        let input = self.track_mut(track).and_then(|known| known.input.as_ref());
        let Some(Input { entry: Entry::Udp { peer, .. }, .. }) = input else { return };
        let peer = *peer;
        let datagrams: Vec<_> = io.receive.datagrams().iter().copied().filter(|d| d.is_from(only)).collect();
        for datagram in datagrams {
            // RTP-43: the port is not derived; a source behind a rewriting box has another one.
            let admitted = datagram.from.ip().to_canonical() == peer;
            for piece in datagram.segments() {
                if admitted {
                    let compound = io.receive.bytes().get(piece.range()).unwrap_or_default().to_vec();
                    self.handle_rtcp(now, track, &compound, io, shared);
                } else {
                    self.drops.count(DropReason::UnknownSource, 1);
                }
            }
        }
    }

    /// RTCP of the source. Returns whether it was RTCP.
    pub(crate) fn handle_rtcp(
        &mut self,
        now: Instant,
        track: TrackId,
        compound: &[u8],
        io: &mut IoBuffers,
        shared: &Shared,
    ) -> bool {
        let Some(index) = self.index(track) else { return false };
        let Some(known) = self.tracks.get_mut(index) else { return false };
        match known.media.handle_rtcp(now, compound) {
            Ok(()) => {
                self.alive_at = Some(now);
                self.drain(now, index, io, shared);
                true
            }
            Err(reason) => {
                self.drops.count(reason, 1);
                reason != DropReason::Malformed
            }
        }
    }

    /// RTCP of a viewer. Returns whether it was RTCP.
    pub(crate) fn handle_leg_rtcp(
        &mut self,
        now: Instant,
        leg: LegId,
        track: TrackId,
        compound: &[u8],
        io: &mut IoBuffers,
        shared: &Shared,
    ) -> bool {
        let Some(index) = self.index(track) else { return false };
        let Some(Track { media, legs, .. }) = self.tracks.get_mut(index) else { return false };
        let Some(out) = legs.iter_mut().find(|out| out.leg == leg) else { return false };
        // What is wrong with it is counted by the leg.
        let Ok(seen) = out.media.handle_rtcp(now, compound) else { return false };
        if seen.key_frame {
            media.request_key_frame(now);
        }
        if let Some(meta) = self.legs.iter_mut().find(|meta| meta.leg == leg) {
            meta.last_rtcp = Some(now);
            meta.unreachable = 0;
            if meta.alive_reported.is_none_or(|at| now.duration_since(at) >= ALIVE_EVERY) {
                meta.alive_reported = Some(now);
                shared.report(Report::LegAlive { leg });
            }
            if seen.circuit_breaker && !meta.failed {
                meta.failed = true;
                shared.report(Report::LegFailed { leg, reason: LegFailure::CircuitBreaker });
            }
        }
        self.drain(now, index, io, shared);
        true
    }

    /// The viewer's host said that nobody listens. Called once a second and address at most.
    pub(crate) fn handle_unreachable(&mut self, leg: LegId, shared: &Shared) {
        let Some(meta) = self.legs.iter_mut().find(|meta| meta.leg == leg) else { return };
        meta.unreachable += 1;
        if meta.unreachable >= UNREACHABLE && !meta.failed {
            meta.failed = true;
            shared.report(Report::LegFailed { leg, reason: LegFailure::Unreachable });
        }
    }
}

/// RTCP to the source, on the way it came.
pub(super) fn send_upstream(input: &mut Input, compound: &[u8], now: Instant) {
    match &mut input.entry {
        Entry::Udp { pair, lock, peer, peer_rtcp } => {
            // RTSP-15: its RTCP port, else the RTP port in use + 1.
            let port = peer_rtcp.or_else(|| lock.port().and_then(|port| port.checked_add(1)));
            if let Some(port) = port {
                let to = Destination::new(SocketAddr::new(*peer, port), None);
                let _ = udp::send_one(pair.rtcp.as_raw_fd(), &to, compound);
            }
        }
        Entry::Channels { conn, rtcp, .. } => conn.push_rtcp(*rtcp, compound, now),
    }
}
