//! What interfaces say about the media that goes through them: names, sizes, and what they merge.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use msm_tests::camera::Transport;
use msm_tests::probe::Player;
use msm_tests::probe::wire::word_at;
use msm_tests::process::Scratch;
use msm_tests::proxy::Options;
use serde_json::Value;

use crate::feed::{self, Feed};
use crate::kernel_batching;
use crate::kernel_house::{House, OUTPUT};
use crate::kernel_scene::{LIMIT, Scene};

/// Why the only leg is the worker's, in words; empty while it is not.
fn reason(stream: &Value) -> String {
    let leg = &stream["legs"][0];
    if leg["rung"] != "user" {
        return String::new();
    }
    leg["rung_reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_viewer_behind_a_smaller_mtu_is_the_workers_until_it_is_raised() -> Result<()> {
    let test = "a_viewer_behind_a_smaller_mtu_is_the_workers_until_it_is_raised";
    for family in [0, 1] {
        let Some(scene) = Scene::new(test)? else { return Ok(()) };
        scene.node.ip(&["link", "set", &scene.outer, "mtu", "1400"])?;
        let told = format!("{} takes 1400 bytes, packets may have 1500", scene.outer);
        let viewers = [Transport::Udp];
        let mut house = House::build(scene, Scratch::new("mtu")?, family, Options::default(), &viewers)?;
        house.until("the worker, for the MTU", |stream| reason(stream) == told)?;
        assert_eq!(house.proxy.metric("msm_user_legs", &["\"mtu\""])? as u64, 1);
        house.run(50)?;
        assert_eq!(house.in_kernel()?.0, 0, "no copy is the kernel's");
        house.scene.node.ip(&["link", "set", &house.scene.outer, "mtu", "1500"])?;
        house.on(1, "tcx")?;
        house.run(50)?;
        assert!(house.in_kernel()?.0 >= 50, "the kernel's from then on");
        assert_eq!(house.proxy.metric("msm_user_legs", &["\"mtu\""])? as u64, 0);
        // And back, while it plays.
        house.scene.node.ip(&["link", "set", &house.scene.outer, "mtu", "1400"])?;
        house.until("the worker again", |stream| reason(stream) == told)?;
        house.arrived([0])?;
        house.check(0, 0, 0);
    }
    Ok(())
}

/// Programs at the way in of an interface of the node.
fn attached(scene: &Scene, interface: &str) -> Result<usize> {
    let (_, programs) =
        scene.node.inside(|| SchedClassifier::query_tcx(interface, TcAttachType::Ingress))??;
    Ok(programs.len())
}

#[test]
fn a_named_interface_is_used_when_it_appears_and_others_are_left_alone() -> Result<()> {
    let test = "a_named_interface_is_used_when_it_appears_and_others_are_left_alone";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    // The next cable's, which is not there yet.
    let later = "v2a";
    let flags = ["--interface", &scene.outer, "--interface", later].map(str::to_owned).to_vec();
    let options = Options { flags, ..Options::default() };
    let mut house = House::build(scene, Scratch::new("named")?, 0, options, &[Transport::Udp])?;
    let told = format!("{} is not named by --interface", house.scene.inner);
    house.until("the worker, for the name", |stream| reason(stream) == told)?;
    assert_eq!(house.proxy.metric("msm_user_legs", &["\"not_named\""])? as u64, 1);

    let yard = house.scene.lab.node("yard")?;
    let node = house.scene.node.clone();
    let (name, _) = house.scene.lab.cable(&node, &["10.7.3.1/24"], &yard, &["10.7.3.2/24"])?;
    assert_eq!(name, later);
    let url = house.proxy.url_at("10.7.3.1", "yard");
    let mut feed = yard.inside(|| Feed::record(&url, Transport::Udp))??;
    let url = house.proxy.url_at(OUTPUT[0], "yard");
    let mut player = house.scene.viewer.inside(|| feed::play(&mut feed, &url, Transport::Udp))??;
    let deadline = Instant::now() + LIMIT;
    loop {
        for _ in 0..10 {
            feed.next()?;
            house.tick()?;
            player.receive();
        }
        let stream = house.proxy.stream("yard").context("the stream")?;
        if stream["legs"][0]["rung"] == "tcx" {
            break;
        }
        ensure!(Instant::now() < deadline, "{stream:#}\n{}", house.proxy.process.tail());
    }
    let before = house.in_kernel()?.0;
    for _ in 0..50 {
        feed.next()?;
        house.tick()?;
        player.receive();
    }
    assert!(house.in_kernel()?.0 >= before + 50, "by the kernel's counters");
    assert_eq!((attached(&house.scene, later)?, attached(&house.scene, &house.scene.inner)?), (1, 0));
    assert_eq!(reason(&house.stream()?), told, "the other one is left alone");
    let last = feed.number - 1;
    let has_last =
        |player: &Player| player.packets(0).last().is_some_and(|packet| feed::number(packet) == last);
    player.wait("the last packet", LIMIT, || Ok(()), has_last)?;
    let numbers: Vec<u32> = player.packets(0).iter().map(feed::number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    house.arrived([0])?;
    house.check(0, 0, 0);
    Ok(())
}

/// `rx-gro-list` hangs whole packets together, each with headers and a checksum of its own: nothing that the program
/// could edit, so the worker gets them and has to serve legs that are the kernel's.
#[test]
fn lists_of_packets_reach_every_viewer() -> Result<()> {
    let test = "lists_of_packets_reach_every_viewer";
    // What the camera left to be summed, and what it summed itself.
    for offload in ["on", "off"] {
        let Some(mut house) = kernel_batching::House::new(test, 0, &["--batching", "off"])? else {
            return Ok(());
        };
        let inner = house.scene.inner.clone();
        house.scene.camera.output("ethtool", &["-K", "v0b", "tx", offload])?;
        let merge = ["-K", &inner, "gro", "on", "rx-udp-gro-forwarding", "on", "rx-gro-list", "on"];
        house.scene.node.output("ethtool", &merge)?;
        let threaded = format!("echo 1 > /sys/class/net/{inner}/threaded");
        house.scene.node.output("sh", &["-c", &threaded])?;
        let deadline = Instant::now() + LIMIT;
        // One by one, so that the leg is the kernel's.
        while house.proxy.stream("cam").context("the stream")?["legs"][0]["rung"] != "tcx" {
            house.burst(1)?;
            std::thread::sleep(Duration::from_millis(2));
            house.player.receive();
            ensure!(Instant::now() < deadline, "{}", house.proxy.process.tail());
        }
        for round in 0..200 {
            house.burst(if round % 10 == 0 { 1 } else { 32 })?;
            std::thread::sleep(Duration::from_millis(5));
            house.player.receive();
        }
        all_arrived(&mut house).with_context(|| format!("offload {offload}"))?;
        let stream = house.proxy.stream("cam").context("the stream")?;
        eprintln!("offload {offload}: {} {}", stream["legs"][0]["rung"], stream["legs"][0]["rung_reason"]);
        house.proxy.terminate(LIMIT)?;
    }
    Ok(())
}

/// The viewer has every packet from its first on once, as it was sent: what the worker serves and what the kernel
/// serves of one burst may overtake each other.
fn all_arrived(house: &mut kernel_batching::House) -> Result<()> {
    let number = |packet: &[u8]| word_at(packet, 14);
    let sent = house.number;
    let first = number(house.player.media[0].first().context("media")?);
    let has_all = |player: &Player| player.media[0].len() >= (sent - first) as usize;
    house.player.wait("every packet", LIMIT, || Ok(()), has_all)?;
    let mut got: Vec<u32> = house.player.media[0].iter().map(|packet| number(packet)).collect();
    got.sort_unstable();
    ensure!(got == (first..sent).collect::<Vec<_>>(), "{} of {} packets", got.len(), sent - first);
    for packet in &house.player.media[0] {
        let wanted = kernel_batching::packet(number(packet));
        ensure!(packet[12..] == wanted[12..], "packet {} is not as it was sent", number(packet));
    }
    Ok(())
}
