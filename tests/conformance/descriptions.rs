//! Cases 11 and 43: descriptions name nothing of the source, players accept them, and twice is once.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{self, GstCamera, Stage, Transport};
use msm_tests::privilege::{self, Need, PYTHON};
use msm_tests::process::{Launch, Scratch, free_port, output};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::viewer::Player;

use crate::fake_camera::FakeCamera;
use crate::peer::{PATIENCE, Peer, Viewer};
use crate::scene;

/// Every kind of request a viewer can make, also wrong ones; returns everything the proxy said.
fn talk(proxy: &Proxy, path: &str) -> Result<String> {
    let url = proxy.url(path);
    let (mut viewer, _) = Viewer::play(&url, Transport::Udp)?;
    for method in ["OPTIONS", "DESCRIBE", "GET_PARAMETER", "PAUSE", "PLAY", "RECORD", "TEARDOWN", "PLAY"] {
        viewer.request(method)?;
    }
    let mut peer = Peer::open(&url)?;
    let offer = [("Transport", "RTP/AVP/TCP;interleaved=0-1")];
    for track in ["trackID=9", "stream=0", ""] {
        peer.request("SETUP", &format!("{url}/{track}"), &offer, "")?;
    }
    peer.request("DESCRIBE", &proxy.url("nothing-of-that-name"), &[], "")?;
    Ok(viewer.peer.transcript + &peer.transcript)
}

/// Case 11 (RTSP-30, RTSP-38, SDP-9): a camera at another address with a login: its host, port, login
/// and track names are in no answer; its password is in no page and in no line of the log.
#[test]
fn no_answer_names_a_gstreamer_camera_or_its_login() -> Result<()> {
    if !scene::programs("no_answer_names_a_gstreamer_camera_or_its_login") {
        return Ok(());
    }
    const LOGIN: &str = "keeper:pass-4711-word";
    let (scratch, film) = (Scratch::new("hidden")?, scene::film()?);
    let settings = GstCamera { address: "127.9.8.7", digest: Some(LOGIN), ..GstCamera::default() };
    let source = scene::gst_camera(&scratch, &film, &settings)?;
    let login = camera::credentials_file(scratch.path(), "login", LOGIN)?;
    let options = Options {
        pulls: vec![("cam".to_owned(), source.url.clone())],
        credentials: vec![("cam".to_owned(), login)],
        flags: vec!["--log-level".to_owned(), "trace".to_owned()],
        ..Options::default()
    };
    let proxy = Proxy::start(Stage::here(scratch.path()), "proxy", &options)?;
    let said = talk(&proxy, "cam")?;
    let port = source.url.rsplit(':').next().and_then(|rest| rest.split('/').next()).context("no port")?;
    for secret in ["127.9.8.7", &format!(":{port}"), "keeper", "4711", "stream=0", "stream=1"] {
        // What the viewer itself asked for is in its own question only.
        ensure!(!said.contains(secret), "{secret:?} is in an answer:\n{said}");
    }
    for page in ["/v1/streams", "/metrics"] {
        ensure!(!proxy.get(page)?.contains("4711"), "the password is in {page}");
    }
    ensure!(!proxy.process.log().contains("4711"), "the password is in the log");
    Ok(())
}

/// Case 11 (SDP-9) with VLC, which writes its host's name and absolute track URLs.
#[test]
fn no_answer_names_a_vlc_camera() -> Result<()> {
    let test = "no_answer_names_a_vlc_camera";
    if !privilege::granted(test, &[Need::Program("cvlc")]) || !scene::programs(test) {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("hidden-vlc")?, scene::film()?);
    let port = free_port()?;
    let proxy = scene::pulling(&scratch, &[("cam", format!("rtsp://127.9.8.6:{port}/cam"), None)], &[])?;
    let vlc = camera::serve_with_vlc(Stage::here(scratch.path()), "camera", &film, "127.9.8.6", port)?;
    let own = Peer::open(&vlc.url)?.request("DESCRIBE", &vlc.url, &[], "")?.ok()?.body;
    let origin = own.lines().find(|line| line.starts_with("o=")).context("no o=")?;
    let host = origin.split(' ').next_back().unwrap_or_default();
    let said = talk(&proxy, "cam")?;
    for secret in ["127.9.8.6", &format!(":{port}"), "VLC", "vlc"] {
        ensure!(!said.contains(secret), "{secret:?} is in an answer:\n{said}");
    }
    let origins: Vec<&str> = said.lines().filter(|line| line.starts_with("o=")).collect();
    ensure!(
        !origins.is_empty() && origins.iter().all(|line| *line != origin),
        "{origin} is VLC's: {origins:?}"
    );
    ensure!(host.starts_with("127.") || !said.contains(host), "{host} is in an answer:\n{said}");
    Ok(())
}

/// What may differ between two descriptions of one stream: origin, and the address in `c=`.
fn comparable(sdp: &str) -> Vec<&str> {
    sdp.lines().filter(|line| !line.starts_with("o=") && !line.starts_with("c=")).collect()
}

