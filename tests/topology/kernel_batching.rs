//! Bursts of a camera behind a veth are merged where they come in while that pays, and the interface is given back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::cpu::{KernelThreads, pin, pin_task};
use msm_tests::camera::{Stage, Transport};
use msm_tests::lab::Node;
use msm_tests::probe::wire::{Rtp, word_at};
use msm_tests::probe::{Player, Publisher, VIDEO};
use msm_tests::process::Scratch;
use msm_tests::proxy::{Options, Proxy, program};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::kernel_scene::{LIMIT, SSRC, Scene};
use crate::kernel_versions::{is_replaced, of_another_version};

/// Where camera and viewer reach the proxy, by address family: IPv4, IPv6.
pub(crate) const INPUT: [&str; 2] = ["10.7.1.1", "fd07:1::1"];
/// The camera.
pub(crate) const CAMERA: [&str; 2] = ["10.7.1.2", "fd07:1::2"];
const OUTPUT: [&str; 2] = ["10.7.2.1", "fd07:2::1"];
/// First bytes of every payload: an IDR slice.
const MARK: [u8; 2] = [0x65, 0x88];
/// Longer than a proxy stays with what it decided last.
const PATIENCE: Duration = Duration::from_secs(40);
/// So many that bursts of 32 pay.
const VIEWERS: u8 = 8;

pub(crate) struct House {
    pub(crate) proxy: Proxy,
    pub(crate) publisher: Publisher,
    pub(crate) player: Player,
    /// Others who watch; what they get is not looked at.
    audience: Vec<Player>,
    pub(crate) number: u32,
    pub(crate) scene: Scene,
    scratch: Scratch,
}

pub(crate) fn packet(number: u32) -> Vec<u8> {
    let payload = [&MARK[..], &number.to_be_bytes(), &[number as u8; 394]].concat();
    Rtp {
        payload_type: 96,
        marker: false,
        sequence: number as u16,
        timestamp: number * 90,
        ssrc: SSRC,
        payload,
    }
    .to_bytes()
}

/// The camera, from the first of its addresses however many it gets.
pub(crate) fn record(url: &str, family: usize) -> Result<Publisher> {
    Publisher::record_from(url, VIDEO, Transport::Udp, Some(CAMERA[family].parse()?))
}

fn options(scene: &Scene, flags: &[&str]) -> Options {
    let bpffs = scene.bpffs.path().display().to_string();
    let flags = [&["--bpffs", &bpffs], flags].concat().into_iter().map(str::to_owned).collect();
    Options { flags, ..Options::default() }
}

/// How the camera's interface receives.
fn settings(scene: &Scene) -> Result<String> {
    let look = format!("ethtool -k {0}; cat /sys/class/net/{0}/threaded", scene.inner);
    scene.node.output("sh", &["-c", &look])
}

/// Buffers that all interfaces of a node received; a super-packet is one.
fn buffers(node: &Node) -> Result<u64> {
    let table = node.output("cat", &["/proc/net/dev"])?;
    let received = |line: &str| line.split_once(':')?.1.split_whitespace().nth(1)?.parse::<u64>().ok();
    Ok(table.lines().filter_map(received).sum())
}

impl House {
    /// Nothing where the test cannot run here.
    pub(crate) fn new(test: &str, family: usize, flags: &[&str]) -> Result<Option<Self>> {
        Self::watched(test, family, flags, 1)
    }

    /// The same with so many viewers.
    fn watched(test: &str, family: usize, flags: &[&str], viewers: usize) -> Result<Option<Self>> {
        let Some(scene) = Scene::new(test)? else { return Ok(None) };
        Self::in_scene(scene, family, flags, viewers).map(Some)
    }

    /// The same in a scene that is there.
    pub(crate) fn in_scene(scene: Scene, family: usize, flags: &[&str], viewers: usize) -> Result<Self> {
        let scratch = Scratch::new("batching")?;
        let stage = Stage::inside(scratch.path(), &scene.node);
        let proxy = Proxy::start(stage, "proxy", &options(&scene, flags))?;
        let url = proxy.url_at(INPUT[family], "cam");
        let mut publisher = scene.camera.inside(|| record(&url, family))??;
        let url = proxy.url_at(OUTPUT[family], "cam");
        let mut number = 0;
        let first = || {
            publisher.send(0, &packet(number))?;
            number += 1;
            Ok(())
        };
        let player = scene.viewer.inside(|| Player::play_after(&url, Transport::Udp, first))??;
        let mut house = Self { proxy, publisher, player, audience: Vec::new(), number, scene, scratch };
        for _ in 1..viewers {
            let scene = &house.scene;
            let player = scene.viewer.inside(|| {
                Player::play_after(&url, Transport::Udp, || {
                    house.publisher.send(0, &packet(house.number))?;
                    house.number += 1;
                    Ok(())
                })
            })??;
            house.audience.push(player);
        }
        Ok(house)
    }

