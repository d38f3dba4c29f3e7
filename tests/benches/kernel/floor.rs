//! Programs of the benchmark's own at the way in of a cable: one that drops whatever arrives, which is the generator's
//! own cost, and the floor of every program that forwards ([`super::bare`]).

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use super::topology::{Kind, Topology};

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;

/// An attached program; it goes with this value.
#[derive(Debug)]
pub(crate) struct Attached {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl Attached {
    /// Drops everything.
    pub(crate) fn dropping(topology: &Topology, kind: Kind) -> Result<Self> {
        // r0 = TC_ACT_SHOT; exit
        Self::new(topology, kind, &[0x0000_0002_0000_00b7, 0x0000_0000_0000_0095])
    }

    /// Attaches instructions to the host's side of a cable.
    pub(crate) fn new(topology: &Topology, kind: Kind, code: &[u64]) -> Result<Self> {
        let index = topology.uplink(kind).host_index;
        topology.host.inside(|| Self::attach_here(index, code))?
    }

    fn attach_here(index: u32, code: &[u64]) -> Result<Self> {
        let license = c"GPL";
        let mut load = [0_u8; 72];
        load[0..4].copy_from_slice(&PROG_TYPE_SCHED_CLS.to_ne_bytes());
        load[4..8].copy_from_slice(&(code.len() as u32).to_ne_bytes());
        load[8..16].copy_from_slice(&(code.as_ptr() as u64).to_ne_bytes());
        load[16..24].copy_from_slice(&(license.as_ptr() as u64).to_ne_bytes());
        let program = bpf(PROG_LOAD, &load).context("loading a program of the benchmark's own")?;
        let mut link = [0_u8; 32];
        link[0..4].copy_from_slice(&(program.as_raw_fd() as u32).to_ne_bytes());
        link[4..8].copy_from_slice(&index.to_ne_bytes());
        link[8..12].copy_from_slice(&TCX_INGRESS.to_ne_bytes());
        let link = bpf(LINK_CREATE, &link).context("attaching it by TCX (kernel 6.6)")?;
        Ok(Self { _program: program, _link: link })
    }
}

fn bpf(command: libc::c_int, attributes: &[u8]) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads `attributes.len()` bytes of attributes, and memory that the pointers in them
    // name lives in the caller until this returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) };
    let fd = Errno::result(fd)?;
    // SAFETY: both commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
