use super::*;

const REASONS: [&str; 2] = ["malformed", "queue_full"];
const PASSES: [&str; 2] = ["not_ours", "vlan"];
const STATES: [&str; 2] = ["idle", "active"];

fn metrics() -> Metrics {
    Metrics::new("1.2.3", "abc", &REASONS, &PASSES, &STATES)
}

fn stream(name: &str, legs: u64) -> StreamSample {
    StreamSample {
        name: name.to_owned(),
        state: "active",
        tracks: vec![("H264".to_owned(), 90_000)],
        received: RtpTotals { packets: 10, bytes: 12_000, lost: 1, ..RtpTotals::default() },
        sent: RtpTotals { packets: 10 * legs, bytes: 12_000 * legs, ..RtpTotals::default() },
        round_trip: Some(Duration::from_millis(12)),
        legs: vec![("user", "udp", legs), ("user", "tcp", 0)],
        user_legs: vec![("transport", legs)],
    }
}

fn series(text: &str) -> Vec<&str> {
    let mut series: Vec<_> =
        text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| Some(l.rsplit_once(' ')?.0)).collect();
    series.sort_unstable();
    series
}

#[test]
fn both_forms_name_counters_with_total_and_only_the_new_one_ends_with_eof() {
    let open = metrics().expose(&Sample { streams: vec![stream("cam1", 2)], ..Sample::default() });
    assert!(open.ends_with("# EOF\n"));
    assert!(open.contains("# TYPE msm_rtp_packets counter\n"));
    let flow = r#"msm_rtp_packets_total{stream="cam1",namespace="default",direction="out"} 20"#;
    assert!(open.contains(flow), "{open}");

    let text = to_text(&open);
    assert!(text.contains("# TYPE msm_rtp_packets_total counter\n"));
    assert!(text.contains("# HELP msm_rtp_packets_total RTP packets.\n"));
    assert!(text.contains("# TYPE msm_build_info gauge\n"));
    assert!(text.contains(r#"msm_build_info{version="1.2.3",commit="abc"} 1"#));
    assert!(text.contains(flow));
    assert!(!text.contains("# EOF"));
    assert_eq!(series(&open), series(&text));
}

#[test]
fn every_family_has_help_and_type_in_the_older_form() {
    let metrics = metrics();
    metrics.observe_request("PLAY", 200);
    metrics.observe_join(true, Duration::from_millis(30));
    metrics.observe_rejected("malformed");
    metrics.observe_event("leg.playing");
    let sample = Sample {
        streams: vec![stream("cam1", 1)],
        dropped: vec![("malformed", 3)],
        passed: vec![("vlan", 2)],
        queues: vec![("interleaved", 1, 2)],
        sockets: vec![("players", 8 << 20, 0)],
        threads: vec![("control".to_owned(), Duration::from_millis(1_500))],
        sessions: 1,
    };
    let text = to_text(&metrics.expose(&sample));
    for name in series(&text) {
        let bare = name.split('{').next().unwrap_or(name);
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|s| bare.strip_suffix(s))
            .filter(|f| text.contains(&format!("# TYPE {f} histogram")))
            .unwrap_or(bare);
        assert!(text.contains(&format!("# TYPE {family} ")), "no type: {name}");
        assert!(text.contains(&format!("# HELP {family} ")), "no help: {name}");
    }
    assert!(text.contains(r#"msm_thread_cpu_seconds_total{thread="control"} 1.5"#), "{text}");
    assert!(text.contains(r#"msm_dropped_packets_total{reason="queue_full"} 0"#));
    assert!(text.contains(r#"msm_passed_packets_total{reason="not_ours"} 0"#));
    assert!(text.contains(r#"msm_passed_packets_total{reason="vlan"} 2"#));
}

#[test]
fn the_number_of_series_does_not_depend_on_the_number_of_sessions() {
    let one = metrics();
    let many = metrics();
    let few = one.expose(&Sample { streams: vec![stream("cam1", 1)], sessions: 1, ..Sample::default() });
    let lot = many.expose(&Sample { streams: vec![stream("cam1", 900)], sessions: 900, ..Sample::default() });
    assert_eq!(series(&few), series(&lot));
}

#[test]
fn a_stream_that_is_gone_leaves_no_series_behind_and_counters_do_not_add_up_over_scrapes() {
    let metrics = metrics();
    let sample = Sample { streams: vec![stream("cam1", 1)], ..Sample::default() };
    let total = r#"msm_rtp_packets_total{stream="cam1",namespace="default",direction="in"} 10"#;
    assert!(metrics.expose(&sample).contains(total));
    assert!(metrics.expose(&sample).contains(total));
    let after = metrics.expose(&Sample::default());
    assert!(!after.contains("cam1"));
    assert!(after.contains(r#"msm_streams{state="active"} 0"#), "{after}");
}

#[test]
fn a_stream_name_cannot_break_the_text() {
    let text = metrics().expose(&Sample { streams: vec![stream("a\"} 1\nb", 1)], ..Sample::default() });
    assert!(text.lines().all(|l| l.starts_with('#') || l.starts_with("msm_")), "{text}");
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let metrics = metrics();
    metrics.observe_request("PLAY", 200);
    metrics.observe_join(false, Duration::ZERO);
    metrics.observe_rejected("malformed");
    metrics.observe_event("leg.playing");
    let sample = Sample {
        streams: vec![stream("cam1", 1)],
        queues: vec![("interleaved", 0, 0)],
        sockets: vec![("player_rtp", 0, 0)],
        threads: vec![("control".to_owned(), Duration::ZERO)],
        ..Sample::default()
    };
    let text = to_text(&metrics.expose(&sample));
    let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
    let mut exported: Vec<_> = types.collect();
    let docs = include_str!("../../../../docs/metrics.md");
    let mut documented: Vec<_> = docs
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("msm_"))
        .collect();
    exported.sort_unstable();
    documented.sort_unstable();
    assert_eq!(exported, documented);
}
