//! TCX is refused by the kernel itself: so many programs of others are there that it takes no more. The ladder finds
//! out by trying and goes on with tc, and whoever looks learns why.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::Options;
use nix::net::if_::if_nametoindex;
use rtp_proxy::commands;
use serde_json::Value;

use crate::kernel_house::{House, THREE};
use crate::kernel_scene::{LIMIT, Scene, at};

/// `BPF_PROG_LOAD` and `BPF_PROG_ATTACH` of `enum bpf_cmd`.
const LOAD: libc::c_long = 5;
const ATTACH: libc::c_long = 8;
/// `BPF_PROG_TYPE_SCHED_CLS` and `BPF_TCX_INGRESS`.
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
/// `r0 = -1; exit`: `TCX_NEXT`, so the next program is asked, and behind all of them the filters of tc.
const NEXT: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
/// More than any kernel takes on one hook: 64 are the most of Linux 6.6 to 6.18.
const MANY: usize = 1_000;

/// The members of `union bpf_attr` that `BPF_PROG_LOAD` needs.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// Those of `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    ifindex: u32,
    program: u32,
    hook: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attr: &T) -> std::io::Result<libc::c_long> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` of the length that is passed; what it points to is static.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if rc < 0 { Err(std::io::Error::last_os_error()) } else { Ok(rc) }
}

/// A program that lets everything pass. A hook takes each program once.
fn program() -> Result<OwnedFd> {
    let load = Load {
        kind: SCHED_CLS,
        instructions: NEXT.len() as u32,
        code: NEXT.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    let fd = bpf(LOAD, &load).context("a program of two instructions")?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches programs to the camera's interface until the kernel takes no more, and says how many there are then.
fn fill(scene: &Scene) -> Result<usize> {
    let inner = scene.inner.as_str();
    scene.node.inside(|| -> Result<usize> {
        let ifindex = if_nametoindex(inner)?;
        for attached in 0..MANY {
            let program = program()?;
            let attach = Attach { ifindex, program: program.as_raw_fd() as u32, hook: TCX_INGRESS, flags: 0 };
            if let Err(error) = bpf(ATTACH, &attach) {
                ensure!(error.raw_os_error() == Some(libc::ERANGE), "{error} after {attached} programs");
                return Ok(attached);
            }
        }
        anyhow::bail!("{MANY} programs are attached")
    })?
}

fn programs(scene: &Scene) -> Result<usize> {
    let inner = scene.inner.as_str();
    let (_, tcx) = scene.node.inside(|| SchedClassifier::query_tcx(inner, TcAttachType::Ingress))??;
    Ok(tcx.len())
}

/// What the proxy says about the camera's interface.
fn interface(house: &House) -> Result<Value> {
    let document: Value = serde_json::from_str(&house.proxy.get("/v1/streams")?)?;
    let interfaces = document["kernel"]["interfaces"].as_array().context("interfaces")?;
    let found = interfaces.iter().find(|interface| interface["name"] == *house.scene.inner);
    found.cloned().with_context(|| format!("{document:#}"))
}

#[test]
fn an_interface_that_takes_no_more_tcx_programs_is_served_by_tc_and_says_why() -> Result<()> {
    let test = "an_interface_that_takes_no_more_tcx_programs_is_served_by_tc_and_says_why";
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let others = fill(&scene)?;
    ensure!(others >= 2, "room for {others} programs");
    let mut house = House::build(scene, Scratch::new("crowded")?, 0, Options::default(), &THREE)?;
    house.on(3, "tc")?;
    let before = house.in_kernel()?.0;
    house.run(100)?;
    house.arrived(0..3)?;
    for viewer in 0..3 {
        house.check(viewer, 0, 0);
    }
    let copies = house.in_kernel()?.0 - before;
    ensure!(copies >= 500, "the kernel made {copies} of 600 copies");
    ensure!(programs(&house.scene)? == others, "of others, and not one of ours");
    ensure!(house.scene.filters()?.matches("handle 0x").count() == 1, "{}", house.scene.filters()?);

    // Whoever looks learns what carries the media, and why nothing better does.
    let why = "tcx: the kernel takes no more programs here than are attached already";
    let said = interface(&house)?;
    assert_eq!(
        (said["rung"].as_str(), said["reason"].as_str().map(|reason| reason.contains(why))),
        (Some("tc"), Some(true)),
        "{said:#}"
    );
    let legs = |rung: &str| house.proxy.metric("msm_legs", &[&format!("rung=\"{rung}\""), "kind=\"udp\""]);
    assert_eq!((legs("tc")?, legs("tcx")?), (3.0, 0.0));
    let (admin, bpffs) = ("127.0.0.1:8081".parse()?, house.scene.bpffs.path());
    let status = house.scene.node.inside(|| commands::status::run(admin, &bpffs))?.text;
    let line = status.lines().find(|line| line.trim_start().starts_with(&house.scene.inner));
    ensure!(line.is_some_and(|line| line.contains(" tc ") && line.contains(why)), "{status}");
    let log = house.proxy.process.log();
    let changed = |line: &&str| line.contains("rung.changed") && line.contains(&house.scene.inner);
    let line = log.lines().find(changed);
    ensure!(line.is_some_and(|line| line.contains("rung=\"tc\"") && line.contains(why)), "{log}");

    // The programs of others see all of it as before, and what is nobody's media goes on to its socket.
    let receiver = house.scene.node.inside(|| UdpSocket::bind(at("10.7.1.1", 4_000)))??;
    receiver.set_read_timeout(Some(LIMIT))?;
    let sender = house.scene.camera.inside(|| UdpSocket::bind(at("10.7.1.2", 0)))??;
    sender.send_to(b"not media", at("10.7.1.1", 4_000))?;
    assert_eq!(receiver.recv(&mut [0; 16])?, 9);
    house.proxy.terminate(LIMIT)?;
    wait_for("the hook as it was", LIMIT, || (programs(&house.scene).ok() == Some(others)).then_some(()))?;
    let left = house.scene.filters()? + &house.scene.qdiscs()?;
    ensure!(!left.contains("handle 0x") && !left.contains("clsact"), "{left}");
    Ok(())
}
