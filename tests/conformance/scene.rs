//! What most cases need: a proxy with a scratch folder, a real camera to pull, players and their frames.

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{self, GstCamera, ServedCamera, Stage, Transport};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::Ground;
use msm_tests::oracle::{self, Claim};
use msm_tests::privilege::{self, Need};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::viewer::{Player, Viewer, Watch};

use crate::fake_camera::FakeCamera;
use crate::peer::PATIENCE;

/// Frames after which a viewer has proved that it plays: more than two of the source's groups.
pub(crate) const FRAMES: usize = 30;

/// Player and transport of both kinds of player.
pub(crate) const PLAYERS: [(Player, Transport); 4] = [
    (Player::Ffmpeg, Transport::Udp),
    (Player::Ffmpeg, Transport::Tcp),
    (Player::Rtspsrc, Transport::Udp),
    (Player::Rtspsrc, Transport::Tcp),
];

/// True when the programs of most cases are there.
pub(crate) fn programs(test: &str) -> bool {
    let needs = [Need::Program("ffmpeg"), Need::Program("gst-launch-1.0"), Need::GstRtspServer];
    privilege::granted(test, &needs)
}

/// A proxy alone, with these flags.
pub(crate) fn proxy(scratch: &Scratch, flags: &[&str]) -> Result<Proxy> {
    pulling(scratch, &[], flags)
}

/// A proxy that pulls.
pub(crate) fn pulling(
    scratch: &Scratch,
    pulls: &[(&str, String, Option<Transport>)],
    flags: &[&str],
) -> Result<Proxy> {
    Proxy::start(Stage::here(scratch.path()), "proxy", &options(pulls, flags))
}

fn options(pulls: &[(&str, String, Option<Transport>)], flags: &[&str]) -> Options {
    let mut options = Options::default();
    for (name, url, transport) in pulls {
        options.pulls.push(((*name).to_owned(), url.clone()));
        if let Some(transport) = transport {
            options.pull_transports.push(((*name).to_owned(), *transport));
        }
    }
    options.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    options
}

/// A proxy on the ground of a case; it pulls these by UDP.
pub(crate) fn pulling_on(ground: &Ground, pulls: &[(&str, String)], flags: &[&str]) -> Result<Proxy> {
    let pulls: Vec<_> = pulls.iter().map(|(name, url)| (*name, url.clone(), None)).collect();
    ground.proxy("proxy", options(&pulls, flags))
}

/// A camera spoken by hand, among the cameras of a case's ground.
pub(crate) fn fake_camera_on(ground: &Ground) -> Result<FakeCamera> {
    ground.among_cameras(|| FakeCamera::start_at(ground.camera_host()))
}

/// GStreamer's RTSP server among the cameras of a case's ground.
pub(crate) fn gst_camera_on(ground: &Ground, fixture: &Fixture) -> Result<ServedCamera> {
    let settings = GstCamera { address: ground.camera_host(), ..GstCamera::default() };
    ground.among_cameras(|| gst_camera(ground.scratch(), fixture, &settings))
}

/// What the cameras send: groups of 0.4 s and sound.
pub(crate) fn film() -> Result<Fixture> {
    Fixture::make(Profile::H264Aac)
}

/// GStreamer's RTSP server.
pub(crate) fn gst_camera(
    scratch: &Scratch,
    fixture: &Fixture,
    settings: &GstCamera<'_>,
) -> Result<ServedCamera> {
    camera::serve_with_gstreamer(Stage::here(scratch.path()), "camera", fixture, settings)
}

/// Starts a real player.
pub(crate) fn watch(
    scratch: &Scratch,
    name: &str,
    url: &str,
    (player, transport): (Player, Transport),
    fixture: &Fixture,
) -> Result<Viewer> {
    let watch = Watch {
        name: name.to_owned(),
        player,
        transport,
        url: url.to_owned(),
        credentials: None,
        profile: fixture.profile,
    };
    Viewer::start(Stage::here(scratch.path()), watch)
}

/// Waits for pictures and sound, ends the player, and compares both with the source's own decode.
pub(crate) fn judge(fixture: &Fixture, mut viewer: Viewer) -> Result<()> {
    viewer.wait_for_frames(FRAMES, PATIENCE * 2)?;
    wait_for("sound", PATIENCE, || (viewer.progress().sound_seconds > 1.0).then_some(()))
        .with_context(|| viewer.process.tail())?;
    let name = viewer.watch().name.clone();
    let seen = viewer.finish()?;
    let claim = Claim { frames: FRAMES - 13, sound_seconds: 0.7, ..Claim::default() };
    oracle::check(fixture, &seen, &claim).with_context(|| name)?;
    Ok(())
}

/// Judges several players that run at the same time.
pub(crate) fn judge_all(fixture: &Fixture, viewers: Vec<Viewer>) -> Result<()> {
    for viewer in viewers {
        judge(fixture, viewer)?;
    }
    Ok(())
}

/// Waits until a stream has no source any more: it is not listed, or not as active.
pub(crate) fn wait_for_gone(proxy: &Proxy, name: &str) -> Result<()> {
    wait_for(&format!("{name} to have no source"), PATIENCE, || {
        let streams = proxy.streams().ok()?;
        streams.iter().all(|stream| stream["name"] != name || stream["state"] != "active").then_some(())
    })
    .with_context(|| format!("{:?}", proxy.stream(name)))
}

/// File descriptors of the proxy that are sockets.
pub(crate) fn sockets(proxy: &Proxy) -> Result<usize> {
    let folder = format!("/proc/{}/fd", proxy.process.pid());
    let entries = std::fs::read_dir(&folder).context(folder)?;
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Ok(links.filter(|link| link.to_string_lossy().starts_with("socket:")).count())
}

/// The proxy did not end and answers.
pub(crate) fn assert_alive(proxy: &mut Proxy) -> Result<()> {
    ensure!(proxy.process.is_running(), "the proxy ended:\n{}", proxy.process.tail());
    proxy.get("/livez").map(drop)
}

/// An address as a socket address.
pub(crate) fn socket_address(url: &str) -> Result<std::net::SocketAddr> {
    Ok(msm_tests::rtsp::authority(url)?.parse()?)
}
