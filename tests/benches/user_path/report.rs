//! Rounds as JSON, the report as Markdown. The report is made from the rounds and from nothing else.

use std::fmt::Write as _;

use msm_tests::bench::stats::{interval, median};
use serde_json::json;

use super::closed;
use super::contender::{BASELINE, Cost, PROXY, SEGMENTING, TOKIO};
use super::generator::Shape;
use super::latency::Latency;
use super::memory::Memory;

#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) costs: Vec<(&'static str, Cost)>,
}

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) fan_out: usize,
    pub(crate) size: usize,
    pub(crate) shape: Shape,
    pub(crate) rounds: Vec<Round>,
}

pub(crate) struct Report {
    rounds: usize,
    seconds: f64,
    pub(crate) closed: Vec<closed::Case>,
    pub(crate) cases: Vec<Case>,
    pub(crate) latency: Option<Latency>,
    pub(crate) memory: Option<Memory>,
    pub(crate) disqualified: Vec<String>,
}

/// What the catalogue asks of a case, as relay cost over proxy cost.
pub(crate) fn target(shape: Shape, fan_out: usize) -> f64 {
    match (shape, fan_out) {
        (Shape::Burst(_), _) => 3.0,
        (Shape::Single, 1) => 1.0 / 1.15,
        (Shape::Single, _) => 1.0,
    }
}

/// Whether ratios meet a target: by their whole interval, or by their median alone.
pub(crate) fn verdict(ratios: &[f64], target: f64) -> &'static str {
    if interval(ratios).0 >= target {
        "yes"
    } else if median(ratios) >= target {
        "median"
    } else {
        "**no**"
    }
}

impl Case {
    fn costs(&self, name: &str) -> Vec<f64> {
        self.rounds
            .iter()
            .flat_map(|r| &r.costs)
            .filter(|(n, _)| *n == name)
            .map(|(_, c)| c.ns_per_copy)
            .collect()
    }

    fn lost(&self, name: &str) -> (u64, u64) {
        let costs = self.rounds.iter().flat_map(|r| &r.costs).filter(|(n, _)| *n == name);
        costs.fold((0, 0), |(lost, copies), (_, c)| (lost + c.lost, copies + c.copies))
    }

    /// Relay cost over proxy cost, round by round.
    fn ratios(&self) -> Vec<f64> {
        self.ratios_of(TOKIO)
    }

    /// A contender's cost over the proxy's.
    fn ratios_of(&self, name: &str) -> Vec<f64> {
        self.costs(name).iter().zip(self.costs(PROXY)).map(|(relay, ours)| relay / ours).collect()
    }

    fn target(&self) -> f64 {
        target(self.shape, self.fan_out)
    }

    pub(crate) fn line(&self) -> String {
        let (low, high) = interval(&self.ratios());
        let others = [SEGMENTING, BASELINE].into_iter().filter(|name| !self.costs(name).is_empty());
        let others: Vec<_> = others
            .map(|name| {
                let (low, high) = interval(&self.ratios_of(name));
                let (cost, ratio) = (median(&self.costs(name)), median(&self.ratios_of(name)));
                format!("; {name} {cost:.0} ns, ratio {ratio:.2} [{low:.2}, {high:.2}]")
            })
            .collect();
        let others = others.concat();
        format!(
            "1→{} {} B {}: rtp-proxy {:.0} ns, tokio relay {:.0} ns, ratio {:.2} [{low:.2}, {high:.2}] (target {:.2}){others}",
            self.fan_out,
            self.size,
            self.shape.name(),
            median(&self.costs(PROXY)),
            median(&self.costs(TOKIO)),
            median(&self.ratios()),
            self.target(),
        )
    }
}

impl Report {
    pub(crate) fn new(rounds: usize, seconds: f64) -> Self {
        Self {
            rounds,
            seconds,
            closed: Vec::new(),
            cases: Vec::new(),
            latency: None,
            memory: None,
            disqualified: Vec::new(),
        }
    }

