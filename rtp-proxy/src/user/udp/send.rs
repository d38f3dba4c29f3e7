//! Sends: one packet, a run of packets in one segmented send, the same to many.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::ptr;

use super::{BATCH, CONTROL, Control, Piece};

/// Destinations of one [`send_same`].
pub(crate) const MOST: usize = 64;
const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

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

    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.source
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
            FLAGS,
            ptr::from_ref(&to.name).cast(),
            to.name_len,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends pieces of `bytes`, all `size` long but the last, by one call with `UDP_SEGMENT`. At most [`BATCH`]
/// pieces and [`MAX_SEND`](super::MAX_SEND) bytes.
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

/// Sends the same to at most [`MOST`] destinations by one call: to each what [`send_one`] or
/// [`send_segmented`] sends. Returns how many of them, from the first on, were sent to. Why the next one was
/// not is told by a send to that one alone.
pub(crate) fn send_same<'a>(
    fd: RawFd,
    to: impl Iterator<Item = &'a Destination>,
    bytes: &[u8],
    pieces: &[Piece],
    size: u16,
) -> usize {
    let mut vectors = Vectors::new();
    if vectors.gather(bytes, pieces).is_err() {
        return 0;
    }
    let size = (pieces.len() > 1).then_some(size);
    // Where no source address is named, all messages share one.
    let mut common = Control([0; CONTROL]);
    let common_len = write_controls(&mut common, size, None);
    let mut own = [const { MaybeUninit::<Control>::uninit() }; MOST];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut count = 0;
    for ((to, own), header) in to.zip(&mut own).zip(&mut headers) {
        let (control, len) = if to.source.is_some() {
            let own = own.write(Control([0; CONTROL]));
            let len = write_controls(own, size, to.source);
            (own, len)
        } else {
            (&mut common, common_len)
        };
        header.write(libc::mmsghdr { msg_hdr: vectors.header(to, control, len), msg_len: 0 });
        count += 1;
    }
    // SAFETY: the first `count` headers were written above. Every pointer in them is to this frame, to a
    // destination or into `bytes`, with its true length; sendmmsg writes nothing but the headers' lengths.
    let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr().cast(), count, FLAGS) };
    usize::try_from(sent).unwrap_or(0)
}

/// The vectors of one message.
struct Vectors {
    vectors: [MaybeUninit<libc::iovec>; BATCH],
    used: usize,
}

impl Vectors {
    fn new() -> Self {
        Self { vectors: [const { MaybeUninit::uninit() }; BATCH], used: 0 }
    }

    /// Fills them with pieces of `bytes`.
    fn gather(&mut self, bytes: &[u8], pieces: &[Piece]) -> io::Result<()> {
        let mut end = usize::MAX;
        let mut last: Option<&mut libc::iovec> = None;
        let mut free = self.vectors.iter_mut();
        for piece in pieces {
            let slice = bytes.get(piece.range()).ok_or(io::ErrorKind::InvalidInput)?;
            // Neighbours become one vector: what came in one piece leaves in one.
            if piece.offset as usize == end
                && let Some(last) = &mut last
            {
                last.iov_len += slice.len();
            } else {
                let next = free.next().ok_or(io::ErrorKind::InvalidInput)?;
                last =
                    Some(next.write(libc::iovec {
                        iov_base: slice.as_ptr().cast_mut().cast(),
                        iov_len: slice.len(),
                    }));
                self.used += 1;
            }
            end = piece.range().end;
        }
        Ok(())
    }

    /// A message of them. `len`: how much of `control` is used.
    fn header(&mut self, to: &Destination, control: &mut Control, len: usize) -> libc::msghdr {
        // SAFETY: all zeroes is a valid msghdr.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = ptr::from_ref(&to.name).cast_mut().cast();
        header.msg_namelen = to.name_len;
        header.msg_iov = self.vectors.as_mut_ptr().cast();
        header.msg_iovlen = self.used as _;
        if len > 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = len as _;
        }
        header
    }
}

fn send_message(
    fd: RawFd,
    to: &Destination,
    bytes: &[u8],
    pieces: &[Piece],
    size: Option<u16>,
) -> io::Result<()> {
    let mut vectors = Vectors::new();
    vectors.gather(bytes, pieces)?;
    let mut control = Control([0; CONTROL]);
    let len = write_controls(&mut control, size.filter(|_| pieces.len() > 1), to.source);
    let header = vectors.header(to, &mut control, len);
    // SAFETY: every pointer in `header` is to this frame, to `to` or into `bytes`, with its true length;
    // sendmsg reads only.
    let sent = unsafe { libc::sendmsg(fd, &raw const header, FLAGS) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes what a message says beside its bytes; returns the length of it.
fn write_controls(control: &mut Control, size: Option<u16>, source: Option<IpAddr>) -> usize {
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let mut len = 0usize;
    // SAFETY: `control` is aligned for cmsghdr and larger than the two messages written (24 + 40 bytes);
    // CMSG_NXTHDR stays within msg_controllen, and a null from it ends the writing.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        if let Some(size) = size {
            len += write_control(cmsg, libc::SOL_UDP, libc::UDP_SEGMENT, size);
            cmsg = libc::CMSG_NXTHDR(&raw const header, cmsg);
        }
        if !cmsg.is_null() {
            match source {
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
    len
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

/// From now on what a socket sends over IPv4 is never fragmented on its way, here included: what would have to be
/// is refused with `EMSGSIZE`. The kernel then has no identification to choose, 3 % of a send.
///
/// # Errors
/// Those of `setsockopt`.
pub(crate) fn never_fragment(fd: RawFd) -> io::Result<()> {
    set_path_mtu(fd, libc::IP_PMTUDISC_DO)
}

/// Takes [`never_fragment`] back. Returns whether there was an IPv4 socket to do it to.
pub(crate) fn fragment(fd: RawFd) -> bool {
    set_path_mtu(fd, libc::IP_PMTUDISC_WANT).is_ok()
}

fn set_path_mtu(fd: RawFd, value: libc::c_int) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` has `len` bytes and is borrowed for the call.
    let done = unsafe {
        libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, ptr::from_ref(&value).cast(), len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
