//! Accepted connections when a proxy hands over: every request that came is answered once, in its turn.

use std::net::SocketAddr;

use msm_graph::{ConnId, StreamId};
use msm_handover::{Anchor, Moment};
use msm_rtsp::auth::ConnAuth;
use msm_rtsp::auth::inventory::ConnAuthInventory;
use msm_rtsp::message::inventory::{RequestInventory, ResponseInventory};
use msm_rtsp::message::{Request, Response};
use msm_rtsp::transport::ChannelTable;
use msm_rtsp::transport::inventory::ChannelsInventory;
use serde::{Deserialize, Serialize};

use super::{Busy as Current, Conn, Wait};
use crate::inventory::{Armed, Busy};
use crate::sessions::SessionKey;
use crate::timer::{Timers, Wake};

/// A [`Conn`], written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnInventory {
    peer: SocketAddr,
    local: SocketAddr,
    #[serde(default)]
    auth: ConnAuthInventory,
    #[serde(default)]
    queue: Vec<RequestInventory>,
    #[serde(default)]
    current: Option<CurrentInventory>,
    #[serde(default)]
    last_seq: u64,
    #[serde(default)]
    began: Option<Moment>,
    #[serde(default)]
    channels: ChannelsInventory<(u64, usize)>,
    #[serde(default)]
    sessions: Vec<u64>,
    #[serde(default)]
    announced: Option<StreamId>,
    #[serde(default)]
    announcement_armed: Option<Moment>,
    #[serde(default)]
    armed: Option<Moment>,
    #[serde(default)]
    closing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CurrentInventory {
    seq: u64,
    request: RequestInventory,
    wait: WaitInventory,
    deadline: Moment,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WaitInventory {
    Description,
    Play { session: u64, until: Moment },
    Claim,
    Delay { response: Box<ResponseInventory>, close: bool },
}

impl Conn {
    /// Writes it down.
    pub(crate) fn inventory(&self, at: &Anchor) -> Result<ConnInventory, Busy> {
        let moment = |instant: Option<std::time::Instant>| instant.map(|instant| at.moment(instant));
        let current = match &self.busy {
            None => None,
            Some(busy) => Some(CurrentInventory {
                seq: busy.seq,
                request: busy.request.inventory(),
                wait: match &busy.wait {
                    Wait::Description => WaitInventory::Description,
                    Wait::Play(key, until) => {
                        WaitInventory::Play { session: key.0, until: at.moment(*until) }
                    }
                    Wait::Claim => WaitInventory::Claim,
                    Wait::Delay(response, close) => {
                        WaitInventory::Delay { response: Box::new(response.inventory()), close: *close }
                    }
                    // Operations of the packet path: none of them takes long.
                    Wait::Nothing | Wait::SetUp(_) | Wait::Pause(_) | Wait::Remove(..) | Wait::End => {
                        return Err(Busy::Operation);
                    }
                },
                deadline: at.moment(busy.deadline),
            }),
        };
        Ok(ConnInventory {
            peer: self.peer,
            local: self.local,
            auth: self.auth.inventory(at),
            queue: self.queue.iter().map(Request::inventory).collect(),
            current,
            last_seq: self.last_seq,
            began: moment(self.began),
            channels: self.channels.inventory(|(key, media)| (key.0, *media)),
            sessions: self.sessions.iter().map(|key| key.0).collect(),
            announced: self.announced,
            announcement_armed: moment(self.announcement_armed),
            armed: moment(self.armed),
            closing: self.closing,
        })
    }

    /// As it was, and its deadlines: of the request, of the announcement.
    pub(crate) fn restore(inventory: ConnInventory, at: &Anchor) -> (Self, [Armed; 2]) {
        let current = inventory.current.map(|current| {
            Box::new(Current {
                seq: current.seq,
                request: Request::restore(current.request),
                wait: match current.wait {
                    WaitInventory::Description => Wait::Description,
                    WaitInventory::Play { session, until } => {
                        Wait::Play(SessionKey(session), at.instant(until))
                    }
                    WaitInventory::Claim => Wait::Claim,
                    WaitInventory::Delay { response, close } => {
                        Wait::Delay(Response::restore(*response), close)
                    }
                },
                deadline: at.instant(current.deadline),
            })
        });
        let conn = Self {
            peer: inventory.peer,
            local: inventory.local,
            auth: ConnAuth::restore(inventory.auth, at),
            queue: inventory.queue.into_iter().map(Request::restore).collect(),
            busy: current,
            last_seq: inventory.last_seq,
            began: inventory.began.map(|moment| at.instant(moment)),
            channels: ChannelTable::restore(inventory.channels, |(key, media)| (SessionKey(key), media)),
            sessions: inventory.sessions.into_iter().map(SessionKey).collect(),
            announced: inventory.announced,
            announcement_armed: None,
            armed: None,
            closing: inventory.closing,
        };
        (conn, [inventory.armed, inventory.announcement_armed])
    }

    /// Lets the timers know of its deadlines.
    pub(crate) fn arm_again(&mut self, timers: &mut Timers, id: ConnId, armed: [Armed; 2], at: &Anchor) {
        let [request, announcement] = armed;
        if let Some(due) = request {
            timers.arm(&mut self.armed, at.instant(due), Wake::Conn(id));
        }
        if let Some(due) = announcement {
            timers.arm(&mut self.announcement_armed, at.instant(due), Wake::Announcement(id));
        }
    }

    /// Whether a request waits for its turn and may have it.
    pub(crate) fn has_next(&self) -> bool {
        self.busy.is_none() && !self.queue.is_empty()
    }
}
