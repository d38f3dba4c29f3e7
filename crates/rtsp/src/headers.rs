//! Values of header fields: `Session`, `RTP-Info`, `Range`, `Public`, `Require`.
//!
//! Owns their grammar, tolerant in what cameras send and exact in what is sent. `Transport` and
//! `Authorization` have modules of their own.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::message::Method;

#[cfg(test)]
mod tests;

/// Session timeout when none is said (RFC 2326 section 12.37).
pub const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest session timeout believed: one day.
const MAX_SESSION_TIMEOUT: u64 = 24 * 60 * 60;
/// Entries of a list that are read; what follows is ignored.
const MAX_ENTRIES: usize = 64;

/// Why the value of a field could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// `Session` without an id.
    #[error("Session holds no id")]
    NoSessionId,
}

/// `Session` (RFC 2326 section 12.37).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHeader {
    /// The id, without parameters.
    pub id: String,
    /// `timeout` in whole seconds; [`DEFAULT_SESSION_TIMEOUT`] when 0 (RTSP-25), `None` when absent or not a
    /// number: then the last one holds, at first the default.
    pub timeout: Option<Duration>,
}

impl SessionHeader {
    /// Reads a value: blanks around every part pass, unknown parameters are ignored.
    ///
    /// # Errors
    /// [`HeaderError::NoSessionId`]: some cameras send parameters alone (RTSP-25).
    pub fn parse(value: &str) -> Result<Self, HeaderError> {
        let mut parts = value.split(';').map(str::trim);
        let id = parts.next().filter(|id| !id.is_empty()).ok_or(HeaderError::NoSessionId)?.to_owned();
        let timeout = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))
            .and_then(|(_, seconds)| unquote(seconds).parse().ok())
            .map(|seconds: u64| match seconds {
                0 => DEFAULT_SESSION_TIMEOUT,
                _ => Duration::from_secs(seconds.min(MAX_SESSION_TIMEOUT)),
            });
        Ok(Self { id, timeout })
    }

    /// The id alone: what a request carries, and what compares.
    pub fn id_of(value: &str) -> &str {
        value.split(';').next().unwrap_or_default().trim()
    }
}

impl fmt::Display for SessionHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.timeout.map_or(Ok(()), |timeout| write!(f, ";timeout={}", timeout.as_secs()))
    }
}

/// One entry of `RTP-Info` (RFC 2326 section 12.33).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtpInfo {
    /// Track URL: absolute, or relative as some cameras send it.
    pub url: String,
    /// Sequence number of the first packet; absent when not a 16-bit number.
    pub seq: Option<u16>,
    /// RTP time of the start of the range; absent when not a 32-bit number (`-1` of Wowza).
    pub rtptime: Option<u32>,
}

impl RtpInfo {
    /// Reads a value as cameras send it (RTSP-33): parameters in any case and order behind `url=`, blanks, a
    /// trailing `;` or `,`, unknown parameters (`ssrc=`), quoted and relative URLs. Text before the first
    /// `url=` is skipped; a URL ends at `,` or `;`.
    pub fn parse_list(value: &str) -> Vec<Self> {
        let mut entries: Vec<Self> = Vec::new();
        for part in value.split([',', ';']) {
            let trimmed = part.trim();
            let (name, text) = trimmed.split_once('=').unwrap_or((trimmed, ""));
            let name = name.trim();
            let text = unquote(text);
            if name.eq_ignore_ascii_case("url") {
                if entries.len() == MAX_ENTRIES {
                    break;
                }
                entries.push(Self { url: text.to_owned(), seq: None, rtptime: None });
            } else if let Some(entry) = entries.last_mut() {
                if name.eq_ignore_ascii_case("seq") {
                    entry.seq = entry.seq.or(text.parse().ok());
                } else if name.eq_ignore_ascii_case("rtptime") {
                    entry.rtptime = entry.rtptime.or(text.parse().ok());
                }
            }
        }
        entries
    }

    /// The value for these entries, joined by `, ` and without trailing `;` (RTSP-31). Entries that lack
    /// `seq` or `rtptime` are left out: their state is unknown. `None` when nothing is left.
    pub fn format_list(entries: &[Self]) -> Option<String> {
        let mut value = String::new();
        for entry in entries {
            let (Some(seq), Some(rtptime)) = (entry.seq, entry.rtptime) else { continue };
            let separator = if value.is_empty() { "" } else { ", " };
            let url = &entry.url;
            write!(value, "{separator}url={url};seq={seq};rtptime={rtptime}")
                .expect("a String takes any text");
        }
        if value.is_empty() { None } else { Some(value) }
    }
}

