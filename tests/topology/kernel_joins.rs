//! Viewers that come and go by the hundred beside others that stay, while the kernel carries the media.
//!
//! `MSM_TEST_JOINS=1000:30` says how many a second and for how many seconds, and each test writes its section of
//! `docs/results/joins.md`; CI runs a short cut of both.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_fastpath::Gate;
use msm_tests::bench::stats::quantile;
use msm_tests::privilege::environment;
use msm_tests::probe::Load;
use rtp_proxy::kernel::table::Table as _;

use crate::kernel_guests::{
    GUEST_ADDRESSES, GUESTS, Party, STEADY, STREAMS, Stayed, Storm, Visit, Visits, cpu_seconds,
};
use crate::kernel_scene::Scene;
use crate::record;

const ENV_JOINS: &str = "MSM_TEST_JOINS";
const RESULTS: &str = "joins.md";
/// Sound and a key frame a second.
const LOAD: Load = Load { packet_bytes: 300, packets_per_second: 200, burst: 40 };
/// Sound, evenly spaced: of two packets' numbers one can tell how much later the second was sent.
const EVEN: Load = Load { packet_bytes: 172, packets_per_second: 50, burst: 1 };
/// How long a guest stays after its first packet, and how long one of so many: until the kernel carries it.
const STAY: Duration = Duration::from_millis(60);
const LONG_STAY: Duration = Duration::from_millis(1_200);
const LONG_ONE_IN: u64 = 17;

fn stay(n: u64) -> Duration {
    if n.is_multiple_of(LONG_ONE_IN) { LONG_STAY } else { STAY }
}

fn long_stay(_: u64) -> Duration {
    LONG_STAY
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
    load: Load,
    visits: Visits,
    stayed: Stayed,
    cpu: f64,
    updates: Vec<f64>,
    grace: Vec<f64>,
}

fn run(scene: &Scene, load: Load, storm: Storm) -> Result<Outcome> {
    let (updates, grace) = (map_updates(scene, 10_000)?, grace_periods(30));
    let party = Party::start(scene, "joins", load)?;
    let cpu = cpu_seconds(&party.proxy)?;
    let visits = party.storm(scene, storm, &AtomicU64::new(0))?;
    let cpu = cpu_seconds(&party.proxy)? - cpu;
    let (stayed, _) = party.end(scene)?;
    Ok(Outcome { storm, load, visits, stayed, cpu, updates, grace })
}

impl Outcome {
    /// Whoever stayed lost nothing; whoever came got everything from the number on that it was told.
    fn check(&self) -> Result<()> {
        self.stayed.check()?;
        self.visits.check()
    }

    /// Milliseconds from PLAY to the first packet that the kernel sent, of guests who got one. The camera sends evenly, so
    /// the number of packets before it tells.
    fn to_kernel(&self) -> Vec<f64> {
        let gap = 1e3 / f64::from(self.load.packets_per_second);
        let of = |visit: &Visit| Some(visit.play_to_packet * 1e3 + visit.before_carried? as f64 * gap);
        self.visits.done.iter().filter_map(of).collect()
    }

    fn report(&self, stays: &str) -> Result<String> {
        let Visits { done, seconds, .. } = &self.visits;
        let Load { packet_bytes, packets_per_second, burst } = self.load;
        let mut text = String::new();
        let text_of = &mut text;
        writeln!(
            text_of,
            "{}; cameras, proxy, viewers and guests share them, each in a network namespace of its own.\n",
            record::stamp(record::build()?)?
        )?;
        writeln!(
            text_of,
            "{STREAMS} published streams, each {packets_per_second} packets/s of {packet_bytes} bytes, {burst} of them back to \
             back once a second; {STEADY} viewers of\neach stay, on rung `tcx`. Guests come to one stream after the other: \
             SETUP, PLAY, {stays}, TEARDOWN, over {} RTSP\nconnections from {GUEST_ADDRESSES} addresses. Every packet carries \
             its number; everybody accounts for each.\n",
            self.storm.seats
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
            ("guests' packets that the kernel sent", {
                let (carried, all) = (sum(|visit| visit.carried), sum(|visit| visit.packets));
                format!("{carried}: {:.0} %", 100.0 * carried as f64 / all.max(1) as f64)
            }),
            ("guests whom the kernel carried before they left", {
                format!("{} of {}", sum(|visit| u64::from(visit.carried > 0)), done.len())
            }),
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
        if self.load.burst == 1 {
            let values = self.to_kernel();
            let at = |q: f64| quantile(&values, q);
            writeln!(
                text_of,
                "| PLAY to the first packet that the kernel sent | {:.0} ms | {:.0} ms | {:.0} ms |",
                at(0.5),
                at(0.99),
                at(1.0)
            )?;
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
        let wait = 1e3 / f64::from(packets_per_second - burst);
        writeln!(
            text_of,
            "\nA camera's next packet is up to {wait:.1} ms away; that is in every time to a packet."
        )?;
        Ok(text)
    }
}

/// Guests a second and for how many seconds, and whether somebody asked for that.
fn asked() -> Result<(u32, u64, bool)> {
    let Some(text) = environment(ENV_JOINS) else { return Ok((100, 3, false)) };
    let (rate, seconds) = text.split_once(':').context("MSM_TEST_JOINS is RATE:SECONDS")?;
    Ok((rate.parse()?, seconds.parse()?, true))
}

#[test]
fn joins_and_leaves_at_rate_disturb_nobody_and_rtp_info_is_exact() -> Result<()> {
    let test = "joins_and_leaves_at_rate_disturb_nobody_and_rtp_info_is_exact";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let (rate, seconds, is_asked) = asked()?;
    let storm = Storm { rate, total: u64::from(rate) * seconds, seats: GUESTS, stay };
    let outcome = run(&scene, LOAD, storm)?;
    let (short, long) = (STAY.as_millis(), LONG_STAY.as_millis());
    let report = outcome.report(&format!("{short} ms of media (one in {LONG_ONE_IN} stays {long} ms)"))?;
    eprintln!("{report}");
    if is_asked {
        record::put(RESULTS, "Short visits", &report)?;
    }
    outcome.check()
}

#[test]
fn guests_whom_the_kernel_carries_come_and_go_at_rate_and_disturb_nobody() -> Result<()> {
    let test = "guests_whom_the_kernel_carries_come_and_go_at_rate_and_disturb_nobody";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let (rate, seconds, is_asked) = asked()?;
    // As many as come while one stays, and half as many for the calls before and after.
    let seats = (rate as usize * 3 / 2 * LONG_STAY.as_millis() as usize / 1_000).max(GUESTS);
    let storm = Storm { rate, total: u64::from(rate) * seconds, seats, stay: long_stay };
    let outcome = run(&scene, EVEN, storm)?;
    let report = outcome.report(&format!("{} ms of media", LONG_STAY.as_millis()))?;
    eprintln!("{report}");
    if is_asked {
        record::put(RESULTS, "Visits that the kernel carries", &report)?;
    }
    outcome.check()?;
    let carried = outcome.visits.sum(|visit| visit.carried);
    let by_worker = outcome.visits.sum(|visit| visit.packets) - carried;
    ensure!(
        carried > 0 && by_worker > 0,
        "guests got {carried} packets from the kernel, {by_worker} from workers"
    );
    Ok(())
}
