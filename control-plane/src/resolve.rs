//! From a name to where its media comes from. A client's URL selects a route and nothing else (SEC-11).

pub mod fixed;

use msm_rtsp::auth::{BasicPolicy, Credentials};

use crate::config::PullTransport;

/// A source that is pulled: everything needed to open it, and nothing of it is ever shown to a viewer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceRoute {
    /// Host name or address literal without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Request URL, without credentials.
    pub url: String,
    /// Who we are, if the source asks.
    pub credentials: Option<Credentials>,
    /// Whether Basic may be sent in clear.
    pub basic: BasicPolicy,
    /// Transport policy (RTSP-15).
    pub transport: PullTransport,
}
