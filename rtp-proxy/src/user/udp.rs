//! UDP of the data path: sockets, batched receive, segmented send.
//!
//! Owns the system calls and their buffers and knows nothing of RTP, streams or legs. The only module of
//! the user path with `unsafe`, its children included: `recvmmsg`, `sendmmsg`, `sendmsg` and `sendto` over
//! buffers that live here or are borrowed for the length of the call.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

mod receive;
mod send;

pub(crate) use receive::{ReceiveBuffer, dropped_since, recv_error};
pub(crate) use send::{
    Destination, MOST, fragment, never_fragment, segmentation_refused, send_one, send_same, send_segmented,
    was_pending_error,
};

/// Datagrams of one receive call, and at most that many segments in one send (Linux before
/// 6.9 takes no more, `UDP_MAX_SEGMENTS`).
pub(crate) const BATCH: usize = 64;
/// Largest payload of one UDP send over IPv4.
pub(crate) const MAX_SEND: usize = 65_507;
const CONTROL: usize = 128;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// Sizes of socket buffers to ask for, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BufferSizes {
    pub(crate) receive: usize,
    pub(crate) send: usize,
}

/// A bound socket and what the kernel granted.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: UdpSocket,
    /// `SO_RCVBUF` as read back: the kernel doubles what was asked for.
    pub(crate) receive_buffer: usize,
}

/// Opens a non-blocking socket on `addr`, raises its buffers and has GRO on where the kernel knows it. `errors`: queue ICMP errors, for sockets that serve many peers.
pub(crate) fn open(addr: SocketAddr, sizes: BufferSizes, errors: bool) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    // SO_RCVBUFFORCE needs CAP_NET_ADMIN; without it the plain option is capped by net.core.rmem_max.
    if setsockopt(&socket, sockopt::RcvBufForce, &sizes.receive).is_err() {
        socket.set_recv_buffer_size(sizes.receive)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &sizes.send).is_err() {
        socket.set_send_buffer_size(sizes.send)?;
    }
    // Kernels before 5.0 have no UDP_GRO: datagrams then arrive one by one.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    if errors {
        if addr.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true).map_err(io::Error::from)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true).map_err(io::Error::from)?;
        }
    }
    let receive_buffer = getsockopt(&socket, sockopt::RcvBuf).map_err(io::Error::from)?;
    Ok(Bound { socket: socket.into(), receive_buffer })
}

/// A socket that [`open`] made in another process.
pub(crate) fn inherited(socket: UdpSocket) -> io::Result<Bound> {
    socket.set_nonblocking(true)?;
    let receive_buffer = getsockopt(&socket, sockopt::RcvBuf).map_err(io::Error::from)?;
    Ok(Bound { socket, receive_buffer })
}

/// From now on a socket only sends: what arrives is dropped in the kernel, which counts it ([`dropped_since`]).
pub(crate) fn only_send(socket: &UdpSocket) -> io::Result<()> {
    // "ret #0": nothing of the datagram is kept.
    let none = socket2::SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    socket2::SockRef::from(socket).attach_filter(&[none])
}

/// The local address that the kernel would send from to `peer`; `None` when there is no route.
pub(crate) fn route_source(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if peer.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let probe = UdpSocket::bind((any, 0)).ok()?;
    probe.connect(peer).ok()?;
    probe.local_addr().ok().map(|addr| addr.ip())
}

/// A part of a [`ReceiveBuffer`]: one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Piece {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        start..start + self.len as usize
    }
}

/// Consecutive pieces that leave by one system call: all of `size` bytes, the last one perhaps shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) size: u16,
}

/// Splits pieces into runs, in order: equal sizes in one segmented send, the last may be shorter.
pub(crate) fn split_runs(pieces: &[Piece], runs: &mut Vec<Run>) {
    runs.clear();
    let mut total = 0usize;
    let mut open = false;
    for (index, piece) in pieces.iter().enumerate() {
        let len = piece.len as usize;
        if open && let Some(run) = runs.last_mut() {
            let fits = (run.count as usize) < BATCH && total + len <= MAX_SEND;
            if fits && len <= usize::from(run.size) {
                run.count += 1;
                total += len;
                // A shorter one is the last of its run.
                open = len == usize::from(run.size);
                continue;
            }
        }
        runs.push(Run { first: index as u32, count: 1, size: piece.len.min(u32::from(u16::MAX)) as u16 });
        total = len;
        open = len > 0;
    }
}

/// Opens an RTP and RTCP pair on consecutive ports, RTP even, within `range`, starting to look at
/// `cursor` pairs into it; a range of 0 means any free pair.
///
/// # Errors
/// `AddrInUse` when every pair is taken, else the system's words.
pub(crate) fn open_pair(
    local: IpAddr,
    range: &std::ops::RangeInclusive<u16>,
    cursor: &mut usize,
    sizes: BufferSizes,
) -> io::Result<(Bound, Bound)> {
    if *range.end() == 0 {
        return open_any_pair(local, sizes, false);
    }
    let first = range.start().next_multiple_of(2);
    let pairs = usize::from(range.end().saturating_sub(first).saturating_add(1) / 2);
    for step in 0..pairs {
        let index = (*cursor + step) % pairs;
        let port = first + (index as u16) * 2;
        let opened = open(SocketAddr::new(local, port), sizes, false)
            .and_then(|rtp| Ok((rtp, open(SocketAddr::new(local, port + 1), sizes, false)?)));
        match opened {
            Ok(pair) => {
                *cursor = (index + 1) % pairs;
                return Ok(pair);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "every port pair of the range is in use"))
}

/// A pair on any free even port and the next, for tests and for port 0.
pub(crate) fn open_any_pair(local: IpAddr, sizes: BufferSizes, errors: bool) -> io::Result<(Bound, Bound)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..64 {
        let probe = UdpSocket::bind((local, 0))?;
        let port = probe.local_addr()?.port() & !1;
        drop(probe);
        let opened = open(SocketAddr::new(local, port), sizes, errors)
            .and_then(|rtp| Ok((rtp, open(SocketAddr::new(local, port | 1), sizes, errors)?)));
        match opened {
            Ok(pair) => return Ok(pair),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What owns its descriptor and always returns the same one.
pub(crate) trait Owner: AsRawFd {}

impl Owner for UdpSocket {}
impl Owner for OwnedFd {}

/// Watches a socket for packets and for nothing else. With interest in writing, as `tokio::net::UdpSocket`
/// registers it, every completed send would wake the worker a second time.
pub(crate) fn readable<T: Owner>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: what an `Owner` is; the AsyncFd owns it and hands out shared references only, so the descriptor
    // stays open as long as it is registered.
    unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }.map_err(io::Error::from)
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map_or_else(
        |_| std::time::Duration::ZERO,
        |time| std::time::Duration::new(time.tv_sec().unsigned_abs(), time.tv_nsec() as u32),
    )
}

/// The address that a socket is bound to.
pub(crate) fn local_addr(fd: RawFd) -> Option<SocketAddr> {
    use nix::sys::socket::{SockaddrStorage, getsockname};
    let addr: SockaddrStorage = getsockname(fd).ok()?;
    let v4 = addr.as_sockaddr_in().map(|v4| SocketAddr::from(std::net::SocketAddrV4::from(*v4)));
    v4.or_else(|| addr.as_sockaddr_in6().map(|v6| SocketAddr::from(std::net::SocketAddrV6::from(*v6))))
}

/// The descriptor, for the send calls above.
pub(crate) fn descriptor(socket: &impl AsFd) -> RawFd {
    socket.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests;
