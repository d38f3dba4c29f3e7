//! One viewer's copy of one track: gate, projection, counters, RTCP with the viewer.
//!
//! Reads the batches of a [`TrackInput`] and says what of each is to be sent, and with which header. A
//! transparent leg with an open gate costs a constant per batch.

use std::time::Instant;

use crate::clock::RtpTime;
use crate::drop::{DropReason, Drops};
use crate::input::{Arrival, Batch, Part, RunHead, TrackInput};
use crate::project::{Head, Projection, ResumePolicy};
use crate::report::{self, CircuitBreaker, KeyFrameLimiter, LegReport, PLI_LEG_INTERVAL, SentSrs};
use crate::rtcp::bye::write_bye;
use crate::rtcp::rr::{ReportBlock, write_rr};
use crate::rtcp::sdes::write_cname;
use crate::rtcp::sr::write_sr;
use crate::rtcp::{Compound, CompoundPolicy, Packet};

pub mod inventory;
pub mod start;

use start::{Missed, Start};

/// How a leg behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LegConfig {
    /// Whether it speaks AVPF, so that its PLI and FIR count (RTP-25).
    pub feedback: bool,
    /// Whether duplicates are dropped even while it is transparent: TCP legs (RTP-8).
    pub dedup: bool,
    /// Whether persistent loss ends it: UDP legs (RTP-29).
    pub circuit_breaker: bool,
    /// When video goes on after a splice.
    pub resume: ResumePolicy,
}

/// What to send of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Nothing.
    Nothing,
    /// Every arrival, unchanged.
    All,
    /// The arrivals of the edits, unchanged.
    Select,
    /// The arrivals of the edits, with the headers of the edits
    /// ([`crate::rtp::set_header`]).
    Rewrite,
}

/// One packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edit {
    /// Position in [`Batch::arrivals`].
    pub arrival: u32,
    /// Sequence number as it leaves.
    pub seq: u16,
    /// Timestamp as it leaves.
    pub ts: u32,
    /// SSRC as it leaves.
    pub ssrc: u32,
}

/// What to send of the source's RTCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RtcpPass {
    /// Nothing.
    Nothing,
    /// [`TrackInput::down`], unchanged.
    Unchanged,
    /// The compound that was written to the scratch buffer.
    Mapped,
}

/// What a compound of a viewer meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ViewerRtcp {
    /// A report about this leg was taken in ([`LegTrack::report`]).
    pub report: bool,
    /// A key frame is wanted and the leg may ask: [`TrackInput::request_key_frame`].
    pub key_frame: bool,
    /// Packets named by NACKs; nobody retransmits yet.
    pub nacked: u32,
    /// The viewer said goodbye. The RTSP session decides what that means.
    pub bye: bool,
    /// The circuit breaker opened: the leg is to be ended (RTP-29).
    pub circuit_breaker: bool,
}

/// What left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// Payload bytes, as sender reports count them.
    pub octets: u64,
    /// Times the leg was spliced to another run of its source.
    pub splices: u64,
}

/// The gate of a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Nothing passes.
    Disabled,
    /// Opens with the first packet of the input that does not belong to a frame of which the beginning has
    /// passed.
    Waiting,
    /// Open for packets of the run from this extended number on.
    Open { from: u64 },
}

/// One viewer's copy of one track.
#[derive(Debug)]
pub struct LegTrack {
    config: LegConfig,
    gate: Gate,
    start: Option<Start>,
    /// While the gate waits: what had begun when the leg was armed.
    missed: Option<Missed>,
    projection: Option<Projection>,
    /// Head of what left in the projection's run, or, before the first packet, of what was promised.
    head: Option<Head>,
    /// A new run is there and waits for a key frame since this moment.
    splicing: Option<Instant>,
    sent: Sent,
    /// `None`: nothing was dropped yet. Most legs never drop anything.
    drops: Option<Box<Drops>>,
    sent_srs: SentSrs,
    report: Option<LegReport>,
    breaker: CircuitBreaker,
    key_frames: KeyFrameLimiter,
}

impl LegTrack {
    /// A leg whose gate is shut.
    pub fn new(config: LegConfig) -> Self {
        Self {
            config,
            gate: Gate::Disabled,
            start: None,
            missed: None,
            projection: None,
            head: None,
            splicing: None,
            sent: Sent::default(),
            drops: None,
            sent_srs: SentSrs::default(),
            report: None,
            breaker: CircuitBreaker::default(),
            key_frames: KeyFrameLimiter::default(),
        }
    }

