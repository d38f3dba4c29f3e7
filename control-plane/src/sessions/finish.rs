//! How sessions end: by TEARDOWN, with their connection, without a sign of life, with their leg, with us.

use msm_graph::{ConnId, LegOp};
use msm_rtsp::message::Status;
use msm_rtsp::server::Role;
use msm_rtsp::transport::LowerTransport;

use super::{Farewell, Session, SessionKey};
use crate::event::{Action, NoteLevel, Now};
use crate::timer::Wake;
use crate::{ControlPlane, Operation};

impl ControlPlane {
    /// The connection of a session is gone (RTSP-21).
    pub(crate) fn lose_conn(&mut self, now: Now, key: SessionKey, id: ConnId) {
        let grace = self.config.times.grace;
        let Some(session) = self.sessions.get_mut(&key).filter(|s| s.conn == Some(id)) else { return };
        session.conn = None;
        if session.server.lower() == LowerTransport::Tcp || session.server.media().is_empty() {
            return self.finish_session(now, key, "connection_lost", Farewell::Silent);
        }
        if session.starting {
            self.stop_counting(now, key);
            let Some(session) = self.sessions.get(&key) else { return };
            let leg = session.leg;
            self.send_leg(LegOp::Pause { leg }, Operation::Unattended);
        }
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.lost_at = Some(now.instant);
        if session.server.role() == Role::Record
            && let Some(stream) = self.catalog.get_mut(session.stream)
        {
            // Packets that still come will say so.
            stream.active_since = None;
        }
        self.timers.arm(&mut session.armed, now.instant + grace, Wake::Session(key));
    }

    pub(crate) fn handle_session_timeout(&mut self, now: Now, key: SessionKey) {
        let grace = self.config.times.grace;
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.armed = None;
        let expires = session.server.expires_at();
        let at = session.lost_at.map_or(expires, |lost| expires.min(lost + grace));
        if at > now.instant {
            return self.timers.arm(&mut session.armed, at, Wake::Session(key));
        }
        let reason = if session.lost_at.is_some() { "connection_lost" } else { "timeout" };
        self.end_session(now, key, reason, true);
    }

    /// Ends a session of our own accord. `bye`: its viewer hears of it (RTP-24).
    pub(crate) fn end_session(&mut self, now: Now, key: SessionKey, reason: &str, bye: bool) {
        self.finish_session(now, key, reason, if bye { Farewell::Bye } else { Farewell::Silent });
    }

    pub(super) fn finish_session(&mut self, now: Now, key: SessionKey, reason: &str, farewell: Farewell) {
        self.note_session(key, NoteLevel::Info, "leg.closed", reason);
        let Some(session) = self.forget_session(key) else { return };
        let has_others =
            session.conn.and_then(|id| self.conns.get(&id)).is_some_and(|conn| !conn.sessions.is_empty());
        let to_close = session.conn.filter(|_| matches!(farewell, Farewell::Bye) && !has_others);
        if session.server.role() == Role::Record || !session.attached {
            match (farewell, to_close) {
                (Farewell::Answer(ticket), _) => self.answer_status(ticket.conn, Status::OK),
                (Farewell::Bye, Some(conn)) => self.close_conn(conn),
                _ => {}
            }
        } else {
            let bye = matches!(farewell, Farewell::Bye);
            let operation = match farewell {
                Farewell::Answer(ticket) => Operation::Request(ticket),
                Farewell::Bye => {
                    if let Some(ending) = &mut self.ending {
                        ending.goodbyes += 1;
                    }
                    Operation::Goodbye(to_close)
                }
                Farewell::Silent => Operation::Unattended,
            };
            self.send_leg(LegOp::Detach { leg: session.leg, bye }, operation);
        }
        if session.server.role() == Role::Record {
            self.release_publication(session.stream, Some(key));
        }
        self.update_demand(now, session.stream);
        self.settle(session.stream);
    }

    /// The BYE of a leg is out.
    pub(crate) fn complete_goodbye(&mut self, conn: Option<ConnId>) {
        if let Some(id) = conn {
            self.close_conn(id);
        }
        if let Some(ending) = &mut self.ending {
            ending.goodbyes = ending.goodbyes.saturating_sub(1);
        }
    }

    /// Takes a session out of every table.
    pub(super) fn forget_session(&mut self, key: SessionKey) -> Option<Box<Session>> {
        let session = self.sessions.remove(&key)?;
        self.session_ids.remove(session.server.id());
        self.session_legs.remove(&session.leg);
        self.quotas.release(&session.identity, 1, session.legs_counted);
        if let Some(stream) = self.catalog.get_mut(session.stream) {
            stream.legs.remove(&key);
            if session.counted {
                stream.playing = stream.playing.saturating_sub(1);
            }
        }
        if let Some((id, conn)) = session.conn.and_then(|id| Some((id, self.conns.get_mut(&id)?))) {
            conn.channels.release_where(|(owner, _)| *owner == key);
            conn.sessions.remove(&key);
            if conn.sessions.is_empty() {
                self.actions.push_back(Action::Session { conn: id, exists: false });
            }
        }
        Some(session)
    }
}
