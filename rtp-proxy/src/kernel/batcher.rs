//! Looks at how media comes in, and has bursts merged where that pays ([`super::batching`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use msm_fastpath::FlowKey;
use tracing::{debug, info, warn};

use super::batching::{Batching, BatchingStatus, Change, Flow, Look, Why, room};
use super::hops::Hops;
use super::ladder::Ladder;
use super::netlink::Requests;
use super::share::flow_id;
use super::tables::KernelTable;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// A look may take this part of the thread's time: with thousands of flows there are fewer looks.
const SHARE: u32 = 50;

/// The part of the thread that sees to it.
#[derive(Debug)]
pub(super) struct Batcher {
    batching: Batching,
    table: KernelTable,
    /// `--batching auto`.
    may: bool,
    /// `None` until what an earlier process did is ours.
    at: Option<Instant>,
    /// As of [`Batching::lost`], for who counts drops.
    lost: Arc<AtomicU64>,
}

impl Batcher {
    pub(super) fn new(table: KernelTable, may: bool, lost: Arc<AtomicU64>) -> Self {
        Self { batching: Batching::default(), table, may, at: None, lost }
    }

    /// Nobody else decides any more: what an earlier process had merged goes on, or ends where that is not
    /// wanted.
    pub(super) fn take_over(&mut self, ladder: &mut Ladder, now: Instant) {
        ladder.read_records();
        for ifindex in ladder.merged() {
            if self.may {
                self.batching.adopt(ifindex, now);
            } else if let Err(why) = ladder.let_go(ifindex) {
                left_merged(ifindex, &why);
            }
        }
        self.at = self.may.then(|| now + LOOK);
    }

    /// When [`Batcher::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self, ladder: &Ladder) -> Option<Instant> {
        self.at.filter(|_| !ladder.attached().is_empty())
    }

    pub(super) fn status(&self, ifindex: u32) -> Option<BatchingStatus> {
        self.batching.status(ifindex, Instant::now())
    }

    /// Looks, and switches what is to be switched.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        hops: &Hops,
        requests: &mut Requests,
        ladder: &mut Ladder,
    ) {
        if self.at.is_none_or(|at| now < at) {
            return;
        }
        self.batching.retain(|ifindex| ladder.attached().contains_key(&ifindex));
        self.batching.observe(&ladder.merged());
        // Of veths alone: a NIC merges by itself, and its rings are the administrator's.
        let is_ours = |ifindex: u32| {
            ladder.attached().contains_key(&ifindex) && hops.link(ifindex).is_some_and(|link| link.veth)
        };
        let paces = self.table.paces(is_ours).into_iter();
        let flow = |(key, pace, viewers): (FlowKey, _, _)| Flow {
            ifindex: key.ifindex,
            id: flow_id(&key),
            pace,
            viewers,
        };
        let mut look = Look { flows: paces.map(flow).collect(), backlog: backlog(), ..Look::default() };
        for Flow { ifindex, .. } in &look.flows {
            if !look.received.contains_key(ifindex)
                && let Ok(arrivals) = requests.arrivals(*ifindex)
            {
                look.received.insert(*ifindex, arrivals.received);
                look.lost.extend(arrivals.lost.map(|lost| (*ifindex, lost)));
            }
        }
        for change in self.batching.handle_look(now, &look) {
            let mac = hops.link(change.ifindex).and_then(|link| link.mac);
            let result =
                if change.on { ladder.merge(change.ifindex, mac) } else { ladder.let_go(change.ifindex) };
            let name = hops.link(change.ifindex).map_or("", |link| link.name.as_str());
            tell(name, &change, &result);
            self.batching.done(now, &change, result);
        }
        self.lost.store(self.batching.lost(), Ordering::Relaxed);
        let took = now.elapsed();
        self.at = Some(now + took + LOOK.max(took * SHARE));
    }
}

/// `net.core.netdev_max_backlog`, what it is by default where it cannot be read.
fn backlog() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/net/core/netdev_max_backlog").unwrap_or_default();
    text.trim().parse().unwrap_or(room::BACKLOG)
}

/// Bursts stay merged although they should not be: it works, and costs singles time.
fn left_merged(ifindex: u32, why: &str) {
    warn!(
        event = "batching.refused",
        ifindex,
        batching = "off",
        reason = why,
        "bursts of this interface stay merged; its end or rtp-proxy uninstall tries again to undo that"
    );
}

fn tell(interface: &str, change: &Change, result: &Result<(), String>) {
    let state = if change.on { "on" } else { "off" };
    let why = match change.why {
        Why::Burst(packets) => format!("bursts of {packets:.1} packets"),
        Why::SuperPackets(packets) => format!("the sender's own super-packets of {packets:.1} packets"),
        Why::Idle => "no media".to_owned(),
        Why::Obstacle(obstacle) => obstacle.to_string(),
    };
    match result {
        Ok(()) => info!(event = "batching.changed", interface, batching = state, "{why}"),
        Err(error) if !change.on => left_merged(change.ifindex, error),
        // Nothing is worse than before, and it is in the status.
        Err(error) => {
            debug!(event = "batching.refused", interface, batching = state, reason = error, "{why}");
        }
    }
}
