//! Why a camera is not there, in people's words. None of them names a URL or a credential.

use super::{BASIC_NOT_ALLOWED, UNAUTHORIZED};

/// What an operator reads for the reason of a failure and the camera's or the operating system's words.
pub(crate) fn in_words(reason: &str, detail: &str) -> String {
    let words = match reason {
        "connect" => "the camera cannot be reached",
        "connect_timeout" => "the camera does not answer to a connection attempt",
        "connection_closed" => "the camera closed the connection",
        "timeout" => "the camera does not answer",
        UNAUTHORIZED => "the camera refuses the login",
        BASIC_NOT_ALLOWED => "the login is not sent",
        "refused" => "the camera refuses",
        "malformed" => "the camera's answer cannot be used",
        "description" => "the camera describes no media that can be forwarded",
        "setup" => "the camera sets up none of its media",
        "transport" => "the camera takes neither of the transports that may be used",
        "channels" => "the camera gives two media the same channels",
        "session_lost" => "the camera forgot its session",
        "exhausted" | "no_ports" => "no ports are left for the camera's media",
        "install" | "install_timeout" => "this proxy could not prepare for the camera's media",
        other => other,
    };
    let separator = if detail.is_empty() { "" } else { ": " };
    format!("{words}{separator}{detail}")
}
