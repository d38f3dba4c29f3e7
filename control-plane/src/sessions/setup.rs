//! SETUP: what a viewer may have, its session, its leg. Answered when the leg is attached.

use std::net::{IpAddr, SocketAddr};

use msm_graph::{ConnId, LegEncap, LegOp, LegTrack, StreamId, TrackId};
use msm_rtsp::message::{Request, Response, Status};
use msm_rtsp::server::{self, Role, ServerSession, SessionTimes, Step};
use msm_rtsp::transport::{
    ChannelRange, LinkSecurity, LowerPolicy, LowerTransport, PortRange, Profile, TransportPolicy,
    TransportSpec, check_destination, negotiate, parse_transport,
};
use msm_rtsp::url::RequestTarget;

use super::{Farewell, PendingSetup, Session, SessionKey};
use crate::catalog::Stream;
use crate::conns::{Wait, overload};
use crate::event::{NoteLevel, Now};
use crate::quota::{Excess, Identity};
use crate::streams::Wanted;
use crate::timer::Wake;
use crate::{ControlPlane, Operation};

impl ControlPlane {
    /// SETUP of a viewer, or of a publisher whose ANNOUNCE came on this connection (RTSP-26).
    pub(crate) fn set_up(
        &mut self,
        now: Now,
        id: ConnId,
        request: &Request,
        target: &RequestTarget,
        session: Option<SessionKey>,
    ) {
        let Some(url) = self.resource(id, target) else { return };
        let announced = self.conns.get(&id).and_then(|conn| conn.announced);
        let publishes = match session.and_then(|key| self.sessions.get(&key)) {
            Some(session) => (session.server.role() == Role::Record).then_some(session.stream),
            None => announced.filter(|stream| self.is_published_url(*stream, url)),
        };
        if let Some(stream) = publishes {
            return self.set_up_record(now, id, request, url, stream, session);
        }
        let Some(identity) = self.authorize(now, id, &url.name, request) else { return };
        if self.ending.is_some() && session.is_none() {
            return self.answer(id, overload());
        }
        let Some(offers) = self.offers(id, request) else { return };
        let Some(stream) = self.find_stream(now, &url.name) else {
            return self.answer_status(id, Status::NOT_FOUND);
        };
        if let Some(session) = session.and_then(|key| self.sessions.get(&key))
            && (session.stream != stream || session.identity != identity)
        {
            return self.answer_status(id, Status::AGGREGATE_NOT_ALLOWED);
        }
        if let Some(key) = session {
            self.touch_session(now, key, id);
        }
        let description = match self.want_description(now, stream, id, false) {
            Wanted::Waiting => return,
            Wanted::Failed(status) => return self.answer_status(id, status),
            Wanted::Ready(description) => description,
        };
        // The aggregate URL will do where there is one media (RTSP-30).
        let mut usable = description.usable();
        let only = usable.next().filter(|_| usable.next().is_none()).map(|track| track.index);
        let Some(media) = url.track.or(only) else {
            return self.answer_status(id, Status::AGGREGATE_NOT_ALLOWED);
        };
        if description.track(media).is_none() {
            return self.answer_status(id, Status::NOT_FOUND);
        }
        let Some(offer) = self.choose(id, &offers, session) else { return };
        if let Err(excess) = self.quotas.take_setup(now.instant, &identity) {
            return self.refuse(id, excess);
        }
        // RECORD mode without an ANNOUNCE on this connection.
        if offer.is_record() {
            return self.answer_status(id, Status::METHOD_NOT_VALID_IN_THIS_STATE);
        }
        let Some(key) = session.or_else(|| {
            self.make_session(now, id, identity, url.name.clone(), stream, &offer, Role::Play, 0)
        }) else {
            return;
        };
        let local = self.conns.get(&id).map(|conn| conn.local);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let url = match local {
            Some(local) if request.uri.starts_with('/') => format!("rtsp://{local}{}", request.uri),
            _ => request.uri.clone(),
        };
        session.note_url(media, url);
        match session.server.handle_request(now.instant, request, Some(media)) {
            Step::SetUp(media) => self.attach(id, key, media, offer),
            Step::Respond(response) => self.answer(id, response),
            _ => self.answer_status(id, Status::BAD_REQUEST),
        }
    }

    /// The transports that a SETUP offers; a bad header is answered.
    pub(super) fn offers(&mut self, id: ConnId, request: &Request) -> Option<Vec<TransportSpec>> {
        let mut values = request.headers.get_all("Transport");
        let Some(first) = values.next() else {
            drop(values);
            self.answer_status(id, Status::UNSUPPORTED_TRANSPORT);
            return None;
        };
        let joined = values.fold(first.to_owned(), |all, value| format!("{all},{value}"));
        let offers = parse_transport(&joined).ok();
        if offers.is_none() {
            self.answer_status(id, Status::BAD_REQUEST);
        }
        offers
    }

