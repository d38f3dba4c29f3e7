//! `cargo xtask demo`: two real cameras, the proxy, six real viewers, live figures, an honest exit status.

mod network;
mod table;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::camera::{self, GstCamera, ServedCamera, Transport};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::oracle::{self, Claim};
use msm_tests::process::{Process, Scratch, catch_interrupts, wait_for};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::viewer::{Player, Viewer, Watch};
use network::{Network, kernel_legs, prefix};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{cargo, run as run_command, say, setup, target_dir};

/// What `cargo xtask demo` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// How long the viewers play, for example 20s or 5m; Ctrl-C ends it earlier
    #[arg(long = "for", default_value = "20s", value_name = "TIME", value_parser = parse_time)]
    duration: Duration,
    /// Install nothing
    #[arg(long)]
    no_setup: bool,
    /// Use this proxy instead of building one
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
    /// Run everything on loopback, where this machine's own players reach the streams, even as root
    #[arg(long)]
    loopback: bool,
}

/// Published by ffmpeg.
const PATTERN: &str = "pattern";
/// Served by GStreamer's RTSP server, pulled by the proxy.
const YARD: &str = "yard";

const VIEWERS: [(&str, Player, Transport); 6] = [
    (PATTERN, Player::Ffmpeg, Transport::Udp),
    (PATTERN, Player::Rtspsrc, Transport::Tcp),
    (PATTERN, Player::Mpv, Transport::Udp),
    (YARD, Player::Ffmpeg, Transport::Tcp),
    (YARD, Player::Rtspsrc, Transport::Udp),
    (YARD, Player::Mpv, Transport::Tcp),
];

/// After so long without a frame a gst-launch is taken to have linked its pads wrongly.
const LINKED: Duration = Duration::from_secs(5);

fn parse_time(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| "a number and s, m or h: 20s, 5m, 1h")?;
    match &text[split..] {
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err("a number and s, m or h: 20s, 5m, 1h".to_owned()),
    }
}

/// The parts in the order in which they are dropped: viewers first, the proxy before its cameras.
struct Parts {
    viewers: Vec<Viewer>,
    proxy: Proxy,
    publisher: Process,
    camera: ServedCamera,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    if !args.no_setup {
        setup::install(setup::DEMO, false)?;
    }
    let program = if let Some(path) = &args.proxy {
        path.clone()
    } else {
        say("building the proxy");
        run_command(&mut cargo(&["build", "--release", "--locked", "-p", "rtp-proxy"]))?;
        target_dir().join("release/rtp-proxy")
    };
    // Ctrl-C ends the demo in order instead of leaving cameras and viewers behind.
    let interrupted = catch_interrupts()?;
    let mut scratch = Scratch::new("demo")?;
    let outcome = play(args, std::fs::canonicalize(program)?, &scratch, interrupted);
    if outcome.is_err()
        && let Some(folder) = scratch.keep()
    {
        println!("logs: {}", folder.display());
    }
    outcome
}

