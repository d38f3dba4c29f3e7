//! Scratch space of one worker, reused for every batch: nothing is allocated per packet or per copy.

use bytes::{Bytes, BytesMut};
use msm_media::{Arrival, Batch, Edit};

use super::udp::{Piece, ReceiveBuffer, Run};

/// Buffers that a batch passes through, from the receive call to the last copy.
#[derive(Debug)]
pub(crate) struct IoBuffers {
    /// Received bytes.
    pub(crate) receive: ReceiveBuffer,
    /// Packets to be judged, in order.
    pub(crate) packets: Vec<Piece>,
    /// The same packets as shared frames, where they came from a connection.
    pub(crate) frames: Vec<Bytes>,
    /// What the input made of them.
    pub(crate) batch: Batch,
    /// Admitted packets, in the order of the batch's arrivals.
    pub(crate) order: Vec<Piece>,
    pub(crate) order_bytes: u64,
    /// How `order` leaves by UDP.
    pub(crate) runs: Vec<Run>,
    /// Legs, by their place in the track, that get all of `order` as it is and have not got it yet.
    pub(crate) together: Vec<usize>,
    /// `order` as shared frames, for interleaved legs; filled when the first of them asks.
    pub(crate) shared: Vec<Bytes>,
    /// What one projected or choosy leg sends of it.
    pub(crate) edits: Vec<Edit>,
    pub(crate) chosen: Vec<Piece>,
    pub(crate) chosen_runs: Vec<Run>,
    /// Headers as they were, while a projected leg's stand in the buffer.
    pub(crate) originals: Vec<[u8; 12]>,
    /// RTCP under construction.
    pub(crate) rtcp: Vec<u8>,
}

impl IoBuffers {
    pub(crate) fn new() -> Self {
        Self {
            receive: ReceiveBuffer::new(),
            packets: Vec::new(),
            frames: Vec::new(),
            batch: Batch::default(),
            order: Vec::new(),
            order_bytes: 0,
            runs: Vec::new(),
            together: Vec::new(),
            shared: Vec::new(),
            edits: Vec::new(),
            chosen: Vec::new(),
            chosen_runs: Vec::new(),
            originals: Vec::new(),
            rtcp: Vec::with_capacity(1500),
        }
    }

    /// Puts frames of a connection where received datagrams would be, as many as fit.
    pub(crate) fn take_frames(&mut self, frames: &mut Vec<Bytes>) {
        self.packets.clear();
        self.frames.clear();
        self.receive.clear_spare();
        for frame in frames.iter() {
            let Some(piece) = self.receive.copy_in(frame, true) else { break };
            self.packets.push(piece);
            self.frames.push(frame.clone());
        }
        // One frame always fits: it is 65,535 bytes at most.
        frames.drain(..self.packets.len().max(1).min(frames.len()));
    }

    /// Lines up the admitted packets and how they leave.
    pub(crate) fn line_up(&mut self) {
        self.order.clear();
        self.together.clear();
        self.shared.clear();
        if self.batch.is_whole() {
            self.order.extend_from_slice(&self.packets);
        } else {
            let Self { receive, packets, order, batch, .. } = self;
            receive.clear_spare();
            for arrival in batch.arrivals() {
                let piece = if arrival.index == Arrival::HELD {
                    receive.copy_in(batch.held(), false)
                } else {
                    packets.get(arrival.index as usize).copied()
                };
                order.push(piece.unwrap_or(Piece { offset: 0, len: 0 }));
            }
        }
        self.order_bytes = self.order.iter().map(|piece| u64::from(piece.len)).sum();
        super::udp::split_runs(&self.order, &mut self.runs);
    }

    /// The packets of `order` as frames that every interleaved leg shares: one copy for all of them, none
    /// if they came from a connection.
    pub(crate) fn share(&mut self) -> &[Bytes] {
        if self.shared.is_empty() && !self.order.is_empty() {
            if self.frames.len() == self.packets.len() && self.batch.is_whole() {
                self.shared.extend(self.frames.iter().cloned());
            } else {
                let mut all = BytesMut::with_capacity(self.order_bytes as usize);
                for piece in &self.order {
                    all.extend_from_slice(self.receive.bytes().get(piece.range()).unwrap_or(&[]));
                }
                let mut all = all.freeze();
                for piece in &self.order {
                    self.shared.push(all.split_to((piece.len as usize).min(all.len())));
                }
            }
        }
        &self.shared
    }
}
