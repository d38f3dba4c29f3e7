//! What cameras send that is not simply a packet after the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use msm_graph::{Encap, InputRow, LegEncap, LegState, Report};
use rtp_proxy::user::WorkerConfig;
use tokio::net::UdpSocket;

use crate::lab::{
    Lab, Pair, TRACK, V4, read_frame, read_response, receiver_report, recv, rtp, run, run_with,
    sender_report, seq_of, ssrc_of,
};

/// An input for a camera whose SETUP response named no `server_port`.
fn unnamed_ports() -> InputRow {
    InputRow {
        track: TRACK,
        encap: Encap::Udp { peer: V4, peer_rtp: None, peer_rtcp: None, local: V4 },
        ssrc: None,
        feedback: false,
        generation: 1,
    }
}

async fn open(lab: &mut Lab, input: InputRow) -> [SocketAddr; 2] {
    let ports = lab.upsert(vec![input]).await.inputs[0].local.unwrap();
    [SocketAddr::new(V4, ports.rtp), SocketAddr::new(V4, ports.rtcp)]
}

#[test]
fn a_port_that_was_not_named_is_learned_from_two_packets_in_sequence() {
    // RTSP-15, SEC-2.
    run(async |mut lab| {
        let [to, rtcp_to] = open(&mut lab, unnamed_ports()).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let armed = lab.begin_arm(leg).await;
        let far = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap();
        let (other, camera) = (Pair::open(V4).await, Pair::open(V4).await);
        // Another address never; another port not with single packets, nor with rubbish.
        for i in 0..10 {
            far.send_to(&rtp(i, 0, 0xbad, 172), to).await.unwrap();
            other.rtp.send_to(&rtp(i * 2, 0, 0xbad, 172), to).await.unwrap();
            other.rtp.send_to(&[0; 200], to).await.unwrap();
        }
        for i in 500..510 {
            camera.rtp.send_to(&rtp(i, 0, 7, 172), to).await.unwrap();
        }
        for i in 500..510 {
            assert_eq!(viewer.recv().await, rtp(i, 0, 7, 172), "the first of the two is not lost");
        }
        assert!(matches!(armed.await.unwrap(), LegState::Armed(starts) if starts[0].seq == 500));
        let peer = lab.workers.snapshot().await.streams[0].tracks[0].peer;
        assert_eq!(peer, Some(camera.rtp_addr()));
        // Locked for good.
        let before = lab.dropped("unknown_source").await;
        for i in 0..3 {
            other.rtp.send_to(&rtp(i, 0, 0xbad, 172), to).await.unwrap();
        }
        camera.rtp.send_to(&rtp(510, 0, 7, 172), to).await.unwrap();
        assert_eq!(seq_of(&viewer.recv().await), 510);
        while lab.dropped("unknown_source").await < before + 3 {
            tokio::task::yield_now().await;
        }
        // RTCP goes to the port above it.
        camera.rtcp.send_to(&sender_report(7, 0), rtcp_to).await.unwrap();
        let up = recv(&camera.rtcp).await;
        assert_eq!((up[1], &up[8..12]), (201, &7u32.to_be_bytes()[..]));
    });
}

#[test]
fn the_time_to_learn_a_port_starts_with_play() {
    run(async |mut lab| {
        let [to, _] = open(&mut lab, unnamed_ports()).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let camera = Pair::open(V4).await;
        // A player may wait between SETUP and PLAY for longer than a port can be learned.
        tokio::time::sleep(Duration::from_millis(3_100)).await;
        camera.rtp.send_to(&rtp(1, 0, 7, 172), to).await.unwrap();
        while lab.dropped("unknown_source").await == 0 {
            tokio::task::yield_now().await;
        }
        let armed = lab.begin_arm(leg).await;
        for i in 2..4 {
            camera.rtp.send_to(&rtp(i, 0, 7, 172), to).await.unwrap();
        }
        assert_eq!(seq_of(&viewer.recv().await), 2);
        armed.await.unwrap();
    });
}

#[test]
fn a_storm_of_key_frame_requests_is_few_upstream() {
    // RTP-25.
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let input = InputRow { feedback: true, ..Lab::udp_input(&camera, 1) };
        let [to, _] = open(&mut lab, input).await;
        camera.rtp.send_to(&rtp(0, 0, 7, 172), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
        let rtcp = lab.workers.player_ports().unwrap().rtcp;
        let mut pli = receiver_report(7, 0);
        pli.extend([0x81, 206, 0, 2, 0, 0, 0, 9, 0, 0, 0, 7]);
        let began = Instant::now();
        for index in 0..41 {
            let viewer = Pair::open(V4).await;
            let encap = LegEncap::Udp { rtp: viewer.rtp_addr(), rtcp: viewer.rtcp_addr(), local: V4 };
            // RTSP-30: the last one did not negotiate feedback.
            let leg = lab.attach_with(encap, index < 40).await;
            lab.arm(leg).await;
            for _ in 0..10 {
                viewer.rtcp.send_to(&pli, (V4, rtcp)).await.unwrap();
            }
            lab.report(|report| matches!(report, Report::LegAlive { leg: of } if *of == leg)).await;
        }
        let allowed = 1 + began.elapsed().as_millis() / 500;
        // Requests go up at once, the reports about the source later.
        let mut requests = 0;
        loop {
            let up = recv(&camera.rtcp).await;
            let is_request = |at: &[u8]| at[0] == 0x81 && at[1] == 206;
            if up.chunks_exact(4).any(is_request) {
                requests += 1;
            } else {
                break;
            }
        }
        assert!((1..=allowed).contains(&requests), "{requests} requests, {allowed} allowed");
    });
}

