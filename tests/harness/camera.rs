//! Real cameras: programs that publish to the proxy, and RTSP servers that it pulls from.
//!
//! All of them send a [`Fixture`] as it is, without encoding again, at its own pace.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::fixture::{Fixture, LENGTH, Profile};
use crate::lab::Node;
use crate::privilege::PYTHON;
use crate::process::{Launch, Process, wait_for};
use crate::rtsp::Connection;

/// How RTP travels between two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// RTP and RTCP in datagrams.
    Udp,
    /// Interleaved in the RTSP connection.
    Tcp,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Udp, Self::Tcp];

    /// `udp` or `tcp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Where a program runs and where its files go.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// Folder of logs and results.
    pub scratch: &'a Path,
    /// Network namespace; none: this process's own.
    pub node: Option<&'a Node>,
}

impl<'a> Stage<'a> {
    /// In this process's own network.
    pub fn here(scratch: &'a Path) -> Self {
        Self { scratch, node: None }
    }

    /// Inside a node.
    pub fn inside(scratch: &'a Path, node: &'a Node) -> Self {
        Self { scratch, node: Some(node) }
    }
}

/// Publishes with ffmpeg, looping the file for ever.
pub fn publish_with_ffmpeg(
    stage: Stage<'_>,
    name: &str,
    fixture: &Fixture,
    url: &str,
    transport: Transport,
) -> Result<Process> {
    Launch::inside(name, stage.node, "ffmpeg")
        .args(["-nostdin", "-v", "warning", "-re", "-stream_loop", "-1", "-i"])
        .arg(&fixture.file)
        .args(["-c", "copy", "-f", "rtsp", "-rtsp_transport", transport.name(), url])
        .start(stage.scratch)
}

/// Publishes with GStreamer's `rtspclientsink`; ends with the file, after [`LENGTH`] seconds.
pub fn publish_with_gstreamer(
    stage: Stage<'_>,
    name: &str,
    fixture: &Fixture,
    url: &str,
    transport: Transport,
) -> Result<Process> {
    publish_with_sink(stage, name, fixture, url, transport, None)
}

/// The same with a login, `user:password`. A [`Profile::H264Latm`] is sent by the sink's own payloaders.
pub fn publish_with_sink(
    stage: Stage<'_>,
    name: &str,
    fixture: &Fixture,
    url: &str,
    transport: Transport,
    credentials: Option<&str>,
) -> Result<Process> {
    let script = stage.scratch.join("gst_publisher.py");
    std::fs::write(&script, include_str!("camera/gst_publisher.py"))?;
    Launch::inside(name, stage.node, PYTHON)
        .arg(&script)
        .arg("--file")
        .arg(&fixture.file)
        .args(["--codecs", &format!("{},{}", fixture.profile.video(), fixture.profile.codec_of_sound())])
        .args(["--url", url, "--transport", transport.name()])
        .args(credentials.into_iter().flat_map(|login| ["--credentials", login]))
        .args((fixture.profile == Profile::H264Latm).then_some("--own-payloaders"))
        .start(stage.scratch)
}

/// A camera that serves RTSP.
#[derive(Debug)]
pub struct ServedCamera {
    /// The program.
    pub process: Process,
    /// Where it is reached, without credentials.
    pub url: String,
}

/// Settings of the GStreamer camera.
#[derive(Debug, Clone)]
pub struct GstCamera<'a> {
    /// Address it listens on.
    pub address: &'a str,
    /// Port, 0 for a free one; a camera that comes back takes its former one.
    pub port: u16,
    /// `user:password` of Digest authentication.
    pub digest: Option<&'a str>,
    /// The only transport it accepts (461 for the other); none: both.
    pub only: Option<Transport>,
    /// SSRC of the first track; the next track takes the next number. None: random.
    pub ssrc: Option<u32>,
    /// Goes on sending datagrams when the RTSP connection is lost, until the session times out.
    pub stays: bool,
}

