//! Publishers: ANNOUNCE, SETUP `mode=record`, RECORD. A publisher that comes back to
//! its path resumes the stream, whose legs have waited.

use std::time::{Duration, Instant};

use msm_graph::{ConnId, Encap, InputRow, RowState, StreamId, TrackId};
use msm_rtsp::headers::{Range, media_type};
use msm_rtsp::message::{Request, Response, Status};
use msm_rtsp::sdp::SdpError;
use msm_rtsp::server::{Role, Step};
use msm_rtsp::transport::{LowerTransport, PortRange, Profile, TransportSpec};
use msm_rtsp::url::{RequestTarget, ResourceUrl};

use super::{PendingSetup, SessionKey};
use crate::catalog::{Publication, Source, Stream};
use crate::conns::{Ticket, Wait, overload};
use crate::description::Description;
use crate::event::{NoteLevel, Now, OpError};
use crate::quota::Identity;
use crate::timer::Wake;
use crate::{ControlPlane, Operation};

/// Silence after which a publisher gives way to one that may be the same, come back.
const HOLDER_SILENCE: Duration = Duration::from_secs(2);

/// How late a packet's sign of life may be noted: one that came within this time of an ANNOUNCE says
/// nothing about what was sent after it. A worker tells once a second at most, when it looks next.
const SEEN_GRAIN: Duration = Duration::from_millis(1_500);

/// Why a name cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// Not at all.
    With(Status),
    /// Not before it has shown whether its publisher is still there.
    Until(Instant),
}

impl ControlPlane {
    pub(crate) fn announce(
        &mut self,
        now: Now,
        id: ConnId,
        request: &Request,
        target: &RequestTarget,
        session: Option<SessionKey>,
    ) {
        if let Some(session) = session.and_then(|key| self.sessions.get(&key)) {
            let Step::Respond(response) = session.server.wrong_state() else { return };
            return self.answer(id, response);
        }
        let Some(url) = self.resource(id, target) else { return };
        let Some(identity) = self.authorize(now, id, &url.name, request) else { return };
        if self.ending.is_some() {
            return self.answer(id, overload());
        }
        if url.name.is_empty() {
            return self.answer_status(id, Status::NOT_FOUND);
        }
        let content_type = request.headers.get("Content-Type").unwrap_or("application/sdp");
        if !media_type(content_type).eq_ignore_ascii_case("application/sdp") {
            return self.answer_status(id, Status::UNSUPPORTED_MEDIA_TYPE);
        }
        let description = match Description::parse(&request.body) {
            Ok(description) if description.usable().next().is_some() => description,
            Ok(_) => return self.answer_status(id, Status::UNSUPPORTED_MEDIA_TYPE),
            Err(SdpError::TooLong { .. }) => return self.answer_status(id, Status::CONTENT_TOO_LARGE),
            Err(_) => return self.answer_status(id, Status::BAD_REQUEST),
        };
        match self.claim(now, id, url, identity) {
            Ok(()) => {}
            Err(Refused::Until(at)) => return self.wait_until(id, at, Wait::Claim),
            Err(Refused::With(status)) => {
                if status == Status::FORBIDDEN {
                    self.note_peer(id, NoteLevel::Warn, "publish.refused", &url.name);
                }
                return self.answer_status(id, status);
            }
        }
        let Some(stream) = self.catalog.find(&url.name) else { return };
        self.adopt_description(now, stream, description);
        if let Some(stream) = self.catalog.get_mut(stream) {
            stream.generation = stream.generation.wrapping_add(1);
            stream.silent = false;
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.announced = Some(stream);
            let at = now.instant + self.config.times.lease;
            self.timers.arm(&mut conn.announcement_armed, at, Wake::Announcement(id));
        }
        self.note_stream(stream, NoteLevel::Info, "stream.announced", "");
        self.answer_status(id, Status::OK);
    }

