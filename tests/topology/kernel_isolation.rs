//! What one stream or one viewer does to the fast path is its own trouble: others go on, and the reason is said.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{Stage, Transport};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::{Account, Cameras, Load, Viewers};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};
use rtp_proxy::kernel::load::Capacity;
use rtp_proxy::kernel::slots::Quota;
use serde_json::Value;

use crate::fast_path;
use crate::kernel_scene::{LIMIT, Scene};

/// Bursts that are many packets at once for everybody who watches.
const LOAD: Load = Load { packet_bytes: 300, packets_per_second: 200, burst: 40 };

fn legs(stream: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let legs = stream["legs"].as_array().cloned().unwrap_or_default();
    legs.iter().map(|leg| (text(&leg["rung"]), text(&leg["rung_reason"]))).collect()
}

fn clean(account: &Account, who: &str) -> Result<()> {
    let found = (account.lost(), account.doubled, account.wrong, account.ssrc_changes);
    ensure!(
        account.packets > 0 && found == (0, 0, 0, 0),
        "{who}: lost, doubled, wrong, SSRC changes {found:?}"
    );
    Ok(())
}

#[test]
fn a_stream_that_has_used_up_its_share_leaves_others_theirs_and_its_legs_to_the_worker() -> Result<()> {
    let test = "a_stream_that_has_used_up_its_share_leaves_others_theirs_and_its_legs_to_the_worker";
    if !granted(test, &[Need::Kernel]) {
        return Ok(());
    }
    let mut scene = fast_path::Scene::with(|config| {
        config.kernel.capacity = Capacity { flows: 16, legs: 64, ports: 16 };
        config.kernel.quota = Quota { part: 0.25, floor: 4, ..Quota::default() };
        config.workers = Some(1);
    })?;
    let cameras = [scene.publish("greedy", LOAD)?, scene.publish("modest", LOAD)?];
    let mut viewers = Viewers::start()?;
    let mut play =
        |name: &str| viewers.play(&fast_path::Scene::url(name), Transport::Udp, Some(&scene.viewers));
    play("modest")?;
    for _ in 0..40 {
        play("greedy")?;
    }
    // A quarter of 64 slots: 8 in use, and 16 more to move to would be beyond it.
    let settled = wait_for("the share of greedy to be used up", LIMIT, || {
        let legs = legs(&scene.stream("greedy")?);
        let inside = legs.iter().filter(|(rung, _)| rung == "tcx").count();
        let told = legs.iter().filter(|(_, why)| why.contains("greedy has its share")).count();
        (inside == 8 && told == 32).then_some(())
    });
    settled.with_context(|| format!("{:?}", legs(&scene.stream("greedy").unwrap_or_default())))?;
    for _ in 0..7 {
        play("modest")?;
    }
    scene.wait_for_rung("modest", 8, "tcx")?;
    let metrics = scene.get("/metrics")?;
    ensure!(metrics.contains("msm_user_legs{reason=\"full\"} 32"), "the metric says why: {metrics}");
    std::thread::sleep(Duration::from_secs(3));
    scene.wait_for_rung("modest", 8, "tcx")?;
    for cameras in cameras {
        ensure!(cameras.unsent() == 0, "this machine did not send everything");
        cameras.stop();
    }
    std::thread::sleep(Duration::from_millis(500));
    ensure!(viewers.overflows(Some(&scene.viewers))? == 0, "this machine dropped packets itself");
    for viewer in 0..48 {
        fast_path::check(&viewers.account(viewer), &viewers.rtp_info(viewer), &format!("viewer {viewer}"));
    }
    drop(viewers);
    scene.end()
}

