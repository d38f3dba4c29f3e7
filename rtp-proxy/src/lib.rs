//! The packet path of Media Streaming Mesh: one per node, or standalone on an edge box.
//!
//! `config` says what to do, `app` builds every part, `standalone` embeds the session logic and crosses
//! the seam: Row and Leg operations → `plan` → `install` → `user`. Nothing else touches a socket of the
//! data path.

pub mod app;
pub mod banner;
pub mod bind;
pub mod commands;
pub mod config;
pub mod dial;
pub mod front;
pub mod handover;
pub mod install;
pub mod kernel;
pub mod plan;
pub mod standalone;
pub mod stats;
pub mod status;
pub mod user;
