//! What a control plane is told before it starts. Plain data; whoever embeds it fills it in.

use std::time::Duration;

pub use msm_rtsp::auth::Credentials;

/// Settings of a [`crate::ControlPlane`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Value of the `Server` header and of `User-Agent` towards cameras.
    pub agent: String,
    /// Realm of our own challenges; never that of a camera (RTSP-34).
    pub realm: String,
    /// Whether SHA-256 challenges are offered, before the MD5 one (RTSP-36).
    pub sha256: bool,
    /// Cameras to pull.
    pub pulls: Vec<PullConfig>,
    /// Who may read and publish which name. A name that is not listed is open.
    pub users: Vec<UserConfig>,
    /// Times.
    pub times: Times,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            agent: concat!("media-streaming-mesh/", env!("CARGO_PKG_VERSION")).to_owned(),
            realm: "media-streaming-mesh".to_owned(),
            sha256: true,
            pulls: Vec::new(),
            users: Vec::new(),
            times: Times::default(),
            limits: Limits::default(),
        }
    }
}

/// One camera to pull and the name it gets.
#[derive(Debug, Clone)]
pub struct PullConfig {
    /// Path it is served under, without the leading `/`.
    pub name: String,
    /// `rtsp://host[:port]/path[?query]`. A `user:password@` in it is taken out and used when
    /// `credentials` is `None` (RTSP-38).
    pub url: String,
    /// Transport policy (RTSP-15).
    pub transport: PullTransport,
    /// Who we are towards the camera.
    pub credentials: Option<Credentials>,
    /// Whether a camera that asks for Basic gets its password, in clear (RTSP-38).
    pub basic: bool,
}

impl PullConfig {
    /// A pull with automatic transport and without credentials; Basic is not answered.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            transport: PullTransport::Auto,
            credentials: None,
            basic: false,
        }
    }
}

/// Transport of a pull (RTSP-15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PullTransport {
    /// UDP first, interleaved after `461` or 3 s without a packet.
    #[default]
    Auto,
    /// UDP only.
    Udp,
    /// Interleaved only.
    Tcp,
}

/// One user of one name.
#[derive(Debug, Clone)]
pub struct UserConfig {
    /// Path without the leading `/`, or `*` for every path.
    pub name: String,
    /// Who may read and publish it.
    pub credentials: Credentials,
}

/// How long sessions, sources and what nobody uses live.
#[derive(Debug, Clone)]
pub struct Times {
    /// `timeout=` that viewers and publishers are told.
    pub session_advertised: Duration,
    /// When a session without a sign of life ends.
    pub session_enforced: Duration,
    /// How long a session that never played may hold its ports (SEC-5).
    pub lease: Duration,
    /// How long a UDP session outlives its connection (RTSP-21).
    pub grace: Duration,
    /// Longest time until we answer a request.
    pub reply: Duration,
    /// Longest wait for a camera's answer.
    pub upstream_reply: Duration,
    /// Longest wait for a connection to a camera. Short, because a camera that boots answers nothing for a
    /// while and must be back within 5 s of its return.
    pub dial: Duration,
    /// How long an upstream session outlives its last viewer (RTSP-27).
    pub linger: Duration,
    /// UDP without a packet for this long falls back to interleaved (RTSP-15).
    pub udp_fallback: Duration,
    /// First and longest pause before a camera is dialled again while viewers stay.
    pub backoff: (Duration, Duration),
    /// How long a failure to open an upstream is answered from memory (RTSP-28).
    pub failure_cache: Duration,
    /// Silence after which a camera is asked whether it is still there; the row's silence.
    pub silence: Duration,
    /// Silence after which a camera that still answers is opened anew.
    pub silence_reopen: Duration,
    /// Pause before the answer to wrong credentials (SEC-13).
    pub auth_delay: Duration,
    /// Longest wait for BYE and TEARDOWN to go out when the process ends.
    pub shutdown: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            session_advertised: Duration::from_secs(55),
            session_enforced: Duration::from_secs(60),
            lease: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            reply: Duration::from_secs(5),
            upstream_reply: Duration::from_secs(10),
            dial: Duration::from_secs(3),
            linger: Duration::from_secs(5),
            udp_fallback: Duration::from_secs(3),
            backoff: (Duration::from_millis(250), Duration::from_secs(1)),
            failure_cache: Duration::from_secs(1),
            silence: Duration::from_secs(3),
            silence_reopen: Duration::from_secs(10),
            auth_delay: Duration::from_secs(1),
            shutdown: Duration::from_millis(1500),
        }
    }
}

/// How much of everything one peer and all together may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of an anonymous peer address: a video wall is one address.
    pub per_address: IdentityLimits,
    /// Of an authenticated user.
    pub per_user: IdentityLimits,
    /// Streams that publishers may create.
    pub published_streams: usize,
    /// Requests of one connection that wait for their turn.
    pub outstanding: usize,
    /// Wrong credentials on one connection before it is closed (SEC-13).
    pub auth_failures: u32,
    /// Wrong credentials of one address and user per minute (SEC-13).
    pub auth_failures_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_address: IdentityLimits {
                sessions: 1000,
                legs: 4000,
                setup_burst: 1000,
                setup_per_second: 20,
            },
            per_user: IdentityLimits { sessions: 64, legs: 256, setup_burst: 200, setup_per_second: 20 },
            published_streams: 1024,
            outstanding: 10,
            auth_failures: 3,
            auth_failures_per_minute: 10,
        }
    }
}

/// Bounds of one identity (SEC-5, R61).
#[derive(Debug, Clone, Copy)]
pub struct IdentityLimits {
    /// RTSP sessions.
    pub sessions: u32,
    /// Tracks set up over all sessions.
    pub legs: u32,
    /// SETUPs at once.
    pub setup_burst: u32,
    /// SETUPs per second after that.
    pub setup_per_second: u32,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The URL of a pull is not `rtsp://host[:port][/path]`. It is not repeated: it may hold a password.
    #[error("pull {name}: the URL is not rtsp://host[:port]/path ({why})")]
    PullUrl {
        /// Name of the pull.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two pulls have one name.
    #[error("pull {0}: the name is given twice")]
    PullName(String),
    /// A name that no URL can carry.
    #[error("{0:?} cannot be a name: it becomes the path of a URL")]
    Name(String),
}
