//! What real players do when the proxy is upgraded as planned, and when it is killed and started again: the
//! table of `docs/results/upgrade.md`.
//!
//! `cargo xtask test topology --all --only what_players_do` writes it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use msm_tests::camera::{GstCamera, Stage, Transport, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::{Cameras, Load, Viewers};
use msm_tests::process::{Scratch, describe, output, wait_for};
use msm_tests::proxy::{Options, Proxy, program};
use msm_tests::viewer::{Player, Viewer, Watch};

use crate::healthy::LIMIT;

const NEEDS: [Need; 4] =
    [Need::Program("ffmpeg"), Need::Program("gst-launch-1.0"), Need::Program("mpv"), Need::GstRtspServer];

const PLAYERS: [Player; 3] = [Player::Ffmpeg, Player::Rtspsrc, Player::Mpv];

/// How long the players are watched afterwards. ffmpeg and mpv give up later than that on nothing we saw.
const WATCHED: Duration = Duration::from_secs(25);
const LOOK: Duration = Duration::from_millis(40);

/// What is done to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Upgrade,
    Kill,
}

/// What became of one player.
#[derive(Debug)]
struct Fate {
    name: String,
    ended: Option<String>,
    /// Pictures decoded after the deed.
    pictures: usize,
    /// Longest time without one, before the deed and after it.
    pauses: [Duration; 2],
    /// Whether its connection is the one it had.
    same_connection: bool,
}

/// Whose connections there are, by stream and transport of the leg.
fn peers(proxy: &Proxy) -> Vec<String> {
    let stream = proxy.stream("cam").unwrap_or_default();
    let legs = stream["legs"].as_array().cloned().unwrap_or_default();
    legs.iter().map(|leg| leg["peer"].to_string()).collect()
}

/// Looks at the players for so long. Returns the longest pause of each.
fn watch(viewers: &mut [Viewer], time: Duration) -> Vec<Duration> {
    let until = Instant::now() + time;
    let mut last: Vec<(usize, Instant)> = viewers.iter().map(|v| (v.frames(), Instant::now())).collect();
    let mut pauses = vec![Duration::ZERO; viewers.len()];
    while Instant::now() < until {
        std::thread::sleep(LOOK);
        for ((viewer, last), pause) in viewers.iter_mut().zip(&mut last).zip(&mut pauses) {
            let frames = viewer.frames();
            *pause = (*pause).max(last.1.elapsed());
            if frames > last.0 {
                *last = (frames, Instant::now());
            }
        }
    }
    pauses
}

fn run(deed: Deed) -> Result<Vec<Fate>> {
    let scratch = Scratch::new("upgrade-table")?;
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac)?;
    let camera = serve_with_gstreamer(stage, "camera", &fixture, &GstCamera::default())?;
    let door = scratch.path().join("door").display().to_string();
    let pulls = vec![("cam".to_owned(), camera.url.clone())];
    let flags = vec!["--handover".to_owned(), door];
    let mut proxy = Proxy::start(stage, "proxy", &Options { pulls, flags, ..Options::default() })?;
    let mut viewers = Vec::new();
    let mut connections = Vec::new();
    for player in PLAYERS {
        for transport in Transport::ALL {
            let before = peers(&proxy);
            let name = format!("{}-{}", player.name(), transport.name());
            let url = proxy.url("cam");
            let watch = Watch { name, player, transport, url, credentials: None, profile: fixture.profile };
            let mut viewer = Viewer::start(stage, watch)?;
            viewer.wait_for_frames(25, LIMIT)?;
            connections.push(peers(&proxy).into_iter().find(|peer| !before.contains(peer)));
            viewers.push(viewer);
        }
    }
    let usual = watch(&mut viewers, Duration::from_secs(5));
    let frames: Vec<usize> = viewers.iter().map(Viewer::frames).collect();
    match deed {
        Deed::Upgrade => {
            proxy.upgrade(stage, "proxy-next")?;
        }
        Deed::Kill => {
            proxy.process.kill();
            // Nobody runs: it starts by itself.
            proxy.process = proxy.next(stage, "proxy-next").start(scratch.path())?;
        }
    }
    let pauses = watch(&mut viewers, WATCHED);
    let now = peers(&proxy);
    let mut fates = Vec::new();
    for (index, mut viewer) in viewers.into_iter().enumerate() {
        fates.push(Fate {
            name: viewer.watch().name.replace('-', " over "),
            pictures: viewer.frames() - frames[index],
            ended: viewer.process.poll().map(describe),
            pauses: [usual[index], pauses[index]],
            same_connection: connections[index].as_ref().is_some_and(|peer| now.contains(peer)),
        });
    }
    Ok(fates)
}

/// What one upgrade cost with so many viewers.
#[derive(Debug)]
struct Cost {
    viewers: usize,
    still: String,
    packets: u64,
    lost: u64,
    overflows: u64,
}

/// A light stream for many viewers, half of them interleaved.
const LIGHT: Load = Load { packet_bytes: 600, packets_per_second: 20, burst: 4 };

