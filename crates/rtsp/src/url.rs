//! RTSP URLs: what a client's request-URI selects, what a source's control attribute resolves to.
//!
//! A client's URL selects a route by name and nothing else (SEC-11); it is checked before it is used
//! (SEC-10). A source's URL comes from the configuration and may carry credentials, which are taken off
//! and never written back (RTSP-38). Nothing here resolves names.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use thiserror::Error;

pub use escape::strip_userinfo;
pub use source::{SourceUrl, join_control};

use escape::{check_characters, normalise};

mod escape;
pub mod inventory;
mod source;
#[cfg(test)]
mod tests;

/// Longest request-URI accepted, in bytes; a longer one is `414`, as is a request line of more than 2112 bytes.
pub const MAX_URL_LEN: usize = 2048;

/// Default port of `rtsp://` (RFC 2326 section 3.2).
pub const DEFAULT_RTSP_PORT: u16 = 554;

/// Default port of `rtsps://` (RFC 7826 section 4.2).
pub const DEFAULT_RTSPS_PORT: u16 = 322;

/// Name of the media control attribute that clients of ours see: `trackID=<index>` (RTSP-30).
const TRACK_CONTROL: &str = "trackID=";

/// What is wrong with a URL, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{rule} at byte {offset} of the URL")]
pub struct UrlError {
    /// Byte offset into the text.
    pub offset: usize,
    /// The rule that was broken.
    pub rule: UrlRule,
}

/// The rule of SEC-10 or RFC 3986 that a URL broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UrlRule {
    /// Longer than [`MAX_URL_LEN`]: `414`.
    #[error("too long")]
    TooLong,
    /// Neither `rtsp://`, `rtsps://` nor an absolute path.
    #[error("not an rtsp or rtsps URL")]
    Scheme,
    /// A control byte, a blank, raw non-ASCII, or one of `"<>\`.
    #[error("forbidden character")]
    Character,
    /// `user:password@` from a client.
    #[error("credentials in a URL")]
    UserInfo,
    /// `#`.
    #[error("fragment")]
    Fragment,
    /// A `..` segment, encoded or not.
    #[error("`..` segment")]
    DotSegment,
    /// `%` not followed by two hex digits, or an encoded control byte.
    #[error("bad percent escape")]
    Escape,
    /// No host, or an unclosed or malformed IPv6 literal.
    #[error("bad host")]
    Host,
    /// Not a number from 1 to 65535.
    #[error("bad port")]
    Port,
}

fn error<T>(offset: usize, rule: UrlRule) -> Result<T, UrlError> {
    Err(UrlError { offset, rule })
}

/// Host of a URL. Names are kept in lower case and never resolved here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal; IPv6 was in brackets.
    Ip(IpAddr),
    /// A name.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Host and port of a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port if it was written.
    pub port: Option<u16>,
}

impl Authority {
    /// Parses `host`, `host:port`, `[v6]` or `[v6]:port`, without credentials.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (host, rest) = if let Some(inner) = text.strip_prefix('[') {
            let Some((literal, rest)) = inner.split_once(']') else { return error(0, UrlRule::Host) };
            // A zone (`%eth0`) has no meaning to a peer and is refused with the rest.
            let Ok(ip) = literal.parse::<Ipv6Addr>() else { return error(1, UrlRule::Host) };
            (Host::Ip(IpAddr::V6(ip)), rest)
        } else {
            let end = text.find(':').unwrap_or(text.len());
            let (name, rest) = text.split_at(end);
            (Self::host(name)?, rest)
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return error(text.len() - rest.len(), UrlRule::Host),
            // `host:` without digits means the default port (RFC 3986 section 3.2.3).
            Some("") => None,
            Some(digits) => {
                let offset = text.len() - digits.len();
                if digits.len() > 5 || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return error(offset, UrlRule::Port);
                }
                match digits.parse::<u16>() {
                    Ok(port) if port != 0 => Some(port),
                    _ => return error(offset, UrlRule::Port),
                }
            }
        };
        Ok(Self { host, port })
    }

    fn host(name: &str) -> Result<Host, UrlError> {
        if name.is_empty() {
            return error(0, UrlRule::Host);
        }
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(Host::Ip(ip));
        }
        // Underscores are not legal in host names, and are common in docker and Kubernetes names.
        match name
            .bytes()
            .position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')))
        {
            None => Ok(Host::Name(name.to_ascii_lowercase())),
            Some(offset) => error(offset, UrlRule::Host),
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr.ip()), port: Some(addr.port()) }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// URL scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `rtsp`
    Rtsp,
    /// `rtsps`
    Rtsps,
}

