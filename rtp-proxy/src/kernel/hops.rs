//! The state behind the answers: who wants what, what the network says, and whom to tell.
//!
//! No socket and no clock of its own: [`super::service`] brings netlink, time and the ladder.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use tokio::sync::mpsc::error::TrySendError;

use super::hop::{Ingress, Rung, UserReason, Want, Way};
use super::ipsec::Policies;
use super::net::{Link, Neighbour, NeighbourKey, Net, Route, neighbour};
use super::ways::{Note, NoteSender};

/// A neighbour whose entry the kernel let go keeps its address so long while it is asked for again.
const GRACE: Duration = Duration::from_secs(3);
/// First pause before a neighbour that does not answer is asked for again; it doubles.
const RETRY: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Forwarding in programs does not confirm a neighbour: the kernel is made to, so often.
const CONFIRM: Duration = Duration::from_secs(20);
/// Everything is asked for again so often: path MTUs change without a notice.
pub(super) const REFRESH: Duration = Duration::from_secs(60);

/// What the kernel's own stack encrypts or stops does not pass a program.
const IPSEC: UserReason = UserReason::Transport("an IPsec policy of this host");

/// What the state needs of the kernel.
pub(super) trait Outside {
    /// The IPsec policies, if they can be read.
    fn policies(&mut self) -> Option<Policies>;
    /// The route to `peer`.
    fn route(&mut self, peer: IpAddr, local: IpAddr) -> Option<Route>;
    /// The neighbour entry, if there is one.
    fn neighbour(&mut self, key: NeighbourKey) -> Option<Neighbour>;
    /// Has the kernel resolve or confirm a neighbour.
    fn resolve(&mut self, key: NeighbourKey);
    /// Attaches the program.
    fn attach(&mut self, link: &Link) -> Result<Rung, UserReason>;
    /// Whether there is such an interface, whatever can be read of it.
    fn is_there(&mut self, ifindex: u32) -> bool;
    /// The interface is gone.
    fn detached(&mut self, ifindex: u32);
}

#[derive(Debug)]
struct Wanted {
    workers: BTreeSet<usize>,
    route: Option<Route>,
    neighbour: Option<NeighbourKey>,
    way: Way,
}

#[derive(Debug)]
struct Watched {
    state: Neighbour,
    wants: HashSet<Want>,
    /// When to ask for it next.
    at: Instant,
    pause: Duration,
    /// Until when an address that is not confirmed any more is still used.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Outbox {
    notes: NoteSender,
    changed: VecDeque<Want>,
    queued: HashSet<Want>,
    others: VecDeque<Note>,
}

/// Everything that is wanted.
#[derive(Debug)]
pub(super) struct Hops {
    net: Net,
    policies: Policies,
    /// Names of `--interface`; empty for every interface.
    named: Vec<String>,
    wants: HashMap<Want, Wanted>,
    neighbours: BTreeMap<NeighbourKey, Watched>,
    outboxes: Vec<Outbox>,
    routes_changed: bool,
    links_changed: bool,
    /// Notices of neighbours may be missing.
    neighbours_unread: bool,
}

fn ends(want: &Want) -> (IpAddr, IpAddr) {
    match *want {
        Want::Ingress { peer, local } | Want::Hop { peer, local } => (peer, local),
    }
}

impl Hops {
    pub(super) fn new(named: Vec<String>, notes: Vec<NoteSender>) -> Self {
        let outbox = |notes| Outbox {
            notes,
            changed: VecDeque::new(),
            queued: HashSet::new(),
            others: VecDeque::new(),
        };
        Self {
            net: Net::default(),
            policies: Policies::default(),
            named,
            wants: HashMap::new(),
            neighbours: BTreeMap::new(),
            outboxes: notes.into_iter().map(outbox).collect(),
            routes_changed: false,
            links_changed: false,
            neighbours_unread: false,
        }
    }

    /// An interface.
    pub(super) fn link(&self, ifindex: u32) -> Option<&Link> {
        self.net.links.get(&ifindex)
    }

