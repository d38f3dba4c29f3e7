//! Everything that one proxy hands to the next.

use std::net::SocketAddr;

use msm_handover::message::{FORMAT, Prelude};
use msm_runtime::metrics::inventory::MetricsInventory;
use serde::{Deserialize, Serialize};

use crate::standalone::inventory::StandaloneInventory;
use crate::user::handover::PlayersInventory;
use crate::user::tcp::inventory::{ConnInventory, EventInventory};
use crate::user::worker::inventory::WorkerInventory;

/// The body of the message. Descriptors are named by their numbers in the program that wrote it; they follow in
/// the order of `descriptors`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Inventory {
    /// Set by [`Self::finish`].
    pub(crate) format: u32,
    pub(crate) descriptors: Vec<i32>,
    pub(crate) rtsp: i32,
    pub(crate) admin: i32,
    pub(crate) players: Vec<PlayersInventory>,
    pub(crate) standalone: StandaloneInventory,
    pub(crate) workers: Vec<WorkerInventory>,
    /// Connections on the control thread.
    pub(crate) control: Vec<ConnInventory>,
    /// What the session logic has not seen yet, in order.
    pub(crate) events: Vec<EventInventory>,
    pub(crate) accepted: Vec<AcceptedInventory>,
    pub(crate) metrics: MetricsInventory,
}

/// A connection that nobody has looked at yet.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct AcceptedInventory {
    pub(crate) descriptor: i32,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl Inventory {
    /// Stamps it with the format, and lists the descriptors that it names.
    pub(crate) fn finish(&mut self) {
        self.format = FORMAT;
        self.descriptors = [self.rtsp, self.admin]
            .into_iter()
            .chain(self.players.iter().flat_map(|pair| [pair.rtp, pair.rtcp]))
            .chain(self.workers.iter().flat_map(|w| w.pairs.iter().flat_map(|pair| [pair.rtp, pair.rtcp])))
            .chain(self.workers.iter().flat_map(|w| w.conns.iter().map(|conn| conn.descriptor)))
            .chain(self.control.iter().map(|conn| conn.descriptor))
            .chain(self.accepted.iter().map(|accepted| accepted.descriptor))
            .collect();
    }

    /// Reads the body of the message.
    ///
    /// # Errors
    /// In words: another format, or none at all.
    pub(crate) fn read(body: &[u8]) -> Result<Self, String> {
        let prelude: Prelude = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if !prelude.is_readable() {
            return Err(format!("its format is {}, ours is {FORMAT}", prelude.format));
        }
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_format_is_refused_by_its_number_and_a_richer_one_of_ours_is_read() {
        let error = Inventory::read(br#"{"format":7,"standalone":"of another shape"}"#).unwrap_err();
        assert_eq!(error, "its format is 7, ours is 1");
        let read = Inventory::read(br#"{"format":1,"rtsp":5,"weather":{"wind":3}}"#).unwrap();
        assert_eq!(read.rtsp, 5);
        for garbage in [&b""[..], b"[]", b"{\"format\":1,\"workers\":7}", b"\xff\xfe"] {
            assert!(Inventory::read(garbage).is_err());
        }
    }
}
