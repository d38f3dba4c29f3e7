//! What real players do when the proxy is upgraded as planned, and when it is killed and started again, with their
//! UDP legs in the kernel and with the workers: the tables of `docs/results/upgrade.md`.
//!
//! `cargo xtask test topology --all --only what_players_do` writes them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{GstCamera, ServedCamera, Stage, Transport, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::Rung;
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::Player as Probe;
use msm_tests::process::{Scratch, describe, output, wait_for};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::viewer::{Player, Viewer, Watch};

use crate::kernel_house::OUTPUT;
use crate::kernel_scene::{LIMIT, Scene};
use crate::record;

const NEEDS: [Need; 4] =
    [Need::Program("ffmpeg"), Need::Program("gst-launch-1.0"), Need::Program("mpv"), Need::GstRtspServer];

const PLAYERS: [Player; 3] = [Player::Ffmpeg, Player::Rtspsrc, Player::Mpv];
const CAMERA: &str = "10.7.1.2";

/// How long the players are watched afterwards. ffmpeg and mpv give up later than that on nothing we saw.
const WATCHED: Duration = Duration::from_secs(25);
/// After so long without a picture a gst-launch has linked its pads wrongly, as it does at times, and never will.
const UNLINKED: Duration = Duration::from_secs(6);
const LOOK: Duration = Duration::from_millis(40);
/// How long the counters are watched before anything is done.
const USUAL: Duration = Duration::from_secs(5);

/// What is done to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Upgrade,
    Kill,
}

/// What became of one player.
#[derive(Debug, Default)]
struct Fate {
    name: String,
    /// When it ended after the deed, with which status and last words.
    ended: Option<(Duration, String, String)>,
    /// Pictures decoded after the deed, until it ended.
    pictures: usize,
    /// Longest time without one, before the deed and after it.
    pauses: [Duration; 2],
    /// Whether its connection is the one it had.
    same_connection: bool,
    /// Started again when it had ended: its first picture after the deed.
    back: Option<Duration>,
    /// When it was started last, and whether gst-launch had linked nothing the time before.
    started: Option<Instant>,
    was_unlinked: bool,
}

/// What a probe over UDP got after the deed.
#[derive(Debug, Default)]
struct Probed {
    packets: usize,
    missing: usize,
    doubled: usize,
    /// When its RTSP connection ended, and its last packet came, after the deed.
    closed: Option<Duration>,
    last: Duration,
}

/// One deed with the legs on one rung.
#[derive(Debug)]
struct Outcome {
    deed: Deed,
    rung: Rung,
    fates: Vec<Fate>,
    probed: Probed,
    /// Before the deed: packets of all UDP legs by their own counters, and copies by those of the kernel's program.
    carried: (u64, u64),
    /// From the deed until the proxy of after it was ready.
    ready: Duration,
}

/// One player.
struct Seat {
    viewer: Viewer,
    /// Its RTSP connection, as the proxy names it.
    connection: Option<String>,
    /// Pictures at the last look at which there were more, and when that was.
    frames: (usize, Instant),
    pause: Duration,
}

impl Seat {
    fn begin(&mut self) {
        (self.frames, self.pause) = ((self.viewer.frames(), Instant::now()), Duration::ZERO);
    }

    fn look(&mut self) {
        let frames = self.viewer.frames();
        self.pause = self.pause.max(self.frames.1.elapsed());
        if frames > self.frames.0 {
            self.frames = (frames, Instant::now());
        }
    }
}

/// Everything around one deed.
struct Play {
    // Processes go before their network.
    seats: Vec<Seat>,
    probe: Probe,
    proxy: Proxy,
    _camera: ServedCamera,
    scratch: Scratch,
    scene: Scene,
}

/// Peers, transports, rungs and packets of the legs.
fn legs(proxy: &Proxy) -> Vec<(String, bool, String, u64)> {
    let stream = proxy.stream("cam").unwrap_or_default();
    let legs = stream["legs"].as_array().cloned().unwrap_or_default();
    let row = |leg: &serde_json::Value| {
        let rung = leg["rung"].as_str().unwrap_or_default().to_owned();
        let packets = leg["packets"].as_u64().unwrap_or_default();
        (leg["peer"].to_string(), leg["transport"] == "udp", rung, packets)
    };
    legs.iter().map(row).collect()
}

