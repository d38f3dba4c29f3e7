//! What `rtp-proxy` does beside serving: `status`, `doctor`, `uninstall`.
//!
//! Each returns text and whether it went well, and prints nothing itself.

pub mod doctor;
pub mod status;
pub mod uninstall;

/// What a command has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub text: String,
    /// Exit status 0, else 1.
    pub ok: bool,
}
