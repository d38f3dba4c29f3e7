//! A worker on the thread that runs it: its runtime, and the loop that takes commands.

use std::io;
use std::rc::Rc;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::task::JoinHandle;

use super::inventory::Inherited;
use super::ticker::Ticker;
use super::{Command, Commands, Kind, Shared, Start, kernel, release_reordered};
use crate::kernel::ways::Inbox;

/// A worker and the runtime that its tasks run on. It does what it does on the thread that made it, and only
/// while that thread runs or drives it.
#[derive(Debug)]
pub(crate) struct Worker {
    runtime: LocalRuntime,
    shared: Rc<Shared>,
    served: JoinHandle<()>,
}

impl Worker {
    /// Sets a worker up on the calling thread.
    ///
    /// # Errors
    /// The system's, when it has no descriptor for the runtime or the ticker.
    pub(crate) fn new(mut start: Start, commands: Commands) -> io::Result<Self> {
        if let Some(core) = start.core {
            let mut set = nix::sched::CpuSet::new();
            // A container may not let us choose: then the scheduler does.
            if set.set(core).is_ok() {
                let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
            }
        }
        // Local: a packet's way from the poll to its task has one scheduler less than with a `LocalSet`.
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        let ticker = Ticker::new()?;
        let inherited = start.inherited.take();
        let (shared, inbox) = Shared::new(start);
        let shared = Rc::new(shared);
        // A task of its own: the future that a runtime blocks on has nothing to do with packets.
        let served = runtime.spawn_local(serve(shared.clone(), commands, inherited, inbox, ticker));
        Ok(Self { runtime, shared, served })
    }

    /// Runs it until it is told to stop.
    pub(crate) fn run(self) {
        let _ = self.runtime.block_on(self.served);
    }

    /// Runs it until a future is done, which may be anything that needs its runtime.
    pub(crate) fn drive<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Forwards what waits at the inputs, without a look at which of them the poll would name: what their
    /// tasks do when a packet wakes them.
    pub(crate) fn turn(&self) {
        for pair in self.shared.pairs.borrow().values() {
            // Empty or not, there is nothing to tell a poll.
            let _ = pair.take(Kind::Rtp, &self.shared);
        }
    }
}

async fn serve(
    shared: Rc<Shared>,
    mut commands: Commands,
    inherited: Option<Inherited>,
    inbox: Option<Inbox>,
    ticker: Ticker,
) {
    if let Some(inherited) = inherited
        && !shared.inherit(inherited)
    {
        return;
    }
    if shared.index == 0 {
        for pair in [&shared.players.v4, &shared.players.v6].into_iter().flatten() {
            shared.clone().serve_players(pair);
        }
    }
    tokio::task::spawn_local(release_reordered(shared.clone()));
    if let Some(inbox) = inbox {
        tokio::task::spawn_local(kernel::take_notes(shared.clone(), inbox));
        tokio::task::spawn_local(kernel::pace(shared.clone()));
    }
    let ticker = match ticker.watch() {
        Ok(ticker) => ticker,
        Err(error) => return tracing::error!(event = "worker.failed", worker = shared.index, %error),
    };
    let mut ticks = 0u64;
    loop {
        ticker.run(!shared.streams.borrow().is_empty());
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                None | Some(Command::Stop) => break,
                Some(Command::Freeze(freeze)) => {
                    // Connections that have just arrived take their place first.
                    tokio::task::yield_now().await;
                    shared.yield_kernel().await;
                    shared.stand_still(freeze, &mut commands);
                    shared.resume_kernel();
                }
                Some(command) => shared.obey(command),
            },
            () = ticker.tick() => {
                ticks += 1;
                shared.tick(ticks.is_multiple_of(10));
            }
        }
    }
    shared.leave_kernel();
    // Sockets are closed by dropping the streams; connections end with the runtime.
    shared.streams.borrow_mut().clear();
}
