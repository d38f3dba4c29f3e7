//! Where one track enters a node: admission, source switching, statistics, RTCP with the source.
//!
//! Works on receive batches: [`TrackInput::handle_rtp`] turns packets into [`Arrival`]s, which every leg
//! of the track then reads ([`crate::LegTrack::handle_batch`]). Decides which packets belong to the
//! stream; who may send at all (SEC-2) is [`crate::PeerLock`]'s or the transport's business.
//!
//! A *run* is a stretch of one source with one sequence and one timeline. A new one starts with the
//! first packet, with a new generation of the row, and when another SSRC (RTP-6) or a jump (RTP-7) was
//! confirmed by a second packet in sequence. The packet that came first is held meanwhile and not lost:
//! it is often the start of the key frame at which video resumes.

mod absorb;
mod batch;
pub mod inventory;
mod splice;
mod suspect;
mod upward;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use msm_fastpath::{Admission, PayloadTypes, Verdict, decide};

use crate::clock::ClockRate;
use crate::drop::{DropReason, Drops};
use crate::elsewhere::Ahead;
use crate::keyframe::Codec;
use crate::project::Head;
use crate::report::{KeyFrameLimiter, LastSr, RrSchedule};
use crate::rtcp::sdes::write_cname;
use crate::rtcp::sr::SenderInfo;
use crate::rtcp::{Compound, CompoundPolicy, Packet};
use crate::rtp::RtpView;
use crate::seq::SeqStep;
use crate::stats::ReceiverStats;

pub use batch::{Arrival, Batch, Part, RunHead};
use splice::Joint;
use suspect::Suspect;

/// Timestamp jump that is a restart when the next packet confirms it (RTP-7).
pub const MAX_TIME_JUMP: Duration = Duration::from_secs(10);
/// Another SSRC is not even looked at so soon after the last switch (`docs/protocols/rtp.md`, limits).
pub const SWITCH_INTERVAL: Duration = Duration::from_secs(1);
/// An input that was silent this long is reported [`InputEvent::Active`] again.
pub const QUIET_AFTER: Duration = Duration::from_secs(1);
/// A frame of which nothing came for so long is taken to be complete, whether its last packet was marked or
/// not: packets that went by in the kernel show no mark, and some sources set none.
const FRAME_GAP: Duration = Duration::from_millis(20);
/// Largest compound that is kept for new legs, in bytes; larger ones are refused.
const MAX_DOWN: usize = 4_096;

/// What is known of a track from its SDP and its row.
#[derive(Debug, Clone)]
pub struct InputConfig {
    /// RTP clock.
    pub clock: ClockRate,
    /// Payload format, for key frames.
    pub codec: Codec,
    /// Payload types admitted (RTP-1); none admits all.
    pub payload_types: Vec<u8>,
    /// Whether the source speaks AVPF, so that PLI may be sent to it (RTP-25).
    pub feedback: bool,
    /// SSRC of our reports, random.
    pub own_ssrc: u32,
    /// CNAME of our reports (RFC 7022), at most 255 bytes; the same for all tracks of a source, for it
    /// stands in for that of a source that names none.
    pub cname: String,
}

/// Something that the session logic may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputEvent {
    /// A packet was admitted for the first time or after [`QUIET_AFTER`].
    Active,
    /// The source was replaced by another, or restarted (`source_switch`, RTP-6).
    Switched {
        /// SSRC before.
        from: u32,
        /// SSRC now; the same one after a jump.
        to: u32,
    },
    /// The source said goodbye; nothing was forwarded (RTP-24).
    Bye,
}

/// What [`TrackInput::poll_output`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputOutput {
    /// A compound for the source.
    Rtcp(Vec<u8>),
    /// An observation.
    Event(InputEvent),
    /// Nothing more; call [`TrackInput::handle_timeout`] at this time.
    Timeout(Instant),
}

/// The last sender report of the source and the compound that brought it.
#[derive(Debug, Clone)]
struct Down {
    info: SenderInfo,
    at: Instant,
    /// Without BYE.
    bytes: Vec<u8>,
}

