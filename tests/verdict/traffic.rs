//! The programs attached to a veth, under real UDP traffic.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{SchedClassifier, TcAttachType};
use msm_fastpath::limits::COUNT_FORWARD;
use msm_fastpath::{DropReason, FlowEntry, FlowKey, FlowKind, PassReason, PortKey};
use msm_tests::lab::{Lab, Node};
use msm_tests::privilege::{Need, granted};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::frame::{Frame, rtp};
use crate::programs::Programs;
use crate::{PAYLOAD_TYPE, SSRC, entry, kernel, key, key6};

/// A sender and a receiver, joined by a veth pair; programs go on the receiver's end.
struct Network {
    _lab: Lab,
    near: Node,
    far: Node,
    /// The receiver's end.
    device: String,
    /// The sender's end.
    peer: String,
}

fn network() -> Result<Network> {
    let mut lab = Lab::new()?;
    let near = lab.node("sender")?;
    let far = lab.node("receiver")?;
    let (peer, device) =
        lab.cable(&near, &["10.9.0.1/24", "fd09::1/64"], &far, &["10.9.0.2/24", "fd09::2/64"])?;
    // The kernel announces the carrier a moment later, and until then the device eats what is sent.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !near.output("ip", &["link", "show", &peer])?.contains("state UP") {
        ensure!(Instant::now() < deadline, "{peer} does not come up");
    }
    Ok(Network { _lab: lab, near, far, device, peer })
}

enum Link {
    Tcx(SchedClassifierLink),
    Xdp(XdpLink),
}

/// Sends good and bad RTP through the link and checks what arrives and what was counted. The flows have no
/// legs: all of it goes up, what is not admitted as strange.
fn our_packets_arrive(net: &Network, kernel: &mut Programs) -> Result<()> {
    let ifindex = net.far.inside(|| if_nametoindex(net.device.as_str()))??;
    let flow = FlowEntry { flags: FlowEntry::COPY_TO_USER, ..entry(FlowKind::Rtp) };
    kernel.put_flow(&key(5004, 8062, ifindex), &flow)?;
    kernel.put_flow(&key6(5004, 8062, ifindex), &FlowEntry { stats: 1, ..flow })?;
    for (from, to) in [("10.9.0.1:5004", "10.9.0.2:8062"), ("[fd09::1]:5004", "[fd09::2]:8062")] {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse()?, to.parse()?);
        kernel.put_port(&PortKey::new(to), PortKey::STRICT)?;
        let sender = net.near.inside(move || UdpSocket::bind(from))??;
        let stranger = net.near.inside(move || UdpSocket::bind(SocketAddr::new(from.ip(), 5006)))??;
        let receiver = net.far.inside(move || UdpSocket::bind(to))??;
        receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
        let before = kernel.counters()?;
        for seq in 0..50 {
            sender.send_to(&rtp(PAYLOAD_TYPE, seq, SSRC), to)?;
            sender.send_to(&rtp(PAYLOAD_TYPE, seq, SSRC + 1), to)?;
            stranger.send_to(&rtp(PAYLOAD_TYPE, seq, SSRC), to)?;
        }
        let mut packet = [0; 2_000];
        for seq in 0..50 {
            for ssrc in [SSRC, SSRC + 1] {
                let len = receiver.recv(&mut packet).with_context(|| format!("packet {seq} to {to}"))?;
                assert_eq!(packet[..len], rtp(PAYLOAD_TYPE, seq, ssrc), "packet {seq} to {to}");
            }
        }
        let dropped = || {
            let reason = DropReason::UnknownSource;
            Ok(kernel.counters()?.dropped(reason) - before.dropped(reason))
        };
        reaches("from a stranger", 50, dropped)?;
        receiver.set_nonblocking(true)?;
        assert!(receiver.recv(&mut packet).is_err(), "a stranger's packet arrived at {to}");
    }
    Ok(())
}