impl Scheme {
    /// The name as written in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rtsp => "rtsp",
            Self::Rtsps => "rtsps",
        }
    }

    /// Port of a URL that names none.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Rtsp => DEFAULT_RTSP_PORT,
            Self::Rtsps => DEFAULT_RTSPS_PORT,
        }
    }

    /// Splits `rtsp://rest`; the scheme is compared without case.
    fn split(text: &str) -> Option<(Self, &str)> {
        let (scheme, rest) = text.split_once("://")?;
        if scheme.eq_ignore_ascii_case("rtsp") {
            Some((Self::Rtsp, rest))
        } else if scheme.eq_ignore_ascii_case("rtsps") {
            Some((Self::Rtsps, rest))
        } else {
            None
        }
    }
}

/// What a request-URI names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestTarget {
    /// `*`: the server itself (OPTIONS, RTSP-9).
    Server,
    /// A stream or one of its tracks. A URL without a path has the empty name.
    Resource(ResourceUrl),
}

impl RequestTarget {
    /// Parses a client's request-URI: `*`, an absolute URL or an absolute path.
    ///
    /// # Errors
    /// Whatever SEC-10 forbids; `414` for [`UrlRule::TooLong`], else `400`.
    pub fn parse(uri: &str) -> Result<Self, UrlError> {
        if uri == "*" { Ok(Self::Server) } else { ResourceUrl::parse(uri).map(Self::Resource) }
    }

    /// Name of the route; empty for the server itself.
    pub fn name(&self) -> &str {
        match self {
            Self::Server => "",
            Self::Resource(url) => &url.name,
        }
    }
}

/// A stream's URL as a client wrote it, taken apart.
///
/// Percent escapes are normalised (RFC 3986 section 6.2.2): escaped unreserved characters are decoded, the
/// hex digits of the others are upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceUrl {
    /// Host and port as the client knows us; `None` for a path.
    pub authority: Option<Authority>,
    /// Canonical route name: the path without the track, empty segments, and slashes at both ends.
    pub name: String,
    /// Query without the track, and without the slash that joining added.
    pub query: Option<String>,
    /// `n` of a trailing `trackID=n`, in either dialect of RTSP-30. `None`: the aggregate.
    pub track: Option<usize>,
    /// Path and query for comparison with joined controls: normalised, slashes at the end cut.
    key: String,
}

