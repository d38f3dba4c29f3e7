//! A source, this host and a viewer, joined by two cables; the program is attached where the source's packets
//! come in, and copies go where the viewer is.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::SchedClassifierLink;
use msm_fastpath::csum::Delta;
use msm_fastpath::flow::{mapped, octets};
use msm_fastpath::{
    FlowEntry, FlowKey, FlowKind, FlowStats, Gate, GroupMode, LegEntry, RtpEdit, RtpFixed, rewrite,
};
use msm_tests::lab::{Lab, Node};
use msm_tests::privilege::{Need, granted};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};

use crate::programs::Programs;
use crate::{PAYLOAD_TYPE, SSRC, entry, kernel};

/// First port of the viewer's sockets.
const VIEWER_PORT: u16 = 40_000;
const SOURCE_PORT: u16 = 5_004;
const INPUT_PORT: u16 = 8_062;
const OUTPUT_PORT: u16 = 8_060;

/// Three nodes and the loaded programs.
pub(crate) struct Scene {
    _lab: Lab,
    pub(crate) programs: Programs,
    pub(crate) source: Node,
    pub(crate) host: Node,
    pub(crate) viewer: Node,
    /// Devices: the source's, the host's towards the source, the host's towards the viewer, the viewer's.
    pub(crate) devices: [String; 4],
    pub(crate) ingress: u32,
    pub(crate) egress: u32,
    macs: [[u8; 6]; 2],
    _link: SchedClassifierLink,
}

/// Who sends, where the host listens, and who receives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) source: SocketAddr,
    pub(crate) input: SocketAddr,
    pub(crate) output: SocketAddr,
    pub(crate) viewer: IpAddr,
}

impl Addresses {
    pub(crate) fn new(v6: bool) -> Self {
        let address = |net: u8, host: u8| -> IpAddr {
            if v6 {
                [0xfd09, 0, 0, u16::from(net), 0, 0, 0, u16::from(host)].into()
            } else {
                [10, 9, net, host].into()
            }
        };
        Self {
            source: (address(0, 1), SOURCE_PORT).into(),
            input: (address(0, 2), INPUT_PORT).into(),
            output: (address(1, 1), OUTPUT_PORT).into(),
            viewer: address(1, 2),
        }
    }
}

fn mac(node: &Node, device: &str) -> Result<[u8; 6]> {
    let text = node.output("ip", &["-o", "link", "show", device])?;
    let mac = text.split_once("link/ether ").and_then(|(_, rest)| rest.get(..17)).context("a MAC address")?;
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{mac} is no MAC address"))
}

impl Scene {
    /// `None` without the privilege.
    pub(crate) fn new(test: &str) -> Result<Option<Self>> {
        Self::with(test, Programs::attach_tcx)
    }

    /// The same, attached otherwise.
    pub(crate) fn with(
        test: &str,
        attach: fn(&mut Programs, &str) -> Result<SchedClassifierLink>,
    ) -> Result<Option<Self>> {
        if !granted(test, &[Need::Namespaces, Need::Program("ethtool")]) {
            return Ok(None);
        }
        let Some(mut programs) = kernel(test)? else { return Ok(None) };
        let mut lab = Lab::new()?;
        let (source, host, viewer) = (lab.node("source")?, lab.node("host")?, lab.node("viewer")?);
        let (a, b) =
            lab.cable(&source, &["10.9.0.1/24", "fd09::1/64"], &host, &["10.9.0.2/24", "fd09::2/64"])?;
        let (c, d) = lab.cable(
            &host,
            &["10.9.1.1/24", "fd09:0:0:1::1/64"],
            &viewer,
            &["10.9.1.2/24", "fd09:0:0:1::2/64"],
        )?;
        for (node, device) in [(&source, &a), (&host, &b), (&host, &c), (&viewer, &d)] {
            up(node, device)?;
        }
        let index = |device: &str| host.inside(|| if_nametoindex(device));
        let (ingress, egress) = (index(&b)??, index(&c)??);
        let macs = [mac(&viewer, &d)?, mac(&host, &c)?];
        let link = host.inside(|| attach(&mut programs, &b))??;
        let devices = [a, b, c, d];
        Ok(Some(Self {
            _lab: lab,
            programs,
            source,
            host,
            viewer,
            devices,
            ingress,
            egress,
            macs,
            _link: link,
        }))
    }

    /// The flow from the source, its legs and their gates, each from its first slot on.
    pub(crate) fn install(
        &mut self,
        addresses: &Addresses,
        mode: GroupMode,
        flags: u8,
        legs: &[LegEntry],
    ) -> Result<()> {
        for (slot, leg) in legs.iter().enumerate() {
            self.programs.put_leg(slot as u32, leg)?;
            self.programs.put_gate(leg.id, Gate::Active)?;
            self.programs.clear_leg_stats(leg.id)?;
        }
        self.programs.put_stats(0, FlowStats::ZERO)?;
        self.publish(addresses, mode, flags, legs.len() as u16)
    }

