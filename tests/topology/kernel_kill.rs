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
    let test = "kill_9_under_load_costs_no_kernel_leg_a_packet_and_keeps_every_map_and_link";
    let Some(mut house) = House::new(test, 0, &["--adopt-grace", "1m"], &[])? else { return Ok(()) };
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
    let on_tcx = || house.proxy.metric("msm_legs", &["rung=\"tcx\""]).unwrap_or_default() as usize;
    wait_for("every leg over UDP on tcx", LIMIT, || (on_tcx() == kernel.len()).then_some(()))
        .with_context(|| format!("{} of {}: {}", on_tcx(), kernel.len(), house.proxy.process.tail()))?;
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
    ensure!(ids.len() >= 9, "eight maps and a link: {ids:?}");
    house.kill()?;
    ensure!(house.scene.ids()? == ids, "maps and links after the kill: {:?}", house.scene.ids()?);
    served()?;
    wait_for("the end of the viewer over TCP", LIMIT, || viewers.is_closed(over_tcp).then_some(()))?;
    house.start_again()?;
    let adopted = house.proxy.process.wait_for_line("kernel.adopted", LIMIT)?;
    ensure!(adopted.contains(&format!("flows={}", STREAMS.len())), "{adopted}");
    ensure!(house.scene.ids()? == ids, "maps and links of the next one: {:?}", house.scene.ids()?);
    served()?;
    ensure!(house.scene.ids()? == ids, "maps and links a second later: {:?}", house.scene.ids()?);
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
    Ok(())
}
