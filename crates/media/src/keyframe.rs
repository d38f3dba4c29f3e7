//! Where a decoder can start: recognises key frames and parameter sets in RTP payloads, without decoding.

/// Payload format of a track, as far as key frames are recognised in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// RFC 6184.
    H264,
    /// RFC 7798.
    H265,
    /// Anything else: every packet is as good a start as any other.
    Other,
}

impl Codec {
    /// The codec of an encoding name of an SDP, in any case.
    pub fn from_name(name: &str) -> Self {
        if name.eq_ignore_ascii_case("H264") {
            Self::H264
        } else if name.eq_ignore_ascii_case("H265") || name.eq_ignore_ascii_case("HEVC") {
            Self::H265
        } else {
            Self::Other
        }
    }

    /// Whether a decoder may start with this payload: it begins a parameter set or a key picture. True
    /// for any payload of [`Codec::Other`]; total on any input.
    ///
    /// Parameter sets count, because the pictures that follow them are useless without them: H.264
    /// types 7 (SPS) and 5 (IDR slice); H.265 types 32..=34 (VPS, SPS, PPS) and 16..=21 (IRAP). A PPS of
    /// H.264 does not, since cameras repeat it before ordinary pictures. Aggregation packets (STAP-A,
    /// AP) are searched; of fragments only the first counts.
    #[inline]
    pub fn resume_point(self, payload: &[u8]) -> bool {
        match self {
            Self::H264 => h264(payload),
            Self::H265 => h265(payload),
            Self::Other => true,
        }
    }
}

fn h264(payload: &[u8]) -> bool {
    let Some(&first) = payload.first() else { return false };
    match first & 0x1f {
        24 => units(payload.get(1..).unwrap_or_default())
            .any(|unit| unit.first().is_some_and(|b| h264_start(b & 0x1f))),
        28 | 29 => payload.get(1).is_some_and(|fu| fu & 0x80 != 0 && h264_start(fu & 0x1f)),
        kind => h264_start(kind),
    }
}

fn h264_start(kind: u8) -> bool {
    matches!(kind, 5 | 7)
}

fn h265(payload: &[u8]) -> bool {
    let Some(&first) = payload.first() else { return false };
    match first >> 1 & 0x3f {
        48 => units(payload.get(2..).unwrap_or_default())
            .any(|unit| unit.first().is_some_and(|b| h265_start(b >> 1 & 0x3f))),
        49 => payload.get(2).is_some_and(|fu| fu & 0x80 != 0 && h265_start(fu & 0x3f)),
        kind => h265_start(kind),
    }
}

fn h265_start(kind: u8) -> bool {
    matches!(kind, 16..=21 | 32..=34)
}

/// The units of an aggregation packet, each behind a length of 16 bits. Stops at one that does not fit.
fn units(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, body) = rest.split_first_chunk::<2>()?;
        let (unit, tail) = body.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        rest = tail;
        Some(unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h264_starts_at_parameter_sets_and_idr_slices_only() {
        let table: [(&[u8], bool, &str); 12] = [
            (&[0x67, 0x42], true, "SPS"),
            (&[0x65, 0x88], true, "IDR slice"),
            (&[0x41, 0x9a], false, "ordinary slice"),
            (&[0x68, 0xce], false, "PPS alone"),
            (&[0x06, 0x05], false, "SEI"),
            (&[0x7c, 0x85], true, "first fragment of an IDR slice"),
            (&[0x7c, 0x05], false, "middle fragment of an IDR slice"),
            (&[0x7c, 0x81], false, "first fragment of an ordinary slice"),
            (&[0x18, 0, 2, 0x67, 1, 0, 2, 0x68, 1], true, "STAP-A of SPS and PPS"),
            (&[0x18, 0, 2, 0x06, 1, 0, 2, 0x41, 1], false, "STAP-A of SEI and ordinary slice"),
            (&[0x18, 0xff, 0xff, 0x67], false, "STAP-A with a lying length"),
            (&[], false, "empty"),
        ];
        for (payload, expected, what) in table {
            assert_eq!(Codec::H264.resume_point(payload), expected, "{what}");
        }
    }

    #[test]
    fn h265_starts_at_parameter_sets_and_irap_pictures_only() {
        let table: [(&[u8], bool, &str); 8] = [
            (&[0x40, 1], true, "VPS"),
            (&[0x26, 1], true, "IDR_W_RADL"),
            (&[0x2a, 1], true, "CRA"),
            (&[0x02, 1], false, "TRAIL_R"),
            (&[0x62, 1, 0x93], true, "first fragment of IDR_W_RADL"),
            (&[0x62, 1, 0x13], false, "middle fragment of IDR_W_RADL"),
            (&[0x60, 1, 0, 2, 0x42, 1], true, "AP with an SPS"),
            (&[0x62, 1], false, "cut fragment"),
        ];
        for (payload, expected, what) in table {
            assert_eq!(Codec::H265.resume_point(payload), expected, "{what}");
        }
    }

    #[test]
    fn every_packet_of_another_codec_is_a_start() {
        assert!(Codec::from_name("PCMA").resume_point(&[]));
        assert_eq!(Codec::from_name("h264"), Codec::H264);
    }
}
