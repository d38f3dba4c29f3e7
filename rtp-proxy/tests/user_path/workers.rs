//! More than one worker: streams live apart, connections and viewers' sockets are shared.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use msm_graph::{LegEncap, LegId, LegOp, LegState, Report, RowOp, StreamId};
use rtp_proxy::user::UserEvent;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::lab::{
    Lab, Pair, V4, V6, camera, frame, read_frame, read_response, receiver_report, recv, rtp, run_on,
    sender_report, ssrc_of,
};

/// Where each stream lives.
async fn homes(lab: &Lab) -> HashMap<StreamId, usize> {
    let streams = lab.workers.snapshot().await.streams;
    streams.iter().map(|stats| (stats.stream, stats.worker)).collect()
}

async fn interleaved(lab: &mut Lab, conn: msm_graph::ConnId, rtp: u8) -> LegId {
    lab.attach(LegEncap::Interleaved { conn, rtp, rtcp: rtp + 1 }).await
}

/// Frames of a channel until one that is asked for.
async fn frame_on(client: &mut TcpStream, wanted: impl Fn(u8, &[u8]) -> bool) -> Vec<u8> {
    loop {
        let (channel, payload) = read_frame(client).await;
        if wanted(channel, &payload) {
            return payload;
        }
    }
}

#[test]
fn one_connection_carries_streams_of_two_workers() {
    run_on(3, async |mut lab| {
        let (first, [first_to, _]) = camera(&mut lab, 1).await;
        let (second, [second_to, second_rtcp]) = camera(&mut lab, 2).await;
        let homes = homes(&lab).await;
        assert_ne!(homes[&StreamId::new(1, [7; 10])], homes[&StreamId::new(2, [7; 10])]);

        let (mut client, handle, conn) = lab.connect(None).await;
        lab.turn_to(1);
        let near = interleaved(&mut lab, conn, 0).await;
        lab.turn_to(2);
        let far = interleaved(&mut lab, conn, 2).await;
        lab.play_on(&mut client, &handle, near, [0, 1]).await;
        read_response(&mut client).await;
        let start = lab.play_on(&mut client, &handle, far, [2, 3]).await;
        assert_eq!((start.seq, start.ssrc), (1, 2));
        read_response(&mut client).await;

        for i in 1..=300u16 {
            let packets = [1, 2].map(|ssrc| rtp(i, u32::from(i) * 160, ssrc, 172 + usize::from(i)));
            first.rtp.send_to(&packets[0], first_to).await.unwrap();
            second.rtp.send_to(&packets[1], second_to).await.unwrap();
            let (mut got, mut expected) = (HashMap::new(), HashMap::new());
            for (channel, packet) in [0, 2].into_iter().zip(packets) {
                let (c, payload) = read_frame(&mut client).await;
                got.insert(c, payload);
                expected.insert(channel, packet);
            }
            assert_eq!(got, expected, "each stream on its channel, byte for byte, without a gap");
        }

        // Reports go both ways across the workers.
        let sr = sender_report(2, 48_000);
        second.rtcp.send_to(&sr, second_rtcp).await.unwrap();
        let down = frame_on(&mut client, |channel, _| channel == 3).await;
        assert_eq!(down[..28], sr[..]);
        client.write_all(&frame(3, &receiver_report(2, 5))).await.unwrap();
        lab.report(|report| matches!(report, Report::LegAlive { leg } if *leg == far)).await;
        let stats = lab.workers.snapshot().await;
        let lost = |leg| {
            stats.streams.iter().flat_map(|stream| &stream.legs).find(|stats| stats.leg == leg).unwrap().lost
        };
        assert_eq!((lost(near), lost(far)), (None, Some(5)));
        assert!(stats.drops.is_empty(), "{:?}", stats.drops);

        // One leg leaves, with a BYE on its channel; the other goes on, and the channel is free again.
        lab.installer.submit_leg(LegOp::Detach { leg: far, bye: true }).await.unwrap();
        frame_on(&mut client, |channel, bye| {
            channel == 3 && bye.chunks_exact(4).any(|word| word[0] >> 6 == 2 && word[1] == 203)
        })
        .await;
        second.rtp.send_to(&rtp(301, 0, 2, 172), second_to).await.unwrap();
        let again = interleaved(&mut lab, conn, 2).await;
        let start = lab.play_on(&mut client, &handle, again, [2, 3]).await;
        read_response(&mut client).await;
        let next = rtp(start.seq, 50_000, 2, 400);
        second.rtp.send_to(&next, second_to).await.unwrap();
        assert_eq!(frame_on(&mut client, |channel, _| channel == 2).await, next);
        let last = rtp(301, 50_000, 1, 300);
        first.rtp.send_to(&last, first_to).await.unwrap();
        assert_eq!(frame_on(&mut client, |channel, _| channel == 0).await, last);
    });
}

