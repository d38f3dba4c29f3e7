//! What was found. It is kept as JSON with every round; the Markdown is computed from that and nothing else.

use std::fmt::Write as _;

use msm_tests::bench::stats::{interval, median};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::course::floor_name;
use super::figures::Figure;
use super::latency::Latencies;
use super::results::Conditions;
use super::rounds::Case;

/// Whether the generator's own cost is part of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Basis {
    Gross,
    Net,
}

impl Basis {
    fn name(self) -> &'static str {
        match self {
            Self::Gross => "gross",
            Self::Net => "net",
        }
    }
}

/// What a target asks of a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Printed for comparison.
    Nothing,
}

impl Target {
    /// Two cells: the target, and whether the edge of the interval that is worse for us meets it.
    pub(crate) fn judge(self, values: &[f64]) -> String {
        let (low, high) = interval(values);
        let (target, met) = match self {
            Self::Nothing => return " | ".to_owned(),
            Self::AtLeast(least) => (format!("≥ {}", number(least)), low >= least),
            Self::AtMost(most) => (format!("≤ {}", number(most)), high <= most),
        };
        let met = match met {
            _ if values.is_empty() => "not measured",
            true => "yes",
            false => "**no**",
        };
        format!("{target} | {met}")
    }

    /// As [`Self::judge`], where copies were lost: the cost of those that arrived meets no target.
    fn judge_lossy(self, values: &[f64], lost: u64) -> String {
        match self {
            Self::AtLeast(_) | Self::AtMost(_) if lost > 0 => {
                let judged = self.judge(values);
                let target = judged.split(" | ").next().unwrap_or_default();
                format!("{target} | **no**, {lost} copies lost")
            }
            _ => self.judge(values),
        }
    }
}

/// A ratio of two contenders' costs in one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) case: usize,
    pub(crate) ours: String,
    pub(crate) ours_basis: Basis,
    pub(crate) against: String,
    pub(crate) against_basis: Basis,
    pub(crate) target: Target,
}

/// A figure that is no ratio of costs, with what is asked of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) what: String,
    pub(crate) unit: String,
    /// One per round, or the only one.
    pub(crate) values: Vec<f64>,
    pub(crate) target: Target,
}

/// One benchmark of the catalogue.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) conditions: Conditions,
    /// What the network was like.
    pub(crate) offloads: String,
    pub(crate) cases: Vec<Case>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) latencies: Vec<Latencies>,
    pub(crate) found: Vec<Found>,
    /// Contenders that did not take part, and why.
    pub(crate) skipped: Vec<(String, String)>,
    /// Tables of measurements that are no rounds of costs.
    pub(crate) tables: Vec<String>,
    /// The raw form of these.
    pub(crate) raw: Vec<Value>,
    /// Sanity checks that failed: the figures are not to be believed.
    pub(crate) doubts: Vec<String>,
    /// What is to be drawn.
    pub(crate) figures: Vec<Figure>,
}

impl Outcome {
    pub(crate) fn new(id: &str, title: &str) -> Self {
        Self { id: id.to_owned(), title: title.to_owned(), ..Self::default() }
    }

    /// Notes a figure and what is asked of it.
    pub(crate) fn find(&mut self, what: &str, unit: &str, values: Vec<f64>, target: Target) {
        // JSON knows no infinity.
        let values = values.into_iter().filter(|v| v.is_finite()).collect();
        self.found.push(Found { what: what.to_owned(), unit: unit.to_owned(), values, target });
    }

    /// Draws the costs of a case.
    pub(crate) fn draw_costs(&mut self, file: &str, title: &str, case: usize, net: bool) {
        let (file, title) = (file.to_owned(), title.to_owned());
        self.figures.push(Figure::Costs { file, title, case, net });
    }

    /// Draws the figures of one unit.
    pub(crate) fn draw_found(&mut self, file: &str, title: &str, unit: &str) {
        let (file, title, unit) = (file.to_owned(), title.to_owned(), unit.to_owned());
        self.figures.push(Figure::Found { file, title, unit });
    }

