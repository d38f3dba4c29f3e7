//! Probe sinks: many viewers on one epoll thread.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::Account;
use super::camera::udp_pair;
use super::hand::roomy;
use crate::camera::Transport;
use crate::lab::Node;
use crate::rtsp::{Answer, Connection, authority};

/// Shorter than half of the session timeout of any proxy configuration that tests use for loads.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Viewers that receive and account.
#[derive(Debug)]
pub struct Viewers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    count: usize,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    stop: AtomicBool,
    sinks: Mutex<HashMap<u64, Sink>>,
}

/// One viewer: its RTSP connection, which carries media too when interleaved, and its datagrams.
#[derive(Debug)]
struct Sink {
    connection: TcpStream,
    buffer: Vec<u8>,
    rtp: Option<(UdpSocket, UdpSocket)>,
    account: Account,
    url: String,
    session: String,
    rtp_info: String,
    kept: Instant,
    sequence: u32,
    closed: bool,
}

/// A viewer that has set up the first track and has only to say PLAY.
#[derive(Debug)]
pub struct SetUp {
    connection: Connection,
    rtp: Option<(UdpSocket, UdpSocket)>,
    base: String,
}

impl SetUp {
    /// Describes, and sets the first track up.
    pub fn new(url: &str, transport: Transport, node: Option<&Node>) -> Result<Self> {
        let mut connection = Connection::open(url, node)?;
        let described = connection.request("DESCRIBE", url, &[("Accept", "application/sdp")], "")?.ok()?;
        let base = described.header("Content-Base").unwrap_or(url).to_owned();
        let control = control(&described.body, &base);
        let rtp = if transport == Transport::Udp { Some(udp_pair(&authority(url)?, node)?) } else { None };
        let offer = match &rtp {
            None => "RTP/AVP/TCP;unicast;interleaved=0-1".to_owned(),
            Some((rtp, _)) => {
                let port = rtp.local_addr()?.port();
                format!("RTP/AVP;unicast;client_port={port}-{}", port + 1)
            }
        };
        connection.request("SETUP", &control, &[("Transport", &offer)], "")?.ok()?;
        if let Some((rtp, rtcp)) = &rtp {
            // What the receiving side drops would look like the proxy's loss.
            roomy(rtp)?;
            rtp.set_nonblocking(true)?;
            rtcp.set_nonblocking(true)?;
        }
        Ok(Self { connection, rtp, base })
    }
}

