//! `rtp-proxy status`: what a running proxy says of itself, or what one left that is not running.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use msm_fastpath::limits::{COUNT_FORWARD, COUNT_TO_USER};
use serde_json::Value;

use super::Outcome;
use crate::app::STREAMS;
use crate::kernel::counters::Reader;
use crate::kernel::pins::{self, Found};
use crate::kernel::table::Table as _;
use crate::kernel::tables::KernelTable;

/// Longest wait for a proxy on this machine.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most that is read of an answer.
const LONGEST: u64 = 64 << 20;

/// Asks the proxy at `admin`; looks at the pins in any case.
pub fn run(admin: SocketAddr, bpffs: &Path) -> Outcome {
    let mut text = String::new();
    let asked = ask(admin);
    match &asked {
        Ok(document) => text.push_str(&describe(document)),
        Err(why) => {
            let _ = writeln!(
                text,
                "no proxy answers at {admin} ({why}); --admin ADDRESS:PORT names another place, \
                 systemctl status rtp-proxy says whether it runs"
            );
        }
    }
    let found = pins::find(bpffs);
    for one in &found {
        text.push_str(&describe_pins(one));
    }
    // Who runs without privileges has nothing there.
    let on = asked.as_ref().map_or(true, |document| document["kernel"]["on"] == true);
    match pins::may_look(bpffs) {
        Err(why) if on => {
            let _ = writeln!(text, "what proxies left in the kernel cannot be seen: {why}");
        }
        Ok(()) if asked.is_err() && found.is_empty() => {
            let _ = writeln!(text, "and none left anything in {}", bpffs.display());
        }
        _ => {}
    }
    Outcome { text, ok: asked.is_ok() }
}

fn ask(admin: SocketAddr) -> Result<Value, String> {
    let words = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).map_err(words)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(words)?;
    write!(stream, "GET {STREAMS} HTTP/1.0\r\nHost: localhost\r\n\r\n").map_err(words)?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer).map_err(words)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    if head.split_whitespace().nth(1) != Some("200") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The document of `/v1/streams` for a person.
