//! One track of one leg: where its copies go and what became of them.
//!
//! Owns the sending. Which packets a leg gets, and with which numbers, is `msm_media::LegTrack`'s.

use std::os::fd::RawFd;
use std::time::Instant;

use bytes::Bytes;
use msm_fastpath::{DropReason, RtpEdit, RtpFixed, rewrite};
use msm_graph::LegId;
use msm_media::{LegTrack, Part, Pass, RtcpPass, TrackInput};

use super::io_buffers::IoBuffers;
use super::stream::LegKernel;
use super::tcp::{ConnWay, Frame};
use super::udp::{self, Destination, Piece, Run};

mod in_order;
pub(crate) mod inventory;
mod together;

pub(crate) use in_order::InOrder;
pub(crate) use together::send_together;

/// Counters by [`DropReason`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    pub(crate) fn count(&mut self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get_mut(reason.index()) {
            *counter += packets;
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Reasons that counted.
    pub(crate) fn named(&self) -> Vec<(&'static str, u64)> {
        DropReason::ALL
            .into_iter()
            .zip(self.0)
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.as_str(), count))
            .collect()
    }
}

/// Counters of one leg: room for them is made when there is something to count, which for most there never is.
#[derive(Debug, Default)]
pub(crate) struct LegDrops(Option<Box<Drops>>);

impl LegDrops {
    pub(crate) fn count(&mut self, reason: DropReason, packets: u64) {
        if packets > 0 {
            self.0.get_or_insert_default().count(reason, packets);
        }
    }

    pub(crate) fn get(&self) -> Drops {
        self.0.as_deref().copied().unwrap_or_default()
    }
}

impl From<Drops> for LegDrops {
    fn from(drops: Drops) -> Self {
        Self((!drops.named().is_empty()).then(|| Box::new(drops)))
    }
}

/// Where the copies of one track go.
#[derive(Debug)]
pub(crate) enum Way {
    Udp {
        rtp_socket: RawFd,
        rtcp_socket: RawFd,
        rtp: Destination,
        rtcp: Destination,
        /// Cleared when the way there refuses segmented sends.
        segmented: bool,
    },
    Channels {
        conn: ConnWay,
        rtp: u8,
        rtcp: u8,
        order: InOrder,
    },
}

/// What an operator sees of a leg's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateState {
    Disabled,
    Armed,
    Active,
    Paused,
}

impl GateState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Armed => "armed",
            Self::Active => "active",
            Self::Paused => "paused",
        }
    }
}

/// One track of one leg.
#[derive(Debug)]
pub(crate) struct LegOut {
    pub(crate) leg: LegId,
    pub(crate) media: LegTrack,
    pub(crate) way: Way,
    pub(crate) state: GateState,
    /// The first batch after the gate opened brings the cached sender report along (RTP-21).
    pub(crate) report_due: bool,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) drops: LegDrops,
    /// Its side of the fast path.
    pub(crate) kernel: LegKernel,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarded {
    /// So many packets and bytes were sent.
    Sent(u64, u64),
    /// The leg gets all of it as it is, as others do: [`send_together`] sends it.
    Together,
}

impl LegOut {
    /// Sends what this leg gets of the batch that `io` holds, as far as `part` is ours to send.
    pub(crate) fn forward(
        &mut self,
        now: Instant,
        input: &TrackInput,
        part: Part,
        io: &mut IoBuffers,
    ) -> Forwarded {
        if matches!(self.state, GateState::Disabled | GateState::Paused) {
            return Forwarded::Sent(0, 0);
        }
        let splices = self.media.sent().splices;
        let pass = self.media.handle_batch(now, input, &io.batch, part, &mut io.edits);
        if self.media.sent().splices != splices {
            // Ahead of the first packet of the new run: a player that learned the new mapping behind it
            // would turn its clock back by what the two runs' reports differ.
            self.report_due = false;
            self.send_report(now, input, io);
        }
        if matches!(pass, Pass::Nothing) {
            return Forwarded::Sent(0, 0);
        }
        self.state = GateState::Active;
        let before = (self.packets, self.bytes);
        match (&self.way, pass) {
            (_, Pass::Nothing) => {}
            (Way::Udp { .. }, Pass::All) if self.goes_along(&io.runs) => return Forwarded::Together,
            (Way::Udp { .. }, Pass::All) => {
                let IoBuffers { receive, order, runs, .. } = &*io;
                self.send_runs(receive.bytes(), order, runs);
            }
            (Way::Udp { .. }, Pass::Select | Pass::Rewrite) => {
                io.chosen.clear();
                for edit in &io.edits {
                    io.chosen.extend(io.order.get(edit.arrival as usize).copied());
                }
                udp::split_runs(&io.chosen, &mut io.chosen_runs);
                let projected = matches!(pass, Pass::Rewrite);
                if projected {
                    project(io);
                }
                let IoBuffers { receive, chosen, chosen_runs, .. } = &*io;
                self.send_runs(receive.bytes(), chosen, chosen_runs);
                if projected {
                    restore(io);
                }
            }
            (Way::Channels { .. }, pass) => self.forward_frames(now, pass, io),
        }
        Forwarded::Sent(self.packets - before.0, self.bytes - before.1)
    }

