//! The proxy under test, started as its users start it: `rtp-proxy standalone` with flags.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::camera::{Stage, Transport};
use crate::lab::Node;
use crate::privilege::{ENV_PROXY, environment};
use crate::process::{Launch, Process, describe, free_port, wait_for};
use crate::viewer::built;

/// Flags of the proxy.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The binary; default [`program`].
    pub program: Option<PathBuf>,
    /// What becomes the binary when it has done its part: `setpriv` and its arguments, for example.
    pub through: Vec<String>,
    /// `--pull`: name and URL.
    pub pulls: Vec<(String, String)>,
    /// `--pull-transport`.
    pub pull_transports: Vec<(String, Transport)>,
    /// `--credentials`: name and file.
    pub credentials: Vec<(String, PathBuf)>,
    /// `--user`: name and file.
    pub users: Vec<(String, PathBuf)>,
    /// Further flags.
    pub flags: Vec<String>,
    /// Address the RTSP port listens on; default `127.0.0.1`, inside a node every address.
    pub address: Option<String>,
    /// RTSP port; default a free one, inside a node 8554.
    pub port: Option<u16>,
    /// Address of its URLs, where that is not the one it listens on.
    pub reached_at: Option<String>,
    /// Another one runs in the same node: it takes ports of its own there too.
    pub beside: bool,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// The program.
    pub process: Process,
    /// Its RTSP port.
    pub rtsp_port: u16,
    admin: SocketAddr,
    node: Option<Node>,
    host: String,
    /// The program and what it becomes the binary through.
    command: Vec<String>,
    /// What it was started with.
    pub arguments: Vec<String>,
}

/// The proxy binary: the one named by `MSM_TEST_PROXY`, or that of this build.
pub fn program() -> Result<PathBuf> {
    match environment(ENV_PROXY) {
        Some(path) => Ok(PathBuf::from(path)),
        None => built("rtp-proxy").context("build it first: cargo build -p rtp-proxy"),
    }
}

impl Proxy {
    /// Starts it on ports of its own (inside a node: on its default ports) and waits until it is ready.
    pub fn start(stage: Stage<'_>, name: &str, options: &Options) -> Result<Self> {
        let inside = stage.node.is_some();
        let alone = inside && !options.beside;
        let free =
            || -> Result<(u16, u16, (u16, u16))> { Ok((free_port()?, free_port()?, free_udp_range()?)) };
        let (rtsp_port, admin_port, (first, last)) = match stage.node {
            _ if alone => (8554, 8081, (8060, 8187)),
            Some(node) => node.inside(free)??,
            None => free()?,
        };
        let rtsp_port = options.port.unwrap_or(rtsp_port);
        let listens = match &options.address {
            Some(address) => address.clone(),
            None if inside => "::".to_owned(),
            None => "127.0.0.1".to_owned(),
        };
        let local = options.address.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
        let host = options.reached_at.clone().unwrap_or(local);
        let binary = options.program.clone().map_or_else(program, Ok)?;
        let mut arguments = vec!["standalone".to_owned()];
        let mut give = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        if !alone || options.address.is_some() {
            give("--rtsp", format!("{}:{rtsp_port}", bracketed(&listens)));
        }
        if !alone {
            give("--admin", format!("127.0.0.1:{admin_port}"));
            give("--rtp-ports", format!("{first}-{last}"));
        }
        for (name, url) in &options.pulls {
            give("--pull", format!("{name}={url}"));
        }
        for (name, transport) in &options.pull_transports {
            give("--pull-transport", format!("{name}={}", transport.name()));
        }
        for (name, file) in &options.credentials {
            give("--credentials", format!("{name}={}", file.display()));
        }
        for (name, file) in &options.users {
            give("--user", format!("{name}:{}", file.display()));
        }
        // Its own, so that nothing is left in the system's directory when it is killed.
        if !options.flags.iter().any(|flag| flag == "--handover") {
            give("--handover", stage.scratch.join(format!("{name}.door")).display().to_string());
        }
        arguments.extend(options.flags.iter().cloned());
        let mut command = options.through.clone();
        command.push(binary.to_string_lossy().into_owned());
        let process = launch(stage, name, &command).args(&arguments).start(stage.scratch)?;
        let admin = SocketAddr::from(([127, 0, 0, 1], admin_port));
        let node = stage.node.cloned();
        let mut proxy = Self { process, rtsp_port, admin, node, host, command, arguments };
        proxy.wait_until_ready()?;
        Ok(proxy)
    }

