//! What carried the media, read from counters while it flowed: `/v1/streams`, `msm_legs`, and the kernel's own
//! tables, which no line of the proxy stands before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cases::Carried;
use super::tables::Tables;
use super::{Rung, enter};
use crate::lab::Node;
use crate::privilege::environment;
use crate::proxy::{get, sum_of};

/// A file that receives one line per judged test; `cargo xtask test` names it and reads it back.
pub const ENV_REPORT: &str = "MSM_RUNG_REPORT";

/// Time between two looks.
const PACE: Duration = Duration::from_millis(150);
/// A UDP leg that played for so many looks must have been in the kernel.
const LONG: u32 = 40;

/// Part of the reason of legs that are with the workers because their source is.
pub const SOURCE_OVER_TCP: &str = "a source on interleaved TCP";

/// The collector of one proxy, or what several have shown.
#[derive(Debug)]
pub struct Evidence {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Everything that was seen.
#[derive(Debug, Default)]
struct Seen {
    looks: u32,
    /// By stream and address of the viewer's connection.
    legs: BTreeMap<(String, String), Leg>,
    /// The largest value of `msm_legs` by rung and kind.
    gauges: BTreeMap<(&'static str, &'static str), u64>,
    /// By the kernel's number of the leg.
    kernel: BTreeMap<u32, Count>,
}

/// One viewer.
#[derive(Debug, Default, Clone)]
struct Leg {
    transport: String,
    last: (String, u64),
    /// Looks at which it had got more than before.
    played: u32,
    /// Packets that came from one look to the next while it was on the rung at both.
    on: BTreeMap<String, u64>,
    reasons: BTreeSet<String>,
}

/// A counter that begins anew when its number is given away again.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    before: u64,
    now: u64,
}

/// What a test showed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Viewers over UDP that got media.
    pub legs: usize,
    /// Those of them that got media while they were on the rung.
    pub carried: usize,
    /// The largest `msm_legs{rung, kind="udp"}` of the rung.
    pub gauge: u64,
    /// Packets that viewers over UDP got, by `/v1/streams`.
    pub packets: u64,
    /// Those of them that came while the viewer was on the rung.
    pub on_rung: u64,
    /// Packets that the kernel's own counters of legs count.
    pub in_kernel: u64,
}

/// A line with what it is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reported {
    /// Number of the case.
    pub case: String,
    /// The test.
    pub test: String,
    /// The rung.
    pub rung: String,
    /// What it showed.
    pub line: Line,
}

impl Line {
    /// Adds it to the report of a test, if there is one.
    ///
    /// # Errors
    /// The report cannot be written.
    pub fn report(&self, case: &str, test: &str, rung: Rung) -> Result<()> {
        let Some(path) = environment(ENV_REPORT) else { return Ok(()) };
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        let reported = Reported {
            case: case.to_owned(),
            test: test.to_owned(),
            rung: rung.name().to_owned(),
            line: self.clone(),
        };
        writeln!(file, "{}", serde_json::to_string(&reported)?)?;
        Ok(())
    }
}

impl Evidence {
    /// Looks at a proxy from inside its namespace until [`Self::stop`].
    pub(super) fn collect(admin: SocketAddr, pid: u32, host: Node) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            if enter(&host).is_err() {
                return;
            }
            let mut tables = Tables::default();
            while !stopped.load(Ordering::Relaxed) {
                // A proxy that has ended is asked in vain; what it showed stays.
                let (streams, metrics) = (get(admin, "/v1/streams"), get(admin, "/metrics"));
                let kernel = tables.legs(pid);
                let mut seen = lock(&shared);
                if let (Ok(streams), Ok(metrics)) = (&streams, &metrics) {
                    seen.take(streams, metrics);
                }
                for (leg, packets) in kernel {
                    seen.kernel.entry(leg).or_default().take(packets);
                }
                drop(seen);
                std::thread::sleep(PACE);
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Ends the collecting.
    pub(super) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }

    /// Takes another proxy's in.
    pub(super) fn join(&self, other: Self) {
        let other = std::mem::take(&mut *lock(&other.seen));
        let mut seen = lock(&self.seen);
        seen.looks += other.looks;
        seen.legs.extend(other.legs);
        for (gauge, value) in other.gauges {
            *seen.gauges.entry(gauge).or_default() += value;
        }
        for (leg, count) in other.kernel {
            seen.kernel.entry(leg).or_default().before += count.before + count.now;
        }
    }

