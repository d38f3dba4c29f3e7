//! Which transport is taken: as server from an offer, as client from an answer.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    ChannelRange, LowerTransport, PortRange, Protocol, TransportError, TransportSpec, parse_transport,
};

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
    /// Plain RTSP: SAVP is refused, its keys would travel in clear.
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
pub fn negotiate(offers: &[TransportSpec], policy: TransportPolicy) -> Result<&TransportSpec, Refusal> {
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