/// Waits until a count is `expected`: packets that nobody receives are counted when their softirq runs.
fn reaches(what: &str, expected: u64, count: impl Fn() -> Result<u64>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while count()? < expected && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(count()?, expected, "{what}");
    Ok(())
}

/// What is not ours crosses the link: TCP, and UDP to a port without a flow.
fn other_traffic_passes(net: &Network) -> Result<()> {
    let listener = net.far.inside(|| std::net::TcpListener::bind("10.9.0.2:0"))??;
    let address = listener.local_addr()?;
    net.near.inside(move || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)))??;
    let receiver = net.far.inside(|| UdpSocket::bind("10.9.0.2:0"))??;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    let sender = net.near.inside(|| UdpSocket::bind("10.9.0.1:0"))??;
    sender.send_to(b"not ours", receiver.local_addr()?)?;
    let mut packet = [0; 16];
    assert_eq!(receiver.recv(&mut packet)?, 8);
    Ok(())
}

/// What hangs on the receiver's device.
fn attached(net: &Network) -> Result<(usize, bool)> {
    let device = net.device.as_str();
    let (_, tcx) = net.far.inside(|| SchedClassifier::query_tcx(device, TcAttachType::Ingress))??;
    Ok((tcx.len(), net.far.output("ip", &["-d", "link", "show", device])?.contains("prog/xdp")))
}

/// The loaded programs and a network for them; `None` without the privilege.
fn scene(test: &str) -> Result<Option<(Programs, Network)>> {
    if !granted(test, &[Need::Namespaces]) {
        return Ok(None);
    }
    let Some(kernel) = kernel(test)? else { return Ok(None) };
    Ok(Some((kernel, network()?)))
}

/// Admits the RTP of the sender at TCX of the receiver's end.
fn admit_at_tcx(net: &Network, kernel: &mut Programs) -> Result<(FlowKey, SchedClassifierLink)> {
    let device = net.device.as_str();
    let ifindex = net.far.inside(|| if_nametoindex(device))??;
    let flow = key(5004, 8062, ifindex);
    kernel.put_flow(&flow, &FlowEntry { flags: FlowEntry::COPY_TO_USER, ..entry(FlowKind::Rtp) })?;
    Ok((flow, net.far.inside(|| kernel.attach_tcx(device))??))
}

