//! Our own user-space path: `rtp-proxy standalone` with one published stream and viewers over UDP.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use msm_tests::bench::cpu::Pinned;
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::process::wait_for;

use super::course::{Course, Traffic};
use super::generator::Generator;
use super::lane::{Lane, Leg, sink};
use super::packet::Expect;
use super::path::Path;
use super::topology::Kind;

pub(crate) const NAME: &str = "rtp-proxy, user path";

/// A lane through a proxy of its own on the generator's core. `keep` holds the RTSP sessions that keep its
/// legs alive.
pub(crate) fn lane(course: &Course, traffic: Traffic, keep: &mut Vec<Rtsp>) -> Result<Lane> {
    let topology = &course.topology;
    let (rtsp, admin, port) = (course.port(), course.port(), course.port());
    let mut args: Vec<String> =
        ["standalone", "--log-level", "warn", "--session-timeout", "60m", "--rtsp"].map(str::to_owned).into();
    args.extend([format!("0.0.0.0:{rtsp}"), "--admin".to_owned(), format!("127.0.0.1:{admin}")]);
    let help = Command::new(&course.programs.proxy).args(["standalone", "--help"]).output()?;
    if String::from_utf8_lossy(&help.stdout).contains("--max-rung") {
        args.extend(["--max-rung".to_owned(), "user".to_owned()]);
    }
    let process = Pinned::start(Some(&topology.host), 0, &course.programs.proxy, &args)?;
    let uplink = topology.uplink(Kind::Stack);
    let connect =
        |node: &msm_tests::lab::Node, to| node.inside(|| Rtsp::connect(SocketAddr::V4(to), None))?;
    let server = SocketAddrV4::new(uplink.host, rtsp);
    let url = format!("rtsp://{server}/bench");
    let mut publisher = wait_for("the proxy to serve", Duration::from_secs(10), || {
        let mut rtsp = connect(&topology.source, server).ok()?;
        rtsp.options().ok()?;
        Some(rtsp)
    })?;
    let (source, rtcp) = pair(course)?;
    let from = source.local_addr()?.port();
    let input = publisher.publish(&url, (from, from + 1))?;
    let to = SocketAddrV4::new(uplink.host, input);
    let mut generator = Generator::from_sockets(vec![(source, to)], traffic.shape, traffic.size)?;
    generator.rate = traffic.rate;
    // Viewers join a stream that flows: its first packets make its SSRC known.
    for _ in 0..4 {
        generator.burst()?;
    }
    keep.push(publisher);
    // The source's RTCP port stays taken as long as the process lives.
    std::mem::forget(rtcp);
    let mut legs = Vec::new();
    for number in 0..traffic.legs {
        let pod = &topology.pods[number % topology.pods.len()];
        let port = port + 2 * (number / topology.pods.len()) as u16;
        let sink = sink(pod, port, traffic.merged)?;
        let server = SocketAddrV4::new(pod.host, rtsp);
        let mut viewer = connect(&pod.node, server)?;
        viewer.play(&format!("rtsp://{server}/bench"), sink.port())?;
        keep.push(viewer);
        legs.push(Leg { pod: number % topology.pods.len(), sink, expect: Expect::Constant(None) });
    }
    let mut lane = Course::lane(NAME, generator, Path::Process(process), legs, traffic);
    "rung user".clone_into(&mut lane.version);
    Ok(lane)
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
