//! A proxy that is not root: with the capabilities that `rtp-proxy doctor` names it has the fast path, and without
//! them everything works without. What is given to it is what doctor says, word for word.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{Stage, Transport};
use msm_tests::privilege::{Need, granted};
use msm_tests::process::{Launch, Process, Scratch, output, wait_for};
use msm_tests::proxy::{Options, program};
use rtp_proxy::commands::uninstall;
use serde_json::Value;

use crate::kernel_house::House;
use crate::kernel_scene::{LIMIT, Scene};

/// Debian's `nobody`: a user that has nothing.
const USER: u32 = 65_534;
/// What setpriv calls the capabilities that may be had at all.
const CAPABILITIES: &str = "-all,+bpf,+net_admin,+perfmon";

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Program("setpriv"), Need::Program("setcap")];

/// Becomes the user, who can never have more than these capabilities.
fn through() -> Vec<String> {
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
    let bounds = format!("--bounding-set={CAPABILITIES}");
    ["setpriv".to_owned()].into_iter().chain(user).chain([bounds]).collect()
}

/// A node and in it what the user has: a binary and a directory for the socket of upgrades.
struct Ground {
    scene: Scene,
    scratch: Scratch,
    binary: PathBuf,
    door: PathBuf,
}

impl Ground {
    /// Nothing where the test cannot run here.
    fn new(test: &str) -> Result<Option<Self>> {
        if !granted(test, &NEEDS) {
            return Ok(None);
        }
        let Some(scene) = Scene::new(test)? else { return Ok(None) };
        let scratch = Scratch::new("unprivileged")?;
        let (binary, doors) = (scratch.file("rtp-proxy"), scratch.file("run"));
        fs::copy(program()?, &binary)?;
        // A program that another test starts at this moment holds a copy of the descriptor that wrote it, between fork
        // and exec: until then the kernel says "Text file busy".
        let starts =
            || Command::new(&binary).arg("--version").output().is_ok_and(|said| said.status.success());
        wait_for("the copy of the binary to start", LIMIT, || starts().then_some(()))?;
        fs::create_dir(&doors)?;
        std::os::unix::fs::chown(&doors, Some(USER), Some(USER))?;
        // As systemd mounts it.
        fs::set_permissions(scene.bpffs.path(), fs::Permissions::from_mode(0o700))?;
        Ok(Some(Self { scene, scratch, binary, door: doors.join("door") }))
    }

    /// What doctor says to the user.
    fn doctor(&self) -> Result<String> {
        self.said("doctor")
    }

    /// What a command says to the user.
    fn said(&self, verb: &str) -> Result<String> {
        let through = through();
        let (setpriv, arguments) = through.split_first().context("setpriv")?;
        let mut command = self.scene.node.command(setpriv);
        command.args(arguments).arg(&self.binary).arg(verb).arg("--bpffs").arg(self.scene.bpffs.path());
        Ok(String::from_utf8_lossy(&command.output()?.stdout).into_owned())
    }

    /// A proxy of the user, who has no directory for running programs.
    fn bare(&self, name: &str, flags: &[&str]) -> Result<Process> {
        let through = through();
        let (setpriv, arguments) = through.split_first().context("setpriv")?;
        let bare = ["env", "-u", "XDG_RUNTIME_DIR", "-u", "RUNTIME_DIRECTORY"];
        let proxy = [self.binary.display().to_string(), "standalone".to_owned()];
        let launch = Launch::inside(name, Some(&self.scene.node), setpriv).args(arguments).args(bare);
        launch.args(&proxy).args(flags).start(self.scratch.path())
    }

    /// The line with `mark` whose text contains `what`, and the fix below it.
    fn finding(said: &str, mark: char, what: &str) -> Result<String> {
        let mut lines = said.lines().skip_while(|line| !(line.starts_with(mark) && line.contains(what)));
        let (_, fix) = (lines.next(), lines.next());
        let fix = fix.and_then(|line| line.trim().strip_prefix("> "));
        Ok(fix.with_context(|| format!("{mark} {what}: {said}"))?.to_owned())
    }

