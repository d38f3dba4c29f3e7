//! Logs: JSON or text on standard error, and what keeps a hostile peer from filling them.
//!
//! Every line has an `event` with a stable name. Credentials never reach a line: URLs pass through
//! [`redact`] first.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;
use std::time::{Duration, Instant};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt as layer};

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Every name, for messages.
    pub const NAMES: [&str; 2] = ["text", "json"];
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}

/// Which lines are written: a level, or levels per target (`info,rtp_proxy=debug`).
#[derive(Debug, Clone)]
pub struct LogLevel(Targets);

impl LogLevel {
    /// Every level, for messages.
    pub const NAMES: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
}

impl FromStr for LogLevel {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        // `Targets` takes a lone word that is no level for a target and would log everything of it.
        let mut directives = s.split(',');
        let known = |level: &str| Self::NAMES.iter().any(|name| name.eq_ignore_ascii_case(level));
        if !directives.all(|d| known(d.rsplit('=').next().unwrap_or(d).trim())) {
            return Err(());
        }
        s.parse().map(Self).map_err(|_| ())
    }
}

impl Default for LogLevel {
    fn default() -> Self {
        Self(Targets::new().with_default(tracing::Level::INFO))
    }
}

/// Starts logging for the process.
///
/// # Errors
/// If the process logs already.
pub fn install(level: LogLevel, format: LogFormat) -> Result<(), TryInitError> {
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Json => {
            let json = layer::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_writer(std::io::stderr);
            registry.with(json.with_filter(level.0)).try_init()
        }
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            let text = layer::layer()
                .with_target(false)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            registry.with(text.with_filter(level.0)).try_init()
        }
    }
}

/// `text` without the user and password of any URL in it (SEC-12).
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut out: Option<String> = None;
    let mut copied = 0;
    let mut from = 0;
    while let Some(at) = text.get(from..).and_then(|rest| rest.find("://")) {
        let authority = from + at + 3;
        let rest = text.get(authority..).unwrap_or_default();
        let end = rest.find(['/', '?', '#', ' ', '"', '\t', '\r', '\n']).unwrap_or(rest.len());
        if let Some(userinfo) = rest.get(..end).and_then(|a| a.rfind('@')) {
            let out = out.get_or_insert_default();
            out.push_str(text.get(copied..authority).unwrap_or_default());
            out.push_str("***");
            copied = authority + userinfo;
        }
        from = authority;
    }
    match out {
        Some(mut out) => {
            out.push_str(text.get(copied..).unwrap_or_default());
            Cow::Owned(out)
        }
        None => Cow::Borrowed(text),
    }
}

/// Text from the network for a log line: control characters escaped, at most `MAX_FIELD` characters (SEC-10).
pub fn escape(text: &str) -> impl fmt::Display {
    const MAX_FIELD: usize = 200;
    struct Escaped<'a>(&'a str);
    impl fmt::Display for Escaped<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut chars = self.0.chars();
            for c in chars.by_ref().take(MAX_FIELD) {
                if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
            }
            if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
        }
    }
    Escaped(text).to_string()
}

/// Lets a first burst of lines per key through, then one per interval with the number left out.
///
/// Keys are peers or streams. At most `MAX_KEYS` are remembered; a flood from more keys than that shares
/// one budget, so neither memory nor the log grows with the number of attackers.
#[derive(Debug)]
pub struct LineLimiter<K> {
    burst: u32,
    interval: Duration,
    keys: HashMap<K, Window>,
    rest: Window,
}

#[derive(Debug, Default, Clone, Copy)]
struct Window {
    start: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Window {
    fn admit(&mut self, now: Instant, burst: u32, interval: Duration) -> Option<u64> {
        let fresh = self.start.is_none_or(|start| now.saturating_duration_since(start) >= interval);
        if fresh {
            self.start = Some(now);
            self.passed = 0;
        }
        if self.passed < burst {
            self.passed += 1;
            return Some(std::mem::take(&mut self.suppressed));
        }
        self.suppressed += 1;
        None
    }
}

impl<K: Hash + Eq> LineLimiter<K> {
    /// Most keys that have a budget of their own.
    pub const MAX_KEYS: usize = 1_024;

    /// `burst` lines per key and `interval`.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, keys: HashMap::new(), rest: Window::default() }
    }

    /// `Some(suppressed)` if a line about `key` may be written now: the number of lines left out since the
    /// last one.
    pub fn admit(&mut self, now: Instant, key: K) -> Option<u64> {
        let (burst, interval) = (self.burst, self.interval);
        if !self.keys.contains_key(&key) && self.keys.len() >= Self::MAX_KEYS {
            let live = |w: &Window| w.start.is_some_and(|s| now.saturating_duration_since(s) < interval);
            self.keys.retain(|_, window| live(window));
            if self.keys.len() >= Self::MAX_KEYS {
                return self.rest.admit(now, burst, interval);
            }
        }
        self.keys.entry(key).or_default().admit(now, burst, interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_user_and_password_and_keep_the_rest() {
        for (text, want) in [
            ("rtsp://admin:s3cret@10.0.0.1:554/a", "rtsp://***@10.0.0.1:554/a"),
            ("to rtsp://u:p@h/x and http://v:w@i/y.", "to rtsp://***@h/x and http://***@i/y."),
            ("rtsp://u:p@ss@h/x", "rtsp://***@h/x"),
            ("rtsp://host/a@b", "rtsp://host/a@b"),
            ("no url, a@b", "no url, a@b"),
            ("rtsp://", "rtsp://"),
        ] {
            assert_eq!(redact(text), want);
        }
    }

    #[test]
    fn text_from_the_network_cannot_break_a_log_line() {
        assert_eq!(escape("a\r\nb\x1b[0m").to_string(), "a\\r\\nb\\u{1b}[0m");
        assert_eq!(escape(&"x".repeat(500)).to_string().chars().count(), 201);
    }

    #[test]
    fn lines_of_one_key_are_limited_and_the_next_one_says_how_many_were_left_out() {
        let now = Instant::now();
        let mut limiter = LineLimiter::new(2, Duration::from_secs(10));
        assert_eq!(limiter.admit(now, "a"), Some(0));
        assert_eq!(limiter.admit(now, "a"), Some(0));
        assert_eq!(limiter.admit(now, "a"), None);
        assert_eq!(limiter.admit(now, "a"), None);
        assert_eq!(limiter.admit(now, "b"), Some(0));
        assert_eq!(limiter.admit(now + Duration::from_secs(10), "a"), Some(2));
    }

    #[test]
    fn a_flood_of_keys_is_bounded_in_memory_and_lines() {
        let now = Instant::now();
        let mut limiter = LineLimiter::new(1, Duration::from_secs(10));
        let lines = (0..10_000_u32).filter(|key| limiter.admit(now, *key).is_some()).count();
        assert_eq!(lines, LineLimiter::<u32>::MAX_KEYS + 1);
        assert_eq!(limiter.keys.len(), LineLimiter::<u32>::MAX_KEYS);
        assert!(limiter.admit(now + Duration::from_secs(11), 77_777).is_some());
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        assert!("info".parse::<LogLevel>().is_ok());
        assert!("info,rtp_proxy=debug".parse::<LogLevel>().is_ok());
        assert!("inof".parse::<LogLevel>().is_err());
        assert!("info,rtp_proxy=loud".parse::<LogLevel>().is_err());
    }
}
