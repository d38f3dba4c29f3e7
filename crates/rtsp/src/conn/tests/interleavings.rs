//! Whole units in order, whatever happens in between.

use proptest::prelude::*;

use super::*;
use crate::demux::check::demultiplex;

#[derive(Debug, Clone)]
enum Step {
    Rtp(u8, usize),
    Rtcp(u8, usize),
    Request,
    Reply(usize),
    Write(usize),
    Wait(u64),
    Hold(u8),
    Release(u8),
    Clear(u8),
    Offer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u8, 0..400usize).prop_map(|(channel, length)| Step::Rtp(channel, length)),
        (0..6u8, 0..100usize).prop_map(|(channel, length)| Step::Rtcp(channel, length)),
        Just(Step::Request),
        any::<usize>().prop_map(Step::Reply),
        (0..900usize).prop_map(Step::Write),
        (0..700u64).prop_map(Step::Wait),
        (0..6u8).prop_map(Step::Hold),
        (0..6u8).prop_map(Step::Release),
        (0..6u8).prop_map(Step::Clear),
        Just(Step::Offer),
    ]
}

proptest! {
    /// ST7, RTSP-6, RTSP-44 for any interleaving: what leaves is whole units, answers in order.
    #[test]
    fn output_is_whole_units_in_any_interleaving(steps in prop::collection::vec(step(), 0..120)) {
        let limits = ConnLimits { rtp_bytes: 2000, rtcp_bytes: 300, ..ConnLimits::default() };
        let mut rig = Rig::with(Role::Server, limits);
        let (mut next, mut open) = (0u32, Vec::new());
        for step in steps {
            match step {
                Step::Rtp(channel, length) => {
                    let payload = Bytes::from(vec![channel; length + 1]);
                    let (head, tail) = payload.split_at(payload.len().min(12));
                    rig.conn.push_rtp(channel, head, payload.slice_ref(tail), rig.now);
                }
                Step::Rtcp(channel, length) => { rig.rtcp(channel, &vec![channel; length + 1]); }
                Step::Request => {
                    rig.conn.handle_bytes(rig.now, options(next).as_bytes());
                    open.extend(cseqs(&rig.events()));
                    next += 1;
                }
                Step::Reply(index) if !open.is_empty() => {
                    let cseq = open.remove(index % open.len());
                    prop_assert!(rig.reply(cseq));
                    open.extend(cseqs(&rig.events()));
                }
                Step::Reply(_) => {}
                Step::Write(most) => { rig.write(most); }
                Step::Wait(millis) => { rig.after(Duration::from_millis(millis)); }
                Step::Hold(channel) => rig.conn.hold_media(&[channel]),
                Step::Release(channel) => rig.conn.release_media(&[channel], rig.now),
                Step::Clear(channel) => rig.conn.clear_media(&[channel]),
                // Offered and not advanced: the owner broke the rule, the framing must not.
                Step::Offer => { rig.conn.poll_transmit(rig.now, &mut [IoSlice::new(&[]); 4]); }
            }
        }
        while !open.is_empty() {
            prop_assert!(rig.reply(open.remove(0)));
            open.extend(cseqs(&rig.events()));
        }
        let sent = rig.drain();
        let outcome = demultiplex(Strictness::Upstream, ParseLimits::default(), [&sent[..]]);
        prop_assert_eq!(outcome.error, None);
        let mut answered = Vec::new();
        for item in outcome.items {
            match item {
                Item::Frame { channel, payload } => prop_assert!(payload.iter().all(|b| *b == channel)),
                Item::Message(Parsed::Message(Message::Response(response))) => answered.extend(response.cseq()),
                Item::Message(other) => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(answered, (0..next).collect::<Vec<_>>());
        prop_assert_eq!(rig.conn.rtp.ready().len(), 0);
    }

    /// RTSP-40 for the machine: any split of viewer input, the same events and answers.
    #[test]
    fn events_do_not_depend_on_the_split(cuts in prop::collection::vec(1u8..40, 1..8)) {
        let stream = [
            options(1).as_bytes(), &frame(0, b"rr"), b"OPTIONS * RTSP/2.0\r\nCSeq: 2\r\n\r\n", &frame(1, &[]),
            b"\r\n", ok(4).as_bytes(), options(3).as_bytes(), b"OPTIONS * RTSP/1.0\r\n\r\n", b"junk",
        ].concat();
        let mut whole = Rig::new(Role::Server);
        let events = whole.feed(&stream);
        let mut cut = Rig::new(Role::Server);
        let pieces = crate::demux::check::pieces(&stream, &cuts);
        let cut_events: Vec<_> = pieces.into_iter().flat_map(|piece| cut.feed(piece)).collect();
        prop_assert_eq!(events, cut_events);
        for rig in [&mut whole, &mut cut] {
            rig.reply(1);
            rig.reply(3);
        }
        prop_assert_eq!(whole.drain(), cut.drain());
    }
}
