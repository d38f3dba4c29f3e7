//! What an earlier process left, on a modelled kernel.

use msm_fastpath::{Admission, FlowKind, PayloadTypes};

use super::super::slots::Quota;
use super::super::ways;
use super::*;
use crate::user::offload::tests::model::Model;

fn key(port: u16) -> FlowKey {
    let at = |ip: [u8; 4], port| SocketAddr::from((ip, port));
    FlowKey::new(at([10, 0, 0, 2], port), at([10, 0, 0, 1], 8062), 3)
}

/// A flow without legs whose statistics have this index.
fn flow(stats: u32) -> AdoptedFlow {
    let entry = FlowEntry::new(FlowKind::Rtp, Admission::any_ssrc(PayloadTypes::ANY), stats, 90_000);
    AdoptedFlow { entry, stats: FlowStats::ZERO, range: None, legs: Vec::new() }
}

fn left(flows: impl IntoIterator<Item = (FlowKey, AdoptedFlow)>) -> Left {
    let flows = flows.into_iter().map(|(key, flow)| (flow_id(&key), (key, flow))).collect();
    Left { book: Arc::new(Mutex::new(Book { flows, viewers: BTreeMap::new() })) }
}

#[test]
fn a_flow_that_nobody_claimed_is_gone_before_anybody_can_look_for_it() {
    let left = left([(key(1), flow(1)), (key(2), flow(2)), (key(3), flow(3))]);
    let mut looks = Vec::new();
    let ended = left.end(|key| {
        assert!(left.book.try_lock().is_err(), "somebody might open the same flow anew");
        looks.push(*key);
        looks.len() != 2
    });
    assert_eq!(looks, [key(1), key(2), key(3)]);
    let ended: Vec<u32> = ended.iter().map(|(_, flow)| flow.entry.stats).collect();
    assert_eq!(ended, [1, 3], "what stays in the kernel keeps its indices");
    assert!(left.claim(&key(2)).is_none());
}

#[test]
fn a_claimed_flow_that_the_kernel_keeps_gives_nothing_back() {
    let now = Instant::now();
    let [holder, another] = ["cam", "another"].map(|stream| Holder::new(stream, [10, 0, 0, 2].into()));
    for sticky in [false, true] {
        let extent = Extent { legs: 0..4, ids: 0..4, flows: 0..1 };
        let mut slots = Slots::new(&extent, Quota::NONE);
        slots.reserve(&BTreeSet::from([0]), &BTreeSet::new(), &[]);
        let (ways, _inbox) = ways::detached();
        let model = Model { sticky, ..Model::default() };
        let mut share = Share::new(model, slots, ways).with_left(left([(key(1), flow(0))]), now);
        let claimed = share.claim(&key(1), &holder).unwrap();
        assert_eq!(share.end_claimed(&key(1), &claimed, &holder, now).is_err(), sticky);
        let later = now + super::super::slots::QUARANTINE;
        assert_eq!(share.slots.take_flow(&another, later).is_err(), sticky);
    }
}
