//! B17: how many streams a core carries.
//!
//! Each contender is given more and more streams for four viewers until it loses a packet or the busiest core
//! has less than a fifth left. There it stays for the rounds, in which its cost is measured. Relays have core 0 to
//! themselves and the generator is on core 1; on the fast path the sender is the data path, and what it costs
//! to send is not ours, but takes its share of the same core.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use msm_tests::bench::cpu::KernelThreads;
use serde_json::json;

use super::catalogue::{AUDIO, Entry, Run, SEGMENTING, TOKIO, VIDEO, ours};
use super::course::{Course, Traffic, floor_name};
use super::fast::{Fast, Mode};
use super::generator::Shape;
use super::lane::Lane;
use super::report::{Basis, Outcome, Target};
use super::rounds::case;
use super::scale::backlog_of;
use super::topology::{Kind, Topology};
use super::{proxy, rtpengine};

const LEGS: usize = 4;
/// Share of a core that may be used.
const SHARE: f64 = 0.8;
/// Sources are asked so often what is due.
const TICK: Duration = Duration::from_millis(1);
/// rtpengine gives up a port at which more than 50 packets wait, and does not come back from it: it is asked from
/// below, in these steps.
const GENTLE: f64 = 1.25;
/// Runs that confirm the end of a search, and lower loads that are tried where one of them does not.
const CONFIRMATIONS: usize = 3;
const LOWER: usize = 16;
/// Streams of the user path: a proxy takes 1,024, and a thousand viewers of one address at once.
const PUBLISHED: usize = 960;
const LEGS_PER_CORE: &str = "legs per core";

/// One kind of stream.
struct Kindred {
    label: &'static str,
    file: &'static str,
    shape: Shape,
    size: usize,
    /// Packets per second of one stream.
    rate: u32,
    merged: bool,
}

const AUDIO_STREAMS: Kindred = Kindred {
    label: "audio",
    file: "kernel-b17-audio.svg",
    shape: Shape::Single,
    size: AUDIO,
    rate: 50,
    merged: false,
};
const VIDEO_STREAMS: Kindred = Kindred {
    label: "video",
    file: "kernel-b17-video.svg",
    shape: Shape::Burst(32),
    size: VIDEO,
    rate: 417,
    merged: false,
};
const SUPER_STREAMS: Kindred = Kindred {
    label: "video in super-packets",
    file: "kernel-b17-super.svg",
    shape: Shape::Super(32),
    size: VIDEO,
    rate: 417,
    merged: true,
};

impl Run {
    /// B17: streams per core, and a table full of them.
    pub(crate) fn b17(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B17", "Streams per node");
        let _backlog = backlog_of(16_384)?;
        for streams in [AUDIO_STREAMS, VIDEO_STREAMS, SUPER_STREAMS] {
            if let Err(reason) = self.carried(&streams, &mut outcome) {
                outcome.skipped.push((streams.label.to_owned(), format!("{reason:#}")));
            }
        }
        if let Err(reason) = self.full_table(&mut outcome) {
            outcome.skipped.push(("65,536 flows".to_owned(), format!("{reason:#}")));
        }
        Ok(outcome)
    }

