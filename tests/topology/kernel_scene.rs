//! A camera, a node and a viewer as namespaces; flows that a test puts into the kernel's tables itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use msm_fastpath::csum::Delta;
use msm_fastpath::{
    Admission, FlowEntry, FlowKey, FlowKind, FlowStats, Gate, GroupMode, LegEntry, LegStats, PayloadTypes,
    RtpEdit,
};
use msm_tests::lab::{Lab, Node};
use msm_tests::privilege::{Need, granted, skip};
use msm_tests::process::Scratch;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rtp_proxy::kernel::OBJECT;
use rtp_proxy::kernel::hop::{Hop, Ingress, Want, Way};
use rtp_proxy::kernel::service::{FastPath, Settings, WorkerEnd};
use rtp_proxy::kernel::share::Share;
use rtp_proxy::kernel::slots::Holder;
use rtp_proxy::kernel::table::Table as _;
use rtp_proxy::kernel::ways::Inbox;

/// Patience with the machine, never a measure.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const SSRC: u32 = 0x0b0c_0d0e;
pub(crate) const PAYLOAD_TYPE: u8 = 96;
const CAMERA: &str = "10.7.1.2";
const NODE_TO_CAMERA: &str = "10.7.1.1";
const NODE_TO_VIEWER: &str = "10.7.2.1";
const VIEWER: &str = "10.7.2.2";

pub(crate) fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A BPF file system of the test's own.
pub(crate) struct Bpffs {
    scratch: Scratch,
}

impl Bpffs {
    pub(crate) fn mount(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let path = scratch.file("bpf");
        std::fs::create_dir(&path)?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>).context("bpffs")?;
        Ok(Self { scratch })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.scratch.file("bpf")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(&self.path(), MntFlags::MNT_DETACH).ok();
    }
}

/// camera — node — viewer.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) camera: Node,
    pub(crate) node: Node,
    pub(crate) viewer: Node,
    /// The node's end towards the camera.
    pub(crate) inner: String,
    /// The node's end towards the viewer.
    pub(crate) outer: String,
    pub(crate) bpffs: Bpffs,
}

impl Scene {
    /// Nothing where the test cannot run here.
    pub(crate) fn new(test: &str) -> Result<Option<Self>> {
        if !granted(test, &[Need::Namespaces, Need::Kernel]) {
            return Ok(None);
        }
        if OBJECT.is_none() {
            skip(test, "the kernel programs were not built; `cargo xtask setup` installs their toolchain");
            return Ok(None);
        }
        let mut lab = Lab::new()?;
        let (camera, node, viewer) = (lab.node("camera")?, lab.node("node")?, lab.node("viewer")?);
        let (inner, _) =
            lab.cable(&node, &["10.7.1.1/24", "fd07:1::1/64"], &camera, &["10.7.1.2/24", "fd07:1::2/64"])?;
        let (outer, _) =
            lab.cable(&node, &["10.7.2.1/24", "fd07:2::1/64"], &viewer, &["10.7.2.2/24", "fd07:2::2/64"])?;
        Ok(Some(Self { lab, camera, node, viewer, inner, outer, bpffs: Bpffs::mount("kernel")? }))
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings { instance: Some("8060".to_owned()), bpffs: self.bpffs.path(), ..Settings::default() }
    }

    /// Starts the fast path of one worker in the node.
    pub(crate) fn start(&self, settings: &Settings) -> Result<Held> {
        let started = self.node.inside(|| FastPath::start(settings, 1))?;
        let (path, ends) = started.map_err(|why| anyhow::anyhow!("{why}"))?;
        Ok(Held::new(path, ends))
    }

    /// Gives the camera's interface another name.
    pub(crate) fn rename(&mut self, name: &str) -> Result<()> {
        self.node.ip(&["link", "set", &self.inner, "down"])?;
        self.node.ip(&["link", "set", &self.inner, "name", name])?;
        self.node.ip(&["link", "set", name, "up"])?;
        name.clone_into(&mut self.inner);
        Ok(())
    }

