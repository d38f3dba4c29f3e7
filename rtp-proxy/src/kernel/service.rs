//! The thread `kernel-events`: answers the workers' wants, keeps the answers fresh, reads events, and at the
//! end takes everything back.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::batcher::Batcher;
use super::batching::BatchingStatus;
use super::counters::Reader;
use super::events::{Events, Ring};
use super::former::{Former, FormerViewer};
use super::grace::Grace;
use super::hold::{Held, Tenure};
use super::hop::{Rung, UserReason};
use super::hops::{Hops, REFRESH};
use super::ipsec::PolicyNotices;
use super::ladder::{Ladder, Pinning, tc_handle};
use super::load::{Capacity, Kernel};
use super::names::Names;
use super::netlink::{Notice, Notices, Requests};
use super::off;
use super::pins;
use super::refusals::Refusals;
use super::selftest::SelfTest;
use super::settling::Settling;
use super::share::{Left, Share, returned};
use super::slots::{Extent, Quota, Slots};
use super::stopping;
use super::tables::{KernelTable, PortsWritten};
use super::ways::{Ask, AskReceiver, Inbox, channels};
use super::world::World;

/// Asks that are answered before anything else gets its turn.
const BATCH: usize = 256;
/// How soon a worker whose queue was full is told again.
const AGAIN: Duration = Duration::from_millis(5);
/// How long the thread gets for its end: a look at an interface that it has begun is not broken off.
const END: Duration = Duration::from_secs(5);
/// Controls that may wait.
const CONTROLS: usize = 16;

/// What the fast path is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The best rung that may be tried.
    pub max_rung: Rung,
    /// The only interfaces that may be used; empty for every one.
    pub interfaces: Vec<String>,
    /// How long the flows of an earlier process go on while nobody claims them.
    pub adopt_grace: Duration,
    /// Where bpffs is.
    pub bpffs: PathBuf,
    /// Name under which this proxy finds its state again: one per proxy of a network namespace. `None` is
    /// a proxy that nobody can take over from.
    pub instance: Option<String>,
    /// Takes over from a process that runs and stands still: what it pinned is used beside it, or, where its tables
    /// have another layout, replaced when it has gone. Nothing is removed before.
    pub beside: bool,
    /// How much fits into the tables.
    pub capacity: Capacity,
    /// Most of it that one stream gets.
    pub quota: Quota,
    /// Bursts of sources behind a veth may be merged.
    pub batching: bool,
}

/// A restarted proxy has its cameras and viewers back within seconds; those who wait for a time-out of their
/// own take up to a minute.
pub const DEFAULT_ADOPT_GRACE: Duration = Duration::from_secs(60);

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_rung: Rung::Tcx,
            interfaces: Vec::new(),
            adopt_grace: DEFAULT_ADOPT_GRACE,
            bpffs: pins::BPFFS.into(),
            instance: None,
            beside: false,
            capacity: Capacity::default(),
            quota: Quota::default(),
            batching: true,
        }
    }
}

/// An interface and what carries media that comes in by it.
#[derive(Debug, Clone, PartialEq)]
pub struct InterfaceStatus {
    /// Its name.
    pub interface: String,
    /// The rung, or why there is none but the workers.
    pub rung: Result<Rung, UserReason>,
    /// Why it is no better rung, where there is one.
    pub why: Option<String>,
    /// Whether bursts are merged, where media comes in that the kernel forwards.
    pub batching: Option<BatchingStatus>,
}

/// What the thread is told by the process.
#[derive(Debug)]
enum Control {
    Status(oneshot::Sender<Vec<InterfaceStatus>>),
    Stop { leave: bool },
}

/// The running fast path.
#[derive(Debug)]
pub struct FastPath {
    controls: mpsc::Sender<Control>,
    thread: JoinHandle<()>,
    counters: Reader,
    adopted: usize,
    pinned: Option<PathBuf>,
    former: Former,
}

/// A worker's share and where its notes arrive.
pub type WorkerEnd = (Share, Inbox);

/// Verified programs, before anything is read of what an earlier process published.
#[derive(Debug)]
pub struct Prepared {
    held: Held,
    kernel: Kernel,
}

impl Prepared {
    /// Loads the programs and has them verified: what takes time.
    ///
    /// # Errors
    /// Why nothing can be in the kernel.
    pub fn new(settings: &Settings) -> Result<Self, UserReason> {
        Self::load(settings).inspect_err(|why| off::clear(settings, why))
    }

    fn load(settings: &Settings) -> Result<Self, UserReason> {
        if settings.max_rung == Rung::User {
            return Err(UserReason::Capped);
        }
        let object = super::OBJECT.ok_or(UserReason::NotBuilt)?;
        let mut held = Held::take(settings)?;
        let kernel = held.load(object, settings)?;
        Ok(Self { held, kernel })
    }

