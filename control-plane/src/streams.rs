//! Streams and their rows: runs the upstreams, installs what they want, wakes who waits for them.

use std::sync::Arc;
use std::time::Duration;

use msm_graph::{ConnId, Epoch, MediaKind, Row, RowOp, StreamId, TrackId};
use msm_rtsp::message::Status;
use msm_rtsp::transport::Profile;
use msm_rtsp::url::{SourceUrl, join_control};

use crate::catalog::{Source, Stream};
use crate::conns::Wait;
use crate::description::{Description, speaks_feedback};
use crate::event::{Action, NoteLevel, Now};
use crate::timer::Wake;
use crate::upstream::{BASIC_NOT_ALLOWED, Demand, LOST, UpstreamMedia, UpstreamOutput, in_words};
use crate::{ControlPlane, DIALLED, Operation};

/// One deciding process: there is nobody to fence off.
const EPOCH: Epoch = Epoch(1);

/// A description that somebody wants.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Here it is.
    Ready(Arc<Description>),
    /// The request waits.
    Waiting,
    /// It could not be had a moment ago.
    Failed(Status),
}

impl Stream {
    /// Host and address of the source, which viewers must not see (SDP-9).
    pub(crate) fn hidden(&self) -> Vec<String> {
        match &self.source {
            Source::Pull(upstream) => {
                let address = upstream.last_peer().map(|ip| ip.to_string());
                std::iter::once(upstream.route().host.clone()).chain(address).collect()
            }
            Source::Publish(publication) => vec![publication.peer.to_string()],
        }
    }

    fn row(&self, silence: Duration) -> Row {
        Row {
            stream: self.id,
            name: self.name.clone(),
            tracks: self.tracks.clone(),
            inputs: self.inputs.clone(),
            silence,
        }
    }
}

impl ControlPlane {
    /// The description of a stream for the request of `conn`. `fresh`: only one whose source is there
    /// (RTSP-28); otherwise that of the legs will do, whose source may be away.
    pub(crate) fn want_description(&mut self, now: Now, id: StreamId, conn: ConnId, fresh: bool) -> Wanted {
        let Some(stream) = self.catalog.get_mut(id) else { return Wanted::Failed(Status::NOT_FOUND) };
        let known = stream.description.clone();
        let has_legs = !stream.legs.is_empty();
        let Source::Pull(upstream) = &mut stream.source else {
            return known.map_or(Wanted::Failed(Status::NOT_FOUND), Wanted::Ready);
        };
        if let Some(description) = known
            && (upstream.is_described() || (has_legs && !fresh))
        {
            upstream.touch(now.instant);
            self.run_upstream(now, id);
            return Wanted::Ready(description);
        }
        if let Some(status) = upstream.cached_failure(now.instant) {
            return Wanted::Failed(status);
        }
        stream.waiting.push(conn);
        self.wait(conn, Wait::Description);
        self.update_demand(now, id);
        Wanted::Waiting
    }

    /// A connection does not wait for a description any more.
    pub(crate) fn forget_waiting(&mut self, now: Now, conn: ConnId) {
        // Rare: a client that gave up. Streams that are being opened are few.
        let streams: Vec<StreamId> =
            self.catalog.streams.values().filter(|s| s.waiting.contains(&conn)).map(|s| s.id).collect();
        for id in streams {
            if let Some(stream) = self.catalog.get_mut(id) {
                stream.waiting.retain(|c| *c != conn);
            }
            self.update_demand(now, id);
        }
    }

    /// Tells an upstream who wants it.
    pub(crate) fn update_demand(&mut self, now: Now, id: StreamId) {
        let is_ending = self.ending.is_some();
        let Some(stream) = self.catalog.get_mut(id) else { return };
        let demand =
            Demand { playing: stream.playing > 0, waiting: !stream.waiting.is_empty() && !is_ending };
        if let Some(upstream) = stream.upstream_mut() {
            upstream.set_demand(now.instant, demand);
            self.run_upstream(now, id);
        }
    }