    /// The transport to answer with; a refusal is answered.
    pub(super) fn choose(
        &mut self,
        id: ConnId,
        offers: &[TransportSpec],
        session: Option<SessionKey>,
    ) -> Option<TransportSpec> {
        // One lower transport per session (RTSP-19).
        let lower = match session.and_then(|key| self.sessions.get(&key)).map(|s| s.server.lower()) {
            // Datagrams to a link-local address need its interface, which no leg or input carries.
            None if self.conns.get(&id).is_some_and(|conn| is_link_local(conn.peer.ip())) => {
                LowerPolicy::TcpOnly
            }
            None => LowerPolicy::Any,
            Some(LowerTransport::Udp) => LowerPolicy::UdpOnly,
            Some(LowerTransport::Tcp) => LowerPolicy::TcpOnly,
        };
        let policy = TransportPolicy { lower, link: LinkSecurity::Clear };
        let Ok(offer) = negotiate(offers, policy) else {
            self.answer_status(id, Status::UNSUPPORTED_TRANSPORT);
            return None;
        };
        let peer = self.conns.get(&id)?.peer.ip();
        if check_destination(offer, peer).is_err() {
            self.note_peer(id, NoteLevel::Warn, "destination.prohibited", "");
            self.answer_status(id, Status::FORBIDDEN);
            return None;
        }
        Some(offer.clone())
    }

