//! The interop matrix with foreign programs on both sides of the proxy.
//!
//! Without arguments: the pairwise selection. `--all`: every cell, and `--report FILE` writes the table.
//! `--direct`: viewers play the served cameras themselves, which proves the harness and the programs.
//! `--only TEXT`: cells whose name contains it.
//!
//! With `MSM_TEST_RUNG` the proxy stands in a namespace of its own between sources and viewers, and a cell is
//! passed only if its viewers were carried as they should be: those over UDP by that rung, unless their source
//! is on TCP, which needs the worker.

#![expect(clippy::print_stdout, reason = "its report is this program's output")]

mod report;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::camera::{self, GstCamera, ServedCamera, Transport};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::{Carried, Ground, Line, SOURCE_OVER_TCP};
use msm_tests::matrix::{self, Cell, Scene, Source};
use msm_tests::oracle::{self, Claim};
use msm_tests::privilege::{self, Need};
use msm_tests::process::{Process, free_port};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::viewer::{Viewer, Watch};
use nix::sys::signal::Signal;

/// Login of the GStreamer camera.
const CREDENTIALS: &str = "camera:secret-0";
/// Scenes at a time; each has a source and up to eight players.
const PARALLEL: usize = 4;
/// Part of a reason: the player did not read in time, so that its own sockets overflowed or the proxy had to
/// shed whole frames for it (RTSP-44). Such a cell is played once more, alone.
const NOT_READ: &str = "the player did not read in time";
/// What mpv says when a source's report moves a track against what its packets said. VLC's do on a loaded
/// machine: it sends sound up to 100 ms ahead of what its reports say, and the first comes after 5 s. Such a
/// cell is played once more, alone.
const STEPPED: &str = "Invalid video timestamp";
/// Frames a viewer must decode before it is ended.
const FRAMES: usize = 70;

struct Arguments {
    all: bool,
    direct: bool,
    only: Option<String>,
    report: Option<String>,
}

/// What a cell showed.
pub(crate) type Outcome = std::result::Result<String, String>;

fn main() -> Result<()> {
    let arguments = arguments()?;
    let needs: Vec<Need> = ["ffmpeg", "gst-launch-1.0", "mpv", "cvlc"].map(Need::Program).into();
    if !privilege::granted("interop", &[needs, vec![Need::GstRtspServer]].concat()) {
        println!("interop: 0 passed, 0 failed, skipped");
        return Ok(());
    }
    let mut cells = matrix::all();
    if arguments.direct {
        cells.retain(|cell| cell.scene.source.is_pulled());
    }
    if !arguments.all {
        cells = matrix::pairwise(&cells);
    }
    if let Some(only) = &arguments.only {
        cells.retain(|cell| cell.to_string().contains(only) || cell.slug().contains(only));
    }
    let started = Instant::now();
    let Some(outcomes) = run(&cells, arguments.direct)? else { return Ok(()) };
    let failed = outcomes.values().filter(|outcome| outcome.is_err()).count();
    if let Some(path) = &arguments.report {
        std::fs::write(path, report::write(&outcomes)?).with_context(|| path.clone())?;
        println!("wrote {path}");
    }
    println!(
        "interop: {} passed, {failed} failed, {} cells in {} s",
        outcomes.len() - failed,
        outcomes.len(),
        started.elapsed().as_secs()
    );
    std::process::exit(i32::from(failed > 0))
}

fn arguments() -> Result<Arguments> {
    let mut found = Arguments { all: false, direct: false, only: None, report: None };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--all" => found.all = true,
            "--direct" => found.direct = true,
            "--only" => found.only = given.next(),
            "--report" => found.report = given.next(),
            // What `cargo test` hands to every test program.
            "--nocapture" | "--quiet" | "-q" => {}
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(found)
}

