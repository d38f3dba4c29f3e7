//! The `Transport` header: parse, write, negotiate (RFC 2326 section 12.39).
//!
//! Owns the choice of one offered transport and the numbering of interleaved channels. Ports come from
//! the caller; nothing here opens or reserves one.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use channels::{ChannelRole, ChannelTable};
pub use negotiate::{
    Agreed, AnswerError, DestinationProhibited, LinkSecurity, LowerPolicy, Refusal, TransportPolicy,
    accept_answer, check_destination, negotiate,
};

mod channels;
pub mod inventory;
mod negotiate;
#[cfg(test)]
mod tests;

/// Most transports looked at in one header; what follows them is ignored.
pub const MAX_SPECS: usize = 16;

/// Most parameters looked at in one transport.
const MAX_PARAMETERS: usize = 32;

/// RTP profile (RFC 3551, 4585, 3711, 5124).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Profile {
    /// `RTP/AVP`
    Avp,
    /// `RTP/AVPF`: early feedback.
    Avpf,
    /// `RTP/SAVP`: SRTP.
    Savp,
    /// `RTP/SAVPF`: SRTP with early feedback.
    Savpf,
}

impl Profile {
    /// The profile of an `m=` line's proto or of a transport, `RTP/AVP` and the like; case is ignored, and
    /// so is what follows a further `/`.
    pub fn from_proto(proto: &str) -> Option<Self> {
        let mut parts = proto.split('/');
        if !parts.next()?.trim().eq_ignore_ascii_case("RTP") {
            return None;
        }
        let name = parts.next()?.trim();
        [Self::Avp, Self::Avpf, Self::Savp, Self::Savpf]
            .into_iter()
            .find(|p| p.as_str().get(4..).is_some_and(|n| n.eq_ignore_ascii_case(name)))
    }

    /// `RTP/AVP` and the like.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avp => "RTP/AVP",
            Self::Avpf => "RTP/AVPF",
            Self::Savp => "RTP/SAVP",
            Self::Savpf => "RTP/SAVPF",
        }
    }

    /// Whether media is encrypted.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Savp | Self::Savpf)
    }

    /// Whether PLI and FIR may be sent (RFC 4585).
    pub fn is_feedback(self) -> bool {
        matches!(self, Self::Avpf | Self::Savpf)
    }
}

/// What carries RTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LowerTransport {
    /// UDP.
    Udp,
    /// Interleaved in the RTSP connection.
    Tcp,
}

/// First half of a transport.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// RTP under a profile that we know.
    Rtp(Profile, LowerTransport),
    /// Anything else (`x-real-rdt/udp`), never chosen.
    Other(String),
}

/// One or two UDP ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// Port of RTP, odd from some sources (RTSP-15).
    pub rtp: u16,
    /// Port of RTCP if it was named.
    pub rtcp: Option<u16>,
}

impl PortRange {
    /// `rtp` and the port after it.
    pub fn pair(rtp: u16, rtcp: u16) -> Self {
        Self { rtp, rtcp: Some(rtcp) }
    }

    /// Where RTCP goes: the named port, else the next one; `None` if there is no next one (RTSP-15).
    pub fn rtcp_port(self) -> Option<u16> {
        self.rtcp.or_else(|| self.rtp.checked_add(1))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rtp)?;
        self.rtcp.map_or(Ok(()), |rtcp| write!(f, "-{rtcp}"))
    }
}

/// One or two interleaved channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChannelRange {
    /// Channel of RTP.
    pub rtp: u8,
    /// Channel of RTCP if it was named.
    pub rtcp: Option<u8>,
}

impl ChannelRange {
    /// Both channels.
    pub fn pair(rtp: u8, rtcp: u8) -> Self {
        Self { rtp, rtcp: Some(rtcp) }
    }

    /// Channel of RTCP: the named one, else the next one (RTSP-17).
    pub fn rtcp_channel(self) -> Option<u8> {
        self.rtcp.or_else(|| self.rtp.checked_add(1))
    }
}

impl fmt::Display for ChannelRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rtp)?;
        self.rtcp.map_or(Ok(()), |rtcp| write!(f, "-{rtcp}"))
    }
}

/// What the session is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// `PLAY`
    Play,
    /// `RECORD`, also written `receive` by old ffmpeg.
    Record,
    /// Any other word; what is no word is left out.
    Other(String),
}

/// One transport of the header.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TransportSpec {
    /// Profile and lower transport.
    pub protocol: Protocol,
    /// `multicast` was named. Neither word means unicast, whatever RFC 2326 says (RTSP-12).
    pub multicast: bool,
    /// `client_port`
    pub client_port: Option<PortRange>,
    /// `server_port`
    pub server_port: Option<PortRange>,
    /// `port` of multicast.
    pub port: Option<PortRange>,
    /// `interleaved`
    pub interleaved: Option<ChannelRange>,
    /// `source`, as written.
    pub source: Option<String>,
    /// `destination`, as written; the empty text for the bare word.
    pub destination: Option<String>,
    /// `ttl`
    pub ttl: Option<u8>,
    /// `ssrc`; `0` and what is no hex number are left out (RTSP-12).
    pub ssrc: Option<u32>,
    /// `mode`
    pub mode: Option<Mode>,
}

