//! B3's other curve: from which bursts on merging them pays, by the number of viewers.
//!
//! It is what `rtp-proxy` switches by (`rtp-proxy/src/kernel/batching.rs`). Both ways are paced alike, so that the NAPI
//! thread pays for its waking and the caches are as cold for one as for the other.

use std::fmt::Write as _;

use anyhow::Result;
use msm_tests::bench::stats::{interval, median};
use serde_json::json;

use super::catalogue::{Run, VIDEO};
use super::course::{Course, Traffic, floor_name};
use super::fast::{Fast, Mode};
use super::generator::Shape;
use super::report::Outcome;
use super::rounds::{Case, case};
use super::topology::Kind;

const LEGS: [usize; 4] = [1, 4, 16, 64];
const BURSTS: [usize; 5] = [4, 8, 12, 16, 32];
/// Bursts per second, and copies per second that are not exceeded: a third of a core.
const BURST_RATE: usize = 500;
const COPIES: usize = 300_000;

/// As `--lanes`: B3 is this curve alone.
const ALONE: &str = "break-even";

const INLINE: &str = "one by one";
const MERGED: &str = "merged";

impl Run {
    /// Cost of a copy, bursts merged and not, by viewers and burst.
    pub(crate) fn break_even(&mut self, outcome: &mut Outcome) -> Result<()> {
        let mut plan = self.plan.clone();
        match plan.lanes.take() {
            // A profile of something else.
            _ if plan.cases.is_some() => return Ok(()),
            None => plan.each /= 2,
            Some(only) if only == ALONE => {}
            Some(_) => return Ok(()),
        }
        let course = Course::open(&self.programs, LEGS[LEGS.len() - 1], false)?;
        let mut fast = Fast::open(&course)?;
        let mut table = String::from(
            "1200 B, plain sockets, both ways paced alike: net ns per copy one by one → merged, and how many times \
             dearer one by one is, with its 95 % interval. Where it is above 1, merging pays.\n\n| viewers |",
        );
        for burst in BURSTS {
            let _ = write!(table, " bursts of {burst} |");
        }
        let _ = writeln!(table, " pays from |\n|---|{}---|", "---|".repeat(BURSTS.len()));
        for legs in LEGS {
            let _ = write!(table, "| {legs} |");
            let mut curve = Vec::new();
            for burst in BURSTS {
                let rate = (BURST_RATE * burst).min(COPIES / legs) as u32;
                let traffic = Traffic {
                    shape: Shape::Burst(burst),
                    size: VIDEO,
                    legs,
                    merged: false,
                    rate: Some(rate),
                };
                let mut lanes = vec![course.floor(traffic)?];
                for (name, kind) in [(INLINE, Kind::Inline), (MERGED, Kind::Batched)] {
                    lanes.push(fast.lane(&course, name, kind, Mode::PerLeg, traffic)?);
                }
                let floor = floor_name(Some(rate));
                for lane in &mut lanes {
                    lane.floor.clone_from(&floor);
                }
                let label = format!("1200 B, {}, 1→{legs}", traffic.shape);
                let case = case(&label, &course.topology, lanes, &plan, &mut self.shuffle)?;
                let _ = write!(table, " {} |", cell(&case));
                curve.push((burst as f64, median(&ratios(&case))));
                outcome.raw.push(json!({"break_even": {"legs": legs, "burst": burst, "case": case}}));
            }
            let from =
                crossing(&curve).map_or("never here".to_owned(), |burst| format!("{burst:.0} packets"));
            let _ = writeln!(table, " {from} |");
        }
        outcome.tables.push(table);
        Ok(())
    }
}

/// How many times dearer a copy is without merging, round by round.
fn ratios(case: &Case) -> Vec<f64> {
    case.net(INLINE).iter().zip(case.net(MERGED)).map(|(inline, merged)| inline / merged).collect()
}

fn cell(case: &Case) -> String {
    if let Some((name, why)) = case.disqualified.first() {
        return format!("{name} disqualified: {why}");
    }
    let lost: u64 = [INLINE, MERGED].iter().map(|name| case.lost(name).0).sum();
    let lost = if lost > 0 { format!(", {lost} lost") } else { String::new() };
    let found = ratios(case);
    let (low, high) = interval(&found);
    format!(
        "{:.0} → {:.0}, {:.2} [{low:.2}, {high:.2}]{lost}",
        median(&case.net(INLINE)),
        median(&case.net(MERGED)),
        median(&found)
    )
}

/// The burst from which on the ratio stays above 1, between two points by a straight line.
fn crossing(curve: &[(f64, f64)]) -> Option<f64> {
    let mut from = None;
    for (at, (burst, ratio)) in curve.iter().enumerate() {
        if *ratio < 1.0 || ratio.is_nan() {
            from = None;
        } else if from.is_none() {
            from = Some(match at.checked_sub(1).and_then(|before| curve.get(before)) {
                Some((before, less)) if less.is_finite() => {
                    before + (burst - before) * (1.0 - less) / (ratio - less)
                }
                _ => *burst,
            });
        }
    }
    from
}
