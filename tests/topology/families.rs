//! Case 44, RTP-40: each leg has the address family of its viewer.
//!
//! Every stream has viewers of both families: on a kernel rung those of its own are the kernel's, beside the others,
//! which are the workers'.

use std::net::{IpAddr, SocketAddr};

use msm_tests::camera::{GstCamera, Transport, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::Ground;
use msm_tests::oracle::{Claim, check};
use msm_tests::privilege::{Need, granted};
use msm_tests::process::wait_for;
use msm_tests::proxy::Options;
use msm_tests::viewer::{Player, Viewer, Watch};
use serde_json::Value;

use crate::healthy::LIMIT;

/// Why the workers have a viewer of the other family.
const OTHER_FAMILY: &str = "a viewer of another address family than its source";

#[test]
fn an_ipv6_viewer_plays_an_ipv4_camera_and_an_ipv4_viewer_an_ipv6_camera() {
    let needs = [Need::Program("ffmpeg"), Need::Program("gst-launch-1.0"), Need::GstRtspServer];
    if !granted("address families", &needs) {
        return;
    }
    let test = "an_ipv6_viewer_plays_an_ipv4_camera_and_an_ipv4_viewer_an_ipv6_camera";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let stage = ground.stage();
    let profile = Profile::H264Aac;
    let fixture = Fixture::make(profile).unwrap();
    let mut cameras = Vec::new();
    let mut pulls = Vec::new();
    for (name, address) in [("four", ground.camera_host()), ("six", ground.camera_host6())] {
        let camera = GstCamera { address, ..GstCamera::default() };
        let serve = || serve_with_gstreamer(stage, &format!("camera-{name}"), &fixture, &camera);
        let camera = ground.among_cameras(serve).unwrap();
        let port = camera.url.rsplit(':').next().unwrap().to_owned();
        let host = if name == "six" { format!("[{address}]") } else { address.to_owned() };
        pulls.push((name.to_owned(), format!("rtsp://{host}:{port}")));
        cameras.push(camera);
    }
    let options = Options { pulls, address: Some("::".to_owned()), ..Options::default() };
    let proxy = ground.proxy("proxy", options).unwrap();
    let mut viewers = Vec::new();
    let (four, six) = (ground.viewers_host(), ground.viewers_host6());
    for (stream, own, other) in [("four", four, six), ("six", six, four)] {
        for (player, transport, host) in [
            (Player::Ffmpeg, Transport::Udp, other),
            (Player::Rtspsrc, Transport::Udp, other),
            (Player::Ffmpeg, Transport::Tcp, other),
            (Player::Ffmpeg, Transport::Udp, own),
        ] {
            let family = if host == six { 6 } else { 4 };
            let name = format!("{stream}-ip{family}-{}-{}", player.name(), transport.name());
            let url = proxy.url_at(host, stream);
            let watch = Watch { name, player, transport, url, credentials: None, profile };
            viewers.push(Viewer::start(stage, watch).unwrap());
        }
    }
    for viewer in &mut viewers {
        viewer.wait_for_frames(70, LIMIT).unwrap();
    }
    let rung = ground.rung().filter(|rung| rung.is_kernel());
    for (stream, own) in [("four", ground.viewer_host()), ("six", ground.viewer_host6())] {
        let is_own = |leg: &Value| {
            let peer: SocketAddr = leg["peer"].as_str().unwrap().parse().unwrap();
            peer.ip().is_ipv4() == own.parse::<IpAddr>().unwrap().is_ipv4()
        };
        let as_wanted = |leg: &Value| match (rung, leg["transport"].as_str(), is_own(leg)) {
            (None, ..) => true,
            (Some(rung), Some("udp"), true) => leg["rung"] == rung.name(),
            (Some(_), Some("udp"), false) => {
                leg["rung"] == "user"
                    && leg["rung_reason"].as_str().is_some_and(|why| why.contains(OTHER_FAMILY))
            }
            (Some(_), ..) => leg["rung"] == "user",
        };
        let found = wait_for("each leg to be where it belongs", LIMIT, || {
            let status = proxy.stream(stream)?;
            let legs = status["legs"].as_array()?;
            let own = legs.iter().filter(|leg| is_own(leg)).count();
            (own >= 1 && legs.len() >= own + 3 && legs.iter().all(as_wanted)).then_some(())
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {:#}", proxy.stream(stream).unwrap_or_default()));
    }
    if rung.is_some() {
        // Long enough to see who counts the packets.
        for viewer in &mut viewers {
            viewer.wait_for_frames(130, LIMIT).unwrap();
        }
    }
    for viewer in viewers {
        let name = viewer.watch().name.clone();
        let seen = viewer.finish().unwrap();
        check(&fixture, &seen, &Claim::default()).unwrap_or_else(|mismatch| panic!("{name}: {mismatch}"));
    }
    ground.judge().unwrap();
}
