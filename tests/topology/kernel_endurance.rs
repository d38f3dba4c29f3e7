//! DP3: legs join and leave without end beside legs that stay, under traffic, and nothing is lost, kept or grown.
//!
//! `cargo xtask test endurance --record` runs a million joins and as many leaves and writes its part of
//! `docs/results/endurance.md`; with `--sanitizer` the proxy is one that a sanitizer watches. CI runs a short cut.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::ground::{Fill, fill_of};
use msm_tests::privilege::environment;
use msm_tests::probe::Load;
use msm_tests::process::{output, wait_for};

use crate::kernel_guests::{GUESTS, Party, STEADY, STREAMS, Stayed, Storm, Visits, cpu_seconds};
use crate::kernel_scene::{LIMIT, Scene};

/// Joins in all and a second, `1000000:1000`.
const ENV_ENDURANCE: &str = "MSM_TEST_ENDURANCE";
/// What the proxy was built with, for the record: `release`, or the name of a sanitizer.
const ENV_BUILD: &str = "MSM_TEST_BUILD";
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results/endurance.md");
/// 2,000 packets a second of all streams together, some of them back to back.
const LOAD: Load = Load { packet_bytes: 300, packets_per_second: 250, burst: 20 };
/// A run that is told of in parts has so many joins at least.
const LONG: u64 = 10_000;
/// Growth of the proxy's memory from the second tenth to the end, in bytes: an allocator's own, not one per join.
const GROWTH: u64 = 4 << 20;
const PARTS: u64 = 10;
/// Between two looks at the tables: each reads thousands of entries.
const PACE: Duration = Duration::from_millis(300);

/// From 10 to 310 ms: guests leave while the worker carries them, on their way to the kernel, from there, and on
/// their way back.
fn stay(n: u64) -> Duration {
    Duration::from_millis(10 + n * 7_919 % 301)
}

/// The proxy at one moment.
#[derive(Debug, Default, Clone, Copy)]
struct Look {
    done: u64,
    seconds: f64,
    /// Bytes of memory that are no file's.
    anonymous: u64,
    /// Guests in the kernel.
    carried: usize,
}

/// What must be the same at the end as at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    tables: Fill,
    descriptors: usize,
    sockets: usize,
}

impl Held {
    /// What the proxy opened for its start and has closed since may be missing; nothing may have come.
    fn is_no_more_than(&self, before: &Self) -> bool {
        (self.tables, self.sockets) == (before.tables, before.sockets)
            && self.descriptors <= before.descriptors
    }
}

struct Outcome {
    build: Option<String>,
    storm: Storm,
    visits: Visits,
    stayed: Stayed,
    looks: Vec<Look>,
    before: Held,
    after: Held,
    cpu: f64,
    log: String,
}

fn held(party: &Party) -> Result<Held> {
    let pid = party.proxy.process.pid();
    let links = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect::<Vec<_>>();
    let sockets = links.iter().filter(|link| link.to_string_lossy().starts_with("socket:")).count();
    Ok(Held { tables: fill_of(pid)?, descriptors: links.len(), sockets })
}

