//! B1 to B5: what is sent, who takes part, what is asked.

use anyhow::Result;
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::bench::stats::{Shuffle, interval, median};

use super::course::{Course, Programs, Traffic, floor_name};
use super::fast::{Fast, Mode};
use super::generator::Shape;
use super::lane::Lane;
use super::latency::{self, Claim};
use super::path::Path;
use super::plot::{self, Bar, Curve};
use super::report::{Basis, Outcome, Target};
use super::rounds::{Case, Plan, case};
use super::topology::Kind;
use super::{capacity, rtpengine, scale, user_path};

/// G.711 of 20 ms with its RTP header.
pub(crate) const AUDIO: usize = 172;
/// A video packet.
pub(crate) const VIDEO: usize = 1200;
/// Packets per second of contenders that are woken: slow enough for the slowest.
pub(crate) const OPEN_RATE: u32 = 4_000;
/// Bursts per second where bursts are paced: the last one is forwarded before the next one comes.
const BURST_RATE: u32 = 1_000;
/// A difference of large numbers needs so many rounds at least.
const NET_ROUNDS: usize = 15;

pub(crate) const NAIVE: &str = "naive relay";
pub(crate) const TOKIO: &str = "tokio relay";
pub(crate) const SEGMENTING: &str = "userspace GSO relay";
pub(crate) const ELSEWHERE: &str = "naive relay, on the other core";
pub(crate) const BRIDGE: &str = "bridge flood";
pub(crate) const ROUTED: &str = "ip_forward";

/// A benchmark under way.
pub(crate) struct Run {
    pub(crate) programs: Programs,
    pub(crate) plan: Plan,
    pub(crate) shuffle: Shuffle,
}

/// Lanes of one case, with those that could not be made.
struct Entry<'a> {
    course: &'a Course,
    fast: Option<Fast>,
    lanes: Vec<Lane>,
    skipped: Vec<(String, String)>,
    sessions: Vec<Rtsp>,
}

/// What the report calls a lane of ours.
pub(crate) fn ours(kind: Kind, mode: Mode) -> String {
    let how = if kind == Kind::Batched { ", batched" } else { "" };
    format!("rtp-proxy kernel path, {}{how}", mode.name())
}

impl<'a> Entry<'a> {
    fn new(course: &'a Course) -> Self {
        let mut entry =
            Self { course, fast: None, lanes: Vec::new(), skipped: Vec::new(), sessions: Vec::new() };
        match Fast::open(course) {
            Ok(fast) => entry.fast = Some(fast),
            Err(reason) => entry.skip("rtp-proxy kernel path", &reason),
        }
        entry
    }

    fn skip(&mut self, name: &str, reason: &anyhow::Error) {
        self.skipped.push((name.to_owned(), format!("{reason:#}")));
    }

    fn add(&mut self, name: &str, lane: Result<Lane>) {
        match lane {
            Ok(lane) => self.lanes.push(lane),
            Err(reason) => self.skip(name, &reason),
        }
    }

    fn fast(&mut self, kind: Kind, mode: Mode, traffic: Traffic) {
        let name = ours(kind, mode);
        let Some(fast) = &mut self.fast else { return };
        let lane = fast.lane(self.course, &name, kind, mode, traffic);
        self.add(&name, lane);
    }

    /// With the floor of its pace.
    fn rtpengine(&mut self, traffic: Traffic) {
        let traffic = traffic.paced(rtpengine::RATE);
        let lane = match rtpengine::missing() {
            Some(reason) => Err(anyhow::Error::msg(reason)),
            None => rtpengine::lane(self.course, traffic),
        };
        if lane.is_ok() && !self.lanes.iter().any(|l| l.name == floor_name(traffic.rate)) {
            self.add("floor", self.course.floor(traffic));
        }
        self.add(rtpengine::NAME, lane);
    }

    fn user_path(&mut self, traffic: Traffic) {
        let lane = user_path::lane(self.course, traffic, &mut self.sessions);
        self.add(user_path::NAME, lane);
    }

