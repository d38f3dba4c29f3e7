//! How long a planned upgrade stands still: its section of `docs/results/upgrade.md`.
//!
//! `cargo xtask test topology --all --only how_long_an_upgrade` writes it.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use msm_tests::camera::{Stage, Transport};
use msm_tests::lab::Node;
use msm_tests::probe::{Cameras, Load, Viewers};
use msm_tests::process::{Process, Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};

use crate::healthy::LIMIT;
use crate::kernel_house::{House, INPUT, OUTPUT};
use crate::record;

/// What one upgrade cost with so many viewers.
#[derive(Debug)]
struct Cost {
    viewers: usize,
    still: String,
    packets: u64,
    lost: u64,
    overflows: u64,
}

/// A light stream for many viewers, half of them interleaved.
const LIGHT: Load = Load { packet_bytes: 600, packets_per_second: 20, burst: 4 };

/// On the user path, over loopback.
fn cost(count: usize) -> Result<Cost> {
    let scratch = Scratch::new("upgrade-cost")?;
    let stage = Stage::here(scratch.path());
    let mut proxy = Proxy::start(stage, "proxy", &Options::default())?;
    let urls: Vec<_> = (0..4).map(|n| proxy.url(&format!("light-{n}"))).collect();
    let cameras = Cameras::publish(&urls, Transport::Udp, LIGHT, None)?;
    let viewers = play(&urls, count, None)?;
    progress(&viewers, count, 5)?;
    let former = proxy.upgrade(stage, "proxy-next")?;
    progress(&viewers, count, 40)?;
    drop(cameras);
    account(count, &former, &viewers, None)
}

/// In namespaces, with the legs over UDP in the kernel; nothing where that cannot be.
fn kernel_cost(count: usize) -> Result<Option<Cost>> {
    let test = "how_long_an_upgrade_stands_still";
    let Some(mut house) = House::new(test, 0, &[], &[])? else { return Ok(None) };
    let names = || (0..4).map(|n| format!("light-{n}"));
    let inputs: Vec<_> = names().map(|name| house.proxy.url_at(INPUT[0], &name)).collect();
    let outputs: Vec<_> = names().map(|name| house.proxy.url_at(OUTPUT[0], &name)).collect();
    let cameras = Cameras::publish(&inputs, Transport::Udp, LIGHT, Some(&house.scene.camera))?;
    let viewers = play(&outputs, count, Some(&house.scene.viewer))?;
    let on_tcx = |proxy: &Proxy| {
        wait_for("every leg over UDP on tcx", LIMIT, || {
            let streams = proxy.streams().ok()?;
            let legs = streams.iter().filter_map(|stream| stream["legs"].as_array()).flatten();
            (legs.filter(|leg| leg["rung"] == "tcx").count() == count / 2).then_some(())
        })
    };
    on_tcx(&house.proxy)?;
    progress(&viewers, count, 5)?;
    let ids = house.scene.ids()?;
    let stage = Stage::inside(house.scratch.path(), &house.scene.node);
    let former = house.proxy.upgrade(stage, "proxy-next")?;
    on_tcx(&house.proxy)?;
    progress(&viewers, count, 40)?;
    ensure!(house.scene.ids()? == ids, "maps and links are the same ones");
    drop(cameras);
    account(count, &former, &viewers, Some(&house.scene.viewer)).map(Some)
}

fn play(urls: &[String], count: usize, node: Option<&Node>) -> Result<Viewers> {
    let mut viewers = Viewers::start()?;
    for viewer in 0..count {
        viewers.play(&urls[viewer % urls.len()], Transport::ALL[viewer / 4 % 2], node)?;
    }
    Ok(viewers)
}

/// Waits until everybody has got so many packets more.
fn progress(viewers: &Viewers, count: usize, packets: u64) -> Result<()> {
    let before: Vec<u64> = (0..count).map(|viewer| viewers.account(viewer).packets).collect();
    wait_for("media of everybody", LIMIT, || {
        let mut each = before.iter().enumerate();
        each.all(|(viewer, before)| viewers.account(viewer).packets >= before + packets).then_some(())
    })
}

fn account(count: usize, former: &Process, viewers: &Viewers, node: Option<&Node>) -> Result<Cost> {
    let log = former.log();
    let still = log.lines().find_map(|line| line.split_once("still_millis=")).map_or("", |(_, rest)| rest);
    let accounts: Vec<_> = (0..count).map(|viewer| viewers.account(viewer)).collect();
    Ok(Cost {
        viewers: count,
        still: still.trim().to_owned(),
        packets: accounts.iter().map(|account| account.packets).sum(),
        lost: accounts.iter().map(|account| account.lost() + u64::from(!account.is_clean())).sum(),
        overflows: viewers.overflows(node)?,
    })
}

#[test]
#[ignore = "half a minute; cargo xtask test topology --all --only how_long_an_upgrade"]
fn how_long_an_upgrade_stands_still() -> Result<()> {
    const COUNTS: [usize; 3] = [16, 64, 256];
    let costs = COUNTS.into_iter().map(cost).collect::<Result<Vec<_>>>()?;
    let kernel: Vec<Cost> =
        COUNTS.into_iter().filter_map(|count| kernel_cost(count).transpose()).collect::<Result<_>>()?;
    let mut text = String::new();
    writeln!(text, "`cargo xtask test topology --all --only how_long_an_upgrade` writes this section.\n")?;
    writeln!(
        text,
        "{}. One upgrade while 4 publishers send\n\
         {} packets of {} bytes a second each and so many viewers play, half of them over TCP. What was lost is counted\n\
         at every viewer by numbers inside the packets. *user*: over loopback. *tcx*: in namespaces, with every leg over\n\
         UDP in the kernel before and after, and the same ids of maps and links; for the stand-still itself the workers\n\
         take these legs back, so it is theirs too.\n",
        record::stamp(record::build()?)?,
        LIGHT.packets_per_second,
        LIGHT.packet_bytes
    )?;
    writeln!(text, "| rung | viewers | stand-still | packets received | lost |\n|---|---|---|---|---|")?;
    let rows = costs.iter().map(|cost| ("user", cost)).chain(kernel.iter().map(|cost| ("tcx", cost)));
    for (rung, Cost { viewers, still, packets, lost, overflows }) in rows {
        let note =
            if *overflows == 0 { String::new() } else { format!(" ({overflows} at the viewers' sockets)") };
        writeln!(text, "| {rung} | {viewers} | {still} ms | {packets} | {lost}{note} |")?;
    }
    record::put("upgrade.md", "How long both programs stand still", &text)?;
    ensure!(costs.iter().chain(&kernel).all(|cost| cost.lost == 0), "{costs:?} {kernel:?}");
    Ok(())
}
