//! One stream on its worker: inputs, tracks, legs.
//!
//! Owns what happens between a received batch and the last copy of it, RTCP in both directions, and the
//! observations that go to the session logic. Time, admission, statistics and projection are
//! `msm_media`'s; system calls are `udp`'s.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use msm_fastpath::DropReason;
use msm_graph::{InputRow, LegId, LegTrackState, Report, Row, StreamId, TrackId, TrackRow};
use msm_media::{ClockRate, Codec, InputConfig, InputEvent, InputOutput, PeerLock, PeerVerdict, TrackInput};

use super::input_pair::InputPair;
use super::io_buffers::IoBuffers;
use super::leg::{Drops, Forwarded, GateState, LegOut, send_together};
use super::room;
use super::tcp::ConnWay;
use super::udp::{self, Destination};
use super::worker::Shared;

mod arming;
pub(crate) mod inventory;
mod kernel;
mod rtcp;
mod silence;
mod stats;

use arming::Arming;
pub(crate) use kernel::LegKernel;
use kernel::TrackKernel;
use rtcp::send_upstream;

/// At most one report of life per leg or stream in this time.
const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// Where one track enters.
#[derive(Debug)]
pub(crate) enum Entry {
    Udp { pair: Rc<InputPair>, lock: PeerLock, peer: IpAddr, peer_rtcp: Option<u16> },
    Channels { conn: ConnWay, rtcp: u8, peer: Option<SocketAddr> },
}

#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) row: InputRow,
    pub(crate) entry: Entry,
    opened: Instant,
    delivered: bool,
    /// When it was last said to be silent.
    silent_reported: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Track {
    pub(crate) row: TrackRow,
    pub(crate) media: TrackInput,
    pub(crate) input: Option<Input>,
    pub(crate) legs: Vec<LegOut>,
    kernel: TrackKernel,
}

/// A leg across its tracks.
#[derive(Debug)]
struct LegMeta {
    leg: LegId,
    session: String,
    peer: SocketAddr,
    alive_reported: Option<Instant>,
    last_rtcp: Option<Instant>,
    unreachable: u32,
    failed: bool,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    name: String,
    silence: Duration,
    pub(crate) tracks: Vec<Track>,
    legs: Vec<LegMeta>,
    arming: Vec<Arming>,
    /// Legs whose PLAY waited when the former program handed over.
    resumed: Vec<LegId>,
    out_packets: u64,
    out_bytes: u64,
    switches: u64,
    alive_reported: Option<Instant>,
    alive_at: Option<Instant>,
    silent_reported: Option<Instant>,
    /// When the kernel's progress was looked at.
    looked_at: Option<Instant>,
    pub(crate) drops: Drops,
}

impl Stream {
    pub(crate) fn new(id: StreamId) -> Self {
        Self {
            id,
            name: String::new(),
            silence: Duration::from_secs(1),
            tracks: Vec::new(),
            legs: Vec::new(),
            arming: Vec::new(),
            resumed: Vec::new(),
            out_packets: 0,
            out_bytes: 0,
            switches: 0,
            alive_reported: None,
            alive_at: None,
            silent_reported: None,
            looked_at: None,
            drops: Drops::default(),
        }
    }

    /// Name, tracks and patience of a row.
    pub(crate) fn describe(
        &mut self,
        now: Instant,
        row: Row,
        entropy: &mut dyn FnMut() -> u32,
        shared: &Shared,
    ) {
        for index in 0..self.tracks.len() {
            let old = self.tracks.get(index).map(|track| &track.row);
            if old.is_some_and(|old| row.tracks.iter().all(|new| new != old)) {
                self.end_in_kernel(now, index, shared);
            }
        }
        self.name = row.name;
        self.silence = row.silence;
        let mut old = std::mem::take(&mut self.tracks);
        for track in row.tracks {
            let kept = old.iter().position(|known| known.row.track == track.track);
            let kept = kept.map(|index| old.swap_remove(index));
            self.tracks.push(match kept {
                Some(known) if known.row == track => known,
                Some(mut known) => {
                    let feedback = known.media.config().feedback;
                    let own_ssrc = known.media.config().own_ssrc;
                    known.media.replace(now, media_config(self.id, &track, feedback, own_ssrc));
                    known.row = track;
                    known
                }
                None => {
                    let media = TrackInput::new(now, media_config(self.id, &track, false, entropy()));
                    Track {
                        row: track,
                        media,
                        input: None,
                        legs: Vec::new(),
                        kernel: TrackKernel::new(self.name.clone()),
                    }
                }
            });
        }
        // A leg never ends because its source is away: the track may come back.
        self.tracks.extend(old.into_iter().filter(|track| !track.legs.is_empty()));
    }

