//! The kernel as the fast path sees it: netlink, the ladder, and the tests of what hangs there.

use std::net::IpAddr;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::batcher::Batcher;
use super::hop::{Rung, UserReason};
use super::hops::{Hops, Outside};
use super::ipsec::Policies;
use super::ladder::Ladder;
use super::net::{Link, Neighbour, NeighbourKey, Route, neighbour};
use super::netlink::Requests;
use super::refusals::Refusals;
use super::selftest::{Sees, SelfTest};
use super::service::InterfaceStatus;
use super::undo::name_of;

/// The kernel as [`Hops`] sees it.
pub(super) struct World {
    pub(super) requests: Requests,
    pub(super) ladder: Ladder,
    /// The process that was taken over from still has its programs on the interfaces.
    pub(super) waits: bool,
    /// Interfaces on which nothing could be attached.
    pub(super) refused: Refusals,
    pub(super) tests: SelfTest,
}

impl Outside for World {
    fn policies(&mut self) -> Option<Policies> {
        let read = Policies::read();
        if let Err(error) = &read {
            warn!(event = "kernel.ipsec", reason = %error, "cannot read the IPsec policies: what was known of them holds");
        }
        read.ok()
    }

    fn route(&mut self, peer: IpAddr, local: IpAddr) -> Option<Route> {
        self.requests.route(peer, local).ok().map(|message| Route::of(&message))
    }

    fn neighbour(&mut self, (ifindex, ip): NeighbourKey) -> Option<Neighbour> {
        self.requests.neighbour(ifindex, ip).and_then(|message| neighbour(&message)).map(|(_, state)| state)
    }

    fn resolve(&mut self, (ifindex, ip): NeighbourKey) {
        if let Err(error) = self.requests.resolve(ifindex, ip) {
            debug!(event = "kernel.resolve_failed", ifindex, %ip, reason = %error);
        }
    }

    fn attach(&mut self, link: &Link) -> Result<Rung, UserReason> {
        if self.waits {
            let why = "the proxy before this one has not ended yet".to_owned();
            return Err(UserReason::Interface { interface: link.name.clone(), why });
        }
        if let Some(why) = self.refused.standing(link, Instant::now()) {
            return Err(why.clone());
        }
        self.ladder.rename(link.ifindex, &link.name);
        let attached = self.ladder.attached().get(&link.ifindex).map(|on| on.rung);
        if let Some(rung) = attached.filter(|_| self.tests.is_tested(link)) {
            return Ok(rung);
        }
        let is_new = attached.is_none();
        let result = self.climb(link, !is_new);
        match &result {
            Ok(rung) if is_new => {
                let reason = self.ladder.attached().get(&link.ifindex).and_then(|on| on.why.as_deref());
                info!(
                    event = "rung.changed",
                    interface = link.name,
                    rung = rung.as_str(),
                    reason,
                    "attached"
                );
            }
            Ok(_) => {}
            Err(why) => {
                if self.refused.note(link, why, Instant::now()) {
                    info!(event = "rung.changed", interface = link.name, rung = "user", reason = %why);
                }
            }
        }
        if result.is_ok() {
            self.refused.forget(link.ifindex);
        }
        result
    }

    fn is_there(&mut self, ifindex: u32) -> bool {
        name_of(ifindex).is_some()
    }

    fn detached(&mut self, ifindex: u32) {
        self.refused.forget(ifindex);
        self.tests.forget(Some(ifindex));
        if let Some(name) = self.ladder.forget(ifindex) {
            info!(event = "rung.changed", interface = name, rung = "user", reason = "the interface is gone");
        }
    }
}

impl World {
    /// Attaches by the best rung whose program sees what comes in. `again`: what is attached already may be attached
    /// once more, for somebody may have taken it off.
    fn climb(&mut self, link: &Link, mut again: bool) -> Result<Rung, UserReason> {
        let mut best = Rung::Tcx;
        let mut blind: Vec<String> = Vec::new();
        while best != Rung::User {
            let rung = match self.ladder.attach(link.ifindex, &link.name, best) {
                Ok(rung) => rung,
                Err(why) if blind.is_empty() => return Err(why),
                Err(why) => {
                    blind.push(why.to_string());
                    break;
                }
            };
            if !blind.is_empty() {
                self.ladder.explain(link.ifindex, blind.join("; "));
            }
            match self.tests.run(self.ladder.kernel(), &mut self.requests, link, rung) {
                Sees::No => {}
                Sees::Yes => return Ok(rung),
                Sees::Unknown(why) => {
                    debug!(event = "kernel.untested", interface = link.name, rung = rung.as_str(), why);
                    return Ok(rung);
                }
            }
            if let Err(left) = self.ladder.detach(link.ifindex) {
                warn!(
                    event = "kernel.left_behind",
                    "{left}; tried again when the program is attached there and when this proxy ends"
                );
            }
            let why = format!("{}: the program does not see what comes in", rung.as_str());
            if std::mem::take(&mut again) {
                info!(event = "rung.changed", interface = link.name, rung = "user", reason = why, "again");
                continue;
            }
            blind.push(why);
            best = if rung == Rung::Tcx { Rung::Tc } else { Rung::User };
        }
        Err(UserReason::Interface { interface: link.name.clone(), why: blind.join("; ") })
    }

    pub(super) fn links(&mut self, hops: &mut Hops) {
        match self.requests.links() {
            Ok(links) => hops.replace_links(links.iter().map(Link::of).collect(), self),
            Err(error) => warn!(event = "kernel.netlink", reason = %error, "cannot read the interfaces"),
        }
    }

    pub(super) fn status(&self, batcher: &Batcher) -> Vec<InterfaceStatus> {
        let attached = self.ladder.attached().iter().map(|(ifindex, on)| InterfaceStatus {
            interface: on.name.clone(),
            rung: Ok(on.rung),
            why: on.why.clone(),
            batching: batcher.status(*ifindex),
        });
        let refused = self.refused.iter().map(|(link, why)| InterfaceStatus {
            interface: link.name.clone(),
            rung: Err(why.clone()),
            why: None,
            batching: None,
        });
        let mut status: Vec<_> = attached.chain(refused).collect();
        status.sort_by(|a, b| a.interface.cmp(&b.interface));
        status
    }
}
