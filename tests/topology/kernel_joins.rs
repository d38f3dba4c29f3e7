//! Viewers that come and go by the hundred beside others that stay, while the kernel carries the media.
//!
//! `MSM_TEST_JOINS=1000:30` says how many a second and for how many seconds, and writes
//! `docs/results/joins.md`; CI runs a short cut of it.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use msm_fastpath::Gate;
use msm_tests::bench::stats::quantile;
use msm_tests::privilege::environment;
use msm_tests::probe::Load;
use msm_tests::process::output;
use rtp_proxy::kernel::table::Table as _;

use crate::kernel_guests::{
    GUEST_ADDRESSES, GUESTS, Party, STEADY, STREAMS, Stayed, Storm, Visit, Visits, cpu_seconds,
};
use crate::kernel_scene::Scene;

const ENV_JOINS: &str = "MSM_TEST_JOINS";
/// Sound and a key frame a second.
const LOAD: Load = Load { packet_bytes: 300, packets_per_second: 200, burst: 40 };
/// How long a guest stays after its first packet, and how long one of so many: until the kernel carries it.
const STAY: Duration = Duration::from_millis(60);
const LONG_STAY: Duration = Duration::from_millis(1_200);
const LONG_ONE_IN: u64 = 17;

fn stay(n: u64) -> Duration {
    if n.is_multiple_of(LONG_ONE_IN) { LONG_STAY } else { STAY }
}

/// What it costs to write one leg that joins, without anything around it: entry, gate and flow, in microseconds.
fn map_updates(scene: &Scene, times: usize) -> Result<Vec<f64>> {
    let mut held = scene.start(&scene.settings())?;
    let flow = held.forward(5004)?;
    let table = &mut held.share.table;
    let (_, entry) = table.published()?.into_iter().next().context("a flow")?;
    let leg = table.leg(entry.first_leg)?;
    let mut took = Vec::with_capacity(times);
    for n in 0..times {
        let start = Instant::now();
        table.put_leg(entry.first_leg, &leg)?;
        table.put_gate(flow.id, Gate::Armed(n as u16).into())?;
        table.put_flow(&flow.key, &entry)?;
        took.push(start.elapsed().as_secs_f64() * 1e6);
    }
    held.path.stop(false);
    Ok(took)
}

/// What it would cost to wait until no program runs any more that found what was replaced: an RCU grace period, in
/// microseconds.
fn grace_periods(times: usize) -> Vec<f64> {
    let wait = |_| {
        let start = Instant::now();
        // SAFETY: the command touches no memory: 1 is MEMBARRIER_CMD_GLOBAL, without flags and CPU.
        let done = unsafe { libc::syscall(libc::SYS_membarrier, 1, 0, 0) };
        (done == 0).then(|| start.elapsed().as_secs_f64() * 1e6)
    };
    (0..times).filter_map(wait).collect()
}

/// Everything that one run found.
struct Outcome {
    storm: Storm,
    visits: Visits,
    stayed: Stayed,
    cpu: f64,
    updates: Vec<f64>,
    grace: Vec<f64>,
}

fn run(scene: &Scene, storm: Storm) -> Result<Outcome> {
    let (updates, grace) = (map_updates(scene, 10_000)?, grace_periods(30));
    let party = Party::start(scene, "joins", LOAD)?;
    let cpu = cpu_seconds(&party.proxy)?;
    let visits = party.storm(scene, storm, &AtomicU64::new(0))?;
    let cpu = cpu_seconds(&party.proxy)? - cpu;
    let (stayed, _) = party.end(scene)?;
    Ok(Outcome { storm, visits, stayed, cpu, updates, grace })
}

impl Outcome {
    /// Whoever stayed lost nothing; whoever came got everything from the number on that it was told.
    fn check(&self) -> Result<()> {
        self.stayed.check()?;
        self.visits.check()
    }

