//! Planned upgrades: another process takes over, and nobody around the proxy notices; and what could go wrong
//! with it, after which the running one goes on.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use msm_tests::camera::{
    GstCamera, ServedCamera, Stage, Transport, publish_with_ffmpeg, serve_with_gstreamer,
};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::wire::Rtp;
use msm_tests::probe::{Account, Cameras, Load, Player as Probe, Viewers, first_control};
use msm_tests::process::{Process, Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::rtsp::Connection;
use msm_tests::viewer::{Player, Viewer, Watch};
use nix::sys::signal::Signal;

use crate::healthy::LIMIT;

const NEEDS: [Need; 3] = [Need::Program("ffmpeg"), Need::Program("gst-launch-1.0"), Need::GstRtspServer];

/// Upgrades in a row.
const UPGRADES: usize = 3;

/// What the probes carry beside the real programs: bursts that a stand-still has to keep.
const LOAD: Load = Load { packet_bytes: 900, packets_per_second: 300, burst: 30 };

/// The socket at which the next one takes over.
fn door(scratch: &Scratch) -> PathBuf {
    scratch.path().join("door")
}

fn options(scratch: &Scratch) -> Options {
    let door = door(scratch).display().to_string();
    let flags = ["--workers", "2", "--handover", &door].map(str::to_owned).to_vec();
    Options { flags, ..Options::default() }
}

/// Cameras and viewers that count every packet: published over UDP and TCP, each watched over UDP and TCP.
struct Counted {
    cameras: Vec<Cameras>,
    viewers: Viewers,
    count: usize,
}

impl Counted {
    fn start(proxy: &Proxy) -> Result<Self> {
        let mut cameras = Vec::new();
        let mut viewers = Viewers::start()?;
        let mut count = 0;
        for source in Transport::ALL {
            let urls: Vec<_> = (0..2).map(|n| proxy.url(&format!("count-{}-{n}", source.name()))).collect();
            cameras.push(Cameras::publish(&urls, source, LOAD, None)?);
            for url in &urls {
                for transport in Transport::ALL {
                    viewers.play(url, transport, None)?;
                    count += 1;
                }
            }
        }
        let counted = Self { cameras, viewers, count };
        counted.progress(50)?;
        Ok(counted)
    }

    fn accounts(&self) -> Vec<Account> {
        (0..self.count).map(|viewer| self.viewers.account(viewer)).collect()
    }

    /// Waits until everybody has got so many packets more.
    fn progress(&self, packets: u64) -> Result<()> {
        let before: Vec<u64> = self.accounts().iter().map(|account| account.packets).collect();
        wait_for("the counted media", LIMIT, || {
            let now = self.accounts();
            now.iter().zip(&before).all(|(now, before)| now.packets >= before + packets).then_some(())
        })
    }

    /// Not one packet is missing, doubled, out of order or of another SSRC, and nobody was disconnected.
    fn check(self) -> Result<u64> {
        self.progress(50)?;
        let overflows = self.viewers.overflows(None)?;
        for (viewer, account) in self.accounts().iter().enumerate() {
            ensure!(
                account.is_clean(),
                "viewer {viewer}: {} lost, {} doubled, {} reordered, {} wrong, {} SSRC changes of {}; \
                 {overflows} overflows of its own sockets",
                account.lost(),
                account.doubled,
                account.reordered,
                account.wrong,
                account.ssrc_changes,
                account.packets,
            );
            ensure!(!self.viewers.is_closed(viewer), "viewer {viewer} was disconnected");
        }
        ensure!(self.cameras.iter().all(|camera| camera.unsent() == 0), "a camera could not send");
        Ok(self.accounts().iter().map(|account| account.packets).sum())
    }
}

/// Every counter of `/metrics`, by series.
fn counters(proxy: &Proxy) -> Result<BTreeMap<String, f64>> {
    let text = proxy.get("/metrics")?;
    let is_counter = |series: &str| series.contains("_total") || series.contains("_seconds_bucket{");
    Ok(text
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| !series.starts_with('#') && is_counter(series))
        .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
        .collect())
}

