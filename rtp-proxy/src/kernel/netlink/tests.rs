use netlink_packet_core::DoneMessage;

use super::*;

const LIST: u16 = NLM_F_DUMP;

fn bytes(payload: NetlinkPayload<RouteNetlinkMessage>, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::new(netlink_packet_core::NetlinkHeader::default(), payload);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn link(flags: u16, sequence: u32) -> Vec<u8> {
    bytes(RouteNetlinkMessage::NewLink(LinkMessage::default()).into(), flags, sequence)
}

fn done(flags: u16) -> Vec<u8> {
    bytes(NetlinkPayload::Done(DoneMessage::default()), flags, 7)
}

/// A message of another family of netlink, or of a kernel to come.
fn unknown() -> Vec<u8> {
    let mut message = link(LIST, 7);
    message[4..6].copy_from_slice(&250_u16.to_ne_bytes());
    message
}

#[test]
fn a_list_that_changed_while_it_was_read_is_known_as_such() {
    for (first, last, interrupted) in [(0, 0, false), (NLM_F_DUMP_INTR, 0, true), (0, NLM_F_DUMP_INTR, true)]
    {
        let (mut answers, unread) = (Answers::default(), Unread::default());
        let datagram = [link(LIST | first, 7), link(LIST, 7), link(LIST | NLM_F_DUMP_INTR, 6)].concat();
        assert!(!answers.take(&datagram, 7, true, &unread).unwrap());
        assert!(answers.take(&done(LIST | last), 7, true, &unread).unwrap());
        assert_eq!(
            (answers.found.len(), answers.interrupted),
            (2, interrupted),
            "an older answer does not count"
        );
    }
}

#[test]
fn what_cannot_be_read_is_left_out_and_told_of() {
    let (mut answers, unread) = (Answers::default(), Unread::default());
    let datagram = [unknown(), link(LIST, 7), unknown(), done(LIST)].concat();
    assert!(!unread.told.get());
    assert!(answers.take(&datagram, 7, true, &unread).unwrap());
    assert_eq!(answers.found.len(), 1);
    assert!(unread.told.get());
}

#[test]
fn one_answer_is_enough_where_one_was_asked_for() {
    let (mut answers, unread) = (Answers::default(), Unread::default());
    assert!(answers.take(&link(0, 7), 7, false, &unread).unwrap());
}

#[test]
fn a_datagram_that_lies_about_its_lengths_is_read_as_far_as_it_goes() {
    for length in [0_u32, 15, 17, u32::MAX] {
        let mut second = link(0, 7);
        let size = second.len();
        second[..4].copy_from_slice(&length.to_ne_bytes());
        let datagram = [link(0, 7), second].concat();
        let read = raw_messages(&datagram).map(<[u8]>::len).next();
        assert_eq!(read, Some(size), "{length}");
        assert!(raw_messages(&datagram).count() <= 2);
    }
}
