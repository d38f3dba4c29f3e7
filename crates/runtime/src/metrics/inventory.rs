//! Counters when a process hands over to the next: they go on, so that rates have no gap.
//!
//! Only what this registry counts by itself is written down; what is measured comes again with every sample.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::text;
use serde::{Deserialize, Serialize};

use super::{EventLabels, Metrics, ReasonLabels, RequestLabels, WarmLabels};

/// Counters written down. Labels are words of the program that wrote this.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsInventory {
    /// Method, status, count.
    requests: Vec<(String, u16, u64)>,
    rejected: Vec<(String, u64)>,
    events: Vec<(String, u64)>,
    joins: Vec<JoinsInventory>,
    /// CPU time of threads in seconds.
    threads: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct JoinsInventory {
    warm: bool,
    sum: f64,
    /// Upper bound of each bucket but the last, observations in it.
    buckets: Vec<(f64, u64)>,
    /// Observations beyond the last bound.
    beyond: u64,
}

/// Most label values taken over of one kind: they are kept for the life of the process.
const MOST: usize = 256;
/// Longest of them.
const LONGEST: usize = 64;
/// Most observations of a histogram that are repeated.
const MOST_OBSERVATIONS: u64 = 10_000_000;

/// Labels are words of a program, and live as long as it.
fn word(text: String) -> Option<&'static str> {
    (text.len() <= LONGEST).then(|| &*Box::leak(text.into_boxed_str()))
}

/// Value of a label in a line of a metric.
fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

impl Metrics {
    /// Writes down what was counted. `threads`: CPU time of each thread so far, in this process.
    pub fn inventory(&self, threads: &[(String, std::time::Duration)]) -> MetricsInventory {
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            return MetricsInventory::default();
        }
        let mut inventory = MetricsInventory::default();
        for line in out.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let count = || value.parse().unwrap_or(0);
            if series.starts_with("msm_rtsp_requests_total{") {
                let code = label(series, "code").and_then(|code| code.parse().ok());
                if let (Some(method), Some(code)) = (label(series, "method"), code) {
                    inventory.requests.push((method.to_owned(), code, count()));
                }
            } else if series.starts_with("msm_rejected_inputs_total{") {
                let reason = label(series, "reason").unwrap_or_default();
                inventory.rejected.push((reason.to_owned(), count()));
            } else if series.starts_with("msm_events_total{") {
                let event = label(series, "event").unwrap_or_default();
                inventory.events.push((event.to_owned(), count()));
            } else if series.starts_with("msm_join_duration_seconds_") {
                inventory.take_join(series, value);
            }
        }
        let known = |name: &str| self.former_cpu(name);
        inventory.threads =
            threads.iter().map(|(name, cpu)| (name.clone(), cpu.as_secs_f64() + known(name))).collect();
        inventory
    }

    /// Goes on counting from there. To be called once, on a new registry.
    pub fn restore(&self, inventory: MetricsInventory) {
        for (method, code, count) in inventory.requests.into_iter().take(MOST) {
            if let Some(method) = word(method) {
                self.requests.get_or_create(&RequestLabels { method, code }).inc_by(count);
            }
        }
        for (reason, count) in inventory.rejected.into_iter().take(MOST) {
            if let Some(reason) = word(reason) {
                self.rejected.get_or_create(&ReasonLabels { reason }).inc_by(count);
            }
        }
        for (event, count) in inventory.events.into_iter().take(MOST) {
            if let Some(event) = word(event) {
                self.events.get_or_create(&EventLabels { event }).inc_by(count);
            }
        }
        for joins in inventory.joins.into_iter().take(2) {
            let labels = WarmLabels { warm: if joins.warm { "true" } else { "false" } };
            let histogram = self.join.get_or_create_owned(&labels);
            for (value, count) in joins.observations() {
                for _ in 0..count.min(MOST_OBSERVATIONS) {
                    histogram.observe(value);
                }
            }
        }
        if let Ok(mut former) = self.former_cpu.lock() {
            *former = inventory.threads.into_iter().take(MOST).collect();
        }
    }

    /// CPU time that a thread of this name had used in former processes, in seconds.
    pub(super) fn former_cpu(&self, thread: &str) -> f64 {
        self.former_cpu.lock().ok().and_then(|former| former.get(thread).copied()).unwrap_or(0.0)
    }

    /// Stores what a thread has used by now.
    pub(super) fn store_cpu(&self, thread: &str, seconds: f64) {
        let labels = super::ThreadLabels { thread: thread.to_owned() };
        let bits = (seconds + self.former_cpu(thread)).to_bits();
        self.threads.get_or_create(&labels).inner().store(bits, Ordering::Relaxed);
    }
}

