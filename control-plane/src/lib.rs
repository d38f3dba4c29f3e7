//! RTSP sessions, upstream sessions and the catalog of streams, as a sans-IO library.
//!
//! [`ControlPlane`] is one machine: events in, actions out, time and randomness passed in. It never
//! touches a socket; `rtp-proxy standalone` executes its actions in process, a mesh by gRPC. What it asks
//! of the packet path are row and leg operations of `msm-graph` and nothing else.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod event;
