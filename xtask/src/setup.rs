//! `cargo xtask setup`: installs what is missing, saying what and why.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use msm_tests::privilege::find_program;

use crate::{cargo, describe, say};

/// What `cargo xtask setup` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Only say what is missing
    #[arg(long)]
    dry_run: bool,
    /// Leave out the toolchain of the kernel programs
    #[arg(long)]
    without_ebpf: bool,
}

/// A Debian package and why it is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    name: &'static str,
    why: &'static str,
}

pub(crate) const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why }
}

/// What the demo needs.
pub(crate) const DEMO: &[Package] = &[
    package("ffmpeg", "test pictures, a camera that publishes, a viewer"),
    package("gstreamer1.0-tools", "gst-launch, for the rtspsrc viewer"),
    package("gstreamer1.0-plugins-base", "audio conversion of the rtspsrc viewer"),
    package("gstreamer1.0-plugins-good", "rtspsrc, RTP payloaders"),
    package("gstreamer1.0-plugins-bad", "checksums of decoded frames, stream parsers"),
    package("gstreamer1.0-libav", "decoders of the rtspsrc viewer"),
    package("gir1.2-gst-rtsp-server-1.0", "a camera: GStreamer's RTSP server"),
    package("python3-gi", "drives GStreamer's RTSP server"),
    package("mpv", "a viewer"),
    package("iproute2", "network namespaces of the demo and the topology tests"),
];

/// What the tests need besides.
pub(crate) const TESTS: &[Package] = &[
    package("gstreamer1.0-rtsp", "a camera that publishes: rtspclientsink"),
    package("vlc-bin", "a camera: VLC as RTSP server"),
    package("vlc-plugin-base", "VLC's RTP output and demultiplexers"),
    package("tshark", "an independent view of loss and jitter"),
    package("systemd", "systemd-analyze, which judges our units"),
    package("libcap2-bin", "setcap, for the proxy as an ordinary user"),
];

/// Checks licences, sources, bans and duplicates of the dependencies.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Runs the command.
pub(crate) fn run(args: &SetupArgs) -> Result<()> {
    let packages: Vec<Package> = DEMO.iter().chain(TESTS).copied().collect();
    install(&packages, args.dry_run)?;
    if !answers("cargo-deny") {
        say("cargo-deny is missing: it checks licences, sources and duplicates of the dependencies");
        if !args.dry_run {
            // Unoptimised: it builds in a third of the time, and runs for seconds.
            let version = format!("cargo-deny@{CARGO_DENY_VERSION}");
            crate::run(&mut cargo(&["install", "--locked", "--debug", &version]))?;
        }
    }
    if !args.without_ebpf {
        crate::ebpf::setup(args.dry_run)?;
    }
    say(if args.dry_run { "nothing was changed" } else { "set-up is complete" });
    Ok(())
}

/// Installs Debian packages that are missing.
pub(crate) fn install(packages: &[Package], dry_run: bool) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !is_installed(package.name)).collect();
    if missing.is_empty() {
        say("all needed packages are installed");
        return Ok(());
    }
    say("packages that are missing");
    for package in &missing {
        println!("  {:28} {}", package.name, package.why);
    }
    if dry_run {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if find_program("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu; install what these packages hold: {}", names.join(" "));
    }
    apt(&["update", "-q"])?;
    apt(&[&["install", "-q", "-y", "--no-install-recommends"], names.as_slice()].concat())
}

fn apt(args: &[&str]) -> Result<()> {
    let mut command = as_root("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
    println!("  $ {}", describe(&command));
    crate::run(&mut command)
}

/// A command that runs with root's rights; `sudo` asks for the password when it must.
pub(crate) fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

fn is_installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", name])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// True when a program can be started.
pub(crate) fn answers(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