fn run(cells: &[Cell], direct: bool) -> Result<Option<BTreeMap<Cell, Outcome>>> {
    let Some(ground) = Ground::of("interop")? else {
        println!("interop: 0 passed, 0 failed, skipped");
        return Ok(None);
    };
    let mut scenes: BTreeMap<Scene, Vec<Cell>> = BTreeMap::new();
    for cell in cells {
        scenes.entry(cell.scene).or_default().push(*cell);
    }
    let mut fixtures = BTreeMap::new();
    for profile in Profile::ALL {
        fixtures.insert(profile, Fixture::make(profile)?);
    }
    // A pulled camera's port is fixed now, because the proxy is told about it when it starts.
    let mut ports = BTreeMap::new();
    let mut options = Options { flags: vec!["--linger".into(), "1s".into()], ..Options::default() };
    for scene in scenes.keys().filter(|scene| scene.source.is_pulled()) {
        let (name, port) = (scene.slug(), ground.among_cameras(free_port)?);
        options.pulls.push((name.clone(), format!("rtsp://{}:{port}/cam", ground.camera_host())));
        options.pull_transports.push((name.clone(), scene.transport));
        if scene.source == Source::GstServe {
            let file =
                camera::credentials_file(ground.scratch().path(), &format!("{name}.login"), CREDENTIALS)?;
            options.credentials.push((name, file));
        }
        ports.insert(*scene, port);
    }
    let proxy = if direct { None } else { Some(ground.proxy("proxy", options)?) };
    // A login is asked for everything of a proxy, so those scenes have one of their own.
    let needs_login = scenes.keys().any(|scene| scene.source.needs_login());
    let guarded = if needs_login { Some(guarded(&ground)?) } else { None };

    let world = World { ground: &ground, fixtures, ports, proxy, guarded };
    let mut outcomes = world.play_all(scenes, PARALLEL);
    let is_of_the_machine = |(cell, outcome): &(&Cell, &Outcome)| {
        outcome.as_ref().is_err_and(|reason| {
            reason.contains(NOT_READ) || (cell.scene.source == Source::VlcServe && reason.contains(STEPPED))
        })
    };
    let mut again: BTreeMap<Scene, Vec<Cell>> = BTreeMap::new();
    for (cell, _) in outcomes.iter().filter(is_of_the_machine) {
        println!("again   {cell}");
        again.entry(cell.scene).or_default().push(*cell);
    }
    outcomes.extend(world.play_all(again, 1));
    drop(world);
    // The kernel's own counters know no streams: what they say is judged of all cells together.
    if let Some(rung) = ground.rung().filter(|_| !direct) {
        match ground.collected()?.judge(rung, Carried::Kernel) {
            Ok(line) => println!("carried by {}: {line:?}", rung.name()),
            Err(error) => {
                for outcome in outcomes.values_mut().filter(|outcome| outcome.is_ok()) {
                    *outcome = Err(format!("{error:#}"));
                }
            }
        }
    }
    if outcomes.values().any(Result::is_err) {
        println!("logs: {}", ground.keep().display());
    }
    Ok(Some(outcomes))
}

/// What all scenes are played with.
struct World<'a> {
    ground: &'a Ground,
    fixtures: BTreeMap<Profile, Fixture>,
    ports: BTreeMap<Scene, u16>,
    proxy: Option<Proxy>,
    guarded: Option<Proxy>,
}

impl World<'_> {
    /// Plays scenes, so many at a time.
    fn play_all(&self, scenes: BTreeMap<Scene, Vec<Cell>>, parallel: usize) -> BTreeMap<Cell, Outcome> {
        let queue = Mutex::new(scenes.into_iter().collect::<VecDeque<_>>());
        let outcomes = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..parallel {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                        let Some((scene, cells)) = next else { break };
                        for (cell, outcome) in self.play_one(scene, &cells) {
                            match &outcome {
                                Ok(proof) => println!("ok      {cell}: {proof}"),
                                Err(reason) => println!("FAILED  {cell}: {reason}"),
                            }
                            if let Ok(mut outcomes) = outcomes.lock() {
                                outcomes.insert(cell, outcome);
                            }
                        }
                    }
                });
            }
        });
        outcomes.into_inner().unwrap_or_default()
    }

    fn play_one(&self, scene: Scene, cells: &[Cell]) -> Vec<(Cell, Outcome)> {
        let port = self.ports.get(&scene).copied().unwrap_or_default();
        let proxy = if scene.source.needs_login() { &self.guarded } else { &self.proxy };
        match play(self.ground, scene, cells, &self.fixtures[&scene.profile], port, proxy.as_ref()) {
            Ok(results) => results,
            Err(error) => cells.iter().map(|cell| (*cell, Err(format!("{error:#}")))).collect(),
        }
    }
}