    pub(crate) fn to_json(&self) -> String {
        let cases: Vec<_> = self
            .cases
            .iter()
            .map(|c| {
                let rounds: Vec<_> = c
                    .rounds
                    .iter()
                    .map(|r| {
                        r.costs
                            .iter()
                            .map(|(name, cost)| {
                                json!({"contender": name, "sent": cost.sent, "copies": cost.copies,
                                       "lost": cost.lost, "ns_per_copy": cost.ns_per_copy})
                            })
                            .collect::<Vec<_>>()
                    })
                    .collect();
                json!({"viewers": c.fan_out, "bytes": c.size, "shape": c.shape.name(), "rounds": rounds})
            })
            .collect();
        let latency = self.latency.as_ref().map(|l| {
            json!({"samples": l.samples, "direct_us": [l.direct.p50, l.direct.p99],
                   "relay_us": [l.relay.p50, l.relay.p99], "proxy_us": [l.proxy.p50, l.proxy.p99]})
        });
        let memory = self.memory.as_ref().map(|m| {
            json!({"idle_kib": m.idle_kib, "idle_anonymous_kib": m.idle_anonymous_kib, "cameras": m.cameras,
                   "loaded_kib": m.loaded_kib, "loaded_anonymous_kib": m.loaded_anonymous_kib})
        });
        format!(
            "{:#}\n",
            json!({"rounds": self.rounds, "seconds": self.seconds, "kernel": kernel(),
                   "closed": closed::table::json(&self.closed), "cases": cases,
                   "latency": latency, "memory": memory, "disqualified": self.disqualified})
        )
    }

    pub(crate) fn to_markdown(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "Kernel {}, {} rounds of {} s per contender and case, interleaved in random order; medians of \
             per-round ratios, 95 % bootstrap interval.\n",
            kernel(),
            self.rounds,
            self.seconds
        );
        out.push_str(&closed::table::markdown(&self.closed));
        if !self.cases.is_empty() {
            out.push_str(
                "\n**Open loop, printed.** CPU ns per copy of the contender's process, which packets wake.\n\n",
            );
            out.push_str(
                "| fan-out | packet | traffic | rtp-proxy ns/copy | tokio relay ns/copy | relay ÷ proxy | target | met | segmenting relay ÷ proxy | lost of copies (proxy; relay) |\n|---|---|---|---|---|---|---|---|---|---|\n",
            );
        }
        for case in &self.cases {
            let (low, high) = interval(&case.ratios());
            let ((lost, copies), (relay_lost, relay_copies)) = (case.lost(PROXY), case.lost(TOKIO));
            let (floor_low, floor_high) = interval(&case.ratios_of(SEGMENTING));
            let _ = writeln!(
                out,
                "| 1→{} | {} B | {} | {:.0} | {:.0} | {:.2} [{low:.2}, {high:.2}] | ≥ {:.2} | {} | {:.2} [{floor_low:.2}, {floor_high:.2}] | {lost}/{copies}; {relay_lost}/{relay_copies} |",
                case.fan_out,
                case.size,
                case.shape.name(),
                median(&case.costs(PROXY)),
                median(&case.costs(TOKIO)),
                median(&case.ratios()),
                case.target(),
                verdict(&case.ratios(), case.target()),
                median(&case.ratios_of(SEGMENTING)),
            );
        }
        if let Some(l) = &self.latency {
            let _ = writeln!(
                out,
                "\n| path, 172 B every ms, {} samples | p50 µs | p99 µs | added p50 | added p99 |\n|---|---|---|---|---|",
                l.samples
            );
            for (name, q) in [("direct", l.direct), (TOKIO, l.relay), ("rtp-proxy", l.proxy)] {
                let _ = writeln!(
                    out,
                    "| {name} | {:.1} | {:.1} | {:.1} | {:.1} |",
                    q.p50,
                    q.p99,
                    q.p50 - l.direct.p50,
                    q.p99 - l.direct.p99
                );
            }
        }
        if let Some(m) = &self.memory {
            let _ = writeln!(
                out,
                "\n| state | RSS KiB | of it anonymous | target |\n|---|---|---|---|\n| idle | {} | {} | ≤ 32,768 |\n| {} cameras, one viewer each | {} | {} | ≤ 65,536 |",
                m.idle_kib, m.idle_anonymous_kib, m.cameras, m.loaded_kib, m.loaded_anonymous_kib
            );
        }
        out
    }
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
