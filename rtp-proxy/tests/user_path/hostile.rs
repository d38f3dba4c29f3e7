//! Peers that misbehave, and others who do not notice.

use std::net::Ipv4Addr;
use std::time::Duration;

use msm_control_plane::event::ConnEnd;
use msm_graph::{LegState, Report};
use rtp_proxy::user::UserEvent;
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;

use crate::lab::{Pair, V4, frame, rtp, run, sender_report};

#[test]
fn a_viewer_that_stops_reading_is_shed_alone() {
    run(async |mut lab| {
        let (camera, [to, _]) = lab.active_camera(&rtp(0, 0, 1, 1200)).await;
        let (viewer, _) = lab.play_udp().await;
        let (_stalled, _handle, stuck) = lab.play_tcp(Some(8192)).await;
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
fn a_closed_port_ends_its_leg_and_no_other() {
    run(async |mut lab| {
        let (camera, [to, _]) = lab.active_camera(&rtp(0, 0, 1, 172)).await;
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
                assert_eq!((closed, end), (conn, ConnEnd::Limit("stray_frames")));
                break;
            }
        }
    });
}
