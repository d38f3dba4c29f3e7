//! The live figures: redrawn in place on a terminal, one line per stream otherwise.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use msm_tests::viewer::Viewer;
use serde_json::Value;

/// Remembers what it drew and the last counters, for rates.
#[derive(Debug)]
pub(super) struct Table {
    redraw: bool,
    lines: usize,
    last: BTreeMap<String, (f64, f64)>,
    colour: bool,
}

impl Table {
    /// Redraws when standard output is a terminal.
    pub(super) fn new() -> Self {
        let redraw = std::io::stdout().is_terminal();
        let plain = msm_tests::privilege::environment("NO_COLOR").is_some();
        Self { redraw, lines: 0, last: BTreeMap::new(), colour: redraw && !plain }
    }

    /// Draws the figures of now.
    pub(super) fn show(&mut self, streams: &[Value], viewers: &[Viewer], at: Duration) {
        let text =
            if self.redraw { self.full(streams, viewers, at) } else { Self::brief(streams, viewers, at) };
        let mut out = std::io::stdout().lock();
        if self.lines > 0 && self.redraw {
            write!(out, "\x1b[{}A\x1b[J", self.lines).ok();
        }
        self.lines = text.lines().count();
        // Lines longer than the terminal is wide are cut: folded ones would make the next redraw miscount.
        let (cut, fold) = if self.redraw { ("\x1b[?7l", "\x1b[?7h") } else { ("", "") };
        write!(out, "{cut}{text}{fold}").ok();
        out.flush().ok();
    }

    fn rate(&mut self, key: String, bytes: f64, at: Duration) -> f64 {
        let now = at.as_secs_f64();
        let (then, before) = self.last.insert(key, (now, bytes)).unwrap_or((now, bytes));
        if now > then { (bytes - before).max(0.0) * 8e-3 / (now - then) } else { 0.0 }
    }

    fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn full(&mut self, streams: &[Value], viewers: &[Viewer], at: Duration) -> String {
        let mut text = String::new();
        writeln!(text, "{:>4} s", at.as_secs()).ok();
        for stream in streams {
            let name = word(&stream["name"]);
            let source = &stream["source"];
            writeln!(
                text,
                "{} {}, {} by {} from {}",
                self.bold(&format!("stream {name}:")),
                word(&stream["state"]),
                word(&source["kind"]),
                word(&source["transport"]),
                word(&source["peer"])
            )
            .ok();
            for (number, track) in list(&stream["tracks"]).iter().enumerate() {
                let kilobits = self.rate(format!("{name}/{number}"), figure(&track["bytes"]), at);
                writeln!(
                    text,
                    "    track {:10} {:>9} packets {:>8.0} kbit/s {:>6} lost {:>8.2} ms jitter",
                    word(&track["codec"]),
                    figure(&track["packets"]),
                    kilobits,
                    figure(&track["lost"]),
                    figure(&track["jitter_seconds"]) * 1e3
                )
                .ok();
            }
            for leg in list(&stream["legs"]) {
                let peer = word(&leg["peer"]);
                let transport = word(&leg["transport"]);
                let kilobits = self.rate(format!("{name}/{peer}/{transport}"), figure(&leg["bytes"]), at);
                writeln!(
                    text,
                    "    leg   {:22} {:4} {:5} {:9} {:>9} packets {:>8.0} kbit/s {:>6} lost{}",
                    peer,
                    transport,
                    word(&leg["rung"]),
                    word(&leg["state"]),
                    figure(&leg["packets"]),
                    kilobits,
                    figure(&leg["lost"]),
                    reason(leg)
                )
                .ok();
            }
        }
        for viewer in viewers {
            let progress = viewer.progress();
            writeln!(
                text,
                "{} {:>6} frames decoded {:>7.1} s of sound",
                self.bold(&format!("viewer {:22}", viewer.watch().name)),
                progress.frames,
                progress.sound_seconds
            )
            .ok();
        }
        text
    }

    fn brief(streams: &[Value], viewers: &[Viewer], at: Duration) -> String {
        let mut text = String::new();
        if !at.as_secs().is_multiple_of(5) {
            return text;
        }
        for stream in streams {
            let name = word(&stream["name"]);
            let sum = |part: &str, field: &str| {
                list(&stream[part]).iter().filter_map(|item| item[field].as_u64()).sum::<u64>()
            };
            writeln!(
                text,
                "{:>4} s  stream {name}: {}, {} packets in, legs: {}, {} packets out",
                at.as_secs(),
                word(&stream["state"]),
                sum("tracks", "packets"),
                rungs(stream),
                sum("legs", "packets")
            )
            .ok();
        }
        let decoded: Vec<String> = viewers
            .iter()
            .map(|viewer| format!("{} {}", viewer.watch().name, viewer.progress().frames))
            .collect();
        writeln!(text, "{:>4} s  frames decoded: {}", at.as_secs(), decoded.join(", ")).ok();
        text
    }
}

/// Every leg with its rung, and why it is not in the kernel.
pub(super) fn legs(streams: &[Value]) -> String {
    let mut text = String::new();
    for stream in streams {
        for leg in list(&stream["legs"]) {
            writeln!(
                text,
                "leg     {:8} {:22} {:4} rung {}{}",
                word(&stream["name"]),
                word(&leg["peer"]),
                word(&leg["transport"]),
                word(&leg["rung"]),
                reason(leg)
            )
            .ok();
        }
    }
    text
}

fn reason(leg: &Value) -> String {
    leg["rung_reason"].as_str().map_or_else(String::new, |reason| format!("  ({reason})"))
}

/// How many legs are on which rung, as `2 tcx and 1 user`.
fn rungs(stream: &Value) -> String {
    let mut counts = BTreeMap::new();
    for leg in list(&stream["legs"]) {
        *counts.entry(word(&leg["rung"])).or_insert(0) += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(rung, count)| format!("{count} {rung}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(" and ") }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn figure(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
