//! Steps of row and leg operations, as a worker does them.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use msm_control_plane::event::OpError;
use msm_graph::{ConnId, Encap, InputRow, LegEncap, LegId, LegTrack as LegTrackRow, StreamId, TrackId};
use msm_media::{LegConfig, LegTrack, PeerLock, ResumePolicy};

use super::Shared;
use super::command::{PlayerPeer, Step};
use crate::user::input_pair::{InputPair, PairId};
use crate::user::leg::{GateState, InOrder, LegDrops, LegOut, Way};
use crate::user::stream::{Entry, Input, LegKernel, Stream};
use crate::user::tcp::{ChannelOwner, ConnWay, GuestQueue};
use crate::user::udp::{self, Bound, Destination};

/// How long video may wait for a key frame after a splice (RTP-6).
const RESUME_WAIT: Duration = Duration::from_secs(2);

impl Shared {
    pub(super) fn apply(self: &Rc<Self>, step: Step) -> Result<(), OpError> {
        let now = Instant::now();
        let missing = |stream: StreamId| OpError::NotFound(format!("stream {stream}"));
        let find = |stream: StreamId| self.stream(stream).ok_or_else(|| missing(stream));
        // Looked up before anything is opened for the track.
        let find_track = |stream: StreamId, track: TrackId| {
            let cell = find(stream)?;
            let known = cell.borrow_mut().track_mut(track).is_some();
            known
                .then_some(cell)
                .ok_or_else(|| OpError::NotFound(format!("track {track} of stream {stream}")))
        };
        match step {
            Step::OpenStream(stream) => {
                let new = || Rc::new(RefCell::new(Stream::new(stream)));
                self.streams.borrow_mut().entry(stream).or_insert_with(new);
            }
            Step::Describe(row) => {
                let cell = find(row.stream)?;
                let stream = row.stream;
                let mut gone: Vec<_> = cell.borrow().tracks.iter().map(|track| track.row.track).collect();
                gone.retain(|id| row.tracks.iter().all(|track| track.track != *id));
                for track in gone {
                    let old = cell.borrow_mut().take_input(now, track, self);
                    self.close_input(stream, old);
                }
                cell.borrow_mut().describe(now, row, &mut random_u32, self);
            }
            Step::OpenUdpInput { stream, input, pair, bound } => {
                let cell = find_track(stream, input.track)?;
                let entry =
                    self.open_udp(&cell, &input, pair, bound).map_err(|e| OpError::Io(e.to_string()))?;
                let old = cell.borrow_mut().set_input(now, input, entry, self);
                self.close_input(stream, old);
            }
            Step::OpenChannelInput { stream, input, peer, guest } => {
                let cell = find_track(stream, input.track)?;
                let Encap::Interleaved { conn, rtp, rtcp } = input.encap else { return Ok(()) };
                let track = input.track;
                // Unbound first: the new input may use the very channels of the old one.
                let old = cell.borrow_mut().take_input(now, track, self);
                self.close_input(stream, old);
                let conn = self.way_to(conn, guest);
                let owners = ChannelOwner::input(stream, track);
                let [mut early, reports] = conn.bind([(rtp, owners[0]), (rtcp, owners[1])], self.index)?;
                let entry = Entry::Channels { conn, rtcp, peer };
                cell.borrow_mut().set_input(now, input, entry, self);
                self.handle_frames(stream, track, &mut early);
                for compound in reports {
                    self.handle_input_rtcp(stream, track, &compound);
                }
            }
            Step::RetargetInput { stream, input } => {
                find(stream)?.borrow_mut().retarget_input(now, input, self);
            }
            Step::CloseInput { stream, track } => {
                if let Some(cell) = self.stream(stream) {
                    let old = cell.borrow_mut().take_input(now, track, self);
                    self.close_input(stream, old);
                }
            }
            Step::CloseStream(stream) => {
                let Some(cell) = self.stream(stream) else { return Ok(()) };
                let (legs, tracks): (Vec<_>, Vec<_>) = {
                    let cell = cell.borrow();
                    (cell.leg_ids(), cell.tracks.iter().map(|track| track.row.track).collect())
                };
                for leg in legs {
                    self.close_leg(stream, leg, true);
                }
                for track in tracks {
                    let old = cell.borrow_mut().take_input(now, track, self);
                    self.close_input(stream, old);
                }
                self.drops.borrow_mut().add(&cell.borrow().drops);
                self.streams.borrow_mut().remove(&stream);
            }
            Step::OpenLeg(spec) => {
                find(spec.stream)?.borrow_mut().open_leg(spec.leg, spec.session, spec.peer);
            }
            Step::OpenLegTrack { stream, leg, track, guest } => {
                let cell = find_track(stream, track.track)?;
                let out = self.open_leg_track(stream, leg, &track, guest)?;
                cell.borrow_mut().open_leg_track(track.track, out);
            }
            Step::CloseLegTrack { stream, leg, track } => self.close_leg_track(stream, leg, track, false),
            Step::PauseLeg { stream, leg } => find(stream)?.borrow_mut().pause(now, leg, self),
            Step::CloseLeg { stream, leg, bye } => self.close_leg(stream, leg, bye),
        }
        Ok(())
    }

