//! Viewers that come and go by the hundred beside others that stay, while the kernel carries the media.
//!
//! `MSM_TEST_JOINS=1000:30` says how many a second and for how many seconds, and writes
//! `docs/results/joins.md`; CI runs a short cut of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_fastpath::Gate;
use msm_tests::bench::stats::quantile;
use msm_tests::camera::{Stage, Transport};
use msm_tests::privilege::environment;
use msm_tests::probe::{Cameras, Load, Viewers, first_control};
use msm_tests::process::{Scratch, output, wait_for};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::rtsp::Connection;
use rtp_proxy::kernel::table::Table as _;

use crate::kernel_scene::{LIMIT, Scene};

const ENV_JOINS: &str = "MSM_TEST_JOINS";
const INPUT: &str = "10.7.1.1";
const OUTPUT: &str = "10.7.2.1";
/// One more than these addresses have guests, `10.7.2.` and this.
const GUESTS_FROM: u8 = 10;
const GUEST_ADDRESSES: u8 = 40;
/// Sound and a key frame a second.
const LOAD: Load = Load { packet_bytes: 300, packets_per_second: 200, burst: 40 };
/// Streams, viewers of each that stay, and guests at once.
const STREAMS: usize = 8;
const STEADY: usize = 2;
const GUESTS: usize = 240;
/// How long a guest stays after its first packet, and how long one of so many: until the kernel carries it.
const STAY: Duration = Duration::from_millis(60);
const LONG_STAY: Duration = Duration::from_millis(1_200);
const LONG_ONE_IN: u64 = 17;

/// How many a second, and for how long.
#[derive(Debug, Clone, Copy)]
struct Storm {
    rate: u32,
    length: Duration,
}

/// One whole visit.
#[derive(Debug, Default, Clone, Copy)]
struct Visit {
    /// SETUP and PLAY to their answers, TEARDOWN to its answer, in seconds.
    setup: f64,
    play: f64,
    leave: f64,
    /// From the request to its first packet.
    play_to_packet: f64,
    setup_to_packet: f64,
    packets: u64,
    lost: u64,
    doubled: u64,
    /// The first packet is not the one that RTP-Info named.
    inexact: bool,
    /// Behind its time when it began, in seconds.
    late: f64,
}

/// A seat that one guest after another takes: an RTSP connection and a pair of ports.
struct Seat {
    connection: Connection,
    rtp: UdpSocket,
    _rtcp: UdpSocket,
    port: u16,
}

impl Seat {
    fn new(local: IpAddr, url: &str) -> Result<Self> {
        for _ in 0..200 {
            let rtp = UdpSocket::bind((local, 0))?;
            let port = rtp.local_addr()?.port();
            if !port.is_multiple_of(2) {
                continue;
            }
            if let Ok(rtcp) = UdpSocket::bind((local, port + 1)) {
                rtp.set_read_timeout(Some(Duration::from_secs(2)))?;
                return Ok(Self {
                    connection: Connection::open_from(url, Some(local))?,
                    rtp,
                    _rtcp: rtcp,
                    port,
                });
            }
        }
        bail!("no free pair of UDP ports")
    }