    pub(super) fn refuse(&mut self, id: ConnId, excess: Excess) {
        self.note_peer(id, NoteLevel::Warn, excess.as_str(), "");
        match excess {
            Excess::Rate => self.answer(id, overload()),
            Excess::Sessions | Excess::Legs => self.answer_status(id, Status::NOT_ENOUGH_BANDWIDTH),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of a session, each of which one caller knows")]
    pub(super) fn make_session(
        &mut self,
        now: Now,
        id: ConnId,
        identity: Identity,
        name: String,
        stream: StreamId,
        offer: &TransportSpec,
        role: Role,
        announced: usize,
    ) -> Option<SessionKey> {
        if let Err(excess) = self.quotas.add_session(&identity) {
            self.refuse(id, excess);
            return None;
        }
        let times = SessionTimes {
            advertised: self.config.times.session_advertised,
            enforced: self.config.times.session_enforced,
            lease: self.config.times.lease,
        };
        let session_id = server::make_session_id(self.random());
        let leg = self.make_leg_id(now);
        self.last_session += 1;
        let key = SessionKey(self.last_session);
        let conn = self.conns.get(&id)?;
        let lower = offer.lower().unwrap_or(LowerTransport::Udp);
        let warm = self.catalog.get(stream).is_some_and(|stream| stream.active_since.is_some());
        let server = ServerSession::new(now.instant, session_id.clone(), role, lower, announced, times);
        let mut session = Session {
            peer: conn.peer,
            local: conn.local.ip(),
            server,
            conn: Some(id),
            identity,
            stream,
            name,
            leg,
            tracks: Vec::new(),
            urls: Vec::new(),
            warm,
            attached: false,
            counted: false,
            starting: false,
            legs_counted: 0,
            lost_at: None,
            began: now.instant,
            armed: None,
        };
        self.timers.arm(&mut session.armed, session.server.expires_at(), Wake::Session(key));
        self.sessions.insert(key, Box::new(session));
        self.session_ids.insert(session_id, key);
        if role == Role::Play {
            self.session_legs.insert(leg, key);
            if let Some(stream) = self.catalog.get_mut(stream) {
                stream.legs.insert(key);
            }
        }
        self.bind_conn(key, id);
        Some(key)
    }

    /// Counts one more leg of a session, unless it is the same media again.
    pub(super) fn count_leg(&mut self, id: ConnId, key: SessionKey, is_again: bool) -> bool {
        if is_again {
            return true;
        }
        let Some(session) = self.sessions.get_mut(&key) else { return false };
        if let Err(excess) = self.quotas.add_leg(&session.identity) {
            self.refuse(id, excess);
            self.drop_if_empty(key);
            return false;
        }
        session.legs_counted += 1;
        true
    }

    /// A session whose first SETUP failed was none.
    pub(super) fn drop_if_empty(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(&key) else { return };
        if !session.server.media().is_empty() {
            return;
        }
        let Some(session) = self.forget_session(key) else { return };
        if let Some(publication) = self.catalog.get_mut(session.stream).and_then(Stream::publication_mut)
            && publication.session == Some(key)
        {
            publication.session = None;
        }
        self.settle(session.stream);
    }

    fn attach(&mut self, id: ConnId, key: SessionKey, media: usize, offer: TransportSpec) {
        let Some(session) = self.sessions.get(&key) else { return };
        let is_again = session.tracks.iter().any(|t| usize::from(t.track.0) == media);
        if !self.count_leg(id, key, is_again) {
            return;
        }
        let (Some(session), Some(conn)) = (self.sessions.get_mut(&key), self.conns.get_mut(&id)) else {
            return;
        };
        let mut channels = None;
        let encap = if session.server.lower() == LowerTransport::Tcp {
            channels = conn.channels.allocate(offer.interleaved, (key, media));
            channels
                .and_then(|c| Some(LegEncap::Interleaved { conn: id, rtp: c.rtp, rtcp: c.rtcp_channel()? }))
        } else {
            // Always the RTSP peer's own address (SEC-1).
            offer.client_port.and_then(|ports| {
                let peer = conn.peer.ip();
                let rtcp = SocketAddr::new(peer, ports.rtcp_port()?);
                Some(LegEncap::Udp { rtp: SocketAddr::new(peer, ports.rtp), rtcp, local: conn.local.ip() })
            })
        };
        let Some(encap) = encap else {
            if let Some(before) = session.tracks.iter().find(|t| usize::from(t.track.0) == media).cloned() {
                self.restore_channels(key, &before);
            } else {
                self.uncount_leg(key);
            }
            self.answer_status(id, Status::NOT_ENOUGH_BANDWIDTH);
            return self.drop_if_empty(key);
        };
        let feedback = offer.profile().is_some_and(Profile::is_feedback);
        let track = LegTrack { track: TrackId(media as u8), encap, feedback };
        let before = session.tracks.iter().find(|t| t.track == track.track).cloned();
        session.tracks.retain(|t| t.track != track.track);
        session.add_track(track);
        session.attached = true;
        let (spec, stream) = (session.spec(), session.stream);
        self.ensure_row(stream);
        let ticket = self.ticket(id);
        self.wait(id, Wait::SetUp(PendingSetup { key, media, offer, channels, before }));
        self.send_leg(LegOp::Attach(spec), Operation::Request(ticket));
    }

    /// The opposite of [`Self::count_leg`].
    fn uncount_leg(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.legs_counted = session.legs_counted.saturating_sub(1);
        self.quotas.release(&session.identity, 0, 1);
    }

    fn release_channels(&mut self, key: SessionKey, track: &LegTrack) {
        if let LegEncap::Interleaved { conn, .. } = track.encap
            && let Some(conn) = self.conns.get_mut(&conn)
        {
            conn.channels.release(&(key, usize::from(track.track.0)));
        }
    }

    /// A media has the channels again that another SETUP was to replace (RTSP-19). They are free: requests of a
    /// connection are handled one after the other.
    fn restore_channels(&mut self, key: SessionKey, track: &LegTrack) {
        if let LegEncap::Interleaved { conn, rtp, rtcp } = track.encap
            && let Some(conn) = self.conns.get_mut(&conn)
        {
            conn.channels.bind(ChannelRange::pair(rtp, rtcp), (key, usize::from(track.track.0)));
        }
    }

    /// Has the packet path do what the session is, whatever became of an operation that it did not answer.
    pub(crate) fn resend_leg(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(&key).filter(|session| session.attached) else { return };
        if session.server.role() == Role::Play {
            let spec = session.spec();
            self.send_leg(LegOp::Attach(spec), Operation::Unattended);
        }
    }

    /// Takes back a SETUP that the packet path refused, or did not acknowledge in time.
    pub(crate) fn undo_setup(&mut self, now: Now, pending: PendingSetup) {
        let PendingSetup { key, media, before, .. } = pending;
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.server.role() == Role::Record {
            return self.undo_record_setup(now, key, media);
        }
        let failed = session.tracks.iter().position(|t| usize::from(t.track.0) == media);
        let failed = failed.map(|index| session.tracks.remove(index));
        session.tracks.extend(before.clone());
        session.tracks.sort_by_key(|t| t.track);
        if let Some(failed) = failed {
            self.release_channels(key, &failed);
        }
        match before {
            Some(before) => self.restore_channels(key, &before),
            None => self.uncount_leg(key),
        }
        let is_empty = self.sessions.get(&key).is_some_and(|session| session.server.media().is_empty());
        if is_empty {
            self.finish_session(now, key, "setup_failed", Farewell::Silent);
        }
    }

    pub(super) fn answer_setup(
        &mut self,
        id: ConnId,
        pending: &PendingSetup,
        ports: Option<PortRange>,
        ssrc: Option<u32>,
    ) {
        let Some(session) = self.sessions.get_mut(&pending.key) else {
            return self.answer_status(id, Status::SESSION_NOT_FOUND);
        };
        let transport = match (pending.channels, ports) {
            (Some(channels), _) => pending.offer.tcp_answer(channels, ssrc),
            (None, Some(ports)) => pending.offer.udp_answer(ports, session.local, ssrc),
            (None, None) => return self.answer(id, overload()),
        };
        let is_first = session.server.media().is_empty();
        session.server.set_up(pending.media);
        let response = Response::new(Status::OK)
            .with("Session", session.server.header())
            .with("Transport", transport.to_string());
        self.answer(id, response);
        if is_first {
            self.note_session(pending.key, NoteLevel::Info, "leg.attached", "");
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
