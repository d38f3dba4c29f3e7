//! How streams of one worker use a connection that lives on another.
//!
//! Owns the bounded queue `frames` towards the connection. Nobody waits for it: RTP that finds no room is
//! dropped and counted, a part of the room is kept for RTCP and for what binds and holds channels, and what
//! gives channels back always has room: there is no more of it than was bound. The other direction, from the
//! connection to the stream, is the command queue of the stream's worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use msm_graph::ConnId;
use tokio::sync::mpsc;

use super::route_frames;
use super::slot::{ChannelOwner, ConnSlot, Frame, Pushed};
use crate::user::worker::Shared;

/// Batches of frames waiting for one connection.
const BATCHES: usize = 256;
/// Room in it that RTP leaves to RTCP, and RTCP to what binds and holds channels.
const RESERVE: usize = 32;
/// Bytes of RTP in it, as many as wait for the socket afterwards.
const BYTES: usize = 2 << 20;

/// What a stream of another worker asks of a connection, in order.
#[derive(Debug)]
pub(crate) enum Guest {
    Bind {
        channels: [(u8, ChannelOwner); 2],
        worker: usize,
    },
    Unbind {
        owners: [ChannelOwner; 2],
        say_bye: bool,
    },
    Hold([u8; 2]),
    /// Drop what waits on these channels.
    Clear([u8; 2]),
    Rtp {
        channel: u8,
        frames: Vec<Frame>,
    },
    Rtcp {
        channel: u8,
        compound: Bytes,
    },
}

/// The sending end; one per connection, shared by the workers that need it.
#[derive(Debug, Clone)]
pub(crate) struct GuestQueue {
    conn: ConnId,
    items: mpsc::UnboundedSender<Guest>,
    depth: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

/// The receiving end; it lives with the connection.
#[derive(Debug)]
pub(crate) struct Guests {
    items: mpsc::UnboundedReceiver<Guest>,
    depth: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

/// A queue towards one connection.
pub(crate) fn guest_queue(conn: ConnId) -> (GuestQueue, Guests) {
    let (sender, items) = mpsc::unbounded_channel();
    let [depth, bytes] = [Arc::<AtomicUsize>::default(), Arc::default()];
    let dropped = Arc::<AtomicU64>::default();
    let queue = GuestQueue {
        conn,
        items: sender,
        depth: depth.clone(),
        bytes: bytes.clone(),
        dropped: dropped.clone(),
    };
    (queue, Guests { items, depth, bytes, dropped })
}

impl GuestQueue {
    /// The connection.
    pub(super) fn conn(&self) -> ConnId {
        self.conn
    }

