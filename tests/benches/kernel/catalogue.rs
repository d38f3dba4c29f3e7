//! B1 to B5: what is sent, who takes part, what is asked.

use anyhow::Result;
use msm_tests::bench::rtsp::Rtsp;
use msm_tests::bench::stats::Shuffle;
use msm_tests::privilege::find_program;

use super::course::{Course, Programs, Traffic, floor_name};
use super::fast::{Fast, Mode};
use super::figures::Figure;
use super::generator::Shape;
use super::lane::Lane;
use super::path::Path;
use super::report::{Basis, Outcome, Target};
use super::rounds::{Plan, case};
use super::scale::backlog_of;
use super::topology::Kind;
use super::{bare, proxy, rtpengine};

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
/// How many times dearer a copy is to be in user space (M04).
const OWN: Target = Target::AtLeast(3.0);

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
pub(crate) struct Entry<'a> {
    course: &'a Course,
    pub(crate) fast: Option<Fast>,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) skipped: Vec<(String, String)>,
    /// RTSP sessions that keep legs alive.
    pub(crate) sessions: Vec<Rtsp>,
}

/// What the report calls a lane of ours.
pub(crate) fn ours(kind: Kind, mode: Mode) -> String {
    let how = if kind == Kind::Batched { ", batched" } else { "" };
    format!("rtp-proxy fast path, {}{how}", mode.name())
}

impl<'a> Entry<'a> {
    pub(crate) fn new(course: &'a Course) -> Self {
        let mut entry =
            Self { course, fast: None, lanes: Vec::new(), skipped: Vec::new(), sessions: Vec::new() };
        match Fast::open(course) {
            Ok(fast) => entry.fast = Some(fast),
            Err(reason) => entry.skip("rtp-proxy fast path", &reason),
        }
        entry
    }

    pub(crate) fn skip(&mut self, name: &str, reason: &anyhow::Error) {
        self.skipped.push((name.to_owned(), format!("{reason:#}")));
    }

    pub(crate) fn add(&mut self, name: &str, lane: Result<Lane>) {
        match lane {
            Ok(lane) => self.lanes.push(lane),
            Err(reason) => self.skip(name, &reason),
        }
    }

    pub(crate) fn fast(&mut self, kind: Kind, mode: Mode, traffic: Traffic) {
        let name = ours(kind, mode);
        let Some(fast) = &mut self.fast else { return };
        let lane = fast.lane(self.course, &name, kind, mode, traffic);
        self.add(&name, lane);
    }

    /// What no program at the hook of ours can be cheaper than.
    pub(crate) fn bare(&mut self, mode: Mode, traffic: Traffic) {
        self.add(&bare::name(traffic, mode), bare::lane(self.course, traffic, mode));
    }

