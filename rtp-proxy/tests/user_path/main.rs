//! The user-space path over loopback sockets: rows and legs in, packets out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod bursts;
mod hostile;
mod lab;
mod legs;
mod rows;
mod sources;
mod workers;

use std::time::Duration;

use msm_graph::{LegEncap, LegOp, LegState, Report};
use rtp_proxy::kernel::hop::UserReason;
use tokio::time::timeout;

use crate::lab::{
    PATIENCE, Pair, V4, V6, read_frame, read_response, recv, rtp, run, sender_report, seq_of, ssrc_of, ts_of,
};

#[test]
fn every_viewer_gets_every_byte_from_the_announced_packet_on() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        // Numbers wrap on the way (RTP-3).
        camera.rtp.send_to(&rtp(65_500, 0, 0xabcd, 172), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;

        let mut viewers = Vec::new();
        for _ in 0..3 {
            let viewer = Pair::open(V4).await;
            let leg = lab.attach_udp(&viewer).await;
            let start = lab.arm(leg).await;
            assert_eq!((start.seq, start.ssrc), (65_501, 0xabcd), "RTSP-31: the next packet");
            viewers.push(viewer);
        }
        let mut interleaved = Vec::new();
        for _ in 0..2 {
            let (mut client, handle, conn) = lab.connect(None).await;
            let leg = lab.attach(LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 }).await;
            let start = lab.play_interleaved(&mut client, &handle, leg).await;
            assert_eq!(start.seq, 65_501);
            interleaved.push((client, handle));
        }
        let sent: Vec<_> = (0..200u16)
            .map(|i| {
                rtp(65_501u16.wrapping_add(i), u32::from(i) * 160, 0xabcd, 172 + usize::from(i) % 3 * 500)
            })
            .collect();
        for packet in &sent {
            camera.rtp.send_to(packet, to).await.unwrap();
        }
        for viewer in &viewers {
            for packet in &sent {
                assert_eq!(viewer.recv().await, *packet);
            }
        }
        for (client, _) in &mut interleaved {
            assert!(read_response(client).await.starts_with("RTSP/1.0 200"), "RTSP-44: the response first");
            for packet in &sent {
                assert_eq!(read_frame(client).await, (0, packet.clone()));
            }
        }
        let snapshot = lab.workers.snapshot().await;
        let stream = &snapshot.streams[0];
        assert_eq!((stream.tracks[0].packets, stream.tracks[0].lost), (201, 0));
        assert_eq!(stream.out_packets, 5 * 200);
        assert!(
            stream.legs.iter().all(|leg| leg.packets == 200 && leg.state == "active"),
            "{:?}",
            stream.legs
        );
    });
}

#[test]
fn a_leg_armed_before_the_first_packet_starts_with_it() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let armed = lab.begin_arm(leg).await;
        let first = rtp(77, 1234, 5, 100);
        camera.rtp.send_to(&first, to).await.unwrap();
        let LegState::Armed(starts) = armed.await.unwrap() else { panic!() };
        assert_eq!((starts[0].seq, starts[0].rtptime, starts[0].ssrc), (77, 1234, 5));
        assert_eq!(viewer.recv().await, first);
    });
}

#[test]
fn an_arm_without_any_packet_answers_empty_after_its_wait() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        lab.open_udp(&camera, 1).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let state = lab.installer.submit_leg(LegOp::Arm { leg, wait_millis: 150 }).await.unwrap();
        assert_eq!(state, LegState::Armed(vec![]));
    });
}

#[test]
fn a_restarted_source_is_spliced_behind_the_viewers() {
    run(async |mut lab| {
        let (camera, [to, _]) = lab.active_camera(&rtp(100, 1000, 0x11, 172)).await;
        let (viewer, _) = lab.play_udp().await;
        let (mut client, _handle, _tcp_leg) = lab.play_tcp(None).await;
        camera.rtp.send_to(&rtp(101, 1160, 0x11, 172), to).await.unwrap();
        assert_eq!(seq_of(&viewer.recv().await), 101);

        // A new generation on new ports with another SSRC, sequence and timeline (RTP-6).
        let again = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&again, 2).await;
        for i in 0..10u16 {
            again.rtp.send_to(&rtp(40_000 + i, 7_000_000 + u32::from(i) * 160, 0x22, 300), to).await.unwrap();
        }
        let mut last_ts = 1160;
        for i in 0..10u16 {
            let packet = viewer.recv().await;
            assert_eq!((seq_of(&packet), ssrc_of(&packet)), (102 + i, 0x11), "one SSRC, no gap");
            assert!(ts_of(&packet) > last_ts, "timestamps go forward");
            last_ts = ts_of(&packet);
            assert_eq!(packet[12..], rtp(40_000 + i, 0, 0, 300)[12..], "payload untouched");
        }
        read_response(&mut client).await;
        for i in 0..11u16 {
            let (channel, packet) = read_frame(&mut client).await;
            assert_eq!((channel, seq_of(&packet), ssrc_of(&packet)), (0, 101 + i, 0x11));
        }
        let legs = lab.workers.snapshot().await.streams[0].legs.clone();
        assert!(legs.iter().all(|leg| leg.packets == 11));
        // Why each is here: over TCP it always is.
        let of = |transport| legs.iter().find(|leg| leg.transport == transport).unwrap().rung_reason.clone();
        assert_eq!(of("tcp"), Some(UserReason::Transport("interleaved TCP")));
        assert!(of("udp").is_some_and(|reason| !matches!(reason, UserReason::Transport(_))));
    });
}