    /// The same after an earlier one has stopped. Its right to the instance is a socket, and every program that
    /// another test starts in this process holds a copy of it between fork and exec.
    pub(crate) fn start_again(&self, settings: &Settings) -> Result<Held> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.start(settings) {
                Err(why) if why.to_string().contains("another rtp-proxy") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                started => return started,
            }
        }
    }

    /// Where the one instance of the test is pinned, `None` if it is not.
    pub(crate) fn pins(&self) -> Option<PathBuf> {
        pins_in(&self.bpffs.path())
    }

    /// Ids of every map and link of it, by name.
    pub(crate) fn ids(&self) -> Result<Vec<(String, u32)>> {
        ids(&self.pins().context("nothing is pinned")?)
    }

    /// Copies that the kernel's program has sent, by its own counters.
    pub(crate) fn copies(&self) -> Result<u64> {
        let pins = self.pins().context("nothing is pinned")?;
        let map = Map::from_map_data(MapData::from_pin(pins.join("LEG_STATS"))?)?;
        let stats: PerCpuArray<_, LegStats> = map.try_into()?;
        let mut sent = 0;
        // Ids are given from the first on.
        for id in 0..64 {
            sent += stats.get(&id, 0)?.iter().map(|stats| stats.packets).sum::<u64>();
        }
        Ok(sent)
    }

    /// Filters on the ingress of the camera's interface, as `tc` shows them.
    pub(crate) fn filters(&self) -> Result<String> {
        self.node.output("tc", &["filter", "show", "dev", &self.inner, "ingress"])
    }

    pub(crate) fn qdiscs(&self) -> Result<String> {
        self.node.output("tc", &["qdisc", "show", "dev", &self.inner])
    }
}

pub(crate) fn pins_in(bpffs: &Path) -> Option<PathBuf> {
    let first = |path: PathBuf| {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        entries.retain(|path| path.is_dir() && !path.is_symlink());
        entries.into_iter().next()
    };
    first(first(first(bpffs.join("msm"))?)?)
}

/// Ids of every map and link in a directory of pins, by name.
pub(crate) fn ids(pins: &Path) -> Result<Vec<(String, u32)>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(pins)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("link-") {
            ids.push((name, FdLink::from(PinnedLink::from_pin(&path)?).info()?.id()));
        } else if name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            ids.push((name, MapData::from_pin(&path)?.info()?.id()));
        }
    }
    ids.sort();
    Ok(ids)
}

/// A running fast path and its only worker's end.
pub(crate) struct Held {
    pub(crate) path: FastPath,
    pub(crate) share: Share,
    pub(crate) inbox: Inbox,
}

/// A flow that a test put there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) index: u32,
    pub(crate) id: u32,
}

pub(crate) fn from_camera() -> Want {
    Want::Ingress { peer: ip(CAMERA), local: ip(NODE_TO_CAMERA) }
}

pub(crate) fn to_viewer() -> Want {
    Want::Hop { peer: ip(VIEWER), local: ip(NODE_TO_VIEWER) }
}

/// On whose account flows of tests are.
pub(crate) fn account() -> Holder {
    Holder::new("cam", ip(CAMERA))
}

/// The track that a camera sends from `port` on, and the viewer's port of the same number.
pub(crate) fn flow_key(port: u16, ifindex: u32) -> FlowKey {
    FlowKey::new(at(CAMERA, port), at(NODE_TO_CAMERA, 8062), ifindex)
}

impl Held {
    pub(crate) fn new(path: FastPath, mut ends: Vec<WorkerEnd>) -> Self {
        let (share, inbox) = ends.remove(0);
        Self { path, share, inbox }
    }

