//! The sockets that all viewers are served from, and what comes back on them.
//!
//! The first worker reads them and tells the others. Datagrams are told apart by the viewer's address,
//! never by what is in them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use msm_control_plane::event::OpError;
use msm_fastpath::DropReason;
use msm_graph::LegId;

use super::Shared;
use super::command::{Command, PlayerPeer};
use crate::user::io_buffers::IoBuffers;
use crate::user::{PlayerPair, udp};

impl Shared {
    /// Has what comes from an address handled as RTCP of a leg.
    pub(super) fn announce_peer(&self, addr: SocketAddr, peer: PlayerPeer) -> Result<(), OpError> {
        self.tell_peer(addr, peer, false)
    }

    /// The opposite. An address that another leg has taken meanwhile stays that leg's.
    pub(super) fn retract_peer(&self, addr: SocketAddr, peer: PlayerPeer) {
        // Refused only by a worker that is gone.
        let _ = self.tell_peer(addr, peer, true);
    }

    fn tell_peer(&self, addr: SocketAddr, peer: PlayerPeer, gone: bool) -> Result<(), OpError> {
        match self.workers.first() {
            Some(first) if self.index != 0 => {
                let command = Command::PlayerPeer { addr, peer, gone };
                if gone { first.deliver(command) } else { first.send(command) }
            }
            _ => {
                self.note_peer(addr, peer, gone);
                Ok(())
            }
        }
    }

    /// On the worker that reads the sockets.
    pub(super) fn note_peer(&self, addr: SocketAddr, peer: PlayerPeer, gone: bool) {
        let mut peers = self.peers.borrow_mut();
        if !gone {
            peers.insert(addr, peer);
        } else if peers.get(&addr) == Some(&peer) {
            peers.remove(&addr);
        }
    }

    /// Receives the reports that viewers send to the pair that serves them.
    pub(super) fn serve_players(self: Rc<Self>, pair: &PlayerPair) {
        let socket = match pair.rtcp.try_clone().and_then(udp::readable) {
            Ok(socket) => socket,
            Err(error) => {
                return tracing::error!(event = "worker.failed", worker = self.index, %error);
            }
        };
        tokio::task::spawn_local(async move {
            while let Ok(mut ready) = socket.readable().await {
                let _ = ready
                    .try_io(|socket| self.receive(socket.get_ref(), |_, io| self.clone().dispatch_rtcp(io)));
            }
        });
    }

    /// RTCP of viewers: told apart by address alone (RTP-2).
    fn dispatch_rtcp(self: Rc<Self>, io: &mut IoBuffers) {
        let datagrams = io.receive.datagrams().to_vec();
        for datagram in datagrams {
            let from = SocketAddr::new(datagram.from.ip().to_canonical(), datagram.from.port());
            let peer = self.peers.borrow().get(&from).copied();
            for piece in datagram.segments() {
                let Some(peer) = peer else {
                    self.drops.borrow_mut().count(DropReason::UnknownSource, 1);
                    continue;
                };
                let compound = io.receive.bytes().get(piece.range()).unwrap_or_default().to_vec();
                let PlayerPeer { worker, stream, leg, track } = peer;
                if worker != self.index {
                    let compound = compound.into();
                    self.forward(worker, 1, Command::LegRtcp { stream, leg, track, compound });
                } else if let Some(stream) = self.stream(stream) {
                    stream.borrow_mut().handle_leg_rtcp(Instant::now(), leg, track, &compound, io, &self);
                }
            }
        }
    }

    /// ICMP errors about viewers, each address once (SEC-28).
    pub(super) fn take_errors(&self) {
        let mut refused = HashSet::new();
        for pair in [&self.players.v4, &self.players.v6].into_iter().flatten() {
            for socket in [&pair.rtp, &pair.rtcp] {
                // The queue is bounded by the socket's receive buffer; so is this loop.
                for _ in 0..1024 {
                    let Some((addr, is_refused)) = udp::recv_error(socket) else { break };
                    if is_refused {
                        refused.insert(addr);
                    }
                }
            }
        }
        let mut told = HashSet::new();
        for addr in refused {
            let peer = self.peers.borrow().get(&addr).copied();
            let Some(peer) = peer.filter(|peer| told.insert(peer.leg)) else { continue };
            if peer.worker != self.index {
                // One that finds no room comes again: the leg goes on sending.
                if let Some(worker) = self.workers.get(peer.worker) {
                    worker.forward(Command::PlayerUnreachable { stream: peer.stream, leg: peer.leg });
                }
            } else if let Some(stream) = self.stream(peer.stream) {
                stream.borrow_mut().handle_unreachable(peer.leg, self);
            }
        }
    }

    /// RTP from a viewer that plays (RTSP-45).
    pub(crate) fn count_viewer_rtp(&self, _leg: LegId) {
        self.drops.borrow_mut().count(DropReason::Policy, 1);
    }
}
