//! What `rtp-proxy standalone` was told: arguments and environment, validated, with every problem at once.
//!
//! The only place that looks at the environment. What comes out is plain data that is injected.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use msm_control_plane::config::{self as plane, Credentials, PullConfig, PullTransport, UserConfig};
use msm_runtime::telemetry::{LogFormat, LogLevel};

use crate::kernel::hop::Rung;
use crate::kernel::load::Capacity;
use crate::kernel::service::Settings;

pub mod args;
pub mod check;

pub use args::{Cli, Raw, Verb};
pub use check::Problem;
use check::Problems;

/// Prefix of every environment variable.
pub const ENV_PREFIX: &str = "MSM_";

/// RTSP's alternative port, usable without privilege.
pub const DEFAULT_RTSP_PORT: u16 = 8554;
/// Admin port, this host only.
pub const DEFAULT_ADMIN_PORT: u16 = 8081;
/// Ports of media, even and odd for RTP and RTCP: below the range that systems give to clients.
pub const DEFAULT_RTP_PORTS: RangeInclusive<u16> = 8060..=8187;
/// Enforced session timeout, the default of RFC 2326 12.37.
pub const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Viewers are told this much less than is enforced: some send their keep-alive at the last moment.
pub const SESSION_MARGIN: Duration = Duration::from_secs(5);
/// How long a camera is kept after its last viewer: the next one starts without waiting for it.
pub const DEFAULT_LINGER: Duration = Duration::from_secs(5);
/// Enough for a thousand viewers and their tools; each costs a descriptor and a few KiB.
pub const DEFAULT_MAX_CONNECTIONS: usize = 4096;

/// Where the system wants sockets of a service, of a user.
const RUNTIME_DIRECTORIES: [&str; 2] = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"];
/// The same for root without a service manager.
const ROOT_DIRECTORY: &str = "/run";
/// `--handover` without a planned upgrade.
const NO_HANDOVER: &str = "off";

/// Everything that `rtp-proxy standalone` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where viewers and publishers connect.
    pub rtsp: SocketAddr,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// UDP ports of media; `0..=0` lets the system choose.
    pub rtp_ports: RangeInclusive<u16>,
    /// Most RTSP connections at once.
    pub max_connections: usize,
    /// Data workers; `None` is one per core but one.
    pub workers: Option<usize>,
    /// How long to keep forwarding after SIGTERM.
    pub drain: Duration,
    /// Unix socket at which the next program takes over, and at which this one does; `None`: neither.
    pub handover: Option<PathBuf>,
    /// Whether there is to be no socket: `off`, or no port that it could be named after.
    pub handover_off: bool,
    /// Whether to take over from the proxy that runs, if one does.
    pub take_over: bool,
    /// Which lines are logged.
    pub log_level: LogLevel,
    /// How they are written.
    pub log_format: LogFormat,
    /// The fast path.
    pub kernel: Settings,
    /// Settings of the session logic: pulls, users, times, limits.
    pub plane: plane::Config,
    /// What an operator should know although it works.
    pub warnings: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rtsp: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_RTSP_PORT),
            admin: SocketAddr::new([127, 0, 0, 1].into(), DEFAULT_ADMIN_PORT),
            rtp_ports: DEFAULT_RTP_PORTS,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            workers: None,
            drain: Duration::ZERO,
            handover: None,
            handover_off: false,
            take_over: false,
            log_level: LogLevel::default(),
            log_format: LogFormat::default(),
            kernel: Settings::default(),
            plane: plane::Config::default(),
            warnings: Vec::new(),
        }
    }
}

/// Settings that cannot be used, all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// Every problem, in the order of the options.
    pub problems: Vec<Problem>,
}

/// The variables of the environment that may concern us.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, _)| key.starts_with(ENV_PREFIX) || RUNTIME_DIRECTORIES.contains(&key.as_str()))
        .collect()
}

