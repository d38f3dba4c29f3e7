//! URLs of sources: where to connect, and what their control attributes resolve to (RTSP-29).

use std::fmt;

use super::escape::{check_characters, decode, escape, strip_userinfo};
use super::{Authority, Host, MAX_URL_LEN, Scheme, UrlError, UrlRule, error};
use crate::auth::Credentials;

/// URL of a source: where to connect and what to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceUrl {
    /// Scheme.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// Path and query as written, from the first slash; empty for none.
    pub path: String,
    /// User and password, percent-decoded. They are not part of [`SourceUrl::to_string`].
    pub credentials: Option<Credentials>,
}

impl SourceUrl {
    /// Parses a URL of the configuration: `rtsp://user:password@host:port/path?query`.
    ///
    /// An `@` in the password need not be escaped; `/`, `?` and `#` must be.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        if text.len() > MAX_URL_LEN {
            return error(MAX_URL_LEN, UrlRule::TooLong);
        }
        check_characters(text)?;
        let Some((scheme, rest)) = Scheme::split(text) else { return error(0, UrlRule::Scheme) };
        let start = text.len() - rest.len();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (userinfo, host) = match authority.rsplit_once('@') {
            Some((userinfo, host)) => (Some(userinfo), host),
            None => (None, authority),
        };
        let offset = start + authority.len() - host.len();
        let authority =
            Authority::parse(host).map_err(|e| UrlError { offset: offset + e.offset, rule: e.rule })?;
        let credentials = match userinfo {
            None => None,
            Some(userinfo) => {
                let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
                let decode = |s| decode(s).map_err(|e| UrlError { offset: start + e.offset, rule: e.rule });
                Some(Credentials::new(decode(user)?, decode(password)?))
            }
        };
        Ok(Self { scheme, authority, path: path.to_owned(), credentials })
    }

    /// Port to connect to.
    pub fn port(&self) -> u16 {
        self.authority.port.unwrap_or(self.scheme.default_port())
    }

    /// Base of the control attributes of a DESCRIBE answer to this URL: `Content-Base`, else
    /// `Content-Location`, else this URL (RTSP-29). A base without a scheme (`192.168.1.10:554/stream0/`:
    /// Anjvision, Longse, Laureii) or without a host is repaired, anything else that is no RTSP URL is
    /// passed over. Credentials are stripped.
    pub fn control_base(&self, content_base: Option<&str>, content_location: Option<&str>) -> String {
        [content_base, content_location]
            .into_iter()
            .flatten()
            .find_map(|value| self.repair_base(value.trim()))
            .unwrap_or_else(|| self.to_string())
    }

    fn repair_base(&self, value: &str) -> Option<String> {
        if value.len() > MAX_URL_LEN || value.is_empty() {
            return None;
        }
        if value.contains("://") {
            return Scheme::split(value).map(|_| strip_userinfo(&escape(value)));
        }
        let scheme = self.scheme.as_str();
        if value.starts_with('/') {
            return Some(format!("{scheme}://{}{}", self.authority, escape(value)));
        }
        let end = value.find(['/', '?']).unwrap_or(value.len());
        let authority = Authority::parse(value.get(..end)?).ok()?;
        let is_host = authority.host == self.authority.host
            || authority.port.is_some()
            || matches!(authority.host, Host::Ip(_));
        is_host.then(|| format!("{scheme}://{}", escape(value)))
    }
}

impl fmt::Display for SourceUrl {
    /// The URL of requests: no credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority, self.path)
    }
}

/// URL of a media or of the aggregate of a source (RTSP-29).
///
/// `base`: of [`SourceUrl::control_base`]. `control`: value of `a=control`, if any. Absolute: it, without
/// credentials. None, empty or `*`: the base. Else appended after the query, as ffmpeg and live555 do: RFC
/// 3986 resolution breaks Dahua and GW4089IP (`?channel=1&subtype=1/trackID=0`). The result has no blanks,
/// control bytes or raw non-ASCII, whatever the source sent: it goes into a request line (SEC-9).
pub fn join_control(base: &str, control: Option<&str>) -> String {
    let control = control.map_or("", str::trim);
    if Scheme::split(control).is_some() {
        return strip_userinfo(&escape(control));
    }
    if control.is_empty() || control == "*" {
        return escape(base);
    }
    format!("{}/{}", escape(base.strip_suffix('/').unwrap_or(base)), escape(control.trim_start_matches('/')))
}