fn anonymous(party: &Party) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", party.proxy.process.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Looks at the proxy every second until it is told to stop, and says every tenth of the way how far it is.
fn watch(party: &Party, total: u64, done: &AtomicU64, stop: &AtomicBool) -> Vec<Look> {
    let (mut looks, mut told, start) = (Vec::new(), 0, Instant::now());
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        let carried = party.on("tcx").unwrap_or_default().saturating_sub(STREAMS * STEADY);
        let (done, seconds) = (done.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
        let look = Look { done, seconds, anonymous: anonymous(party).unwrap_or_default(), carried };
        if done * PARTS / total > told {
            told = done * PARTS / total;
            eprintln!("{look:?}");
        }
        looks.push(look);
        if is_last {
            return looks;
        }
        // A second, unless it is over before.
        for _ in 0..20 {
            if !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn run(scene: &Scene, storm: Storm, build: Option<String>) -> Result<Outcome> {
    let party = Party::start(scene, "endurance", LOAD)?;
    let mut before = held(&party)?;
    // The port of each camera closes to strangers a moment after its flow is there.
    wait_for("ports that are closed to strangers", LIMIT, || {
        std::thread::sleep(PACE);
        let now = held(&party).ok()?;
        let is_settled = std::mem::replace(&mut before, now) == now;
        (is_settled && now.tables.ports >= STREAMS).then_some(())
    })?;
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let cpu = cpu_seconds(&party.proxy)?;
    let (visits, looks) = std::thread::scope(|scope| {
        let looks = scope.spawn(|| watch(&party, storm.total, &done, &stop));
        let visits = party.storm(scene, storm, &done);
        stop.store(true, Ordering::Relaxed);
        (visits, looks.join())
    });
    let (visits, looks) = (visits?, looks.map_err(|_| anyhow::anyhow!("the watch panicked"))?);
    let cpu = cpu_seconds(&party.proxy)? - cpu;
    // What departed rests for a moment before it is free.
    let mut after = held(&party)?;
    let is_back = wait_for("everything to be as before", LIMIT, || {
        std::thread::sleep(PACE);
        after = held(&party).ok()?;
        after.is_no_more_than(&before).then_some(())
    });
    if let Err(error) = is_back {
        eprintln!("{error:#}: {before:?}, {after:?}");
    }
    let (stayed, log) = party.end(scene)?;
    Ok(Outcome { build, storm, visits, stayed, looks, before, after, cpu, log })
}

impl Outcome {
    fn is_long(&self) -> bool {
        self.storm.total >= LONG
    }

    fn is_sanitized(&self) -> bool {
        self.build.as_ref().is_some_and(|build| build != "release")
    }

    /// Lines of the proxy in which a sanitizer speaks.
    fn findings(&self) -> usize {
        self.log.lines().filter(|line| line.contains("Sanitizer:")).count()
    }

    /// The part of the run that was over at each look: tenths.
    fn part(&self, part: u64) -> Vec<Look> {
        let of = |look: &&Look| (look.done * PARTS / self.storm.total).min(PARTS - 1) == part;
        self.looks.iter().filter(of).copied().collect()
    }

    fn growth(&self) -> u64 {
        let from = self.part(1).first().map_or(0, |look| look.anonymous);
        self.looks.last().map_or(0, |look| look.anonymous.saturating_sub(from))
    }

    fn check(&self) -> Result<()> {
        ensure!(self.findings() == 0, "the sanitizer found:\n{}", self.log);
        self.stayed.check()?;
        self.visits.check()?;
        ensure!(self.after.is_no_more_than(&self.before), "before {:?}, after {:?}", self.before, self.after);
        ensure!(
            self.looks.iter().any(|look| look.carried > 0) || !self.is_long(),
            "no guest was in the kernel"
        );
        if self.is_long() {
            // Numbers that were never given back would be used up by now: there are fewer than joins.
            let last = self.part(PARTS - 1);
            ensure!(last.iter().any(|look| look.carried > 0), "no guest was in the kernel at the end");
        }
        if self.is_long() && !self.is_sanitized() {
            let grown = self.growth();
            ensure!(grown <= GROWTH, "memory has grown by {grown} bytes: {:?}", self.looks.last());
        }
        Ok(())
    }

    fn report(&self) -> Result<String> {
        let Visits { done, seconds, .. } = &self.visits;
        let build = self.build.as_deref().unwrap_or("of this build");
        let mut text = format!("## {build}\n\n");
        let out = &mut text;
        writeln!(
            out,
            "{}, {} cores, Linux {}, load average {} at the end.\n",
            output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?.trim(),
            std::thread::available_parallelism()?,
            output("uname", &["-r"])?.trim(),
            std::fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default(),
        )?;
        let sum = |value| self.visits.sum(value);
        let Stayed { packets, lost, doubled, reordered, wrong } = self.stayed;
        let Held { tables, descriptors, sockets } = self.after;
        let was = self.before;
        let carried = self.looks.iter().map(|look| look.carried).sum::<usize>() as f64;
        let joined = sum(|visit| visit.packets);
        writeln!(out, "| | |\n|---|---|")?;
        for (name, value) in [
            (
                "joins, and as many leaves",
                format!("{} in {seconds:.0} s: {:.0}/s", done.len(), done.len() as f64 / seconds),
            ),
            ("not served", self.visits.failed.values().sum::<u64>().to_string()),
            ("those who stayed: packets", packets.to_string()),
            ("lost, doubled, reordered, wrong", format!("{lost}, {doubled}, {reordered}, {wrong}")),
            ("guests: packets", joined.to_string()),
            ("lost, doubled", format!("{}, {}", sum(|visit| visit.lost), sum(|visit| visit.doubled))),
            ("first packet is not that of RTP-Info", sum(|visit| u64::from(visit.inexact)).to_string()),
            ("guests in the kernel at once, on average", format!("{:.0}", carried / self.looks.len() as f64)),
            ("CPU of the proxy", format!("{:.2} cores", self.cpu / seconds)),
            ("flows before, after", format!("{}, {}", was.tables.flows, tables.flows)),
            ("slots of legs in them", format!("{}, {}", was.tables.legs, tables.legs)),
            ("open gates", format!("{}, {}", was.tables.gates, tables.gates)),
            ("ports", format!("{}, {}", was.tables.ports, tables.ports)),
            ("descriptors of the proxy", format!("{}, {}", was.descriptors, descriptors)),
            ("sockets of the proxy", format!("{}, {}", was.sockets, sockets)),
            ("words of a sanitizer in the log", self.findings().to_string()),
        ] {
            writeln!(out, "| {name} | {value} |")?;
        }
        writeln!(out, "\n| joins | after | anonymous memory | guests in the kernel |\n|---|---|---|---|")?;
        let parts = (0..PARTS).filter_map(|part| self.part(part).first().copied());
        for look in parts.chain(self.looks.last().copied()) {
            let mib = look.anonymous as f64 / f64::from(1 << 20);
            writeln!(out, "| {} | {:.0} s | {mib:.2} MiB | {} |", look.done, look.seconds, look.carried)?;
        }
        Ok(text)
    }
}

/// Puts a report into the place of the former one of the same build.
fn record(report: &str) -> Result<()> {
    let head = format!(
        "# A million joins and leaves\n\n\
             `cargo xtask test endurance --record` writes the part of the release build,\n\
             `cargo xtask test endurance --record --sanitizer address` that of the build with AddressSanitizer.\n\n\
             {STREAMS} published streams, each {} packets/s of {} bytes, {} of them back to back once a second; {STEADY} viewers \
             of each stay, on\nrung `tcx`. Guests come to one stream after the other: SETUP, PLAY, 10 to 310 ms of media, \
             TEARDOWN, over {GUESTS} RTSP\nconnections. They leave while a worker carries them, on their way to the kernel, \
             from there, and on their way back.\nEvery packet carries its number; everybody accounts for each. Tables are \
             read by system calls past the proxy.\n",
        LOAD.packets_per_second, LOAD.packet_bytes, LOAD.burst
    );
    let former = std::fs::read_to_string(RESULTS).unwrap_or_default();
    let own = report.lines().next().unwrap_or_default();
    let others = former.split("\n## ").skip(1).map(|part| format!("## {}", part.trim_end()));
    let mut parts: Vec<String> = others.filter(|part| part.lines().next() != Some(own)).collect();
    parts.push(report.trim_end().to_owned());
    parts.sort_by_key(|part| !part.starts_with("## release"));
    std::fs::write(RESULTS, format!("{head}\n{}\n", parts.join("\n\n")))?;
    Ok(())
}

#[test]
fn legs_that_join_and_leave_without_end_disturb_nobody_and_leave_nothing_behind() -> Result<()> {
    let test = "legs_that_join_and_leave_without_end_disturb_nobody_and_leave_nothing_behind";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let asked = environment(ENV_ENDURANCE);
    let (total, rate) = match asked.as_ref().map(|asked| asked.split_once(':')) {
        None => (400, 200),
        Some(Some((total, rate))) => (total.parse()?, rate.parse()?),
        Some(None) => bail!("{ENV_ENDURANCE} is JOINS:RATE"),
    };
    let outcome = run(&scene, Storm { rate, total, seats: GUESTS, stay }, environment(ENV_BUILD))?;
    let report = outcome.report()?;
    eprintln!("{report}");
    if outcome.build.is_some() {
        record(&report)?;
    }
    outcome.check()
}