    fn open_udp(
        self: &Rc<Self>,
        cell: &Rc<RefCell<Stream>>,
        input: &InputRow,
        id: PairId,
        bound: Option<(Bound, Bound)>,
    ) -> io::Result<Entry> {
        let Encap::Udp { peer, peer_rtp, peer_rtcp, .. } = input.encap else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let peer = peer.to_canonical();
        if let Some((rtp, rtcp)) = bound {
            let pair = InputPair::open(self.clone(), id, rtp, rtcp)?;
            self.pairs.borrow_mut().insert(id, pair);
        }
        let pair = self.pairs.borrow().get(&id).cloned().ok_or(io::ErrorKind::NotFound)?;
        self.let_in(input, &pair);
        pair.add_route(peer, cell, input.track);
        let payload_types = {
            let mut stream = cell.borrow_mut();
            stream.track_mut(input.track).map(|track| track.row.payload_types.clone()).unwrap_or_default()
        };
        let lock = PeerLock::new(Instant::now(), peer, peer_rtp, &payload_types);
        Ok(Entry::Udp { pair, lock, peer, peer_rtcp })
    }

    fn close_input(&self, stream: StreamId, old: Option<Input>) {
        let Some(Input { row, entry, .. }) = old else { return };
        match entry {
            Entry::Udp { pair, peer, .. } => {
                if pair.remove_route(peer, stream, row.track) {
                    self.pairs.borrow_mut().remove(&pair.id);
                }
            }
            Entry::Channels { conn, .. } => {
                conn.unbind(ChannelOwner::input(stream, row.track), false);
                self.forget_unused(&conn);
            }
        }
    }

    /// The way to a connection; with `guest` it lives on another worker.
    fn way_to(&self, conn: ConnId, guest: Option<GuestQueue>) -> ConnWay {
        guest.map_or_else(|| ConnWay::Here(self.slot(conn)), ConnWay::Away)
    }

    fn forget_unused(&self, conn: &ConnWay) {
        if let ConnWay::Here(slot) = conn
            && slot.is_unused()
        {
            self.conns.borrow_mut().remove(&slot.id);
        }
    }