    /// Takes over what an earlier process pinned and starts the thread. That process must no longer write.
    ///
    /// # Errors
    /// As [`FastPath::start`].
    pub fn start(
        self,
        settings: &Settings,
        workers: usize,
    ) -> Result<(FastPath, Vec<WorkerEnd>), UserReason> {
        self.begin(settings, workers).inspect_err(|why| off::clear(settings, why))
    }

    fn begin(self, settings: &Settings, workers: usize) -> Result<(FastPath, Vec<WorkerEnd>), UserReason> {
        // What runs beside us may have pinned its maps since.
        let Self { held, kernel } = if self.held.is_outdated() { Self::new(settings)? } else { self };
        let refused = |error: &dyn std::fmt::Display| UserReason::Refused(error.to_string());
        let (ports_written, names) = (PortsWritten::default(), Names::default());
        let table = KernelTable::open(&kernel, &ports_written).map_err(|error| refused(&error))?;
        let left = Left::read(&table).map_err(|error| refused(&error))?;
        let (legs, flows) = table.capacity();
        let extents: Vec<Extent> =
            (0..workers).map(|index| Extent::part(legs, flows, index, workers)).collect();
        let (ends, asks, notes) = channels(workers);
        let mut shares = Vec::with_capacity(workers);
        let grace_over = Instant::now() + settings.adopt_grace;
        for (extent, (ways, inbox)) in extents.iter().zip(ends) {
            let table = KernelTable::open(&kernel, &ports_written).map_err(|error| refused(&error))?;
            let table = table.with_names(&names);
            let mut slots = Slots::new(extent, settings.quota);
            left.reserve(&mut slots);
            shares.push((Share::new(table, slots, ways).with_left(left.clone(), grace_over), inbox));
        }
        let open = || KernelTable::open(&kernel, &ports_written).map_err(|error| refused(&error));
        let (looked_at, tested) = (open()?, open()?);
        let former = Former::new(left.clone(), open()?);
        let counters = Reader::open(&kernel).map_err(|error| refused(&error))?;
        let ring = Ring::open(&kernel).map_err(|error| refused(&error))?;
        let adopted = left.len();
        let pinning = held.pinning(settings);
        let pinned = if let Pinning::No(why) = &pinning {
            info!(event = "kernel.unpinned", reason = why, "forwarding will end with this process");
            None
        } else {
            Some(held.pins.path().to_owned())
        };
        let mut ladder = Ladder::new(kernel, pinning, settings.max_rung, tc_handle(&held.instance));
        let taken_over = ladder.adopt();
        ladder.pin_program();
        for (ifindex, why) in &taken_over.dropped {
            warn!(event = "kernel.link_dropped", ifindex, "not adopted: {why}");
        }
        if adopted > 0 || !taken_over.interfaces.is_empty() {
            let interfaces = taken_over.interfaces.join(" ");
            info!(event = "kernel.adopted", flows = adopted, interfaces, "forwarding went on without us");
        }
        let (controls, controlled) = mpsc::channel(CONTROLS);
        let start = Start {
            ladder,
            ring,
            asks,
            controlled,
            hops: Hops::new(settings.interfaces.clone(), notes),
            grace: Some(Grace { left, table, ports_written, extents, over: grace_over }),
            batcher: Batcher::new(looked_at, settings.batching, counters.rings()),
            tested,
            tenure: Tenure::new(held, settings, Instant::now()),
            names,
        };
        let (started, is_started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("kernel-events".to_owned())
            .spawn(move || run(start, &started))
            .map_err(|error| refused(&error))?;
        match is_started.recv() {
            Ok(Ok(())) => Ok((FastPath { controls, thread, counters, adopted, pinned, former }, shares)),
            Ok(Err(error)) => Err(refused(&error)),
            Err(error) => Err(refused(&error)),
        }
    }
}

impl FastPath {
    /// Loads the programs, takes over what an earlier process pinned, and starts the thread.
    ///
    /// # Errors
    /// Why nothing can be in the kernel: everything runs in the workers then.
    pub fn start(settings: &Settings, workers: usize) -> Result<(Self, Vec<WorkerEnd>), UserReason> {
        Prepared::new(settings)?.start(settings, workers)
    }

    /// Flows that were taken over from an earlier process.
    pub fn adopted(&self) -> usize {
        self.adopted
    }

    /// Where things are pinned as soon as something is attached; `None` if forwarding ends with this process.
    pub fn pinned(&self) -> Option<&PathBuf> {
        self.pinned.as_ref()
    }

