//! Where a case of the protocols is played: on loopback, or on a rung, with the proxy in a namespace of its own.
//!
//! Without [`ENV_RUNG`] everything runs where the test runs, over loopback: media stays with the workers.
//! With it the proxy is the host between two networks, cameras are on one and viewers on the other, and the
//! test's own thread *is* on the viewers' network: sockets that it opens, threads and programs that it starts
//! are there too. [`Ground::among_cameras`] does the same on the cameras' side. So one body serves every rung.
//!
//! ```text
//!  cameras 10.91.1.2 ─── 10.91.1.1 host 10.91.2.1, .2 ─── 10.91.2.9 viewers, this thread
//!          fd91:1::2 ─── fd91:1::1      fd91:2::1     ─── fd91:2::9
//! ```
//!
//! What carried the media is judged by [`Ground::judge`] from counters, never from the setting.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::camera::Stage;
use crate::lab::{Lab, Node};
use crate::privilege::{Need, environment, granted};
use crate::process::{Scratch, wait_for};
use crate::proxy::{Options, Proxy};

mod cases;
mod evidence;
mod tables;

pub use cases::{CASES, Carried, Case};
pub use evidence::{ENV_REPORT, Evidence, Line, Reported, SOURCE_OVER_TCP};
pub use tables::{Fill, fill_of};

/// The best rung that proxies of the cases may use, and that they must reach: `user`, `tc` or `tcx`.
pub const ENV_RUNG: &str = "MSM_TEST_RUNG";

/// Patience with a leg on its way to the kernel, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What carries a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// The workers.
    User,
    /// The program on clsact.
    Tc,
    /// The program on TCX.
    Tcx,
}

impl Rung {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::User, Self::Tc, Self::Tcx];

    /// As `--max-rung`, `/v1/streams` and `msm_legs` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Tc => "tc",
            Self::Tcx => "tcx",
        }
    }

    /// The rung of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rung| rung.name() == name)
    }

    /// True for those that need the kernel programs.
    pub fn is_kernel(self) -> bool {
        self != Self::User
    }
}

/// The rung that was asked for.
///
/// # Errors
/// The variable names none.
pub fn asked() -> Result<Option<Rung>> {
    let Some(name) = environment(ENV_RUNG) else { return Ok(None) };
    Rung::named(&name).map(Some).with_context(|| format!("{ENV_RUNG}={name}: write user, tc or tcx"))
}

/// The ground of one test.
#[derive(Debug)]
pub struct Ground {
    case: Option<&'static Case>,
    rung: Option<Rung>,
    networks: Option<Networks>,
    evidence: Mutex<Vec<Evidence>>,
    scratch: Scratch,
}

/// The namespaces. The thread leaves them before they go.
#[derive(Debug)]
struct Networks {
    /// Dropped first.
    _home: Home,
    host: Node,
    cameras: Node,
    viewers: Node,
    camera_device: String,
    /// The host's and the viewers' end of the cable between them.
    host_device: String,
    viewer_device: String,
    _lab: Lab,
}

/// Where the test's thread came from, and goes back to.
#[derive(Debug)]
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).ok();
    }
}

impl Ground {
    /// The ground of the case that `test` belongs to, on the rung that was asked for; loopback if none was.
    /// Nothing where the test cannot run here.
    ///
    /// # Errors
    /// The test is in no line of [`CASES`], or namespaces cannot be made.
    pub fn new(test: &str) -> Result<Option<Self>> {
        let case = CASES.iter().find(|case| case.test.rsplit("::").next() == Some(test));
        Self::make(test, Some(case.with_context(|| format!("{test} is in no line of the cases"))?), asked()?)
    }

