//! Where copies end: one UDP socket per viewer, counted by the kernel instead of read.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// `SK_MEMINFO_*`, nine words; the last one counts drops.
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; 9]
);

const SK_MEMINFO_RCVBUF: usize = 1;
const SK_MEMINFO_DROPS: usize = 8;

/// A viewer's RTP socket, with the RTCP socket beside it so that reports find someone.
#[derive(Debug)]
pub struct Sink {
    /// The socket; it stays in the namespace it was opened in.
    pub rtp: UdpSocket,
    _rtcp: UdpSocket,
    address: SocketAddr,
}

impl Sink {
    /// A free even port and the next one.
    pub fn open(address: IpAddr) -> Result<Self> {
        for _ in 0..200 {
            let rtp = UdpSocket::bind((address, 0))?;
            let port = rtp.local_addr()?.port();
            if port.is_multiple_of(2)
                && let Ok(rtcp) = UdpSocket::bind((address, port + 1))
            {
                return Self::with(rtp, rtcp);
            }
        }
        anyhow::bail!("no free pair of UDP ports")
    }

    /// This port and the next one.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let rtp = UdpSocket::bind(address).with_context(|| format!("port {}", address.port()))?;
        Self::with(rtp, UdpSocket::bind((address.ip(), address.port() + 1))?)
    }

    fn with(rtp: UdpSocket, rtcp: UdpSocket) -> Result<Self> {
        socket2::SockRef::from(&rtp).set_recv_buffer_size(8 << 20)?;
        rtp.set_read_timeout(Some(Duration::from_millis(500)))?;
        let address = rtp.local_addr()?;
        Ok(Self { rtp, _rtcp: rtcp, address })
    }

    /// Local address of the RTP socket.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// A receive buffer beyond `net.core.rmem_max`; needs CAP_NET_ADMIN. Returns what the kernel granted.
    pub fn force_buffer(&self, bytes: usize) -> Result<usize> {
        setsockopt(&self.rtp, sockopt::RcvBufForce, &bytes).context("SO_RCVBUFFORCE")?;
        Ok(getsockopt(&self.rtp.as_fd(), MemInfo)?[SK_MEMINFO_RCVBUF] as usize)
    }

    /// Super-packets are delivered whole.
    pub fn take_super_packets(&self) -> Result<()> {
        setsockopt(&self.rtp, sockopt::UdpGroSegment, &true).context("UDP_GRO")
    }

    /// From now on every copy is received by the kernel, counted and dropped.
    pub fn drop_all(&self) -> Result<()> {
        // `ret #0`: the packet passed IP and UDP input and is discarded at the socket.
        self.filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)])
    }

    /// From now on only packets whose RTP sequence number modulo `every` is below `first` are kept, to be
    /// read and checked after the run; the rest is counted and dropped. `every` is a power of two.
    ///
    /// On super-packets the kernel asks for the first segment only.
    pub fn keep_sample(&self, every: u16, first: u16) -> Result<()> {
        // A socket filter sees the datagram from the UDP header on: the sequence number is at 8 + 2.
        self.filter(&[
            socket2::SockFilter::new(0x28, 0, 0, 10),                   // ldh [10]
            socket2::SockFilter::new(0x54, 0, 0, u32::from(every - 1)), // and #every-1
            socket2::SockFilter::new(0x35, 1, 0, u32::from(first)),     // jge #first, drop
            socket2::SockFilter::new(0x06, 0, 0, u32::MAX),             // ret whole
            socket2::SockFilter::new(0x06, 0, 0, 0),                    // ret #0
        ])
    }

    fn filter(&self, program: &[socket2::SockFilter]) -> Result<()> {
        socket2::SockRef::from(&self.rtp).attach_filter(program).context("attaching the sink's filter")?;
        self.drain()
    }

    /// Throws away what waits in the socket.
    pub fn drain(&self) -> Result<()> {
        self.rtp.set_nonblocking(true)?;
        let mut packet = [0_u8; 64];
        while self.rtp.recv(&mut packet).is_ok() {}
        self.rtp.set_nonblocking(false)?;
        Ok(())
    }

    /// Packets that the kernel dropped at this socket since it was opened, by filter or for want of room;
    /// a super-packet counts once.
    pub fn drops(&self) -> Result<u64> {
        Ok(getsockopt(&self.rtp.as_fd(), MemInfo).context("SO_MEMINFO")?[SK_MEMINFO_DROPS].into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn sent(to: SocketAddr, numbers: std::ops::Range<u16>) {
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for number in numbers {
            let mut packet = [0x80; 32];
            packet[2..4].copy_from_slice(&number.to_be_bytes());
            from.send_to(&packet, to).unwrap();
        }
    }

    #[test]
    fn a_sink_counts_what_it_drops_and_keeps_its_sample() {
        let sink = Sink::open(Ipv4Addr::LOCALHOST.into()).unwrap();
        sink.keep_sample(16, 2).unwrap();
        sent(sink.address(), 0..32);
        let mut kept = Vec::new();
        let mut packet = [0; 64];
        for _ in 0..4 {
            sink.rtp.recv(&mut packet).unwrap();
            kept.push(u16::from_be_bytes([packet[2], packet[3]]));
        }
        assert_eq!(kept, [0, 1, 16, 17]);
        assert_eq!(sink.drops().unwrap(), 28);
        sink.drop_all().unwrap();
        sent(sink.address(), 0..10);
        assert_eq!(sink.drops().unwrap(), 38);
    }
}
