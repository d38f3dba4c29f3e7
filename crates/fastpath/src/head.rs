//! The headers of a frame as one value: what a kernel program reads once and writes once per copy.
//!
//! Ethernet, IPv4 without options or IPv6 without extension headers, UDP and the fixed RTP header lie in
//! [`Head`] behind two bytes of padding, which put every address on a multiple of four: kernel programs
//! must not touch unaligned memory of their own, and byte-wise copies would cost more than everything else here.

use zerocopy::{IntoBytes as _, transmute, transmute_ref};

use crate::csum::Delta;
use crate::drop::DropReason;
use crate::flow::FlowKey;
use crate::group::LegEntry;
use crate::header::{ETH_LEN, IPV4_LEN, IPV6_LEN, RtpFixed, UDP_LEN};
use crate::pass::PassReason;
use crate::rewrite::{edit_delta, next_tos, next_ttl};

/// Bytes of padding before the Ethernet header.
pub const PAD: usize = 2;

/// Words of a [`Head`]: padding, Ethernet, IPv6, UDP, RTP, and one to make it a multiple of eight bytes.
pub const WORDS: usize = 20;

/// Version of IP, with what differs between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 without options.
    V4,
    /// IPv6 without extension headers.
    V6,
}

impl Family {
    /// Length of the IP header in bytes.
    #[inline(always)]
    pub const fn ip_len(self) -> usize {
        match self {
            Self::V4 => IPV4_LEN,
            Self::V6 => IPV6_LEN,
        }
    }

    /// Offset of the UDP header in the frame, in bytes.
    #[inline(always)]
    pub const fn udp_offset(self) -> usize {
        ETH_LEN + self.ip_len()
    }

    /// Offset of the UDP payload in the frame, in bytes.
    #[inline(always)]
    pub const fn payload_offset(self) -> usize {
        self.udp_offset() + UDP_LEN
    }

    /// Word of the UDP header in a [`Head`].
    #[inline(always)]
    const fn udp_word(self) -> usize {
        (PAD + self.udp_offset()) / 4
    }
}

/// Where a packet's UDP checksum stands, which only the kernel knows of its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// The field holds the sum of the pseudo-header; whoever sends it on the wire adds the rest.
    Partial,
    /// The field holds the checksum.
    Complete,
    /// The field is 0: the sender made none (IPv4 only).
    Absent,
}

/// What the headers say beyond their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes of UDP payload, all segments of a super-packet together.
    pub payload_len: u32,
    /// The checksum field of UDP, host order.
    pub check: u16,
}

/// Headers of one frame, in network order as they came.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    words: [u32; WORDS],
}

impl Default for Head {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// One 16-bit word of a header word, host order: `half` 0 is the first.
#[inline]
const fn half(word: u32, half: usize) -> u16 {
    let bytes = word.to_ne_bytes();
    u16::from_be_bytes([bytes[2 * half], bytes[2 * half + 1]])
}

/// A header word of two 16-bit words in host order.
#[inline]
const fn whole(first: u16, second: u16) -> u32 {
    let (a, b) = (first.to_be_bytes(), second.to_be_bytes());
    u32::from_ne_bytes([a[0], a[1], b[0], b[1]])
}

/// The words before an IPv4 address that make it IPv4-mapped.
const MAPPED: [u32; 3] = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])];

impl Head {
    /// All zero.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// The bytes of the frame from its start, as many as a head holds.
    pub fn frame(&self) -> &[u8] {
        self.words.as_bytes().split_at(PAD).1
    }

    /// The bytes of the frame, to be filled.
    pub fn frame_mut(&mut self) -> &mut [u8] {
        self.words.as_mut_bytes().split_at_mut(PAD).1
    }

    /// A head of the first bytes of a frame; what the frame lacks is 0.
    pub fn of(frame: &[u8]) -> Self {
        let mut head = Self::EMPTY;
        for (to, from) in head.frame_mut().iter_mut().zip(frame) {
            *to = *from;
        }
        head
    }