    /// The same for a leg on channels of a connection.
    fn forward_frames(&mut self, now: Instant, pass: Pass, io: &mut IoBuffers) {
        io.share();
        if matches!(pass, Pass::Rewrite) {
            io.originals.clear();
            for edit in &io.edits {
                let header = io.shared.get(edit.arrival as usize).and_then(|f| f.first_chunk::<12>());
                let header = header
                    .and_then(|bytes| RtpFixed::parse(bytes))
                    .map_or([0; 12], |header| rewrite(header, &edit_of(header, edit)).to_bytes());
                io.originals.push(header);
            }
        }
        let IoBuffers { batch, edits, shared, originals, frames, .. } = &*io;
        let all = matches!(pass, Pass::All);
        let count = if all { shared.len() } else { edits.len() };
        let place = |k: usize| if all { Some(k) } else { edits.get(k).map(|edit| edit.arrival as usize) };
        let arrival = |k: usize| batch.arrivals().get(place(k)?);
        let frame = |k: usize| {
            let packet = shared.get(place(k)?)?;
            match (pass, originals.get(k)) {
                (Pass::Rewrite, Some(head)) => (packet.len() >= 12).then(|| (&head[..], packet.slice(12..))),
                _ => Some((&[][..], packet.clone())),
            }
        };
        let Way::Channels { order, .. } = &mut self.way else { return };
        let mut released = Vec::new();
        let mut late = 0;
        let straight = if frames.is_empty() {
            (0..count).take_while(|k| arrival(*k).is_some_and(|arrival| order.pass(arrival))).count()
        } else {
            // A source on TCP sends in sequence; what it left out nobody waits for.
            if !order.is_empty() {
                released = order.reset();
            }
            count
        };
        for k in straight..count {
            if let (Some(arrival), Some((head, tail))) = (arrival(k), frame(k)) {
                let frame = (head.try_into().ok(), tail);
                late += u64::from(!order.push(now, arrival, frame, &mut released));
            }
        }
        self.drops.count(DropReason::Late, late);
        if straight < count {
            self.send_frames((0..straight).filter_map(frame), now);
            self.send_released(released, now);
        } else {
            self.send_released(released, now);
            self.send_frames((0..count).filter_map(frame), now);
        }
    }

    /// Sends what has waited long enough for packets that did not come. Returns packets and bytes sent.
    pub(crate) fn release(&mut self, now: Instant) -> (u64, u64) {
        let Way::Channels { order, .. } = &mut self.way else { return (0, 0) };
        if order.is_empty() {
            return (0, 0);
        }
        let before = (self.packets, self.bytes);
        let mut released = Vec::new();
        order.pop(now, &mut released);
        self.send_released(released, now);
        (self.packets - before.0, self.bytes - before.1)
    }

