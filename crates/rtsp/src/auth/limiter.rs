//! Guessing is slowed down per address and user (SEC-13).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures per minute, address and user after which attempts are refused unseen (`docs/protocols/rtsp.md`, Authentication).
pub const MAX_FAILURES_PER_MINUTE: u32 = 10;

const WINDOW: Duration = Duration::from_mins(1);

/// Pairs remembered; above it expired ones are forgotten, then the oldest.
const MAX_ENTRIES: usize = 4096;

/// Longest user name kept; longer ones share an entry with others of the same beginning.
const MAX_USER_LEN: usize = 64;

#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) started: Instant,
    pub(super) failures: u32,
}

/// Failures of the last minute per (address, user). Bounded; time is an argument.
#[derive(Debug, Default)]
pub struct FailureLimiter {
    pub(super) entries: HashMap<(IpAddr, String), Window>,
}

impl FailureLimiter {
    /// Nothing remembered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an attempt may be looked at.
    ///
    /// # Errors
    /// The time until one may: answer `503` with `Retry-After`, and close.
    pub fn check(&self, now: Instant, address: IpAddr, user: &str) -> Result<(), Duration> {
        match self.entries.get(&key(address, user)) {
            Some(w) if w.failures >= MAX_FAILURES_PER_MINUTE => {
                let left = WINDOW.saturating_sub(now.saturating_duration_since(w.started));
                if left.is_zero() { Ok(()) } else { Err(left) }
            }
            _ => Ok(()),
        }
    }

    /// Records a failed attempt.
    pub fn record_failure(&mut self, now: Instant, address: IpAddr, user: &str) {
        let key = key(address, user);
        if !self.entries.contains_key(&key) && self.entries.len() >= MAX_ENTRIES {
            self.evict(now);
        }
        let window = self.entries.entry(key).or_insert(Window { started: now, failures: 0 });
        if now.saturating_duration_since(window.started) >= WINDOW {
            *window = Window { started: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
    }

    /// Number of pairs remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn evict(&mut self, now: Instant) {
        self.entries.retain(|_, w| now.saturating_duration_since(w.started) < WINDOW);
        if self.entries.len() >= MAX_ENTRIES {
            let oldest = self.entries.iter().min_by_key(|(_, w)| w.started).map(|(k, _)| k.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
    }
}

fn key(address: IpAddr, user: &str) -> (IpAddr, String) {
    (address.to_canonical(), user.chars().take(MAX_USER_LEN).collect())
}
