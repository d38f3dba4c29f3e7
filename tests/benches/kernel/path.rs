//! What stands between source and sinks, and who pays for it.

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use msm_tests::bench::cpu::Pinned;
use tokio::runtime::Runtime;

use super::floor::Attached;
use super::generator::{Generator, Pace};
use super::relays::{Naive, Segmenting, Tokio};

/// How a contender forwards.
pub(crate) enum Path {
    /// In the kernel: nothing to call.
    Kernel,
    /// Likewise, by a program of this lane alone.
    Program(#[expect(dead_code, reason = "held while the lane lives")] Attached),
    /// Called after each burst, in the generator's own thread: no wake-ups, which flatters it.
    Naive(Naive),
    /// As [`Path::Naive`].
    Segmenting(Box<Segmenting>),
    /// As [`Path::Naive`]; generator and relay are one task.
    Tokio(Runtime, Tokio),
    /// A process of its own, woken by packets.
    Process(Pinned),
}

impl Path {
    pub(crate) fn naive(socket: UdpSocket, viewers: &[SocketAddrV4]) -> Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::Naive(Naive::new(socket, viewers)?))
    }

    pub(crate) fn segmenting(socket: UdpSocket, viewers: &[SocketAddrV4]) -> Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::Segmenting(Box::new(Segmenting::new(socket, viewers)?)))
    }

    pub(crate) fn tokio(socket: UdpSocket, viewers: &[SocketAddrV4]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let relay = {
            let _inside = runtime.enter();
            Tokio::new(socket, viewers)?
        };
        Ok(Self::Tokio(runtime, relay))
    }

    /// Sends and forwards for about `how_long`; returns packets sent.
    pub(crate) fn drive(&mut self, generator: &mut Generator, how_long: Duration) -> Result<u64> {
        match self {
            Self::Kernel | Self::Program(_) | Self::Process(_) => generator.run(how_long, |_| Ok(())),
            Self::Naive(relay) => generator.run(how_long, |packets| {
                for _ in 0..packets {
                    relay.forward()?;
                }
                Ok(())
            }),
            Self::Segmenting(relay) => generator.run(how_long, |packets| {
                let mut done = 0;
                while done < packets {
                    done += relay.forward()?;
                }
                Ok(())
            }),
            Self::Tokio(runtime, relay) => {
                let mut pace = Pace::new(generator, how_long)?;
                runtime.block_on(async {
                    let mut sent = 0;
                    while pace.goes_on(sent)? {
                        let packets = generator.burst()?;
                        for _ in 0..packets {
                            relay.forward().await?;
                        }
                        sent += packets as u64;
                    }
                    Ok(sent)
                })
            }
        }
    }

    /// CPU ns of processes other than this one.
    pub(crate) fn cpu(&self) -> Result<u64> {
        match self {
            Self::Process(process) => process.cpu(),
            _ => Ok(0),
        }
    }

    /// What the report calls this way of running.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Kernel | Self::Program(_) => "in the kernel",
            Self::Process(_) => "own process, open loop",
            _ => "closed loop",
        }
    }
}

/// A lost packet ends a closed loop with an error instead of standing still.
const PATIENCE: Duration = Duration::from_millis(500);
