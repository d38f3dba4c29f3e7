//! Foreign programs as children: their output in files, their whole process group ended on drop.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::unistd::Pid;

use crate::lab::Node;

/// Folder of one test's files; removed at the end unless the test panicked.
#[derive(Debug)]
pub struct Scratch {
    folder: Option<tempfile::TempDir>,
}

impl Scratch {
    /// Makes a folder that every user may read: some programs refuse to run as root.
    pub fn new(name: &str) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::Builder::new()
            .prefix(&format!("msm-{name}-{}-", std::process::id()))
            .tempdir()
            .context("a scratch folder")?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder: Some(folder) })
    }

    /// Path of a file inside.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.as_ref().map_or(Path::new("/nonexistent"), tempfile::TempDir::path)
    }

    /// Leaves the folder behind and says where it is.
    pub fn keep(&mut self) -> Option<PathBuf> {
        self.folder.take().map(tempfile::TempDir::keep)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(path) = self.keep()
        {
            eprintln!("logs of the failed test: {}", path.display());
        }
    }
}

/// How to start one program.
#[derive(Debug)]
pub struct Launch {
    name: String,
    command: Command,
    stdout: Option<PathBuf>,
}

impl Launch {
    /// `program` found on PATH; `name` names its log.
    pub fn new(name: &str, program: &str) -> Self {
        Self::wrap(name, Command::new(program))
    }

    /// Starts the program inside a node's network namespace when there is one.
    pub fn inside(name: &str, node: Option<&Node>, program: &str) -> Self {
        match node {
            None => Self::new(name, program),
            Some(node) => Self::wrap(name, node.command(program)),
        }
    }

    /// Like [`Launch::inside`], as an unprivileged user when we are root: VLC refuses root.
    pub fn unprivileged(name: &str, node: Option<&Node>, program: &str) -> Self {
        if !nix::unistd::geteuid().is_root() {
            return Self::inside(name, node, program);
        }
        Self::inside(name, node, "runuser").args(["-u", "nobody", "--", "env", "HOME=/nonexistent", program])
    }

    fn wrap(name: &str, command: Command) -> Self {
        Self { name: name.to_owned(), command, stdout: None }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.command.args(args);
        self
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Standard output goes to a file of its own instead of the log.
    #[must_use]
    pub fn stdout_to(mut self, path: &Path) -> Self {
        self.stdout = Some(path.to_owned());
        self
    }

    /// Starts it; the log is `<scratch>/<name>.log`.
    pub fn start(mut self, scratch: &Path) -> Result<Process> {
        let log = scratch.join(format!("{}.log", self.name));
        let file = File::create(&log).with_context(|| format!("{}", log.display()))?;
        match &self.stdout {
            Some(path) => self.command.stdout(File::create(path)?),
            None => self.command.stdout(file.try_clone()?),
        };
        let program = self.command.get_program().to_string_lossy().into_owned();
        let child = self
            .command
            .stdin(Stdio::null())
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{}: cannot start {program}", self.name))?;
        Ok(Process { name: self.name, child, log, stdout: self.stdout, status: None })
    }
}

/// A running child; dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stdout: Option<PathBuf>,
    status: Option<ExitStatus>,
}

impl Process {
    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Datagrams that the kernel dropped because a socket of the program was full: it did not read in time.
    pub fn socket_overflows(&self) -> u64 {
        let own: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .into_iter()
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        let table = |name| std::fs::read_to_string(format!("/proc/{}/net/{name}", self.pid()));
        let tables = ["udp", "udp6"].map(|name| table(name).unwrap_or_default());
        let lines = tables.iter().flat_map(|table| table.lines().skip(1));
        lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| words.get(9).is_some_and(|inode| own.iter().any(|own| own == inode)))
            .filter_map(|words| words.last()?.parse::<u64>().ok())
            .sum()
    }

    /// The process id (of `ip` or `runuser`, where one stands in front).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote to its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Everything it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        match &self.stdout {
            Some(path) => String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned(),
            None => self.log(),
        }
    }

    /// The last lines of the log, for messages.
    pub fn tail(&self) -> String {
        tail(&self.log(), 12)
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    /// Its exit status once it has ended.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("{name} to end"), limit, || self.poll())
            .with_context(|| format!("{name} still runs; its log ends:\n{}", self.tail()))
    }

    /// Waits for a line of the log or of standard output that contains `text`, and returns it.
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let until = Instant::now() + limit;
        loop {
            let ended = self.poll();
            let output = if self.stdout.is_some() { self.stdout() + &self.log() } else { self.log() };
            if let Some(line) = output.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) before it said {text:?}:\n{}", self.name, self.tail());
            }
            if Instant::now() > until {
                bail!("{} did not say {text:?} within {limit:?}:\n{}", self.name, self.tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal to the whole process group.
    pub fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.child.id() as i32), signal).ok();
    }

    /// Asks it to end with `signal`, kills it after `grace`, returns how it ended.
    pub fn stop(&mut self, signal: Signal, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.poll() {
            return Ok(status);
        }
        self.signal(signal);
        if let Ok(status) = self.wait(grace) {
            return Ok(status);
        }
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(2))
    }

    /// Kills it at once, as a crash or a power cut would.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(2)).ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal(Signal::SIGKILL);
            self.child.wait().ok();
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C, SIGTERM and SIGHUP set the returned flag; a second one ends this process.
///
/// A handler, not a blocked signal: children inherit blocked signals, and could not be ended by one.
pub fn catch_interrupts() -> Result<&'static AtomicBool> {
    extern "C" fn caught(_signal: libc::c_int) {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            // SAFETY: _exit is async-signal-safe and takes no pointer.
            unsafe { libc::_exit(130) };
        }
    }
    let action = SigAction::new(SigHandler::Handler(caught), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only touches an atomic and calls _exit, both async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("a signal handler")?;
    }
    Ok(&INTERRUPTED)
}

/// Polls a condition until it yields a value; tests wait for conditions, never for time.
pub fn wait_for<T>(what: &str, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(value) = poll() {
            return Ok(value);
        }
        if Instant::now() > until {
            return Err(anyhow!("waited {limit:?} for {what}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program to its end and returns its standard output.
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    let done = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !done.status.success() {
        bail!(
            "{program} {}: {}: {}",
            args.join(" "),
            describe(done.status),
            tail(&String::from_utf8_lossy(&done.stderr), 8)
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// How a program ended, in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The last `count` lines.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A TCP port that was free a moment ago, for programs that cannot take port 0.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
