//! Builds every part of `rtp-proxy standalone`, in order, and runs the control loop until it is over.
//!
//! Start: descriptors, workers, listeners, session logic, then the first connection is accepted. End: no new
//! connection, BYE and TEARDOWN, workers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use msm_control_plane::ControlPlane;
use msm_control_plane::config::ConfigError;
use msm_fastpath::{DropReason, PassReason};
use msm_graph::PortPair;
use msm_rtsp::conn::ConnLimits;
use msm_runtime::admin::{self, Ask, Health};
use msm_runtime::drain::{Drain, Phase};
use msm_runtime::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::banner;
use crate::bind::{self, BindError};
use crate::config::Config;
use crate::front;
use crate::handover::door::{self, Door, Request};
use crate::handover::give::{self, Holdings};
use crate::handover::take::{self, Running, TakeError};
use crate::kernel;
use crate::kernel::counters::Reader;
use crate::kernel::hop::{Rung, UserReason};
use crate::kernel::service::{FastPath, Prepared, Settings, WorkerEnd};
use crate::standalone::{OsEntropy, Standalone};
use crate::stats::Snapshot;
use crate::status;
use crate::user::{KernelEnds, UserEvent, WorkerConfig, Workers};

/// Path of the status document.
pub const STREAMS: &str = "/v1/streams";

/// Events of workers and connections that may wait for the control loop; a worker that finds it full waits.
const EVENTS: usize = 1024;

/// Events that are handled before timers, signals and the admin listener get their turn again.
const BATCH: usize = 64;

/// Longest time a worker may take to answer before it counts as stuck.
const LOOP_DEADLINE: Duration = Duration::from_secs(1);

/// Stream states in `msm_streams`, present from the start.
const STREAM_STATES: [&str; 4] = ["announced", "active", "silent", "ended"];

/// What ends the process.
#[derive(Debug)]
pub enum Stop {
    /// SIGTERM and Ctrl-C.
    Signals,
    /// Each item counts as one signal; for those who run the proxy inside another program.
    Channel(mpsc::Receiver<()>),
    /// As a channel; and each item of the other puts every UDP leg on a rung, as far as it may be there, until
    /// the next (`None`: back to the rules).
    Driven(mpsc::Receiver<()>, mpsc::Receiver<Option<Rung>>),
}

