//! A viewer spoken by hand: every message and frame from the proxy in its order of arrival.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::camera::Transport;
use msm_tests::rtsp::{self, Answer};

/// Generous, because the machine of the tests may be busy: no assertion of speed depends on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the proxy sent on the connection.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// An answer.
    Answer(Answer),
    /// An interleaved frame.
    Frame(u8, Vec<u8>),
}

/// One RTSP connection.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
    sequence: u32,
    /// Sent with every later request.
    pub(crate) session: Option<String>,
    /// Frames that arrived while an answer was awaited.
    pub(crate) frames: VecDeque<(u8, Vec<u8>)>,
    /// Every byte of answers, for searching.
    pub(crate) transcript: String,
}

impl Peer {
    /// Connects to the server of a URL.
    pub(crate) fn open(url: &str) -> Result<Self> {
        Ok(Self {
            stream: rtsp::connect(url, None, None)?,
            buffer: Vec::new(),
            sequence: 0,
            session: None,
            frames: VecDeque::new(),
            transcript: String::new(),
        })
    }

    /// The socket.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("sending")
    }

    /// Sends a request only; `CSeq` and the session are added.
    pub(crate) fn send(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<u32> {
        self.sequence += 1;
        let mut text = format!("{method} {url} RTSP/1.0\r\nCSeq: {}\r\n", self.sequence);
        if let Some(session) = &self.session {
            write!(text, "Session: {session}\r\n").ok();
        }
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n").ok();
        }
        if !body.is_empty() {
            write!(text, "Content-Length: {}\r\n", body.len()).ok();
        }
        text += "\r\n";
        text += body;
        self.send_raw(text.as_bytes())?;
        Ok(self.sequence)
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer> {
        let sequence = self.send(method, url, headers, body)?;
        let answer = self.answer().with_context(|| format!("{method} {url}"))?;
        let echoed = answer.header("CSeq").unwrap_or_default();
        ensure!(echoed == sequence.to_string(), "{method} {sequence} was answered with CSeq {echoed:?}");
        if let (None, Some(session)) = (&self.session, answer.header("Session")) {
            self.session = session.split(';').next().map(|id| id.trim().to_owned());
        }
        Ok(answer)
    }

    /// Waits for an answer; frames before it are kept.
    pub(crate) fn answer(&mut self) -> Result<Answer> {
        loop {
            match self.item(PATIENCE)?.context("the connection was closed")? {
                Item::Answer(answer) => return Ok(answer),
                Item::Frame(channel, payload) => self.frames.push_back((channel, payload)),
            }
        }
    }

    /// Waits for a frame that is not RTCP.
    pub(crate) fn media(&mut self, limit: Duration) -> Result<(u8, Rtp)> {
        let until = Instant::now() + limit;
        loop {
            let (channel, payload) = match self.frames.pop_front() {
                Some(frame) => frame,
                None => match self.item(until.saturating_duration_since(Instant::now()))? {
                    Some(Item::Frame(channel, payload)) => (channel, payload),
                    Some(Item::Answer(answer)) => bail!("an answer nobody asked for: {answer:?}"),
                    None => bail!("the connection was closed"),
                },
            };
            if channel % 2 == 0 {
                return Ok((channel, Rtp::parse(&payload)?));
            }
        }
    }

    /// The next answer or frame; none when the proxy closed the connection.
    pub(crate) fn item(&mut self, limit: Duration) -> Result<Option<Item>> {
        let until = Instant::now() + limit;
        loop {
            if let Some(item) = take_item(&mut self.buffer, &mut self.transcript)? {
                return Ok(Some(item));
            }
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "nothing came within {limit:?}");
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut chunk = [0; 16_384];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    ensure!(self.buffer.is_empty(), "closed within a message: {:?}", self.buffer);
                    return Ok(None);
                }
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the proxy closes; frames before are ignored, an answer is an error.
    pub(crate) fn wait_for_close(&mut self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        loop {
            match self.item(until.saturating_duration_since(Instant::now()))? {
                None => return Ok(()),
                Some(Item::Frame(..)) => {}
                Some(Item::Answer(answer)) => bail!("{answer:?} instead of the end"),
            }
        }
    }
}

