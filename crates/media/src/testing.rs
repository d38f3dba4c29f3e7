//! What the tests of several modules share: a virtual clock and sources that send RTP.

use std::time::{Duration, Instant};

use crate::clock::ClockRate;
use crate::input::{Batch, InputConfig, InputEvent, InputOutput, Part, TrackInput};
use crate::keyframe::Codec;
use crate::leg::{Edit, LegTrack, Pass};
use crate::rtcp::sr::{SenderInfo, write_sr};
use crate::rtp::{PacketBuilder, RtpView, set_header};
use crate::{Ntp, clock::RtpTime};

#[expect(clippy::disallowed_methods, reason = "tests need one moment to count from")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const OWN_SSRC: u32 = 0x0a0b_0c0d;

pub(crate) fn config(codec: Codec) -> InputConfig {
    InputConfig {
        clock: ClockRate::VIDEO,
        codec,
        payload_types: vec![96],
        feedback: true,
        own_ssrc: OWN_SSRC,
        cname: "proxy@example".to_owned(),
    }
}

/// H.264 payloads, one per packet.
pub(crate) const SPS: &[u8] = &[0x67, 0x42, 0x00, 0x1f];
pub(crate) const PPS: &[u8] = &[0x68, 0xce];
pub(crate) const IDR: &[u8] = &[0x65, 0x88, 0x84];
pub(crate) const SLICE: &[u8] = &[0x41, 0x9a];

/// A source: what it stamps next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) ssrc: u32,
    pub(crate) seq: u16,
    pub(crate) ts: u32,
}

impl Source {
    pub(crate) fn packet(&mut self, payload: &[u8]) -> Vec<u8> {
        let packet = PacketBuilder::new(96, self.seq, self.ts, self.ssrc).marker().build(payload);
        self.seq = self.seq.wrapping_add(1);
        packet
    }

    /// One packet of a frame of its own, a 25th of a second after the last.
    pub(crate) fn frame(&mut self, payload: &[u8]) -> Vec<u8> {
        self.ts = self.ts.wrapping_add(3_600);
        self.packet(payload)
    }

    pub(crate) fn sender_report(&self, ntp: u64) -> Vec<u8> {
        let info = SenderInfo {
            ssrc: self.ssrc,
            ntp: Ntp(ntp),
            rtp: RtpTime(self.ts),
            packets: 1_000,
            octets: 100_000,
        };
        let mut out = Vec::new();
        write_sr(&mut out, &info);
        out
    }
}

/// A track with one leg, as a worker drives them.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) now: Instant,
    pub(crate) input: TrackInput,
    pub(crate) batch: Batch,
    pub(crate) edits: Vec<Edit>,
}

impl Rig {
    pub(crate) fn new(codec: Codec) -> Self {
        let now = start();
        let input = TrackInput::new(now, config(codec));
        Self { now, input, batch: Batch::default(), edits: Vec::new() }
    }

    pub(crate) fn tick(&mut self, millis: u64) {
        self.now += ms(millis);
    }

    /// Puts packets in; nobody reads them.
    pub(crate) fn receive(&mut self, packets: &[Vec<u8>]) {
        self.input.handle_rtp(self.now, packets.iter().map(Vec::as_slice), &mut self.batch);
    }

    /// What a leg sends of packets that were put in with [`Self::receive`].
    pub(crate) fn sends(&mut self, leg: &mut LegTrack, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let bytes = |index: usize| {
            let arrival = &self.batch.arrivals()[index];
            match arrival.index {
                crate::Arrival::HELD => self.batch.held().to_vec(),
                index => packets[index as usize].clone(),
            }
        };
        match leg.handle_batch(self.now, &self.input, &self.batch, Part::ALL, &mut self.edits) {
            Pass::Nothing => Vec::new(),
            Pass::All => (0..self.batch.arrivals().len()).map(bytes).collect(),
            Pass::Select => self.edits.iter().map(|edit| bytes(edit.arrival as usize)).collect(),
            Pass::Rewrite => self
                .edits
                .iter()
                .map(|edit| {
                    let mut packet = bytes(edit.arrival as usize);
                    set_header(&mut packet, edit.seq, edit.ts, edit.ssrc);
                    packet
                })
                .collect(),
        }
    }

    /// Puts packets in and returns what the leg sends.
    pub(crate) fn relay(&mut self, leg: &mut LegTrack, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.receive(packets);
        self.sends(leg, packets)
    }

    pub(crate) fn outputs(&mut self) -> Vec<InputOutput> {
        std::iter::from_fn(|| match self.input.poll_output() {
            InputOutput::Timeout(_) => None,
            output => Some(output),
        })
        .collect()
    }

    pub(crate) fn events(&mut self) -> Vec<InputEvent> {
        let outputs = self.outputs().into_iter();
        outputs
            .filter_map(|output| if let InputOutput::Event(event) = output { Some(event) } else { None })
            .collect()
    }

    pub(crate) fn rtcp(&mut self) -> Vec<Vec<u8>> {
        let outputs = self.outputs().into_iter();
        outputs
            .filter_map(|output| if let InputOutput::Rtcp(bytes) = output { Some(bytes) } else { None })
            .collect()
    }
}

/// Sequence numbers, timestamps and SSRCs of packets.
pub(crate) fn fields(packets: &[Vec<u8>]) -> Vec<(u16, u32, u32)> {
    packets
        .iter()
        .map(|packet| {
            let view = RtpView::parse(packet).unwrap();
            (view.seq(), view.timestamp(), view.ssrc())
        })
        .collect()
}