/// One track on its way into a node.
#[derive(Debug)]
pub struct TrackInput {
    config: InputConfig,
    /// What [`decide`] checks; locked to the SSRC of the run.
    admission: Admission,
    runs: u32,
    current: Option<RunHead>,
    joint: Joint,
    stats: ReceiverStats,
    /// How far the run has come elsewhere, while packets are seen against that.
    ahead: Option<Ahead>,
    /// Timestamp of the last packet, unless it was marked as the last one of its frame.
    frame: Option<u32>,
    suspect: Option<Suspect>,
    suspect_bytes: Vec<u8>,
    switched_at: Option<Instant>,
    last_arrival: Option<Instant>,
    drops: Drops,
    down: Option<Down>,
    /// A report of an SSRC that has not sent RTP yet: it may come first.
    early: Option<Down>,
    down_is_new: bool,
    no_cname: u64,
    rr: RrSchedule,
    key_frames: KeyFrameLimiter,
    outputs: VecDeque<InputOutput>,
}

/// Bound of the queue of outputs; the caller drains it after every call, so it never fills.
const MAX_OUTPUTS: usize = 64;

impl TrackInput {
    /// An input that has received nothing.
    pub fn new(now: Instant, config: InputConfig) -> Self {
        let payload_types = match config.payload_types.as_slice() {
            [] => PayloadTypes::ANY,
            list => PayloadTypes::of(list),
        };
        Self {
            admission: Admission::any_ssrc(payload_types),
            runs: 0,
            current: None,
            joint: Joint::default(),
            stats: ReceiverStats::new(now, config.clock),
            ahead: None,
            frame: None,
            suspect: None,
            suspect_bytes: Vec::new(),
            switched_at: None,
            last_arrival: None,
            drops: Drops::default(),
            down: None,
            early: None,
            down_is_new: false,
            no_cname: 0,
            rr: RrSchedule::new(now, config.own_ssrc),
            key_frames: KeyFrameLimiter::default(),
            outputs: VecDeque::new(),
            config,
        }
    }

    /// The source was opened anew: the next packet starts a run, whatever its SSRC, and the legs splice.
    /// Totals of the statistics go on. `config` replaces what was known of the track; our own SSRC
    /// should stay, if the connection to the source allows it.
    pub fn replace(&mut self, now: Instant, config: InputConfig) {
        let mut next = Self::new(now, config);
        next.runs = self.runs;
        next.drops = self.drops;
        next.no_cname = self.no_cname;
        next.outputs = std::mem::take(&mut self.outputs);
        if next.config.clock == self.config.clock {
            self.end_run();
            next.joint = self.joint;
            next.stats = self.stats.clone();
            next.stats.end_run();
        }
        *self = next;
    }

    /// What the track was configured with.
    pub fn config(&self) -> &InputConfig {
        &self.config
    }