impl Play {
    /// Nothing where it cannot run here.
    fn start(rung: Rung) -> Result<Option<Self>> {
        let Some(scene) = Scene::new("the table of players")? else { return Ok(None) };
        let scratch = Scratch::new("players")?;
        let stage = |node| Stage::inside(scratch.path(), node);
        let fixture = Fixture::make(Profile::H264Aac)?;
        let gst = GstCamera { address: CAMERA, stays: true, ..GstCamera::default() };
        let camera = serve_with_gstreamer(stage(&scene.camera), "camera", &fixture, &gst)?;
        let path = |name: &str| scratch.path().join(name).display().to_string();
        let bpffs = scene.bpffs.path().display().to_string();
        let flags = ["--bpffs", &bpffs, "--max-rung", rung.name(), "--handover", &path("door")];
        let flags = flags.map(str::to_owned).to_vec();
        let pulls = vec![("cam".to_owned(), camera.url.clone())];
        let proxy =
            Proxy::start(stage(&scene.node), "proxy", &Options { pulls, flags, ..Options::default() })?;
        let url = proxy.url_at(OUTPUT[0], "cam");
        let mut seats = Vec::new();
        for player in PLAYERS {
            for transport in Transport::ALL {
                let before = legs(&proxy);
                let name = format!("{}-{}", player.name(), transport.name());
                let profile = fixture.profile;
                let watch = Watch { name, player, transport, url: url.clone(), credentials: None, profile };
                let mut viewer = Viewer::start(stage(&scene.viewer), watch)?;
                viewer.wait_for_frames(25, LIMIT)?;
                let fresh = legs(&proxy).into_iter().find(|leg| !before.iter().any(|old| old.0 == leg.0));
                let connection = fresh.map(|leg| leg.0);
                seats.push(Seat { viewer, connection, frames: (0, Instant::now()), pause: Duration::ZERO });
            }
        }
        let probe = scene.viewer.inside(|| Probe::play(&url, Transport::Udp))??;
        Ok(Some(Self { seats, probe, proxy, _camera: camera, scratch, scene }))
    }

    /// Waits until the legs over UDP are where they are to be, and has the counters say so.
    /// Returns packets of the UDP legs by their own counters, and copies by those of the kernel's program.
    fn carried(&mut self, rung: Rung) -> Result<(u64, u64)> {
        let expected = PLAYERS.len() + 1;
        let on_rung = |proxy: &Proxy| {
            let udp: Vec<_> = legs(proxy).into_iter().filter(|leg| leg.1).collect();
            (udp.len() == expected && udp.iter().all(|leg| leg.2 == rung.name())).then_some(udp)
        };
        let proxy = &self.proxy;
        wait_for(&format!("{expected} legs on {}", rung.name()), LIMIT, || on_rung(proxy))
            .with_context(|| format!("{:?}", legs(proxy)))?;
        let copies = |scene: &Scene| if rung.is_kernel() { scene.copies() } else { Ok(0) };
        let (first, copied) = (legs(&self.proxy), copies(&self.scene)?);
        self.probe.ask("GET_PARAMETER")?;
        self.seats.iter_mut().for_each(Seat::begin);
        let until = Instant::now() + USUAL;
        while Instant::now() < until {
            std::thread::sleep(LOOK);
            self.probe.receive();
            self.seats.iter_mut().for_each(Seat::look);
        }
        let udp = on_rung(&self.proxy).context("a leg over UDP left its rung")?;
        let copied = copies(&self.scene)? - copied;
        let mut sent = 0;
        for (peer, .., packets) in udp {
            let before = first.iter().find(|leg| leg.0 == peer).context("a leg that was there")?.3;
            ensure!(packets > before + 100, "the leg of {peer} got {before}, then {packets} packets");
            sent += packets - before;
        }
        ensure!(
            if rung.is_kernel() { copied >= sent * 9 / 10 } else { self.scene.pins().is_none() },
            "of {sent} packets to viewers over UDP the kernel's program sent {copied}"
        );
        Ok((sent, copied))
    }

