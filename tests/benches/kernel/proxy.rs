//! The whole product: `rtp-proxy standalone` with published streams and viewers over UDP, on a rung of choice.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::bench::cpu::Pinned;
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::bench::sink::Sink;
use msm_tests::lab::Node;
use msm_tests::privilege::find_program;
use msm_tests::process::{Scratch, wait_for};
use serde_json::Value;

use super::course::{Course, Traffic};
use super::generator::Generator;
use super::lane::{Lane, Leg, sink};
use super::packet::Expect;
use super::path::Path;
use super::topology::{Kind, Pod};

/// The user path as a contender.
pub(crate) const NAME: &str = "rtp-proxy, user path";
pub(crate) const MEDIAMTX: &str = "mediamtx";
/// Packets per second of all streams together while they begin.
const GENTLE: u32 = 10_000;

/// A running proxy in the host's namespace.
pub(crate) struct Proxy<'a> {
    course: &'a Course,
    pub(crate) process: Pinned,
    rtsp: u16,
    admin: u16,
}

fn connect(node: &Node, to: SocketAddrV4) -> Result<Rtsp> {
    node.inside(|| Rtsp::connect(SocketAddr::V4(to), None))?
}

impl<'a> Proxy<'a> {
    /// Starts one on some cores, as `taskset -c` takes them. Nothing of it is pinned: what it puts into the kernel
    /// ends with it.
    pub(crate) fn start(course: &'a Course, cores: &str, rung: &str) -> Result<Self> {
        let (rtsp, admin) = (course.port(), course.port());
        let mut args: Vec<String> =
            ["standalone", "--log-level", "warn", "--session-timeout", "60m", "--handover", "off"]
                .map(str::to_owned)
                .into();
        args.extend(
            ["--max-rung", rung, "--rtp-ports", "0", "--max-connections", "16384"].map(str::to_owned),
        );
        args.extend(["--rtsp".to_owned(), format!("0.0.0.0:{rtsp}")]);
        args.extend(["--admin".to_owned(), format!("127.0.0.1:{admin}")]);
        let process = Pinned::start_on(Some(&course.topology.host), cores, &course.programs.proxy, &args)?;
        Self { course, process, rtsp, admin }.serving()
    }

    /// mediamtx in its place, on the generator's core.
    fn mediamtx(course: &'a Course, scratch: &Scratch) -> Result<Self> {
        let (rtsp, media) = (course.port(), course.port());
        let config = scratch.file("mediamtx.yml");
        let text = format!(
            "logLevel: error\nrtspAddress: :{rtsp}\nrtpAddress: :{media}\nrtcpAddress: :{}\nrtmp: no\nhls: no\n\
             webrtc: no\nsrt: no\npaths:\n  all_others:\n",
            media + 1
        );
        std::fs::write(&config, text)?;
        let args = [config.display().to_string()];
        let process = Pinned::start(Some(&course.topology.host), 0, FilePath::new("mediamtx"), &args)?;
        Self { course, process, rtsp, admin: 0 }.serving()
    }

    /// Itself, once it answers.
    fn serving(self) -> Result<Self> {
        wait_for("the proxy to serve", Duration::from_secs(10), || {
            connect(&self.course.topology.source, self.for_source()).ok()?.options().ok()
        })?;
        Ok(self)
    }

    /// Where the source pod finds it.
    fn for_source(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.course.topology.uplink(Kind::Stack).host, self.rtsp)
    }

    /// Publishes a stream; returns the session, the source's socket and where media goes.
    pub(crate) fn publish(&self, name: &str) -> Result<(Rtsp, UdpSocket, SocketAddrV4)> {
        let server = self.for_source();
        let mut publisher = connect(&self.course.topology.source, server)?;
        let (source, rtcp) = pair(self.course)?;
        let from = source.local_addr()?.port();
        let input = publisher.publish(&format!("rtsp://{server}/{name}"), (from, from + 1))?;
        // The source's RTCP port stays taken as long as the process lives.
        std::mem::forget(rtcp);
        Ok((publisher, source, SocketAddrV4::new(*server.ip(), input)))
    }

    /// A viewer in a pod that has asked for nothing yet.
    pub(crate) fn connect(&self, pod: &Pod) -> Result<Rtsp> {
        let mut viewer = connect(&pod.node, SocketAddrV4::new(pod.host, self.rtsp))?;
        viewer.options()?;
        Ok(viewer)
    }

    /// A stream as a pod finds it.
    pub(crate) fn url(&self, name: &str, pod: &Pod) -> String {
        format!("rtsp://{}:{}/{name}", pod.host, self.rtsp)
    }

    /// A viewer in a pod joins by whole RTSP calls.
    pub(crate) fn play(&self, name: &str, pod: &Pod, sink: &Sink) -> Result<Rtsp> {
        let mut viewer = connect(&pod.node, SocketAddrV4::new(pod.host, self.rtsp))?;
        viewer.play(&self.url(name, pod), sink.port())?;
        Ok(viewer)
    }

    /// How many legs of all streams are on a rung.
    pub(crate) fn legs_on(&self, rung: &str) -> Result<usize> {
        let read = || -> Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.admin))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET /v1/streams HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.split_once("\r\n\r\n").context("no HTTP answer")?.1.to_owned())
        };
        let document: Value = serde_json::from_str(&self.course.topology.host.inside(read)??)?;
        let streams = document["streams"].as_array().context("no streams in the answer")?;
        let legs = streams.iter().flat_map(|s| s["legs"].as_array().into_iter().flatten());
        Ok(legs.filter(|leg| leg["rung"] == rung).count())
    }
}

