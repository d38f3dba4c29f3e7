//! The binary as a person runs it: arguments, banner, logs, signals, exit status.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BINARY: &str = env!("CARGO_BIN_EXE_rtp-proxy");

/// Everything on ports that the system chooses.
const FREE: [&str; 7] = [
    "standalone",
    "--rtsp=127.0.0.1:0",
    "--admin=127.0.0.1:0",
    "--rtp-ports=0",
    "--workers=1",
    "--log-format",
    "json",
];

struct Proxy {
    child: Child,
    lines: mpsc::Receiver<serde_json::Value>,
    seen: Vec<serde_json::Value>,
}

impl Proxy {
    fn start(more: &[&str]) -> Self {
        let mut child = Command::new(BINARY).args(FREE).args(more).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let json = serde_json::from_str(&line).unwrap_or_else(|e| panic!("no JSON ({e}): {line}"));
                if tx.send(json).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// The text of the first line of that event.
    fn wait_for(&mut self, event: &str) -> String {
        loop {
            let line =
                self.lines.recv().unwrap_or_else(|_| panic!("ended without {event}: {:#?}", self.seen));
            self.seen.push(line.clone());
            if line["event"] == event {
                return line.to_string();
            }
        }
    }

    fn rtsp(&mut self) -> SocketAddr {
        let line = self.wait_for("listening");
        let from = line.find("rtsp://127.0.0.1:").unwrap() + "rtsp://".len();
        line[from..].split('/').next().unwrap().parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Everything that was logged, after a clean end.
    fn end(mut self) -> String {
        assert!(self.child.wait().unwrap().success());
        self.seen.extend(self.lines.iter());
        format!("{:#?}", self.seen)
    }
}

fn output(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut buf = [0; 4096];
    let n = stream.read(&mut buf).unwrap();
    String::from_utf8_lossy(&buf[..n]).into_owned()
}

#[test]
fn the_version_says_whether_the_kernel_programs_are_in() {
    let text = String::from_utf8(output(&["--version"]).stdout).unwrap();
    assert!(text.starts_with(concat!("rtp-proxy ", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(
        text.contains("kernel programs embedded") || text.contains("kernel programs not embedded"),
        "{text}"
    );
}

#[test]
fn bad_settings_are_told_all_at_once_and_are_a_usage_error() {
    let output = output(&["standalone", "--drain", "soon", "--rtsp", "8554", "--log-level", "inof"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    for part in ["--rtsp 8554", "--drain soon", "--log-level inof", "write info"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_taken_port_ends_with_its_setting_and_its_holder() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = output(&["standalone", "--rtsp", &address, "--admin", "127.0.0.1:0", "--rtp-ports", "0"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let holder = format!("(pid {}) holds it", std::process::id());
    assert!(text.contains(&address) && text.contains("--rtsp") && text.contains(&holder), "{text}");
}

#[test]
fn sigterm_and_ctrl_c_end_it_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut proxy = Proxy::start(&[]);
        proxy.rtsp();
        proxy.signal(signal);
        assert!(proxy.end().contains("drain.done"));
    }
}

#[test]
fn a_drain_without_viewers_does_not_wait() {
    let mut proxy = Proxy::start(&["--drain", "1m"]);
    proxy.rtsp();
    proxy.signal(Signal::SIGTERM);
    let log = proxy.end();
    assert!(log.contains("drain.started") && log.contains("drain.done"), "{log}");
}

#[test]
fn no_log_line_holds_a_password() {
    let login = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(login.path(), "anna:hunter2").unwrap();
    std::fs::set_permissions(login.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let user = format!("anna:{}", login.path().display());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pull = format!("door=rtsp://admin:s3cret@{closed}/1");
    let mut proxy = Proxy::start(&["--log-level", "trace", "--user", &user, "--pull", &pull]);
    let address = proxy.rtsp();
    let challenge = ask(address, "DESCRIBE rtsp://x/door RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    assert!(challenge.starts_with("RTSP/1.0 401"), "{challenge}");
    // Basic is clear text and never offered; its sender's password must not reach the log either.
    let basic = "DESCRIBE rtsp://anna:hunter2@x/door RTSP/1.0\r\nCSeq: 2\r\nAuthorization: Basic YW5uYTpodW50ZXIy\r\n\r\n";
    ask(address, basic);
    proxy.signal(Signal::SIGTERM);
    let log = proxy.end();
    for secret in ["hunter2", "s3cret", "YW5uYTpodW50ZXIy"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}