    /// Does it, and watches the players meanwhile and afterwards; who ends is started again.
    fn after(mut self, deed: Deed, rung: Rung) -> Result<Outcome> {
        let carried = self.carried(rung)?;
        let Self { seats, probe, proxy, scratch, scene, .. } = &mut self;
        let mut fates: Vec<Fate> = seats.iter().map(Fate::of).collect();
        let mut probed = Probed::default();
        let kept = probe.media.iter().map(Vec::len).collect::<Vec<_>>();
        seats.iter_mut().for_each(Seat::begin);
        let bases: Vec<usize> = seats.iter().map(|seat| seat.frames.0).collect();
        let begun = Instant::now();
        let ready = std::thread::scope(|scope| -> Result<Duration> {
            let stage = Stage::inside(scratch.path(), &scene.node);
            let doing = scope.spawn(move || perform(deed, proxy, stage, begun));
            let mut asked = Instant::now();
            let mut got = kept.iter().sum::<usize>();
            while begun.elapsed() < WATCHED {
                std::thread::sleep(LOOK);
                probe.receive();
                let now = probe.media.iter().map(Vec::len).sum::<usize>();
                if now > got {
                    (got, probed.last) = (now, begun.elapsed());
                }
                if probe.closed && probed.closed.is_none() {
                    probed.closed = Some(begun.elapsed());
                }
                if !probe.closed && asked.elapsed() > Duration::from_secs(8) {
                    asked = Instant::now();
                    probe.ask("GET_PARAMETER").ok();
                }
                for ((seat, fate), base) in seats.iter_mut().zip(&mut fates).zip(&bases) {
                    fate.look(seat, *base, begun)?;
                }
            }
            doing.join().map_err(|_| anyhow::anyhow!("the deed panicked"))?
        })?;
        for (track, kept) in kept.into_iter().enumerate() {
            let sequences: Vec<u16> = probe.packets(track).iter().map(|packet| packet.sequence).collect();
            // With the last one before, so that what is missing between the two counts too.
            let mut places: Vec<i32> = sequences[kept.saturating_sub(1)..]
                .iter()
                .scan((0, sequences[kept.saturating_sub(1)]), |(place, last), sequence| {
                    *place += i32::from(sequence.wrapping_sub(*last) as i16);
                    *last = *sequence;
                    Some(*place)
                })
                .collect();
            probed.packets += places.len() - 1;
            places.sort_unstable();
            let steps = places.windows(2).map(|pair| pair[1] - pair[0]);
            probed.missing += steps.clone().map(|step| (step - 1).max(0) as usize).sum::<usize>();
            probed.doubled += steps.filter(|step| *step == 0).count();
        }
        let now = legs(&self.proxy);
        for (fate, seat) in fates.iter_mut().zip(&self.seats) {
            fate.pauses[1] = seat.pause;
            fate.same_connection =
                seat.connection.as_ref().is_some_and(|peer| now.iter().any(|leg| leg.0 == *peer));
        }
        Ok(Outcome { deed, rung, fates, probed, carried, ready })
    }
}

/// Returns when the proxy of after it was ready.
fn perform(deed: Deed, proxy: &mut Proxy, stage: Stage<'_>, begun: Instant) -> Result<Duration> {
    match deed {
        Deed::Upgrade => {
            proxy.upgrade(stage, "proxy-next")?;
        }
        Deed::Kill => {
            proxy.process.kill();
            // Nobody runs: it starts by itself.
            proxy.process = proxy.next(stage, "proxy-next").start(stage.scratch)?;
            wait_for("the next proxy", LIMIT, || proxy.get("/readyz").ok())
                .with_context(|| proxy.process.tail())?;
        }
    }
    Ok(begun.elapsed())
}

impl Fate {
    fn of(seat: &Seat) -> Self {
        let name = seat.viewer.watch().name.replace('-', " over ");
        Self { name, pauses: [seat.pause, Duration::ZERO], ..Self::default() }
    }

