//! Frames that a pod's ordinary socket would not send: raw ones with a vnet header, tags, options, fragments.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_fastpath::limits::COUNT_TO_USER;
use msm_fastpath::{FlowEntry, GroupMode, PassReason};
use msm_tests::lab::Node;
use nix::net::if_::if_nametoindex;

use crate::copies::MODES;
use crate::scene::{Addresses, Scene, copy, packet, receive};
use crate::{PAYLOAD_TYPE, SSRC};

/// A socket that sends whole frames, each behind a `virtio_net_hdr`.
pub(crate) struct RawSocket(std::fs::File);

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_GSO_UDP_L4`.
const NEEDS_CSUM: u8 = 1;
const GSO_UDP_L4: u8 = 5;
const PACKET_VNET_HDR: libc::c_int = 15;

impl RawSocket {
    /// On a device of the caller's namespace.
    fn open(device: &str) -> Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        ensure!(fd >= 0, std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let one: libc::c_int = 1;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: if_nametoindex(device)? as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the option's value is an int, and the address is as long as said.
        let results = unsafe {
            [
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_PACKET,
                    PACKET_VNET_HDR,
                    (&raw const one).cast(),
                    size_of::<libc::c_int>() as u32,
                ),
                libc::bind(
                    fd.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as u32,
                ),
            ]
        };
        ensure!(results == [0, 0], std::io::Error::last_os_error());
        Ok(Self(fd.into()))
    }

    /// A frame that is whole.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.0.write_all(&[&[0; 10], frame].concat()).context("a frame")
    }

    /// A super-packet of UDP, its checksum left to whoever sends it on the wire. `linear`: bytes that the kernel
    /// is told to keep together.
    fn send_segments(&mut self, frame: &[u8], udp: u16, size: u16, linear: u16) -> Result<()> {
        let mut header = vec![NEEDS_CSUM, GSO_UDP_L4];
        for field in [linear, size, udp, 6] {
            header.extend(field.to_ne_bytes());
        }
        self.0.write_all(&[&header, frame].concat()).context("a super-packet")
    }
}

/// A frame from the source to the input with a partial checksum, as the kernel's own stack builds it.
pub(crate) fn frame(scene: &Scene, payload: &[u8], options: &[u8], fragment: u16) -> Result<Vec<u8>> {
    let mut frame = scene.mac_of_input()?.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    let udp_len = 8 + payload.len();
    let mut ip = vec![0x45 + (options.len() / 4) as u8, 0];
    ip.extend(((20 + options.len() + udp_len) as u16).to_be_bytes());
    ip.extend([0, 7]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    ip.extend(options);
    let check = msm_fastpath::csum::ipv4(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    frame.extend(ip);
    frame.extend([5004_u16.to_be_bytes(), 8062_u16.to_be_bytes(), (udp_len as u16).to_be_bytes()].concat());
    let pseudo = msm_fastpath::csum::pseudo_v4([10, 9, 0, 1], [10, 9, 0, 2], udp_len as u16);
    frame.extend(msm_fastpath::csum::partial(pseudo).to_be_bytes());
    frame.extend(payload);
    Ok(frame)
}

/// The same over IPv6. `extensions`: headers before UDP, the first of them of type `next`.
pub(crate) fn frame6(scene: &Scene, payload: &[u8], next: u8, extensions: &[u8]) -> Result<Vec<u8>> {
    let mut frame = scene.mac_of_input()?.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0]);
    let udp_len = 8 + payload.len();
    frame.extend(((extensions.len() + udp_len) as u16).to_be_bytes());
    frame.extend([next, 64]);
    let address = |last| [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let [from, to] = [address(1), address(2)];
    frame.extend([from, to].concat());
    frame.extend(extensions);
    frame.extend([5004_u16.to_be_bytes(), 8062_u16.to_be_bytes(), (udp_len as u16).to_be_bytes()].concat());
    let pseudo = msm_fastpath::csum::pseudo_v6(from, to, udp_len as u16);
    frame.extend(msm_fastpath::csum::partial(pseudo).to_be_bytes());
    frame.extend(payload);
    Ok(frame)
}

/// That frame, whole: its UDP header at offset `udp`.
pub(crate) fn whole6(mut frame: Vec<u8>, udp: usize) -> Vec<u8> {
    let (_, datagram) = frame.split_at_mut(udp);
    // The sum of the pseudo-header lies in the field already, and is part of the sum.
    let check = !msm_fastpath::csum::fold(msm_fastpath::csum::add_bytes(0, datagram));
    datagram[6..8].copy_from_slice(&check.to_be_bytes());
    frame
}

/// The same, whole: `check` is what the UDP checksum field says.
pub(crate) fn whole(mut frame: Vec<u8>, udp: usize, check: Option<u16>) -> Vec<u8> {
    let (_, datagram) = frame.split_at_mut(udp);
    datagram[6..8].fill(0);
    let pseudo = msm_fastpath::csum::pseudo_v4([10, 9, 0, 1], [10, 9, 0, 2], datagram.len() as u16);
    let check = check.unwrap_or_else(|| msm_fastpath::csum::udp(pseudo, datagram));
    datagram[6..8].copy_from_slice(&check.to_be_bytes());
    frame
}

pub(crate) fn raw(node: &Node, device: &str) -> Result<RawSocket> {
    node.inside(|| RawSocket::open(device))?
}

pub(crate) struct Setup {
    pub(crate) scene: Scene,
    pub(crate) raw: RawSocket,
    pub(crate) viewer: std::net::UdpSocket,
    pub(crate) worker: std::net::UdpSocket,
}

fn setup(test: &str, mode: GroupMode, flags: u8) -> Result<Option<Setup>> {
    setup_for(test, false, mode, flags)
}

/// The flow of one leg, a socket that sends frames, the viewer's and the worker's.
pub(crate) fn setup_for(test: &str, v6: bool, mode: GroupMode, flags: u8) -> Result<Option<Setup>> {
    let Some(mut scene) = Scene::new(test)? else { return Ok(None) };
    let addresses = Addresses::new(v6);
    let raw = raw(&scene.source, &scene.devices[0])?;
    let viewer = scene.receivers(&addresses, 1)?.remove(0);
    let input = addresses.input;
    let worker = scene.host.inside(move || std::net::UdpSocket::bind(input))??;
    worker.set_read_timeout(Some(Duration::from_secs(5)))?;
    let legs = scene.legs(&addresses, 1);
    scene.install(&addresses, mode, flags, &legs)?;
    Ok(Some(Setup { scene, raw, viewer, worker }))
}

#[test]
fn super_packets_of_a_packet_socket_are_walked_by_their_length() -> Result<()> {
    let test = "super_packets_of_a_packet_socket_are_walked_by_their_length";
    for (v6, mode) in [false, true].into_iter().flat_map(|v6| MODES.map(|mode| (v6, mode))) {
        let Some(Setup { scene, mut raw, viewer, .. }) = setup_for(test, v6, mode, 0)? else { return Ok(()) };
        let mut seq = 0;
        for (count, linear) in [(5, 62), (32, 14), (64, 200), (65, 300), (128, 62)] {
            let what = || format!("v6 {v6}, {mode:?}, {count} segments");
            // The kernel says that such a packet has no segments at all.
            let packets: Vec<_> = (0..count).map(|index| packet(seq + index, 172)).collect();
            raw.send_segments(&super_frame(&scene, v6, &packets)?, udp_at(v6), 172, linear)?;
            for packet in &packets {
                let found = receive(&viewer).with_context(what)?;
                assert!(found == copy(packet, mode, 0), "{}", what());
            }
            seq += count;
        }
        assert_eq!(scene.programs.stats(0)?.packets, u64::from(seq));
    }
    Ok(())
}

fn udp_at(v6: bool) -> u16 {
    if v6 { 54 } else { 34 }
}

fn super_frame(scene: &Scene, v6: bool, packets: &[Vec<u8>]) -> Result<Vec<u8>> {
    if v6 { frame6(scene, &packets.concat(), 17, &[]) } else { frame(scene, &packets.concat(), &[], 0x4000) }
}

#[test]
fn a_mixture_goes_up_whole() -> Result<()> {
    let test = "a_mixture_goes_up_whole";
    for v6 in [false, true] {
        let Some(setup) = setup_for(test, v6, GroupMode::Common, 0)? else { return Ok(()) };
        mixtures(setup, v6).with_context(|| format!("v6 {v6}"))?;
    }
    Ok(())
}

fn mixtures(setup: Setup, v6: bool) -> Result<()> {
    let Setup { scene, mut raw, viewer, worker } = setup;
    let good = |seq| packet(seq, 172);
    let with = |seq, byte: usize, value: u8| {
        let mut packet = packet(seq, 172);
        packet[byte] = value;
        packet
    };
    // More contributing sources than there is room for.
    let cut = |seq| [&[0x8f][..], &good(seq)[1..71]].concat();
    let mut send = |packets: &[Vec<u8>]| {
        raw.send_segments(&super_frame(&scene, v6, packets)?, udp_at(v6), 172, udp_at(v6) + 8)
    };
    send(&[good(1), good(2)])?;
    for seq in [1, 2] {
        assert_eq!(receive(&viewer)?, copy(&good(seq), GroupMode::Common, 0));
    }
    let progress = scene.programs.stats(0)?;
    let mixtures = [
        ("another ssrc", vec![good(3), with(4, 11, SSRC as u8 ^ 1), good(5)]),
        ("another payload type", vec![good(3), good(4), with(5, 1, PAYLOAD_TYPE + 1)]),
        ("another version", vec![good(3), with(4, 0, 0x40)]),
        ("a jump of the number", vec![good(3), with(4, 2, 0x80), good(5)]),
        ("rtcp", vec![good(3), with(4, 1, 200)]),
        ("sources, cut", vec![good(3), good(4), cut(5)]),
    ];
    let count = mixtures.len() as u64;
    for (name, packets) in mixtures {
        send(&packets)?;
        for packet in &packets {
            assert!(receive(&worker).context(name)? == *packet, "{name}: untouched");
        }
    }
    let after = scene.programs.stats(0)?;
    assert_eq!((after.packets, after.strange), (2, count));
    assert_eq!(
        (after.highest, after.window, after.jitter),
        (progress.highest, progress.window, progress.jitter)
    );
    viewer.set_nonblocking(true)?;
    assert!(receive(&viewer).is_err(), "nothing of a mixture reaches a leg");
    Ok(())
}

#[test]
fn datagrams_without_a_checksum_stay_without() -> Result<()> {
    let test = "datagrams_without_a_checksum_stay_without";
    for mode in [GroupMode::Opaque, GroupMode::PerLeg] {
        let Some(Setup { scene, mut raw, viewer, .. }) = setup(test, mode, 0)? else { return Ok(()) };
        let tap = scene.viewer.inside(|| Tap::open(&scene.devices[3]))??;
        for seq in 0..5 {
            raw.send(&whole(frame(&scene, &packet(seq, 172), &[], 0x4000)?, 34, Some(0)))?;
            assert_eq!(receive(&viewer)?, copy(&packet(seq, 172), mode, 0));
            assert_eq!(tap.next_udp()?[40..42], [0, 0], "{mode:?}");
        }
    }
    Ok(())
}

/// A socket that sees the frames of a device, those of IPv4 that the program on it let pass.
pub(crate) struct Tap(socket2::Socket);

impl Tap {
    pub(crate) fn open(device: &str) -> Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::PACKET,
            socket2::Type::RAW,
            Some(socket2::Protocol::from(i32::from((libc::ETH_P_IP as u16).to_be()))),
        )?;
        socket.bind_device(Some(device.as_bytes()))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(socket))
    }

    /// The next UDP frame from the output port.
    fn next_udp(&self) -> Result<Vec<u8>> {
        self.next_from(8060)
    }

    /// The next UDP frame from that port.
    pub(crate) fn next_from(&self, port: u16) -> Result<Vec<u8>> {
        use std::io::Read as _;
        loop {
            let mut frame = vec![0; 2_048];
            let len = (&self.0).read(&mut frame).context("no frame")?;
            frame.truncate(len);
            if len > 42 && frame[12..14] == [8, 0] && frame[34..36] == port.to_be_bytes() {
                return Ok(frame);
            }
        }
    }
}

#[test]
fn what_is_not_at_fixed_offsets_takes_the_kernels_own_way() -> Result<()> {
    let test = "what_is_not_at_fixed_offsets_takes_the_kernels_own_way";
    let Some(Setup { scene, mut raw, viewer, worker }) =
        setup(test, GroupMode::Common, FlowEntry::COPY_TO_USER)?
    else {
        return Ok(());
    };
    // The device's own multicast reports have extension headers and would count under the same heading.
    scene.source.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
    let before = scene.programs.counters()?;
    // Options: three no-operations and the end of the list.
    let packet_1 = packet(1, 172);
    raw.send(&whole(frame(&scene, &packet_1, &[1, 1, 1, 0], 0)?, 38, None))?;
    assert_eq!(receive(&worker)?, packet_1, "ip options");
    // Two fragments, which the kernel puts together.
    let packet_2 = packet(2, 1_000);
    let datagram = whole(frame(&scene, &packet_2, &[], 0)?, 34, None);
    let (first, rest) = datagram.split_at(34 + 512);
    for (fragment, payload) in [(0x2000, &first[34..]), (512 / 8, rest)] {
        let mut part = first[..34].to_vec();
        part[16..18].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
        part[20..22].copy_from_slice(&u16::to_be_bytes(fragment));
        part[24..26].fill(0);
        let check = msm_fastpath::csum::ipv4(&part[14..34]);
        part[24..26].copy_from_slice(&check.to_be_bytes());
        part.extend(payload);
        raw.send(&part)?;
    }
    assert_eq!(receive(&worker)?, packet_2, "fragments");
    // A tagged frame (`headers` has what becomes of those).
    let mut tagged = whole(frame(&scene, &packet(3, 172), &[], 0x4000)?, 34, None);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    raw.send(&tagged)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while scene.programs.counters()?.unparsed() - before.unparsed() < 4 {
        ensure!(Instant::now() < deadline, "the tagged frame is not counted");
    }
    let after = scene.programs.counters()?;
    for (reason, count) in [(PassReason::IpOptions, 1), (PassReason::Fragment, 2), (PassReason::Vlan, 1)] {
        assert_eq!(after.passed(reason) - before.passed(reason), count, "{reason}");
    }
    assert_eq!(after.at(COUNT_TO_USER), before.at(COUNT_TO_USER));
    assert_eq!(scene.programs.stats(0)?.packets, 0);
    viewer.set_nonblocking(true)?;
    assert!(receive(&viewer).is_err(), "nothing of it reaches a leg");
    Ok(())
}
