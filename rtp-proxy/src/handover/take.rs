//! The next proxy takes over: it gets everything, builds every part of it, and says so; then it goes on where
//! the other one stood.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use msm_control_plane::ControlPlane;
use msm_handover::Malformed;
use msm_handover::channel::{is_trusted, peer, receive_descriptors};
use msm_handover::message::{self, Hello, Kind, MessageError, Refused};
use msm_rtsp::conn::ConnLimits;
use msm_runtime::metrics::Metrics;
use tokio::sync::mpsc;

use super::anchor;
use super::inventory::{AcceptedInventory, Inventory};
use crate::config::Config;
use crate::front::Accepted;
use crate::standalone::{Done, OsEntropy, Standalone, now};
use crate::user::handover::{Descriptors, Estate, Waiting};
use crate::user::{KernelEnds, UserEvent, WorkerConfig, Workers};

/// Longest wait for the running proxy to come to rest and to send everything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nothing was taken over. The running proxy goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The socket.
    #[error("cannot take over at {path}: {source}")]
    Io {
        /// Its path.
        path: String,
        /// The system's words.
        source: io::Error,
    },
    /// Whoever listens there is not the user that we are, nor root.
    #[error("{path} belongs to user {uid}, which is not us")]
    Stranger {
        /// Its path.
        path: String,
        /// The user.
        uid: u32,
    },
    /// The running proxy does not hand over.
    #[error("the running proxy goes on: {0}")]
    Refused(String),
    /// What it sent cannot be read.
    #[error("what the running proxy has cannot be read: {0}")]
    Message(String),
    /// What it sent cannot be taken over.
    #[error("what the running proxy has cannot be taken over: {0}")]
    Inventory(#[from] Malformed),
    /// It listens elsewhere than we were told to.
    #[error("the running proxy has {running} for {option}, not {wanted}; start with the same arguments")]
    Arguments {
        /// The option.
        option: &'static str,
        /// What the running proxy has.
        running: SocketAddr,
        /// What we were told.
        wanted: SocketAddr,
    },
}

/// Everything of the other proxy, which stands still.
#[derive(Debug)]
pub(crate) struct Arrived {
    stream: UnixStream,
    inventory: Inventory,
    descriptors: Descriptors,
}

/// Every part, standing and waiting for the word to go.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) rtsp: TcpListener,
    pub(crate) admin: TcpListener,
    pub(crate) standalone: Standalone,
    pub(crate) done: mpsc::Receiver<Done>,
    waiting: Waiting,
    events: Vec<UserEvent>,
    accepted: Vec<(TcpStream, SocketAddr, SocketAddr)>,
    stream: UnixStream,
}

/// Asks the proxy that listens at `path` for everything. `None`: there is none.
///
/// # Errors
/// [`TakeError`]; the running proxy goes on.
pub(crate) fn take(path: &Path, program: &str) -> Result<Option<Arrived>, TakeError> {
    let failed = |source: io::Error| TakeError::Io { path: path.display().to_string(), source };
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let peer = peer(&stream).map_err(failed)?;
    if !is_trusted(peer) {
        return Err(TakeError::Stranger { path: path.display().to_string(), uid: peer.uid });
    }
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let words = |error: &dyn std::error::Error| TakeError::Message(error.to_string());
    let hello = serde_json::to_vec(&Hello::new(program)).map_err(|error| words(&error))?;
    let mut socket = &stream;
    message::write(&mut socket, Kind::Hello, &hello).map_err(|error| words(&error))?;
    let (kind, body) =
        message::read(&mut socket, &[Kind::Inventory, Kind::Refused]).map_err(|error| words(&error))?;
    if kind == Kind::Refused {
        let refused: Refused = serde_json::from_slice(&body).map_err(|error| words(&error))?;
        return Err(TakeError::Refused(refused.reason));
    }
    let inventory = Inventory::read(&body).map_err(TakeError::Message)?;
    drop(body);
    let received = receive_descriptors(&stream, inventory.descriptors.len()).map_err(failed)?;
    let descriptors = inventory.descriptors.iter().copied().zip(received).collect::<HashMap<_, _>>();
    if descriptors.len() != inventory.descriptors.len() {
        return Err(Malformed::new("descriptor", "named twice").into());
    }
    Ok(Some(Arrived { stream, inventory, descriptors: Descriptors(descriptors) }))
}

