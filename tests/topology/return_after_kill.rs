//! The proxy is killed and a supervisor starts it again: probes on the user path connect again and have media again.
//!
//! What is asserted is the order of what happens. `MSM_TEST_RETURNS=20` says how often, and records how long it took
//! in `docs/results/upgrade.md`.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::stats::quantile;
use msm_tests::camera::{GstCamera, Stage, Transport, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::privilege::{Need, environment, granted};
use msm_tests::probe::{Player, VIDEO_AUDIO};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};

use crate::feed::Feed;
use crate::healthy::LIMIT;
use crate::kernel_house::{INPUT, OUTPUT};
use crate::kernel_scene::Scene;
use crate::record;

const ENV_RETURNS: &str = "MSM_TEST_RETURNS";
/// Between two attempts of a peer to connect again.
const AGAIN: Duration = Duration::from_millis(10);
/// Between two packets of the publisher.
const PACE: Duration = Duration::from_millis(5);

/// When what happened to one viewer, counted from the kill.
#[derive(Debug, Clone, Copy)]
struct Return {
    transport: Transport,
    /// Its connection ended; the new process was started; its new PLAY was answered; a packet came.
    closed: Duration,
    started: Duration,
    answered: Duration,
    media: Duration,
}

/// A viewer's own part of it.
struct Seen {
    closed: Instant,
    answered: Instant,
    media: Instant,
    player: Player,
}

/// Plays until the connection ends, connects again until that succeeds, and waits for media.
fn connect_again(mut player: Player, url: &str, transport: Transport) -> Result<Seen> {
    player.wait("the end of the connection", LIMIT, || Ok(()), |player| player.closed)?;
    let closed = Instant::now();
    let former = player.session.clone();
    let mut player = loop {
        match Player::play(url, transport) {
            Ok(player) => break player,
            Err(error) if closed.elapsed() > LIMIT => return Err(error),
            Err(_) => std::thread::sleep(AGAIN),
        }
    };
    let answered = Instant::now();
    ensure!(player.session != former, "a session of the killed process");
    while player.media[0].is_empty() {
        ensure!(answered.elapsed() < LIMIT, "no media after PLAY");
        std::thread::sleep(Duration::from_millis(1));
        player.receive();
    }
    Ok(Seen { closed, answered, media: Instant::now(), player })
}

/// Sends media, and publishes again over a new connection when the former one ended.
fn publish(feed: &mut Feed, stop: &AtomicBool) -> Result<()> {
    let mut gone = false;
    while !stop.load(Ordering::Relaxed) {
        feed.next()?;
        std::thread::sleep(PACE);
        if !gone {
            let stream = feed.publisher.connection.stream();
            stream.set_nonblocking(true)?;
            gone = match stream.peek(&mut [0]) {
                Ok(read) => read == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
        }
        if gone {
            gone = feed.publisher.record_again(VIDEO_AUDIO).is_err();
        }
    }
    Ok(())
}

/// Kills the proxy so often while a viewer of each transport plays, and starts it again at once.
///
/// `in_kernel`: the leg over UDP is to be there each time.
fn rounds(
    count: usize,
    stage: Stage<'_>,
    proxy: &mut Proxy,
    url: &str,
    in_kernel: bool,
) -> Result<Vec<Return>> {
    let play = |transport| {
        let until = Instant::now() + LIMIT;
        loop {
            match Player::play(url, transport) {
                Err(_) if Instant::now() < until => std::thread::sleep(AGAIN),
                played => return played,
            }
        }
    };
    let mut players = Transport::ALL.map(play).into_iter().collect::<Result<Vec<_>>>()?;
    let mut returns = Vec::new();
    for round in 0..count {
        for player in &mut players {
            let before = player.media[0].len();
            player.wait("media", LIMIT, || Ok(()), |player| player.media[0].len() > before + 20)?;
        }
        let carried =
            |proxy: &Proxy| proxy.metric("msm_legs", &["rung=\"tcx\""]).is_ok_and(|legs| legs > 0.0);
        if in_kernel {
            wait_for("the leg over UDP on tcx", LIMIT, || carried(proxy).then_some(()))?;
        }
        let (killed, started, seen) = std::thread::scope(|scope| -> Result<_> {
            let viewers: Vec<_> = players
                .drain(..)
                .zip(Transport::ALL)
                .map(|(player, transport)| scope.spawn(move || connect_again(player, url, transport)))
                .collect();
            let killed = Instant::now();
            proxy.process.kill();
            let started = Instant::now();
            // Nobody runs: it starts by itself, on the same ports.
            proxy.process = proxy.next(stage, &format!("proxy-{round}")).start(stage.scratch)?;
            let joined = viewers
                .into_iter()
                .map(|viewer| viewer.join().map_err(|_| anyhow::anyhow!("a viewer panicked"))?);
            let seen = joined.collect::<Result<Vec<_>>>().with_context(|| proxy.process.tail())?;
            Ok((killed, started, seen))
        })?;
        for (Seen { closed, answered, media, player }, transport) in seen.into_iter().zip(Transport::ALL) {
            ensure!(killed <= closed && closed <= answered && answered <= media, "round {round}: the order");
            ensure!(started <= answered, "round {round}: answered before the new process was there");
            let [closed, started, answered, media] =
                [closed, started, answered, media].map(|at| at.duration_since(killed));
            returns.push(Return { transport, closed, started, answered, media });
            players.push(player);
        }
    }
    Ok(returns)
}

/// A publisher that comes back as fast as the viewers do.
fn published(count: usize) -> Result<Vec<Return>> {
    let scratch = Scratch::new("returns")?;
    let stage = Stage::here(scratch.path());
    let flags = vec!["--max-rung".to_owned(), "user".to_owned()];
    let mut proxy = Proxy::start(stage, "proxy", &Options { flags, ..Options::default() })?;
    let url = proxy.url("cam");
    let mut feed = Feed::record(&url, Transport::Udp)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(&mut feed, &stop));
        let returns = rounds(count, stage, &mut proxy, &url, false);
        stop.store(true, Ordering::Relaxed);
        publisher.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
        returns
    })
}

