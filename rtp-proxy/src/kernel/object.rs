//! What aya does not show of a pinned object: the interface of a TCX link.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::{fs, io};

/// `BPF_OBJ_GET` of `enum bpf_cmd`.
const OBJ_GET: libc::c_long = 7;

/// The members of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned object.
///
/// # Errors
/// From the kernel.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` is a prefix of `union bpf_attr` of the length that is passed, and its path is a string
    // that ends with a zero byte and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const attr, size_of::<ObjGet>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `BPF_LINK_DETACH` of `enum bpf_cmd`.
const LINK_DETACH: libc::c_long = 34;

/// Detaches a pinned link at once; without this the kernel does so some time after the last reference is gone.
///
/// # Errors
/// From the kernel.
pub(super) fn detach_link(path: &Path) -> io::Result<()> {
    let fd = open(path)?;
    let attr = fd.as_raw_fd();
    // SAFETY: `attr` is the one member of `union bpf_attr` that the command reads, of the length that is
    // passed; the descriptor is open for the whole call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const attr, size_of_val(&attr)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Index of the interface that a pinned TCX link is on: 0 once that is gone.
///
/// # Errors
/// From the kernel; [`io::ErrorKind::InvalidData`] if it does not say.
pub(super) fn link_interface(path: &Path) -> io::Result<u32> {
    let fd = open(path)?;
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd()))?;
    let found = info.lines().find_map(|line| line.strip_prefix("ifindex:")?.trim().parse().ok());
    found.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
