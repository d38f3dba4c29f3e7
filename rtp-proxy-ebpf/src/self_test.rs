//! A frame of our own at the ingress of an interface, so that user space sees whether the program there meets it.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::programs::TcContext;
use msm_fastpath::limits::SELF_TEST_IFINDEX;

/// Returns 0 if the kernel took the frame, 1 if it had no room for it or no such interface that is up.
#[inline(always)]
pub(crate) fn inject(ctx: &TcContext) -> i32 {
    let Ok(ifindex) = ctx.load::<u32>(SELF_TEST_IFINDEX) else { return 1 };
    i32::from(ctx.clone_redirect(ifindex, u64::from(BPF_F_INGRESS)).is_err())
}
