//! Ingress by TCX or tc: what is ours goes to its legs, everything else to whoever comes next.

use aya_ebpf::programs::TcContext;
use msm_fastpath::Family;
use msm_fastpath::limits::COUNT_UNPARSED;

use crate::copies::send;
use crate::counters::count;
use crate::judge::{FORWARD, judge};
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
    let fate = forward(skb, packet, family);
    packet.release();
    fate
}

#[inline(always)]
fn forward(skb: Skb, packet: &mut Packet, family: Family) -> i32 {
    if !packet.read(skb, family) {
        count(COUNT_UNPARSED);
        return NEXT;
    }
    let verdict = judge(skb, packet);
    if verdict == FORWARD { send(skb, packet) } else { verdict }
}