fn play(args: &DemoArgs, program: PathBuf, scratch: &Scratch, interrupted: &AtomicBool) -> Result<()> {
    say("encoding a test pattern and a tone");
    let fixture = Fixture::make(Profile::H264Aac)?;
    // Dropped after the parts, on every way out.
    let network = Network::make(&program, args.loopback)?;
    let mut parts = start(program, scratch.path(), &network, &fixture)?;

    say(&format!("playing for {} s; Ctrl-C ends it earlier", args.duration.as_secs()));
    let started = Instant::now();
    let mut table = table::Table::new();
    let mut streams = Vec::new();
    let mut kernel_seen = false;
    let mut relinked = false;
    while started.elapsed() < args.duration && !interrupted.load(Ordering::SeqCst) {
        streams = parts.proxy.streams().unwrap_or(streams);
        kernel_seen |= kernel_legs(&streams).1 > 0;
        table.show(&streams, &parts.viewers, started.elapsed());
        if !relinked && started.elapsed() >= LINKED {
            relinked = true;
            relaunch_unlinked(&mut parts.viewers)?;
        }
        ensure!(parts.proxy.process.is_running(), "the proxy ended:\n{}", parts.proxy.process.tail());
        let next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < next && !interrupted.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let seconds = started.elapsed().as_secs_f32();
    if interrupted.load(Ordering::SeqCst) {
        println!("\ninterrupted; viewers are read, then everything is removed");
    }
    let fast_path = if !network.has_fast_path() || kernel_seen {
        Ok(())
    } else if interrupted.load(Ordering::SeqCst) && seconds < 10.0 {
        println!("too early for viewers to be served in the kernel");
        Ok(())
    } else {
        wait_for_kernel(&parts.proxy, &mut streams)
    };
    say("summary");
    print!("{}", table::legs(&streams));
    if network.has_fast_path() {
        let (udp, in_kernel) = kernel_legs(&streams);
        println!("{in_kernel} of {udp} viewers over UDP were served in the kernel at the end");
    }
    let failed = judge(&fixture, std::mem::take(&mut parts.viewers), seconds);
    println!(
        "{YARD}: the camera saw {} RTSP session(s) for {} viewers",
        parts.camera.sessions(),
        VIEWERS.iter().filter(|(stream, ..)| *stream == YARD).count()
    );
    let ended = Instant::now();
    parts.proxy.terminate(Duration::from_secs(4)).context("ending the proxy")?;
    println!("the proxy ended {:.1} s after SIGTERM", ended.elapsed().as_secs_f32());
    parts.publisher.stop(Signal::SIGINT, Duration::from_secs(2)).ok();
    parts.camera.process.stop(Signal::SIGTERM, Duration::from_secs(2)).ok();
    if failed > 0 {
        bail!("{failed} of {} viewers did not decode picture and sound as the source does", VIEWERS.len());
    }
    fast_path?;
    println!("all {} viewers decoded picture and sound exactly as the source does", VIEWERS.len());
    Ok(())
}

/// gst-launch may link none of rtspsrc's pads when picture and sound begin at the same moment; it then receives
/// for ever and says nothing. It gets one more chance, which is no help to a proxy that sends nothing.
fn relaunch_unlinked(viewers: &mut [Viewer]) -> Result<()> {
    for viewer in viewers {
        if viewer.watch().player == Player::Rtspsrc && viewer.frames() == 0 {
            viewer.relaunch()?;
        }
    }
    Ok(())
}

/// A viewer that came late gets the time to reach the kernel; the error is that none does.
fn wait_for_kernel(proxy: &Proxy, streams: &mut Vec<Value>) -> Result<()> {
    wait_for("a viewer over UDP to be served in the kernel", Duration::from_secs(10), || {
        *streams = proxy.streams().ok()?;
        (kernel_legs(streams).1 > 0).then_some(())
    })
    .context("rtp-proxy doctor says that media is forwarded in the kernel")
}

fn start(program: PathBuf, scratch: &Path, network: &Network, fixture: &Fixture) -> Result<Parts> {
    let (stage, address) = network.yard(scratch);
    let login = "camera:secret-0";
    let served = GstCamera { address, digest: Some(login), ..GstCamera::default() };
    let camera =
        camera::serve_with_gstreamer(stage, "camera-yard", fixture, &served).context("the camera")?;
    println!("camera {YARD}: GStreamer's RTSP server with Digest authentication at {}", camera.url);

    let stage = network.proxy(scratch);
    // The usual port when it is free, so that the URLs look as they do in daily use.
    let usual = stage.node.is_some() || TcpListener::bind(("127.0.0.1", 8554)).is_ok();
    let options = Options {
        program: Some(program),
        pulls: vec![(YARD.to_owned(), camera.url.clone())],
        credentials: vec![(YARD.to_owned(), camera::credentials_file(scratch, "yard.login", login)?)],
        port: usual.then_some(8554),
        ..Options::default()
    };
    let proxy = Proxy::start(stage, "proxy", &options)?;
    println!("proxy: rtp-proxy standalone, process {}", proxy.process.pid());
    let figures = format!("{}curl {}", prefix(stage), proxy.admin_url("/v1/streams"));

    let (stage, host) = network.pattern(scratch);
    let url = proxy.url_at(host, PATTERN);
    let publisher = camera::publish_with_ffmpeg(stage, "camera-pattern", fixture, &url, Transport::Udp)?;
    println!("camera {PATTERN}: ffmpeg publishes by UDP");
    proxy.wait_for_media(PATTERN, 2, Duration::from_secs(10)).with_context(|| publisher.tail())?;

    let (stage, host) = network.viewers(scratch);
    println!("\n  While this runs:");
    for stream in [PATTERN, YARD] {
        println!("    {}mpv {}", prefix(stage), proxy.url_at(host, stream));
    }
    println!("    {figures}");
    let mut viewers = Vec::new();
    for (stream, player, transport) in VIEWERS {
        let watch = Watch {
            name: format!("{stream}-{}-{}", player.name(), transport.name()),
            player,
            transport,
            url: proxy.url_at(host, stream),
            credentials: None,
            profile: fixture.profile,
        };
        viewers.push(Viewer::start(stage, watch)?);
    }
    Ok(Parts { viewers, proxy, publisher, camera })
}

/// Prints what every viewer decoded and returns how many did not decode what the source does.
fn judge(fixture: &Fixture, mut viewers: Vec<Viewer>, seconds: f32) -> usize {
    // Whoever interrupts after a second or two still gets an answer about what was played.
    let enough = (seconds - 6.0).clamp(0.5, 10.0);
    let claim = Claim { frames: (enough * 20.0) as usize, sound_seconds: enough * 0.8, ..Claim::default() };
    let mut failed = 0;
    for viewer in &mut viewers {
        viewer.interrupt();
    }
    for viewer in viewers {
        let name = viewer.watch().name.clone();
        let verdict = viewer.finish().and_then(|seen| Ok(oracle::check(fixture, &seen, &claim)?));
        match verdict {
            Ok(proof) => println!(
                "ok      {name:24} {:5} frames, {:5.1} s of sound, in order and bit for bit",
                proof.video.length,
                proof.sound.length as f32 / fixture.profile.sample_rate() as f32
            ),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name:24} {error:#}");
            }
        }
    }
    failed
}
