//! A worker's end of the fast path: its share of the tables, whom an answer concerns, and what is due soon.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use msm_fastpath::flow::address;
use msm_fastpath::{FlowEntry, FlowKey, PortKey};
use msm_graph::{InputRow, StreamId, TrackId};
use msm_runtime::telemetry::LineLimiter;

use super::Shared;
use crate::kernel::hop::{Rung, UserReason, Want, Way};
use crate::kernel::share::{AdoptedFlow, Share};
use crate::kernel::slots::Holder;
use crate::kernel::table::Table as _;
use crate::kernel::ways::{Inbox, Note};
use crate::user::input_pair::InputPair;
use crate::user::offload::{Epoch, GRACE, Kernel};

/// Lines about legs of one stream that change their rung, per [`LINE_INTERVAL`].
const LINES: u32 = 10;
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// A gate is shut for good after [`GRACE`], or twice that where a packet was just passing. Whoever paused is not kept
/// waiting for longer than this, whatever comes between.
const LONGEST_STOP: Duration = Duration::from_millis(50);

/// What one worker owns of the fast path.
#[derive(Debug)]
pub(crate) struct KernelEnd {
    share: Share,
    epoch: Epoch,
    wanted: HashMap<Want, Vec<StreamId>>,
    /// Streams that have something to do in a moment.
    due: BTreeSet<StreamId>,
    /// Nothing goes to the kernel: the proxy is being handed over.
    rests: bool,
    /// Streams with legs that were paused; see [`Stream::is_stopping`].
    stopping: Vec<StreamId>,
    /// Flows of an earlier process that go on.
    continued: Vec<Continued>,
    lines: LineLimiter<StreamId>,
}

/// A flow of an earlier process whose source is a stream's again.
#[derive(Debug)]
struct Continued {
    stream: StreamId,
    track: TrackId,
    holder: Holder,
    key: FlowKey,
    flow: AdoptedFlow,
}

impl KernelEnd {
    pub(super) fn new(share: Share) -> Self {
        let epoch = Epoch::new(Instant::now(), share.table.now());
        let lines = LineLimiter::new(LINES, LINE_INTERVAL);
        Self {
            share,
            epoch,
            wanted: HashMap::new(),
            due: BTreeSet::new(),
            rests: false,
            stopping: Vec::new(),
            continued: Vec::new(),
            lines,
        }
    }

