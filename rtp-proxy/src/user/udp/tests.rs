use std::net::Ipv4Addr;

use super::receive::Datagram;
use super::*;

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
