//! Ingress by TCX or tc: what is ours goes to its legs, everything else to whoever comes next.

use aya_ebpf::programs::TcContext;
use msm_fastpath::limits::COUNT_UNPARSED;

use crate::counters::count;
use crate::judge::forward;
use crate::packet::{Packet, classify};
use crate::skb::{NEXT, Skb};

#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    let family = match classify(skb) {
        Ok(family) => family,
        Err(index) => {
            count(index);
            return NEXT;
        }
    };
    let Some(packet) = Packet::claim() else { return NEXT };
    let fate = if packet.read(skb, family) {
        forward(skb, packet)
    } else {
        count(COUNT_UNPARSED);
        NEXT
    };
    packet.release();
    fate
}
