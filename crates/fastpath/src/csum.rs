//! Internet checksums: complete sums and incremental updates.
//!
//! Sums are one's-complement over 16-bit big-endian words (RFC 1071), carried unfolded in a `u32`; up to
//! 65,535 words fit before a fold. Updates follow equation 3 of RFC 1624, `HC' = ~(~HC + ~m + m')`, which
//! unlike RFC 1141 never turns a valid sum into the wrong zero.

/// Folds a sum to 16 bits.
#[inline]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Adds bytes to a sum; an odd last byte counts as the high half of its word. The result is folded, so
/// calls may be chained without limit as long as every call but the last gets an even number of bytes.
///
/// `bytes`: at most 65,535.
pub fn add_bytes(sum: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut sum = fold(sum) as u32;
    for word in words {
        sum += u16::from_be_bytes(*word) as u32;
    }
    if let [last] = rest {
        sum += (*last as u32) << 8;
    }
    fold(sum) as u32
}

/// Sum of an IPv4 pseudo-header for UDP; `udp_len` in bytes.
pub fn pseudo_v4(src: [u8; 4], dst: [u8; 4], udp_len: u16) -> u32 {
    add_bytes(add_bytes(udp_len as u32 + crate::header::PROTO_UDP as u32, &src), &dst)
}

/// Sum of an IPv6 pseudo-header for UDP; `udp_len` in bytes.
pub fn pseudo_v6(src: [u8; 16], dst: [u8; 16], udp_len: u16) -> u32 {
    add_bytes(add_bytes(udp_len as u32 + crate::header::PROTO_UDP as u32, &src), &dst)
}

/// The IPv4 header checksum for a header whose checksum field is 0 in `header`.
pub fn ipv4(header: &[u8]) -> u16 {
    !fold(add_bytes(0, header))
}

/// The UDP checksum: `pseudo` from [`pseudo_v4`] or [`pseudo_v6`], `datagram` the UDP header with a zero
/// checksum field and the payload. A computed 0 is sent as 0xffff, because 0 means "none" (RFC 768).
pub fn udp(pseudo: u32, datagram: &[u8]) -> u16 {
    nonzero(!fold(add_bytes(pseudo, datagram)))
}

/// What a NIC or kernel that finishes checksums itself expects in the field: the pseudo-header sum alone,
/// not complemented (`CHECKSUM_PARTIAL`).
pub const fn partial(pseudo: u32) -> u16 {
    fold(pseudo)
}

const fn nonzero(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}

/// The difference that replaced bytes make to a checksum: `~m + m'` of RFC 1624, folded to 16 bits.
///
/// Computed once in user space and stored with a leg; applying it costs one addition and a fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Delta(pub u32);

impl Delta {
    /// Nothing changes.
    pub const NONE: Self = Self(0);

    /// Replaces one 16-bit word, both in host order.
    #[inline]
    #[must_use]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(fold(self.0 + (!old) as u32 + new as u32) as u32)
    }

    /// Replaces an aligned pair of words, both in host order.
    #[inline]
    #[must_use]
    pub const fn replace32(self, old: u32, new: u32) -> Self {
        self.replace16((old >> 16) as u16, (new >> 16) as u16).replace16(old as u16, new as u16)
    }

    /// Replaces `old` by `new`, which lie at an even offset. Of the longer one only the common length
    /// counts; an odd last byte is the high half of its word.
    #[must_use]
    pub fn replace_bytes(self, old: &[u8], new: &[u8]) -> Self {
        let mut delta = self;
        for (old, new) in old.chunks(2).zip(new.chunks(2)) {
            let word = |pair: &[u8]| match *pair {
                [high, low] => u16::from_be_bytes([high, low]),
                [high] => u16::from_be_bytes([high, 0]),
                _ => 0,
            };
            delta = delta.replace16(word(old), word(new));
        }
        delta
    }

    /// The sum of two differences.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(fold(self.0 + other.0) as u32)
    }

    /// Applies the difference to a checksum field that is always present (IPv4 header).
    #[inline]
    pub const fn apply(self, check: u16) -> u16 {
        !fold((!check) as u32 + self.0)
    }

    /// Applies the difference to a UDP checksum. On IPv4 a received 0 ("none") stays 0; a result of 0
    /// becomes 0xffff. On IPv6 0 is illegal and no packet with it gets here: it is malformed.
    #[inline]
    pub const fn apply_udp(self, check: u16) -> u16 {
        if check == 0 { 0 } else { nonzero(self.apply(check)) }
    }

    /// Applies the difference to a field that holds a partial sum (see [`partial`]).
    #[inline]
    pub const fn apply_partial(self, sum: u16) -> u16 {
        fold(sum as u32 + self.0)
    }
}

#[cfg(test)]
mod tests;
