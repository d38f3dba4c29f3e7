//! RTSP sessions: drives `msm_rtsp::server`, turns its steps into row and leg operations, and answers
//! when they are acknowledged: SETUP after the leg is attached, PLAY after its gate is armed.
//!
//! `sessions/setup.rs` makes them, `sessions/finish.rs` ends them, `sessions/publish.rs` is the half of
//! publishers.

mod finish;
pub(crate) mod inventory;
mod publish;
mod setup;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use msm_graph::{ConnId, LegEncap, LegId, LegOp, LegSpec, LegStart, LegState, LegTrack, StreamId};
use msm_rtsp::headers::{Range, RtpInfo};
use msm_rtsp::message::{Method, Request, Response, Status};
use msm_rtsp::server::{Role, ServerSession, State, Step};
use msm_rtsp::transport::{ChannelRange, LowerTransport, PortRange, TransportSpec};
use msm_rtsp::url::RequestTarget;

use crate::catalog::Source;
use crate::conns::{Ticket, Wait, overload};
use crate::event::{Action, NoteLevel, Now, OpError};
use crate::quota::Identity;
use crate::{ControlPlane, Operation};

/// How much of our reply time a gate may wait for a first packet.
const GATE_SHARE: f32 = 0.9;

/// The same where packets have been flowing, and where the source is known to be away: the answer then
/// goes without RTP-Info, the gate stays armed (RTSP-31).
const GATE_WAIT_KNOWN: Duration = Duration::from_millis(1000);

/// Names a session inside the process; never leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionKey(pub(crate) u64);

/// One RTSP session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) server: ServerSession,
    pub(crate) conn: Option<ConnId>,
    pub(crate) peer: SocketAddr,
    local: IpAddr,
    identity: Identity,
    pub(crate) stream: StreamId,
    /// Name that its viewer uses.
    name: String,
    /// Of a viewer's; a publisher's stands for its place in the status only.
    pub(crate) leg: LegId,
    tracks: Vec<LegTrack>,
    /// URL of each media as its viewer wrote it in SETUP: what it looks for in `RTP-Info` (RTSP-31).
    urls: Vec<(usize, String)>,
    /// Whether media flowed when the session began.
    warm: bool,
    /// Whether a leg was ever asked for.
    attached: bool,
    /// Whether it is one of the stream's `playing`.
    counted: bool,
    /// Whether its PLAY waits for the gate.
    starting: bool,
    legs_counted: u32,
    lost_at: Option<Instant>,
    began: Instant,
    armed: Option<Instant>,
}

/// A SETUP that waits for the packet path.
#[derive(Debug)]
pub(crate) struct PendingSetup {
    key: SessionKey,
    media: usize,
    offer: TransportSpec,
    channels: Option<ChannelRange>,
    /// What to put back if it fails: the track as it was.
    before: Option<LegTrack>,
}

impl PendingSetup {
    pub(crate) fn session(&self) -> SessionKey {
        self.key
    }
}

/// What follows the end of a leg.
#[derive(Debug, Clone, Copy)]
enum Farewell {
    /// Nothing: its viewer is gone.
    Silent,
    /// BYE, then the connection is closed (RTP-24).
    Bye,
    /// The answer to TEARDOWN.
    Answer(Ticket),
}

impl ControlPlane {
    /// The session of this id, if the connection may use it: interleaved ones live and die with theirs
    /// (RTSP-21), and nobody uses another's (RTSP-20).
    pub(crate) fn find_session(&self, conn: ConnId, id: &str) -> Option<SessionKey> {
        let key = *self.session_ids.get(id)?;
        let session = self.sessions.get(&key)?;
        let is_own = session.conn == Some(conn);
        let peer = self.conns.get(&conn)?.peer.ip();
        let may_move = session.server.lower() == LowerTransport::Udp && session.peer.ip() == peer;
        (is_own || may_move).then_some(key)
    }

    /// Whether a session lives on this connection.
    pub(crate) fn is_session_of(&self, key: SessionKey, conn: ConnId) -> bool {
        self.sessions.get(&key).is_some_and(|session| session.conn == Some(conn))
    }

    /// Whether anybody may use the name of a session.
    pub(crate) fn is_open_session(&self, key: SessionKey) -> bool {
        self.sessions.get(&key).is_some_and(|session| self.access.is_open(&session.name))
    }

