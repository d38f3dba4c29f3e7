//! B8: many streams, many legs, and viewers that come and go.

use std::io::IoSliceMut;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use msm_tests::bench::cpu::pin;
use msm_tests::bench::setting::Setting;
use msm_tests::bench::sink::Sink;
use msm_tests::bench::stats::quantile;
use msm_tests::process::wait_for;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use serde_json::json;

use super::catalogue::{AUDIO, OPEN_RATE, Run, VIDEO};
use super::course::{Course, Traffic, floor_name};
use super::fast::{Fast, Joining, Mode};
use super::generator::{Shape, now};
use super::lane::sink;
use super::latency::stamps_after_the_queue;
use super::report::{Basis, Outcome, Target};
use super::rounds::case;
use super::topology::{BACKLOG, Kind};
use super::{joins, proxy};

/// Room for the copies of one softirq: the legs times the packets of a poll. Where bursts are merged `rtp-proxy` asks for
/// it: 64 packets for the viewers of a stream (`rtp-proxy/src/kernel/batching.rs`), and with the kernel's default of 1,000 it
/// merges for fewer than 16 viewers only.
pub(crate) fn backlog_of(packets: u32) -> Result<Setting> {
    Setting::change(BACKLOG, &packets.to_string())
}

/// Copies that one poll of a device may make here: 64 packets for 256 legs, twice over.
const ROOM: u32 = 32_768;

impl Run {
    /// B8: does the cost per copy stay what it is?
    pub(crate) fn b8(&mut self) -> Result<Outcome> {
        let mut outcome = Outcome::new("B8", "Scale");
        let _backlog = backlog_of(ROOM)?;
        let course = Course::open(&self.programs, 64, false)?;
        outcome.offloads = course.topology.offloads()?;
        let mut fast = Fast::open(&course)?;
        self.flatness(&course, &mut fast, &mut outcome)?;
        self.wide(&course, &mut fast, &mut outcome)?;
        if self.plan.is_profile() {
            return Ok(outcome);
        }
        let seconds = 4.0 * self.plan.each.as_secs_f64();
        if let Err(reason) = joins(&course, &mut fast, seconds, &mut outcome) {
            outcome.skipped.push(("joins by map updates".to_owned(), format!("{reason:#}")));
        }
        // The proxy attaches its own programs to the same cables.
        drop(fast);
        if let Err(reason) = joins::whole_calls(&course, seconds, &mut outcome) {
            outcome.skipped.push(("joins by whole RTSP calls".to_owned(), format!("{reason:#}")));
        }
        Ok(outcome)
    }

    /// Many streams, and more legs, beside one stream.
    fn flatness(&mut self, course: &Course, fast: &mut Fast, outcome: &mut Outcome) -> Result<()> {
        const MANY: usize = 10_000;
        let single = |legs| Traffic { shape: Shape::Single, size: AUDIO, legs, merged: false, rate: None };
        let mut lanes = vec![course.floor(single(0))?];
        for (streams, legs) in [(1, 4), (MANY, 4), (1, 16), (1, 64)] {
            let name = format!("{streams} × {legs}");
            let mut lane = fast.streams(course, &name, Kind::Inline, Mode::PerLeg, single(legs), streams)?;
            if streams == MANY {
                lane.floor = format!("{}, {MANY} streams", floor_name(None));
                lanes.push(course.floor_of(Kind::Inline, &lane.floor, &lane, single(0))?);
            }
            lanes.push(lane);
        }
        let mut sessions = Vec::new();
        let paced = single(16).paced(OPEN_RATE);
        match proxy::lane(course, paced, &mut sessions) {
            Ok(lane) => lanes.extend([course.floor(paced)?, lane]),
            Err(reason) => outcome.skipped.push((proxy::NAME.to_owned(), format!("{reason:#}"))),
        }
        let label = "172 B, single packets, per leg, streams × legs, plain sockets";
        outcome.cases.push(case(label, &course.topology, lanes, &self.plan, &mut self.shuffle)?);
        outcome.claim(0, "1 × 16", proxy::NAME, Basis::Net, Target::Nothing);
        let many = format!("{MANY} × 4");
        // Dearer ÷ cheaper: the first name is the divisor.
        outcome.claim(0, "1 × 4", &many, Basis::Net, Target::AtMost(1.2));
        outcome.claim(0, "1 × 4", &many, Basis::Gross, Target::Nothing);
        outcome.claim(0, "1 × 16", "1 × 64", Basis::Net, Target::AtMost(1.2));
        outcome.claim(0, "1 × 16", &many, Basis::Net, Target::AtMost(1.2));
        let title = "B8: cost of a copy by streams × legs, 172 B, single packets, net of the generator";
        outcome.draw_costs("kernel-b8.svg", title, 0, true);
        Ok(())
    }

