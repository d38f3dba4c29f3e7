//! Probe sources: they publish to the proxy at a stated load.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::build;
use crate::camera::Transport;
use crate::lab::Node;
use crate::rtsp::{Connection, authority};

/// What each camera sends.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes of a packet, RTP header included.
    pub packet_bytes: usize,
    /// Packets per second, bursts included.
    pub packets_per_second: u32,
    /// Packets sent back to back at the start of every second, as a key frame is.
    pub burst: u32,
}

impl Load {
    /// 4 Mb/s in packets of 1,200 bytes with key frames of 40 packets.
    pub const FOUR_MEGABITS: Self = Self { packet_bytes: 1200, packets_per_second: 417, burst: 40 };

    /// Packets due after so much time.
    fn due(self, elapsed: Duration) -> u32 {
        let seconds = elapsed.as_secs() as u32;
        let spread =
            f64::from(self.packets_per_second - self.burst) * f64::from(elapsed.subsec_nanos()) * 1e-9;
        seconds * self.packets_per_second + self.burst + spread as u32
    }
}

/// Publishing cameras, driven by one thread.
#[derive(Debug)]
pub struct Cameras {
    stop: Arc<AtomicBool>,
    sent: Vec<Arc<AtomicU32>>,
    unsent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

enum Output {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

struct Camera {
    number: u32,
    start: (u16, u32, u32),
    output: Output,
    sent: Arc<AtomicU32>,
    /// Kept open: closing it ends the stream.
    _connection: Option<Connection>,
    /// RTCP; bound so that nothing else takes the port.
    _control: Option<UdpSocket>,
}

impl Cameras {
    /// Publishes one camera per URL; its number is its place in the list.
    pub fn publish(urls: &[String], transport: Transport, load: Load, node: Option<&Node>) -> Result<Self> {
        let mut cameras = Vec::new();
        for (number, url) in urls.iter().enumerate() {
            let camera =
                record(url, number as u32, transport, node).with_context(|| format!("publishing {url}"))?;
            cameras.push(camera);
        }
        let (stop, unsent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sent = cameras.iter().map(|camera| Arc::clone(&camera.sent)).collect();
        let (stopped, failed) = (Arc::clone(&stop), Arc::clone(&unsent));
        let thread = std::thread::spawn(move || drive(&mut cameras, load, &stopped, &failed));
        Ok(Self { stop, sent, unsent, thread: Some(thread) })
    }

    /// Packets each camera has sent.
    pub fn sent(&self) -> Vec<u32> {
        self.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).collect()
    }

    /// Packets that this machine did not take; a run with any proves nothing about the proxy.
    pub fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }

    /// Ends all cameras without TEARDOWN, as a power cut would, and returns what each has sent.
    pub fn stop(mut self) -> Vec<u32> {
        self.halt();
        self.sent()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Cameras {
    fn drop(&mut self) {
        self.halt();
    }
}

fn drive(cameras: &mut [Camera], load: Load, stop: &AtomicBool, unsent: &AtomicU64) {
    let started = Instant::now();
    let mut packet = vec![0; 4 + load.packet_bytes];
    while !stop.load(Ordering::Relaxed) {
        let elapsed = started.elapsed();
        let due = load.due(elapsed);
        for camera in &mut *cameras {
            let sent = camera.sent.load(Ordering::Relaxed);
            // A frame's packets share their time: 25 frames per second of 90 kHz.
            let ticks = (elapsed.as_millis() as u32 / 40) * 3600;
            for number in sent..due {
                build(&mut packet[4..], camera.number, number, camera.start, ticks, number + 1 == due);
                let done = match &mut camera.output {
                    Output::Udp(socket) => send(socket, &packet[4..]),
                    Output::Tcp(stream) => {
                        let length = (load.packet_bytes as u16).to_be_bytes();
                        packet[..4].copy_from_slice(&[b'$', 0, length[0], length[1]]);
                        stream.write_all(&packet).is_ok()
                    }
                };
                if !done {
                    unsent.fetch_add(1, Ordering::Relaxed);
                }
            }
            camera.sent.store(sent.max(due), Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What ICMP said of an earlier packet, as of one to a proxy that was killed, is told by the next call, which then
/// sends nothing: a camera that does not connect its socket never hears of it.
fn send(socket: &UdpSocket, packet: &[u8]) -> bool {
    let is_refused = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    match socket.send(packet) {
        Err(error) if is_refused(&error) => socket.send(packet).is_ok(),
        sent => sent.is_ok(),
    }
}

fn record(url: &str, number: u32, transport: Transport, node: Option<&Node>) -> Result<Camera> {
    let mut connection = Connection::open(url, node)?;
    let sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=probe\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n\
               m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:streamid=0\r\n";
    connection.request("ANNOUNCE", url, &[("Content-Type", "application/sdp")], sdp)?.ok()?;
    let track = format!("{url}/streamid=0");
    let start = (1_000 + number as u16 * 7, 90_000 * (number + 1), 0x1000_0000 + number);
    let sent = Arc::new(AtomicU32::new(0));
    if transport == Transport::Tcp {
        let offer = "RTP/AVP/TCP;unicast;interleaved=0-1;mode=record";
        connection.request("SETUP", &track, &[("Transport", offer)], "")?.ok()?;
        connection.request("RECORD", url, &[("Range", "npt=0.000-")], "")?.ok()?;
        let (stream, _) = connection.into_parts();
        return Ok(Camera {
            number,
            start,
            output: Output::Tcp(stream),
            sent,
            _connection: None,
            _control: None,
        });
    }
    let (rtp, rtcp) = udp_pair(&authority(url)?, node)?;
    let port = rtp.local_addr()?.port();
    let offer = format!("RTP/AVP;unicast;client_port={port}-{};mode=record", port + 1);
    let answer = connection.request("SETUP", &track, &[("Transport", &offer)], "")?.ok()?;
    let server = server_port(answer.header("Transport").unwrap_or_default())?;
    let peer = connection.stream().peer_addr()?.ip();
    rtp.connect((peer, server))?;
    rtcp.connect((peer, server + 1))?;
    connection.request("RECORD", url, &[("Range", "npt=0.000-")], "")?.ok()?;
    rtp.set_nonblocking(false)?;
    Ok(Camera {
        number,
        start,
        output: Output::Udp(rtp),
        sent,
        _connection: Some(connection),
        _control: Some(rtcp),
    })
}

/// An even port and the next odd one, of the family that reaches the server.
pub(super) fn udp_pair(server: &str, node: Option<&Node>) -> Result<(UdpSocket, UdpSocket)> {
    let any: IpAddr =
        if server.starts_with('[') { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    match node {
        Some(node) => node.inside(|| udp_pair_at(any))?,
        None => udp_pair_at(any),
    }
}

/// The same on a local address.
pub(super) fn udp_pair_at(local: IpAddr) -> Result<(UdpSocket, UdpSocket)> {
    for _ in 0..200 {
        let first = UdpSocket::bind((local, 0))?;
        let port = first.local_addr()?.port();
        if !port.is_multiple_of(2) || port == u16::MAX {
            continue;
        }
        if let Ok(second) = UdpSocket::bind((local, port + 1)) {
            return Ok((first, second));
        }
    }
    bail!("no free pair of UDP ports")
}

pub(super) fn server_port(transport: &str) -> Result<u16> {
    transport
        .split(';')
        .find_map(|part| part.trim().strip_prefix("server_port="))
        .and_then(|ports| ports.split('-').next()?.parse().ok())
        .with_context(|| format!("no server_port in {transport:?}"))
}
