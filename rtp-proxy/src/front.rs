//! Accepts RTSP connections. Owns the listening socket; what a connection says is not its business.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use msm_runtime::backoff::Backoff;
use msm_runtime::telemetry::LineLimiter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tracing::warn;

/// Accepted connections that may wait for the control loop; further ones wait in the kernel.
pub const QUEUE: usize = 64;

/// A connection, with IPv4 addresses as such even where the listener is an IPv6 one.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, `TCP_NODELAY` set.
    pub stream: TcpStream,
    /// Its peer.
    pub peer: SocketAddr,
    /// The address it reached us at.
    pub local: SocketAddr,
}

/// Accepts until the receiver is gone. Running out of descriptors pauses it and never ends it.
pub async fn accept(listener: TcpListener, accepted: mpsc::Sender<Accepted>) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let mut limiter = LineLimiter::new(1, Duration::from_secs(10));
    loop {
        // A permit first: what the control loop cannot take yet stays in the kernel's queue.
        let Ok(permit) = accepted.reserve().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                backoff.reset();
                let Ok(local) = stream.local_addr() else { continue };
                let _ = stream.set_nodelay(true);
                permit.send(Accepted { stream, peer: canonical(peer), local: canonical(local) });
            }
            Err(error) => {
                drop(permit);
                let lasting = matches!(
                    error.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                );
                if let Some(suppressed) = limiter.admit(Instant::now(), error.raw_os_error()) {
                    warn!(event = "accept.failed", suppressed, "cannot accept a connection: {error}");
                }
                // The others (ECONNABORTED, ENETDOWN and so on) concern one connection only: accept(2).
                if lasting {
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }
}

/// `address` with an IPv4-mapped IPv6 address as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ipv4_peer_of_a_dual_stack_listener_has_an_ipv4_address() {
        let listener = crate::bind::listen("[::]:0".parse().unwrap(), "--rtsp").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tx, mut rx) = mpsc::channel(QUEUE);
        let task = tokio::spawn(accept(TcpListener::from_std(listener).unwrap(), tx));
        let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let accepted = rx.recv().await.unwrap();
        assert_eq!(accepted.peer, client.local_addr().unwrap());
        assert_eq!(accepted.local, client.peer_addr().unwrap());
        assert!(accepted.stream.nodelay().unwrap());
        task.abort();
    }

    #[tokio::test]
    async fn connections_that_the_control_loop_cannot_take_wait_in_the_kernel() {
        let listener = crate::bind::listen("127.0.0.1:0".parse().unwrap(), "--rtsp").unwrap();
        let address = listener.local_addr().unwrap();
        let (tx, mut rx) = mpsc::channel(1);
        let task = tokio::spawn(accept(TcpListener::from_std(listener).unwrap(), tx));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        for client in &clients {
            assert_eq!(rx.recv().await.unwrap().peer, client.local_addr().unwrap());
        }
        task.abort();
    }
}