/// The admin address that a command was given, or the default.
///
/// # Errors
/// If it is no address.
pub fn admin_address(text: Option<&str>) -> Result<SocketAddr, ConfigError> {
    let Some(text) = text else { return Ok(Config::default().admin) };
    let mut problems = Problems::default();
    let read = problems.take("--admin", text, check::address(text, DEFAULT_ADMIN_PORT));
    read.ok_or_else(|| ConfigError { problems: problems.into_vec() })
}

/// What was given, by option: where from, and the value.
#[derive(Debug)]
struct Given {
    raw: Raw,
    keys: BTreeMap<&'static str, String>,
    logins: BTreeMap<String, (String, String)>,
}

impl Given {
    /// Lays the environment under the command line. Unknown `MSM_` names become warnings, not errors: a
    /// cluster sets such names for its services.
    fn merge(raw: Raw, mut env: BTreeMap<String, String>, warnings: &mut Vec<String>) -> Self {
        let mut given = Self { raw, keys: BTreeMap::new(), logins: BTreeMap::new() };
        let mut known = Vec::new();
        let raw = &mut given.raw;
        macro_rules! overlay {
            ($($field:ident)*; $($list:ident)*) => {
                $({
                    let option = concat!("--", stringify!($field)).replace('_', "-");
                    let name = variable(stringify!($field));
                    let from_env = env.remove(&name);
                    let key = if raw.$field.is_none() && from_env.is_some() { name.clone() } else { option };
                    if raw.$field.is_none() {
                        raw.$field = from_env;
                    }
                    given.keys.insert(stringify!($field), key);
                    known.push(name);
                })*
                $({
                    let option = concat!("--", stringify!($list)).replace('_', "-");
                    let name = variable(stringify!($list));
                    let from_env = env.remove(&name);
                    let key = if raw.$list.is_empty() && from_env.is_some() { name.clone() } else { option };
                    if raw.$list.is_empty() {
                        raw.$list =
                            from_env.iter().flat_map(|v| v.split_whitespace()).map(str::to_owned).collect();
                    }
                    given.keys.insert(stringify!($list), key);
                    known.push(name);
                })*
            };
        }
        overlay! {
            rtsp admin rtp_ports session_timeout linger max_connections max_streams workers drain handover log_level log_format
            max_rung adopt_grace bpffs batching;
            pull pull_transport credentials allow_basic user interface
        }
        // The login of a pull without a file: MSM_PULL_<NAME>=user:password.
        for pull in &given.raw.pull {
            let name = pull.split('=').next().unwrap_or(pull);
            let key = variable(&format!("pull_{name}"));
            if let Some(login) = env.remove(&key) {
                given.logins.insert(name.to_owned(), (key, login));
            }
        }
        for key in env.keys() {
            let hint = check::nearest(key, known.iter().map(String::as_str));
            let hint = hint.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            warnings.push(format!("environment variable {key} is not one of ours{hint}"));
        }
        given
    }

    fn key(&self, field: &'static str) -> String {
        self.keys.get(field).cloned().unwrap_or_default()
    }
}

fn variable(field: &str) -> String {
    let upper = field.to_ascii_uppercase();
    let mapped: String = upper.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("{ENV_PREFIX}{mapped}")
}

