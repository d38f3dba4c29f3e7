//! A session when a proxy hands over: the same id, and no more or less time to live.

use msm_handover::{Anchor, Malformed, Moment};
use serde::{Deserialize, Serialize};

use super::{LowerTransport, Role, ServerSession, SessionTimes, State};

/// A [`ServerSession`], written down. The id is a secret of its viewer.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerSessionInventory {
    id: String,
    record: bool,
    started: bool,
    interleaved: bool,
    media: Vec<usize>,
    announced: usize,
    made_at: Moment,
    alive_at: Moment,
    started_once: bool,
}

impl std::fmt::Debug for ServerSessionInventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSessionInventory").field("record", &self.record).finish_non_exhaustive()
    }
}

impl ServerSession {
    /// Writes it down.
    pub fn inventory(&self, at: &Anchor) -> ServerSessionInventory {
        ServerSessionInventory {
            id: self.id.clone(),
            record: self.role == Role::Record,
            started: self.state != State::Ready,
            interleaved: self.lower == LowerTransport::Tcp,
            media: self.media.clone(),
            announced: self.announced,
            made_at: at.moment(self.made_at),
            alive_at: at.moment(self.alive_at),
            started_once: self.started_once,
        }
    }

    /// As it was, with the times of this program.
    ///
    /// # Errors
    /// A session without an id.
    pub fn restore(
        inventory: ServerSessionInventory,
        times: SessionTimes,
        at: &Anchor,
    ) -> Result<Self, Malformed> {
        if inventory.id.is_empty() {
            return Err(Malformed::new("session", "without an id"));
        }
        let (role, started) =
            if inventory.record { (Role::Record, State::Recording) } else { (Role::Play, State::Playing) };
        Ok(Self {
            id: inventory.id,
            role,
            state: if inventory.started { started } else { State::Ready },
            lower: if inventory.interleaved { LowerTransport::Tcp } else { LowerTransport::Udp },
            media: inventory.media,
            announced: inventory.announced,
            times,
            made_at: at.instant(inventory.made_at),
            alive_at: at.instant(inventory.alive_at),
            started_once: inventory.started_once,
        })
    }
}
