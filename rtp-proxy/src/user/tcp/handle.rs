//! The way to a connection, wherever it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use msm_control_plane::event::OpError;
use msm_graph::ConnId;
use msm_rtsp::message::{Request, Response};
use tokio::sync::{mpsc, oneshot};

use super::guest::{GuestQueue, Guests, guest_queue};
use crate::user::worker::WorkerHandle;

/// What the owner of a connection may ask of it. Small: every connection has room for 32 of them.
#[derive(Debug)]
pub(crate) enum ConnCommand {
    Reply(Box<Response>, bool),
    Send(Box<Request>),
    Release(Box<[u8]>),
    Session(bool),
    Close,
    Guests(Box<Guests>),
    Move(Box<(WorkerHandle, oneshot::Sender<Result<(), OpError>>)>),
}

/// The way to a connection, wherever it lives now. Cheap to clone; nothing here ever blocks.
#[derive(Debug, Clone)]
pub struct ConnHandle {
    pub(super) id: ConnId,
    pub(super) commands: mpsc::Sender<ConnCommand>,
    /// Set when a command could not be queued: the connection ends rather than lose a reply.
    pub(super) overflowed: Arc<AtomicBool>,
}

impl ConnHandle {
    /// The connection.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Answers a request. With `close`, nothing follows the response.
    pub fn reply(&self, response: Response, close: bool) {
        self.command(ConnCommand::Reply(Box::new(response), close));
    }

    /// Sends a request to a camera.
    pub fn send(&self, request: Request) {
        self.command(ConnCommand::Send(Box::new(request)));
    }

    /// Lets queued frames of these channels follow (RTSP-44).
    pub fn release_media(&self, channels: Vec<u8>) {
        self.command(ConnCommand::Release(channels.into()));
    }

    /// Whether an RTSP session lives on the connection: suspends its idle deadline.
    pub fn set_session(&self, exists: bool) {
        self.command(ConnCommand::Session(exists));
    }

    /// Closes it once what is queued as messages has been written.
    pub fn close(&self) {
        self.command(ConnCommand::Close);
    }

    /// Whether it has taken everything it was told, or has ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_closed() || self.commands.capacity() == self.commands.max_capacity()
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    pub(crate) fn relocate(&self, worker: WorkerHandle) -> oneshot::Receiver<Result<(), OpError>> {
        let (ack, done) = oneshot::channel();
        self.command(ConnCommand::Move(Box::new((worker, ack))));
        done
    }

    /// Opens the way for streams of other workers.
    pub(crate) fn admit_guests(&self) -> GuestQueue {
        let (queue, guests) = guest_queue(self.id);
        self.command(ConnCommand::Guests(Box::new(guests)));
        queue
    }

    fn command(&self, command: ConnCommand) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(command) {
            self.overflowed.store(true, Ordering::Relaxed);
        }
    }
}
