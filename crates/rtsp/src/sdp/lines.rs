//! Lines of an SDP, and the sections they fall into.

use super::{MAX_LINE_LEN, MAX_LINES, MAX_MEDIA, MAX_SDP_LEN, Sdp, SdpError};

/// One line: a letter, `=`, and bytes, without its end. Contains no CR, LF or NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line(Vec<u8>);

impl Line {
    /// A line of ours. CR, LF and NUL are left out, so that no value can open a line of its own.
    pub fn new(kind: char, value: &str) -> Self {
        let mut bytes = vec![kind as u8, b'='];
        bytes.extend(value.bytes().filter(|b| !is_end(*b)));
        Self(bytes)
    }

    /// The line as it is written, without its end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The letter.
    pub fn kind(&self) -> u8 {
        self.0.first().copied().unwrap_or_default()
    }

    /// What follows `=`.
    pub fn value(&self) -> &[u8] {
        self.0.get(2..).unwrap_or_default()
    }

    /// What follows `=`, if it is UTF-8, without blanks around.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.value()).ok().map(str::trim)
    }

    /// Name and value of an `a=` line; the value is empty for a bare name. The name is compared as it is
    /// written: attribute names are case-sensitive (RFC 8866 section 5).
    pub fn attribute(&self) -> Option<(&str, &str)> {
        if self.kind() != b'a' {
            return None;
        }
        // The name must be readable; a value that is not UTF-8 is treated as empty.
        let value = self.value();
        let end = value.iter().position(|b| *b == b':').unwrap_or(value.len());
        let (name, rest) = value.split_at(end);
        let name = std::str::from_utf8(name).ok()?.trim();
        let rest = std::str::from_utf8(rest.get(1..).unwrap_or_default()).unwrap_or_default();
        Some((name, rest.trim()))
    }
}

fn is_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | 0)
}

/// First attribute of that name.
pub(super) fn attribute<'a>(lines: &'a [Line], name: &str) -> Option<&'a str> {
    attributes(lines, name).next()
}

/// Every attribute of that name.
pub(super) fn attributes<'a>(lines: &'a [Line], name: &str) -> impl Iterator<Item = &'a str> {
    lines.iter().filter_map(|line| line.attribute()).filter(move |(n, _)| *n == name).map(|(_, v)| v)
}

pub(super) fn parse(body: &[u8]) -> Result<Sdp, SdpError> {
    if body.len() > MAX_SDP_LEN {
        return Err(SdpError::TooLong { len: body.len() });
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut sdp = Sdp { session: Vec::new(), media: Vec::new() };
    let mut count = 0;
    for bytes in body.split(|b| is_end(*b)) {
        let bytes = bytes.trim_ascii();
        if bytes.is_empty() {
            continue;
        }
        count += 1;
        if count > MAX_LINES {
            return Err(SdpError::TooManyLines);
        }
        if bytes.len() > MAX_LINE_LEN {
            return Err(SdpError::LineTooLong { line: count });
        }
        if !matches!(bytes, [kind, b'=', ..] if kind.is_ascii_alphabetic()) {
            continue;
        }
        let line = Line(bytes.to_vec());
        if line.kind() == b'm' {
            if sdp.media.len() >= MAX_MEDIA {
                return Err(SdpError::TooManyMedia);
            }
            sdp.media.push(vec![line]);
        } else if let Some(section) = sdp.media.last_mut() {
            section.push(line);
        } else {
            sdp.session.push(line);
        }
    }
    if sdp.media.is_empty() && !sdp.session.iter().any(|line| line.kind() == b'v') {
        return Err(SdpError::NotSdp);
    }
    Ok(sdp)
}