fn under_traffic(test: &str, attach: impl FnOnce(&mut Programs, &str) -> Result<Link> + Send) -> Result<()> {
    let Some((mut kernel, net)) = scene(test)? else { return Ok(()) };
    let device = net.device.as_str();
    let link = net.far.inside(|| attach(&mut kernel, device))??;
    let hooks = attached(&net)?;
    assert_eq!(hooks, if let Link::Tcx(_) = link { (1, false) } else { (0, true) });
    our_packets_arrive(&net, &mut kernel)?;
    other_traffic_passes(&net)?;
    // Dropping the link detaches: nothing may outlive its owner.
    match link {
        Link::Tcx(link) => drop(link),
        Link::Xdp(link) => drop(link),
    }
    assert_eq!(attached(&net)?, (0, false), "nothing is left on the device");
    let programs = [kernel.tcx()?.info()?.id(), kernel.xdp()?.info()?.id()];
    ensure!(is_loaded(&programs), "they cannot be seen");
    drop(kernel);
    // The kernel frees a program when nothing can run it any more, which on a machine with much to do is later.
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_loaded(&programs) {
        ensure!(Instant::now() < deadline, "a program outlived its owner");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether the kernel has one of these programs.
fn is_loaded(ids: &[u32]) -> bool {
    // Others come and go: one that is gone when it is asked about is none of these.
    aya::programs::loaded_programs().any(|info| info.is_ok_and(|info| ids.contains(&info.id())))
}

#[test]
fn tcx_on_a_veth_keeps_strangers_out() -> Result<()> {
    under_traffic("tcx_on_a_veth_keeps_strangers_out", |kernel, device| {
        Ok(Link::Tcx(kernel.attach_tcx(device)?))
    })
}

#[test]
fn xdp_on_a_veth_keeps_strangers_out() -> Result<()> {
    under_traffic("xdp_on_a_veth_keeps_strangers_out", |kernel, device| {
        Ok(Link::Xdp(kernel.attach_xdp(device)?))
    })
}

/// A sender that segments in the kernel: the super-packet reaches TCX whole and counts by its segments.
#[test]
fn a_super_packet_is_judged_once_and_counted_by_its_segments() -> Result<()> {
    let test = "a_super_packet_is_judged_once_and_counted_by_its_segments";
    let Some((mut kernel, net)) = scene(test)? else { return Ok(()) };
    let (_, link) = admit_at_tcx(&net, &mut kernel)?;
    let sender = net.near.inside(|| UdpSocket::bind("10.9.0.1:5004"))??;
    let receiver = net.far.inside(|| UdpSocket::bind("10.9.0.2:8062"))??;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    setsockopt(&sender, UdpGsoSegment, &172)?;
    // Forty segments, the last one shorter.
    let mut run: Vec<u8> = (0..40).flat_map(|seq| rtp(PAYLOAD_TYPE, seq, SSRC)).collect();
    run.truncate(39 * 172 + 100);
    let before = kernel.counters()?;
    sender.send_to(&run, "10.9.0.2:8062")?;
    let mut packet = [0; 2_000];
    for seq in 0..40 {
        let len = receiver.recv(&mut packet).with_context(|| format!("segment {seq}"))?;
        assert_eq!(packet[..len], run[seq * 172..(seq * 172 + len)], "segment {seq}");
    }
    let after = kernel.counters()?;
    assert_eq!(after.at(COUNT_FORWARD) - before.at(COUNT_FORWARD), 1, "one super-packet");
    let stats = kernel.stats(0)?;
    assert_eq!((stats.packets, stats.bytes), (40, run.len() as u64));
    drop(link);
    Ok(())
}

/// Frames that end anywhere, sent raw: TCX passes each on, and counts it as not parsed.
#[test]
fn raw_frames_cut_at_any_offset_pass_tcx() -> Result<()> {
    let test = "raw_frames_cut_at_any_offset_pass_tcx";
    let Some((mut kernel, net)) = scene(test)? else { return Ok(()) };
    let (_, link) = admit_at_tcx(&net, &mut kernel)?;
    let peer = net.peer.as_str();
    // The device's own multicast reports have extension headers and would count under the same heading.
    net.near.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
    let (raw, address) = net.near.inside(|| raw_socket(peer))??;
    let frame = Frame::udp(5004, 8062, &rtp(PAYLOAD_TYPE, 7, SSRC));
    for whole in [frame.clone().bytes(), frame.v6().bytes()] {
        for len in 15..whole.len() {
            let before = kernel.counters()?.passed(PassReason::Malformed);
            raw.send_to(&whole[..len], &address).with_context(|| format!("sending {len} bytes"))?;
            let counted = || Ok(kernel.counters()?.passed(PassReason::Malformed));
            reaches(&format!("cut at {len}"), before + 1, counted)?;
        }
    }
    drop(link);
    Ok(())
}

/// A socket that sends whole frames on a device of the caller's namespace, and the address to send to.
fn raw_socket(device: &str) -> Result<(Socket, SockAddr)> {
    let raw = Socket::new(Domain::PACKET, Type::RAW, None)?;
    let ifindex = if_nametoindex(device)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all zeros is a valid sockaddr_ll, the type that belongs to the family set below, and the
    // storage is large enough for every address type.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_ifindex = ifindex as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `len` bytes of the storage were initialised as a sockaddr_ll.
    let address = unsafe { SockAddr::new(storage, len) };
    Ok((raw, address))
}
