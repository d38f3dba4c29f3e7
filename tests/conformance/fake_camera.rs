//! A camera spoken by hand: as many paths as wanted, and answers that come late, never or in a wrong order.
//!
//! Every packet's payload names path, track and number, so that a viewer proves whose media it got.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::peer::udp_pair;

/// Tracks of every path: video and audio.
pub(crate) const TRACKS: usize = 2;
/// Time between two packets of a track.
const PACE: Duration = Duration::from_millis(20);

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Method.
    pub(crate) method: String,
    /// Request URI, as sent.
    pub(crate) uri: String,
    /// The whole head.
    pub(crate) head: String,
}

impl Asked {
    /// A header field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// When an answer leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// At once.
    Now,
    /// Never.
    Never,
    /// After a time, while the camera goes on with what comes next.
    Late(Duration),
    /// At once, behind an answer with a CSeq that nobody used and one with a CSeq of long ago.
    AfterStrays,
    /// Another status.
    Status(u16, &'static str),
}

/// Decides about an answer; `usize`: how many requests of this method came before.
type Script = dyn Fn(&Asked, usize) -> Reply + Send + Sync;

/// A running camera.
#[derive(Debug)]
pub(crate) struct FakeCamera {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: TcpListener,
}

struct Shared {
    asked: Mutex<Vec<Asked>>,
    script: Box<Script>,
    stop: AtomicBool,
    open: AtomicU32,
    next_session: AtomicU32,
    /// Descriptions by path, where they are not the camera's own.
    described: HashMap<String, String>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl FakeCamera {
    /// A camera that behaves.
    pub(crate) fn start() -> Result<Self> {
        Self::scripted(|_, _| Reply::Now)
    }

    /// A camera whose answers follow a script.
    pub(crate) fn scripted(script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Result<Self> {
        Self::listen("127.0.0.1", Box::new(script), HashMap::new())
    }

    /// One that behaves, at another address than 127.0.0.1.
    pub(crate) fn start_at(host: &str) -> Result<Self> {
        Self::listen(host, Box::new(|_, _| Reply::Now), HashMap::new())
    }

    /// A camera whose paths are described by these.
    pub(crate) fn describing(described: HashMap<String, String>) -> Result<Self> {
        Self::listen("127.0.0.1", Box::new(|_, _| Reply::Now), described)
    }

    fn listen(host: &str, script: Box<Script>, described: HashMap<String, String>) -> Result<Self> {
        let listener = TcpListener::bind((host, 0))?;
        let (address, accepting) = (listener.local_addr()?, listener.try_clone()?);
        let shared = Arc::new(Shared {
            asked: Mutex::default(),
            script,
            described,
            stop: AtomicBool::new(false),
            open: AtomicU32::new(0),
            next_session: AtomicU32::new(1),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&of_thread)) else { return };
                std::thread::spawn(move || {
                    shared.open.fetch_add(1, Ordering::Relaxed);
                    serve(&shared, &stream).ok();
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { shared, address, accepting })
    }

    /// URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("rtsp://{}/{path}", self.address)
    }

    /// Everything that was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// How often a method was asked.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method).count()
    }

    /// Connections open now.
    pub(crate) fn open_connections(&self) -> u32 {
        self.shared.open.load(Ordering::Relaxed)
    }
}

impl Drop for FakeCamera {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Its thread returns from accept, in whatever namespace it is.
        nix::sys::socket::shutdown(self.accepting.as_raw_fd(), nix::sys::socket::Shutdown::Both).ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where one track's packets go.
enum Outlet {
    Udp(
        UdpSocket,
        #[expect(dead_code, reason = "bound so that nothing else takes the RTCP port")] UdpSocket,
        SocketAddr,
    ),
    Tcp(u8),
}

/// One session's tracks by their number.
struct Session {
    id: String,
    path: String,
    outlets: HashMap<usize, Outlet>,
}

fn serve(shared: &Arc<Shared>, stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    let playing = Arc::new(AtomicBool::new(true));
    let mut session: Option<Session> = None;
    let mut buffer = Vec::new();
    let mut stream = stream;
    loop {
        while let Some(asked) = take_request(&mut buffer)? {
            let before = {
                let mut all = lock(&shared.asked);
                let before = all.iter().filter(|earlier| earlier.method == asked.method).count();
                all.push(asked.clone());
                before
            };
            let reply = (shared.script)(&asked, before);
            let accepted = !matches!(reply, Reply::Never | Reply::Status(..));
            let text = match &reply {
                Reply::Status(code, reason) => {
                    format!(
                        "RTSP/1.0 {code} {reason}\r\nCSeq: {}\r\n\r\n",
                        asked.header("CSeq").unwrap_or("0")
                    )
                }
                _ => answer(shared, &asked, &mut session, stream)?,
            };
            send(&writer, &asked, &reply, text);
            if accepted && asked.method == "PLAY" {
                // A second PLAY of a session that plays changes nothing.
                if let Some(session) = session.take() {
                    feed(shared, session, Arc::clone(&writer), Arc::clone(&playing));
                }
            }
            if asked.method == "TEARDOWN" {
                playing.store(false, Ordering::Relaxed);
            }
        }
        let mut chunk = [0; 8192];
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
            Err(_) if !shared.stop.load(Ordering::Relaxed) => {}
            Err(_) => break,
        }
    }
    playing.store(false, Ordering::Relaxed);
    Ok(())
}

fn send(writer: &Arc<Mutex<TcpStream>>, asked: &Asked, reply: &Reply, text: String) {
    match reply {
        Reply::Never => {}
        Reply::Late(after) => {
            let (writer, after) = (Arc::clone(writer), *after);
            std::thread::spawn(move || {
                std::thread::sleep(after);
                lock(&writer).write_all(text.as_bytes()).ok();
            });
        }
        Reply::AfterStrays => {
            let sequence: u32 = asked.header("CSeq").and_then(|value| value.parse().ok()).unwrap_or(0);
            let stray = |cseq: u32| format!("RTSP/1.0 404 Not Found\r\nCSeq: {cseq}\r\n\r\n");
            let all = format!("{}{}{text}", stray(sequence + 4711), stray(sequence.wrapping_sub(1)));
            lock(writer).write_all(all.as_bytes()).ok();
        }
        Reply::Now | Reply::Status(..) => {
            lock(writer).write_all(text.as_bytes()).ok();
        }
    }
}

/// Answers as a plain camera, and keeps what SETUP agreed on.
fn answer(
    shared: &Shared,
    asked: &Asked,
    session: &mut Option<Session>,
    stream: &TcpStream,
) -> Result<String> {
    let cseq = asked.header("CSeq").context("no CSeq")?;
    let ok = format!("RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\n");
    let path = asked.uri.splitn(4, '/').nth(3).unwrap_or_default();
    Ok(match asked.method.as_str() {
        "OPTIONS" => format!("{ok}Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n\r\n"),
        "DESCRIBE" => {
            let own = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=fake\r\nt=0 0\r\na=control:*\r\n\
                m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track=0\r\n\
                m=audio 0 RTP/AVP 0\r\na=control:track=1\r\n";
            let body = shared.described.get(path).map_or(own, String::as_str);
            format!(
                "{ok}Content-Base: {}/\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}",
                asked.uri,
                body.len()
            )
        }
        "SETUP" => {
            let (path, track) = path.rsplit_once("/track=").context("SETUP of no track")?;
            let session = session.get_or_insert_with(|| Session {
                id: format!("S{:08}", shared.next_session.fetch_add(1, Ordering::Relaxed)),
                path: path.to_owned(),
                outlets: HashMap::new(),
            });
            let asked = asked.header("Transport").context("no Transport")?;
            let value = |name: &str| asked.split(';').find_map(|part| part.trim().strip_prefix(name));
            let (outlet, transport) = if let Some(pair) = value("interleaved=") {
                let first = pair.split('-').next().and_then(|n| n.parse().ok()).context("no channels")?;
                (Outlet::Tcp(first), format!("RTP/AVP/TCP;unicast;interleaved={pair}"))
            } else {
                let pair = value("client_port=").context("no ports")?;
                let port = pair.split('-').next().and_then(|n| n.parse().ok()).context("no port")?;
                let (rtp, rtcp) = udp_pair()?;
                let own = rtp.local_addr()?.port();
                let peer = SocketAddr::new(stream.peer_addr()?.ip(), port);
                (
                    Outlet::Udp(rtp, rtcp, peer),
                    format!("RTP/AVP;unicast;client_port={pair};server_port={own}-{}", own + 1),
                )
            };
            session.outlets.insert(track.parse()?, outlet);
            format!("{ok}Session: {};timeout=60\r\nTransport: {transport}\r\n\r\n", session.id)
        }
        // Everything else names its session itself.
        _ => {
            let id = asked.header("Session").map(|id| format!("Session: {id}\r\n")).unwrap_or_default();
            format!("{ok}{id}\r\n")
        }
    })
}

/// Sends both tracks until the session ends.
fn feed(shared: &Arc<Shared>, session: Session, writer: Arc<Mutex<TcpStream>>, playing: Arc<AtomicBool>) {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let mut number = 0_u32;
        while playing.load(Ordering::Relaxed) && !shared.stop.load(Ordering::Relaxed) {
            for (track, outlet) in &session.outlets {
                let packet = packet(&session.path, *track, number);
                match outlet {
                    Outlet::Udp(rtp, _, peer) => {
                        rtp.send_to(&packet, peer).ok();
                    }
                    Outlet::Tcp(channel) => {
                        let length = (packet.len() as u16).to_be_bytes();
                        let frame = [&[b'$', *channel, length[0], length[1]], packet.as_slice()].concat();
                        lock(&writer).write_all(&frame).ok();
                    }
                }
            }
            number += 1;
            std::thread::sleep(PACE);
        }
    });
}

