//! What a media section means.

use std::net::IpAddr;

use super::lines::{Line, attribute, attributes};
use crate::transport::Profile;

/// Most payload types of one media line.
const MAX_PAYLOAD_TYPES: usize = 32;

/// Kind of a media line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// `video`
    Video,
    /// `audio`
    Audio,
    /// Anything else, ONVIF metadata for example.
    Application,
}

/// Which way media flows, seen by who wrote the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// `sendrecv`, and none.
    SendRecv,
    /// `sendonly`
    SendOnly,
    /// `recvonly`
    RecvOnly,
    /// `inactive`
    Inactive,
}

/// Why a media section cannot be played. It keeps its index (SDP-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unusable {
    /// Not RTP (`udp`, `TCP`).
    NotRtp,
    /// SRTP, whose keys are not handled yet.
    Encrypted,
    /// No payload type: `m=application/TP-LINK 0 RTP/AVP smart/1/90000`.
    NoPayloadType,
}

/// What is known of one media section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Track {
    /// Index of the section.
    pub index: usize,
    /// Kind.
    pub kind: MediaKind,
    /// `None` if it can be set up.
    pub unusable: Option<Unusable>,
    /// Profile of the media line, if it is RTP.
    pub profile: Option<Profile>,
    /// Port of the media line; 0 from most sources.
    pub port: u16,
    /// Payload types in order, each once.
    pub payload_types: Vec<u8>,
    /// Encoding name of the first payload type in upper case, `H264`; empty if nothing names it.
    pub codec: String,
    /// RTP clock rate of the first payload type in Hz, at least 1.
    pub clock_rate: u32,
    /// Audio channels of the first payload type; 1 where none are named.
    pub channels: u8,
    /// Parameters of the first payload type as the source wrote them, for readers of parameter sets.
    pub fmtp: Option<String>,
    /// `a=control` as written; `None` or `*` means the aggregate URL (RTSP-29).
    pub control: Option<String>,
    /// Direction.
    pub direction: Direction,
    /// `b=AS` in kbit/s, or `b=TIAS` rounded up.
    pub bandwidth_kbps: Option<u32>,
    /// Address of the media's or the session's `c=`, if it is a literal and not unspecified.
    pub connection: Option<IpAddr>,
    /// Whether there are key lines (`a=crypto`, `a=key-mgmt`, `k=`).
    pub has_keys: bool,
}

pub(super) fn read(index: usize, lines: &[Line], session: &[Line]) -> Track {
    let head = lines.first().map(|l| String::from_utf8_lossy(l.value()).into_owned()).unwrap_or_default();
    let mut words = head.split_ascii_whitespace();
    let kind = match words.next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "video" => MediaKind::Video,
        "audio" => MediaKind::Audio,
        _ => MediaKind::Application,
    };
    // `port/number` of ports.
    let port = words.next().and_then(|p| p.split('/').next()?.parse().ok()).unwrap_or_default();
    let profile = words.next().and_then(Profile::from_proto);
    let mut payload_types: Vec<u8> = Vec::new();
    for pt in words.filter_map(|w| w.parse::<u8>().ok()).filter(|pt| *pt < 128) {
        if payload_types.len() < MAX_PAYLOAD_TYPES && !payload_types.contains(&pt) {
            payload_types.push(pt);
        }
    }
    let has_keys = lines.iter().chain(session).any(is_key_line);
    let unusable = match profile {
        None => Some(Unusable::NotRtp),
        Some(profile) if profile.is_secure() => Some(Unusable::Encrypted),
        Some(_) if payload_types.is_empty() => Some(Unusable::NoPayloadType),
        Some(_) => None,
    };
    let first = payload_types.first().copied();
    let format = first.map_or_else(|| Format::default_of(kind), |pt| Format::read(pt, kind, lines));
    Track {
        index,
        kind,
        unusable,
        profile,
        port,
        codec: format.codec,
        clock_rate: format.clock_rate,
        channels: format.channels,
        fmtp: first.and_then(|pt| of_payload_type(lines, "fmtp", pt)).map(str::to_owned),
        payload_types,
        control: attribute(lines, "control").map(str::to_owned),
        direction: direction(lines).or_else(|| direction(session)).unwrap_or(Direction::SendRecv),
        bandwidth_kbps: bandwidth(lines),
        connection: connection(lines).or_else(|| connection(session)).filter(|ip| !ip.is_unspecified()),
        has_keys,
    }
}

/// Encoding name, clock rate, channels.
struct Format {
    codec: String,
    clock_rate: u32,
    channels: u8,
}