#[test]
fn no_frame_of_another_worker_precedes_the_response() {
    // RTSP-44, also for the second PLAY of a leg.
    run_on(2, async |mut lab| {
        let (_first, _) = camera(&mut lab, 1).await;
        let (second, [to, _]) = camera(&mut lab, 2).await;
        let (mut client, handle, conn) = lab.connect(None).await;
        lab.turn_to(1);
        interleaved(&mut lab, conn, 0).await;
        lab.turn_to(2);
        let leg = interleaved(&mut lab, conn, 2).await;
        let mut seq = 0;
        for round in 0..20 {
            client
                .write_all(format!("PLAY rtsp://x/cam RTSP/1.0\r\nCSeq: {round}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            // A response to what has not been read would go nowhere.
            while !matches!(lab.event().await, UserEvent::Request { .. }) {}
            let start = lab.arm(leg).await;
            assert_eq!(start.seq, seq + 1);
            for _ in 0..5 {
                seq += 1;
                second.rtp.send_to(&rtp(seq, 0, 2, 200), to).await.unwrap();
            }
            // The packets are through before the response is given.
            let packets = u64::from(seq) + 1;
            let stream = lab.stream;
            loop {
                let streams = lab.workers.snapshot().await.streams;
                if streams.iter().any(|s| s.stream == stream && s.tracks[0].packets == packets) {
                    break;
                }
            }
            let response = msm_rtsp::message::Response::new(msm_rtsp::message::Status::OK)
                .with("CSeq", round.to_string());
            handle.reply(response, false);
            handle.release_media(vec![2, 3]);
            assert!(read_response(&mut client).await.contains(&format!("CSeq: {round}\r\n")));
            for i in 0..5 {
                assert_eq!(read_frame(&mut client).await, (2, rtp(start.seq + i, 0, 2, 200)));
            }
            let paused = lab.installer.submit_leg(LegOp::Pause { leg }).await.unwrap();
            assert_eq!(paused, LegState::Paused);
        }
    });
}

#[test]
fn viewers_on_udp_are_told_apart_by_address_whatever_worker_serves_them() {
    run_on(3, async |mut lab| {
        let mut cameras = Vec::new();
        let mut viewers = Vec::new();
        for number in 1..=3 {
            cameras.push(camera(&mut lab, number).await);
            for _ in 0..2 {
                let viewer = Pair::open(V4).await;
                let leg = lab.attach_udp(&viewer).await;
                assert_eq!(lab.arm(leg).await.ssrc, u32::from(number));
                viewers.push((number, viewer, leg));
            }
        }
        let homes = homes(&lab).await;
        let mut used: Vec<_> = homes.values().copied().collect();
        used.sort_unstable();
        assert_eq!(used, [0, 1, 2], "one stream each");
        for i in 1..=100u16 {
            for (number, (camera, [to, _])) in (1..).zip(&cameras) {
                camera.rtp.send_to(&rtp(i, u32::from(i) * 160, number, 172), to).await.unwrap();
            }
        }
        for (number, viewer, _) in &viewers {
            for i in 1..=100u16 {
                assert_eq!(viewer.recv().await, rtp(i, u32::from(i) * 160, u32::from(*number), 172));
            }
        }
        for (index, (number, viewer, leg)) in (1..).zip(&viewers) {
            let rtcp = lab.workers.player_ports().unwrap().rtcp;
            viewer.rtcp.send_to(&receiver_report(u32::from(*number), index), (V4, rtcp)).await.unwrap();
            lab.report(|report| matches!(report, Report::LegAlive { leg: of } if of == leg)).await;
        }
        let snapshot = lab.workers.snapshot().await;
        let threads: Vec<_> = snapshot.threads.iter().map(|thread| thread.thread.as_str()).collect();
        assert_eq!(threads, ["data-0", "data-1", "data-2"]);
        assert_eq!(snapshot.queues.iter().filter(|queue| queue.queue == "commands").count(), 1, "merged");
        for (index, (_, _, leg)) in (1..).zip(&viewers) {
            let stats =
                snapshot.streams.iter().flat_map(|stream| &stream.legs).find(|s| s.leg == *leg).unwrap();
            assert_eq!((stats.packets, stats.lost), (100, Some(index)));
        }
        // A leg that has gone is nobody's any more: its address counts as a stranger's.
        let (number, viewer, leg) = &viewers[5];
        lab.installer.submit_leg(LegOp::Detach { leg: *leg, bye: false }).await.unwrap();
        let rtcp = lab.workers.player_ports().unwrap().rtcp;
        while lab.dropped("unknown_source").await == 0 {
            viewer.rtcp.send_to(&receiver_report(u32::from(*number), 9), (V4, rtcp)).await.unwrap();
        }
    });
}

#[test]
fn a_stream_that_was_never_used_goes_where_its_publisher_is() {
    run_on(3, async |mut lab| {
        let (mut publisher, _handle, conn) = lab.connect(None).await;
        lab.turn_to(1);
        lab.upsert(vec![Lab::channel_input(conn, 0, 1)]).await;
        // ANNOUNCE makes the row, RECORD its input.
        lab.turn_to(2);
        lab.upsert(vec![]).await;
        let before = homes(&lab).await;
        assert_ne!(before[&StreamId::new(1, [7; 10])], before[&lab.stream]);
        lab.upsert(vec![Lab::channel_input(conn, 2, 1)]).await;
        let after = homes(&lab).await;
        assert_eq!(after[&StreamId::new(1, [7; 10])], after[&lab.stream]);
        assert_eq!(after.len(), 2);
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let armed = lab.begin_arm(leg).await;
        let packet = rtp(7, 0, 3, 900);
        publisher.write_all(&frame(2, &packet)).await.unwrap();
        assert_eq!(viewer.recv().await, packet);
        assert!(matches!(armed.await.unwrap(), LegState::Armed(starts) if starts[0].seq == 7));
        lab.installer.submit_row(RowOp::Remove(msm_graph::Epoch(1), lab.stream)).await.unwrap();
        assert_eq!(homes(&lab).await.len(), 1);
    });
}

#[test]
fn a_publisher_feeds_a_stream_that_lives_on_another_worker() {
    run_on(2, async |mut lab| {
        let (mut publisher, _handle, conn) = lab.connect(None).await;
        lab.turn_to(1);
        lab.upsert(vec![Lab::channel_input(conn, 0, 1)]).await;
        // The viewer waits already, so the stream stays where it is.
        lab.turn_to(2);
        lab.upsert(vec![]).await;
        let viewer = Pair::open(V4).await;
        let leg = lab.attach_udp(&viewer).await;
        let armed = lab.begin_arm(leg).await;
        // RTSP-42: early frames find their way, too.
        let packet = |i: u16| rtp(i, u32::from(i) * 160, 3, 200 + usize::from(i));
        for i in 0..5 {
            publisher.write_all(&frame(2, &packet(i))).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        lab.upsert(vec![Lab::channel_input(conn, 2, 1)]).await;
        let homes = homes(&lab).await;
        assert_ne!(homes[&StreamId::new(1, [7; 10])], homes[&lab.stream]);
        for i in 5..300 {
            publisher.write_all(&frame(2, &packet(i))).await.unwrap();
        }
        for i in 0..300 {
            assert_eq!(viewer.recv().await, packet(i));
        }
        assert!(matches!(armed.await.unwrap(), LegState::Armed(starts) if starts[0].seq == 0));
        let sr = sender_report(3, 0);
        publisher.write_all(&frame(3, &sr)).await.unwrap();
        assert_eq!(recv(&viewer.rtcp).await[..28], sr[..]);
        // RTP-22: our report goes back on the channel it belongs to.
        let up = frame_on(&mut publisher, |channel, up| channel == 3 && up[1] == 201 && up.len() >= 32).await;
        assert_eq!(ssrc_of(&up), 3);
        // The source changes to UDP: the legs stay, the channels are nobody's.
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 2).await;
        camera.rtp.send_to(&rtp(9, 0, 4, 333), to).await.unwrap();
        let spliced = viewer.recv().await;
        assert_eq!((ssrc_of(&spliced), spliced.len()), (3, 333));
    });
}

#[test]
fn a_stalled_viewer_is_shed_by_the_worker_of_another_stream() {
    run_on(2, async |mut lab| {
        let (_first, _) = camera(&mut lab, 1).await;
        let (second, [to, _]) = camera(&mut lab, 2).await;
        let (viewer, _) = lab.play_udp().await;
        let (mut stalled, handle, conn) = lab.connect(Some(8192)).await;
        lab.turn_to(1);
        interleaved(&mut lab, conn, 0).await;
        lab.turn_to(2);
        let stuck = interleaved(&mut lab, conn, 2).await;
        lab.play_on(&mut stalled, &handle, stuck, [2, 3]).await;
        // Nobody reads from `stalled`.
        for i in 1..=3500u16 {
            let packet = rtp(i, u32::from(i) * 160, 2, 1200);
            second.rtp.send_to(&packet, to).await.unwrap();
            assert_eq!(viewer.recv().await, packet, "nobody else notices");
        }
        let failed =
            lab.report(|report| matches!(report, Report::LegFailed { leg, .. } if *leg == stuck)).await;
        assert!(matches!(failed, Report::LegFailed { reason, .. } if reason.as_str() == "stuck_writer"));
        assert!(lab.dropped("queue_full").await > 0);
    });
}

#[test]
fn a_driven_worker_forwards_at_the_call_of_its_holder_and_not_before() {
    let (mut lab, worker) = Lab::driven();
    let (camera, to, viewers) = worker.drive(async {
        let (camera, [to, _]) = lab.active_camera(&rtp(0, 0, 7, 172)).await;
        let mut viewers = Vec::new();
        for ip in [V4, V4, V6] {
            let viewer = Pair::open(ip).await;
            let leg = lab.attach_udp(&viewer).await;
            assert_eq!(lab.arm(leg).await.seq, 1);
            viewers.push(viewer.rtp.into_std().unwrap());
        }
        (camera.rtp.into_std().unwrap(), to, viewers)
    });
    let mut next = 1;
    for (burst, len) in [(1u16, 172), (32, 172), (1, 1_400), (64, 1_400), (3, 172)] {
        let sent: Vec<_> = (next..next + burst).map(|i| rtp(i, u32::from(i) * 160, 7, len)).collect();
        next += burst;
        for packet in &sent {
            camera.send_to(packet, to).unwrap();
        }
        let mut packet = [0; 2_048];
        for viewer in &viewers {
            assert!(viewer.recv(&mut packet).is_err(), "nobody has called yet");
        }
        worker.turn();
        for viewer in &viewers {
            for expected in &sent {
                let len = viewer.recv(&mut packet).unwrap();
                assert_eq!(packet[..len], *expected);
            }
            assert!(viewer.recv(&mut packet).is_err(), "each of them once");
        }
    }
    let legs = worker.drive(lab.workers.snapshot()).streams.remove(0).legs;
    assert!(legs.len() == 3 && legs.iter().all(|leg| leg.packets == 101), "{legs:?}");
}

#[test]
fn what_viewers_send_to_the_media_port_is_counted_and_goes_nowhere() {
    run_on(1, async |mut lab| {
        let (camera, [to, _]) = camera(&mut lab, 1).await;
        let (viewer, _) = lab.play_udp().await;
        let media = SocketAddr::new(V4, lab.workers.player_ports().unwrap().rtp);
        // RTP-1: ffmpeg's and GStreamer's punches.
        for punch in [&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0x5a; 200]] {
            viewer.rtp.send_to(punch, media).await.unwrap();
        }
        camera.rtp.send_to(&rtp(1, 160, 1, 172), to).await.unwrap();
        assert_eq!(viewer.recv().await, rtp(1, 160, 1, 172));
        assert_eq!(lab.dropped("no_flow").await, 2);
        assert_eq!(lab.dropped("socket_overflow").await, 0);
    });
}