    /// Gives the name of `url` to the publisher on this connection, unless another one holds it.
    fn claim(&mut self, now: Now, id: ConnId, url: &ResourceUrl, identity: Identity) -> Result<(), Refused> {
        if self.resolver.resolve(&url.name).is_some() {
            return Err(Refused::With(Status::FORBIDDEN));
        }
        let Some(conn) = self.conns.get(&id) else { return Err(Refused::With(Status::FORBIDDEN)) };
        let (peer, began) = (conn.peer.ip(), conn.began.unwrap_or(now.instant));
        // One connection publishes one stream at a time.
        if let Some(other) = self.conns.get(&id).and_then(|conn| conn.announced) {
            if self.is_recording(other, id) {
                return Err(Refused::With(Status::METHOD_NOT_VALID_IN_THIS_STATE));
            }
            self.abandon_announcement(other, id);
        }
        let publication = Box::new(Publication {
            conn: Some(id),
            session: None,
            base: url.clone(),
            recording: false,
            peer,
            identity,
            seen: now.instant,
            contender: None,
        });
        let Some(stream) = self.catalog.find(&url.name) else {
            if self.catalog.streams.len() >= self.config.limits.published_streams {
                return Err(Refused::With(Status::NOT_ENOUGH_BANDWIDTH));
            }
            let stream_id = self.make_stream_id(now);
            let sdp_id = now.unix.as_secs();
            self.catalog.insert(Stream::new(
                stream_id,
                url.name.clone(),
                Source::Publish(publication),
                sdp_id,
            ));
            return Ok(());
        };
        let Some(known) = self.catalog.get_mut(stream) else { return Err(Refused::With(Status::FORBIDDEN)) };
        let silent = known.silent;
        let Some(old) = known.publication_mut() else { return Err(Refused::With(Status::FORBIDDEN)) };
        let (holder, session) = (old.conn, old.session);
        // One that lost its connection, or sends nothing any more, gives way to the one that is here.
        let is_connected = holder.is_some_and(|conn| self.conns.contains_key(&conn));
        if is_connected && !silent {
            // The same publisher, perhaps, whose old connection has not noticed yet that it is gone.
            let may_be_same = old.peer == peer
                || matches!(publication.identity, Identity::User(_)) && old.identity == publication.identity;
            if !may_be_same || old.seen > began + SEEN_GRAIN {
                return Err(Refused::With(Status::FORBIDDEN));
            }
            let gone_at = old.seen + HOLDER_SILENCE;
            if gone_at > now.instant {
                old.contender = Some(id);
                return Err(Refused::Until(gone_at));
            }
        }
        // A session in its grace holds its leg's place no longer; the stream stays, it is claimed now.
        if let Some(stream) = self.catalog.get_mut(stream) {
            stream.source = Source::Publish(publication);
        }
        if let Some(key) = session {
            self.end_session(now, key, "replaced", true);
        }
        if let Some(old) = holder.and_then(|conn| self.conns.get_mut(&conn)) {
            old.announced = None;
        }
        self.take_inputs_away(stream);
        Ok(())
    }

    fn is_recording(&self, stream: StreamId, conn: ConnId) -> bool {
        self.catalog.get(stream).is_some_and(|stream| match &stream.source {
            Source::Publish(publication) => publication.conn == Some(conn) && publication.session.is_some(),
            Source::Pull(_) => false,
        })
    }

    /// Whether a SETUP's URL belongs to what was announced.
    pub(crate) fn is_published_url(&self, stream: StreamId, url: &ResourceUrl) -> bool {
        let Some(Source::Publish(publication)) = self.catalog.get(stream).map(|s| &s.source) else {
            return false;
        };
        publication.base.is_same_stream(url) || self.published_media(stream, url).is_some()
    }

    /// Which announced media a publisher's URL names.
    pub(crate) fn published_media(&self, stream: StreamId, url: &ResourceUrl) -> Option<usize> {
        let stream = self.catalog.get(stream)?;
        let Source::Publish(publication) = &stream.source else { return None };
        let description = stream.description.as_ref()?;
        // The bare URL is the aggregate, except in SETUP, which asks for the only media then.
        if publication.base.is_same_stream(url) && url.track.is_none() && url == &publication.base {
            return None;
        }
        publication.base.media_index(&description.controls(), url)
    }

