//! What every deployable shares at run time: logs, metrics, the admin listener, shutdown order, retries.
//!
//! Knows nothing of RTP or RTSP. The metrics registry has its only home here.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod admin;
pub mod backoff;
pub mod drain;
pub mod metrics;
pub mod telemetry;
