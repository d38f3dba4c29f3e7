//! RTSP messages as values: method, status, headers, request, response.
//!
//! Owns the vocabulary only. [`crate::parse`] makes these values from bytes and [`crate::write`] makes
//! bytes from them.

use std::fmt;

use bytes::Bytes;

pub mod inventory;

/// A request method (RFC 2326 section 10).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// `ANNOUNCE`
    Announce,
    /// `DESCRIBE`
    Describe,
    /// `GET_PARAMETER`
    GetParameter,
    /// `OPTIONS`
    Options,
    /// `PAUSE`
    Pause,
    /// `PLAY`
    Play,
    /// `RECORD`
    Record,
    /// `REDIRECT`
    Redirect,
    /// `SETUP`
    Setup,
    /// `SET_PARAMETER`
    SetParameter,
    /// `TEARDOWN`
    Teardown,
    /// A token we do not know; answered `501` (RTSP-9).
    Unknown(String),
}

impl Method {
    /// The method named by `token`; names are case-sensitive (RFC 2326 section 6.1).
    pub fn from_token(token: &str) -> Self {
        match token {
            "ANNOUNCE" => Self::Announce,
            "DESCRIBE" => Self::Describe,
            "GET_PARAMETER" => Self::GetParameter,
            "OPTIONS" => Self::Options,
            "PAUSE" => Self::Pause,
            "PLAY" => Self::Play,
            "RECORD" => Self::Record,
            "REDIRECT" => Self::Redirect,
            "SETUP" => Self::Setup,
            "SET_PARAMETER" => Self::SetParameter,
            "TEARDOWN" => Self::Teardown,
            other => Self::Unknown(other.to_owned()),
        }
    }

    /// The name as it stands on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Announce => "ANNOUNCE",
            Self::Describe => "DESCRIBE",
            Self::GetParameter => "GET_PARAMETER",
            Self::Options => "OPTIONS",
            Self::Pause => "PAUSE",
            Self::Play => "PLAY",
            Self::Record => "RECORD",
            Self::Redirect => "REDIRECT",
            Self::Setup => "SETUP",
            Self::SetParameter => "SET_PARAMETER",
            Self::Teardown => "TEARDOWN",
            Self::Unknown(name) => name,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A status code (RFC 2326 section 7.1.1, RFC 7826 section 17).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(pub u16);

macro_rules! statuses {
    ($($name:ident = $code:literal, $reason:literal;)*) => {
        impl Status {
            $(#[doc = concat!("`", $code, " ", $reason, "`")] pub const $name: Self = Self($code);)*

            /// The reason phrase of RFC 2326 and RFC 7826, or `Unknown`.
            pub fn reason(self) -> &'static str {
                match self.0 {
                    $($code => $reason,)*
                    _ => "Unknown",
                }
            }
        }
    };
}

statuses! {
    OK = 200, "OK";
    MOVED_PERMANENTLY = 301, "Moved Permanently";
    FOUND = 302, "Found";
    BAD_REQUEST = 400, "Bad Request";
    UNAUTHORIZED = 401, "Unauthorized";
    FORBIDDEN = 403, "Forbidden";
    NOT_FOUND = 404, "Not Found";
    METHOD_NOT_ALLOWED = 405, "Method Not Allowed";
    NOT_ACCEPTABLE = 406, "Not Acceptable";
    REQUEST_TIMEOUT = 408, "Request Timeout";
    CONTENT_TOO_LARGE = 413, "Request Message Body Too Large";
    URI_TOO_LONG = 414, "Request-URI Too Long";
    UNSUPPORTED_MEDIA_TYPE = 415, "Unsupported Media Type";
    PARAMETER_NOT_UNDERSTOOD = 451, "Parameter Not Understood";
    NOT_ENOUGH_BANDWIDTH = 453, "Not Enough Bandwidth";
    SESSION_NOT_FOUND = 454, "Session Not Found";
    METHOD_NOT_VALID_IN_THIS_STATE = 455, "Method Not Valid In This State";
    HEADER_FIELD_NOT_VALID = 456, "Header Field Not Valid for Resource";
    INVALID_RANGE = 457, "Invalid Range";
    AGGREGATE_NOT_ALLOWED = 459, "Aggregate Operation Not Allowed";
    ONLY_AGGREGATE_ALLOWED = 460, "Only Aggregate Operation Allowed";
    UNSUPPORTED_TRANSPORT = 461, "Unsupported Transport";
    DESTINATION_PROHIBITED = 463, "Destination Prohibited";
    INTERNAL_SERVER_ERROR = 500, "Internal Server Error";
    NOT_IMPLEMENTED = 501, "Not Implemented";
    BAD_GATEWAY = 502, "Bad Gateway";
    SERVICE_UNAVAILABLE = 503, "Service Unavailable";
    GATEWAY_TIMEOUT = 504, "Gateway Timeout";
    VERSION_NOT_SUPPORTED = 505, "RTSP Version Not Supported";
    OPTION_NOT_SUPPORTED = 551, "Option Not Supported";
}

impl Status {
    /// 2xx.
    pub fn is_success(self) -> bool {
        (200..300).contains(&self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.reason())
    }
}

/// Protocol version of a start line. Anything but 1.0 is answered `505` (RTSP-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// Digits before the dot.
    pub major: u8,
    /// Digits after the dot.
    pub minor: u8,
}

