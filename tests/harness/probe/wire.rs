//! RTP and RTCP as bytes, written from RFC 3550 without a line of ours.

/// An RTP packet in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rtp {
    /// Payload type.
    pub payload_type: u8,
    /// Marker bit.
    pub marker: bool,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
    /// Everything behind the twelve bytes of the header.
    pub payload: Vec<u8>,
}

impl Rtp {
    /// Reads a packet without CSRCs, extension and padding; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, payload) = bytes.split_at_checked(12)?;
        (header[0] == 0x80).then(|| Self {
            payload_type: header[1] & 0x7f,
            marker: header[1] & 0x80 != 0,
            sequence: u16::from_be_bytes([header[2], header[3]]),
            timestamp: word_at(header, 4),
            ssrc: word_at(header, 8),
            payload: payload.to_vec(),
        })
    }

    /// The packet as it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x80, self.payload_type | u8::from(self.marker) << 7];
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.timestamp.to_be_bytes());
        bytes.extend(self.ssrc.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// What a sender report says about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderReport {
    /// Synchronisation source.
    pub ssrc: u32,
    /// Wall-clock time, seconds since 1900 in the upper half.
    pub ntp: u64,
    /// The same moment on the media clock.
    pub timestamp: u32,
    /// Packets sent.
    pub packets: u32,
    /// Octets sent.
    pub octets: u32,
}

impl SenderReport {
    /// A compound of it and a CNAME.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x80, 200, 0, 6];
        bytes.extend(self.ssrc.to_be_bytes());
        bytes.extend(self.ntp.to_be_bytes());
        for value in [self.timestamp, self.packets, self.octets] {
            bytes.extend(value.to_be_bytes());
        }
        bytes.extend(description(self.ssrc, "probe"));
        bytes
    }
}

/// A compound of an empty receiver report and a CNAME: a sign of life.
pub fn receiver_report(ssrc: u32) -> Vec<u8> {
    let mut bytes = vec![0x80, 201, 0, 1];
    bytes.extend(ssrc.to_be_bytes());
    bytes.extend(description(ssrc, "probe"));
    bytes
}

/// A compound of an empty receiver report, a CNAME and a BYE.
pub fn bye(ssrc: u32) -> Vec<u8> {
    let mut bytes = receiver_report(ssrc);
    bytes.extend([0x81, 203, 0, 1]);
    bytes.extend(ssrc.to_be_bytes());
    bytes
}

fn description(ssrc: u32, cname: &str) -> Vec<u8> {
    let mut chunk = ssrc.to_be_bytes().to_vec();
    chunk.extend([1, cname.len() as u8]);
    chunk.extend(cname.as_bytes());
    chunk.push(0);
    while !chunk.len().is_multiple_of(4) {
        chunk.push(0);
    }
    let mut bytes = vec![0x81, 202, 0, (chunk.len() / 4) as u8];
    bytes.extend(chunk);
    bytes
}

/// The packets of an RTCP compound as (packet type, count, body without the first four bytes); nothing
/// when the lengths do not fit.
pub fn compound(bytes: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut packets = Vec::new();
    let mut rest = bytes;
    while let [first, kind, high, low, ..] = *rest {
        let end = (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
        let Some(packet) = rest.get(..end) else { return Vec::new() };
        packets.push((kind, first & 0x1f, packet[4..].to_vec()));
        rest = &rest[end..];
    }
    packets
}

/// Sender reports of a compound.
pub fn sender_reports(bytes: &[u8]) -> Vec<SenderReport> {
    let read = |(kind, _, body): (u8, u8, Vec<u8>)| {
        (kind == 200 && body.len() >= 24).then(|| SenderReport {
            ssrc: word_at(&body, 0),
            ntp: u64::from(word_at(&body, 4)) << 32 | u64::from(word_at(&body, 8)),
            timestamp: word_at(&body, 12),
            packets: word_at(&body, 16),
            octets: word_at(&body, 20),
        })
    };
    compound(bytes).into_iter().filter_map(read).collect()
}

/// SSRCs that say BYE in a compound.
pub fn leaving(bytes: &[u8]) -> Vec<u32> {
    compound(bytes)
        .into_iter()
        .filter(|(kind, count, _)| *kind == 203 && *count > 0)
        .filter(|(.., body)| body.len() >= 4)
        .map(|(.., body)| word_at(&body, 0))
        .collect()
}

/// A report block of somebody's reception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlock {
    /// Who reports.
    pub reporter: u32,
    /// About whom.
    pub ssrc: u32,
    /// Packets lost since the beginning.
    pub lost: i32,
    /// Interarrival jitter in ticks.
    pub jitter: u32,
}

/// Report blocks of the receiver reports of a compound.
pub fn report_blocks(bytes: &[u8]) -> Vec<ReportBlock> {
    let mut blocks = Vec::new();
    for (kind, count, body) in compound(bytes) {
        if kind != 201 {
            continue;
        }
        for block in body.get(4..).unwrap_or_default().chunks_exact(24).take(usize::from(count)) {
            let lost = (word_at(block, 4) << 8) as i32 >> 8;
            blocks.push(ReportBlock {
                reporter: word_at(&body, 0),
                ssrc: word_at(block, 0),
                lost,
                jitter: word_at(block, 12),
            });
        }
    }
    blocks
}

/// The CNAME in a compound.
pub fn cname(bytes: &[u8]) -> Option<String> {
    compound(bytes).into_iter().find(|(kind, ..)| *kind == 202).and_then(|(.., body)| {
        let length = usize::from(*body.get(5)?);
        Some(String::from_utf8_lossy(body.get(6..6 + length)?).into_owned())
    })
}

/// The 32 bits at an offset.
pub fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        let report = SenderReport { ssrc: 7, ntp: 9 << 32 | 1, timestamp: 11, packets: 1, octets: 2 };
        assert_eq!(sender_reports(&report.to_bytes()), [report]);
        assert_eq!(cname(&report.to_bytes()).as_deref(), Some("probe"));
        assert_eq!((leaving(&bye(5)), leaving(&receiver_report(5))), (vec![5], vec![]));
        let packet =
            Rtp { payload_type: 96, marker: true, sequence: 1, timestamp: 2, ssrc: 3, payload: vec![4] };
        assert_eq!(Rtp::parse(&packet.to_bytes()), Some(packet));
    }
}