    /// Does as root what a fix says.
    fn follow(fix: &str) -> Result<()> {
        let commands = fix.trim_end_matches(", or run as root").replace("sudo ", "");
        output("sh", &["-c", &commands]).map(drop)
    }

    fn house(self, viewers: &[Transport]) -> Result<House> {
        let flags = ["--handover".to_owned(), self.door.display().to_string()].to_vec();
        let options = Options { program: Some(self.binary), through: through(), flags, ..Options::default() };
        House::build(self.scene, self.scratch, 0, options, viewers)
    }
}

/// User and effective capabilities of the running proxy.
fn identity(house: &House) -> Result<(String, String)> {
    let status = fs::read_to_string(format!("/proc/{}/status", house.proxy.process.pid()))?;
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
    Ok((line("Uid:").split_whitespace().nth(1).unwrap_or_default().to_owned(), line("CapEff:").to_owned()))
}

fn rungs(stream: &Value) -> Vec<&str> {
    stream["legs"].as_array().into_iter().flatten().filter_map(|leg| leg["rung"].as_str()).collect()
}

#[test]
fn an_unprivileged_user_with_what_doctor_names_is_on_tcx_and_survives_kill_and_upgrade() -> Result<()> {
    let test = "an_unprivileged_user_with_what_doctor_names_is_on_tcx_and_survives_kill_and_upgrade";
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let said = ground.doctor()?;
    Ground::follow(&Ground::finding(&said, '×', "lacks CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")?)?;
    Ground::follow(&Ground::finding(&said, '‼', "forwarding ends with the proxy")?)?;
    let said = ground.doctor()?;
    for good in ["√ programs load", "√ TCX is there", "√ bpffs at"] {
        ensure!(said.contains(good), "{good}: {said}");
    }
    ensure!(!said.contains('×'), "{said}");
    // A user who is not root cannot write to /sys, and is told so.
    Ground::finding(&said, '‼', "bursts of sources behind a veth are not merged")?;

    // What another proxy of the same user has in another namespace looks left behind to whoever cannot see it.
    let folder = ground.scene.bpffs.path().join("msm");
    let others = folder.join("1/9060");
    let owned = ["1", "1/9060", "1/9060/0123456789abcdef"].map(|name| folder.join(name));
    for directory in &owned {
        fs::create_dir(directory)?;
    }
    std::os::unix::fs::symlink("net:[1]", others.join("netns"))?;
    for directory in &owned {
        std::os::unix::fs::chown(directory, Some(USER), Some(USER))?;
    }
    let mut house = ground.house(&[Transport::Udp, Transport::Udp, Transport::Tcp])?;
    ensure!(others.exists(), "swept, though its namespace may be alive");
    // Root sees that it is gone.
    let bpffs = house.scene.bpffs.path();
    let swept = house.scene.node.inside(|| uninstall::run(&bpffs))?.text;
    ensure!(swept.contains("√ removed pins of a namespace that is gone") && !others.exists(), "{swept}");
    let (user, capabilities) = identity(&house)?;
    // 39, 38 and 12.
    ensure!((user.as_str(), capabilities.as_str()) == ("65534", "000000c000001000"), "{user} {capabilities}");
    house.on(2, "tcx")?;
    let (sent, _) = house.in_kernel()?;
    house.run(100)?;
    house.arrived(0..3)?;
    let (now, _) = house.in_kernel()?;
    ensure!(now >= sent + 2 * 2 * 100, "the kernel's own counters: {sent} and then {now}");

    // Another one takes over, as the same user.
    let stage = Stage::inside(house.scratch.path(), &house.scene.node);
    house.proxy.upgrade(stage, "proxy-next")?;
    house.on(2, "tcx")?;
    house.run(50)?;
    house.arrived(0..3)?;
    for viewer in 0..3 {
        house.check(viewer, 0, 0);
    }

    // Forwarding goes on without it, and the next one finds it again.
    let before = house.scene.pins().context("pinned")?;
    house.kill()?;
    let (sent, _) = house.in_kernel()?;
    house.run(50)?;
    house.arrived(0..2)?;
    ensure!(house.in_kernel()?.0 >= sent + 2 * 2 * 50, "forwarding ended with the process");
    house.start_again()?;
    ensure!(house.scene.pins() == Some(before), "the same pins");
    let log = house.proxy.process.log();
    ensure!(log.contains("kernel.adopted") && !log.contains("kernel.unpinned"), "{log}");
    house.proxy.terminate(LIMIT)?;
    ensure!(house.scene.pins().is_none(), "pins are left");
    Ok(())
}

