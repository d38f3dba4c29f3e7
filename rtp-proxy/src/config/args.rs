//! The command line as text: what clap understands, before anything is validated.
//!
//! Values stay strings here, so that [`super::check`] can name every problem at once instead of the first.

use clap::{Args as ClapArgs, Parser, Subcommand};

/// The packet path of Media Streaming Mesh.
#[derive(Debug, Parser)]
#[command(
    name = "rtp-proxy",
    about = "The packet path of Media Streaming Mesh: one camera, many viewers",
    disable_version_flag = true,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Print the version and whether the kernel programs are built in
    #[arg(long, short = 'V')]
    pub version: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve cameras and publishers to many viewers from this machine, without any configuration
    Standalone(Box<Raw>),
    /// Show streams, viewers and what carries each; also what a proxy left that is not running
    Status(StatusArgs),
    /// Check what the fast path needs on this machine, with the fix for each thing that is missing
    Doctor(BpffsArgs),
    /// Remove every program, link, filter and setting that proxies left in this network namespace
    Uninstall(BpffsArgs),
}

/// Options of `rtp-proxy status`.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_line_help = true)]
pub struct StatusArgs {
    /// Where the proxy's admin listener is
    /// [default: 127.0.0.1:8081]
    #[arg(verbatim_doc_comment, long, value_name = "ADDRESS:PORT")]
    pub admin: Option<String>,
    /// The kernel's part.
    #[command(flatten)]
    pub bpffs: BpffsArgs,
}

/// Where kernel state is kept.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_line_help = true)]
pub struct BpffsArgs {
    /// BPF file system in which the kernel's part is kept over a restart
    /// [default: /sys/fs/bpf]
    #[arg(verbatim_doc_comment, long, value_name = "DIRECTORY")]
    pub bpffs: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  rtp-proxy standalone
      Any path can be published to and played:
      ffmpeg -re -i film.mp4 -c copy -f rtsp rtsp://127.0.0.1:8554/film
      ffplay rtsp://127.0.0.1:8554/film

  rtp-proxy standalone --pull door=rtsp://192.168.1.64/Streaming/Channels/101 \\
                       --credentials door=/etc/rtp-proxy/door
      The camera is opened by its first viewer and closed after the last:
      mpv rtsp://127.0.0.1:8554/door

  rtp-proxy standalone --rtsp 127.0.0.1:8554
      Only programs on this machine can publish and play.

