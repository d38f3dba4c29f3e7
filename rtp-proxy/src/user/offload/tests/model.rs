//! The programs as values: tables, and what they do with one datagram or super-packet.

use std::cell::Cell;
use std::collections::HashMap;

use msm_fastpath::gso::Segments;
use msm_fastpath::progress::{Arrival, Progress};
use msm_fastpath::{
    FlowEntry, FlowKey, FlowStats, GateEntry, GroupMode, LegEntry, LegStats, PortKey, RtpFixed, Step,
    Verdict, decide, rewrite,
};

use crate::kernel::table::{Table, TableError};

/// What one copy looks like, and to which port it goes.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    pub(crate) to: u16,
    pub(crate) packet: Vec<u8>,
}

/// Tables and clock of the modelled kernel.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) nanos: u64,
    pub(crate) flows: HashMap<FlowId, FlowEntry>,
    pub(crate) stats: HashMap<u32, FlowStats>,
    pub(crate) legs: HashMap<u32, LegEntry>,
    pub(crate) gates: HashMap<u32, GateEntry>,
    pub(crate) counts: HashMap<u32, LegStats>,
    /// What the program meets right after the next gate was written, before anything is read, or right before; and then
    /// what it did with it.
    pub(crate) racing: Vec<(FlowKey, Vec<u8>)>,
    pub(crate) racing_ahead: Vec<(FlowKey, Vec<u8>)>,
    pub(crate) raced: (Vec<Copy>, Vec<Vec<u8>>),
    /// Writes to fail from now on.
    pub(crate) broken: bool,
    /// After so many writes more of flows, legs, statistics and counters one fails.
    pub(crate) refuse: Option<u32>,
    /// Flows stay, whoever removes them.
    pub(crate) sticky: bool,
    /// The next look at the books finds the number of the last packet and the window of the one before.
    pub(crate) torn: Cell<bool>,
    /// The program is not attached any more.
    pub(crate) detached: bool,
}

type FlowId = ([u8; 16], [u8; 16], [u8; 2], [u8; 2], u32);

fn bytes(key: &FlowKey) -> FlowId {
    (key.src, key.dst, key.src_port, key.dst_port, key.ifindex)
}

fn refused() -> TableError {
    TableError::Refused { map: "FLOWS", errno: "EPERM".to_owned() }
}

impl Model {
    fn race(&mut self, packets: Vec<(FlowKey, Vec<u8>)>) {
        for (key, packet) in packets {
            let mut copies = Vec::new();
            if self.ingress(&key, std::slice::from_ref(&packet), &mut copies) {
                self.raced.1.push(packet);
            }
            self.raced.0.extend(copies);
        }
    }

    fn write(&mut self) -> Result<(), TableError> {
        self.refuse = match self.refuse {
            Some(0) => {
                self.refuse = None;
                return Err(refused());
            }
            left => left.map(|left| left - 1),
        };
        Ok(())
    }
}

impl Table for Model {
    fn put_flow(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<(), TableError> {
        self.write()?;
        if self.broken {
            return Err(refused());
        }
        let (first, legs) = (entry.first_leg, u32::from(entry.legs));
        assert!((first..first + legs).all(|slot| self.legs.contains_key(&slot)), "a slot that nobody wrote");
        self.flows.insert(bytes(key), *entry);
        Ok(())
    }
    fn remove_flow(&mut self, key: &FlowKey) -> Result<(), TableError> {
        if self.sticky {
            return Err(refused());
        }
        self.flows.remove(&bytes(key));
        Ok(())
    }
    fn put_flow_stats(&mut self, index: u32, stats: &FlowStats) -> Result<(), TableError> {
        self.write()?;
        assert!(self.flows.values().all(|flow| flow.stats != index), "the program writes to it");
        self.stats.insert(index, *stats);
        Ok(())
    }
    fn flow_stats(&self, index: u32) -> Result<FlowStats, TableError> {
        let mut stats = self.stats.get(&index).copied().unwrap_or(FlowStats::ZERO);
        if self.torn.take() {
            stats.window >>= 1;
        }
        Ok(stats)
    }
    fn put_leg(&mut self, slot: u32, entry: &LegEntry) -> Result<(), TableError> {
        self.write()?;
        let walked = self
            .flows
            .values()
            .any(|flow| (flow.first_leg..flow.first_leg + u32::from(flow.legs)).contains(&slot));
        if walked && let Some(old) = self.legs.get(&slot) {
            let gate = self.gates.get(&old.id).copied().unwrap_or_default_gate();
            assert_eq!(gate.state, 0, "slot {slot} is written while its gate is open");
            assert_eq!(old.id, entry.id, "slot {slot} changes its gate while it is walked");
        }
        self.legs.insert(slot, *entry);
        Ok(())
    }
    fn put_gate(&mut self, id: u32, gate: GateEntry) -> Result<(), TableError> {
        let ahead = std::mem::take(&mut self.racing_ahead);
        self.race(ahead);
        self.gates.insert(id, gate);
        let behind = std::mem::take(&mut self.racing);
        self.race(behind);
        Ok(())
    }
    fn gate(&self, id: u32) -> Result<GateEntry, TableError> {
        Ok(self.gates.get(&id).copied().unwrap_or_default_gate())
    }
    fn clear_leg_stats(&mut self, id: u32) -> Result<(), TableError> {
        self.write()?;
        self.counts.remove(&id);
        Ok(())
    }
    fn leg_stats(&self, id: u32) -> Result<LegStats, TableError> {
        Ok(self.counts.get(&id).copied().unwrap_or(super::super::NOTHING))
    }
    fn put_port(&mut self, _: &PortKey, _: Option<u32>) -> Result<(), TableError> {
        Ok(())
    }
    fn now(&self) -> u64 {
        self.nanos
    }
}

trait OrShut {
    fn unwrap_or_default_gate(self) -> GateEntry;
}

impl OrShut for Option<GateEntry> {
    fn unwrap_or_default_gate(self) -> GateEntry {
        self.unwrap_or_else(|| msm_fastpath::Gate::Disabled.into())
    }
}

/// A buffer of one datagram or several that is on its way through the program.
#[derive(Debug)]
pub(crate) struct Passing {
    packets: Vec<Vec<u8>>,
    entry: FlowEntry,
    progress: Progress,
    arrival: Arrival,
    newest: bool,
    booked: bool,
    copied: bool,
    /// Slots that it has been at.
    walked: u32,
}

impl Passing {
    pub(crate) fn packets(&self) -> &[Vec<u8>] {
        &self.packets
    }
}

impl Model {
    /// What the program does with one datagram, or with one super-packet of several. Returns whether it goes up.
    pub(crate) fn ingress(&mut self, key: &FlowKey, packets: &[Vec<u8>], copies: &mut Vec<Copy>) -> bool {
        match self.enter(key, packets) {
            Some(passing) => self.leave(passing, copies),
            None => true,
        }
    }

