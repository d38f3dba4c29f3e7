//! When a connection is ended by time.

use super::*;

fn deadline(rig: &Rig) -> Duration {
    rig.conn.poll_timeout().unwrap() - rig.now
}

fn expires(rig: &mut Rig, time: Duration, reason: CloseReason) {
    assert_eq!(deadline(rig), time, "{reason:?}");
    rig.after(time.saturating_sub(Duration::from_nanos(1)));
    assert_eq!(rig.conn.handle_timeout(rig.now), None);
    rig.after(Duration::from_nanos(1));
    assert_eq!(rig.conn.handle_timeout(rig.now), Some(reason));
}

/// Limits of section 10, SEC-6.
#[test]
fn silent_and_slow_peers_are_ended_in_time() {
    let mut rig = Rig::new(Role::Server);
    expires(&mut rig, S(5), CloseReason::FirstByte);

    let mut rig = Rig::new(Role::Server);
    rig.feed("OPT");
    rig.after(S(6));
    rig.feed("IONS * RTSP/1.0\r\nX");
    expires(&mut rig, S(4), CloseReason::Head);

    let mut rig = Rig::new(Role::Server);
    rig.after(S(4));
    rig.feed("ANNOUNCE * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 65536\r\n\r\nv=0");
    rig.after(S(2));
    rig.feed("more");
    expires(&mut rig, S(16), CloseReason::Body);

    let mut rig = Rig::new(Role::Server);
    rig.after(S(1));
    rig.feed([b'$', 0, 0]);
    rig.after(S(9));
    rig.feed([9, 1]);
    expires(&mut rig, S(1), CloseReason::Frame);

    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.reply(1);
    rig.drain();
    rig.feed("\r\n\r\n");
    expires(&mut rig, S(30), CloseReason::Idle);
}

#[test]
fn deadline_of_a_unit_starts_with_the_unit() {
    let mut rig = Rig::new(Role::Server);
    rig.conn.set_session(true, rig.now);
    rig.feed([&frame(0, &[])[..], b"$\x00"].concat());
    rig.after(S(9));
    rig.feed(b"\x00\x00$\x00");
    assert_eq!(deadline(&rig), S(10));
    rig.feed(b"\x00\x00");
    assert_eq!(rig.conn.poll_timeout(), None);
}

#[test]
fn session_and_outstanding_requests_suspend_the_idle_deadline() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    assert_eq!(rig.conn.poll_timeout(), None);
    rig.reply(1);
    rig.drain();
    assert_eq!(deadline(&rig), S(30));
    rig.conn.set_session(true, rig.now);
    assert_eq!(rig.conn.poll_timeout(), None);
    rig.after(S(100));
    rig.conn.set_session(false, rig.now);
    assert_eq!(deadline(&rig), S(30));
}

#[test]
fn camera_connection_has_no_deadline_of_silence() {
    let mut rig = Rig::new(Role::Client);
    assert_eq!(rig.conn.poll_timeout(), None);
    rig.feed("RTSP/1.0 200 OK\r\n");
    expires(&mut rig, S(10), CloseReason::Head);
}

/// RTSP-44, section 11: closed when stuck 10 s, although late frames make room for new ones all the time.
#[test]
fn writer_without_progress_is_ended_and_progress_saves_it() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1));
    rig.reply(1);
    rig.drain();
    rig.conn.set_session(true, rig.now);
    let begin = rig.now;
    for _ in 0..99 {
        rig.rtp(0, &[0x80; 1000]);
        rig.write(0);
        rig.after(Duration::from_millis(100));
        assert_eq!(rig.conn.handle_timeout(rig.now), None);
    }
    assert_eq!(rig.conn.poll_timeout(), Some(begin + S(10)));
    rig.write(1);
    assert_eq!(deadline(&rig), S(10));
    rig.after(S(10));
    assert_eq!(rig.conn.handle_timeout(rig.now), Some(CloseReason::StuckWriter));
    rig.drain();
    assert_eq!(rig.conn.poll_timeout(), None);
}

#[test]
fn closing_ends_in_time_whatever_the_peer_does() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(options(1) + "\x01");
    expires(&mut rig, S(10), CloseReason::Closing);
}