impl Config {
    /// Validates arguments and environment.
    ///
    /// # Errors
    /// Every setting that cannot be used, with its key, its value and what would do.
    pub fn load(raw: Raw, env: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut problems = Problems::default();
        let mut env = env;
        let directories = RUNTIME_DIRECTORIES.map(|key| env.remove(key));
        let given = Given::merge(raw, env, &mut config.warnings);
        config.read_listening(&given, &mut problems);
        config.read_pulls(&given, &mut problems);
        config.read_users(&given, &mut problems);
        config.read_sessions(&given, &mut problems);
        config.read_kernel(&given, &mut problems);
        config.read_running(&given, &mut problems);
        config.read_handover(&given, &directories, &mut problems);
        let problems = problems.into_vec();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    /// The door of planned upgrades: one per RTSP port, so that several proxies of a machine keep apart.
    fn read_handover(&mut self, given: &Given, directories: &[Option<String>; 2], problems: &mut Problems) {
        self.take_over = given.raw.take_over;
        self.handover_off = given.raw.handover.as_deref() == Some(NO_HANDOVER) || self.rtsp.port() == 0;
        self.handover = match given.raw.handover.as_deref() {
            Some(NO_HANDOVER) => None,
            Some(path) => Some(PathBuf::from(path)),
            None if self.rtsp.port() == 0 => None,
            None => {
                let name = format!("{}.sock", self.rtsp.port());
                let [service, user] = directories;
                // systemd gives a directory for this service; the others are shared.
                let service = service.as_deref().and_then(|list| list.split(':').next());
                let root = nix::unistd::geteuid().is_root().then_some(ROOT_DIRECTORY);
                let shared =
                    || root.or(user.as_deref()).map(|directory| Path::new(directory).join("rtp-proxy"));
                service.map(PathBuf::from).or_else(shared).map(|directory| directory.join(name))
            }
        };
        if self.take_over && self.handover.is_none() {
            let fix = "name the socket of the running proxy: --handover PATH";
            problems.note("--take-over", "", "there is no socket to take over at", fix);
        }
    }

    fn read_listening(&mut self, given: &Given, problems: &mut Problems) {
        if let Some(text) = &given.raw.rtsp {
            let read = check::address(text, DEFAULT_RTSP_PORT);
            self.rtsp = problems.take(&given.key("rtsp"), text, read).unwrap_or(self.rtsp);
        }
        if let Some(text) = &given.raw.admin {
            let read = check::address(text, DEFAULT_ADMIN_PORT);
            self.admin = problems.take(&given.key("admin"), text, read).unwrap_or(self.admin);
        }
        if !self.admin.ip().is_loopback() {
            self.warnings.push(format!(
                "the admin listener at {} is open to the network and asks for no login; --admin 127.0.0.1:{} restricts it",
                self.admin,
                self.admin.port()
            ));
        }
        if self.rtsp.port() != 0 && self.rtsp == self.admin {
            problems.note(
                &given.key("admin"),
                &self.admin.to_string(),
                "RTSP has that address already",
                format!("write 127.0.0.1:{DEFAULT_ADMIN_PORT}"),
            );
        }
        if let Some(text) = &given.raw.rtp_ports {
            let read = check::ports(text);
            if let Some(ports) = problems.take(&given.key("rtp_ports"), text, read) {
                self.rtp_ports = ports;
            }
        }
    }

    fn read_pulls(&mut self, given: &Given, problems: &mut Problems) {
        let key = given.key("pull");
        for text in &given.raw.pull {
            let read = check::named(text, '=', "NAME=rtsp://HOST[:PORT]/PATH");
            let Some((name, url)) = problems.take(&key, text, read) else { continue };
            let named = problems.take(&key, text, check::stream_name(&name));
            let url_read = problems.take(&key, text, check::camera_url(&url));
            if self.plane.pulls.iter().any(|pull| pull.name == name) {
                problems.note(&key, text, format!("{name} is given twice"), "give each camera its own name");
                continue;
            }
            if check::has_userinfo(&url) {
                self.warnings.push(format!(
                    "the login in the URL of {name} can be read by every user of this machine (ps); write it into a file and use --credentials {name}=FILE"
                ));
            }
            // A pull that cannot be used still takes its name, so that what refers to it is no second problem.
            let _ = (named, url_read);
            self.plane.pulls.push(PullConfig::new(name, url));
        }
        let key = given.key("pull_transport");
        for text in &given.raw.pull_transport {
            let Some((pull, value)) =
                self.pull_of(given, "pull_transport", text, "NAME=auto|udp|tcp", problems)
            else {
                continue;
            };
            let parsed = match value.as_str() {
                "auto" => Some(PullTransport::Auto),
                "udp" => Some(PullTransport::Udp),
                "tcp" => Some(PullTransport::Tcp),
                _ => None,
            };
            let names = ["auto", "udp", "tcp"];
            if let Some(transport) = problems.take(&key, text, check::choice(&value, &names, parsed)) {
                self.plane.pulls[pull].transport = transport;
            }
        }
        let key = given.key("credentials");
        for text in &given.raw.credentials {
            let Some((pull, file)) = self.pull_of(given, "credentials", text, "NAME=FILE", problems) else {
                continue;
            };
            let Some((line, warning)) = problems.take(&key, text, check::secret(Path::new(&file))) else {
                continue;
            };
            self.warnings.extend(warning);
            self.plane.pulls[pull].credentials = login(&key, text, &line, problems);
        }
        let key = given.key("allow_basic");
        for name in &given.raw.allow_basic {
            if let Some(pull) = self.pull_named(&key, name, name, problems) {
                self.plane.pulls[pull].basic = true;
            }
        }
        for (name, (key, line)) in &given.logins {
            let Some(pull) = self.plane.pulls.iter_mut().find(|pull| pull.name == *name) else { continue };
            if pull.credentials.is_none() {
                pull.credentials = login(key, "(not shown)", line, problems);
            }
        }
    }

    /// The pull that `NAME=...` refers to, by index, and what follows.
    fn pull_of(
        &self,
        given: &Given,
        field: &'static str,
        text: &str,
        form: &str,
        problems: &mut Problems,
    ) -> Option<(usize, String)> {
        let key = given.key(field);
        let (name, value) = problems.take(&key, text, check::named(text, '=', form))?;
        Some((self.pull_named(&key, text, &name, problems)?, value))
    }

    /// The pull of this name, by index.
    fn pull_named(&self, key: &str, text: &str, name: &str, problems: &mut Problems) -> Option<usize> {
        let found = self.plane.pulls.iter().position(|pull| pull.name == name);
        if found.is_some() {
            return found;
        }
        let fix = match check::nearest(name, self.plane.pulls.iter().map(|pull| pull.name.as_str())) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("add --pull {name}=rtsp://HOST/PATH"),
        };
        problems.note(key, text, format!("no --pull is named {name}"), fix);
        None
    }

