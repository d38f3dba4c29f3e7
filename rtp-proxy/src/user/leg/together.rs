//! Legs that get the same: one call sends it to all of them.
//!
//! A call costs a good part of a send (`docs/benchmarks.md`), and most legs of a track get what every other leg
//! gets.

use std::os::fd::RawFd;

use super::{LegOut, Way};
use crate::user::io_buffers::IoBuffers;
use crate::user::udp::{self, Destination, Run};

impl LegOut {
    /// Whether a batch may leave together with that of other legs: nothing of this leg's own comes behind it,
    /// and it leaves by one send per run.
    pub(super) fn goes_along(&self, runs: &[Run]) -> bool {
        let Way::Udp { segmented, .. } = &self.way else { return false };
        !self.report_due && (*segmented || runs.iter().all(|run| run.count == 1))
    }

    fn rtp(&self) -> Option<(RawFd, &Destination)> {
        match &self.way {
            Way::Udp { rtp_socket, rtp, .. } => Some((*rtp_socket, rtp)),
            Way::Channels { .. } => None,
        }
    }
}

/// Sends the whole batch to the legs that `io` names. Returns packets and bytes sent.
pub(crate) fn send_together(legs: &mut [LegOut], io: &IoBuffers) -> (u64, u64) {
    let IoBuffers { receive, order, runs, together, .. } = io;
    let bytes = receive.bytes();
    let mut total = (0, 0);
    let mut add = |leg: &mut LegOut, (packets, bytes)| {
        leg.packets += packets;
        leg.bytes += bytes;
        total = (total.0 + packets, total.1 + bytes);
    };
    for run in runs {
        let first = run.first as usize;
        let pieces = order.get(first..first + run.count as usize).unwrap_or(&[]);
        let whole = (pieces.len() as u64, pieces.iter().map(|piece| u64::from(piece.len)).sum());
        let mut rest = together.as_slice();
        while let [next, ..] = rest {
            let Some((socket, _)) = legs.get(*next).and_then(LegOut::rtp) else { return total };
            // One call is for one socket: legs of the other address family have theirs.
            let same = rest.iter().map_while(|at| legs.get(*at)?.rtp());
            let same = same.take_while(|(other, _)| *other == socket).map(|(_, to)| to).take(udp::MOST);
            let count = same.clone().count();
            let sent = if count > 1 { udp::send_same(socket, same, bytes, pieces, run.size) } else { 0 };
            let (done, others) = rest.split_at(sent.min(rest.len()));
            for at in done {
                if let Some(leg) = legs.get_mut(*at) {
                    add(leg, whole);
                }
            }
            rest = others;
            if sent < count
                && let [failed, others @ ..] = others
            {
                // Alone it finds out why, and what else may be done.
                if let Some(leg) = legs.get_mut(*failed) {
                    let sent = leg.send_run(bytes, pieces, run.size);
                    add(leg, sent);
                }
                rest = others;
            }
        }
    }
    total
}