    /// SETUP of a publisher: opens an input.
    pub(crate) fn set_up_record(
        &mut self,
        now: Now,
        id: ConnId,
        request: &Request,
        url: &ResourceUrl,
        stream_id: StreamId,
        session: Option<SessionKey>,
    ) {
        let Some(stream) = self.catalog.get(stream_id) else {
            return self.answer_status(id, Status::NOT_FOUND);
        };
        let name = stream.name.clone();
        let Some(identity) = self.authorize(now, id, &name, request) else { return };
        let Some(stream) = self.catalog.get(stream_id) else { return };
        let (Source::Publish(publication), Some(description)) = (&stream.source, stream.description.clone())
        else {
            return self.answer_status(id, Status::NOT_FOUND);
        };
        if publication.conn != Some(id) {
            return self.answer_status(id, Status::SESSION_NOT_FOUND);
        }
        let Some(media) = publication.base.media_index(&description.controls(), url) else {
            return self.answer_status(id, Status::NOT_FOUND);
        };
        if description.track(media).is_none() {
            return self.answer_status(id, Status::UNSUPPORTED_MEDIA_TYPE);
        }
        let Some(offers) = self.offers(id, request) else { return };
        let Some(offer) = self.choose(id, &offers, session) else { return };
        if let Err(excess) = self.quotas.take_setup(now.instant, &identity) {
            return self.refuse(id, excess);
        }
        let announced = description.usable().count();
        let Some(key) = session.or_else(|| {
            self.make_session(now, id, identity, name, stream_id, &offer, Role::Record, announced)
        }) else {
            return;
        };
        if let Some(publication) = self.catalog.get_mut(stream_id).and_then(Stream::publication_mut) {
            publication.session = Some(key);
            publication.seen = now.instant;
        }
        let Some(session) = self.sessions.get_mut(&key) else { return };
        match session.server.handle_request(now.instant, request, Some(media)) {
            Step::SetUp(media) => self.open_input(id, key, media, offer),
            Step::Respond(response) => self.answer(id, response),
            _ => self.answer_status(id, Status::BAD_REQUEST),
        }
    }

    fn open_input(&mut self, id: ConnId, key: SessionKey, media: usize, offer: TransportSpec) {
        let Some(session) = self.sessions.get(&key) else { return };
        let stream_id = session.stream;
        let is_again = session.server.media().contains(&media);
        if !self.count_leg(id, key, is_again) {
            return;
        }
        let (Some(session), Some(conn)) = (self.sessions.get(&key), self.conns.get_mut(&id)) else { return };
        let mut channels = None;
        let encap = if session.server.lower() == LowerTransport::Tcp {
            channels = conn.channels.allocate(offer.interleaved, (key, media));
            channels.and_then(|c| Some(Encap::Interleaved { conn: id, rtp: c.rtp, rtcp: c.rtcp_channel()? }))
        } else {
            offer.client_port.map(|ports| Encap::Udp {
                peer: conn.peer.ip(),
                peer_rtp: Some(ports.rtp),
                peer_rtcp: ports.rtcp_port(),
                local: conn.local.ip(),
            })
        };
        let Some(encap) = encap else {
            self.answer_status(id, Status::NOT_ENOUGH_BANDWIDTH);
            return self.drop_if_empty(key);
        };
        let Some(stream) = self.catalog.get_mut(stream_id) else { return };
        let input = InputRow {
            track: TrackId(media as u8),
            encap,
            ssrc: None,
            feedback: offer.profile().is_some_and(Profile::is_feedback),
            generation: stream.generation,
        };
        stream.inputs.retain(|other| other.track != input.track);
        stream.inputs.push(input);
        stream.inputs.sort_by_key(|input| input.track);
        let ticket = self.ticket(id);
        self.wait(id, Wait::SetUp(PendingSetup { key, media, offer, channels, before: None }));
        self.install_row(stream_id, Operation::Request(ticket));
    }