    fn index(&self, track: TrackId) -> Option<usize> {
        self.tracks.iter().position(|known| known.row.track == track)
    }

    pub(crate) fn track_mut(&mut self, track: TrackId) -> Option<&mut Track> {
        self.tracks.iter_mut().find(|known| known.row.track == track)
    }

    /// Puts an input in place; the one before it, if any, is returned to be closed.
    pub(crate) fn set_input(
        &mut self,
        now: Instant,
        row: InputRow,
        entry: Entry,
        shared: &Shared,
    ) -> Option<Input> {
        if let Some(index) = self.index(row.track) {
            self.end_in_kernel(now, index, shared);
        }
        self.silent_reported = None;
        let stream = self.id;
        let track = self.track_mut(row.track)?;
        let own_ssrc = track.media.config().own_ssrc;
        track.media.replace(now, media_config(stream, &track.row, row.feedback, own_ssrc));
        track.input.replace(Input { row, entry, opened: now, delivered: false, silent_reported: None })
    }

    /// The peer's ports are known better now. Sends what opens the way through a NAT on our side, as
    /// players do.
    pub(crate) fn retarget_input(&mut self, now: Instant, row: InputRow, shared: &Shared) {
        self.retarget(now, row);
        self.reconcile(now, shared);
    }

    fn retarget(&mut self, now: Instant, row: InputRow) {
        let Some(track) = self.track_mut(row.track) else { return };
        let own_ssrc = track.media.config().own_ssrc;
        let payload_types = &track.row.payload_types;
        let Some(input) = &mut track.input else { return };
        let msm_graph::Encap::Udp { peer, peer_rtp, peer_rtcp, .. } = row.encap else { return };
        if let Entry::Udp { pair, lock, peer_rtcp: known_rtcp, .. } = &mut input.entry {
            let named = lock.port().is_none() && peer_rtp.is_some();
            *lock = PeerLock::new(now, peer, peer_rtp, payload_types);
            *known_rtcp = peer_rtcp;
            if let (true, Some(port)) = (named, peer_rtp) {
                let mut punch = [0; 12];
                punch[0] = 0x80;
                let to = Destination::new(SocketAddr::new(peer, port), None);
                let _ = udp::send_one(pair.rtp.as_raw_fd(), &to, &punch);
            }
        }
        input.row = row;
        let mut empty = [0x80, 0xc9, 0, 1, 0, 0, 0, 0];
        empty[4..].copy_from_slice(&own_ssrc.to_be_bytes());
        send_upstream(input, &empty, now);
    }

    pub(crate) fn take_input(&mut self, now: Instant, track: TrackId, shared: &Shared) -> Option<Input> {
        let index = self.index(track)?;
        self.end_in_kernel(now, index, shared);
        self.track_mut(track)?.input.take()
    }

    pub(crate) fn open_leg(&mut self, leg: LegId, session: String, peer: SocketAddr) {
        if self.legs.iter().all(|known| known.leg != leg) {
            let meta = LegMeta {
                leg,
                session,
                peer,
                alive_reported: None,
                last_rtcp: None,
                unreachable: 0,
                failed: false,
            };
            room::append(&mut self.legs, meta);
        }
    }

    pub(crate) fn open_leg_track(&mut self, track: TrackId, out: LegOut) {
        let Some(known) = self.track_mut(track) else { return };
        known.legs.retain(|other| other.leg != out.leg);
        room::append(&mut known.legs, out);
    }

    pub(crate) fn close_leg_track(
        &mut self,
        now: Instant,
        leg: LegId,
        track: TrackId,
        shared: &Shared,
    ) -> Option<LegOut> {
        let index = self.index(track)?;
        self.forget_in_kernel(now, index, leg, shared);
        let legs = &mut self.track_mut(track)?.legs;
        let index = legs.iter().position(|out| out.leg == leg)?;
        let out = legs.swap_remove(index);
        self.drops.add(&out.drops.get());
        for (reason, count) in out.media.drops().iter() {
            self.drops.count(reason, count);
        }
        Some(out)
    }

    pub(crate) fn leg_tracks(&self, leg: LegId) -> Vec<TrackId> {
        let has = |track: &&Track| track.legs.iter().any(|out| out.leg == leg);
        self.tracks.iter().filter(has).map(|track| track.row.track).collect()
    }

