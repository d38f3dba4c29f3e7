//! One packet at the TCX hook, its headers copied out, and all that becomes known of it.
//!
//! That lies in a value of each CPU and not on the stack, for two reasons: the stack of a call chain ends at 512
//! bytes, and the verifier knows nothing of what a map holds. On the stack it follows every
//! combination of address family, checksum state, mode and so on through both loops on its own: more than a
//! million instructions (kernel 6.18, rustc 1.96), where so it takes some thousands.

use core::ffi::c_void;
use core::ptr::from_mut;

use aya_ebpf::helpers::generated::bpf_loop;
use msm_fastpath::gso::Segments;
use msm_fastpath::header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_UDP};
use msm_fastpath::{
    Arrival, Checksum, Family, FlowEntry, Head, PassReason, Progress, RTP_FIXED_LEN, RtpEdit, RtpFixed,
};

use crate::maps::PACKET;
use crate::skb::Skb;

/// Frame bytes up to the UDP payload, and up to the end of the RTP header.
pub(crate) const V4: usize = Family::V4.payload_offset();
pub(crate) const V4_RTP: usize = V4 + RTP_FIXED_LEN;
pub(crate) const V6: usize = Family::V6.payload_offset();
pub(crate) const V6_RTP: usize = V6 + RTP_FIXED_LEN;

/// What a packet's number says to gates.
#[repr(u8)]
#[derive(Clone, Copy)]
pub(crate) enum Number {
    /// It is higher than all before it.
    Newest,
    /// It is not, or this is RTCP between RTP.
    Behind,
    /// Packets of this flow have none.
    None,
}

/// One packet of one flow.
#[repr(C)]
pub(crate) struct Packet {
    /// 1 while it is in use: a copy that comes back to this hook before the copying is over, by somebody's ingress
    /// redirect, must not use it too.
    busy: u32,
    /// UDP payload in bytes, all segments together.
    pub(crate) payload_len: u32,
    /// Segment size of a super-packet, 0 for a plain datagram.
    pub(crate) gso_size: u32,
    /// The UDP checksum field.
    pub(crate) check: u16,
    pub(crate) family: Family,
    /// Whether the payload begins with an RTP header.
    pub(crate) is_rtp: bool,
    /// Headers as they came.
    pub(crate) head: Head,
    /// Headers of the last copy.
    pub(crate) copy: Head,
    pub(crate) entry: FlowEntry,
    pub(crate) progress: Progress,
    pub(crate) segments: Segments,
    pub(crate) arrival: Arrival,
    /// Largest IP packet among the segments, in bytes.
    pub(crate) ip_len: u32,
    /// The edit that the RTP headers of a super-packet have been through.
    pub(crate) applied: RtpEdit,
    /// The edit that they are going through.
    pub(crate) edit: RtpEdit,
    pub(crate) checksum: Checksum,
    pub(crate) number: Number,
    /// Whether the worker gets the packet too.
    pub(crate) to_user: bool,
    /// Whether a loop met something that it could not go on with.
    pub(crate) failed: bool,
}

