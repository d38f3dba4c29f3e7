//! Opens listening sockets, and says of a failed bind which setting it was and who holds the port.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that the kernel completes while the accept loop is busy.
const BACKLOG: i32 = 1024;

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}/{transport} ({setting}): {cause}{}", hint(*address, *transport, cause))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Its transport.
    pub transport: Transport,
    /// The option that moves it elsewhere.
    pub setting: &'static str,
    /// The operating system's words.
    pub cause: io::Error,
}

fn hint(address: SocketAddr, transport: Transport, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder(address, transport, Path::new("/proc")) {
            Some(holder) => format!("; {holder} holds it"),
            None => "; another program holds it, perhaps another user's".to_owned(),
        },
        io::ErrorKind::PermissionDenied if address.port() < 1024 => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE, 8554 does not".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "; this machine does not have that address".to_owned(),
        _ => String::new(),
    }
}

/// Opens a listening TCP socket. `[::]` takes IPv4 as well, and is `0.0.0.0` on a kernel without IPv6.
///
/// # Errors
/// [`BindError`] with the setting and the holder of the port.
pub fn listen(address: SocketAddr, setting: &'static str) -> Result<std::net::TcpListener, BindError> {
    let failed = |address, cause| BindError { address, transport: Transport::Tcp, setting, cause };
    match open_tcp(address) {
        Err(error)
            if address.ip().is_unspecified()
                && error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                && address.is_ipv6() =>
        {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            open_tcp(v4).map_err(|error| failed(v4, error))
        }
        other => other.map_err(|error| failed(address, error)),
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Name and pid of the program that holds a port, as far as this user may know. `proc` is `/proc`.
pub fn holder(address: SocketAddr, transport: Transport, proc: &Path) -> Option<String> {
    let inode = ["", "6"]
        .iter()
        .filter_map(|family| std::fs::read_to_string(proc.join(format!("net/{transport}{family}"))).ok())
        .find_map(|table| inode_of(&table, address.port(), transport))?;
    let target = format!("socket:[{inode}]");
    for process in std::fs::read_dir(proc).ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == target.as_str()));
        if holds {
            let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", comm.trim_end()));
        }
    }
    None
}

/// The inode of the listening (TCP) or bound (UDP) socket on `port` in a `/proc/net` table.
fn inode_of(table: &str, port: u16, transport: Transport) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let (_, hex) = local.rsplit_once(':')?;
        let listens = transport == Transport::Udp || state == LISTEN;
        (u16::from_str_radix(hex, 16).ok()? == port && listens).then(|| inode.parse().ok())?
    })
}

/// Addresses of this machine that a player can be given: loopback first, then the others; no link-local.
pub fn local_addresses() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter(|i| i.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP))
        .filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        })
        .collect();
    found.sort_by_key(|ip| (!ip.is_loopback(), ip.is_ipv6()));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_reported_with_its_setting_and_its_holder() {
        let first = listen("127.0.0.1:0".parse().unwrap(), "--rtsp").unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address, "--rtsp").unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains("--rtsp"), "{error}");
        assert!(error.contains(&format!("(pid {}) holds it", std::process::id())), "{error}");
    }

    #[test]
    fn a_held_udp_port_is_found_too() {
        let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = holder(held.local_addr().unwrap(), Transport::Udp, Path::new("/proc")).unwrap();
        assert!(found.contains(&std::process::id().to_string()), "{found}");
    }

    #[test]
    fn every_ipv6_address_takes_ipv4_as_well() {
        let listener = listen("[::]:0".parse().unwrap(), "--rtsp").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    #[test]
    fn an_address_of_another_machine_says_so() {
        let error = listen("192.0.2.1:0".parse().unwrap(), "--rtsp").unwrap_err().to_string();
        assert!(error.contains("does not have that address"), "{error}");
    }
}
