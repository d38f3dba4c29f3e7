//! UDP of the data path: sockets, batched receive, segmented send.
//!
//! Owns the system calls and their buffers and knows nothing of RTP, streams or legs. The only module of
//! the user path with `unsafe`: `recvmmsg`, `sendmsg` and `sendto` over buffers that live here or are
//! borrowed for the length of the call.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Datagrams of one receive call, and at most that many segments in one send (`performance.md` 1.4:
/// senders stay at 64, older kernels stop there).
pub(crate) const BATCH: usize = 64;
/// Largest payload of one UDP send over IPv4.
pub(crate) const MAX_SEND: usize = 65_507;
/// A GRO super-packet fits; slots are an odd number of cache lines apart, so that the first lines of 64
/// slots do not fall into the same cache sets.
const SLOT: usize = 65_536 + 2_048 + 64;
/// One slot more than is received into: packets that waited elsewhere are copied there.
pub(crate) const SPARE: usize = BATCH;
const CONTROL: usize = 128;

/// Sizes of socket buffers to ask for, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BufferSizes {
    pub(crate) receive: usize,
    pub(crate) send: usize,
}

/// A bound socket and what the kernel granted.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: UdpSocket,
    /// `SO_RCVBUF` as read back: the kernel doubles what was asked for.
    pub(crate) receive_buffer: usize,
}

/// Opens a non-blocking socket on `addr`, raises its buffers, has overflows counted and GRO on where the
/// kernel knows it. `errors`: queue ICMP errors, for sockets that serve many peers.
pub(crate) fn open(addr: SocketAddr, sizes: BufferSizes, errors: bool) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    // SO_RCVBUFFORCE needs CAP_NET_ADMIN; without it the plain option is capped by net.core.rmem_max.
    if setsockopt(&socket, sockopt::RcvBufForce, &sizes.receive).is_err() {
        socket.set_recv_buffer_size(sizes.receive)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &sizes.send).is_err() {
        socket.set_send_buffer_size(sizes.send)?;
    }
    setsockopt(&socket, sockopt::RxqOvfl, &1).map_err(io::Error::from)?;
    // Kernels before 5.0 have no UDP_GRO: datagrams then arrive one by one.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    if errors {
        if addr.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true).map_err(io::Error::from)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true).map_err(io::Error::from)?;
        }
    }
    let receive_buffer = getsockopt(&socket, sockopt::RcvBuf).map_err(io::Error::from)?;
    Ok(Bound { socket: socket.into(), receive_buffer })
}

/// The local address that the kernel would send from to `peer`; `None` when there is no route.
pub(crate) fn route_source(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if peer.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let probe = UdpSocket::bind((any, 0)).ok()?;
    probe.connect(peer).ok()?;
    probe.local_addr().ok().map(|addr| addr.ip())
}

/// A part of a [`ReceiveBuffer`]: one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Piece {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        start..start + self.len as usize
    }
}

/// Consecutive pieces that leave by one system call: all of `size` bytes, the last one perhaps shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) size: u16,
}

/// Splits pieces into runs, in order (`performance.md` 2.2 (11)).
pub(crate) fn split_runs(pieces: &[Piece], runs: &mut Vec<Run>) {
    runs.clear();
    let mut total = 0usize;
    let mut open = false;
    for (index, piece) in pieces.iter().enumerate() {
        let len = piece.len as usize;
        if open && let Some(run) = runs.last_mut() {
            let fits = (run.count as usize) < BATCH && total + len <= MAX_SEND;
            if fits && len <= usize::from(run.size) {
                run.count += 1;
                total += len;
                // A shorter one is the last of its run.
                open = len == usize::from(run.size);
                continue;
            }
        }
        runs.push(Run { first: index as u32, count: 1, size: piece.len.min(u32::from(u16::MAX)) as u16 });
        total = len;
        open = len > 0;
    }
}

/// One datagram, or one super-packet of `segment`-sized datagrams, as received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram {
    pub(crate) piece: Piece,
    pub(crate) from: SocketAddr,
    /// Size of its segments; the length of the piece when it is a plain datagram.
    pub(crate) segment: u32,
}

