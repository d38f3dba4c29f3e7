//! Ports for cameras and publishers on UDP, and who uses them.

use std::net::IpAddr;

use msm_control_plane::event::OpError;
use msm_graph::{Encap, InputRow, PortPair, StreamId};

use super::State;
use crate::user::input_pair::PairId;
use crate::user::worker::Step;
use crate::user::{buffer_warning, udp};

/// A pair of ports for cameras and publishers, and whom it serves: one track per address.
#[derive(Debug)]
pub(super) struct KnownPair {
    pub(super) id: PairId,
    pub(super) local: IpAddr,
    pub(super) worker: usize,
    pub(super) ports: PortPair,
    pub(super) peers: Vec<IpAddr>,
}

/// A step that opens an input, and the pair it took.
type Taken = (Step, Option<(PairId, IpAddr)>);

impl State {
    /// Finds or opens what an input needs.
    pub(super) fn open_input(
        &mut self,
        stream: StreamId,
        worker: usize,
        input: InputRow,
    ) -> Result<Taken, OpError> {
        let (peer, local) = match &input.encap {
            Encap::Udp { peer, local, .. } => (peer.to_canonical(), local.to_canonical()),
            Encap::Interleaved { conn, .. } => {
                let conn = *conn;
                let peer = self.conns.get(&conn).and_then(|known| known.peer);
                let guest = self.guest_of(conn, worker);
                return Ok((Step::OpenChannelInput { stream, input, peer, guest }, None));
            }
        };
        // Any pair that no other track of this address uses will do: datagrams are told apart by address.
        let shared = self
            .pairs
            .iter_mut()
            .find(|pair| pair.local == local && pair.worker == worker && !pair.peers.contains(&peer));
        if let Some(pair) = shared {
            pair.peers.push(peer);
            let step = Step::OpenUdpInput { stream, input, pair: pair.id, bound: None };
            return Ok((step, Some((pair.id, peer))));
        }
        let range = self.config.input_ports.clone();
        let opened = udp::open_pair(local, &range, &mut self.cursor, self.config.buffers());
        let (rtp, rtcp) = opened.map_err(|error| {
            if error.kind() == std::io::ErrorKind::AddrInUse {
                let words = format!("UDP ports {}-{} (--rtp-ports)", range.start(), range.end());
                OpError::Exhausted(words)
            } else {
                OpError::Io(format!("UDP port on {local}: {error}"))
            }
        })?;
        if let Some(words) = buffer_warning("cameras", rtp.receive_buffer, self.config.receive_buffer)
            && !std::mem::replace(&mut self.buffer_warned, true)
        {
            tracing::warn!(event = "socket.buffer", "{words}");
        }
        let port = |bound: &udp::Bound| bound.socket.local_addr().map(|addr| addr.port());
        let ports = port(&rtp).and_then(|rtp_port| Ok(PortPair { rtp: rtp_port, rtcp: port(&rtcp)? }));
        let ports = ports.map_err(|error| OpError::Io(error.to_string()))?;
        self.next_pair += 1;
        let id = PairId(self.next_pair);
        self.pairs.push(KnownPair { id, local, worker, ports, peers: vec![peer] });
        let step = Step::OpenUdpInput { stream, input, pair: id, bound: Some((rtp, rtcp)) };
        Ok((step, Some((id, peer))))
    }

    /// An address no longer uses a pair; the last one closes it, as the worker does on its side.
    fn release(&mut self, id: PairId, peer: Option<IpAddr>) {
        let Some(index) = self.pairs.iter().position(|pair| pair.id == id) else { return };
        if let Some(pair) = self.pairs.get_mut(index) {
            pair.peers.retain(|known| Some(*known) != peer);
            if pair.peers.is_empty() {
                self.pairs.swap_remove(index);
            }
        }
    }

    /// The same for many.
    pub(super) fn release_all(&mut self, uses: Vec<(PairId, Option<IpAddr>)>) {
        for (id, peer) in uses {
            self.release(id, peer);
        }
    }
}
