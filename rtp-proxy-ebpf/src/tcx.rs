//! Ingress by TCX or tc: what is ours goes to its legs, everything else to whoever comes next.

use aya_ebpf::programs::TcContext;

use crate::counters::count;
use crate::judge::forward;
use crate::packet::{Packet, classify};
use crate::skb::{NEXT, Skb};

#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    let family = match classify(skb) {
        Ok(family) => family,
        Err(reason) => {
            count(reason.counter());
            return NEXT;
        }
    };
    let Some(packet) = Packet::claim() else { return NEXT };
    let fate = match packet.read(skb, family) {
        Ok(()) => forward(skb, packet),
        Err(reason) => {
            count(reason.counter());
            NEXT
        }
    };
    packet.release();
    fate
}
