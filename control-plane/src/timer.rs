//! Deadlines of everything, earliest first.
//!
//! Entries are never removed: whoever an entry wakes compares the time with what it now wants. So feeding
//! a session's liveness costs nothing, and no request walks over other sessions.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use msm_graph::{ConnId, StreamId};

use crate::sessions::SessionKey;

/// Whom a deadline wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wake {
    /// A connection: the deadline of its current request, or of a delayed answer.
    Conn(ConnId),
    /// What a connection announced and never set up.
    Announcement(ConnId),
    /// A session: liveness, or grace after the loss of its connection.
    Session(SessionKey),
    /// An upstream.
    Upstream(StreamId),
    /// The end of the process.
    Ending,
}

/// A heap of deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Wake)>>,
}

impl Timers {
    /// Wakes `wake` at `at`, unless `armed` says that it is woken before that.
    pub(crate) fn arm(&mut self, armed: &mut Option<Instant>, at: Instant, wake: Wake) {
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.heap.push(Reverse((at, wake)));
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the next entry that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Wake> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, wake))| wake)
    }
}