    /// Executes what an upstream wants, until it wants nothing.
    pub(crate) fn run_upstream(&mut self, now: Now, id: StreamId) {
        while let Some(output) = self.upstream_mut(id).and_then(crate::upstream::Upstream::poll_output) {
            match output {
                UpstreamOutput::Dial => self.dial(id),
                UpstreamOutput::Send(conn, request) => {
                    self.actions.push_back(Action::Send { conn, request });
                }
                UpstreamOutput::Close(conn) => {
                    self.upstream_conns.remove(&conn);
                    self.actions.push_back(Action::Close { conn });
                }
                UpstreamOutput::Described { sdp, content_base, content_location } => {
                    self.take_description(
                        now,
                        id,
                        &sdp,
                        content_base.as_deref(),
                        content_location.as_deref(),
                    );
                }
                UpstreamOutput::Install(stage, inputs) => {
                    let silence = self.config.times.silence;
                    let Some(stream) = self.catalog.get_mut(id) else { return };
                    stream.inputs = inputs;
                    stream.active_since = None;
                    stream.has_row = true;
                    let row = stream.row(silence);
                    self.send_row(RowOp::Upsert(EPOCH, row), Operation::Upstream(id, stage));
                }
                UpstreamOutput::Away => self.take_inputs_away(id),
                UpstreamOutput::Failed { status, reason, mut detail, is_news } => {
                    if reason == BASIC_NOT_ALLOWED {
                        detail = self.explain_basic(id);
                    }
                    if let Some(stream) = self.catalog.get_mut(id) {
                        stream.error = Some(in_words(reason, &detail));
                    }
                    if is_news {
                        let separator = if detail.is_empty() { "" } else { ": " };
                        let text = format!("{reason}{separator}{detail}");
                        self.note_stream(id, NoteLevel::Warn, "upstream.failed", &text);
                    }
                    self.fail_waiting(now, id, status);
                }
                UpstreamOutput::Note(event, reason) => {
                    if let (LOST, Some(stream)) = (event, self.catalog.get_mut(id)) {
                        stream.error = Some(in_words(reason, ""));
                    }
                    self.note_stream(id, NoteLevel::Info, event, reason);
                }
                UpstreamOutput::Gone => self.settle(id),
            }
        }
        let Some(stream) = self.catalog.get_mut(id) else { return };
        let Source::Pull(upstream) = &stream.source else { return };
        if let Some(at) = upstream.poll_timeout() {
            self.timers.arm(&mut stream.armed, at, Wake::Upstream(id));
        }
    }

    pub(crate) fn handle_dialled(
        &mut self,
        now: Now,
        conn: ConnId,
        result: Result<(std::net::SocketAddr, std::net::SocketAddr), String>,
    ) {
        let Some(id) = self.upstream_conns.get(&conn).copied() else { return };
        if result.is_err() {
            self.upstream_conns.remove(&conn);
        }
        if let Some(upstream) = self.upstream_mut(id)
            && upstream.conn() == Some(conn)
        {
            let canonical =
                |addr: std::net::SocketAddr| std::net::SocketAddr::new(addr.ip().to_canonical(), addr.port());
            let result = result.map(|(local, peer)| (canonical(local), canonical(peer)));
            upstream.handle_dialled(now.instant, result);
        }
        self.run_upstream(now, id);
    }

    pub(crate) fn handle_response(&mut self, now: Now, conn: ConnId, response: msm_rtsp::message::Response) {
        let Some(id) = self.upstream_conns.get(&conn).copied() else { return };
        if let Some(upstream) = self.upstream_mut(id) {
            upstream.handle_response(now.instant, conn, response);
        }
        self.run_upstream(now, id);
    }

    pub(crate) fn note_stream(&mut self, id: StreamId, level: NoteLevel, event: &'static str, reason: &str) {
        let Some(stream) = self.catalog.get(id) else { return };
        let mut fields = vec![("stream_id", id.to_string()), ("name", stream.name.clone())];
        if !reason.is_empty() {
            fields.push(("reason", reason.to_owned()));
        }
        self.note(level, event, fields);
    }

    /// What an operator can do about a camera that asks for Basic.
    fn explain_basic(&self, id: StreamId) -> String {
        let name = self.catalog.get(id).map_or("NAME", |stream| stream.name.as_str());
        format!(
            "the camera asks for Basic, which sends its password in clear; pass --allow-basic {name} if the network in between is trusted"
        )
    }

    fn dial(&mut self, id: StreamId) {
        self.last_conn += 1;
        let conn = ConnId(DIALLED | self.last_conn);
        let Some(upstream) = self.upstream_mut(id) else { return };
        upstream.set_conn(conn);
        let (host, port) = (upstream.route().host.clone(), upstream.route().port);
        self.upstream_conns.insert(conn, id);
        self.actions.push_back(Action::Dial { conn, host, port, stream: id });
    }

