//! A stream when a proxy hands over: inputs, tracks and legs go on at the packet where they are.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use msm_graph::{ConnId, InputRow, LegId, LegStart, StreamId, TrackId, TrackRow};
use msm_handover::{Anchor, Malformed, Moment};
use msm_media::drop::inventory::DropsInventory;
use msm_media::input::inventory::InputInventory;
use msm_media::peer::inventory::PeerInventory;
use msm_media::{PeerLock, TrackInput};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::kernel::TrackKernel;
use super::{Arming, Entry, Input, LegMeta, Stream, Track, media_config};
use crate::user::PlayerSockets;
use crate::user::input_pair::{InputPair, PairId};
use crate::user::leg::inventory::LegOutInventory;
use crate::user::leg::{Drops, LegOut};
use crate::user::tcp::ConnWay;

/// A [`Stream`], written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StreamInventory {
    pub(crate) id: StreamId,
    name: String,
    silence: Duration,
    tracks: Vec<TrackInventory>,
    legs: Vec<MetaInventory>,
    /// Legs whose PLAY waits for first packets: asked for again, and what has started stands.
    #[serde(default)]
    arming: Vec<LegId>,
    #[serde(default)]
    out_packets: u64,
    #[serde(default)]
    out_bytes: u64,
    #[serde(default)]
    switches: u64,
    #[serde(default)]
    alive_reported: Option<Moment>,
    #[serde(default)]
    alive_at: Option<Moment>,
    #[serde(default)]
    silent_reported: Option<Moment>,
    #[serde(default)]
    drops: DropsInventory,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TrackInventory {
    row: TrackRow,
    own_ssrc: u32,
    #[serde(default)]
    feedback: bool,
    #[serde(default)]
    media: InputInventory,
    #[serde(default)]
    input: Option<EntryInventory>,
    #[serde(default)]
    legs: Vec<LegOutInventory>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct EntryInventory {
    row: InputRow,
    opened: Moment,
    #[serde(default)]
    delivered: bool,
    #[serde(default)]
    silent_reported: Option<Moment>,
    way: WayInventory,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WayInventory {
    Udp {
        pair: u64,
        lock: PeerInventory,
        peer: IpAddr,
        #[serde(default)]
        peer_rtcp: Option<u16>,
    },
    Channels {
        conn: ConnId,
        rtcp: u8,
        #[serde(default)]
        peer: Option<SocketAddr>,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MetaInventory {
    leg: LegId,
    session: String,
    peer: SocketAddr,
    #[serde(default)]
    alive_reported: Option<Moment>,
    #[serde(default)]
    last_rtcp: Option<Moment>,
    #[serde(default)]
    unreachable: u32,
    #[serde(default)]
    failed: bool,
}

impl StreamInventory {
    /// Addresses that viewers' RTCP may come from.
    pub(crate) fn viewers(&self) -> impl Iterator<Item = (SocketAddr, LegId, TrackId)> + '_ {
        self.tracks.iter().flat_map(|track| {
            let legs = track.legs.iter();
            legs.flat_map(|leg| leg.viewers().map(|(addr, leg)| (addr, leg, track.row.track)))
        })
    }
}

/// What a stream needs of the worker that it comes to.
pub(crate) struct Surroundings<'a> {
    pub(crate) players: &'a PlayerSockets,
    pub(crate) way_to: &'a dyn Fn(ConnId) -> ConnWay,
    pub(crate) pair: &'a dyn Fn(PairId) -> Option<Rc<InputPair>>,
    pub(crate) at: &'a Anchor,
}

impl Stream {
    /// Writes it down, between two batches.
    pub(crate) fn inventory(&self, at: &Anchor) -> StreamInventory {
        // A new field is noticed here: what matters of it needs a line below and in `restore`.
        let Self {
            id: _,
            name: _,
            silence: _,
            tracks: _,
            legs: _,
            arming: _,
            resumed: _,
            out_packets: _,
            out_bytes: _,
            switches: _,
            alive_reported: _,
            alive_at: _,
            silent_reported: _,
            // Nothing is in the kernel while a proxy is handed over.
            looked_at: _,
            drops: _,
        } = self;
        let moment = |instant: Option<Instant>| instant.map(|instant| at.moment(instant));
        let tracks = self.tracks.iter().map(|track| TrackInventory {
            row: track.row.clone(),
            own_ssrc: track.media.config().own_ssrc,
            feedback: track.media.config().feedback,
            media: track.media.inventory(at),
            input: track.input.as_ref().map(|input| EntryInventory {
                row: input.row.clone(),
                opened: at.moment(input.opened),
                delivered: input.delivered,
                silent_reported: moment(input.silent_reported),
                way: match &input.entry {
                    Entry::Udp { pair, lock, peer, peer_rtcp } => WayInventory::Udp {
                        pair: pair.id.0,
                        lock: lock.inventory(at),
                        peer: *peer,
                        peer_rtcp: *peer_rtcp,
                    },
                    Entry::Channels { conn, rtcp, peer } => {
                        WayInventory::Channels { conn: conn.id(), rtcp: *rtcp, peer: *peer }
                    }
                },
            }),
            legs: track.legs.iter().map(|out| out.inventory(at)).collect(),
        });
        let legs = self.legs.iter().map(|meta| MetaInventory {
            leg: meta.leg,
            session: meta.session.clone(),
            peer: meta.peer,
            alive_reported: moment(meta.alive_reported),
            last_rtcp: moment(meta.last_rtcp),
            unreachable: meta.unreachable,
            failed: meta.failed,
        });
        StreamInventory {
            id: self.id,
            name: self.name.clone(),
            silence: self.silence,
            tracks: tracks.collect(),
            legs: legs.collect(),
            arming: self.arming.iter().map(|arming| arming.leg).chain(self.resumed.clone()).collect(),
            out_packets: self.out_packets,
            out_bytes: self.out_bytes,
            switches: self.switches,
            alive_reported: moment(self.alive_reported),
            alive_at: moment(self.alive_at),
            silent_reported: moment(self.silent_reported),
            drops: self.drops.inventory(),
        }
    }

    /// As it was. The routes of UDP inputs are the caller's to add.
    ///
    /// # Errors
    /// A pair or an address family that is not there, media that contradicts itself.
    pub(crate) fn restore(inventory: StreamInventory, from: &Surroundings<'_>) -> Result<Self, Malformed> {
        let at = from.at;
        let instant = |moment: Option<Moment>| moment.map(|moment| at.instant(moment));
        let mut stream = Self::new(inventory.id);
        stream.name = inventory.name;
        stream.silence = inventory.silence;
        for track in inventory.tracks {
            let kernel = TrackKernel::new(stream.name.clone());
            stream.tracks.push(restore_track(stream.id, track, kernel, from)?);
        }
        let legs = inventory.legs.into_iter().map(|meta| LegMeta {
            leg: meta.leg,
            session: meta.session,
            peer: meta.peer,
            alive_reported: instant(meta.alive_reported),
            last_rtcp: instant(meta.last_rtcp),
            unreachable: meta.unreachable,
            failed: meta.failed,
        });
        stream.legs = legs.collect();
        stream.resumed = inventory.arming;
        stream.out_packets = inventory.out_packets;
        stream.out_bytes = inventory.out_bytes;
        stream.switches = inventory.switches;
        stream.alive_reported = instant(inventory.alive_reported);
        stream.alive_at = instant(inventory.alive_at);
        stream.silent_reported = instant(inventory.silent_reported);
        stream.drops = Drops::restore(&inventory.drops);
        Ok(stream)
    }

    /// A PLAY that waited when the proxy was handed over is asked for again: its gates are open or waiting
    /// already, frames that follow its answer are held already, and what has started stays where it was.
    /// Gives the answer back if the leg is none of those.
    pub(super) fn arm_again(
        &mut self,
        now: Instant,
        leg: LegId,
        wait: Duration,
        answer: oneshot::Sender<Vec<LegStart>>,
    ) -> Option<oneshot::Sender<Vec<LegStart>>> {
        let Some(index) = self.resumed.iter().position(|resumed| *resumed == leg) else {
            return Some(answer);
        };
        self.resumed.swap_remove(index);
        let started = self
            .outs(leg)
            .filter_map(|(_, track, out)| {
                let start = out.media.start()?;
                Some(LegStart { track, seq: start.seq, rtptime: start.rtptime, ssrc: start.ssrc })
            })
            .collect();
        self.arming.push(Arming { leg, deadline: now + wait, ready_at: None, started, answer });
        self.answer_armed(now);
        None
    }
}

fn restore_track(
    stream: StreamId,
    inventory: TrackInventory,
    kernel: TrackKernel,
    from: &Surroundings<'_>,
) -> Result<Track, Malformed> {
    let row = inventory.row;
    let config = media_config(stream, &row, inventory.feedback, inventory.own_ssrc);
    let media = TrackInput::restore(inventory.media, config, from.at)?;
    let input = match inventory.input {
        None => None,
        Some(input) => {
            let entry = match input.way {
                WayInventory::Udp { pair, lock, peer, peer_rtcp } => Entry::Udp {
                    pair: (from.pair)(PairId(pair))
                        .ok_or_else(|| Malformed::new("input", "on a pair that is not there"))?,
                    lock: PeerLock::restore(lock, &row.payload_types, from.at),
                    peer,
                    peer_rtcp,
                },
                WayInventory::Channels { conn, rtcp, peer } => {
                    Entry::Channels { conn: (from.way_to)(conn), rtcp, peer }
                }
            };
            Some(Input {
                row: input.row,
                entry,
                opened: from.at.instant(input.opened),
                delivered: input.delivered,
                silent_reported: input.silent_reported.map(|told| from.at.instant(told)),
            })
        }
    };
    let mut legs = Vec::with_capacity(inventory.legs.len());
    for leg in inventory.legs {
        legs.push(LegOut::restore(leg, from.players, from.way_to, from.at)?);
    }
    Ok(Track { row, media, input, legs, kernel })
}