    /// Those that are not packaged and whose binary is not here.
    fn strangers(&mut self) {
        for name in ["mediamtx", "msm-dp"] {
            let reason = match msm_tests::privilege::find_program(name) {
                Some(_) => "found on PATH, but this benchmark has no driver for it",
                None => "not packaged in Debian, and no binary on PATH",
            };
            self.skipped.push((name.to_owned(), reason.to_owned()));
        }
    }

    /// Runs the rounds; what did not take part goes into the report.
    fn run(self, run: &mut Run, plan: &Plan, label: &str, outcome: &mut Outcome) -> Result<usize> {
        let done = case(label, &self.course.topology, self.lanes, plan, &mut run.shuffle)?;
        for skipped in self.skipped {
            if !outcome.skipped.contains(&skipped) {
                eprintln!("{label}: skipped: {}: {}", skipped.0, skipped.1);
                outcome.skipped.push(skipped);
            }
        }
        outcome.cases.push(done);
        Ok(outcome.cases.len() - 1)
    }
}

impl Run {
    /// The plan with rounds enough for differences.
    fn net_plan(&self) -> Plan {
        // A run with fewer rounds than the catalogue asks is a try, and stays one.
        let rounds = if self.plan.rounds < 9 { self.plan.rounds } else { self.plan.rounds.max(NET_ROUNDS) };
        Plan { rounds, ..self.plan.clone() }
    }

    /// B1: audio fan-out.
    pub(crate) fn b1(&mut self) -> Result<Outcome> {
        let mut outcome =
            Outcome { id: "B1", title: "Audio fan-out, one packet per softirq", ..Outcome::default() };
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let paced = traffic.paced(OPEN_RATE);
        let mut entry = Entry::new(&course);
        entry.add("floor", course.floor(traffic));
        entry.add("floor", course.floor(paced));
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.add(NAIVE, course.closed(NAIVE, traffic, Path::naive));
        entry.add(TOKIO, course.closed(TOKIO, traffic, Path::tokio));
        entry.add(SEGMENTING, course.closed(SEGMENTING, traffic, Path::segmenting));
        entry.add("naive relay, woken", course.open_loop("naive relay, woken", "naive", paced));
        entry.add("tokio relay, woken", course.open_loop("tokio relay, woken", "tokio", paced));
        entry.rtpengine(traffic);
        entry.user_path(paced);
        entry.strangers();
        let label = "172 B, single packets, 1→16, plain sockets";
        let at = entry.run(self, &self.plan.clone(), label, &mut outcome)?;
        let ours = ours(Kind::Inline, Mode::PerLeg);
        outcome.claim(at, &ours, TOKIO, Basis::Gross, Target::AtLeast(3.0));
        outcome.claim(at, &ours, TOKIO, Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, NAIVE, Basis::Gross, Target::Nothing);
        outcome.claim(at, &ours, "tokio relay, woken", Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, rtpengine::NAME, Basis::Net, Target::AtLeast(6.0));
        outcome.claim(at, &ours, user_path::NAME, Basis::Net, Target::Nothing);
        outcome.plots.push(("bench-b1.svg".to_owned(), bars("B1: 172 B, 1→16", &outcome.cases[at], false)));
        Ok(outcome)
    }

