//! Ingress by TCX or tc: judges what is ours, leaves everything else to whoever comes next.
//!
//! This increment attaches it in tests only: an admitted packet goes on to the kernel's own stack.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::programs::TcContext;
use msm_fastpath::Verdict;

use crate::packet::{Bytes, HEADERS_LEN, parse};
use crate::stats::judge;

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` on tc: the next program decides.
const NEXT: i32 = -1;

#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    let len = ctx.len();
    let wanted = if len < HEADERS_LEN { len } else { HEADERS_LEN };
    // Headers may lie in page fragments (GRO, tun): bring them into the linear part before looking.
    if ctx.data() + wanted as usize > ctx.data_end() && ctx.pull_data(wanted).is_err() {
        return NEXT;
    }
    // SAFETY: the context is valid for the whole run of the program.
    let (ifindex, gso_size) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).gso_size) };
    match judge(parse(Bytes::new(ctx.data(), ctx.data_end()), len, ifindex), gso_size) {
        None => NEXT,
        Some(Verdict::Forward | Verdict::ToUser) => TC_ACT_OK,
        Some(Verdict::Drop(_)) => TC_ACT_SHOT,
    }
}