    /// Takes a receive batch, in order of arrival, and fills `batch` with what was admitted. `now` is
    /// the time of all of it.
    pub fn handle_rtp<'a>(
        &mut self,
        now: Instant,
        packets: impl IntoIterator<Item = &'a [u8]>,
        batch: &mut Batch,
    ) {
        batch.clear();
        let arrival = self.stats.arrival(now);
        let mut suspect_now: &[u8] = &[];
        for packet in packets {
            let index = batch.offered as u32;
            batch.offered += 1;
            match self.admit(now, arrival, index, packet, batch) {
                Ok(true) => {}
                Ok(false) => suspect_now = packet,
                Err(reason) => self.count(reason, batch),
            }
        }
        if let Some(suspect) = self.suspect.as_mut().filter(|suspect| suspect.index.is_some()) {
            suspect.index = None;
            self.suspect_bytes.clear();
            self.suspect_bytes.extend(suspect_now);
        }
        self.stats.note_time(now);
        batch.after = self.current;
        self.follow(now);
        if !batch.arrivals().is_empty() {
            let quiet =
                self.last_arrival.is_none_or(|last| now.saturating_duration_since(last) >= QUIET_AFTER);
            self.last_arrival = Some(now);
            if quiet {
                self.output(InputOutput::Event(InputEvent::Active));
            }
        }
    }

    fn count(&mut self, reason: DropReason, batch: &mut Batch) {
        batch.drops.count(reason);
        self.drops.count(reason);
    }

    /// Admits one packet (true), holds it (false) or says why not.
    #[inline]
    fn admit(
        &mut self,
        now: Instant,
        arrival: f64,
        index: u32,
        packet: &[u8],
        batch: &mut Batch,
    ) -> Result<bool, DropReason> {
        let view = RtpView::parse(packet).ok_or(DropReason::Malformed)?;
        let verdict = decide(view.fixed(), packet.len(), &self.admission);
        let (seq, ts, ssrc) = (view.seq(), view.timestamp(), view.ssrc());
        if ssrc == self.config.own_ssrc {
            return Err(DropReason::Loop);
        }
        let suspicion = match verdict {
            Verdict::Drop(DropReason::Ssrc) => Some(DropReason::Ssrc),
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Forward | Verdict::ToUser => {
                let jumped =
                    self.current.as_ref().is_some_and(|current| self.time_jump(now, ts, &current.head));
                jumped.then_some(DropReason::Policy)
            }
        };
        if let Some(ahead) = &self.ahead
            && suspicion != Some(DropReason::Ssrc)
        {
            self.stats.catch_up(ahead, seq);
        }
        if suspicion.is_none() {
            let (ext, step) = self.stats.observe(arrival, seq, ts, packet.len());
            if step != SeqStep::Jump {
                if self.suspect.is_some() {
                    self.forget_suspect(batch);
                }
                match &mut self.current {
                    Some(current) => current.head.raise(ext, ts, now),
                    None => self.start_run(now, ssrc, ext, ts),
                }
                self.push(index, view, ext, step, batch);
                return Ok(true);
            }
        }
        self.suspect(now, arrival, index, packet, view, suspicion.unwrap_or(DropReason::Policy), batch)
    }

    #[inline]
    fn push(&mut self, index: u32, view: RtpView<'_>, ext: u64, step: SeqStep, batch: &mut Batch) {
        let payload = payload_of(&view);
        self.frame = (!view.marker()).then_some(view.timestamp());
        batch.push(Arrival {
            index,
            run: self.runs,
            ext,
            seq: view.seq(),
            payload_len: payload.len() as u16,
            ts: view.timestamp(),
            ssrc: view.ssrc(),
            duplicate: step == SeqStep::Duplicate,
            resume_point: self.config.codec.resume_point(payload),
            only_here: false,
        });
    }

    /// Timestamp of a frame of which more is to come: its last packet was not marked, and came just now.
    /// Of media without frames of several packets it means nothing, and is never said of sound.
    pub fn frame_in_progress(&self, now: Instant) -> Option<u32> {
        let recent = |at: Instant| now.saturating_duration_since(at) < FRAME_GAP;
        let is_video = self.config.clock == ClockRate::VIDEO;
        self.frame.filter(|_| is_video && self.last_arrival.is_some_and(recent))
    }

    fn start_run(&mut self, now: Instant, ssrc: u32, ext: u64, ts: u32) {
        self.runs += 1;
        self.ahead = None;
        self.admission = Admission::only_ssrc(self.admission.payload_types, ssrc);
        self.current = Some(RunHead { run: self.runs, ssrc, head: Head { ext, ts, at: now } });
        self.down = self.early.take().filter(|early| early.info.ssrc == ssrc);
        self.down_is_new = self.down.is_some();
        self.begin_timeline(now, ts);
    }

    /// Takes a compound from the source. What legs are to get of it is in [`Self::take_down`].
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a compound that fails RTP-20, [`DropReason::Ssrc`] for a report of
    /// another source than that of the RTP.
    pub fn handle_rtcp(&mut self, now: Instant, bytes: &[u8]) -> Result<(), DropReason> {
        self.take_compound(now, bytes).inspect_err(|reason| self.drops.count(*reason))
    }

    fn take_compound(&mut self, now: Instant, bytes: &[u8]) -> Result<(), DropReason> {
        let compound =
            Compound::parse(bytes, CompoundPolicy::ReducedSize).map_err(|_| DropReason::Malformed)?;
        if bytes.len() > MAX_DOWN {
            return Err(DropReason::Malformed);
        }
        self.no_cname += u64::from(!compound.has_cname());
        let ssrc = self.current.map(|current| current.ssrc);
        let mut foreign = false;
        let mut bye = false;
        for packet in compound.packets() {
            match packet {
                Packet::Sr(sr) => {
                    let mut stripped = Vec::with_capacity(bytes.len());
                    compound.write_without_bye(&mut stripped);
                    if !compound.has_cname() {
                        // Without one a viewer cannot tell which tracks belong together.
                        write_cname(&mut stripped, sr.ssrc(), self.config.cname.as_bytes());
                    }
                    let down = Down { info: sr.info(), at: now, bytes: stripped };
                    if ssrc == Some(sr.ssrc()) {
                        self.down = Some(down);
                        self.down_is_new = true;
                    } else {
                        foreign |= ssrc.is_some();
                        self.early = Some(down);
                    }
                }
                Packet::Bye(said) => {
                    bye |= ssrc.is_some_and(|ssrc| said.ssrcs().any(|source| source == ssrc));
                }
                _ => {}
            }
        }
        if bye {
            self.output(InputOutput::Event(InputEvent::Bye));
        }
        if foreign { Err(DropReason::Ssrc) } else { Ok(()) }
    }

    /// Whether a sender report came that the legs have not got yet. True once per report; then every leg
    /// is asked with [`crate::LegTrack::handle_source_rtcp`].
    pub fn take_down(&mut self) -> bool {
        std::mem::take(&mut self.down_is_new)
    }

    /// The last compound of the source with a sender report, BYE removed (RTP-24): what transparent legs
    /// send.
    pub fn down(&self) -> Option<&[u8]> {
        self.down.as_ref().map(|down| down.bytes.as_slice())
    }

    /// The sender report in [`Self::down`] and when it came.
    pub fn sender_report(&self) -> Option<LastSr> {
        self.down.as_ref().map(|down| LastSr { info: down.info, at: down.at })
    }

    /// CNAME of the source, from the compound of its last sender report.
    pub fn source_cname(&self) -> Option<&[u8]> {
        let compound = Compound::parse(self.down()?, CompoundPolicy::ReducedSize).ok()?;
        compound.packets().find_map(|packet| match packet {
            Packet::Sdes(sdes) => sdes.cname().map(|(_, cname)| cname),
            _ => None,
        })
    }

    /// What is to be done: drained after every call until it returns [`InputOutput::Timeout`].
    pub fn poll_output(&mut self) -> InputOutput {
        self.outputs.pop_front().unwrap_or(InputOutput::Timeout(self.rr.due()))
    }

    fn output(&mut self, output: InputOutput) {
        if self.outputs.len() < MAX_OUTPUTS {
            self.outputs.push_back(output);
        }
    }

    /// The current run, once a packet was admitted.
    pub fn current(&self) -> Option<RunHead> {
        self.current
    }

    /// The clock of the track.
    pub fn clock(&self) -> ClockRate {
        self.config.clock
    }

    /// Reception statistics.
    pub fn stats(&self) -> &ReceiverStats {
        &self.stats
    }

    /// When a packet was admitted last.
    pub fn last_arrival(&self) -> Option<Instant> {
        self.last_arrival
    }

    /// Packets that were dropped, by reason.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Compounds that had no CNAME, against RFC 3550 section 6.1; accepted (RTP-20).
    pub fn compounds_without_cname(&self) -> u64 {
        self.no_cname
    }
}

/// Payload for counts and key frames; malformed padding counts as payload.
#[inline]
fn payload_of<'a>(view: &RtpView<'a>) -> &'a [u8] {
    view.payload().unwrap_or_else(|| view.raw_payload())
}

#[cfg(test)]
mod tests;