    /// `base`: pictures before the deed. Writes down that a player ended, and starts it again.
    fn look(&mut self, seat: &mut Seat, base: usize, begun: Instant) -> Result<()> {
        if self.ended.is_some() {
            if self.back.is_none() {
                if seat.viewer.frames() > 0 {
                    self.back = Some(begun.elapsed());
                } else if seat.viewer.process.poll().is_some() {
                    // Nobody listened yet.
                    self.start_again(seat)?;
                } else if seat.viewer.watch().player == Player::Rtspsrc
                    && self.started.is_some_and(|started| started.elapsed() > UNLINKED)
                {
                    self.was_unlinked = true;
                    self.start_again(seat)?;
                }
            }
            return Ok(());
        }
        seat.look();
        let status = seat.viewer.process.poll();
        self.pictures = seat.viewer.frames() - base;
        if let Some(status) = status {
            let log = seat.viewer.process.log();
            let mut lines = log.lines().rev().filter(|line| !line.trim().is_empty() && !status.success());
            let last = lines.clone().next().unwrap_or_default();
            let words = lines.find(|line| line.starts_with("Could not")).unwrap_or(last);
            let words = words.trim().replace('|', "/").chars().take(90).collect();
            self.ended = Some((begun.elapsed(), describe(status), words));
            eprintln!("{} {:?}\n{}", self.name, self.ended, seat.viewer.process.tail());
            self.start_again(seat)?;
        }
        Ok(())
    }