    /// Whether packets wait to be put in sequence.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(&self.way, Way::Channels { order, .. } if !order.is_empty())
    }

    /// The gate moves: what waits is not sent any more, and the sequence starts anew.
    pub(crate) fn forget_order(&mut self) {
        if let Way::Channels { order, .. } = &mut self.way {
            order.reset();
        }
    }

    /// The gate shuts: nor is sent what waits for the connection. A later PLAY names the first packet that
    /// follows its response (RTSP-31), and what was held for an earlier one would stand before it.
    pub(crate) fn forget_waiting(&mut self) {
        if let Way::Channels { conn, rtp, rtcp, order } = &mut self.way {
            order.reset();
            conn.clear([*rtp, *rtcp]);
        }
    }

    fn send_released(&mut self, released: Vec<Frame>, now: Instant) {
        let frames = released.iter().map(|(head, tail)| {
            let head = head.as_ref().map_or(&[][..], |head| head);
            (head, tail.clone())
        });
        self.send_frames(frames, now);
    }

    fn send_frames<'a>(&mut self, frames: impl Iterator<Item = (&'a [u8], Bytes)>, now: Instant) {
        let Way::Channels { conn, rtp, .. } = &self.way else { return };
        let pushed = conn.push_rtp(*rtp, frames, now);
        self.packets += pushed.packets;
        self.bytes += pushed.bytes;
        self.drops.count(DropReason::QueueFull, pushed.full);
        self.drops.count(DropReason::Mtu, pushed.too_long);
    }

    /// Runs go out by one call each. What the kernel has no room for is dropped and counted: nobody waits
    /// for one viewer.
    fn send_runs(&mut self, bytes: &[u8], pieces: &[Piece], runs: &[Run]) {
        for run in runs {
            let first = run.first as usize;
            let pieces = pieces.get(first..first + run.count as usize).unwrap_or(&[]);
            let (packets, sent) = self.send_run(bytes, pieces, run.size);
            self.packets += packets;
            self.bytes += sent;
        }
    }

    fn send_run(&mut self, bytes: &[u8], pieces: &[Piece], size: u16) -> (u64, u64) {
        let Way::Udp { rtp_socket, rtp, segmented, .. } = &mut self.way else { return (0, 0) };
        if *segmented && pieces.len() > 1 {
            let result = retry(|| udp::send_segmented(*rtp_socket, rtp, bytes, pieces, size));
            match result {
                Ok(()) => {
                    let sent = pieces.iter().map(|piece| u64::from(piece.len)).sum();
                    return (pieces.len() as u64, sent);
                }
                // Too large for the path's MTU, or no checksum offload there: fragments and single
                // packets still pass.
                Err(error) if udp::segmentation_refused(&error) => {
                    *segmented = error.raw_os_error() != Some(libc::EIO);
                }
                Err(error) => {
                    self.drops.count(reason_of(&error), pieces.len() as u64);
                    return (0, 0);
                }
            }
        }
        let (mut packets, mut sent) = (0, 0);
        for piece in pieces {
            let packet = bytes.get(piece.range()).unwrap_or(&[]);
            let mut result = retry(|| udp::send_one(*rtp_socket, rtp, packet));
            // The first one that is longer than its path allows: from then on they are fragmented.
            if matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE))
                && udp::fragment(*rtp_socket)
            {
                result = retry(|| udp::send_one(*rtp_socket, rtp, packet));
            }
            match result {
                Ok(()) => {
                    sent += packet.len() as u64;
                    packets += 1;
                }
                Err(error) => self.drops.count(reason_of(&error), 1),
            }
        }
        (packets, sent)
    }

    /// Sends the viewer the latest sender report of the source, if there is one (RTP-21).
    pub(crate) fn send_report(&mut self, now: Instant, input: &TrackInput, io: &mut IoBuffers) {
        match self.media.sender_report(now, input, &mut io.rtcp) {
            RtcpPass::Nothing => {}
            RtcpPass::Unchanged => self.send_rtcp(input.down().unwrap_or_default(), now),
            RtcpPass::Mapped => self.send_rtcp(&io.rtcp, now),
        }
    }

    /// Sends an RTCP compound to the viewer.
    pub(crate) fn send_rtcp(&mut self, compound: &[u8], now: Instant) {
        match &self.way {
            Way::Udp { rtcp_socket, rtcp, .. } => {
                let _ = retry(|| udp::send_one(*rtcp_socket, rtcp, compound));
            }
            Way::Channels { conn, rtcp, .. } => conn.push_rtcp(*rtcp, compound, now),
        }
    }

    pub(crate) fn transport(&self) -> &'static str {
        match self.way {
            Way::Udp { .. } => "udp",
            Way::Channels { .. } => "tcp",
        }
    }
}

fn edit_of(header: &RtpFixed, edit: &msm_media::Edit) -> RtpEdit {
    RtpEdit::projected(
        edit.ssrc,
        edit.seq.wrapping_sub(header.seq()),
        edit.ts.wrapping_sub(header.timestamp()),
    )
}

/// Writes the leg's headers over those of the chosen packets; [`restore`] takes them back.
fn project(io: &mut IoBuffers) {
    io.originals.clear();
    let bytes = io.receive.bytes_mut();
    for (piece, edit) in io.chosen.iter().zip(&io.edits) {
        let mut original = [0; 12];
        if let Some(packet) = bytes.get_mut(piece.range())
            && let Some(header) = packet.first_chunk_mut::<12>()
        {
            original = *header;
            if let Some(view) = RtpFixed::parse(&original) {
                *header = rewrite(view, &edit_of(view, edit)).to_bytes();
            }
        }
        io.originals.push(original);
    }
}

fn restore(io: &mut IoBuffers) {
    let bytes = io.receive.bytes_mut();
    for (piece, original) in io.chosen.iter().zip(&io.originals) {
        if let Some(header) = bytes.get_mut(piece.range()).and_then(|p| p.first_chunk_mut::<12>()) {
            *header = *original;
        }
    }
}

/// Repeats a send that only told of an earlier ICMP error of another viewer.
fn retry(mut send: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    match send() {
        Err(error) if udp::was_pending_error(&error) => send(),
        result => result,
    }
}

fn reason_of(error: &std::io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => DropReason::Mtu,
        Some(libc::ENOBUFS | libc::EAGAIN) => DropReason::QueueFull,
        _ => DropReason::RingFull,
    }
}