    fn report(&self) -> Result<String> {
        let Visits { done, seconds, .. } = &self.visits;
        let mut text = String::new();
        let text_of = &mut text;
        let cores = std::thread::available_parallelism()?;
        writeln!(text_of, "# Joins and leaves beside legs that the kernel carries\n")?;
        writeln!(
            text_of,
            "`{ENV_JOINS}={}:{} MSM_TEST_PROXY=$PWD/target/release/rtp-proxy cargo test -p msm-tests --test topology \
             joins_and_leaves_at_rate` writes this file.\n",
            self.storm.rate,
            self.storm.total / u64::from(self.storm.rate)
        )?;
        writeln!(
            text_of,
            "{}, {cores} cores, Linux {}, load average {}; cameras, proxy, viewers and guests share them, each in a\n\
             network namespace of its own.\n",
            output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?.trim(),
            output("uname", &["-r"])?.trim(),
            std::fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default(),
        )?;
        writeln!(
            text_of,
            "{STREAMS} published streams, each {} packets/s of {} bytes, {} of them back to back once a second; {STEADY} \
             viewers of\neach stay, on rung `tcx`. Guests come to one stream after the other: SETUP, PLAY, {} ms of \
             media (one in {LONG_ONE_IN} stays {} ms,\nuntil the kernel carries it), TEARDOWN, over {GUESTS} RTSP connections from {GUEST_ADDRESSES} addresses. Every packet carries \
             its number; everybody accounts for each.\n",
            LOAD.packets_per_second,
            LOAD.packet_bytes,
            LOAD.burst,
            STAY.as_millis(),
            LONG_STAY.as_millis(),
        )?;
        writeln!(text_of, "| | |\n|---|---|")?;
        let sum = |value| self.visits.sum(value);
        let Stayed { packets, lost, doubled, reordered, wrong } = self.stayed;
        for (name, value) in [
            (
                "joins, and as many leaves, asked for",
                format!("{}/s for {} s", self.storm.rate, self.storm.total / u64::from(self.storm.rate)),
            ),
            ("done", format!("{} in {seconds:.1} s: {:.0}/s", done.len(), done.len() as f64 / seconds)),
            ("those who stayed: packets", packets.to_string()),
            ("lost, doubled, wrong", format!("{lost}, {doubled}, {wrong}")),
            ("reordered", reordered.to_string()),
            ("guests: packets", sum(|visit| visit.packets).to_string()),
            ("lost, doubled", format!("{}, {}", sum(|visit| visit.lost), sum(|visit| visit.doubled))),
            ("first packet is not that of RTP-Info", sum(|visit| u64::from(visit.inexact)).to_string()),
            ("CPU of the proxy", format!("{:.2} cores", self.cpu / seconds)),
        ] {
            writeln!(text_of, "| {name} | {value} |")?;
        }
        writeln!(text_of, "\n| time | p50 | p99 | longest |\n|---|---|---|---|")?;
        type Of = fn(&Visit) -> f64;
        let times: [(&str, Of); 6] = [
            ("SETUP to its answer", |visit| visit.setup),
            ("PLAY to its answer", |visit| visit.play),
            ("PLAY to the first packet", |visit| visit.play_to_packet),
            ("SETUP to the first packet", |visit| visit.setup_to_packet),
            ("TEARDOWN to its answer", |visit| visit.leave),
            ("behind its time, no seat being free", |visit| visit.late),
        ];
        for (name, of) in times {
            let values: Vec<f64> = done.iter().map(|visit| of(visit) * 1e3).collect();
            let at = |q: f64| quantile(&values, q);
            writeln!(text_of, "| {name} | {:.2} ms | {:.2} ms | {:.1} ms |", at(0.5), at(0.99), at(1.0))?;
        }
        let at = |q: f64| quantile(&self.updates, q);
        writeln!(
            text_of,
            "| a leg written into the kernel's maps: entry, gate, flow | {:.1} µs | {:.1} µs | {:.0} µs |",
            at(0.5),
            at(0.99),
            at(1.0)
        )?;
        let at = |q: f64| quantile(&self.grace, q) / 1e3;
        writeln!(
            text_of,
            "| an RCU grace period (`membarrier`), for comparison with the 5 ms of ADR 0005 | {:.1} ms | {:.1} ms | {:.0} ms |",
            at(0.5),
            at(0.99),
            at(1.0)
        )?;
        let wait = 1e3 / f64::from(LOAD.packets_per_second - LOAD.burst);
        writeln!(
            text_of,
            "\nA camera's next packet is up to {wait:.1} ms away; that is in every time to a packet."
        )?;
        Ok(text)
    }
}

#[test]
fn joins_and_leaves_at_rate_disturb_nobody_and_rtp_info_is_exact() -> Result<()> {
    let test = "joins_and_leaves_at_rate_disturb_nobody_and_rtp_info_is_exact";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let asked = environment(ENV_JOINS);
    let (rate, seconds) = match &asked {
        None => (100, 3),
        Some(text) => {
            let (rate, seconds) = text.split_once(':').context("MSM_TEST_JOINS is RATE:SECONDS")?;
            (rate.parse()?, seconds.parse()?)
        }
    };
    let outcome = run(&scene, Storm { rate, total: u64::from(rate) * seconds, stay })?;
    let report = outcome.report()?;
    eprintln!("{report}");
    if asked.is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results/joins.md"), &report)?;
    }
    outcome.check()
}