    /// The result of a row operation that a publisher's SETUP waits for.
    pub(crate) fn complete_row(&mut self, now: Now, ticket: Ticket, result: Result<RowState, OpError>) {
        let Some(Wait::SetUp(pending)) = self.take_wait(ticket) else { return };
        match result {
            Ok(state) => {
                let input = state.inputs.iter().find(|input| usize::from(input.track.0) == pending.media);
                let ports = input.and_then(|i| i.local).map(|p| PortRange::pair(p.rtp, p.rtcp));
                self.answer_setup(ticket.conn, &pending, ports, None);
            }
            Err(error) => {
                self.undo_setup(now, pending);
                self.answer_error(ticket.conn, &error);
            }
        }
    }

    /// Closes the input of one media.
    pub(crate) fn undo_record_setup(&mut self, now: Now, key: SessionKey, media: usize) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let stream_id = session.stream;
        session.legs_counted = session.legs_counted.saturating_sub(1);
        let identity = session.identity.clone();
        if let Some(conn) = session.conn.and_then(|id| self.conns.get_mut(&id)) {
            conn.channels.release(&(key, media));
        }
        self.quotas.release(&identity, 0, 1);
        if let Some(stream) = self.catalog.get_mut(stream_id) {
            stream.inputs.retain(|input| usize::from(input.track.0) != media);
        }
        self.install_row(stream_id, Operation::Unattended);
        if self.sessions.get(&key).is_some_and(|session| session.server.media().is_empty()) {
            self.end_session(now, key, "setup_failed", false);
        }
    }

    pub(crate) fn record(&mut self, now: Now, id: ConnId, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.server.started();
        let stream = session.stream;
        let response = Response::new(Status::OK)
            .with("Session", session.server.header())
            .with("Range", Range::LIVE.to_string());
        if let Some(publication) = self.catalog.get_mut(stream).and_then(Stream::publication_mut) {
            publication.recording = true;
            publication.seen = now.instant;
        }
        self.answer(id, response);
        self.note_stream(stream, NoteLevel::Info, "stream.recording", "");
    }

    /// A publisher left: its inputs go, the stream stays while it has legs. `ended`: its session, if it had
    /// one; another publisher may have claimed the stream meanwhile.
    pub(crate) fn release_publication(&mut self, stream: StreamId, ended: Option<SessionKey>) {
        let Some(publication) = self.catalog.get_mut(stream).and_then(Stream::publication_mut) else {
            return;
        };
        if publication.session != ended {
            return;
        }
        let conn = publication.conn.take();
        let contender = publication.contender.take();
        publication.session = None;
        publication.recording = false;
        if let Some(conn) = conn.and_then(|id| self.conns.get_mut(&id)) {
            conn.announced = None;
        }
        self.take_inputs_away(stream);
        self.settle(stream);
        if let Some(contender) = contender {
            self.retry(contender);
        }
    }

    /// An announcement that led to nothing for as long as a session may hold ports (SEC-5).
    pub(crate) fn handle_announcement_timeout(&mut self, now: Now, id: ConnId) {
        let lease = self.config.times.lease;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.announcement_armed = None;
        let Some(stream) = conn.announced else { return };
        let Some(publication) = self.catalog.get(stream).and_then(Stream::publication) else { return };
        // One with a session looks again later: its SETUP may yet be refused.
        let due = publication.seen + lease;
        if publication.session.is_none() && due <= now.instant {
            self.note_peer(id, NoteLevel::Warn, "publish.abandoned", "");
            return self.abandon_announcement(stream, id);
        }
        let at = due.max(now.instant + SEEN_GRAIN);
        self.timers.arm(&mut conn.announcement_armed, at, Wake::Announcement(id));
    }

    /// The connection that announced is gone, or announces something else: without a session the name is
    /// free again.
    pub(crate) fn abandon_announcement(&mut self, stream: StreamId, id: ConnId) {
        let Some(publication) = self.catalog.get_mut(stream).and_then(Stream::publication_mut) else {
            return;
        };
        if publication.conn == Some(id) && publication.session.is_none() {
            self.release_publication(stream, None);
        }
    }
}