    /// Forgets a leg. Its tracks were closed before.
    pub(crate) fn close_leg(&mut self, leg: LegId) {
        self.legs.retain(|known| known.leg != leg);
        self.arming.retain(|arming| arming.leg != leg);
    }

    pub(crate) fn leg_ids(&self) -> Vec<LegId> {
        self.legs.iter().map(|meta| meta.leg).collect()
    }

    fn outs(&mut self, leg: LegId) -> impl Iterator<Item = (&TrackInput, TrackId, &mut LegOut)> {
        self.tracks.iter_mut().filter_map(move |track| {
            let out = track.legs.iter_mut().find(|out| out.leg == leg)?;
            Some((&track.media, track.row.track, out))
        })
    }

    /// What an attached leg looks like.
    pub(crate) fn leg_states(
        &mut self,
        leg: LegId,
        ports: impl Fn(&LegOut) -> Option<msm_graph::PortPair>,
    ) -> Vec<LegTrackState> {
        self.outs(leg)
            .map(|(input, track, out)| LegTrackState {
                track,
                local: ports(out),
                ssrc: out.media.ssrc().or_else(|| input.current().map(|run| run.ssrc)),
            })
            .collect()
    }

    /// The packets in `io` arrived on a track. Returns how many of them were no RTP.
    pub(crate) fn handle_packets(
        &mut self,
        now: Instant,
        track: TrackId,
        io: &mut IoBuffers,
        shared: &Shared,
    ) -> u32 {
        let Some(index) = self.index(track) else { return 0 };
        self.before_batch(index, shared);
        let Some(track) = self.tracks.get_mut(index) else { return 0 };
        {
            let IoBuffers { receive, packets, batch, .. } = &mut *io;
            let bytes = receive.bytes();
            let packets = packets.iter().map(|piece| bytes.get(piece.range()).unwrap_or_default());
            track.media.handle_rtp(now, packets, batch);
        }
        if track.media.is_joining(now) {
            // What one track of a restarted source learns of its clock holds for all (RTP-6).
            let found = track.media.source_clock();
            for other in &mut self.tracks {
                other.media.share_source_clock(found);
            }
        }
        self.divide(now, index, io, shared);
        let Some(track) = self.tracks.get_mut(index) else { return 0 };
        let mut refused = 0;
        // Also of a batch that came in whole: a packet held before it may have been given up.
        if io.batch.drops().total() > 0 {
            for (reason, count) in io.batch.drops().iter() {
                // Cameras send payload types and sources that nobody announced for as long as they run: only
                // what is no RTP at all speaks against the connection (RTSP-43).
                if reason == DropReason::Malformed {
                    refused += count as u32;
                }
                self.drops.count(reason, count);
            }
        }
        if !io.batch.arrivals().is_empty() {
            io.line_up();
            let Track { media, legs, kernel, .. } = track;
            for (at, out) in legs.iter_mut().enumerate() {
                let part = Self::part(kernel, at, out.leg);
                if out.state == GateState::Armed {
                    // Ahead of the first packet for players that would step their clock when they learn the
                    // mapping behind it (ffmpeg, mpv); once more below for those that drop a report of a
                    // source they have heard nothing from (rtspsrc). RTP-21.
                    out.send_report(now, media, io);
                }
                let (packets, bytes) = match out.forward(now, media, part, io) {
                    Forwarded::Sent(packets, bytes) => (packets, bytes),
                    Forwarded::Together => {
                        io.together.push(at);
                        continue;
                    }
                };
                if out.is_waiting() {
                    shared.note_reordered();
                }
                self.out_packets += packets;
                self.out_bytes += bytes;
                if packets > 0 && out.report_due {
                    out.report_due = false;
                    out.send_report(now, media, io);
                }
            }
            let (packets, bytes) = send_together(legs, io);
            self.out_packets += packets;
            self.out_bytes += bytes;
            self.alive_at = Some(now);
        }
        self.after_batch(now, index, io.receive.is_emptied(), shared);
        self.drain(now, index, io, shared);
        self.answer_armed(now);
        refused
    }

    /// Sends what waited in vain to be put in sequence. Returns whether more waits.
    pub(crate) fn release(&mut self, now: Instant) -> bool {
        let mut waiting = false;
        for out in self.tracks.iter_mut().flat_map(|track| &mut track.legs) {
            let (packets, bytes) = out.release(now);
            self.out_packets += packets;
            self.out_bytes += bytes;
            waiting |= out.is_waiting();
        }
        waiting
    }

