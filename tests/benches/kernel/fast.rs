//! Our kernel programs as contenders: flows and legs are written into their tables directly, as a worker of
//! the proxy would, without RTSP.

use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use aya::{Ebpf, EbpfLoader, Pod as Plain};
use msm_fastpath::csum::Delta;
use msm_fastpath::flow::octets;
use msm_fastpath::{
    Admission, FlowEntry, FlowKey, FlowKind, FlowStats, Gate, GateEntry, GroupMode, LegEntry, PayloadTypes,
    RtpEdit, limits,
};
use rtp_proxy::kernel::OBJECT;
use rtp_proxy::kernel::load::TCX_INGRESS;

use super::course::{Course, Traffic};
use super::generator::Generator;
use super::lane::{Lane, Leg};
use super::packet::{Edit, Expect, PAYLOAD_TYPE, SSRC};
use super::path::Path;
use super::topology::{Kind, Pod};

/// How much of a copy differs from its original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Addresses only.
    Opaque,
    /// One RTP edit for all legs.
    Common,
    /// An RTP edit per leg: the full rewrite.
    PerLeg,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Common => "common",
            Self::PerLeg => "per leg",
        }
    }

    fn group(self) -> GroupMode {
        match self {
            Self::Opaque => GroupMode::Opaque,
            Self::Common => GroupMode::Common,
            Self::PerLeg => GroupMode::PerLeg,
        }
    }

    /// What the copies of a stream for a leg look like.
    pub(crate) fn edit(self, stream: u32, leg: usize) -> Edit {
        match self {
            Self::Opaque => Edit::NONE,
            Self::Common => Edit::of_leg(stream, 0),
            Self::PerLeg => Edit::of_leg(stream, leg),
        }
    }
}

/// Streams that have a socket each; more share some.
const SOCKETS: usize = 16_384;
/// Sockets that share more streams than that.
const SPREAD: usize = 64;

/// The loaded programs, attached to the source's cables by TCX. They go with this value.
pub(crate) struct Fast {
    programs: Ebpf,
    tables: Tables,
    /// Next free index of legs and gates, and of flow statistics.
    next: (u32, u32),
    /// The flow that was published last.
    last: Option<(FlowKey, FlowEntry, SocketAddrV4, SocketAddrV4)>,
}

/// The maps that are written.
struct Tables {
    flows: HashMap<MapData, FlowKey, FlowEntry>,
    stats: Array<MapData, FlowStats>,
    legs: Array<MapData, LegEntry>,
    gates: Array<MapData, GateEntry>,
}

fn array<V: Plain>(programs: &mut Ebpf, name: &str) -> Result<Array<MapData, V>> {
    Ok(Array::try_from(programs.take_map(name).with_context(|| format!("no map {name}"))?)?)
}

/// One more viewer of a lane's stream.
pub(crate) struct Joining<'a> {
    tables: &'a mut Tables,
    leg: LegEntry,
    key: FlowKey,
    /// As published last.
    entry: FlowEntry,
}

impl Joining<'_> {
    /// Writes leg and gate, then publishes: three map updates.
    pub(crate) fn join(&mut self) -> Result<()> {
        self.tables.legs.set(self.leg.id, self.leg, 0)?;
        self.tables.gates.set(self.leg.id, GateEntry::from(Gate::Active), 0)?;
        self.entry.legs += 1;
        Ok(self.tables.flows.insert(self.key, self.entry, 0)?)
    }

    /// Takes the leg out of the list, then shuts its gate.
    pub(crate) fn leave(&mut self) -> Result<()> {
        self.entry.legs -= 1;
        self.tables.flows.insert(self.key, self.entry, 0)?;
        Ok(self.tables.gates.set(self.leg.id, GateEntry::from(Gate::Disabled), 0)?)
    }
}

fn rtp_edit(edit: Edit) -> RtpEdit {
    edit.ssrc.map_or(RtpEdit::TRANSPARENT, |ssrc| RtpEdit::projected(ssrc, edit.seq, edit.timestamp))
}

