//! Opens byte streams to cameras: resolves, tries every address, gives up in time.
//!
//! Endpoints come from configuration only (SEC-11). The addresses that a name resolves to are checked at
//! every connect, so that a name cannot be re-pointed at a cloud's metadata service.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};

/// Longest time for all addresses of a camera together.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Head start of one address before the next one is tried beside it (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 8;

/// Why a camera could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name is unknown, or the resolver failed.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's words.
        source: io::Error,
    },
    /// No address that may be dialled.
    #[error("{host} has no address that may be dialled (link-local, metadata, multicast: SEC-11)")]
    Denied {
        /// The name.
        host: String,
    },
    /// Every address refused.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address that was tried last.
        address: SocketAddr,
        /// The operating system's words.
        source: io::Error,
    },
    /// Nothing answered in time.
    #[error("{host}:{port} did not answer within {DEADLINE:?}")]
    Timeout {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Connects to a camera, `TCP_NODELAY` set.
///
/// # Errors
/// [`DialError`]; every attempt has ended when it is returned.
pub async fn dial(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let timeout = DialError::Timeout { host: host.to_owned(), port };
    tokio::time::timeout(DEADLINE, connect(host, port)).await.unwrap_or(Err(timeout))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let resolved = lookup_host((host, port))
        .await
        .map_err(|source| DialError::Resolve { host: host.to_owned(), source })?;
    let addresses = order(resolved);
    if addresses.is_empty() {
        return Err(DialError::Denied { host: host.to_owned() });
    }
    let mut attempts = tokio::task::JoinSet::new();
    let mut waiting = addresses.into_iter();
    let mut last = None;
    loop {
        let next = waiting.next();
        let more = next.is_some();
        if let Some(address) = next {
            attempts.spawn(async move { (address, TcpStream::connect(address).await) });
        }
        let joined = if more && waiting.len() > 0 {
            match tokio::time::timeout(STAGGER, attempts.join_next()).await {
                Ok(joined) => joined,
                Err(_) => continue,
            }
        } else {
            attempts.join_next().await
        };
        match joined {
            Some(Ok((_, Ok(stream)))) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Some(Ok((address, Err(source)))) => last = Some(DialError::Connect { address, source }),
            Some(Err(_)) => {}
            None => return Err(last.unwrap_or_else(|| DialError::Denied { host: host.to_owned() })),
        }
    }
}

/// The addresses that may be dialled, families alternating, IPv6 first (RFC 8305 section 4).
fn order(resolved: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = resolved.filter(|a| allowed(a.ip())).partition(SocketAddr::is_ipv6);
    let mut out = Vec::new();
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    loop {
        let before = out.len();
        out.extend(v6.next());
        out.extend(v4.next());
        if out.len() == before || out.len() >= MOST_ADDRESSES {
            return out;
        }
    }
}

/// Whether a camera can be there. A site's cameras are private or loopback addresses; metadata services,
/// multicast and the unspecified address are not cameras.
pub fn allowed(ip: IpAddr) -> bool {
    /// Where clouds serve instance credentials over IPv6.
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip != METADATA_V4 && !ip.is_multicast() && !ip.is_unspecified() && !ip.is_broadcast()
        }
        IpAddr::V6(ip) => ip != METADATA_V6 && !ip.is_multicast() && !ip.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_services_are_never_dialled_and_private_cameras_are() {
        for (ip, want) in [
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("fd00:ec2::254", false),
            ("224.0.0.1", false),
            ("0.0.0.0", false),
            ("ff02::1", false),
            ("169.254.10.20", true),
            ("192.168.1.64", true),
            ("10.0.0.1", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("fe80::1", true),
        ] {
            assert_eq!(allowed(ip.parse().unwrap()), want, "{ip}");
        }
    }

    #[test]
    fn families_alternate_and_the_number_of_attempts_is_bounded() {
        let all = ["10.0.0.1:554", "10.0.0.2:554", "[2001:db8::1]:554"].map(|a| a.parse().unwrap());
        let want = ["[2001:db8::1]:554", "10.0.0.1:554", "10.0.0.2:554"].map(|a| a.parse().unwrap());
        assert_eq!(order(all.into_iter()), want);
        let many = (0..100).map(|i| SocketAddr::new(Ipv4Addr::new(10, 0, 0, i).into(), 554));
        assert_eq!(order(many).len(), MOST_ADDRESSES);
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over_for_one_that_answers() {
        // Bound to IPv4 only: [::1] refuses wherever localhost means both.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = dial("localhost", listener.local_addr().unwrap().port()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = dial("127.0.0.1", port).await.unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
    }
}