impl ResourceUrl {
    /// Parses an absolute URL or an absolute path (SEC-10).
    pub fn parse(uri: &str) -> Result<Self, UrlError> {
        if uri.len() > MAX_URL_LEN {
            return error(MAX_URL_LEN, UrlRule::TooLong);
        }
        check_characters(uri)?;
        let (authority, rest) = if uri.starts_with('/') {
            (None, uri)
        } else {
            let Some((_, rest)) = Scheme::split(uri) else { return error(0, UrlRule::Scheme) };
            let start = uri.len() - rest.len();
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at(end);
            if let Some(at) = authority.rfind('@') {
                return error(start + at, UrlRule::UserInfo);
            }
            let authority = Authority::parse(authority)
                .map_err(|e| UrlError { offset: start + e.offset, rule: e.rule })?;
            (Some(authority), rest)
        };
        let offset = uri.len() - rest.len();
        let rest = normalise(rest).map_err(|e| UrlError { offset: offset + e.offset, rule: e.rule })?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest.as_str(), None),
        };
        if path.split('/').chain(query.into_iter().flat_map(|q| q.split('/'))).any(|s| s == "..") {
            return error(offset, UrlRule::DotSegment);
        }
        let key = key(path, query);
        let query = query.map(|q| q.trim_end_matches('/'));
        let mut segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty() && *s != ".").collect();
        // ffmpeg and live555: `path?query/trackID=1`; GStreamer: `path/trackID=1?query` (RTSP-30).
        let (base_query, mut track) = match query.and_then(split_track) {
            Some((before, n)) => (Some(before.trim_end_matches('/')), Some(n)),
            None => (query, None),
        };
        // A name never ends in a track, so that it names the same stream when it is used as a URL.
        while let Some(n) = segments.last().and_then(|last| track_number(last)) {
            track = track.or(Some(n));
            segments.pop();
        }
        let name = segments.join("/");
        Ok(Self { authority, name, query: base_query.map(str::to_owned), track, key })
    }

    /// Which media a SETUP names, given the URL of the DESCRIBE or ANNOUNCE (`self`) and the `a=control`
    /// of every media in order: `streamid=0` of ffmpeg, `stream=0` of rtspclientsink, anything else, joined
    /// in either dialect, with an optional slash at the end; absolute controls; the aggregate URL where
    /// there is one media (RTSP-30).
    pub fn media_index(&self, controls: &[Option<&str>], setup: &Self) -> Option<usize> {
        let matches = |control: Option<&str>| {
            let control = control.map_or("", |c| c.trim());
            if control.contains("://") {
                return Self::parse(control).is_ok_and(|url| url.key == setup.key);
            }
            if control.is_empty() || control == "*" {
                return false;
            }
            let Ok(control) = normalise(control.trim_matches('/')) else { return false };
            let appended = format!("{}/{control}", self.key);
            let inserted = match self.key.split_once('?') {
                Some((path, query)) => format!("{path}/{control}?{query}"),
                None => return appended == setup.key,
            };
            appended == setup.key || inserted == setup.key
        };
        controls
            .iter()
            .position(|control| matches(*control))
            .or_else(|| (controls.len() == 1 && self.key == setup.key).then_some(0))
    }

    /// Whether `other` names the same thing: path, query and track, whatever the host and the dialect.
    pub fn is_same_resource(&self, other: &Self) -> bool {
        self.key == other.key
            || (self.track == other.track && self.query == other.query && self.name == other.name)
    }

    /// Whether `media` is this URL with one control joined to it, in either dialect (RTSP-30).
    pub fn is_parent_of(&self, media: &Self) -> bool {
        let is_segment =
            |s: &str| s.strip_prefix('/').is_some_and(|s| !s.is_empty() && !s.contains(['/', '?']));
        let appended = media.key.strip_prefix(&self.key).is_some_and(is_segment);
        let inserted = || {
            let ((path, query), (media_path, media_query)) =
                (self.key.split_once('?')?, media.key.split_once('?')?);
            Some(query == media_query && is_segment(media_path.strip_prefix(path)?))
        };
        appended || inserted().unwrap_or(false)
    }

    /// Whether `other` names the same aggregate: same route, whatever the host, track and query.
    pub fn is_same_stream(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// `Content-Base` of a DESCRIBE answer: the request-URI with one slash at its end, query included (RTSP-30).
///
/// `uri`: request-URI, already accepted by [`RequestTarget::parse`]. `local`: the address the client
/// reached us at, used if the URI was a path or `*`.
pub fn content_base(uri: &str, local: SocketAddr) -> String {
    let uri = uri.trim_end_matches('/');
    if uri.is_empty() || uri == "*" {
        format!("rtsp://{local}/")
    } else if uri.starts_with('/') {
        format!("rtsp://{local}{uri}/")
    } else {
        format!("{uri}/")
    }
}

/// URL of one track below a [`content_base`]: what `RTP-Info` names (RTSP-31).
pub fn track_url(content_base: &str, track: usize) -> String {
    let slash = if content_base.ends_with('/') { "" } else { "/" };
    format!("{content_base}{slash}{TRACK_CONTROL}{track}")
}

/// Value of the `a=control` that clients of ours see for one media: `trackID=<n>` (RTSP-30).
pub fn track_control(track: usize) -> String {
    format!("{TRACK_CONTROL}{track}")
}

fn key(path: &str, query: Option<&str>) -> String {
    let mut key = path.trim_end_matches('/').to_owned();
    if let Some(query) = query {
        key.push('?');
        key.push_str(query.trim_end_matches('/'));
    }
    key
}

/// Splits `before/trackID=n`. `path?trackID=1` is a query of its own: nothing was joined.
fn split_track(text: &str) -> Option<(&str, usize)> {
    let (before, last) = text.rsplit_once('/')?;
    Some((before, track_number(last)?))
}

/// `n` of `trackID=n`.
fn track_number(segment: &str) -> Option<usize> {
    let name = segment.get(..TRACK_CONTROL.len())?;
    let digits = segment.get(TRACK_CONTROL.len()..)?;
    let is_number = !digits.is_empty() && digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit());
    if name.eq_ignore_ascii_case(TRACK_CONTROL) && is_number { digits.parse().ok() } else { None }
}