    /// B2: what the kernel does by itself.
    pub(crate) fn b2(&mut self) -> Result<Outcome> {
        let mut outcome =
            Outcome { id: "B2", title: "Against the kernel's own forwarding", ..Outcome::default() };
        let course = Course::open(&self.programs, 16, true)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let mut entry = Entry::new(&course);
        entry.add("floor", course.floor(traffic));
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.fast(Kind::Inline, Mode::Opaque, traffic);
        entry.add(BRIDGE, course.bridge(traffic));
        let label = "172 B, single packets, 1→16";
        let at = entry.run(self, &self.plan.clone(), label, &mut outcome)?;
        let (full, opaque) = (ours(Kind::Inline, Mode::PerLeg), ours(Kind::Inline, Mode::Opaque));
        outcome.claim(at, &full, BRIDGE, Basis::Gross, Target::AtLeast(1.2));
        outcome.claim(at, &full, BRIDGE, Basis::Net, Target::Nothing);
        outcome.claim(at, &opaque, BRIDGE, Basis::Gross, Target::Nothing);
        let traffic = Traffic { legs: 1, ..traffic };
        let mut entry = Entry::new(&course);
        entry.add("floor", course.floor(traffic));
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.fast(Kind::Inline, Mode::Opaque, traffic);
        entry.add(ROUTED, course.routed(traffic));
        let at = entry.run(self, &self.net_plan(), "172 B, single packets, 1→1", &mut outcome)?;
        outcome.claim(at, &full, ROUTED, Basis::Net, Target::AtLeast(2.2));
        outcome.claim(at, &full, ROUTED, Basis::Gross, Target::Nothing);
        outcome.claim(at, &opaque, ROUTED, Basis::Net, Target::Nothing);
        Ok(outcome)
    }

    /// B3: bursts of plain datagrams.
    pub(crate) fn b3(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome { id: "B3", title: "Video bursts by plain sendmmsg", ..Outcome::default() };
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let (inline, batched) = (ours(Kind::Inline, Mode::PerLeg), ours(Kind::Batched, Mode::PerLeg));
        let bursts = [1, 4, 8, 16, 32];
        for burst in bursts {
            let shape = if burst == 1 { Shape::Single } else { Shape::Burst(burst) };
            let traffic = Traffic { shape, size: VIDEO, legs: 16, merged: false, rate: None };
            let paced = traffic.paced(BURST_RATE * burst as u32);
            let mut entry = Entry::new(&course);
            entry.add("floor", course.floor(traffic));
            entry.add("floor", course.floor(paced));
            entry.fast(Kind::Inline, Mode::PerLeg, traffic);
            entry.fast(Kind::Batched, Mode::PerLeg, paced);
            entry.add(NAIVE, course.closed(NAIVE, traffic, Path::naive));
            entry.add(SEGMENTING, course.closed(SEGMENTING, traffic, Path::segmenting));
            // The curve costs half the time per point, the point that is gated all of it.
            let mut plan = self.plan.clone();
            if burst == 32 {
                entry.fast(Kind::Batched, Mode::Common, paced);
                entry.fast(Kind::Batched, Mode::Opaque, paced);
                entry.rtpengine(traffic);
                entry.add("floor", course.floor(traffic.paced(OPEN_RATE)));
                entry.user_path(traffic.paced(OPEN_RATE));
            } else {
                plan.each /= 2;
            }
            let label = format!("1200 B, {shape}, 1→16, plain sockets");
            let at = entry.run(self, &plan, &label, &mut outcome)?;
            if burst == 32 {
                outcome.claim(at, &batched, NAIVE, Basis::Net, Target::AtLeast(6.0));
                outcome.claim(at, &batched, SEGMENTING, Basis::Net, Target::AtLeast(1.5));
                for mode in [Mode::Common, Mode::Opaque] {
                    let ours = ours(Kind::Batched, mode);
                    outcome.claim(at, &ours, NAIVE, Basis::Net, Target::Nothing);
                    outcome.claim(at, &ours, SEGMENTING, Basis::Net, Target::Nothing);
                }
                outcome.claim(at, &inline, NAIVE, Basis::Net, Target::Nothing);
                outcome.claim(at, &batched, rtpengine::NAME, Basis::Net, Target::Nothing);
            }
        }
        let labels: Vec<String> = bursts.iter().map(ToString::to_string).collect();
        let curves: Vec<Curve> = [inline.as_str(), &batched, NAIVE, SEGMENTING]
            .into_iter()
            .filter(|name| outcome.cases.iter().any(|c| c.index(name).is_some()))
            .map(|name| Curve {
                label: name.to_owned(),
                values: outcome.cases.iter().map(|c| median(&c.net(name))).collect(),
            })
            .collect();
        let plot =
            plot::curves("B3: 1200 B, 1→16, by burst", "CPU ns/copy", "packets per burst", &labels, &curves);
        outcome.plots.push(("bench-b3.svg".to_owned(), plot));
        Ok(outcome)
    }