/// A camera that the proxy pulls, which it does as soon as the first viewer is there.
fn pulled(count: usize) -> Result<Vec<Return>> {
    let scratch = Scratch::new("returns")?;
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac)?;
    let camera = serve_with_gstreamer(stage, "camera", &fixture, &GstCamera::default())?;
    let flags = vec!["--max-rung".to_owned(), "user".to_owned()];
    let pulls = vec![("cam".to_owned(), camera.url.clone())];
    let mut proxy = Proxy::start(stage, "proxy", &Options { flags, pulls, ..Options::default() })?;
    let url = proxy.url("cam");
    rounds(count, stage, &mut proxy, &url, false)
}

/// The same with the fast path on: the leg over UDP is in the kernel, the one over TCP is the worker's.
fn beside_the_kernel(count: usize) -> Result<Option<Vec<Return>>> {
    let Some(scene) = Scene::new("returns beside kernel legs")? else { return Ok(None) };
    let scratch = Scratch::new("returns")?;
    let stage = Stage::inside(scratch.path(), &scene.node);
    // A new leg stays with the worker as long as one of before the restart may be claimed, which none is here: a
    // probe that connects again has other ports.
    let bpffs = scene.bpffs.path().display().to_string();
    let flags = ["--bpffs", &bpffs, "--adopt-grace", "1s"].map(str::to_owned).to_vec();
    let mut proxy = Proxy::start(stage, "proxy", &Options { flags, ..Options::default() })?;
    let (input, output) = (proxy.url_at(INPUT[0], "cam"), proxy.url_at(OUTPUT[0], "cam"));
    let mut feed = scene.camera.inside(|| Feed::record(&input, Transport::Udp))??;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| scene.camera.inside(|| publish(&mut feed, &stop)));
        let returns = scene.viewer.inside(|| rounds(count, stage, &mut proxy, &output, true));
        stop.store(true, Ordering::Relaxed);
        publisher.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))???;
        returns?.map(Some)
    })
}

fn table(sources: &[(&str, Vec<Return>)], count: usize) -> Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "`{ENV_RETURNS}={count} MSM_TEST_PROXY=$PWD/target/release/rtp-proxy cargo test -p msm-tests --test topology \
         media_is_back` writes this section.\n"
    )?;
    writeln!(
        text,
        "{}; on loopback with `--max-rung user`,\n\
         beside the fast path in network namespaces. {count} times: `kill -9`, a supervisor starts the proxy again as soon as it is gone (systemd waits `RestartSec`\n\
         besides, 100 ms by default), and two probes, which like the publisher try to connect every {} ms once their\n\
         connection has ended, play again. Times are counted from the kill: until the probe knows that its connection\n\
         ended, until its new PLAY is answered, until it has a packet.\n",
        record::stamp(record::build()?)?,
        AGAIN.as_millis()
    )?;
    writeln!(
        text,
        "| source | viewer | connection ended, p50 | PLAY answered, p50 | media is back, p50 | longest |\n\
         |---|---|---|---|---|---|"
    )?;
    for (source, returns) in sources {
        for transport in Transport::ALL {
            let of = |time: fn(&Return) -> Duration| -> Vec<f64> {
                let mine = returns.iter().filter(|found| found.transport == transport);
                mine.map(|found| time(found).as_secs_f64() * 1e3).collect()
            };
            let (closed, answered) = (of(|found| found.closed), of(|found| found.answered));
            let media = of(|found| found.media);
            let [closed, answered, usual, longest] =
                [(&closed, 0.5), (&answered, 0.5), (&media, 0.5), (&media, 1.0)]
                    .map(|(of, q)| quantile(of, q));
            writeln!(
                text,
                "| {source} | probe over {} | {closed:.0} ms | {answered:.0} ms | {usual:.0} ms | {longest:.0} ms |",
                transport.name()
            )?;
        }
    }
    let all = || sources.iter().flat_map(|(_, returns)| returns);
    let started: Vec<f64> = all().map(|found| found.started.as_secs_f64() * 1e3).collect();
    let late = all().filter(|found| found.media > Duration::from_secs(1)).count();
    writeln!(
        text,
        "\nThe new process is started {:.0} ms after the kill (p50). Later than one second was media {late} times of {}.",
        quantile(&started, 0.5),
        all().count()
    )?;
    Ok(text)
}

/// DP11 and B18 for the user path.
#[test]
fn media_is_back_for_probes_that_connect_again_after_kill_9() -> Result<()> {
    let count = environment(ENV_RETURNS).map(|text| text.parse().context(ENV_RETURNS)).transpose()?;
    let of_publisher = published(count.unwrap_or(2))?;
    eprintln!("{of_publisher:#?}");
    let Some(count) = count else { return Ok(()) };
    let mut sources = vec![("publisher (probe) that connects again", of_publisher)];
    if granted("returns with a pulled camera", &[Need::GstRtspServer]) {
        sources.push(("camera (GStreamer) that the proxy pulls", pulled(count)?));
    }
    if let Some(returns) = beside_the_kernel(count)? {
        sources.push(("publisher, its UDP legs in the kernel", returns));
    }
    let text = table(&sources, count)?;
    eprintln!("{text}");
    record::put("upgrade.md", "How soon viewers that connect again have media after `kill -9`", &text)
}
