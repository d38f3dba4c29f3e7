//! The running proxy hands over: it comes to rest, writes down what it has, and ends when the next one stands.
//! Until that one says so, everything can still go on as if nothing had happened.

use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use msm_handover::channel::send_descriptors;
use msm_handover::message::{self, Kind, MessageError};
use msm_runtime::metrics::Metrics;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::anchor;
use super::door::{Request, refuse};
use super::inventory::{AcceptedInventory, Inventory};
use crate::front::Accepted;
use crate::standalone::{Done, Standalone};
use crate::user::handover::Frozen;
use crate::user::tcp::inventory::EventInventory;
use crate::user::{UserEvent, Workers};

/// Longest time to come to rest: operations of the data path take milliseconds.
const REST: Duration = Duration::from_secs(1);
/// Between two looks whether everything is at rest.
const LOOK: Duration = Duration::from_millis(1);
/// Longest wait for the next program to stand once it has everything.
const READY: Duration = Duration::from_secs(5);

/// Everything that the control thread has in its hands.
pub(crate) struct Holdings<'a> {
    pub(crate) standalone: &'a mut Standalone,
    pub(crate) done: &'a mut mpsc::Receiver<Done>,
    pub(crate) user: &'a mut mpsc::Receiver<UserEvent>,
    pub(crate) accepted: &'a mut mpsc::Receiver<Accepted>,
    pub(crate) workers: &'a Workers,
    pub(crate) metrics: &'a Metrics,
    pub(crate) rtsp: RawFd,
    pub(crate) admin: RawFd,
}

/// What was taken out of the queues.
#[derive(Default)]
struct Queued {
    events: Vec<UserEvent>,
    accepted: Vec<Accepted>,
}

/// Hands over. `Some`: the next program has everything and this one is to end without a word; `None`: it has
/// not, and everything goes on.
pub(crate) async fn give(request: Request, mut holdings: Holdings<'_>) -> Option<Frozen> {
    let Request { stream, program, pid } = request;
    info!(event = "handover.started", program, pid, "another program takes over");
    if let Err(words) = holdings.come_to_rest().await {
        warn!(event = "handover.refused", reason = words, "cannot hand over now");
        refuse(&stream, &words);
        return None;
    }
    // From here on nothing awaits: this thread stands still as well.
    let began = Instant::now();
    let mut queued = Queued::default();
    match holdings.hand_over(&stream, &mut queued) {
        Ok(frozen) => {
            let still = began.elapsed().as_millis() as u64;
            info!(event = "handover.done", pid, still_millis = still, "handed over");
            Some(frozen)
        }
        Err(words) => {
            warn!(event = "handover.failed", reason = words, "goes on: the other program did not take over");
            refuse(&stream, &words);
            for event in queued.events {
                holdings.standalone.handle_user(event);
            }
            for accepted in queued.accepted {
                holdings.standalone.handle_accepted(accepted);
            }
            None
        }
    }
}

impl Holdings<'_> {
    /// Takes in results only until no operation is on its way and every connection has taken what it was told.
    async fn come_to_rest(&mut self) -> Result<(), String> {
        let at = anchor();
        let deadline = Instant::now() + REST;
        loop {
            // A turn for connections that have just begun.
            let _ = tokio::time::timeout(LOOK, async {
                while let Some(result) = self.done.recv().await {
                    self.standalone.handle_done(result);
                }
            })
            .await;
            match self.standalone.is_quiet(&at) {
                Ok(()) => return Ok(()),
                Err(busy) if Instant::now() >= deadline => return Err(busy.to_string()),
                Err(_) => {}
            }
        }
    }

    fn hand_over(&mut self, stream: &UnixStream, queued: &mut Queued) -> Result<Frozen, String> {
        let frozen = self.workers.freeze()?;
        while let Ok(event) = self.user.try_recv() {
            queued.events.push(event);
        }
        while let Ok(accepted) = self.accepted.try_recv() {
            queued.accepted.push(accepted);
        }
        let inventory = self.inventory(&frozen, queued)?;
        let body = serde_json::to_vec(&inventory).map_err(|error| error.to_string())?;
        let mut socket = stream;
        message::write(&mut socket, Kind::Inventory, &body).map_err(|error| error.to_string())?;
        send_descriptors(stream, &inventory.descriptors).map_err(|error| error.to_string())?;
        drop(body);
        await_ready(stream)?;
        Ok(frozen)
    }

    fn inventory(&self, frozen: &Frozen, queued: &Queued) -> Result<Inventory, String> {
        let at = anchor();
        let mut workers = frozen.report(at)?;
        let mut events: Vec<EventInventory> = queued.events.iter().map(EventInventory::from).collect();
        for worker in &mut workers {
            events.extend(worker.reports.drain(..).map(EventInventory::Report));
        }
        let accepted = queued.accepted.iter().map(|accepted| AcceptedInventory {
            descriptor: accepted.stream.as_raw_fd(),
            peer: accepted.peer,
            local: accepted.local,
        });
        let cpu = |(index, worker): (usize, &crate::user::worker::inventory::WorkerInventory)| {
            (format!("data-{index}"), Duration::from_nanos(worker.cpu_nanos))
        };
        let mut threads: Vec<_> = workers.iter().enumerate().map(cpu).collect();
        threads.push(("control".to_owned(), crate::user::udp::thread_cpu()));
        let mut inventory = Inventory {
            rtsp: self.rtsp,
            admin: self.admin,
            players: self.workers.players_inventory(),
            standalone: self.standalone.inventory(&at).map_err(|busy| busy.to_string())?,
            control: self.standalone.installer().conns_on_control(&at),
            workers,
            events,
            accepted: accepted.collect(),
            metrics: self.metrics.inventory(&threads),
            ..Inventory::default()
        };
        inventory.finish();
        Ok(inventory)
    }
}

/// Waits for the word that everything stands. Whether it came is decided once and for all: what is not in the
/// socket when it is shut down cannot be sent any more, so never do both programs go on, or none.
fn await_ready(stream: &UnixStream) -> Result<(), String> {
    let mut socket = stream;
    stream.set_read_timeout(Some(READY)).map_err(|error| error.to_string())?;
    let Err(first) = message::read(&mut socket, &[Kind::Ready]) else { return Ok(()) };
    let _ = stream.shutdown(Shutdown::Both);
    let is_late = matches!(&first, MessageError::Io(error)
        if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
    if is_late && message::read(&mut socket, &[Kind::Ready]).is_ok() {
        return Ok(());
    }
    Err(first.to_string())
}