/// Addresses of everybody's RTSP connection: a viewer that reconnected has another port.
fn peers(proxy: &Proxy) -> Result<Vec<String>> {
    let mut peers = Vec::new();
    for stream in proxy.streams()? {
        peers.push(format!("{} {}", stream["name"], stream["source"]["peer"]));
        for leg in stream["legs"].as_array().into_iter().flatten() {
            peers.push(format!("{} {}", stream["name"], leg["peer"]));
        }
    }
    peers.sort();
    Ok(peers)
}

/// Real programs: two publishers and a camera, and a viewer of each kind at every one.
struct Programs {
    publishers: Vec<Process>,
    camera: ServedCamera,
    viewers: Vec<Viewer>,
}

impl Programs {
    fn start(stage: Stage<'_>, proxy: &Proxy, camera: ServedCamera, fixture: &Fixture) -> Result<Self> {
        let mut publishers = Vec::new();
        for transport in Transport::ALL {
            let name = format!("from-{}", transport.name());
            publishers.push(publish_with_ffmpeg(stage, &name, fixture, &proxy.url(&name), transport)?);
            proxy.wait_for_media(&name, 2, LIMIT)?;
        }
        let mut viewers = Vec::new();
        let watched = [
            ("cam", Player::Ffmpeg, Transport::Tcp),
            ("cam", Player::Rtspsrc, Transport::Udp),
            ("from-udp", Player::Ffmpeg, Transport::Udp),
            ("from-tcp", Player::Rtspsrc, Transport::Tcp),
        ];
        for (name, player, transport) in watched {
            let watch = Watch {
                name: format!("{}-{}-{name}", player.name(), transport.name()),
                player,
                transport,
                url: proxy.url(name),
                credentials: None,
                profile: fixture.profile,
            };
            viewers.push(Viewer::start(stage, watch)?);
        }
        let mut programs = Self { publishers, camera, viewers };
        programs.progress(25)?;
        Ok(programs)
    }

    fn progress(&mut self, frames: usize) -> Result<()> {
        for viewer in &mut self.viewers {
            let before = viewer.frames();
            viewer.wait_for_frames(before + frames, LIMIT)?;
        }
        Ok(())
    }

    fn check(mut self) -> Result<()> {
        self.progress(25)?;
        assert_eq!(self.camera.sessions(), 1, "the camera saw one session all the time");
        assert_eq!(self.camera.events("client").len(), 1, "and one connection");
        for publisher in &mut self.publishers {
            assert!(publisher.is_running(), "{}", publisher.tail());
        }
        for viewer in &mut self.viewers {
            assert!(viewer.process.is_running(), "{}", viewer.process.tail());
        }
        Ok(())
    }
}