    /// What moving legs needs of it.
    pub(crate) fn hands(&mut self) -> Kernel<'_> {
        Kernel { table: &mut self.share.table, slots: &mut self.share.slots, epoch: self.epoch }
    }

    /// A stream wants to know a way; the answer reconciles it.
    pub(crate) fn want(&mut self, stream: StreamId, want: Want) {
        self.share.ways.want(want);
        self.wanted.entry(want).or_default().push(stream);
    }

    pub(crate) fn forget(&mut self, stream: StreamId, want: Want) {
        let Some(streams) = self.wanted.get_mut(&want) else { return };
        let Some(index) = streams.iter().position(|known| *known == stream) else { return };
        streams.swap_remove(index);
        if streams.is_empty() {
            self.wanted.remove(&want);
        }
        self.share.ways.forget(want);
    }

    pub(crate) fn rests(&self) -> bool {
        self.rests
    }

    pub(crate) fn note_stopping(&mut self, stream: StreamId) {
        if !self.stopping.contains(&stream) {
            self.stopping.push(stream);
        }
    }

    /// Whether a flow that an earlier process left goes on under the key of a source of ours, for viewers that
    /// have not set up again: then the worker gets every packet too, and nothing of the track goes to the
    /// kernel. `ssrc`: of the source, if it has sent.
    pub(crate) fn continues(
        &mut self,
        now: Instant,
        (stream, track): (StreamId, TrackId),
        name: &str,
        key: &FlowKey,
        ssrc: Option<u32>,
    ) -> bool {
        let known = |continued: &Continued| (continued.stream, continued.track) == (stream, track);
        let known_at = self.continued.iter().position(known);
        let Some(at) = known_at.or_else(|| self.claim_left(stream, track, name, key)) else { return false };
        let goes_on = self.continued.get(at).is_some_and(|Continued { key: left, flow, .. }| {
            let locked = flow.entry.admission.locked_ssrc();
            let same_source = ssrc.is_none_or(|ssrc| locked.is_none_or(|locked| locked == ssrc));
            left == key && same_source && now < self.share.left_until() && self.share.has_viewers(flow)
        });
        if !goes_on {
            self.end_continued(now, stream, track);
        }
        goes_on
    }

    /// Takes over what an earlier process left under a key, with copies for the worker.
    fn claim_left(&mut self, stream: StreamId, track: TrackId, name: &str, key: &FlowKey) -> Option<usize> {
        let holder = Holder::new(name, address(key.src));
        let mut flow = self.share.claim(key, &holder)?;
        flow.entry.flags |= FlowEntry::COPY_TO_USER;
        if let Err(error) = self.share.table.put_flow(key, &flow.entry.under(key)) {
            tracing::warn!(event = "kernel.flow", name, %error, "a former flow does not go on");
            let _ = self.share.end_claimed(key, &flow, &holder, Instant::now());
            return None;
        }
        self.continued.push(Continued { stream, track, holder, key: *key, flow });
        Some(self.continued.len() - 1)
    }

    /// What goes on under the key of a track's source ends.
    pub(crate) fn end_continued(&mut self, now: Instant, stream: StreamId, track: TrackId) {
        let is_it = |continued: &mut Continued| (continued.stream, continued.track) == (stream, track);
        for Continued { holder, key, flow, .. } in self.continued.extract_if(.., is_it) {
            if let Err(error) = self.share.end_claimed(&key, &flow, &holder, now) {
                let name = holder.stream();
                tracing::warn!(event = "kernel.flow", name, %error, "a former flow stays in the kernel");
            }
        }
    }

    /// A viewer sets up; nothing that an earlier process sent to its port comes any more.
    pub(crate) fn replace_viewer(&mut self, viewer: SocketAddr) {
        self.share.replace_viewer(viewer);
    }

    pub(crate) fn way(&self, want: &Want) -> Option<&Way> {
        self.share.ways.get(want)
    }

    /// Whether a line about this stream may be written; how many were left out before it.
    pub(crate) fn line(&mut self, now: Instant, stream: StreamId) -> Option<u64> {
        self.lines.admit(now, stream)
    }

    /// Streams whom a note concerns.
    fn take(&mut self, note: Note, now: Instant) -> Vec<StreamId> {
        let want = self.share.handle(note, now);
        want.and_then(|want| self.wanted.get(&want).cloned()).unwrap_or_default()
    }
}

impl Shared {
    /// The fast path, or why this worker has none.
    pub(crate) fn kernel(&self) -> &Result<RefCell<KernelEnd>, UserReason> {
        &self.kernel
    }

    /// Somebody whom the kernel does not know yet will send to the port of an input.
    pub(super) fn let_in(&self, input: &InputRow, pair: &InputPair) {
        if let (Ok(kernel), Some(local)) = (&self.kernel, pair.local(input))
            && let Err(error) = kernel.borrow_mut().share.table.put_port(&PortKey::new(local), None)
        {
            tracing::warn!(event = "kernel.port", %local, %error, "a port may stay closed to new sources");
        }
    }

    /// A stream has something to do in a moment.
    pub(crate) fn note_due(&self, stream: StreamId) {
        if let Ok(kernel) = &self.kernel {
            self.wake_due(stream, &mut kernel.borrow_mut());
        }
    }

    /// As [`Shared::note_due`], by whoever has the path in hand.
    pub(crate) fn wake_due(&self, stream: StreamId, kernel: &mut KernelEnd) {
        kernel.due.insert(stream);
        self.due.notify_one();
    }

    /// The streams where what was just done leaves packets on their way through the kernel, which the answer must wait
    /// for ([`Shared::await_stops`]).
    pub(super) fn take_stopping(&self) -> Vec<StreamId> {
        match &self.kernel {
            Ok(kernel) => std::mem::take(&mut kernel.borrow_mut().stopping),
            Err(_) => Vec::new(),
        }
    }

