//! A planned upgrade between two versions whose tables have another layout: what the version before attached, pinned
//! and recorded is replaced without a gap, and the end of the next one leaves nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use msm_tests::camera::Stage;
use msm_tests::probe::Load;
use msm_tests::process::{Process, wait_for};
use msm_tests::proxy::Proxy;

use crate::kernel_house::{House, three_legs_on};
use crate::kernel_scene::{LIMIT, Scene, ids};

/// Many packets in bursts.
const LOAD: Load = Load { packet_bytes: 400, packets_per_second: 1_500, burst: 30 };

/// Gives what is pinned to a version with another layout: what a version is told by is the name of its directory.
pub(crate) fn of_another_version(scene: &Scene) -> Result<PathBuf> {
    let pins = scene.pins().context("pinned while it runs")?;
    let other = pins.with_file_name("0123456789abcdef");
    std::fs::rename(&pins, &other)?;
    Ok(other)
}

/// Waits until what was that version's is gone, and the log of the next one says so.
pub(crate) fn is_replaced(other: &Path, next: &mut Process) -> Result<()> {
    wait_for("the pins of the version before to go", LIMIT, || (!other.exists()).then_some(()))
        .with_context(|| next.tail())?;
    next.wait_for_line("kernel.replaced", LIMIT).map(drop)
}

/// TCX programs and filters on the camera's interface, and whether it has a clsact qdisc.
fn attached(scene: &Scene) -> Result<(usize, usize, bool)> {
    let inner = scene.inner.as_str();
    let (_, tcx) = scene.node.inside(|| SchedClassifier::query_tcx(inner, TcAttachType::Ingress))??;
    let filters = scene.filters()?.matches("handle 0x").count();
    Ok((tcx.len(), filters, scene.qdiscs()?.contains("clsact")))
}

fn upgraded(test: &str, rung: &str) -> Result<()> {
    let Some(mut house) = House::new(test, 0, &["--max-rung", rung], &[])? else { return Ok(()) };
    let (cameras, viewers) = house.watched(LOAD)?;
    let all_there = |proxy: &Proxy| three_legs_on(rung, proxy);
    let one = if rung == "tcx" { (1, 0, false) } else { (0, 1, true) };
    all_there(&house.proxy)?;
    for upgrade in 1..=2 {
        std::thread::sleep(Duration::from_millis(500));
        ensure!(attached(&house.scene)? == one, "{:?}", attached(&house.scene)?);
        let other = of_another_version(&house.scene)?;
        let old = ids(&other)?;
        let stage = Stage::inside(house.scratch.path(), &house.scene.node);
        house.proxy.upgrade(stage, &format!("proxy-{upgrade}"))?;
        is_replaced(&other, &mut house.proxy.process)?;
        all_there(&house.proxy)?;
        let new = house.scene.ids()?;
        ensure!(new.iter().all(|id| !old.contains(id)), "{old:?} and {new:?}");
        ensure!(attached(&house.scene)? == one, "{:?}", attached(&house.scene)?);
    }
    std::thread::sleep(Duration::from_millis(500));
    ensure!(cameras.unsent() == 0, "this machine did not send everything");
    let sent = cameras.stop();
    std::thread::sleep(Duration::from_millis(800));
    ensure!(viewers.overflows(Some(&house.scene.viewer))? == 0, "this machine dropped packets itself");
    for viewer in 0..4 {
        let account = viewers.account(viewer);
        let found = (account.lost(), account.doubled, account.wrong, account.ssrc_changes);
        assert_eq!(found, (0, 0, 0, 0), "viewer {viewer}: lost, doubled, wrong, SSRC changes");
        let last = account.numbers.map(|(_, last)| last + 1);
        assert_eq!(last, Some(sent[0]), "viewer {viewer}: the camera's last packet too");
        assert!(!viewers.is_closed(viewer), "viewer {viewer} was disconnected");
    }
    house.proxy.terminate(LIMIT)?;
    ensure!(attached(&house.scene)? == (0, 0, false), "left: {:?}", attached(&house.scene)?);
    ensure!(!house.scene.bpffs.path().join("msm").exists(), "pins that stay: {:?}", house.scene.pins());
    Ok(())
}

#[test]
fn an_upgrade_to_another_layout_of_the_tables_leaves_one_program_and_loses_nothing() -> Result<()> {
    upgraded("an_upgrade_to_another_layout_of_the_tables_leaves_one_program_and_loses_nothing", "tcx")
}

#[test]
fn an_upgrade_to_another_layout_on_the_tc_rung_keeps_one_filter_and_gives_clsact_back() -> Result<()> {
    upgraded("an_upgrade_to_another_layout_on_the_tc_rung_keeps_one_filter_and_gives_clsact_back", "tc")
}
