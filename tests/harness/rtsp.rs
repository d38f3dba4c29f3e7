//! A small RTSP client for probes and hostile tests, written from RFC 2326 without a line of ours.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::Node;

/// One RTSP connection, used from one thread.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    sequence: u32,
    /// The session of the first SETUP's answer, sent with every later request.
    pub session: Option<String>,
    /// Interleaved frames that arrived between answers.
    pub frames: Vec<(u8, Vec<u8>)>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header fields in their order.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Answer {
    /// First header field of this name, any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Itself when the status is 200.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.status == 200, "status {} instead of 200: {:?}", self.status, self.headers);
        Ok(self)
    }
}

/// `host:port` of an `rtsp://` URL.
pub fn authority(url: &str) -> Result<String> {
    let rest = url.strip_prefix("rtsp://").with_context(|| format!("{url} is no rtsp URL"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { host.to_owned() } else { format!("{host}:554") })
}

/// Connects to the server of a URL, inside a node and from a local address where they are given.
pub fn connect(url: &str, node: Option<&Node>, local: Option<IpAddr>) -> Result<TcpStream> {
    let address = authority(url)?;
    let connect = || {
        let Some(local) = local else {
            return TcpStream::connect(&address).with_context(|| address.clone());
        };
        let remote: SocketAddr = address.parse()?;
        let socket = socket2::Socket::new(socket2::Domain::for_address(remote), socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
        socket.connect_timeout(&remote.into(), Duration::from_secs(5)).with_context(|| address.clone())?;
        Ok(socket.into())
    };
    let stream = match node {
        Some(node) => node.inside(connect)??,
        None => connect()?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connection {
    /// Connects to the server of a URL, inside a node when one is given.
    pub fn open(url: &str, node: Option<&Node>) -> Result<Self> {
        Self::over(connect(url, node, None)?)
    }

    /// Connects from a local address: on loopback each address of 127.0.0.0/8 is another peer.
    pub fn open_from(url: &str, local: Option<IpAddr>) -> Result<Self> {
        Self::over(connect(url, None, local)?)
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, buffer: Vec::new(), sequence: 0, session: None, frames: Vec::new() })
    }

    /// The socket, for raw bytes.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Socket and bytes that were read but not used.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer)
    }

    /// Sends a request and waits for its answer; interleaved frames meanwhile are kept.
    pub fn request(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer> {
        self.send(method, url, headers, body)?;
        let answer = self.answer().with_context(|| format!("{method} {url}"))?;
        if let (None, Some(session)) = (&self.session, answer.header("Session")) {
            self.session = session.split(';').next().map(|id| id.trim().to_owned());
        }
        Ok(answer)
    }

    /// Sends a request only.
    pub fn send(&mut self, method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<()> {
        self.sequence += 1;
        let mut text = format!("{method} {url} RTSP/1.0\r\nCSeq: {}\r\n", self.sequence);
        if let Some(session) = &self.session {
            write!(text, "Session: {session}\r\n")?;
        }
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n")?;
        }
        if !body.is_empty() {
            write!(text, "Content-Length: {}\r\n", body.len())?;
        }
        text += "\r\n";
        text += body;
        self.stream.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Waits for an answer.
    pub fn answer(&mut self) -> Result<Answer> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer) {
                self.frames.push(frame);
                continue;
            }
            if self.buffer.first() != Some(&b'$')
                && let Some(answer) = take_answer(&mut self.buffer)?
            {
                return Ok(answer);
            }
            let mut chunk = [0; 16_384];
            let read = self.stream.read(&mut chunk)?;
            ensure!(read > 0, "the connection was closed");
            self.buffer.extend_from_slice(&chunk[..read]);
        }
    }
}

/// Takes one whole `$` frame from the front.
pub fn take_frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let [b'$', channel, high, low, ..] = *buffer.as_slice() else { return None };
    let end = 4 + usize::from(u16::from_be_bytes([high, low]));
    if buffer.len() < end {
        return None;
    }
    let payload = buffer[4..end].to_vec();
    buffer.drain(..end);
    Some((channel, payload))
}

/// Takes one whole answer from the front, if there is one.
pub(crate) fn take_answer(buffer: &mut Vec<u8>) -> Result<Option<Answer>> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("RTSP/1.0 ") {
        bail!("no answer: {status:?}");
    }
    let code =
        status.split_whitespace().nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status: code, headers, body: String::new() };
    let length = answer.header("Content-Length").and_then(|length| length.parse().ok()).unwrap_or(0);
    if buffer.len() < end + 4 + length {
        return Ok(None);
    }
    answer.body = String::from_utf8_lossy(&buffer[end + 4..end + 4 + length]).into_owned();
    buffer.drain(..end + 4 + length);
    Ok(Some(answer))
}
