//! The user-space path over loopback sockets: rows and legs in, packets out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod lab;
mod legs;
mod sources;
mod workers;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lab::{
    Lab, PATIENCE, Pair, TRACK, V4, V6, frame, read_frame, read_response, recv, rtp, run, sender_report,
    seq_of, ssrc_of, ts_of,
};
use msm_graph::{
    ConnId, Encap, Epoch, InputRow, LegEncap, LegOp, LegState, Report, Row, RowOp, StreamId, TrackId,
    TrackRow,
};
use rtp_proxy::user::{UserEvent, WorkerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;
use tokio::time::timeout;

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
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(100, 1000, 0x11, 172), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        lab.arm(leg).await;
        let (mut client, handle, conn) = lab.connect(None).await;
        let tcp_leg = lab.attach(LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 }).await;
        lab.play_interleaved(&mut client, &handle, tcp_leg).await;
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
        assert!(lab.workers.snapshot().await.streams[0].legs.iter().all(|leg| leg.packets == 11));
    });
}

#[test]
fn a_viewer_that_stops_reading_is_shed_alone() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(0, 0, 1, 1200), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        lab.arm(leg).await;
        let (mut stalled, handle, conn) = lab.connect(Some(8192)).await;
        let stuck = lab.attach(LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 }).await;
        lab.play_interleaved(&mut stalled, &handle, stuck).await;
        // Never read from `stalled`. Four megabytes fill its queue and its socket many times over.
        for i in 1..=3500u16 {
            let packet = rtp(i, u32::from(i) * 160, 1, 1200);
            camera.rtp.send_to(&packet, to).await.unwrap();
            assert_eq!(viewer.recv().await, packet, "nobody else notices");
        }
        let failed = lab.report(|report| matches!(report, Report::LegFailed { .. })).await;
        let Report::LegFailed { leg, reason } = failed else { panic!() };
        assert_eq!((leg, reason.as_str()), (stuck, "stuck_writer"));
        assert!(lab.dropped("queue_full").await > 0);
    });
}

#[test]
fn only_the_signalled_source_is_admitted() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, rtcp_to) = lab.open_udp(&camera, 1).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let armed = lab.begin_arm(leg).await;
        // SEC-2: another port of the same address, and another address.
        let stranger = Pair::open(V4).await;
        let far = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), camera.rtp_addr().port())).await.unwrap();
        for i in 0..50 {
            stranger.rtp.send_to(&rtp(i, 0, 0xbad, 172), to).await.unwrap();
            far.send_to(&rtp(i, 0, 0xbad, 172), to).await.unwrap();
            far.send_to(&sender_report(0xbad, 0), rtcp_to).await.unwrap();
        }
        // Wrong payload type and rubbish from the camera itself.
        let mut wrong = rtp(1, 0, 1, 172);
        wrong[1] = 97;
        camera.rtp.send_to(&wrong, to).await.unwrap();
        camera.rtp.send_to(&[0; 40], to).await.unwrap();
        let good = rtp(500, 0, 1, 172);
        camera.rtp.send_to(&good, to).await.unwrap();
        let LegState::Armed(starts) = armed.await.unwrap() else { panic!() };
        assert_eq!(starts[0].seq, 500);
        assert_eq!(viewer.recv().await, good, "the first packet that is admitted");
        while lab.dropped("unknown_source").await < 150 {
            tokio::task::yield_now().await;
        }
        assert_eq!((lab.dropped("payload_type").await, lab.dropped("malformed").await), (1, 1));
    });
}

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
        // Sizes of `performance.md` 2.3, trap 1: each with a shorter last segment.
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
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(10, 0, 0x11, 172), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
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
fn sixty_four_legs_get_bursts_of_32_without_loss() {
    // M15 in short: 64 legs, 172 bytes, bursts of 32.
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(0, 0, 1, 172), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
        let mut viewers = Vec::new();
        for _ in 0..64 {
            let viewer = Pair::open(V4).await;
            let leg = lab.attach_udp(&viewer).await;
            lab.arm(leg).await;
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

#[test]
fn a_publisher_on_tcp_reaches_udp_and_tcp_viewers_with_its_early_frames() {
    run(async |mut lab| {
        let (mut publisher, _handle, conn) = lab.connect(None).await;
        // RTSP-42: frames before anybody knows the channel.
        let mut early = Vec::new();
        for i in 0..5 {
            early.extend(frame(2, &rtp(i, 0, 3, 1472)));
        }
        publisher.write_all(&early).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let input = InputRow {
            track: TRACK,
            encap: Encap::Interleaved { conn, rtp: 2, rtcp: 3 },
            ssrc: None,
            feedback: false,
            generation: 1,
        };
        let state = lab.upsert(vec![input]).await;
        assert_eq!(state.inputs[0].local, None);
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        assert_eq!(lab.arm(leg).await.seq, 5, "the early ones counted");
        let (mut client, handle, conn) = lab.connect(None).await;
        let leg = lab.attach(LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 }).await;
        lab.play_interleaved(&mut client, &handle, leg).await;
        read_response(&mut client).await;
        for i in 5..200u16 {
            let packet = rtp(i, u32::from(i) * 160, 3, 200 + usize::from(i));
            publisher.write_all(&frame(2, &packet)).await.unwrap();
            assert_eq!(viewer.recv().await, packet);
            assert_eq!(read_frame(&mut client).await, (0, packet));
        }
        // A sender report goes down both ways, the viewer's reports end here.
        let sr = sender_report(3, 32_000);
        publisher.write_all(&frame(3, &sr)).await.unwrap();
        assert_eq!(recv(&viewer.rtcp).await[..28], sr[..]);
        let (channel, down) = read_frame(&mut client).await;
        assert_eq!((channel, &down[..28]), (1, &sr[..]));
    });
}

#[test]
fn rtcp_of_viewers_is_their_life_sign_and_ends_here() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, rtcp_to) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(10, 0, 0x77, 172), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
        camera.rtcp.send_to(&sender_report(0x77, 0), rtcp_to).await.unwrap();
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        lab.arm(leg).await;
        camera.rtp.send_to(&rtp(11, 160, 0x77, 172), to).await.unwrap();
        viewer.recv().await;
        let mut buffer = [0; 1500];
        let (len, from) = timeout(PATIENCE, viewer.rtcp.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..len][..28], sender_report(0x77, 0)[..], "RTP-21: the cached report at once");
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

