//! Forwarding goes on without the process that set it up, and the next one takes it over.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::programs::{SchedClassifier, TcAttachType};
use msm_tests::privilege::environment;
use rtp_proxy::commands;
use rtp_proxy::kernel::hop::{Rung, UserReason, Way};
use rtp_proxy::kernel::service::{FastPath, Settings};
use rtp_proxy::kernel::table::Table as _;

use crate::kernel_scene::{Held, LIMIT, Scene, Traffic, account, child, flow_key, from_camera, ids, pins_in};
use crate::kernel_versions::of_another_version;

/// Names the folder of the process that is killed.
const ENV_HOLDER: &str = "MSM_TEST_HOLDER";
const PORT: u16 = 5004;

/// The process that a test kills: forwards a flow, or claims the one that is forwarded already.
#[test]
#[ignore = "the process that other tests start and kill"]
fn the_process_that_is_killed() -> Result<()> {
    let Some(folder) = environment(ENV_HOLDER).map(PathBuf::from) else { return Ok(()) };
    let max_rung = if folder.join("tc").exists() { Rung::Tc } else { Rung::Tcx };
    let settings = Settings {
        instance: Some("8060".to_owned()),
        bpffs: folder.join("bpf"),
        max_rung,
        ..Settings::default()
    };
    let (path, ends) = FastPath::start(&settings, 1).map_err(|why| anyhow::anyhow!("{why}"))?;
    let mut held = Held::new(path, ends);
    let word = if held.path.adopted() == 0 {
        held.forward(PORT)?;
        "forwards".to_owned()
    } else {
        let ifindex = held.ingress()?.ifindex;
        let claimed = held.share.claim(&flow_key(PORT, ifindex), &account()).context("nothing to claim")?;
        format!("claimed {} legs after {} packets", claimed.legs.len(), claimed.stats.packets)
    };
    fs::write(folder.join("ready.next"), word)?;
    fs::rename(folder.join("ready.next"), folder.join("ready"))?;
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// Starts it and returns its word.
fn holder(scene: &Scene) -> Result<(Child, String)> {
    let ready = scene.bpffs.file("ready");
    fs::remove_file(&ready).ok();
    let folder = ready.parent().unwrap().to_owned();
    let mut process = child(scene, "kernel_restart::the_process_that_is_killed", (ENV_HOLDER, &folder))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Ok(word) = fs::read_to_string(&ready) {
            return Ok((process, word));
        }
        if Instant::now() > deadline || process.try_wait()?.is_some() {
            process.kill().ok();
            bail!("not ready: {}", fs::read_to_string(scene.bpffs.file("child.log"))?);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(mut process: Child) -> Result<()> {
    process.kill()?;
    process.wait()?;
    Ok(())
}

#[test]
fn a_killed_proxy_loses_no_packet_and_the_next_one_claims_maps_links_and_flow() -> Result<()> {
    let test = "a_killed_proxy_loses_no_packet_and_the_next_one_claims_maps_links_and_flow";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let (first, word) = holder(&scene)?;
    assert_eq!(word, "forwards");
    let traffic = Traffic::start(&scene, PORT)?;
    let mut seqs = traffic.pass(200)?;
    let before = scene.ids()?;
    kill(first)?;
    seqs.extend(traffic.pass(200)?);
    let (second, word) = holder(&scene)?;
    assert!(word.starts_with("claimed 1 legs after "), "{word}");
    let packets: u64 = word.rsplit(' ').nth(1).unwrap().parse()?;
    assert!(packets >= 400, "counters go on: {word}");
    seqs.extend(traffic.pass(200)?);
    assert_eq!(scene.ids()?, before);
    kill(second)?;
    let (sent, rest) = traffic.end()?;
    seqs.extend(rest);
    assert_eq!(seqs, (0..sent).collect::<Vec<_>>(), "every packet once and in order");
    assert!(before.len() >= 9, "eight maps and a link: {before:?}");
    Ok(())
}

#[test]
fn what_nobody_claims_ends_with_the_grace_and_its_indices_come_back() -> Result<()> {
    let test = "what_nobody_claims_ends_with_the_grace_and_its_indices_come_back";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let (first, _) = holder(&scene)?;
    kill(first)?;
    let settings = Settings { adopt_grace: Duration::from_millis(200), ..scene.settings() };
    let mut held = scene.start(&settings)?;
    assert_eq!(held.path.adopted(), 1);
    let deadline = Instant::now() + LIMIT;
    while !held.share.table.published()?.is_empty() {
        assert!(Instant::now() < deadline, "it is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(held.share.claim(&flow_key(PORT, 1), &account()).is_none());
    let flow = held.forward(PORT)?;
    assert_eq!(held.share.table.flow_stats(flow.index)?.packets, 0);
    held.path.stop(false);
    assert_eq!(scene.pins(), None);
    Ok(())
}

#[test]
fn the_state_of_another_version_is_replaced() -> Result<()> {
    let test = "the_state_of_another_version_is_replaced";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let (first, _) = holder(&scene)?;
    kill(first)?;
    let pins = scene.pins().context("pinned")?;
    let other = pins.with_file_name("0123456789abcdef");
    fs::rename(&pins, &other)?;
    let old = ids(&other)?;
    let mut held = scene.start(&scene.settings())?;
    assert_eq!(held.path.adopted(), 0);
    assert!(!other.exists(), "detached and removed");
    held.forward(PORT)?;
    let traffic = Traffic::start(&scene, PORT)?;
    traffic.pass(20)?;
    traffic.end()?;
    let new = scene.ids()?;
    assert!(new.iter().all(|id| !old.contains(id)), "{new:?}");
    held.path.stop(false);
    Ok(())
}

/// As long as a version with other tables runs it may have to go on: whoever is to take over from it touches nothing, and
/// leaves nothing when that fails.
fn beside(test: &str, rung: Rung) -> Result<()> {
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let clean = traces(&scene)?;
    if rung == Rung::Tc {
        fs::write(scene.bpffs.file("tc"), "")?;
    }
    let (first, _) = holder(&scene)?;
    let other = of_another_version(&scene)?;
    let before = traces(&scene)?;
    let interfaces = vec![scene.inner.clone(), scene.outer.clone()];
    let settings = Settings { beside: true, max_rung: rung, interfaces, ..scene.settings() };
    let traffic = Traffic::start(&scene, PORT)?;
    let mut seqs = traffic.pass(50)?;
    for _ in 0..2 {
        let mut held = scene.start(&settings)?;
        held.share.ways.want(from_camera());
        let why = held.until(from_camera(), |way| match way {
            Way::Ingress(Err(UserReason::Interface { why, .. })) => Some(why.clone()),
            _ => None,
        })?;
        assert_eq!(why, "the proxy before this one has not ended yet");
        assert_eq!(traces(&scene)?, before);
        held.path.stop(false);
        assert_eq!(traces(&scene)?, before);
        seqs.extend(traffic.pass(50)?);
    }
    let (sent, rest) = traffic.end()?;
    seqs.extend(rest);
    assert_eq!(seqs, (0..sent).collect::<Vec<_>>(), "the version before forwards all the time");
    assert_eq!(scene.pins(), Some(other));
    // Whoever is told to end just when that one has ended takes away what it left.
    let held = scene.start(&settings)?;
    kill(first)?;
    held.path.stop(false);
    assert_eq!(traces(&scene)?, clean);
    assert_eq!(scene.pins(), None);
    Ok(())
}

#[test]
fn nothing_is_attached_beside_a_version_with_other_tables_that_still_runs() -> Result<()> {
    beside("nothing_is_attached_beside_a_version_with_other_tables_that_still_runs", Rung::Tcx)
}

#[test]
fn the_filter_of_a_version_with_other_tables_that_still_runs_is_not_touched() -> Result<()> {
    beside("the_filter_of_a_version_with_other_tables_that_still_runs_is_not_touched", Rung::Tc)
}

/// What a person would look at to see whether something of ours is left.
fn traces(scene: &Scene) -> Result<String> {
    let inner = scene.inner.as_str();
    let (_, tcx) = scene.node.inside(|| SchedClassifier::query_tcx(inner, TcAttachType::Ingress))??;
    let links = format!("{} TCX programs\n{}", tcx.len(), scene.node.output("bpftool", &["net", "show"])?);
    let look = format!(
        "sysctl -a --pattern '^net.(core|ipv4.conf)' 2>/dev/null; ethtool -k {0}; cat /sys/class/net/{0}/threaded",
        scene.inner
    );
    let settings = scene.node.output("sh", &["-c", &look])?;
    Ok(format!("{links}{}{}{settings}", scene.filters()?, scene.qdiscs()?))
}

fn uninstalled(test: &str, rung: Rung) -> Result<()> {
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    if rung == Rung::Tc {
        fs::write(scene.bpffs.file("tc"), "")?;
    }
    let before = traces(&scene)?;
    let (first, _) = holder(&scene)?;
    let bpffs = scene.bpffs.path();
    let refused = scene.node.inside(|| commands::uninstall::run(&bpffs))?;
    assert!(!refused.ok && refused.text.contains("running"), "{}", refused.text);
    kill(first)?;
    assert_ne!(traces(&scene)?, before, "it forwards on");
    let done = scene.node.inside(|| commands::uninstall::run(&bpffs))?;
    assert!(done.ok, "{}", done.text);
    assert_eq!(traces(&scene)?, before, "{}", done.text);
    assert_eq!(pins_in(&bpffs), None);
    assert!(!bpffs.join("msm").exists(), "not even the folder is left");
    let again = scene.node.inside(|| commands::uninstall::run(&bpffs))?;
    assert_eq!((again.ok, again.text.as_str()), (true, "nothing to remove\n"));
    Ok(())
}

#[test]
fn uninstall_leaves_nothing_of_the_tcx_rung() -> Result<()> {
    uninstalled("uninstall_leaves_nothing_of_the_tcx_rung", Rung::Tcx)
}

#[test]
fn uninstall_leaves_nothing_of_the_tc_rung() -> Result<()> {
    uninstalled("uninstall_leaves_nothing_of_the_tc_rung", Rung::Tc)
}

#[test]
fn status_reads_what_a_proxy_left() -> Result<()> {
    let Some(scene) = Scene::new("status_reads_what_a_proxy_left")? else { return Ok(()) };
    let (first, _) = holder(&scene)?;
    kill(first)?;
    let bpffs = scene.bpffs.path();
    let admin = "127.0.0.1:8081".parse()?;
    let said = scene.node.inside(|| commands::status::run(admin, &bpffs))?;
    assert!(!said.ok);
    for part in ["no proxy answers", "left by a proxy that is not running", "1 flows, 1 legs", "tcx"] {
        assert!(said.text.contains(part), "{part}: {}", said.text);
    }
    Ok(())
}
