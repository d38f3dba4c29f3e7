//! When and how a camera is told that its session is still wanted (RTSP-24).
//!
//! Pure: the dialling proxy of a mesh runs the same schedule while its control plane is away.

use std::time::{Duration, Instant};

use crate::message::Method;
use crate::quirks::{self, KeepalivePolicy};

/// A session timeout when the camera names none, or 0 (RTSP-25).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest pause between keepalives.
pub const MAX_INTERVAL: Duration = Duration::from_secs(30);

/// Schedule of the keepalives of one upstream session.
#[derive(Debug, Clone)]
pub struct Keepalive {
    pub(super) timeout: Duration,
    pub(super) next: Option<Instant>,
    pub(super) get_parameter: bool,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT, next: None, get_parameter: false }
    }
}

impl Keepalive {
    /// Observes the timeout of a `Session` header; `None` when it named none. Cameras change it between
    /// SETUP and PLAY (GW4089IP): the last one counts.
    pub fn observe_timeout(&mut self, timeout: Option<Duration>) {
        if let Some(timeout) = timeout {
            self.timeout = if timeout.is_zero() { DEFAULT_TIMEOUT } else { timeout };
        }
    }

    /// Observes the `Public` header: `GET_PARAMETER` is sent only to cameras that list it, others close
    /// the connection on it.
    pub fn observe_public(&mut self, public: &str) {
        self.get_parameter = quirks::keepalive(Some(public)) == KeepalivePolicy::GetParameter;
    }

    /// The camera refused `GET_PARAMETER` although it lists it (GW4089IP): `OPTIONS` from now on.
    pub fn refuse_get_parameter(&mut self) {
        self.get_parameter = false;
    }

    /// The method to use: `OPTIONS` with Session, or `GET_PARAMETER` where it is listed (VLC counts only
    /// that one as a sign of life).
    pub fn method(&self) -> Method {
        if self.get_parameter { Method::GetParameter } else { Method::Options }
    }

    /// Time between two keepalives: half the timeout, at most 30 s, at least 1 s.
    pub fn interval(&self) -> Duration {
        (self.timeout / 2).min(MAX_INTERVAL).max(Duration::from_secs(1))
    }

    /// A request with the session went out: the next keepalive is due an interval later.
    pub fn restart(&mut self, now: Instant) {
        self.next = Some(now + self.interval());
    }

    /// There is no session any more.
    pub fn stop(&mut self) {
        self.next = None;
    }

    /// When the next keepalive is due.
    pub fn due(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_is_half_the_timeout_and_at_most_30_seconds() {
        let mut keepalive = Keepalive::default();
        assert_eq!(keepalive.interval(), Duration::from_secs(30));
        keepalive.observe_timeout(Some(Duration::from_secs(10)));
        assert_eq!(keepalive.interval(), Duration::from_secs(5));
        keepalive.observe_timeout(Some(Duration::from_secs(600)));
        assert_eq!(keepalive.interval(), Duration::from_secs(30));
    }

    #[test]
    fn timeout_of_zero_means_sixty_seconds() {
        let mut keepalive = Keepalive::default();
        keepalive.observe_timeout(Some(Duration::ZERO));
        assert_eq!(keepalive.interval(), Duration::from_secs(30));
    }

    #[test]
    fn get_parameter_is_used_only_where_public_lists_it() {
        let mut keepalive = Keepalive::default();
        assert_eq!(keepalive.method(), Method::Options);
        keepalive.observe_public("OPTIONS, SET_PARAMETER, PLAY");
        assert_eq!(keepalive.method(), Method::Options);
        keepalive.observe_public("OPTIONS,GET_PARAMETER");
        assert_eq!(keepalive.method(), Method::GetParameter);
        keepalive.refuse_get_parameter();
        assert_eq!(keepalive.method(), Method::Options);
    }
}