    /// SETUP, PLAY, media for a while, TEARDOWN. `camera`: whose packets are the guest's.
    fn visit(&mut self, (base, control): &(String, String), camera: u32, stay: Duration) -> Result<Visit> {
        let Self { connection, rtp, port, .. } = self;
        // What an earlier guest was sent at the very end is not this one's.
        rtp.set_nonblocking(true)?;
        let mut packet = [0; 2048];
        while rtp.recv(&mut packet).is_ok() {}
        rtp.set_nonblocking(false)?;
        let offer = format!("RTP/AVP;unicast;client_port={port}-{}", *port + 1);
        connection.session = None;
        let begun = Instant::now();
        connection.request("SETUP", control, &[("Transport", &offer)], "")?.ok()?;
        let set_up = Instant::now();
        let answer = connection.request("PLAY", base, &[("Range", "npt=now-")], "")?.ok()?;
        let played = Instant::now();
        let promised: u16 = answer
            .header("RTP-Info")
            .and_then(|info| info.split("seq=").nth(1)?.split(';').next()?.parse().ok())
            .context("RTP-Info")?;
        let mut sequences = Vec::new();
        let mut first = None;
        let mut until = Instant::now() + LIMIT;
        while Instant::now() < until {
            let Ok(length) = rtp.recv(&mut packet) else { break };
            take(&packet[..length], camera, &mut sequences);
            if first.is_none() && !sequences.is_empty() {
                first = Some(Instant::now());
                until = Instant::now() + stay;
            }
        }
        let first = first.context("not one packet came")?;
        let leaving = Instant::now();
        connection.request("TEARDOWN", base, &[], "")?.ok()?;
        let left = Instant::now();
        rtp.set_nonblocking(true)?;
        while let Ok(length) = rtp.recv(&mut packet) {
            take(&packet[..length], camera, &mut sequences);
        }
        let inexact = sequences[0] != promised;
        let mut places: Vec<i16> = sequences.iter().map(|seq| seq.wrapping_sub(promised) as i16).collect();
        places.sort_unstable();
        let doubled = places.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
        let lost = places.windows(2).map(|pair| (pair[1] - pair[0] - 1).max(0) as u64).sum();
        if lost > 0 {
            let gaps: Vec<_> = places.windows(2).filter(|pair| pair[1] - pair[0] > 1).collect();
            eprintln!(
                "camera {camera}, stay {stay:?}: {} packets, gaps {gaps:?}, {} dropped at the socket",
                places.len(),
                dropped(rtp)
            );
        }
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        Ok(Visit {
            setup: seconds(begun, set_up),
            play: seconds(set_up, played),
            leave: seconds(leaving, left),
            play_to_packet: seconds(set_up, first),
            setup_to_packet: seconds(begun, first),
            packets: sequences.len() as u64,
            lost,
            doubled,
            inexact,
            late: 0.0,
        })
    }
}

/// Datagrams that this machine dropped at a socket, ever.
fn dropped(socket: &UdpSocket) -> u32 {
    let mut words = [0_u32; 9];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to what `words` points to.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { words[8] } else { 0 }
}

/// Notes the number of a packet of this camera.
fn take(packet: &[u8], camera: u32, sequences: &mut Vec<u16>) {
    let Some([a, b, c, d]) = packet.get(13..17).and_then(|bytes| bytes.first_chunk()) else { return };
    if u32::from_be_bytes([*a, *b, *c, *d]) == camera {
        sequences.push(u16::from_be_bytes([packet[2], packet[3]]));
    }
}

/// What guests met.
#[derive(Debug, Default)]
struct Visits {
    done: Vec<Visit>,
    /// Why others came to nothing, and how often.
    failed: BTreeMap<String, u64>,
    seconds: f64,
}

