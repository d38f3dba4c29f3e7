//! Single lines of a head.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use super::{ParseError, Rule, Start, Strictness};
use crate::message::{Headers, Method, Status, Version};

/// A start line and the first rule it breaks without putting the framing in doubt.
pub(super) struct StartLine {
    pub(super) start: Start,
    pub(super) soft: Option<ParseError>,
}

/// A header field and the first rule it breaks without putting the framing in doubt.
pub(super) struct Field {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) soft: Option<ParseError>,
}

/// The line without its line end; `raw` ends in LF.
pub(super) fn content(raw: &[u8], strictness: Strictness, offset: u64) -> Result<&[u8], ParseError> {
    let without = raw.strip_suffix(b"\n").unwrap_or(raw);
    let at = |index: usize, rule| ParseError { offset: offset + index as u64, rule };
    let text = match (without.strip_suffix(b"\r"), strictness) {
        (Some(text), _) => text,
        (None, Strictness::Upstream) => without,
        (None, Strictness::Downstream) => return Err(at(without.len(), Rule::LineEnd)),
    };
    if strictness == Strictness::Downstream
        && let Some(index) = text.iter().position(|b| b.is_ascii_control() && *b != b'\t')
    {
        let rule = if text.get(index) == Some(&b'\r') { Rule::LineEnd } else { Rule::Control };
        return Err(at(index, rule));
    }
    Ok(text)
}

/// Request line or status line.
pub(super) fn start(text: &[u8], strictness: Strictness, offset: u64) -> Result<StartLine, ParseError> {
    let broken = |rule| ParseError { offset, rule };
    let mut soft = non_ascii(text, strictness, offset);
    if strictness == Strictness::Downstream && text.contains(&b'\t') {
        return Err(broken(Rule::StartLine));
    }
    let text = clean(text);
    let (start, version) = if text.starts_with("RTSP/") {
        let mut words = text.splitn(3, ' ');
        let version = version(words.next().unwrap_or_default()).ok_or(broken(Rule::StartLine))?;
        let code = words.next().unwrap_or_default();
        let status = Some(code)
            .filter(|code| code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|code| code.parse().ok())
            .map(Status)
            .ok_or(broken(Rule::StartLine))?;
        let reason = words.next().unwrap_or_default().trim().to_owned();
        (Start::Response { version, status, reason }, version)
    } else {
        let mut words =
            text.split(' ').filter(|word| strictness == Strictness::Downstream || !word.is_empty());
        let (Some(method), Some(uri), Some(protocol), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(broken(Rule::StartLine));
        };
        if !is_token(method) || uri.is_empty() {
            return Err(broken(Rule::StartLine));
        }
        if !protocol.starts_with("RTSP/") {
            return Err(broken(Rule::Protocol));
        }
        let version = version(protocol).ok_or(broken(Rule::StartLine))?;
        let (method, uri) = (Method::from_token(method), uri.to_owned());
        (Start::Request { method, uri, version }, version)
    };
    if version != Version::V1_0 && strictness == Strictness::Downstream {
        soft = soft.or(Some(broken(Rule::Version)));
    }
    Ok(StartLine { start, soft })
}

/// A header field; `None` for a line that a camera may send and that says nothing.
pub(super) fn field(text: &[u8], strictness: Strictness, offset: u64) -> Result<Option<Field>, ParseError> {
    let strict = strictness == Strictness::Downstream;
    let broken = ParseError { offset, rule: Rule::HeaderName };
    let Some(colon) = memchr::memchr(b':', text) else {
        return if strict { Err(broken) } else { Ok(None) };
    };
    let (name, value) = text.split_at_checked(colon).ok_or(broken)?;
    let value = value.strip_prefix(b":").unwrap_or(value);
    // A blank before the colon makes two parsers see two names (SEC-9); some cameras send it.
    let name = if strict { name } else { name.trim_ascii() };
    let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_token(name)) else {
        return if strict { Err(broken) } else { Ok(None) };
    };
    let soft = non_ascii(value, strictness, offset + colon as u64 + 1);
    let value = clean(value);
    Ok(Some(Field { name: name.to_owned(), value: value.trim().to_owned(), soft }))
}

/// `Content-Length`: 1 to 7 digits (SEC-9).
pub(super) fn content_length(value: &str) -> Option<usize> {
    let digits = (1..=7).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    if digits { value.parse().ok() } else { None }
}

/// `CSeq`: digits only, below 2^32 (RTSP-2).
pub(super) fn cseq(headers: &Headers) -> Option<u32> {
    let value = headers.get("CSeq")?;
    if value.bytes().all(|b| b.is_ascii_digit()) { value.parse().ok() } else { None }
}

fn non_ascii(text: &[u8], strictness: Strictness, offset: u64) -> Option<ParseError> {
    if strictness == Strictness::Upstream {
        return None;
    }
    let index = text.iter().position(|b| !b.is_ascii())?;
    Some(ParseError { offset: offset + index as u64, rule: Rule::NonAscii })
}

/// Text of a camera: invalid sequences replaced, control bytes blanked. Text of a viewer has neither, or is
/// rejected.
fn clean(text: &[u8]) -> std::borrow::Cow<'_, str> {
    let text = String::from_utf8_lossy(text);
    if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return text.replace(|c: char| c.is_ascii_control() && c != '\t', " ").into();
    }
    text
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn version(text: &str) -> Option<Version> {
    let (major, minor) = text.strip_prefix("RTSP/")?.split_once('.')?;
    let number = |digits: &str| {
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse().ok() } else { None }
    };
    Some(Version { major: number(major)?, minor: number(minor)? })
}
