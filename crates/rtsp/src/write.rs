//! Bytes from messages.
//!
//! The one serialiser: requests towards cameras and answers to viewers are always made here, never
//! forwarded as bytes (SEC-9). `CSeq` comes first (RTSP-3), `Content-Length` is computed.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::message::{Headers, Message, Request, Response, Version};

/// The bytes of a request (RFC 2326 section 6).
pub fn request(request: &Request) -> Bytes {
    let mut out = BytesMut::with_capacity(estimate(&request.headers, request.uri.len(), &request.body));
    put_text(&mut out, request.method.as_str());
    out.put_u8(b' ');
    put_text(&mut out, &request.uri);
    out.put_u8(b' ');
    put_version(&mut out, request.version);
    out.put_slice(b"\r\n");
    put_rest(&mut out, &request.headers, &request.body);
    out.freeze()
}

/// The bytes of a response (RFC 2326 section 7).
pub fn response(response: &Response) -> Bytes {
    let mut out = BytesMut::with_capacity(estimate(&response.headers, response.reason.len(), &response.body));
    put_version(&mut out, response.version);
    out.put_u8(b' ');
    put_number(&mut out, u64::from(response.status.0), 3);
    out.put_u8(b' ');
    put_text(&mut out, &response.reason);
    out.put_slice(b"\r\n");
    put_rest(&mut out, &response.headers, &response.body);
    out.freeze()
}

/// The bytes of either.
pub fn message(message: &Message) -> Bytes {
    match message {
        Message::Request(value) => request(value),
        Message::Response(value) => response(value),
    }
}

fn estimate(headers: &Headers, line: usize, body: &Bytes) -> usize {
    headers.iter().fold(line + body.len() + 96, |sum, (name, value)| sum + name.len() + value.len() + 4)
}

/// Fields and body. A received `Content-Length` says nothing about the body that is written now.
fn put_rest(out: &mut BytesMut, headers: &Headers, body: &Bytes) {
    let is = |name: &str, wanted: &str| name.eq_ignore_ascii_case(wanted);
    for (name, value) in headers.iter().filter(|(name, _)| is(name, "CSeq")) {
        put_field(out, name, value);
    }
    let others = headers.iter().filter(|(name, _)| !is(name, "CSeq") && !is(name, "Content-Length"));
    for (name, value) in others {
        put_field(out, name, value);
    }
    if !body.is_empty() {
        out.put_slice(b"Content-Length: ");
        put_number(out, body.len() as u64, 1);
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
    out.put_slice(body);
}

fn put_field(out: &mut BytesMut, name: &str, value: &str) {
    put_text(out, name);
    out.put_slice(b": ");
    put_text(out, value);
    out.put_slice(b"\r\n");
}

/// Text of a head. Control bytes become blanks, so that no value can end its line (SEC-10).
fn put_text(out: &mut BytesMut, text: &str) {
    for chunk in text.as_bytes().split_inclusive(u8::is_ascii_control) {
        match chunk.split_last() {
            Some((last, head)) if last.is_ascii_control() && *last != b'\t' => {
                out.put_slice(head);
                out.put_u8(b' ');
            }
            _ => out.put_slice(chunk),
        }
    }
}

fn put_version(out: &mut BytesMut, version: Version) {
    out.put_slice(b"RTSP/");
    put_number(out, u64::from(version.major), 1);
    out.put_u8(b'.');
    put_number(out, u64::from(version.minor), 1);
}

fn put_number(out: &mut BytesMut, number: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    let mut rest = number;
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        first = index;
        if rest == 0 {
            break;
        }
    }
    first = first.min(digits.len() - width.min(digits.len()));
    out.put_slice(digits.get(first..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Method, Status};

    #[test]
    fn cseq_is_the_first_field_and_content_length_is_computed() {
        let mut value = Request::new(Method::Announce, "rtsp://h/a")
            .with("User-Agent", "x")
            .with("content-length", "9")
            .with("CSeq", "7");
        value.body = Bytes::from_static(b"v=0");
        assert_eq!(
            &request(&value)[..],
            b"ANNOUNCE rtsp://h/a RTSP/1.0\r\nCSeq: 7\r\nUser-Agent: x\r\nContent-Length: 3\r\n\r\nv=0"
        );
    }

    #[test]
    fn response_without_body_has_no_content_length() {
        let value = Response::new(Status::OK).with("CSeq", "0").with("Session", "a;timeout=55");
        assert_eq!(&response(&value)[..], b"RTSP/1.0 200 OK\r\nCSeq: 0\r\nSession: a;timeout=55\r\n\r\n");
    }

    #[test]
    fn value_cannot_end_its_line() {
        let value = Request::new(Method::Options, "*").with("CSeq", "1").with("X", "a\r\nSession: b\0");
        assert_eq!(&request(&value)[..], b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nX: a  Session: b \r\n\r\n");
    }
}