#[test]
fn an_ipv6_viewer_plays_an_ipv4_camera_and_the_reverse() {
    // RTP-40, case 44.
    for (source, sink) in [(V4, V6), (V6, V4)] {
        run(async |mut lab| {
            let camera = Pair::open(source).await;
            let (to, _) = lab.open_udp(&camera, 1).await;
            let viewer = Pair::open(sink).await;
            let leg = lab.attach_udp(&viewer).await;
            let armed = lab.begin_arm(leg).await;
            for i in 0..40 {
                camera.rtp.send_to(&rtp(i, 0, 1, 1200), to).await.unwrap();
            }
            armed.await.unwrap();
            for i in 0..40 {
                assert_eq!(viewer.recv().await, rtp(i, 0, 1, 1200));
            }
        });
    }
}

#[test]
fn rtcp_of_viewers_is_their_life_sign_and_ends_here() {
    run(async |mut lab| {
        let (camera, [to, rtcp_to]) = lab.active_camera(&rtp(10, 0, 0x77, 172)).await;
        camera.rtcp.send_to(&sender_report(0x77, 0), rtcp_to).await.unwrap();
        let (viewer, leg) = lab.play_udp().await;
        camera.rtp.send_to(&rtp(11, 160, 0x77, 172), to).await.unwrap();
        viewer.recv().await;
        let mut buffer = [0; 1500];
        let (len, from) = timeout(PATIENCE, viewer.rtcp.recv_from(&mut buffer)).await.unwrap().unwrap();
        // RTP-21: the cached report at once, at the time of the packet: 160 ticks of 8 kHz are 20 ms.
        let mut now = sender_report(0x77, 160);
        now[12..16].copy_from_slice(&0x851e_b852_u32.to_be_bytes());
        assert_eq!(buffer[..len][..28], now[..]);
        // RR: 3 lost of 256ths 128, jitter 80 ticks.
        let mut rr = vec![0x81, 201, 0, 7, 0, 0, 0, 9];
        rr.extend(0x77u32.to_be_bytes());
        rr.extend([128, 0, 0, 3, 0, 0, 0, 11, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]);
        viewer.rtcp.send_to(&rr, from).await.unwrap();
        let alive = lab.report(|report| matches!(report, Report::LegAlive { .. })).await;
        assert_eq!(alive, Report::LegAlive { leg });
        let stats = lab.workers.snapshot().await.streams[0].legs[0].clone();
        assert_eq!(
            (stats.lost, stats.jitter),
            (Some(3), Some(Duration::from_millis(10))),
            "80 ticks of 8 kHz"
        );
        // RTP-22, RTP-27: our own report goes up, the viewer's does not.
        let up = recv(&camera.rtcp).await;
        assert_eq!(
            (up[1], &up[8..12]),
            (201, &0x77u32.to_be_bytes()[..]),
            "a receiver report about the source"
        );
        assert_ne!(up[4..8], [0, 0, 0, 9]);
        // RTP-24: the end of the leg is told with the leg's SSRC.
        lab.installer.submit_leg(LegOp::Detach { leg, bye: true }).await.unwrap();
        loop {
            let bye = recv(&viewer.rtcp).await;
            if let Some(at) = bye.chunks_exact(4).position(|word| word[1] == 203) {
                assert_eq!(bye[at * 4 + 4..at * 4 + 8], 0x77u32.to_be_bytes());
                break;
            }
        }
        assert!(lab.workers.snapshot().await.streams[0].legs.is_empty());
    });
}