/// Case 43 (SDP-8): a proxy behind a proxy changes nothing more, and players play through both.
#[test]
fn a_description_rewritten_twice_is_as_rewritten_once_and_plays() -> Result<()> {
    if !scene::programs("a_description_rewritten_twice_is_as_rewritten_once_and_plays") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("twice")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let first = scene::pulling(&scratch, &[("cam", camera.url.clone(), None)], &[])?;
    let options = Options { pulls: vec![("cam".to_owned(), first.url("cam"))], ..Options::default() };
    let second = Proxy::start(Stage::here(scratch.path()), "second", &options)?;
    let describe = |proxy: &Proxy| -> Result<String> {
        Ok(Peer::open(&proxy.url("cam"))?.request("DESCRIBE", &proxy.url("cam"), &[], "")?.ok()?.body)
    };
    let (once, twice) = (describe(&first)?, describe(&second)?);
    assert_eq!(comparable(&once), comparable(&twice));
    let mut viewers = Vec::new();
    for (player, transport) in [(Player::Ffmpeg, Transport::Tcp), (Player::Rtspsrc, Transport::Udp)] {
        viewers.push(scene::watch(&scratch, player.name(), &second.url("cam"), (player, transport), &film)?);
    }
    scene::judge_all(&film, viewers)
}

/// Reads descriptions with GStreamer's parser and prints the caps of every media section.
const GST_READS: &str = r#"
import sys, gi
gi.require_version("GstSdp", "1.0")
from gi.repository import Gst, GstSdp
Gst.init(None)
for path in sys.argv[1:]:
    done, message = GstSdp.SDPMessage.new()
    if GstSdp.sdp_message_parse_buffer(open(path, "rb").read(), message) != GstSdp.SDPResult.OK:
        sys.exit("%s is not parsed" % path)
    if message.medias_len() == 0:
        sys.exit("%s has no media" % path)
    for index in range(message.medias_len()):
        media = message.get_media(index)
        number = media.get_format(0)
        caps = media.get_caps_from_media(int(number)) if number and number.isdigit() else None
        print(path.rsplit("/", 1)[-1], index, media.get_media(), caps.to_string() if caps else "none")
"#;

/// Case 43 (SDP-8, SDP-9): the description of every recorded camera, rewritten by one proxy and by two, is the
/// same, and both players' parsers read it.
#[test]
fn rewritten_fixtures_are_read_by_ffmpeg_and_gstreamer_and_are_idempotent() -> Result<()> {
    if !scene::programs("rewritten_fixtures_are_read_by_ffmpeg_and_gstreamer_and_are_idempotent") {
        return Ok(());
    }
    let scratch = Scratch::new("fixtures")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/sdp");
    let mut fixtures = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "sdp") && !name.contains("srtp") {
            fixtures.push((name, std::fs::read_to_string(path)?));
        }
    }
    ensure!(fixtures.len() > 10, "only {} fixtures", fixtures.len());
    fixtures.sort();
    let camera = FakeCamera::describing(fixtures.iter().cloned().collect())?;
    let pulls: Vec<_> = fixtures.iter().map(|(name, _)| (name.as_str(), camera.url(name), None)).collect();
    let first = scene::pulling(&scratch, &pulls, &[])?;
    let options = Options {
        pulls: fixtures.iter().map(|(name, _)| (name.clone(), first.url(name))).collect(),
        ..Options::default()
    };
    let second = Proxy::start(Stage::here(scratch.path()), "second", &options)?;
    let mut paths = Vec::new();
    for (name, _) in &fixtures {
        let describe = |proxy: &Proxy| -> Result<String> {
            Ok(Peer::open(&proxy.url(name))?.request("DESCRIBE", &proxy.url(name), &[], "")?.ok()?.body)
        };
        let once = describe(&first).with_context(|| name.clone())?;
        let twice = describe(&second).with_context(|| name.clone())?;
        assert_eq!(comparable(&once), comparable(&twice), "{name}");
        let path = scratch.file(&format!("{name}.sdp"));
        std::fs::write(&path, &once)?;
        paths.push(path.to_string_lossy().into_owned());
    }
    let script = [&["-c", GST_READS][..], &paths.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    let caps = output(PYTHON, &script)?;
    for (name, _) in &fixtures {
        let file = format!("{name}.sdp ");
        let video = caps.lines().find(|line| line.starts_with(&file) && line.contains(" video "));
        ensure!(video.is_none_or(|line| line.contains("encoding-name=")), "{name}: {video:?}\n{caps}");
    }
    // ffmpeg waits for media that never come: it must have listed the streams by then.
    let mut readers = Vec::new();
    for path in &paths {
        let name = format!("ffmpeg-{}", path.rsplit('/').next().unwrap_or_default());
        let reader = Launch::new(&name, "ffprobe")
            .args(["-hide_banner", "-protocol_whitelist", "file,udp,rtp", "-listen_timeout", "1", "-i", path])
            .start(scratch.path())?;
        readers.push((path, reader));
    }
    for (path, mut reader) in readers {
        reader.wait(PATIENCE * 2)?;
        let log = reader.log();
        ensure!(log.contains("Input #0, sdp") && log.contains("Stream #0:0"), "{path}: {log}");
        ensure!(!log.contains("Invalid data"), "{path}: {log}");
    }
    Ok(())
}