/// Where everything listens once it does.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// RTSP.
    pub rtsp: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    /// UDP ports towards viewers; `None` where no address has UDP.
    pub players: Option<PortPair>,
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A listening port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A setting that only the session logic can judge.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The workers or their ports.
    #[error("cannot start the data path: {0}")]
    Workers(std::io::Error),
    /// The proxy that runs goes on, and this one has not started.
    #[error(transparent)]
    TakeOver(#[from] TakeError),
    /// The runtime, a signal handler.
    #[error("cannot start the runtime")]
    Runtime(#[from] std::io::Error),
}

/// Name, version, and whether the kernel programs are in this binary.
pub fn version() -> String {
    let kernel = if kernel::OBJECT.is_some() { "embedded" } else { "not embedded (user path only)" };
    let commit = option_env!("MSM_COMMIT").map(|commit| format!(" ({commit})")).unwrap_or_default();
    format!("rtp-proxy {}{commit}, kernel programs {kernel}", env!("CARGO_PKG_VERSION"))
}

/// The commit that this binary was built from, where the build knew it.
const COMMIT: &str = match option_env!("MSM_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Runs until it is told to stop. `ready` is called once, when everything listens.
///
/// # Errors
/// What kept it from starting. Once it runs it ends with `Ok`.
pub fn run(config: Config, stop: Stop, ready: impl FnOnce(Addresses)) -> Result<(), AppError> {
    let mut config = config;
    config.warnings.extend(raise_descriptor_limit(config.max_connections));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = LocalSet::new().block_on(&runtime, serve(config, stop, ready));
    // Connections to cameras that are still being resolved are not waited for.
    runtime.shutdown_timeout(Duration::from_millis(50));
    result
}

async fn serve(config: Config, stop: Stop, ready: impl FnOnce(Addresses)) -> Result<(), AppError> {
    // First of all: a signal during the start ends as cleanly as a later one.
    let (mut stop, mut rungs) = Stopping::new(stop)?;
    let reasons = DropReason::ALL.map(DropReason::as_str);
    let passes = PassReason::ALL.map(PassReason::as_str);
    let metrics = Rc::new(Metrics::new(env!("CARGO_PKG_VERSION"), COMMIT, &reasons, &passes, &STREAM_STATES));
    let limits = Arc::new(ConnLimits::default());
    let (events, mut user) = mpsc::channel(EVENTS);
    let taken = take_over(&config, &limits, &metrics, &events)?;
    let took_over = taken.is_some();
    let (parts, kernel) = taken.map_or_else(|| start(&config, limits, &metrics, events), Ok)?;
    let Running { rtsp, admin, mut standalone, mut done, workers } = parts;
    let addresses =
        Addresses { rtsp: rtsp.local_addr()?, admin: admin.local_addr()?, players: workers.player_ports() };
    banner::print(&config, &addresses, &version());
    for warning in config.warnings.iter().chain(workers.warnings()) {
        warn!(event = "config.warning", "{warning}");
    }

    let listening = [rtsp.as_raw_fd(), admin.as_raw_fd()];
    let (accepted_tx, mut accepted) = mpsc::channel(front::QUEUE);
    let accepting = tokio::task::spawn_local(front::accept(TcpListener::from_std(rtsp)?, accepted_tx));
    let (asks_tx, mut asks) = mpsc::channel(admin::QUEUE);
    let admin = TcpListener::from_std(admin)?;
    let router = admin::router(asks_tx, &[STREAMS]);
    let serving = tokio::spawn(async move { axum::serve(admin, router).await });
    let (requests_tx, mut requests) = mpsc::channel(door::QUEUE);
    let door = open_door(&config, took_over, requests_tx);
    let mut given = None;
    let mut drain = Drain::new(config.drain);
    ready(addresses);

    while !standalone.is_finished() && drain.phase() != Phase::Over {
        let wake = [standalone.poll_timeout(), drain.poll_timeout()].into_iter().flatten().min();
        tokio::select! {
            rung = asked(&mut rungs) => workers.ask_rung(rung),
            () = stop.signalled() => {
                let phase = drain.handle_signal(std::time::Instant::now());
                shut_down(&mut standalone, phase, config.drain);
                accepting.abort();
            }
            Some(event) = user.recv() => {
                standalone.handle_user(event);
                for _ in 1..BATCH {
                    let Ok(event) = user.try_recv() else { break };
                    standalone.handle_user(event);
                }
            }
            Some(result) = done.recv() => standalone.handle_done(result),
            () = sleep_until(wake) => {
                let before = drain.phase();
                let phase = drain.handle_timeout(std::time::Instant::now());
                if phase != before {
                    shut_down(&mut standalone, phase, Duration::ZERO);
                }
                standalone.handle_timeout();
            }
            Some(connection) = accepted.recv() => standalone.handle_accepted(connection),
            Some(ask) = asks.recv() => answer(ask, &standalone, &workers, &kernel, &metrics, drain.phase()),
            Some(request) = requests.recv() => {
                let holdings = Holdings {
                    standalone: &mut standalone,
                    done: &mut done,
                    user: &mut user,
                    accepted: &mut accepted,
                    workers: &workers,
                    metrics: &metrics,
                    rtsp: listening[0],
                    admin: listening[1],
                };
                given = give::give(request, holdings).await;
                if given.is_some() {
                    break;
                }
            }
        }
    }
    accepting.abort();
    serving.abort();
    if let Some(frozen) = given {
        // Everything is another process's: no BYE, no TEARDOWN, and the door is its own.
        std::mem::forget(door);
        frozen.leave();
        if let Ok(kernel) = kernel {
            kernel.stop(true);
        }
        return Ok(());
    }
    info!(event = "drain.done", finished = standalone.is_finished(), "stopped");
    workers.stop();
    // After the workers: they take their flows out of the kernel's tables.
    if let Ok(kernel) = kernel {
        kernel.stop(false);
    }
    Ok(())
}

/// The fast path, or why there is none.
type Kernel = Result<FastPath, UserReason>;

/// Starts with nothing.
fn start(
    config: &Config,
    limits: Arc<ConnLimits>,
    metrics: &Rc<Metrics>,
    events: mpsc::Sender<UserEvent>,
) -> Result<(Running, Kernel), AppError> {
    let rtsp = bind::listen(config.rtsp, "--rtsp")?;
    let admin = bind::listen(config.admin, "--admin")?;
    let plane = ControlPlane::new(config.plane.clone(), Box::new(OsEntropy))?;
    let settings = worker_config(config);
    let count = settings.worker_count();
    let (kernel, ends) = kernel_ends(FastPath::start(&config.kernel, count), count);
    let workers = Workers::start_with(settings, ends, events).map_err(AppError::Workers)?;
    let (standalone, done) =
        Standalone::new(plane, workers.installer(), limits, config.max_connections, Rc::clone(metrics));
    Ok((Running { rtsp, admin, standalone, done, workers }, kernel))
}

/// Starts with everything that the running proxy has, if we are to and one runs.
fn take_over(
    config: &Config,
    limits: &Arc<ConnLimits>,
    metrics: &Rc<Metrics>,
    events: &mpsc::Sender<UserEvent>,
) -> Result<Option<(Running, Kernel)>, AppError> {
    let Some(path) = config.handover.as_deref().filter(|_| config.take_over) else { return Ok(None) };
    // The other one stands still from the answer to the question on, and forwards on in the kernel; if it has to
    // go on, so do its tables. What takes time is done before.
    let beside = Settings { beside: true, ..config.kernel.clone() };
    let prepared = Prepared::new(&beside);
    let Some(arrived) = take::take(path, &version())? else {
        info!(event = "takeover.none", path = %path.display(), "no proxy runs there: starts by itself");
        return Ok(None);
    };
    let settings = worker_config(config);
    let count = settings.worker_count();
    let (kernel, ends) = kernel_ends(prepared.and_then(|prepared| prepared.start(&beside, count)), count);
    let standing = arrived.stand(config, (settings, ends), limits, metrics, events.clone())?;
    let running = standing.go()?;
    if let Err(why) = &kernel {
        kernel::off::clear_after(&config.kernel, why);
    }
    info!(event = "takeover.done", path = %path.display(), "took over from the running proxy");
    Ok(Some((running, kernel)))
}

/// Lets the next program in. Without a door everything else works.
fn open_door(config: &Config, replaces: bool, requests: mpsc::Sender<Request>) -> Option<Door> {
    let Some(path) = config.handover.as_deref() else {
        if !config.handover_off {
            let user = kernel::privileges::user();
            warn!(
                event = "handover.unavailable",
                "planned upgrades are not possible: no place for their socket, since {user} is not root and \
                 XDG_RUNTIME_DIR is not set; --handover PATH names one, --handover off stops this line"
            );
        }
        return None;
    };
    match door::open(path, replaces, requests) {
        Ok(door) => Some(door),
        Err(error) => {
            let path = path.display();
            warn!(
                event = "handover.unavailable",
                "planned upgrades are not possible: {path}: {error}; --handover PATH names another place"
            );
            None
        }
    }
}

/// The fast path where that may be, with the end of it for each worker; else why not, said once.
fn kernel_ends(
    started: Result<(FastPath, Vec<WorkerEnd>), UserReason>,
    workers: usize,
) -> (Kernel, KernelEnds) {
    match started {
        Ok((kernel, ends)) => {
            let pinned =
                kernel.pinned().map_or_else(|| "nowhere".to_owned(), |path| path.display().to_string());
            info!(event = "kernel.started", pinned, "media is forwarded in the kernel where it can be");
            (Ok(kernel), ends.into_iter().map(Ok).collect())
        }
        Err(reason) => {
            info!(event = "kernel.off", reason = reason.as_str(), "user path only: {reason}");
            (Err(reason.clone()), (0..workers).map(|_| Err(reason.clone())).collect())
        }
    }
}

fn shut_down(standalone: &mut Standalone, phase: Phase, patience: Duration) {
    match phase {
        Phase::Draining(_) => {
            info!(event = "drain.started", "forwarding until no viewer is left, at most {patience:?}");
            standalone.handle_shutdown(patience);
        }
        Phase::Ending(_) => {
            info!(event = "ending", "BYE to every viewer, TEARDOWN to every camera");
            standalone.handle_shutdown(Duration::ZERO);
        }
        Phase::Running | Phase::Over => {}
    }
}

/// Answers beside the loop: that the question arrived here has measured this loop, the reading measures the
/// workers'.
fn answer(
    ask: Ask,
    standalone: &Standalone,
    workers: &Workers,
    kernel: &Kernel,
    metrics: &Rc<Metrics>,
    phase: Phase,
) {
    let reading = workers.snapshot();
    let path = kernel.as_ref().map(FastPath::interfaces).map_err(Clone::clone);
    let former = match &ask {
        Ask::Document(..) => kernel.as_ref().map(FastPath::former_viewers).unwrap_or_default(),
        _ => Vec::new(),
    };
    let counters = kernel.as_ref().ok().map(FastPath::counters);
    let of_kernel = Snapshot {
        drops: counters.map(Reader::drops).unwrap_or_default(),
        passes: counters.map(Reader::passes).unwrap_or_default(),
        ..Snapshot::default()
    };
    let streams = standalone.plane().streams();
    let sessions = standalone.plane().session_count();
    let metrics = Rc::clone(metrics);
    tokio::task::spawn_local(async move {
        let read: Result<Snapshot, _> = tokio::time::timeout(LOOP_DEADLINE, reading).await.map(|mut read| {
            read.merge(of_kernel);
            read
        });
        match ask {
            Ask::Live(to) => {
                let _ = to.send(Health::new().with("workers", workers_turn(&read)));
            }
            Ask::Ready(to) => {
                let accepting = match phase {
                    Phase::Running => Ok("accepting".to_owned()),
                    _ => Err("ending".to_owned()),
                };
                let _ = to.send(Health::new().with("workers", workers_turn(&read)).with("rtsp", accepting));
            }
            Ask::Metrics(to) => {
                let snapshot = read.unwrap_or_default();
                let _ = to.send(metrics.expose(&status::sample(&streams, sessions, &snapshot)));
            }
            Ask::Document(_, to) => {
                // Without an answer of the workers the question stays unanswered: 503.
                if let Ok(snapshot) = read {
                    let kernel = match path {
                        Ok(interfaces) => Ok(interfaces.await),
                        Err(reason) => Err(reason),
                    };
                    let document = status::streams(&streams, &snapshot, &kernel, &former);
                    let _ = to.send(serde_json::to_string(&document).expect("plain data always serialises"));
                }
            }
        }
    });
}

fn workers_turn<E>(read: &Result<Snapshot, E>) -> Result<String, String> {
    match read {
        Ok(_) => Ok("every packet loop answered".to_owned()),
        Err(_) => Err(format!("a packet loop did not answer within {LOOP_DEADLINE:?}")),
    }
}

async fn sleep_until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

fn worker_config(config: &Config) -> WorkerConfig {
    let unspecified = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let player_addresses = match config.rtsp.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => unspecified.to_vec(),
        ip => vec![ip],
    };
    let (first, last) = (*config.rtp_ports.start(), *config.rtp_ports.end());
    let input_ports = if first == 0 { 0..=0 } else { first + 2..=last };
    WorkerConfig {
        threads: config.workers,
        player_port: first,
        player_addresses,
        input_ports,
        ..WorkerConfig::default()
    }
}

/// Descriptors beside those of connections: sockets of media, the admin listener, logs.
const OTHER_DESCRIPTORS: u64 = 512;

/// A thousand viewers need more than the 1,024 descriptors that most systems start with. Returns what an
/// operator should change if the system allows fewer than `connections` need.
fn raise_descriptor_limit(connections: usize) -> Option<String> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = connections as u64 + OTHER_DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft >= wanted || (hard >= wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok()) {
        return None;
    }
    let got = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    Some(format!(
        "open files are limited to {got}, {connections} connections need {wanted}; run: ulimit -n {wanted}"
    ))
}

