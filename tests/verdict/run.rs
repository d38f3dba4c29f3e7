//! The kernel's test run with everything it takes: segment size and a packet that a NIC has summed.

use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};

use crate::programs::Programs;

/// `BPF_PROG_TEST_RUN`.
const PROG_TEST_RUN: libc::c_long = 10;
/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` (Linux 6.16): the packet is `CHECKSUM_COMPLETE`, and the run fails with EBADMSG
/// if the sum does not fit the packet afterwards.
const CHECKSUM_COMPLETE: u32 = 1 << 2;
/// Offset of `gso_size` in `__sk_buff`, and the size of that.
const GSO_SIZE: usize = 176;
const CONTEXT_LEN: usize = 192;

/// `union bpf_attr` of a test run.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) verdict: i32,
    pub(crate) frame: Vec<u8>,
}

/// Runs the TCX program on one frame. `gso_size`: 0 for a plain frame. `summed`: a NIC has summed it.
pub(crate) fn run_tcx(programs: &Programs, frame: &[u8], gso_size: u32, summed: bool) -> Result<Outcome> {
    let mut out = vec![0_u8; frame.len() + 256];
    let mut context = [0_u8; CONTEXT_LEN];
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso_size.to_ne_bytes());
    let mut attributes = Attributes {
        prog_fd: programs.tcx()?.fd()?.as_fd().as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ctx_size_in: context.len() as u32,
        ctx_in: context.as_ptr() as u64,
        flags: if summed { CHECKSUM_COMPLETE } else { 0 },
        ..Attributes::default()
    };
    // SAFETY: the attributes are laid out as the kernel's for this command, and what they point to outlives the
    // call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("BPF_PROG_TEST_RUN");
    }
    out.truncate(attributes.data_size_out as usize);
    Ok(Outcome { verdict: attributes.retval as i32, frame: out })
}