    /// Does what the input of a track asks for.
    fn drain(&mut self, now: Instant, index: usize, io: &mut IoBuffers, shared: &Shared) {
        let stream = self.id;
        loop {
            let Some(track) = self.tracks.get_mut(index) else { return };
            let id = track.row.track;
            match track.media.poll_output() {
                InputOutput::Rtcp(compound) => {
                    if let Some(input) = &mut track.input {
                        send_upstream(input, &compound, now);
                    }
                }
                InputOutput::Event(InputEvent::Active) => {
                    if let Some(input) = &mut track.input {
                        input.delivered = true;
                        input.silent_reported = None;
                    }
                    self.silent_reported = None;
                    shared.report(Report::InputActive { stream, track: id });
                }
                InputOutput::Event(InputEvent::Switched { .. }) => self.switches += 1,
                InputOutput::Event(InputEvent::Bye) => shared.report(Report::InputBye { stream, track: id }),
                InputOutput::Timeout(_) => break,
            }
        }
        let Some(Track { media, legs, .. }) = self.tracks.get_mut(index) else { return };
        if media.take_down() {
            for out in legs.iter_mut().filter(|out| out.state == GateState::Active) {
                out.report_due = false;
                out.send_report(now, media, io);
            }
        }
    }

    /// Judges received datagrams by their source and handles what is left (SEC-2). `only`: those of one
    /// address, when several cameras share the port.
    pub(crate) fn handle_datagrams(
        &mut self,
        now: Instant,
        track: TrackId,
        only: Option<IpAddr>,
        io: &mut IoBuffers,
        shared: &Shared,
    ) {
        io.packets.clear();
        io.frames.clear();
        let Some(known) = self.tracks.iter_mut().find(|known| known.row.track == track) else { return };
        let Some(Input { entry: Entry::Udp { lock, .. }, .. }) = &mut known.input else { return };
        let mut strangers = 0u64;
        let mut released = None;
        for datagram in io.receive.datagrams().iter().filter(|datagram| datagram.is_from(only)) {
            let bytes = io.receive.bytes();
            if lock.port().is_some() {
                // The bytes matter only while the port is being learned.
                match lock.handle(now, datagram.from, &[]) {
                    PeerVerdict::Admit => io.packets.extend(datagram.segments()),
                    _ => strangers += datagram.segments().count() as u64,
                }
                continue;
            }
            for piece in datagram.segments() {
                match lock.handle(now, datagram.from, bytes.get(piece.range()).unwrap_or_default()) {
                    PeerVerdict::Admit => io.packets.push(piece),
                    PeerVerdict::Hold => {}
                    PeerVerdict::Locked => {
                        released = lock.take_held();
                        io.packets.push(piece);
                    }
                    PeerVerdict::Drop(_) => strangers += 1,
                }
            }
        }
        if let Some(held) = released
            && let Some(piece) = io.receive.copy_in(&held, false)
        {
            io.packets.insert(0, piece);
        }
        self.drops.count(DropReason::UnknownSource, strangers);
        if !io.packets.is_empty() {
            self.handle_packets(now, track, io, shared);
        }
    }

    /// Everything that is due by time; called about ten times a second.
    pub(crate) fn tick(&mut self, now: Instant, io: &mut IoBuffers, shared: &Shared) {
        if self.look_is_due(now) {
            self.reconcile(now, shared);
        }
        for index in 0..self.tracks.len() {
            if let Some(track) = self.tracks.get_mut(index) {
                track.media.handle_timeout(now);
            }
            self.drain(now, index, io, shared);
        }
        self.answer_armed(now);
        let stream = self.id;
        if let Some(alive) = self.alive_at
            && self.alive_reported.is_none_or(|told| alive > told && now.duration_since(told) >= ALIVE_EVERY)
        {
            self.alive_reported = Some(now);
            shared.report(Report::InputAlive { stream });
        }
        self.tell_silence(now, shared);
    }
}

fn media_config(stream: StreamId, track: &TrackRow, feedback: bool, own_ssrc: u32) -> InputConfig {
    InputConfig {
        // The SDP parser saw to it that a clock rate is at least 1.
        clock: ClockRate::new(track.clock_rate)
            .or(ClockRate::new(90_000))
            .expect("90,000 Hz is a clock rate"),
        codec: Codec::from_name(&track.codec),
        payload_types: track.payload_types.clone(),
        feedback,
        own_ssrc,
        // One name for all tracks; the random half of the id says nothing of the stream (RFC 7022).
        cname: format!("msm-{:016x}", stream.as_uuid().as_u64_pair().1),
    }
}