impl Fast {
    /// Loads the programs and attaches them by TCX.
    pub(crate) fn open(course: &Course) -> Result<Self> {
        let kinds = [Kind::Inline, Kind::Batched, Kind::Second];
        Self::open_for(course, &kinds, (limits::FLOWS, limits::LEGS))
    }

    /// The same on some of the cables, with room for so many flows and legs.
    pub(crate) fn open_for(course: &Course, kinds: &[Kind], (flows, legs): (u32, u32)) -> Result<Self> {
        let topology = &course.topology;
        let object = course.programs.object.as_deref().or(OBJECT);
        let object = object.context("the proxy was built without kernel programs: `cargo xtask setup`")?;
        // Interfaces are looked up in the namespace of whoever attaches.
        let mut programs = topology.host.inside(|| -> Result<Ebpf> {
            let mut loader = EbpfLoader::new();
            for (map, entries) in [
                ("FLOWS", flows),
                ("FLOW_STATS", flows),
                ("LEGS", legs),
                ("GATES", legs),
                ("LEG_STATS", legs),
            ] {
                loader.map_max_entries(map, entries);
            }
            let mut programs = loader.load(object)?;
            let program: &mut SchedClassifier =
                programs.program_mut(TCX_INGRESS).context("no program")?.try_into()?;
            program.load()?;
            for kind in kinds {
                let by_link = TcAttachOptions::TcxOrder(LinkOrder::default());
                program.attach_with_options(
                    &topology.uplink(*kind).host_device,
                    TcAttachType::Ingress,
                    by_link,
                )?;
            }
            Ok(programs)
        })??;
        let flows = programs.take_map("FLOWS").context("no map FLOWS")?;
        let tables = Tables {
            flows: HashMap::try_from(flows)?,
            stats: array(&mut programs, "FLOW_STATS")?,
            legs: array(&mut programs, "LEGS")?,
            gates: array(&mut programs, "GATES")?,
        };
        Ok(Self { programs, tables, next: (0, 0), last: None })
    }

    /// A lane through the programs, one stream.
    pub(crate) fn lane(
        &mut self,
        course: &Course,
        name: &str,
        kind: Kind,
        mode: Mode,
        traffic: Traffic,
    ) -> Result<Lane> {
        self.streams(course, name, kind, mode, traffic, 1)
    }

    /// A lane of many streams, each with its own flow and legs. Streams share the sinks: what their sockets
    /// cost is the pod's, not ours.
    pub(crate) fn streams(
        &mut self,
        course: &Course,
        name: &str,
        kind: Kind,
        mode: Mode,
        traffic: Traffic,
        streams: usize,
    ) -> Result<Lane> {
        let port = course.port();
        let legs = course.legs(traffic, port, |leg| match mode {
            Mode::Opaque => Expect::Edit(Edit::NONE),
            Mode::Common => Expect::PerLeg(0),
            Mode::PerLeg => Expect::PerLeg(leg),
        })?;
        let uplink = course.topology.uplink(kind);
        let to = SocketAddrV4::new(uplink.host, port);
        let generator = if streams <= SOCKETS {
            course.generator_of(kind, &vec![to; streams], traffic)?
        } else {
            // More streams than ports of one address: targets differ instead.
            let targets: Vec<_> =
                (0..streams).map(|n| SocketAddrV4::new(uplink.host, 1_024 + (n / SPREAD) as u16)).collect();
            let pod = course.topology.source_of(kind);
            Generator::spread(pod, SPREAD, &targets, traffic.shape, traffic.size)?
        };
        for (stream, (from, to)) in generator.paths()?.into_iter().enumerate() {
            let from = SocketAddrV4::new(uplink.source, from);
            self.stream(course, stream as u32, (from, to), uplink.host_index, mode, &legs)?;
        }
        let mut lane = Course::lane(name, generator, Path::Kernel, legs, traffic);
        lane.threads = uplink.threads.clone();
        "rung tcx".clone_into(&mut lane.version);
        Ok(lane)
    }

