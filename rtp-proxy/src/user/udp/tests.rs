use std::net::Ipv4Addr;

use nix::{getsockopt_impl, sockopt_impl};

use super::receive::Datagram;
use super::*;

sockopt_impl!(
    /// What a socket does about the path's MTU.
    PathMtu,
    GetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);

const SIZES: BufferSizes = BufferSizes { receive: 1 << 20, send: 1 << 20 };

fn pieces(lens: &[u32]) -> Vec<Piece> {
    lens.iter()
        .scan(0, |offset, &len| {
            let piece = Piece { offset: *offset, len };
            *offset += len;
            Some(piece)
        })
        .collect()
}

#[test]
fn runs_are_equal_sizes_with_a_shorter_last() {
    type Case = (&'static str, &'static [u32], &'static [(u32, u32, u16)]);
    let table: &[Case] = &[
        ("nothing", &[], &[]),
        ("one", &[172], &[(0, 1, 172)]),
        ("equal", &[172; 3], &[(0, 3, 172)]),
        ("a shorter one ends a run", &[1200, 1200, 80, 80], &[(0, 3, 1200), (3, 1, 80)]),
        ("a longer one starts a run", &[80, 1200, 1200], &[(0, 1, 80), (1, 2, 1200)]),
        ("empty datagrams stay single", &[0, 0], &[(0, 1, 0), (1, 1, 0)]),
    ];
    let mut runs = Vec::new();
    for (name, lens, expected) in table {
        split_runs(&pieces(lens), &mut runs);
        let got: Vec<_> = runs.iter().map(|run| (run.first, run.count, run.size)).collect();
        assert_eq!(got, *expected, "{name}");
    }
}

#[test]
fn runs_stay_within_64_segments_and_the_largest_datagram() {
    let mut runs = Vec::new();
    for (len, count) in [(172, 65), (172, 129), (1472, 64), (20_000, 5), (65_507, 2)] {
        let pieces = pieces(&vec![len; count]);
        split_runs(&pieces, &mut runs);
        assert_eq!(runs.iter().map(|run| run.count as usize).sum::<usize>(), count);
        for run in &runs {
            assert!(run.count as usize <= BATCH, "{len} x {count}");
            assert!(run.count == 1 || run.count as usize * len as usize <= MAX_SEND, "{len} x {count}");
        }
    }
}

#[test]
fn segments_of_a_super_packet_end_with_a_shorter_one() {
    let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    for (len, segment, count, last) in [(1000, 100, 10, 100), (950, 100, 10, 50), (100, 100, 1, 100)] {
        let datagram = Datagram { piece: Piece { offset: 7, len }, from, segment };
        let all: Vec<_> = datagram.segments().collect();
        assert_eq!((all.len(), all.last().map(|piece| piece.len)), (count, Some(last)));
        assert_eq!(all.iter().map(|piece| piece.len).sum::<u32>(), len);
    }
}

fn wait(buffer: &mut ReceiveBuffer, socket: &UdpSocket) -> bool {
    loop {
        match buffer.recv(socket) {
            Ok(emptied) => return emptied,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_segmented_send_arrives_as_its_packets_in_order() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for count in [1, 2, 63, 64] {
        let (rtp, _) = open_any_pair(local, SIZES, false).unwrap();
        let (sender, _) = open_any_pair(local, SIZES, false).unwrap();
        let bytes: Vec<u8> = (0..count * 172 - 9).map(|i| (i % 251) as u8).collect();
        let mut lens = vec![172; count - 1];
        lens.push(172 - 9);
        let parts = pieces(&lens);
        let to = Destination::new(rtp.socket.local_addr().unwrap(), None);
        send_segmented(descriptor(&sender.socket), &to, &bytes, &parts, 172).unwrap();
        let mut buffer = ReceiveBuffer::new();
        let mut got = Vec::new();
        while got.len() < count {
            wait(&mut buffer, &rtp.socket);
            for datagram in buffer.datagrams() {
                assert_eq!(datagram.from, sender.socket.local_addr().unwrap());
                for piece in datagram.segments() {
                    got.push(buffer.bytes().get(piece.range()).unwrap().to_vec());
                }
            }
        }
        let sent: Vec<_> = parts.iter().map(|piece| bytes.get(piece.range()).unwrap().to_vec()).collect();
        assert_eq!(got, sent, "{count} segments");
    }
}

#[test]
fn a_send_names_its_source_address() {
    let (rtp, _) = open_any_pair(IpAddr::V4(Ipv4Addr::LOCALHOST), SIZES, false).unwrap();
    let (sender, _) = open_any_pair(IpAddr::V4(Ipv4Addr::UNSPECIFIED), SIZES, true).unwrap();
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    let to = Destination::new(rtp.socket.local_addr().unwrap(), Some(source));
    send_one(descriptor(&sender.socket), &to, b"hello").unwrap();
    let mut buffer = ReceiveBuffer::new();
    assert!(wait(&mut buffer, &rtp.socket), "fewer than asked for: the socket is empty");
    assert_eq!(buffer.datagrams()[0].from.ip(), source);
}

#[test]
fn a_closed_port_is_told_once_by_the_error_queue() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (gone, _) = open_any_pair(local, SIZES, false).unwrap();
    let target = gone.socket.local_addr().unwrap();
    drop(gone);
    let (sender, _) = open_any_pair(local, SIZES, true).unwrap();
    send_one(descriptor(&sender.socket), &Destination::new(target, None), b"x").unwrap();
    assert_eq!(recv_error(&sender.socket), Some((target, true)));
    assert_eq!(recv_error(&sender.socket), None);
}

#[test]
fn a_used_up_range_says_so() {
    let local = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));
    let (rtp, _rtcp) = open_any_pair(local, SIZES, false).unwrap();
    let port = rtp.socket.local_addr().unwrap().port();
    assert_eq!(port % 2, 0, "RTP is even");
    let error = open_pair(local, &(port..=port + 1), &mut 0, SIZES).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn one_call_sends_the_same_to_all_until_one_fails() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (sender, _) = open_any_pair(IpAddr::V4(Ipv4Addr::UNSPECIFIED), SIZES, true).unwrap();
    let viewers: Vec<_> = (0..4).map(|_| open_any_pair(local, SIZES, false).unwrap().0.socket).collect();
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    // Every other one is to see an address of its own.
    let mut to: Vec<_> = viewers
        .iter()
        .enumerate()
        .map(|(i, viewer)| Destination::new(viewer.local_addr().unwrap(), (i % 2 == 1).then_some(source)))
        .collect();
    let bytes: Vec<u8> = (0..3 * 172 - 9).map(|i| (i % 251) as u8).collect();
    let parts = pieces(&[172, 172, 163]);
    let fd = descriptor(&sender.socket);
    assert_eq!(send_same(fd, to.iter(), &bytes, &parts, 172), 4);
    // Nobody has port 0: whoever is behind it waits for a call of his own.
    to.insert(2, Destination::new((local, 0).into(), None));
    assert_eq!(send_same(fd, to.iter(), &bytes, &parts[..1], 172), 2);
    assert_eq!(send_same(fd, to[2..].iter(), &bytes, &parts[..1], 172), 0);
    assert_eq!(send_same(fd, to[3..].iter(), &bytes, &parts[..1], 172), 2);
    for (index, viewer) in viewers.iter().enumerate() {
        let mut buffer = ReceiveBuffer::new();
        let mut got = Vec::new();
        while got.len() < 4 {
            wait(&mut buffer, viewer);
            for datagram in buffer.datagrams() {
                assert_eq!(datagram.from.ip(), if index % 2 == 1 { source } else { local }, "{index}");
                got.extend(datagram.segments().map(|piece| buffer.bytes()[piece.range()].to_vec()));
            }
        }
        let sent = parts.iter().chain(&parts[..1]).map(|piece| bytes[piece.range()].to_vec());
        assert!(got.into_iter().eq(sent), "{index}");
    }
}

