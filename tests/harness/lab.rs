//! Private networks: namespaces as nodes, veth pairs as cables.
//!
//! Names carry the process id, a guard removes everything on drop, and a lab starts by asserting that
//! it stands in nothing left over. Works as root and as root of a user namespace (`unshare -Urnm`).

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::privilege;
use crate::process::output;

static LABS: AtomicU32 = AtomicU32::new(0);

/// One network of nodes.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    nodes: Vec<Node>,
    cables: u32,
}

/// One node: a network namespace with loopback up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    namespace: String,
}

impl Lab {
    /// An empty network. Call after [`privilege::granted`] with [`privilege::Need::Namespaces`].
    pub fn new() -> Result<Self> {
        if !privilege::in_initial_user_namespace() {
            private_run_folder()?;
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { prefix: format!("msm{}-{number}", std::process::id()), nodes: Vec::new(), cables: 0 })
    }

    /// Adds a node.
    pub fn node(&mut self, name: &str) -> Result<Node> {
        let node = Node { namespace: format!("{}-{name}", self.prefix) };
        output("ip", &["netns", "add", &node.namespace])?;
        self.nodes.push(node.clone());
        node.ip(&["link", "set", "lo", "up"])?;
        let links = node.output("ip", &["-o", "link"])?;
        let foreign =
            links.lines().filter(|line| !line.contains(": lo:")).filter(|line| !line.contains("NOARP"));
        ensure!(foreign.count() == 0, "a new namespace has links already:\n{links}");
        Ok(node)
    }

    /// Joins two nodes by a veth pair; addresses with prefix length, as `10.0.0.1/24` or `fd00::1/64`.
    /// Returns the device names on both sides.
    pub fn cable(
        &mut self,
        a: &Node,
        a_addresses: &[&str],
        b: &Node,
        b_addresses: &[&str],
    ) -> Result<(String, String)> {
        let (left, right) = (format!("v{}a", self.cables), format!("v{}b", self.cables));
        self.cables += 1;
        let (an, bn) = (a.namespace.as_str(), b.namespace.as_str());
        output(
            "ip",
            &["link", "add", &left, "netns", an, "type", "veth", "peer", "name", &right, "netns", bn],
        )?;
        for (node, device, addresses) in [(a, &left, a_addresses), (b, &right, b_addresses)] {
            for address in addresses {
                // No duplicate address detection: an IPv6 address is usable at once.
                let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                node.ip(&[&["addr", "add", *address, "dev", device], nodad].concat())?;
            }
            node.ip(&["link", "set", device, "up"])?;
        }
        Ok((left, right))
    }

    /// The command that enters a node, printed when a test fails.
    pub fn enter(node: &Node) -> String {
        format!("ip netns exec {} bash", node.namespace)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in self.nodes.drain(..) {
            if std::thread::panicking() && privilege::environment("MSM_TEST_KEEP").is_some() {
                eprintln!("kept: {}", Self::enter(&node));
                continue;
            }
            output("ip", &["netns", "del", &node.namespace]).ok();
        }
    }
}

impl Node {
    /// The namespace's name under `/run/netns`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Runs a program inside to its end and returns its standard output.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        output("ip", &[&["netns", "exec", &self.namespace, program], args].concat())
    }

    /// Runs `ip` inside.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        output("ip", &[&["-n", &self.namespace], args].concat()).map(drop)
    }

    /// Runs a closure on a thread of its own that has entered the namespace: what it opens stays there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace =
            File::open(format!("/run/netns/{}", self.namespace)).context("the node's namespace")?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || -> Result<T> {
                    setns(namespace, CloneFlags::CLONE_NEWNET).context("setns")?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow::anyhow!("the work inside the namespace panicked"))?
        })
    }
}

/// In a user namespace `/run` belongs to the real root: a private one is mounted over it once.
fn private_run_folder() -> Result<()> {
    static DONE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let done = DONE.get_or_init(|| output("mount", &["-t", "tmpfs", "msm-tests", "/run"]).is_ok());
    ensure!(*done, "cannot mount a private /run; start with: unshare -Urnm");
    Ok(())
}
