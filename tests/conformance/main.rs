//! Conformance cases of the protocols, numbered as in `docs/protocols`: RTSP, sessions, descriptions.
//!
//! Tables and transcripts are tested beside the code; here the running proxy stands between real programs.

mod authentication;
mod descriptions;
mod fake_camera;
mod joining;
mod liveness;
mod messages;
mod peer;
mod publishing;
mod quirk_camera;
mod relay;
mod replies;
mod scene;
mod sharing;
mod sources;
mod transports;