impl Packet {
    /// The value of this CPU, `None` while it is in use.
    #[inline(always)]
    pub(crate) fn claim() -> Option<&'static mut Self> {
        // SAFETY: a slot of this CPU's own array; `busy` tells that nobody else has a reference to it.
        let packet = unsafe { &mut *PACKET.get_ptr_mut(0)? };
        if packet.busy != 0 {
            return None;
        }
        packet.busy = 1;
        Some(packet)
    }

    /// Gives it back.
    #[inline(always)]
    pub(crate) fn release(&mut self) {
        self.busy = 0;
    }

    /// Reads the headers. An error if they are not what is looked into at fixed offsets.
    #[inline(always)]
    pub(crate) fn read(&mut self, skb: Skb, family: Family) -> Result<(), PassReason> {
        let len = skb.len();
        self.family = family;
        if !self.load(skb, len) {
            return Err(PassReason::Malformed);
        }
        let datagram = match family {
            Family::V4 => self.head.datagram_v4(len),
            Family::V6 => self.head.datagram_v6(len),
        };
        let Some(datagram) = datagram else { return Err(self.head.pass_reason(family)) };
        self.payload_len = datagram.payload_len;
        self.check = datagram.check;
        self.gso_size = skb.gso_size();
        Ok(())
    }

    /// Copies the headers out, the RTP header too if the frame is so long.
    #[inline(always)]
    fn load(&mut self, skb: Skb, len: u32) -> bool {
        let long = len as usize >= self.family.payload_offset() + RTP_FIXED_LEN;
        match (self.family, long) {
            (Family::V4, true) => self.load_bytes::<V4_RTP>(skb),
            (Family::V4, false) => self.load_bytes::<V4>(skb),
            (Family::V6, true) => self.load_bytes::<V6_RTP>(skb),
            (Family::V6, false) => self.load_bytes::<V6>(skb),
        }
    }

    #[inline(always)]
    fn load_bytes<const N: usize>(&mut self, skb: Skb) -> bool {
        self.head.frame_mut().first_chunk_mut::<N>().is_some_and(|bytes| skb.load_head(bytes))
    }

    /// The first RTP header, if the payload has so many bytes.
    #[inline(always)]
    pub(crate) fn first_header(&self) -> Option<RtpFixed> {
        (self.payload_len >= RTP_FIXED_LEN as u32).then(|| self.rtp())
    }

    /// The first RTP header, where there is known to be one.
    #[inline(always)]
    pub(crate) fn rtp(&self) -> RtpFixed {
        self.head.rtp(self.family)
    }

    /// Whether it is more than one datagram.
    #[inline(always)]
    pub(crate) fn is_super(&self) -> bool {
        self.segments.count() > 1
    }

    /// Calls `body` for the numbers below `times`, until it returns 1.
    #[inline(always)]
    pub(crate) fn repeat(&mut self, skb: Skb, times: u32, body: extern "C" fn(u32, *mut Turn) -> i64) {
        let mut turn = Turn { skb, packet: self };
        // SAFETY: the helper calls `body` with what it is given here, and returns before this does.
        unsafe { bpf_loop(times, body as *mut c_void, from_mut(&mut turn).cast(), 0) };
    }
}

/// The IP version of a UDP datagram. Otherwise why a frame is not for us.
#[inline(always)]
pub(crate) fn classify(skb: Skb) -> Result<Family, PassReason> {
    const V4_TYPE: u32 = ETHERTYPE_IPV4.to_be() as u32;
    const V6_TYPE: u32 = ETHERTYPE_IPV6.to_be() as u32;
    const VLAN: u32 = 0x8100_u16.to_be() as u32;
    const QINQ: u32 = 0x88a8_u16.to_be() as u32;
    // The kernel has taken the outer tag off already.
    if skb.vlan_present() != 0 {
        return Err(PassReason::Vlan);
    }
    let (family, offset) = match skb.protocol() {
        V4_TYPE => (Family::V4, 23),
        V6_TYPE => (Family::V6, 20),
        VLAN | QINQ => return Err(PassReason::Vlan),
        _ => return Err(PassReason::NotOurs),
    };
    let protocol = match skb.linear(offset) {
        Some([protocol]) => protocol,
        None => {
            let mut protocol = [0];
            if !skb.load(offset as u32, &mut protocol) {
                return Err(PassReason::Malformed);
            }
            protocol[0]
        }
    };
    match (protocol, family) {
        (PROTO_UDP, _) => Ok(family),
        // Hop-by-hop, routing, destination options: UDP may follow, at no fixed offset.
        (0 | 43 | 60, Family::V6) => Err(PassReason::IpOptions),
        (44, Family::V6) => Err(PassReason::Fragment),
        _ => Err(PassReason::NotOurs),
    }
}

/// What the body of a loop is given.
pub(crate) struct Turn {
    skb: Skb,
    packet: *mut Packet,
}

impl Turn {
    /// What [`Packet::repeat`] was called with.
    ///
    /// # Safety
    /// `turn` is what the body of a loop was given, and is used once.
    #[inline(always)]
    pub(crate) unsafe fn take<'a>(turn: *mut Self) -> (Skb, &'a mut Packet) {
        // SAFETY: both outlive the loop, whose caller waits for it and looks at neither.
        unsafe { ((*turn).skb, &mut *(*turn).packet) }
    }
}