/// The next rung that somebody asks for; pending for ever where nobody can.
async fn asked(rungs: &mut Option<mpsc::Receiver<Option<Rung>>>) -> Option<Rung> {
    let asked = match rungs {
        Some(rungs) => rungs.recv().await,
        None => None,
    };
    match asked {
        Some(rung) => rung,
        None => std::future::pending().await,
    }
}

/// What ends the process, as something that can be awaited again and again.
enum Stopping {
    Signals(tokio::signal::unix::Signal, tokio::signal::unix::Signal),
    Channel(mpsc::Receiver<()>),
}

impl Stopping {
    fn new(stop: Stop) -> std::io::Result<(Self, Option<mpsc::Receiver<Option<Rung>>>)> {
        Ok(match stop {
            Stop::Signals => {
                let stop = Self::Signals(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
                (stop, None)
            }
            Stop::Channel(receiver) => (Self::Channel(receiver), None),
            Stop::Driven(receiver, rungs) => (Self::Channel(receiver), Some(rungs)),
        })
    }

    async fn signalled(&mut self) {
        let open = match self {
            Self::Signals(term, int) => tokio::select! { s = term.recv() => s, s = int.recv() => s },
            Self::Channel(receiver) => receiver.recv().await,
        };
        // A sender that is gone can never stop us again.
        if open.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests;