fn packet(path: &str, track: usize, number: u32) -> Vec<u8> {
    let (payload_type, ticks) = if track == 0 { (96, 1800) } else { (0, 160) };
    // The same SSRCs and numbers on every path: nothing but the session tells them apart.
    let mut packet = vec![0x80, payload_type];
    packet.extend((number as u16).wrapping_add(1000).to_be_bytes());
    packet.extend(number.wrapping_mul(ticks).to_be_bytes());
    packet.extend((0x1000 + track as u32).to_be_bytes());
    // First byte: an H.264 slice.
    packet.extend(format!("A{path} {track} {number}").bytes());
    packet
}

/// Path, track and number of a payload.
pub(crate) fn read_payload(payload: &[u8]) -> Result<(String, usize, u32)> {
    let text = String::from_utf8_lossy(payload).into_owned();
    let parts: Vec<&str> = text.trim_start_matches('A').split(' ').collect();
    ensure!(parts.len() == 3, "not of this camera: {text:?}");
    Ok((parts[0].to_owned(), parts[1].parse()?, parts[2].parse()?))
}

/// Takes one request; the proxy's interleaved RTCP in front of it is dropped.
fn take_request(buffer: &mut Vec<u8>) -> Result<Option<Asked>> {
    while let [b'$', _, high, low, ..] = *buffer.as_slice() {
        let end = 4 + usize::from(u16::from_be_bytes([high, low]));
        if buffer.len() < end {
            return Ok(None);
        }
        buffer.drain(..end);
    }
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8(buffer[..end].to_vec()).context("a head that is no text")?;
    let mut words = head.split(' ');
    let (method, uri) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    ensure!(words.next().is_some_and(|rest| rest.starts_with("RTSP/1.0\r\n")), "no request: {head:?}");
    let asked = Asked { method, uri, head };
    let body: usize = asked.header("Content-Length").and_then(|n| n.parse().ok()).unwrap_or(0);
    if buffer.len() < end + 4 + body {
        return Ok(None);
    }
    buffer.drain(..end + 4 + body);
    Ok(Some(asked))
}
