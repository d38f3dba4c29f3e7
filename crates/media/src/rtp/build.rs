//! Builder of RTP packets, and the in-place edit of a packet of a projected leg.

use msm_fastpath::RtpFixed;

/// Writes sequence number, timestamp and SSRC into the fixed header of a packet. Everything else stays
/// (RTP-4). Does nothing to a packet shorter than the fixed header.
#[inline]
pub fn set_header(packet: &mut [u8], seq: u16, timestamp: u32, ssrc: u32) {
    if let Some(header) = RtpFixed::parse_mut(packet) {
        header.set_seq(seq);
        header.set_timestamp(timestamp);
        header.set_ssrc(ssrc);
    }
}

/// Builds a packet.
#[derive(Debug, Clone)]
pub struct PacketBuilder {
    payload_type: u8,
    marker: bool,
    seq: u16,
    timestamp: u32,
    ssrc: u32,
    csrcs: Vec<u32>,
    extension: Option<(u16, Vec<u8>)>,
}

impl PacketBuilder {
    /// A packet with these fields and no marker, CSRC or extension.
    pub fn new(payload_type: u8, seq: u16, timestamp: u32, ssrc: u32) -> Self {
        Self {
            payload_type: payload_type & 0x7f,
            marker: false,
            seq,
            timestamp,
            ssrc,
            csrcs: Vec::new(),
            extension: None,
        }
    }

    /// Sets the marker bit.
    pub fn marker(mut self) -> Self {
        self.marker = true;
        self
    }

    /// Adds a contributing source; the sixteenth and later are ignored.
    pub fn csrc(mut self, csrc: u32) -> Self {
        if self.csrcs.len() < 15 {
            self.csrcs.push(csrc);
        }
        self
    }

    /// Sets the header extension; the body is padded with zeros to words and cut at 65,535 of them.
    pub fn extension(mut self, profile: u16, mut data: Vec<u8>) -> Self {
        data.truncate(4 * usize::from(u16::MAX));
        data.resize(data.len().next_multiple_of(4), 0);
        self.extension = Some((profile, data));
        self
    }

    /// The packet with this payload.
    pub fn build(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(12 + 4 * self.csrcs.len() + payload.len());
        let x = if self.extension.is_some() { 0x10 } else { 0 };
        out.push(0x80 | x | self.csrcs.len() as u8);
        out.push(self.payload_type | if self.marker { 0x80 } else { 0 });
        out.extend(self.seq.to_be_bytes());
        out.extend(self.timestamp.to_be_bytes());
        out.extend(self.ssrc.to_be_bytes());
        for csrc in &self.csrcs {
            out.extend(csrc.to_be_bytes());
        }
        if let Some((profile, data)) = &self.extension {
            out.extend(profile.to_be_bytes());
            out.extend(((data.len() / 4) as u16).to_be_bytes());
            out.extend(data);
        }
        out.extend(payload);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtp::RtpView;

    #[test]
    fn an_edit_keeps_marker_csrcs_extension_and_payload() {
        let packet =
            PacketBuilder::new(96, 1, 2, 3).marker().csrc(9).extension(0xABAC, vec![1; 12]).build(b"payload");
        let mut edited = packet.clone();
        set_header(&mut edited, 0xfffe, 0xdead_beef, 0xcafe_f00d);
        let view = RtpView::parse(&edited).unwrap();
        assert_eq!((view.seq(), view.timestamp(), view.ssrc()), (0xfffe, 0xdead_beef, 0xcafe_f00d));
        assert_eq!((&edited[..2], &edited[12..]), (&packet[..2], &packet[12..]), "RTP-4");
    }

    #[test]
    fn an_edit_of_a_fragment_of_a_header_does_nothing() {
        let mut short = [7; 11];
        set_header(&mut short, 1, 2, 3);
        assert_eq!(short, [7; 11]);
    }

    #[test]
    fn an_extension_is_padded_to_words() {
        let packet = PacketBuilder::new(96, 1, 2, 3).extension(0xBEDE, vec![0x10, 5, 0, 0, 0]).build(b"p");
        let view = RtpView::parse(&packet).unwrap();
        assert_eq!(view.extension().unwrap().data.len(), 8);
        assert_eq!(view.payload(), Some(&b"p"[..]));
    }
}