    /// Checks the headers of IPv4 without options, UDP. `None`: options, a fragment, lengths that do not agree.
    ///
    /// `frame_len`: bytes of the whole frame. The protocol was checked already.
    #[inline(always)]
    pub const fn datagram_v4(&self, frame_len: u32) -> Option<Datagram> {
        let [version_ihl, _, _, _] = self.words[4].to_ne_bytes();
        let total = half(self.words[4], 1) as u32;
        let fragment = half(self.words[5], 1) & 0x3fff != 0;
        if version_ihl != 0x45 || fragment || total < IPV4_LEN as u32 || total + ETH_LEN as u32 > frame_len {
            return None;
        }
        self.datagram(Family::V4, total - IPV4_LEN as u32)
    }

    /// Checks the headers of IPv6 without extension headers, UDP. `None`: lengths that do not agree, or no
    /// checksum, which is illegal here.
    ///
    /// `frame_len`: bytes of the whole frame. The next header was checked already.
    #[inline(always)]
    pub const fn datagram_v6(&self, frame_len: u32) -> Option<Datagram> {
        let [version, _, _, _] = self.words[4].to_ne_bytes();
        let payload = half(self.words[5], 0) as u32;
        if version >> 4 != 6 || payload + (ETH_LEN + IPV6_LEN) as u32 > frame_len {
            return None;
        }
        match self.datagram(Family::V6, payload) {
            Some(datagram) if datagram.check != 0 => Some(datagram),
            _ => None,
        }
    }

    #[inline(always)]
    const fn datagram(&self, family: Family, ip_payload: u32) -> Option<Datagram> {
        let word = self.words[family.udp_word() + 1];
        let len = half(word, 0) as u32;
        if len < UDP_LEN as u32 || len > ip_payload {
            return None;
        }
        Some(Datagram { payload_len: len - UDP_LEN as u32, check: half(word, 1) })
    }

    /// Why [`Self::datagram_v4`] or [`Self::datagram_v6`] found no datagram.
    #[inline(always)]
    pub const fn pass_reason(&self, family: Family) -> PassReason {
        let [version_ihl, _, _, _] = self.words[4].to_ne_bytes();
        match family {
            Family::V4 if version_ihl > 0x45 && version_ihl <= 0x4f => PassReason::IpOptions,
            Family::V4 if version_ihl == 0x45 && half(self.words[5], 1) & 0x3fff != 0 => PassReason::Fragment,
            Family::V4 | Family::V6 => PassReason::Malformed,
        }
    }

