//! The metrics registry, its label types and both text forms.
//!
//! Names and labels are those of `docs/metrics.md`: prefix `msm_`, base units, counters end in `_total`.
//! Labels are stream names and closed sets, never addresses, session ids or SSRCs, so that the number of
//! series does not depend on the number of sessions (SEC-27).

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub mod inventory;

/// Content type of what the registry writes.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Content type of [`to_text`].
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Value of the label `namespace` outside a cluster.
pub const NAMESPACE: &str = "default";

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<f64, AtomicU64>;

macro_rules! labels {
    ($($name:ident { $($label:ident: $kind:ty),+ })*) => {$(
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        struct $name { $($label: $kind),+ }
    )*};
}

/// What may carry a leg, best first.
pub const RUNGS: [&str; 3] = ["tcx", "tc", "user"];

labels! {
    StateLabels { state: &'static str }
    StreamInfoLabels { stream: String, namespace: &'static str, codec: String, clock_rate: u32 }
    LegLabels { rung: &'static str, kind: &'static str }
    StreamLabels { stream: String, namespace: &'static str }
    FlowLabels { stream: String, namespace: &'static str, direction: &'static str }
    ReasonLabels { reason: &'static str }
    QueueLabels { queue: &'static str }
    SocketLabels { socket: &'static str }
    RequestLabels { method: &'static str, code: u16 }
    WarmLabels { warm: &'static str }
    ThreadLabels { thread: String }
    EventLabels { event: &'static str }
}

/// Media of one stream that passed in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RtpTotals {
    /// RTP packets.
    pub packets: u64,
    /// RTP bytes, headers of RTP included, of UDP and IP not.
    pub bytes: u64,
    /// Packets missing: gaps on arrival, what viewers report on departure.
    pub lost: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicate: u64,
    /// Interarrival jitter (RFC 3550 A.8) of the worst track or viewer.
    pub jitter: Duration,
}

/// Everything measured about one stream at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamSample {
    /// Name of the stream.
    pub name: String,
    /// State of the stream, from a closed set.
    pub state: &'static str,
    /// Encoding name and clock rate of each track.
    pub tracks: Vec<(String, u32)>,
    /// What arrived.
    pub received: RtpTotals,
    /// What was sent.
    pub sent: RtpTotals,
    /// Round trip to the farthest viewer, from its reports.
    pub round_trip: Option<Duration>,
    /// Legs that are attached, by the rung that carries them ([`RUNGS`]) and by kind (`udp`, `tcp`).
    pub legs: Vec<(&'static str, &'static str, u64)>,
    /// Those of them that a worker carries, by why, from a closed set.
    pub user_legs: Vec<(&'static str, u64)>,
}

/// Everything measured about the process at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Streams. Two of one name are added up.
    pub streams: Vec<StreamSample>,
    /// Packets dropped, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Packets that the fast path left to the kernel's own stack, by why.
    pub passed: Vec<(&'static str, u64)>,
    /// Queue, depth now, entries dropped so far.
    pub queues: Vec<(&'static str, u64, u64)>,
    /// Socket, receive buffer in bytes, datagrams lost to its overflow so far.
    pub sockets: Vec<(&'static str, u64, u64)>,
    /// Thread, CPU time so far.
    pub threads: Vec<(String, Duration)>,
    /// RTSP sessions that exist.
    pub sessions: u64,
}

#[derive(Clone, Debug)]
struct JoinBuckets;

impl MetricConstructor<Histogram> for JoinBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
    }
}

/// The registry of a packet proxy.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    stream_states: Vec<&'static str>,
    streams: Family<StateLabels, Level>,
    stream_info: Family<StreamInfoLabels, Level>,
    legs: Family<LegLabels, Level>,
    user_legs: Family<ReasonLabels, Level>,
    packets: Family<FlowLabels, Count>,
    bytes: Family<FlowLabels, Count>,
    lost: Family<FlowLabels, Count>,
    reordered: Family<FlowLabels, Count>,
    duplicate: Family<FlowLabels, Count>,
    jitter: Family<FlowLabels, Level>,
    round_trip: Family<StreamLabels, Level>,
    receivers: Family<StreamLabels, Level>,
    dropped: Family<ReasonLabels, Count>,
    passed: Family<ReasonLabels, Count>,
    queue_depth: Family<QueueLabels, Level>,
    queue_dropped: Family<QueueLabels, Count>,
    socket_buffer: Family<SocketLabels, Level>,
    socket_overflows: Family<SocketLabels, Count>,
    requests: Family<RequestLabels, Count>,
    sessions: Level,
    join: Family<WarmLabels, Histogram, JoinBuckets>,
    threads: Family<ThreadLabels, Counter<f64, AtomicU64>>,
    rejected: Family<ReasonLabels, Count>,
    events: Family<EventLabels, Count>,
    /// Seconds that threads used in processes before this one.
    former_cpu: Mutex<HashMap<String, f64>>,
}

impl Metrics {
    /// A registry that says `version` and `commit` in `msm_build_info` and has a zero for every reason of
    /// `drop_reasons` and `pass_reasons` and every state of `stream_states`, so that rates exist before the first
    /// event.
    pub fn new(
        version: &'static str,
        commit: &'static str,
        drop_reasons: &[&'static str],
        pass_reasons: &[&'static str],
        stream_states: &[&'static str],
    ) -> Self {
        let mut registry = Registry::with_prefix("msm");
        macro_rules! register {
            ($metric:expr, $name:literal, $help:literal) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let build = Info::new([("version", version), ("commit", commit)]);
        registry.register("build", "Version and commit of this program", build);
        let metrics = Self {
            streams: register!(Family::default(), "streams", "Streams by state"),
            // An OpenMetrics info metric has labels that never change; a stream's codec may.
            stream_info: register!(Family::default(), "stream_info", "Tracks of each stream"),
            legs: register!(Family::default(), "legs", "Legs by the rung that carries them"),
            user_legs: register!(Family::default(), "user_legs", "Legs that workers carry, by why"),
            packets: register!(Family::default(), "rtp_packets", "RTP packets"),
            bytes: register!(Family::default(), "rtp_bytes", "RTP bytes"),
            lost: register!(Family::default(), "rtp_lost_packets", "RTP packets missing on arrival"),
            reordered: register!(Family::default(), "rtp_reordered_packets", "RTP packets out of order"),
            duplicate: register!(Family::default(), "rtp_duplicate_packets", "RTP packets that came again"),
            jitter: register!(Family::default(), "rtp_jitter_seconds", "Interarrival jitter, worst track"),
            round_trip: register!(
                Family::default(),
                "rtcp_round_trip_seconds",
                "Round trip to the farthest viewer"
            ),
            receivers: register!(Family::default(), "fanout_receivers", "Legs of each stream"),
            dropped: register!(Family::default(), "dropped_packets", "Packets dropped by reason"),
            passed: register!(
                Family::default(),
                "passed_packets",
                "Packets left to the kernel's own stack by reason"
            ),
            queue_depth: register!(Family::default(), "queue_depth", "Entries waiting in a queue"),
            queue_dropped: register!(Family::default(), "queue_dropped", "Entries a full queue refused"),
            socket_buffer: register!(
                Family::default(),
                "socket_receive_buffer_bytes",
                "Receive buffer that the kernel granted"
            ),
            socket_overflows: register!(
                Family::default(),
                "socket_overflows",
                "Datagrams lost because a receive buffer was full"
            ),
            requests: register!(Family::default(), "rtsp_requests", "RTSP requests by method and answer"),
            sessions: register!(Level::default(), "rtsp_sessions", "RTSP sessions that exist"),
            join: register!(
                Family::new_with_constructor(JoinBuckets),
                "join_duration_seconds",
                "Time from a viewer's first request to the answer of its PLAY"
            ),
            threads: register!(Family::default(), "thread_cpu_seconds", "CPU time of each thread"),
            rejected: register!(Family::default(), "rejected_inputs", "Input refused, by reason"),
            events: register!(Family::default(), "events", "Events of sessions and streams by name"),
            former_cpu: Mutex::default(),
            registry,
            stream_states: stream_states.to_vec(),
        };
        for reason in drop_reasons {
            drop(metrics.dropped.get_or_create(&ReasonLabels { reason }));
        }
        for reason in pass_reasons {
            drop(metrics.passed.get_or_create(&ReasonLabels { reason }));
        }
        metrics.clear_levels();
        metrics
    }

    /// An RTSP request was answered. `method` is from the closed set of methods, `other` for the rest.
    pub fn observe_request(&self, method: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabels { method, code }).inc();
    }

    /// A viewer joined. `warm`: the stream was running already.
    pub fn observe_join(&self, warm: bool, took: Duration) {
        let warm = if warm { "true" } else { "false" };
        self.join.get_or_create(&WarmLabels { warm }).observe(took.as_secs_f64());
    }

    /// Input was refused for `reason`, from a closed set.
    pub fn observe_rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// An event of a closed set of names happened.
    pub fn observe_event(&self, event: &'static str) {
        self.events.get_or_create(&EventLabels { event }).inc();
    }

    /// Takes over what was measured and returns everything in OpenMetrics text.
    ///
    /// Streams that are gone from `sample` are gone from the text.
    pub fn expose(&self, sample: &Sample) -> String {
        self.apply(sample);
        let mut out = String::with_capacity(16 * 1024);
        text::encode(&mut out, &self.registry).expect("writing to a String does not fail");
        out
    }

    fn apply(&self, sample: &Sample) {
        for family in [&self.packets, &self.bytes, &self.lost, &self.reordered, &self.duplicate] {
            family.clear();
        }
        self.jitter.clear();
        self.user_legs.clear();
        self.stream_info.clear();
        self.round_trip.clear();
        self.receivers.clear();
        self.clear_levels();
        for stream in &sample.streams {
            self.apply_stream(stream);
        }
        for (reason, total) in &sample.dropped {
            self.dropped.get_or_create(&ReasonLabels { reason }).inner().store(*total, Ordering::Relaxed);
        }
        for (reason, total) in &sample.passed {
            self.passed.get_or_create(&ReasonLabels { reason }).inner().store(*total, Ordering::Relaxed);
        }
        for (queue, depth, dropped) in &sample.queues {
            let labels = QueueLabels { queue };
            self.queue_depth.get_or_create(&labels).set(*depth as f64);
            self.queue_dropped.get_or_create(&labels).inner().store(*dropped, Ordering::Relaxed);
        }
        for (socket, buffer, overflows) in &sample.sockets {
            let labels = SocketLabels { socket };
            self.socket_buffer.get_or_create(&labels).set(*buffer as f64);
            self.socket_overflows.get_or_create(&labels).inner().store(*overflows, Ordering::Relaxed);
        }
        for (thread, cpu) in &sample.threads {
            self.store_cpu(thread, cpu.as_secs_f64());
        }
        self.sessions.set(sample.sessions as f64);
    }

    /// Gauges whose label sets are closed are set to zero rather than removed.
    fn clear_levels(&self) {
        for state in &self.stream_states {
            self.streams.get_or_create(&StateLabels { state }).set(0.0);
        }
        for rung in RUNGS {
            for kind in ["udp", "tcp"] {
                self.legs.get_or_create(&LegLabels { rung, kind }).set(0.0);
            }
        }
    }

    fn apply_stream(&self, sample: &StreamSample) {
        self.streams.get_or_create(&StateLabels { state: sample.state }).inc();
        let name = || sample.name.clone();
        for (codec, clock_rate) in &sample.tracks {
            let labels = StreamInfoLabels {
                stream: name(),
                namespace: NAMESPACE,
                codec: codec.clone(),
                clock_rate: *clock_rate,
            };
            self.stream_info.get_or_create(&labels).set(1.0);
        }
        for (direction, totals) in [("in", &sample.received), ("out", &sample.sent)] {
            let labels = FlowLabels { stream: name(), namespace: NAMESPACE, direction };
            self.packets.get_or_create(&labels).inc_by(totals.packets);
            self.bytes.get_or_create(&labels).inc_by(totals.bytes);
            self.lost.get_or_create(&labels).inc_by(totals.lost);
            self.reordered.get_or_create(&labels).inc_by(totals.reordered);
            self.duplicate.get_or_create(&labels).inc_by(totals.duplicate);
            let jitter = self.jitter.get_or_create_owned(&labels);
            jitter.set(jitter.get().max(totals.jitter.as_secs_f64()));
        }
        let labels = StreamLabels { stream: name(), namespace: NAMESPACE };
        if let Some(round_trip) = sample.round_trip {
            self.round_trip.get_or_create(&labels).set(round_trip.as_secs_f64());
        }
        let receivers = self.receivers.get_or_create_owned(&labels);
        for (rung, kind, legs) in &sample.legs {
            receivers.inc_by(*legs as f64);
            self.legs.get_or_create(&LegLabels { rung, kind }).inc_by(*legs as f64);
        }
        for (reason, legs) in &sample.user_legs {
            self.user_legs.get_or_create(&ReasonLabels { reason }).inc_by(*legs as f64);
        }
    }
}

/// OpenMetrics text as the older Prometheus text format (0.0.4), which names a counter with its `_total`.
pub fn to_text(open: &str) -> String {
    let mut out = String::with_capacity(open.len() + 512);
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take().filter(|(helped, _)| *helped == name) {
                for part in ["# HELP ", name, suffix, " ", text, "\n"] {
                    out.push_str(part);
                }
            }
            for part in ["# TYPE ", name, suffix, " ", kind, "\n"] {
                out.push_str(part);
            }
            continue;
        }
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