    /// Whether the fast path may use an interface.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.named.is_empty() || self.named.iter().any(|named| named == name)
    }

    pub(super) fn want(&mut self, worker: usize, want: Want, now: Instant, outside: &mut impl Outside) {
        if let Some(wanted) = self.wants.get_mut(&want) {
            wanted.workers.insert(worker);
        } else {
            let way = unresolved(&want);
            let wanted = Wanted { workers: BTreeSet::from([worker]), route: None, neighbour: None, way };
            self.wants.insert(want, wanted);
            self.ask_route(want, now, outside);
            self.answer(want, now, outside);
        }
        self.tell(worker, want);
    }

    pub(super) fn forget(&mut self, worker: usize, want: Want) {
        let Some(wanted) = self.wants.get_mut(&want) else { return };
        wanted.workers.remove(&worker);
        if !wanted.workers.is_empty() {
            return;
        }
        let neighbour = wanted.neighbour;
        self.wants.remove(&want);
        if let Some(key) = neighbour {
            self.unwatch(key, &want);
        }
    }

    fn unwatch(&mut self, key: NeighbourKey, want: &Want) {
        if let Some(watched) = self.neighbours.get_mut(&key) {
            watched.wants.remove(want);
            if watched.wants.is_empty() {
                self.neighbours.remove(&key);
            }
        }
    }

    fn ask_route(&mut self, want: Want, now: Instant, outside: &mut impl Outside) {
        let (peer, local) = ends(&want);
        let route = outside.route(peer, local);
        let key = match (&want, &route) {
            (Want::Hop { .. }, Some(route)) => Net::neighbour_of(peer, route),
            _ => None,
        };
        // Nobody asks through interfaces that media does not use.
        let key = key.filter(|(ifindex, _)| self.net.links.get(ifindex).is_some_and(|link| link.ethernet));
        let Some(wanted) = self.wants.get_mut(&want) else { return };
        wanted.route = route;
        let before = std::mem::replace(&mut wanted.neighbour, key);
        if before != key {
            if let Some(before) = before {
                self.unwatch(before, &want);
            }
            if let Some(key) = key {
                self.watch(key, want, now, outside);
            }
        }
    }

    fn watch(&mut self, key: NeighbourKey, want: Want, now: Instant, outside: &mut impl Outside) {
        if let Some(watched) = self.neighbours.get_mut(&key) {
            watched.wants.insert(want);
            return;
        }
        let state = outside.neighbour(key).unwrap_or(Neighbour::Pending);
        let confirmed = matches!(state, Neighbour::Known { confirmed: true, .. });
        if !confirmed {
            outside.resolve(key);
        }
        let at = now + if matches!(state, Neighbour::Known { .. }) { CONFIRM } else { RETRY };
        let watched = Watched { state, wants: HashSet::from([want]), at, pause: RETRY * 2, until: None };
        self.neighbours.insert(key, watched);
    }

    /// Finds out the answer; tells it if it is another.
    fn answer(&mut self, want: Want, now: Instant, outside: &mut impl Outside) {
        let (peer, local) = ends(&want);
        let Some(wanted) = self.wants.get(&want) else { return };
        let way = match (&want, wanted.route) {
            _ if self.policies.cover(peer, local) => refused(&want, IPSEC),
            (_, None) => unresolved(&want),
            (Want::Ingress { .. }, Some(route)) => Way::Ingress(self.ingress(peer, &route, outside)),
            (Want::Hop { .. }, Some(route)) => {
                let state = wanted.neighbour.and_then(|key| self.neighbours.get(&key)).map(|w| w.usable(now));
                let hop = self.net.hop(peer, &route, state).and_then(|hop| {
                    if self.is_named(&hop.interface) {
                        Ok(hop)
                    } else {
                        Err(UserReason::NotNamed(hop.interface))
                    }
                });
                Way::Hop(hop)
            }
        };
        let Some(wanted) = self.wants.get_mut(&want) else { return };
        if wanted.way != way {
            wanted.way = way;
            for worker in wanted.workers.clone() {
                self.tell(worker, want);
            }
        }
    }

    fn ingress(
        &self,
        peer: IpAddr,
        route: &Route,
        outside: &mut impl Outside,
    ) -> Result<Ingress, UserReason> {
        let link = self.net.ethernet(peer, route)?;
        if !self.is_named(&link.name) {
            return Err(UserReason::NotNamed(link.name.clone()));
        }
        let rung = outside.attach(link)?;
        Ok(Ingress { ifindex: link.ifindex, interface: link.name.clone(), mtu: link.mtu, rung })
    }

    /// Takes every interface over. One that is not in `links` is gone, if it is not just that it could not be read.
    pub(super) fn replace_links(&mut self, links: Vec<Link>, outside: &mut impl Outside) {
        let before = std::mem::take(&mut self.net.links);
        self.net.links = links.into_iter().map(|link| (link.ifindex, link)).collect();
        for (ifindex, link) in before {
            if self.net.links.contains_key(&ifindex) {
                continue;
            }
            if outside.is_there(ifindex) {
                self.net.links.insert(ifindex, link);
            } else {
                outside.detached(ifindex);
            }
        }
        self.links_changed = true;
        self.routes_changed = true;
    }

    /// Takes a notice over. What follows from it is done by [`Hops::settle`].
    pub(super) fn notice(&mut self, message: &RouteNetlinkMessage, now: Instant, outside: &mut impl Outside) {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                let link = Link::of(message);
                // A bridge tells of its ports in messages of its own, without what we look at.
                if message.header.interface_family != netlink_packet_route::AddressFamily::Unspec {
                    return;
                }
                if self.net.links.get(&link.ifindex) != Some(&link) {
                    self.net.links.insert(link.ifindex, link);
                    self.links_changed = true;
                    self.routes_changed = true;
                }
            }
            RouteNetlinkMessage::DelLink(message) => {
                if message.header.interface_family != netlink_packet_route::AddressFamily::Unspec {
                    return;
                }
                if self.net.links.remove(&message.header.index).is_some() {
                    outside.detached(message.header.index);
                    self.links_changed = true;
                    self.routes_changed = true;
                }
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                if let Some((key, state)) = neighbour(message) {
                    self.neighbour_changed(key, Some(state), now, outside);
                }
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                if let Some((key, _)) = neighbour(message) {
                    self.neighbour_changed(key, None, now, outside);
                }
            }
            _ => self.routes_changed = true,
        }
    }

    fn neighbour_changed(
        &mut self,
        key: NeighbourKey,
        state: Option<Neighbour>,
        now: Instant,
        outside: &mut impl Outside,
    ) {
        let Some(watched) = self.neighbours.get_mut(&key) else { return };
        match state {
            Some(state @ Neighbour::Known { confirmed, .. }) => {
                *watched = Watched {
                    state,
                    wants: std::mem::take(&mut watched.wants),
                    at: if confirmed { now + CONFIRM } else { watched.at.min(now + CONFIRM) },
                    pause: RETRY,
                    until: None,
                };
            }
            Some(Neighbour::Failed) => {
                watched.state = Neighbour::Failed;
                watched.until = None;
                watched.at = now + watched.pause;
                watched.pause = (watched.pause * 2).min(LONGEST_RETRY);
            }
            // Let go or asked for anew: what was known serves until the answer is there.
            Some(Neighbour::Pending) | None => {
                if watched.until.is_none() && matches!(watched.state, Neighbour::Known { .. }) {
                    watched.until = Some(now + GRACE);
                }
                if state.is_none() {
                    watched.at = now + RETRY;
                    outside.resolve(key);
                }
            }
        }
        let wants: Vec<Want> =
            self.neighbours.get(&key).into_iter().flat_map(|w| &w.wants).copied().collect();
        for want in wants {
            self.answer(want, now, outside);
        }
    }

    /// Whether [`Hops::settle`] has something to do.
    pub(super) fn is_unsettled(&self) -> bool {
        self.routes_changed || self.links_changed
    }

    /// Every answer is to be found out again, from the routes as they are known.
    pub(super) fn look_again(&mut self) {
        self.links_changed = true;
    }

    /// Every route is to be asked for again.
    pub(super) fn reroute(&mut self) {
        self.routes_changed = true;
    }

    /// Everything is to be asked for again.
    pub(super) fn unsettle(&mut self) {
        self.routes_changed = true;
        self.links_changed = true;
        self.neighbours_unread = true;
    }

    /// Draws the consequences of what [`Hops::notice`] took over.
    pub(super) fn settle(&mut self, now: Instant, outside: &mut impl Outside) {
        self.attach_named(outside);
        let routes = std::mem::take(&mut self.routes_changed);
        if routes && let Some(policies) = outside.policies() {
            self.policies = policies;
        }
        self.links_changed = false;
        if std::mem::take(&mut self.neighbours_unread) {
            let known: Vec<NeighbourKey> = self.neighbours.keys().copied().collect();
            for key in known {
                let state = outside.neighbour(key);
                self.neighbour_changed(key, state, now, outside);
            }
        }
        let wants: Vec<Want> = self.wants.keys().copied().collect();
        for want in wants {
            if routes {
                self.ask_route(want, now, outside);
            }
            self.answer(want, now, outside);
        }
    }

    /// Interfaces that were named get the program before anybody needs it.
    fn attach_named(&mut self, outside: &mut impl Outside) {
        for name in &self.named {
            let link = self.net.links.values().find(|link| link.name == *name);
            if let Some(link) = link.filter(|link| link.ethernet && link.up) {
                let _ = outside.attach(link);
            }
        }
    }

    /// When [`Hops::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.neighbours.values().flat_map(|watched| [Some(watched.at), watched.until]).flatten().min()
    }

    /// Asks for neighbours again, and gives those up that let their time go by.
    pub(super) fn handle_timeout(&mut self, now: Instant, outside: &mut impl Outside) {
        let due: Vec<NeighbourKey> = self
            .neighbours
            .iter()
            .filter(|(_, watched)| watched.at <= now || watched.until.is_some_and(|until| until <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let Some(watched) = self.neighbours.get_mut(&key) else { continue };
            if watched.until.is_some_and(|until| until <= now) {
                // The notice that it is there again may be missing.
                watched.state = match outside.neighbour(key) {
                    Some(known @ Neighbour::Known { .. }) => known,
                    _ => Neighbour::Failed,
                };
                watched.until = None;
            }
            if watched.at <= now {
                if matches!(watched.state, Neighbour::Known { .. }) {
                    watched.at = now + CONFIRM;
                } else {
                    watched.at = now + watched.pause;
                    watched.pause = (watched.pause * 2).min(LONGEST_RETRY);
                }
                outside.resolve(key);
            }
            let wants: Vec<Want> = watched.wants.iter().copied().collect();
            for want in wants {
                self.answer(want, now, outside);
            }
        }
    }

    fn tell(&mut self, worker: usize, want: Want) {
        if let Some(outbox) = self.outboxes.get_mut(worker)
            && outbox.queued.insert(want)
        {
            outbox.changed.push_back(want);
        }
    }

    /// Puts a note into a worker's queue.
    pub(super) fn note(&mut self, worker: usize, note: Note) {
        if let Some(outbox) = self.outboxes.get_mut(worker) {
            outbox.others.push_back(note);
        }
    }

    /// Delivers what workers have room for; the newest answer, however often it changed. Returns whether
    /// something is left.
    pub(super) fn deliver(&mut self) -> bool {
        let mut left = false;
        for (worker, outbox) in self.outboxes.iter_mut().enumerate() {
            loop {
                let (want, note) = if let Some(note) = outbox.others.pop_front() {
                    (None, note)
                } else if let Some(want) = outbox.changed.pop_front() {
                    let wanted = self.wants.get(&want).filter(|wanted| wanted.workers.contains(&worker));
                    let Some(wanted) = wanted else {
                        outbox.queued.remove(&want);
                        continue;
                    };
                    (Some(want), Note::Way(want, wanted.way.clone()))
                } else {
                    break;
                };
                match (outbox.notes.try_send(note), want) {
                    (Ok(()), Some(want)) => {
                        outbox.queued.remove(&want);
                    }
                    (Ok(()), None) => {}
                    (Err(TrySendError::Full(note)), want) => {
                        match want {
                            Some(want) => outbox.changed.push_front(want),
                            None => outbox.others.push_front(note),
                        }
                        left = true;
                        break;
                    }
                    // A worker that has ended.
                    (Err(TrySendError::Closed(_)), _) => {
                        outbox.changed.clear();
                        outbox.queued.clear();
                        outbox.others.clear();
                        break;
                    }
                }
            }
        }
        left
    }
}

impl Watched {
    /// The state as far as it may be used.
    fn usable(&self, now: Instant) -> Neighbour {
        match (self.state, self.until) {
            (Neighbour::Known { .. }, Some(until)) if until <= now => Neighbour::Failed,
            (state, _) => state,
        }
    }
}

fn unresolved(want: &Want) -> Way {
    refused(want, UserReason::Unresolved(ends(want).0))
}

fn refused(want: &Want, why: UserReason) -> Way {
    match want {
        Want::Ingress { .. } => Way::Ingress(Err(why)),
        Want::Hop { .. } => Way::Hop(Err(why)),
    }
}

#[cfg(test)]
mod tests;
