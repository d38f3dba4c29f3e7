//! The closed loop's rounds as JSON and as a table.

use std::fmt::Write as _;

use msm_tests::bench::stats::{interval, median};
use serde_json::{Value, json};

use super::super::contender::{PROXY, SEGMENTING, TOKIO};
use super::super::report::{target, verdict};
use super::{Case, SOURCE};

/// A contender's cost over ours, round by round.
fn ratios(theirs: &[f64], ours: &[f64]) -> Vec<f64> {
    theirs.iter().zip(ours).map(|(theirs, ours)| theirs / ours).collect()
}

impl Case {
    fn net_ratios(&self, name: &str) -> Vec<f64> {
        ratios(&self.net(name), &self.net(PROXY))
    }

    fn gross_ratios(&self, name: &str) -> Vec<f64> {
        ratios(&self.gross(name), &self.gross(PROXY))
    }

    pub(crate) fn line(&self) -> String {
        let ratios = self.net_ratios(TOKIO);
        let (low, high) = interval(&ratios);
        format!(
            "closed 1→{} {} B {}: rtp-proxy {:.0} ns net, tokio relay {:.0}, ratio {:.2} [{low:.2}, {high:.2}] (target {:.2}), gross {:.2}; segmenting relay {:.0}, ratio {:.2}; source {:.0}; lost {:?}; disturbed {}",
            self.fan_out,
            self.size,
            self.shape.name(),
            median(&self.net(PROXY)),
            median(&self.net(TOKIO)),
            median(&ratios),
            target(self.shape, self.fan_out),
            median(&self.gross_ratios(TOKIO)),
            median(&self.net(SEGMENTING)),
            median(&self.net_ratios(SEGMENTING)),
            median(&self.gross(SOURCE)),
            self.lost(PROXY),
            self.disturbed,
        )
    }

    fn row(&self) -> String {
        let net = self.net_ratios(TOKIO);
        let (low, high) = interval(&net);
        let floor = self.net_ratios(SEGMENTING);
        let (floor_low, floor_high) = interval(&floor);
        let (lost, copies) = self.lost(PROXY);
        let (relay_lost, relay_copies) = self.lost(TOKIO);
        format!(
            "| 1→{} | {} B | {} | {:.0} | {:.0} | {:.2} [{low:.2}, {high:.2}] | ≥ {:.2} | {} | {:.2} | {:.2} [{floor_low:.2}, {floor_high:.2}] | {lost}/{copies}; {relay_lost}/{relay_copies} |",
            self.fan_out,
            self.size,
            self.shape.name(),
            median(&self.net(PROXY)),
            median(&self.net(TOKIO)),
            median(&net),
            target(self.shape, self.fan_out),
            verdict(&net, target(self.shape, self.fan_out)),
            median(&self.gross_ratios(TOKIO)),
            median(&floor),
        )
    }

    fn json(&self) -> Value {
        let rounds: Vec<Vec<_>> = self
            .rounds
            .iter()
            .map(|round| {
                round
                    .iter()
                    .map(|(name, cost)| {
                        json!({"contender": name, "sent": cost.sent, "copies": cost.copies,
                               "lost": cost.lost, "cpu_ns": cost.ns})
                    })
                    .collect()
            })
            .collect();
        json!({"viewers": self.fan_out, "bytes": self.size, "shape": self.shape.name(),
               "repeated": self.repeated, "disturbed": self.disturbed, "rounds": rounds})
    }
}

pub(crate) fn json(cases: &[Case]) -> Vec<Value> {
    cases.iter().map(Case::json).collect()
}

pub(crate) fn markdown(cases: &[Case]) -> String {
    let mut out = String::new();
    if cases.is_empty() {
        return out;
    }
    let sum = |of: fn(&Case) -> usize| cases.iter().map(of).sum::<usize>();
    let _ = writeln!(
        out,
        "**Closed loop, gated.** Net CPU ns per copy, everything in one thread. *Gross*: relay ÷ proxy with the \
         source in both. {} runs were repeated because others used the machine, {} count although they did.\n\n\
         | fan-out | packet | traffic | rtp-proxy net | tokio relay net | relay ÷ proxy | target | met | \
         gross | segmenting relay ÷ proxy | lost of copies (proxy; relay) |\n\
         |---|---|---|---|---|---|---|---|---|---|---|",
        sum(|case| case.repeated),
        sum(|case| case.disturbed),
    );
    for case in cases {
        let _ = writeln!(out, "{}", case.row());
    }
    out
}