    /// Viewers of an earlier process that are served on, at most 1,024.
    pub fn former_viewers(&self) -> Vec<FormerViewer> {
        self.former.viewers()
    }

    /// What the programs counted.
    pub fn counters(&self) -> &Reader {
        &self.counters
    }

    /// Interfaces and their rungs.
    pub fn interfaces(&self) -> impl Future<Output = Vec<InterfaceStatus>> + use<> {
        let (to, answer) = oneshot::channel();
        let asked = self.controls.try_send(Control::Status(to)).is_ok();
        async move { if asked { answer.await.unwrap_or_default() } else { Vec::new() } }
    }

    /// Ends the thread. Detaches and removes everything, or with `leave` leaves what is pinned to the next
    /// process, forwarding on.
    pub fn stop(self, leave: bool) {
        if !stopping::end(&self.controls, Control::Stop { leave }, &self.thread, END) && !leave {
            warn!(
                event = "kernel.left_behind",
                "the fast path did not end within {END:?}: what is pinned forwards on; run: rtp-proxy uninstall"
            );
        }
    }
}

struct Start {
    ladder: Ladder,
    ring: Ring,
    asks: AskReceiver,
    controlled: mpsc::Receiver<Control>,
    hops: Hops,
    grace: Option<Grace>,
    batcher: Batcher,
    tested: KernelTable,
    tenure: Tenure,
    names: Names,
}

/// Lets tokio watch the notices.
struct NoticeFd(Notices);

impl AsRawFd for NoticeFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd().as_raw_fd()
    }
}

fn run(start: Start, started: &std::sync::mpsc::SyncSender<std::io::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| {
        // The notices come first: what changes after the first look is told.
        let notices = Notices::open()?;
        let requests = Requests::open()?;
        Ok((runtime, notices, requests))
    });
    let (runtime, notices, requests) = match result {
        Ok(opened) => opened,
        Err(error) => {
            // With the lock of the instance: whoever started us takes it to clear up.
            drop(start);
            started.send(Err(error)).ok();
            return;
        }
    };
    started.send(Ok(())).ok();
    let tests = SelfTest::new(start.tested);
    let waits = start.tenure.waits();
    let mut world = World { requests, ladder: start.ladder, waits, refused: Refusals::default(), tests };
    let mut batcher = start.batcher;
    if start.tenure.is_held() {
        batcher.take_over(&mut world.ladder, Instant::now());
    }
    let service = Service {
        world,
        hops: start.hops,
        grace: start.grace,
        batcher,
        events: Events::new(start.names),
        settling: Settling::new(Instant::now()),
        notices_lost: false,
        refresh_at: Instant::now() + REFRESH,
        tenure: start.tenure,
    };
    let (ladder, leave) = runtime.block_on(service.run(notices, start.ring, start.asks, start.controlled));
    if leave {
        ladder.leave();
        return;
    }
    for problem in ladder.remove() {
        warn!(event = "kernel.left_behind", "{problem}; once its cause is gone, run: rtp-proxy uninstall");
    }
}

/// Waits for ever where there is nothing that could change.
async fn changed(
    policies: Option<&AsyncFd<PolicyNotices>>,
) -> std::io::Result<AsyncFdReadyGuard<'_, PolicyNotices>> {
    match policies {
        Some(policies) => policies.readable().await,
        None => std::future::pending().await,
    }
}

struct Service {
    world: World,
    hops: Hops,
    grace: Option<Grace>,
    batcher: Batcher,
    events: Events,
    settling: Settling,
    notices_lost: bool,
    refresh_at: Instant,
    tenure: Tenure,
}

