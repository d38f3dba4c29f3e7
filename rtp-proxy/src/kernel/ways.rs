//! A worker's end of what [`super::hops`] knows: wants go out, answers come in and are kept.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;

use super::hop::{Want, Way};
use super::slots::SlotRange;

/// Asks of all workers that may wait for the thread that answers.
pub(super) const ASKS: usize = 4096;
/// Notes to one worker that may wait; the service keeps what does not fit, newest answer only.
pub(super) const NOTES: usize = 256;

/// What a worker asks.
#[derive(Debug)]
pub(super) enum Ask {
    /// Tell me, and go on telling.
    Want(Want),
    /// No longer.
    Forget(Want),
}

/// What a worker is told.
#[derive(Debug)]
pub enum Note {
    /// The answer to a want, new or changed.
    Way(Want, Way),
    /// Indices of an earlier process that nobody claimed.
    Returned {
        /// Of flow statistics.
        flows: Vec<u32>,
        /// Of legs.
        ids: Vec<u32>,
        /// Leg slots.
        ranges: Vec<SlotRange>,
    },
}

/// Where notes arrive, apart from [`Ways`] so that no borrow is held while a worker waits.
#[derive(Debug)]
pub struct Inbox {
    notes: mpsc::Receiver<Note>,
}

impl Inbox {
    /// The next note; waits for ever once nobody can send one. Cancel-safe.
    pub async fn next(&mut self) -> Note {
        match self.notes.recv().await {
            Some(note) => note,
            None => std::future::pending().await,
        }
    }

    /// A note that is there already.
    pub fn try_next(&mut self) -> Option<Note> {
        self.notes.try_recv().ok()
    }
}

#[derive(Debug, Default)]
struct Known {
    holders: u32,
    way: Option<Way>,
}

/// The wants of one worker and what is known of them.
#[derive(Debug)]
pub struct Ways {
    worker: usize,
    known: HashMap<Want, Known>,
    asks: mpsc::Sender<(usize, Ask)>,
    /// What the full queue refused, in order: at most one want for each that is held here, and before it one forget of
    /// what the other side knows of.
    unsent: VecDeque<Ask>,
}

/// The service's end of one worker.
pub(super) type NoteSender = mpsc::Sender<Note>;
/// The service's end of all workers.
pub(super) type AskReceiver = mpsc::Receiver<(usize, Ask)>;

/// Both ends for `workers` workers.
pub(super) fn channels(workers: usize) -> (Vec<(Ways, Inbox)>, AskReceiver, Vec<NoteSender>) {
    let (asks, receiver) = mpsc::channel(ASKS);
    let mut ends = Vec::with_capacity(workers);
    let mut senders = Vec::with_capacity(workers);
    for worker in 0..workers {
        let (sender, notes) = mpsc::channel(NOTES);
        let asks = asks.clone();
        ends.push((Ways { worker, known: HashMap::new(), asks, unsent: VecDeque::new() }, Inbox { notes }));
        senders.push(sender);
    }
    (ends, receiver, senders)
}

impl Ways {
    /// Asks, once however often it is wanted. Returns the answer if it is known already.
    pub fn want(&mut self, want: Want) -> Option<&Way> {
        let known = self.known.entry(want).or_default();
        known.holders += 1;
        if known.holders == 1 {
            self.send(Ask::Want(want));
        }
        self.get(&want)
    }

    /// Takes back one [`Ways::want`].
    pub fn forget(&mut self, want: Want) {
        let Some(known) = self.known.get_mut(&want) else { return };
        known.holders -= 1;
        if known.holders == 0 {
            self.known.remove(&want);
            let unsent =
                self.unsent.iter().rposition(|ask| matches!(ask, Ask::Want(asked) if *asked == want));
            if let Some(unsent) = unsent {
                // Nobody has heard of it.
                self.unsent.remove(unsent);
            } else {
                self.send(Ask::Forget(want));
            }
        }
    }

    /// The newest answer.
    pub fn get(&self, want: &Want) -> Option<&Way> {
        self.known.get(want)?.way.as_ref()
    }

    /// Takes an answer over. Returns whether anybody here still wants it.
    pub fn put(&mut self, want: Want, way: Way) -> bool {
        match self.known.get_mut(&want) {
            Some(known) => {
                known.way = Some(way);
                true
            }
            None => false,
        }
    }