#[test]
fn a_silent_input_is_reported_and_its_legs_stay() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(10, 0, 1, 172), to).await.unwrap();
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        lab.arm(leg).await;
        let silent = lab.report(|report| matches!(report, Report::InputSilent { .. })).await;
        let Report::InputSilent { silent_for, ever, .. } = silent else { panic!() };
        assert!(ever && silent_for >= Duration::from_millis(300));
        // Empty is not delete.
        lab.upsert(vec![]).await;
        assert_eq!(lab.workers.snapshot().await.streams[0].legs.len(), 1);
    });
}

#[test]
fn a_stale_epoch_is_refused_and_changes_nothing() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        lab.installer.submit_row(RowOp::Upsert(Epoch(5), lab.row.clone())).await.unwrap();
        lab.row.inputs = vec![Lab::udp_input(&camera, 1)];
        let stale = lab.installer.submit_row(RowOp::Upsert(Epoch(4), lab.row.clone())).await;
        assert_eq!(stale, Err(msm_control_plane::event::OpError::StaleEpoch));
        assert_eq!(lab.workers.snapshot().await.streams[0].tracks[0].transport, None);
    });
}

#[test]
fn a_row_on_a_connection_that_is_gone_is_refused_and_undone() {
    run(async |mut lab| {
        lab.row.inputs = vec![InputRow {
            track: TRACK,
            encap: Encap::Interleaved { conn: ConnId(99), rtp: 0, rtcp: 1 },
            ssrc: None,
            feedback: false,
            generation: 1,
        }];
        let result = lab.installer.submit_row(RowOp::Upsert(Epoch(1), lab.row.clone())).await;
        assert!(matches!(result, Err(msm_control_plane::event::OpError::NotFound(_))), "{result:?}");
        assert!(lab.workers.snapshot().await.streams.is_empty());
    });
}

#[test]
fn a_closed_port_ends_its_leg_and_no_other() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(0, 0, 1, 172), to).await.unwrap();
        lab.report(|report| matches!(report, Report::InputActive { .. })).await;
        let (gone, viewer) = (Pair::open(V4).await, Pair::open(V4).await);
        let lost = lab.attach_udp(&gone).await;
        lab.arm(lost).await;
        let leg = lab.attach_udp(&viewer).await;
        lab.arm(leg).await;
        drop(gone);
        let sending = async {
            for i in 1u16.. {
                let packet = rtp(i, u32::from(i) * 160, 1, 172);
                camera.rtp.send_to(&packet, to).await.unwrap();
                assert_eq!(viewer.recv().await, packet, "the other viewer misses nothing");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let failed = async { lab.report(|report| matches!(report, Report::LegFailed { .. })).await };
        tokio::select! {
            () = sending => unreachable!("sends for ever"),
            report = failed => {
                assert!(matches!(report, Report::LegFailed { leg, reason } if leg == lost && reason.as_str() == "unreachable"));
            }
        }
    });
}

