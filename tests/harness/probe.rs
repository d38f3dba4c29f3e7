//! RTP sources and sinks that account for every packet: for loads no real player could carry.
//!
//! Each packet holds the number of its camera and its own. What a sink reports is about these numbers, so
//! sequence numbers that were rewritten on the way cannot hide a loss.

mod account;
mod camera;
mod hand;
mod relay;
mod viewer;
pub mod wire;

pub use account::Account;
pub use camera::{Cameras, Load};
pub use hand::{Player, Publisher, VIDEO, VIDEO_AUDIO, frame};
pub use relay::{Mutation, Relay};
pub use viewer::{SetUp, Viewers, first_control};

/// RTP header and our two numbers behind a byte that looks like an H.264 slice.
const HEADER: usize = 12;
const MARK: u8 = 0x41;
const SMALLEST: usize = HEADER + 9;

/// Builds a probe's packet.
fn build(packet: &mut [u8], camera: u32, number: u32, start: (u16, u32, u32), ticks: u32, marker: bool) {
    let (sequence, timestamp, ssrc) = start;
    packet[0] = 0x80;
    packet[1] = 0x60 | u8::from(marker) << 7; // payload type 96
    packet[2..4].copy_from_slice(&sequence.wrapping_add(number as u16).to_be_bytes());
    packet[4..8].copy_from_slice(&timestamp.wrapping_add(ticks).to_be_bytes());
    packet[8..12].copy_from_slice(&ssrc.to_be_bytes());
    packet[12] = MARK;
    packet[13..17].copy_from_slice(&camera.to_be_bytes());
    packet[17..21].copy_from_slice(&number.to_be_bytes());
}