    fn read_users(&mut self, given: &Given, problems: &mut Problems) {
        let key = given.key("user");
        for text in &given.raw.user {
            let Some((user, file)) = problems.take(&key, text, check::named(text, ':', "NAME:FILE")) else {
                continue;
            };
            if self.plane.users.iter().any(|known| known.credentials.user() == user) {
                problems.note(&key, text, format!("user {user} is given twice"), "give each user one file");
                continue;
            }
            let Some((line, warning)) = problems.take(&key, text, check::secret(Path::new(&file))) else {
                continue;
            };
            self.warnings.extend(warning);
            // A file in the form of --credentials, user:password, serves as well.
            let password = line.strip_prefix(&format!("{user}:")).unwrap_or(&line).to_owned();
            self.plane.users.push(UserConfig {
                name: EVERY_NAME.to_owned(),
                credentials: Credentials::new(user, password),
            });
        }
    }

    fn read_sessions(&mut self, given: &Given, problems: &mut Problems) {
        let seconds = Duration::from_secs;
        let times = &mut self.plane.times;
        times.session_enforced = DEFAULT_SESSION_TIMEOUT;
        times.linger = DEFAULT_LINGER;
        if let Some(text) = &given.raw.session_timeout {
            let read = check::duration(text, seconds(10)..=seconds(3600));
            let key = given.key("session_timeout");
            times.session_enforced = problems.take(&key, text, read).unwrap_or(times.session_enforced);
        }
        times.session_advertised = times.session_enforced.saturating_sub(SESSION_MARGIN);
        if let Some(text) = &given.raw.linger {
            let read = check::duration(text, Duration::ZERO..=seconds(3600));
            times.linger = problems.take(&given.key("linger"), text, read).unwrap_or(times.linger);
        }
        if let Some(text) = &given.raw.max_connections {
            let read = check::number(text, 1..=1_000_000);
            let key = given.key("max_connections");
            self.max_connections = problems.take(&key, text, read).unwrap_or(self.max_connections);
        }
        if let Some(text) = &given.raw.max_streams {
            let read = check::number(text, 1..=100_000);
            let streams = &mut self.plane.limits.published_streams;
            *streams = problems.take(&given.key("max_streams"), text, read).unwrap_or(*streams);
            self.kernel.capacity = Capacity::for_streams(*streams as u32);
        }
    }

