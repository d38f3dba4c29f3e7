//! What becomes of a leg whose viewer changes its mind.

use msm_graph::{LegEncap, LegOp, LegState};
use rtp_proxy::user::WorkerConfig;
use tokio::net::TcpStream;

use crate::lab::{Lab, Pair, V4, V6, camera, read_frame, read_response, rtp, run_on, run_with, seq_of};

fn udp(viewer: &Pair) -> LegEncap {
    let (rtp, rtcp) = (viewer.rtp_addr(), viewer.rtcp_addr());
    LegEncap::Udp { rtp, rtcp, local: rtp.ip() }
}

#[test]
fn a_second_setup_that_fails_leaves_the_viewer_its_first() {
    // RTSP-19. There is nothing that an IPv6 viewer could be served from.
    run_with(WorkerConfig { player_addresses: vec![V4], ..Lab::config() }, async |mut lab| {
        let (camera, [to, _]) = camera(&mut lab, 1).await;
        let (first, second) = (Pair::open(V4).await, Pair::open(V6).await);
        let leg = lab.attach_udp(&first).await;
        assert!(lab.attach_as(leg, udp(&second), false).await.is_err());
        assert_eq!(lab.arm(leg).await.seq, 1);
        camera.rtp.send_to(&rtp(1, 0, 1, 172), to).await.unwrap();
        assert_eq!(first.recv().await, rtp(1, 0, 1, 172));
        // One that succeeds takes its place.
        let third = Pair::open(V4).await;
        lab.installer.submit_leg(LegOp::Pause { leg }).await.unwrap();
        lab.attach_as(leg, udp(&third), false).await.unwrap();
        lab.arm(leg).await;
        camera.rtp.send_to(&rtp(2, 0, 1, 172), to).await.unwrap();
        assert_eq!(third.recv().await, rtp(2, 0, 1, 172));
    });
}

/// A PLAY on channels 2 and 3 whose response is not given, a PAUSE if `paused`, and a PLAY that is answered:
/// nothing precedes the packet that its response names (RTSP-31, RTSP-44).
async fn play_given_up(mut lab: Lab, paused: bool) {
    let (camera, [to, _]) = camera(&mut lab, 2).await;
    let (mut client, handle, conn) = lab.connect(None).await;
    // The connection lives where its first leg does.
    let stream = std::mem::replace(&mut lab.stream, msm_graph::StreamId::new(1, [7; 10]));
    lab.attach(LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 }).await;
    lab.stream = stream;
    let leg = lab.attach(LegEncap::Interleaved { conn, rtp: 2, rtcp: 3 }).await;
    assert_eq!(lab.arm(leg).await.seq, 1);
    for seq in 1..=3 {
        camera.rtp.send_to(&rtp(seq, 0, 2, 172), to).await.unwrap();
    }
    while lab.workers.snapshot().await.streams.iter().all(|s| s.tracks[0].packets < 4) {}
    if paused {
        assert_eq!(lab.installer.submit_leg(LegOp::Pause { leg }).await, Ok(LegState::Paused));
    }
    assert_eq!(lab.play_on(&mut client, &handle, leg, [2, 3]).await.seq, 4);
    read_response(&mut client).await;
    camera.rtp.send_to(&rtp(4, 0, 2, 172), to).await.unwrap();
    assert_eq!(next_rtp(&mut client, 2).await, rtp(4, 0, 2, 172));
}

async fn next_rtp(client: &mut TcpStream, wanted: u8) -> Vec<u8> {
    loop {
        let (channel, packet) = read_frame(client).await;
        if channel == wanted {
            return packet;
        }
    }
}

#[test]
fn what_was_held_for_a_play_that_was_given_up_precedes_no_later_one() {
    for paused in [true, false] {
        // With two workers the stream lives on another one than the connection.
        for workers in [1, 2] {
            run_on(workers, async |mut lab| {
                camera(&mut lab, 1).await;
                play_given_up(lab, paused).await;
            });
        }
    }
}

#[test]
fn a_pause_drops_what_still_waits_for_the_connection() {
    run_with(Lab::config(), async |mut lab| {
        let (camera, [to, _]) = camera(&mut lab, 1).await;
        let (mut client, handle, conn) = lab.connect(Some(8192)).await;
        let leg = lab.attach(LegEncap::Interleaved { conn, rtp: 0, rtcp: 1 }).await;
        lab.play_on(&mut client, &handle, leg, [0, 1]).await;
        // Nobody reads: the socket is full soon.
        let waiting = async || {
            let queues = lab.workers.snapshot().await.queues;
            queues.iter().find(|queue| queue.queue == "interleaved").unwrap().depth
        };
        let mut seq = 1;
        while waiting().await < 100_000 {
            camera.rtp.send_to(&rtp(seq, 0, 1, 1200), to).await.unwrap();
            seq += 1;
        }
        lab.installer.submit_leg(LegOp::Pause { leg }).await.unwrap();
        assert_eq!(waiting().await, 0);
        let start = lab.begin_arm(leg).await.await;
        let Ok(LegState::Armed(starts)) = start else { panic!("{start:?}") };
        handle.release_media(vec![0, 1]);
        camera.rtp.send_to(&rtp(seq, 0, 1, 1200), to).await.unwrap();
        // What the socket had taken before, then what the PLAY named.
        read_response(&mut client).await;
        let mut last = None;
        loop {
            let (_, packet) = read_frame(&mut client).await;
            if packet == rtp(seq, 0, 1, 1200) {
                break;
            }
            last = Some(packet);
        }
        assert_eq!(starts[0].seq, seq);
        assert!(last.is_some_and(|packet| seq_of(&packet) < seq - 50));
    });
}