    /// Programs one stream: legs and gates first, then the flow that names them.
    fn stream(
        &mut self,
        course: &Course,
        stream: u32,
        (from, to): (SocketAddrV4, SocketAddrV4),
        ifindex: u32,
        mode: Mode,
        legs: &[Leg],
    ) -> Result<()> {
        let (first_leg, stats) = self.next;
        self.next = (first_leg + legs.len() as u32, stats + 1);
        for (number, leg) in legs.iter().enumerate() {
            let pod = &course.topology.pods[leg.pod];
            let id = first_leg + number as u32;
            let edit = rtp_edit(mode.edit(stream, number));
            let entry = leg_entry(id, (from, to), pod, leg.sink.port(), edit);
            self.tables.legs.set(id, entry, 0)?;
            self.tables.gates.set(id, GateEntry::from(Gate::Active), 0)?;
        }
        self.tables.stats.set(stats, FlowStats::ZERO, 0)?;
        let admission = Admission::only_ssrc(PayloadTypes::of(&[PAYLOAD_TYPE]), SSRC.wrapping_add(stream));
        let mut entry = FlowEntry::new(FlowKind::Rtp, admission, stats, 8_000);
        entry.edit = match mode {
            Mode::Common => rtp_edit(mode.edit(stream, 0)),
            _ => RtpEdit::TRANSPARENT,
        };
        entry.first_leg = first_leg;
        entry.legs = u16::try_from(legs.len()).context("so many legs")?;
        entry.mode = mode.group() as u8;
        let key = FlowKey::new(SocketAddr::V4(from), SocketAddr::V4(to), ifindex);
        let entry = entry.under(&key);
        self.tables.flows.insert(key, entry, 0)?;
        self.last = Some((key, entry, from, to));
        Ok(())
    }

    /// CPU time inside the program and how often it ran, while the kernel counts that (`kernel.bpf_stats_enabled`).
    pub(crate) fn spent(&self) -> Result<(Duration, u64)> {
        let program: &SchedClassifier =
            self.programs.program(TCX_INGRESS).context("no program")?.try_into()?;
        let info = program.info()?;
        Ok((info.run_time(), info.run_count()))
    }

    /// One more viewer of the lane that was made last, in the slot behind its legs.
    pub(crate) fn joining(&mut self, lane: &Lane, pod: &Pod, port: u16) -> Result<Joining<'_>> {
        let (key, entry, from, to) = self.last.context("no lane yet")?;
        let id = self.next.0;
        self.next.0 += 1;
        let edit = rtp_edit(Edit::of_leg(0, lane.legs.len()));
        let leg = leg_entry(id, (from, to), pod, port, edit);
        Ok(Joining { tables: &mut self.tables, leg, key, entry })
    }
}

/// Copies leave with the address and port that media was sent to, as from a proxy's socket.
fn leg_entry(
    id: u32,
    (from, to): (SocketAddrV4, SocketAddrV4),
    pod: &Pod,
    port: u16,
    edit: RtpEdit,
) -> LegEntry {
    let viewer = pod.at(port);
    let (src, dst) = (SocketAddrV4::new(pod.host, to.port()), viewer);
    let addresses = Delta::NONE
        .replace_bytes(&from.ip().octets(), &src.ip().octets())
        .replace_bytes(&to.ip().octets(), &dst.ip().octets());
    let ports = Delta::NONE.replace16(from.port(), src.port()).replace16(to.port(), dst.port());
    LegEntry {
        edit,
        src: octets((*src.ip()).into()),
        dst: octets((*dst.ip()).into()),
        dst_mac: pod.mac,
        src_mac: pod.host_mac,
        src_port: src.port().to_be_bytes(),
        dst_port: dst.port().to_be_bytes(),
        ifindex: pod.host_index,
        id,
        address_delta: addresses.0,
        port_delta: ports.0,
        mtu: 1500,
        ttl: 64,
        dscp: 0,
        flags: LegEntry::LOCAL,
        pad: [0; 3],
    }
}