#[test]
fn datagrams_arrive_whole_whatever_came_before_and_those_of_a_burst_come_to_lie_side_by_side() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (rtp, _) = open_any_pair(local, SIZES, false).unwrap();
    let (sender, _) = open_any_pair(local, SIZES, false).unwrap();
    let to = Destination::new(rtp.socket.local_addr().unwrap(), None);
    let mut buffer = ReceiveBuffer::new();
    let mut burst = |lens: &[usize]| {
        let sent: Vec<Vec<u8>> =
            lens.iter().map(|len| (0..*len).map(|i| (i * len) as u8).collect()).collect();
        for packet in &sent {
            send_one(descriptor(&sender.socket), &to, packet).unwrap();
        }
        let mut got = 0;
        let mut neighbours = true;
        while got < sent.len() {
            wait(&mut buffer, &rtp.socket);
            let mut end = None;
            for datagram in buffer.datagrams() {
                assert_eq!(buffer.bytes()[datagram.piece.range()], sent[got], "{lens:?}");
                neighbours &= end.is_none_or(|end| end == datagram.piece.range().start);
                end = Some(datagram.piece.range().end);
                got += 1;
            }
        }
        neighbours
    };
    assert!(!burst(&[172; 8]), "slots are long at first");
    for _ in 0..1_000 {
        burst(&[172; 2]);
    }
    assert!(burst(&[172; 32]));
    // Longer ones find room, too, and at once have longer slots.
    burst(&[172, 1_200, 173, 5_000, 1_200, 0, 65_507, 12]);
    assert!(burst(&[1_200, 1_200, 1_200, 80]), "a shorter last one ends the row");
}

#[test]
fn a_socket_that_only_sends_keeps_nothing_and_counts() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (deaf, _) = open_any_pair(local, SIZES, true).unwrap();
    let (sender, _) = open_any_pair(local, SIZES, false).unwrap();
    only_send(&deaf.socket).unwrap();
    let to = Destination::new(deaf.socket.local_addr().unwrap(), None);
    let last = std::cell::Cell::new(0);
    for packet in [&b"punch"[..], b"", &[0x80; 1_400]] {
        send_one(descriptor(&sender.socket), &to, packet).unwrap();
    }
    assert_eq!(dropped_since(&deaf.socket, &last), 3);
    assert_eq!(dropped_since(&deaf.socket, &last), 0);
    let error = ReceiveBuffer::new().recv(&deaf.socket).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn what_a_path_is_too_narrow_for_is_refused_until_fragments_are_allowed() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (rtp, _) = open_any_pair(local, SIZES, false).unwrap();
    let (sender, _) = open_any_pair(local, SIZES, false).unwrap();
    let fd = descriptor(&sender.socket);
    let discovery = || getsockopt(&sender.socket, PathMtu).unwrap();
    never_fragment(fd).unwrap();
    assert_eq!(discovery(), libc::IP_PMTUDISC_DO);
    let to = Destination::new(rtp.socket.local_addr().unwrap(), None);
    send_one(fd, &to, &[7; 1_200]).unwrap();
    assert!(fragment(fd));
    assert_eq!(discovery(), libc::IP_PMTUDISC_WANT, "as every socket is opened");
    let mut buffer = ReceiveBuffer::new();
    wait(&mut buffer, &rtp.socket);
    assert_eq!(buffer.bytes()[buffer.datagrams()[0].piece.range()], [7; 1_200]);
}
