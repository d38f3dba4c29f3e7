//! A publisher and a viewer that a test drives packet by packet, and keeps every packet of.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt};

use super::camera::{server_port, udp_pair, udp_pair_at};
use super::wire::{self, Rtp};
use crate::camera::Transport;
use crate::rtsp::{Answer, Connection, authority, take_answer, take_frame};

/// SDP of one H.264 track without parameter sets: what carries no picture needs none.
pub const VIDEO: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=probe\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n\
    m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:streamid=0\r\n";

/// The same with a second track: G.711 at 8 kHz.
pub const VIDEO_AUDIO: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=probe\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n\
    m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:streamid=0\r\n\
    m=audio 0 RTP/AVP 0\r\na=control:streamid=1\r\n";

/// A publisher that sends what it is told to.
#[derive(Debug)]
pub struct Publisher {
    /// Its RTSP connection.
    pub connection: Connection,
    /// URL it publishes.
    pub url: String,
    tracks: Vec<Way>,
}

/// How one track travels.
#[derive(Debug)]
enum Way {
    Udp { rtp: UdpSocket, rtcp: UdpSocket, server: SocketAddr },
    Tcp { channel: u8 },
}

impl Publisher {
    /// Announces, sets up every track of the SDP and records.
    pub fn record(url: &str, sdp: &str, transport: Transport) -> Result<Self> {
        Self::record_from(url, sdp, transport, None)
    }

    /// The same from a local address.
    pub fn record_from(url: &str, sdp: &str, transport: Transport, local: Option<IpAddr>) -> Result<Self> {
        let mut connection = Connection::open_from(url, local)?;
        connection.request("ANNOUNCE", url, &[("Content-Type", "application/sdp")], sdp)?.ok()?;
        let mut tracks = Vec::new();
        for control in controls(sdp) {
            let number = tracks.len() as u8;
            let track = format!("{url}/{control}");
            if transport == Transport::Tcp {
                let channel = number * 2;
                let offer = format!("RTP/AVP/TCP;unicast;interleaved={channel}-{};mode=record", channel + 1);
                connection.request("SETUP", &track, &[("Transport", &offer)], "")?.ok()?;
                tracks.push(Way::Tcp { channel });
                continue;
            }
            let (rtp, rtcp) = match local {
                Some(local) => udp_pair_at(local)?,
                None => udp_pair(&authority(url)?, None)?,
            };
            let port = rtp.local_addr()?.port();
            let offer = format!("RTP/AVP;unicast;client_port={port}-{};mode=record", port + 1);
            let answer = connection.request("SETUP", &track, &[("Transport", &offer)], "")?.ok()?;
            let server = server_port(answer.header("Transport").unwrap_or_default())?;
            rtcp.set_nonblocking(true)?;
            let server = SocketAddr::new(connection.stream().peer_addr()?.ip(), server);
            tracks.push(Way::Udp { rtp, rtcp, server });
        }
        connection.request("RECORD", url, &[("Range", "npt=0.000-")], "")?.ok()?;
        Ok(Self { connection, url: url.to_owned(), tracks })
    }

    /// Publishes the same to another life of the server: over a new connection, from the same ports. UDP only.
    pub fn record_again(&mut self, sdp: &str) -> Result<()> {
        let mut connection = Connection::open(&self.url, None)?;
        connection.request("ANNOUNCE", &self.url, &[("Content-Type", "application/sdp")], sdp)?.ok()?;
        for (control, way) in controls(sdp).into_iter().zip(&mut self.tracks) {
            let Way::Udp { rtp, server, .. } = way else { continue };
            let port = rtp.local_addr()?.port();
            let offer = format!("RTP/AVP;unicast;client_port={port}-{};mode=record", port + 1);
            let track = format!("{}/{control}", self.url);
            let answer = connection.request("SETUP", &track, &[("Transport", &offer)], "")?.ok()?;
            server.set_port(server_port(answer.header("Transport").unwrap_or_default())?);
        }
        connection.request("RECORD", &self.url, &[("Range", "npt=0.000-")], "")?.ok()?;
        self.connection = connection;
        Ok(())
    }

    /// So many bytes may be on their way before a call to send waits, beyond `net.core.wmem_max`; UDP only. Needs
    /// CAP_NET_ADMIN.
    pub fn force_send_buffer(&self, track: usize, bytes: usize) -> Result<()> {
        let Way::Udp { rtp, .. } = &self.tracks[track] else { unreachable!("the test published over UDP") };
        Ok(setsockopt(rtp, sockopt::SndBufForce, &bytes)?)
    }

