//! Where copies end: one UDP socket per viewer.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;

/// A viewer's RTP socket, with the RTCP socket beside it so that reports find someone.
pub(crate) struct Sink {
    pub(crate) rtp: UdpSocket,
    _rtcp: UdpSocket,
    port: u16,
}

impl Sink {
    pub(crate) fn open() -> anyhow::Result<Self> {
        for _ in 0..200 {
            let rtp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let port = rtp.local_addr()?.port();
            if !port.is_multiple_of(2) {
                continue;
            }
            let Ok(rtcp) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port + 1)) else { continue };
            socket2::SockRef::from(&rtp).set_recv_buffer_size(8 << 20)?;
            rtp.set_read_timeout(Some(Duration::from_millis(500)))?;
            return Ok(Self { rtp, _rtcp: rtcp, port });
        }
        anyhow::bail!("no free pair of UDP ports")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// From now on every copy is received by the kernel, counted and dropped.
    pub(crate) fn drop_all(&self) -> anyhow::Result<()> {
        // `ret #0`: the packet passed IP and UDP input and is discarded at the socket.
        let drop_all = [socket2::SockFilter::new(0x06, 0, 0, 0)];
        socket2::SockRef::from(&self.rtp)
            .attach_filter(&drop_all)
            .context("attaching the drop-all filter")?;
        self.rtp.set_nonblocking(true)?;
        let mut packet = [0_u8; 2048];
        while self.rtp.recv(&mut packet).is_ok() {}
        self.rtp.set_nonblocking(false)?;
        Ok(())
    }
}

/// Copies that the kernel dropped at each sink, in the order of `sinks` (`/proc/net/udp`, last column).
pub(crate) fn arrived(sinks: &[Sink]) -> anyhow::Result<Vec<u64>> {
    let table = std::fs::read_to_string("/proc/net/udp")?;
    let mut counts = vec![0; sinks.len()];
    for line in table.lines().skip(1) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(local), Some(drops)) = (fields.nth(1), fields.last()) else { continue };
        let Some(port) = local.split_once(':').and_then(|(_, p)| u16::from_str_radix(p, 16).ok()) else {
            continue;
        };
        if let Some(index) = sinks.iter().position(|s| s.port == port) {
            counts[index] = drops.parse().unwrap_or(0);
        }
    }
    Ok(counts)
}