/// What is wrong with a `Transport` header. A request that has it gets `400`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{rule} at byte {offset} of Transport")]
pub struct TransportError {
    /// Byte offset of the parameter in the value.
    pub offset: usize,
    /// The rule.
    pub rule: TransportRule,
}

/// The rule of RFC 2326 section 12.39 that a header broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TransportRule {
    /// Nothing but blanks and commas.
    #[error("no transport")]
    Empty,
    /// Not one or two numbers from 1 to 65535.
    #[error("bad port")]
    Port,
    /// Not one or two numbers from 0 to 255.
    #[error("bad channel")]
    Channel,
    /// A control byte.
    #[error("control byte")]
    Control,
}

impl TransportSpec {
    /// A unicast transport without parameters.
    pub fn new(profile: Profile, lower: LowerTransport) -> Self {
        Self {
            protocol: Protocol::Rtp(profile, lower),
            multicast: false,
            client_port: None,
            server_port: None,
            port: None,
            interleaved: None,
            source: None,
            destination: None,
            ttl: None,
            ssrc: None,
            mode: None,
        }
    }

    /// What a client asks a source for over UDP. `destination` is never sent (RTSP-39).
    pub fn udp_request(profile: Profile, ports: PortRange) -> Self {
        Self { client_port: Some(ports), ..Self::new(profile, LowerTransport::Udp) }
    }

    /// What a client asks a source for on its connection.
    pub fn tcp_request(profile: Profile, channels: ChannelRange) -> Self {
        Self { interleaved: Some(channels), ..Self::new(profile, LowerTransport::Tcp) }
    }

    /// The answer to this offer over UDP: `client_port` echoed, our ports, and the address media comes
    /// from (RTSP-14). `ssrc` only if the leg's is known and single (RTSP-18).
    pub fn udp_answer(&self, server_port: PortRange, source: IpAddr, ssrc: Option<u32>) -> Self {
        Self {
            client_port: self.client_port,
            server_port: Some(server_port),
            source: Some(source.to_string()),
            ssrc,
            mode: self.mode.clone(),
            ..Self::new(self.profile().unwrap_or(Profile::Avp), LowerTransport::Udp)
        }
    }

    /// The answer to this offer on the connection (RTSP-17, RTSP-18).
    pub fn tcp_answer(&self, channels: ChannelRange, ssrc: Option<u32>) -> Self {
        Self {
            interleaved: Some(channels),
            ssrc,
            mode: self.mode.clone(),
            ..Self::new(self.profile().unwrap_or(Profile::Avp), LowerTransport::Tcp)
        }
    }

    /// Profile, if this is RTP.
    pub fn profile(&self) -> Option<Profile> {
        match self.protocol {
            Protocol::Rtp(profile, _) => Some(profile),
            Protocol::Other(_) => None,
        }
    }

    /// Lower transport, if this is RTP.
    pub fn lower(&self) -> Option<LowerTransport> {
        match self.protocol {
            Protocol::Rtp(_, lower) => Some(lower),
            Protocol::Other(_) => None,
        }
    }

    /// Whether the client wants to send to us (`mode=record`).
    pub fn is_record(&self) -> bool {
        self.mode == Some(Mode::Record)
    }
}

/// Parses a `Transport` header: transports in the order of preference, parameters in any order and case,
/// unknown ones skipped (RTSP-12).
pub fn parse_transport(value: &str) -> Result<Vec<TransportSpec>, TransportError> {
    if let Some(offset) = value.bytes().position(|b| b < 0x20 && b != b'\t' || b == 0x7f) {
        return Err(TransportError { offset, rule: TransportRule::Control });
    }
    let mut specs = Vec::new();
    let mut offset = 0;
    for text in split_quoted(value, b',') {
        if !text.trim().is_empty() && specs.len() < MAX_SPECS {
            specs.push(parse_spec(text, offset)?);
        }
        offset += text.len() + 1;
    }
    if specs.is_empty() {
        return Err(TransportError { offset: 0, rule: TransportRule::Empty });
    }
    Ok(specs)
}

