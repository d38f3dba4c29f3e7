//! Sans-IO RTSP 1.0 and SDP.
//!
//! Syntax follows RFC 2326; the proxy, limit, liveness and security rules follow RFC 7826. Nothing in
//! this crate reads a clock, opens a socket or draws a random number: time, ids and random bytes are
//! arguments, decisions leave as data. Every parser is total: any input gives a value or an error that
//! names the byte and the rule, and the result does not depend on how the bytes were cut.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod auth;
pub mod client;
pub mod conn;
pub mod demux;
#[doc(hidden)]
pub mod fuzzing;
pub mod headers;
pub mod message;
pub mod parse;
pub mod quirks;
pub mod sdp;
pub mod server;
pub mod transport;
pub mod url;
pub mod write;
