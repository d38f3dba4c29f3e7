//! The messages of a take-over, and their framing.
//!
//! ```text
//! next program                          running program
//!   Hello: formats it reads      ──►
//!                                ◄──     Refused: why            (and both go on as they were)
//!                                ◄──     Inventory, descriptors  (it has stopped reading its sockets)
//!   Ready                        ──►     (it ends; nothing was read meanwhile)
//! ```
//!
//! A message is `MSMH`, a kind, the length of its body in 4 bytes (big endian), the body as JSON.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Format of the inventories that this program writes. Raised when a reader that ignores what it does not
/// know would get it wrong.
pub const FORMAT: u32 = 1;
/// Oldest format that this program reads.
pub const OLDEST: u32 = 1;

/// Longest body of a message other than an inventory.
pub const MAX_SMALL: usize = 4 * 1024;
/// Longest inventory: a thousand viewers that read slowly have a mebibyte waiting each, a third more as text.
pub const MAX_INVENTORY: usize = 2 << 30;

const MAGIC: [u8; 4] = *b"MSMH";
const HEADER: usize = 9;
/// Memory that a declared length is believed for before its bytes are there.
const CHUNK: usize = 1 << 20;

/// First message: who takes over, and what it reads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// Oldest format that it reads.
    pub oldest: u32,
    /// Newest format that it reads.
    pub newest: u32,
    /// Name and version, for the log.
    pub program: String,
}

impl Hello {
    /// Of this program.
    pub fn new(program: impl Into<String>) -> Self {
        Self { oldest: OLDEST, newest: FORMAT, program: program.into() }
    }

    /// Whether it reads what this program writes.
    pub fn reads_ours(&self) -> bool {
        (self.oldest..=self.newest).contains(&FORMAT)
    }
}

/// The running program goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// Why, in words for people.
    pub reason: String,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Hello`].
    Hello,
    /// [`Refused`].
    Refused,
    /// [`Prelude`], then the inventory, then the descriptors.
    Inventory,
    /// Everything stands: the running program ends.
    Ready,
}

impl Kind {
    const ALL: [(Self, u8); 4] =
        [(Self::Hello, b'H'), (Self::Refused, b'R'), (Self::Inventory, b'I'), (Self::Ready, b'Y')];

    fn code(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, code)| *code)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == code).map(|(kind, _)| *kind)
    }

    fn limit(self) -> usize {
        match self {
            Self::Inventory => MAX_INVENTORY,
            Self::Hello | Self::Refused | Self::Ready => MAX_SMALL,
        }
    }
}

/// What every format of an inventory begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Prelude {
    /// Format.
    pub format: u32,
}

impl Prelude {
    /// Whether this program reads the rest.
    pub fn is_readable(&self) -> bool {
        (OLDEST..=FORMAT).contains(&self.format)
    }
}

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What arrived is none of our messages.
    #[error("no message of a take-over")]
    Garbage,
    /// A kind that is not expected now.
    #[error("a message {0:?} where none is expected")]
    Unexpected(Kind),
    /// A body over its limit.
    #[error("a message of {length} bytes, more than {limit}")]
    TooLong {
        /// Bytes declared or to be sent.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A body that does not say what it must.
    #[error("{0}")]
    Body(#[from] serde_json::Error),
}

/// Writes one message.
///
/// # Errors
/// [`MessageError::TooLong`], or what the socket said.
pub fn write(out: &mut impl Write, kind: Kind, body: &[u8]) -> Result<(), MessageError> {
    let limit = kind.limit();
    if body.len() > limit {
        return Err(MessageError::TooLong { length: body.len(), limit });
    }
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = kind.code();
    header[5..].copy_from_slice(&(body.len() as u32).to_be_bytes());
    out.write_all(&header)?;
    out.write_all(body)?;
    out.flush()?;
    Ok(())
}

/// Reads one message of one of these kinds, and not a byte more: descriptors may hang on the next.
///
/// # Errors
/// [`MessageError`]; nothing of the stream can be trusted after it.
pub fn read(input: &mut impl Read, wanted: &[Kind]) -> Result<(Kind, Vec<u8>), MessageError> {
    let mut header = [0; HEADER];
    input.read_exact(&mut header)?;
    let [m0, m1, m2, m3, code, length @ ..] = header;
    let kind = Kind::from_code(code).filter(|_| [m0, m1, m2, m3] == MAGIC).ok_or(MessageError::Garbage)?;
    let (length, limit) = (u32::from_be_bytes(length) as usize, kind.limit());
    if length > limit {
        return Err(MessageError::TooLong { length, limit });
    }
    if !wanted.contains(&kind) {
        return Err(MessageError::Unexpected(kind));
    }
    let mut body = Vec::with_capacity(length.min(CHUNK));
    let read = input.take(length as u64).read_to_end(&mut body)?;
    if read < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok((kind, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_read_whole_and_what_follows_is_left() {
        let mut wire = Vec::new();
        write(&mut wire, Kind::Hello, &serde_json::to_vec(&Hello::new("p")).unwrap()).unwrap();
        write(&mut wire, Kind::Ready, b"").unwrap();
        let mut input = &wire[..];
        let (kind, body) = read(&mut input, &[Kind::Hello]).unwrap();
        let hello: Hello = serde_json::from_slice(&body).unwrap();
        assert_eq!((kind, hello), (Kind::Hello, Hello::new("p")));
        assert_eq!(read(&mut input, &[Kind::Ready]).unwrap().0, Kind::Ready);
        assert!(input.is_empty());
    }

    #[test]
    fn a_hello_of_a_program_from_another_time_is_understood_and_judged() {
        let later: Hello =
            serde_json::from_str(r#"{"oldest":1,"newest":9,"program":"x","mood":"good"}"#).unwrap();
        assert!(later.reads_ours());
        let too_new: Hello = serde_json::from_str(r#"{"oldest":8,"newest":9}"#).unwrap();
        assert!(!too_new.reads_ours());
        let empty: Hello = serde_json::from_str("{}").unwrap();
        assert!(!empty.reads_ours());
    }

    #[test]
    fn a_length_is_not_believed_before_its_bytes_are_there() {
        let mut wire = Vec::new();
        wire.extend_from_slice(b"MSMHI");
        wire.extend_from_slice(&(1u32 << 30).to_be_bytes());
        wire.extend_from_slice(b"{}");
        let error = read(&mut &wire[..], &[Kind::Inventory]).unwrap_err();
        assert!(matches!(error, MessageError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof));
        wire[4] = b'H';
        let error = read(&mut &wire[..], &[Kind::Hello]).unwrap_err();
        assert!(matches!(error, MessageError::TooLong { length: 0x4000_0000, .. }));
    }

    proptest! {
        #[test]
        fn garbage_and_truncation_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..40usize) {
            let all = [Kind::Hello, Kind::Refused, Kind::Inventory, Kind::Ready];
            let _ = read(&mut &bytes[..], &all);
            let mut wire = Vec::new();
            write(&mut wire, Kind::Inventory, b"{\"format\":1,\"descriptors\":0}").unwrap();
            let cut = cut.min(wire.len() - 1);
            prop_assert!(read(&mut &wire[..cut], &all).is_err());
        }
    }
}