fn describe(document: &Value) -> String {
    let mut text = String::new();
    let kernel = document.get("kernel").unwrap_or(&Value::Null);
    if kernel.get("on").and_then(Value::as_bool) == Some(true) {
        text.push_str("fast path on\n");
    } else {
        let _ = writeln!(text, "fast path off: {}", word(kernel, "reason"));
    }
    for interface in list(kernel, "interfaces") {
        let merged = batching(interface.get("batching").unwrap_or(&Value::Null));
        let more = match interface.get("reason").and_then(Value::as_str) {
            Some(reason) if merged.is_empty() => format!(" {reason}"),
            Some(reason) => format!("{merged}  ({reason})"),
            None => merged,
        };
        let line = format!("  {:<16} {:<5}{more}", word(interface, "name"), word(interface, "rung"));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for viewer in list(kernel, "former_viewers") {
        let packets = viewer.get("packets").and_then(Value::as_u64).unwrap_or(0);
        let to = word(viewer, "to");
        let _ = writeln!(text, "  {to:<22} from before the restart, not set up again: {packets} packets");
    }
    let streams = list(document, "streams");
    if streams.is_empty() {
        text.push_str("no streams\n");
    }
    for stream in streams {
        let legs = list(stream, "legs");
        let mut rungs: BTreeMap<&str, usize> = BTreeMap::new();
        for leg in legs {
            *rungs.entry(word(leg, "rung")).or_default() += 1;
        }
        let rungs = rungs.iter().map(|(rung, legs)| format!("{legs} {rung}")).collect::<Vec<_>>();
        let rungs = if rungs.is_empty() { String::new() } else { format!(" ({})", rungs.join(", ")) };
        let source = stream.get("source").unwrap_or(&Value::Null);
        let _ = writeln!(
            text,
            "{}  {}  from {} {}  {} viewers{rungs}",
            word(stream, "name"),
            word(stream, "state"),
            word(source, "transport"),
            word(source, "peer"),
            legs.len(),
        );
        if let Some(error) = stream.get("error").and_then(Value::as_str) {
            let _ = writeln!(text, "  ! {error}");
        }
        for leg in legs {
            let packets = leg.get("packets").and_then(Value::as_u64).unwrap_or(0);
            let _ = write!(
                text,
                "  > {:<22} {:<4} {:<5} {:<8} {packets} packets",
                word(leg, "peer"),
                word(leg, "transport"),
                word(leg, "rung"),
                word(leg, "state"),
            );
            for (reason, count) in leg.get("dropped").and_then(Value::as_object).into_iter().flatten() {
                let _ = write!(text, ", {count} dropped ({reason})");
            }
            match leg.get("rung_reason").and_then(Value::as_str) {
                Some(reason) => writeln!(text, "  ({reason})"),
                None => writeln!(text),
            }
            .ok();
        }
    }
    text
}

/// Whether an interface merges bursts, and by what is known of them.
fn batching(value: &Value) -> String {
    let mut text = String::new();
    if let Some(burst) = value.get("burst").and_then(Value::as_f64) {
        let _ = write!(text, " bursts of {burst:.1} packets");
    }
    if value.get("on").and_then(Value::as_bool) == Some(true) {
        text.push_str(" merged");
        if let Some(seconds) = value.get("since_seconds").and_then(Value::as_u64) {
            let _ = write!(text, " for {seconds} s");
        }
    }
    if let Some(reason) = value.get("reason").and_then(Value::as_str) {
        let _ = write!(text, " (not merged: {reason})");
    }
    text
}

/// What the programs left alone, in one line, if there was anything.
fn passed(passes: &[(&'static str, u64)]) -> String {
    if passes.is_empty() {
        return String::new();
    }
    let counts: Vec<_> = passes.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("  left to the kernel's own stack: {}\n", counts.join(", "))
}

/// What lies under bpffs for a person.
fn describe_pins(found: &Found) -> String {
    let mut text = String::new();
    let running = if pins::is_running(&found.instance) {
        "of the proxy that is running"
    } else {
        "left by a proxy that is not running; rtp-proxy uninstall removes it"
    };
    let _ = writeln!(text, "pinned in {}: {running}", found.pins.path().display());
    if found.abi != pins::abi() {
        let _ = writeln!(text, "  of another version ({}), which this one cannot read", found.abi);
        return text;
    }
    for (ifindex, record) in found.pins.records() {
        let merged = if record.before.is_some() { ", bursts merged" } else { "" };
        let _ =
            writeln!(text, "  {:<16} {:<5} interface {ifindex}{merged}", record.name, record.rung.as_str());
    }
    if !found.pins.has_maps() {
        text.push_str("  only what could not be taken back yet\n");
        return text;
    }
    let (Ok(table), Ok(counters)) = (KernelTable::pinned(&found.pins), Reader::pinned(&found.pins)) else {
        text.push_str("  cannot be read: root, or CAP_BPF and the right to read bpffs, is needed\n");
        return text;
    };
    let flows = table.published().unwrap_or_default();
    let legs: usize = flows.iter().map(|(_, flow)| usize::from(flow.legs)).sum();
    let packets: u64 = flows
        .iter()
        .filter_map(|(_, flow)| table.flow_stats(flow.stats).ok())
        .map(|stats| stats.packets)
        .sum();
    let _ = writeln!(
        text,
        "  {} flows, {legs} legs, {packets} packets of these flows forwarded, {} ports closed to strangers",
        flows.len(),
        table.closed_ports()
    );
    let _ = write!(
        text,
        "  since the programs were loaded: {} forwarded, {} handed up",
        counters.counter(COUNT_FORWARD),
        counters.counter(COUNT_TO_USER)
    );
    for (reason, count) in counters.drops() {
        let _ = write!(text, ", {count} dropped ({reason})");
    }
    text.push('\n');
    text.push_str(&passed(&counters.passes()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_reads_like_a_table() {
        let document = serde_json::json!({
            "kernel": {"on": true, "reason": null, "interfaces": [
                {"name": "eth0", "rung": "tcx", "reason": null},
                {"name": "veth3", "rung": "tcx", "reason": null, "batching":
                    {"on": true, "burst": 31.96, "since_seconds": 4, "reason": null}},
                {"name": "eth1", "rung": "tc", "reason": "tcx: --max-rung tc", "batching":
                    {"on": false, "burst": 1.0, "since_seconds": null, "reason": null}},
                {"name": "eth2", "rung": "tc", "reason": "tcx: --max-rung tc", "batching": null},
                {"name": "tun0", "rung": "user", "reason": "tun0 has no Ethernet headers"}],
                "former_viewers": [{"to": "10.0.0.6:5004", "packets": 70, "bytes": 9000}]},
            "streams": [{"name": "door", "state": "active", "source": {"transport": "udp", "peer": "10.0.0.9:554"},
                "legs": [
                    {"peer": "10.0.0.7:4000", "transport": "udp", "rung": "tcx", "state": "active", "packets": 9,
                     "dropped": {}},
                    {"peer": "10.0.0.8:4000", "transport": "tcp", "rung": "user", "state": "active", "packets": 8,
                     "dropped": {"queue_full": 1}, "rung_reason": "TCP needs the worker"}]}]});
        assert_eq!(
            describe(&document),
            "fast path on\n\
             \x20 eth0             tcx\n\
             \x20 veth3            tcx   bursts of 32.0 packets merged for 4 s\n\
             \x20 eth1             tc    bursts of 1.0 packets  (tcx: --max-rung tc)\n\
             \x20 eth2             tc    tcx: --max-rung tc\n\
             \x20 tun0             user  tun0 has no Ethernet headers\n\
             \x20 10.0.0.6:5004          from before the restart, not set up again: 70 packets\n\
             door  active  from udp 10.0.0.9:554  2 viewers (1 tcx, 1 user)\n\
             \x20 > 10.0.0.7:4000          udp  tcx   active   9 packets\n\
             \x20 > 10.0.0.8:4000          tcp  user  active   8 packets, 1 dropped (queue_full)  (TCP needs the worker)\n"
        );
    }

    #[test]
    fn what_was_left_to_the_kernels_own_stack_is_said_by_reason() {
        assert_eq!(
            passed(&[("not_ours", 7), ("vlan", 2)]),
            "  left to the kernel's own stack: 7 not_ours, 2 vlan\n"
        );
        assert_eq!(passed(&[]), "");
    }

    #[test]
    fn a_camera_that_is_not_there_says_why() {
        let document = serde_json::json!({"streams": [{"name": "yard", "state": "announced", "legs": [],
            "error": "the camera cannot be reached: Connection refused",
            "source": {"transport": null, "peer": null}}]});
        assert!(describe(&document).ends_with(
            "yard  announced  from - -  0 viewers\n  ! the camera cannot be reached: Connection refused\n"
        ));
    }

    #[test]
    fn a_document_without_anything_says_so() {
        let document =
            serde_json::json!({"kernel": {"on": false, "reason": "--max-rung user"}, "streams": []});
        assert_eq!(describe(&document), "fast path off: --max-rung user\nno streams\n");
        assert!(describe(&Value::Null).contains("fast path off"));
    }
}