/// A proxy that lets one user publish and play.
fn guarded(ground: &Ground) -> Result<Proxy> {
    let (user, password) = CREDENTIALS.split_once(':').context("no login")?;
    let file = camera::credentials_file(ground.scratch().path(), "user.login", password)?;
    let options = Options { users: vec![(user.to_owned(), file)], beside: true, ..Options::default() };
    ground.proxy("proxy-guarded", options)
}

/// What keeps a scene's media coming.
enum Running {
    Served(ServedCamera),
    Publishing(Process),
}

fn start_source(
    ground: &Ground,
    scene: Scene,
    fixture: &Fixture,
    port: u16,
    proxy: Option<&Proxy>,
) -> Result<Running> {
    let (name, stage) = (format!("{}-source", scene.slug()), ground.stage());
    let target =
        || proxy.map(|proxy| ground.publish_url(proxy, &scene.slug())).context("publishing needs the proxy");
    Ok(match scene.source {
        Source::FfmpegPublish => Running::Publishing(camera::publish_with_ffmpeg(
            stage,
            &name,
            fixture,
            &target()?,
            scene.transport,
        )?),
        Source::GstPublish | Source::GstPublishLogin => Running::Publishing(camera::publish_with_sink(
            stage,
            &name,
            fixture,
            &target()?,
            scene.transport,
            scene.source.needs_login().then_some(CREDENTIALS),
        )?),
        Source::GstServe => {
            let address = ground.camera_host();
            let camera = GstCamera { address, port, digest: Some(CREDENTIALS), ..GstCamera::default() };
            Running::Served(camera::serve_with_gstreamer(stage, &name, fixture, &camera)?)
        }
        Source::VlcServe => {
            Running::Served(camera::serve_with_vlc(stage, &name, fixture, ground.camera_host(), port)?)
        }
    })
}

fn play(
    ground: &Ground,
    scene: Scene,
    cells: &[Cell],
    fixture: &Fixture,
    port: u16,
    proxy: Option<&Proxy>,
) -> Result<Vec<(Cell, Outcome)>> {
    let start = || start_source(ground, scene, fixture, port, proxy);
    let mut source = ground.among_cameras(start).context("the source")?;
    if let (Running::Publishing(process), Some(proxy)) = (&source, proxy) {
        proxy.wait_for_media(&scene.slug(), 2, Duration::from_secs(10)).with_context(|| process.tail())?;
    }
    let mut viewers = Vec::new();
    for cell in cells {
        let is_asked = scene.source.needs_login() || (proxy.is_none() && scene.source == Source::GstServe);
        let credentials = is_asked.then(|| CREDENTIALS.to_owned());
        let url = match (&source, proxy) {
            (_, Some(proxy)) => proxy.url(&scene.slug()),
            (Running::Served(camera), None) => camera.url.clone(),
            (Running::Publishing(_), None) => bail!("nobody can play a publisher"),
        };
        if proxy.is_none() && scene.source == Source::VlcServe && cell.transport == Transport::Tcp {
            continue;
        }
        let watch = Watch {
            name: cell.slug(),
            player: cell.player,
            transport: cell.transport,
            url,
            credentials,
            profile: scene.profile,
        };
        viewers.push((*cell, Viewer::start(ground.stage(), watch)?));
    }
    let mut results = Vec::new();
    let ready: Vec<Result<()>> = viewers
        .iter_mut()
        .map(|(_, viewer)| viewer.wait_for_frames(FRAMES, Duration::from_secs(25)))
        .collect();
    let stream = proxy.and_then(|proxy| proxy.stream(&scene.slug())).unwrap_or_default();
    let carried = proxy.map(|proxy| carried(ground, proxy, scene, cells));
    let unread: Vec<String> = viewers.iter().map(|(cell, viewer)| unread(*cell, viewer, proxy)).collect();
    for (_, viewer) in &mut viewers {
        viewer.interrupt();
    }
    for (((cell, viewer), ready), unread) in viewers.into_iter().zip(ready).zip(unread) {
        let outcome = ready.and_then(|()| judge(cell, fixture, viewer));
        let outcome = outcome.and_then(|proof| match &carried {
            Some(Err(error)) if cell.transport == Transport::Udp => bail!("{proof}, but {error:#}"),
            _ => Ok(proof),
        });
        if let (Ok(_), Some(Ok(line)), Some(rung)) = (&outcome, &carried, ground.rung()) {
            line.report(
                if cell.transport == Transport::Udp { "udp" } else { "tcp" },
                &cell.to_string(),
                rung,
            )?;
        }
        let outcome = outcome.map_err(|error| format!("{error:#}{unread}; tracks: {}", stream["tracks"]));
        results.push((cell, outcome));
    }
    match &mut source {
        Running::Served(camera) => camera.process.stop(Signal::SIGTERM, Duration::from_secs(2)).map(drop)?,
        Running::Publishing(process) => process.stop(Signal::SIGINT, Duration::from_secs(2)).map(drop)?,
    }
    Ok(results)
}

