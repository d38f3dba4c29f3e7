//! The Unix socket of a take-over: whose it is, and descriptors by `SCM_RIGHTS`.
//!
//! Blocking, with deadlines: whoever hands over has stopped everything else anyway.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt::PeerCredentials,
};

/// Descriptors of one message (`SCM_MAX_FD` of the kernel).
const BATCH: usize = 253;
/// Most descriptors of one take-over.
pub const MAX_DESCRIPTORS: usize = 1 << 20;
/// Pause after the kernel had too many descriptors in flight.
const PAUSE: Duration = Duration::from_millis(2);
/// Such pauses before it is an error.
const PAUSES: usize = 1000;

/// Who is at the other end, as the kernel vouches (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its process when it connected or listened.
    pub pid: i32,
}

/// Who is at the other end of `stream`.
///
/// # Errors
/// The system's words.
pub fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(stream, PeerCredentials)?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}

/// Whether that user may take over from us, or we from it: ourselves and root.
pub fn is_trusted(peer: Peer) -> bool {
    peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw()
}

/// Sends descriptors, in order. They stay ours.
///
/// # Errors
/// The system's words; some may have been sent.
pub fn send_descriptors(stream: &UnixStream, descriptors: &[RawFd]) -> io::Result<()> {
    for batch in descriptors.chunks(BATCH) {
        let mut pauses = 0;
        loop {
            let sent = sendmsg::<()>(
                stream.as_raw_fd(),
                &[IoSlice::new(b"F")],
                &[ControlMessage::ScmRights(batch)],
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                // The receiver has not caught up yet (unix(7)).
                Err(Errno::ETOOMANYREFS) if pauses < PAUSES => {
                    pauses += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Receives so many descriptors, in order; they are closed on exec.
///
/// # Errors
/// The system's words, too many, too few, or a limit of open files that does not allow them.
pub fn receive_descriptors(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    if count > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
    }
    let mut received: Vec<OwnedFd> = Vec::new();
    let mut control = nix::cmsg_space!([RawFd; BATCH]);
    while received.len() < count {
        let mut byte = [0];
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut control), flags) {
            Err(Errno::EINTR) => continue,
            message => message?,
        };
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = received.len();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = part {
                received.extend(descriptors.into_iter().map(owned));
            }
        }
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            let words = "descriptors were cut off: raise the limit of open files (ulimit -n)";
            return Err(io::Error::other(words));
        }
        if received.len() == before || received.len() > count {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not the descriptors that were announced",
            ));
        }
    }
    Ok(received)
}

#[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us in recvmsg; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;
    use crate::message::{self, Kind, MessageError};

    #[test]
    fn descriptors_arrive_in_order_over_several_batches_behind_a_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let count = 2 * BATCH + 7;
        // Every other one is the writing end.
        let sent: Vec<RawFd> =
            (0..count).map(|n| if n % 2 == 0 { reader.as_raw_fd() } else { writer.as_raw_fd() }).collect();
        let sender = std::thread::spawn(move || {
            message::write(&mut &ours, Kind::Inventory, b"{}").unwrap();
            send_descriptors(&ours, &sent).unwrap();
            message::write(&mut &ours, Kind::Ready, b"").unwrap();
            (reader, writer)
        });
        message::read(&mut &theirs, &[Kind::Inventory]).unwrap();
        let received = receive_descriptors(&theirs, count).unwrap();
        assert_eq!(received.len(), count);
        message::read(&mut &theirs, &[Kind::Ready]).unwrap();
        let ends = sender.join().unwrap();
        let mut last = File::from(received.into_iter().nth(1).unwrap());
        last.write_all(b"x").unwrap();
        drop((last, ends.1));
        let mut text = String::new();
        File::from(OwnedFd::from(ends.0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn too_few_descriptors_and_bytes_without_any_are_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        send_descriptors(&ours, &[file.as_raw_fd()]).unwrap();
        drop(ours);
        let error = receive_descriptors(&theirs, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"FFFF").unwrap();
        assert_eq!(receive_descriptors(&theirs, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_descriptors(&ours, &[file.as_raw_fd(); 3]).unwrap();
        assert_eq!(receive_descriptors(&theirs, 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(receive_descriptors(&theirs, MAX_DESCRIPTORS + 1).is_err());
    }

    #[test]
    fn a_message_of_ready_that_was_not_sent_before_the_shutdown_cannot_be_sent_after_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        message::write(&mut theirs, Kind::Ready, b"").unwrap();
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(message::read(&mut &ours, &[Kind::Ready]).is_ok(), "sent before: still to be read");
        assert!(matches!(message::write(&mut theirs, Kind::Ready, b""), Err(MessageError::Io(_))));
    }

    #[test]
    fn a_file_keeps_its_place_because_the_descriptor_is_the_same_open_file() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = File::open("/proc/self/status").unwrap();
        file.seek(io::SeekFrom::Start(3)).unwrap();
        send_descriptors(&ours, &[file.as_raw_fd()]).unwrap();
        let mut got = File::from(receive_descriptors(&theirs, 1).unwrap().remove(0));
        assert_eq!(got.stream_position().unwrap(), 3);
        assert_eq!(peer(&ours).unwrap().uid, nix::unistd::geteuid().as_raw());
        assert!(is_trusted(peer(&ours).unwrap()));
    }
}
