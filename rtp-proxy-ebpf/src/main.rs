//! The kernel half of the packet path: entry points, one line each.
//!
//! On the host this is an empty program, so that `cargo check`, clippy and the lockfile cover the crate
//! without a BPF toolchain; `rtp-proxy`'s build script compiles it for the kernel.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod ahead;
#[cfg(target_arch = "bpf")]
mod checksum;
#[cfg(target_arch = "bpf")]
mod copies;
#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod edit;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod gate;
#[cfg(target_arch = "bpf")]
mod judge;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod self_test;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod tables;
#[cfg(target_arch = "bpf")]
mod tcx;
#[cfg(target_arch = "bpf")]
mod xdp;

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};

    /// Ingress of an interface by TCX, or by tc on kernels without it.
    #[classifier]
    pub(crate) fn tcx_ingress(ctx: TcContext) -> i32 {
        crate::tcx::ingress(&ctx)
    }

    /// Never attached: puts the frame of a test run in at an interface.
    #[classifier]
    pub(crate) fn self_test(ctx: TcContext) -> i32 {
        crate::self_test::inject(&ctx)
    }

    /// Ingress of a NIC that the administrator named.
    #[xdp]
    pub(crate) fn xdp_ingress(ctx: XdpContext) -> u32 {
        crate::xdp::ingress(&ctx)
    }

    /// Helpers such as checksum replacement and clone_redirect are GPL-only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    /// A panic that survives the optimiser becomes an endless loop, which the verifier refuses to load.
    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