    /// A request of the session: it lives, and on this connection.
    pub(crate) fn touch_session(&mut self, now: Now, key: SessionKey, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.server.touch(now.instant);
        if session.conn.is_none() {
            session.conn = Some(conn);
            session.lost_at = None;
            self.bind_conn(key, conn);
        }
    }

    fn bind_conn(&mut self, key: SessionKey, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.sessions.is_empty() {
            self.actions.push_back(Action::Session { conn: id, exists: true });
        }
        conn.sessions.insert(key);
    }

    /// PLAY, PAUSE, RECORD, TEARDOWN and the keepalives of a session.
    pub(crate) fn handle_session_request(
        &mut self,
        now: Now,
        id: ConnId,
        request: &Request,
        target: &RequestTarget,
        key: SessionKey,
    ) {
        let Some(session) = self.sessions.get(&key) else { return };
        let is_harmless = matches!(
            request.method,
            Method::Pause | Method::Teardown | Method::GetParameter | Method::SetParameter
        );
        // Who sends on the session's own connection has shown its credentials there; keepalives would
        // otherwise die with the nonce, since players do not look at their answers.
        if !(is_harmless && session.conn == Some(id)) {
            let name = session.name.clone();
            let Some(identity) = self.authorize(now, id, &name, request) else { return };
            if self.sessions.get(&key).is_some_and(|session| session.identity != identity) {
                return self.answer_status(id, Status::SESSION_NOT_FOUND);
            }
            self.touch_session(now, key, id);
        }
        let media = match self.media_of(key, target) {
            Ok(media) => media,
            Err(status) => return self.answer_status(id, status),
        };
        let Some(session) = self.sessions.get_mut(&key) else { return };
        match session.server.handle_request(now.instant, request, media) {
            Step::Respond(response) => {
                let response = response.with("Session", session.server.header());
                self.answer(id, response);
            }
            Step::Start => self.play(now, id, key),
            Step::Record => self.record(now, id, key),
            Step::Stop => self.pause(now, id, key),
            Step::Remove(media) => self.remove_media(now, id, key, media),
            Step::End => {
                let ticket = self.ticket(id);
                self.wait(id, Wait::End);
                self.finish_session(now, key, "teardown", Farewell::Answer(ticket));
            }
            // SETUP has its own way here.
            Step::SetUp(_) => self.answer_status(id, Status::BAD_REQUEST),
        }
    }

    /// Which media of its session a URL names.
    fn media_of(&self, key: SessionKey, target: &RequestTarget) -> Result<Option<usize>, Status> {
        let Some(session) = self.sessions.get(&key) else { return Err(Status::SESSION_NOT_FOUND) };
        let RequestTarget::Resource(url) = target else { return Ok(None) };
        match session.server.role() {
            Role::Play if url.name == session.name => Ok(url.track),
            Role::Play => Err(Status::SESSION_NOT_FOUND),
            Role::Record => Ok(self.published_media(session.stream, url)),
        }
    }

    fn play(&mut self, now: Now, id: ConnId, key: SessionKey) {
        let reply = self.config.times.reply;
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.starting = session.server.state() != State::Playing;
        let newly = !std::mem::replace(&mut session.counted, true);
        let (leg, stream_id) = (session.leg, session.stream);
        let Some(stream) = self.catalog.get_mut(stream_id) else { return };
        if newly {
            stream.playing += 1;
        }
        let is_flowing = stream.active_since.is_some_and(|since| now.instant - since > GATE_WAIT_KNOWN);
        let is_away = match &stream.source {
            Source::Pull(_) => stream.silent && stream.ever_active,
            Source::Publish(publication) => !publication.recording,
        };
        let wait = if is_flowing || is_away { GATE_WAIT_KNOWN.min(reply) } else { reply.mul_f32(GATE_SHARE) };
        let ticket = self.ticket(id);
        self.wait(id, Wait::Play(key, now.instant + wait));
        // Armed before the camera is asked to play, so that no viewer misses its first picture.
        let op = LegOp::Arm { leg, wait_millis: wait.as_millis() as u32 };
        self.send_leg(op, Operation::Request(ticket));
        self.update_demand(now, stream_id);
    }

    fn pause(&mut self, now: Now, id: ConnId, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.server.role() == Role::Record {
            session.server.stopped();
            let response = Response::new(Status::OK).with("Session", session.server.header());
            return self.answer(id, response);
        }
        let leg = session.leg;
        let ticket = self.ticket(id);
        self.wait(id, Wait::Pause(key));
        self.send_leg(LegOp::Pause { leg }, Operation::Request(ticket));
        self.stop_counting(now, key);
    }