    /// How it behaves.
    pub fn config(&self) -> LegConfig {
        self.config
    }

    /// Where the gate opened, or was opened last.
    pub fn start(&self) -> Option<Start> {
        self.start
    }

    /// Shuts the gate. The leg keeps its SSRC, sequence and timeline.
    pub fn pause(&mut self) {
        self.gate = Gate::Disabled;
    }

    /// Whether the gate is open or will open with the first packet.
    pub fn is_armed(&self) -> bool {
        self.gate != Gate::Disabled
    }

    /// Whether packets leave as they came.
    pub fn is_transparent(&self) -> bool {
        self.projection.is_none_or(|projection| projection.is_transparent())
    }

    /// SSRC of what leaves, once it is known; it never changes.
    pub fn ssrc(&self) -> Option<u32> {
        self.projection.map(|projection| projection.ssrc())
    }

    /// Where the sequence goes on after what left or was promised.
    fn continuation(
        &self,
        projection: &Projection,
        now: Instant,
        input: &TrackInput,
        (run, ts): (u32, u32),
    ) -> (u16, u32) {
        match &self.head {
            Some(head) => {
                let due = input.shift(projection.run(), run).map(|shift| ts.wrapping_add(shift));
                projection.continuation(head, now, input.clock(), due)
            }
            // Unreachable in practice: a projection is made together with a head.
            None => (0, 0),
        }
    }

    /// The mapping that another holder may apply from the next packet on: the gate is open, and the leg is
    /// in the current run of its input.
    pub fn steady_projection(&self, input: &TrackInput) -> Option<&Projection> {
        let run = input.current()?.run;
        let projection = self.projection.as_ref().filter(|projection| projection.run() == run)?;
        (matches!(self.gate, Gate::Open { .. }) && self.splicing.is_none()).then_some(projection)
    }

    /// Lowest extended number that may pass, while the gate is open.
    pub fn open_from(&self) -> Option<u64> {
        match self.gate {
            Gate::Open { from } => Some(from),
            Gate::Disabled | Gate::Waiting => None,
        }
    }

    /// Another holder has sent packets of a run, up to this one at most: a splice goes on behind it.
    pub fn sent_elsewhere(&mut self, run: u32, up_to: Head) {
        if self.projection.is_some_and(|projection| projection.run() == run)
            && let Some(head) = &mut self.head
        {
            head.raise(up_to.ext, up_to.ts, up_to.at);
        }
    }

    /// Another holder has sent this many packets with this many payload bytes, beyond what it was counted
    /// before: sender reports say them.
    pub fn count_elsewhere(&mut self, packets: u64, octets: u64) {
        self.sent.packets += packets;
        self.sent.octets += octets;
    }

    /// Says what to send of a batch. `part`: what of it is to be sent from here; the rest of the leg's
    /// packets are another holder's. `edits` is cleared first; it is filled for [`Pass::Select`] and
    /// [`Pass::Rewrite`]. What is said to be sent is counted as sent.
    #[inline]
    pub fn handle_batch(
        &mut self,
        now: Instant,
        input: &TrackInput,
        batch: &Batch,
        part: Part,
        edits: &mut Vec<Edit>,
    ) -> Pass {
        edits.clear();
        if part == Part::NONE && batch.only_here() == 0 {
            if let Some(after) = batch.after() {
                self.sent_elsewhere(after.run, after.head);
            }
            return Pass::Nothing;
        }
        let (Gate::Open { from }, Some(projection), Some(after)) =
            (self.gate, &self.projection, batch.after())
        else {
            return self.handle_each(now, input, batch, part, edits);
        };
        let plain = projection.is_transparent()
            && batch.one_run() == Some(projection.run())
            && batch.lowest() >= from
            && part == Part::ALL
            && !(self.config.dedup && batch.duplicates() > 0);
        if !plain {
            return self.handle_each(now, input, batch, part, edits);
        }
        self.note_all(batch, after);
        Pass::All
    }

    #[inline]
    fn note_all(&mut self, batch: &Batch, after: RunHead) {
        self.sent.packets += batch.arrivals().len() as u64;
        self.sent.octets += batch.octets();
        self.head = Some(after.head);
    }