#[test]
fn a_thousand_frames_on_unknown_channels_close_the_connection() {
    // RTSP-41.
    run(async |mut lab| {
        let (mut client, _handle, conn) = lab.connect(None).await;
        // The first 64 are kept: a SETUP may still name their channel (RTSP-42).
        let stray = frame(9, &rtp(0, 0, 0, 40));
        client.write_all(&stray.repeat(64 + 999)).await.unwrap();
        client.write_all(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n").await.unwrap();
        assert!(matches!(lab.event().await, UserEvent::Request { .. }), "open until then");
        client.write_all(&stray).await.unwrap();
        loop {
            if let UserEvent::Closed { conn: closed, end } = lab.event().await {
                assert_eq!((closed, end), (conn, msm_control_plane::event::ConnEnd::Limit("stray_frames")));
                break;
            }
        }
    });
}

#[test]
fn cameras_of_different_addresses_share_the_range_of_ports() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        // Room for two pairs.
        let probe = Pair::open(V4).await;
        let first = probe.rtp_addr().port();
        drop(probe);
        let config = WorkerConfig { input_ports: first..=first + 3, ..Lab::config() };
        let mut lab = Lab::start(config);
        let track = lab.row.tracks[0].clone();
        let tracks = [0, 1].map(|n| TrackRow { track: TrackId(n), ..track.clone() });
        let mut cameras = Vec::new();
        for n in 1..=64u8 {
            let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 1, n));
            let pairs = [Pair::open(ip).await, Pair::open(ip).await];
            let inputs = pairs.iter().enumerate().map(|(i, pair)| {
                let mut input = Lab::udp_input(pair, 1);
                input.track = TrackId(i as u8);
                if let Encap::Udp { local, .. } = &mut input.encap {
                    *local = V4;
                }
                input
            });
            let stream = StreamId::new(u64::from(n), [n; 10]);
            let row = Row {
                stream,
                name: format!("cam{n}"),
                tracks: tracks.to_vec(),
                inputs: inputs.collect(),
                silence: Duration::from_secs(10),
            };
            let state = lab.installer.submit_row(RowOp::Upsert(Epoch(1), row)).await.unwrap();
            let ports: Vec<_> = state.inputs.iter().map(|input| input.local.unwrap()).collect();
            assert_ne!(ports[0], ports[1], "two tracks of one address never share");
            cameras.push((stream, pairs, ports));
        }
        for (n, (_, pairs, ports)) in cameras.iter().enumerate() {
            for (pair, port) in pairs.iter().zip(ports) {
                for i in 0..=n as u16 {
                    pair.rtp.send_to(&rtp(i, 0, n as u32 + 1, 100), (V4, port.rtp)).await.unwrap();
                }
            }
        }
        // A third track of one address has no pair left: 453, and nothing else changes.
        let third = Pair::open(IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1))).await;
        let mut input = Lab::udp_input(&third, 1);
        if let Encap::Udp { local, .. } = &mut input.encap {
            *local = V4;
        }
        lab.row.inputs = vec![input];
        let full = lab.installer.submit_row(RowOp::Upsert(Epoch(1), lab.row.clone())).await;
        assert!(matches!(full, Err(msm_control_plane::event::OpError::Exhausted(_))), "{full:?}");
        let total: u64 = (1..=64).sum::<u64>() * 2;
        loop {
            let streams = lab.workers.snapshot().await.streams;
            let count = |stream: StreamId| -> Vec<u64> {
                let stats = streams.iter().find(|stats| stats.stream == stream).unwrap();
                stats.tracks.iter().map(|track| track.packets).collect()
            };
            let all: Vec<_> = cameras.iter().map(|(stream, ..)| count(*stream)).collect();
            if all.iter().flatten().sum::<u64>() == total {
                for (n, packets) in all.iter().enumerate() {
                    assert_eq!(*packets, [n as u64 + 1; 2], "each camera's own");
                }
                break;
            }
            tokio::task::yield_now().await;
        }
        // Ports come back when their last camera leaves.
        for (stream, ..) in &cameras {
            lab.installer.submit_row(RowOp::Remove(Epoch(1), *stream)).await.unwrap();
        }
        lab.installer.submit_row(RowOp::Upsert(Epoch(1), lab.row.clone())).await.unwrap();
    }));
}