    /// Waits until the gates of legs that were paused are shut for good, at most [`LONGEST_STOP`].
    pub(super) async fn await_stops(&self, streams: Vec<StreamId>) {
        let deadline = Instant::now() + LONGEST_STOP;
        let mut waiting = streams;
        while !waiting.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(GRACE).await;
            waiting.retain(|stream| {
                self.stream(*stream)
                    .is_some_and(|stream| stream.borrow_mut().settle_stops(Instant::now(), self))
            });
        }
    }

    /// Every UDP leg of this worker is to be there; `None` leaves them to the rules.
    pub(super) fn ask_rung(&self, rung: Option<Rung>) {
        let now = Instant::now();
        let streams: Vec<_> = self.streams.borrow().values().cloned().collect();
        for stream in streams {
            stream.borrow_mut().ask_rung(now, rung, self);
        }
    }

    pub(super) fn flush_asks(&self) {
        if let Ok(kernel) = &self.kernel {
            kernel.borrow_mut().share.ways.flush();
        }
    }

    /// Every leg comes back to this worker, which is about to be handed over, and stays until
    /// [`Shared::resume_kernel`].
    pub(super) async fn yield_kernel(&self) {
        let Ok(kernel) = &self.kernel else { return };
        kernel.borrow_mut().rests = true;
        let streams: Vec<_> = self.streams.borrow().values().cloned().collect();
        let mut was_away = false;
        for stream in &streams {
            was_away |= stream.borrow_mut().yield_kernel(Instant::now(), self);
        }
        if was_away {
            // What was on its way arrives, and the tasks that receive read it.
            tokio::time::sleep(GRACE).await;
            tokio::task::yield_now().await;
        }
        for stream in &streams {
            stream.borrow_mut().settle_kernel(Instant::now(), self);
        }
    }

    /// The proxy goes on: legs may go to the kernel again.
    pub(super) fn resume_kernel(&self) {
        if let Ok(kernel) = &self.kernel {
            kernel.borrow_mut().rests = false;
        }
    }

    /// The worker ends: what it has in the kernel is taken out.
    pub(super) fn leave_kernel(&self) {
        let now = Instant::now();
        let streams: Vec<_> = self.streams.borrow().values().cloned().collect();
        for stream in streams {
            stream.borrow_mut().leave_kernel(now, self);
        }
    }
}

/// Streams that are seen to before packets get their turn: a route that changes may concern thousands.
const STREAMS_AT_ONCE: usize = 32;

/// Lets other tasks of the worker go on, now and then.
async fn let_others(nth: usize) {
    if nth % STREAMS_AT_ONCE == STREAMS_AT_ONCE - 1 {
        tokio::task::yield_now().await;
    }
}

/// Does what streams have to do a moment after they said so.
pub(super) async fn pace(shared: Rc<Shared>) {
    loop {
        shared.due.notified().await;
        tokio::time::sleep(GRACE).await;
        let Ok(kernel) = &shared.kernel else { return };
        let due = std::mem::take(&mut kernel.borrow_mut().due);
        for (nth, stream) in due.into_iter().filter_map(|stream| shared.stream(stream)).enumerate() {
            let_others(nth).await;
            stream.borrow_mut().pace(Instant::now(), &mut shared.io.borrow_mut(), &shared);
        }
    }
}

/// Takes answers about ways, and has the streams that they concern look again.
pub(super) async fn take_notes(shared: Rc<Shared>, mut inbox: Inbox) {
    loop {
        let mut note = Some(inbox.next().await);
        let Ok(kernel) = &shared.kernel else { return };
        let now = Instant::now();
        let mut streams = BTreeSet::new();
        while let Some(next) = note {
            streams.extend(kernel.borrow_mut().take(next, now));
            note = inbox.try_next();
        }
        for (nth, stream) in streams.into_iter().filter_map(|stream| shared.stream(stream)).enumerate() {
            let_others(nth).await;
            stream.borrow_mut().reconcile(Instant::now(), &shared);
        }
    }
}
