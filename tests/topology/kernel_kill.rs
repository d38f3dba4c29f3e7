//! The proxy is killed while the kernel carries a load: no viewer misses a packet, and the next process takes over
//! the same maps and links.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::Transport;
use msm_tests::probe::{Cameras, Load, Viewers};
use msm_tests::process::wait_for;

use crate::kernel_house::{House, INPUT, OUTPUT};
use crate::kernel_scene::LIMIT;

/// Many packets in bursts, of every camera.
const LOAD: Load = Load { packet_bytes: 400, packets_per_second: 1_500, burst: 30 };
/// Streams and how many viewers of each the kernel serves.
const STREAMS: [(&str, usize); 2] = [("door", 4), ("hall", 16)];

#[test]
fn kill_9_under_load_costs_no_kernel_leg_a_packet_and_keeps_every_map_and_link() -> Result<()> {
    killed("kill_9_under_load_costs_no_kernel_leg_a_packet_and_keeps_every_map_and_link", "tcx")
}

#[test]
fn kill_9_under_load_costs_no_leg_of_the_tc_rung_a_packet_either() -> Result<()> {
    killed("kill_9_under_load_costs_no_leg_of_the_tc_rung_a_packet_either", "tc")
}

fn killed(test: &str, rung: &str) -> Result<()> {
    let flags = ["--adopt-grace", "1m", "--max-rung", rung];
    let Some(mut house) = House::new(test, 0, &flags, &[])? else { return Ok(()) };
    let inputs = STREAMS.map(|(name, _)| house.proxy.url_at(INPUT[0], name));
    let cameras = Cameras::publish(&inputs, Transport::Udp, LOAD, Some(&house.scene.camera))?;
    let mut viewers = Viewers::start()?;
    // Which viewers the kernel serves, and the camera of each.
    let mut kernel = Vec::new();
    for (camera, (name, count)) in STREAMS.into_iter().enumerate() {
        let url = house.proxy.url_at(OUTPUT[0], name);
        for _ in 0..count {
            kernel.push((viewers.play(&url, Transport::Udp, Some(&house.scene.viewer))?, camera));
        }
    }
    let url = house.proxy.url_at(OUTPUT[0], STREAMS[0].0);
    let over_tcp = viewers.play(&url, Transport::Tcp, Some(&house.scene.viewer))?;
    let label = format!("rung=\"{rung}\"");
    let there = || house.proxy.metric("msm_legs", &[&label]).unwrap_or_default() as usize;
    wait_for(&format!("every leg over UDP on {rung}"), LIMIT, || (there() == kernel.len()).then_some(()))
        .with_context(|| format!("{} of {}: {}", there(), kernel.len(), house.proxy.process.tail()))?;
    // A second of the load, for everybody whom the kernel serves.
    let served = || {
        let before: Vec<u64> = kernel.iter().map(|(viewer, _)| viewers.account(*viewer).packets).collect();
        let more = u64::from(LOAD.packets_per_second);
        wait_for("a second of media", LIMIT, || {
            let mut each = kernel.iter().zip(&before);
            each.all(|((viewer, _), before)| viewers.account(*viewer).packets >= before + more).then_some(())
        })
    };
    served()?;
    // On its way to the kernel a leg's packets may overtake each other (ADR 0005); not later.
    let reordered: Vec<u64> = kernel.iter().map(|(viewer, _)| viewers.account(*viewer).reordered).collect();
    let ids = house.scene.ids()?;
    // On tc the program hangs in a filter, which is no object of its own.
    let (links, filters) = if rung == "tcx" { (1, 0) } else { (0, 1) };
    ensure!(ids.len() >= 8 + links, "eight maps, on tcx a link: {ids:?}");
    let filter = house.scene.filters()?;
    let handles = |filters: &str| filters.matches("handle 0x").count();
    ensure!(handles(&filter) == filters, "{filter}");
    house.kill()?;
    ensure!(house.scene.ids()? == ids, "maps and links after the kill: {:?}", house.scene.ids()?);
    ensure!(house.scene.filters()? == filter, "the filter after the kill: {}", house.scene.filters()?);
    served()?;
    wait_for("the end of the viewer over TCP", LIMIT, || viewers.is_closed(over_tcp).then_some(()))?;
    house.start_again()?;
    let adopted = house.proxy.process.wait_for_line("kernel.adopted", LIMIT)?;
    ensure!(adopted.contains(&format!("flows={}", STREAMS.len())), "{adopted}");
    ensure!(house.scene.ids()? == ids, "maps and links of the next one: {:?}", house.scene.ids()?);
    served()?;
    ensure!(house.scene.ids()? == ids, "maps and links a second later: {:?}", house.scene.ids()?);
    ensure!(handles(&house.scene.filters()?) == filters, "one filter as before: {}", house.scene.filters()?);
    ensure!(cameras.unsent() == 0, "this machine did not send everything");
    let sent = cameras.stop();
    std::thread::sleep(Duration::from_millis(800));
    ensure!(viewers.overflows(Some(&house.scene.viewer))? == 0, "this machine dropped packets itself");
    for ((viewer, camera), before) in kernel.into_iter().zip(reordered) {
        let account = viewers.account(viewer);
        let found = (
            account.lost(),
            account.doubled,
            account.reordered - before,
            account.wrong,
            account.ssrc_changes,
        );
        let what = format!("viewer {viewer} of {}", STREAMS[camera].0);
        assert_eq!(found, (0, 0, 0, 0, 0), "{what}: lost, doubled, reordered, wrong, SSRC changes");
        let last = account.numbers.map(|(_, last)| last + 1);
        assert_eq!(last, Some(sent[camera]), "{what}: the camera's last packet too");
    }
    house.proxy.terminate(LIMIT)?;
    ensure!(house.scene.pins().is_none(), "pins that stay");
    let left = house.scene.filters()? + &house.scene.qdiscs()?;
    ensure!(!left.contains("handle 0x") && !left.contains("clsact"), "{left}");
    Ok(())
}