    /// The camera sends so many packets at once.
    pub(crate) fn burst(&mut self, packets: u32) -> Result<()> {
        if packets == 1 {
            self.publisher.send(0, &packet(self.number))?;
            self.number += 1;
            return Ok(());
        }
        let numbers = self.number..self.number + packets;
        self.publisher.send_burst(0, &numbers.clone().map(packet).collect::<Vec<_>>())?;
        self.number = numbers.end;
        Ok(())
    }

    /// Bursts every 20 ms until `done` holds of what the proxy says about the camera's interface.
    fn until(&mut self, what: &str, burst: u32, mut done: impl FnMut(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for _ in 0..10 {
                self.burst(burst)?;
                std::thread::sleep(Duration::from_millis(20));
                self.receive();
            }
            let interface = self.interface()?;
            if done(&interface) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "waited for {what}: {interface:#}");
        }
    }

    fn receive(&mut self) {
        self.player.receive();
        for other in &mut self.audience {
            other.receive();
            other.media[0].clear();
        }
    }

    /// What the proxy says about the camera's interface.
    fn interface(&self) -> Result<Value> {
        let document: Value = serde_json::from_str(&self.proxy.get("/v1/streams")?)?;
        let interfaces = document["kernel"]["interfaces"].as_array().context("interfaces")?;
        let interface = interfaces.iter().find(|interface| interface["name"] == *self.scene.inner);
        Ok(interface.cloned().unwrap_or_default())
    }

    fn until_merged(&mut self) -> Result<()> {
        self.until("bursts to be merged", 32, |interface| interface["batching"]["on"] == true)?;
        let now = settings(&self.scene)?;
        let on = |name: &str| now.lines().any(|line| line.trim() == format!("{name}: on"));
        ensure!(
            on("generic-receive-offload") && on("rx-udp-gro-forwarding") && now.ends_with("1\n"),
            "{now}"
        );
        Ok(())
    }

    /// The viewer has every packet from its first on, as it was sent and in order.
    pub(crate) fn is_whole(&mut self) -> Result<()> {
        let last = self.number - 1;
        let number = |packet: &[u8]| word_at(packet, 14);
        let has_last = |player: &Player| player.media[0].last().is_some_and(|packet| number(packet) == last);
        self.player.wait("the last packet", LIMIT, || Ok(()), has_last)?;
        let first = number(self.player.media[0].first().context("media")?);
        let got: Vec<u32> = self.player.media[0].iter().map(|packet| number(packet)).collect();
        let sent: Vec<u32> = (first..=last).collect();
        let differs = got.iter().zip(&sent).position(|(got, sent)| got != sent);
        ensure!(got == sent, "{} of {} packets, another one at {differs:?}", got.len(), sent.len());
        let packets = self.player.packets(0);
        let start = packets.first().context("media")?;
        let (sequence, timestamp) = (start.sequence, start.timestamp);
        for (offset, packet) in packets.iter().enumerate() {
            let offset = offset as u32;
            let wanted = Rtp {
                sequence: sequence.wrapping_add(offset as u16),
                timestamp: timestamp.wrapping_add(offset * 90),
                ssrc: start.ssrc,
                ..Rtp::parse(&self::packet(first + offset)).context("RTP")?
            };
            ensure!(*packet == wanted, "packet {} is not as it was sent", first + offset);
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.proxy.process.signal(Signal::SIGKILL);
        self.proxy.process.wait(LIMIT).map(drop)
    }
}

