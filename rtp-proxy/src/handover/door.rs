//! Where the next program asks for everything: a Unix socket that only its user can reach.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use msm_handover::channel::{is_trusted, peer};
use msm_handover::message::{self, FORMAT, Hello, Kind, Refused};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tracing::warn;

/// Longest time between connecting and the whole first message.
const HELLO: Duration = Duration::from_secs(2);
/// Longest wait for the other program to take what is written.
const WRITE: Duration = Duration::from_secs(5);

/// Programs that ask at once; further ones are refused.
pub(crate) const QUEUE: usize = 1;

/// A program that wants to take over, and understands us.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) stream: UnixStream,
    pub(crate) program: String,
    pub(crate) pid: i32,
}

/// An open door. The path is removed when this is dropped, unless it is another one's by then.
#[derive(Debug)]
pub(crate) struct Door {
    path: PathBuf,
    inode: Option<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
        if self.inode.is_some() && inode(&self.path) == self.inode {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

/// Opens the door at `path`. `replaces`: whether the one that is there belongs to the program that we took over
/// from.
///
/// # Errors
/// The system's words; [`io::ErrorKind::AddrInUse`] when another proxy listens there.
pub(crate) fn open(path: &Path, replaces: bool, requests: mpsc::Sender<Request>) -> io::Result<Door> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    if !replaces && UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Under a name of its own first: there is a door all the time, and never one that others can open.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    let task = tokio::spawn(serve(listener, requests));
    Ok(Door { path: path.to_owned(), inode: inode(path), task })
}

async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(stream) = stream.into_std() else { continue };
        let requests = requests.clone();
        tokio::task::spawn_blocking(move || match greet(&stream) {
            Ok((program, pid)) => {
                let request = Request { stream, program, pid };
                if let Err(mpsc::error::TrySendError::Full(request)) = requests.try_send(request) {
                    refuse(&request.stream, "another program is taking over");
                }
            }
            Err(words) => {
                warn!(event = "handover.refused", reason = words, "a program that cannot take over");
                refuse(&stream, &words);
            }
        });
    }
}

/// Tells the other program that we go on.
pub(crate) fn refuse(mut stream: &UnixStream, reason: &str) {
    let refused = Refused { reason: reason.to_owned() };
    if let Ok(body) = serde_json::to_vec(&refused) {
        let _ = message::write(&mut stream, Kind::Refused, &body);
    }
}

fn greet(mut stream: &UnixStream) -> Result<(String, i32), String> {
    let words = |error: io::Error| error.to_string();
    stream.set_nonblocking(false).map_err(words)?;
    stream.set_read_timeout(Some(HELLO)).map_err(words)?;
    stream.set_write_timeout(Some(WRITE)).map_err(words)?;
    let peer = peer(stream).map_err(words)?;
    if !is_trusted(peer) {
        return Err(format!("user {} may not take over", peer.uid));
    }
    let (_, body) = message::read(&mut stream, &[Kind::Hello]).map_err(|error| error.to_string())?;
    let hello: Hello = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    if !hello.reads_ours() {
        return Err(format!("it reads formats {} to {}, ours is {FORMAT}", hello.oldest, hello.newest));
    }
    Ok((hello.program, peer.pid))
}
