//! What was found, as Markdown for people and JSON for whoever doubts it. Everything in the report is
//! computed from the rounds.

use std::fmt::Write as _;

use msm_tests::bench::stats::{interval, median};
use serde_json::{Value, json};

use super::course::floor_name;
use super::rounds::{Case, Plan};

/// Whether the generator's own cost is part of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy)]
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
            Self::AtLeast(least) => (format!("≥ {least:.2}"), low >= least),
            Self::AtMost(most) => (format!("≤ {most:.2}"), high <= most),
        };
        let met = match met {
            _ if values.is_empty() => "not measured",
            true => "yes",
            false => "**no**",
        };
        format!("{target} | {met}")
    }
}

/// A ratio of two contenders' costs in one case.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) case: usize,
    pub(crate) ours: String,
    pub(crate) ours_basis: Basis,
    pub(crate) against: String,
    pub(crate) against_basis: Basis,
    pub(crate) target: Target,
}

/// One benchmark of the catalogue.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// What the network was like.
    pub(crate) offloads: String,
    pub(crate) cases: Vec<Case>,
    pub(crate) claims: Vec<Claim>,
    /// Contenders that did not take part, and why.
    pub(crate) skipped: Vec<(String, String)>,
    /// Tables of measurements that are no rounds of costs.
    pub(crate) tables: Vec<String>,
    /// The raw form of these.
    pub(crate) raw: Vec<Value>,
    /// Sanity checks that failed: the figures are not to be believed.
    pub(crate) doubts: Vec<String>,
    /// Picture of the figures: file name and content.
    pub(crate) plots: Vec<(String, String)>,
}

impl Outcome {
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

    fn ratios(&self, claim: &Claim) -> Vec<f64> {
        let Some(case) = self.cases.get(claim.case) else { return Vec::new() };
        let of = |name: &str, basis| match basis {
            Basis::Gross => case.gross(name),
            Basis::Net => case.net(name),
        };
        let ours = of(&claim.ours, claim.ours_basis);
        of(&claim.against, claim.against_basis).iter().zip(ours).map(|(a, o)| a / o).collect()
    }

    /// Looks for what would make the figures wrong.
    pub(crate) fn doubt(&mut self) {
        for case in &self.cases {
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

    pub(crate) fn to_markdown(&self, plan: &Plan) -> String {
        let mut out = format!("### {} {}\n\n{}\n\n", self.id, self.title, self.offloads);
        for case in &self.cases {
            let _ = writeln!(
                out,
                "{}; {} rounds of {:.1} s per contender.\n",
                case.label,
                case.rounds.len(),
                plan.each.as_secs_f64()
            );
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
        for table in &self.tables {
            out.push_str(table);
            out.push('\n');
        }
        for (name, reason) in &self.skipped {
            let _ = writeln!(out, "- skipped: {name}: {reason}");
        }
        for doubt in &self.doubts {
            let _ = writeln!(out, "- **doubt**: {doubt}");
        }
        for (file, _) in &self.plots {
            let _ = writeln!(out, "\n![{} {}](img/{file})", self.id, self.title);
        }
        out
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
            let label = self.cases.get(claim.case).map_or("", |c| c.label.as_str());
            let basis = if claim.ours_basis == claim.against_basis {
                claim.ours_basis.name().to_owned()
            } else {
                format!("{} ÷ {}", claim.against_basis.name(), claim.ours_basis.name())
            };
            let _ = writeln!(
                out,
                "| {label} | {} ÷ {} | {basis} | {:.2} [{low:.2}, {high:.2}] | {} |",
                claim.against,
                claim.ours,
                median(&ratios),
                claim.target.judge(&ratios)
            );
        }
        out.push('\n');
    }

    pub(crate) fn to_json(&self) -> Value {
        let cases: Vec<Value> = self
            .cases
            .iter()
            .map(|case| {
                let rounds: Vec<Value> = case
                    .rounds
                    .iter()
                    .map(|round| {
                        let costs = round.iter().zip(&case.entrants).map(|(c, e)| {
                            json!({"contender": e.name, "sent": c.sent, "copies": c.copies, "lost": c.lost,
                                   "frames": c.frames, "verified": c.verified, "wall_ns": c.wall_ns,
                                   "generator_ns": c.generator_ns, "process_ns": c.process_ns,
                                   "kernel_ns": c.kernel_ns, "foreign_ns": c.foreign_ns,
                                   "steal_ns": c.steal_ns})
                        });
                        Value::Array(costs.collect())
                    })
                    .collect();
                let entrants: Vec<Value> = case
                    .entrants
                    .iter()
                    .map(|e| {
                        json!({"name": e.name, "version": e.version, "runs": e.how, "floor": e.floor,
                               "legs": e.legs, "burst": e.burst})
                    })
                    .collect();
                json!({"case": case.label, "bytes": case.size, "contenders": entrants, "rounds": rounds,
                       "disturbed": case.disturbed, "disqualified": case.disqualified})
            })
            .collect();
        json!({"benchmark": self.id, "title": self.title, "offloads": self.offloads, "cases": cases, "other": self.raw,
               "skipped": self.skipped, "doubts": self.doubts})
    }
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("kernel {}", release.trim())
}
