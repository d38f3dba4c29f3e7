//! NETLINK_ROUTE, as little of it as the fast path asks for: requests that wait for their answer (some
//! microseconds), and a socket that tells what changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage, Stats64};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// Groups whose messages change a way: links, neighbours, addresses, routes and rules of both families.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// The kernel answers at once; a request that it does not answer must not stop the thread.
const PATIENCE: i64 = 2;

/// Receive buffer of the notices: a burst of some ten thousand of them.
const NOTICE_BUFFER: usize = 8 << 20;

/// What came in by a veth since it exists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrivals {
    /// Buffers.
    pub(super) received: u64,
    /// Packets that its far end could not send because there was no room for them here. `None` where we may not look.
    pub(super) lost: Option<u64>,
}

/// Asks.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
}

/// Family and octets of an address in netlink's types.
fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Requests {
    /// For the calling thread's network namespace.
    ///
    /// # Errors
    /// From the kernel.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                        };
                    }
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Every interface.
    pub(super) fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect())
    }

    /// What came in by a veth since it exists.
    pub(super) fn arrivals(&mut self, ifindex: u32) -> io::Result<Arrivals> {
        let link = self.link(ifindex, None)?;
        let received = stats(&link).ok_or(io::ErrorKind::InvalidData)?.rx_packets;
        let attributes = link.attributes.iter();
        let peer = attributes.clone().find_map(|attribute| match attribute {
            LinkAttribute::Link(peer) => Some(*peer),
            _ => None,
        });
        // The number that our namespace has for the other one; without it both ends are here.
        let namespace = attributes.clone().find_map(|attribute| match attribute {
            LinkAttribute::LinkNetNsId(number) => Some(*number),
            _ => None,
        });
        let peer = peer.and_then(|peer| self.link(peer, namespace).ok());
        Ok(Arrivals { received, lost: peer.and_then(|peer| Some(stats(&peer)?.tx_dropped)) })
    }

    /// An interface, of another namespace where its number is given.
    fn link(&mut self, ifindex: u32, namespace: Option<i32>) -> io::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes.extend(namespace.map(LinkAttribute::IfNetnsId));
        match self.ask(RouteNetlinkMessage::GetLink(message), 0)?.pop() {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The route that a packet to `peer` takes, from `local` where that is known.
    pub(super) fn route(&mut self, peer: IpAddr, local: IpAddr) -> io::Result<RouteMessage> {
        let mut message = RouteMessage::default();
        let bits = if peer.is_ipv4() { 32 } else { 128 };
        message.header.address_family = family(peer);
        message.header.destination_prefix_length = bits;
        message.attributes.push(RouteAttribute::Destination(peer.into()));
        if !local.is_unspecified() && local.is_ipv4() == peer.is_ipv4() {
            message.header.source_prefix_length = bits;
            message.attributes.push(RouteAttribute::Source(local.into()));
        }
        match self.ask(RouteNetlinkMessage::GetRoute(message), 0)?.pop() {
            Some(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn neighbour_message(ifindex: u32, ip: IpAddr) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = ifindex;
        message.attributes.push(NeighbourAttribute::Destination(ip.into()));
        message
    }

    /// The neighbour entry of an address, `None` where the kernel has none.
    pub(super) fn neighbour(&mut self, ifindex: u32, ip: IpAddr) -> Option<NeighbourMessage> {
        let message = Self::neighbour_message(ifindex, ip);
        match self.ask(RouteNetlinkMessage::GetNeighbour(message), 0).ok()?.pop()? {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        }
    }

    /// Has the kernel resolve an address, or confirm what it knows, as if a packet were to be sent there.
    pub(super) fn resolve(&mut self, ifindex: u32, ip: IpAddr) -> io::Result<()> {
        let mut message = Self::neighbour_message(ifindex, ip);
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), flags).map(drop)
    }

    /// Number of filters on both sides of an interface's clsact.
    pub(super) fn clsact_filters(&mut self, ifindex: u32) -> io::Result<usize> {
        let mut count = 0;
        for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
            let mut message = TcMessage::with_index(ifindex as i32);
            message.header.parent = TcHandle { major: u16::MAX, minor };
            count += self.ask(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)?.len();
        }
        Ok(count)
    }

    /// Whether an interface has a clsact qdisc.
    pub(super) fn has_clsact(&mut self, ifindex: u32) -> io::Result<bool> {
        let message = TcMessage::with_index(ifindex as i32);
        let answers = self.ask(RouteNetlinkMessage::GetQueueDiscipline(message), NLM_F_DUMP)?;
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
                qdisc.header.index == ifindex as i32
                    && qdisc.attributes.contains(&TcAttribute::Kind("clsact".to_owned()))
            }
            _ => false,
        }))
    }

    /// Removes an interface's clsact with everything on it.
    pub(super) fn delete_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let mut message = TcMessage::with_index(ifindex as i32);
        message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
        message.header.parent = TcHandle::CLSACT;
        self.ask(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK).map(drop)
    }
}

fn stats(link: &LinkMessage) -> Option<&Stats64> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    })
}

/// The netlink messages of one datagram; what does not parse is left out.
fn messages(mut bytes: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let mut found = Vec::new();
    while let Some(length) = bytes.first_chunk::<4>().map(|length| u32::from_ne_bytes(*length) as usize) {
        let Some(message) = bytes.get(..length).filter(|message| message.len() >= 16) else { break };
        found.extend(NetlinkMessage::deserialize(message).ok());
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Tells what changes.
#[derive(Debug)]
pub(super) struct Notices {
    socket: Socket,
}

/// What a look at the notices brought.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something changed.
    Changed(RouteNetlinkMessage),
    /// Notices were lost: everything must be asked for again.
    Lost,
}

impl Notices {
    /// For the calling thread's network namespace.
    ///
    /// # Errors
    /// From the kernel.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        // Allowed beyond rmem_max with CAP_NET_ADMIN, without which nothing of this runs.
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &NOTICE_BUFFER).ok();
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// The descriptor, readable when there is something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What came since, at most a datagram of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing did.
    pub(super) fn read(&self) -> io::Result<Vec<Notice>> {
        match self.socket.recv_from_full() {
            Ok((bytes, _)) => Ok(messages(&bytes)
                .into_iter()
                .filter_map(|message| match message.payload {
                    NetlinkPayload::InnerMessage(inner) => Some(Notice::Changed(inner)),
                    NetlinkPayload::Overrun(_) => Some(Notice::Lost),
                    _ => None,
                })
                .collect()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(vec![Notice::Lost]),
            Err(error) => Err(error),
        }
    }
}