impl Default for GstCamera<'_> {
    fn default() -> Self {
        Self { address: "127.0.0.1", port: 0, digest: None, only: None, ssrc: None, stays: false }
    }
}

/// Serves with GStreamer's RTSP server, looping the file for ever; its log lists clients and sessions.
pub fn serve_with_gstreamer(
    stage: Stage<'_>,
    name: &str,
    fixture: &Fixture,
    camera: &GstCamera<'_>,
) -> Result<ServedCamera> {
    let script = stage.scratch.join("gst_rtsp_server.py");
    std::fs::write(&script, include_str!("camera/gst_rtsp_server.py"))?;
    let mut launch = Launch::inside(name, stage.node, PYTHON)
        .arg(&script)
        .arg("--file")
        .arg(&fixture.file)
        .args(["--codecs", &format!("{},{}", fixture.profile.video(), fixture.profile.audio())])
        .args(["--length", &LENGTH.to_string(), "--address", camera.address])
        .args(["--port", &camera.port.to_string()])
        .args(["--transport", camera.only.map_or("any", Transport::name)]);
    if let Some(digest) = camera.digest {
        launch = launch.args(["--digest", digest]);
    }
    if camera.stays {
        launch = launch.arg("--stays");
    }
    if let Some(ssrc) = camera.ssrc {
        launch = launch.args(["--ssrc", &ssrc.to_string()]);
    }
    let mut process = launch.start(stage.scratch)?;
    let line = process.wait_for_line("\"listening\"", Duration::from_secs(15))?;
    let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let url = event["url"].as_str().context("the camera named no URL")?.to_owned();
    Ok(ServedCamera { process, url })
}

/// Serves with VLC: UDP only, odd ports, absolute control URLs, one payload type for both media.
///
/// `port`: a free TCP port. VLC runs unprivileged, so the fixture must be readable by everyone.
pub fn serve_with_vlc(
    stage: Stage<'_>,
    name: &str,
    fixture: &Fixture,
    address: &str,
    port: u16,
) -> Result<ServedCamera> {
    let url = format!("rtsp://{address}:{port}/cam");
    let process = Launch::unprivileged(name, stage.node, "cvlc")
        .args(["-I", "dummy", "--no-one-instance", "--loop"])
        .arg(&fixture.file)
        .args(["--sout", &format!("#rtp{{sdp={url}}}")])
        .start(stage.scratch)?;
    let mut camera = ServedCamera { process, url };
    // VLC listens before it knows its tracks, and answers 500 until then.
    let ready = wait_for("VLC to describe two tracks", Duration::from_secs(15), || {
        let mut connection = Connection::open(&camera.url, stage.node).ok()?;
        let described = connection.request("DESCRIBE", &camera.url, &[], "").ok()?;
        (described.body.matches("m=").count() == 2).then_some(())
    });
    ready.with_context(|| camera.process.tail())?;
    if !camera.process.is_running() {
        anyhow::bail!("VLC ended:\n{}", camera.process.tail());
    }
    Ok(camera)
}

impl ServedCamera {
    /// The URL with credentials for programs that take them there.
    pub fn url_with(&self, credentials: &str) -> String {
        self.url.replacen("rtsp://", &format!("rtsp://{credentials}@"), 1)
    }

    /// Events of the GStreamer camera's log with this name.
    pub fn events(&self, name: &str) -> Vec<Value> {
        self.process
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|event| event["event"] == name)
            .collect()
    }

    /// RTSP sessions that were ever made at the GStreamer camera.
    pub fn sessions(&self) -> usize {
        self.events("session").len()
    }

    /// RTSP connections open at the GStreamer camera now.
    pub fn open_connections(&self) -> u64 {
        let counts = |name| self.events(name).len() as u64;
        counts("client").saturating_sub(counts("closed"))
    }
}

/// Writes a credentials file of the proxy: one line `user:password`, readable by its owner only.
pub fn credentials_file(folder: &Path, name: &str, credentials: &str) -> Result<PathBuf> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join(name);
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    writeln!(file, "{credentials}")?;
    Ok(path)
}