/// `Range` (RFC 2326 section 12.29).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Range {
    /// `npt=`: positions in seconds (RFC 2326 section 3.6).
    Npt {
        /// Where it starts.
        start: NptTime,
        /// Where it ends; open when absent.
        end: Option<NptTime>,
    },
    /// `clock=`: text behind the `=` (section 3.7), kept as it is.
    Clock(String),
    /// `smpte=`, `smpte-25=`, `smpte-30-drop=`: unit and text (section 3.5), kept as they are.
    Smpte {
        /// Unit, lower case.
        unit: String,
        /// Text behind the `=`.
        text: String,
    },
}

/// A position of an `npt` range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NptTime {
    /// `now`: the live edge.
    Now,
    /// From the start of the presentation.
    At(Duration),
}

impl Range {
    /// `npt=now-`: what live media are played by (RTSP-31).
    pub const LIVE: Self = Self::Npt { start: NptTime::Now, end: None };

    /// Reads a value. Blanks and a `;time=` parameter pass; a missing start (`npt=-`, sent by players that
    /// want all) is 0. `None` for a unit or a number that is unknown: the range is then ignored or `457`.
    pub fn parse(value: &str) -> Option<Self> {
        let (unit, rest) = value.split(';').next()?.split_once('=')?;
        let (unit, rest) = (unit.trim().to_ascii_lowercase(), rest.trim());
        match unit.as_str() {
            "npt" => {
                let (start, end) = rest.split_once('-').unwrap_or((rest, ""));
                let start = match start.trim() {
                    "" => NptTime::At(Duration::ZERO),
                    text => NptTime::parse(text)?,
                };
                let end = match end.trim() {
                    "" => None,
                    text => Some(NptTime::parse(text)?),
                };
                Some(Self::Npt { start, end })
            }
            "clock" => Some(Self::Clock(rest.to_owned())),
            _ if unit.starts_with("smpte") => Some(Self::Smpte { text: rest.to_owned(), unit }),
            _ => None,
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Npt { start, end: Some(end) } => write!(f, "npt={start}-{end}"),
            Self::Npt { start, end: None } => write!(f, "npt={start}-"),
            Self::Clock(text) => write!(f, "clock={text}"),
            Self::Smpte { unit, text } => write!(f, "{unit}={text}"),
        }
    }
}

impl NptTime {
    /// `now`, seconds with fraction, or `h:mm:ss` with fraction.
    fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("now") {
            return Some(Self::Now);
        }
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let mut seconds: u64 = 0;
        for (index, part) in whole.split(':').enumerate() {
            if index == 3 {
                return None;
            }
            seconds = seconds.checked_mul(60)?.checked_add(digits(part)?)?;
        }
        let mut nanos: u32 = 0;
        let mut unit = 100_000_000;
        for digit in fraction.bytes() {
            nanos += u32::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?) * unit;
            unit /= 10;
        }
        Some(Self::At(Duration::new(seconds, nanos)))
    }
}

impl fmt::Display for NptTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::At(at) => write!(f, "{}.{:03}", at.as_secs(), at.subsec_millis()),
        }
    }
}

/// The methods of a `Public` or `Allow` value, unknown ones included.
pub fn methods(value: &str) -> Vec<Method> {
    list(value).map(Method::from_token).collect()
}

/// A `Public` or `Allow` value.
pub fn format_methods(methods: &[Method]) -> String {
    methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
}

/// The entries of a comma list, such as the option tags of `Require` (RTSP-10): trimmed, empty ones left out,
/// the first 64.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|entry| !entry.is_empty()).take(MAX_ENTRIES)
}

/// The option tags of `Require` and `Proxy-Require` values that are not in `known`; they go into
/// `Unsupported` of a `551` (RTSP-10).
pub fn unknown_tags<'a>(values: impl IntoIterator<Item = &'a str>, known: &[&str]) -> Vec<&'a str> {
    values.into_iter().flat_map(list).filter(|tag| !known.contains(tag)).take(MAX_ENTRIES).collect()
}

/// The media type of a `Content-Type` value, without parameters.
pub fn media_type(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}

fn digits(text: &str) -> Option<u64> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn unquote(text: &str) -> &str {
    text.trim_matches(|c: char| c == '"' || c.is_whitespace())
}
