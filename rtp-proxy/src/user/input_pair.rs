//! A pair of ports that cameras and publishers send to.
//!
//! Owns the sockets, their receive tasks, and who is served by them: at most one track per camera address,
//! so that the range of ports lasts for many cameras. A datagram is told apart by its
//! source address alone; whether its port and content are admitted is the stream's business.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::rc::{Rc, Weak};
use std::time::Instant;

use msm_graph::{Encap, InputRow, StreamId, TrackId};
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::io_buffers::IoBuffers;
use super::offload::Certain;
use super::stream::Stream;
use super::udp::{self, Bound};
use super::worker::{Kind, Shared};

/// Names a pair; assigned by the executor, unique for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PairId(pub(crate) u64);

#[derive(Debug, Clone)]
struct Route {
    peer: IpAddr,
    id: StreamId,
    stream: Weak<RefCell<Stream>>,
    track: TrackId,
    /// As of [`InputPair::note_certain`].
    certain: Option<Certain>,
    /// The kernel was told to drop what strangers send to the RTP port at the address that it sends to.
    closed: bool,
}

/// An open pair.
#[derive(Debug)]
pub(crate) struct InputPair {
    pub(crate) id: PairId,
    pub(crate) rtp: Rc<AsyncFd<UdpSocket>>,
    pub(crate) rtcp: Rc<AsyncFd<UdpSocket>>,
    pub(crate) receive_buffer: usize,
    routes: RefCell<Vec<Route>>,
    tasks: RefCell<Vec<AbortHandle>>,
    /// Drop counters of both sockets as last seen.
    overflow: [Cell<u32>; 2],
}

impl Drop for InputPair {
    fn drop(&mut self) {
        for task in self.tasks.borrow().iter() {
            task.abort();
        }
    }
}

impl InputPair {
    /// Starts to receive on two bound sockets.
    pub(crate) fn open(shared: Rc<Shared>, id: PairId, rtp: Bound, rtcp: Bound) -> io::Result<Rc<Self>> {
        let pair = Rc::new(Self {
            id,
            receive_buffer: rtp.receive_buffer.min(rtcp.receive_buffer),
            rtp: Rc::new(udp::readable(rtp.socket)?),
            rtcp: Rc::new(udp::readable(rtcp.socket)?),
            routes: RefCell::default(),
            tasks: RefCell::default(),
            overflow: Default::default(),
        });
        for (socket, kind) in [(&pair.rtp, Kind::Rtp), (&pair.rtcp, Kind::Rtcp)] {
            let task = receive(shared.clone(), Rc::downgrade(&pair), socket.clone(), kind);
            pair.tasks.borrow_mut().push(tokio::task::spawn_local(task).abort_handle());
        }
        Ok(pair)
    }

    /// `SO_RXQ_OVFL` of both sockets as last seen.
    pub(crate) fn overflow(&self) -> [u32; 2] {
        [self.overflow[0].get(), self.overflow[1].get()]
    }

    /// What the former program had seen of it.
    pub(crate) fn set_overflow(&self, seen: [u32; 2]) {
        self.overflow[0].set(seen[0]);
        self.overflow[1].set(seen[1]);
    }

    /// Serves a camera address from now on; it replaces one that was served for it before.
    pub(crate) fn add_route(&self, peer: IpAddr, stream: &Rc<RefCell<Stream>>, track: TrackId) {
        let id = stream.borrow().id;
        self.add_route_of(peer, id, stream, track);
    }

    /// The same for a stream that may be borrowed.
    pub(crate) fn add_route_of(
        &self,
        peer: IpAddr,
        id: StreamId,
        stream: &Rc<RefCell<Stream>>,
        track: TrackId,
    ) {
        let mut routes = self.routes.borrow_mut();
        routes.retain(|route| route.peer != peer);
        routes.push(Route { peer, id, stream: Rc::downgrade(stream), track, certain: None, closed: false });
    }

