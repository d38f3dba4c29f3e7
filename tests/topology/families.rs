//! Case 44, RTP-40: each leg has the address family of its viewer.

use msm_tests::camera::{GstCamera, Transport, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::Ground;
use msm_tests::oracle::{Claim, check};
use msm_tests::privilege::{Need, granted};
use msm_tests::proxy::Options;
use msm_tests::viewer::{Player, Viewer, Watch};

use crate::healthy::LIMIT;

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
    for (stream, host) in [("four", ground.viewers_host6()), ("six", ground.viewers_host())] {
        for (player, transport) in [
            (Player::Ffmpeg, Transport::Udp),
            (Player::Rtspsrc, Transport::Udp),
            (Player::Ffmpeg, Transport::Tcp),
        ] {
            let name = format!("{stream}-{}-{}", player.name(), transport.name());
            let url = proxy.url_at(host, stream);
            let watch = Watch { name, player, transport, url, credentials: None, profile };
            viewers.push((host, Viewer::start(stage, watch).unwrap()));
        }
    }
    for (_, viewer) in &mut viewers {
        viewer.wait_for_frames(70, LIMIT).unwrap();
    }
    let six = format!("[{}]:", ground.viewer_host6());
    let four = format!("{}:", ground.viewer_host());
    for (stream, host) in [("four", six.as_str()), ("six", four.as_str())] {
        let status = proxy.stream(stream).unwrap();
        let peers: Vec<_> =
            status["legs"].as_array().unwrap().iter().map(|leg| leg["peer"].clone()).collect();
        assert!(peers.len() >= 3, "{status}");
        assert!(
            peers.iter().all(|peer| peer.as_str().is_some_and(|peer| peer.starts_with(host))),
            "{peers:?}"
        );
    }
    for (_, viewer) in viewers {
        let name = viewer.watch().name.clone();
        let seen = viewer.finish().unwrap();
        check(&fixture, &seen, &Claim::default()).unwrap_or_else(|mismatch| panic!("{name}: {mismatch}"));
    }
    ground.judge().unwrap();
}
