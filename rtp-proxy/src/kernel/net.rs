//! The network as the kernel's tables describe it: interfaces, routes and neighbours as values, and the
//! answers that follow from them.
//!
//! Pure: [`super::hops`] reads netlink and calls.

use std::collections::HashMap;
use std::net::IpAddr;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};

use super::hop::{Hop, UserReason};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    /// `None` for what has no Ethernet address.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) ethernet: bool,
    pub(super) up: bool,
    /// A veth.
    pub(super) veth: bool,
    /// The other end of it is in another network namespace.
    pub(super) elsewhere: bool,
    /// The bridge, bond or the like that it is a port of.
    pub(super) controller: Option<u32>,
}

impl Link {
    pub(super) fn of(message: &LinkMessage) -> Self {
        let header = &message.header;
        let mut link = Self {
            ifindex: header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            ethernet: header.link_layer_type == LinkLayerType::Ether
                && !header.flags.contains(LinkFlags::Loopback),
            up: header.flags.contains(LinkFlags::Up),
            veth: false,
            elsewhere: false,
            controller: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(address) => link.mac = address.as_slice().try_into().ok(),
                LinkAttribute::LinkNetNsId(_) => link.elsewhere = true,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                }
                _ => {}
            }
        }
        link
    }
}

/// Where a packet goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) ifindex: u32,
    /// The router before the peer, if there is one.
    pub(super) gateway: Option<IpAddr>,
    /// Of the path, where the route or what was learned of it says.
    pub(super) mtu: Option<u32>,
    pub(super) kind: RouteKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteKind {
    Unicast,
    Multicast,
    /// An address of this host.
    Local,
    /// Broadcast, prohibited and the like.
    None,
}

impl Route {
    pub(super) fn of(message: &RouteMessage) -> Self {
        let mut route = Self {
            ifindex: 0,
            gateway: None,
            mtu: None,
            kind: match message.header.kind {
                RouteType::Unicast | RouteType::Anycast => RouteKind::Unicast,
                RouteType::Multicast => RouteKind::Multicast,
                RouteType::Local => RouteKind::Local,
                _ => RouteKind::None,
            },
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(ifindex) => route.ifindex = *ifindex,
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some((*ip).into()),
                RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => route.gateway = Some((*ip).into()),
                // An IPv4 route by way of an IPv6 router.
                RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet6(ip)) => {
                    route.gateway = Some((*ip).into());
                }
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        route
    }
}

/// What the kernel knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// Its address; `confirmed` recently, or fixed.
    Known { mac: [u8; 6], confirmed: bool },
    /// It is being asked for.
    Pending,
    /// It does not answer.
    Failed,
}

/// Interface and address of a neighbour.
pub(super) type NeighbourKey = (u32, IpAddr);

/// Key and state of a neighbour entry; `None` for what is no unicast neighbour.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let mut ip = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some((*address).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some((*address).into()),
            NeighbourAttribute::LinkLayerAddress(address) => mac = address.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match (message.header.state, mac) {
        (NeighbourState::Failed, _) => Neighbour::Failed,
        (NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => {
            Neighbour::Known { mac, confirmed: true }
        }
        (NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe, Some(mac)) => {
            Neighbour::Known { mac, confirmed: false }
        }
        _ => Neighbour::Pending,
    };
    Some(((message.header.ifindex, ip?), state))
}

/// Interfaces by index.
#[derive(Debug, Default)]
pub(super) struct Net {
    pub(super) links: HashMap<u32, Link>,
}

impl Net {
    /// The interface that a route leads through, if packets there have Ethernet headers.
    ///
    /// # Errors
    /// [`UserReason::Unresolved`], [`UserReason::NoEthernet`], [`UserReason::Interface`].
    pub(super) fn ethernet(&self, peer: IpAddr, route: &Route) -> Result<&Link, UserReason> {
        if route.kind == RouteKind::Local {
            return Err(UserReason::NoEthernet("loopback".to_owned()));
        }
        let link = self.links.get(&route.ifindex).filter(|_| route.kind != RouteKind::None);
        let link = link.ok_or(UserReason::Unresolved(peer))?;
        if !link.ethernet {
            return Err(UserReason::NoEthernet(link.name.clone()));
        }
        if !link.up {
            return Err(UserReason::Interface { interface: link.name.clone(), why: "down".to_owned() });
        }
        if let Some(controller) = link.controller.and_then(|index| self.links.get(&index)) {
            return Err(UserReason::Interface {
                interface: link.name.clone(),
                why: format!("a port of {}, which takes its packets", controller.name),
            });
        }
        Ok(link)
    }

    /// Whom to ask for the MAC address on the way; `None` where it follows from the address.
    pub(super) fn neighbour_of(peer: IpAddr, route: &Route) -> Option<NeighbourKey> {
        let unicast = route.kind == RouteKind::Unicast && route.ifindex != 0;
        unicast.then(|| (route.ifindex, route.gateway.unwrap_or(peer)))
    }

    /// The way to `peer`.
    ///
    /// # Errors
    /// As [`Net::ethernet`]; [`UserReason::Unresolved`] while the neighbour is not known.
    pub(super) fn hop(
        &self,
        peer: IpAddr,
        route: &Route,
        neighbour: Option<Neighbour>,
    ) -> Result<Hop, UserReason> {
        let link = self.ethernet(peer, route)?;
        let dst_mac = match (route.kind, neighbour) {
            (RouteKind::Multicast, _) => multicast_mac(peer),
            (_, Some(Neighbour::Known { mac, .. })) => mac,
            _ => return Err(UserReason::Unresolved(peer)),
        };
        let src_mac = link.mac.ok_or_else(|| UserReason::NoEthernet(link.name.clone()))?;
        Ok(Hop {
            ifindex: link.ifindex,
            interface: link.name.clone(),
            src_mac,
            dst_mac,
            mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
            local: link.veth && link.elsewhere,
        })
    }
}

/// The MAC address of a group (RFC 1112 6.4, RFC 2464 7).
fn multicast_mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(ip) => {
            let [_, b, c, d] = ip.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

#[cfg(test)]
mod tests;