impl Viewers {
    /// Starts the thread, without viewers.
    pub fn start() -> Result<Self> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            stop: AtomicBool::new(false),
            sinks: Mutex::new(HashMap::new()),
        });
        let driven = Arc::clone(&shared);
        let thread = std::thread::spawn(move || driven.drive());
        Ok(Self { shared, thread: Some(thread), count: 0 })
    }

    /// Plays the first track of a URL and returns the viewer's number.
    pub fn play(&mut self, url: &str, transport: Transport, node: Option<&Node>) -> Result<usize> {
        self.begin(SetUp::new(url, transport, node)?)
    }

    /// Plays what was set up before and returns the viewer's number.
    pub fn begin(&mut self, set_up: SetUp) -> Result<usize> {
        let SetUp { mut connection, rtp, base } = set_up;
        let answer = connection.request("PLAY", &base, &[("Range", "npt=0.000-")], "")?.ok()?;
        let session = connection.session.clone().unwrap_or_default();
        let frames = std::mem::take(&mut connection.frames);
        let (stream, buffer) = connection.into_parts();
        stream.set_nonblocking(true)?;
        let mut sink = Sink {
            connection: stream,
            buffer,
            rtp,
            account: Account::default(),
            url: base,
            session,
            rtp_info: answer.header("RTP-Info").unwrap_or_default().to_owned(),
            kept: Instant::now(),
            sequence: 100,
            closed: false,
        };
        for (channel, packet) in frames {
            if channel == 0 {
                sink.account.count(&packet);
            }
        }
        let id = self.count;
        self.count += 1;
        self.shared.add(id as u64, sink)?;
        Ok(id)
    }

    /// What a viewer saw so far.
    pub fn account(&self, id: usize) -> Account {
        self.shared.lock().get(&(id as u64)).map(|sink| sink.account.clone()).unwrap_or_default()
    }

    /// The RTP-Info of its PLAY.
    pub fn rtp_info(&self, id: usize) -> String {
        self.shared.lock().get(&(id as u64)).map(|sink| sink.rtp_info.clone()).unwrap_or_default()
    }

    /// True once the proxy has closed the viewer's RTSP connection.
    pub fn is_closed(&self, id: usize) -> bool {
        self.shared.lock().get(&(id as u64)).is_none_or(|sink| sink.closed)
    }

    /// Datagrams that this machine dropped at the viewers' sockets: no fault of the proxy's.
    pub fn overflows(&self, node: Option<&Node>) -> Result<u64> {
        let read = || -> std::io::Result<String> {
            Ok(std::fs::read_to_string("/proc/thread-self/net/udp")?
                + &std::fs::read_to_string("/proc/thread-self/net/udp6").unwrap_or_default())
        };
        let table = match node {
            Some(node) => node.inside(read)??,
            None => read()?,
        };
        let sinks = self.shared.lock();
        let ports: Vec<String> = sinks
            .values()
            .filter_map(|sink| sink.rtp.as_ref()?.0.local_addr().ok())
            .map(|address| format!(":{:04X}", address.port()))
            .collect();
        Ok(table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| words.get(1).is_some_and(|local| ports.iter().any(|port| local.ends_with(port))))
            .filter_map(|words| words.last()?.parse::<u64>().ok())
            .sum())
    }

    /// Ends a viewer by TEARDOWN.
    pub fn tear_down(&self, id: usize) {
        if let Some(sink) = self.shared.lock().get_mut(&(id as u64)) {
            sink.send("TEARDOWN");
        }
    }

    /// Ends all of them by TEARDOWN and returns their accounts in order.
    pub fn finish(mut self) -> Vec<Account> {
        for id in 0..self.count {
            self.tear_down(id);
        }
        self.halt();
        (0..self.count).map(|id| self.account(id)).collect()
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Control URL of the first track of a DESCRIBE's answer.
pub fn first_control(described: &Answer, url: &str) -> String {
    control(&described.body, described.header("Content-Base").unwrap_or(url))
}

/// Control URL of the first track.
fn control(sdp: &str, base: &str) -> String {
    let media = sdp.split("m=").nth(1).unwrap_or_default();
    let control = media.lines().find_map(|line| line.strip_prefix("a=control:")).unwrap_or_default().trim();
    if control.starts_with("rtsp://") {
        return control.to_owned();
    }
    format!("{}/{control}", base.trim_end_matches('/'))
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Sink>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: u64, sink: Sink) -> Result<()> {
        let mut sinks = self.lock();
        self.epoll.add(sink.connection.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, id)).context("epoll")?;
        if let Some((rtp, rtcp)) = &sink.rtp {
            self.epoll.add(rtp.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, id)).context("epoll")?;
            self.epoll.add(rtcp.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, id)).context("epoll")?;
        }
        sinks.insert(id, sink);
        Ok(())
    }

    fn drive(&self) {
        let mut events = [EpollEvent::empty(); 256];
        let mut packet = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let ready = self.epoll.wait(&mut events, EpollTimeout::from(20_u8)).unwrap_or(0);
            let mut sinks = self.lock();
            for event in &events[..ready] {
                if let Some(sink) = sinks.get_mut(&event.data()) {
                    sink.receive(&mut packet);
                    if sink.closed {
                        self.epoll.delete(sink.connection.as_fd()).ok();
                    }
                }
            }
            for sink in sinks.values_mut().filter(|sink| sink.kept.elapsed() > KEEPALIVE) {
                sink.send("GET_PARAMETER");
                sink.kept = Instant::now();
            }
        }
        // What is in the sockets still counts.
        for sink in self.lock().values_mut() {
            sink.receive(&mut packet);
        }
    }
}

impl Sink {
    fn receive(&mut self, packet: &mut [u8]) {
        if let Some((rtp, rtcp)) = &self.rtp {
            while let Ok(length) = rtp.recv(packet) {
                self.account.count(&packet[..length]);
            }
            while rtcp.recv(packet).is_ok() {}
        }
        while !self.closed {
            match self.connection.read(packet) {
                Ok(0) => self.closed = true,
                Ok(length) => self.buffer.extend_from_slice(&packet[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.closed = true,
            }
        }
        self.split();
    }

    /// Takes frames and answers off the front of the buffer.
    fn split(&mut self) {
        let mut at = 0;
        loop {
            match self.buffer[at..] {
                [b'$', channel, high, low, ..] => {
                    let end = at + 4 + usize::from(u16::from_be_bytes([high, low]));
                    if end > self.buffer.len() {
                        break;
                    }
                    if channel == 0 {
                        self.account.count(&self.buffer[at + 4..end]);
                    }
                    at = end;
                }
                [b'R', ..] => {
                    // Answers of keep-alives have no body.
                    let Some(end) = self.buffer[at..].windows(4).position(|window| window == b"\r\n\r\n")
                    else {
                        break;
                    };
                    at += end + 4;
                }
                [] => break,
                [..] => {
                    if self.buffer.len() - at >= 4 {
                        // Framing is lost: a torn message.
                        self.account.wrong += 1;
                        at = self.buffer.len();
                    }
                    break;
                }
            }
        }
        self.buffer.drain(..at);
    }

    fn send(&mut self, method: &str) {
        self.sequence += 1;
        let request = format!(
            "{method} {} RTSP/1.0\r\nCSeq: {}\r\nSession: {}\r\n\r\n",
            self.url, self.sequence, self.session
        );
        self.connection.write_all(request.as_bytes()).ok();
    }
}