#[test]
fn bursts_are_merged_while_they_come_and_singles_are_not() -> Result<()> {
    let Some(mut house) =
        House::watched("bursts_are_merged_while_they_come_and_singles_are_not", 0, &[], VIEWERS.into())?
    else {
        return Ok(());
    };
    let before = settings(&house.scene)?;
    house.until_merged()?;
    let (sent, received) = (house.number, buffers(&house.scene.viewer)?);
    for _ in 0..200 {
        house.burst(32)?;
        std::thread::sleep(Duration::from_millis(5));
        house.receive();
    }
    house.is_whole()?;
    let sent = u64::from(house.number - sent) * u64::from(VIEWERS);
    let received = buffers(&house.scene.viewer)? - received;
    // How many depends on what the machine has to do beside.
    assert!(received < sent, "{sent} packets came to the viewer in {received} buffers");
    house.until("singles to be let go", 1, |interface| interface["batching"]["on"] == false)?;
    assert_eq!(settings(&house.scene)?, before);
    house.is_whole()?;
    house.until_merged()?;
    house.is_whole()?;
    house.proxy.terminate(LIMIT)?;
    assert_eq!(settings(&house.scene)?, before, "SIGTERM gives the interface back");
    let log = house.proxy.process.log();
    assert_eq!(log.matches("batching.changed").count(), 3, "{log}");
    Ok(())
}

#[test]
fn merging_outlives_a_killed_proxy_and_uninstall_gives_the_interface_back() -> Result<()> {
    let test = "merging_outlives_a_killed_proxy_and_uninstall_gives_the_interface_back";
    let Some(mut house) = House::watched(test, 0, &[], VIEWERS.into())? else { return Ok(()) };
    house.scene.node.output("ethtool", &["-K", &house.scene.inner, "gro", "on"])?;
    let before = settings(&house.scene)?;
    house.until_merged()?;
    let merged = settings(&house.scene)?;
    house.kill()?;
    for _ in 0..50 {
        house.burst(32)?;
        std::thread::sleep(Duration::from_millis(5));
        house.receive();
    }
    house.is_whole().context("without a proxy")?;
    let stage = Stage::inside(house.scratch.path(), &house.scene.node);
    house.proxy = Proxy::start(stage, "second", &options(&house.scene, &[]))?;
    house.until("the next proxy to go on", 32, |interface| interface["batching"]["on"] == true)?;
    assert_eq!(settings(&house.scene)?, merged);
    house.is_whole().context("with the next proxy")?;
    house.kill()?;
    let program: PathBuf = program()?;
    let bpffs = house.scene.bpffs.path();
    let arguments = ["uninstall", "--bpffs", &bpffs.to_string_lossy()];
    let said = house.scene.node.output(&program.to_string_lossy(), &arguments)?;
    assert!(said.contains("merging of bursts"), "{said}");
    assert_eq!(settings(&house.scene)?, before, "{said}");
    assert!(!bpffs.join("msm").exists(), "{said}");
    Ok(())
}

#[test]
fn merging_that_was_switched_off_by_the_next_start_is_undone_there() -> Result<()> {
    let test = "merging_that_was_switched_off_by_the_next_start_is_undone_there";
    let Some(mut house) = House::watched(test, 0, &[], VIEWERS.into())? else { return Ok(()) };
    let before = settings(&house.scene)?;
    house.until_merged()?;
    house.kill()?;
    let stage = Stage::inside(house.scratch.path(), &house.scene.node);
    house.proxy = Proxy::start(stage, "second", &options(&house.scene, &["--batching", "off"]))?;
    house.until("the camera's interface", 32, |_| true)?;
    assert_eq!(settings(&house.scene)?, before);
    house.is_whole()?;
    house.proxy.terminate(LIMIT)
}

#[test]
fn a_planned_upgrade_keeps_bursts_merged_and_its_end_gives_the_interface_back() -> Result<()> {
    let test = "a_planned_upgrade_keeps_bursts_merged_and_its_end_gives_the_interface_back";
    let Some(mut house) = House::watched(test, 0, &[], VIEWERS.into())? else { return Ok(()) };
    let before = settings(&house.scene)?;
    house.until_merged()?;
    let merged = settings(&house.scene)?;
    let stage = Stage::inside(house.scratch.path(), &house.scene.node);
    house.proxy.upgrade(stage, "next")?;
    house.until("the next proxy to know of it", 32, |interface| interface["batching"]["on"] == true)?;
    assert_eq!(settings(&house.scene)?, merged);
    house.until("singles to be let go", 1, |interface| interface["batching"]["on"] == false)?;
    assert_eq!(settings(&house.scene)?, before, "it decides like the one before");
    house.until_merged()?;
    house.is_whole()?;
    house.proxy.terminate(LIMIT)?;
    assert_eq!(settings(&house.scene)?, before);
    Ok(())
}