  rtp-proxy standalone --user anna:/etc/rtp-proxy/anna
      Publishing and playing need user anna and the password in that file.

Every option can be given as an environment variable, MSM_ and its name in capitals:
MSM_SESSION_TIMEOUT=30s. Repeatable ones take a list separated by blanks. The command line wins.
rtp-proxy standalone --take-over with the same arguments upgrades the one that runs.
SIGTERM or Ctrl-C ends: viewers get a BYE, cameras a TEARDOWN. A second signal does not wait for them.";

/// Options of `rtp-proxy standalone` as given; `None` and empty mean not given.
#[derive(Debug, Default, Clone, ClapArgs)]
#[command(after_help = EXAMPLES, next_line_help = true)]
pub struct Raw {
    /// Where viewers and publishers connect; `[::]` takes IPv4 as well
    /// [default: [::]:8554]
    #[arg(
        verbatim_doc_comment,
        long,
        visible_alias = "listen",
        value_name = "ADDRESS:PORT",
        help_heading = "Listening"
    )]
    pub rtsp: Option<String>,
    /// Where /metrics, /v1/streams, /livez and /readyz are served
    /// [default: 127.0.0.1:8081]
    #[arg(verbatim_doc_comment, long, value_name = "ADDRESS:PORT", help_heading = "Listening")]
    pub admin: Option<String>,
    /// UDP ports of media: the first two towards viewers, the others from cameras and publishers
    /// [default: 8060-8187]
    #[arg(verbatim_doc_comment, long, value_name = "FIRST-LAST", help_heading = "Listening")]
    pub rtp_ports: Option<String>,

    /// A camera to serve under NAME, opened by its first viewer; repeatable
    #[arg(verbatim_doc_comment, long, value_name = "NAME=rtsp://HOST[:PORT]/PATH", help_heading = "Streams")]
    pub pull: Vec<String>,
    /// How media comes from that camera. auto: UDP first, TCP when refused or silent for 3 s
    /// [default: auto]
    #[arg(verbatim_doc_comment, long, value_name = "NAME=auto|udp|tcp", help_heading = "Streams")]
    pub pull_transport: Vec<String>,
    /// File with the camera's login, one line user:password; repeatable
    #[arg(verbatim_doc_comment, long, value_name = "NAME=FILE", help_heading = "Streams")]
    pub credentials: Vec<String>,
    /// Camera that may be sent its password in clear, if it asks for Basic; repeatable
    #[arg(verbatim_doc_comment, long, value_name = "NAME", help_heading = "Streams")]
    pub allow_basic: Vec<String>,
    /// Playing and publishing need this user, whose password is the line in FILE; repeatable
    #[arg(verbatim_doc_comment, long, value_name = "NAME:FILE", help_heading = "Streams")]
    pub user: Vec<String>,

    /// A session without a sign of life ends after this time; viewers are told 5 s less
    /// [default: 60s]
    #[arg(verbatim_doc_comment, long, value_name = "TIME", help_heading = "Sessions")]
    pub session_timeout: Option<String>,
    /// How long a camera stays open after its last viewer
    /// [default: 5s]
    #[arg(verbatim_doc_comment, long, value_name = "TIME", help_heading = "Sessions")]
    pub linger: Option<String>,
    /// Most RTSP connections at once, half of them from one address; further ones are closed
    /// [default: 4096]
    #[arg(verbatim_doc_comment, long, value_name = "NUMBER", help_heading = "Sessions")]
    pub max_connections: Option<String>,
    /// Most streams, those of cameras included: further publishers are refused. The tables of
    /// the fast path have room for picture and sound of each
    /// [default: 1024]
    #[arg(verbatim_doc_comment, long, value_name = "NUMBER", help_heading = "Sessions")]
    pub max_streams: Option<String>,

    /// Best way to carry media that may be used: tcx, tc or user
    /// [default: tcx]
    #[arg(verbatim_doc_comment, long, value_name = "RUNG", help_heading = "Fast path")]
    pub max_rung: Option<String>,
    /// Interface that the fast path may use; repeatable
    /// [default: those that cameras and viewers are reached through]
    #[arg(verbatim_doc_comment, long, value_name = "NAME", help_heading = "Fast path")]
    pub interface: Vec<String>,
    /// After a restart: how long streams that went on without the proxy wait to be taken over
    /// [default: 60s]
    #[arg(verbatim_doc_comment, long, value_name = "TIME", help_heading = "Fast path")]
    pub adopt_grace: Option<String>,
    /// auto: bursts of a source behind a veth are merged where they come in, while that pays, by
    /// settings of that interface that are given back afterwards. off: never
    /// [default: auto]
    #[arg(verbatim_doc_comment, long, value_name = "auto|off", help_heading = "Fast path")]
    pub batching: Option<String>,
    /// BPF file system in which the kernel's part is kept over a restart
    /// [default: /sys/fs/bpf]
    #[arg(verbatim_doc_comment, long, value_name = "DIRECTORY", help_heading = "Fast path")]
    pub bpffs: Option<String>,

    /// Data workers, each on a core of its own
    /// [default: all cores but one, at least 1]
    #[arg(verbatim_doc_comment, long, value_name = "NUMBER", help_heading = "Running")]
    pub workers: Option<String>,
    /// On SIGTERM or Ctrl-C keep forwarding until no viewer is left, at most for this time
    /// [default: 0s]
    #[arg(verbatim_doc_comment, long, value_name = "TIME", help_heading = "Running")]
    pub drain: Option<String>,
    /// Take over from the rtp-proxy that runs with the same arguments: viewers, publishers and cameras
    /// notice nothing. Starts by itself where none runs
    #[arg(verbatim_doc_comment, long, help_heading = "Running")]
    pub take_over: bool,
    /// Unix socket of --take-over; `off`: no planned upgrade
    /// [default: RTSP-PORT.sock in the service's runtime directory, /run/rtp-proxy or $XDG_RUNTIME_DIR/rtp-proxy]
    #[arg(verbatim_doc_comment, long, value_name = "PATH", help_heading = "Running")]
    pub handover: Option<String>,
    /// error, warn, info, debug, trace or off; also per part: info,rtp_proxy=debug
    /// [default: info]
    #[arg(verbatim_doc_comment, long, value_name = "LEVEL", help_heading = "Running")]
    pub log_level: Option<String>,
    /// text or json, one line per event on standard error
    /// [default: text]
    #[arg(verbatim_doc_comment, long, value_name = "FORMAT", help_heading = "Running")]
    pub log_format: Option<String>,
}
