//! Characters of URLs: what is refused, decoded, escaped.

use std::fmt::Write;

use super::{UrlError, UrlRule, error};

/// `text` without `user:password@`, for requests and logs (RTSP-38). Anything that is no URL is unchanged.
pub fn strip_userinfo(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{host}{tail}"),
        None => text.to_owned(),
    }
}

/// SEC-10, byte by byte.
pub(super) fn check_characters(text: &str) -> Result<(), UrlError> {
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            b'#' => return error(offset, UrlRule::Fragment),
            b'"' | b'<' | b'>' | b'\\' => return error(offset, UrlRule::Character),
            0x21..=0x7e => {}
            _ => return error(offset, UrlRule::Character),
        }
    }
    Ok(())
}

fn push_escape(out: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(out, "%{byte:02X}");
}

fn hex_pair(high: Option<&u8>, low: Option<&u8>) -> Option<u8> {
    let digit = |b: Option<&u8>| (*b? as char).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

/// Normalises percent escapes (RFC 3986 section 6.2.2); encoded control bytes are refused.
pub(super) fn normalise(text: &str) -> Result<String, UrlError> {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte != b'%' {
            out.push(byte as char);
            at += 1;
            continue;
        }
        match hex_pair(bytes.get(at + 1), bytes.get(at + 2)) {
            None | Some(0..0x20 | 0x7f) => return error(at, UrlRule::Escape),
            Some(b) if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') => {
                out.push(b as char);
            }
            Some(b) => push_escape(&mut out, b),
        }
        at += 3;
    }
    Ok(out)
}

/// Decodes percent escapes into text.
pub(super) fn decode(text: &str) -> Result<String, UrlError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            match hex_pair(bytes.get(at + 1), bytes.get(at + 2)) {
                None | Some(0..0x20 | 0x7f) => return error(at, UrlRule::Escape),
                Some(b) => out.push(b),
            }
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8(out).or(error(0, UrlRule::Escape))
}

/// Escapes what must not stand in a request line.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() {
            out.push(byte as char);
        } else {
            push_escape(&mut out, byte);
        }
    }
    out
}
