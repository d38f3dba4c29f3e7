//! The kernel's socket buffer: the helpers that are used, and the only pointers into a packet.
//!
//! A program that writes through packet pointers is given a prologue, which makes the head of every shared packet its
//! own. A pod's TCP packets are all shared, but only their payload is: that their headers may be written
//! the prologue finds out in some 10 ns, and copies nothing (kernel 6.18). A write by the helper costs 40.

use core::arch::asm;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, from_mut};

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_clone_redirect, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_peer,
    bpf_set_hash_invalid, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
};

use msm_fastpath::{RTP_FIXED_LEN, RtpFixed};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` on tc: the next program decides.
pub(crate) const NEXT: i32 = -1;

/// `PACKET_HOST`: a packet for this host.
const PACKET_HOST: u32 = 0;

/// Largest offset in a packet that the verifier lets be one of a packet pointer: with what is behind it, less than 64 KiB.
pub(crate) const MAX_OFFSET: u32 = 65_500;

/// A packet of the TCX or tc hook.
#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

macro_rules! field {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[inline(always)]
        pub(crate) fn $name(self) -> u32 {
            // SAFETY: the context is valid for the whole run. Volatile, because the verifier wants each load
            // at a constant offset of the unmodified pointer, and merged loads are none.
            unsafe { addr_of!((*self.0).$name).read_volatile() }
        }
    };
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(context: *mut __sk_buff) -> Self {
        Self(context)
    }

    field!(
        /// Bytes of the whole frame.
        len
    );
    field!(
        /// EtherType, in network order.
        protocol
    );
    field!(
        /// 1 if the kernel took a VLAN tag off.
        vlan_present
    );
    field!(
        /// Where it came in.
        ifindex
    );
    field!(
        /// Segment size of a super-packet, 0 for a plain frame.
        gso_size
    );
    field!(mark);
    field!(pkt_type);
    field!(hash);
    field!(data);
    field!(data_end);

    #[inline(always)]
    pub(crate) fn set_mark(self, mark: u32) {
        // SAFETY: as above; `mark` may be written.
        unsafe { (*self.0).mark = mark };
    }

    /// Bytes of the frame, if they are linear.
    #[inline(always)]
    pub(crate) fn linear<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        let at = self.data() as usize + offset;
        if at + N > self.data_end() as usize {
            return None;
        }
        // SAFETY: the comparison bounds the read by the context's `data_end`, and the verifier checks the same.
        Some(unsafe { *(at as *const [u8; N]) })
    }

    /// Copies the first N bytes of the frame, two and a multiple of four, to where the third is at a multiple of four.
    /// Where they are linear, which most are, that costs half of the helper call.
    #[inline(always)]
    pub(crate) fn load_head<const N: usize>(self, to: &mut [u8; N]) -> bool {
        let at = self.data() as usize;
        if at + N > self.data_end() as usize {
            return self.load(0, to);
        }
        let (from, to) = (at as *const u16, to.as_mut_ptr().cast::<u16>());
        // SAFETY: the comparison bounds the reads by the context's `data_end`, and the verifier checks the same. IP
        // headers lie at multiples of four; where they do not, the verifier knows whether this machine minds.
        unsafe {
            to.write(from.read_volatile());
            let (from, to) = (from.add(1).cast::<u32>(), to.add(1).cast::<u32>());
            for word in 0..(N - 2) / 4 {
                to.add(word).write(from.add(word).read_volatile());
            }
        }
        true
    }

    /// Overwrites the first N bytes of the frame, two and a multiple of four, from where the third is at a multiple of
    /// four. Nobody's sum over the packet follows. False if they are not linear.
    #[inline(always)]
    pub(crate) fn store_head<const N: usize>(self, from: &[u8; N]) -> bool {
        let at = self.data() as usize;
        if at + N > self.data_end() as usize {
            return false;
        }
        let (from, to) = (from.as_ptr().cast::<u16>(), at as *mut u16);
        // SAFETY: as in `load_head`; the kernel has made these bytes this packet's own before the program began, and
        // does so again after each clone.
        unsafe {
            to.write_volatile(from.read());
            let (from, to) = (from.add(1).cast::<u32>(), to.add(1).cast::<u32>());
            for word in 0..(N - 2) / 4 {
                to.add(word).write_volatile(from.add(word).read());
            }
        }
        true
    }

    /// Copies bytes of the frame, linear or not.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(self, offset: u32, to: &mut [u8; N]) -> bool {
        // SAFETY: the helper writes at most N bytes to `to`.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, from_mut(to).cast(), N as u32) == 0 }
    }

    /// The RTP header at an offset.
    #[inline(always)]
    pub(crate) fn load_rtp(self, offset: u32) -> Option<RtpFixed> {
        let mut words = MaybeUninit::<[u32; 3]>::uninit();
        // SAFETY: the helper writes the twelve bytes, or fails and is not believed to have.
        let loaded = unsafe { bpf_skb_load_bytes(self.0.cast(), offset, words.as_mut_ptr().cast(), 12) == 0 };
        // SAFETY: as above.
        loaded.then(|| RtpFixed::from_words(unsafe { words.assume_init() }))
    }

    /// Changes the RTP header at an offset, under a checksum that is not complete. False if it is not linear.
    #[inline(always)]
    pub(crate) fn change_rtp(self, offset: u32, change: impl FnOnce(RtpFixed) -> RtpFixed) -> bool {
        if offset > MAX_OFFSET {
            return false;
        }
        let mut at = self.data() as usize;
        // One register for the comparison and the accesses, which the compiler would compute apart from each other.
        // SAFETY: an addition.
        unsafe { asm!("{} += {}", inout(reg) at, in(reg) u64::from(offset), options(nostack, nomem, pure)) };
        if at + RTP_FIXED_LEN > self.data_end() as usize {
            return false;
        }
        let header = at as *mut u32;
        // SAFETY: the comparison bounds the accesses by the context's `data_end`, and the verifier checks the same; see
        // `store_head` for whose the bytes are.
        unsafe {
            let words = [0, 1, 2].map(|word| header.add(word).read_volatile());
            let words = change(RtpFixed::from_words(words)).to_words();
            header.write_volatile(words[0]);
            header.add(1).write_volatile(words[1]);
            header.add(2).write_volatile(words[2]);
        }
        true
    }

    /// Makes the first `len` bytes linear and this packet's own.
    #[inline(always)]
    pub(crate) fn make_linear(self, len: u32) -> bool {
        // SAFETY: packet pointers are derived anew after each helper.
        unsafe { bpf_skb_pull_data(self.0, len) == 0 }
    }

    /// Overwrites bytes of the frame. `summed`: they are not behind a checksum that changes with them, so a
    /// sum that a NIC made over the packet must follow.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(self, offset: u32, from: &[u8; N], summed: bool) -> bool {
        let flags = u64::from(if summed { BPF_F_RECOMPUTE_CSUM } else { 0 });
        // SAFETY: the helper reads N bytes of `from`.
        unsafe { bpf_skb_store_bytes(self.0, offset, from.as_ptr().cast(), N as u32, flags) == 0 }
    }

    /// Forgets the flow hash, so that copies spread over the paths of a bond.
    #[inline(always)]
    pub(crate) fn forget_hash(self) {
        if self.hash() != 0 {
            // SAFETY: changes this packet's hash only.
            unsafe { bpf_set_hash_invalid(self.0) };
        }
    }

    /// Adds `diff` to the checksum at `offset`, unless only its pseudo-header part is in it.
    #[inline(always)]
    pub(crate) fn replace_complete_checksum(self, offset: u32, diff: u16) -> bool {
        // SAFETY: the helper checks the offset.
        unsafe { bpf_l4_csum_replace(self.0, offset, 0, u64::from(diff), 0) == 0 }
    }

    /// Sends a copy out of an interface.
    #[inline(always)]
    pub(crate) fn clone_redirect(self, ifindex: u32) -> bool {
        // SAFETY: packet pointers are derived anew after each helper.
        unsafe { bpf_clone_redirect(self.0, ifindex, 0) == 0 }
    }

    /// Whether there is an interface of this index in this namespace.
    #[inline(always)]
    pub(crate) fn has_device(self, ifindex: u32) -> bool {
        let mut mtu = 0_u32;
        // SAFETY: the helper writes the device's MTU to `mtu`. That the packet is longer is told by a positive value.
        unsafe { bpf_check_mtu(self.0.cast(), ifindex, from_mut(&mut mtu), 0, 0) >= 0 }
    }

    /// The return value that sends the packet itself out of an interface.
    #[inline(always)]
    pub(crate) fn redirect(self, ifindex: u32) -> i32 {
        // SAFETY: notes the target for the return.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// The return value that makes the packet arrive at the other end of a veth, in another namespace.
    #[inline(always)]
    pub(crate) fn redirect_peer(self, ifindex: u32) -> i32 {
        // Kernels before 6.15 keep the type, and a packet that was for another host's MAC would be
        // dropped on arrival.
        if self.pkt_type() != PACKET_HOST {
            // SAFETY: changes the type of this packet only.
            unsafe { bpf_skb_change_type(self.0, PACKET_HOST) };
        }
        // SAFETY: notes the target for the return.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }
}
