//! B16, the proxy's part: what a stream and a leg on the fast path cost in memory, and whether viewers that
//! come and go leave something behind.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::bench::sink::Sink;
use msm_tests::process::wait_for;
use serde_json::json;

use super::catalogue::{AUDIO, Run};
use super::course::Course;
use super::generator::{Generator, Shape};
use super::proxy::Proxy;
use super::report::{Outcome, Target};

const PODS: usize = 64;
/// Streams that are published, and how many viewers each has at least, one step after the other.
const STEPS: [(usize, usize); 5] = [(64, 0), (64, 1), (64, 16), (1_000, 0), (1_000, 4)];
/// Viewers that come and go before the first look, until tables of what departed lately have their size, and between
/// the two.
const CYCLES: (usize, usize) = (12_000, 10_000);
const UNIT: &str = "bytes";

/// What one process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    rss: u64,
    anonymous: u64,
    /// All its maps.
    maps: u64,
}

impl Run {
    /// B16: memory per stream and leg.
    pub(crate) fn b16(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B16", "Memory per stream and leg on the fast path");
        let course = Course::open(&self.programs, PODS, false)?;
        // In a proxy of its own: memory that is given back is used again before more is asked for.
        let connection = connections(&course)?;
        let proxy = Proxy::start(&course, "0,1", "tcx")?;
        std::thread::sleep(Duration::from_secs(1));
        let mut rig = Rig::new(&course, &proxy);
        let mut steps = vec![(0, 0, rig.look()?)];
        for (streams, viewers) in STEPS {
            rig.grow(streams, viewers)?;
            let held = rig.look()?;
            eprintln!("B16: {streams} streams, {} legs: {held:?}", rig.viewers.len());
            steps.push((streams, rig.viewers.len(), held));
        }
        report(&steps, connection, &maps(proxy.process.pid())?, &mut outcome);
        rig.cycles(CYCLES.0)?;
        let before = rig.look()?;
        rig.cycles(CYCLES.1)?;
        let after = rig.look()?;
        let growth = 100.0 * (after.anonymous as f64 - before.anonymous as f64) / before.anonymous as f64;
        eprintln!("B16: after {} cycles {after:?}, before {before:?}", CYCLES.1);
        outcome.raw.push(json!({"cycles": CYCLES.1, "anonymous_before": before.anonymous,
            "anonymous_after": after.anonymous, "maps_before": before.maps, "maps_after": after.maps}));
        let what = format!("rtp-proxy: growth of anonymous memory over {} joins and leaves", CYCLES.1);
        outcome.find(&what, "%", vec![growth], Target::AtMost(1.0));
        let maps = after.maps as f64 - before.maps as f64;
        outcome.find(
            "rtp-proxy: growth of the maps meanwhile",
            "bytes in all",
            vec![maps],
            Target::AtMost(0.0),
        );
        Ok(outcome)
    }
}

/// The proxy under load.
struct Rig<'a> {
    course: &'a Course,
    proxy: &'a Proxy<'a>,
    publishers: Vec<Rtsp>,
    generators: Vec<Generator>,
    viewers: Vec<(Rtsp, Sink)>,
    /// How many of them each stream has.
    watched: Vec<usize>,
}

impl<'a> Rig<'a> {
    fn new(course: &'a Course, proxy: &'a Proxy<'a>) -> Self {
        Self {
            course,
            proxy,
            publishers: Vec::new(),
            generators: Vec::new(),
            viewers: Vec::new(),
            watched: Vec::new(),
        }
    }

    fn sink(&self, pod: usize) -> Result<Sink> {
        let any = std::net::IpAddr::from([0, 0, 0, 0]);
        let sink = self.course.topology.pods[pod].node.inside(|| Sink::open(any))??;
        sink.drop_all()?;
        Ok(sink)
    }

    /// More streams, then more viewers of each.
    fn grow(&mut self, streams: usize, viewers: usize) -> Result<()> {
        for number in self.publishers.len()..streams {
            let (publisher, source, to) = self.proxy.publish(&format!("bench{number}"))?;
            self.publishers.push(publisher);
            self.watched.push(0);
            self.generators.push(Generator::from_sockets(vec![(source, to)], Shape::Single, AUDIO)?);
        }
        self.flow(4)?;
        let pods = &self.course.topology.pods;
        for stream in 0..streams {
            for viewer in self.watched[stream]..viewers {
                let pod = (stream + viewer) % pods.len();
                let sink = self.sink(pod)?;
                let session = self.proxy.play(&format!("bench{stream}"), &pods[pod], &sink)?;
                self.viewers.push((session, sink));
                self.watched[stream] += 1;
            }
        }
        Ok(())
    }