#[test]
fn the_goodbye_of_a_source_is_consumed() {
    // RTP-24.
    run(async |mut lab| {
        let (camera, [to, rtcp_to]) = lab.active_camera(&rtp(0, 0, 7, 172)).await;
        let (viewer, _) = lab.play_udp().await;
        let mut bye = sender_report(7, 160);
        bye.extend([0x81, 203, 0, 1, 0, 0, 0, 7]);
        camera.rtcp.send_to(&bye, rtcp_to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputBye { .. })).await;
        // Packets and reports that come all the same go on.
        camera.rtp.send_to(&rtp(1, 160, 7, 172), to).await.unwrap();
        assert_eq!(viewer.recv().await, rtp(1, 160, 7, 172));
        camera.rtcp.send_to(&sender_report(7, 32_000), rtcp_to).await.unwrap();
        loop {
            let down = recv(&viewer.rtcp).await;
            assert!(down.chunks_exact(4).all(|word| word[0] >> 6 != 2 || word[1] != 203), "{down:?}");
            if down[16..20] == 32_000u32.to_be_bytes() {
                break;
            }
        }
        assert_eq!(lab.workers.snapshot().await.streams[0].legs.len(), 1);
    });
}

#[test]
fn what_a_full_receive_buffer_loses_is_counted() {
    // The least the kernel grants: a few packets.
    run_with(WorkerConfig { receive_buffer: 1, ..Lab::config() }, async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        let mut sent = 0u16;
        let mut send = async || {
            camera.rtp.send_to(&rtp(sent, 0, 7, 1200), to).await.unwrap();
            sent += 1;
            u64::from(sent)
        };
        // The kernel tells of a loss with the next packet that it keeps.
        loop {
            for _ in 0..64 {
                send().await;
            }
            if lab.dropped("socket_overflow").await > 0 {
                break;
            }
        }
        loop {
            let sent = send().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            let snapshot = lab.workers.snapshot().await;
            let (packets, lost) = (snapshot.streams[0].tracks[0].packets, snapshot.streams[0].tracks[0].lost);
            let overflows = snapshot.sockets.iter().find(|s| s.socket == "input_rtp").unwrap().overflows;
            assert_eq!(snapshot.drops, [("socket_overflow", overflows)]);
            if packets + overflows == sent && lost == overflows {
                break;
            }
        }
    });
}

#[test]
fn viewers_on_tcp_get_no_packet_twice() {
    // RTP-8.
    run(async |mut lab| {
        let (camera, [to, _]) = lab.active_camera(&rtp(0, 0, 7, 172)).await;
        let (viewer, _) = lab.play_udp().await;
        let (mut client, _handle, _) = lab.play_tcp(None).await;
        read_response(&mut client).await;
        for i in 1..50 {
            let packet = rtp(i, 0, 7, 172);
            for _ in 0..2 {
                camera.rtp.send_to(&packet, to).await.unwrap();
                assert_eq!(viewer.recv().await, packet, "on UDP as it came");
            }
        }
        for i in 1..50 {
            assert_eq!(read_frame(&mut client).await, (0, rtp(i, 0, 7, 172)));
        }
    });
}

#[test]
fn viewers_on_tcp_get_packets_in_sequence() {
    // RTP-12.
    run(async |mut lab| {
        let (camera, [to, _]) = lab.active_camera(&rtp(0, 0, 7, 172)).await;
        let (viewer, _) = lab.play_udp().await;
        let (mut client, _handle, _) = lab.play_tcp(None).await;
        read_response(&mut client).await;
        // One datagram, so that nothing can be late: its segments are swapped in threes.
        let came: Vec<u16> = (0..20).flat_map(|i| [1, 3, 2].map(|k| i * 3 + k)).collect();
        let contents: Vec<u8> = came.iter().flat_map(|seq| rtp(*seq, 0, 7, 172)).collect();
        let state = quinn_udp::UdpSocketState::new((&camera.rtp).into()).unwrap();
        let burst = quinn_udp::Transmit {
            destination: to,
            ecn: None,
            contents: &contents,
            segment_size: Some(172),
            src_ip: None,
        };
        state.try_send((&camera.rtp).into(), &burst).unwrap();
        for seq in came {
            assert_eq!(viewer.recv().await, rtp(seq, 0, 7, 172), "on UDP as it came");
        }
        for seq in 1..=60 {
            assert_eq!(read_frame(&mut client).await, (0, rtp(seq, 0, 7, 172)));
        }
        // What is lost is waited for, not for ever, though nothing follows.
        for seq in [61, 63, 64] {
            camera.rtp.send_to(&rtp(seq, 0, 7, 172), to).await.unwrap();
        }
        for seq in [61, 63, 64] {
            assert_eq!(read_frame(&mut client).await, (0, rtp(seq, 0, 7, 172)));
        }
        // The lost one was only late: too late.
        for seq in [62, 65] {
            camera.rtp.send_to(&rtp(seq, 0, 7, 172), to).await.unwrap();
        }
        assert_eq!(seq_of(&read_frame(&mut client).await.1), 65);
        assert_eq!(lab.dropped("late").await, 1);
        // Another source is another sequence; nothing of it waits for the old one.
        let again = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&again, 2).await;
        again.rtp.send_to(&rtp(9_000, 0, 8, 172), to).await.unwrap();
        let (_, spliced) = read_frame(&mut client).await;
        assert_eq!((seq_of(&spliced), ssrc_of(&spliced)), (66, 7));
    });
}