impl Arrived {
    /// Builds every part. Nothing is read from a socket, sent or answered.
    ///
    /// # Errors
    /// [`TakeError`]; dropping everything lets the other proxy go on.
    pub(crate) fn stand(
        self,
        config: &Config,
        (workers, kernel): (WorkerConfig, KernelEnds),
        limits: &Arc<ConnLimits>,
        metrics: &Rc<Metrics>,
        events: mpsc::Sender<UserEvent>,
    ) -> Result<Standing, TakeError> {
        let Self { stream, mut inventory, mut descriptors } = self;
        let at = anchor();
        let rtsp = listener(&mut descriptors, inventory.rtsp, "--rtsp", config.rtsp)?;
        let admin = listener(&mut descriptors, inventory.admin, "--admin", config.admin)?;
        let accepted = inventory
            .accepted
            .iter()
            .map(|AcceptedInventory { descriptor, peer, local }| {
                Ok((TcpStream::from(descriptors.take(*descriptor)?), *peer, *local))
            })
            .collect::<Result<Vec<_>, Malformed>>()?;
        let estate = Estate {
            players: inventory.players,
            workers: inventory.workers,
            control: inventory.control,
            descriptors,
            at,
        };
        let count = workers.worker_count();
        let mut waiting = Workers::inherit(workers, kernel, events, limits, estate)?;
        let plane = inventory.standalone.take_plane();
        let plane = ControlPlane::restore(config.plane.clone(), Box::new(OsEntropy), plane, &at, now())?;
        let installer = waiting.workers.installer();
        let known = inventory.standalone.take_installer();
        let conns = std::mem::take(&mut waiting.conns);
        let settings = (limits.clone(), config.max_connections);
        let (standalone, done) = Standalone::restore(
            plane,
            installer.clone(),
            settings,
            Rc::clone(metrics),
            inventory.standalone,
            &conns,
        );
        installer.restore(known, conns, |former| crate::user::handover::place(former, count));
        metrics.restore(inventory.metrics);
        let events = inventory.events.into_iter().map(UserEvent::from).collect();
        Ok(Standing { rtsp, admin, standalone, done, waiting, events, accepted, stream })
    }
}

/// A listener of the other proxy, if it is where ours is to be.
fn listener(
    descriptors: &mut Descriptors,
    number: i32,
    option: &'static str,
    wanted: SocketAddr,
) -> Result<TcpListener, TakeError> {
    let listener = TcpListener::from(descriptors.take(number)?);
    let wrong = |error: io::Error| Malformed::new("listener", error.to_string());
    listener.set_nonblocking(true).map_err(wrong)?;
    let running = listener.local_addr().map_err(wrong)?;
    if running.ip() != wanted.ip() || (wanted.port() != 0 && running.port() != wanted.port()) {
        return Err(TakeError::Arguments { option, running, wanted });
    }
    Ok(listener)
}

/// Parts that run, and what is to be looked at first.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) rtsp: TcpListener,
    pub(crate) admin: TcpListener,
    pub(crate) standalone: Standalone,
    pub(crate) done: mpsc::Receiver<Done>,
    pub(crate) workers: Workers,
}

impl Standing {
    /// Says that everything stands, and lets it go. To be called within the `LocalSet` of the control thread.
    ///
    /// # Errors
    /// The other proxy has given up waiting and goes on.
    pub(crate) fn go(self) -> Result<Running, TakeError> {
        let Self { rtsp, admin, mut standalone, done, mut waiting, events, accepted, stream } = self;
        message::write(&mut &stream, Kind::Ready, b"").map_err(|error| match error {
            MessageError::Io(_) => TakeError::Refused("it did not wait any longer".to_owned()),
            other => TakeError::Message(other.to_string()),
        })?;
        waiting.go();
        let Waiting { workers, control, .. } = waiting;
        for parts in control {
            standalone.installer().drive(parts);
        }
        standalone.resume();
        for event in events {
            standalone.handle_user(event);
        }
        for (stream, peer, local) in accepted {
            let nonblocking = stream.set_nonblocking(true);
            if let Ok(stream) = nonblocking.and_then(|()| tokio::net::TcpStream::from_std(stream)) {
                standalone.handle_accepted(Accepted { stream, peer, local });
            }
        }
        Ok(Running { rtsp, admin, standalone, done, workers })
    }
}