    fn handle_each(
        &mut self,
        now: Instant,
        input: &TrackInput,
        batch: &Batch,
        part: Part,
        edits: &mut Vec<Edit>,
    ) -> Pass {
        if self.gate == Gate::Disabled {
            return Pass::Nothing;
        }
        for (index, arrival) in batch.arrivals().iter().enumerate() {
            if !part.contains(index, arrival) {
                self.sent_elsewhere(arrival.run, Head { ext: arrival.ext, ts: arrival.ts, at: now });
                continue;
            }
            if self.gate == Gate::Waiting && self.missed.is_some_and(|missed| missed.has(arrival)) {
                continue;
            }
            match self.take(now, input, arrival) {
                Ok(mapped) => {
                    self.sent.packets += 1;
                    self.sent.octets += u64::from(arrival.payload_len);
                    edits.push(Edit {
                        arrival: index as u32,
                        seq: mapped.seq,
                        ts: mapped.ts,
                        ssrc: mapped.ssrc,
                    });
                }
                Err(reason) => self.drops.get_or_insert_default().count(reason),
            }
        }
        match (edits.is_empty(), self.is_transparent()) {
            (true, _) => Pass::Nothing,
            (false, true) => Pass::Select,
            (false, false) => Pass::Rewrite,
        }
    }

    /// Maps one packet, or says why it stays.
    fn take(
        &mut self,
        now: Instant,
        input: &TrackInput,
        arrival: &Arrival,
    ) -> Result<crate::project::Mapped, DropReason> {
        let mut projection = match self.projection {
            Some(projection) => projection,
            None => Projection::transparent(arrival.run, arrival.ssrc),
        };
        let here = Head { ext: arrival.ext, ts: arrival.ts, at: now };
        if self.projection.is_none() {
            self.projection = Some(projection);
            self.head = Some(here);
        } else if projection.run() != arrival.run {
            self.await_resume_point(now, arrival)?;
            let out = self.continuation(&projection, now, input, (arrival.run, arrival.ts));
            projection.splice(arrival.run, (arrival.seq, arrival.ts), out);
            self.projection = Some(projection);
            self.head = Some(here);
            self.sent.splices += 1;
            if let Gate::Open { from } = &mut self.gate {
                *from = arrival.ext;
            }
        }
        let mapped = projection.map(arrival.seq, arrival.ts);
        if self.gate == Gate::Waiting {
            self.gate = Gate::Open { from: arrival.ext };
            self.start = Some(Start { seq: mapped.seq, rtptime: mapped.ts, ssrc: mapped.ssrc });
        }
        if let Gate::Open { from } = self.gate
            && arrival.ext < from
        {
            return Err(DropReason::Late);
        }
        if arrival.duplicate && (self.config.dedup || !projection.is_transparent()) {
            return Err(DropReason::Duplicate);
        }
        match &mut self.head {
            Some(head) => head.raise(arrival.ext, arrival.ts, now),
            none => *none = Some(here),
        }
        Ok(mapped)
    }

    /// Whether a splice may happen at this packet (RTP-6). A leg that was armed while its source was away
    /// starts like any other: with the next packet.
    fn await_resume_point(&mut self, now: Instant, arrival: &Arrival) -> Result<(), DropReason> {
        let since = *self.splicing.get_or_insert(now);
        let go_on = match self.config.resume {
            _ if self.gate == Gate::Waiting => true,
            ResumePolicy::AtOnce => true,
            ResumePolicy::AtKeyFrame(wait) => {
                arrival.resume_point || now.saturating_duration_since(since) >= wait
            }
        };
        if !go_on {
            return Err(DropReason::Policy);
        }
        self.splicing = None;
        Ok(())
    }

    /// What to send of a sender report that just came ([`TrackInput::take_down`]).
    pub fn handle_source_rtcp(
        &mut self,
        now: Instant,
        input: &TrackInput,
        scratch: &mut Vec<u8>,
    ) -> RtcpPass {
        self.sender_report(now, input, scratch)
    }