    /// With the floor of its pace.
    pub(crate) fn rtpengine(&mut self, traffic: Traffic) {
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

    /// Likewise.
    pub(crate) fn user_path(&mut self, traffic: Traffic) {
        let lane = proxy::lane(self.course, traffic, &mut self.sessions);
        if lane.is_ok() && !self.lanes.iter().any(|l| l.name == floor_name(traffic.rate)) {
            self.add("floor", self.course.floor(traffic));
        }
        self.add(proxy::NAME, lane);
    }

    /// mediamtx, if it is there, and a word about who has no driver.
    pub(crate) fn strangers(&mut self, traffic: Traffic) {
        let lane = proxy::mediamtx(self.course, traffic, &mut self.sessions);
        self.add(proxy::MEDIAMTX, lane);
        let reason = match find_program("msm-dp") {
            Some(_) => "found on PATH, but it is told its streams by gRPC, for which there is no driver here",
            None => "not packaged in Debian, and no binary on PATH",
        };
        self.skipped.push(("msm-dp".to_owned(), reason.to_owned()));
    }

    /// Runs the rounds; what did not take part goes into the report.
    pub(crate) fn run(self, run: &mut Run, plan: &Plan, label: &str, outcome: &mut Outcome) -> Result<usize> {
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
        let mut outcome = Outcome::new("B1", "Audio fan-out, one packet per softirq");
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let paced = traffic.paced(OPEN_RATE);
        let mut entry = Entry::new(&course);
        entry.add("floor", course.floor(traffic));
        entry.add("floor", course.floor(paced));
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.bare(Mode::Opaque, traffic);
        entry.add(NAIVE, course.closed(NAIVE, traffic, Path::naive));
        entry.add(TOKIO, course.closed(TOKIO, traffic, Path::tokio));
        entry.add(SEGMENTING, course.closed(SEGMENTING, traffic, Path::segmenting));
        entry.add("naive relay, woken", course.open_loop("naive relay, woken", "naive", paced));
        entry.add("tokio relay, woken", course.open_loop("tokio relay, woken", "tokio", paced));
        entry.rtpengine(traffic);
        entry.user_path(paced);
        entry.strangers(paced);
        let label = "172 B, single packets, 1→16, plain sockets";
        let at = entry.run(self, &self.plan.clone(), label, &mut outcome)?;
        let ours = ours(Kind::Inline, Mode::PerLeg);
        outcome.claim(at, &ours, TOKIO, Basis::Gross, Target::AtLeast(3.0));
        outcome.claim(at, &ours, TOKIO, Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, NAIVE, Basis::Gross, Target::Nothing);
        outcome.claim(at, &ours, "tokio relay, woken", Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, rtpengine::NAME, Basis::Net, Target::AtLeast(6.0));
        outcome.claim(at, &ours, proxy::MEDIAMTX, Basis::Net, Target::AtLeast(6.0));
        outcome.claim(at, &ours, proxy::NAME, Basis::Net, OWN);
        let floor = bare::name(traffic, Mode::Opaque);
        outcome.claim(at, &floor, TOKIO, Basis::Gross, Target::Nothing);
        outcome.claim(at, &floor, rtpengine::NAME, Basis::Net, Target::Nothing);
        outcome.draw_costs(
            "kernel-b1.svg",
            "B1: audio, 172 B, single packets, 1→16, plain sockets",
            at,
            false,
        );
        if !self.plan.is_profile()
            && let Err(reason) = self.both_accounts(&course, &mut outcome)
        {
            outcome.skipped.push(("the account of who is idle".to_owned(), format!("{reason:#}")));
        }
        Ok(outcome)
    }

    /// B2: what the kernel does by itself.
    pub(crate) fn b2(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B2", "Against the kernel's own forwarding");
        let course = Course::open(&self.programs, 16, true)?;
        outcome.offloads = course.topology.offloads()?;
        let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let mut entry = Entry::new(&course);
        entry.add("floor", course.floor(traffic));
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.fast(Kind::Inline, Mode::Opaque, traffic);
        entry.bare(Mode::Opaque, traffic);
        entry.add(BRIDGE, course.bridge(traffic));
        entry.user_path(traffic.paced(OPEN_RATE));
        let label = "172 B, single packets, 1→16";
        let at = entry.run(self, &self.plan.clone(), label, &mut outcome)?;
        let (full, opaque) = (ours(Kind::Inline, Mode::PerLeg), ours(Kind::Inline, Mode::Opaque));
        outcome.claim(at, &full, BRIDGE, Basis::Gross, Target::AtLeast(1.2));
        outcome.claim(at, &full, BRIDGE, Basis::Net, Target::Nothing);
        outcome.claim(at, &opaque, BRIDGE, Basis::Gross, Target::Nothing);
        outcome.claim(at, &full, proxy::NAME, Basis::Net, Target::Nothing);
        outcome.claim(at, &bare::name(traffic, Mode::Opaque), BRIDGE, Basis::Gross, Target::Nothing);
        outcome.draw_costs(
            "kernel-b2-16.svg",
            "B2: the kernel's bridge floods, 172 B, single packets, 1→16",
            at,
            false,
        );
        let traffic = Traffic { legs: 1, ..traffic };
        let mut entry = Entry::new(&course);
        entry.add("floor", course.floor(traffic));
        entry.fast(Kind::Inline, Mode::PerLeg, traffic);
        entry.fast(Kind::Inline, Mode::Opaque, traffic);
        entry.bare(Mode::Opaque, traffic);
        entry.add(ROUTED, course.routed(traffic));
        entry.user_path(traffic.paced(OPEN_RATE));
        let at = entry.run(self, &self.net_plan(), "172 B, single packets, 1→1", &mut outcome)?;
        outcome.claim(at, &full, ROUTED, Basis::Net, Target::AtLeast(2.2));
        outcome.claim(at, &full, proxy::NAME, Basis::Net, Target::Nothing);
        outcome.claim(at, &full, ROUTED, Basis::Gross, Target::Nothing);
        outcome.claim(at, &opaque, ROUTED, Basis::Net, Target::Nothing);
        outcome.claim(at, &bare::name(traffic, Mode::Opaque), ROUTED, Basis::Net, Target::Nothing);
        outcome.draw_costs("kernel-b2-1.svg", "B2: the kernel routes, 172 B, single packets, 1→1", at, true);
        Ok(outcome)
    }

    /// B3: bursts of plain datagrams.
    pub(crate) fn b3(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B3", "Video bursts by plain sendmmsg");
        let _backlog = backlog_of(16_384)?;
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
                outcome.claim(at, &batched, proxy::NAME, Basis::Net, OWN);
                outcome.claim(at, &inline, proxy::NAME, Basis::Net, Target::Nothing);
            }
        }
        let names = [inline.as_str(), &batched, NAIVE, SEGMENTING];
        outcome.figures.push(Figure::Curve {
            file: "kernel-b3-curve.svg".to_owned(),
            title: "B3: video, 1200 B, 1→16, plain sockets, by the length of the burst".to_owned(),
            x_axis: "packets per burst".to_owned(),
            labels: bursts.iter().map(ToString::to_string).collect(),
            names: names.map(str::to_owned).into(),
            cases: (0..bursts.len()).collect(),
        });
        let title = "B3: video, 1200 B, bursts of 32 by sendmmsg, 1→16, plain sockets";
        outcome.draw_costs("kernel-b3.svg", title, bursts.len() - 1, true);
        drop(course);
        self.break_even(&mut outcome)?;
        Ok(outcome)
    }

    /// B4: super-packets.
    pub(crate) fn b4(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B4", "Super-packets from UDP_SEGMENT senders");
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
                if merged {
                    for mode in [Mode::PerLeg, Mode::Common, Mode::Opaque] {
                        entry.bare(mode, traffic);
                    }
                }
                entry.add(BRIDGE, course.bridge(traffic));
                if merged {
                    // Both are given what they can take: rtpengine gets the super-packet's datagrams one by one.
                    entry.rtpengine(traffic);
                    entry.user_path(traffic.paced(OPEN_RATE));
                }
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
                    if merged {
                        outcome.claim(at, &ours, proxy::NAME, Basis::Net, Target::Nothing);
                        outcome.claim(at, &ours, rtpengine::NAME, Basis::Net, Target::Nothing);
                        let floor = bare::name(traffic, mode);
                        outcome.claim(at, &floor, NAIVE, Basis::Gross, Target::Nothing);
                        outcome.claim(at, &floor, SEGMENTING, Basis::Gross, Target::Nothing);
                    }
                }
                for entrant in &outcome.cases[at].entrants {
                    let per_frame = outcome.cases[at].merged(&entrant.name);
                    let cut = [NAIVE, rtpengine::NAME, proxy::NAME].contains(&entrant.name.as_str());
                    let kept_whole = !cut && entrant.legs > 0;
                    if kept_whole && per_frame < 31.0 {
                        outcome.doubts.push(format!(
                            "{label}: {}: {per_frame:.1} packets per frame at the viewer: super-packets did \
                             not stay whole",
                            entrant.name
                        ));
                    }
                }
                if merged {
                    let title = format!("B4: super-packets of 32, {size} B, 1→16, UDP_GRO sockets");
                    outcome.draw_costs(&format!("kernel-b4-{size}.svg"), &title, at, false);
                }
            }
        }
        Ok(outcome)
    }

    /// B5: one viewer.
    pub(crate) fn b5(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B5", "Unicast from pod to pod");
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
        entry.bare(Mode::Opaque, traffic);
        entry.add(ROUTED, course.routed(traffic));
        entry.add("socat", course.socat(paced));
        entry.rtpengine(traffic);
        entry.user_path(paced);
        entry.strangers(paced);
        let at = entry.run(self, &self.net_plan(), "172 B, single packets, 1→1", &mut outcome)?;
        let ours = ours(Kind::Inline, Mode::PerLeg);
        outcome.claim(at, &ours, "socat", Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, NAIVE, Basis::Net, Target::AtLeast(6.0));
        outcome.claim(at, &ours, TOKIO, Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, ROUTED, Basis::Net, Target::Nothing);
        outcome.claim(at, &ours, rtpengine::NAME, Basis::Net, Target::AtLeast(8.0));
        outcome.claim(at, &ours, proxy::NAME, Basis::Net, Target::Nothing);
        outcome.claim(at, &bare::name(traffic, Mode::Opaque), NAIVE, Basis::Net, Target::Nothing);
        outcome.draw_costs(
            "kernel-b5.svg",
            "B5: unicast from pod to pod, 172 B, single packets, 1→1",
            at,
            true,
        );
        Ok(outcome)
    }
}