#[test]
fn an_upgrade_to_another_layout_of_the_tables_keeps_bursts_merged_and_knows_what_was_before() -> Result<()> {
    let test = "an_upgrade_to_another_layout_of_the_tables_keeps_bursts_merged_and_knows_what_was_before";
    let Some(mut house) = House::watched(test, 0, &[], VIEWERS.into())? else { return Ok(()) };
    let before = settings(&house.scene)?;
    house.until_merged()?;
    let merged = settings(&house.scene)?;
    let other = of_another_version(&house.scene)?;
    let stage = Stage::inside(house.scratch.path(), &house.scene.node);
    house.proxy.upgrade(stage, "next")?;
    is_replaced(&other, &mut house.proxy.process)?;
    assert_eq!(settings(&house.scene)?, merged);
    house.until("the next proxy to know of it", 32, |interface| interface["batching"]["on"] == true)?;
    let log = house.proxy.process.log();
    assert!(!log.contains("batching.changed"), "not switched off and on again: {log}");
    house.is_whole()?;
    house.proxy.terminate(LIMIT)?;
    assert_eq!(settings(&house.scene)?, before, "SIGTERM gives the interface back");
    assert_eq!(house.scene.pins(), None);
    Ok(())
}

#[test]
fn bursts_for_more_viewers_than_the_backlog_has_room_for_are_not_merged() -> Result<()> {
    let test = "bursts_for_more_viewers_than_the_backlog_has_room_for_are_not_merged";
    // A network namespace cannot read the machine's setting, so the kernel's default counts: 1,000.
    let Some(mut house) = House::watched(test, 0, &[], 16)? else { return Ok(()) };
    let before = settings(&house.scene)?;
    let reason = |interface: &Value| interface["batching"]["reason"].as_str().unwrap_or_default().to_owned();
    house.until("a reason", 32, |interface| reason(interface).contains("net.core.netdev_max_backlog"))?;
    // One viewer less, and 64 packets of a poll fit.
    assert_eq!(settings(&house.scene)?, before);
    house.audience.pop().context("a viewer")?.ask("TEARDOWN")?;
    house.until_merged()?;
    assert_eq!(reason(&house.interface()?), "");
    house.is_whole()?;
    house.proxy.terminate(LIMIT)
}

#[test]
fn a_ring_that_overflows_is_counted_and_let_go() -> Result<()> {
    let threads = KernelThreads::named("napi/")?;
    let test = "a_ring_that_overflows_is_counted_and_let_go";
    let Some(mut house) = House::watched(test, 0, &[], VIEWERS.into())? else { return Ok(()) };
    let before = settings(&house.scene)?;
    house.until_merged()?;
    house.is_whole()?;
    let lost = |proxy: &Proxy| proxy.metric("msm_dropped_packets_total", &["\"ring_full\""]);
    ensure!(lost(&house.proxy)? == 0.0, "something was lost already");
    // A sender waits for its own packets before 256 are on their way, unless it has asked for more room.
    house.publisher.force_send_buffer(0, 8 << 20)?;
    // The thread that reads the ring gets no time while the camera sends: as on a machine that has much to do.
    pin(0)?;
    let ours = format!("napi/{}-", house.scene.inner);
    for pid in KernelThreads::named(&ours)?.since(&threads).pids() {
        pin_task(*pid, 0)?;
        house.scene.node.output("chrt", &["--idle", "--pid", "0", &pid.to_string()])?;
    }
    let deadline = Instant::now() + PATIENCE;
    while house.interface()?["batching"]["on"] == true {
        ensure!(Instant::now() < deadline, "still merged: {:#}", house.interface()?);
        // On average they are short enough.
        for burst in [32, 32, 32, 32, 600] {
            house.burst(burst)?;
            std::thread::sleep(Duration::from_millis(40));
            house.receive();
        }
    }
    assert_eq!(settings(&house.scene)?, before);
    let log = house.proxy.process.log();
    assert!(log.contains("had no room for"), "{log}");
    assert!(lost(&house.proxy)? > 0.0, "not counted");
    // What waited in the ring is there before this one.
    house.burst(1)?;
    let last = house.number - 1;
    let is_there = |player: &Player| player.media[0].last().is_some_and(|packet| word_at(packet, 14) == last);
    house.player.wait("the end of what was merged", LIMIT, || Ok(()), is_there)?;
    house.player.media[0].clear();
    for _ in 0..50 {
        house.burst(32)?;
        std::thread::sleep(Duration::from_millis(5));
        house.receive();
    }
    house.is_whole()?;
    house.proxy.terminate(LIMIT)
}