    /// Takes notes over until the answer to `want` is as wanted.
    pub(crate) fn until<T>(&mut self, want: Want, mut good: impl FnMut(&Way) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.share.ways.flush();
            while let Some(note) = self.inbox.try_next() {
                self.share.handle(note, Instant::now());
            }
            if let Some(found) = self.share.ways.get(&want).and_then(&mut good) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("the answer to {want:?} is {:?}", self.share.ways.get(&want));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn ingress(&mut self) -> Result<Ingress> {
        self.share.ways.want(from_camera());
        self.until(from_camera(), |way| match way {
            Way::Ingress(Ok(ingress)) => Some(ingress.clone()),
            _ => None,
        })
    }

    pub(crate) fn hop(&mut self) -> Result<Hop> {
        self.share.ways.want(to_viewer());
        self.until(to_viewer(), |way| match way {
            Way::Hop(Ok(hop)) => Some(hop.clone()),
            _ => None,
        })
    }

    /// One flow with one leg that plays.
    pub(crate) fn forward(&mut self, port: u16) -> Result<Flow> {
        let (ingress, hop) = (self.ingress()?, self.hop()?);
        let now = Instant::now();
        let full = |why| anyhow::anyhow!("{why}");
        let index = self.share.slots.take_flow(&account(), now).map_err(full)?;
        let range = self.share.slots.take_slots(&account(), 1, now).map_err(full)?;
        let id = self.share.slots.take_id(&account(), range.first, now).map_err(full)?;
        let key = flow_key(port, ingress.ifindex);
        let table = &mut self.share.table;
        table.put_flow_stats(index, &FlowStats::ZERO)?;
        table.put_leg(range.first, &leg(&key, &hop, at(NODE_TO_VIEWER, 8060), at(VIEWER, port), id))?;
        table.put_gate(id, Gate::Active.into())?;
        let admission = Admission::only_ssrc(PayloadTypes::of(&[PAYLOAD_TYPE]), SSRC);
        let mut entry = FlowEntry::new(FlowKind::Rtp, admission, index, 90_000);
        entry.first_leg = range.first;
        entry.legs = 1;
        entry.mode = GroupMode::Opaque as u8;
        table.put_flow(&key, &entry)?;
        Ok(Flow { key, index, id })
    }
}

fn leg(key: &FlowKey, hop: &Hop, from: SocketAddr, to: SocketAddr, id: u32) -> LegEntry {
    let copies = FlowKey::new(from, to, 0);
    let word = |bytes: [u8; 2]| u16::from_be_bytes(bytes);
    let addresses = Delta::NONE.replace_bytes(&key.src[12..], &copies.src[12..]);
    let addresses = addresses.replace_bytes(&key.dst[12..], &copies.dst[12..]);
    let ports = Delta::NONE.replace16(word(key.src_port), word(copies.src_port));
    let ports = ports.replace16(word(key.dst_port), word(copies.dst_port));
    LegEntry {
        edit: RtpEdit::TRANSPARENT,
        src: copies.src,
        dst: copies.dst,
        dst_mac: hop.dst_mac,
        src_mac: hop.src_mac,
        src_port: copies.src_port,
        dst_port: copies.dst_port,
        ifindex: hop.ifindex,
        id,
        address_delta: addresses.0,
        port_delta: ports.0,
        mtu: hop.mtu as u16,
        ttl: 64,
        dscp: 0,
        flags: if hop.local { LegEntry::LOCAL } else { 0 },
        pad: [0; 3],
    }
}

/// An RTP packet of the flows here.
pub(crate) fn rtp(seq: u16) -> Vec<u8> {
    let mut packet = vec![0x80, PAYLOAD_TYPE];
    packet.extend_from_slice(&seq.to_be_bytes());
    packet.extend_from_slice(&(u32::from(seq) * 90).to_be_bytes());
    packet.extend_from_slice(&SSRC.to_be_bytes());
    packet.resize(172, seq as u8);
    packet
}

/// A camera that sends a packet every millisecond until it is stopped, and a viewer that counts them.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u16>>,
    receiver: UdpSocket,
}

impl Traffic {
    /// From the camera's `port` to the viewer's port of the same number.
    pub(crate) fn start(scene: &Scene, port: u16) -> Result<Self> {
        let sender = scene.camera.inside(|| UdpSocket::bind(at(CAMERA, port)))??;
        let receiver = scene.viewer.inside(|| UdpSocket::bind(at(VIEWER, port)))??;
        // All of a test's packets, so that reading late is no loss.
        socket2::SockRef::from(&receiver).set_recv_buffer_size(8 << 20)?;
        receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let mut seq = 0;
            while !stopped.load(Ordering::Relaxed) {
                sender.send_to(&rtp(seq), at(NODE_TO_CAMERA, 8062))?;
                seq += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(seq)
        });
        Ok(Self { stop, sender, receiver })
    }

    /// Waits for so many packets more at the viewer, and reads them.
    pub(crate) fn pass(&self, packets: usize) -> Result<Vec<u16>> {
        let mut seqs = Vec::new();
        let deadline = Instant::now() + LIMIT;
        let mut packet = [0; 2048];
        while seqs.len() < packets {
            match self.receiver.recv(&mut packet) {
                Ok(len) => seqs.push(seq_of(&packet[..len])?),
                Err(_) if Instant::now() < deadline => {}
                Err(error) => bail!("{error} after {} packets", seqs.len()),
            }
        }
        Ok(seqs)
    }

    /// Ends the camera. Returns how many packets it sent and those that the viewer has not read yet.
    pub(crate) fn end(self) -> Result<(u16, Vec<u16>)> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow::anyhow!("the camera panicked"))??;
        let mut seqs = Vec::new();
        let mut packet = [0; 2048];
        while let Ok(len) = self.receiver.recv(&mut packet) {
            seqs.push(seq_of(&packet[..len])?);
        }
        Ok((sent, seqs))
    }
}

fn seq_of(packet: &[u8]) -> Result<u16> {
    let (Some(high), Some(low)) = (packet.get(2), packet.get(3)) else { bail!("a short packet") };
    let seq = u16::from_be_bytes([*high, *low]);
    ensure!(packet == rtp(seq), "packet {seq} is not as it was sent");
    Ok(seq)
}

/// Runs this test program again, for the ignored test `name` alone, in the node.
pub(crate) fn child(scene: &Scene, name: &str, env: (&str, &Path)) -> Result<std::process::Child> {
    let program = std::env::current_exe()?;
    let mut command: Command = scene.node.command(&program.to_string_lossy());
    let log = std::fs::File::create(scene.bpffs.file("child.log"))?;
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(env.0, env.1).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("this test program")
}