    /// Claims that `ours` costs a certain fraction of `against`, both on the same basis.
    pub(crate) fn claim(&mut self, case: usize, ours: &str, against: &str, basis: Basis, target: Target) {
        self.claim_across(case, (ours, basis), (against, basis), target);
    }

    /// The same where the two are paced differently, so that only net figures compare.
    pub(crate) fn claim_across(
        &mut self,
        case: usize,
        (ours, ours_basis): (&str, Basis),
        (against, against_basis): (&str, Basis),
        target: Target,
    ) {
        let (ours, against) = (ours.to_owned(), against.to_owned());
        self.claims.push(Claim { case, ours, ours_basis, against, against_basis, target });
    }

    /// Round by round.
    pub(crate) fn ratios(&self, claim: &Claim) -> Vec<f64> {
        let Some(case) = self.cases.get(claim.case) else { return Vec::new() };
        let of = |name: &str, basis| match basis {
            Basis::Gross => case.gross(name),
            Basis::Net => case.net(name),
        };
        let ours = of(&claim.ours, claim.ours_basis);
        of(&claim.against, claim.against_basis).iter().zip(ours).map(|(a, o)| a / o).collect()
    }

    /// Copies that either side of a claim lost.
    pub(crate) fn lost(&self, claim: &Claim) -> u64 {
        let Some(case) = self.cases.get(claim.case) else { return 0 };
        case.lost(&claim.ours).0 + case.lost(&claim.against).0
    }

    /// Looks for what would make the figures wrong.
    pub(crate) fn doubt(&mut self) {
        for case in &self.cases {
            if case.noisy > 0 {
                self.doubts.push(format!(
                    "{}: {} of {} rounds count although the machine did not get quiet",
                    case.label,
                    case.noisy,
                    case.rounds.len()
                ));
            }
            for entrant in &case.entrants {
                let busy = case.busy(&entrant.name);
                // Elsewhere than in a closed loop a core may rest; beside foreign load it must.
                let closed = entrant.floor == floor_name(None) && !entrant.threaded;
                if closed && (busy > 1.05 || busy < 0.95 && case.disturbed == 0) {
                    self.doubts.push(format!(
                        "{}: {}: a closed loop was on a core for {:.0} % of the time",
                        case.label,
                        entrant.name,
                        100.0 * busy
                    ));
                }
                let (lost, copies) = case.lost(&entrant.name);
                if entrant.legs > 0 && lost * 1000 > copies {
                    self.doubts.push(format!(
                        "{}: {}: {lost} copies lost beside {copies}",
                        case.label, entrant.name
                    ));
                }
                if entrant.legs > 0 && case.rounds.iter().flatten().map(|c| c.verified).sum::<u64>() == 0 {
                    self.doubts.push(format!("{}: no copy of the runs was compared", case.label));
                }
                let alone = case.net(&entrant.name).iter().filter(|n| **n < 0.0).count();
                if entrant.legs > 0 && alone > 0 {
                    self.doubts.push(format!(
                        "{}: {}: cheaper than the generator alone in {alone} rounds",
                        case.label, entrant.name
                    ));
                }
            }
        }
    }

