//! One camera for twenty viewers, and sixteen cameras for eight viewers each: nothing is lost, doubled or
//! reordered by us. The minute at full load is a command; CI runs a short cut of it.
//!
//! `cargo xtask test topology --all --only minute` writes `docs/results/load.md`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use msm_tests::camera::{GstCamera, Stage, Transport, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::{Account, Cameras, Load, Player, Viewers};
use msm_tests::process::{Scratch, output, wait_for};
use msm_tests::proxy::{Options, Proxy};

use crate::healthy::{LIMIT, proxy};

/// Item 2 of what the data path must show; case 7 with the camera's own log and sockets.
#[test]
fn twenty_viewers_of_one_camera_are_one_session_at_the_camera() {
    if !granted("twenty viewers", &[Need::Program("ffmpeg"), Need::Program("ss"), Need::GstRtspServer]) {
        return;
    }
    let scratch = Scratch::new("twenty").unwrap();
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let camera = serve_with_gstreamer(stage, "camera", &fixture, &GstCamera::default()).unwrap();
    let port = camera.url.trim_end_matches("/cam").rsplit(':').next().unwrap();
    let options = Options {
        pulls: vec![("cam".to_owned(), camera.url.clone())],
        flags: vec!["--linger".to_owned(), "1s".to_owned()],
        ..Options::default()
    };
    let proxy = Proxy::start(stage, "proxy", &options).unwrap();
    let url = proxy.url("cam");
    // All at once: the first opens the camera, the others wait for the same answer.
    let mut viewers: Vec<Player> = std::thread::scope(|scope| {
        let playing: Vec<_> = (0..20)
            .map(|n| {
                scope.spawn({
                    let url = &url;
                    move || Player::play(url, Transport::ALL[n % 2])
                })
            })
            .collect();
        playing.into_iter().map(|viewer| viewer.join().unwrap().unwrap()).collect()
    });
    for viewer in &mut viewers {
        let flowing = |viewer: &Player| viewer.media.iter().all(|track| track.len() > 20);
        viewer.wait("media of both tracks", LIMIT, || Ok(()), flowing).unwrap();
    }
    assert_eq!((camera.sessions(), camera.open_connections()), (1, 1));
    assert_eq!(camera.events("describe").len(), 1, "one DESCRIBE for twenty viewers");
    let sockets = output("ss", &["-Htn", "state", "established", &format!("sport = :{port}")]).unwrap();
    assert_eq!(sockets.lines().count(), 1, "{sockets}");
    let mut sessions: Vec<String> = viewers.iter().map(|viewer| viewer.session.clone()).collect();
    sessions.sort();
    sessions.dedup();
    assert_eq!(sessions.len(), 20, "every viewer has a session of its own");
    // Nobody's leaving closes it, the last one's does.
    while viewers.len() > 1 {
        viewers.pop().unwrap().ask("TEARDOWN").unwrap();
    }
    wait_for("the other legs to go", LIMIT, || {
        (proxy.stream("cam")?["legs"].as_array()?.len() == 1).then_some(())
    })
    .unwrap();
    assert!(camera.events("teardown").is_empty(), "the camera was closed under its last viewer");
    let count = viewers[0].media[0].len();
    viewers[0].wait("more media", LIMIT, || Ok(()), |viewer| viewer.media[0].len() > count + 20).unwrap();
    viewers.pop().unwrap().ask("TEARDOWN").unwrap();
    wait_for("the camera's TEARDOWN", LIMIT, || (camera.events("teardown").len() == 1).then_some(()))
        .unwrap();
    assert_eq!(camera.sessions(), 1);
}

/// What a run found.
struct Outcome {
    sent: u64,
    received: u64,
    lost: u64,
    doubled: u64,
    reordered: u64,
    wrong: u64,
    /// Datagrams dropped by the kernel at the viewers' sockets and at the proxy's.
    overflows: (u64, f64),
    unsent: u64,
    cpu: f64,
    resident: u64,
    seconds: f64,
}