fn take_item(buffer: &mut Vec<u8>, transcript: &mut String) -> Result<Option<Item>> {
    match buffer.as_slice() {
        [] => Ok(None),
        [b'$', channel, high, low, ..] => {
            let end = 4 + usize::from(u16::from_be_bytes([*high, *low]));
            if buffer.len() < end {
                return Ok(None);
            }
            let frame = Item::Frame(*channel, buffer[4..end].to_vec());
            buffer.drain(..end);
            Ok(Some(frame))
        }
        [b'$', ..] => Ok(None),
        [b'R', ..] => take_answer(buffer, transcript),
        // A torn message or frame shows here: nothing else may stand at a boundary (RTSP-44).
        other => {
            bail!("neither frame nor answer: {:?}", String::from_utf8_lossy(&other[..other.len().min(80)]))
        }
    }
}

fn take_answer(buffer: &mut Vec<u8>, transcript: &mut String) -> Result<Option<Item>> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("RTSP/1.0 "), "no answer: {status:?}");
    let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: String::new() };
    let length: usize = answer.header("Content-Length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let whole = end + 4 + length;
    if buffer.len() < whole {
        return Ok(None);
    }
    answer.body = String::from_utf8_lossy(&buffer[end + 4..whole]).into_owned();
    transcript.push_str(&String::from_utf8_lossy(&buffer[..whole]));
    buffer.drain(..whole);
    Ok(Some(Item::Answer(answer)))
}

/// The fields of an RTP packet that the tests look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rtp {
    /// Sequence number.
    pub(crate) seq: u16,
    /// Timestamp.
    pub(crate) timestamp: u32,
    /// Synchronisation source.
    pub(crate) ssrc: u32,
    /// Payload, header extension and sources not interpreted.
    pub(crate) payload: Vec<u8>,
}

impl Rtp {
    /// Reads a packet.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(
            bytes.len() >= 12 && bytes[0] >> 6 == 2,
            "no RTP packet: {:02x?}",
            &bytes[..bytes.len().min(16)]
        );
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Ok(Self {
            seq: u16::from_be_bytes([bytes[2], bytes[3]]),
            timestamp: word(4),
            ssrc: word(8),
            payload: bytes[12..].to_vec(),
        })
    }
}

/// Where a track's packets arrive.
#[derive(Debug)]
pub(crate) enum Inlet {
    /// RTP and RTCP sockets.
    Udp(UdpSocket, #[expect(dead_code, reason = "bound so that nothing else takes the RTCP port")] UdpSocket),
    /// First channel.
    Tcp(u8),
}

/// One track that was set up.
#[derive(Debug)]
pub(crate) struct Track {
    /// Its URL as the proxy names it.
    pub(crate) url: String,
    /// Where packets arrive.
    pub(crate) inlet: Inlet,
    /// `Transport` of the answer.
    pub(crate) transport: String,
}

/// What RTP-Info says about one track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Info {
    /// Track URL.
    pub(crate) url: String,
    /// First sequence number.
    pub(crate) seq: Option<u16>,
    /// Timestamp of the start.
    pub(crate) rtptime: Option<u32>,
}

/// A viewer with its session.
#[derive(Debug)]
pub(crate) struct Viewer {
    /// Its connection.
    pub(crate) peer: Peer,
    /// Aggregate URL.
    pub(crate) url: String,
    /// Tracks in the order of the description.
    pub(crate) tracks: Vec<Track>,
}

impl Viewer {
    /// DESCRIBE and SETUP of every track, asking for channels or ports as players do.
    pub(crate) fn set_up(url: &str, transport: Transport) -> Result<Self> {
        let mut peer = Peer::open(url)?;
        let described = peer.request("DESCRIBE", url, &[("Accept", "application/sdp")], "")?.ok()?;
        let base = described.header("Content-Base").context("no Content-Base")?.to_owned();
        let mut viewer = Self { peer, url: url.to_owned(), tracks: Vec::new() };
        for (number, control) in controls(&described.body).into_iter().enumerate() {
            viewer.set_up_track(&format!("{base}{control}"), transport, 2 * number as u8)?;
        }
        ensure!(!viewer.tracks.is_empty(), "no tracks:\n{}", described.body);
        Ok(viewer)
    }

