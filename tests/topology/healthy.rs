//! Eight viewers of another stream, who must not notice what is done to the proxy beside them.

use std::time::Duration;

use anyhow::{Result, ensure};
use msm_tests::camera::{Stage, Transport};
use msm_tests::probe::{Account, Cameras, Load, Viewers};
use msm_tests::process::wait_for;
use msm_tests::proxy::{Options, Proxy};

/// Generous: the machine may be busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Viewers of the healthy stream.
const VIEWERS: usize = 8;

/// A light stream: the bystanders measure harm, not throughput.
const LOAD: Load = Load { packet_bytes: 600, packets_per_second: 100, burst: 10 };

/// Starts a proxy on ports of its own.
pub(crate) fn proxy(scratch: &std::path::Path, flags: &[&str]) -> Result<Proxy> {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    Proxy::start(Stage::here(scratch), "proxy", &Options { flags, ..Options::default() })
}

/// The camera, its viewers, and what the proxy's memory was when they played.
#[derive(Debug)]
pub(crate) struct Healthy {
    cameras: Cameras,
    viewers: Viewers,
    memory: u64,
}

impl Healthy {
    /// Four viewers over UDP and four over TCP, all of whom have received something.
    pub(crate) fn start(proxy: &Proxy) -> Result<Self> {
        let url = proxy.url("healthy");
        let cameras = Cameras::publish(std::slice::from_ref(&url), Transport::Udp, LOAD, None)?;
        let mut viewers = Viewers::start()?;
        for viewer in 0..VIEWERS {
            viewers.play(&url, Transport::ALL[viewer % 2], None)?;
        }
        let healthy = Self { cameras, viewers, memory: resident(proxy)? };
        healthy.progress(20)?;
        Ok(healthy)
    }

    fn accounts(&self) -> Vec<Account> {
        (0..VIEWERS).map(|viewer| self.viewers.account(viewer)).collect()
    }

    /// Waits until everybody has received so many packets more.
    fn progress(&self, packets: u64) -> Result<()> {
        let before: Vec<u64> = self.accounts().iter().map(|account| account.packets).collect();
        wait_for("the healthy viewers' media", LIMIT, || {
            let now = self.accounts();
            now.iter().zip(&before).all(|(now, before)| now.packets >= before + packets).then_some(())
        })
    }

    /// Media still flows, the gap counter of every viewer is 0, the proxy lives and has not grown by more
    /// than `growth` MiB.
    pub(crate) fn check(self, proxy: &Proxy, growth: u64) -> Result<()> {
        self.progress(20)?;
        proxy.get("/livez")?;
        let overflows = self.viewers.overflows(None)?;
        for (viewer, account) in self.accounts().iter().enumerate() {
            ensure!(
                account.is_clean(),
                "healthy viewer {viewer}: {} lost, {} doubled, {} reordered, {} wrong of {}; \
                 {overflows} overflows of the viewers' own sockets",
                account.lost(),
                account.doubled,
                account.reordered,
                account.wrong,
                account.packets,
            );
            ensure!(!self.viewers.is_closed(viewer), "healthy viewer {viewer} was disconnected");
        }
        ensure!(self.cameras.unsent() == 0, "this machine did not take the camera's packets");
        let grown = resident(proxy)?.saturating_sub(self.memory) >> 20;
        ensure!(grown <= growth, "the proxy grew by {grown} MiB, at most {growth} are bounded");
        Ok(())
    }
}

/// Resident memory of the proxy in bytes.
pub(crate) fn resident(proxy: &Proxy) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.process.pid()))?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    Ok(kib.unwrap_or(0_u64) << 10)
}

/// Waits until a metric has reached a value. `labels`: what its line must contain.
pub(crate) fn wait_for_metric(proxy: &Proxy, name: &str, labels: &[&str], least: f64) -> Result<()> {
    let mut seen = 0.0;
    let what = format!("{name} {labels:?} to reach {least}");
    let reached = wait_for(&what, LIMIT, || {
        seen = proxy.metric(name, labels).unwrap_or(seen);
        (seen >= least).then_some(())
    });
    reached.map_err(|error| error.context(format!("it is {seen}")))
}

/// A player's time never goes back, and stands for a few frames at most at the start and at each restart:
/// a player that follows sender reports corrects its clock by what the first report of the new life says
/// about the extrapolation since (RTP-6, RTP-21); ffmpeg shows a small step back as frames of equal time.
pub(crate) fn time_moves_on(stamps: &[f64], restarts: usize) -> Result<()> {
    let standing = stamps.windows(2).filter(|pair| pair[1] <= pair[0]).count();
    ensure!(stamps.windows(2).all(|pair| pair[1] >= pair[0]), "time went back");
    ensure!(standing <= 4 * (restarts + 1), "time stood still for {standing} frames");
    Ok(())
}