    /// B4: super-packets.
    pub(crate) fn b4(&mut self) -> Result<Outcome> {
        let mut outcome =
            Outcome { id: "B4", title: "Super-packets from UDP_SEGMENT senders", ..Outcome::default() };
        let course = Course::open(&self.programs, 16, true)?;
        outcome.offloads = course.topology.offloads()?;
        for size in [AUDIO, VIDEO] {
            for merged in [true, false] {
                let traffic = Traffic { shape: Shape::Super(32), size, legs: 16, merged, rate: None };
                let mut entry = Entry::new(&course);
                entry.add("floor", course.floor(traffic));
                for mode in [Mode::PerLeg, Mode::Common, Mode::Opaque] {
                    entry.fast(Kind::Inline, mode, traffic);
                }
                entry.add(NAIVE, course.closed(NAIVE, traffic, Path::naive));
                entry.add(SEGMENTING, course.closed(SEGMENTING, traffic, Path::segmenting));
                entry.add(BRIDGE, course.bridge(traffic));
                let sinks = if merged { "UDP_GRO sockets" } else { "plain sockets" };
                let label = format!("{size} B, {}, 1→16, {sinks}", traffic.shape);
                let at = entry.run(self, &self.plan.clone(), &label, &mut outcome)?;
                for (mode, naive, segmenting) in [
                    (Mode::PerLeg, Some(25.0), Some(3.0)),
                    (Mode::Common, Some(50.0), None),
                    (Mode::Opaque, Some(60.0), None),
                ] {
                    // The targets are for receivers that take super-packets; plain ones are for comparison.
                    let target = |t: Option<f64>| match t {
                        Some(t) if merged => Target::AtLeast(t),
                        _ => Target::Nothing,
                    };
                    let ours = ours(Kind::Inline, mode);
                    outcome.claim(at, &ours, NAIVE, Basis::Gross, target(naive));
                    outcome.claim(at, &ours, SEGMENTING, Basis::Gross, target(segmenting));
                    let bridge = if mode == Mode::Opaque { Some(1.0) } else { None };
                    outcome.claim(at, &ours, BRIDGE, Basis::Gross, target(bridge));
                }
                for entrant in &outcome.cases[at].entrants {
                    let per_frame = outcome.cases[at].merged(&entrant.name);
                    let kept_whole = ![NAIVE].contains(&entrant.name.as_str()) && entrant.legs > 0;
                    if kept_whole && per_frame < 31.0 {
                        outcome.doubts.push(format!(
                            "{label}: {}: {per_frame:.1} packets per frame at the viewer: super-packets did \
                             not stay whole",
                            entrant.name
                        ));
                    }
                }
                if merged {
                    let title = format!("B4: {size} B super-packets of 32, 1→16, UDP_GRO sockets");
                    let plot = bars(&title, &outcome.cases[at], false);
                    outcome.plots.push((format!("bench-b4-{size}.svg"), plot));
                }
            }
        }
        Ok(outcome)
    }

    /// B5: one viewer.
    pub(crate) fn b5(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome { id: "B5", title: "Unicast from pod to pod", ..Outcome::default() };
        let course = Course::open(&self.programs, 1, false)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 1, merged: false, rate: None };
        let paced = traffic.paced(OPEN_RATE);
        let mut entry = Entry::new(&course);
        entry.add("floor", course.floor(traffic));
        entry.add("floor", course.floor(paced));
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.add(NAIVE, course.closed(NAIVE, traffic, Path::naive));
        entry.add(TOKIO, course.closed(TOKIO, traffic, Path::tokio));
        entry.add(ROUTED, course.routed(traffic));
        entry.rtpengine(traffic);
        entry.user_path(paced);
        let at = entry.run(self, &self.net_plan(), "172 B, single packets, 1→1", &mut outcome)?;
        let ours = ours(Kind::Inline, Mode::PerLeg);
        outcome.claim(at, &ours, NAIVE, Basis::Net, Target::AtLeast(6.0));
        outcome.claim(at, &ours, TOKIO, Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, ROUTED, Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, rtpengine::NAME, Basis::Net, Target::AtLeast(8.0));
        outcome.claim(at, &ours, user_path::NAME, Basis::Net, Target::Nothing);
        Ok(outcome)
    }
}

