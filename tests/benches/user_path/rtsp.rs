//! The least RTSP that sets up a publisher and viewers: text in, text out, blocking.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

pub(crate) struct Rtsp {
    stream: BufReader<TcpStream>,
    cseq: u32,
    session: Option<String>,
}

impl Rtsp {
    pub(crate) fn connect(to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        Self::over(stream)
    }

    /// From a local address of choice: cameras are told apart by address.
    pub(crate) fn connect_from(from: SocketAddr, to: SocketAddr) -> anyhow::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect(&to.into())?;
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream: BufReader::new(stream), cseq: 0, session: None })
    }

    /// Sends a request and returns the headers of a `200`.
    pub(crate) fn request(
        &mut self,
        method: &str,
        url: &str,
        headers: &str,
        body: &str,
    ) -> anyhow::Result<String> {
        self.cseq += 1;
        let session = self.session.as_ref().map_or(String::new(), |s| format!("Session: {s}\r\n"));
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        write!(
            self.stream.get_mut(),
            "{method} {url} RTSP/1.0\r\nCSeq: {}\r\n{session}{headers}{length}\r\n{body}",
            self.cseq
        )?;
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("{method}: connection closed");
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        if let Some(length) = header(&head, "content-length") {
            let mut body = vec![0; length.parse()?];
            self.stream.read_exact(&mut body)?;
        }
        if !head.starts_with("RTSP/1.0 200") {
            bail!("{method} {url}: {}", head.lines().next().unwrap_or_default());
        }
        if let Some(session) = header(&head, "session") {
            self.session = Some(session.split(';').next().unwrap_or_default().to_owned());
        }
        Ok(head)
    }

    /// Publishes one video track over UDP; returns the proxy's RTP port.
    pub(crate) fn publish(&mut self, url: &str, ports: (u16, u16)) -> anyhow::Result<u16> {
        let sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=bench\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n\
                   m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n";
        self.request("ANNOUNCE", url, "Content-Type: application/sdp\r\n", sdp)?;
        let transport =
            format!("Transport: RTP/AVP/UDP;unicast;client_port={}-{};mode=record\r\n", ports.0, ports.1);
        let head = self.request("SETUP", &format!("{url}/streamid=0"), &transport, "")?;
        self.request("RECORD", url, "Range: npt=0.000-\r\n", "")?;
        server_port(&head)
    }

    /// Plays the one track over UDP to a local port pair.
    pub(crate) fn play(&mut self, url: &str, port: u16) -> anyhow::Result<()> {
        self.request("DESCRIBE", url, "Accept: application/sdp\r\n", "")?;
        let transport = format!("Transport: RTP/AVP;unicast;client_port={port}-{}\r\n", port + 1);
        self.request("SETUP", &format!("{url}/trackID=0"), &transport, "")?;
        self.request("PLAY", url, "Range: npt=0.000-\r\n", "")?;
        Ok(())
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (n, v) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| v.trim())
    })
}

fn server_port(head: &str) -> anyhow::Result<u16> {
    let transport = header(head, "transport").context("no Transport in the answer")?;
    let ports =
        transport.split(';').find_map(|p| p.trim().strip_prefix("server_port=")).context("no server_port")?;
    Ok(ports.split('-').next().unwrap_or_default().parse()?)
}
