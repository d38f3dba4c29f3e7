//! Source pod → host → viewer pods, each a network namespace, joined by veth pairs.
//!
//! The source has a cable of its own for each kind of contender, so that what is attached for one costs the
//! others nothing. Every viewer pod hangs on the host by one routed cable and, where the bridge takes part,
//! by a bridged one. Neighbours are static and IPv6 is off: nothing is sent that the benchmark did not send.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use msm_tests::bench::cpu::{KernelThreads, pin_task};
use msm_tests::lab::{Lab, Node};

/// Largest number of viewer pods: the second-last byte of their addresses.
pub(crate) const MAX_PODS: usize = 250;

/// How many packets may wait for a CPU.
pub(crate) const BACKLOG: &str = "/proc/sys/net/core/netdev_max_backlog";

/// Address and MAC that every pod has on its bridged cable: a frame that the bridge floods is for all.
const FLOODED: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 99);
const FLOODED_MAC: &str = "02:92:00:00:00:99";

/// What the source's cable leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sockets and routing of the host.
    Stack = 0,
    /// The kernel programs, in the softirq of the sender.
    Inline = 1,
    /// The kernel programs behind threaded NAPI and GRO.
    Batched = 2,
    /// A program that drops everything: the generator's own cost.
    Floor = 3,
    /// The kernel programs again, from the second source pod.
    Second = 4,
    /// As [`Kind::Floor`], from the second source pod.
    SecondFloor = 5,
    /// The least that a program can do, for the floor of all of them.
    Bare = 6,
    /// The bridge.
    Bridge = 7,
}

impl Kind {
    /// The cable from the same pod whose far end drops everything.
    pub(crate) fn floor(self) -> Self {
        if self.is_second() { Self::SecondFloor } else { Self::Floor }
    }

    fn is_second(self) -> bool {
        matches!(self, Self::Second | Self::SecondFloor)
    }
}

/// One cable of the source pod.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) source: Ipv4Addr,
    /// The host's side: where media is sent to.
    pub(crate) host: Ipv4Addr,
    pub(crate) host_device: String,
    pub(crate) host_index: u32,
    pub(crate) threads: KernelThreads,
}

/// One viewer pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) node: Node,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: [u8; 6],
    /// The host's side of its cable.
    pub(crate) host: Ipv4Addr,
    pub(crate) host_mac: [u8; 6],
    pub(crate) host_index: u32,
    pub(crate) counters: Counters,
    pub(crate) bridged_counters: Option<Counters>,
}

/// The whole network.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) source: Node,
    second: Node,
    pub(crate) host: Node,
    pub(crate) pods: Vec<Pod>,
    uplinks: Vec<Uplink>,
    _lab: Lab,
}

/// Counters of one device, readable from any namespace.
#[derive(Debug)]
pub(crate) struct Counters {
    table: File,
    device: String,
}

/// What a device received, in all or between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Received {
    pub(crate) bytes: u64,
    /// Packets as the stack sees them: a super-packet is one.
    pub(crate) packets: u64,
    pub(crate) dropped: u64,
}

impl Counters {
    fn open(node: &Node, device: &str) -> Result<Self> {
        // The table belongs to the namespace of whoever opens it.
        let table = node.inside(|| File::open("/proc/thread-self/net/dev"))??;
        Ok(Self { table, device: device.to_owned() })
    }

    pub(crate) fn read(&self) -> Result<Received> {
        let mut table = &self.table;
        table.seek(SeekFrom::Start(0))?;
        let text = std::io::read_to_string(table)?;
        let line = text.lines().find_map(|l| l.trim_start().strip_prefix(&self.device)?.strip_prefix(':'));
        let line = line.with_context(|| format!("device {} is gone", self.device))?;
        let mut words = line.split_ascii_whitespace().map(|w| w.parse::<u64>().unwrap_or(0));
        let (bytes, packets, _, dropped) = (words.next(), words.next(), words.next(), words.next());
        Ok(Received {
            bytes: bytes.unwrap_or(0),
            packets: packets.unwrap_or(0),
            dropped: dropped.unwrap_or(0),
        })
    }
}

impl Received {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            packets: self.packets - before.packets,
            dropped: self.dropped - before.dropped,
        }
    }

    /// Datagrams of `size` bytes in these packets, whatever was merged on the way.
    pub(crate) fn datagrams(self, size: usize) -> u64 {
        // Ethernet, IPv4 and UDP headers come once per packet.
        self.bytes.saturating_sub(42 * self.packets) / size as u64
    }
}

/// What queues outside of any contender threw away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Overflows {
    /// Backlogs of the CPUs (`netdev_max_backlog`).
    backlog: u64,
    /// Rings of the cables from the source and to the pods.
    cables: u64,
}

/// A column of `softnet_stat`, all CPUs together: hexadecimal, one line for each.
fn softnet(column: usize) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").context("softnet_stat")?;
    let words = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(column));
    Ok(words.filter_map(|word| u64::from_str_radix(word, 16).ok()).sum())
}