#[test]
fn a_source_that_publishes_stream_after_stream_leaves_others_the_kept_part_of_the_tables() -> Result<()> {
    let test = "a_source_that_publishes_stream_after_stream_leaves_others_the_kept_part_of_the_tables";
    if !granted(test, &[Need::Kernel]) {
        return Ok(());
    }
    // One flow each: no stream comes near a share of its own, but sixteen of one source would have all.
    let mut scene = fast_path::Scene::with(|config| {
        config.kernel.capacity = Capacity { flows: 16, legs: 64, ports: 64 };
        config.kernel.quota = Quota { part: 0.25, floor: 4, reserve: 0.25 };
        config.workers = Some(1);
    })?;
    let (proxy, neighbour) = (scene.proxy.clone(), scene.lab.node("neighbour")?);
    scene.lab.cable(&proxy, &["10.90.3.1/24"], &neighbour, &["10.90.3.2/24"])?;
    let mut viewers = Viewers::start()?;
    let mut cameras = Vec::new();
    for number in 0..16 {
        let name = format!("greedy-{number}");
        cameras.push(scene.publish(&name, LOAD)?);
        viewers.play(&fast_path::Scene::url(&name), Transport::Udp, Some(&scene.viewers))?;
    }
    let greedy = || -> Vec<(String, String)> {
        (0..16)
            .filter_map(|number| scene.stream(&format!("greedy-{number}")))
            .flat_map(|s| legs(&s))
            .collect()
    };
    let refused = "the last 4 flows of this worker are for others than 10.90.1.2, which has 12";
    let settled = wait_for("what is not kept to be used up", LIMIT, || {
        let legs = greedy();
        let inside = legs.iter().filter(|(rung, _)| rung == "tcx").count();
        let told = legs.iter().filter(|(rung, why)| rung == "user" && why.contains(refused)).count();
        (inside == 12 && told == 4).then_some(())
    });
    settled.with_context(|| format!("{:?}", greedy()))?;
    let metrics = scene.get("/metrics")?;
    ensure!(metrics.contains("msm_user_legs{reason=\"full\"} 4"), "the metric says why: {metrics}");
    let url = "rtsp://10.90.3.1:8554/modest".to_owned();
    cameras.push(Cameras::publish(&[url], Transport::Udp, LOAD, Some(&neighbour))?);
    for _ in 0..2 {
        viewers.play(&fast_path::Scene::url("modest"), Transport::Udp, Some(&scene.viewers))?;
    }
    scene.wait_for_rung("modest", 2, "tcx")?;
    std::thread::sleep(Duration::from_secs(2));
    scene.wait_for_rung("modest", 2, "tcx")?;
    ensure!(
        greedy().iter().filter(|(rung, _)| rung == "tcx").count() == 12,
        "nobody was put out: {:?}",
        greedy()
    );
    for cameras in cameras {
        ensure!(cameras.unsent() == 0, "this machine did not send everything");
        cameras.stop();
    }
    std::thread::sleep(Duration::from_millis(500));
    ensure!(viewers.overflows(Some(&scene.viewers))? == 0, "this machine dropped packets itself");
    for viewer in 0..18 {
        fast_path::check(&viewers.account(viewer), &viewers.rtp_info(viewer), &format!("viewer {viewer}"));
    }
    drop(viewers);
    scene.end()
}

#[test]
fn a_viewers_interface_that_vanishes_under_load_is_said_and_its_siblings_lose_nothing() -> Result<()> {
    let test = "a_viewers_interface_that_vanishes_under_load_is_said_and_its_siblings_lose_nothing";
    let Some(mut scene) = Scene::new(test)? else { return Ok(()) };
    let (node, gone) = (scene.node.clone(), scene.lab.node("gone")?);
    let (device, _) = scene.lab.cable(&node, &["10.7.3.1/24"], &gone, &["10.7.3.2/24"])?;
    let scratch = Scratch::new("vanishes")?;
    let bpffs = scene.bpffs.path().display().to_string();
    let options = Options { flags: ["--bpffs", &bpffs].map(str::to_owned).to_vec(), ..Options::default() };
    let mut proxy = Proxy::start(Stage::inside(scratch.path(), &scene.node), "proxy", &options)?;
    let url = |host: &str| proxy.url_at(host, "door");
    let cameras = Cameras::publish(&[url("10.7.1.1")], Transport::Udp, LOAD, Some(&scene.camera))?;
    let mut viewers = Viewers::start()?;
    for n in 0..6 {
        // Those who stay sit before and behind those who go in the kernel's list.
        let (host, at) = if n % 3 == 1 { ("10.7.3.1", &gone) } else { ("10.7.2.1", &scene.viewer) };
        viewers.play(&url(host), Transport::Udp, Some(at))?;
    }
    let count = |proxy: &Proxy, rung: &str| {
        legs(&proxy.stream("door").unwrap_or_default()).iter().filter(|(on, _)| on == rung).count()
    };
    wait_for("six legs on tcx", LIMIT, || (count(&proxy, "tcx") == 6).then_some(()))?;
    std::thread::sleep(Duration::from_millis(700));
    node.ip(&["link", "del", &device])?;
    wait_for("the reason", LIMIT, || {
        let legs = legs(&proxy.stream("door")?);
        let told = |leg: &(String, String)| leg.0 == "user" && leg.1.contains("10.7.3.2");
        (legs.iter().filter(|leg| told(leg)).count() == 2).then_some(())
    })
    .with_context(|| format!("{:#}", proxy.stream("door").unwrap_or_default()))?;
    ensure!(count(&proxy, "tcx") == 4, "the others stay: {:#}", proxy.stream("door").unwrap_or_default());
    let metrics = proxy.get("/metrics")?;
    ensure!(metrics.contains("msm_user_legs{reason=\"unresolved\"} 2"), "the metric says why: {metrics}");
    wait_for("lines of the log", LIMIT, || {
        let log = proxy.process.log();
        let said =
            |line: &&str| line.contains("leg.rung") && line.contains("user") && line.contains("10.7.3.2");
        (log.lines().filter(said).count() >= 2).then_some(())
    })
    .with_context(|| proxy.process.tail())?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(cameras.unsent() == 0, "this machine did not send everything");
    let sent = cameras.stop();
    std::thread::sleep(Duration::from_millis(500));
    ensure!(viewers.overflows(Some(&scene.viewer))? == 0, "this machine dropped packets itself");
    for viewer in [0, 2, 3, 5] {
        let account = viewers.account(viewer);
        clean(&account, &format!("viewer {viewer}"))?;
        ensure!(
            account.numbers.is_some_and(|(_, last)| last + 1 == sent[0]),
            "viewer {viewer} has the last one"
        );
        ensure!(!viewers.is_closed(viewer), "viewer {viewer} was disconnected");
    }
    drop(viewers);
    proxy.terminate(LIMIT)
}