    fn read_kernel(&mut self, given: &Given, problems: &mut Problems) {
        let kernel = &mut self.kernel;
        if let Some(text) = &given.raw.max_rung {
            let rungs = [Rung::Tcx, Rung::Tc, Rung::User];
            let rung = rungs.into_iter().find(|rung| rung.as_str() == text);
            let read = check::choice(text, &rungs.map(Rung::as_str), rung);
            kernel.max_rung = problems.take(&given.key("max_rung"), text, read).unwrap_or(kernel.max_rung);
        }
        for text in &given.raw.interface {
            if let Some(()) = problems.take(&given.key("interface"), text, check::interface(text)) {
                kernel.interfaces.push(text.clone());
            }
        }
        if let Some(text) = &given.raw.adopt_grace {
            let read = check::duration(text, Duration::ZERO..=Duration::from_secs(3600));
            let key = given.key("adopt_grace");
            kernel.adopt_grace = problems.take(&key, text, read).unwrap_or(kernel.adopt_grace);
        }
        if let Some(text) = &given.raw.batching {
            let choices = [("auto", true), ("off", false)];
            let choice = choices.into_iter().find(|(name, _)| name == text).map(|(_, batching)| batching);
            let read = check::choice(text, &choices.map(|(name, _)| name), choice);
            kernel.batching = problems.take(&given.key("batching"), text, read).unwrap_or(kernel.batching);
        }
        if let Some(text) = &given.raw.bpffs {
            kernel.bpffs = text.into();
        }
        // The first media port is nobody else's in this network namespace, and the same after a restart.
        let first = *self.rtp_ports.start();
        kernel.instance = (first != 0).then(|| first.to_string());
    }

    fn read_running(&mut self, given: &Given, problems: &mut Problems) {
        if let Some(text) = &given.raw.workers {
            self.workers = problems.take(&given.key("workers"), text, check::number(text, 1..=256));
        }
        if let Some(text) = &given.raw.drain {
            let read = check::duration(text, Duration::ZERO..=Duration::from_secs(3600));
            self.drain = problems.take(&given.key("drain"), text, read).unwrap_or_default();
        }
        if let Some(text) = &given.raw.log_level {
            let read = check::choice(text, &LogLevel::NAMES, text.parse().ok());
            self.log_level = problems.take(&given.key("log_level"), text, read).unwrap_or_default();
        }
        if let Some(text) = &given.raw.log_format {
            let read = check::choice(text, &LogFormat::NAMES, text.parse().ok());
            self.log_format = problems.take(&given.key("log_format"), text, read).unwrap_or_default();
        }
    }
}

/// In a [`UserConfig`]: the user reads and publishes every name.
pub const EVERY_NAME: &str = "*";

/// `user:password`; the line itself is never shown.
fn login(key: &str, shown: &str, line: &str, problems: &mut Problems) -> Option<Credentials> {
    match line.split_once(':') {
        Some((user, password)) if !user.is_empty() => Some(Credentials::new(user, password)),
        _ => {
            problems.note(key, shown, "the login is not user:password", "write one line user:password");
            None
        }
    }
}

#[cfg(test)]
mod tests;