    /// Takes in by what it is told whether everything that the source of a track may send finds its flow in the kernel.
    /// Where that holds of all who are served here, nobody else has anything to send to the RTP port. Returns whether the
    /// port is to be closed at the address that the source sends to; `None` where it is open and stays so.
    pub(crate) fn note_certain(&self, stream: StreamId, track: TrackId, certain: &Certain) -> Option<bool> {
        let mut routes = self.routes.borrow_mut();
        let found = routes.iter().position(|route| route.id == stream && route.track == track)?;
        routes.get_mut(found)?.certain.get_or_insert_with(|| Rc::clone(certain));
        let close = routes.iter().all(|route| route.certain.as_ref().is_some_and(|certain| certain.get()));
        let was_closed = std::mem::replace(&mut routes.get_mut(found)?.closed, close);
        (close || was_closed).then_some(close)
    }

    /// Serves a camera address no longer for this track; one that has taken it over meanwhile keeps it.
    /// Returns whether nobody is left.
    pub(crate) fn remove_route(&self, peer: IpAddr, stream: StreamId, track: TrackId) -> bool {
        let mut routes = self.routes.borrow_mut();
        routes.retain(|route| route.peer != peer || route.id != stream || route.track != track);
        routes.is_empty()
    }

    /// Where an input's media is sent to.
    pub(crate) fn local(&self, input: &InputRow) -> Option<SocketAddr> {
        let Encap::Udp { local, .. } = input.encap else { return None };
        let bound = udp::local_addr(self.rtp.as_raw_fd())?;
        Some(SocketAddr::new(local.to_canonical(), bound.port()))
    }

    /// Has what the sockets lost counted.
    pub(crate) fn count_overflows(&self, shared: &Shared) {
        shared.count_overflow(&*self.rtp, &self.overflow[0], "input_rtp");
        shared.count_overflow(&*self.rtcp, &self.overflow[1], "input_rtcp");
    }

    /// Receives what waits at one of the sockets and has it handled. `WouldBlock` says that the socket is empty.
    pub(crate) fn take(&self, kind: Kind, shared: &Shared) -> io::Result<()> {
        let socket = match kind {
            Kind::Rtp => self.rtp.get_ref(),
            Kind::Rtcp => self.rtcp.get_ref(),
        };
        shared.receive(socket, |now, io| self.handle(now, kind, io, shared))
    }

    fn handle(&self, now: Instant, kind: Kind, io: &mut IoBuffers, shared: &Shared) {
        // One camera alone, the usual case: its lock judges strangers, too.
        if let [route] = self.routes.borrow().as_slice() {
            route.handle(now, kind, None, io, shared);
            return;
        }
        for index in 0..io.receive.datagrams().len() {
            let address = |i: usize| io.receive.datagrams().get(i).map(|d| d.from.ip().to_canonical());
            let Some(from) = address(index) else { return };
            if (0..index).any(|earlier| address(earlier) == Some(from)) {
                continue;
            }
            let route = self.routes.borrow().iter().find(|route| route.peer == from).cloned();
            if let Some(route) = route {
                route.handle(now, kind, Some(from), io, shared);
            } else {
                let strangers = io.receive.datagrams().iter().filter(|d| d.is_from(Some(from)));
                shared.count_strangers(strangers.map(|d| d.segments().count() as u64).sum());
            }
        }
    }
}

impl Route {
    fn handle(&self, now: Instant, kind: Kind, only: Option<IpAddr>, io: &mut IoBuffers, shared: &Shared) {
        let Some(stream) = self.stream.upgrade() else { return };
        let mut stream = stream.borrow_mut();
        match kind {
            Kind::Rtp => stream.handle_datagrams(now, self.track, only, io, shared),
            Kind::Rtcp => stream.handle_rtcp_datagrams(now, self.track, only, io, shared),
        }
    }
}

async fn receive(shared: Rc<Shared>, pair: Weak<InputPair>, socket: Rc<AsyncFd<UdpSocket>>, kind: Kind) {
    while let Ok(mut ready) = socket.readable().await {
        let Some(pair) = pair.upgrade() else { return };
        // Answering WouldBlock after a batch that emptied the socket spares the call that would only find
        // that out: what comes later raises readiness again.
        let _ = ready.try_io(|_| pair.take(kind, &shared));
    }
}
