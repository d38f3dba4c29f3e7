//! The driver under a peer that keeps the socket readable.

use msm_rtsp::conn::ConnLimits;

use super::*;

/// A connection whose peer has sent `first` and 64 KiB of frames, many times what one read takes, and then
/// hung up. There is room for one event.
async fn flooded(
    first: &str,
    limits: ConnLimits,
) -> (TcpStream, ConnHandle, Box<ConnParts>, mpsc::Receiver<UserEvent>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let frame = [&[b'$', 0, 0x03, 0xfc][..], &[7; 1020]].concat();
    client.write_all(first.as_bytes()).await.unwrap();
    client.write_all(&frame.repeat(64)).await.unwrap();
    client.shutdown().await.unwrap();
    server.readable().await.unwrap();
    let (events, receiver) = mpsc::channel(1);
    let (handle, parts) = assemble(server, ConnId(1), Role::Server, Arc::new(limits), events);
    (client, handle, parts.unwrap(), receiver)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_deadline_that_is_due_is_seen_while_the_socket_stays_readable() {
    run(async {
        let limits = ConnLimits { idle: Duration::ZERO, ..ConnLimits::default() };
        let (_client, _handle, parts, mut events) = flooded("", limits).await;
        run_on_control(parts, Rc::new(ConnSlot::new(ConnId(1)))).await;
        let Some(UserEvent::Closed { end, .. }) = events.recv().await else { panic!() };
        assert_eq!(end, ConnEnd::Limit("idle"), "not the end of what there was to read");
    });
}

#[test]
fn other_workers_are_served_while_the_socket_stays_readable() {
    run(async {
        let requests = [1, 2].map(|n| format!("OPTIONS * RTSP/1.0\r\nCSeq: {n}\r\n\r\n")).concat();
        let (mut client, handle, parts, mut events) = flooded(&requests, ConnLimits::default()).await;
        let way = ConnWay::Away(handle.admit_guests());
        let driver = tokio::task::spawn_local(run_on_control(parts, Rc::new(ConnSlot::new(ConnId(1)))));
        // The second request waits for room, and the driver reads nothing until there is some: from here on
        // it finds the socket readable at every look.
        while events.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(events.try_recv(), Ok(UserEvent::Request { .. })));
        way.push_rtcp(1, b"report", Instant::now());
        assert!(matches!(events.recv().await, Some(UserEvent::Request { .. })));
        let Some(UserEvent::Closed { end, .. }) = events.recv().await else { panic!() };
        assert_eq!(end, ConnEnd::Peer);
        driver.await.unwrap();
        let mut got = Vec::new();
        // The close with bytes unread may be a reset: what came before it counts.
        let _ = client.read_to_end(&mut got).await;
        assert_eq!(got, b"$\x01\x00\x06report");
    });
}

#[test]
fn commands_are_taken_while_the_socket_stays_readable() {
    run(async {
        let (_client, handle, parts, mut events) = flooded("", ConnLimits::default()).await;
        handle.close();
        run_on_control(parts, Rc::new(ConnSlot::new(ConnId(1)))).await;
        let Some(UserEvent::Closed { end, .. }) = events.recv().await else { panic!() };
        assert_eq!(end, ConnEnd::Asked);
    });
}
