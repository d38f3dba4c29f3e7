//! Ingress by XDP on a named NIC: what claims to be ours and is not is dropped early, everything else goes up.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::bpf_xdp_load_bytes;
use aya_ebpf::programs::XdpContext;
use msm_fastpath::header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_UDP};
use msm_fastpath::{DropReason, Family, FlowEntry, Head};

use crate::counters::count_drop;
use crate::tables::{Found, find_flow, is_closed};

/// Frame bytes up to the UDP payload.
const V4: usize = Family::V4.payload_offset();
const V6: usize = Family::V6.payload_offset();

/// What goes up is counted where it is decided about, by the TCX program of the same interface.
#[inline(always)]
pub(crate) fn ingress(ctx: &XdpContext) -> u32 {
    let mut head = Head::EMPTY;
    let Some(family) = load(ctx, &mut head) else { return XDP_PASS };
    let len = (ctx.data_end() - ctx.data()) as u32;
    let datagram = match family {
        Family::V4 => head.datagram_v4(len),
        Family::V6 => head.datagram_v6(len),
    };
    if datagram.is_none() {
        return XDP_PASS;
    }
    let key = head.key(family, ctx.ingress_ifindex() as u32);
    let mut entry = FlowEntry::EMPTY;
    if matches!(find_flow(&key, &mut entry), Found::Nothing) && is_closed(&key) {
        count_drop(DropReason::UnknownSource);
        return XDP_DROP;
    }
    XDP_PASS
}

/// Copies the headers of a UDP datagram out.
#[inline(always)]
fn load(ctx: &XdpContext, head: &mut Head) -> Option<Family> {
    if !load_bytes::<V4>(ctx, head) {
        return None;
    }
    let (ethertype, protocol_v4, protocol_v6) = match head.frame() {
        [_, _, _, _, _, _, _, _, _, _, _, _, a, b, _, _, _, _, _, _, v6, _, _, v4, ..] => {
            (u16::from_be_bytes([*a, *b]), *v4, *v6)
        }
        _ => return None,
    };
    match ethertype {
        ETHERTYPE_IPV4 if protocol_v4 == PROTO_UDP => Some(Family::V4),
        ETHERTYPE_IPV6 if protocol_v6 == PROTO_UDP && load_bytes::<V6>(ctx, head) => Some(Family::V6),
        _ => None,
    }
}

#[inline(always)]
fn load_bytes<const N: usize>(ctx: &XdpContext, head: &mut Head) -> bool {
    let Some(bytes) = head.frame_mut().first_chunk_mut::<N>() else { return false };
    // SAFETY: the helper writes N bytes to `bytes`.
    unsafe { bpf_xdp_load_bytes(ctx.ctx, 0, bytes.as_mut_ptr().cast(), N as u32) == 0 }
}
