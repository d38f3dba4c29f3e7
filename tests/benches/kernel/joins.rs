//! Viewers that join by whole RTSP calls: DESCRIBE, SETUP, PLAY, and away again by closing the connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::cpu::pin;
use msm_tests::bench::sink::Sink;
use msm_tests::bench::stats::quantile;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use serde_json::json;

use super::catalogue::AUDIO;
use super::course::{Course, Traffic};
use super::generator::{Generator, Shape, now};
use super::lane::{Lane, sink};
use super::latency::stamps_after_the_queue;
use super::path::Path;
use super::proxy::{Proxy, viewers};
use super::report::{Outcome, Target};
use super::scale::first_stamp;
use super::topology::Pod;

/// Packets per second of the stream that viewers join: the wait for the next one is in the figure.
const RATE: u32 = 1_000;
/// Viewers that come and go at once, each on a pod of its own.
const VISITORS: usize = 3;
/// Ports that a visitor uses in turn: what was sent to the one before does not count for the next.
const PORTS: usize = 16;
/// Joins of one visitor: an address may set up a thousand times at once, then twenty times a second.
const MOST: usize = 900;

/// Viewers come and go on a stream that four others watch, all of them in the kernel.
pub(crate) fn whole_calls(course: &Course, seconds: f64, outcome: &mut Outcome) -> Result<()> {
    let _stamps = stamps_after_the_queue()?;
    let proxy = Proxy::start(course, "1", "tcx")?;
    let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 4, merged: false, rate: Some(RATE) };
    let (_publisher, source, to) = proxy.publish("bench")?;
    let mut generator = Generator::from_sockets(vec![(source, to)], traffic.shape, traffic.size)?;
    generator.rate = traffic.rate;
    for _ in 0..4 {
        generator.burst()?;
    }
    let mut sessions = Vec::new();
    let legs = viewers(&proxy, traffic, &mut sessions)?;
    // Legs move to the kernel with the packets that flow.
    generator.run(Duration::from_secs(1), |_| Ok(()))?;
    let moved = proxy.legs_on("tcx")?;
    ensure!(moved == legs.len(), "{moved} of {} legs are in the kernel", legs.len());
    let mut lane = Course::lane("others", generator, Path::Kernel, legs, traffic);
    lane.admit(&course.topology)?;
    lane.count()?;
    let drops = |lane: &Lane| lane.legs.iter().map(|l| l.sink.drops()).sum::<Result<u64>>();
    let before = drops(&lane)?;
    let done = AtomicBool::new(false);
    let (sent, found) = std::thread::scope(|scope| -> Result<_> {
        let visitors: Vec<_> = (0..VISITORS)
            .map(|number| {
                let (proxy, done, pod) = (&proxy, &done, &course.topology.pods[4 + number]);
                let port = course.ports(2 * PORTS as u16);
                scope.spawn(move || visit(proxy, pod, port, done))
            })
            .collect();
        let sent = lane.drive(Duration::from_secs_f64(seconds));
        done.store(true, Ordering::Release);
        let mut found = Vec::new();
        for visitor in visitors {
            found.extend(visitor.join().map_err(|_| anyhow::anyhow!("a visitor panicked"))??);
        }
        Ok((sent?, found))
    })?;
    std::thread::sleep(Duration::from_millis(100));
    let mut kept = 0;
    for leg in &lane.legs {
        kept += leg.waiting()?;
    }
    let expected = sent * lane.legs.len() as u64;
    let lost = expected.saturating_sub(drops(&lane)? - before + kept);
    let joins = found.len() as f64 / seconds;
    outcome.tables.push(format!(
        "Joins by whole RTSP calls, on a stream of {RATE} packets/s of `rtp-proxy standalone` on the fast path: \
         {VISITORS} viewers at a time, {} joins and as many leaves in {seconds:.1} s; proxy and viewers share core 1. \
         From the connection's first byte to the first packet, DESCRIBE, SETUP and PLAY included. 4 others were sent \
         {expected} copies.\n",
        found.len()
    ));
    outcome.find("joins by whole RTSP calls", "per second", vec![joins], Target::Nothing);
    let [middle, late] = [0.5, 0.99].map(|q| quantile(&found, q));
    outcome.find("join by whole RTSP calls to first packet, p50", "µs", vec![middle], Target::Nothing);
    outcome.find("join by whole RTSP calls to first packet, p99", "µs", vec![late], Target::AtMost(50_000.0));
    let what = "lost by the others while viewers join by RTSP";
    outcome.find(what, "copies", vec![lost as f64], Target::AtMost(0.0));
    outcome.raw.push(json!({"joins_by": "RTSP calls", "seconds": seconds, "to_first_packet_us": found,
        "others_sent": expected, "others_lost": lost}));
    Ok(())
}

/// Comes and goes on core 1; returns µs from each connection to its first packet.
fn visit(proxy: &Proxy<'_>, pod: &Pod, port: u16, done: &AtomicBool) -> Result<Vec<f64>> {
    pin(1)?;
    let sinks = (0..PORTS).map(|n| sink(pod, port + 2 * n as u16, false)).collect::<Result<Vec<Sink>>>()?;
    for sink in &sinks {
        setsockopt(&sink.rtp, sockopt::ReceiveTimestampns, &true)?;
    }
    let mut found = Vec::new();
    while !done.load(Ordering::Acquire) && found.len() < MOST {
        let sink = &sinks[found.len() % PORTS];
        sink.drain()?;
        let start = now()?;
        let mut session = proxy.play("bench", pod, sink)?;
        let first = first_stamp(sink, MsgFlags::empty())?;
        if first.is_none() && done.load(Ordering::Acquire) {
            // The stream has ended meanwhile.
            break;
        }
        let first = first.context("no packet in half a second")?;
        // Without it the leg would outlive the connection, and its packets be taken for those of this port's next visitor.
        session.teardown(&proxy.url("bench", pod))?;
        ensure!(first >= start, "a packet from before the join");
        found.push((first - start) as f64 / 1_000.0);
    }
    Ok(found)
}
