//! A camera, a lossy network, the modelled kernel, one worker's track and its viewers, on a virtual clock.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use msm_fastpath::FlowKey;
use msm_graph::LegId;
use msm_media::rtp::{PacketBuilder, set_header};
use msm_media::{
    Batch, ClockRate, Codec, Edit, InputConfig, InputOutput, LegConfig, LegTrack, Pass, ResumePolicy,
    RtpView, TrackInput,
};

use super::model::{Copy, Model, Passing};
use crate::kernel::hop::{Hop, Ingress, Rung, UserReason};
use crate::kernel::slots::{Extent, Holder, Quota, SlotRange, Slots};
use crate::user::offload::{Candidate, Epoch, Kernel, Offload, Source};

mod viewer;

use viewer::{Viewer, id_of};

/// Random numbers that a seed fixes (SplitMix64).
#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What came to the proxy of one packet.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    times: u32,
    seq: u16,
    run: u32,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Instant,
    pub(crate) model: Model,
    slots: Slots,
    epoch: Epoch,
    pub(crate) offload: Offload,
    pub(crate) media: TrackInput,
    batch: Batch,
    edits: Vec<Edit>,
    socket: VecDeque<Vec<u8>>,
    pub(crate) viewers: Vec<Viewer>,
    pub(crate) source: Source,
    /// What the camera stamps next.
    seq: u16,
    ts: u32,
    ssrc: u32,
    run: u32,
    next_id: u64,
    arrived: BTreeMap<u64, Arrived>,
    /// Packets that a slow way holds back.
    delayed: Vec<(u32, Vec<u8>)>,
    /// No loss, no reordering, no duplicates while a run begins.
    calm: u32,
    next_leg: u64,
    pub(crate) restarts: u64,
    pub(crate) ingress: Result<u32, UserReason>,
    looked_at: Instant,
    pub(crate) mac: u8,
    /// What is on its way through the program, which sees one buffer after the other.
    passing: Option<Passing>,
}

