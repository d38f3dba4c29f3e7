//! Cases of the parsers and builders; rtcp-types is the independent parser.

use proptest::prelude::*;
use rtcp_types as oracle;
use rtcp_types::prelude::*;

use super::bye::write_bye;
use super::feedback::write_pli;
use super::rr::write_rr;
use super::sdes::write_cname;
use super::sr::{SenderInfo, write_sr};
use super::*;
use crate::clock::{Ntp, RtpTime};

const INFO: SenderInfo = SenderInfo {
    ssrc: 0x1111_2222,
    ntp: Ntp(0xe123_4567_89ab_cdef),
    rtp: RtpTime(90_000),
    packets: 7,
    octets: 900,
};

fn block() -> ReportBlock {
    ReportBlock {
        ssrc: 0x3333_4444,
        fraction_lost: 13,
        cumulative_lost: -2,
        highest: 0x0002_0001,
        jitter: 44,
        lsr: 0x4567_89ab,
        dlsr: 65_536,
    }
}

fn full() -> Vec<u8> {
    let mut out = Vec::new();
    write_sr(&mut out, &INFO);
    write_cname(&mut out, INFO.ssrc, b"camera@example");
    out
}

fn parse(bytes: &[u8]) -> Result<Compound<'_>, RtcpError> {
    Compound::parse(bytes, CompoundPolicy::Full)
}

#[test]
fn a_bare_sender_report_is_accepted_and_known_to_lack_a_cname() {
    let mut bare = Vec::new();
    write_sr(&mut bare, &INFO);
    assert_eq!(bare.len(), 28, "what ffmpeg sends");
    assert!(!parse(&bare).expect("RTP-20: missing SDES is no reason").has_cname());
    assert!(parse(&full()).unwrap().has_cname());
}

#[test]
fn one_failure_rejects_the_compound() {
    let good = full();
    let sr = 28;
    let mut cases = Vec::new();
    cases.push(("empty", Vec::new(), RtcpError::Truncated { offset: 0, left: 0 }));
    cases.push((
        "cut",
        good[..good.len() - 4].to_vec(),
        RtcpError::Length { offset: sr, length: 28, left: 24 },
    ));
    let mut bad = good.clone();
    bad.extend([0x80, 201]);
    cases.push(("rest shorter than a header", bad, RtcpError::Truncated { offset: good.len(), left: 2 }));
    let mut bad = good.clone();
    bad[sr] = 0x41;
    cases.push(("version in the second packet", bad, RtcpError::Version { offset: sr, version: 1 }));
    for packet_type in [191, 224] {
        let mut bad = good.clone();
        bad[sr + 1] = packet_type;
        cases.push(("packet type", bad, RtcpError::PacketType { offset: sr, packet_type }));
    }
    let mut bad = good.clone();
    bad[0] |= 0x20;
    bad[27] = 4;
    cases.push(("padding before the last packet", bad, RtcpError::Padding { offset: 0 }));
    let mut bad = good.clone();
    bad[sr] |= 0x20;
    bad[good.len() - 1] = 3;
    cases.push(("padding that is no multiple of four", bad, RtcpError::Padding { offset: sr }));
    let mut bad = good.clone();
    bad[0] |= 1;
    cases.push(("a block that is not there", bad, RtcpError::Body { offset: 0, packet_type: 200 }));
    for (what, bytes, error) in cases {
        assert_eq!(parse(&bytes).err(), Some(error), "RTP-20: {what}");
    }
}

#[test]
fn padding_of_the_last_packet_is_not_part_of_it() {
    let mut bytes = full();
    let start = bytes.len();
    write_bye(&mut bytes, 9);
    bytes.extend([0, 0, 0, 4]);
    bytes[start] |= 0x20;
    bytes[start + 3] += 1;
    let compound = parse(&bytes).unwrap();
    let bye =
        compound.packets().find_map(|p| if let Packet::Bye(bye) = p { Some(bye) } else { None }).unwrap();
    assert_eq!((bye.ssrcs().collect::<Vec<_>>(), bye.reason()), (vec![9], None));
}

#[test]
fn feedback_alone_is_taken_where_reduced_size_is_allowed() {
    let mut pli = Vec::new();
    write_pli(&mut pli, 1, 2);
    assert_eq!(parse(&pli).err(), Some(RtcpError::First { packet_type: 206 }));
    assert!(Compound::parse(&pli, CompoundPolicy::ReducedSize).is_ok(), "RFC 5506");
}

