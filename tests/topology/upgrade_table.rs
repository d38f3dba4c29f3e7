//! How long a planned upgrade stands still: its section of `docs/results/upgrade.md`.
//!
//! `cargo xtask test topology --all --only how_long_an_upgrade` writes it.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use msm_tests::camera::{Stage, Transport};
use msm_tests::probe::{Cameras, Load, Viewers};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};

use crate::healthy::LIMIT;
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

fn cost(count: usize) -> Result<Cost> {
    let scratch = Scratch::new("upgrade-cost")?;
    let stage = Stage::here(scratch.path());
    let door = scratch.path().join("door").display().to_string();
    let flags = vec!["--handover".to_owned(), door];
    let mut proxy = Proxy::start(stage, "proxy", &Options { flags, ..Options::default() })?;
    let urls: Vec<_> = (0..4).map(|n| proxy.url(&format!("light-{n}"))).collect();
    let cameras = Cameras::publish(&urls, Transport::Udp, LIGHT, None)?;
    let mut viewers = Viewers::start()?;
    for viewer in 0..count {
        viewers.play(&urls[viewer % urls.len()], Transport::ALL[viewer / 4 % 2], None)?;
    }
    let progress = |packets: u64| {
        let before: Vec<u64> = (0..count).map(|viewer| viewers.account(viewer).packets).collect();
        wait_for("media of everybody", LIMIT, || {
            let mut each = before.iter().enumerate();
            each.all(|(viewer, before)| viewers.account(viewer).packets >= before + packets).then_some(())
        })
    };
    progress(5)?;
    let former = proxy.upgrade(stage, "proxy-next")?;
    progress(40)?;
    let log = former.log();
    let still = log.lines().find_map(|line| line.split_once("still_millis=")).map_or("", |(_, rest)| rest);
    let accounts: Vec<_> = (0..count).map(|viewer| viewers.account(viewer)).collect();
    drop(cameras);
    Ok(Cost {
        viewers: count,
        still: still.trim().to_owned(),
        packets: accounts.iter().map(|account| account.packets).sum(),
        lost: accounts.iter().map(|account| account.lost() + u64::from(!account.is_clean())).sum(),
        overflows: viewers.overflows(None)?,
    })
}

#[test]
#[ignore = "half a minute; cargo xtask test topology --all --only how_long_an_upgrade"]
fn how_long_an_upgrade_stands_still() -> Result<()> {
    let costs = [16, 64, 256].into_iter().map(cost).collect::<Result<Vec<_>>>()?;
    let mut text = String::new();
    writeln!(text, "`cargo xtask test topology --all --only how_long_an_upgrade` writes this section.\n")?;
    writeln!(
        text,
        "{}. One upgrade over loopback, on the user path, while 4 publishers send\n\
         {} packets of {} bytes a second each and so many viewers play, half of them over TCP. What was lost is counted\n\
         at every viewer by numbers inside the packets.\n",
        record::stamp(record::build()?)?,
        LIGHT.packets_per_second,
        LIGHT.packet_bytes
    )?;
    writeln!(text, "| viewers | stand-still | packets received | lost |\n|---|---|---|---|")?;
    for Cost { viewers, still, packets, lost, overflows } in &costs {
        let note =
            if *overflows == 0 { String::new() } else { format!(" ({overflows} at the viewers' sockets)") };
        writeln!(text, "| {viewers} | {still} ms | {packets} | {lost}{note} |")?;
    }
    record::put("upgrade.md", "How long both programs stand still", &text)?;
    ensure!(costs.iter().all(|cost| cost.lost == 0), "{costs:?}");
    Ok(())
}