impl MetricsInventory {
    fn take_join(&mut self, series: &str, value: &str) {
        let Some(warm) = label(series, "warm").map(|warm| warm == "true") else { return };
        let index = self.joins.iter().position(|joins| joins.warm == warm).unwrap_or_else(|| {
            self.joins.push(JoinsInventory { warm, ..JoinsInventory::default() });
            self.joins.len() - 1
        });
        let Some(joins) = self.joins.get_mut(index) else { return };
        if series.starts_with("msm_join_duration_seconds_sum") {
            joins.sum = value.parse().unwrap_or(0.0);
        } else if series.starts_with("msm_join_duration_seconds_bucket") {
            // The text counts everything up to the bound; what is kept is each bucket by itself.
            let below: u64 = joins.buckets.iter().map(|(_, count)| count).sum();
            let count = value.parse::<u64>().unwrap_or(0).saturating_sub(below);
            match label(series, "le").and_then(|bound| bound.parse::<f64>().ok()) {
                Some(bound) if bound.is_finite() => joins.buckets.push((bound, count)),
                _ => joins.beyond = count,
            }
        }
    }
}

impl JoinsInventory {
    /// Observations with the same count in every bucket and the same sum: in each bucket as far from its lower
    /// bound as in every other. Those beyond the last bound make up what is missing.
    fn observations(&self) -> Vec<(f64, u64)> {
        let mut lower = 0.0;
        let spans: Vec<(f64, f64, u64)> = self
            .buckets
            .iter()
            .map(|(bound, count)| (std::mem::replace(&mut lower, *bound), *bound, *count))
            .collect();
        let total = |at: fn(&(f64, f64, u64)) -> f64| spans.iter().map(|s| at(s) * s.2 as f64).sum::<f64>();
        let (least, most) = (total(|s| s.0), total(|s| s.1));
        let inside = self.sum - lower * self.beyond as f64;
        let share = if most > least { ((inside - least) / (most - least)).clamp(0.001, 1.0) } else { 1.0 };
        let mut observations: Vec<_> =
            spans.iter().map(|(from, to, count)| (from + (to - from) * share, *count)).collect();
        if self.beyond > 0 {
            let rest = self.sum - observations.iter().map(|(v, count)| v * *count as f64).sum::<f64>();
            observations.push(((rest / self.beyond as f64).max(lower * 1.001), self.beyond));
        }
        observations
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Sample;
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = metrics.expose(&Sample {
            threads: vec![("data-0".to_owned(), Duration::from_millis(250))],
            ..Sample::default()
        });
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn counters_go_on_in_the_next_process() {
        let first = Metrics::new("1", "c", &[], &[], &[]);
        first.observe_request("PLAY", 200);
        first.observe_request("PLAY", 200);
        first.observe_request("SETUP", 461);
        first.observe_rejected("boundary");
        first.observe_event("leg.playing");
        for millis in [4, 30, 700, 20_000] {
            first.observe_join(true, Duration::from_millis(millis));
        }
        first.observe_join(false, Duration::from_millis(40));
        let mut wanted = lines(&first);
        let threads = [("data-0".to_owned(), Duration::from_millis(250))];
        let text = serde_json::to_string(&first.inventory(&threads)).unwrap();
        let second = Metrics::new("1", "c", &[], &[], &[]);
        second.restore(serde_json::from_str(&text).unwrap());
        let mut got = lines(&second);
        // The thread goes on from what it had used.
        for line in &mut wanted {
            if line.starts_with("msm_thread_cpu_seconds_total") {
                *line = line.replace("0.25", "0.5");
            }
        }
        let sum = |lines: &mut Vec<String>| -> f64 {
            let sums: Vec<_> =
                lines.extract_if(.., |line| line.contains("seconds_sum{warm=\"true\"")).collect();
            sums[0].rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        assert!((sum(&mut wanted) - sum(&mut got)).abs() < 1e-6);
        wanted.sort();
        got.sort();
        assert_eq!(got, wanted);
        let third = Metrics::new("1", "c", &[], &[], &[]);
        third.restore(second.inventory(&threads));
        assert!(
            lines(&third).iter().any(|line| line == "msm_thread_cpu_seconds_total{thread=\"data-0\"} 0.75")
        );
    }
}