    /// So many packets of every stream.
    fn flow(&mut self, packets: usize) -> Result<()> {
        for _ in 0..packets {
            for generator in &mut self.generators {
                generator.burst()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What the proxy holds once every leg is in the kernel.
    fn look(&mut self) -> Result<Held> {
        let legs = self.viewers.len();
        let mut seen = 0;
        let moved = wait_for("every leg to be in the kernel", Duration::from_secs(60), || {
            self.flow(4).ok()?;
            seen = self.proxy.legs_on("tcx").ok()?;
            (seen >= legs).then_some(())
        });
        moved.with_context(|| format!("{seen} of {legs} legs are there"))?;
        self.flow(50)?;
        let pid = self.proxy.process.pid();
        let maps = maps(pid)?.iter().map(|map| map.bytes).sum();
        let (rss, anonymous) = resident(pid)?;
        Ok(Held { rss, anonymous, maps })
    }

    /// Viewers of the first streams come and go, one after the other, while packets flow.
    fn cycles(&mut self, count: usize) -> Result<()> {
        let sinks = (0..PODS).map(|pod| self.sink(pod)).collect::<Result<Vec<_>>>()?;
        for number in 0..count {
            let pod = number % PODS;
            let stream = number % self.generators.len();
            let session =
                self.proxy.play(&format!("bench{stream}"), &self.course.topology.pods[pod], &sinks[pod])?;
            for _ in 0..2 {
                self.generators[stream].burst()?;
            }
            drop(session);
            if number % 1_000 == 999 {
                self.flow(2)?;
                let (_, anonymous) = resident(self.proxy.process.pid())?;
                eprintln!("B16: {} of {count} joins and leaves, {anonymous} bytes", number + 1);
            }
        }
        // What departed rests before it is used again.
        std::thread::sleep(Duration::from_secs(2));
        self.flow(10)
    }
}

/// Bytes of one RTSP connection that has asked for nothing but OPTIONS.
fn connections(course: &Course) -> Result<f64> {
    const MANY: usize = 2_048;
    let proxy = Proxy::start(course, "0,1", "tcx")?;
    std::thread::sleep(Duration::from_secs(1));
    let (_, before) = resident(proxy.process.pid())?;
    let pods = &course.topology.pods;
    let idle = (0..MANY).map(|n| proxy.connect(&pods[n % PODS])).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(1));
    let (_, after) = resident(proxy.process.pid())?;
    drop(idle);
    Ok((after as f64 - before as f64) / MANY as f64)
}

/// Resident bytes of a process, and the anonymous ones of them.
fn resident(pid: u32) -> Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).with_context(|| name.to_owned())?;
        Ok(1024 * line.trim().trim_end_matches(" kB").trim().parse::<u64>()?)
    };
    Ok((field("VmRSS:")?, field("RssAnon:")?))
}

/// One map of a process.
#[derive(Debug, Clone, Copy)]
struct Map {
    entries: u64,
    bytes: u64,
}

/// The maps that a process holds, as the kernel accounts for them.
fn maps(pid: u32) -> Result<Vec<Map>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| {
            text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(entries), Some(bytes)) =
            (field("map_id"), field("max_entries"), field("memlock"))
        {
            found.insert(id, Map { entries, bytes });
        }
    }
    Ok(found.into_values().collect())
}

fn report(steps: &[(usize, usize, Held)], connection: f64, maps: &[Map], outcome: &mut Outcome) {
    let mut table = String::from(
        "`rtp-proxy standalone`, one track per stream, every viewer a leg in the kernel and an RTSP connection; packets \
         flow. Maps as the kernel accounts for them.\n\n\
         | streams | legs | resident KiB | of it anonymous | maps KiB |\n|---|---|---|---|---|\n",
    );
    for (streams, legs, held) in steps {
        let _ = writeln!(
            table,
            "| {streams} | {legs} | {} | {} | {} |",
            held.rss / 1024,
            held.anonymous / 1024,
            held.maps / 1024
        );
        outcome
            .raw
            .push(json!({"streams": streams, "legs": legs, "rss": held.rss, "anonymous": held.anonymous,
            "maps": held.maps}));
    }
    outcome.tables.push(table);
    // Between two steps: bytes by which it grew, and by how many streams or legs.
    let grown = |from: usize, to: usize, by: usize| {
        (steps[to].2.anonymous as f64 - steps[from].2.anonymous as f64) / by as f64
    };
    let last = steps.len() - 1;
    for (from, to, by) in [(0, 1, steps[1].0), (3, 4, steps[4].0 - steps[3].0)] {
        let what = format!(
            "rtp-proxy: per stream, {} to {}, its RTSP connection included",
            steps[from].0, steps[to].0
        );
        outcome.find(&what, UNIT, vec![grown(from, to, by)], Target::Nothing);
    }
    outcome.find("rtp-proxy: per RTSP connection without a session", UNIT, vec![connection], Target::Nothing);
    for (from, to) in [(2, 3), (4, 5)] {
        let (few, many) = (steps[from].1, steps[to].1);
        let viewer = grown(from, to, many - few);
        let what = format!("rtp-proxy: per viewer, {few} to {many}, its RTSP connection included");
        outcome.find(&what, UNIT, vec![viewer], Target::Nothing);
        let what = format!("rtp-proxy: per leg and session, {few} to {many}");
        outcome.find(&what, UNIT, vec![viewer - connection], Target::AtMost(4096.0));
    }
    // Tables of legs are arrays, as long as the process lives; they are those of most entries.
    let most = u64::from(msm_fastpath::limits::LEGS);
    let kernel = maps.iter().filter(|m| m.entries == most).map(|m| m.bytes as f64 / m.entries as f64).sum();
    let what = "kernel: per leg, its slot, gate and counters of all cores";
    outcome.find(what, UNIT, vec![kernel], Target::AtMost(200.0));
    let all = (steps[last].2.maps as f64 - steps[0].2.maps as f64) / steps[last].1 as f64;
    outcome.find("kernel: by which the maps grew per leg", UNIT, vec![all], Target::AtMost(200.0));
    outcome.draw_found("kernel-b16.svg", "B16: memory per stream and leg on the fast path", UNIT);
}