/// Waits until the viewers of a scene are carried as they should be, while they all play.
fn carried(ground: &Ground, proxy: &Proxy, scene: Scene, cells: &[Cell]) -> Result<Line> {
    let udp = cells.iter().filter(|cell| cell.transport == Transport::Udp).count();
    if scene.transport == Transport::Udp {
        if udp > 0 {
            ground.wait_until_carried(proxy, &scene.slug(), udp, || Ok(()))?;
        }
    } else if ground.is_kernel() {
        let reasons = ground.reasons(&scene.slug());
        let is_told = udp == 0 || reasons.iter().any(|reason| reason.contains(SOURCE_OVER_TCP));
        ensure!(is_told, "its viewers are with the workers because of {reasons:?}");
    }
    Ok(ground.shown_so_far(&scene.slug()))
}

/// What a player did not take in time, as part of a reason; empty if it took everything.
fn unread(cell: Cell, viewer: &Viewer, proxy: Option<&Proxy>) -> String {
    let overflows = viewer.process.socket_overflows();
    if overflows > 0 {
        return format!("; {NOT_READ}: {overflows} datagrams were dropped by its sockets");
    }
    let interleaved = ["queue=\"interleaved\""];
    let shed = proxy.and_then(|proxy| proxy.metric("msm_queue_dropped_total", &interleaved).ok());
    match shed.filter(|shed| *shed > 0.0 && cell.transport == Transport::Tcp) {
        Some(shed) => format!("; {NOT_READ}: {shed} frames were shed for players over TCP so far"),
        None => String::new(),
    }
}

fn judge(cell: Cell, fixture: &Fixture, viewer: Viewer) -> Result<String> {
    let seen = viewer.finish()?;
    let rate = fixture.profile.sample_rate() as f32;
    if let Some(reservation) = cell.reservation() {
        let run = oracle::video_run(&fixture.frames, &seen.frames, &Claim::default())?;
        return Ok(format!("{} frames, {reservation}", run.length));
    }
    let proof = oracle::check(fixture, &seen, &Claim::default())?;
    let seconds = match fixture.profile.sound_oracle() {
        msm_tests::fixture::SoundOracle::Samples => proof.sound.length as f32 / rate,
        msm_tests::fixture::SoundOracle::Frames => proof.sound.length as f32 / 50.0,
    };
    Ok(format!("{} frames, {seconds:.1} s of sound", proof.video.length))
}