#[test]
fn feedback_is_told_apart_by_kind() {
    fn fci(packet_type: u8, format: u8, fci: &[u8]) -> Vec<u8> {
        let mut body = vec![0, 0, 0, 1, 0, 0, 0, 2];
        body.extend(fci);
        let mut out = Vec::new();
        write_packet(&mut out, format, packet_type, &body);
        out
    }
    let kind = |bytes: &[u8]| {
        format!(
            "{:?}",
            Compound::parse(bytes, CompoundPolicy::ReducedSize).unwrap().packets().next().unwrap()
        )
    };
    assert!(kind(&fci(206, 1, &[])).contains("Pli"));
    assert!(kind(&fci(206, 4, &[0, 0, 0, 2, 5, 0, 0, 0])).contains("Fir"));
    assert!(kind(&fci(205, 1, &[0, 1, 0, 0])).contains("Nack"));
    assert!(kind(&fci(206, 15, b"REMB")).contains("Remb"), "RTP-27");
    assert!(kind(&fci(206, 15, b"XXXX")).contains("Other"));
    assert!(kind(&fci(205, 15, &[0; 8])).contains("TransportCc"), "RTP-27");
    assert!(kind(&fci(205, 11, &[0; 8])).contains("Ccfb"), "RTP-27");
}

#[test]
fn a_fir_asks_for_the_sources_of_its_entries() {
    let entries = [0, 0, 0, 7, 1, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0];
    let mut body = vec![0, 0, 0, 1, 0, 0, 0, 0];
    body.extend(entries);
    let fir = Feedback::parse(206, 4, &body).unwrap();
    assert!(fir.wants_key_frame(7) && fir.wants_key_frame(8) && !fir.wants_key_frame(9));
    let pli = Feedback::parse(206, 1, &[0, 0, 0, 1, 0, 0, 0, 7]).unwrap();
    assert!(pli.wants_key_frame(7) && !pli.wants_key_frame(8));
}

#[test]
fn a_nack_names_its_packet_and_those_of_its_mask() {
    let body = [0, 0, 0, 1, 0, 0, 0, 2, 0xff, 0xff, 0x80, 0x01];
    let Some(Feedback::Nack { lost, .. }) = Feedback::parse(205, 1, &body) else { panic!("a NACK") };
    assert_eq!(lost.iter().collect::<Vec<_>>(), [65_535, 0, 15]);
}

#[test]
fn bye_is_stripped_from_a_compound_and_the_rest_stays_as_it_was() {
    let mut bytes = full();
    let before = bytes.clone();
    write_bye(&mut bytes, INFO.ssrc);
    let mut out = Vec::new();
    assert!(parse(&bytes).unwrap().write_without_bye(&mut out), "RTP-24");
    assert_eq!(out, before);

    let mut bye = Vec::new();
    write_bye(&mut bye, INFO.ssrc);
    let alone = Compound::parse(&bye, CompoundPolicy::ReducedSize).unwrap();
    assert!(!alone.write_without_bye(&mut out), "RTP-24: nothing is left to send");
}

#[test]
fn a_sloppy_source_description_costs_nothing_else() {
    let mut bytes = Vec::new();
    write_sr(&mut bytes, &INFO);
    write_packet(&mut bytes, 2, packet_type::SDES, &[0, 0, 0, 1, 1, 200, b'x', b'y']);
    let compound = parse(&bytes).expect("RTP-20 asks for lengths that sum, no more");
    assert!(!compound.has_cname());
    assert!(matches!(compound.packets().next(), Some(Packet::Sr(_))));
}

#[test]
fn what_we_build_the_oracle_reads() {
    let mut bytes = Vec::new();
    write_sr(&mut bytes, &INFO);
    write_rr(&mut bytes, 5, &[block()]);
    write_cname(&mut bytes, 5, b"proxy@example");
    write_pli(&mut bytes, 5, 6);
    write_bye(&mut bytes, 5);
    let packets: Vec<_> = oracle::Compound::parse(&bytes).unwrap().map(Result::unwrap).collect();
    let [
        oracle::Packet::Sr(sr),
        oracle::Packet::Rr(rr),
        oracle::Packet::Sdes(sdes),
        oracle::Packet::PayloadFeedback(pli),
        oracle::Packet::Bye(bye),
    ] = packets.as_slice()
    else {
        panic!("{packets:?}")
    };
    assert_eq!((sr.ssrc(), sr.ntp_timestamp(), sr.rtp_timestamp()), (INFO.ssrc, INFO.ntp.0, INFO.rtp.0));
    assert_eq!((sr.packet_count(), sr.octet_count()), (7, 900));
    let read = rr.report_blocks().next().unwrap();
    assert_eq!((rr.ssrc(), read.ssrc(), read.fraction_lost()), (5, 0x3333_4444, 13));
    assert_eq!(read.cumulative_lost(), 0x00ff_fffe, "-2 in 24 bits");
    assert_eq!((read.extended_sequence_number(), read.interarrival_jitter()), (0x0002_0001, 44));
    assert_eq!(
        (read.last_sender_report_timestamp(), read.delay_since_last_sender_report_timestamp()),
        (0x4567_89ab, 65_536)
    );
    let chunk = sdes.chunks().next().unwrap();
    assert_eq!((chunk.ssrc(), chunk.items().next().unwrap().value()), (5, &b"proxy@example"[..]));
    assert!(pli.parse_fci::<oracle::Pli>().is_ok());
    assert_eq!((pli.sender_ssrc(), pli.media_ssrc()), (5, 6));
    assert_eq!(bye.ssrcs().collect::<Vec<_>>(), [5]);
}

