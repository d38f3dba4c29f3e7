//! The floor: what any program at this hook would cost that makes these copies, on this kernel and machine.
//!
//! A program is written for one stream and its viewers. It has the finished headers in its instructions and writes them
//! by packet pointers; it looks nothing up, admits nobody, counts nothing, opens no gate, and takes
//! for granted what only these packets are sure to be: as long as the first, their checksum still to be made. It
//! sends by the calls that a program has for it, `bpf_clone_redirect` and for the last `bpf_redirect_peer`. No product could be made of
//! it; it is a model, and the difference to it is all that there is to gain.

use anyhow::{Context as _, Result, ensure};
use msm_fastpath::csum;

use super::course::{Course, Traffic};
use super::fast::Mode;
use super::floor::Attached;
use super::lane::{Lane, Leg};
use super::packet::{Edit, Expect};
use super::path::Path;
use super::topology::{Kind, Topology};

/// Bytes of the headers up to the UDP payload.
const HEAD: usize = 42;
/// Bytes of an RTP header.
const RTP: i32 = 12;

// Offsets in `__sk_buff`.
const DATA: i16 = 76;
const DATA_END: i16 = 80;
// Numbers of helpers.
const CLONE_REDIRECT: i32 = 13;
const PULL_DATA: i32 = 39;
const REDIRECT_PEER: i32 = 155;
// What the program returns.
const SHOT: i32 = 2;
const NEXT: i32 = -1;

/// What the report calls it.
pub(crate) fn name(traffic: Traffic, mode: Mode) -> String {
    match (traffic.legs, mode) {
        (1, _) => "bare redirect, floor (model)".to_owned(),
        (_, Mode::Opaque) => "bare clones, floor (model)".to_owned(),
        (_, mode) => format!("bare clones, {} edits, floor (model)", mode.name()),
    }
}

/// A lane through a program of its own.
pub(crate) fn lane(course: &Course, traffic: Traffic, mode: Mode) -> Result<Lane> {
    let port = course.port();
    let legs = course.legs(traffic, port, |leg| Expect::Edit(mode.edit(0, leg)))?;
    let to = std::net::SocketAddrV4::new(course.topology.uplink(Kind::Bare).host, port);
    let generator = course.generator_of(Kind::Bare, &[to], traffic)?;
    let code = program(&course.topology, traffic, mode, port, &legs)?;
    let attached = Attached::new(&course.topology, Kind::Bare, &code)?;
    let mut lane = Course::lane(&name(traffic, mode), generator, Path::Program(attached), legs, traffic);
    "model".clone_into(&mut lane.version);
    Ok(lane)
}

/// The instructions for everything that is sent to `port`.
fn program(topology: &Topology, traffic: Traffic, mode: Mode, port: u16, legs: &[Leg]) -> Result<Vec<u64>> {
    let segments = traffic.shape.segments();
    let payload = segments * traffic.size;
    let last = i32::try_from(HEAD + (segments - 1) * traffic.size)?;
    let mut code = Code::default();
    code.copy(6, 1);
    code.packet(HEAD as i32);
    // What is for another program on this cable.
    code.load(HALF, 5, 2, 36);
    code.unless_equal(5, i32::from(port.to_be()), Exit::Next);
    if mode != Mode::Opaque {
        code.copy(1, 6);
        code.set(2, last + RTP);
        code.call(PULL_DATA);
    }
    let mut before = Edit::NONE;
    for (number, leg) in legs.iter().enumerate() {
        let pod = &topology.pods[leg.pod];
        let edit = mode.edit(0, number);
        let rewritten = edit != before;
        code.packet(if rewritten { last + RTP } else { HEAD as i32 });
        let head = head(pod.mac, pod.host_mac, pod.host.octets(), port, pod.at(leg.sink.port()), payload)?;
        let (words, rest) = head.as_chunks::<4>();
        for (word, at) in words.iter().zip((0..).step_by(4)) {
            code.store(WORD, 2, at, i32::from_ne_bytes(*word));
        }
        let [a, b] = rest.try_into().context("the head is ten words and a half")?;
        code.store(HALF, 2, 40, i32::from(u16::from_ne_bytes([a, b])));
        if rewritten {
            code.add(2, HEAD as i32);
            for segment in 0..segments {
                if segment > 0 {
                    code.add(2, i32::try_from(traffic.size)?);
                }
                code.edit(before, edit)?;
            }
            before = edit;
        }
        let device = i32::try_from(pod.host_index)?;
        if number + 1 < legs.len() {
            code.copy(1, 6);
            code.set(2, device);
            code.set(3, 0);
            code.call(CLONE_REDIRECT);
        } else {
            code.set(1, device);
            code.set(2, 0);
            code.call(REDIRECT_PEER);
            code.exit();
        }
    }
    code.finish()
}