/// The user path on the generator's core. `keep` holds the RTSP sessions that keep its legs alive.
pub(crate) fn lane(course: &Course, traffic: Traffic, keep: &mut Vec<Rtsp>) -> Result<Lane> {
    let proxy = Proxy::start(course, "0", "user")?;
    let mut lane = through(proxy, NAME, traffic, keep)?;
    "rung user".clone_into(&mut lane.version);
    Ok(lane)
}

/// mediamtx on the generator's core, if it is there.
pub(crate) fn mediamtx(course: &Course, traffic: Traffic, keep: &mut Vec<Rtsp>) -> Result<Lane> {
    ensure!(find_program(MEDIAMTX).is_some(), "not packaged in Debian, and no binary on PATH");
    let scratch = Scratch::new(MEDIAMTX)?;
    let proxy = Proxy::mediamtx(course, &scratch)?;
    let mut lane = through(proxy, MEDIAMTX, traffic, keep)?;
    let version = std::process::Command::new(MEDIAMTX).arg("--version").output()?;
    String::from_utf8_lossy(&version.stdout).trim().clone_into(&mut lane.version);
    Ok(lane)
}

fn through(proxy: Proxy<'_>, name: &str, traffic: Traffic, keep: &mut Vec<Rtsp>) -> Result<Lane> {
    let (publisher, source, to) = proxy.publish("bench")?;
    keep.push(publisher);
    let mut generator = Generator::from_sockets(vec![(source, to)], traffic.shape, traffic.size)?;
    generator.rate = traffic.rate;
    // Viewers join a stream that flows: its first packets make its SSRC known.
    for _ in 0..4 {
        generator.burst()?;
    }
    let legs = viewers(&proxy, traffic, keep)?;
    Ok(Course::lane(name, generator, Path::Process(proxy.process), legs, traffic))
}

/// The user path on the generator's core with many streams, each with a publication of its own and a session for every
/// viewer; the viewers' sockets serve all of them.
pub(crate) fn streams(
    course: &Course,
    traffic: Traffic,
    streams: usize,
    keep: &mut Vec<Rtsp>,
) -> Result<Lane> {
    let proxy = Proxy::start(course, "0", "user")?;
    let mut sockets = Vec::new();
    for number in 0..streams {
        let (publisher, source, to) = proxy.publish(&format!("bench{number}"))?;
        keep.push(publisher);
        sockets.push((source, to));
    }
    let mut generator = Generator::from_sockets(sockets, traffic.shape, traffic.size)?;
    // The first packets of a stream make its SSRC known.
    generator.rate = Some(GENTLE);
    let packets = streams * traffic.shape.packets().max(4);
    generator.run(Duration::from_secs_f64(packets as f64 / f64::from(GENTLE)), |_| Ok(()))?;
    generator.rate = traffic.rate;
    let legs = course.legs(traffic, course.port(), |_| Expect::any())?;
    for leg in &legs {
        let pod = &course.topology.pods[leg.pod];
        let mut viewer = proxy.connect(pod)?;
        for number in 0..streams {
            viewer.begin_another();
            viewer.play(&proxy.url(&format!("bench{number}"), pod), leg.sink.port())?;
        }
        keep.push(viewer);
    }
    let mut lane = Course::lane(NAME, generator, Path::Process(proxy.process), legs, traffic);
    "rung user".clone_into(&mut lane.version);
    Ok(lane)
}

/// Viewers of the stream, on the pods in turn.
pub(crate) fn viewers(proxy: &Proxy<'_>, traffic: Traffic, keep: &mut Vec<Rtsp>) -> Result<Vec<Leg>> {
    let (course, port) = (proxy.course, proxy.course.port());
    let pods = &course.topology.pods;
    (0..traffic.legs)
        .map(|number| {
            let pod = &pods[number % pods.len()];
            let sink = sink(pod, port + 2 * (number / pods.len()) as u16, traffic.merged)?;
            keep.push(proxy.play("bench", pod, &sink)?);
            Ok(Leg { pod: number % pods.len(), sink, expect: Expect::any() })
        })
        .collect()
}

/// An even port and the next one in the source pod.
fn pair(course: &Course) -> Result<(UdpSocket, UdpSocket)> {
    let from = course.topology.uplink(Kind::Stack).source;
    course
        .topology
        .source
        .inside(|| {
            for _ in 0..200 {
                let rtp = UdpSocket::bind((from, 0))?;
                let port = rtp.local_addr()?.port();
                if port.is_multiple_of(2)
                    && let Ok(rtcp) = UdpSocket::bind((from, port + 1))
                {
                    return Ok((rtp, rtcp));
                }
            }
            bail!("no free pair of UDP ports")
        })?
        .context("the source's ports")
}