const CLOCK: u32 = 90_000;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::now();
        let config = InputConfig {
            clock: ClockRate::new(CLOCK).unwrap(),
            codec: Codec::Other,
            payload_types: vec![96],
            feedback: false,
            own_ssrc: 1,
            cname: "msm".to_owned(),
        };
        let model = Model { nanos: 1_000_000_000, ..Model::default() };
        let extent = Extent { legs: 0..64, ids: 0..64, flows: 0..8 };
        let mut rng = Rng(seed);
        let (seq, ts, ssrc) = (rng.next() as u16, rng.next() as u32, 0x1000);
        Self {
            rng,
            now,
            epoch: Epoch::new(now, model.nanos),
            model,
            slots: Slots::new(&extent, Quota::NONE),
            offload: Offload::new("camera".to_owned()),
            media: TrackInput::new(now, config),
            batch: Batch::default(),
            edits: Vec::new(),
            socket: VecDeque::new(),
            viewers: Vec::new(),
            source: Source {
                peer: at("10.0.0.2:40000"),
                local: at("10.0.0.1:8062"),
                ingress: Ingress { ifindex: 5, interface: "cam".to_owned(), mtu: 1_500, rung: Rung::Tcx },
                clock_rate: CLOCK,
            },
            seq,
            ts,
            ssrc,
            run: 0,
            next_id: 0,
            arrived: BTreeMap::new(),
            delayed: Vec::new(),
            calm: 20,
            next_leg: 0,
            restarts: 0,
            ingress: Ok(5),
            looked_at: now,
            mac: 1,
            passing: None,
        }
    }

    pub(crate) fn pass_time(&mut self, micros: u64) {
        self.now += Duration::from_micros(micros);
        self.model.nanos += micros * 1_000;
    }

    /// The camera sends a burst; the network does with it what it likes.
    pub(crate) fn send(&mut self, packets: u64) {
        self.ts = self.ts.wrapping_add(3_000);
        let mut burst = Vec::new();
        for _ in 0..packets {
            let id = self.next_id;
            self.next_id += 1;
            let packet =
                PacketBuilder::new(96, self.seq, self.ts, self.ssrc).marker().build(&id.to_be_bytes());
            self.seq = self.seq.wrapping_add(1);
            if self.calm > 0 {
                self.calm -= 1;
                burst.push(packet);
                continue;
            }
            match self.rng.below(60) {
                0 => {}
                1 => self.delayed.push((1 + self.rng.below(6) as u32, packet)),
                2 => burst.extend([packet.clone(), packet]),
                3 => {
                    self.delayed.push((1 + self.rng.below(6) as u32, packet.clone()));
                    burst.push(packet);
                }
                _ => burst.push(packet),
            }
        }
        for (left, _) in &mut self.delayed {
            *left -= 1;
        }
        burst.extend(self.delayed.extract_if(.., |(left, _)| *left == 0).map(|(_, packet)| packet));
        let whole = self.rng.one_in(3);
        if whole && !burst.is_empty() {
            self.arrive(&burst);
        } else {
            for packet in burst {
                self.arrive(&[packet]);
            }
        }
    }

    fn arrive(&mut self, packets: &[Vec<u8>]) {
        self.enter(packets);
        self.leave_program();
    }

    /// Packets come in at the program, in one buffer.
    fn enter(&mut self, packets: &[Vec<u8>]) {
        self.leave_program();
        for packet in packets {
            let view = RtpView::parse(packet).unwrap();
            let (run, seq) = (self.run, view.seq());
            let known = self.arrived.entry(id_of(packet)).or_insert(Arrived { times: 0, seq, run });
            known.times += 1;
        }
        let ifindex = self.ingress.clone().unwrap_or(7);
        let key = FlowKey::new(self.source.peer, self.source.local, ifindex);
        self.passing = self.model.enter(&key, packets);
        if self.passing.is_none() {
            self.socket.extend(packets.iter().cloned());
        }
    }

    /// The next packets come in, and get no further yet than into the program, or to so many legs if `legs` says so.
    pub(crate) fn send_part_of_the_way(&mut self, packets: u64, legs: Option<u32>) {
        self.ts = self.ts.wrapping_add(3_000);
        let burst: Vec<_> = (0..packets)
            .map(|_| {
                let id = self.next_id.to_be_bytes();
                let packet = PacketBuilder::new(96, self.seq, self.ts, self.ssrc).marker().build(&id);
                (self.next_id, self.seq) = (self.next_id + 1, self.seq.wrapping_add(1));
                packet
            })
            .collect();
        self.enter(&burst);
        let mut copies = Vec::new();
        if let (Some(passing), Some(legs)) = (&mut self.passing, legs) {
            self.model.book(passing);
            for _ in 0..legs {
                self.model.walk(passing, &mut copies);
            }
        }
        self.hand_out(copies);
    }

    /// The network loses a packet.
    pub(crate) fn lose(&mut self) {
        (self.next_id, self.seq) = (self.next_id + 1, self.seq.wrapping_add(1));
    }

    /// What is on its way through the program gets to its end.
    pub(crate) fn leave_program(&mut self) {
        let Some(passing) = self.passing.take() else { return };
        let (packets, mut copies) = (passing.packets().to_vec(), Vec::new());
        if self.model.leave(passing, &mut copies) {
            self.socket.extend(packets);
        }
        self.hand_out(copies);
    }

    fn hand_out(&mut self, copies: Vec<Copy>) {
        for Copy { to, packet } in copies {
            let viewer = self.viewers.iter_mut().find(|viewer| viewer.port == to);
            viewer.expect("a copy for a viewer that is gone").receive(&packet);
        }
    }

    /// Whether something is on its way through the program.
    pub(crate) fn has_passing(&self) -> bool {
        self.passing.is_some()
    }

    /// Whether something waits for the worker.
    pub(crate) fn has_work(&self) -> bool {
        !self.socket.is_empty()
    }

    /// The worker's turn: it reads some or all of what waits.
    pub(crate) fn work(&mut self) {
        while !self.socket.is_empty() {
            let most = 1 + self.rng.below(12) as usize;
            let packets: Vec<_> = self.socket.drain(..most.min(self.socket.len())).collect();
            self.handle(&packets);
            if self.rng.one_in(4) {
                break;
            }
        }
    }

    fn handle(&mut self, packets: &[Vec<u8>]) {
        let emptied = self.socket.is_empty();
        let Self { now, model, slots, epoch, offload, media, batch, edits, viewers, .. } = self;
        let mut kernel = Kernel { table: model, slots, epoch: *epoch };
        offload.before_batch(&mut kernel, media);
        media.handle_rtp(*now, packets.iter().map(Vec::as_slice), batch);
        offload.divide(*now, &mut kernel, batch);
        for (index, viewer) in viewers.iter_mut().enumerate() {
            if let Some((run, head)) = offload.take_sent(viewer.leg) {
                viewer.media.sent_elsewhere(run, head);
            }
            let part = offload.part(index, viewer.leg);
            let bytes = |arrival: usize| {
                let index = batch.arrivals()[arrival].index;
                packets.get(index as usize).cloned().unwrap_or_else(|| batch.held().to_vec())
            };
            let sent: Vec<_> = match viewer.media.handle_batch(*now, media, batch, part, edits) {
                Pass::Nothing => Vec::new(),
                Pass::All => (0..batch.arrivals().len()).map(bytes).collect(),
                Pass::Select => edits.iter().map(|edit| bytes(edit.arrival as usize)).collect(),
                Pass::Rewrite => edits
                    .iter()
                    .map(|edit| {
                        let mut packet = bytes(edit.arrival as usize);
                        set_header(&mut packet, edit.seq, edit.ts, edit.ssrc);
                        packet
                    })
                    .collect(),
            };
            for packet in sent {
                viewer.receive(&packet);
            }
        }
        offload.after_batch(*now, &mut kernel, media, emptied);
        while !matches!(media.poll_output(), InputOutput::Timeout(_)) {}
    }

    /// What timers do: joins that waited, transitions that are due, a look at everything.
    pub(crate) fn tick(&mut self) {
        let Self { now, model, slots, epoch, offload, media, viewers, .. } = self;
        let mut kernel = Kernel { table: model, slots, epoch: *epoch };
        if offload.due().is_some_and(|due| due <= *now) {
            offload.step(*now, &mut kernel, media);
        }
        for viewer in viewers.iter_mut() {
            viewer.stopping = offload.is_stopping(viewer.leg);
            if viewer.joins_at.is_some_and(|at| at <= *now) && !offload.is_stopping(viewer.leg) {
                viewer.joins_at = None;
                offload.look(*now, &mut kernel, media);
                if let Some((run, head)) = offload.take_sent(viewer.leg) {
                    viewer.media.sent_elsewhere(run, head);
                }
                viewer.arm(*now, media);
            }
        }
        // Twice a second, as a stream looks.
        if self.looked_at + Duration::from_millis(500) <= self.now {
            self.reconcile();
        }
    }

    pub(crate) fn reconcile(&mut self) {
        self.looked_at = self.now;
        let hop = Hop {
            ifindex: 9,
            interface: "viewers".to_owned(),
            src_mac: [2; 6],
            dst_mac: [self.mac; 6],
            mtu: 1_500,
            local: true,
        };
        let Self { now, model, slots, epoch, offload, media, viewers, source, ingress, .. } = self;
        let mut kernel = Kernel { table: model, slots, epoch: *epoch };
        let source = ingress.clone().map(|ifindex| {
            source.ingress.ifindex = ifindex;
            source.clone()
        });
        let candidates = viewers
            .iter()
            .map(|viewer| Candidate {
                leg: viewer.leg,
                active: viewer.playing || viewer.joins_at.is_some(),
                plan: viewer.plan(media, &hop),
            })
            .collect();
        offload.look(*now, &mut kernel, media);
        offload.reconcile(*now, &mut kernel, media, source, candidates);
        for viewer in viewers.iter_mut() {
            viewer.by_kernel += offload.take_counts(viewer.leg, &kernel).packets;
            let rung = offload.rung(viewer.leg).ok();
            viewer.moves += u64::from(rung != viewer.was);
            viewer.was = rung;
        }
    }

    /// A viewer sets up and plays.
    pub(crate) fn join(&mut self, tcp: bool) {
        self.next_leg += 1;
        let leg = LegId::new(self.next_leg, [0; 10]);
        let config = LegConfig { resume: ResumePolicy::AtOnce, ..LegConfig::default() };
        self.viewers.push(Viewer {
            leg,
            port: 20_000 + self.next_leg as u16,
            tcp,
            media: LegTrack::new(config),
            playing: false,
            joins_at: None,
            stopping: false,
            periods: Vec::new(),
            by_kernel: 0,
            moves: 0,
            was: None,
        });
        self.play(self.viewers.len() - 1);
    }

    pub(crate) fn play(&mut self, index: usize) {
        let Self { now, model, slots, epoch, offload, media, viewers, .. } = self;
        let mut kernel = Kernel { table: model, slots, epoch: *epoch };
        let Some(viewer) = viewers.get_mut(index) else { return };
        if viewer.playing || viewer.joins_at.is_some() || media.current().is_none() {
            return;
        }
        if let Some((run, head)) = offload.take_sent(viewer.leg) {
            viewer.media.sent_elsewhere(run, head);
        }
        let ready = offload.watch(viewer.leg, *now, &mut kernel, media);
        if ready > *now {
            viewer.joins_at = Some(ready);
        } else {
            offload.look(*now, &mut kernel, media);
            viewer.arm(*now, media);
        }
    }

    pub(crate) fn pause(&mut self, index: usize) {
        let Self { now, model, slots, epoch, offload, viewers, socket, next_id, .. } = self;
        let mut kernel = Kernel { table: model, slots, epoch: *epoch };
        let Some(viewer) = viewers.get_mut(index) else { return };
        viewer.joins_at = None;
        offload.pause(viewer.leg, *now, &mut kernel);
        viewer.stopping |= offload.is_stopping(viewer.leg);
        if let Some((run, head)) = offload.take_sent(viewer.leg) {
            viewer.media.sent_elsewhere(run, head);
        }
        viewer.media.pause();
        if std::mem::take(&mut viewer.playing)
            && let Some(period) = viewer.periods.last_mut()
        {
            period.excused = socket.iter().map(|packet| id_of(packet)).collect();
            period.excused.extend(self.delayed.iter().map(|(_, packet)| id_of(packet)));
            let passing = self.passing.iter().flat_map(Passing::packets);
            period.excused.extend(passing.map(|packet| id_of(packet)));
            period.end = Some(*next_id);
        }
    }

    pub(crate) fn leave(&mut self, index: usize) -> Option<Viewer> {
        self.pause(index);
        let leg = self.viewers.get(index)?.leg;
        let Self { now, model, slots, epoch, offload, media, .. } = self;
        let mut kernel = Kernel { table: model, slots, epoch: *epoch };
        let rest = offload.take_counts(leg, &kernel).packets;
        offload.forget(leg, *now, &mut kernel, media);
        let mut viewer = self.viewers.swap_remove(index);
        viewer.by_kernel += rest;
        Some(viewer)
    }

    pub(crate) fn ask(&mut self, index: usize, rung: Rung) {
        if let Some(viewer) = self.viewers.get(index) {
            self.offload.ask(viewer.leg, Some(rung));
        }
        self.reconcile();
    }

    pub(crate) fn rung(&self, index: usize) -> Option<Rung> {
        self.offload.rung(self.viewers.get(index)?.leg).ok()
    }

    /// A packet passes the program just as the gate of a leg is written that pauses: right `ahead` of that, or before
    /// its number is read.
    pub(crate) fn pause_at_a_packet(&mut self, index: usize, ahead: bool) {
        self.ts = self.ts.wrapping_add(3_000);
        let packet = PacketBuilder::new(96, self.seq, self.ts, self.ssrc).build(&self.next_id.to_be_bytes());
        let (run, seq) = (self.run, self.seq);
        self.arrived.insert(self.next_id, Arrived { times: 1, seq, run });
        (self.seq, self.next_id) = (self.seq.wrapping_add(1), self.next_id + 1);
        let racing = if ahead { &mut self.model.racing_ahead } else { &mut self.model.racing };
        racing.push((self.source.key(), packet));
        self.pause(index);
        if let Some(period) = self.viewers.get_mut(index).and_then(|viewer| viewer.periods.last_mut()) {
            period.end = period.end.map(|end| end - 1);
        }
        let (copies, up) = std::mem::take(&mut self.model.raced);
        self.hand_out(copies);
        self.socket.extend(up);
    }

    /// Number of the last packet that a viewer got, and the one that its last PLAY was told.
    pub(crate) fn numbers(&self, index: usize) -> Option<(u16, u16)> {
        let mut periods = self.viewers.get(index)?.periods.iter().rev();
        let latest = periods.next()?;
        let before = periods.next()?;
        let (_, (_, last)) = before.got.last_key_value()?;
        Some((*last, latest.start))
    }

    /// The camera starts anew: another SSRC, or a jump of the numbers.
    pub(crate) fn restart(&mut self) {
        // What is on its way arrives before.
        self.leave_program();
        let delayed = std::mem::take(&mut self.delayed);
        for (_, packet) in delayed {
            self.arrive(&[packet]);
        }
        while !self.socket.is_empty() {
            self.work();
        }
        self.pass_time(1_500_000);
        self.tick();
        self.restarts += 1;
        self.run += 1;
        if self.rng.one_in(2) {
            self.ssrc += 1;
            self.seq = self.rng.next() as u16;
        } else {
            self.seq = self.seq.wrapping_add(10_000 + self.rng.below(40_000) as u16);
        }
        self.ts = self.rng.next() as u32;
        self.calm = 20;
    }

    /// The camera starts anew, and the worker has met its first packets before the program is done with the last one
    /// of before.
    pub(crate) fn restart_beside(&mut self) {
        self.restarts += 1;
        self.run += 1;
        self.ssrc += 1;
        (self.seq, self.ts) = (self.rng.next() as u16, self.rng.next() as u32);
        for _ in 0..8 {
            let id = self.next_id;
            let packet =
                PacketBuilder::new(96, self.seq, self.ts, self.ssrc).marker().build(&id.to_be_bytes());
            self.arrived.insert(id, Arrived { times: 1, seq: self.seq, run: self.run });
            (self.next_id, self.seq) = (id + 1, self.seq.wrapping_add(1));
            self.socket.push_back(packet);
        }
        while !self.socket.is_empty() {
            self.work();
        }
        self.leave_program();
        self.calm = 20;
    }

    /// The proxy is about to be handed over.
    pub(crate) fn hand_over(&mut self) {
        let Self { now, model, slots, epoch, offload, media, .. } = self;
        offload.give_up(*now, &mut Kernel { table: model, slots, epoch: *epoch }, media);
        self.leave_program();
        while !self.socket.is_empty() {
            self.work();
        }
        let Self { now, model, slots, epoch, offload, media, .. } = self;
        offload.settle(*now, &mut Kernel { table: model, slots, epoch: *epoch }, media);
    }

    /// Everything that is on its way arrives.
    pub(crate) fn settle(&mut self) {
        self.calm = u32::MAX;
        for _ in 0..40 {
            self.send(2);
            while !self.socket.is_empty() {
                self.work();
            }
            self.pass_time(20_000);
            self.tick();
        }
        self.reconcile();
    }

    /// Indices of flow statistics that others would be given now.
    pub(crate) fn rest(&mut self) -> Vec<u32> {
        let (now, others) = (self.now, Holder::new("others", [10, 0, 0, 3].into()));
        std::iter::from_fn(|| self.slots.take_flow(&others, now).ok()).collect()
    }

    /// Somebody else takes every slot of legs.
    pub(crate) fn take_all_slots(&mut self) -> Vec<SlotRange> {
        let (now, others) = (self.now, Holder::new("others", [10, 0, 0, 3].into()));
        std::iter::from_fn(|| self.slots.take_slots(&others, 1, now).ok()).collect()
    }

    /// And gives them back.
    pub(crate) fn give_slots(&mut self, ranges: Vec<SlotRange>) {
        let (now, others) = (self.now, Holder::new("others", [10, 0, 0, 3].into()));
        for range in ranges {
            self.slots.give_slots(&others, range, now);
        }
    }

    /// Slots and ids of legs and flows that others would be given now.
    pub(crate) fn spare(&mut self) -> (usize, usize, usize) {
        let (now, others) = (self.now, Holder::new("others", [10, 0, 0, 3].into()));
        let slots = std::iter::from_fn(|| self.slots.take_slots(&others, 1, now).ok()).count();
        let ids = std::iter::from_fn(|| self.slots.take_id(&others, 0, now).ok()).count();
        (slots, ids, self.rest().len())
    }

    /// What every viewer got, and what was counted.
    pub(crate) fn check_all(&self) {
        for viewer in &self.viewers {
            self.check(viewer);
        }
        self.check_statistics();
    }

    /// Packets that came and were admitted, and what the statistics say of it.
    pub(crate) fn check_statistics(&self) {
        let came: u64 = self.arrived.values().map(|arrived| u64::from(arrived.times)).sum();
        let totals = self.media.stats().totals();
        assert_eq!(totals.packets, came, "packets counted");
        let bytes = came * 20;
        assert_eq!(totals.bytes, bytes, "bytes counted");
        let current: Vec<_> = self.arrived.values().filter(|arrived| arrived.run == self.run).collect();
        if self.restarts == 0
            && let (Some(first), Some(last)) = (current.first(), current.last())
        {
            let expected = self.next_id.min(u64::from(last.seq.wrapping_sub(first.seq)) + 1);
            assert_eq!(totals.expected % 65_536, expected % 65_536, "highest number");
        }
    }
}