impl Datagram {
    /// Whether it came from this address; any, if none is given.
    pub(crate) fn is_from(&self, only: Option<IpAddr>) -> bool {
        only.is_none_or(|ip| self.from.ip().to_canonical() == ip)
    }

    /// The packets inside, in order.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Piece> + use<> {
        let (start, len, step) = (self.piece.offset, self.piece.len, self.segment.max(1));
        (0..len.div_ceil(step))
            .map(move |i| Piece { offset: start + i * step, len: step.min(len - i * step) })
    }
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// Buffers of `recvmmsg`, one set per worker, allocated once; pages are touched as they are used.
pub(crate) struct ReceiveBuffer {
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    datagrams: Vec<Datagram>,
    /// Messages asked for at the next call: few for a thin stream, [`BATCH`] for a thick one.
    want: usize,
    /// `SO_RXQ_OVFL` of the last datagram that carried it.
    overflow: Option<u32>,
    spare_used: usize,
}

impl std::fmt::Debug for ReceiveBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBuffer").field("datagrams", &self.datagrams.len()).finish_non_exhaustive()
    }
}

impl ReceiveBuffer {
    pub(crate) fn new() -> Self {
        // SAFETY: sockaddr_storage is a plain C struct for which all zeroes is a valid value (AF_UNSPEC).
        let name: libc::sockaddr_storage = unsafe { mem::zeroed() };
        Self {
            bytes: vec![0; SLOT * (BATCH + 1)],
            names: vec![name; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
            datagrams: Vec::with_capacity(BATCH),
            want: 4,
            overflow: None,
            spare_used: 0,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// What the last [`ReceiveBuffer::recv`] brought.
    pub(crate) fn datagrams(&self) -> &[Datagram] {
        &self.datagrams
    }

    /// Value of the socket's drop counter (`SO_RXQ_OVFL`) if the last call saw it.
    pub(crate) fn overflow(&self) -> Option<u32> {
        self.overflow
    }

    /// Forgets what was copied in.
    pub(crate) fn clear_spare(&mut self) {
        self.spare_used = 0;
    }

    /// Copies a packet that did not arrive by [`ReceiveBuffer::recv`] into the buffer. `whole`: nothing
    /// of the last receive is needed any more, so all slots are free. `None` when there is no room.
    pub(crate) fn copy_in(&mut self, packet: &[u8], whole: bool) -> Option<Piece> {
        let (base, end) = if whole { (0, SLOT * SPARE) } else { (SLOT * SPARE, SLOT * (SPARE + 1)) };
        let start = base + self.spare_used;
        let target = self.bytes.get_mut(..end)?.get_mut(start..start + packet.len())?;
        target.copy_from_slice(packet);
        self.spare_used += packet.len();
        Some(Piece { offset: start as u32, len: packet.len() as u32 })
    }

    /// Receives what is there, at most [`BATCH`] datagrams, by one system call. Returns whether the socket
    /// was emptied: fewer came than were asked for, so no further call is needed to find out.
    ///
    /// # Errors
    /// Those of `recvmmsg`, `WouldBlock` among them.
    pub(crate) fn recv(&mut self, socket: &impl AsRawFd) -> io::Result<bool> {
        self.datagrams.clear();
        self.overflow = None;
        self.spare_used = 0;
        let want = self.want.clamp(1, BATCH);
        let mut iovecs = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        let slots = self.bytes.chunks_exact_mut(SLOT);
        for ((((slot, name), control), iovec), header) in
            slots.zip(&mut self.names).zip(&mut self.controls).zip(&mut iovecs).zip(&mut headers).take(want)
        {
            let iovec = iovec.write(libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: 65_536 });
            // SAFETY: mmsghdr is a plain C struct, all zeroes (no name, no buffers, no flags) is valid.
            let header = header.write(unsafe { mem::zeroed() });
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: the first `want` headers were written above; each points to a name, a control buffer and
        // an iovec with a slot of its own, all owned by `self` or this frame and alive during the call, with
        // their true sizes. No timeout is passed.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                want as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        let received = received as usize;
        for (index, header) in headers.iter().take(received).enumerate() {
            // SAFETY: index < received <= want, and the first `want` headers were initialised above.
            let header = unsafe { header.assume_init_ref() };
            let (segment, overflow) = read_control(&header.msg_hdr);
            if overflow.is_some() {
                self.overflow = overflow;
            }
            let Some(from) = self.names.get(index).and_then(decode_addr) else { continue };
            let piece = Piece { offset: (index * SLOT) as u32, len: header.msg_len.min(65_536) };
            let segment = segment.filter(|s| *s > 0).unwrap_or(piece.len);
            self.datagrams.push(Datagram { piece, from, segment });
        }
        let emptied = received < want;
        self.want = if emptied { (received + 1).max(4).next_power_of_two() } else { BATCH };
        Ok(emptied)
    }
}

/// Segment size (`UDP_GRO`) and drop counter (`SO_RXQ_OVFL`) of a received message.
fn read_control(header: &libc::msghdr) -> (Option<u32>, Option<u32>) {
    let (mut segment, mut overflow) = (None, None);
    // SAFETY: `header` was filled by recvmmsg over a control buffer that is alive and aligned for cmsghdr;
    // the CMSG macros walk it within msg_controllen, and the payloads are read unaligned after their level
    // and type said that they hold an int and a u32.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(header);
        while !cmsg.is_null() {
            match ((*cmsg).cmsg_level, (*cmsg).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let value = ptr::read_unaligned(libc::CMSG_DATA(cmsg).cast::<libc::c_int>());
                    segment = u32::try_from(value).ok();
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    overflow = Some(ptr::read_unaligned(libc::CMSG_DATA(cmsg).cast::<u32>()));
                }
                _ => {}
            }
            cmsg = libc::CMSG_NXTHDR(header, cmsg);
        }
    }
    (segment, overflow)
}

fn decode_addr(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel wrote a sockaddr_in, as the family says; the storage is large and aligned
            // enough for it.
            let v4 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id)))
        }
        _ => None,
    }
}

