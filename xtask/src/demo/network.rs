//! Where the demo runs: namespaces joined by cables, so that media is forwarded in the kernel as it is
//! between machines; on loopback, which has no Ethernet headers, where that is not allowed.

use std::path::Path;

use anyhow::Result;
use msm_tests::camera::Stage;
use msm_tests::lab::{Lab, Node};
use msm_tests::privilege::{Need, missing};
use serde_json::Value;

/// Address of the camera that the proxy pulls from.
const YARD_CAMERA: &str = "10.91.1.2";
const PROXY_AT_PATTERN: &str = "10.91.2.1";
const PROXY_AT_VIEWERS: &str = "10.91.3.1";

/// Two cameras, the proxy and the viewers, each in a namespace of its own; all go when this is dropped.
#[derive(Debug)]
pub(super) struct Cabled {
    yard: Node,
    pattern: Node,
    proxy: Node,
    viewers: Node,
    // Holds the namespaces; nothing is asked of it.
    _lab: Lab,
}

/// Where everything runs.
#[derive(Debug)]
pub(super) enum Network {
    /// In namespaces, and the proxy's own check says that it can forward in the kernel there.
    Cabled(Cabled),
    /// All on loopback.
    Loopback,
}

impl Cabled {
    fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let [yard, pattern] = [lab.node("yard")?, lab.node("pattern")?];
        let [proxy, viewers] = [lab.node("proxy")?, lab.node("viewers")?];
        lab.cable(&yard, &[&format!("{YARD_CAMERA}/24")], &proxy, &["10.91.1.1/24"])?;
        lab.cable(&pattern, &["10.91.2.2/24"], &proxy, &[&format!("{PROXY_AT_PATTERN}/24")])?;
        lab.cable(&viewers, &["10.91.3.2/24"], &proxy, &[&format!("{PROXY_AT_VIEWERS}/24")])?;
        Ok(Self { yard, pattern, proxy, viewers, _lab: lab })
    }

    /// What `rtp-proxy doctor` has to say against the fast path, in one line.
    fn obstacle(&self, program: &Path) -> Result<Option<String>> {
        let done = self.proxy.command(&program.to_string_lossy()).arg("doctor").output()?;
        if done.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&done.stdout);
        let mut lines = text.lines().skip_while(|line| !line.starts_with('×'));
        let what = lines.next().map_or("rtp-proxy doctor failed", |line| line.trim_start_matches(['×', ' ']));
        let fix = lines.next().and_then(|line| line.trim().strip_prefix("> "));
        Ok(Some(fix.map_or_else(|| what.to_owned(), |fix| format!("{what}; {fix}"))))
    }
}

impl Network {
    /// Makes the namespaces where that is allowed and of use; says in one line why not otherwise.
    pub(super) fn make(program: &Path, loopback: bool) -> Result<Self> {
        let obstacle = if loopback {
            "as asked by --loopback".to_owned()
        } else if [Need::Namespaces, Need::Kernel].iter().any(|need| missing(*need).is_some()) {
            "that needs root: sudo env PATH=\"$PATH\" cargo xtask demo".to_owned()
        } else {
            let cabled = Cabled::new()?;
            match cabled.obstacle(program)? {
                None => {
                    println!(
                        "cameras, proxy and viewers are in network namespaces of their own, joined by veth pairs"
                    );
                    return Ok(Self::Cabled(cabled));
                }
                Some(obstacle) => obstacle,
            }
        };
        println!("everything runs on loopback, without the fast path (every leg on rung user): {obstacle}");
        Ok(Self::Loopback)
    }

    fn cabled(&self) -> Option<&Cabled> {
        match self {
            Self::Cabled(cabled) => Some(cabled),
            Self::Loopback => None,
        }
    }

    /// True where viewers over UDP must be served in the kernel.
    pub(super) fn has_fast_path(&self) -> bool {
        self.cabled().is_some()
    }

    /// Where the camera stands that the proxy pulls from, and the address it listens on.
    pub(super) fn yard<'a>(&'a self, scratch: &'a Path) -> (Stage<'a>, &'static str) {
        match self.cabled() {
            Some(cabled) => (Stage::inside(scratch, &cabled.yard), YARD_CAMERA),
            None => (Stage::here(scratch), "127.0.0.1"),
        }
    }

    /// Where the camera stands that publishes, and where it reaches the proxy.
    pub(super) fn pattern<'a>(&'a self, scratch: &'a Path) -> (Stage<'a>, &'static str) {
        match self.cabled() {
            Some(cabled) => (Stage::inside(scratch, &cabled.pattern), PROXY_AT_PATTERN),
            None => (Stage::here(scratch), "127.0.0.1"),
        }
    }

    /// Where the proxy runs.
    pub(super) fn proxy<'a>(&'a self, scratch: &'a Path) -> Stage<'a> {
        Stage { scratch, node: self.cabled().map(|cabled| &cabled.proxy) }
    }

    /// Where the viewers are, and where they reach the proxy.
    pub(super) fn viewers<'a>(&'a self, scratch: &'a Path) -> (Stage<'a>, &'static str) {
        match self.cabled() {
            Some(cabled) => (Stage::inside(scratch, &cabled.viewers), PROXY_AT_VIEWERS),
            None => (Stage::here(scratch), "127.0.0.1"),
        }
    }
}

/// Words before a command that runs it in a stage's namespace.
pub(super) fn prefix(stage: Stage<'_>) -> String {
    stage.node.map_or_else(String::new, |node| format!("ip netns exec {} ", node.namespace()))
}

/// Legs over UDP, and how many of them the kernel serves.
pub(super) fn kernel_legs(streams: &[Value]) -> (usize, usize) {
    let legs = streams.iter().filter_map(|stream| stream["legs"].as_array()).flatten();
    let udp: Vec<_> = legs.filter(|leg| leg["transport"] == "udp").collect();
    let in_kernel = udp.iter().filter(|leg| leg["rung"].as_str().is_some_and(|rung| rung != "user")).count();
    (udp.len(), in_kernel)
}