    /// A session does not want media any more.
    fn stop_counting(&mut self, now: Now, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.server.stopped();
        session.starting = false;
        let stream = session.stream;
        if std::mem::take(&mut session.counted)
            && let Some(stream) = self.catalog.get_mut(stream)
        {
            stream.playing = stream.playing.saturating_sub(1);
        }
        self.update_demand(now, stream);
    }

    fn remove_media(&mut self, now: Now, id: ConnId, key: SessionKey, media: usize) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.server.role() == Role::Record {
            session.server.removed(media);
            let response = Response::new(Status::OK).with("Session", session.server.header());
            self.undo_record_setup(now, key, media);
            return self.answer(id, response);
        }
        session.tracks.retain(|t| usize::from(t.track.0) != media);
        let spec = session.spec();
        let ticket = self.ticket(id);
        self.wait(id, Wait::Remove(key, media));
        self.send_leg(LegOp::Attach(spec), Operation::Request(ticket));
    }

    /// The result of a leg operation that a request waits for.
    pub(crate) fn complete_leg(&mut self, now: Now, ticket: Ticket, result: Result<LegState, OpError>) {
        let id = ticket.conn;
        match (self.take_wait(ticket), result) {
            (Some(Wait::SetUp(pending)), Ok(LegState::Attached(tracks))) => {
                let state = tracks.iter().find(|t| usize::from(t.track.0) == pending.media);
                let ports = state.and_then(|t| t.local).map(|p| PortRange::pair(p.rtp, p.rtcp));
                let ssrc = state.and_then(|t| t.ssrc);
                self.answer_setup(id, &pending, ports, ssrc);
            }
            (Some(Wait::SetUp(pending)), Err(error)) => {
                self.undo_setup(now, pending);
                self.answer_error(id, &error);
            }
            (Some(Wait::Play(key, _)), Ok(LegState::Armed(starts))) => {
                self.answer_play(now, id, key, &starts);
            }
            (Some(Wait::Play(key, _)), Err(error)) => {
                self.stop_counting(now, key);
                self.answer_error(id, &error);
            }
            (Some(Wait::Pause(key)), result) => self.answer_in_session(id, key, result.err()),
            (Some(Wait::Remove(key, media)), result) => {
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.server.removed(media);
                    session.legs_counted = session.legs_counted.saturating_sub(1);
                    let identity = session.identity.clone();
                    self.quotas.release(&identity, 0, 1);
                }
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.channels.release(&(key, media));
                }
                self.answer_in_session(id, key, result.err());
            }
            (Some(Wait::End), _) => self.answer_status(id, Status::OK),
            (Some(_), _) => self.answer(id, overload()),
            // Its request was given up; the operation stands, and the end of the session undoes it.
            (None, _) => {}
        }
    }

    fn answer_error(&mut self, id: ConnId, error: &OpError) {
        match error {
            OpError::Exhausted(_) => self.answer_status(id, Status::NOT_ENOUGH_BANDWIDTH),
            OpError::NotFound(_) | OpError::StaleEpoch | OpError::Io(_) => self.answer(id, overload()),
        }
        let reason = format!("{error:?}");
        self.note(NoteLevel::Warn, "leg.failed", vec![("reason", reason)]);
    }

    fn answer_in_session(&mut self, id: ConnId, key: SessionKey, error: Option<OpError>) {
        if let Some(error) = error {
            return self.answer_error(id, &error);
        }
        let response = Response::new(Status::OK);
        let response = match self.sessions.get(&key) {
            Some(session) => response.with("Session", session.server.header()),
            None => response,
        };
        self.answer(id, response);
    }

    fn answer_play(&mut self, now: Now, id: ConnId, key: SessionKey, starts: &[LegStart]) {
        let Some(session) = self.sessions.get(&key) else {
            return self.answer_status(id, Status::SESSION_NOT_FOUND);
        };
        let stream = self.catalog.get(session.stream);
        let never_opened = stream.is_some_and(|stream| match &stream.source {
            Source::Pull(upstream) => !stream.ever_active && !upstream.is_playing(),
            Source::Publish(_) => false,
        });
        if starts.is_empty() && never_opened && session.starting {
            return self.fail_play(now, key, id, Status::GATEWAY_TIMEOUT);
        }
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.starting = false;
        session.server.started();
        // A media whose state is not known is left out (RTSP-31).
        let info: Vec<RtpInfo> = session
            .tracks
            .iter()
            .filter_map(|track| {
                let start = starts.iter().find(|start| start.track == track.track)?;
                let media = usize::from(track.track.0);
                let (_, url) = session.urls.iter().find(|(known, _)| *known == media)?;
                Some(RtpInfo { url: url.clone(), seq: Some(start.seq), rtptime: Some(start.rtptime) })
            })
            .collect();
        let mut response = Response::new(Status::OK)
            .with("Session", session.server.header())
            .with("Range", Range::LIVE.to_string());
        if let Some(info) = RtpInfo::format_list(&info) {
            response = response.with("RTP-Info", info);
        }
        // Both of each track: sender reports wait behind the answer like the media (RTSP-44).
        let mut channels = Vec::new();
        for track in &session.tracks {
            if let LegEncap::Interleaved { rtp, rtcp, .. } = track.encap {
                channels.extend([rtp, rtcp]);
            }
        }
        let join = now.instant.saturating_duration_since(session.began).as_millis().to_string();
        self.answer(id, response);
        if !channels.is_empty() {
            self.actions.push_back(Action::ReleaseMedia { conn: id, channels });
        }
        self.note_session(key, NoteLevel::Info, "leg.playing", &join);
    }

    /// PLAY cannot succeed: the leg goes back to where it was.
    pub(crate) fn fail_play(&mut self, now: Now, key: SessionKey, id: ConnId, status: Status) {
        if let Some(session) = self.sessions.get(&key) {
            let leg = session.leg;
            self.send_leg(LegOp::Pause { leg }, Operation::Unattended);
        }
        self.stop_counting(now, key);
        self.answer_status(id, status);
    }

    /// The upstream failed: a PLAY that waits for it fails; who plays already stays.
    pub(crate) fn fail_starting(&mut self, now: Now, key: SessionKey, status: Status) {
        let Some(session) = self.sessions.get(&key).filter(|session| session.starting) else { return };
        let Some(id) = session.conn else { return };
        let is_waiting = self
            .conns
            .get(&id)
            .and_then(|conn| conn.busy.as_ref())
            .is_some_and(|busy| matches!(busy.wait, Wait::Play(waiting, _) if waiting == key));
        if is_waiting {
            self.fail_play(now, key, id, status);
        }
    }

    /// Logs about a session, with the first characters of its id only.
    fn note_session(&mut self, key: SessionKey, level: NoteLevel, event: &'static str, detail: &str) {
        let Some(session) = self.sessions.get(&key) else { return };
        let event = match (session.server.role(), event) {
            (Role::Record, "leg.attached") => "publish.started",
            (Role::Record, "leg.closed") => "publish.ended",
            (_, event) => event,
        };
        let mut fields = vec![
            ("session_id", session.server.short_id().to_owned()),
            ("stream_id", session.stream.to_string()),
            ("name", session.name.clone()),
            ("peer", session.peer.to_string()),
        ];
        match event {
            "leg.closed" | "publish.ended" => fields.push(("reason", detail.to_owned())),
            "leg.playing" => {
                fields.push(("join_millis", detail.to_owned()));
                fields.push(("warm", session.warm.to_string()));
            }
            _ => {}
        }
        self.note(level, event, fields);
    }
}

impl Session {
    #[cfg(test)]
    pub(crate) fn leg_is_attached(&self) -> bool {
        self.attached
    }

    /// How its viewer wrote the URL of a media. Mostly there is one media, or two: room for no more.
    fn note_url(&mut self, media: usize, url: String) {
        if let Some((_, known)) = self.urls.iter_mut().find(|(known, _)| *known == media) {
            *known = url;
        } else {
            self.urls.reserve_exact(1);
            self.urls.push((media, url));
        }
    }

    /// Sets a track that was not there.
    fn add_track(&mut self, track: LegTrack) {
        self.tracks.reserve_exact(1);
        self.tracks.push(track);
        self.tracks.sort_by_key(|track| track.track);
    }

    /// The leg as it should be.
    fn spec(&self) -> LegSpec {
        LegSpec {
            leg: self.leg,
            stream: self.stream,
            session: self.server.short_id().to_owned(),
            peer: self.peer,
            tracks: self.tracks.clone(),
        }
    }
}