    /// Sends one RTP packet as it is, well-formed or not.
    pub fn send(&mut self, track: usize, packet: &[u8]) -> Result<()> {
        self.emit(track, false, packet)
    }

    /// Sends RTP packets as a burst of plain datagrams, by one system call; UDP only.
    pub fn send_burst(&self, track: usize, packets: &[Vec<u8>]) -> Result<()> {
        let Way::Udp { rtp, server, .. } = &self.tracks[track] else {
            unreachable!("the test published over UDP")
        };
        let SocketAddr::V4(server) = server else { unreachable!("the test published over IPv4") };
        let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
        let to = vec![Some(SockaddrIn::from(*server)); packets.len()];
        let mut headers = MultiHeaders::preallocate(packets.len(), None);
        let none: &[ControlMessage<'_>] = &[];
        let sent = sendmmsg(rtp.as_raw_fd(), &mut headers, &slices, &to, none, MsgFlags::empty())?;
        let sent = sent.count();
        ensure!(sent == packets.len(), "{sent} packets of {} were sent", packets.len());
        Ok(())
    }

    /// Sends one RTCP compound as it is.
    pub fn send_control(&mut self, track: usize, packet: &[u8]) -> Result<()> {
        self.emit(track, true, packet)
    }

    fn emit(&mut self, track: usize, control: bool, packet: &[u8]) -> Result<()> {
        match &self.tracks[track] {
            Way::Udp { rtp, rtcp, server } => {
                let (socket, port) = if control { (rtcp, server.port() + 1) } else { (rtp, server.port()) };
                socket.send_to(packet, (server.ip(), port))?;
            }
            Way::Tcp { channel } => {
                let frame = frame(channel + u8::from(control), packet);
                self.connection.stream().write_all(&frame)?;
            }
        }
        Ok(())
    }

    /// Where the proxy receives a track's RTP (RTCP: the next port); UDP only.
    pub fn input(&self, track: usize) -> SocketAddr {
        match &self.tracks[track] {
            Way::Udp { server, .. } => *server,
            Way::Tcp { .. } => unreachable!("the test published over UDP"),
        }
    }

    /// Port that media of a track leaves from; UDP only.
    pub fn port(&self, track: usize) -> Result<u16> {
        match &self.tracks[track] {
            Way::Udp { rtp, .. } => Ok(rtp.local_addr()?.port()),
            Way::Tcp { .. } => unreachable!("the test published over UDP"),
        }
    }

    /// RTCP that the proxy sent about a track since the last call; UDP only.
    pub fn received_control(&self, track: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut buffer = [0; 2048];
        if let Way::Udp { rtcp, .. } = &self.tracks[track] {
            while let Ok(length) = rtcp.recv(&mut buffer) {
                packets.push(buffer[..length].to_vec());
            }
        }
        packets
    }

    /// RTP that somebody sent to a track's RTP socket: nobody ever should.
    pub fn received_media(&self, track: usize) -> Result<usize> {
        let mut buffer = [0; 2048];
        let mut count = 0;
        if let Way::Udp { rtp, .. } = &self.tracks[track] {
            rtp.set_nonblocking(true)?;
            while rtp.recv(&mut buffer).is_ok() {
                count += 1;
            }
            rtp.set_nonblocking(false)?;
        }
        Ok(count)
    }
}

/// A viewer that keeps what it gets.
#[derive(Debug)]
pub struct Player {
    stream: TcpStream,
    buffer: Vec<u8>,
    ways: Vec<Sink>,
    /// RTP by track, in order of arrival.
    pub media: Vec<Vec<Vec<u8>>>,
    /// RTCP by track, in order of arrival.
    pub control: Vec<Vec<Vec<u8>>>,
    /// Answers to what [`Player::ask`] sent.
    pub answers: usize,
    /// The last of them.
    pub answer: Option<Answer>,
    /// The answer of PLAY.
    pub play: Answer,
    /// Session id.
    pub session: String,
    /// True once the proxy closed the connection.
    pub closed: bool,
    url: String,
    sequence: u32,
}

#[derive(Debug)]
enum Sink {
    Udp { rtp: UdpSocket, rtcp: UdpSocket, server: SocketAddr },
    Tcp { channel: u8 },
}

impl Player {
    /// Describes, sets up every track and plays.
    pub fn play(url: &str, transport: Transport) -> Result<Self> {
        Self::play_from(url, transport, None)
    }

