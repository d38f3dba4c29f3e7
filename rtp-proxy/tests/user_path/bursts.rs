//! Packets that come together, and leave together.

use msm_graph::LegState;

use crate::lab::{Pair, V4, rtp, run, seq_of, ssrc_of};

#[test]
fn super_packets_come_in_and_go_out_whole() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let armed = lab.begin_arm(leg).await;
        let mut seq = 0;
        let mut sent = Vec::new();
        // Around the limits of the kernel's segmentation: each with a shorter last segment.
        for count in [1u16, 2, 63, 64, 33] {
            let burst: Vec<_> = (0..count)
                .map(|i| rtp(seq + i, u32::from(seq + i), 9, if i + 1 == count { 90 } else { 172 }))
                .collect();
            seq += count;
            let bytes = burst.concat();
            let state = quinn_udp::UdpSocketState::new((&camera.rtp).into()).unwrap();
            camera
                .rtp
                .async_io(tokio::io::Interest::WRITABLE, || {
                    state.try_send(
                        (&camera.rtp).into(),
                        &quinn_udp::Transmit {
                            destination: to,
                            ecn: None,
                            contents: &bytes,
                            segment_size: (count > 1).then_some(172),
                            src_ip: None,
                        },
                    )
                })
                .await
                .unwrap();
            sent.extend(burst);
        }
        for packet in &sent {
            assert_eq!(viewer.recv().await, *packet);
        }
        assert!(matches!(armed.await.unwrap(), LegState::Armed(starts) if starts.len() == 1));
    });
}

#[test]
fn a_projected_super_packet_is_rewritten_in_every_segment_for_every_leg() {
    run(async |mut lab| {
        let (camera, [to, _]) = lab.active_camera(&rtp(10, 0, 0x11, 172)).await;
        let old = Pair::open(V4).await;
        let leg = lab.attach_udp(&old).await;
        lab.arm(leg).await;
        camera.rtp.send_to(&rtp(11, 160, 0x11, 172), to).await.unwrap();
        assert_eq!(seq_of(&old.recv().await), 11);
        let again = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&again, 2).await;
        again.rtp.send_to(&rtp(1, 0, 0x22, 172), to).await.unwrap();
        assert_eq!(seq_of(&old.recv().await), 12);
        // A leg that never saw the old source is transparent beside the projected one.
        let new = Pair::open(V4).await;
        let leg = lab.attach_udp(&new).await;
        assert_eq!(lab.arm(leg).await.ssrc, 0x22);
        let burst: Vec<_> = (2..42).map(|i| rtp(i, u32::from(i) * 160, 0x22, 172)).collect();
        let bytes = burst.concat();
        let state = quinn_udp::UdpSocketState::new((&again.rtp).into()).unwrap();
        let contents = quinn_udp::Transmit {
            destination: to,
            ecn: None,
            contents: &bytes,
            segment_size: Some(172),
            src_ip: None,
        };
        state.try_send((&again.rtp).into(), &contents).unwrap();
        for packet in &burst {
            let projected = old.recv().await;
            assert_eq!((seq_of(&projected), ssrc_of(&projected)), (seq_of(packet) + 11, 0x11));
            assert_eq!(projected[12..], packet[12..]);
            assert_eq!(new.recv().await, *packet);
        }
    });
}

#[test]
fn sixty_four_legs_get_bursts_of_32_without_loss() {
    // M15 in short: 64 legs, 172 bytes, bursts of 32.
    run(async |mut lab| {
        let (camera, [to, _]) = lab.active_camera(&rtp(0, 0, 1, 172)).await;
        let mut viewers = Vec::new();
        for _ in 0..64 {
            let (viewer, _) = lab.play_udp().await;
            viewers.push(viewer);
        }
        let mut seq = 1;
        for _ in 0..20 {
            let burst: Vec<_> = (seq..seq + 32).map(|i| rtp(i, u32::from(i) * 160, 1, 172)).collect();
            seq += 32;
            for packet in &burst {
                camera.rtp.send_to(packet, to).await.unwrap();
            }
            for viewer in &viewers {
                for packet in &burst {
                    assert_eq!(viewer.recv().await, *packet);
                }
            }
        }
        let snapshot = lab.workers.snapshot().await;
        assert!(snapshot.streams[0].legs.iter().all(|leg| leg.packets == 640 && leg.dropped.is_empty()));
        assert!(snapshot.sockets.iter().all(|socket| socket.overflows == 0));
    });
}
