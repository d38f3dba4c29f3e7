//! What is drawn of a benchmark: names in the record, pictures at report time.

use std::path::Path;

use anyhow::{Context as _, Result};
use msm_tests::bench::stats::{interval, median};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::course::floor_name;
use super::latency::STEPS;
use super::plot::{self, Bar, Curve, Line, Mark};
use super::report::{Basis, Outcome, Target};

/// One picture of one benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Figure {
    /// Costs of everyone in a case; with the generator's unless `net`.
    Costs { file: String, title: String, case: usize, net: bool },
    /// Net costs of some contenders over several cases.
    Curve {
        file: String,
        title: String,
        x_axis: String,
        labels: Vec<String>,
        names: Vec<String>,
        cases: Vec<usize>,
    },
    /// Distribution of latencies.
    Latency { file: String, title: String, traffic: usize },
    /// Figures of one unit.
    Found { file: String, title: String, unit: String },
}

impl Figure {
    pub(crate) fn file(&self) -> &str {
        match self {
            Self::Costs { file, .. }
            | Self::Curve { file, .. }
            | Self::Latency { file, .. }
            | Self::Found { file, .. } => file,
        }
    }

    pub(crate) fn title(&self) -> &str {
        match self {
            Self::Costs { title, .. }
            | Self::Curve { title, .. }
            | Self::Latency { title, .. }
            | Self::Found { title, .. } => title,
        }
    }

