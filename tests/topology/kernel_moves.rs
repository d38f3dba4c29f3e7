//! Legs that move between worker and kernel again and again under load, while guests join amid bursts.
//!
//! The proxy runs inside this process, so that legs can be told where to be. `MSM_TEST_MOVES=10000` says how often,
//! and has what was found written into `docs/results/moves.md`.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::stats::quantile;
use msm_tests::camera::Transport;
use msm_tests::lab::Node;
use msm_tests::privilege::{Need, environment, granted};
use msm_tests::probe::{Account, Cameras, Load, SetUp, Viewers};
use rtp_proxy::kernel::hop::Rung;

use crate::fast_path::Scene;
use crate::record;

const ENV_MOVES: &str = "MSM_TEST_MOVES";
const MOVES: u32 = 1_000;
/// Bursts that last for some milliseconds, as a key frame of a large picture does: guests have to meet them.
const LOAD: Load = Load { packet_bytes: 400, packets_per_second: 1_500, burst: 300 };
/// Viewers that move.
const MOVERS: usize = 2;
/// Guests at once.
const GUESTS: u32 = 8;
const LIMIT: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// What one viewer found.
#[derive(Debug)]
struct Found {
    account: Account,
    /// Whether its first packet was the one that RTP-Info named.
    is_exact: bool,
    overflows: u64,
}

impl Found {
    fn new(account: Account, rtp_info: &str, overflows: u64) -> Self {
        let promised = rtp_info.split("seq=").nth(1).and_then(|rest| rest.split(';').next()?.parse().ok());
        let is_exact = promised.is_some() && promised == account.first.map(|(sequence, ..)| sequence);
        Self { account, is_exact, overflows }
    }

    /// It came amid a burst, which is one frame: media begins with the first packet behind it.
    fn met_a_burst(&self) -> bool {
        self.account.numbers.is_some_and(|(first, _)| first % LOAD.packets_per_second == LOAD.burst)
    }

    fn check(&self, what: &str) -> Result<()> {
        let Self { account, is_exact, overflows } = self;
        ensure!(*overflows == 0, "{what}: this machine dropped packets itself");
        ensure!(account.packets > 0, "{what}: nothing came");
        let found = (account.lost(), account.doubled, account.wrong, account.ssrc_changes);
        ensure!(found == (0, 0, 0, 0), "{what}: lost, doubled, wrong, SSRC changes {found:?}");
        ensure!(is_exact, "{what}: RTP-Info named another packet than {:?}", account.first);
        Ok(())
    }
}

/// When the camera has sent a burst, as seen from outside: at the greatest step of a second and a half.
fn burst_of(cameras: &Cameras) -> Instant {
    let (until, mut last) = (Instant::now() + SECOND * 3 / 2, cameras.sent()[0]);
    let mut greatest = (0, Instant::now());
    while Instant::now() < until {
        std::thread::sleep(Duration::from_micros(100));
        let now = cameras.sent()[0];
        if now - last > greatest.0 {
            greatest = (now - last, Instant::now());
        }
        last = now;
    }
    greatest.1
}

/// One guest after another: each says PLAY at about the time of a burst, stays a while and leaves.
fn visit(number: u32, burst: Instant, viewers: &Node, stop: &AtomicBool) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    let mut n = number;
    while !stop.load(Ordering::Relaxed) {
        let set_up = SetUp::new(&Scene::url("door"), Transport::Udp, Some(viewers))?;
        // From five milliseconds before what is taken for the end of a burst to one after it.
        let next = (burst.elapsed().as_secs() + 1) * 1_000_000 - 5_000 + u64::from(n) * 7_919 % 6_000;
        let at = burst + Duration::from_micros(next);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let mut guest = Viewers::start()?;
        let id = guest.begin(set_up)?;
        std::thread::sleep(Duration::from_millis(60 + u64::from(n) * 7_919 % 800));
        let (rtp_info, overflows) = (guest.rtp_info(id), guest.overflows(Some(viewers))?);
        all.push(Found::new(guest.finish().remove(id), &rtp_info, overflows));
        n += GUESTS;
    }
    Ok(all)
}