/// The larger of an IPv4 and an IPv6 address as the kernel wants it.
const NAME: usize = size_of::<libc::sockaddr_in6>();

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Name([u8; NAME]);

/// Where to send, prepared once per leg: the address as the kernel wants it, and the source address where
/// the kernel would choose another one than the viewer knows (RTSP-14).
#[derive(Clone)]
pub(crate) struct Destination {
    addr: SocketAddr,
    name: Name,
    name_len: libc::socklen_t,
    source: Option<IpAddr>,
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Destination")
            .field("addr", &self.addr)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Destination {
    /// `source`: address to send from, `None` to leave it to the kernel, which is cheaper.
    pub(crate) fn new(addr: SocketAddr, source: Option<IpAddr>) -> Self {
        let sock = socket2::SockAddr::from(addr);
        let mut name = Name([0; NAME]);
        // SAFETY: SockAddr owns len() bytes at as_ptr(); of those at most NAME are copied, into NAME bytes.
        unsafe {
            let len = (sock.len() as usize).min(NAME);
            ptr::copy_nonoverlapping(sock.as_ptr().cast::<u8>(), name.0.as_mut_ptr(), len);
        }
        Self { addr, name, name_len: sock.len(), source }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Sends one packet by the cheapest call there is.
///
/// # Errors
/// Those of `sendto`.
pub(crate) fn send_one(fd: RawFd, to: &Destination, packet: &[u8]) -> io::Result<()> {
    if to.source.is_some() {
        return send_message(fd, to, packet, &[Piece { offset: 0, len: packet.len() as u32 }], None);
    }
    // SAFETY: `packet` is borrowed for the call, `name` holds `name_len` bytes of an address.
    let sent = unsafe {
        libc::sendto(
            fd,
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            ptr::from_ref(&to.name).cast(),
            to.name_len,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends pieces of `bytes`, all `size` long but the last, by one call with `UDP_SEGMENT`. At most [`BATCH`]
/// pieces and [`MAX_SEND`] bytes.
///
/// # Errors
/// Those of `sendmsg`: `EINVAL` or `EMSGSIZE` where `size` exceeds the path's MTU, `EIO` where the device
/// computes no checksums.
pub(crate) fn send_segmented(
    fd: RawFd,
    to: &Destination,
    bytes: &[u8],
    pieces: &[Piece],
    size: u16,
) -> io::Result<()> {
    send_message(fd, to, bytes, pieces, Some(size))
}

fn send_message(
    fd: RawFd,
    to: &Destination,
    bytes: &[u8],
    pieces: &[Piece],
    size: Option<u16>,
) -> io::Result<()> {
    let mut iovecs = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
    let mut used = 0;
    let mut end = usize::MAX;
    for piece in pieces {
        let Some(slice) = bytes.get(piece.range()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // Neighbours become one vector: a super-packet that came whole leaves whole.
        if piece.offset as usize == end
            && let Some(last) = iovecs.get_mut(used - 1)
        {
            last.iov_len += slice.len();
        } else if let Some(next) = iovecs.get_mut(used) {
            *next = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
            used += 1;
        } else {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        end = piece.range().end;
    }
    let mut control = Control([0; CONTROL]);
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = ptr::from_ref(&to.name).cast_mut().cast();
    header.msg_namelen = to.name_len;
    header.msg_iov = iovecs.as_mut_ptr();
    header.msg_iovlen = used as _;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let mut len = 0usize;
    // SAFETY: `control` is aligned for cmsghdr and larger than the two messages written (24 + 40 bytes);
    // CMSG_NXTHDR stays within msg_controllen, and a null from it ends the writing.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        if let Some(size) = size.filter(|_| pieces.len() > 1) {
            len += write_control(cmsg, libc::SOL_UDP, libc::UDP_SEGMENT, size);
            cmsg = libc::CMSG_NXTHDR(&raw const header, cmsg);
        }
        if !cmsg.is_null() {
            match to.source {
                Some(IpAddr::V4(ip)) => {
                    let info = libc::in_pktinfo {
                        ipi_ifindex: 0,
                        ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
                        ipi_addr: libc::in_addr { s_addr: 0 },
                    };
                    len += write_control(cmsg, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                }
                Some(IpAddr::V6(ip)) => {
                    let info = libc::in6_pktinfo {
                        ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                        ipi6_ifindex: 0,
                    };
                    len += write_control(cmsg, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                }
                None => {}
            }
        }
    }
    header.msg_controllen = len as _;
    if len == 0 {
        header.msg_control = ptr::null_mut();
    }
    // SAFETY: every pointer in `header` is to this frame, to `to` or into `bytes`, with its true length;
    // sendmsg reads only.
    let sent = unsafe { libc::sendmsg(fd, &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes one control message and returns the space it takes.
///
/// # Safety
/// `cmsg` points into an aligned control buffer with at least `CMSG_SPACE(size_of::<T>())` bytes left.
unsafe fn write_control<T>(cmsg: *mut libc::cmsghdr, level: i32, kind: i32, value: T) -> usize {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: the caller vouches for the room; the payload may be unaligned for T.
    unsafe {
        (*cmsg).cmsg_level = level;
        (*cmsg).cmsg_type = kind;
        (*cmsg).cmsg_len = libc::CMSG_LEN(size) as _;
        ptr::write_unaligned(libc::CMSG_DATA(cmsg).cast::<T>(), value);
        libc::CMSG_SPACE(size) as usize
    }
}

/// Takes one ICMP error off the socket's queue: the destination that it was about, and whether it says
/// that nobody listens there. `None` when the queue is empty.
pub(crate) fn recv_error(socket: &UdpSocket) -> Option<(SocketAddr, bool)> {
    // SAFETY: all zeroes is a valid sockaddr_storage and a valid msghdr.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = [Control([0; CONTROL]); 4];
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: name and control are alive with their true sizes; there is no data buffer.
    let received = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if received < 0 {
        return None;
    }
    let mut refused = false;
    // SAFETY: as in read_control; the payload of IP_RECVERR starts with a sock_extended_err.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        while !cmsg.is_null() {
            let kind = ((*cmsg).cmsg_level, (*cmsg).cmsg_type);
            if kind == (libc::IPPROTO_IP, libc::IP_RECVERR)
                || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            {
                let error = ptr::read_unaligned(libc::CMSG_DATA(cmsg).cast::<libc::sock_extended_err>());
                refused = i32::try_from(error.ee_errno) == Ok(libc::ECONNREFUSED);
            }
            cmsg = libc::CMSG_NXTHDR(&raw const header, cmsg);
        }
    }
    decode_addr(&name).map(|addr| (addr, refused))
}

/// Whether a failed segmented send is worth repeating packet by packet.
pub(crate) fn segmentation_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::ENOPROTOOPT | libc::EOPNOTSUPP)
    )
}

/// Whether a send failed only because an earlier ICMP error was waiting to be told: repeat it.
pub(crate) fn was_pending_error(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH))
}

/// Opens an RTP and RTCP pair on consecutive ports, RTP even, within `range`, starting to look at
/// `cursor` pairs into it; a range of 0 means any free pair.
///
/// # Errors
/// `AddrInUse` when every pair is taken, else the system's words.
pub(crate) fn open_pair(
    local: IpAddr,
    range: &std::ops::RangeInclusive<u16>,
    cursor: &mut usize,
    sizes: BufferSizes,
) -> io::Result<(Bound, Bound)> {
    if *range.end() == 0 {
        return open_any_pair(local, sizes, false);
    }
    let first = range.start().next_multiple_of(2);
    let pairs = usize::from(range.end().saturating_sub(first).saturating_add(1) / 2);
    for step in 0..pairs {
        let index = (*cursor + step) % pairs;
        let port = first + (index as u16) * 2;
        let opened = open(SocketAddr::new(local, port), sizes, false)
            .and_then(|rtp| Ok((rtp, open(SocketAddr::new(local, port + 1), sizes, false)?)));
        match opened {
            Ok(pair) => {
                *cursor = (index + 1) % pairs;
                return Ok(pair);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "every port pair of the range is in use"))
}

/// A pair on any free even port and the next, for tests and for port 0.
pub(crate) fn open_any_pair(local: IpAddr, sizes: BufferSizes, errors: bool) -> io::Result<(Bound, Bound)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..64 {
        let probe = UdpSocket::bind((local, 0))?;
        let port = probe.local_addr()?.port() & !1;
        drop(probe);
        let opened = open(SocketAddr::new(local, port), sizes, errors)
            .and_then(|rtp| Ok((rtp, open(SocketAddr::new(local, port | 1), sizes, errors)?)));
        match opened {
            Ok(pair) => return Ok(pair),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Who holds a UDP port, as far as `/proc` says: process name and id, or nothing.
pub(crate) fn holder_of(port: u16) -> Option<String> {
    let mut inodes = Vec::new();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut fields = line.split_ascii_whitespace();
            let local = fields.nth(1).and_then(|f| f.rsplit(':').next());
            let inode = fields.nth(7);
            if let (Some(local), Some(inode)) = (local, inode)
                && u16::from_str_radix(local, 16) == Ok(port)
            {
                inodes.push(format!("socket:[{inode}]"));
            }
        }
    }
    let holder = std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = std::fs::read_dir(process.path().join("fd")).ok()?.flatten().any(|fd| {
            std::fs::read_link(fd.path())
                .is_ok_and(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
        });
        let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
        holds.then(|| format!("{} (pid {pid})", name.trim()))
    });
    holder.or_else(|| (!inodes.is_empty()).then(|| "another process".to_owned()))
}

/// Watches a socket for packets and for nothing else. With interest in writing, as `tokio::net::UdpSocket`
/// registers it, every completed send would wake the worker a second time.
pub(crate) fn readable(socket: UdpSocket) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: UdpSocket owns its descriptor and always returns the same one; the AsyncFd owns the socket
    // and hands out shared references only, so the descriptor stays open as long as it is registered.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map_or_else(
        |_| std::time::Duration::ZERO,
        |time| std::time::Duration::new(time.tv_sec().unsigned_abs(), time.tv_nsec() as u32),
    )
}

/// The descriptor, for the send calls above.
pub(crate) fn descriptor(socket: &impl AsFd) -> RawFd {
    socket.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests;
