use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::FromZeros;

use super::*;
use crate::csum;
use crate::flow::{mapped, octets};
use crate::rewrite::{RtpEdit, rewrite};

/// A UDP frame with a payload, built without the code under test. Its UDP checksum is complete.
fn frame(
    v6: bool,
    tos: u8,
    ttl: u8,
    src: [u8; 16],
    dst: [u8; 16],
    ports: [u16; 2],
    payload: &[u8],
) -> Vec<u8> {
    let udp_len = 8 + payload.len() as u16;
    let mut frame = Vec::from([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    let pseudo = if v6 {
        frame.extend([0x86, 0xdd, 0x60 | tos >> 4, tos << 4 | 0x0a, 0xbc, 0xde]);
        frame.extend(udp_len.to_be_bytes());
        frame.extend([17, ttl]);
        frame.extend(src);
        frame.extend(dst);
        csum::pseudo_v6(src, dst, udp_len)
    } else {
        let (src, dst) = (*src.last_chunk().unwrap(), *dst.last_chunk().unwrap());
        let mut ip = Vec::from([0x45, tos]);
        ip.extend((20 + udp_len).to_be_bytes());
        ip.extend([0x12, 0x34, 0x40, 0, ttl, 17, 0, 0]);
        ip.extend(src);
        ip.extend(dst);
        let check = csum::ipv4(&ip);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(ip);
        csum::pseudo_v4(src, dst, udp_len)
    };
    let mut udp = Vec::new();
    udp.extend(ports[0].to_be_bytes());
    udp.extend(ports[1].to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let check = csum::udp(pseudo, &udp);
    udp[6..8].copy_from_slice(&check.to_be_bytes());
    frame.extend(udp);
    frame
}

/// Leg from `src` to `dst`, with the deltas that user space computes.
fn leg(old: [[u8; 16]; 2], new: [[u8; 16]; 2], old_ports: [u16; 2], ports: [u16; 2], v6: bool) -> LegEntry {
    let part = |address: &[u8; 16]| if v6 { address.to_vec() } else { address[12..].to_vec() };
    let mut leg = LegEntry::new_zeroed();
    [leg.src, leg.dst] = new;
    leg.dst_mac = [0xa, 1, 2, 3, 4, 5];
    leg.src_mac = [0xb, 6, 7, 8, 9, 10];
    leg.src_port = ports[0].to_be_bytes();
    leg.dst_port = ports[1].to_be_bytes();
    let mut address = Delta::NONE;
    for side in 0..2 {
        address = address.replace_bytes(&part(&old[side]), &part(&new[side]));
    }
    leg.address_delta = address.0;
    leg.port_delta = Delta::NONE.replace16(old_ports[0], ports[0]).replace16(old_ports[1], ports[1]).0;
    leg
}

fn v4(last: u8) -> [u8; 16] {
    mapped([10, 9, 0, last])
}

fn v6(last: u8) -> [u8; 16] {
    octets(core::net::IpAddr::V6(core::net::Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(last))))
}

#[test]
fn keys_are_those_of_user_space() {
    let payload = [0x80; 20];
    let head = Head::of(&frame(false, 0, 64, v4(1), v4(2), [5_004, 8_062], &payload));
    let key = FlowKey::new(([10, 9, 0, 1], 5_004).into(), ([10, 9, 0, 2], 8_062).into(), 7);
    assert_eq!(head.key(Family::V4, 7), key);
    let head = Head::of(&frame(true, 0, 64, v6(1), v6(2), [5_004, 8_062], &payload));
    let address = |last| core::net::Ipv6Addr::from_octets(v6(last));
    let key = FlowKey::new((address(1), 5_004).into(), (address(2), 8_062).into(), 7);
    assert_eq!(head.key(Family::V6, 7), key);
    assert_eq!(head.rtp(Family::V6), RtpFixed::from_bytes([0x80; 12]));
}

#[test]
fn lengths_that_do_not_agree_are_no_datagram() {
    let good = frame(false, 0, 64, v4(1), v4(2), [1, 2], &[7; 30]);
    let len = good.len() as u32;
    let check = u16::from_be_bytes([good[40], good[41]]);
    assert_eq!(Head::of(&good).datagram_v4(len), Some(Datagram { payload_len: 30, check }));
    assert_eq!(Head::of(&good).datagram_v4(len + 18).unwrap().payload_len, 30, "a padded frame");
    assert_eq!(Head::of(&good).datagram_v4(len - 1), None);
    for (offset, value) in
        [(14, 0x46), (14, 0x55), (16, 0xff), (17, 19), (20, 0x20), (21, 1), (39, 7), (39, 39)]
    {
        let mut bad = good.clone();
        bad[offset] = value;
        assert_eq!(Head::of(&bad).datagram_v4(len), None, "byte {offset} = {value}");
    }
    let good = frame(true, 0, 64, v6(1), v6(2), [1, 2], &[7; 30]);
    assert_eq!(Head::of(&good).datagram_v6(len + 20).unwrap().payload_len, 30);
    for (offset, value) in [(14, 0x45), (18, 1), (19, 37), (59, 7), (59, 39)] {
        let mut bad = good.clone();
        bad[offset] = value;
        assert_eq!(Head::of(&bad).datagram_v6(len + 20), None, "byte {offset} = {value}");
    }
    let mut bare = good;
    bare[60..62].fill(0);
    assert_eq!(Head::of(&bare).datagram_v6(len + 20), None, "no checksum is illegal on IPv6");
}

#[test]
fn a_used_up_hop_limit_leaves_the_copy_alone() {
    let head = Head::of(&frame(false, 0, 1, v4(1), v4(2), [1, 2], &[0; 20]));
    let mut copy = head;
    let leg = leg([v4(1), v4(2)], [v4(3), v4(4)], [1, 2], [3, 4], false);
    let result = copy.readdress(&head, Family::V4, &leg, Checksum::Complete, None);
    assert_eq!((result, copy), (Err(DropReason::Ttl), head));
}

proptest! {
    /// A readdressed and edited frame is the frame that its new sender would have built, checksums included.
    #[test]
    fn a_copy_equals_a_frame_built_anew(
        six: bool, tos: u8, ttl in 2_u8.., own_ttl: Option<u8>, dscp in prop::option::of(0_u8..64),
        old in any::<[[u8; 4]; 2]>(), new in any::<[[u8; 4]; 2]>(),
        old_ports: [u16; 2], ports: [u16; 2],
        payload in prop::collection::vec(any::<u8>(), 12..60),
        edit in prop::option::of((any::<u32>(), any::<u16>(), any::<u32>())),
    ) {
        let widen = |address: [u8; 4]| {
            let mut wide = if six { v6(0) } else { mapped([0; 4]) };
            wide[12..].copy_from_slice(&address);
            wide
        };
        let (old, new) = (old.map(widen), new.map(widen));
        let family = if six { Family::V6 } else { Family::V4 };
        let frame_of = |tos, ttl, side: [[u8; 16]; 2], ports, payload: &[u8]| frame(six, tos, ttl, side[0], side[1], ports, payload);
        let original = frame_of(tos, ttl, old, old_ports, &payload);
        let mut leg = leg(old, new, old_ports, ports, six);
        if let Some(own) = own_ttl {
            leg.ttl = own;
        }
        if let Some(dscp) = dscp {
            leg.flags = LegEntry::SET_DSCP;
            leg.dscp = dscp;
        }
        let head = Head::of(&original);
        let rtp = edit.map(|(ssrc, seq, timestamp)| rewrite(&head.rtp(family), &RtpEdit::projected(ssrc, seq, timestamp)));
        let mut edited = payload.clone();
        if let Some(rtp) = rtp {
            edited[..12].copy_from_slice(&rtp.to_bytes());
        }
        let new_tos = dscp.map_or(tos, |dscp| dscp << 2 | tos & 3);
        let new_ttl = own_ttl.filter(|own| *own != 0).unwrap_or(ttl - 1);
        let mut expected = frame_of(new_tos, new_ttl, new, ports, &edited);
        expected[..12].copy_from_slice(&[leg.dst_mac, leg.src_mac].concat());

        // Whatever the copy was before.
        let mut copy = Head::of(&[0xa5; 80]);
        copy.readdress(&head, family, &leg, Checksum::Complete, rtp).unwrap();
        let len = family.payload_offset() + if rtp.is_some() { 12 } else { 0 };
        prop_assert_eq!(&copy.frame()[..len], &expected[..len]);

        // A partial checksum is the sum of the pseudo-header, and the payload has no part in it.
        let at = family.udp_offset() + 6;
        let sum = |side: [[u8; 16]; 2]| {
            let pseudo = if six {
                csum::pseudo_v6(side[0], side[1], 8 + payload.len() as u16)
            } else {
                let short = side.map(|address| *address.last_chunk().unwrap());
                csum::pseudo_v4(short[0], short[1], 8 + payload.len() as u16)
            };
            csum::partial(pseudo)
        };
        let mut partial = original;
        partial[at..at + 2].copy_from_slice(&sum(old).to_be_bytes());
        copy.readdress(&Head::of(&partial), family, &leg, Checksum::Partial, rtp).unwrap();
        let found = u16::from_be_bytes([copy.frame()[at], copy.frame()[at + 1]]);
        // Both zeros of one's-complement arithmetic are the same sum.
        prop_assert_eq!(found % 0xffff, sum(new) % 0xffff);
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..90), len in 0_u32..70_000) {
        let head = Head::of(&bytes);
        head.datagram_v4(len);
        head.datagram_v6(len);
        let mut copy = head;
        for family in [Family::V4, Family::V6] {
            for checksum in [Checksum::Partial, Checksum::Complete, Checksum::Absent] {
                copy.readdress(&head, family, &LegEntry::new_zeroed(), checksum, Some(head.rtp(family))).ok();
            }
        }
    }
}