    /// What to send of the last sender report right after the gate opened, so that audio and video are in
    /// step at once (RTP-21).
    ///
    /// A transparent leg sends the source's compound unchanged. A projected one gets the same NTP time
    /// with its own timestamp, SSRC and counts. A source without sender reports gets none invented. A report
    /// of earlier is brought up to the latest packet, along its own line: rtspsrc discards one that is older
    /// than the first packet it got.
    pub fn sender_report(&mut self, now: Instant, input: &TrackInput, scratch: &mut Vec<u8>) -> RtcpPass {
        let (Gate::Open { .. }, Some(projection), Some(current), Some(sr)) =
            (self.gate, self.projection, input.current(), input.sender_report())
        else {
            return RtcpPass::Nothing;
        };
        if projection.run() != current.run {
            return RtcpPass::Nothing; // the splice is still waiting; its mapping is not known yet
        }
        let since = RtpTime(current.head.ts).since(sr.info.rtp);
        let source = match u64::try_from(since) {
            Ok(ticks) if ticks > 0 && sr.at != now => sr.info.later(ticks, input.clock()),
            _ => sr.info,
        };
        self.sent_srs.note(source.ntp.middle(), now);
        if projection.is_transparent() && source == sr.info {
            return RtcpPass::Unchanged;
        }
        let info = if projection.is_transparent() {
            source
        } else {
            let Sent { packets, octets, .. } = self.sent;
            report::map_sr(&source, projection.ssrc(), projection.dts(), packets, octets)
        };
        scratch.clear();
        write_sr(scratch, &info);
        if let Some(cname) = input.source_cname() {
            write_cname(scratch, projection.ssrc(), cname);
        }
        RtcpPass::Mapped
    }

    /// Takes a compound from the viewer. It ends here (RTP-22): reports become [`Self::report`].
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a compound that fails RTP-20.
    pub fn handle_rtcp(&mut self, now: Instant, bytes: &[u8]) -> Result<ViewerRtcp, DropReason> {
        let Ok(compound) = Compound::parse(bytes, CompoundPolicy::ReducedSize) else {
            self.drops.get_or_insert_default().count(DropReason::Malformed);
            return Err(DropReason::Malformed);
        };
        let mut result = ViewerRtcp::default();
        let Some(ssrc) = self.ssrc() else { return Ok(result) };
        for packet in compound.packets() {
            let block = match packet {
                Packet::Sr(sr) => sr.blocks().find(|block| block.ssrc == ssrc),
                Packet::Rr(rr) => rr.blocks().find(|block| block.ssrc == ssrc),
                Packet::Feedback(feedback) => {
                    result.key_frame |= feedback.wants_key_frame(ssrc);
                    if let crate::rtcp::Feedback::Nack { lost, .. } = feedback {
                        result.nacked = result.nacked.saturating_add(lost.iter().count() as u32);
                    }
                    None
                }
                Packet::Bye(_) => {
                    result.bye = true;
                    None
                }
                _ => None,
            };
            if let Some(block) = block {
                result.report = true;
                result.circuit_breaker |= self.take_report(now, &block);
            }
        }
        result.key_frame =
            result.key_frame && self.config.feedback && self.key_frames.admit(now, PLI_LEG_INTERVAL);
        Ok(result)
    }

    /// Takes one report block; returns whether the circuit breaker is open.
    fn take_report(&mut self, now: Instant, block: &ReportBlock) -> bool {
        self.report = Some(LegReport {
            fraction_lost: block.fraction_lost,
            cumulative_lost: block.cumulative_lost,
            highest: block.highest,
            jitter: block.jitter,
            rtt: self.sent_srs.round_trip(block.lsr, block.dlsr, now),
            at: now,
        });
        self.breaker.observe(now, block.fraction_lost) && self.config.circuit_breaker
    }

    /// Appends what a viewer gets when the mesh ends its leg: an empty RR and a BYE, both of the leg's
    /// SSRC (RTP-24). Returns false, and appends nothing, when nothing ever left.
    pub fn write_bye(&self, out: &mut Vec<u8>) -> bool {
        let Some(ssrc) = self.ssrc() else { return false };
        write_rr(out, ssrc, &[]);
        write_bye(out, ssrc);
        true
    }

    /// What the viewer reported last (RTP-23).
    pub fn report(&self) -> Option<&LegReport> {
        self.report.as_ref()
    }

    /// What left.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Packets that were kept from this leg, by reason; those of its viewer's RTCP included.
    pub fn drops(&self) -> &Drops {
        self.drops.as_deref().unwrap_or(&Drops::NONE)
    }
}

#[cfg(test)]
mod tests;
