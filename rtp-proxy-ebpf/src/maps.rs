//! Every map. Names have at most 15 bytes: the kernel cuts them there.

use aya_ebpf::btf_maps::{HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use msm_fastpath::limits::{COUNTERS as COUNTER_SLOTS, FLOWS as FLOW_SLOTS};
use msm_fastpath::{FlowEntry, FlowKey, FlowStats};

/// Flows, filled by user space.
#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowEntry, { FLOW_SLOTS as usize }> = HashMap::new();

/// Statistics of a flow: one shared value, not one per CPU, because on a veth the ingress CPU follows the
/// sender's thread. User space puts an entry beside each of [`FLOWS`].
#[btf_map]
pub(crate) static FLOW_STATS: HashMap<FlowKey, FlowStats, { FLOW_SLOTS as usize }> = HashMap::new();

/// Packets by verdict and drop reason; indices are in `msm_fastpath::limits`.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { COUNTER_SLOTS as usize }> = PerCpuArray::new();
