//! The source: RTP over UDP from one socket per target, paced.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};

/// How packets leave the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One packet at a time, each waking the contender.
    Single,
    /// So many in one `sendmmsg`, as an encoder sends a frame.
    Burst(usize),
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Single => "single packets",
            Self::Burst(_) => "bursts of 32",
        }
    }
}

/// Packets per second, the same for every case: 4,000 wake the slowest contender for every packet
/// without filling its core.
const RATE: u32 = 4_000;

/// Sends for about `how_long` and returns how many packets.
pub(crate) fn send(
    sequence: &mut u32,
    from: &UdpSocket,
    to: SocketAddr,
    shape: Shape,
    size: usize,
    how_long: Duration,
) -> anyhow::Result<u64> {
    let SocketAddr::V4(to) = to else { anyhow::bail!("IPv4 only") };
    let to = SockaddrIn::from(to);
    let burst = match shape {
        Shape::Single => 1,
        Shape::Burst(n) => n,
    };
    let total = (f64::from(RATE) * how_long.as_secs_f64()) as usize / burst * burst;
    let gap = Duration::from_secs(1) * burst as u32 / RATE;
    let mut packets = vec![vec![0_u8; size]; burst];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(burst, None);
    let addresses = vec![Some(to); burst];
    let no_messages: [ControlMessage<'_>; 0] = [];
    let start = Instant::now();
    let mut sent = 0;
    while sent < total {
        for packet in &mut packets {
            fill(packet, *sequence);
            *sequence = sequence.wrapping_add(1);
        }
        let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|p| [IoSlice::new(p)]).collect();
        let results = sendmmsg(
            from.as_raw_fd(),
            &mut headers,
            slices.iter(),
            &addresses,
            no_messages,
            MsgFlags::empty(),
        )
        .context("sendmmsg")?;
        sent += results.count();
        let due = start + gap * (sent / burst) as u32;
        if let Some(wait) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
    }
    Ok(sent as u64)
}

pub(crate) const SSRC: u32 = 0x6d73_6d01;
pub(crate) const PAYLOAD_TYPE: u8 = 96;

/// Writes RTP packet number `sequence`: payload bytes depend on the number, so that a receiver can check
/// every one of them.
pub(crate) fn fill(packet: &mut [u8], sequence: u32) {
    let timestamp = sequence.wrapping_mul(90);
    packet[0] = 0x80;
    packet[1] = PAYLOAD_TYPE;
    packet[2..4].copy_from_slice(&(sequence as u16).to_be_bytes());
    packet[4..8].copy_from_slice(&timestamp.to_be_bytes());
    packet[8..12].copy_from_slice(&SSRC.to_be_bytes());
    for (index, byte) in packet[12..].iter_mut().enumerate() {
        *byte = (sequence as u8).wrapping_mul(31).wrapping_add(index as u8);
    }
}
