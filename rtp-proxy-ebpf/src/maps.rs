//! Every map. Names have at most 15 bytes: the kernel cuts them there.
//!
//! Capacities are defaults: the user half may load the maps with others.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use msm_fastpath::limits;
use msm_fastpath::{Event, FlowEntry, FlowKey, FlowStats, GateEntry, LegEntry, LegStats, PortKey};

use crate::packet::Packet;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Flows: who is admitted, and which legs they go to.
#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowEntry, { limits::FLOWS as usize }, NO_PREALLOC> =
    HashMap::new();

/// Media addresses of ours, with what happens to datagrams without a flow.
#[btf_map]
pub(crate) static PORTS: HashMap<PortKey, u32, { limits::PORTS as usize }, NO_PREALLOC> = HashMap::new();

/// Progress of flows: one shared value, not one per CPU, because on a veth the ingress CPU follows the
/// sender's thread.
#[btf_map]
pub(crate) static FLOW_STATS: Array<FlowStats, { limits::FLOWS as usize }> = Array::new();

/// Legs; those of one flow follow each other.
#[btf_map]
pub(crate) static LEGS: Array<LegEntry, { limits::LEGS as usize }> = Array::new();

/// Gates of legs, by the leg's id.
#[btf_map]
pub(crate) static GATES: Array<GateEntry, { limits::LEGS as usize }> = Array::new();

/// Counters of legs, by the leg's id.
#[btf_map]
pub(crate) static LEG_STATS: PerCpuArray<LegStats, { limits::LEGS as usize }> = PerCpuArray::new();

/// Packets by verdict and drop reason; indices are in `msm_fastpath::limits`.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { limits::COUNTERS as usize }> = PerCpuArray::new();

/// Rare facts for people.
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, { limits::EVENT_RING as usize }> = RingBuf::new();

/// What the programs of one CPU know of the packet in hand.
#[btf_map]
pub(crate) static PACKET: PerCpuArray<Packet, 1> = PerCpuArray::new();