impl Run {
    /// B8: does the cost per copy stay what it is?
    pub(crate) fn b8(&mut self) -> Result<Outcome> {
        const MANY: usize = 10_000;
        let mut outcome = Outcome { id: "B8", title: "Scale", ..Outcome::default() };
        let _backlog = scale::Backlog::of(16_384)?;
        let course = Course::open(&self.programs, 64, false)?;
        outcome.offloads = course.topology.offloads()?;
        let mut fast = Fast::open(&course)?;
        let single = |legs| Traffic { shape: Shape::Single, size: AUDIO, legs, merged: false, rate: None };
        let mut lanes = vec![course.floor(single(0))?];
        for (streams, legs) in [(1, 4), (MANY, 4), (1, 16), (1, 64)] {
            let name = format!("{streams} × {legs}");
            let mut lane = fast.streams(&course, &name, Kind::Inline, Mode::PerLeg, single(legs), streams)?;
            if streams == MANY {
                lane.floor = format!("{}, {MANY} streams", floor_name(None));
                lanes.push(course.floor_of(&lane.floor, &lane, single(0))?);
            }
            lanes.push(lane);
        }
        let label = "172 B, single packets, per leg, streams × legs, plain sockets";
        outcome.cases.push(case(label, &course.topology, lanes, &self.plan, &mut self.shuffle)?);
        let many = format!("{MANY} × 4");
        // Dearer ÷ cheaper: the first name is the divisor.
        outcome.claim(0, "1 × 4", &many, Basis::Net, Target::AtMost(1.2));
        outcome.claim(0, "1 × 4", &many, Basis::Gross, Target::Nothing);
        outcome.claim(0, "1 × 16", "1 × 64", Basis::Net, Target::AtMost(1.2));
        outcome.claim(0, "1 × 16", &many, Basis::Net, Target::Nothing);
        let mut lanes = Vec::new();
        for (shape, kind) in [
            (Shape::Burst(32), Kind::Inline),
            (Shape::Super(32), Kind::Inline),
            (Shape::Burst(32), Kind::Batched),
        ] {
            let rate = (kind == Kind::Batched).then_some(2_000);
            let traffic = Traffic { shape, size: VIDEO, legs: 256, merged: false, rate };
            lanes.push(course.floor(traffic)?);
            let how = if kind == Kind::Batched { ", batched" } else { "" };
            let name = format!("1 × 256, {shape}{how}");
            let mut lane = fast.lane(&course, &name, kind, Mode::PerLeg, traffic)?;
            // One floor per shape.
            lane.floor = format!("{}, {shape}", floor_name(rate));
            let last = lanes.len() - 1;
            lanes[last].name.clone_from(&lane.floor);
            lanes.push(lane);
        }
        let label = "1200 B, 256 legs on 64 pods, per leg, plain sockets";
        outcome.cases.push(case(label, &course.topology, lanes, &self.plan, &mut self.shuffle)?);
        let seconds = 4.0 * self.plan.each.as_secs_f64();
        scale::joins(&course, &mut fast, seconds, &mut outcome)?;
        outcome.skipped.push((
            "joins by whole RTSP calls".to_owned(),
            "measured by the load test of the proxy, not here".to_owned(),
        ));
        Ok(outcome)
    }

