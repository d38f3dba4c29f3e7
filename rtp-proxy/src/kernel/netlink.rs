//! NETLINK_ROUTE, as little of it as the fast path asks for: requests that wait for their answer (some
//! microseconds), and a socket that tells what changes.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
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
use tracing::info;

/// Groups whose messages change a way: links, neighbours, addresses, routes and rules of both families.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// Of next-hop objects (`ip nexthop`), which change routes without a word about these. Since kernel 5.3.
const NEXTHOPS: u32 = 32;

/// Types of its messages.
const NEXTHOP_TYPES: [u16; 2] = [104, 105];

/// How often a list is asked for that changes while it is read.
const TRIES: u32 = 3;

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
    unread: Unread,
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
        Ok(Self { socket, sequence: 0, unread: Unread::default() })
    }

    /// A list that changed while it was read may lack what was there all the time, so it is read again; what is asked
    /// for the last time counts.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        let mut tries = 1;
        loop {
            let answers = self.ask_once(&mut message)?;
            if !answers.interrupted || tries == TRIES {
                return Ok(answers.found);
            }
            tries += 1;
        }
    }

    fn ask_once(&mut self, message: &mut NetlinkMessage<RouteNetlinkMessage>) -> io::Result<Answers> {
        self.sequence = self.sequence.wrapping_add(1);
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let is_list = message.header.flags & (NLM_F_DUMP | NLM_F_ACK) != 0;
        let mut answers = Answers::default();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            if answers.take(&bytes, self.sequence, is_list, &self.unread)? {
                return Ok(answers);
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

/// What the kernel answered so far.
#[derive(Debug, Default)]
struct Answers {
    found: Vec<RouteNetlinkMessage>,
    /// The list changed while it was read.
    interrupted: bool,
}

impl Answers {
    /// Takes a datagram. Returns whether the answer is whole.
    fn take(&mut self, bytes: &[u8], sequence: u32, is_list: bool, unread: &Unread) -> io::Result<bool> {
        for message in raw_messages(bytes).filter_map(|message| unread.parse(message)) {
            if message.header.sequence_number != sequence {
                continue;
            }
            self.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(true),
                        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                    };
                }
                NetlinkPayload::InnerMessage(answer) => {
                    self.found.push(answer);
                    if !is_list {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Whether it was said that something of the kernel's cannot be read: once is enough.
#[derive(Debug, Default)]
struct Unread {
    told: Cell<bool>,
}

impl Unread {
    fn parse(&self, message: &[u8]) -> Option<NetlinkMessage<RouteNetlinkMessage>> {
        let parsed = NetlinkMessage::deserialize(message);
        if let Err(error) = &parsed
            && !self.told.replace(true)
        {
            info!(
                event = "kernel.netlink",
                message_type = message_type(message),
                reason = %error,
                "cannot read a message of this kernel: what it is about may be taken for unresolved"
            );
        }
        parsed.ok()
    }
}

fn message_type(message: &[u8]) -> Option<u16> {
    message.get(4..)?.first_chunk::<2>().map(|number| u16::from_ne_bytes(*number))
}

/// The netlink messages of one datagram.
fn raw_messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk::<4>()?) as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Tells what changes.
#[derive(Debug)]
pub(super) struct Notices {
    socket: Socket,
    unread: Unread,
}

/// What a look at the notices brought.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something changed.
    Changed(RouteNetlinkMessage),
    /// A next-hop object changed, and with it perhaps routes.
    Nexthop,
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
        socket.add_membership(NEXTHOPS).ok();
        // Allowed beyond rmem_max with CAP_NET_ADMIN, without which nothing of this runs.
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &NOTICE_BUFFER).ok();
        socket.set_non_blocking(true)?;
        Ok(Self { socket, unread: Unread::default() })
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
            Ok((bytes, _)) => Ok(self.notices(&bytes)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(vec![Notice::Lost]),
            Err(error) => Err(error),
        }
    }

    fn notices(&self, bytes: &[u8]) -> Vec<Notice> {
        let notice = |message| {
            if message_type(message).is_some_and(|kind| NEXTHOP_TYPES.contains(&kind)) {
                return Some(Notice::Nexthop);
            }
            match self.unread.parse(message)?.payload {
                NetlinkPayload::InnerMessage(inner) => Some(Notice::Changed(inner)),
                NetlinkPayload::Overrun(_) => Some(Notice::Lost),
                _ => None,
            }
        };
        raw_messages(bytes).filter_map(notice).collect()
    }
}

#[cfg(test)]
mod tests;
