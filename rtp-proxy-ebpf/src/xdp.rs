//! Ingress by XDP on a named NIC: early drops of what is ours and not admitted, everything else goes up.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::programs::XdpContext;
use msm_fastpath::Verdict;

use crate::packet::{Bytes, parse};
use crate::stats::judge;

#[inline(always)]
pub(crate) fn ingress(ctx: &XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    let len = (end - start) as u32;
    match judge(parse(Bytes::new(start, end), len, ctx.ingress_ifindex() as u32), 0) {
        None | Some(Verdict::Forward | Verdict::ToUser) => XDP_PASS,
        Some(Verdict::Drop(_)) => XDP_DROP,
    }
}