/// Headers of a copy, from the proxy's port to a viewer.
fn head(
    to_mac: [u8; 6],
    from_mac: [u8; 6],
    from: [u8; 4],
    port: u16,
    viewer: std::net::SocketAddrV4,
    payload: usize,
) -> Result<Vec<u8>> {
    let to = viewer.ip().octets();
    let udp_len = u16::try_from(8 + payload)?;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 63, 17, 0, 0]);
    ip.extend(from);
    ip.extend(to);
    let check = csum::ipv4(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let mut head: Vec<u8> = [&to_mac[..], &from_mac, &[8, 0], &ip].concat();
    let check = csum::partial(csum::pseudo_v4(from, to, udp_len));
    for half in [port, viewer.port(), udp_len, check] {
        head.extend(half.to_be_bytes());
    }
    ensure!(head.len() == HEAD, "headers of {} bytes", head.len());
    Ok(head)
}

const WORD: u8 = 0x00;
const HALF: u8 = 0x08;

/// Where a branch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Drop,
    Next,
}

/// Instructions, numbered registers: 1 to 5 are arguments, 6 keeps the context.
#[derive(Debug, Default)]
struct Code {
    instructions: Vec<u64>,
    branches: Vec<(usize, Exit)>,
}

impl Code {
    fn push(&mut self, opcode: u8, to: u8, from: u8, offset: i16, value: i32) {
        let registers = u64::from(to | from << 4);
        let offset = u64::from(offset.cast_unsigned());
        let value = u64::from(value.cast_unsigned());
        self.instructions.push(u64::from(opcode) | registers << 8 | offset << 16 | value << 32);
    }

    fn copy(&mut self, to: u8, from: u8) {
        self.push(0xbf, to, from, 0, 0);
    }

    fn set(&mut self, to: u8, value: i32) {
        self.push(0xb7, to, 0, 0, value);
    }

    fn add(&mut self, to: u8, value: i32) {
        self.push(0x07, to, 0, 0, value);
    }

    fn load(&mut self, size: u8, to: u8, from: u8, offset: i16) {
        self.push(0x61 | size, to, from, offset, 0);
    }

    fn store(&mut self, size: u8, to: u8, offset: i16, value: i32) {
        self.push(0x62 | size, to, 0, offset, value);
    }

    fn store_register(&mut self, size: u8, to: u8, offset: i16, from: u8) {
        self.push(0x63 | size, to, from, offset, 0);
    }

    fn call(&mut self, helper: i32) {
        self.push(0x85, 0, 0, 0, helper);
    }

    fn exit(&mut self) {
        self.push(0x95, 0, 0, 0, 0);
    }

    fn unless_equal(&mut self, register: u8, value: i32, exit: Exit) {
        self.branches.push((self.instructions.len(), exit));
        self.push(0x55, register, 0, 0, value);
    }

    /// Register 2 becomes the start of the packet, of which so many bytes are linear.
    fn packet(&mut self, len: i32) {
        self.load(WORD, 2, 6, DATA);
        self.load(WORD, 3, 6, DATA_END);
        self.copy(4, 2);
        self.add(4, len);
        self.branches.push((self.instructions.len(), Exit::Drop));
        // if r4 > r3
        self.push(0x2d, 4, 3, 0, 0);
    }

    /// Rewrites the RTP header at register 2 from one edit to the next.
    fn edit(&mut self, before: Edit, edit: Edit) -> Result<()> {
        let ssrc = edit.ssrc.context("an edit without an SSRC")?;
        let number = i32::from(edit.seq.wrapping_sub(before.seq));
        let time = edit.timestamp.wrapping_sub(before.timestamp).cast_signed();
        for (size, at, bits, more) in [(HALF, 2, 16, number), (WORD, 4, 32, time)] {
            self.load(size, 5, 2, at);
            // To the host's order and back.
            self.push(0xdc, 5, 0, 0, bits);
            self.add(5, more);
            self.push(0xdc, 5, 0, 0, bits);
            self.store_register(size, 2, at, 5);
        }
        self.store(WORD, 2, 8, ssrc.to_be().cast_signed());
        Ok(())
    }

    /// The program, its branches resolved.
    fn finish(mut self) -> Result<Vec<u64>> {
        // A conditional jump reaches 32,767 instructions far.
        for (exit, value) in [(Exit::Drop, SHOT), (Exit::Next, NEXT)] {
            let at = self.instructions.len();
            self.push(0xb7, 0, 0, 0, value);
            self.exit();
            for (from, _) in self.branches.iter().filter(|(_, to)| *to == exit) {
                let offset = i16::try_from(at - from - 1)?;
                self.instructions[*from] |= u64::from(offset.cast_unsigned()) << 16;
            }
        }
        Ok(self.instructions)
    }
}
