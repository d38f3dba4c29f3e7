//! What a worker has counted.

use std::time::Instant;

use super::{Shared, WorkerHandle};
use crate::stats::{QueueStats, Snapshot, SocketStats, ThreadStats};
use crate::user::udp;

impl Shared {
    pub(super) fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        self.count_overflows();
        let mut snapshot = Snapshot::default();
        let mut drops = *self.drops.borrow();
        let mut sockets: Vec<SocketStats> = Vec::new();
        let mut note = |socket: &'static str, receive_buffer: usize| {
            let receive_buffer = receive_buffer as u64;
            match sockets.iter_mut().find(|known| known.socket == socket) {
                Some(known) => known.receive_buffer = known.receive_buffer.min(receive_buffer),
                None => sockets.push(SocketStats { socket, receive_buffer, overflows: 0 }),
            }
        };
        if self.index == 0 {
            for pair in [&self.players.v4, &self.players.v6].into_iter().flatten() {
                note("player_rtp", pair.receive_buffer);
                note("player_rtcp", pair.receive_buffer);
            }
        }
        for pair in self.pairs.borrow().values() {
            note("input_rtp", pair.receive_buffer);
            note("input_rtcp", pair.receive_buffer);
        }
        for stream in self.streams.borrow().values() {
            stream.borrow_mut().look(now, self);
            let stream = stream.borrow();
            drops.add(&stream.all_drops());
            snapshot.streams.push(stream.stats(now, self));
        }
        for (name, overflows) in self.overflows.borrow().iter() {
            if let Some(socket) = sockets.iter_mut().find(|socket| socket.socket == *name) {
                socket.overflows = *overflows;
            }
        }
        snapshot.drops = drops.named();
        snapshot.sockets = sockets;
        let (mut depth, mut late) = (0, self.late_frames.get());
        let (mut guests, mut guests_dropped) = (0, self.guests_dropped.get());
        for slot in self.conns.borrow().values() {
            depth += slot.depth();
            late += slot.late();
            let (waiting, dropped) = slot.guest_depth();
            guests += waiting;
            guests_dropped += dropped;
        }
        let (commands, refused) = self.workers.get(self.index).map_or((0, 0), WorkerHandle::queue);
        snapshot.queues = vec![
            QueueStats { queue: "interleaved", depth, dropped: late },
            QueueStats { queue: "frames", depth: guests, dropped: guests_dropped },
            QueueStats { queue: "commands", depth: commands, dropped: refused },
            QueueStats {
                queue: "reports",
                depth: self.backlog.borrow().len() as u64,
                dropped: *self.backlog_dropped.borrow(),
            },
        ];
        snapshot.threads =
            vec![ThreadStats { thread: format!("data-{}", self.index), cpu: udp::thread_cpu() }];
        snapshot
    }
}
