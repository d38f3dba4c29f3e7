//! Identifiers. Assigned once, never reused, never derived from an address.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::{Builder, Uuid};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A UUID of version 7 from milliseconds since the Unix epoch and ten random bytes
            /// (RFC 9562 section 5.7).
            pub fn new(unix_millis: u64, random: [u8; 10]) -> Self {
                Self(Builder::from_unix_timestamp_millis(unix_millis, &random).into_uuid())
            }

            /// The id that another process of the mesh assigned.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The id as a plain UUID.
            pub fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0.hyphenated())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Uuid::try_parse(&text).map(Self).map_err(|_| de::Error::custom("no UUID"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.hyphenated())
            }
        }
    };
}

uuid_id! {
    /// A stream: media of one source under one URL.
    StreamId
}
uuid_id! {
    /// A leg: one viewer's transport association with its node's proxy.
    LegId
}
uuid_id! {
    /// The mesh's grouping of streams (tenant, trace, state). An RTSP session is an `RtspSessionId`.
    SessionId
}

/// A track by its index in the stream's SDP, from 0. Media that are skipped keep their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrackId(pub u8);

impl fmt::Display for TrackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A byte stream that the proxy holds: a viewer's, a publisher's or a camera's RTSP connection.
/// Assigned by whoever opens it; unique for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnId(pub u64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Fencing number of whoever decides. A proxy refuses an operation of a lower epoch than it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);