    /// Queues everything but RTP. Returns whether there was room.
    pub(super) fn push(&self, item: Guest) -> bool {
        let room = match item {
            Guest::Rtp { .. } => BATCHES - 2 * RESERVE,
            Guest::Rtcp { .. } => BATCHES - RESERVE,
            Guest::Bind { .. } | Guest::Hold(_) => BATCHES,
            Guest::Unbind { .. } | Guest::Clear(_) => usize::MAX,
        };
        let queued = self.depth.load(Ordering::Relaxed) < room && {
            self.depth.fetch_add(1, Ordering::Relaxed);
            self.items.send(item).is_ok()
        };
        if !queued {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        queued
    }

    /// Queues RTP frames as one batch, all or none.
    pub(super) fn push_rtp<'a>(
        &self,
        channel: u8,
        frames: impl Iterator<Item = (&'a [u8], Bytes)>,
    ) -> Pushed {
        let mut bytes = 0;
        let frames: Vec<Frame> = frames
            .map(|(head, tail)| {
                bytes += head.len() + tail.len();
                (head.try_into().ok(), tail)
            })
            .collect();
        let packets = frames.len() as u64;
        let waiting = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes <= BYTES && self.push(Guest::Rtp { channel, frames }) {
            return Pushed { packets, bytes: bytes as u64, ..Pushed::default() };
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Pushed { full: packets, ..Pushed::default() }
    }
}

impl Guests {
    /// The next one; `None` when nobody is left to send any.
    pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Guest>> {
        let polled = self.items.poll_recv(cx);
        if let Poll::Ready(Some(_)) = polled {
            self.depth.fetch_sub(1, Ordering::Relaxed);
        }
        polled
    }

    /// The next one, if there is one already.
    pub(super) fn try_recv(&mut self) -> Option<Guest> {
        let item = self.items.try_recv().ok()?;
        self.depth.fetch_sub(1, Ordering::Relaxed);
        Some(item)
    }

    /// Batches that wait.
    pub(super) fn depth(&self) -> usize {
        self.items.len()
    }

    /// Batches that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// RTP was taken out: there is room for as much again.
    pub(super) fn give_room(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Does what a stream of another worker asked for.
pub(super) fn serve_guest(slot: &ConnSlot, shared: Option<&Shared>, guest: Guest) {
    let now = Instant::now();
    match guest {
        Guest::Bind { channels, worker } => {
            for (channel, owner) in channels {
                let mut early: Vec<_> = slot
                    .bind(channel, owner, Some(worker))
                    .into_iter()
                    .map(|payload| (channel, payload))
                    .collect();
                route_frames(slot, shared, &mut early);
            }
        }
        Guest::Unbind { owners, say_bye } => slot.unbind(owners, say_bye),
        Guest::Clear(channels) => {
            if let Some(conn) = slot.conn.borrow_mut().as_mut() {
                conn.clear_media(&channels);
            }
        }
        Guest::Hold(channels) => {
            if let Some(conn) = slot.conn.borrow_mut().as_mut() {
                conn.hold_media(&channels);
            }
        }
        Guest::Rtp { channel, frames } => {
            let mut pushed = Pushed::default();
            let mut taken = 0;
            if let Some(conn) = slot.conn.borrow_mut().as_mut() {
                for (head, tail) in frames {
                    let head = head.as_ref().map_or(&[][..], |head| head);
                    let len = head.len() + tail.len();
                    taken += len;
                    pushed.count(len, conn.push_rtp(channel, head, tail, now));
                }
            }
            if let Some(guests) = slot.guests.borrow().as_ref() {
                guests.give_room(taken);
            }
            if let Some(shared) = shared {
                shared.count_guest_drops(&pushed);
            }
        }
        Guest::Rtcp { channel, compound } => {
            if let Some(conn) = slot.conn.borrow_mut().as_mut() {
                conn.push_rtcp(channel, compound, now);
            }
        }
    }
}

/// Does what streams of other workers have asked for, while the driver stands still.
pub(crate) fn settle_guests(slot: &ConnSlot, shared: &Shared) {
    loop {
        let guest = slot.guests.borrow_mut().as_mut().and_then(Guests::try_recv);
        let Some(guest) = guest else { return };
        serve_guest(slot, Some(shared), guest);
    }
}

#[cfg(test)]
mod tests {
    use msm_graph::{LegId, StreamId, TrackId};

    use super::*;

    fn packet(len: usize) -> impl Iterator<Item = (&'static [u8], Bytes)> {
        std::iter::once((&[][..], Bytes::from(vec![0; len])))
    }

    #[test]
    fn rtp_leaves_room_for_rtcp_and_both_for_what_binds_and_holds() {
        let (queue, mut guests) = guest_queue(ConnId(1));
        let mut rtp = 0;
        while queue.push_rtp(0, packet(100)).full == 0 {
            rtp += 1;
        }
        assert_eq!(rtp, BATCHES - 2 * RESERVE);
        let rtcp = || Guest::Rtcp { channel: 1, compound: Bytes::new() };
        assert_eq!((0..BATCHES).filter(|_| queue.push(rtcp())).count(), RESERVE);
        assert!(queue.push(Guest::Hold([0, 1])));
        assert_eq!(guests.depth(), BATCHES - RESERVE + 1);
        assert_eq!(guests.dropped(), 1 + (BATCHES - RESERVE) as u64);
        assert!(matches!(guests.try_recv(), Some(Guest::Rtp { channel: 0, frames }) if frames.len() == 1));
        assert!(queue.push(Guest::Hold([0, 1])), "room again");
    }

    #[test]
    fn what_gives_channels_back_is_never_refused() {
        let (queue, mut guests) = guest_queue(ConnId(1));
        while queue.push(Guest::Hold([0, 1])) {}
        let owners = ChannelOwner::leg(StreamId::new(1, [0; 10]), LegId::new(1, [0; 10]), TrackId(0));
        assert!(queue.push(Guest::Unbind { owners, say_bye: false }));
        assert!(queue.push(Guest::Clear([0, 1])));
        let mut last = None;
        while let Some(item) = guests.try_recv() {
            last = Some(item);
        }
        assert!(matches!(last, Some(Guest::Clear([0, 1]))));
    }

    #[test]
    fn rtp_is_bounded_by_bytes_until_it_was_taken_out() {
        let (queue, guests) = guest_queue(ConnId(1));
        assert_eq!(queue.push_rtp(0, packet(BYTES)).packets, 1);
        assert_eq!(queue.push_rtp(0, packet(1)).full, 1);
        guests.give_room(BYTES);
        assert_eq!(queue.push_rtp(0, packet(1)).packets, 1);
    }
}
