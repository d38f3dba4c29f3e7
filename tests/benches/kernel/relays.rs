//! The plain relays: user-space programs that someone would write in an afternoon.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmsg, setsockopt,
    sockopt,
};

/// Largest datagram, super-packets included.
const LARGEST: usize = 65_536;
/// Datagrams that one receive call takes, and segments that one send call makes.
const MOST: usize = 64;
/// Bytes of one `UDP_SEGMENT` send.
const MOST_BYTES: usize = 65_000;

/// The same receive buffer for every contender.
fn buffers(socket: &UdpSocket) -> Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_recv_buffer_size(8 << 20)?;
    socket.set_send_buffer_size(4 << 20)?;
    Ok(())
}

/// Blocking `recv`, N × `sendto`.
pub(crate) struct Naive {
    socket: UdpSocket,
    viewers: Vec<SocketAddr>,
    packet: Vec<u8>,
}

impl Naive {
    pub(crate) fn new(socket: UdpSocket, viewers: &[SocketAddrV4]) -> Result<Self> {
        buffers(&socket)?;
        let viewers = viewers.iter().map(|v| SocketAddr::V4(*v)).collect();
        Ok(Self { socket, viewers, packet: vec![0; LARGEST] })
    }

    /// Forwards the next packet; returns 1.
    pub(crate) fn forward(&mut self) -> Result<usize> {
        let (len, _) = self.socket.recv_from(&mut self.packet)?;
        for viewer in &self.viewers {
            self.socket.send_to(&self.packet[..len], viewer)?;
        }
        Ok(1)
    }
}

/// `recv_from`, N × `send_to` on one current-thread tokio runtime.
pub(crate) struct Tokio {
    socket: tokio::net::UdpSocket,
    viewers: Vec<SocketAddr>,
    packet: Vec<u8>,
}

impl Tokio {
    /// Call inside the runtime.
    pub(crate) fn new(socket: UdpSocket, viewers: &[SocketAddrV4]) -> Result<Self> {
        buffers(&socket)?;
        socket.set_nonblocking(true)?;
        let viewers = viewers.iter().map(|v| SocketAddr::V4(*v)).collect();
        Ok(Self { socket: tokio::net::UdpSocket::from_std(socket)?, viewers, packet: vec![0; LARGEST] })
    }

    /// Forwards the next packet; returns 1.
    pub(crate) async fn forward(&mut self) -> Result<usize> {
        let (len, _) = self.socket.recv_from(&mut self.packet).await?;
        for viewer in &self.viewers {
            self.socket.send_to(&self.packet[..len], viewer).await?;
        }
        Ok(1)
    }
}

/// `UDP_GRO` and `recvmmsg` in, one `UDP_SEGMENT` send per viewer out: the best that plain sockets offer.
pub(crate) struct Segmenting {
    socket: UdpSocket,
    viewers: Vec<SockaddrIn>,
    slots: Vec<Vec<u8>>,
    headers: MultiHeaders<SockaddrIn>,
    /// Length of each datagram received, and the size of its segments.
    received: Vec<(usize, usize)>,
}

impl Segmenting {
    pub(crate) fn new(socket: UdpSocket, viewers: &[SocketAddrV4]) -> Result<Self> {
        buffers(&socket)?;
        setsockopt(&socket, sockopt::UdpGroSegment, &true).context("UDP_GRO")?;
        Ok(Self {
            socket,
            viewers: viewers.iter().map(|v| SockaddrIn::from(*v)).collect(),
            slots: vec![vec![0; LARGEST]; MOST],
            headers: MultiHeaders::preallocate(MOST, Some(cmsg_space!(i32))),
            received: Vec::with_capacity(MOST),
        })
    }

    /// Forwards what waits, at least one packet; returns how many.
    pub(crate) fn forward(&mut self) -> Result<usize> {
        self.received.clear();
        let mut slices: Vec<_> = self.slots.iter_mut().map(|s| [IoSliceMut::new(s)]).collect();
        // Waits for the first datagram only.
        let flags = MsgFlags::MSG_WAITFORONE;
        let fd = self.socket.as_raw_fd();
        for message in recvmmsg(fd, &mut self.headers, slices.iter_mut(), flags, None)? {
            let segment = message.cmsgs()?.find_map(|c| match c {
                ControlMessageOwned::UdpGroSegments(size) => Some(size as usize),
                _ => None,
            });
            self.received.push((message.bytes, segment.unwrap_or(message.bytes).max(1)));
        }
        let mut packets = 0;
        let mut at = 0;
        while at < self.received.len() {
            let (first, size) = self.received[at];
            let (mut end, mut bytes, mut segments) = (at + 1, first, first.div_ceil(size));
            // A run: datagrams of whole segments of one size; a shorter one may end it.
            while let Some((len, segment)) = self.received.get(end).copied() {
                let whole = bytes.is_multiple_of(size) && segment == size;
                if !whole || segments + len.div_ceil(size) > MOST || bytes + len > MOST_BYTES {
                    break;
                }
                (bytes, segments, end) = (bytes + len, segments + len.div_ceil(size), end + 1);
            }
            self.send(at, end, size, segments)?;
            packets += segments;
            at = end;
        }
        Ok(packets)
    }

    fn send(&self, from: usize, to: usize, size: usize, segments: usize) -> Result<()> {
        let slots = self.slots[from..to].iter().zip(&self.received[from..to]);
        let slices: Vec<IoSlice<'_>> = slots.map(|(slot, (len, _))| IoSlice::new(&slot[..*len])).collect();
        let segment = size as u16;
        let with = [ControlMessage::UdpGsoSegments(&segment)];
        let control = if segments > 1 { &with[..] } else { &[] };
        for viewer in &self.viewers {
            sendmsg(self.socket.as_raw_fd(), &slices, control, MsgFlags::empty(), Some(viewer))
                .context("sendmsg")?;
        }
        Ok(())
    }
}