/// Peers of the legs of these, and where each is.
fn places(scene: &Scene) -> Vec<(String, String)> {
    let stream = scene.stream("door").unwrap_or_default();
    let legs = stream["legs"].as_array().cloned().unwrap_or_default();
    legs.iter()
        .map(|leg| (leg["peer"].to_string(), leg["rung"].as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// Moves the legs of these peers so often. Returns how long each move took, in milliseconds.
fn moved(scene: &Scene, peers: &[String], moves: u32) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for n in 0..moves {
        let (rung, name) = if n % 2 == 0 { (Rung::User, "user") } else { (Rung::Tcx, "tcx") };
        let start = Instant::now();
        scene.ask(Some(rung));
        while {
            let mine = places(scene).into_iter().filter(|(peer, _)| peers.contains(peer));
            mine.filter(|(_, now)| now == name).count() < peers.len()
        } {
            let now = || scene.stream("door").unwrap_or_default();
            ensure!(start.elapsed() < LIMIT, "move {n} to {name}: {:#}", now());
            std::thread::sleep(Duration::from_millis(1));
        }
        took.push(start.elapsed().as_secs_f64() * 1e3);
        if n % 100 == 99 {
            // Long enough for the worker to have peace.
            std::thread::sleep(Duration::from_millis(250));
        }
    }
    Ok(took)
}

/// Everything that one run found.
struct Outcome {
    moves: u32,
    took: Vec<f64>,
    seconds: f64,
    sent: u32,
    movers: Vec<Found>,
    guests: Vec<Found>,
}

fn run(moves: u32) -> Result<Outcome> {
    let mut scene = Scene::new()?;
    let cameras = scene.publish("door", LOAD)?;
    let mut viewers = Viewers::start()?;
    for _ in 0..MOVERS {
        viewers.play(&Scene::url("door"), Transport::Udp, Some(&scene.viewers))?;
    }
    scene.wait_for_rung("door", MOVERS, "tcx")?;
    let peers: Vec<String> = places(&scene).into_iter().map(|(peer, _)| peer).collect();
    let burst = burst_of(&cameras);
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let (took, guests) = std::thread::scope(|scope| -> Result<_> {
        let guests: Vec<_> = (0..GUESTS)
            .map(|number| {
                let (viewers, stop) = (&scene.viewers, &stop);
                scope.spawn(move || visit(number, burst, viewers, stop))
            })
            .collect();
        let took = moved(&scene, &peers, moves);
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for guest in guests {
            all.extend(guest.join().map_err(|_| anyhow::anyhow!("a guest panicked"))??);
        }
        Ok((took?, all))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(cameras.unsent() == 0, "this machine did not send everything");
    let sent = cameras.stop();
    std::thread::sleep(Duration::from_millis(800));
    let overflows = viewers.overflows(Some(&scene.viewers))?;
    let found = |viewer| Found::new(viewers.account(viewer), &viewers.rtp_info(viewer), overflows);
    let movers = (0..MOVERS).map(found).collect();
    let stream = scene.stream("door").context("the stream")?;
    let track = &stream["tracks"][0];
    ensure!(track["packets"] == sent[0] && track["lost"] == 0, "of {} packets: {track:#}", sent[0]);
    drop(viewers);
    scene.end()?;
    Ok(Outcome { moves, took, seconds, sent: sent[0], movers, guests })
}

impl Outcome {
    fn check(&self) -> Result<()> {
        for (n, found) in self.movers.iter().enumerate() {
            found.check(&format!("mover {n}"))?;
            let last = found.account.numbers.map(|(_, last)| last + 1);
            ensure!(last == Some(self.sent), "mover {n}: the last packet is {last:?} of {}", self.sent);
        }
        ensure!(!self.guests.is_empty(), "no guest came");
        self.guests.iter().enumerate().try_for_each(|(n, found)| found.check(&format!("guest {n}")))
    }

    fn report(&self) -> Result<String> {
        let mut text = String::new();
        let Self { moves, took, seconds, sent, .. } = self;
        writeln!(text, "# Legs that move between worker and kernel under load\n")?;
        let (flag, build) = if cfg!(debug_assertions) { ("", "debug") } else { ("--release ", "release") };
        writeln!(
            text,
            "`{ENV_MOVES}={moves} cargo test {flag}-p msm-tests --test topology legs_that_move` writes this file.\n"
        )?;
        writeln!(
            text,
            "{}. Camera, proxy and viewers each in a network namespace of its own;\n\
             the proxy runs inside the test program, because only there legs can be told where to be.\n",
            record::stamp(build)?
        )?;
        writeln!(
            text,
            "A publisher sends {} packets of {} bytes a second, {} of them back to back at its start. {MOVERS} viewers over UDP are\n\
             moved from rung `tcx` to the worker and back, each {moves} times; a move is over when `/v1/streams` says so of both,\n\
             and the next begins at once. Meanwhile guests join the same stream at the time of its bursts, {GUESTS} at once, stay\n\
             for 60 to 860 ms and leave; they are moved to and fro too. Every packet carries its number.\n",
            LOAD.packets_per_second, LOAD.packet_bytes, LOAD.burst
        )?;
        writeln!(
            text,
            "| | {} | guests |\n|---|{}---|",
            {
                let names: Vec<String> = (1..=MOVERS).map(|n| format!("mover {n}")).collect();
                names.join(" | ")
            },
            "---|".repeat(MOVERS)
        )?;
        let movers = &self.movers;
        let mut line = |what: &str, of: &dyn Fn(&Found) -> u64| -> Result<()> {
            let each: Vec<String> = movers.iter().map(|found| of(found).to_string()).collect();
            let guests: u64 = self.guests.iter().map(of).sum();
            Ok(writeln!(text, "| {what} | {} | {guests} |", each.join(" | "))?)
        };
        line("viewers", &|_| 1)?;
        line("packets", &|found| found.account.packets)?;
        line("missing (gap)", &|found| found.account.lost())?;
        line("doubled", &|found| found.account.doubled)?;
        line("reordered", &|found| found.account.reordered)?;
        line("wrong numbers, SSRC changes", &|found| found.account.wrong + found.account.ssrc_changes)?;
        line("RTP-Info named the first packet", &|found| u64::from(found.is_exact))?;
        line("joined amid a burst: began right behind it", &|found| u64::from(found.met_a_burst()))?;
        let [usual, slow, slowest] = [0.5, 0.99, 1.0].map(|q| quantile(took, q));
        writeln!(
            text,
            "\nThe camera sent {sent} packets and the proxy counted none lost. {moves} moves of both legs took {seconds:.0} s; one move, to\n\
             its answer, {usual:.1} ms (p50), {slow:.1} ms (p99), {slowest:.0} ms (longest)."
        )?;
        Ok(text)
    }
}

#[test]
fn legs_that_move_to_and_fro_under_load_lose_and_double_nothing() -> Result<()> {
    if !granted("legs_that_move_to_and_fro_under_load_lose_and_double_nothing", &[Need::Kernel]) {
        return Ok(());
    }
    let asked = environment(ENV_MOVES).map(|text| text.parse().context(ENV_MOVES)).transpose()?;
    let outcome = run(asked.unwrap_or(MOVES))?;
    let report = outcome.report()?;
    eprintln!("{report}");
    if asked.is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results/moves.md"), &report)?;
    }
    outcome.check()
}