#[test]
fn three_upgrades_under_load_are_noticed_by_nobody() {
    if !granted("planned upgrades", &NEEDS) {
        return;
    }
    let scratch = Scratch::new("upgrade").unwrap();
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let camera = serve_with_gstreamer(stage, "camera", &fixture, &GstCamera::default()).unwrap();
    let pulls = vec![("cam".to_owned(), camera.url.clone())];
    let mut proxy = Proxy::start(stage, "proxy", &Options { pulls, ..options(&scratch) }).unwrap();
    let mut programs = Programs::start(stage, &proxy, camera, &fixture).unwrap();
    let counted = Counted::start(&proxy).unwrap();
    let connected = peers(&proxy).unwrap();
    let mode = std::fs::metadata(door(&scratch)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may ask for everything");
    let mut late = Vec::new();
    for upgrade in 1..=UPGRADES {
        let before = counters(&proxy).unwrap();
        let former = proxy.upgrade(stage, &format!("proxy-{upgrade}")).unwrap();
        let after = counters(&proxy).unwrap();
        for (series, value) in before {
            let now = after.get(&series).copied().unwrap_or(f64::NAN);
            assert!(now >= value, "{series} was {value} and is {now}");
        }
        let still = former.log().lines().find(|line| line.contains("handover.done")).map(str::to_owned);
        eprintln!("upgrade {upgrade}: {}", still.expect("the former proxy says that it handed over"));
        programs.progress(10).unwrap();
        // It serves those who come now as well.
        let name = ["cam", "from-udp", "from-tcp"][upgrade % 3];
        let mut probe = Probe::play(&proxy.url(name), Transport::ALL[upgrade % 2]).unwrap();
        let got_media = |probe: &Probe| !probe.packets(0).is_empty();
        probe.wait("media of a new viewer", LIMIT, || Ok(()), got_media).unwrap();
        late.push(probe);
    }
    for probe in &mut late {
        probe.receive();
        assert!(!probe.closed && probe.byes(0).is_empty(), "BYE or the end of a connection");
    }
    let now = peers(&proxy).unwrap();
    assert!(connected.iter().all(|peer| now.contains(peer)), "{connected:?}\nbecame {now:?}");
    let packets = counted.check().unwrap();
    eprintln!("{packets} packets counted at 8 probes, none lost");
    programs.check().unwrap();
    proxy.terminate(LIMIT).unwrap();
    assert!(!door(&scratch).exists(), "the last one takes the socket away");
}

/// Two streams are given to two workers; a connection lives on one of them and sends the other's frames too.
#[test]
fn a_connection_with_two_sessions_on_two_workers_goes_on_in_the_middle_of_a_request() {
    let scratch = Scratch::new("upgrade-shared").unwrap();
    let stage = Stage::here(scratch.path());
    let mut proxy = Proxy::start(stage, "proxy", &options(&scratch)).unwrap();
    let urls = ["one", "two"].map(|name| proxy.url(name));
    let cameras = Cameras::publish(&urls, Transport::Udp, LOAD, None).unwrap();
    let mut connection = Connection::open(&urls[0], None).unwrap();
    let mut sessions = Vec::new();
    for (n, url) in urls.iter().enumerate() {
        connection.session = None;
        let accept = [("Accept", "application/sdp")];
        let described = connection.request("DESCRIBE", url, &accept, "").unwrap().ok().unwrap();
        let channels = format!("RTP/AVP/TCP;unicast;interleaved={}-{}", 2 * n, 2 * n + 1);
        let control = first_control(&described, url);
        connection.request("SETUP", &control, &[("Transport", &channels)], "").unwrap().ok().unwrap();
        connection.request("PLAY", url, &[], "").unwrap().ok().unwrap();
        sessions.push(connection.session.clone());
    }
    for upgrade in 1..=UPGRADES {
        let cseq = 9000 + upgrade;
        let mut socket = connection.stream();
        socket.write_all(format!("OPTIONS * RTSP/1.0\r\nCSeq: {cseq}\r").as_bytes()).unwrap();
        proxy.upgrade(stage, &format!("proxy-{upgrade}")).unwrap();
        let mut socket = connection.stream();
        socket.write_all(b"\n\r\n").unwrap();
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.header("CSeq")), (200, Some(cseq.to_string().as_str())));
        // Both sessions are what they were, and media of both follows.
        let before = connection.frames.len();
        for (session, url) in sessions.iter().zip(&urls) {
            connection.session.clone_from(session);
            connection.request("GET_PARAMETER", url, &[], "").unwrap().ok().unwrap();
        }
        let of = |frames: &[(u8, Vec<u8>)], channel| frames.iter().filter(|(n, _)| *n == channel).count();
        let enough = |frames: &[(u8, Vec<u8>)]| [0, 2].iter().all(|channel| of(frames, *channel) >= 40);
        while !enough(&connection.frames[before..]) {
            connection.request("OPTIONS", "*", &[], "").unwrap();
        }
    }
    for channel in [0, 2] {
        let frames = connection.frames.iter().filter(|(number, _)| *number == channel);
        let packets: Vec<_> = frames.filter_map(|(_, packet)| Rtp::parse(packet)).collect();
        assert!(packets.len() > 100, "channel {channel}: {} packets", packets.len());
        for pair in packets.windows(2) {
            assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1), "channel {channel}");
            assert_eq!(pair[1].ssrc, pair[0].ssrc);
        }
    }
    drop(cameras);
}

