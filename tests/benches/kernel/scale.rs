//! B8: many streams, many legs, and viewers that come and go.

use std::io::IoSliceMut;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::cpu::pin;
use msm_tests::bench::sink::Sink;
use msm_tests::bench::stats::quantile;
use msm_tests::process::wait_for;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use serde_json::json;

use super::course::{Course, Traffic};
use super::fast::{Fast, Joining, Mode};
use super::generator::{Shape, now};
use super::lane::sink;
use super::latency::Stamps;
use super::report::{Outcome, Target};
use super::topology::Kind;

const BACKLOG: &str = "/proc/sys/net/core/netdev_max_backlog";

/// Room for the copies of one softirq: the legs times the packets of a poll. The setting is the whole
/// machine's and is put back.
#[derive(Debug)]
pub(crate) struct Backlog(String);

impl Backlog {
    pub(crate) fn of(packets: u32) -> Result<Self> {
        let before = std::fs::read_to_string(BACKLOG).context(BACKLOG)?;
        std::fs::write(BACKLOG, packets.to_string()).context(BACKLOG)?;
        Ok(Self(before))
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        std::fs::write(BACKLOG, self.0.trim()).ok();
    }
}

/// Packets per second of the stream that viewers join: the wait for the next one is in the figure.
const RATE: u32 = 20_000;
/// A viewer comes and goes in this time: a join and a leave, two changes.
const CYCLE: Duration = Duration::from_millis(2);

/// One viewer joins and leaves again and again while four others watch.
pub(crate) fn joins(course: &Course, fast: &mut Fast, seconds: f64, outcome: &mut Outcome) -> Result<()> {
    let _stamps = Stamps::after_the_queue()?;
    let traffic = Traffic {
        shape: Shape::Single,
        size: super::catalogue::AUDIO,
        legs: 4,
        merged: false,
        rate: Some(RATE),
    };
    let mut lane = fast.lane(course, "others", Kind::Inline, Mode::PerLeg, traffic)?;
    lane.gate(&course.topology)?;
    lane.count()?;
    let pod = &course.topology.pods[4];
    let guest = sink(pod, course.port(), false)?;
    setsockopt(&guest.rtp, sockopt::ReceiveTimestampns, &true)?;
    let mut joining = fast.joining(&lane, pod, guest.port())?;
    let done = AtomicBool::new(false);
    let how_long = Duration::from_secs_f64(seconds);
    let before: u64 = drops(&lane)?;
    let (sent, found) = std::thread::scope(|scope| -> Result<_> {
        let visitor = scope.spawn(|| visit(&mut joining, &guest, &done));
        let sent = lane.path.drive(&mut lane.generator, how_long);
        done.store(true, Ordering::Release);
        let found = visitor.join().map_err(|_| anyhow::anyhow!("the visiting thread panicked"))?;
        Ok((sent?, found?))
    })?;
    std::thread::sleep(Duration::from_millis(60));
    let mut kept = 0;
    for leg in &lane.legs {
        kept += leg.waiting()?;
    }
    let arrived = drops(&lane)? - before + kept;
    let lost = (sent * lane.legs.len() as u64).saturating_sub(arrived);
    let micros = [0.5, 0.99].map(|q| quantile(&found, q));
    outcome.tables.push(format!(
        "{} joins and as many leaves in {seconds:.1} s by map updates, on a stream of {RATE} packets/s with 4 \
         other viewers.\n\n| | found | target | met |\n|---|---|---|---|\n\
         | join to first packet, p50 | {:.0} µs | | |\n| join to first packet, p99 | {:.0} µs | {} |\n\
         | copies of {} that the others lost | {lost} | {} |\n",
        found.len(),
        micros[0],
        micros[1],
        Target::AtMost(1000.0).judge(&[micros[1]]),
        sent * lane.legs.len() as u64,
        Target::AtMost(0.0).judge(&[lost as f64]),
    ));
    outcome
        .raw
        .push(json!({"joins": found.len(), "seconds": seconds, "p50_us": micros[0], "p99_us": micros[1],
        "others_sent": sent * lane.legs.len() as u64, "others_lost": lost}));
    Ok(())
}

fn drops(lane: &super::lane::Lane) -> Result<u64> {
    lane.legs.iter().map(|l| l.sink.drops()).sum()
}

/// Comes and goes on core 1; returns µs from each join to its first packet.
fn visit(joining: &mut Joining<'_>, guest: &Sink, done: &AtomicBool) -> Result<Vec<f64>> {
    pin(1)?;
    let mut found = Vec::new();
    while !done.load(Ordering::Acquire) {
        guest.drain()?;
        let start = now()?;
        joining.join()?;
        std::thread::sleep(CYCLE / 2);
        // The source may be held up by others of this machine; then the wait is long, and counts.
        let first = wait_for("a first packet", Duration::from_secs(2), || first_stamp(guest).transpose())??;
        joining.leave()?;
        std::thread::sleep(CYCLE / 2);
        ensure!(first >= start, "a packet from before the join");
        found.push((first - start) as f64 / 1_000.0);
    }
    Ok(found)
}

/// Receive stamp of the first packet that waits.
fn first_stamp(sink: &Sink) -> Result<Option<i64>> {
    let mut buffer = [0_u8; 2048];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let Ok(message) = recvmsg::<()>(sink.rtp.as_raw_fd(), &mut slices, Some(&mut control), flags) else {
        return Ok(None);
    };
    Ok(message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::ScmTimestampns(t) => Some(t.tv_sec() * 1_000_000_000 + t.tv_nsec()),
        _ => None,
    }))
}