    fn carried(&mut self, streams: &Kindred, outcome: &mut Outcome) -> Result<()> {
        let Kindred { shape, size, rate, merged, .. } = *streams;
        let label =
            format!("{}: {size} B, {shape}, {rate} packets/s per stream, each for 4 viewers", streams.label);
        if !self.plan.runs(&label) {
            return Ok(());
        }
        let course = Course::open(&self.programs, LEGS, false)?;
        outcome.offloads = course.topology.offloads()?;
        let paced = Traffic { shape, size, legs: LEGS, merged, rate: Some(rate) };
        let most = if shape == Shape::Single { 4_096 } else { 2_048 };
        let mut entry = Entry::new(&course);
        let kinds: &[Kind] =
            if shape == Shape::Burst(32) { &[Kind::Inline, Kind::Batched] } else { &[Kind::Inline] };
        for kind in kinds {
            let name = ours(*kind, Mode::PerLeg);
            if let Some(fast) = &mut entry.fast {
                let lane = fast.streams(&course, &name, *kind, Mode::PerLeg, paced, most);
                entry.add(&name, lane);
            }
        }
        entry.add(TOKIO, course.open_streams(0, TOKIO, "tokio", paced, most));
        entry.add(SEGMENTING, course.open_streams(0, SEGMENTING, "segmenting", paced, most));
        if !merged && self.plan.wants(rtpengine::NAME) {
            let lane = match rtpengine::missing() {
                Some(reason) => Err(anyhow::Error::msg(reason)),
                None => rtpengine::streams(&course, paced, if shape == Shape::Single { 512 } else { 64 }),
            };
            entry.add(rtpengine::NAME, lane);
        }
        if self.plan.wants(proxy::NAME) {
            let lane = proxy::streams(&course, paced, PUBLISHED, &mut entry.sessions);
            entry.add(proxy::NAME, lane);
        }
        let reason = "one stream of it is compared in B1 and B5";
        entry.skipped.push((proxy::MEDIAMTX.to_owned(), reason.to_owned()));
        outcome.skipped.append(&mut entry.skipped);
        let found = self.searched(&course, std::mem::take(&mut entry.lanes), streams, outcome)?;
        let at = outcome.cases.len();
        outcome.cases.push(case(&label, &course.topology, found, &self.plan, &mut self.shuffle)?);
        let names: Vec<String> =
            outcome.cases[at].entrants.iter().filter(|e| e.legs > 0).map(|e| e.name.clone()).collect();
        for name in names {
            // ns per copy and copies per second and leg make legs per core.
            let legs =
                outcome.cases[at].net(&name).iter().map(|ns| SHARE * 1e9 / ns / f64::from(rate)).collect();
            outcome.find(&format!("{name}: {}", streams.label), &unit(streams), legs, Target::Nothing);
        }
        let least = Target::AtLeast(if merged { 10.0 } else { 4.0 });
        for kind in kinds {
            let ours = ours(*kind, Mode::PerLeg);
            outcome.claim(at, &ours, TOKIO, Basis::Net, least);
            if !merged {
                outcome.claim(at, &ours, rtpengine::NAME, Basis::Net, least);
            }
            outcome.claim(at, &ours, SEGMENTING, Basis::Net, Target::Nothing);
            outcome.claim(at, &ours, proxy::NAME, Basis::Net, Target::Nothing);
        }
        let title = format!("B17: legs on 80 % of a core, {}, {size} B, {rate} packets/s", streams.label);
        outcome.draw_found(streams.file, &title, &unit(streams));
        Ok(())
    }

    /// Finds what each lane carries; returns them at that load, each with its generator alone at the same load.
    fn searched(
        &self,
        course: &Course,
        lanes: Vec<Lane>,
        streams: &Kindred,
        outcome: &mut Outcome,
    ) -> Result<Vec<Lane>> {
        let mut table = format!(
            "Most streams of {} ({} packets/s, 4 viewers each) without loss and with at least a fifth of the busiest \
             core left, sending included.\n\n| contender | streams | legs | packets/s in | busiest core |\n|---|---|---|---|---|\n",
            streams.label, streams.rate
        );
        let mut found = Vec::new();
        for mut lane in lanes.into_iter().filter(|lane| self.plan.wants(&lane.name)) {
            let name = lane.name.clone();
            lane.core = usize::from(!matches!(lane.path, super::path::Path::Kernel));
            // Bursts of plain datagrams that are due together would overflow the ring of the one cable that they
            // share here; pods have a cable each.
            lane.generator.tick = (!matches!(streams.shape, Shape::Burst(_))).then_some(TICK);
            let most = lane.generator.active;
            load(&mut lane, 8.min(most), streams.rate);
            let searched = lane
                .admit(&course.topology)
                .and_then(|_| lane.count())
                .and_then(|()| search(&mut lane, &course.topology, most, streams.rate, self.plan.each));
            let (carried, busy) = match searched {
                Ok(found) => found,
                Err(reason) => {
                    outcome.skipped.push((format!("{name}: {}", streams.label), format!("{reason:#}")));
                    continue;
                }
            };
            load(&mut lane, carried, streams.rate);
            let legs = LEGS * carried;
            eprintln!(
                "B17: {name}: {carried} streams of {}, busiest core {:.0} %",
                streams.label,
                100.0 * busy
            );
            let _ = writeln!(
                table,
                "| {name} | {carried} | {legs} | {} | {:.0} % |",
                carried as u32 * streams.rate,
                100.0 * busy
            );
            outcome.raw.push(json!({"contender": name, "traffic": streams.label, "streams": carried,
                "busiest_core": busy}));
            lane.floor = format!("generator of {name} alone, {carried} streams");
            let traffic = Traffic {
                shape: streams.shape,
                size: streams.size,
                legs: 0,
                merged: false,
                rate: lane.generator.rate,
            };
            // A profile is of the contender, not of its generator.
            if !self.plan.is_profile() {
                let mut floor = course.floor_of(Kind::Inline, &lane.floor, &lane, traffic)?;
                floor.core = lane.core;
                found.push(floor);
            }
            found.push(lane);
        }
        outcome.tables.push(table);
        Ok(found)
    }

