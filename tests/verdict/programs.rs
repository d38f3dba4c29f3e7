//! The compiled object, loaded by the tests themselves: what they say does not depend on the user half.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use msm_fastpath::limits::{COUNTERS, VERDICT_COUNTERS};
use msm_fastpath::{
    DropReason, Event, FlowEntry, FlowKey, FlowStats, Gate, GateEntry, LegEntry, LegStats, PassReason,
    PortKey,
};
use zerocopy::FromBytes as _;

/// The programs and their maps.
pub(crate) struct Programs {
    ebpf: Ebpf,
}

/// What the programs counted since they were loaded, all CPUs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counters([u64; COUNTERS as usize]);

impl Counters {
    pub(crate) fn at(&self, index: u32) -> u64 {
        self.0[index as usize]
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.at(VERDICT_COUNTERS + reason.index() as u32)
    }

    pub(crate) fn passed(&self, reason: PassReason) -> u64 {
        self.at(reason.counter())
    }

    /// Passed on because the headers are not at fixed offsets, whatever the cause.
    pub(crate) fn unparsed(&self) -> u64 {
        PassReason::ALL
            .into_iter()
            .filter(|why| *why != PassReason::NotOurs)
            .map(|why| self.passed(why))
            .sum()
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Programs {
    pub(crate) fn load(object: &[u8]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader.verifier_log_level(VerifierLogLevel::STATS).load(object)?;
        let tcx: &mut SchedClassifier = ebpf.program_mut("tcx_ingress").context("tcx_ingress")?.try_into()?;
        tcx.load()?;
        let xdp: &mut Xdp = ebpf.program_mut("xdp_ingress").context("xdp_ingress")?.try_into()?;
        xdp.load()?;
        let test: &mut SchedClassifier = ebpf.program_mut("self_test").context("self_test")?.try_into()?;
        test.load()?;
        Ok(Self { ebpf })
    }

    pub(crate) fn tcx(&self) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program("tcx_ingress").context("tcx_ingress")?.try_into()?)
    }

    pub(crate) fn xdp(&self) -> Result<&Xdp> {
        Ok(self.ebpf.program("xdp_ingress").context("xdp_ingress")?.try_into()?)
    }

    pub(crate) fn self_test(&self) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program("self_test").context("self_test")?.try_into()?)
    }

    /// Attaches to a device of the caller's namespace.
    pub(crate) fn attach_tcx(&mut self, device: &str) -> Result<SchedClassifierLink> {
        let tcx: &mut SchedClassifier =
            self.ebpf.program_mut("tcx_ingress").context("tcx_ingress")?.try_into()?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let link = tcx.attach_with_options(device, TcAttachType::Ingress, order)?;
        Ok(tcx.take_link(link)?)
    }

    /// Attaches to the clsact of a device of the caller's namespace, as on kernels without TCX.
    pub(crate) fn attach_tc(&mut self, device: &str) -> Result<SchedClassifierLink> {
        qdisc_add_clsact(device)?;
        let tcx: &mut SchedClassifier =
            self.ebpf.program_mut("tcx_ingress").context("tcx_ingress")?.try_into()?;
        let filter = TcAttachOptions::Netlink(NlOptions::default());
        let link = tcx.attach_with_options(device, TcAttachType::Ingress, filter)?;
        Ok(tcx.take_link(link)?)
    }

    /// Attaches to a device of the caller's namespace.
    pub(crate) fn attach_xdp(&mut self, device: &str) -> Result<XdpLink> {
        let xdp: &mut Xdp = self.ebpf.program_mut("xdp_ingress").context("xdp_ingress")?.try_into()?;
        let link = xdp.attach(device, XdpMode::Driver)?;
        Ok(xdp.take_link(link)?)
    }

    pub(crate) fn counters(&self) -> Result<Counters> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map("COUNTERS").context("COUNTERS")?)?;
        let mut counters = [0; COUNTERS as usize];
        for (index, counter) in counters.iter_mut().enumerate() {
            *counter = map.get(&(index as u32), 0)?.iter().sum();
        }
        Ok(Counters(counters))
    }

    pub(crate) fn put_flow(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<()> {
        Ok(self.flows()?.insert(key, entry.under(key), 0)?)
    }

    /// Publishes an entry as it stands, with a tag that may be another flow's.
    pub(crate) fn put_flow_as_is(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<()> {
        Ok(self.flows()?.insert(key, entry, 0)?)
    }

    pub(crate) fn remove_flow(&mut self, key: &FlowKey) -> Result<()> {
        Ok(self.flows()?.remove(key)?)
    }

    pub(crate) fn put_port(&mut self, key: &PortKey, value: u32) -> Result<()> {
        let mut ports = HashMap::<_, PortKey, u32>::try_from(self.map("PORTS")?)?;
        Ok(ports.insert(key, value, 0)?)
    }

    pub(crate) fn put_stats(&mut self, index: u32, stats: FlowStats) -> Result<()> {
        Ok(Array::<_, FlowStats>::try_from(self.map("FLOW_STATS")?)?.set(index, stats, 0)?)
    }

    pub(crate) fn stats(&self, index: u32) -> Result<FlowStats> {
        let map = self.ebpf.map("FLOW_STATS").context("FLOW_STATS")?;
        Ok(Array::<_, FlowStats>::try_from(map)?.get(&index, 0)?)
    }

    pub(crate) fn put_leg(&mut self, slot: u32, leg: &LegEntry) -> Result<()> {
        Ok(Array::<_, LegEntry>::try_from(self.map("LEGS")?)?.set(slot, leg, 0)?)
    }

    pub(crate) fn put_gate(&mut self, id: u32, gate: Gate) -> Result<()> {
        Ok(Array::<_, GateEntry>::try_from(self.map("GATES")?)?.set(id, GateEntry::from(gate), 0)?)
    }

    pub(crate) fn gate(&self, id: u32) -> Result<GateEntry> {
        let map = self.ebpf.map("GATES").context("GATES")?;
        Ok(Array::<_, GateEntry>::try_from(map)?.get(&id, 0)?)
    }

    pub(crate) fn leg_stats(&self, id: u32) -> Result<LegStats> {
        let map = self.ebpf.map("LEG_STATS").context("LEG_STATS")?;
        let per_cpu = PerCpuArray::<_, LegStats>::try_from(map)?.get(&id, 0)?;
        Ok(per_cpu.iter().fold(LegStats::ZERO, |sum, one| sum.plus(*one)))
    }

    pub(crate) fn clear_leg_stats(&mut self, id: u32) -> Result<()> {
        let zeros = vec![LegStats::ZERO; aya::util::nr_cpus().map_err(|(_, error)| error)?];
        let mut map = PerCpuArray::<_, LegStats>::try_from(self.map("LEG_STATS")?)?;
        Ok(map.set(id, PerCpuValues::try_from(zeros)?, 0)?)
    }

    /// The events since the last call.
    pub(crate) fn events(&mut self) -> Result<Vec<Event>> {
        let mut ring = RingBuf::try_from(self.map("EVENTS")?)?;
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            events.push(
                Event::read_from_bytes(&item).map_err(|_| anyhow::anyhow!("an event of another size"))?,
            );
        }
        Ok(events)
    }

    fn flows(&mut self) -> Result<HashMap<&mut MapData, FlowKey, FlowEntry>> {
        Ok(HashMap::try_from(self.map("FLOWS")?)?)
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("map {name}"))
    }
}
