//! IPsec policies of this network namespace: what the kernel's own stack encrypts, or stops, on its way out. A program's
//! copies do not pass them, so what a policy speaks of is the worker's, whose sockets do.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};

use msm_fastpath::flow::octets;
use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// Of linux/netlink.h.
const HEADER: usize = 16;
const REQUEST_DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Of linux/xfrm.h.
const NEW_POLICY: u16 = 0x13;
const GET_POLICY: u16 = 0x15;
const OUT: u8 = 1;
/// The multicast group that tells of policies.
const GROUP: u32 = 4;
/// The kernel answers at once.
const PATIENCE: i64 = 2;

/// A policy, as far as it says of which packets it speaks: `struct xfrm_selector`, without ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    is_v4: bool,
    to: ([u8; 16], u8),
    from: ([u8; 16], u8),
}

/// Every policy for what leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Policies(Vec<Policy>);

/// Whether an address has the first `bits` of `prefix`; both are as long as their family's addresses.
fn has_prefix(address: &[u8], prefix: &[u8], bits: u8) -> bool {
    let mut left = usize::from(bits);
    address.iter().zip(prefix).all(|(a, b)| {
        let mask = if left >= 8 { 0xff } else { !(0xff_u8 >> left) };
        left = left.saturating_sub(8);
        (a ^ b) & mask == 0
    })
}

impl Policy {
    /// From the payload of a message: `struct xfrm_userpolicy_info`. `None` for one that is not about datagrams that leave.
    fn read(bytes: &[u8]) -> Option<Self> {
        const DIRECTION: usize = 160;
        let family = u16::from_ne_bytes([*bytes.get(40)?, *bytes.get(41)?]);
        let protocol = *bytes.get(44)?;
        if *bytes.get(DIRECTION)? != OUT || ![0, libc::IPPROTO_UDP as u8].contains(&protocol) {
            return None;
        }
        let address = |at: usize| bytes.get(at..at + 16)?.try_into().ok();
        let (to, from) = ((address(0)?, *bytes.get(42)?), (address(16)?, *bytes.get(43)?));
        // A policy of no family speaks of every packet; so it does with prefixes of nothing.
        Some(Self { is_v4: family == libc::AF_INET as u16, to, from })
    }

    fn covers(&self, peer: IpAddr, local: IpAddr) -> bool {
        let (peer, local) = (peer.to_canonical(), local.to_canonical());
        let is_within = |ip: IpAddr, (prefix, bits): &([u8; 16], u8)| match ip {
            // A prefix of nothing holds for either family.
            _ if *bits == 0 => true,
            IpAddr::V4(ip) => self.is_v4 && has_prefix(&ip.octets(), prefix, *bits),
            IpAddr::V6(_) => !self.is_v4 && has_prefix(&octets(ip), prefix, *bits),
        };
        is_within(peer, &self.to) && is_within(local, &self.from)
    }
}

impl Policies {
    /// Whether one of them speaks of datagrams from `local` to `peer`.
    pub(super) fn cover(&self, peer: IpAddr, local: IpAddr) -> bool {
        self.0.iter().any(|policy| policy.covers(peer, local))
    }

    /// Those of the calling thread's network namespace; none on a kernel without IPsec.
    ///
    /// # Errors
    /// From the kernel.
    pub(super) fn read() -> io::Result<Self> {
        let mut socket = match Socket::new(NETLINK_XFRM) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Self::default()),
            socket => socket?,
        };
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        let mut request = [0; HEADER + 4];
        request[..4].copy_from_slice(&((HEADER + 4) as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&GET_POLICY.to_ne_bytes());
        request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
        socket.send(&request, 0)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = socket.recv_from_full()?;
            if take(&bytes, &mut found)? {
                return Ok(Self(found));
            }
        }
    }
}

/// Takes the policies of one datagram over. Returns whether it was the last.
fn take(mut bytes: &[u8], found: &mut Vec<Policy>) -> io::Result<bool> {
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
        let [a, b, c, d, low, high, ..] = *header;
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(payload) = bytes.get(HEADER..len) else { break };
        match u16::from_ne_bytes([low, high]) {
            DONE => return Ok(true),
            ERROR => {
                let code = payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            NEW_POLICY => found.extend(Policy::read(payload)),
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Tells that policies changed.
#[derive(Debug)]
pub(super) struct PolicyNotices(Socket);

impl PolicyNotices {
    /// For the calling thread's network namespace; `None` on a kernel without IPsec.
    pub(super) fn open() -> Option<Self> {
        let mut socket = Socket::new(NETLINK_XFRM).ok()?;
        socket.bind_auto().ok()?;
        socket.add_membership(GROUP).ok()?;
        socket.set_non_blocking(true).ok()?;
        Some(Self(socket))
    }

    /// Reads away what there is. Lost notices are notices, too.
    pub(super) fn drain(&self) {
        while self.0.recv_from_full().is_ok() {}
    }
}

impl AsRawFd for PolicyNotices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(family: i32, (to, to_bits): (&str, u8), (from, from_bits): (&str, u8), protocol: u8) -> Vec<u8> {
        let mut bytes = vec![0; 168];
        let mut put = |at: usize, ip: &str| match ip.parse().unwrap() {
            IpAddr::V4(ip) => bytes[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes[at..at + 16].copy_from_slice(&ip.octets()),
        };
        put(0, to);
        put(16, from);
        bytes[40..42].copy_from_slice(&(family as u16).to_ne_bytes());
        (bytes[42], bytes[43], bytes[44], bytes[160]) = (to_bits, from_bits, protocol, OUT);
        bytes
    }

    #[test]
    fn a_policy_speaks_of_the_addresses_of_its_prefixes() {
        let v4 = |to, from, protocol| Policy::read(&info(libc::AF_INET, to, from, protocol));
        let v6 = |to, from| Policy::read(&info(libc::AF_INET6, to, from, 0));
        let any4 = ("0.0.0.0", 0);
        let tunnel = Policies(vec![v4(("10.8.0.0", 13), any4, 0).unwrap()]);
        let between = |policies: &Policies, peer: &str, local: &str| {
            policies.cover(peer.parse().unwrap(), local.parse().unwrap())
        };
        assert!(between(&tunnel, "10.15.255.1", "192.0.2.1"));
        assert!(between(&tunnel, "::ffff:10.8.0.1", "::ffff:192.0.2.1"));
        assert!(!between(&tunnel, "10.16.0.1", "192.0.2.1") && !between(&tunnel, "fd00::1", "fd00::2"));
        let narrow = Policies(vec![v4(("10.7.2.2", 32), ("10.7.2.1", 32), 17).unwrap()]);
        assert!(between(&narrow, "10.7.2.2", "10.7.2.1"));
        assert!(!between(&narrow, "10.7.2.2", "10.7.2.3") && !between(&narrow, "10.7.2.3", "10.7.2.1"));
        let v6 = Policies(vec![v6(("fd07:2::", 33), ("::", 0)).unwrap()]);
        assert!(between(&v6, "fd07:2::9", "fd07::1") && !between(&v6, "fd07:2:8000::9", "fd07::1"));
        assert_eq!(v4(any4, any4, 6), None, "of TCP");
        let mut inward = info(libc::AF_INET, any4, any4, 0);
        inward[160] = 0;
        assert_eq!(Policy::read(&inward), None);
        assert_eq!(Policy::read(&inward[..100]), None, "cut short");
    }
}