    /// Key of the flow.
    #[inline(always)]
    pub fn key(&self, family: Family, ifindex: u32) -> FlowKey {
        let w = &self.words;
        let [m0, m1, m2] = MAPPED;
        transmute!(match family {
            Family::V4 => [m0, m1, m2, w[7], m0, m1, m2, w[8], w[9], ifindex],
            Family::V6 => [w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], ifindex],
        })
    }

    /// The fixed RTP header. Meaningful if the payload has 12 bytes.
    #[inline(always)]
    pub const fn rtp(&self, family: Family) -> RtpFixed {
        let at = family.udp_word() + 2;
        RtpFixed::from_words([self.words[at], self.words[at + 1], self.words[at + 2]])
    }

    /// Readdresses a copy to a leg: this head becomes the copy's, whatever it was before, so one head serves
    /// for leg after leg.
    ///
    /// `original`: headers of the packet as it came. `rtp`: RTP header of the copy, where it lies in the head.
    ///
    /// # Errors
    /// [`DropReason::Ttl`]; this head is then as it was.
    #[inline(always)]
    pub fn readdress(
        &mut self,
        original: &Self,
        family: Family,
        leg: &LegEntry,
        checksum: Checksum,
        rtp: Option<RtpFixed>,
    ) -> Result<(), DropReason> {
        let to: &[u32; LegEntry::WORDS] = transmute_ref!(leg);
        match family {
            Family::V4 => {
                let [version_ihl, old_tos, len_high, len_low] = original.words[4].to_ne_bytes();
                let [old_ttl, protocol, _, _] = original.words[6].to_ne_bytes();
                let ttl = next_ttl(old_ttl, leg)?;
                let tos = next_tos(old_tos, leg);
                let pair = |first, second| u16::from_be_bytes([first, second]);
                let check = Delta(leg.address_delta)
                    .replace16(pair(version_ihl, old_tos), pair(version_ihl, tos))
                    .replace16(pair(old_ttl, protocol), pair(ttl, protocol))
                    .apply(half(original.words[6], 1));
                self.words[4] = u32::from_ne_bytes([version_ihl, tos, len_high, len_low]);
                self.words[5] = original.words[5];
                self.words[6] = whole(pair(ttl, protocol), check);
                self.words[7] = to[LegEntry::SRC_WORD + 3];
                self.words[8] = to[LegEntry::DST_WORD + 3];
            }
            Family::V6 => {
                let [class_high, class_low, label_high, label_low] = original.words[4].to_ne_bytes();
                let [len_high, len_low, next_header, old_ttl] = original.words[5].to_ne_bytes();
                let ttl = next_ttl(old_ttl, leg)?;
                let tos = next_tos((class_high << 4) | (class_low >> 4), leg);
                let (class_high, class_low) =
                    ((class_high & 0xf0) | (tos >> 4), (tos << 4) | (class_low & 0x0f));
                self.words[4] = u32::from_ne_bytes([class_high, class_low, label_high, label_low]);
                self.words[5] = u32::from_ne_bytes([len_high, len_low, next_header, ttl]);
                // Both addresses: they follow each other there as here.
                let (_, from) = to.split_at(LegEntry::SRC_WORD);
                for (word, from) in self.words.iter_mut().skip(6).zip(from).take(8) {
                    *word = *from;
                }
            }
        }
        self.write_ethernet(original, to);
        let udp = family.udp_word();
        self.words[udp] = to[LegEntry::PORTS_WORD];
        let mut delta = Delta(leg.address_delta);
        if matches!(checksum, Checksum::Complete) {
            delta = delta.plus(Delta(leg.port_delta));
        }
        if let Some(rtp) = rtp {
            if matches!(checksum, Checksum::Complete) {
                delta = delta.plus(edit_delta(&original.rtp(family), &rtp));
            }
            [self.words[udp + 2], self.words[udp + 3], self.words[udp + 4]] = rtp.to_words();
        }
        let check = half(original.words[udp + 1], 1);
        let check = match checksum {
            Checksum::Partial => delta.apply_partial(check),
            Checksum::Complete => delta.apply_udp(check),
            Checksum::Absent => 0,
        };
        self.words[udp + 1] = whole(half(original.words[udp + 1], 0), check);
        Ok(())
    }

    /// MAC addresses of the leg, which follow each other there too, and the EtherType of the original.
    #[inline(always)]
    fn write_ethernet(&mut self, original: &Self, to: &[u32; LegEntry::WORDS]) {
        // Two bytes further on than in the leg's entry.
        let [a, b, c] = [0, 1, 2].map(|word| to[LegEntry::MAC_WORD + word].to_ne_bytes());
        let [_, _, type_high, type_low] = original.words[3].to_ne_bytes();
        self.words[0] = u32::from_ne_bytes([0, 0, a[0], a[1]]);
        self.words[1] = u32::from_ne_bytes([a[2], a[3], b[0], b[1]]);
        self.words[2] = u32::from_ne_bytes([b[2], b[3], c[0], c[1]]);
        self.words[3] = u32::from_ne_bytes([c[2], c[3], type_high, type_low]);
    }
}

#[cfg(test)]
mod tests;