    /// The flow over the first slots.
    pub(crate) fn publish(
        &mut self,
        addresses: &Addresses,
        mode: GroupMode,
        flags: u8,
        legs: u16,
    ) -> Result<()> {
        let edit = if mode == GroupMode::Common { edit(0) } else { RtpEdit::TRANSPARENT };
        let entry = FlowEntry { mode: mode as u8, flags, legs, edit, ..entry(FlowKind::Rtp) };
        let key = FlowKey::new(addresses.source, addresses.input, self.ingress);
        self.programs.put_flow(&key, &entry)
    }

    /// MAC address that the source's packets go to.
    pub(crate) fn mac_of_input(&self) -> Result<[u8; 6]> {
        mac(&self.host, &self.devices[1])
    }

    /// Leg `number` to the viewer's socket of that number.
    pub(crate) fn leg(&self, addresses: &Addresses, number: u16) -> LegEntry {
        let viewer = SocketAddr::new(addresses.viewer, VIEWER_PORT + number);
        let (old, new) = ([addresses.source, addresses.input], [addresses.output, viewer]);
        let mut address = Delta::NONE;
        let mut port = Delta::NONE;
        for (old, new) in old.iter().zip(&new) {
            let (from, to) = (octets(old.ip()), octets(new.ip()));
            let skip = if old.is_ipv4() { mapped([0; 4]).len() - 4 } else { 0 };
            address = address.replace_bytes(&from[skip..], &to[skip..]);
            port = port.replace16(old.port(), new.port());
        }
        LegEntry {
            edit: edit(number),
            src: octets(addresses.output.ip()),
            dst: octets(addresses.viewer),
            dst_mac: self.macs[0],
            src_mac: self.macs[1],
            src_port: OUTPUT_PORT.to_be_bytes(),
            dst_port: viewer.port().to_be_bytes(),
            ifindex: self.egress,
            id: 1_000 + u32::from(number),
            address_delta: address.0,
            port_delta: port.0,
            mtu: 1_500,
            ttl: 0,
            dscp: 0,
            flags: 0,
            pad: [0; 3],
        }
    }

    pub(crate) fn legs(&self, addresses: &Addresses, count: u16) -> Vec<LegEntry> {
        (0..count).map(|number| self.leg(addresses, number)).collect()
    }

    /// The source's socket, connected to the input.
    pub(crate) fn sender(&self, addresses: &Addresses) -> Result<UdpSocket> {
        let Addresses { source, input, .. } = *addresses;
        let sender = self.source.inside(move || UdpSocket::bind(source))??;
        sender.connect(input)?;
        Ok(sender)
    }

    /// The viewer's sockets.
    pub(crate) fn receivers(&self, addresses: &Addresses, count: u16) -> Result<Vec<UdpSocket>> {
        let viewer = addresses.viewer;
        let bind = move |number| UdpSocket::bind((viewer, VIEWER_PORT + number));
        let sockets =
            self.viewer.inside(move || (0..count).map(bind).collect::<std::io::Result<Vec<_>>>())??;
        for socket in &sockets {
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &(8 << 20))?;
        }
        Ok(sockets)
    }

    /// Switches checksum offload of a device off: whoever sends there writes complete checksums, and whoever
    /// receives from there checks them.
    pub(crate) fn complete_checksums(node: &Node, device: &str) -> Result<()> {
        node.output("ethtool", &["-K", device, "tx", "off"]).map(drop)
    }
}

/// Waits for the carrier: until the kernel announces it, the device eats what is sent.
pub(crate) fn up(node: &Node, device: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !node.output("ip", &["link", "show", device])?.contains("state UP") {
        ensure!(Instant::now() < deadline, "{device} does not come up");
    }
    Ok(())
}

/// The edit of leg `number`; that of a common group is leg 0's.
pub(crate) fn edit(number: u16) -> RtpEdit {
    RtpEdit::projected(0x7000_0000 + u32::from(number), 60_000 + number, 0xffff_f000 + u32::from(number))
}

/// An RTP packet of `len` bytes whose payload says which it is.
pub(crate) fn packet(seq: u16, len: usize) -> Vec<u8> {
    // Time goes on as the number wraps.
    let timestamp = i32::from(seq as i16) * 160;
    let mut packet = RtpFixed::new(PAYLOAD_TYPE, false, seq, timestamp as u32, SSRC).to_bytes().to_vec();
    packet.extend((12..len).map(|at| (at as u8).wrapping_mul(31) ^ seq as u8));
    packet.truncate(len);
    packet
}

/// What leg `number` gets of a packet.
pub(crate) fn copy(packet: &[u8], mode: GroupMode, number: u16) -> Vec<u8> {
    let edit = match mode {
        GroupMode::PerLeg => edit(number),
        GroupMode::Common => edit(0),
        GroupMode::Opaque | GroupMode::ToUser => RtpEdit::TRANSPARENT,
    };
    let header = RtpFixed::from_bytes(*packet.first_chunk().expect("an RTP packet"));
    let mut copy = rewrite(&header, &edit).to_bytes().to_vec();
    copy.extend(&packet[12..]);
    copy
}

/// The next datagram.
pub(crate) fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut packet = vec![0; 2_048];
    let len = socket.recv(&mut packet)?;
    packet.truncate(len);
    Ok(packet)
}
