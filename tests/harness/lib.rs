//! What the test tiers share: privileges, processes, cameras, viewers, the oracle, probes, namespaces.
//!
//! Nothing here uses a crate of ours: the harness looks at the proxy from outside, as its users do.

pub mod bench;
pub mod camera;
pub mod fixture;
pub mod ground;
pub mod lab;
pub mod lip_sync;
pub mod matrix;
pub mod oracle;
pub mod packet;
pub mod privilege;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod rtsp;
pub mod viewer;
