//! A real picture with headers under a test's control: ffmpeg sends RTP to us, we change SSRC, sequence
//! numbers and timestamps, and publish the result.

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::hand::Publisher;
use super::wire::word_at;
use crate::camera::{Stage, Transport};
use crate::fixture::Fixture;
use crate::process::{Launch, Process, free_port, wait_for};

/// What is done to every packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mutation {
    /// Added to the SSRC.
    pub ssrc: u32,
    /// Added to sequence numbers.
    pub sequence: u16,
    /// Added to timestamps.
    pub timestamp: u32,
    /// Nothing is passed on.
    pub silent: bool,
}

/// A running relay and its ffmpeg.
#[derive(Debug)]
pub struct Relay {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _source: Process,
}

/// What test and relay share.
#[derive(Debug)]
pub struct State {
    /// The publisher behind the relay.
    pub publisher: Publisher,
    /// What is done from the next packet on.
    pub mutation: Mutation,
    /// SSRC of every track as it was sent last.
    pub ssrcs: Vec<u32>,
}

impl Relay {
    /// Publishes a fixture's picture and sound over UDP, looping it for ever.
    pub fn publish(stage: Stage<'_>, name: &str, fixture: &Fixture, url: &str) -> Result<Self> {
        // RTP and RTCP of two tracks.
        let sockets: Vec<(UdpSocket, UdpSocket)> =
            (0..2).map(|_| super::camera::udp_pair("127.0.0.1", None)).collect::<Result<_>>()?;
        let description = stage.scratch.join(format!("{name}.sdp"));
        let mut launch = Launch::inside(name, stage.node, "ffmpeg")
            .args(["-nostdin", "-y", "-v", "warning", "-re", "-stream_loop", "-1", "-i"])
            .arg(&fixture.file)
            .arg("-sdp_file")
            .arg(&description);
        for (map, (rtp, _)) in ["0:v", "0:a"].iter().zip(&sockets) {
            // An own local port: RTCP of ours must not meet that of the other output.
            let target =
                format!("rtp://127.0.0.1:{}?localrtpport={}", rtp.local_addr()?.port(), free_port()? & !1);
            launch = launch.args(["-map", *map, "-c", "copy", "-f", "rtp", &target]);
        }
        let mut source = launch.start(stage.scratch)?;
        let limit = Duration::from_secs(15);
        let sdp = wait_for("ffmpeg's SDP", limit, || {
            let text = std::fs::read_to_string(&description).ok()?;
            (text.matches("\nm=").count() == 2 && text.ends_with('\n')).then_some(text)
        })
        .with_context(|| source.tail())?;
        anyhow::ensure!(source.is_running(), "ffmpeg ended:\n{}", source.tail());
        let publisher = Publisher::record(url, &with_controls(&sdp), Transport::Udp)?;
        let state = Arc::new(Mutex::new(State {
            publisher,
            mutation: Mutation::default(),
            ssrcs: vec![0; sockets.len()],
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        for (rtp, rtcp) in &sockets {
            super::hand::roomy(rtp)?;
            rtp.set_nonblocking(true)?;
            rtcp.set_nonblocking(true)?;
        }
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                pass(&sockets, &shared);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self { state, stop, thread: Some(thread), _source: source })
    }

    /// The publisher and the mutation, while no packet passes.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn pass(sockets: &[(UdpSocket, UdpSocket)], shared: &Mutex<State>) {
    let mut buffer = [0; 2048];
    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
    for (track, (rtp, rtcp)) in sockets.iter().enumerate() {
        while let Ok(length) = rtp.recv(&mut buffer) {
            let mutation = state.mutation;
            let packet = &mut buffer[..length];
            if length < 12 || mutation.silent {
                continue;
            }
            let sequence = u16::from_be_bytes([packet[2], packet[3]]).wrapping_add(mutation.sequence);
            packet[2..4].copy_from_slice(&sequence.to_be_bytes());
            add(packet, 4, mutation.timestamp);
            add(packet, 8, mutation.ssrc);
            state.ssrcs[track] = word_at(packet, 8);
            state.publisher.send(track, packet).ok();
        }
        while let Ok(length) = rtcp.recv(&mut buffer) {
            let mutation = state.mutation;
            if !mutation.silent {
                mutate_compound(&mut buffer[..length], mutation);
                state.publisher.send_control(track, &buffer[..length]).ok();
            }
        }
    }
}

fn mutate_compound(bytes: &mut [u8], mutation: Mutation) {
    let mut at = 0;
    while bytes.len() >= at + 8 {
        if bytes[at + 1] == 200 && bytes.len() >= at + 28 {
            add(bytes, at + 16, mutation.timestamp);
        }
        add(bytes, at + 4, mutation.ssrc);
        at += (usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]])) + 1) * 4;
    }
}

fn add(bytes: &mut [u8], at: usize, value: u32) {
    let sum = word_at(bytes, at).wrapping_add(value);
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// ffmpeg's SDP with a control attribute per media and no ports.
fn with_controls(sdp: &str) -> String {
    let start = sdp.find("v=0").unwrap_or(0);
    let mut out = String::new();
    let mut media = 0;
    for line in sdp[start..].lines() {
        match line.strip_prefix("m=") {
            Some(rest) => {
                let mut words: Vec<&str> = rest.split(' ').collect();
                if let Some(port) = words.get_mut(1) {
                    *port = "0";
                }
                write!(out, "m={}\r\na=control:streamid={media}\r\n", words.join(" ")).ok();
                media += 1;
            }
            None => {
                write!(out, "{}\r\n", line.trim_end()).ok();
            }
        }
    }
    out
}
