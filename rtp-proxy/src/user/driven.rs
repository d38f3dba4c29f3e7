//! A worker without a thread of its own.
//!
//! Owns the calling thread's part in it: when it runs. What it does is the worker's, the same as on a thread.

use std::io;

use tokio::sync::mpsc;

use super::worker::Worker;
use super::{UserEvent, UserReason, WorkerConfig, Workers, open_all_players, starts};

/// The only worker of its [`Workers`], on the thread of whoever holds it and at that one's call. What it
/// forwards it forwards as every worker does; who measures it so measures it without being woken.
#[derive(Debug)]
pub struct Driven(Worker);

impl Driven {
    /// Runs everything the worker has to do until a future is done: operations of
    /// [`Workers::installer`](super::Workers::installer), for example.
    pub fn drive<F: Future>(&self, future: F) -> F::Output {
        self.0.drive(future)
    }

    /// Forwards what waits at its inputs' RTP sockets, and does nothing else: other things get their turn in
    /// [`Driven::drive`].
    pub fn turn(&self) {
        self.0.turn();
    }
}

impl Workers {
    /// As [`Workers::start`] with one worker, which runs when it is driven. The caller's thread is pinned if
    /// `config` says so.
    ///
    /// # Errors
    /// As [`Workers::start`], and what the system says when the worker cannot be set up.
    pub fn start_driven(config: WorkerConfig, events: mpsc::Sender<UserEvent>) -> io::Result<(Self, Driven)> {
        let (players, warnings) = open_all_players(&config)?;
        let kernel = vec![Err(UserReason::Capped)];
        let (handles, starts) = starts(&config, kernel, &events, &players, vec![None]);
        let only = starts.into_iter().next().ok_or(io::ErrorKind::InvalidInput)?;
        let driven = Driven(Worker::new(only.0, only.1)?);
        Ok((Self { handles, threads: Vec::new(), players, warnings, config, events }, driven))
    }
}