#[test]
fn without_a_place_for_pins_the_fast_path_works_and_says_what_it_lacks() -> Result<()> {
    let test = "without_a_place_for_pins_the_fast_path_works_and_says_what_it_lacks";
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    Ground::follow(&Ground::finding(&ground.doctor()?, '×', "lacks CAP_BPF")?)?;
    let mut house = ground.house(&[Transport::Udp])?;
    house.on(1, "tcx")?;
    house.run(50)?;
    house.arrived([0])?;
    house.check(0, 0, 0);
    let log = house.proxy.process.log();
    ensure!(log.contains("kernel.unpinned") && log.contains("nobody may not write to"), "{log}");
    house.proxy.terminate(LIMIT)
}

#[test]
fn without_capabilities_the_workers_carry_everything_and_the_reason_is_printed() -> Result<()> {
    let test = "without_capabilities_the_workers_carry_everything_and_the_reason_is_printed";
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let fix = Ground::finding(&ground.doctor()?, '×', "nobody lacks CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")?;
    let due = format!(
        "sudo setcap cap_bpf,cap_net_admin,cap_perfmon+ep {}, or run as root",
        ground.binary.display()
    );
    ensure!(fix == due, "{fix}");
    let mut house = ground.house(&[Transport::Udp, Transport::Tcp])?;
    ensure!(identity(&house)? == ("65534".to_owned(), "0000000000000000".to_owned()));
    house.run(100)?;
    house.arrived(0..2)?;
    for viewer in 0..2 {
        house.check(viewer, 0, 0);
    }
    let stream = house.stream()?;
    ensure!(rungs(&stream) == ["user", "user"], "{stream:#}");
    for reason in ["CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON missing", "rtp-proxy doctor says how to get it"] {
        ensure!(house.proxy.process.log().contains(reason), "{reason}: {}", house.proxy.process.tail());
    }
    ensure!(house.scene.pins().is_none(), "nothing was pinned");
    house.proxy.terminate(LIMIT)
}

#[test]
fn a_user_is_told_what_it_may_not_see_and_that_there_is_no_place_for_the_socket_of_upgrades() -> Result<()> {
    let test = "a_user_is_told_what_it_may_not_see_and_that_there_is_no_place_for_the_socket_of_upgrades";
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let status = ground.said("status")?;
    let why = format!("nobody may not look into {}/msm/", ground.scene.bpffs.path().display());
    ensure!(
        status.contains("no proxy answers") && status.contains(&why) && status.contains("as root"),
        "{status}"
    );
    ensure!(!status.contains("none left anything"), "nobody knows that: {status}");
    let uninstall = ground.said("uninstall")?;
    ensure!(uninstall.contains(&why) && !uninstall.contains("nothing to remove"), "{uninstall}");
    // With a look at it both say what they said before.
    fs::set_permissions(ground.scene.bpffs.path(), fs::Permissions::from_mode(0o755))?;
    let (status, uninstall) = (ground.said("status")?, ground.said("uninstall")?);
    ensure!(status.contains("and none left anything"), "{status}");
    ensure!(uninstall == "nothing to remove\n", "{uninstall}");

    let unavailable = "handover.unavailable";
    let mut proxy = ground.bare("bare", &[])?;
    let line = proxy.wait_for_line(unavailable, LIMIT)?;
    for part in ["nobody is not root", "XDG_RUNTIME_DIR", "--handover PATH"] {
        ensure!(line.contains(part), "{part}: {line}");
    }
    proxy.kill();
    let mut proxy = ground.bare("off", &["--handover", "off"])?;
    proxy.wait_for_line("kernel.off", LIMIT)?;
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    proxy.wait(LIMIT)?;
    ensure!(!proxy.log().contains(unavailable), "it was asked for: {}", proxy.log());
    Ok(())
}