    fn take_description(
        &mut self,
        now: Now,
        id: StreamId,
        sdp: &[u8],
        content_base: Option<&str>,
        content_location: Option<&str>,
    ) {
        let Some(stream) = self.catalog.get(id) else { return };
        let Source::Pull(upstream) = &stream.source else { return };
        let url = SourceUrl::parse(&upstream.route().url);
        let description = Description::parse(sdp).ok().filter(|d| d.usable().next().is_some());
        let (Ok(url), Some(description)) = (url, description) else {
            if let Some(upstream) = self.upstream_mut(id) {
                upstream.reject_description(now.instant);
            }
            return;
        };
        let base = url.control_base(content_base, content_location);
        let aggregate = join_control(&base, description.session_control());
        let media = description
            .usable()
            .map(|track| UpstreamMedia {
                index: track.index,
                url: join_control(&base, track.control.as_deref()),
                profile: if speaks_feedback(track) { Profile::Avpf } else { Profile::Avp },
            })
            .collect();
        self.adopt_description(now, id, description);
        if let Some(upstream) = self.upstream_mut(id) {
            upstream.set_media(now.instant, aggregate, media);
        }
        let waiting = self.catalog.get_mut(id).map(|s| std::mem::take(&mut s.waiting)).unwrap_or_default();
        for conn in waiting {
            self.retry(conn);
        }
        self.update_demand(now, id);
    }

    /// Makes `description` that of the stream. Legs that it cannot feed are ended: their viewers have to
    /// ask again.
    pub(crate) fn adopt_description(&mut self, now: Now, id: StreamId, description: Description) {
        let Some(stream) = self.catalog.get(id) else { return };
        if !stream.is_compatible(&description) {
            let legs: Vec<_> = stream.legs.iter().copied().collect();
            for key in legs {
                self.end_session(now, key, "source_changed", true);
            }
            self.remove_row(id);
        }
        if let Some(stream) = self.catalog.get_mut(id) {
            stream.tracks = description.rows();
            stream.describe(description);
        }
    }

    fn fail_waiting(&mut self, now: Now, id: StreamId, status: Status) {
        let Some(stream) = self.catalog.get_mut(id) else { return };
        let waiting = std::mem::take(&mut stream.waiting);
        let legs: Vec<_> = stream.legs.iter().copied().collect();
        for conn in waiting {
            self.answer_status(conn, status);
        }
        for key in legs {
            self.fail_starting(now, key, status);
        }
    }

    /// Sees to it that the row of a stream exists: legs are attached to it.
    pub(crate) fn ensure_row(&mut self, id: StreamId) {
        let silence = self.config.times.silence;
        let Some(stream) = self.catalog.get_mut(id) else { return };
        if !stream.has_row {
            stream.has_row = true;
            let row = stream.row(silence);
            self.send_row(RowOp::Upsert(EPOCH, row), Operation::Unattended);
        }
    }

    /// Installs the row as it is now.
    pub(crate) fn install_row(&mut self, id: StreamId, operation: Operation) {
        let silence = self.config.times.silence;
        let Some(stream) = self.catalog.get_mut(id) else { return };
        stream.has_row = true;
        let row = stream.row(silence);
        self.send_row(RowOp::Upsert(EPOCH, row), operation);
    }

    fn remove_row(&mut self, id: StreamId) {
        let Some(stream) = self.catalog.get_mut(id) else { return };
        stream.inputs.clear();
        if std::mem::take(&mut stream.has_row) {
            self.send_row(RowOp::Remove(EPOCH, id), Operation::Unattended);
        }
    }

    /// The source is away: its inputs go, the legs stay.
    pub(crate) fn take_inputs_away(&mut self, id: StreamId) {
        let Some(stream) = self.catalog.get_mut(id) else { return };
        stream.active_since = None;
        stream.silent_tracks.clear();
        if stream.inputs.is_empty() {
            return;
        }
        stream.inputs.clear();
        if stream.has_row && !stream.legs.is_empty() {
            self.install_row(id, Operation::Unattended);
        } else {
            self.remove_row(id);
        }
    }