    fn set_up_track(&mut self, url: &str, transport: Transport, channel: u8) -> Result<()> {
        let (offer, inlet) = match transport {
            Transport::Tcp => {
                let offer = format!("RTP/AVP/TCP;unicast;interleaved={channel}-{}", channel + 1);
                (offer, None)
            }
            Transport::Udp => {
                let (rtp, rtcp) = udp_pair()?;
                let port = rtp.local_addr()?.port();
                (format!("RTP/AVP;unicast;client_port={port}-{}", port + 1), Some(Inlet::Udp(rtp, rtcp)))
            }
        };
        let answer = self.peer.request("SETUP", url, &[("Transport", &offer)], "")?.ok()?;
        let transport = answer.header("Transport").context("no Transport")?.to_owned();
        let inlet = match inlet {
            Some(inlet) => inlet,
            None => Inlet::Tcp(channels(&transport)?.0),
        };
        self.tracks.push(Track { url: url.to_owned(), inlet, transport });
        Ok(())
    }

    /// Plays at once.
    pub(crate) fn play(url: &str, transport: Transport) -> Result<(Self, Vec<Info>)> {
        let mut viewer = Self::set_up(url, transport)?;
        let info = viewer.start()?;
        Ok((viewer, info))
    }

    /// PLAY of the aggregate.
    pub(crate) fn start(&mut self) -> Result<Vec<Info>> {
        let url = self.url.clone();
        let answer = self.peer.request("PLAY", &url, &[("Range", "npt=0.000-")], "")?.ok()?;
        rtp_info(answer.header("RTP-Info").unwrap_or_default())
    }

    /// TEARDOWN of the aggregate; the connection stays open.
    pub(crate) fn tear_down(&mut self) -> Result<Answer> {
        let url = self.url.clone();
        self.peer.request("TEARDOWN", &url, &[], "")?.ok()
    }

    /// Any request on the aggregate.
    pub(crate) fn request(&mut self, method: &str) -> Result<Answer> {
        let url = self.url.clone();
        self.peer.request(method, &url, &[], "")
    }

    /// The next packet of a track, of any track when interleaved: then its number is returned too.
    pub(crate) fn packet(&mut self, track: usize, limit: Duration) -> Result<(usize, Rtp)> {
        if let Inlet::Udp(rtp, _) = &self.tracks[track].inlet {
            return Ok((track, receive(rtp, limit)?));
        }
        let (channel, packet) = self.peer.media(limit)?;
        let owner = self.tracks.iter().position(|t| matches!(t.inlet, Inlet::Tcp(own) if own == channel));
        let owner = owner.with_context(|| format!("a frame on channel {channel}, which nobody set up"))?;
        Ok((owner, packet))
    }

    /// The next `count` packets of every track.
    pub(crate) fn packets(&mut self, count: usize) -> Result<Vec<Vec<Rtp>>> {
        let mut seen = vec![Vec::new(); self.tracks.len()];
        let until = Instant::now() + PATIENCE;
        while let Some(wanted) = seen.iter().position(|packets| packets.len() < count) {
            let left = until.saturating_duration_since(Instant::now());
            let (track, packet) = self.packet(wanted, left).with_context(|| {
                format!("{:?} packets so far", seen.iter().map(Vec::len).collect::<Vec<_>>())
            })?;
            seen[track].push(packet);
        }
        Ok(seen)
    }

    /// Drops every packet that has arrived.
    pub(crate) fn discard(&mut self) {
        self.peer.frames.clear();
        for track in &self.tracks {
            if let Inlet::Udp(rtp, _) = &track.inlet {
                let mut buffer = [0; 2048];
                rtp.set_nonblocking(true).ok();
                while rtp.recv(&mut buffer).is_ok() {}
                rtp.set_nonblocking(false).ok();
            }
        }
    }

