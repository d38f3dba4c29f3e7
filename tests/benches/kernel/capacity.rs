//! B6: the highest rate without loss.
//!
//! A relay has core 0 to itself, generator and sinks are on core 1. The kernel path has no such rate on veth:
//! it runs in the sender's own call, so a saturated sender is what is found, and says so.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use msm_tests::bench::cpu::{KernelThreads, pin};
use serde_json::json;

use super::lane::Lane;
use super::report::Outcome;
use super::rounds::Plan;
use super::rtpengine;
use super::topology::Topology;

/// Steps of the search, and runs that confirm its end.
const STEPS: usize = 12;
const CONFIRMATIONS: usize = 3;
/// Where the search starts: beyond what any relay here reaches.
const CEILING: f64 = 60_000.0;

/// Packets per second without loss, or nothing where no rate was confirmed.
fn search(lane: &mut Lane, topology: &Topology, each: Duration) -> Result<Option<f64>> {
    let softirqs = KernelThreads::named("ksoftirqd/")?;
    let (mut good, mut bad) = (100.0_f64, CEILING);
    let fragile = lane.name == rtpengine::NAME;
    let mut lossless = |rate: f64, how_long| -> Result<bool> {
        lane.generator.rate = Some(rate as u32);
        let cost = lane.run(topology, &softirqs, how_long)?;
        let offered = cost.sent as f64 / (cost.wall_ns as f64 / 1e9);
        // A generator that does not reach the rate says nothing about it.
        Ok(cost.lost == 0 && offered > 0.97 * rate)
    };
    if fragile {
        // From below: it does not come back from an overload, nor would a confirmation tell more.
        let mut rate = f64::from(rtpengine::RATE);
        while rate < CEILING && lossless(rate, each)? {
            good = rate;
            rate *= 1.15;
        }
        return Ok((good >= f64::from(rtpengine::RATE)).then_some(good));
    }
    for _ in 0..STEPS {
        // Equal ratios: the answer may be anywhere between hundreds and tens of thousands.
        let rate = (good * bad).sqrt();
        if lossless(rate, each)? {
            good = rate;
        } else {
            bad = rate;
        }
    }
    // Down in steps of 5 % until all confirm.
    for _ in 0..6 {
        let mut confirmed = true;
        for _ in 0..CONFIRMATIONS {
            confirmed &= lossless(good, each * 5)?;
            if !confirmed {
                break;
            }
        }
        if confirmed {
            return Ok(Some(good));
        }
        good *= 0.95;
    }
    Ok(None)
}

/// Searches for each relay, measures what the kernel path does for a sender that never waits.
pub(crate) fn measure(
    topology: &Topology,
    relays: Vec<Lane>,
    kernel: Option<Lane>,
    plan: &Plan,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut table = String::from(
        "172 B, single packets, 1→16.\n\n| contender | runs | packets/s in | copies/s out |\n|---|---|---|---|\n",
    );
    for mut lane in relays {
        let name = lane.name.clone();
        if let Err(reason) = lane.gate(topology) {
            outcome.skipped.push((name, format!("disqualified: {reason:#}")));
            continue;
        }
        lane.count()?;
        pin(1)?;
        let found = search(&mut lane, topology, plan.each);
        pin(0)?;
        let rate = found.with_context(|| name.clone())?;
        let copies = rate.map(|r| r * lane.legs.len() as f64);
        let cell = |v: Option<f64>| v.map_or("not confirmed".to_owned(), |v| format!("{v:.0}"));
        let how = if name == rtpengine::NAME { "last of rising rates" } else { "confirmed" };
        let _ =
            writeln!(table, "| {name} | one core, zero loss, {how} | {} | {} |", cell(rate), cell(copies));
        outcome.raw.push(json!({"contender": name, "zero_loss_pps": rate, "copies_per_second": copies}));
    }
    if let Some(mut lane) = kernel {
        lane.gate(topology)?;
        lane.count()?;
        let softirqs = KernelThreads::named("ksoftirqd/")?;
        let cost = lane.run(topology, &softirqs, plan.each * 5)?;
        let seconds = cost.wall_ns as f64 / 1e9;
        let (rate, copies) = (cost.sent as f64 / seconds, cost.copies as f64 / seconds);
        let _ = writeln!(
            table,
            "| {} | in the saturated sender's core, {} lost | {rate:.0} | {copies:.0} |",
            lane.name, cost.lost
        );
        outcome.raw.push(json!({"contender": lane.name, "saturated_pps": rate, "copies_per_second": copies,
            "lost": cost.lost}));
    }
    table.push_str(
        "\nThe sender is the data path of the kernel's rows, so it cannot offer 1.5 times what they carry: no \
         capacity is claimed from this, the ratio of B1 stands. On two cores: not measured, the generator \
         needs one of them.\n",
    );
    outcome.tables.push(table);
    Ok(())
}
