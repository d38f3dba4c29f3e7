//! Who may send on a UDP input: the signalled address and port, or a port that is learned once.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use msm_fastpath::{Admission, PayloadTypes, Verdict, decide};

use crate::drop::DropReason;
use crate::rtp::RtpView;

pub mod inventory;

/// How long a port may be learned after the input was opened (SEC-2).
pub const LEARNING_WINDOW: Duration = Duration::from_secs(3);

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerVerdict {
    /// It is the peer's.
    Admit,
    /// It may become the peer's first packet; it was copied and is not to be used yet.
    Hold,
    /// The port is locked now. The packet that was held comes first ([`PeerLock::take_held`]), then this.
    Locked,
    /// Not the peer's.
    Drop(DropReason),
}

/// Admits datagrams of one peer.
///
/// A port that was signalled is the only one. One that was not is learned: two valid packets in sequence
/// from the peer's address, within three seconds, then locked for good (RTSP-15, SEC-2).
#[derive(Debug)]
pub struct PeerLock {
    addr: IpAddr,
    port: Option<u16>,
    until: Instant,
    admission: Admission,
    candidate: Option<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    port: u16,
    ssrc: u32,
    seq: u16,
    bytes: Vec<u8>,
}

impl PeerLock {
    /// A lock on this address, and on this port unless it is to be learned. `payload_types`: those that
    /// the SDP names, none for any.
    pub fn new(now: Instant, addr: IpAddr, port: Option<u16>, payload_types: &[u8]) -> Self {
        let payload_types = match payload_types {
            [] => PayloadTypes::ANY,
            list => PayloadTypes::of(list),
        };
        let admission = Admission::any_ssrc(payload_types);
        Self { addr: addr.to_canonical(), port, until: now + LEARNING_WINDOW, admission, candidate: None }
    }

    /// The peer's port, once it is known.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Opens the window for learning again, because PLAY was sent now. Does nothing once locked.
    pub fn reopen(&mut self, now: Instant) {
        self.until = now + LEARNING_WINDOW;
    }

    /// Takes a datagram and its sender. IPv4 addresses in IPv6 form are the same address.
    #[inline]
    pub fn handle(&mut self, now: Instant, from: SocketAddr, packet: &[u8]) -> PeerVerdict {
        if from.ip().to_canonical() != self.addr {
            return PeerVerdict::Drop(DropReason::UnknownSource);
        }
        match self.port {
            Some(port) if port == from.port() => PeerVerdict::Admit,
            Some(_) => PeerVerdict::Drop(DropReason::UnknownSource),
            None => self.learn(now, from.port(), packet),
        }
    }

    fn learn(&mut self, now: Instant, port: u16, packet: &[u8]) -> PeerVerdict {
        if now > self.until {
            return PeerVerdict::Drop(DropReason::UnknownSource);
        }
        let Some(view) = RtpView::parse(packet) else { return PeerVerdict::Drop(DropReason::Malformed) };
        if let Verdict::Drop(reason) = decide(view.fixed(), packet.len(), &self.admission) {
            return PeerVerdict::Drop(reason);
        }
        let confirms = self.candidate.as_ref().is_some_and(|first| {
            first.port == port && first.ssrc == view.ssrc() && first.seq.wrapping_add(1) == view.seq()
        });
        if confirms {
            self.port = Some(port);
            return PeerVerdict::Locked;
        }
        self.candidate = Some(Candidate { port, ssrc: view.ssrc(), seq: view.seq(), bytes: packet.to_vec() });
        PeerVerdict::Hold
    }

    /// The packet that was held when the port was locked.
    pub fn take_held(&mut self) -> Option<Vec<u8>> {
        self.port?;
        self.candidate.take().map(|candidate| candidate.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtp::PacketBuilder;
    use crate::testing::start;

    fn rtp(seq: u16) -> Vec<u8> {
        PacketBuilder::new(96, seq, 0, 7).build(b"x")
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::from([192, 0, 2, 1]), port)
    }

    fn lock(now: Instant, port: Option<u16>) -> PeerLock {
        PeerLock::new(now, at(0).ip(), port, &[96])
    }

    const UNKNOWN: PeerVerdict = PeerVerdict::Drop(DropReason::UnknownSource);

    #[test]
    fn a_signalled_port_is_the_only_one() {
        let now = start();
        let mut lock = lock(now, Some(5_000));
        assert_eq!(lock.handle(now, at(5_000), &rtp(1)), PeerVerdict::Admit);
        assert_eq!(lock.handle(now, at(5_002), &rtp(2)), UNKNOWN, "SEC-2");
        let stranger = SocketAddr::new(IpAddr::from([192, 0, 2, 9]), 5_000);
        assert_eq!(lock.handle(now, stranger, &rtp(3)), UNKNOWN, "SEC-2");
    }

    #[test]
    fn two_packets_in_sequence_lock_a_port_and_none_is_lost() {
        let now = start();
        let mut lock = lock(now, None);
        assert_eq!(lock.handle(now, at(41_041), &rtp(9)), PeerVerdict::Hold);
        assert_eq!(lock.take_held(), None, "not locked yet");
        assert_eq!(lock.handle(now, at(41_041), &rtp(10)), PeerVerdict::Locked);
        assert_eq!(lock.take_held(), Some(rtp(9)));
        assert_eq!(
            (lock.port(), lock.take_held()),
            (Some(41_041), None),
            "RTSP-15: VLC sends from odd ports"
        );
    }

    #[test]
    fn a_spray_of_ports_before_the_lock_and_after_it_changes_nothing() {
        let now = start();
        let mut lock = lock(now, None);
        for port in 1_000..1_100 {
            assert_eq!(lock.handle(now, at(port), &rtp(port)), PeerVerdict::Hold, "each from its own port");
        }
        assert_eq!(lock.port(), None);
        assert_eq!(lock.handle(now, at(5_000), &rtp(1)), PeerVerdict::Hold);
        assert_eq!(lock.handle(now, at(5_000), &rtp(2)), PeerVerdict::Locked);
        for port in 1_000..1_100 {
            assert_eq!(lock.handle(now, at(port), &rtp(port)), UNKNOWN, "SEC-2: locked");
        }
    }

    #[test]
    fn punches_and_foreign_payload_types_teach_nothing() {
        let now = start();
        let mut lock = lock(now, None);
        let punch = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(lock.handle(now, at(5_000), &punch), PeerVerdict::Drop(DropReason::PayloadType), "RTP-1");
        assert_eq!(lock.handle(now, at(5_000), &[0xaa; 200]), PeerVerdict::Drop(DropReason::PayloadType));
        assert_eq!(lock.handle(now, at(5_000), &[0; 200]), PeerVerdict::Drop(DropReason::Malformed));
        assert_eq!(lock.port(), None);
    }

    #[test]
    fn nothing_is_learned_after_the_window_until_it_is_opened_again() {
        let now = start();
        let mut lock = lock(now, None);
        let late = now + LEARNING_WINDOW + Duration::from_millis(1);
        assert_eq!(lock.handle(late, at(5_000), &rtp(1)), UNKNOWN);
        lock.reopen(late);
        assert_eq!(lock.handle(late, at(5_000), &rtp(1)), PeerVerdict::Hold);
    }

    #[test]
    fn a_mapped_address_is_the_address() {
        let now = start();
        let mut lock = lock(now, Some(5_000));
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:5000".parse().unwrap();
        assert_eq!(lock.handle(now, mapped, &rtp(1)), PeerVerdict::Admit);
    }
}