    /// B6: the highest rate without loss.
    pub(crate) fn b6(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome { id: "B6", title: "Zero-loss rate", ..Outcome::default() };
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let paced = traffic.paced(OPEN_RATE);
        let mut entry = Entry::new(&course);
        entry.add(NAIVE, course.open_loop(NAIVE, "naive", paced));
        entry.add(TOKIO, course.open_loop(TOKIO, "tokio", paced));
        entry.add(SEGMENTING, course.open_loop(SEGMENTING, "segmenting", paced));
        entry.rtpengine(traffic);
        entry.user_path(paced);
        entry.lanes.retain(|lane| !lane.legs.is_empty());
        let relays = std::mem::take(&mut entry.lanes);
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        let kernel = entry.lanes.pop();
        outcome.skipped.append(&mut entry.skipped);
        capacity::measure(&course.topology, relays, kernel, &self.plan, &mut outcome)?;
        Ok(outcome)
    }

    /// B7: latency.
    pub(crate) fn b7(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome { id: "B7", title: "Added latency", ..Outcome::default() };
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let inline = ours(Kind::Inline, Mode::PerLeg);
        for (legs, rate) in [(1, 10_000), (16, OPEN_RATE)] {
            let traffic =
                Traffic { shape: Shape::Single, size: AUDIO, legs, merged: false, rate: Some(rate) };
            let mut entry = Entry::new(&course);
            entry.fast(Kind::Inline, Mode::PerLeg, traffic);
            entry.fast(Kind::Batched, Mode::PerLeg, traffic);
            if legs == 1 {
                entry.add(ROUTED, course.routed(traffic));
            }
            entry.add(NAIVE, course.open_loop(NAIVE, "naive", traffic));
            entry.add(TOKIO, course.open_loop(TOKIO, "tokio", traffic));
            if legs == 1 {
                entry.add(ELSEWHERE, course.open_loop_on(1, ELSEWHERE, "naive", traffic));
            }
            entry.user_path(traffic);
            let label = format!("172 B, {rate} packets/s, 1→{legs}");
            let (plan, topology) = (self.plan.clone(), &course.topology);
            outcome.skipped.append(&mut entry.skipped);
            let found =
                latency::measure(&label, topology, entry.lanes, &plan, &mut self.shuffle, &mut outcome)?;
            let mut claims = Vec::new();
            for (quantile, least) in [5.0, 4.0, 3.0].into_iter().enumerate() {
                let (ours, against) = (inline.clone(), NAIVE.to_owned());
                claims.push(Claim::Faster { ours, against, quantile, least });
            }
            if legs == 1 {
                let (ours, against) = (inline.clone(), ROUTED.to_owned());
                claims.push(Claim::Faster { ours, against, quantile: 0, least: 1.0 / 0.75 });
                let (ours, against) = (inline.clone(), ELSEWHERE.to_owned());
                claims.push(Claim::Faster { ours, against, quantile: 0, least: 5.0 });
                // With many legs the median is that of the middle one, which waits for those before it.
                claims.push(Claim::Within { ours: inline.clone(), quantile: 0, most: 10.0 });
                claims.push(Claim::Within { ours: user_path::NAME.to_owned(), quantile: 0, most: 100.0 });
            }
            found.report(&claims, &mut outcome, Some(&format!("bench-b7-{legs}.svg")));
        }
        Ok(outcome)
    }
}

/// Costs of everyone in a case.
fn bars(title: &str, case: &Case, net: bool) -> String {
    let entrants = case.entrants.iter().filter(|e| e.legs > 0);
    let bars: Vec<Bar> = entrants
        .map(|e| {
            // What is paced compares without its generator only.
            let paced = e.floor.contains("pps");
            let values = if net || paced { case.net(&e.name) } else { case.gross(&e.name) };
            let (low, high) = interval(&values);
            let label = if paced && !net { format!("{} (net)", e.name) } else { e.name.clone() };
            Bar { label, value: median(&values), low, high, ours: e.name.starts_with("rtp-proxy kernel") }
        })
        .collect();
    plot::bars(title, "CPU ns/copy", &bars)
}