impl Version {
    /// `RTSP/1.0`, the only version spoken here.
    pub const V1_0: Self = Self { major: 1, minor: 0 };
}

/// Header fields in the order of the message; names compare without case, values are trimmed.
///
/// Values are UTF-8 by construction: the parser rejects control bytes and raw non-ASCII from viewers
/// (SEC-10) and replaces invalid sequences from cameras.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Every value of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Appends a field, keeping those of the same name.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// Replaces every field of that name by this one, or appends it.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes every field of that name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request. `uri` is kept as it was sent: a digest covers it byte for byte (RTSP-35).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method of the request line.
    pub method: Method,
    /// Request-URI as sent: absolute URL, path or `*`.
    pub uri: String,
    /// Version of the request line.
    pub version: Version,
    /// Fields, `Content-Length` included as received; the writer computes its own.
    pub headers: Headers,
    /// Body of exactly `Content-Length` bytes.
    pub body: Bytes,
}

impl Request {
    /// A 1.0 request without fields or body.
    pub fn new(method: Method, uri: impl Into<String>) -> Self {
        Self { method, uri: uri.into(), version: Version::V1_0, headers: Headers::new(), body: Bytes::new() }
    }

    /// Adds a field.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push(name, value);
        self
    }

    /// `CSeq` as a number; `None` when absent or not a number (RTSP-2).
    pub fn cseq(&self) -> Option<u32> {
        self.headers.get("CSeq")?.trim().parse().ok()
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Version of the status line.
    pub version: Version,
    /// Status code.
    pub status: Status,
    /// Reason phrase as received; [`Status::reason`] when made here.
    pub reason: String,
    /// Fields, `Content-Length` included as received; the writer computes its own.
    pub headers: Headers,
    /// Body of exactly `Content-Length` bytes.
    pub body: Bytes,
}

impl Response {
    /// A 1.0 response without fields or body. The connection adds `CSeq` of the request it answers.
    pub fn new(status: Status) -> Self {
        Self {
            version: Version::V1_0,
            status,
            reason: status.reason().to_owned(),
            headers: Headers::new(),
            body: Bytes::new(),
        }
    }

    /// Adds a field.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push(name, value);
        self
    }

    /// Sets the body and its type.
    pub fn with_body(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.headers.set("Content-Type", content_type);
        self.body = body.into();
        self
    }

    /// `CSeq` as a number; `None` when absent or not a number.
    pub fn cseq(&self) -> Option<u32> {
        self.headers.get("CSeq")?.trim().parse().ok()
    }
}

/// One RTSP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A request.
    Request(Request),
    /// A response.
    Response(Response),
}
