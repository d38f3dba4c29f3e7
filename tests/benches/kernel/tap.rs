//! Checksums as they lie in the frames that reach a pod.
//!
//! A UDP socket does not look at the checksum of what came from a pod of the same machine: the kernel marks
//! such packets as not summed yet, and the field holds the sum of the pseudo-header. A wrong field would show
//! only where the packet leaves the machine. So the gate reads the frames themselves.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::lab::Node;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

/// Reads frames that arrive on a pod's devices.
pub(crate) struct Tap(OwnedFd);

/// How the checksums of the frames were found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sums {
    /// The field is the sum over the datagram.
    pub(crate) complete: usize,
    /// The field is the sum over the pseudo-header, to be completed by whoever sends it on.
    pub(crate) partial: usize,
}

impl Tap {
    pub(crate) fn open(node: &Node) -> Result<Self> {
        let socket = node.inside(|| {
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthIp)
        })?;
        let socket = socket.context("a packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).context("SO_RCVBUFFORCE")?;
        Ok(Self(socket))
    }

    /// Checks every frame to UDP port `port` that waits.
    pub(crate) fn check(&self, port: u16) -> Result<Sums> {
        let mut sums = Sums::default();
        let mut frame = vec![0_u8; 70_000];
        while let Ok(len) = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            if let Some(complete) = check(&frame[..len], port)? {
                if complete {
                    sums.complete += 1;
                } else {
                    sums.partial += 1;
                }
            }
        }
        Ok(sums)
    }
}

/// True for a complete checksum, false for a partial one, nothing for a frame of others.
fn check(frame: &[u8], port: u16) -> Result<Option<bool>> {
    if frame.len() < 42 || frame[12..14] != [8, 0] || frame[14] != 0x45 || frame[23] != 17 {
        return Ok(None);
    }
    let (ip, udp) = (&frame[14..34], &frame[34..]);
    if udp[2..4] != port.to_be_bytes() {
        return Ok(None);
    }
    ensure!(sum(&[ip]) == 0xffff, "IPv4 header checksum {:02x?} is wrong", &ip[10..12]);
    let field = [udp[6], udp[7]];
    let length = [udp[4], udp[5]];
    let datagram = &udp[..udp.len().min(usize::from(u16::from_be_bytes(length)))];
    let pseudo = sum(&[&ip[12..20], &[0, 17], &length]);
    if field == [0, 0] || sum(&[&pseudo.to_be_bytes(), datagram]) == 0xffff {
        return Ok(Some(true));
    }
    if u16::from_be_bytes(field) == pseudo {
        return Ok(Some(false));
    }
    bail!("UDP checksum {field:02x?} is neither that of the datagram nor of its pseudo-header {pseudo:04x}")
}

/// One's complement sum.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
