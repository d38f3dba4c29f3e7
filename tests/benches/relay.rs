//! The contender of the user path: the plainest relay a Rust programmer would write on tokio, one
//! current-thread runtime, `recv_from`, N × `send_to`. It parses nothing and checks nothing.
//!
//! `bench_relay <listen address> <viewer address>...`

use std::net::SocketAddr;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let listen: SocketAddr = args.next().context("missing listen address")?.parse()?;
    let viewers = args.map(|a| a.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async move {
        let socket = std::net::UdpSocket::bind(listen)?;
        socket.set_nonblocking(true)?;
        // The same receive buffer as every other contender.
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
        socket2::SockRef::from(&socket).set_send_buffer_size(4 << 20)?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let mut packet = vec![0_u8; 65_536];
        loop {
            let (len, _) = socket.recv_from(&mut packet).await?;
            let Some(bytes) = packet.get(..len) else { continue };
            for viewer in &viewers {
                socket.send_to(bytes, viewer).await?;
            }
        }
    })
}
