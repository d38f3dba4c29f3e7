//! What the benchmarks share: whose CPU time counts, where copies end, order of rounds and medians, the
//! RTSP that sets up streams.

pub mod cpu;
pub mod rtsp;
pub mod setting;
pub mod sink;
pub mod stats;