impl Format {
    fn default_of(kind: MediaKind) -> Self {
        let clock_rate = if kind == MediaKind::Audio { 8000 } else { 90000 };
        Self { codec: String::new(), clock_rate, channels: 1 }
    }

    /// `a=rtpmap`, else the static table of RFC 3551 section 6. A source may redefine a static number
    /// (`rtpmap:0 MPEG4-GENERIC/16000/2`: Anpviz).
    fn read(pt: u8, kind: MediaKind, lines: &[Line]) -> Self {
        let mapped = of_payload_type(lines, "rtpmap", pt).and_then(|value| {
            let mut parts = value.split_ascii_whitespace().next()?.split('/');
            let codec = parts.next().filter(|c| !c.is_empty())?.to_ascii_uppercase();
            let clock_rate = parts.next().and_then(|c| c.parse().ok()).filter(|c| *c != 0);
            let channels = parts.next().and_then(|c| c.parse().ok()).filter(|c| *c != 0).unwrap_or(1);
            let fallback = || static_format(pt).map_or(Self::default_of(kind).clock_rate, |(_, c, _)| c);
            Some(Self { codec, clock_rate: clock_rate.unwrap_or_else(fallback), channels })
        });
        mapped
            .or_else(|| {
                let (codec, clock_rate, channels) = static_format(pt)?;
                Some(Self { codec: codec.to_owned(), clock_rate, channels })
            })
            .unwrap_or_else(|| Self::default_of(kind))
    }
}

/// Static payload types (RFC 3551 section 6).
fn static_format(pt: u8) -> Option<(&'static str, u32, u8)> {
    Some(match pt {
        0 => ("PCMU", 8000, 1),
        3 => ("GSM", 8000, 1),
        4 => ("G723", 8000, 1),
        5 => ("DVI4", 8000, 1),
        6 => ("DVI4", 16000, 1),
        7 => ("LPC", 8000, 1),
        8 => ("PCMA", 8000, 1),
        9 => ("G722", 8000, 1),
        10 => ("L16", 44100, 2),
        11 => ("L16", 44100, 1),
        12 => ("QCELP", 8000, 1),
        13 => ("CN", 8000, 1),
        14 => ("MPA", 90000, 1),
        15 => ("G728", 8000, 1),
        16 => ("DVI4", 11025, 1),
        17 => ("DVI4", 22050, 1),
        18 => ("G729", 8000, 1),
        25 => ("CELB", 90000, 1),
        26 => ("JPEG", 90000, 1),
        28 => ("NV", 90000, 1),
        31 => ("H261", 90000, 1),
        32 => ("MPV", 90000, 1),
        33 => ("MP2T", 90000, 1),
        34 => ("H263", 90000, 1),
        _ => return None,
    })
}

/// The value of `a=<name>:<pt> value` of that payload type.
fn of_payload_type<'a>(lines: &'a [Line], name: &str, pt: u8) -> Option<&'a str> {
    attributes(lines, name).find_map(|value| {
        let (number, rest) = value.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((value, ""));
        (number.parse() == Ok(pt)).then(|| rest.trim())
    })
}

fn direction(lines: &[Line]) -> Option<Direction> {
    lines.iter().filter_map(Line::attribute).find_map(|(name, _)| match name {
        "sendrecv" => Some(Direction::SendRecv),
        "sendonly" => Some(Direction::SendOnly),
        "recvonly" => Some(Direction::RecvOnly),
        "inactive" => Some(Direction::Inactive),
        _ => None,
    })
}

fn bandwidth(lines: &[Line]) -> Option<u32> {
    lines.iter().filter(|l| l.kind() == b'b').filter_map(Line::text).find_map(|text| {
        let (kind, value) = text.split_once(':')?;
        let value: u32 = value.trim().parse().ok()?;
        match kind {
            "AS" => Some(value),
            "TIAS" => Some(value.div_ceil(1000)),
            _ => None,
        }
    })
}

/// `c=IN IP4 address[/ttl[/count]]`.
fn connection(lines: &[Line]) -> Option<IpAddr> {
    let line = lines.iter().find(|l| l.kind() == b'c')?;
    line.text()?.split_ascii_whitespace().nth(2)?.split('/').next()?.parse().ok()
}

/// Lines that carry keys (SDP-6).
pub(super) fn is_key_line(line: &Line) -> bool {
    line.kind() == b'k' || matches!(line.attribute(), Some(("crypto" | "key-mgmt", _)))
}
