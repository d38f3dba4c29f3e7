//! What a kernel program forwards is what the input would have admitted: the functions that decide there, beside the
//! input, on the same packets at the same moments.

use msm_fastpath::progress::Arrival;
use msm_fastpath::{Course, FlowEntry, FlowKind, FlowStats, Progress, RtpFixed, decide_flow};
use proptest::prelude::*;

use super::super::{Batch, MAX_TIME_JUMP, TrackInput};
use crate::drop::DropReason;
use crate::keyframe::Codec;
use crate::rtp::PacketBuilder;
use crate::testing::{config, start};

const SSRC: u32 = 0x1111;
const CLOCK: u32 = 90_000;
/// Where the kernel's clock stands when the run begins, in ns: days after the start of the machine.
const EPOCH: u64 = 777_777_777_777_777;

/// One packet against the one before it.
#[derive(Debug, Clone)]
struct Sent {
    /// Ns since the one before.
    after: u64,
    first_byte: u8,
    second_byte: u8,
    /// To the highest sequence number and the highest timestamp so far.
    seq_step: i32,
    ts_step: i64,
    ssrc: u32,
    len: usize,
}

impl Sent {
    fn bytes(&self, progress: &Progress) -> Vec<u8> {
        let seq = (progress.highest as u16).wrapping_add(self.seq_step as u16);
        let ts = progress.last_timestamp.wrapping_add(self.ts_step as u32);
        let mut packet = vec![self.first_byte, self.second_byte];
        packet.extend(seq.to_be_bytes());
        packet.extend(ts.to_be_bytes());
        packet.extend(self.ssrc.to_be_bytes());
        packet.resize(self.len, 0x5a);
        packet
    }
}

/// Mostly what belongs to the run, with every way of not quite belonging to it.
fn sent() -> impl Strategy<Value = Sent> {
    let far = i64::from(CLOCK) * MAX_TIME_JUMP.as_secs() as i64;
    let after = prop_oneof![3 => 0..40_000_000_u64, 1 => 0..60_000_000_000_u64];
    let first_byte = prop_oneof![4 => Just(0x80_u8), 4 => 0x80..0xc0_u8, 1 => any::<u8>()];
    let second_byte = prop_oneof![4 => Just(96_u8), 2 => Just(0xe0_u8), 1 => any::<u8>()];
    let seq_step = prop_oneof![6 => 1..3_i32, 2 => -110..5_i32, 1 => 2_990..3_010_i32, 1 => any::<i16>().prop_map(i32::from)];
    let ts_step = prop_oneof![
        6 => 0..9_000_i64,
        1 => -9_000..0_i64,
        1 => far - 2_000..far + 2_000,
        1 => -far - 2_000..-far + 2_000,
        1 => 0..70 * i64::from(CLOCK),
        1 => any::<i32>().prop_map(i64::from),
    ];
    let ssrc = prop_oneof![9 => Just(SSRC), 1 => any::<u32>()];
    let len = prop_oneof![1 => 0..12_usize, 3 => 12..80_usize, 2 => Just(172_usize)];
    (after, first_byte, second_byte, seq_step, ts_step, ssrc, len).prop_map(
        |(after, first_byte, second_byte, seq_step, ts_step, ssrc, len)| Sent {
            after,
            first_byte,
            second_byte,
            seq_step,
            ts_step,
            ssrc,
            len,
        },
    )
}

/// Whether a time is so near to a limit that the two clocks may round it to either side.
fn is_at_the_limit(ts: u32, progress: &Progress, now: u64) -> bool {
    let far = u64::from(CLOCK) * MAX_TIME_JUMP.as_secs();
    let elapsed = u128::from(now - progress.timestamp_at) * u128::from(CLOCK) / 1_000_000_000;
    [progress.last_timestamp, progress.last_timestamp.wrapping_add(elapsed as u32)]
        .iter()
        .any(|due| u64::from((ts.wrapping_sub(*due) as i32).unsigned_abs()).abs_diff(far) < 200)
}

proptest! {
    /// RTP-1: alike on every rung.
    #[test]
    fn what_the_kernel_forwards_the_input_admits(packets in prop::collection::vec(sent(), 1..40), any_type: bool) {
        let mut settings = config(Codec::Other);
        if any_type {
            settings.payload_types.clear();
        }
        let mut now = start();
        let mut input = TrackInput::new(now, settings);
        let mut batch = Batch::default();
        let first = PacketBuilder::new(96, 1_000, 5_000, SSRC).build(b"x");
        input.handle_rtp(now, [first.as_slice()], &mut batch);
        // As a worker hands a run over.
        let standing = input.standing().unwrap();
        let admission = msm_fastpath::Admission::only_ssrc(standing.payload_types, standing.ssrc);
        let entry = FlowEntry::new(FlowKind::Rtp, admission, 0, CLOCK);
        let mut nanos = EPOCH;
        let mut progress = Progress::of(&FlowStats {
            highest: standing.highest,
            window: standing.window,
            last_timestamp: standing.ts,
            timestamp_at: nanos,
            seen: 1,
            ..FlowStats::ZERO
        });
        for sent in packets {
            let packet = sent.bytes(&progress);
            nanos += sent.after;
            now += std::time::Duration::from_nanos(sent.after);
            let arrival = Arrival::new(nanos, CLOCK);
            let header = RtpFixed::parse(&packet).copied();
            let course = decide_flow(header.as_ref(), packet.len(), &entry);
            let is_malformed = header.is_none_or(|header| header.version() != 2)
                || course == Course::Strange(DropReason::Malformed);
            if let (Some(header), Course::Forward) = (header, course) {
                let (seq, ts) = (header.seq(), header.timestamp());
                if is_at_the_limit(ts, &progress, nanos) || !progress.continues(seq, ts, &arrival) {
                    continue;
                }
                progress.take(seq, ts, &arrival);
                input.handle_rtp(now, [packet.as_slice()], &mut batch);
                let found: Vec<_> = batch.arrivals().iter().map(|arrival| (arrival.run, arrival.ext)).collect();
                let highest = input.standing().map(|standing| standing.highest);
                prop_assert_eq!(found.len(), 1, "forwarded and not admitted: {:?} after {:?}", sent, progress);
                prop_assert_eq!((found[0].0, highest), (standing.run, Some(progress.highest)));
                prop_assert_eq!(batch.drops().total(), 0);
            } else if is_malformed {
                input.handle_rtp(now, [packet.as_slice()], &mut batch);
                let drops: Vec<_> = batch.drops().iter().collect();
                prop_assert_eq!(drops, [(DropReason::Malformed, 1)], "malformed there and not here: {:?}", sent);
            }
        }
    }
}