    /// True once a viewer got media on a rung.
    pub(super) fn has_got_media_on(&self, rung: Rung, stream: &str, peer: &str) -> bool {
        let seen = lock(&self.seen);
        let leg = seen.legs.get(&(stream.to_owned(), peer.to_owned()));
        leg.is_some_and(|leg| leg.on.contains_key(rung.name()))
    }

    /// What viewers of one stream over one transport showed on a rung, without judging it.
    pub fn of_stream(&self, stream: &str, rung: Rung) -> Line {
        Line { in_kernel: 0, ..lock(&self.seen).line(rung, |name| name == stream) }
    }

    /// Why viewers of one stream over UDP were with the workers, as far as they were.
    pub fn reasons(&self, stream: &str) -> BTreeSet<String> {
        let seen = lock(&self.seen);
        let legs = seen.legs.iter().filter(|((name, _), leg)| name == stream && leg.transport == "udp");
        legs.flat_map(|(_, leg)| leg.reasons.iter().cloned()).collect()
    }

    /// Asserts that media was carried as it is to be.
    ///
    /// # Errors
    /// It was not, with everything that was seen.
    pub fn judge(&self, rung: Rung, carried: Carried) -> Result<Line> {
        let seen = lock(&self.seen);
        let line = seen.line(rung, |_| true);
        match seen.check(rung, carried, &line) {
            Ok(()) => Ok(line),
            Err(error) => bail!("not carried by {} as declared: {error:#}\n{line:?}\n{seen:#?}", rung.name()),
        }
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Count {
    fn take(&mut self, value: u64) {
        if value < self.now {
            self.before += self.now;
        }
        self.now = value;
    }
}

impl Seen {
    fn take(&mut self, streams: &str, metrics: &str) {
        let Ok(document) = serde_json::from_str::<Value>(streams) else { return };
        self.looks += 1;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for stream in document["streams"].as_array().into_iter().flatten() {
            for leg in stream["legs"].as_array().into_iter().flatten() {
                let found = self.legs.entry((text(&stream["name"]), text(&leg["peer"]))).or_default();
                found.transport = text(&leg["transport"]);
                let now = (text(&leg["rung"]), leg["packets"].as_u64().unwrap_or_default());
                let more = now.1.saturating_sub(found.last.1);
                if more > 0 {
                    found.played += 1;
                    if found.last.0 == now.0 {
                        *found.on.entry(now.0.clone()).or_default() += more;
                    }
                }
                found.last = now;
                found.reasons.extend(leg["rung_reason"].as_str().map(str::to_owned));
            }
        }
        for rung in Rung::ALL {
            for kind in ["udp", "tcp"] {
                let labels = [format!("rung=\"{}\"", rung.name()), format!("kind=\"{kind}\"")];
                let value = sum_of(metrics, "msm_legs", &[&labels[0], &labels[1]]) as u64;
                let largest = self.gauges.entry((rung.name(), kind)).or_default();
                *largest = value.max(*largest);
            }
        }
    }

    fn line(&self, rung: Rung, of: impl Fn(&str) -> bool) -> Line {
        let legs: Vec<&Leg> = self
            .legs
            .iter()
            .filter(|((stream, _), leg)| of(stream) && leg.transport == "udp" && leg.last.1 > 0)
            .map(|(_, leg)| leg)
            .collect();
        Line {
            legs: legs.len(),
            carried: legs
                .iter()
                .filter(|leg| leg.on.get(rung.name()).is_some_and(|packets| *packets > 0))
                .count(),
            gauge: self.gauges.get(&(rung.name(), "udp")).copied().unwrap_or_default(),
            packets: legs.iter().map(|leg| leg.last.1).sum(),
            on_rung: legs.iter().filter_map(|leg| leg.on.get(rung.name())).sum(),
            in_kernel: self.kernel.values().map(|count| count.before + count.now).sum(),
        }
    }

    fn check(&self, rung: Rung, carried: Carried, line: &Line) -> Result<()> {
        ensure!(self.looks > 1, "nobody looked");
        ensure!(self.legs.values().any(|leg| leg.played > 0), "no viewer got media");
        for other in Rung::ALL.into_iter().filter(|other| other.is_kernel()) {
            let is_wanted = other == rung && !matches!(carried, Carried::Worker { .. });
            let gauge = self.gauges.get(&(other.name(), "udp")).copied().unwrap_or_default();
            let legs = self.legs.values().filter(|leg| leg.on.contains_key(other.name())).count();
            ensure!(is_wanted || (gauge, legs) == (0, 0), "{} carried legs", other.name());
        }
        match carried {
            Carried::Kernel | Carried::Mixed { .. } if rung.is_kernel() => {
                ensure!(line.carried > 0, "no viewer over UDP got media on {}", rung.name());
                ensure!(line.gauge > 0, "msm_legs counted no leg");
                // They are looked at a moment earlier or later, and a leg that ended between two looks is missed.
                ensure!(
                    line.in_kernel > 0 && line.in_kernel * 2 >= line.on_rung,
                    "the kernel's own counters stand at {}, {} packets are said to have gone that way",
                    line.in_kernel,
                    line.on_rung,
                );
                let late = self.legs.iter().find(|(_, leg)| {
                    let has_reason =
                        leg.says(SOURCE_OVER_TCP) || carried.shown().is_some_and(|why| leg.says(why));
                    leg.transport == "udp"
                        && leg.played > LONG
                        && !leg.on.contains_key(rung.name())
                        && !has_reason
                });
                ensure!(late.is_none(), "{late:?} played for long and was never in the kernel");
                if let Carried::Mixed { shown, .. } = carried {
                    self.check_mixed(rung, shown)?;
                }
            }
            Carried::Kernel | Carried::Mixed { .. } => {
                ensure!(line.carried > 0, "no viewer over UDP got media from the workers");
                ensure!(line.in_kernel == 0, "the kernel counted {} packets", line.in_kernel);
            }
            Carried::Worker { shown, .. } => {
                ensure!(line.in_kernel == 0, "the kernel counted {} packets", line.in_kernel);
                let legs = self.legs.values().filter(|leg| leg.transport == "udp" && leg.last.1 > 0);
                for leg in legs.filter(|_| rung.is_kernel()) {
                    let is_told = shown.is_some_and(|shown| leg.says(shown));
                    ensure!(is_told, "{leg:?} does not say {shown:?}");
                }
            }
        }
        Ok(())
    }
}

impl Seen {
    /// Legs that say why they are the workers' got all their media there, and each stream that has one has others
    /// that the rung carried.
    fn check_mixed(&self, rung: Rung, shown: &str) -> Result<()> {
        let udp = self.legs.iter().filter(|(_, leg)| leg.transport == "udp" && leg.last.1 > 0);
        let (workers, others): (Vec<_>, Vec<_>) = udp.partition(|(_, leg)| leg.says(shown));
        ensure!(!workers.is_empty(), "no leg says {shown:?}");
        for ((stream, peer), leg) in workers {
            let by_kernel = leg.on.keys().any(|on| on != Rung::User.name());
            let by_worker = leg.on.get(Rung::User.name()).is_some_and(|packets| *packets > 0);
            ensure!(by_worker && !by_kernel, "{peer} of {stream} says {shown:?}: {leg:?}");
            let carried = |leg: &Leg| leg.on.get(rung.name()).is_some_and(|packets| *packets > 0);
            let has_sibling = others.iter().any(|((other, _), leg)| other == stream && carried(leg));
            ensure!(has_sibling, "no other leg of {stream} got media on {}", rung.name());
        }
        Ok(())
    }
}

impl Leg {
    /// Whether it ever gave this as a reason for being with the workers.
    fn says(&self, reason: &str) -> bool {
        self.reasons.iter().any(|why| why.contains(reason))
    }
}

impl Carried {
    /// The reason of legs that are with the workers though others are not.
    fn shown(self) -> Option<&'static str> {
        if let Self::Mixed { shown, .. } = self { Some(shown) } else { None }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(rung: &str, reason: &str, packets: u64) -> String {
        serde_json::json!({"streams": [{"name": "cam", "legs": [{
            "peer": "10.91.2.9:4000", "transport": "udp", "rung": rung, "packets": packets,
            "rung_reason": (!reason.is_empty()).then_some(reason),
        }]}]})
        .to_string()
    }

    fn shown(looks: &[(&str, &str, u64)], in_kernel: u64) -> Seen {
        let mut seen = Seen::default();
        for (rung, reason, packets) in looks {
            seen.take(
                &document(rung, reason, *packets),
                &format!("msm_legs{{rung=\"{rung}\",kind=\"udp\"}} 1\n"),
            );
        }
        seen.kernel.entry(7).or_default().take(in_kernel);
        seen
    }

    fn verdict(seen: &Seen, rung: Rung, carried: Carried) -> bool {
        seen.check(rung, carried, &seen.line(rung, |_| true)).is_ok()
    }

    #[test]
    fn media_that_all_went_through_the_worker_passes_on_no_kernel_rung() {
        let worker = shown(&[("user", "", 5), ("user", "", 90)], 0);
        assert!(verdict(&worker, Rung::User, Carried::Kernel));
        assert!(!verdict(&worker, Rung::Tcx, Carried::Kernel));
        // A leg that says tcx and gets nothing there, or that the kernel knows nothing of.
        assert!(!verdict(&shown(&[("user", "", 5), ("tcx", "", 90)], 0), Rung::Tcx, Carried::Kernel));
        assert!(!verdict(&shown(&[("tcx", "", 5), ("tcx", "", 90)], 0), Rung::Tcx, Carried::Kernel));
        let kernel = shown(&[("tcx", "", 5), ("tcx", "", 90)], 85);
        assert!(verdict(&kernel, Rung::Tcx, Carried::Kernel));
        assert!(!verdict(&kernel, Rung::Tc, Carried::Kernel));
        assert!(!verdict(&kernel, Rung::User, Carried::Kernel));
    }

    #[test]
    fn a_leg_that_stays_with_the_worker_must_say_the_reason_that_was_declared() {
        let declared = Carried::Worker { because: "why", shown: Some("family") };
        assert!(verdict(
            &shown(&[("user", "another family", 5), ("user", "another family", 9)], 0),
            Rung::Tc,
            declared
        ));
        assert!(!verdict(&shown(&[("user", "full", 5), ("user", "full", 9)], 0), Rung::Tc, declared));
        assert!(!verdict(&shown(&[("tc", "", 5), ("tc", "", 9)], 4), Rung::Tc, declared));
    }

    #[test]
    fn in_a_mixed_group_the_worker_has_the_declared_legs_alone() {
        let declared = Carried::Mixed { because: "why", shown: "family" };
        let verdict = |looks: &[[(&str, &str, u64); 2]]| {
            let mut seen = Seen::default();
            for legs in looks {
                let legs: Vec<_> = legs
                    .iter()
                    .zip(["10.91.2.9:4000", "[fd91:2::9]:4000"])
                    .map(|((rung, reason, packets), peer)| {
                        serde_json::json!({"peer": peer, "transport": "udp", "rung": rung, "packets": packets,
                            "rung_reason": (!reason.is_empty()).then_some(reason)})
                    })
                    .collect();
                let document = serde_json::json!({"streams": [{"name": "cam", "legs": legs}]});
                seen.take(&document.to_string(), "msm_legs{rung=\"tcx\",kind=\"udp\"} 1\n");
            }
            seen.kernel.entry(7).or_default().take(85);
            seen.check(Rung::Tcx, declared, &seen.line(Rung::Tcx, |_| true)).is_ok()
        };
        let (first, last) = (("tcx", "", 5), ("tcx", "", 90));
        assert!(verdict(&[[first, ("user", "another family", 5)], [last, ("user", "another family", 90)]]));
        // No reason, another one, or the kernel's after all.
        assert!(!verdict(&[[first, ("user", "", 5)], [last, ("user", "", 90)]]));
        assert!(!verdict(&[[first, ("user", "full", 5)], [last, ("user", "full", 90)]]));
        assert!(!verdict(&[
            [first, ("user", "another family", 5)],
            [last, ("tcx", "", 60)],
            [last, ("tcx", "", 90)]
        ]));
        // The one that the kernel could carry is not there.
        let worker = ("user", "another family", 5);
        assert!(!verdict(&[
            [worker, worker],
            [("user", "another family", 90), ("user", "another family", 90)]
        ]));
    }

    #[test]
    fn a_number_that_is_given_away_again_loses_no_count() {
        let mut count = Count::default();
        for value in [5, 9, 2, 3] {
            count.take(value);
        }
        assert_eq!(count.before + count.now, 12);
    }
}