    /// One stream for 256 legs in bursts.
    fn wide(&mut self, course: &Course, fast: &mut Fast, outcome: &mut Outcome) -> Result<()> {
        let mut lanes = Vec::new();
        for (shape, kind) in [
            (Shape::Burst(32), Kind::Inline),
            (Shape::Super(32), Kind::Inline),
            (Shape::Burst(32), Kind::Batched),
        ] {
            let rate = (kind == Kind::Batched).then_some(WIDE_RATE);
            let traffic = Traffic { shape, size: VIDEO, legs: 256, merged: false, rate };
            lanes.push(course.floor(traffic)?);
            let how = if kind == Kind::Batched { ", batched" } else { "" };
            let name = format!("1 × 256, {shape}{how}");
            let mut lane = fast.lane(course, &name, kind, Mode::PerLeg, traffic)?;
            // One floor per shape.
            lane.floor = format!("{}, {shape}", floor_name(rate));
            let last = lanes.len() - 1;
            lanes[last].name.clone_from(&lane.floor);
            lanes.push(lane);
        }
        let label = "1200 B, 256 legs on 64 pods, per leg, plain sockets";
        outcome.cases.push(case(label, &course.topology, lanes, &self.plan, &mut self.shuffle)?);
        let title = "B8: one stream for 256 legs, 1200 B, net of the generator";
        outcome.draw_costs("kernel-b8-256.svg", title, 1, true);
        Ok(())
    }
}

/// Packets per second for 256 legs on the NAPI thread: what half a core copies.
const WIDE_RATE: u32 = 2_000;

/// Packets per second of the stream that viewers join: the wait for the next one is in the figure.
const RATE: u32 = 20_000;
/// A viewer comes and goes in about this time, by five map updates.
const CYCLE: Duration = Duration::from_millis(2);

/// One viewer joins and leaves again and again while four others watch.
fn joins(course: &Course, fast: &mut Fast, seconds: f64, outcome: &mut Outcome) -> Result<()> {
    let _stamps = stamps_after_the_queue()?;
    let traffic = Traffic { shape: Shape::Single, size: AUDIO, legs: 4, merged: false, rate: Some(RATE) };
    let mut lane = fast.lane(course, "others", Kind::Inline, Mode::PerLeg, traffic)?;
    lane.admit(&course.topology)?;
    lane.count()?;
    let pod = &course.topology.pods[4];
    let guest = sink(pod, course.port(), false)?;
    setsockopt(&guest.rtp, sockopt::ReceiveTimestampns, &true)?;
    let mut joining = fast.joining(&lane, pod, guest.port())?;
    let done = AtomicBool::new(false);
    let how_long = Duration::from_secs_f64(seconds);
    let before: u64 = drops(&lane)?;
    pin(0)?;
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
    let [middle, late] = [0.5, 0.99].map(|q| quantile(&found, q));
    // A join is a leg, its gate and the flow; a leave is the flow and the gate.
    let updates = (5 * found.len()) as f64 / seconds;
    outcome.tables.push(format!(
        "Joins by map updates: one viewer comes and goes {} times in {seconds:.1} s, which is {updates:.0} map \
         updates/s, on a stream of {RATE} packets/s with 4 other viewers, who were sent {} copies.\n",
        found.len(),
        sent * lane.legs.len() as u64,
    ));
    outcome.find("map updates while viewers join", "per second", vec![updates], Target::AtLeast(1000.0));
    outcome.find("join by map updates to first packet, p50", "µs", vec![middle], Target::Nothing);
    outcome.find("join by map updates to first packet, p99", "µs", vec![late], Target::AtMost(1000.0));
    outcome.find("lost by the others meanwhile", "copies", vec![lost as f64], Target::AtMost(0.0));
    outcome.raw.push(json!({"joins_by": "map updates", "seconds": seconds, "to_first_packet_us": found,
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
        let waited = wait_for("a first packet", Duration::from_secs(2), || {
            first_stamp(guest, MsgFlags::MSG_DONTWAIT).transpose()
        });
        if waited.is_err() && done.load(Ordering::Acquire) {
            // The stream has ended meanwhile.
            break;
        }
        let first = waited??;
        joining.leave()?;
        std::thread::sleep(CYCLE / 2);
        ensure!(first >= start, "a packet from before the join");
        found.push((first - start) as f64 / 1_000.0);
    }
    Ok(found)
}

/// Receive stamp of the first packet that waits; with the flags of a blocking call it is waited for.
pub(crate) fn first_stamp(sink: &Sink, flags: MsgFlags) -> Result<Option<i64>> {
    let mut buffer = [0_u8; 2048];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let Ok(message) = recvmsg::<()>(sink.rtp.as_raw_fd(), &mut slices, Some(&mut control), flags) else {
        return Ok(None);
    };
    Ok(message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::ScmTimestampns(t) => Some(t.tv_sec() * 1_000_000_000 + t.tv_nsec()),
        _ => None,
    }))
}
