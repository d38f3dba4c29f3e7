//! The `Transport` header: parse, write, negotiate (RFC 2326 section 12.39).
//!
//! Owns the choice of one offered transport and the numbering of interleaved channels. Ports come from
//! the caller; nothing here opens or reserves one.

use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

pub use channels::{ChannelRole, ChannelTable};

mod channels;
#[cfg(test)]
mod tests;

/// Most transports looked at in one header; what follows them is ignored.
pub const MAX_SPECS: usize = 16;

/// Most parameters looked at in one transport.
const MAX_PARAMETERS: usize = 32;

/// RTP profile (RFC 3551, 4585, 3711, 5124).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LowerTransport {
    /// UDP.
    Udp,
    /// Interleaved in the RTSP connection.
    Tcp,
}

/// First half of a transport.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RTP under a profile that we know.
    Rtp(Profile, LowerTransport),
    /// Anything else (`x-real-rdt/udp`), never chosen.
    Other(String),
}

/// One or two UDP ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `PLAY`
    Play,
    /// `RECORD`, also written `receive` by old ffmpeg.
    Record,
    /// Any other word.
    Other(String),
}

/// One transport of the header.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
                spec.mode = Some(match value.to_ascii_lowercase().as_str() {
                    "play" => Mode::Play,
                    "record" | "receive" => Mode::Record,
                    other => Mode::Other(other.to_owned()),
                });
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

/// Lower transports that a route, or the session so far, allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LowerPolicy {
    /// The client's first choice.
    Any,
    /// UDP only: `461` forces it on ffmpeg and GStreamer (RTSP-13).
    UdpOnly,
    /// TCP only, likewise.
    TcpOnly,
}

/// How the RTSP connection itself is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkSecurity {
    /// Plain RTSP: SAVP is refused, its keys would travel in clear (`protocols.md` 1.7).
    Clear,
    /// RTSPS: plain RTP over UDP is refused.
    Tls,
}

/// What a SETUP may be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransportPolicy {
    /// Lower transports. The second SETUP of a session gets the first one's only (RTSP-19).
    pub lower: LowerPolicy,
    /// Protection of the connection.
    pub link: LinkSecurity,
}

impl Default for TransportPolicy {
    fn default() -> Self {
        Self { lower: LowerPolicy::Any, link: LinkSecurity::Clear }
    }
}

/// Why no offered transport was taken: `461`, and the connection stays open (RTSP-13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("none of {offered} offered transports is supported")]
pub struct Refusal {
    /// How many there were.
    pub offered: usize,
}

/// Takes the first offered transport that `policy` allows (RTSP-13).
///
/// Multicast is refused, and so are SAVP on a clear connection, plain RTP over UDP on a TLS one, and UDP
/// without `client_port`. `mode` is not looked at.
pub fn negotiate<'a>(
    offers: &'a [TransportSpec],
    policy: TransportPolicy,
) -> Result<&'a TransportSpec, Refusal> {
    offers.iter().find(|spec| is_allowed(spec, policy)).ok_or(Refusal { offered: offers.len() })
}

fn is_allowed(spec: &TransportSpec, policy: TransportPolicy) -> bool {
    let Protocol::Rtp(profile, lower) = spec.protocol else { return false };
    let lower_allowed = match policy.lower {
        LowerPolicy::Any => true,
        LowerPolicy::UdpOnly => lower == LowerTransport::Udp,
        LowerPolicy::TcpOnly => lower == LowerTransport::Tcp,
    };
    let secure_allowed = match policy.link {
        // No SRTP leg exists yet, so SAVP is refused on TLS as well.
        LinkSecurity::Clear => !profile.is_secure(),
        LinkSecurity::Tls => !profile.is_secure() && lower == LowerTransport::Tcp,
    };
    let complete = lower == LowerTransport::Tcp
        || spec.client_port.is_some_and(|ports| ports.rtcp_port().is_some_and(|rtcp| rtcp != ports.rtp));
    lower_allowed && secure_allowed && complete && !spec.multicast
}