/// Guests come at their times, whether the ones before them were served or not, as long as there are seats.
fn storm(urls: &[String], storm: Storm) -> Result<Visits> {
    let mut controls = Vec::new();
    for url in urls {
        let mut connection = Connection::open(url, None)?;
        let described = connection.request("DESCRIBE", url, &[("Accept", "application/sdp")], "")?.ok()?;
        let base = described.header("Content-Base").unwrap_or(url).to_owned();
        controls.push((base, first_control(&described, url)));
    }
    let mut seats = Vec::new();
    for n in 0..GUESTS {
        let local = Ipv4Addr::new(10, 7, 2, GUESTS_FROM + n as u8 % GUEST_ADDRESSES);
        seats.push(Seat::new(local.into(), &urls[0])?);
    }
    let (next, started) = (AtomicU64::new(0), Instant::now());
    let total = u64::from(storm.rate) * storm.length.as_secs();
    let guests = std::thread::scope(|scope| {
        let threads: Vec<_> = seats
            .into_iter()
            .map(|mut seat| {
                let (next, controls) = (&next, &controls);
                scope.spawn(move || {
                    let mut visits = Visits::default();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= total {
                            return visits;
                        }
                        let at = started + Duration::from_secs_f64(n as f64 / f64::from(storm.rate));
                        std::thread::sleep(at.saturating_duration_since(Instant::now()));
                        let late = Instant::now().saturating_duration_since(at).as_secs_f64();
                        let camera = n as usize % controls.len();
                        let stay = if n % LONG_ONE_IN == 0 { LONG_STAY } else { STAY };
                        match seat.visit(&controls[camera], camera as u32, stay) {
                            Ok(visit) => visits.done.push(Visit { late, ..visit }),
                            Err(error) => *visits.failed.entry(format!("{error:#}")).or_default() += 1,
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut all = Visits { seconds: started.elapsed().as_secs_f64(), ..Visits::default() };
    for visits in guests {
        let visits = visits.map_err(|_| anyhow::anyhow!("a guest panicked"))?;
        all.done.extend(visits.done);
        for (why, count) in visits.failed {
            *all.failed.entry(why).or_default() += count;
        }
    }
    Ok(all)
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
    visits: Visits,
    /// Of the viewers that stayed: packets, lost, doubled, reordered, wrong.
    steady: [u64; 5],
    cpu: f64,
    updates: Vec<f64>,
    grace: Vec<f64>,
}

fn run(scene: &Scene, limits: Storm) -> Result<Outcome> {
    for n in 0..GUEST_ADDRESSES {
        let address = format!("10.7.2.{}/24", GUESTS_FROM + n);
        let device = scene.viewer.output("sh", &["-c", "ls /sys/class/net | grep '^v'"])?;
        scene.viewer.ip(&["addr", "add", &address, "dev", device.trim()])?;
    }
    let (updates, grace) = (map_updates(scene, 10_000)?, grace_periods(30));
    let scratch = Scratch::new("joins")?;
    let bpffs = scene.bpffs.path().display().to_string();
    let flags = ["--bpffs", &bpffs, "--log-level", "warn"].map(str::to_owned).to_vec();
    let options = Options { flags, ..Options::default() };
    let mut proxy = Proxy::start(Stage::inside(scratch.path(), &scene.node), "proxy", &options)?;
    let urls =
        |host: &str| -> Vec<_> { (0..STREAMS).map(|n| proxy.url_at(host, &format!("cam-{n}"))).collect() };
    let (inputs, outputs) = (urls(INPUT), urls(OUTPUT));
    let cameras = Cameras::publish(&inputs, Transport::Udp, LOAD, Some(&scene.camera))?;
    let mut viewers = Viewers::start()?;
    for url in &outputs {
        for _ in 0..STEADY {
            viewers.play(url, Transport::Udp, Some(&scene.viewer))?;
        }
    }
    let count = STREAMS * STEADY;
    let on_tcx = |proxy: &Proxy| proxy.metric("msm_legs", &["rung=\"tcx\""]).unwrap_or_default() as usize;
    wait_for("the legs on tcx", LIMIT, || (on_tcx(&proxy) == count).then_some(()))?;
    let cpu = cpu_seconds(&proxy)?;
    let visits = scene.viewer.inside(|| storm(&outputs, limits))??;
    let cpu = cpu_seconds(&proxy)? - cpu;
    wait_for("all guests to be gone", LIMIT, || {
        let users = proxy.metric("msm_legs", &["rung=\"user\""]).ok()?;
        (users == 0.0 && on_tcx(&proxy) == count).then_some(())
    })?;
    ensure!(cameras.unsent() == 0, "this machine did not send everything");
    cameras.stop();
    std::thread::sleep(Duration::from_millis(500));
    ensure!(viewers.overflows(Some(&scene.viewer))? == 0, "this machine dropped packets itself");
    ensure!((0..count).all(|viewer| !viewers.is_closed(viewer)), "a viewer was disconnected");
    let accounts: Vec<_> = (0..count).map(|viewer| viewers.account(viewer)).collect();
    let sum = |value: fn(&msm_tests::probe::Account) -> u64| accounts.iter().map(value).sum::<u64>();
    let steady = [
        sum(|account| account.packets),
        sum(msm_tests::probe::Account::lost),
        sum(|account| account.doubled),
        sum(|account| account.reordered),
        sum(|account| account.wrong + account.ssrc_changes),
    ];
    drop(viewers);
    proxy.terminate(LIMIT)?;
    Ok(Outcome { storm: limits, visits, steady, cpu, updates, grace })
}

/// CPU time of all threads of the proxy.
fn cpu_seconds(proxy: &Proxy) -> Result<f64> {
    // The process is `ip netns exec`'s own: it becomes the proxy.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.process.pid()))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

impl Outcome {
    /// Whoever stayed lost nothing; whoever came got everything from the number on that it was told.
    fn check(&self) -> Result<()> {
        let Visits { done, failed, .. } = &self.visits;
        let [packets, lost, doubled, _, wrong] = self.steady;
        ensure!(packets > 0 && lost + doubled + wrong == 0, "those who stayed: {:?}", self.steady);
        ensure!(failed.is_empty(), "{} came, others did not: {failed:#?}", done.len());
        ensure!(!done.is_empty(), "nobody came");
        let sum = |value: fn(&Visit) -> u64| done.iter().map(value).sum::<u64>();
        let found = (sum(|v| v.lost), sum(|v| v.doubled), sum(|v| u64::from(v.inexact)));
        ensure!(found == (0, 0, 0), "guests: lost, doubled, inexact RTP-Info {found:?} of {}", done.len());
        Ok(())
    }

    fn report(&self) -> Result<String> {
        let Visits { done, seconds, .. } = &self.visits;
        let mut text = String::new();
        let text_of = &mut text;
        let cores = std::thread::available_parallelism()?;
        writeln!(text_of, "# Joins and leaves beside legs that the kernel carries\n")?;
        writeln!(
            text_of,
            "`{ENV_JOINS}={}:{} MSM_TEST_PROXY=$PWD/target/release/rtp-proxy cargo test -p msm-tests --test topology \
             joins_and_leaves_at_rate` writes this file.\n",
            self.storm.rate,
            self.storm.length.as_secs()
        )?;
        writeln!(
            text_of,
            "{}, {cores} cores, Linux {}, load average {}; cameras, proxy, viewers and guests share them, each in a\n\
             network namespace of its own.\n",
            output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?.trim(),
            output("uname", &["-r"])?.trim(),
            std::fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default(),
        )?;
        writeln!(
            text_of,
            "{STREAMS} published streams, each {} packets/s of {} bytes, {} of them back to back once a second; {STEADY} \
             viewers of\neach stay, on rung `tcx`. Guests come to one stream after the other: SETUP, PLAY, {} ms of \
             media (one in {LONG_ONE_IN} stays {} ms,\nuntil the kernel carries it), TEARDOWN, over {GUESTS} RTSP connections from {GUEST_ADDRESSES} addresses. Every packet carries \
             its number; everybody accounts for each.\n",
            LOAD.packets_per_second,
            LOAD.packet_bytes,
            LOAD.burst,
            STAY.as_millis(),
            LONG_STAY.as_millis(),
        )?;
        writeln!(text_of, "| | |\n|---|---|")?;
        let sum = |value: fn(&Visit) -> u64| done.iter().map(value).sum::<u64>();
        let [packets, lost, doubled, reordered, wrong] = self.steady;
        for (name, value) in [
            (
                "joins, and as many leaves, asked for",
                format!("{}/s for {} s", self.storm.rate, self.storm.length.as_secs()),
            ),
            ("done", format!("{} in {seconds:.1} s: {:.0}/s", done.len(), done.len() as f64 / seconds)),
            ("those who stayed: packets", packets.to_string()),
            ("lost, doubled, wrong", format!("{lost}, {doubled}, {wrong}")),
            ("reordered", reordered.to_string()),
            ("guests: packets", sum(|visit| visit.packets).to_string()),
            ("lost, doubled", format!("{}, {}", sum(|visit| visit.lost), sum(|visit| visit.doubled))),
            ("first packet is not that of RTP-Info", sum(|visit| u64::from(visit.inexact)).to_string()),
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
        let wait = 1e3 / f64::from(LOAD.packets_per_second - LOAD.burst);
        writeln!(
            text_of,
            "\nA camera's next packet is up to {wait:.1} ms away; that is in every time to a packet."
        )?;
        Ok(text)
    }
}

#[test]
fn joins_and_leaves_at_rate_disturb_nobody_and_rtp_info_is_exact() -> Result<()> {
    let test = "joins_and_leaves_at_rate_disturb_nobody_and_rtp_info_is_exact";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let asked = environment(ENV_JOINS);
    let (rate, seconds) = match &asked {
        None => (100, 3),
        Some(text) => {
            let (rate, seconds) = text.split_once(':').context("MSM_TEST_JOINS is RATE:SECONDS")?;
            (rate.parse()?, seconds.parse()?)
        }
    };
    let outcome = run(&scene, Storm { rate, length: Duration::from_secs(seconds) })?;
    let report = outcome.report()?;
    eprintln!("{report}");
    if asked.is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results/joins.md"), &report)?;
    }
    outcome.check()
}