fn cost(count: usize) -> Result<Cost> {
    let scratch = Scratch::new("upgrade-cost")?;
    let stage = Stage::here(scratch.path());
    let door = scratch.path().join("door").display().to_string();
    let flags = vec!["--handover".to_owned(), door];
    let mut proxy = Proxy::start(stage, "proxy", &Options { flags, ..Options::default() })?;
    let urls: Vec<_> = (0..4).map(|n| proxy.url(&format!("light-{n}"))).collect();
    let cameras = Cameras::publish(&urls, Transport::Udp, LIGHT, None)?;
    let mut viewers = Viewers::start()?;
    for viewer in 0..count {
        viewers.play(&urls[viewer % urls.len()], Transport::ALL[viewer / 4 % 2], None)?;
    }
    let progress = |packets: u64| {
        let before: Vec<u64> = (0..count).map(|viewer| viewers.account(viewer).packets).collect();
        wait_for("media of everybody", LIMIT, || {
            let mut each = before.iter().enumerate();
            each.all(|(viewer, before)| viewers.account(viewer).packets >= before + packets).then_some(())
        })
    };
    progress(5)?;
    let former = proxy.upgrade(stage, "proxy-next")?;
    progress(40)?;
    let log = former.log();
    let still = log.lines().find_map(|line| line.split_once("still_millis=")).map_or("", |(_, rest)| rest);
    let accounts: Vec<_> = (0..count).map(|viewer| viewers.account(viewer)).collect();
    drop(cameras);
    Ok(Cost {
        viewers: count,
        still: still.trim().to_owned(),
        packets: accounts.iter().map(|account| account.packets).sum(),
        lost: accounts.iter().map(|account| account.lost() + u64::from(!account.is_clean())).sum(),
        overflows: viewers.overflows(None)?,
    })
}

fn row(fate: &Fate) -> String {
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let did = match &fate.ended {
        Some(status) => format!("ended ({status})"),
        None if fate.same_connection && fate.pauses[1] < WATCHED / 2 => "played on".to_owned(),
        None if fate.pauses[1] + Duration::from_secs(2) >= WATCHED => "stood still".to_owned(),
        None => "connected again".to_owned(),
    };
    let [usual, pause] = fate.pauses.map(seconds);
    let pause = if fate.ended.is_some() { "-".to_owned() } else { pause };
    format!("| {} | {did} | {} | {pause} | {usual} |", fate.name, fate.pictures)
}

#[test]
#[ignore = "two minutes; cargo xtask test topology --all --only what_players_do"]
fn what_players_do_when_the_proxy_is_upgraded_or_killed() {
    if !granted("the table of upgrades", &NEEDS) {
        return;
    }
    let upgraded = run(Deed::Upgrade).unwrap();
    let killed = run(Deed::Kill).unwrap();
    let costs: Vec<Cost> = [16, 64, 256].into_iter().map(|count| cost(count).unwrap()).collect();
    write(&upgraded, &killed, &costs).unwrap();
    assert!(costs.iter().all(|cost| cost.lost == 0), "{costs:?}");
    for fate in &upgraded {
        assert!(fate.ended.is_none() && fate.same_connection && fate.pictures > 0, "{fate:?}");
    }
}

fn write(upgraded: &[Fate], killed: &[Fate], costs: &[Cost]) -> Result<()> {
    let mut text = String::new();
    let text = &mut text;
    writeln!(text, "# What players do when the proxy is upgraded, and when it is killed\n")?;
    writeln!(text, "`cargo xtask test topology --all --only what_players_do` writes this file.\n")?;
    let date = output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?;
    let kernel = output("uname", &["-r"])?;
    let is_release = program()?.components().any(|part| part.as_os_str() == "release");
    let build = if is_release { "release" } else { "debug" };
    let versions = [("ffmpeg", "-version"), ("gst-launch-1.0", "--version"), ("mpv", "--version")];
    let versions = versions.map(|(program, flag)| {
        let said = output(program, &[flag]).unwrap_or_default();
        said.lines().next().unwrap_or_default().split(" Copyright").next().unwrap_or_default().to_owned()
    });
    writeln!(
        text,
        "{}, Linux {}, everything on loopback: a camera of GStreamer's RTSP server (H.264 and AAC, 25 pictures a\n\
         second) that the proxy pulls, six players at once, user path, {build} build. {}.\n",
        date.trim(),
        kernel.trim(),
        versions.join(", ")
    )?;
    writeln!(
        text,
        "Each player is watched for {} s afterwards; a pause is the longest time without another decoded picture.\n\
         mpv's pictures are counted by the size of the file that it writes in blocks.\n",
        WATCHED.as_secs()
    )?;
    for (title, fates) in [
        ("Planned upgrade: `rtp-proxy standalone --take-over` beside the one that runs", upgraded),
        ("`kill -9`, and the proxy is started again at once on the same ports", killed),
    ] {
        writeln!(text, "## {title}\n")?;
        writeln!(
            text,
            "| player | what it did | pictures afterwards | longest pause | longest pause before |"
        )?;
        writeln!(text, "|---|---|---|---|---|")?;
        for fate in fates {
            writeln!(text, "{}", row(fate))?;
        }
        writeln!(text)?;
    }
    writeln!(text, "## How long both programs stand still\n")?;
    writeln!(
        text,
        "One upgrade while 4 publishers send {} packets of {} bytes a second each and so many viewers play, half of\n\
         them over TCP. What was lost is counted at every viewer by numbers inside the packets.\n",
        LIGHT.packets_per_second, LIGHT.packet_bytes
    )?;
    writeln!(text, "| viewers | stand-still | packets received | lost |\n|---|---|---|---|")?;
    for Cost { viewers, still, packets, lost, overflows } in costs {
        let note =
            if *overflows == 0 { String::new() } else { format!(" ({overflows} at the viewers' sockets)") };
        writeln!(text, "| {viewers} | {still} ms | {packets} | {lost}{note} |")?;
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results");
    std::fs::write(format!("{folder}/upgrade.md"), text.trim_end().to_owned() + "\n")?;
    Ok(())
}
