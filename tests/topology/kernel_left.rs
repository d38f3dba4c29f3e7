//! What a proxy left in the kernel that was killed, where the next one has no fast path, or another name, or cannot
//! take all of it back.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use msm_tests::camera::{Stage, Transport};
use rtp_proxy::commands;
use rtp_proxy::kernel::OBJECT;
use rtp_proxy::kernel::device::Receive;
use rtp_proxy::kernel::hop::Rung;
use rtp_proxy::kernel::ladder::{Ladder, Pinning, tc_handle};
use rtp_proxy::kernel::load::{Capacity, Kernel};
use rtp_proxy::kernel::pins::{self, Pins, Record};

use crate::feed::Feed;
use crate::kernel_house::{House, INPUT};
use crate::kernel_scene::{LIMIT, Scene};

/// Programs on the camera's interface.
fn programs(scene: &Scene) -> Result<usize> {
    let inner = scene.inner.as_str();
    Ok(scene.node.inside(|| SchedClassifier::query_tcx(inner, TcAttachType::Ingress))??.1.len())
}

impl House {
    /// Lets the camera send until the kernel forwards and both ports of the camera are closed to strangers.
    fn until_closed(&mut self) -> Result<()> {
        self.on(self.viewers.len(), "tcx")?;
        let (admin, bpffs, node) =
            ("127.0.0.1:8081".parse()?, self.scene.bpffs.path(), self.scene.node.clone());
        let mut said = String::new();
        let until = self.until("closed ports", |_| {
            let status = node.inside(|| commands::status::run(admin, &bpffs).text);
            said = status.unwrap_or_default();
            !said.contains(" 0 ports closed") && said.contains("ports closed")
        });
        until.context(said)
    }

    /// A camera and a viewer that come anew, from other ports of theirs.
    fn anew(&mut self) -> Result<()> {
        let url = self.proxy.url_at(INPUT[self.family], "cam");
        self.feed = self.scene.camera.inside(|| Feed::record(&url, Transport::Udp))??;
        self.viewers.clear();
        self.play(Transport::Udp)
    }
}

#[test]
fn a_start_without_the_fast_path_takes_back_what_a_killed_proxy_left() -> Result<()> {
    let test = "a_start_without_the_fast_path_takes_back_what_a_killed_proxy_left";
    let Some(mut house) = House::new(test, 0, &[], &[Transport::Udp])? else { return Ok(()) };
    house.until_closed()?;
    house.kill()?;
    assert_eq!(programs(&house.scene)?, 1, "it forwards on");
    house.start_again_with(&["--max-rung", "user"])?;
    let said = house.proxy.process.wait_for_line("kernel.replaced", LIMIT)?;
    ensure!(said.contains("--max-rung user") && said.contains("TCX link on"), "{said}");
    assert_eq!(programs(&house.scene)?, 0);
    assert_eq!(house.scene.pins(), None);
    // At the port of the proxy that was closed to everybody but the camera's former ports.
    house.anew()?;
    house.on(1, "user")?;
    house.run(50)?;
    house.arrived([0])?;
    house.check(0, 0, 0);
    house.proxy.terminate(LIMIT)
}

#[test]
fn a_planned_upgrade_to_a_proxy_without_the_fast_path_leaves_nothing_in_the_kernel() -> Result<()> {
    let test = "a_planned_upgrade_to_a_proxy_without_the_fast_path_leaves_nothing_in_the_kernel";
    let Some(mut house) = House::new(test, 0, &[], &[Transport::Udp])? else { return Ok(()) };
    house.until_closed()?;
    house.proxy.arguments.extend(["--max-rung", "user"].map(str::to_owned));
    let stage = Stage::inside(house.scratch.path(), &house.scene.node);
    house.proxy.upgrade(stage, "next")?;
    house.proxy.process.wait_for_line("kernel.replaced", LIMIT)?;
    assert_eq!(programs(&house.scene)?, 0);
    assert_eq!(house.scene.pins(), None);
    house.on(1, "user")?;
    let before = house.viewers[0].packets(0).len();
    house.run(50)?;
    house.arrived([0])?;
    ensure!(house.viewers[0].packets(0).len() >= before + 50, "the worker carries it");
    house.proxy.terminate(LIMIT)
}