    /// The program has found the flow and judged the packets; nothing is in the books yet. `None`: they go up.
    pub(crate) fn enter(&mut self, key: &FlowKey, packets: &[Vec<u8>]) -> Option<Passing> {
        let entry = self.flows.get(&bytes(key)).copied().filter(|_| !self.detached)?;
        if entry.mode == GroupMode::ToUser as u8 {
            return None;
        }
        let mut stats = self.stats.get(&entry.stats).copied()?;
        assert_eq!(entry.tag, key.tag());
        let arrival = Arrival::new(self.nanos, entry.clock_rate);
        let mut progress = Progress::of(&stats);
        for packet in packets {
            let header = *RtpFixed::parse(packet).unwrap();
            if decide(&header, packet.len(), &entry.admission) != Verdict::Forward
                || !progress.continues(header.seq(), header.timestamp(), &arrival)
            {
                stats.strange += 1;
                self.stats.insert(entry.stats, stats);
                return None;
            }
            progress.take(header.seq(), header.timestamp(), &arrival);
        }
        let newest = Progress::of(&stats).is_newest(RtpFixed::parse(&packets[0]).unwrap().seq());
        let copied = entry.flags & FlowEntry::COPY_TO_USER != 0;
        let packets = packets.to_vec();
        Some(Passing { packets, entry, progress, arrival, newest, booked: false, copied, walked: 0 })
    }

    fn segments(passing: &Passing) -> Segments {
        let total = passing.packets.iter().map(Vec::len).sum::<usize>() as u32;
        let size = if passing.packets.len() > 1 { passing.packets[0].len() as u32 } else { 0 };
        Segments::new(total, size).unwrap()
    }

    /// It is in the books.
    pub(crate) fn book(&mut self, passing: &mut Passing) {
        if !std::mem::replace(&mut passing.booked, true) {
            let stats = self.stats.get_mut(&passing.entry.stats).unwrap();
            passing.progress.store(stats, &Self::segments(passing), &passing.arrival);
        }
    }

    /// It is sent to the leg of the next slot. Returns whether there was one.
    pub(crate) fn walk(&mut self, passing: &mut Passing, copies: &mut Vec<Copy>) -> bool {
        self.book(passing);
        let entry = passing.entry;
        if passing.walked == u32::from(entry.legs) {
            return false;
        }
        let leg = self.legs[&(entry.first_leg + passing.walked)];
        passing.walked += 1;
        let first = *RtpFixed::parse(&passing.packets[0]).unwrap();
        let gate = self.gates.get(&leg.id).copied().unwrap_or_default_gate();
        let (gate, step) = gate.step(first.seq(), passing.newest);
        self.gates.insert(leg.id, gate);
        passing.copied |= step == Step::Stop;
        if !step.passes() {
            return true;
        }
        let edit = match GroupMode::from_u8(entry.mode).unwrap() {
            GroupMode::Opaque | GroupMode::ToUser => msm_fastpath::RtpEdit::TRANSPARENT,
            GroupMode::Common => entry.edit,
            GroupMode::PerLeg => leg.edit,
        };
        let counts = self.counts.entry(leg.id).or_insert(super::super::NOTHING);
        for packet in &passing.packets {
            let mut copy = packet.clone();
            let header = rewrite(RtpFixed::parse(packet).unwrap(), &edit);
            copy[..12].copy_from_slice(&header.to_bytes());
            counts.packets += 1;
            counts.bytes += packet.len() as u64;
            copies.push(Copy { to: u16::from_be_bytes(leg.dst_port), packet: copy });
        }
        true
    }

    /// It has been at every leg. Returns whether it goes up.
    pub(crate) fn leave(&mut self, mut passing: Passing, copies: &mut Vec<Copy>) -> bool {
        while self.walk(&mut passing, copies) {}
        let stats = self.stats.get_mut(&passing.entry.stats).unwrap();
        passing.progress.settle(stats, &Self::segments(&passing), passing.copied);
        passing.copied
    }
}
