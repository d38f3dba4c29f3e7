//! A TCP relay that understands RTSP enough to change it: in front of a camera, or between player and proxy.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

/// A request or an answer: its lines as they are on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Request line or status line.
    pub(crate) start: String,
    /// Header lines, without their ends.
    pub(crate) lines: Vec<String>,
    /// Body; `Content-Length` is corrected when it is written.
    pub(crate) body: String,
}

impl Message {
    /// Value of a header field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.lines.iter().filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Replaces a header field's whole line; nothing happens when there is none.
    pub(crate) fn replace(&mut self, name: &str, line: &str) {
        for own in &mut self.lines {
            if own.split(':').next().is_some_and(|key| key.trim().eq_ignore_ascii_case(name)) {
                line.clone_into(own);
            }
        }
    }

    /// Removes a header field.
    pub(crate) fn remove(&mut self, name: &str) {
        self.lines
            .retain(|line| !line.split(':').next().is_some_and(|key| key.trim().eq_ignore_ascii_case(name)));
    }

    /// Method of a request.
    pub(crate) fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.start);
        for line in &self.lines {
            if line.to_ascii_lowercase().starts_with("content-length") {
                write!(text, "Content-Length: {}\r\n", self.body.len()).ok();
            } else {
                write!(text, "{line}\r\n").ok();
            }
        }
        text += "\r\n";
        text += &self.body;
        text.into_bytes()
    }
}

/// One unit on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A request or an answer.
    Message(Message),
    /// An interleaved frame.
    Frame(u8, Vec<u8>),
    /// Anything between: line ends in front of a message.
    Raw(Vec<u8>),
}

impl Unit {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Message(message) => message.bytes(),
            Self::Frame(channel, payload) => {
                let length = (payload.len() as u16).to_be_bytes();
                [&[b'$', *channel, length[0], length[1]], payload.as_slice()].concat()
            }
            Self::Raw(bytes) => bytes.clone(),
        }
    }
}

/// What one connection's relay changes. Each unit becomes any number of units in its direction.
pub(crate) trait Rule: Send {
    /// Bytes that the relay exchanges with the server before it relays anything.
    fn prepare(&mut self, _server: &mut TcpStream) -> Result<()> {
        Ok(())
    }

    /// From the client.
    fn up(&mut self, unit: Unit) -> Vec<Unit> {
        vec![unit]
    }

    /// From the server.
    fn down(&mut self, unit: Unit) -> Vec<Unit> {
        vec![unit]
    }
}

/// A running relay.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl Relay {
    /// Relays to `target`; every connection has a rule of its own.
    pub(crate) fn start(
        target: SocketAddr,
        rule: impl Fn() -> Box<dyn Rule> + Send + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&connections));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                connect(client, target, rule());
            }
        });
        Ok(Self { address, stop, connections })
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        TcpStream::connect(self.address).ok();
    }
}

fn connect(client: TcpStream, target: SocketAddr, mut rule: Box<dyn Rule>) {
    std::thread::spawn(move || -> Result<()> {
        let mut server = TcpStream::connect(target)?;
        rule.prepare(&mut server)?;
        let rule = Arc::new(Mutex::new(rule));
        let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
        let upward = Arc::clone(&rule);
        std::thread::spawn(move || {
            pump(from_client, to_server, |unit| lock(&upward).up(unit));
        });
        pump(server, client, |unit| lock(&rule).down(unit));
        Ok(())
    });
}

fn lock(rule: &Mutex<Box<dyn Rule>>) -> std::sync::MutexGuard<'_, Box<dyn Rule>> {
    rule.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut rule: impl FnMut(Unit) -> Vec<Unit>) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 16_384];
    'all: while let Ok(read) = from.read(&mut chunk) {
        if read == 0 {
            break;
        }
        buffer.extend_from_slice(&chunk[..read]);
        while let Some(unit) = take_unit(&mut buffer) {
            for unit in rule(unit) {
                if to.write_all(&unit.bytes()).is_err() {
                    break 'all;
                }
            }
        }
    }
    to.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}

fn take_unit(buffer: &mut Vec<u8>) -> Option<Unit> {
    match *buffer.as_slice() {
        [] | [b'$'] | [b'$', _] | [b'$', _, _] => None,
        [b'$', channel, high, low, ..] => {
            let end = 4 + usize::from(u16::from_be_bytes([high, low]));
            if buffer.len() < end {
                return None;
            }
            let frame = Unit::Frame(channel, buffer[4..end].to_vec());
            buffer.drain(..end);
            Some(frame)
        }
        [first, ..] if !first.is_ascii_alphabetic() => Some(Unit::Raw(vec![buffer.remove(0)])),
        _ => {
            let end = buffer.windows(4).position(|window| window == b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let mut lines = head.split("\r\n").map(str::to_owned);
            let start = lines.next().unwrap_or_default();
            let mut message = Message { start, lines: lines.collect(), body: String::new() };
            let body: usize = message.header("Content-Length").and_then(|n| n.parse().ok()).unwrap_or(0);
            let whole = end + 4 + body;
            if buffer.len() < whole {
                return None;
            }
            message.body = String::from_utf8_lossy(&buffer[end + 4..whole]).into_owned();
            buffer.drain(..whole);
            Some(Unit::Message(message))
        }
    }
}