    /// The session's id.
    pub(crate) fn session(&self) -> String {
        self.peer.session.clone().unwrap_or_default()
    }
}

/// Sequence numbers follow each other without gap, repeat or reorder, under one SSRC.
pub(crate) fn assert_contiguous(packets: &[Rtp]) {
    for pair in packets.windows(2) {
        assert_eq!(pair[1].seq, pair[0].seq.wrapping_add(1), "a gap: {:?}", sequences(packets));
        assert_eq!(pair[1].ssrc, pair[0].ssrc, "another SSRC within a leg");
    }
}

/// Every packet between the first and the last is there once, in whatever order a leg's way from worker to
/// kernel left them (ADR 0005).
pub(crate) fn assert_complete(packets: &[Rtp]) {
    let mut sorted = packets.to_vec();
    let first = packets.first().map_or(0, |packet| packet.seq);
    sorted.sort_by_key(|packet| packet.seq.wrapping_sub(first) as i16);
    assert_contiguous(&sorted);
}

fn sequences(packets: &[Rtp]) -> Vec<u16> {
    packets.iter().map(|packet| packet.seq).collect()
}

/// The same for every track.
pub(crate) fn assert_all_contiguous(tracks: &[Vec<Rtp>]) {
    for packets in tracks {
        assert_contiguous(packets);
    }
}

/// One datagram as RTP.
pub(crate) fn receive(socket: &UdpSocket, limit: Duration) -> Result<Rtp> {
    let mut buffer = [0; 2048];
    socket.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
    let (length, _) = socket.recv_from(&mut buffer).context("no datagram came")?;
    Rtp::parse(&buffer[..length])
}

/// A pair of UDP ports whose first is even.
pub(crate) fn udp_pair() -> Result<(UdpSocket, UdpSocket)> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    for _ in 0..500 {
        let first = UdpSocket::bind((any, 0))?;
        let port = first.local_addr()?.port();
        if port % 2 == 0
            && let Ok(second) = UdpSocket::bind((any, port + 1))
        {
            return Ok((first, second));
        }
    }
    bail!("no free pair of UDP ports")
}

/// `a=control` of every media section.
pub(crate) fn controls(sdp: &str) -> Vec<String> {
    let mut found = Vec::new();
    for section in sdp.split("\r\nm=").skip(1) {
        found.extend(section.lines().find_map(|line| line.strip_prefix("a=control:")).map(str::to_owned));
    }
    found
}

/// `interleaved=a-b` of a Transport header.
pub(crate) fn channels(transport: &str) -> Result<(u8, u8)> {
    pair(transport, "interleaved=")
}

/// `server_port=a-b` of a Transport header.
pub(crate) fn server_ports(transport: &str) -> Result<(u16, u16)> {
    pair(transport, "server_port=")
}

fn pair<T: std::str::FromStr>(transport: &str, name: &str) -> Result<(T, T)> {
    let value = transport
        .split(';')
        .find_map(|part| part.trim().strip_prefix(name))
        .with_context(|| format!("no {name} in {transport:?}"))?;
    let (first, last) = value.split_once('-').with_context(|| transport.to_owned())?;
    let number = |text: &str| text.parse::<T>().ok().with_context(|| transport.to_owned());
    Ok((number(first)?, number(last)?))
}

/// Entries of an RTP-Info header, by the strict grammar that RTSP-31 promises to viewers.
pub(crate) fn rtp_info(header: &str) -> Result<Vec<Info>> {
    ensure!(!header.ends_with(';'), "RTP-Info ends with a semicolon: {header:?}");
    let entries = header.split(", ").filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let mut info = Info { url: String::new(), seq: None, rtptime: None };
            for part in entry.split(';') {
                match part.split_once('=').with_context(|| header.to_owned())? {
                    ("url", url) => url.clone_into(&mut info.url),
                    ("seq", seq) => info.seq = Some(seq.parse()?),
                    ("rtptime", time) => info.rtptime = Some(time.parse()?),
                    _ => bail!("unknown part {part:?} in {header:?}"),
                }
            }
            Ok(info)
        })
        .collect()
}
