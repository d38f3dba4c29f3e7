//! A program that does not see what comes in is found out by a frame of the proxy's own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::HashMap;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use msm_fastpath::PortKey;
use rtp_proxy::kernel::OBJECT;
use rtp_proxy::kernel::hop::{Rung, UserReason, Way};
use rtp_proxy::kernel::table::Table as _;

use crate::kernel_scene::{LIMIT, Scene, Traffic, from_camera};

const PORT: u16 = 5004;

#[test]
fn a_program_that_somebody_took_off_is_put_back_when_its_interface_changes() -> Result<()> {
    let test = "a_program_that_somebody_took_off_is_put_back_when_its_interface_changes";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    for (rung, length) in [(Rung::Tcx, "500"), (Rung::Tc, "600")] {
        let settings = rtp_proxy::kernel::service::Settings { max_rung: rung, ..scene.settings() };
        let mut held = scene.start_again(&settings)?;
        let ifindex = held.ingress()?.ifindex;
        let flow = held.forward(PORT)?;
        let traffic = Traffic::start(&scene, PORT)?;
        traffic.pass(50)?;
        if rung == Rung::Tcx {
            let link = scene.pins().context("pinned")?.join(format!("link-{ifindex}"));
            scene.node.output("bpftool", &["link", "detach", "pinned", &link.to_string_lossy()])?;
        } else {
            scene.node.output("tc", &["filter", "del", "dev", &scene.inner, "ingress"])?;
        }
        let forwarded = held.share.table.flow_stats(flow.index)?.packets;
        scene.node.ip(&["link", "set", &scene.inner, "txqueuelen", length])?;
        // What was on its way may still be read; what is sent from now on comes by the new attachment.
        let deadline = Instant::now() + LIMIT;
        while held.share.table.flow_stats(flow.index)?.packets < forwarded + 100 {
            ensure!(
                Instant::now() < deadline,
                "it is not put back by {rung:?}: {}\n{}\n{:?}",
                scene.node.output("bpftool", &["net", "show"])?,
                scene.filters()?,
                held.ingress()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        traffic.pass(100)?;
        assert_eq!(held.ingress()?.rung, rung);
        traffic.end()?;
        held.path.stop(false);
        assert_eq!(scene.pins(), None);
    }
    Ok(())
}

#[test]
fn an_interface_whose_program_sees_nothing_is_the_workers_and_says_why() -> Result<()> {
    let test = "an_interface_whose_program_sees_nothing_is_the_workers_and_says_why";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    // Something that drops the frame before any program of TCX or tc gets to see it.
    let mut ebpf = Ebpf::load(OBJECT.context("built in")?)?;
    let mut ports: HashMap<_, PortKey, u32> = ebpf.map_mut("PORTS").context("PORTS")?.try_into()?;
    ports.insert(PortKey::new("192.0.2.2:9".parse()?), PortKey::STRICT, 0)?;
    let xdp: &mut Xdp = ebpf.program_mut("xdp_ingress").context("xdp_ingress")?.try_into()?;
    xdp.load()?;
    let link = scene.node.inside(|| xdp.attach(&scene.inner, XdpMode::Skb))??;
    let mut held = scene.start(&scene.settings())?;
    held.share.ways.want(from_camera());
    let why = held.until(from_camera(), |way| match way {
        Way::Ingress(Err(UserReason::Interface { why, .. })) => Some(why.clone()),
        _ => None,
    })?;
    for part in ["tcx: the program does not see what comes in", "tc: the program does not see what comes in"]
    {
        assert!(why.contains(part), "{why}");
    }
    assert!(!scene.filters()?.contains("handle 0x"), "{}", scene.filters()?);
    assert!(!scene.qdiscs()?.contains("clsact"), "{}", scene.qdiscs()?);
    xdp.detach(link)?;
    scene.node.ip(&["link", "set", &scene.inner, "mtu", "1480"])?;
    let rung = held.until(from_camera(), |way| match way {
        Way::Ingress(Ok(ingress)) => Some(ingress.rung),
        _ => None,
    })?;
    assert_eq!(rung, Rung::Tcx);
    held.path.stop(false);
    assert_eq!(scene.pins(), None);
    Ok(())
}