    fn draw(&self, outcome: &Outcome) -> String {
        match self {
            Self::Costs { title, case, net, .. } => costs(outcome, title, *case, *net),
            Self::Curve { title, x_axis, labels, names, cases, .. } => {
                let curve = |name: &String| Curve {
                    label: name.clone(),
                    marks: cases.iter().map(|case| mark(&outcome.cases.get(*case)?.net(name))).collect(),
                };
                let curves: Vec<Curve> = names.iter().map(curve).collect();
                let axis = "CPU ns per copy, net of the generator";
                plot::curves(title, axis, x_axis, labels, &curves)
            }
            Self::Latency { title, traffic, .. } => latency(outcome, title, *traffic),
            Self::Found { title, unit, .. } => {
                let all = outcome.found.iter().filter(|f| f.unit == *unit);
                let bars: Vec<Bar> = all
                    .filter_map(|found| {
                        let target = match found.target {
                            Target::AtLeast(v) | Target::AtMost(v) => Some(v),
                            Target::Nothing => None,
                        };
                        let ours = is_ours(&found.what);
                        Some(Bar { label: found.what.clone(), mark: mark(&found.values)?, ours, target })
                    })
                    .collect();
                plot::bars(title, unit, &bars)
            }
        }
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("rtp-proxy")
}

fn mark(values: &[f64]) -> Option<Mark> {
    let (low, high) = interval(values);
    let value = median(values);
    value.is_finite().then_some(Mark { value, low, high })
}

fn costs(outcome: &Outcome, title: &str, number: usize, net: bool) -> String {
    let Some(case) = outcome.cases.get(number) else { return plot::bars(title, "no such case", &[]) };
    let mut bars = Vec::new();
    for entrant in case.entrants.iter().filter(|e| e.legs > 0) {
        // What is paced compares without its generator only.
        let paced = entrant.floor != floor_name(None);
        let (values, basis) = if net || paced {
            (case.net(&entrant.name), Basis::Net)
        } else {
            (case.gross(&entrant.name), Basis::Gross)
        };
        let Some(mark) = mark(&values) else { continue };
        let label = if paced && !net { format!("{} (net)", entrant.name) } else { entrant.name.clone() };
        // Where this bar must end so that the strictest claim holds: ours by the others' cost, and where a limit is
        // asked, the dearer one by the cheaper one's.
        let median_of = |name: &str| match basis {
            Basis::Gross => median(&case.gross(name)),
            Basis::Net => median(&case.net(name)),
        };
        let claims = outcome.claims.iter();
        let claims = claims.filter(|c| c.case == number && c.ours_basis == basis && c.against_basis == basis);
        let limits = claims.filter_map(|claim| match claim.target {
            Target::AtLeast(least) if claim.ours == entrant.name => Some(median_of(&claim.against) / least),
            Target::AtMost(most) if claim.against == entrant.name => Some(median_of(&claim.ours) * most),
            _ => None,
        });
        let target = limits.filter(|l| l.is_finite()).min_by(f64::total_cmp);
        let ours = entrant.version.starts_with("rung");
        bars.push(Bar { label, mark, ours, target });
    }
    let axis = if net { "CPU ns per copy, net of the generator" } else { "CPU ns per copy" };
    plot::bars(title, axis, &bars)
}

/// Share of the samples above x.
fn latency(outcome: &Outcome, title: &str, traffic: usize) -> String {
    let mut lines = Vec::new();
    if let Some(latencies) = outcome.latencies.get(traffic) {
        for (name, histogram) in latencies.names.iter().zip(&latencies.histograms) {
            let all = histogram.iter().sum::<u64>() as f64;
            let mut above = all;
            let mut points = Vec::new();
            for (bucket, count) in histogram.iter().enumerate() {
                // The tail of fewer than ten samples is noise.
                if above >= 10.0 && (above < all || *count > 0) {
                    points.push((2_f64.powf(bucket as f64 / STEPS as f64), 100.0 * above / all));
                }
                above -= *count as f64;
            }
            lines.push(Line { label: name.clone(), points });
        }
    }
    let note = "all rounds together; the curve crosses 50, 1 and 0.1 % at p50, p99 and p99.9";
    plot::logarithmic(
        title,
        note,
        "% of the copies later than this",
        "µs from send to the receive stamp",
        &lines,
    )
}

/// How far each target is met or missed.
fn margins(outcomes: &[Outcome]) -> String {
    let mut rows = Vec::new();
    let mut row = |id: &str, what: &str, target: Target, values: &[f64]| {
        let scaled: Vec<f64> = match target {
            Target::AtLeast(least) => values.iter().map(|v| v / least).collect(),
            Target::AtMost(most) if most > 0.0 => values.iter().map(|v| most / v).collect(),
            _ => return,
        };
        if let Some(mark) = mark(&scaled) {
            rows.push((format!("{id} {what}"), mark));
        }
    };
    for outcome in outcomes {
        for claim in &outcome.claims {
            let traffic =
                outcome.cases.get(claim.case).map_or("", |c| c.label.split(", ").next().unwrap_or(""));
            let ours = claim.ours.trim_start_matches("rtp-proxy fast path, ");
            let lossy = if outcome.lost(claim) > 0 { ", copies lost" } else { "" };
            let what = format!("{traffic}: {} ÷ {ours}{lossy}", claim.against);
            row(&outcome.id, &what, claim.target, &outcome.ratios(claim));
        }
        for latencies in &outcome.latencies {
            for claim in &latencies.claims {
                let (what, quantile, values, target) = latencies.claimed(claim);
                let what = what.replace("rtp-proxy fast path, ", "");
                let to = latencies.label.rsplit(", ").next().unwrap_or("");
                let quantile = ["p50", "p99", "p99.9"][quantile];
                row(&outcome.id, &format!("{to}, {quantile}: {what}"), target, &values);
            }
        }
        for found in &outcome.found {
            row(&outcome.id, &found.what.replace("rtp-proxy fast path, ", ""), found.target, &found.values);
        }
    }
    plot::margins("Every target of the catalogue that has figures", &rows)
}

/// CPU ns per copy of a contender in one round of the user path's record; in a closed loop less what the source
/// alone needs.
fn user_cost(round: &Value, name: &str, closed: bool) -> Option<f64> {
    let of = |name: &str| round.as_array()?.iter().find(|cost| cost["contender"] == name);
    let cost = of(name)?;
    if !closed {
        return cost["ns_per_copy"].as_f64();
    }
    let alone = of("source alone")?;
    let per_packet = alone["cpu_ns"].as_f64()? / alone["sent"].as_f64()?.max(1.0);
    let net = per_packet.mul_add(-cost["sent"].as_f64()?, cost["cpu_ns"].as_f64()?);
    Some(net / cost["copies"].as_f64()?.max(1.0))
}

/// The user path's ratios, from its own record.
fn user_path(record: &Value) -> String {
    let cases = |name: &str| record[name].as_array().filter(|cases| !cases.is_empty());
    // The closed loop is what is gated.
    let (cases, closed) = match cases("closed") {
        Some(cases) => (Some(cases), true),
        None => (cases("cases"), false),
    };
    let mut rows = Vec::new();
    for case in cases.into_iter().flatten() {
        let (viewers, shape) = (case["viewers"].as_u64().unwrap_or(0), case["shape"].as_str().unwrap_or(""));
        let rounds = case["rounds"].as_array().into_iter().flatten();
        let ratios: Vec<f64> = rounds
            .filter_map(|round| {
                Some(user_cost(round, "tokio relay", closed)? / user_cost(round, "rtp-proxy", closed)?)
            })
            .collect();
        let Some(mark) = mark(&ratios) else { continue };
        let target = match (shape.contains("burst"), viewers) {
            (true, _) => 3.0,
            (false, 1) => 1.0 / 1.15,
            (false, _) => 1.0,
        };
        let label = format!("1→{viewers}, {} B, {shape}", case["bytes"]);
        rows.push(Bar { label, mark, ours: true, target: Some(target) });
    }
    let how = if closed { "closed loop" } else { "open loop" };
    let title = format!("The user path: how many times dearer a plain relay on tokio is, {how}");
    plot::bars(&title, "relay's CPU ns per copy ÷ rtp-proxy's", &rows)
}

/// Draws everything that was recorded into `folder`.
pub(crate) fn draw(outcomes: &[Outcome], user: Option<&Value>, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let write = |file: &str, svg: &str| {
        let path = folder.join(file);
        std::fs::write(&path, svg).with_context(|| path.display().to_string())
    };
    for outcome in outcomes {
        for figure in &outcome.figures {
            write(figure.file(), &figure.draw(outcome))?;
        }
    }
    if !outcomes.is_empty() {
        write("kernel-targets.svg", &margins(outcomes))?;
    }
    if let Some(record) = user {
        write("user-path.svg", &user_path(record))?;
    }
    Ok(())
}