    /// Removes what nobody needs: the row of a stream without source and legs, and a published stream with
    /// it.
    pub(crate) fn settle(&mut self, id: StreamId) {
        let Some(stream) = self.catalog.get_mut(id) else { return };
        if !stream.legs.is_empty() {
            return;
        }
        let is_over = match &stream.source {
            Source::Pull(upstream) => upstream.is_idle(),
            Source::Publish(publication) => publication.conn.is_none() && publication.session.is_none(),
        };
        if !is_over {
            return;
        }
        let is_published = matches!(stream.source, Source::Publish(_));
        stream.description = None;
        stream.tracks.clear();
        stream.active_since = None;
        stream.ever_active = false;
        stream.silent = false;
        self.remove_row(id);
        if is_published {
            self.note_stream(id, NoteLevel::Info, "stream.ended", "");
            self.catalog.remove(id);
        }
    }

    pub(crate) fn observe_active(&mut self, now: Now, id: StreamId) {
        let Some(stream) = self.catalog.get_mut(id) else { return };
        let is_new = stream.active_since.is_none();
        stream.active_since.get_or_insert(now.instant);
        stream.error = None;
        stream.ever_active = true;
        stream.silent = false;
        let publisher = match &mut stream.source {
            Source::Pull(upstream) => {
                upstream.observe_active();
                None
            }
            Source::Publish(publication) => {
                publication.seen = now.instant;
                publication.session
            }
        };
        if let Some(session) = publisher.and_then(|key| self.sessions.get_mut(&key)) {
            session.server.touch(now.instant);
        }
        if is_new {
            self.note_stream(id, NoteLevel::Info, "stream.active", "");
        }
    }

    pub(crate) fn observe_silent(&mut self, now: Now, id: StreamId, silent_for: Duration) {
        let Some(stream) = self.catalog.get_mut(id) else { return };
        stream.active_since = None;
        let is_new = !std::mem::replace(&mut stream.silent, true);
        if let Some(upstream) = stream.upstream_mut() {
            upstream.observe_silent(now.instant, silent_for);
        }
        if is_new {
            self.note_stream(id, NoteLevel::Warn, "stream.silent", "");
        }
        self.run_upstream(now, id);
    }

    /// A track delivers nothing while others do. A picture that never came by UDP may come by TCP (RTSP-15);
    /// nothing else is done about it: cameras switch pictures off, and sound is silent where nobody speaks.
    pub(crate) fn observe_track_silent(
        &mut self,
        now: Now,
        id: StreamId,
        track: TrackId,
        silent_for: Duration,
        ever: bool,
    ) {
        let patience = if ever { self.config.times.silence_reopen } else { self.config.times.silence };
        if silent_for < patience {
            return;
        }
        let Some(stream) = self.catalog.get_mut(id) else { return };
        let Some(row) = stream.tracks.iter().find(|row| row.track == track) else { return };
        let (codec, is_picture) = (row.codec.clone(), row.kind == MediaKind::Video);
        let is_new = stream.silent_tracks.insert(track);
        if is_picture
            && !ever
            && let Some(upstream) = stream.upstream_mut()
        {
            upstream.observe_missing_picture(now.instant);
        }
        if is_new {
            let reason = if ever { "stopped" } else { "never_came" };
            self.note_track(id, NoteLevel::Warn, "track.silent", track, &codec, reason);
        }
        self.run_upstream(now, id);
    }

    pub(crate) fn observe_track_active(&mut self, id: StreamId, track: TrackId) {
        let Some(stream) = self.catalog.get_mut(id) else { return };
        if !stream.silent_tracks.remove(&track) {
            return;
        }
        let row = stream.tracks.iter().find(|row| row.track == track);
        let codec = row.map(|row| row.codec.clone()).unwrap_or_default();
        self.note_track(id, NoteLevel::Info, "track.active", track, &codec, "");
    }

    fn note_track(
        &mut self,
        id: StreamId,
        level: NoteLevel,
        event: &'static str,
        track: TrackId,
        codec: &str,
        reason: &str,
    ) {
        let Some(stream) = self.catalog.get(id) else { return };
        let mut fields = vec![
            ("stream_id", id.to_string()),
            ("name", stream.name.clone()),
            ("track", track.to_string()),
            ("codec", codec.to_owned()),
        ];
        if !reason.is_empty() {
            fields.push(("reason", reason.to_owned()));
        }
        self.note(level, event, fields);
    }
}
