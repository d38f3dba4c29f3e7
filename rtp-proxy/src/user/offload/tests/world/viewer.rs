//! A viewer: what it was promised, what it got, and whether that is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use msm_graph::LegId;
use msm_media::{LegTrack, RtpView, Start, TrackInput};

use super::{World, at};
use crate::kernel::hop::{Hop, Rung, UserReason};
use crate::user::offload::Plan;

/// What a viewer must get while it plays, and what it got.
#[derive(Debug, Default)]
pub(super) struct Period {
    /// The number that the answer to PLAY named.
    pub(super) start: u16,
    pub(super) ssrc: u32,
    /// By id of the packet: how often it came, and its number.
    pub(super) got: BTreeMap<u64, (u32, u16)>,
    /// Id and number of the first in time.
    pub(super) first: Option<(u64, u16)>,
    /// Packets that had come before but waited for the worker when it ended.
    pub(super) excused: BTreeSet<u64>,
    /// First packet that came after it ended.
    pub(super) end: Option<u64>,
    /// Packets that were on their way through the kernel when it ended.
    pub(super) trailing: BTreeSet<u64>,
}

#[derive(Debug)]
pub(crate) struct Viewer {
    pub(crate) leg: LegId,
    pub(super) port: u16,
    pub(super) tcp: bool,
    pub(super) media: LegTrack,
    pub(super) playing: bool,
    pub(super) joins_at: Option<Instant>,
    /// It was paused; what is on its way through the kernel may still come.
    pub(super) stopping: bool,
    pub(super) periods: Vec<Period>,
    /// Packets that the kernel sent, by the counters.
    pub(crate) by_kernel: u64,
    pub(crate) moves: u64,
    pub(super) was: Option<Rung>,
}

impl Viewer {
    pub(super) fn receive(&mut self, packet: &[u8]) {
        let view = RtpView::parse(packet).unwrap();
        if !self.playing && !self.stopping {
            assert!(self.joins_at.is_some(), "{:?} does not play", self.leg);
            self.begin(self.media.start().unwrap());
        }
        let period = self.periods.last_mut().unwrap();
        if !self.playing {
            period.trailing.insert(id_of(packet));
        }
        assert_eq!(view.ssrc(), period.ssrc, "the SSRC never changes");
        period.first.get_or_insert((id_of(packet), view.seq()));
        let got = period.got.entry(id_of(packet)).or_insert((0, view.seq()));
        got.0 += 1;
        assert_eq!(got.1, view.seq(), "a packet has one number");
    }

    pub(super) fn arm(&mut self, now: Instant, media: &TrackInput) {
        match self.media.arm(now, media) {
            Some(start) => self.begin(start),
            // Amid a frame, for all that is known: the next packet or a while tells.
            None => self.joins_at = Some(now + Duration::from_millis(1)),
        }
    }

    pub(super) fn begin(&mut self, start: Start) {
        (self.playing, self.joins_at) = (true, None);
        self.periods.push(Period { start: start.seq, ssrc: start.ssrc, ..Period::default() });
    }

    pub(super) fn plan(&self, media: &TrackInput, hop: &Hop) -> Result<Plan, UserReason> {
        if self.tcp {
            return Err(UserReason::Transport("interleaved TCP"));
        }
        let projection = self.media.steady_projection(media).ok_or(UserReason::Unsteady)?;
        let viewer = IpAddr::from([10, 0, 1, 2]);
        Ok(Plan {
            src: at("10.0.1.1:8060"),
            dst: SocketAddr::new(viewer, self.port),
            hop: hop.clone(),
            edit: *projection.edit(),
        })
    }
}

impl World {
    pub(crate) fn check(&self, viewer: &Viewer) {
        for period in &viewer.periods {
            self.check_period(viewer, period);
        }
    }

    fn check_period(&self, viewer: &Viewer, period: &Period) {
        let Some((first, out)) = period.first else {
            let missed = self.arrived.range(..period.end.unwrap_or(u64::MAX)).next_back();
            assert!(period.end.is_some() || missed.is_none(), "{:?} got nothing", viewer.leg);
            return;
        };
        // Ids are numbers without gaps within a run, so the promised packet has this id.
        let ahead = i64::from(out.wrapping_sub(period.start) as i16);
        assert!(ahead >= 0, "{:?} starts {} before the promise", viewer.leg, -ahead);
        let promised = first - ahead as u64;
        let end = period.end.unwrap_or(u64::MAX);
        let mut last: Option<(u64, u32, u16)> = None;
        for (id, arrived) in self.arrived.range(promised..end) {
            let got = period.got.get(id).map_or(0, |(times, _)| *times);
            let excused = period.excused.contains(id);
            assert!(
                got <= arrived.times && (got >= 1 || excused),
                "{:?} got packet {id} {got} times, it came {} times (excused: {excused}, promised {promised})",
                viewer.leg,
                arrived.times,
            );
            let Some((_, out)) = period.got.get(id) else { continue };
            if let Some((before, run, number)) = last {
                let step = if run == arrived.run { (id - before) as u16 } else { 1 };
                assert_eq!(out.wrapping_sub(number), step, "{:?}: numbers at packet {id}", viewer.leg);
            }
            last = Some((*id, arrived.run, *out));
        }
        // A gate that is open lets pass what comes later than what it opened for.
        let stray = period
            .got
            .keys()
            .find(|id| **id + 64 < promised || (**id >= end && !period.trailing.contains(id)));
        assert_eq!(stray, None, "{:?}: a packet from outside the period", viewer.leg);
    }
}

pub(super) fn id_of(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[12..20].try_into().unwrap())
}
