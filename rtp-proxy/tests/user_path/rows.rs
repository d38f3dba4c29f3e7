//! Rows: where a stream comes from, and what becomes of its ports.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use msm_control_plane::event::OpError;
use msm_graph::{ConnId, Encap, Epoch, InputRow, MediaKind, Report, Row, RowOp, StreamId, TrackId, TrackRow};
use rtp_proxy::user::{UserEvent, WorkerConfig};
use tokio::io::AsyncWriteExt;

use crate::lab::{Lab, Pair, TRACK, V4, frame, read_frame, read_response, recv, rtp, run, sender_report};

#[test]
fn a_silent_input_is_reported_and_its_legs_stay() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        let (to, _) = lab.open_udp(&camera, 1).await;
        camera.rtp.send_to(&rtp(10, 0, 1, 172), to).await.unwrap();
        let (_viewer, _) = lab.play_udp().await;
        let silent = lab.report(|report| matches!(report, Report::InputSilent { .. })).await;
        let Report::InputSilent { silent_for, ever, .. } = silent else { panic!() };
        assert!(ever && silent_for >= Duration::from_millis(300));
        // Empty is not delete.
        lab.upsert(vec![]).await;
        assert_eq!(lab.workers.snapshot().await.streams[0].legs.len(), 1);
    });
}

#[test]
fn a_picture_that_never_comes_is_told_while_sound_flows_and_metadata_never() {
    run(async |mut lab| {
        let kinds = [MediaKind::Video, MediaKind::Audio, MediaKind::Application];
        let track = lab.row.tracks[0].clone();
        let of = |n: u8| TrackRow { track: TrackId(n), kind: kinds[usize::from(n)], ..track.clone() };
        lab.row.tracks = (0..3).map(of).collect();
        let cameras = [Pair::open(V4).await, Pair::open(V4).await, Pair::open(V4).await];
        let inputs = cameras.iter().zip(0..);
        let inputs = inputs.map(|(camera, n)| InputRow { track: TrackId(n), ..Lab::udp_input(camera, 1) });
        let state = lab.upsert(inputs.collect()).await;
        let to: Vec<_> = state.inputs.iter().map(|input| (V4, input.local.unwrap().rtp)).collect();
        let (mut seq, mut told, mut shown) = (0, Vec::new(), false);
        // What is silent from the beginning, then what stops.
        while told.len() < 6 {
            seq += 1;
            cameras[1].rtp.send_to(&rtp(seq, u32::from(seq) * 160, 2, 172), to[1]).await.unwrap();
            if told.len() == 3 && !std::mem::replace(&mut shown, true) {
                cameras[0].rtp.send_to(&rtp(1, 160, 1, 172), to[0]).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            while let Ok(event) = lab.events.try_recv() {
                match event {
                    UserEvent::Report(Report::TrackSilent { track, silent_for, ever, .. }) => {
                        assert!(silent_for >= Duration::from_millis(300));
                        told.push((track.0, ever));
                    }
                    UserEvent::Report(Report::InputSilent { .. }) => panic!("sound flows"),
                    _ => {}
                }
            }
        }
        assert_eq!(told, [(0, false), (0, false), (0, false), (0, true), (0, true), (0, true)]);
    });
}

#[test]
fn a_stale_epoch_is_refused_and_changes_nothing() {
    run(async |mut lab| {
        let camera = Pair::open(V4).await;
        lab.installer.submit_row(RowOp::Upsert(Epoch(5), lab.row.clone())).await.unwrap();
        lab.row.inputs = vec![Lab::udp_input(&camera, 1)];
        let stale = lab.installer.submit_row(RowOp::Upsert(Epoch(4), lab.row.clone())).await;
        assert_eq!(stale, Err(OpError::StaleEpoch));
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
        assert!(matches!(result, Err(OpError::NotFound(_))), "{result:?}");
        assert!(lab.workers.snapshot().await.streams.is_empty());
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
        assert!(matches!(full, Err(OpError::Exhausted(_))), "{full:?}");
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
        let (mut client, _handle, _) = lab.play_tcp(None).await;
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