    /// The same from a local address.
    pub fn play_from(url: &str, transport: Transport, local: Option<IpAddr>) -> Result<Self> {
        let mut connection = Connection::open_from(url, local)?;
        let described = connection.request("DESCRIBE", url, &[("Accept", "application/sdp")], "")?.ok()?;
        let base = described.header("Content-Base").unwrap_or(url).trim_end_matches('/').to_owned();
        let mut ways = Vec::new();
        for control in controls(&described.body) {
            let number = ways.len() as u8;
            let track = if control.starts_with("rtsp://") { control } else { format!("{base}/{control}") };
            if transport == Transport::Tcp {
                let channel = number * 2;
                let offer = format!("RTP/AVP/TCP;unicast;interleaved={channel}-{}", channel + 1);
                connection.request("SETUP", &track, &[("Transport", &offer)], "")?.ok()?;
                ways.push(Sink::Tcp { channel });
                continue;
            }
            let (rtp, rtcp) = udp_pair(&authority(url)?, None)?;
            let port = rtp.local_addr()?.port();
            let offer = format!("RTP/AVP;unicast;client_port={port}-{}", port + 1);
            let answer = connection.request("SETUP", &track, &[("Transport", &offer)], "")?.ok()?;
            let server = server_port(answer.header("Transport").unwrap_or_default())?;
            roomy(&rtp)?;
            rtp.set_nonblocking(true)?;
            rtcp.set_nonblocking(true)?;
            let server = SocketAddr::new(connection.stream().peer_addr()?.ip(), server);
            ways.push(Sink::Udp { rtp, rtcp, server });
        }
        let play = connection.request("PLAY", &base, &[("Range", "npt=0.000-")], "")?.ok()?;
        let session = connection.session.clone().context("no session")?;
        let frames = std::mem::take(&mut connection.frames);
        let (stream, buffer) = connection.into_parts();
        stream.set_nonblocking(true)?;
        let (media, control) = (vec![Vec::new(); ways.len()], vec![Vec::new(); ways.len()]);
        let mut player = Self {
            stream,
            buffer,
            ways,
            media,
            control,
            answers: 0,
            answer: None,
            play,
            session,
            closed: false,
            url: base,
            sequence: 100,
        };
        for (channel, packet) in frames {
            player.keep(channel, packet);
        }
        player.receive();
        Ok(player)
    }

    /// The same while `meanwhile` feeds the stream every few milliseconds: PLAY waits for a first packet.
    pub fn play_after(
        url: &str,
        transport: Transport,
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        std::thread::scope(|scope| {
            let player = scope.spawn(|| Self::play(url, transport));
            while !player.is_finished() {
                meanwhile()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            player.join().map_err(|_| anyhow::anyhow!("the player panicked"))?
        })
    }

    /// Sets up and plays at another life of the server: over a new connection, at the same ports. UDP only.
    pub fn play_again(&mut self) -> Result<()> {
        let mut connection = Connection::open_from(&self.url, None)?;
        let url = self.url.clone();
        let described = connection.request("DESCRIBE", &url, &[("Accept", "application/sdp")], "")?.ok()?;
        for (control, way) in controls(&described.body).into_iter().zip(&mut self.ways) {
            let Sink::Udp { rtp, .. } = way else { continue };
            let port = rtp.local_addr()?.port();
            let offer = format!("RTP/AVP;unicast;client_port={port}-{}", port + 1);
            let track = if control.starts_with("rtsp://") { control } else { format!("{url}/{control}") };
            connection.request("SETUP", &track, &[("Transport", &offer)], "")?.ok()?;
        }
        self.play = connection.request("PLAY", &url, &[("Range", "npt=0.000-")], "")?.ok()?;
        self.session = connection.session.clone().context("no session")?;
        (self.stream, self.buffer) = connection.into_parts();
        self.stream.set_nonblocking(true)?;
        self.closed = false;
        Ok(())
    }

    fn keep(&mut self, channel: u8, packet: Vec<u8>) {
        let kept = if channel & 1 == 0 { &mut self.media } else { &mut self.control };
        if let Some(track) = kept.get_mut(usize::from(channel / 2)) {
            track.push(packet);
        }
    }

    /// Takes everything that has arrived.
    pub fn receive(&mut self) {
        let mut buffer = vec![0; 65_536];
        for (track, way) in self.ways.iter().enumerate() {
            if let Sink::Udp { rtp, rtcp, .. } = way {
                while let Ok(length) = rtp.recv(&mut buffer) {
                    self.media[track].push(buffer[..length].to_vec());
                }
                while let Ok(length) = rtcp.recv(&mut buffer) {
                    self.control[track].push(buffer[..length].to_vec());
                }
            }
        }
        while !self.closed {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(length) => self.buffer.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.closed = true,
            }
        }
        loop {
            if let Some((channel, packet)) = take_frame(&mut self.buffer) {
                self.keep(channel, packet);
            } else if self.buffer.first() != Some(&b'$')
                && let Ok(Some(answer)) = take_answer(&mut self.buffer)
            {
                self.answer = Some(answer);
                self.answers += 1;
            } else {
                return;
            }
        }
    }