    /// The same 1,024 streams in a table of their own and in one with 65,536 others; and all of those at once.
    fn full_table(&mut self, outcome: &mut Outcome) -> Result<()> {
        const FEW: usize = 1_024;
        const MANY: usize = 65_536;
        let label = "172 B, single packets, each for 4 viewers, the table small and full";
        if !self.plan.runs(label) {
            return Ok(());
        }
        let course = Course::open(&self.programs, LEGS, false)?;
        let size = |flows: usize| (flows as u32, (flows * LEGS) as u32);
        let mut small = Fast::open_for(&course, &[Kind::Inline], size(FEW))?;
        let mut large = Fast::open_for(&course, &[Kind::Second], size(FEW + MANY))?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: LEGS, merged: false, rate: None };
        let all = format!("{MANY} streams take turns, {} flows loaded", FEW + MANY);
        let loaded = format!("{FEW} streams, {} flows loaded", FEW + MANY);
        let alone = format!("{FEW} streams, {FEW} flows loaded");
        let many = large.streams(&course, &all, Kind::Second, Mode::PerLeg, traffic, MANY)?;
        let beside = large.streams(&course, &loaded, Kind::Second, Mode::PerLeg, traffic, FEW)?;
        let few = small.streams(&course, &alone, Kind::Inline, Mode::PerLeg, traffic, FEW)?;
        let mut lanes = Vec::new();
        for (kind, mut lane) in [(Kind::Inline, few), (Kind::Second, beside), (Kind::Second, many)] {
            lane.floor = format!("{}: {}", floor_name(None), lane.name);
            lanes.push(course.floor_of(kind, &lane.floor, &lane, Traffic { legs: 0, ..traffic })?);
            lanes.push(lane);
        }
        let at = outcome.cases.len();
        outcome.cases.push(case(label, &course.topology, lanes, &self.plan, &mut self.shuffle)?);
        outcome.claim(at, &alone, &loaded, Basis::Net, Target::AtMost(1.2));
        outcome.claim(at, &alone, &all, Basis::Net, Target::Nothing);
        let title = "B17: cost of a copy by the number of flows in the table, net of the generator";
        outcome.draw_costs("kernel-b17-table.svg", title, at, true);
        Ok(())
    }
}

fn unit(streams: &Kindred) -> String {
    format!("{LEGS_PER_CORE}, {}", streams.label)
}

fn load(lane: &mut Lane, streams: usize, rate: u32) {
    lane.generator.active = streams;
    lane.generator.rate = Some(streams as u32 * rate);
}

/// Streams that a lane carries, and how busy the busiest core was with them.
fn search(
    lane: &mut Lane,
    topology: &Topology,
    most: usize,
    rate: u32,
    each: Duration,
) -> Result<(usize, f64)> {
    let softirqs = KernelThreads::named("ksoftirqd/")?;
    let gentle = lane.name == rtpengine::NAME;
    // How busy it was, or nothing where that is too much.
    let mut bears = |streams: usize, how_long: Duration| -> Result<Option<f64>> {
        load(lane, streams, rate);
        let cost = lane.run(topology, &softirqs, how_long)?;
        let wall = cost.wall_ns as f64;
        let offered = cost.sent as f64 / (wall / 1e9);
        let busiest = cost.generator_ns.max(cost.process_ns).max(cost.kernel_ns) as f64 / wall;
        let kept_pace = offered > 0.97 * f64::from(streams as u32 * rate);
        Ok((cost.lost == 0 && kept_pace && busiest <= SHARE).then_some(busiest))
    };
    // Bursts of few streams are far apart.
    let each = (each / 2).max(Duration::from_millis(400));
    let (mut good, mut bad) = (None, most + 1);
    let mut next = if gentle { 8 } else { 32 }.min(most);
    let factor = if gentle { GENTLE } else { 2.0 };
    while next < bad {
        match bears(next, each)? {
            Some(busy) => good = Some((next, busy)),
            None => bad = next,
        }
        next = ((next as f64 * factor) as usize).min(most).max(next + 1);
    }
    if gentle {
        return good.with_context(|| format!("it does not bear 8 streams of {rate} packets/s"));
    }
    // Equal ratios between what it bears and what it does not, to within 3 %.
    let mut low = good.map_or(0, |g| g.0);
    while bad - low > (low / 32).max(1) {
        let middle = low.midpoint(bad);
        match bears(middle, each)? {
            Some(busy) => (good, low) = (Some((middle, busy)), middle),
            None => bad = middle,
        }
    }
    // The end is confirmed by longer runs, together as long as the rounds, down in steps of 5 %.
    for _ in 0..LOWER {
        let (streams, _) = good.context("it does not bear a single stream")?;
        let mut confirmed = None;
        for _ in 0..CONFIRMATIONS {
            confirmed = bears(streams, each * 5)?;
            if confirmed.is_none() {
                break;
            }
        }
        if let Some(busy) = confirmed {
            return Ok((streams, busy));
        }
        good = Some((((streams * 19) / 20).max(1), 0.0));
    }
    anyhow::bail!("no load was confirmed")
}