#[test]
fn a_proxy_that_finds_none_to_take_over_from_starts_by_itself() {
    let scratch = Scratch::new("upgrade-none").unwrap();
    let stage = Stage::here(scratch.path());
    let mut options = options(&scratch);
    options.flags.push("--take-over".to_owned());
    let mut proxy = Proxy::start(stage, "proxy", &options).unwrap();
    proxy.terminate(LIMIT).unwrap();
    assert!(proxy.process.log().contains("takeover.none"));
}

/// A message as the next proxy sends it.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [b"MSMH", &[kind][..], &(body.len() as u32).to_be_bytes(), body].concat()
}

/// Asks for everything, says `first` and hangs up after `stay`; returns what came back, cut off.
fn ask(scratch: &Scratch, first: &[u8], stay: Duration) -> Vec<u8> {
    let mut stream = UnixStream::connect(door(scratch)).unwrap();
    stream.write_all(first).unwrap();
    stream.set_read_timeout(Some(stay)).unwrap();
    let mut answer = vec![0; 64 * 1024];
    let mut got = 0;
    while let Ok(read @ 1..) = stream.read(&mut answer[got..]) {
        got += read;
        if got == answer.len() {
            break;
        }
    }
    answer.truncate(got);
    answer
}

#[test]
fn a_take_over_that_fails_leaves_the_running_proxy_as_it_was() {
    let scratch = Scratch::new("upgrade-fails").unwrap();
    let stage = Stage::here(scratch.path());
    let mut proxy = Proxy::start(stage, "proxy", &options(&scratch)).unwrap();
    let counted = Counted::start(&proxy).unwrap();
    let connected = peers(&proxy).unwrap();
    let ours = br#"{"oldest":1,"newest":1,"program":"test"}"#;

    // Garbage, a message cut off, another one than the first, one that promises two gibibytes.
    ask(&scratch, b"GET / HTTP/1.0\r\n\r\n", Duration::from_millis(300));
    ask(&scratch, &message(b'H', ours)[..20], Duration::from_millis(300));
    ask(&scratch, &message(b'Y', b""), Duration::from_millis(300));
    ask(&scratch, b"MSMHH\xff\xff\xff\xff", Duration::from_millis(300));
    counted.progress(20).unwrap();

    // A program of another time.
    let answer = ask(&scratch, &message(b'H', br#"{"oldest":7,"newest":9}"#), Duration::from_secs(2));
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("MSMHR") && answer.contains("it reads formats 7 to 9, ours is 1"), "{answer}");

    // One that gets everything and dies before it stands.
    let answer = ask(&scratch, &message(b'H', ours), Duration::from_millis(200));
    assert!(answer.starts_with(b"MSMHI"), "{}", String::from_utf8_lossy(&answer[..9]));
    counted.progress(20).unwrap();

    // One that is killed in the middle, wherever that is.
    for (round, millis) in [5, 15, 25].into_iter().enumerate() {
        let mut next = proxy.next(stage, &format!("killed-{round}")).start(scratch.path()).unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        next.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(100));
        if !proxy.process.is_running() {
            // It was quicker than that: it has taken over, and now it goes on.
            next.signal(Signal::SIGCONT);
            proxy.process = next;
            break;
        }
        next.kill();
        counted.progress(20).unwrap();
    }
    // One with other arguments.
    let place = proxy.arguments.iter().position(|argument| argument == "--rtsp").unwrap() + 1;
    let address = std::mem::replace(&mut proxy.arguments[place], "127.0.0.1:1".to_owned());
    let mut elsewhere = proxy.next(stage, "elsewhere").start(scratch.path()).unwrap();
    proxy.arguments[place] = address;
    let status = elsewhere.wait(LIMIT).unwrap();
    assert!(!status.success(), "{}", elsewhere.log());
    assert!(elsewhere.log().contains("start with the same arguments"), "{}", elsewhere.log());
    counted.progress(20).unwrap();

    assert!(proxy.process.is_running());
    assert_eq!(peers(&proxy).unwrap(), connected);
    // And after all that it hands over to one that does it right.
    proxy.upgrade(stage, "proxy-right").unwrap();
    assert_eq!(peers(&proxy).unwrap(), connected);
    counted.check().unwrap();
}