/// Cameras and their viewers, UDP both ways, for some time.
fn run(proxy: &Proxy, cameras: usize, viewers: usize, length: Duration) -> Result<Outcome> {
    let urls: Vec<String> = (0..cameras).map(|n| proxy.url(&format!("load-{n}"))).collect();
    let sources = Cameras::publish(&urls, Transport::Udp, Load::FOUR_MEGABITS, None)?;
    let mut sinks = Viewers::start()?;
    for url in &urls {
        for _ in 0..viewers {
            sinks.play(url, Transport::Udp, None)?;
        }
    }
    let cpu = cpu_seconds(proxy)?;
    let started = Instant::now();
    std::thread::sleep(length);
    let (cpu, seconds) = (cpu_seconds(proxy)? - cpu, started.elapsed().as_secs_f64());
    let resident = crate::healthy::resident(proxy)?;
    let unsent = sources.unsent();
    let sent = sources.stop();
    // Each sink must have the last packet of its camera; what is late is on its way.
    let total = cameras * viewers;
    let complete = |sinks: &Viewers| {
        (0..total).all(|n| sinks.account(n).numbers.is_some_and(|(_, last)| last + 1 == sent[n / viewers]))
    };
    wait_for("the last packets", Duration::from_secs(5), || complete(&sinks).then_some(())).ok();
    let at_sinks = sinks.overflows(None)?;
    let at_proxy = proxy.metric("msm_socket_overflows_total", &[])?;
    let accounts = sinks.finish();
    let sum = |value: fn(&Account) -> u64| accounts.iter().map(value).sum::<u64>();
    // Behind the last one that came, too, something may be missing.
    let tail: u64 = accounts
        .iter()
        .enumerate()
        .map(|(n, account)| {
            let expected = u64::from(sent[n / viewers]);
            expected - account.numbers.map_or(0, |(_, last)| u64::from(last) + 1)
        })
        .sum();
    Ok(Outcome {
        sent: sent.iter().map(|count| u64::from(*count)).sum(),
        received: sum(|account| account.packets),
        lost: sum(Account::lost) + tail,
        doubled: sum(|account| account.doubled),
        reordered: sum(|account| account.reordered),
        wrong: sum(|account| account.wrong + account.ssrc_changes),
        overflows: (at_sinks, at_proxy),
        unsent,
        cpu,
        resident,
        seconds,
    })
}

impl Outcome {
    /// Nothing lost, doubled or reordered. What the kernel dropped at a sink is not the proxy's, but a run
    /// with any of it proves nothing.
    fn check(&self) -> Result<()> {
        ensure!(self.unsent == 0, "this machine did not take {} packets of the cameras", self.unsent);
        ensure!(self.overflows.0 == 0, "{} datagrams overflowed the sinks' sockets", self.overflows.0);
        ensure!(
            self.lost + self.doubled + self.reordered + self.wrong == 0,
            "{} lost ({} at the proxy's sockets), {} doubled, {} reordered, {} wrong of {}",
            self.lost,
            self.overflows.1,
            self.doubled,
            self.reordered,
            self.wrong,
            self.received
        );
        Ok(())
    }
}

/// CPU time of all threads of the proxy.
fn cpu_seconds(proxy: &Proxy) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.process.pid()))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // utime and stime, in hundredths of a second.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

#[test]
fn four_cameras_with_four_viewers_each_lose_nothing_in_five_seconds() {
    let scratch = Scratch::new("load").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    run(&proxy, 4, 4, Duration::from_secs(5)).unwrap().check().unwrap();
}

#[test]
#[ignore = "a minute on a machine of its own; cargo xtask test topology --all --only minute"]
fn sixteen_cameras_with_eight_viewers_each_lose_nothing_in_a_minute() {
    let scratch = Scratch::new("load").unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let outcome = run(&proxy, 16, 8, Duration::from_secs(60)).unwrap();
    write_result(&outcome).unwrap();
    outcome.check().unwrap();
}

fn write_result(outcome: &Outcome) -> Result<()> {
    let mut text = String::new();
    let text = &mut text;
    let processor = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = processor.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism()?;
    writeln!(text, "# Load of the user-space path\n")?;
    writeln!(text, "`cargo xtask test topology --all --only minute` writes this file.\n")?;
    writeln!(
        text,
        "{}, {cores} cores of {model}, Linux {}; cameras, proxy and viewers share them over loopback.\n",
        output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?.trim(),
        output("uname", &["-r"])?.trim()
    )?;
    writeln!(
        text,
        "16 published cameras x 8 viewers, UDP both ways; each camera 417 packets/s of 1,200 bytes (4 Mb/s), \
         40 of them\nback to back once a second as a key frame is. Every packet carries its number; each \
         viewer accounts for each.\n"
    )?;
    writeln!(text, "| | |\n|---|---|")?;
    let fan_out = outcome.received as f64 / outcome.seconds;
    for (name, value) in [
        ("length", format!("{:.1} s", outcome.seconds)),
        ("packets sent by the cameras", outcome.sent.to_string()),
        ("packets received by the viewers", outcome.received.to_string()),
        ("copies per second", format!("{fan_out:.0}")),
        ("lost", outcome.lost.to_string()),
        ("doubled", outcome.doubled.to_string()),
        ("reordered", outcome.reordered.to_string()),
        ("wrong bytes or SSRC", outcome.wrong.to_string()),
        ("dropped by the kernel at the viewers' sockets", outcome.overflows.0.to_string()),
        ("dropped by the kernel at the proxy's sockets", outcome.overflows.1.to_string()),
        ("not taken by this machine from the cameras", outcome.unsent.to_string()),
        ("CPU of the proxy", format!("{:.2} cores", outcome.cpu / outcome.seconds)),
        ("memory of the proxy", format!("{} MiB resident", outcome.resident >> 20)),
    ] {
        writeln!(text, "| {name} | {value} |")?;
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results");
    std::fs::create_dir_all(folder)?;
    std::fs::write(format!("{folder}/load.md"), text)?;
    Ok(())
}