    fn start_again(&mut self, seat: &mut Seat) -> Result<()> {
        self.started = Some(Instant::now());
        seat.viewer.relaunch()
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl Outcome {
    fn is_clean(&self) -> bool {
        self.probed.packets > 0 && self.probed.missing == 0 && self.probed.doubled == 0
    }

    fn check(&self) -> Result<()> {
        if self.deed == Deed::Upgrade {
            ensure!(self.is_clean() && self.probed.closed.is_none(), "the probe: {self:#?}");
            for fate in &self.fates {
                let is_whole = fate.ended.is_none() && fate.same_connection && fate.pictures > 0;
                ensure!(is_whole, "{fate:?}: {self:#?}");
            }
        } else if self.rung.is_kernel() {
            // It went on beyond the life of its connection, and beyond the start of the next proxy.
            ensure!(self.is_clean() && self.probed.last > self.ready, "the probe: {self:#?}");
            ensure!(self.probed.closed.is_some_and(|closed| closed < self.probed.last), "{self:#?}");
        }
        Ok(())
    }

    fn heading(&self) -> String {
        let place = if self.rung.is_kernel() { "in the kernel" } else { "with the workers" };
        match self.deed {
            Deed::Upgrade => format!("Planned upgrade, UDP legs {place}"),
            Deed::Kill => format!("`kill -9`, UDP legs {place}"),
        }
    }

    fn table(&self, text: &mut String) -> Result<()> {
        writeln!(text, "### {}\n", self.heading())?;
        let (sent, copied) = self.carried;
        writeln!(
            text,
            "In the {} s before, the UDP legs got {sent} packets by their counters on `{}`, and the kernel's program made\n\
             {copied} copies by its own. The proxy of after it was ready {} ms after it began.\n",
            USUAL.as_secs(),
            self.rung.name(),
            self.ready.as_millis()
        )?;
        if self.deed == Deed::Upgrade {
            writeln!(
                text,
                "| player | what it did | pictures afterwards | longest pause | longest pause before |"
            )?;
            writeln!(text, "|---|---|---|---|---|")?;
        } else {
            writeln!(
                text,
                "| player | what it did | pictures until then | its last words | started again at once: first picture |"
            )?;
            writeln!(text, "|---|---|---|---|---|")?;
        }
        for fate in &self.fates {
            writeln!(text, "{}", self.row(fate))?;
        }
        let Probed { packets, missing, doubled, closed, last } = &self.probed;
        let closed = closed.map_or("lived on".to_owned(), |at| format!("ended after {}", seconds(at)));
        writeln!(
            text,
            "\nA probe over UDP beside them, which keeps its sockets open whatever happens: its RTSP connection {closed}, it\n\
             got {packets} packets, {missing} missing and {doubled} doubled between the first and the last of them, the last {} after it\n\
             began.\n",
            seconds(*last)
        )?;
        Ok(())
    }

    fn row(&self, fate: &Fate) -> String {
        let [usual, pause] = fate.pauses.map(seconds);
        let stands = fate.pauses[1] + Duration::from_secs(2) >= WATCHED;
        let did = match &fate.ended {
            Some((after, status, _)) => format!("ended after {} ({status})", seconds(*after)),
            None if fate.same_connection && !stands => "played on".to_owned(),
            None if stands => "stood still".to_owned(),
            None => "connected again".to_owned(),
        };
        if self.deed == Deed::Upgrade {
            return format!("| {} | {did} | {} | {pause} | {usual} |", fate.name, fate.pictures);
        }
        let words = fate.ended.as_ref().map_or("", |(.., words)| words);
        let words = if words.is_empty() { "-".to_owned() } else { format!("`{words}`") };
        let note = if fate.was_unlinked { ", its pads linked at a second start only" } else { "" };
        let back = fate.back.map_or("-".to_owned(), |back| format!("{} after the kill{note}", seconds(back)));
        format!("| {} | {did} | {} | {words} | {back} |", fate.name, fate.pictures)
    }
}

fn text(outcomes: &[Outcome]) -> Result<String> {
    let mut text = String::new();
    let versions = [("ffmpeg", "-version"), ("gst-launch-1.0", "--version"), ("mpv", "--version")];
    let versions = versions.map(|(program, flag)| {
        let said = output(program, &[flag]).unwrap_or_default();
        said.lines().next().unwrap_or_default().split(" Copyright").next().unwrap_or_default().to_owned()
    });
    writeln!(text, "`cargo xtask test topology --all --only what_players_do` writes this section.\n")?;
    writeln!(
        text,
        "{}.\nCamera, proxy and players each in a network namespace of its own; a camera of GStreamer's RTSP\n\
         server (H.264 and AAC, 25 pictures a second) that the proxy pulls over UDP, and that goes on sending when its RTSP\n\
         connection is lost, until the session times out; six players at once. {}.\n",
        record::stamp(record::build()?)?,
        versions.join(", ")
    )?;
    writeln!(
        text,
        "Each player is watched for {} s afterwards; a pause is the longest time without another decoded picture.\n\
         mpv's pictures are counted by the size of the file that it writes in blocks. After `kill -9` the proxy is started\n\
         again at once on the same ports; a player that ended is started again by the test at once too.\n",
        WATCHED.as_secs()
    )?;
    for outcome in outcomes {
        outcome.table(&mut text)?;
    }
    writeln!(
        text,
        "So after `kill -9` it is the RTSP connection that ends a player, on either rung: ffmpeg and mpv take its end for that\n\
         of the stream, over UDP too; rtspsrc does over TCP, and over UDP opens it again once, which nobody answers as long as\n\
         no process listens. None of them plays on by itself, though what the kernel serves goes on coming, as the probe has\n\
         it; whoever starts them again, starts them against the new process. A planned upgrade ends none."
    )?;
    Ok(text)
}

#[test]
#[ignore = "five minutes; cargo xtask test topology --all --only what_players_do"]
fn what_players_do_when_the_proxy_is_upgraded_or_killed() -> Result<()> {
    if !granted("the table of upgrades", &NEEDS) {
        return Ok(());
    }
    let mut outcomes = Vec::new();
    for deed in [Deed::Upgrade, Deed::Kill] {
        for rung in [Rung::Tcx, Rung::User] {
            let Some(play) = Play::start(rung)? else { return Ok(()) };
            outcomes.push(play.after(deed, rung)?);
        }
    }
    let text = text(&outcomes)?;
    eprintln!("{text}");
    record::put("upgrade.md", "What real players do", &text)?;
    outcomes.iter().try_for_each(Outcome::check)
}