fn parse_spec(text: &str, mut offset: usize) -> Result<TransportSpec, TransportError> {
    let mut parts = split_quoted(text, b';');
    let first = parts.next().unwrap_or_default();
    let mut spec = TransportSpec::new(Profile::Avp, LowerTransport::Udp);
    spec.protocol = parse_protocol(first.trim());
    offset += first.len() + 1;
    for parameter in parts.take(MAX_PARAMETERS) {
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) => (name.trim(), value.trim().trim_matches('"').trim()),
            None => (parameter.trim(), ""),
        };
        let error = |rule| TransportError { offset, rule };
        let port = |v| parse_ports(v).ok_or(error(TransportRule::Port)).map(Some);
        match name.to_ascii_lowercase().as_str() {
            "unicast" => spec.multicast = false,
            "multicast" => spec.multicast = true,
            "client_port" => spec.client_port = port(value)?,
            "server_port" => spec.server_port = port(value)?,
            "port" => spec.port = port(value)?,
            "interleaved" => {
                spec.interleaved = Some(parse_channels(value).ok_or(error(TransportRule::Channel))?);
            }
            "source" if !value.is_empty() => spec.source = Some(value.to_owned()),
            "destination" => spec.destination = Some(value.to_owned()),
            "ttl" => spec.ttl = value.parse().ok(),
            "ssrc" => spec.ssrc = parse_ssrc(value),
            "mode" => {
                spec.mode = match value.to_ascii_lowercase().as_str() {
                    "play" => Some(Mode::Play),
                    "record" | "receive" => Some(Mode::Record),
                    // Answers echo it, so it must be one word.
                    other if is_word(other) => Some(Mode::Other(other.to_owned())),
                    _ => None,
                };
            }
            _ => {}
        }
        offset += parameter.len() + 1;
    }
    Ok(spec)
}

fn parse_protocol(text: &str) -> Protocol {
    let lower = match text.split('/').nth(2).map(str::trim) {
        None => Some(LowerTransport::Udp),
        Some(lower) if lower.eq_ignore_ascii_case("UDP") => Some(LowerTransport::Udp),
        Some(lower) if lower.eq_ignore_ascii_case("TCP") => Some(LowerTransport::Tcp),
        Some(_) => None,
    };
    match (Profile::from_proto(text), lower) {
        (Some(profile), Some(lower)) => Protocol::Rtp(profile, lower),
        _ => Protocol::Other(text.to_owned()),
    }
}

/// `a` or `a-b`, without a sign and with blanks around.
fn parse_pair<T: std::str::FromStr>(value: &str) -> Option<(T, Option<T>)> {
    let number = |s: &str| {
        let s = s.trim();
        if s.bytes().all(|b| b.is_ascii_digit()) { s.parse().ok() } else { None }
    };
    match value.split_once('-') {
        Some((a, b)) => Some((number(a)?, Some(number(b)?))),
        None => Some((number(value)?, None)),
    }
}

fn parse_ports(value: &str) -> Option<PortRange> {
    let (rtp, rtcp) = parse_pair::<u16>(value)?;
    (rtp != 0 && rtcp != Some(0)).then_some(PortRange { rtp, rtcp })
}

fn parse_channels(value: &str) -> Option<ChannelRange> {
    let (rtp, rtcp) = parse_pair::<u8>(value)?;
    Some(ChannelRange { rtp, rtcp })
}

/// Hex of at most 8 digits; `0` means unknown (H264DVR).
fn parse_ssrc(value: &str) -> Option<u32> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(value, 16).ok().filter(|ssrc| *ssrc != 0)
}

/// Letters, digits, `-` and `_`, at least one.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Splits at `separator` outside of double quotes.
fn split_quoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        let mut quoted = false;
        let end = current.bytes().position(|b| {
            quoted ^= b == b'"';
            b == separator && !quoted
        });
        // A separator is ASCII, so both sides of it are character boundaries.
        match end.and_then(|end| Some((current.get(..end)?, current.get(end + 1..)?))) {
            Some((part, after)) => {
                rest = Some(after);
                Some(part)
            }
            None => rest.take(),
        }
    })
}

impl fmt::Display for TransportSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.protocol {
            Protocol::Rtp(profile, LowerTransport::Udp) => f.write_str(profile.as_str())?,
            Protocol::Rtp(profile, LowerTransport::Tcp) => write!(f, "{}/TCP", profile.as_str())?,
            Protocol::Other(name) => f.write_str(name)?,
        }
        f.write_str(if self.multicast { ";multicast" } else { ";unicast" })?;
        match self.destination.as_deref() {
            None => {}
            Some("") => f.write_str(";destination")?,
            Some(destination) => write!(f, ";destination={destination}")?,
        }
        if let Some(channels) = self.interleaved {
            write!(f, ";interleaved={channels}")?;
        }
        if let Some(ports) = self.port {
            write!(f, ";port={ports}")?;
        }
        if let Some(ports) = self.client_port {
            write!(f, ";client_port={ports}")?;
        }
        if let Some(source) = &self.source {
            write!(f, ";source={source}")?;
        }
        if let Some(ports) = self.server_port {
            write!(f, ";server_port={ports}")?;
        }
        if let Some(ttl) = self.ttl {
            write!(f, ";ttl={ttl}")?;
        }
        if let Some(ssrc) = self.ssrc {
            write!(f, ";ssrc={ssrc:08X}")?;
        }
        match &self.mode {
            None => Ok(()),
            Some(Mode::Play) => f.write_str(";mode=play"),
            Some(Mode::Record) => f.write_str(";mode=record"),
            Some(Mode::Other(word)) => write!(f, ";mode={word}"),
        }
    }
}