#[test]
fn cnames_of_every_length_keep_the_compound_valid() {
    for len in 0..=300 {
        let cname = vec![b'c'; len];
        let mut bytes = Vec::new();
        write_rr(&mut bytes, 5, &[]);
        write_cname(&mut bytes, 5, &cname);
        let compound = parse(&bytes).unwrap();
        let Some(Packet::Sdes(sdes)) = compound.packets().nth(1) else { panic!("an SDES") };
        assert_eq!(sdes.cname(), Some((5, &cname[..len.min(255)])));
        assert_eq!(oracle::Compound::parse(&bytes).unwrap().filter_map(Result::ok).count(), 2, "{len}");
    }
}

proptest! {
    #[test]
    fn report_blocks_survive_the_wire(fields: [u32; 5], fraction_lost: u8, cumulative_lost in -0x80_0000..0x7f_ffff) {
        let [ssrc, highest, jitter, lsr, dlsr] = fields;
        let block = ReportBlock { ssrc, fraction_lost, cumulative_lost, highest, jitter, lsr, dlsr };
        let mut bytes = Vec::new();
        write_rr(&mut bytes, 1, &[block, block]);
        let Some(Packet::Rr(rr)) = parse(&bytes).unwrap().packets().next() else { panic!("an RR") };
        prop_assert_eq!(rr.blocks().collect::<Vec<_>>(), vec![block, block]);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&bytes);
        crate::rtp::fuzz(&bytes);
    }

    #[test]
    fn damaged_compounds_are_answered(at in 0_usize..120, value: u8, cut in 0_usize..120) {
        let mut bytes = full();
        write_rr(&mut bytes, 5, &[block()]);
        write_pli(&mut bytes, 5, 6);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(cut.max(1));
        fuzz(&bytes);
    }

    #[test]
    fn what_the_oracle_builds_we_read(ssrc: u32, ntp: u64, rtp: u32, count in 0_usize..5, cname in "[a-z@.]{1,40}") {
        let mut sr = oracle::SenderReport::builder(ssrc).ntp_timestamp(ntp).rtp_timestamp(rtp);
        for source in 0..count {
            sr = sr.add_report_block(oracle::ReportBlock::builder(source as u32).fraction_lost(3));
        }
        let chunk = oracle::SdesChunk::builder(ssrc).add_item(oracle::SdesItem::builder(CNAME_ITEM, &cname));
        let compound = oracle::Compound::builder()
            .add_packet(sr)
            .add_packet(oracle::Sdes::builder().add_chunk(chunk))
            .add_packet(oracle::Bye::builder().add_source(ssrc).reason("gone"))
            // Its builder misplaces the padding of a BYE that has a reason.
            .add_packet(oracle::Bye::builder().add_source(ssrc).padding(8));
        let mut bytes = vec![0; compound.calculate_size().unwrap()];
        compound.write_into(&mut bytes).unwrap();
        let packets: Vec<_> = parse(&bytes).unwrap().packets().collect();
        let [Packet::Sr(sr), Packet::Sdes(sdes), Packet::Bye(bye), Packet::Bye(padded)] = packets.as_slice() else {
            panic!("{packets:?}")
        };
        prop_assert_eq!((padded.ssrcs().count(), padded.reason()), (1, None));
        prop_assert_eq!((sr.ssrc(), sr.ntp().0, sr.info().rtp.0), (ssrc, ntp, rtp));
        prop_assert_eq!(sr.blocks().map(|b| b.ssrc as usize).collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        prop_assert_eq!(sdes.cname(), Some((ssrc, cname.as_bytes())));
        prop_assert_eq!((bye.ssrcs().collect::<Vec<_>>(), bye.reason()), (vec![ssrc], Some(&b"gone"[..])));
    }
}

const CNAME_ITEM: u8 = sdes::CNAME;