    /// Waits until `done` holds of what arrived; `meanwhile` runs between two looks.
    pub fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut meanwhile: impl FnMut() -> Result<()>,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let until = Instant::now() + limit;
        loop {
            self.receive();
            if done(self) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "waited {limit:?} for {what}");
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The RTP of a track, parsed; what is no plain RTP is left out.
    pub fn packets(&self, track: usize) -> Vec<Rtp> {
        self.media[track].iter().filter_map(|packet| Rtp::parse(packet)).collect()
    }

    /// Sender reports of a track.
    pub fn sender_reports(&self, track: usize) -> Vec<wire::SenderReport> {
        self.control[track].iter().flat_map(|packet| wire::sender_reports(packet)).collect()
    }

    /// SSRCs that said BYE on a track.
    pub fn byes(&self, track: usize) -> Vec<u32> {
        self.control[track].iter().flat_map(|packet| wire::leaving(packet)).collect()
    }

    /// Sends RTP (or anything) to the proxy, as no viewer should.
    pub fn send(&mut self, track: usize, packet: &[u8]) -> Result<()> {
        self.emit(track, false, packet)
    }

    /// Sends RTCP (or anything) to the proxy.
    pub fn send_control(&mut self, track: usize, packet: &[u8]) -> Result<()> {
        self.emit(track, true, packet)
    }

    fn emit(&mut self, track: usize, control: bool, packet: &[u8]) -> Result<()> {
        match &self.ways[track] {
            Sink::Udp { rtp, rtcp, server } => {
                let (socket, port) = if control { (rtcp, server.port() + 1) } else { (rtp, server.port()) };
                socket.send_to(packet, (server.ip(), port))?;
            }
            Sink::Tcp { channel } => {
                let frame = frame(channel + u8::from(control), packet);
                self.write(&frame)?;
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        let result = (&self.stream).write_all(bytes);
        self.stream.set_nonblocking(true)?;
        Ok(result?)
    }

    /// Sends a request of the session; [`Player::answers`] counts the answers.
    pub fn ask(&mut self, method: &str) -> Result<()> {
        self.sequence += 1;
        let request = format!(
            "{method} {} RTSP/1.0\r\nCSeq: {}\r\nSession: {}\r\n\r\n",
            self.url, self.sequence, self.session
        );
        self.write(request.as_bytes())
    }

    /// Where the proxy sends a track's media from; UDP only.
    pub fn server(&self, track: usize) -> SocketAddr {
        match &self.ways[track] {
            Sink::Udp { server, .. } => *server,
            Sink::Tcp { .. } => unreachable!("the test plays over UDP"),
        }
    }

    /// Port on which a track's RTP arrives; UDP only.
    pub fn port(&self, track: usize) -> Result<u16> {
        match &self.ways[track] {
            Sink::Udp { rtp, .. } => Ok(rtp.local_addr()?.port()),
            Sink::Tcp { .. } => unreachable!("the test plays over UDP"),
        }
    }

    /// The RTSP connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// What a receiving socket drops would look like the proxy's loss: the largest buffer one can get.
pub(super) fn roomy(socket: &UdpSocket) -> Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &(32 << 20)).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &(4 << 20))?;
    }
    Ok(())
}

/// One interleaved frame.
pub fn frame(channel: u8, packet: &[u8]) -> Vec<u8> {
    let length = (packet.len() as u16).to_be_bytes();
    let mut frame = vec![b'$', channel, length[0], length[1]];
    frame.extend_from_slice(packet);
    frame
}

/// Control attributes of the media of an SDP.
fn controls(sdp: &str) -> Vec<String> {
    sdp.split("\nm=")
        .skip(1)
        .filter_map(|media| media.lines().find_map(|line| line.strip_prefix("a=control:")))
        .map(|control| control.trim().to_owned())
        .collect()
}
