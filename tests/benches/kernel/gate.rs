//! The short cut that CI runs: a few ratios of the catalogue, to see that nothing has become slower.
//!
//! In-tree contenders alone: one that is not installed could not fail.

use anyhow::Result;
use msm_tests::bench::stats::median;

use super::catalogue::{AUDIO, NAIVE, Run, SEGMENTING, TOKIO, ours};
use super::course::{Course, Traffic};
use super::fast::{Fast, Mode};
use super::generator::Shape;
use super::path::Path;
use super::report::{Outcome, Target};
use super::rounds::case;
use super::topology::Kind;

impl Run {
    /// B1 and the opaque groups of B4, gross.
    pub(crate) fn gate(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("GATE", "What CI compares");
        let course = Course::open(&self.programs, 16, false)?;
        outcome.offloads = course.topology.offloads()?;
        let mut fast = Fast::open(&course)?;
        let single = Traffic { shape: Shape::Single, size: AUDIO, legs: 16, merged: false, rate: None };
        let supers = Traffic { shape: Shape::Super(32), merged: true, ..single };
        let (audio, opaque) = (ours(Kind::Inline, Mode::PerLeg), ours(Kind::Inline, Mode::Opaque));
        let lanes = vec![
            fast.lane(&course, &audio, Kind::Inline, Mode::PerLeg, single)?,
            course.closed(TOKIO, single, Path::tokio)?,
        ];
        let label = "B1: 172 B, single packets, 1→16";
        let targets = [(TOKIO, Target::AtLeast(3.0))];
        self.compare(&course, label, lanes, &audio, &targets, &mut outcome)?;
        let lanes = vec![
            fast.lane(&course, &opaque, Kind::Inline, Mode::Opaque, supers)?,
            course.closed(NAIVE, supers, Path::naive)?,
            course.closed(SEGMENTING, supers, Path::segmenting)?,
        ];
        let label = "B4: 172 B, super-packets of 32, 1→16";
        let targets = [(NAIVE, Target::AtLeast(60.0)), (SEGMENTING, Target::Nothing)];
        self.compare(&course, label, lanes, &opaque, &targets, &mut outcome)?;
        Ok(outcome)
    }

    /// How many times dearer each of the others is than `ours`. Who fails its gate has no figures, which is for the
    /// reader to notice.
    fn compare(
        &mut self,
        course: &Course,
        label: &str,
        lanes: Vec<super::lane::Lane>,
        ours: &str,
        others: &[(&str, Target)],
        outcome: &mut Outcome,
    ) -> Result<()> {
        let case = case(label, &course.topology, lanes, &self.plan, &mut self.shuffle)?;
        for (other, target) in others {
            let ratios: Vec<f64> =
                case.gross(other).iter().zip(case.gross(ours)).map(|(other, ours)| other / ours).collect();
            eprintln!("{label}: {other} ÷ {ours}: {:.2}", median(&ratios));
            outcome.find(&format!("{label}: {other} ÷ {ours}"), "times", ratios, *target);
        }
        outcome.cases.push(case);
        Ok(())
    }
}