#[test]
fn what_another_instance_left_is_told_with_the_command_that_removes_it() -> Result<()> {
    let test = "what_another_instance_left_is_told_with_the_command_that_removes_it";
    let Some(mut house) = House::new(test, 0, &[], &[Transport::Udp])? else { return Ok(()) };
    house.until_closed()?;
    house.kill()?;
    for flags in [&["--rtp-ports", "9060-9099"][..], &["--rtp-ports", "9060-9099", "--max-rung", "user"]] {
        house.start_again_with(flags)?;
        let said = house.proxy.process.wait_for_line("kernel.left_behind", LIMIT)?;
        let command = format!("sudo rtp-proxy uninstall --bpffs {}", house.scene.bpffs.path().display());
        ensure!(said.contains("--rtp-ports 8060-") && said.contains(&command), "{said}");
        house.proxy.terminate(LIMIT)?;
        assert_eq!(programs(&house.scene)?, 1, "the other one's may come back");
    }
    let bpffs = house.scene.bpffs.path();
    let done = house.scene.node.inside(|| commands::uninstall::run(&bpffs))?;
    assert!(done.ok, "{}", done.text);
    assert_eq!(programs(&house.scene)?, 0);
    Ok(())
}

/// Inside a network namespace of which `/sys` shows nothing, how an interface receives cannot be given back.
#[test]
fn what_cannot_be_given_back_is_still_known_after_detaching_and_attaching() -> Result<()> {
    let test = "what_cannot_be_given_back_is_still_known_after_detaching_and_attaching";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let bpffs = scene.bpffs.path();
    let small = Capacity { flows: 1, legs: 1, ports: 1 };
    let kernel = Kernel::load_with(OBJECT, small, None)?;
    scene.node.inside(|| -> Result<()> {
        let pins = Pins::plan(&bpffs, "left", &pins::abi());
        let planned = Pinning::Planned(pins.clone(), bpffs.clone());
        let mut ladder = Ladder::new(kernel, planned, Rung::Tcx, tc_handle("left"));
        let ifindex = nix::net::if_::if_nametoindex(scene.inner.as_str())?;
        let full = |why| anyhow::anyhow!("{why}");
        ladder.attach(ifindex, &scene.inner, Rung::Tcx).map_err(full)?;
        // As if its bursts had been merged, with /sys as it was then.
        let record = Record {
            name: scene.inner.clone(),
            rung: Rung::Tcx,
            clsact: false,
            before: Receive::from_text("rx-gro:off,rx-udp-gro-forwarding:off,threaded:off"),
        };
        pins.put_record(ifindex, &record)?;
        ladder.adopt();
        let left = ladder.detach(ifindex).unwrap_err();
        assert!(left.contains("/sys/class/net"), "{left}");
        let rest = Record { rung: Rung::User, ..record.clone() };
        assert_eq!(pins.records().get(&ifindex), Some(&rest), "for whoever can");
        for best in [Rung::Tcx, Rung::Tc] {
            let rung = ladder.attach(ifindex, &scene.inner, best).map_err(full)?;
            let expected = Record { rung, clsact: rung == Rung::Tc, ..record.clone() };
            assert_eq!(pins.records().get(&ifindex), Some(&expected), "not as it is now, but as it was");
            ladder.detach(ifindex).unwrap_err();
        }
        let problems = ladder.remove();
        assert!(problems.len() == 1 && problems[0].contains("/sys/class/net"), "{problems:?}");
        assert!(!pins.has_maps() && pins.records().contains_key(&ifindex), "only the record is left");
        for _ in 0..2 {
            let said = commands::uninstall::run(&bpffs);
            assert!(!said.ok && said.text.contains("× left /sys/class/net"), "{}", said.text);
            assert!(said.text.contains("run again: sudo rtp-proxy uninstall --bpffs"), "{}", said.text);
        }
        Ok(())
    })??;
    // `ip netns exec` brings the namespace's own /sys.
    let program = msm_tests::proxy::program()?;
    let arguments = ["uninstall", "--bpffs", &bpffs.to_string_lossy()];
    let said = scene.node.output(&program.to_string_lossy(), &arguments)?;
    assert!(said.contains("merging of bursts") && !bpffs.join("msm").exists(), "{said}");
    Ok(())
}