impl Service {
    async fn run(
        mut self,
        notices: Notices,
        ring: Ring,
        mut asks: AskReceiver,
        mut controlled: mpsc::Receiver<Control>,
    ) -> (Ladder, bool) {
        // SAFETY: each owns its descriptor, returns the same one always, and is moved into the `AsyncFd`,
        // which drops its registration before it.
        let watched = unsafe {
            (
                AsyncFd::register_with_interest(NoticeFd(notices), Interest::READABLE),
                AsyncFd::register_with_interest(ring, Interest::READABLE),
                PolicyNotices::open()
                    .and_then(|fd| AsyncFd::register_with_interest(fd, Interest::READABLE).ok()),
            )
        };
        let (Ok(notices), Ok(mut ring), policies) = watched else {
            warn!(event = "kernel.netlink", "cannot watch the network; the workers carry everything");
            return (self.world.ladder, false);
        };
        self.world.links(&mut self.hops);
        self.hops.settle(Instant::now(), &mut self.world);
        loop {
            let late = self.hops.deliver();
            let wake = self.wake(late);
            // In turns: whoever has much to say does not keep the others waiting, nor the clock.
            tokio::select! {
                control = controlled.recv() => match control {
                    Some(Control::Status(to)) => { to.send(self.world.status(&self.batcher)).ok(); }
                    Some(Control::Stop { leave }) => {
                        if !leave {
                            self.tenure.handle_end();
                        }
                        return (self.world.ladder, leave);
                    }
                    // The process that started us ended without a word.
                    None => return (self.world.ladder, true),
                },
                Some((worker, ask)) = asks.recv() => {
                    self.ask(worker, ask);
                    for _ in 1..BATCH {
                        let Ok((worker, ask)) = asks.try_recv() else { break };
                        self.ask(worker, ask);
                    }
                }
                ready = notices.readable() => {
                    let Ok(mut ready) = ready else { continue };
                    match ready.get_inner().0.read() {
                        Ok(read) => self.notices(read),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => ready.clear_ready(),
                        Err(_) => self.notices(vec![Notice::Lost]),
                    }
                }
                ready = changed(policies.as_ref()) => {
                    let Ok(mut ready) = ready else { continue };
                    ready.get_inner().drain();
                    ready.clear_ready();
                    self.hops.unsettle();
                    self.settling.note(Instant::now());
                }
                ready = ring.readable_mut() => {
                    let Ok(mut ready) = ready else { continue };
                    let now = Instant::now();
                    let events = &mut self.events;
                    if !ready.get_inner_mut().read(|event| events.handle(&event, now)) {
                        ready.clear_ready();
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => self.timeout(Instant::now()),
            }
        }
    }

    fn wake(&self, late: bool) -> Instant {
        let again = late.then(|| Instant::now() + AGAIN);
        let grace = self.grace.as_ref().map(|grace| grace.over);
        let batcher = self.batcher.poll_timeout(&self.world.ladder);
        [
            again,
            grace,
            self.tenure.poll_timeout(),
            batcher,
            self.settling.poll_timeout(),
            self.hops.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .fold(self.refresh_at, Instant::min)
    }

    fn ask(&mut self, worker: usize, ask: Ask) {
        match ask {
            Ask::Want(want) => self.hops.want(worker, want, Instant::now(), &mut self.world),
            Ask::Forget(want) => self.hops.forget(worker, want),
        }
    }

    fn notices(&mut self, notices: Vec<Notice>) {
        let now = Instant::now();
        for notice in notices {
            match notice {
                Notice::Changed(message) => {
                    self.changed(&message);
                    self.hops.notice(&message, now, &mut self.world);
                }
                Notice::Nexthop => self.hops.reroute(),
                Notice::Lost => {
                    debug!(event = "kernel.netlink", "notices were lost: everything is read again");
                    self.notices_lost = true;
                    self.hops.unsettle();
                }
            }
        }
        if self.hops.is_unsettled() {
            self.settling.note(now);
        }
    }

    /// A setting of an interface may have changed: the program there is tried again.
    fn changed(&mut self, message: &RouteNetlinkMessage) {
        let RouteNetlinkMessage::NewLink(link) = message else { return };
        if self.world.ladder.attached().contains_key(&link.header.index) {
            self.world.tests.forget(Some(link.header.index));
            self.hops.look_again();
        }
    }

    fn timeout(&mut self, now: Instant) {
        if self.tenure.handle_timeout(now, &mut self.world.ladder) {
            self.world.waits = false;
            self.batcher.take_over(&mut self.world.ladder, now);
            self.hops.look_again();
            self.settling.note(now);
        }
        let World { requests, ladder, .. } = &mut self.world;
        self.batcher.handle_timeout(now, &self.hops, requests, ladder);
        if self.refresh_at <= now {
            self.refresh_at = now + REFRESH;
            self.world.tests.forget(None);
            self.world.links(&mut self.hops);
            self.hops.unsettle();
            self.settling.note(now);
        }
        if self.settling.take(now) {
            if std::mem::take(&mut self.notices_lost) {
                self.world.links(&mut self.hops);
            }
            self.hops.settle(now, &mut self.world);
            self.settling.done(now, Instant::now());
        }
        self.hops.handle_timeout(now, &mut self.world);
        if let Some(grace) = self.grace.take_if(|grace| grace.over <= now) {
            let (flows, extents) = grace.end();
            if !flows.is_empty() {
                info!(event = "kernel.unclaimed", flows = flows.len(), "removed what nobody claimed");
                for (worker, note) in returned(&flows, &extents).into_iter().enumerate() {
                    self.hops.note(worker, note);
                }
            }
        }
    }
}