    /// The same, but with namespaces too where no rung was asked for: then on `user`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_networks(test: &str) -> Result<Option<Self>> {
        let case = CASES.iter().find(|case| case.test.rsplit("::").next() == Some(test));
        let rung = asked()?.unwrap_or(Rung::User);
        Self::make(
            test,
            Some(case.with_context(|| format!("{test} is in no line of the cases"))?),
            Some(rung),
        )
    }

    /// A ground for something that is no single case.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(test: &str) -> Result<Option<Self>> {
        Self::make(test, None, asked()?)
    }

    fn make(test: &str, case: Option<&'static Case>, rung: Option<Rung>) -> Result<Option<Self>> {
        let needs: &[Need] = match rung {
            None => &[],
            Some(Rung::User) => &[Need::Namespaces],
            Some(Rung::Tc | Rung::Tcx) => &[Need::Namespaces, Need::Kernel],
        };
        if !granted(test, needs) {
            return Ok(None);
        }
        // The files of failed runs are found by it.
        let name: String = test.chars().take(24).collect();
        let scratch = Scratch::new(&name.replace(' ', "-"))?;
        let networks = rung.map(|_| Networks::new()).transpose()?;
        Ok(Some(Self { case, rung, networks, evidence: Mutex::default(), scratch }))
    }

    /// The rung that was asked for; none: loopback.
    pub fn rung(&self) -> Option<Rung> {
        self.rung
    }

    /// True when media is to be in the kernel.
    pub fn is_kernel(&self) -> bool {
        self.rung.is_some_and(Rung::is_kernel)
    }

    /// Folder of logs and results.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Leaves the folder of logs behind and says where it is.
    pub fn keep(mut self) -> PathBuf {
        self.scratch.keep().unwrap_or_default()
    }

    /// Where viewers run.
    pub fn stage(&self) -> Stage<'_> {
        Stage::here(self.scratch.path())
    }

    /// Does something on the cameras' network: what it opens and starts stays there.
    pub fn among_cameras<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(networks) = &self.networks else { return work() };
        enter(&networks.cameras).expect("the cameras' namespace is there as long as the ground is");
        let done = work();
        enter(&networks.viewers).expect("the viewers' namespace is there as long as the ground is");
        done
    }

    /// Does something on the proxy's own machine.
    pub fn at_the_proxy<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(networks) = &self.networks else { return work() };
        enter(&networks.host).expect("the host's namespace is there as long as the ground is");
        let done = work();
        enter(&networks.viewers).expect("the viewers' namespace is there as long as the ground is");
        done
    }

    /// Address that a camera listens on.
    pub fn camera_host(&self) -> &'static str {
        if self.networks.is_some() { "10.91.1.2" } else { "127.0.0.1" }
    }

    /// The same, IPv6, without brackets.
    pub fn camera_host6(&self) -> &'static str {
        if self.networks.is_some() { "fd91:1::2" } else { "::1" }
    }

    /// Address of the proxy for viewers.
    pub fn viewers_host(&self) -> &'static str {
        if self.networks.is_some() { "10.91.2.1" } else { "127.0.0.1" }
    }

    /// The same, IPv6, without brackets.
    pub fn viewers_host6(&self) -> &'static str {
        if self.networks.is_some() { "fd91:2::1" } else { "::1" }
    }

    /// Address of a viewer.
    pub fn viewer_host(&self) -> &'static str {
        if self.networks.is_some() { "10.91.2.9" } else { "127.0.0.1" }
    }

    /// The same, IPv6, without brackets.
    pub fn viewer_host6(&self) -> &'static str {
        if self.networks.is_some() { "fd91:2::9" } else { "::1" }
    }

    /// A further address among the viewers; on loopback all of 127.0.0.0/8 are.
    ///
    /// # Errors
    /// It cannot be given.
    pub fn other_viewer(&self, number: u8) -> Result<IpAddr> {
        let Some(networks) = &self.networks else { return Ok(IpAddr::from([127, 0, 0, number])) };
        let address = format!("10.91.2.{number}/24");
        networks.viewers.ip(&["addr", "add", &address, "dev", &networks.viewer_device])?;
        Ok(IpAddr::from([10, 91, 2, number]))
    }

    /// A further address among the cameras.
    ///
    /// # Errors
    /// It cannot be given.
    pub fn other_camera(&self, number: u8) -> Result<IpAddr> {
        let Some(networks) = &self.networks else { return Ok(IpAddr::from([127, 0, 0, number])) };
        let address = format!("10.91.1.{number}/24");
        networks.cameras.ip(&["addr", "add", &address, "dev", &networks.camera_device])?;
        Ok(IpAddr::from([10, 91, 1, number]))
    }

    /// URL at which publishers reach the proxy.
    pub fn publish_url(&self, proxy: &Proxy, path: &str) -> String {
        if self.networks.is_some() { proxy.url_at("10.91.1.1", path) } else { proxy.url(path) }
    }

    /// The device on which viewers' packets are seen.
    pub fn viewers_device(&self) -> &str {
        self.networks.as_ref().map_or("lo", |networks| &networks.viewer_device)
    }

    /// The proxy's packets leave towards viewers one by one: a capture shows segmented sends as one.
    ///
    /// # Errors
    /// The device does not take it.
    pub fn send_single_packets(&self) -> Result<()> {
        let Some(networks) = &self.networks else { return Ok(()) };
        networks.host.ip(&["link", "set", &networks.host_device, "gso_max_segs", "1"])
    }

    /// Starts the proxy and begins to collect what carries its legs.
    ///
    /// # Errors
    /// It does not start.
    pub fn proxy(&self, name: &str, options: Options) -> Result<Proxy> {
        let (Some(networks), Some(rung)) = (&self.networks, self.rung) else {
            return Proxy::start(self.stage(), name, &options);
        };
        let mut options = Options { reached_at: Some(self.viewers_host().to_owned()), ..options };
        // In its namespace it listens on every address.
        options.address = None;
        options.flags.extend(["--max-rung".to_owned(), rung.name().to_owned()]);
        let proxy = Proxy::start(Stage::inside(self.scratch.path(), &networks.host), name, &options)?;
        let evidence = Evidence::collect(proxy.admin(), proxy.process.pid(), networks.host.clone());
        self.evidence.lock().expect("nothing panics with it").push(evidence);
        Ok(proxy)
    }

    /// Waits until the rung that was asked for carries all UDP legs of a stream, at least so many, and each has
    /// got media there by its counter; `meanwhile` keeps media flowing. Nothing to wait for on loopback.
    ///
    /// # Errors
    /// It does not, with what `/v1/streams` says of them.
    pub fn wait_until_carried(
        &self,
        proxy: &Proxy,
        stream: &str,
        legs: usize,
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let Some(rung) = self.rung else { return Ok(()) };
        let mut failed = None;
        let carried = wait_for(&format!("{legs} legs of {stream} on {}", rung.name()), PATIENCE, || {
            if let Err(error) = meanwhile() {
                failed = Some(error);
                return Some(());
            }
            let found = proxy.stream(stream)?;
            let udp: Vec<_> =
                found["legs"].as_array()?.iter().filter(|leg| leg["transport"] == "udp").collect();
            let got = |peer: &str| {
                let all = self.evidence.lock().expect("nothing panics with it");
                all.iter().any(|evidence| evidence.has_got_media_on(rung, stream, peer))
            };
            let carried =
                udp.iter().all(|leg| leg["rung"] == rung.name() && leg["peer"].as_str().is_some_and(got));
            (udp.len() >= legs && carried).then_some(())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        carried.with_context(|| format!("{:#}", proxy.stream(stream).unwrap_or_default()))
    }

    /// Asserts from the counters that media was carried by the rung that was asked for, as the case's line in
    /// [`CASES`] says, and reports it. Every test on a ground ends with it.
    ///
    /// # Errors
    /// It was not, with everything that was seen.
    pub fn judge(&self) -> Result<()> {
        let Some(rung) = self.rung else { return Ok(()) };
        let carried = self.case.map_or(Carried::Kernel, |case| case.carried);
        let line = self.collected()?.judge(rung, carried)?;
        let Some(case) = self.case else { bail!("what is no case reports for itself") };
        eprintln!("{} case {}: {line:?}", rung.name(), case.number);
        line.report(case.number, case.test, rung)
    }

    /// What one stream has shown so far; its packets only, for the kernel's counters know no streams.
    pub fn shown_so_far(&self, stream: &str) -> Line {
        let Some(rung) = self.rung else { return Line::default() };
        let all = self.evidence.lock().expect("nothing panics with it");
        let lines = all.iter().map(|evidence| evidence.of_stream(stream, rung));
        lines.max_by_key(|line| line.legs).unwrap_or_default()
    }

    /// Reasons why viewers of one stream over UDP have been with the workers.
    pub fn reasons(&self, stream: &str) -> BTreeSet<String> {
        let all = self.evidence.lock().expect("nothing panics with it");
        all.iter().flat_map(|evidence| evidence.reasons(stream)).collect()
    }

    /// Ends the collecting and returns what all proxies showed together.
    ///
    /// # Errors
    /// No proxy was started.
    pub fn collected(&self) -> Result<Evidence> {
        let all = std::mem::take(&mut *self.evidence.lock().expect("nothing panics with it"));
        let mut all = all.into_iter();
        let mut first = all.next().context("no proxy was started on this ground")?;
        first.stop();
        for mut other in all {
            other.stop();
            first.join(other);
        }
        Ok(first)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Before the namespaces go.
        if let Ok(mut evidence) = self.evidence.lock() {
            evidence.clear();
        }
    }
}

impl Networks {
    fn new() -> Result<Self> {
        let home = Home(File::open("/proc/thread-self/ns/net").context("this thread's namespace")?);
        let mut lab = Lab::new()?;
        let [host, cameras, viewers] = [lab.node("host")?, lab.node("cameras")?, lab.node("viewers")?];
        let (_, camera_device) =
            lab.cable(&host, &["10.91.1.1/24", "fd91:1::1/64"], &cameras, &["10.91.1.2/24", "fd91:1::2/64"])?;
        let (host_device, viewer_device) = lab.cable(
            &host,
            &["10.91.2.1/24", "10.91.2.2/24", "fd91:2::1/64"],
            &viewers,
            &["10.91.2.9/24", "fd91:2::9/64"],
        )?;
        enter(&viewers)?;
        Ok(Self { _home: home, host, cameras, viewers, camera_device, host_device, viewer_device, _lab: lab })
    }
}

/// The calling thread, and what it starts from now on, goes into a node.
fn enter(node: &Node) -> Result<()> {
    let path = Path::new("/run/netns").join(node.namespace());
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
    Ok(())
}