    fn open_leg_track(
        &self,
        stream: StreamId,
        leg: LegId,
        track: &LegTrackRow,
        guest: Option<GuestQueue>,
    ) -> Result<LegOut, OpError> {
        let mut kernel = LegKernel::default();
        let (way, interleaved) = match track.encap {
            LegEncap::Udp { rtp, rtcp, local } => {
                let [rtp, rtcp] = [rtp, rtcp].map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
                let pair = self.players.towards(rtp).ok_or_else(|| {
                    OpError::Io(format!("no player port is open in the address family of {rtp}"))
                })?;
                // RTSP-14: the viewer expects media from the address it reached us at.
                let local = local.to_canonical();
                let route = udp::route_source(rtp);
                let source = (route != Some(local) && local.is_ipv4() == rtp.is_ipv4()).then_some(local);
                kernel = LegKernel::new(source.or(route).map(|ip| SocketAddr::new(ip, pair.ports.rtp)));
                let peer = self.player_peer(stream, leg, track.track);
                if let Err(error) =
                    [rtp, rtcp].into_iter().try_for_each(|addr| self.announce_peer(addr, peer))
                {
                    // No leg will come that could retract the first of them.
                    self.retract_peer(rtp, peer);
                    return Err(error);
                }
                if let Ok(kernel) = &self.kernel {
                    kernel.borrow_mut().replace_viewer(rtp);
                }
                let way = Way::Udp {
                    rtp_socket: udp::descriptor(&*pair.rtp),
                    rtcp_socket: udp::descriptor(&*pair.rtcp),
                    rtp: Destination::new(rtp, source),
                    rtcp: Destination::new(rtcp, source),
                    segmented: true,
                };
                (way, false)
            }
            LegEncap::Interleaved { conn, rtp, rtcp } => {
                let conn = self.way_to(conn, guest);
                let owners = ChannelOwner::leg(stream, leg, track.track);
                conn.bind([(rtp, owners[0]), (rtcp, owners[1])], self.index)?;
                (Way::Channels { conn, rtp, rtcp, order: InOrder::new() }, true)
            }
        };
        Ok(LegOut {
            leg,
            media: LegTrack::new(leg_config(track.feedback, interleaved)),
            way,
            state: GateState::Disabled,
            report_due: false,
            packets: 0,
            bytes: 0,
            drops: LegDrops::default(),
            kernel,
        })
    }

    fn close_leg_track(&self, stream: StreamId, leg: LegId, track: TrackId, bye: bool) {
        let Some(cell) = self.stream(stream) else { return };
        let Some(mut out) = cell.borrow_mut().close_leg_track(Instant::now(), leg, track, self) else {
            return;
        };
        if bye {
            let mut compound = Vec::with_capacity(64);
            if out.media.write_bye(&mut compound) {
                out.send_rtcp(&compound, Instant::now());
            }
        }
        match &out.way {
            Way::Udp { rtp, rtcp, .. } => {
                for addr in [rtp.addr(), rtcp.addr()] {
                    self.retract_peer(addr, self.player_peer(stream, leg, track));
                }
            }
            Way::Channels { conn, .. } => {
                conn.unbind(ChannelOwner::leg(stream, leg, track), bye);
                self.forget_unused(conn);
            }
        }
    }

    fn player_peer(&self, stream: StreamId, leg: LegId, track: TrackId) -> PlayerPeer {
        PlayerPeer { worker: self.index, stream, leg, track }
    }

    fn close_leg(&self, stream: StreamId, leg: LegId, bye: bool) {
        let Some(cell) = self.stream(stream) else { return };
        let tracks = cell.borrow().leg_tracks(leg);
        for track in tracks {
            self.close_leg_track(stream, leg, track, bye);
        }
        cell.borrow_mut().close_leg(leg);
    }
}

/// How a leg behaves.
pub(crate) fn leg_config(feedback: bool, interleaved: bool) -> LegConfig {
    LegConfig {
        feedback,
        dedup: interleaved,
        circuit_breaker: !interleaved,
        resume: ResumePolicy::AtKeyFrame(RESUME_WAIT),
    }
}

/// An unpredictable SSRC (RFC 3550 section 8.1).
fn random_u32() -> u32 {
    getrandom::u32().unwrap_or_else(|_| {
        // Without a source of randomness an SSRC may be guessed, not more.
        Instant::now().elapsed().subsec_nanos() ^ std::process::id()
    })
}
