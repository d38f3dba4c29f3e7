//! Batched receive, and what a socket tells of its sends.

use std::cell::Cell;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use super::{BATCH, CONTROL, Control, Piece};

/// Longest datagram that a small slot takes. Nearly all fit whole, and a batch of them lies on a few pages:
/// 64 KiB apart, each would cost a miss of the TLB in the kernel's copy and another in the send.
const SMALL: usize = 2_048;
/// Shortest small slot.
const SMALLEST: usize = 64;
/// So few messages are received straight into large slots: a vector less, and two pages in all.
const THIN: usize = 2;
/// Receive calls after which small slots may become shorter.
const WINDOW: u32 = 256;
/// Longest datagram or super-packet.
const LARGE: usize = 65_536;
/// From one large slot to the next. A datagram that does not fit its small slot goes on here, behind room for
/// what stands in the small one.
const LARGE_SLOT: usize = LARGE + 64;
/// Where the large slots begin.
const LARGE_BASE: usize = SMALL * BATCH;
/// Where packets that waited elsewhere are copied.
const SPARE: usize = LARGE_BASE + LARGE_SLOT * BATCH;
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

/// Buffers of `recvmmsg`, one set per worker, allocated once; pages are touched as they are used.
pub(crate) struct ReceiveBuffer {
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    datagrams: Vec<Datagram>,
    /// Length of the small slots, which lie side by side: that of the longest datagram of late. Those of a burst
    /// are of one length but for the last, so they come to lie next to each other and leave as one piece; a
    /// vector less per packet is about a tenth of a send.
    slot: usize,
    /// Longest datagram of the window that a small slot could take, and calls within the window.
    longest: usize,
    calls: u32,
    /// Messages asked for at the next call: few for a thin stream, [`BATCH`] for a thick one.
    want: usize,
    spare_used: usize,
    /// Whether the last call left nothing at the socket.
    emptied: bool,
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
            bytes: vec![0; SPARE + LARGE_SLOT],
            names: vec![name; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
            datagrams: Vec::with_capacity(BATCH),
            slot: SMALL,
            longest: 0,
            calls: 0,
            want: 2,
            spare_used: 0,
            emptied: false,
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

    /// Whether the last [`ReceiveBuffer::recv`] left nothing at its socket.
    pub(crate) fn is_emptied(&self) -> bool {
        self.emptied
    }

    /// Forgets what was copied in.
    pub(crate) fn clear_spare(&mut self) {
        self.spare_used = 0;
    }

    /// Copies a packet that did not arrive by [`ReceiveBuffer::recv`] into the buffer. `whole`: nothing
    /// of the last receive is needed any more, so all slots are free. `None` when there is no room.
    pub(crate) fn copy_in(&mut self, packet: &[u8], whole: bool) -> Option<Piece> {
        let (base, end) = if whole { (0, SPARE) } else { (SPARE, SPARE + LARGE_SLOT) };
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
        self.spare_used = 0;
        let want = self.want.clamp(1, BATCH);
        let mut iovecs = [const { MaybeUninit::<[libc::iovec; 2]>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        let slot = self.slot;
        let thin = want <= THIN;
        let (small, large) = self.bytes.split_at_mut(LARGE_BASE);
        let slots = small.chunks_exact_mut(slot).zip(large.chunks_exact_mut(LARGE_SLOT));
        for (((((small, large), name), control), iovec), header) in
            slots.zip(&mut self.names).zip(&mut self.controls).zip(&mut iovecs).zip(&mut headers).take(want)
        {
            let iovec = iovec.write(if thin {
                [libc::iovec { iov_base: large.as_mut_ptr().cast(), iov_len: LARGE }; 2]
            } else {
                [
                    libc::iovec { iov_base: small.as_mut_ptr().cast(), iov_len: slot },
                    libc::iovec { iov_base: large[slot..].as_mut_ptr().cast(), iov_len: LARGE - slot },
                ]
            });
            // SAFETY: mmsghdr is a plain C struct, all zeroes (no name, no buffers, no flags) is valid.
            let header = header.write(unsafe { mem::zeroed() });
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = iovec.as_mut_ptr();
            header.msg_hdr.msg_iovlen = if thin { 1 } else { 2 };
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: the first `want` headers were written above; each points to a name, a control buffer and
        // one or two iovecs with slots of their own, all owned by `self` or this frame and alive during the call,
        // with their true sizes. No timeout is passed.
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
            let segment = read_control(&header.msg_hdr);
            let Some(from) = self.names.get(index).and_then(decode_addr) else { continue };
            let len = (header.msg_len as usize).min(LARGE);
            if len <= SMALL {
                self.longest = self.longest.max(len);
            }
            let (small, large) = (index * slot, LARGE_BASE + index * LARGE_SLOT);
            let offset = if thin {
                large
            } else if len <= slot {
                small
            } else {
                self.bytes.copy_within(small..small + slot, large);
                large
            };
            let piece = Piece { offset: offset as u32, len: len as u32 };
            let segment = segment.filter(|s| *s > 0).unwrap_or(piece.len);
            self.datagrams.push(Datagram { piece, from, segment });
        }
        self.fit();
        let emptied = received < want;
        self.emptied = emptied;
        self.want = if emptied { (received + 1).next_power_of_two() } else { BATCH };
        Ok(emptied)
    }

    /// Makes the small slots as long as the datagrams are: longer at once, shorter after a while.
    fn fit(&mut self) {
        self.calls += 1;
        if self.longest > self.slot {
            self.slot = self.longest;
        } else if self.calls >= WINDOW {
            self.slot = self.longest.max(SMALLEST);
            (self.calls, self.longest) = (0, 0);
        }
    }
}

/// Segment size (`UDP_GRO`) of a received message.
fn read_control(header: &libc::msghdr) -> Option<u32> {
    let mut segment = None;
    // SAFETY: `header` was filled by recvmmsg over a control buffer that is alive and aligned for cmsghdr;
    // the CMSG macros walk it within msg_controllen, and the payload is read unaligned after its level and
    // type said that it holds an int.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(header);
        while !cmsg.is_null() {
            if ((*cmsg).cmsg_level, (*cmsg).cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                let value = ptr::read_unaligned(libc::CMSG_DATA(cmsg).cast::<libc::c_int>());
                segment = u32::try_from(value).ok();
            }
            cmsg = libc::CMSG_NXTHDR(header, cmsg);
        }
    }
    segment
}

/// What a socket has dropped since it had dropped `last`, which is brought up to date: for want of room, or by
/// its filter.
pub(crate) fn dropped_since(socket: &impl AsRawFd, last: &Cell<u32>) -> u64 {
    dropped(socket).map_or(0, |now| u64::from(now.wrapping_sub(last.replace(now))))
}

/// Datagrams that a socket has dropped since it was opened. `None` where the kernel does not tell (before 4.12).
fn dropped(socket: &impl AsRawFd) -> Option<u32> {
    /// Place of the drop counter in `SO_MEMINFO` (`SK_MEMINFO_DROPS` of `linux/sock_diag.h`).
    const DROPS: usize = 8;
    let mut values = [0_u32; DROPS + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: `values` has `len` bytes, any of which may be written; both live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (result == 0 && len as usize == size_of_val(&values)).then(|| values[DROPS])
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