    /// The section of the report; pictures are in `plots`, as seen from the report.
    pub(crate) fn to_markdown(&self, plots: &str) -> String {
        let mut out =
            format!("### {} {}\n\n{}\n", self.id, self.title, self.conditions.to_markdown(&self.id));
        if !self.offloads.is_empty() {
            let _ = writeln!(out, "\n{}", self.offloads);
        }
        for figure in &self.figures {
            let _ = writeln!(out, "\n![{}]({plots}/{})", figure.title(), figure.file());
        }
        out.push('\n');
        for case in &self.cases {
            let _ = writeln!(out, "{}; {} rounds.\n", case.label, case.rounds.len());
            out.push_str(
                "| contender | version | runs | copies per packet | ns/copy | of it not the generator's | \
                 packets per frame at the viewer | lost of copies |\n|---|---|---|---|---|---|---|---|\n",
            );
            for e in &case.entrants {
                if e.legs == 0 {
                    let per_packet = case.per_packet(&e.name);
                    let _ = writeln!(
                        out,
                        "| {} | {} | {} | 0 | {:.0} per packet | | | |",
                        e.name,
                        e.version,
                        e.how,
                        median(&per_packet)
                    );
                    continue;
                }
                let (low, high) = interval(&case.gross(&e.name));
                let (lost, copies) = case.lost(&e.name);
                let _ = writeln!(
                    out,
                    "| {} | {} | {} | {} | {:.0} [{low:.0}, {high:.0}] | {:.0} | {:.1} | {lost}/{copies} |",
                    e.name,
                    e.version,
                    e.how,
                    e.legs,
                    median(&case.gross(&e.name)),
                    median(&case.net(&e.name)),
                    case.merged(&e.name),
                );
            }
            for (name, reason) in &case.disqualified {
                let _ = writeln!(out, "| {name} | | | | disqualified: {} | | | |", reason.replace('|', "/"));
            }
            if case.disturbed > 0 {
                let _ = writeln!(out, "\n{} runs met a machine that was not quiet.", case.disturbed);
            }
            out.push('\n');
        }
        self.claims_to_markdown(&mut out);
        for latencies in &self.latencies {
            out.push_str(&latencies.to_markdown());
            out.push('\n');
        }
        for table in &self.tables {
            out.push_str(table);
            out.push('\n');
        }
        self.found_to_markdown(&mut out);
        for (name, reason) in &self.skipped {
            let _ = writeln!(out, "- skipped: {name}: {reason}");
        }
        for doubt in &self.doubts {
            let _ = writeln!(out, "- **doubt**: {doubt}");
        }
        out
    }

    fn found_to_markdown(&self, out: &mut String) {
        if self.found.is_empty() {
            return;
        }
        out.push_str("| figure | found, 95 % interval | target | met |\n|---|---|---|---|\n");
        for found in &self.found {
            let (low, high) = interval(&found.values);
            let value = match found.values.len() {
                0 => "not measured".to_owned(),
                1 => format!("{} {}", number(found.values[0]), found.unit),
                _ => format!(
                    "{} [{}, {}] {}",
                    number(median(&found.values)),
                    number(low),
                    number(high),
                    found.unit
                ),
            };
            let judged = found.target.judge(&found.values);
            let _ = writeln!(out, "| {} | {value} | {judged} |", found.what);
        }
        out.push('\n');
    }

    fn claims_to_markdown(&self, out: &mut String) {
        if self.claims.is_empty() {
            return;
        }
        out.push_str(
            "| traffic | cost of ÷ cost of | basis | ratio, 95 % interval | target | met |\n|---|---|---|---|---|---|\n",
        );
        for claim in &self.claims {
            let ratios = self.ratios(claim);
            // What takes no part has its reason below.
            if ratios.is_empty() && matches!(claim.target, Target::Nothing) {
                continue;
            }
            let (low, high) = interval(&ratios);
            let found = match ratios.len() {
                0 => "not measured".to_owned(),
                _ => format!("{:.2} [{low:.2}, {high:.2}]", median(&ratios)),
            };
            let label = self.cases.get(claim.case).map_or("", |c| c.label.as_str());
            let basis = if claim.ours_basis == claim.against_basis {
                claim.ours_basis.name().to_owned()
            } else {
                format!("{} ÷ {}", claim.against_basis.name(), claim.ours_basis.name())
            };
            let _ = writeln!(
                out,
                "| {label} | {} ÷ {} | {basis} | {found} | {} |",
                claim.against,
                claim.ours,
                claim.target.judge_lossy(&ratios, self.lost(claim))
            );
        }
        out.push('\n');
    }
}

/// A figure with the digits that it deserves.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("kernel {}", release.trim())
}