    /// Sends what a full queue refused before; to be called now and then.
    pub fn flush(&mut self) {
        while let Some(ask) = self.unsent.pop_front() {
            if let Err(mpsc::error::TrySendError::Full((_, ask))) = self.asks.try_send((self.worker, ask)) {
                self.unsent.push_front(ask);
                return;
            }
        }
    }

    fn send(&mut self, ask: Ask) {
        self.unsent.push_back(ask);
        self.flush();
    }
}

/// Answers from nobody, for tests without a kernel: hand-written answers go in by [`Ways::put`].
pub fn detached() -> (Ways, Inbox) {
    let (asks, _) = mpsc::channel(1);
    let (_, notes) = mpsc::channel(1);
    (Ways { worker: 0, known: HashMap::new(), asks, unsent: VecDeque::new() }, Inbox { notes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::hop::UserReason;

    fn want(last: u8) -> Want {
        Want::Hop { peer: [10, 0, 0, last].into(), local: [10, 0, 0, 1].into() }
    }

    fn answer(last: u8) -> Way {
        Way::Hop(Err(UserReason::Unresolved([10, 0, 0, last].into())))
    }

    #[test]
    fn a_want_is_asked_once_and_forgotten_by_its_last_holder() {
        let (mut ends, mut asks, _senders) = channels(1);
        let (ways, _) = &mut ends[0];
        assert_eq!(ways.want(want(2)), None);
        assert_eq!(ways.want(want(2)), None);
        assert!(matches!(asks.try_recv(), Ok((0, Ask::Want(asked))) if asked == want(2)));
        assert!(asks.try_recv().is_err());
        assert!(ways.put(want(2), answer(2)));
        assert_eq!(ways.want(want(2)), Some(&answer(2)));
        ways.forget(want(2));
        ways.forget(want(2));
        assert!(asks.try_recv().is_err());
        ways.forget(want(2));
        assert!(matches!(asks.try_recv(), Ok((0, Ask::Forget(asked))) if asked == want(2)));
        assert_eq!(ways.get(&want(2)), None);
        assert!(!ways.put(want(2), answer(2)), "an answer that came too late is no want");
    }

    #[test]
    fn asks_that_found_the_queue_full_go_out_later_and_in_order() {
        let (mut ends, mut asks, _senders) = channels(1);
        let (ways, _) = &mut ends[0];
        for number in 0..=ASKS as u32 {
            let [_, b, c, d] = number.to_be_bytes();
            ways.want(Want::Hop { peer: [11, b, c, d].into(), local: [10, 0, 0, 1].into() });
        }
        ways.want(want(9));
        for _ in 0..ASKS {
            asks.try_recv().unwrap();
        }
        assert!(asks.try_recv().is_err());
        ways.flush();
        assert!(matches!(asks.try_recv(), Ok((0, Ask::Want(Want::Hop { peer, .. }))) if peer != want_peer()));
        assert!(matches!(asks.try_recv(), Ok((0, Ask::Want(asked))) if asked == want(9)));
    }

    #[test]
    fn what_comes_and_goes_while_the_queue_is_full_leaves_nothing_in_it() {
        let (mut ends, mut asks, _senders) = channels(1);
        let (ways, _) = &mut ends[0];
        ways.want(want(8));
        for number in 1..ASKS as u32 {
            let [_, b, c, d] = number.to_be_bytes();
            ways.want(Want::Hop { peer: [11, b, c, d].into(), local: [10, 0, 0, 1].into() });
        }
        for _ in 0..100 {
            ways.want(want(9));
            ways.forget(want(9));
            ways.forget(want(8));
            ways.want(want(8));
        }
        assert_eq!(ways.unsent.len(), 2, "{:?}", ways.unsent);
        while asks.try_recv().is_ok() {}
        ways.flush();
        assert!(matches!(asks.try_recv(), Ok((0, Ask::Forget(asked))) if asked == want(8)));
        assert!(matches!(asks.try_recv(), Ok((0, Ask::Want(asked))) if asked == want(8)));
        assert!(asks.try_recv().is_err());
    }

    fn want_peer() -> std::net::IpAddr {
        [10, 0, 0, 9].into()
    }
}
