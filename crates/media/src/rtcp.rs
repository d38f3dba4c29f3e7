//! RTCP: compound validation, views and builders.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |V=2|P|  count  |      PT       |   length in words minus one   |
//! ```
//!
//! Source: RFC 3550 section 6.4 to 6.7.

pub mod bye;
pub mod compound;
pub mod feedback;
pub mod rr;
pub mod sdes;
pub mod sr;

pub use bye::Bye;
pub use compound::{Compound, CompoundPolicy, Packet, RtcpError};
pub use feedback::Feedback;
pub use rr::{ReceiverReport, ReportBlock};
pub use sdes::Sdes;
pub use sr::SenderReport;

/// Packet types of RTCP.
pub mod packet_type {
    /// Sender report.
    pub const SR: u8 = 200;
    /// Receiver report.
    pub const RR: u8 = 201;
    /// Source description.
    pub const SDES: u8 = 202;
    /// Goodbye.
    pub const BYE: u8 = 203;
    /// Application-defined.
    pub const APP: u8 = 204;
    /// Transport-layer feedback (RFC 4585).
    pub const RTPFB: u8 = 205;
    /// Payload-specific feedback (RFC 4585).
    pub const PSFB: u8 = 206;
    /// Extended reports (RFC 3611).
    pub const XR: u8 = 207;
}

/// Reads a big-endian word; `None` past the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*field))
}

/// Appends a packet: header, words and body. The body is padded with zeros to words; a packet that
/// cannot say its length (over 256 KiB) is not written.
pub(crate) fn write_packet(out: &mut Vec<u8>, count: u8, packet_type: u8, body: &[u8]) {
    let words = body.len().div_ceil(4);
    let Ok(length) = u16::try_from(words) else { return };
    out.push(0x80 | count & 0x1f);
    out.push(packet_type);
    out.extend(length.to_be_bytes());
    out.extend(body);
    out.resize(out.len() + (words * 4 - body.len()), 0);
}

/// Reads every part of a compound that may come from anywhere; must return for any input. Entry of the
/// fuzz target `rtcp`.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Ok(compound) = Compound::parse(data, CompoundPolicy::ReducedSize) else {
        assert!(Compound::parse(data, CompoundPolicy::Full).is_err(), "the full form is the stricter one");
        return;
    };
    for packet in compound.packets() {
        match packet {
            Packet::Sr(sr) => drop((sr.ssrc(), sr.ntp(), sr.blocks().count())),
            Packet::Rr(rr) => drop((rr.ssrc(), rr.blocks().count())),
            Packet::Sdes(sdes) => drop((sdes.chunks().count(), sdes.cname())),
            Packet::Bye(bye) => drop((bye.ssrcs().count(), bye.reason())),
            Packet::Feedback(feedback) => drop((feedback.wants_key_frame(0), format!("{feedback:?}"))),
            Packet::App | Packet::Xr | Packet::Other(_) => {}
        }
    }
    let mut out = Vec::new();
    if compound.write_without_bye(&mut out) {
        let stripped = Compound::parse(&out, CompoundPolicy::ReducedSize).expect("stripping keeps it valid");
        assert!(!stripped.packets().any(|packet| matches!(packet, Packet::Bye(_))), "RTP-24");
    }
}

#[cfg(test)]
mod tests;