    /// Starts another one with the same arguments and `--take-over`, and waits until it has taken over: then
    /// this is that one. Returns the one before, which ends by itself.
    pub fn upgrade(&mut self, stage: Stage<'_>, name: &str) -> Result<Process> {
        let launch = self.next(stage, name);
        let mut former = std::mem::replace(&mut self.process, launch.start(stage.scratch)?);
        let status = former.wait(Duration::from_secs(20));
        let status = status.with_context(|| self.process.tail())?;
        ensure!(status.success(), "the former proxy: {}:\n{}", describe(status), former.tail());
        self.wait_until_ready()?;
        Ok(former)
    }

    /// What would take over from this one.
    pub fn next(&self, stage: Stage<'_>, name: &str) -> Launch {
        launch(stage, name, &self.command).args(&self.arguments).arg("--take-over")
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let ready = wait_for("the proxy's /readyz", Duration::from_secs(10), || {
            (self.get("/readyz").is_ok() || !self.process.is_running()).then_some(())
        });
        if ready.is_err() || !self.process.is_running() {
            bail!("the proxy is not ready:\n{}", self.process.tail());
        }
        Ok(())
    }

    /// URL of a stream for programs in the same namespace.
    pub fn url(&self, path: &str) -> String {
        format!("rtsp://{}:{}/{path}", bracketed(&self.host), self.rtsp_port)
    }

    /// URL of a stream for programs that reach the proxy at `host`.
    pub fn url_at(&self, host: &str, path: &str) -> String {
        format!("rtsp://{}:{}/{path}", bracketed(host), self.rtsp_port)
    }

    /// Where the admin port listens, in the proxy's namespace.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// URL of a page of the admin port.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Body of a page of the admin port; fails unless its status is 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let admin = self.admin;
        match &self.node {
            Some(node) => node.inside(move || get(admin, path))?,
            None => get(admin, path),
        }
    }

    /// `GET /v1/streams`.
    pub fn streams(&self) -> Result<Vec<Value>> {
        let document: Value = serde_json::from_str(&self.get("/v1/streams")?)?;
        Ok(document["streams"].as_array().cloned().unwrap_or_default())
    }

    /// One stream of `/v1/streams`.
    pub fn stream(&self, name: &str) -> Option<Value> {
        self.streams().ok()?.into_iter().find(|stream| stream["name"] == name)
    }

    /// Waits until a stream's source has sent packets on so many tracks.
    pub fn wait_for_media(&self, name: &str, tracks: usize, limit: Duration) -> Result<()> {
        wait_for(&format!("packets of {name}"), limit, || {
            let stream = self.stream(name)?;
            let flowing =
                stream["tracks"].as_array()?.iter().filter(|t| t["packets"].as_u64() > Some(0)).count();
            (flowing >= tracks).then_some(())
        })
    }

    /// Sum of a metric's series whose line contains every one of `labels`, for example `reason="ssrc"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum_of(&self.get("/metrics")?, name, labels))
    }

    /// SIGTERM; fails unless it ends by itself with status 0.
    pub fn terminate(&mut self, limit: Duration) -> Result<()> {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait(limit)?;
        ensure!(status.success(), "the proxy ended with {}:\n{}", describe(status), self.process.tail());
        Ok(())
    }
}

fn launch(stage: Stage<'_>, name: &str, command: &[String]) -> Launch {
    let (program, through) =
        command.split_first().map_or(("", command), |(first, rest)| (first.as_str(), rest));
    Launch::inside(name, stage.node, program).args(through)
}

/// Body of a page of an admin port that the calling thread's network reaches; fails unless its status is 200.
pub(crate) fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    ensure!(status == "200", "{path}: {status}");
    Ok(body.to_owned())
}

/// Sum of a metric's series whose line contains every one of `labels`.
pub(crate) fn sum_of(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    metrics
        .lines()
        .filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

/// A range of 128 UDP ports of which the first and last are free; concurrent proxies get different ones.
fn free_udp_range() -> Result<(u16, u16)> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ephemeral ports, so that players' own sockets do not fall into it.
    let offset = std::process::id() as u16 % 64;
    for _ in 0..64 {
        let first = 20_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 80 * 128;
        if [0, 1, 2, 3, 127].iter().all(|port| UdpSocket::bind(("0.0.0.0", first + port)).is_ok()) {
            return Ok((first, first + 127));
        }
    }
    bail!("no free range of UDP ports between 20000 and 30239")
}
