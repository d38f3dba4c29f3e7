//! The whole proxy in this process, a publisher, and viewers at addresses of their own on the loopback.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rtp_proxy::app::{self, Stop};
use rtp_proxy::config::Config;
use rtp_proxy::kernel::hop::Rung;
use rtp_proxy::kernel::service::Settings;
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc;

use crate::heap;

const SDP: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=probe\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n\
    m=audio 0 RTP/AVP 0\r\na=control:streamid=0\r\n";
/// Viewers at one address: a wall of them in a house.
const HOUSE: usize = 8;

pub(crate) struct Scene {
    proxy: SocketAddr,
    stop: mpsc::Sender<()>,
    publisher: Connection,
    sequence: u16,
    /// Where media goes: one per viewer of a house, for all houses.
    sinks: Vec<u16>,
    _sockets: Vec<UdpSocket>,
}

pub(crate) struct Connection {
    stream: TcpStream,
    requests: u32,
    session: String,
    port: u16,
}

impl Connection {
    fn open(to: SocketAddr, from: Ipv4Addr, port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        Self { stream: socket.into(), requests: 0, session: String::new(), port }
    }

    fn send(&mut self, method: &str, url: &str, fields: &str, body: &str) {
        self.requests += 1;
        let session =
            if self.session.is_empty() { String::new() } else { format!("Session: {}\r\n", self.session) };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!(
            "{method} {url} RTSP/1.0\r\nCSeq: {}\r\n{session}{fields}{length}\r\n{body}",
            self.requests
        );
        self.stream.write_all(request.as_bytes()).unwrap();
    }

    /// The answer; `meanwhile` runs as long as there is none.
    fn answer(&mut self, mut meanwhile: impl FnMut()) -> String {
        self.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.stream.read(&mut buffer) {
                Ok(read) => {
                    assert!(read > 0, "closed after {}", String::from_utf8_lossy(&text));
                    text.extend_from_slice(&buffer[..read]);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    meanwhile();
                }
                Err(error) => panic!("{error}"),
            }
            let whole = String::from_utf8_lossy(&text);
            let Some((head, body)) = whole.split_once("\r\n\r\n") else { continue };
            let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if field("Content-Length:").is_none_or(|length| body.len() >= length.parse::<usize>().unwrap()) {
                assert!(head.starts_with("RTSP/1.0 200"), "{head}");
                if let Some(session) = field("Session:") {
                    session.split(';').next().unwrap().clone_into(&mut self.session);
                }
                return head.to_owned();
            }
        }
    }

    fn ask(&mut self, method: &str, url: &str, fields: &str, body: &str) -> String {
        self.send(method, url, fields, body);
        self.answer(|| ())
    }
}

impl Scene {
    /// A proxy with one stream. The calling thread's memory counts no more.
    pub(crate) fn start() -> Self {
        heap::stand_apart();
        let config = Config {
            rtsp: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            rtp_ports: 0..=0,
            workers: Some(1),
            max_connections: 4096,
            kernel: Settings { max_rung: Rung::User, ..Settings::default() },
            ..Config::default()
        };
        let (stop, stopped) = mpsc::channel(1);
        let (ready, addresses) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            app::run(config, Stop::Channel(stopped), |addresses| ready.send(addresses).unwrap()).unwrap();
        });
        let proxy = addresses.recv().unwrap().rtsp;
        let mut publisher = Connection::open(proxy, Ipv4Addr::LOCALHOST, 0);
        let url = format!("rtsp://{proxy}/sound");
        publisher.ask("ANNOUNCE", &url, "Content-Type: application/sdp\r\n", SDP);
        let offer = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;mode=record\r\n";
        publisher.ask("SETUP", &format!("{url}/streamid=0"), offer, "");
        publisher.ask("RECORD", &url, "", "");
        let sockets: Vec<_> =
            (0..2 * HOUSE).map(|_| UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0)).unwrap()).collect();
        let sinks = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        let mut scene = Self { proxy, stop, publisher, sequence: 0, sinks, _sockets: sockets };
        scene.emit();
        scene
    }

    pub(crate) fn end(self) {
        self.stop.blocking_send(()).unwrap();
    }

    /// One packet of the source.
    fn emit(&mut self) {
        self.sequence += 1;
        let mut packet = [0; 4 + 172];
        packet[..6].copy_from_slice(&[b'$', 0, 0, 172, 0x80, 0]);
        packet[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        packet[8..12].copy_from_slice(&(u32::from(self.sequence) * 160).to_be_bytes());
        packet[12..16].copy_from_slice(&0x5eed_u32.to_be_bytes());
        self.publisher.stream.write_all(&packet).unwrap();
    }

    /// A connection that has asked for nothing but OPTIONS, the `number`th.
    pub(crate) fn connect(&self, number: usize) -> Connection {
        let house = Ipv4Addr::new(127, 0, 1, 1 + (number / HOUSE) as u8);
        let mut connection = Connection::open(self.proxy, house, self.sinks[2 * (number % HOUSE)]);
        connection.ask("OPTIONS", "*", "", "");
        connection
    }

    fn url(&self) -> String {
        format!("rtsp://{}/sound", self.proxy)
    }

    pub(crate) fn describe(&self, viewer: &mut Connection) {
        viewer.ask("DESCRIBE", &self.url(), "Accept: application/sdp\r\n", "");
    }

    pub(crate) fn set_up(&self, viewer: &mut Connection) {
        let rtcp = self.sinks[self.sinks.iter().position(|port| *port == viewer.port).unwrap() + 1];
        let offer = format!("Transport: RTP/AVP;unicast;client_port={}-{rtcp}\r\n", viewer.port);
        viewer.ask("SETUP", &format!("{}/trackID=0", self.url()), &offer, "");
    }

    pub(crate) fn play(&mut self, viewer: &mut Connection) {
        viewer.send("PLAY", &self.url(), "", "");
        let answer = viewer.answer(|| self.emit());
        assert!(answer.contains("RTP-Info"), "{answer}");
    }

    /// Bytes that the proxy holds when it has come to rest.
    pub(crate) fn rest() -> i64 {
        let mut before = heap::bytes();
        let mut same = 0;
        while same < 5 {
            std::thread::sleep(Duration::from_millis(20));
            let now = heap::bytes();
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        before
    }
}