/// Packets in the backlogs of the CPUs, which nobody has delivered yet.
pub(crate) fn waiting() -> Result<u64> {
    softnet(11)
}

impl Overflows {
    pub(crate) fn now(topology: &Topology) -> Result<Self> {
        let backlog = softnet(1)?;
        let mut cables = 0;
        for node in [&topology.source, &topology.host] {
            let table = node.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
            for line in table.lines().filter_map(|l| Some(l.split_once(':')?.1)) {
                let words: Vec<u64> = line.split_ascii_whitespace().map(|w| w.parse().unwrap_or(0)).collect();
                // Eight columns of what was received, then as many of what was sent; drops are the fourth.
                cables += [3, 11].iter().filter_map(|column| words.get(*column)).sum::<u64>();
            }
        }
        Ok(Self { backlog, cables })
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self { backlog: self.backlog - before.backlog, cables: self.cables.saturating_sub(before.cables) }
    }
}

impl std::fmt::Display for Overflows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "backlogs of the CPUs dropped {} packets, cables {}", self.backlog, self.cables)
    }
}

/// Runs `ip` once for many lines.
fn batch(node: &Node, lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", node.namespace(), "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("ip")?;
    child.stdin.take().context("the pipe to ip")?.write_all((lines.join("\n") + "\n").as_bytes())?;
    ensure!(child.wait()?.success(), "ip refused one of:\n{}", lines.join("\n"));
    Ok(())
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

fn index(node: &Node, device: &str) -> Result<u32> {
    Ok(node.inside(|| nix::net::if_::if_nametoindex(device))??)
}

fn quiet(node: &Node) -> Result<()> {
    node.inside(|| -> std::io::Result<()> {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    })?
    .context("switching IPv6 off")
}

impl Topology {
    /// `pods` viewer pods; `bridged`: each hangs on a bridge as well, which the source is on.
    pub(crate) fn open(pods: usize, bridged: bool) -> Result<Self> {
        ensure!(pods <= MAX_PODS, "at most {MAX_PODS} pods");
        let mut lab = Lab::new()?;
        let (source, second, host) = (lab.node("source")?, lab.node("second")?, lab.node("host")?);
        quiet(&source)?;
        quiet(&second)?;
        quiet(&host)?;
        host.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        let mut uplinks = Vec::new();
        for kind in [Kind::Stack, Kind::Inline, Kind::Batched, Kind::Floor] {
            uplinks.push(uplink(&mut lab, &source, &host, kind)?);
        }
        for kind in [Kind::Second, Kind::SecondFloor] {
            uplinks.push(uplink(&mut lab, &second, &host, kind)?);
        }
        uplinks.push(uplink(&mut lab, &source, &host, Kind::Bare)?);
        batch(&source, &["route add default via 10.90.0.1".to_owned()])?;
        let mut all = Vec::new();
        for number in 0..pods {
            all.push(pod(&mut lab, &host, number as u8)?);
        }
        if bridged {
            uplinks.push(bridge(&mut lab, &source, &host, &mut all)?);
        }
        Ok(Self { source, second, host, pods: all, uplinks, _lab: lab })
    }

    /// The pod that a cable comes from.
    pub(crate) fn source_of(&self, kind: Kind) -> &Node {
        if kind.is_second() { &self.second } else { &self.source }
    }

    pub(crate) fn uplink(&self, kind: Kind) -> &Uplink {
        &self.uplinks[kind as usize]
    }

    /// Switches the host's side of a cable to threaded NAPI with GRO of what is forwarded. The thread is
    /// pinned to the receivers' core; its time is counted with [`Uplink::threads`].
    pub(crate) fn batch_uplink(&mut self, kind: Kind) -> Result<()> {
        let device = self.uplinks[kind as usize].host_device.clone();
        let before = KernelThreads::named("napi/")?;
        self.host.output("ethtool", &["-K", &device, "gro", "on", "rx-udp-gro-forwarding", "on"])?;
        self.host.output("sh", &["-c", &format!("echo 1 > /sys/class/net/{device}/threaded")])?;
        let threads = KernelThreads::named("napi/")?.since(&before);
        ensure!(!threads.pids().is_empty(), "{device}: no NAPI thread appeared");
        for pid in threads.pids() {
            pin_task(*pid, 1)?;
        }
        self.uplinks[kind as usize].threads = threads;
        Ok(())
    }

    /// Offloads that decide what is measured, as the host's sides of the source's cables have them.
    pub(crate) fn offloads(&self) -> Result<String> {
        let wanted = [
            "tx-checksum-ip-generic",
            "tx-udp-segmentation",
            "generic-receive-offload",
            "rx-udp-gro-forwarding",
        ];
        let of = |kind| -> Result<String> {
            let text = self.host.output("ethtool", &["-k", &self.uplink(kind).host_device])?;
            let found = text.lines().map(str::trim).filter(|l| wanted.iter().any(|w| l.starts_with(w)));
            Ok(found.collect::<Vec<_>>().join(", "))
        };
        // One for the whole machine, and to be seen outside of namespaces only.
        let backlog = std::fs::read_to_string(BACKLOG).context(BACKLOG)?;
        Ok(format!(
            "Offloads of the cables: {}; batched, with threaded NAPI: {}. `net.core.netdev_max_backlog`: {}.",
            of(Kind::Inline)?,
            of(Kind::Batched)?,
            backlog.trim()
        ))
    }
}

fn uplink(lab: &mut Lab, source: &Node, host: &Node, kind: Kind) -> Result<Uplink> {
    let number = kind as u8;
    let (near, far) = (Ipv4Addr::new(10, 90, number, 2), Ipv4Addr::new(10, 90, number, 1));
    let (device, host_device) = lab.cable(source, &[&format!("{near}/24")], host, &[&format!("{far}/24")])?;
    let (near_mac, far_mac) = ([2, 0x90, 0, 0, number, 2], [2, 0x90, 0, 0, number, 1]);
    batch(
        source,
        &[
            format!("link set {device} address {}", mac(near_mac)),
            format!("neigh replace {far} lladdr {} dev {device} nud permanent", mac(far_mac)),
        ],
    )?;
    batch(
        host,
        &[
            format!("link set {host_device} address {}", mac(far_mac)),
            format!("neigh replace {near} lladdr {} dev {host_device} nud permanent", mac(near_mac)),
        ],
    )?;
    Ok(Uplink {
        source: near,
        host: far,
        host_index: index(host, &host_device)?,
        host_device,
        threads: KernelThreads::default(),
    })
}

fn pod(lab: &mut Lab, host: &Node, number: u8) -> Result<Pod> {
    let node = lab.node(&format!("pod{number}"))?;
    quiet(&node)?;
    let (address, far) = (Ipv4Addr::new(10, 91, number, 2), Ipv4Addr::new(10, 91, number, 1));
    let (device, host_device) =
        lab.cable(&node, &[&format!("{address}/24")], host, &[&format!("{far}/24")])?;
    let (mac_bytes, host_mac) = ([2, 0x91, 0, 0, number, 2], [2, 0x91, 0, 0, number, 1]);
    batch(
        &node,
        &[
            format!("link set {device} address {}", mac(mac_bytes)),
            format!("neigh replace {far} lladdr {} dev {device} nud permanent", mac(host_mac)),
            format!("route add default via {far}"),
        ],
    )?;
    batch(
        host,
        &[
            format!("link set {host_device} address {}", mac(host_mac)),
            format!("neigh replace {address} lladdr {} dev {host_device} nud permanent", mac(mac_bytes)),
        ],
    )?;
    Ok(Pod {
        address,
        mac: mac_bytes,
        host: far,
        host_mac,
        host_index: index(host, &host_device)?,
        counters: Counters::open(&node, &device)?,
        bridged_counters: None,
        node,
    })
}

/// Unknown unicast, flooded: all pods have the same address and MAC on the bridge, the bridge learns
/// nothing, and so each frame reaches every pod and no copy goes up the host's own stack.
fn bridge(lab: &mut Lab, source: &Node, host: &Node, pods: &mut [Pod]) -> Result<Uplink> {
    batch(
        host,
        &[
            "link add br0 type bridge mcast_snooping 0 ageing_time 0 forward_delay 0".to_owned(),
            "link set br0 up".to_owned(),
        ],
    )?;
    let near = Ipv4Addr::new(10, 92, 0, 1);
    let (device, host_device) = lab.cable(source, &[&format!("{near}/24")], host, &[])?;
    batch(source, &[format!("neigh replace {FLOODED} lladdr {FLOODED_MAC} dev {device} nud permanent")])?;
    let enslave = |device: &str| {
        batch(
            host,
            &[
                format!("link set {device} master br0"),
                format!("link set {device} type bridge_slave learning off flood on"),
            ],
        )
    };
    enslave(&host_device)?;
    for pod in pods {
        let (inner, outer) = lab.cable(&pod.node, &[&format!("{FLOODED}/32")], host, &[])?;
        batch(
            &pod.node,
            &[
                format!("link set {inner} address {FLOODED_MAC}"),
                format!("route add 10.92.0.0/24 dev {inner}"),
            ],
        )?;
        enslave(&outer)?;
        pod.bridged_counters = Some(Counters::open(&pod.node, &inner)?);
    }
    Ok(Uplink {
        source: near,
        host: FLOODED,
        host_index: index(host, &host_device)?,
        host_device,
        threads: KernelThreads::default(),
    })
}

impl Pod {
    /// Where copies for this pod go.
    pub(crate) fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }
}