/// A client named an address that is not its own: `403` and a counter (RTSP-16, SEC-1).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("destination {destination:?} is not the peer {peer}")]
pub struct DestinationProhibited {
    /// What the client wrote.
    pub destination: String,
    /// Its address.
    pub peer: IpAddr,
}

/// Checks `destination=` of a chosen offer against the TCP peer (RTSP-16). Names are not resolved, so they
/// never match.
pub fn check_destination(spec: &TransportSpec, peer: IpAddr) -> Result<(), DestinationProhibited> {
    match spec.destination.as_deref() {
        None | Some("") => Ok(()),
        Some(text) => {
            let literal = text.trim_start_matches('[').trim_end_matches(']');
            match literal.parse::<IpAddr>() {
                Ok(ip) if ip.to_canonical() == peer.to_canonical() => Ok(()),
                _ => Err(DestinationProhibited { destination: text.to_owned(), peer }),
            }
        }
    }
}

/// What a source agreed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreed {
    /// UDP.
    Udp {
        /// Its RTP port, odd perhaps; `None`: to be learned from its address (RTSP-15, SEC-2).
        rtp: Option<u16>,
        /// Its RTCP port; `None`: its RTP port + 1.
        rtcp: Option<u16>,
        /// The address media comes from, if it is named as a literal. Whether it may differ from the RTSP
        /// peer's is the route's choice (SEC-2).
        source: Option<IpAddr>,
        /// Announced SSRC, which may be a lie (Tapo C320WS).
        ssrc: Option<u32>,
    },
    /// Interleaved.
    Tcp {
        /// Channels it will use, those asked for if it names none (RTSP-17).
        channels: ChannelRange,
        /// Announced SSRC.
        ssrc: Option<u32>,
    },
}

/// Why a source's answer to SETUP cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AnswerError {
    /// The header does not parse.
    #[error(transparent)]
    Syntax(#[from] TransportError),
    /// It answered another lower transport than was asked.
    #[error("asked for {asked:?}, answered {answered:?}")]
    Lower {
        /// What we asked for.
        asked: LowerTransport,
        /// What came back; `None` if it is no RTP we know.
        answered: Option<LowerTransport>,
    },
    /// Multicast, not asked for.
    #[error("answered multicast")]
    Multicast,
    /// The channels asked for have no number after them.
    #[error("no channel for RTCP")]
    Channel,
}

/// Reads a source's answer to `asked` (RTSP-15, RTSP-17). `destination` is ignored (RTSP-16).
///
/// A missing header or an empty value means what was asked for.
pub fn accept_answer(value: Option<&str>, asked: &TransportSpec) -> Result<Agreed, AnswerError> {
    let answer = match value.map(str::trim) {
        None | Some("") => asked.clone(),
        Some(value) => parse_transport(value)?.swap_remove(0),
    };
    let asked_lower = asked.lower().unwrap_or(LowerTransport::Udp);
    // `interleaved=` decides where the protocol was shortened to `RTP/AVP`.
    let answered = match answer.lower() {
        Some(LowerTransport::Udp) if answer.interleaved.is_some() && answer.server_port.is_none() => {
            Some(LowerTransport::Tcp)
        }
        lower => lower,
    };
    if answered != Some(asked_lower) {
        return Err(AnswerError::Lower { asked: asked_lower, answered });
    }
    if answer.multicast {
        return Err(AnswerError::Multicast);
    }
    match asked_lower {
        LowerTransport::Udp => Ok(Agreed::Udp {
            rtp: answer.server_port.map(|ports| ports.rtp),
            rtcp: answer.server_port.and_then(PortRange::rtcp_port),
            source: answer.source.as_deref().and_then(|s| s.parse().ok()),
            ssrc: answer.ssrc,
        }),
        LowerTransport::Tcp => {
            let channels = answer.interleaved.or(asked.interleaved).unwrap_or(ChannelRange::pair(0, 1));
            let rtcp = channels.rtcp_channel().ok_or(AnswerError::Channel)?;
            Ok(Agreed::Tcp { channels: ChannelRange::pair(channels.rtp, rtcp), ssrc: answer.ssrc })
        }
    }
}
