//! SDP as lines of bytes (RFC 8866, RFC 2326 appendix C).
//!
//! A description is kept as its lines: an edit replaces, removes or adds lines and leaves the others as the
//! source wrote them, non-UTF-8 included. [`Sdp::tracks`] says what the lines mean; [`Sdp::for_viewer`]
//! makes the description that our clients see. Sources break the grammar in every way (`docs/protocols/rtsp.md`,
//! Session descriptions), so reading is lenient; sizes are not (SDP-7).

use thiserror::Error;

pub use edit::{Detail, ProfilePolicy, TimestampPolicy, ViewerEdit};
pub use lines::Line;
pub use media::{Direction, MediaKind, Track, Unusable};

mod edit;
mod lines;
mod media;
#[cfg(test)]
mod tests;

/// Most bytes of a description (`docs/protocols/rtsp.md`, Session descriptions).
pub const MAX_SDP_LEN: usize = 64 * 1024;

/// Most media of a description.
pub const MAX_MEDIA: usize = 32;

/// Most lines of a description.
pub const MAX_LINES: usize = 512;

/// Most bytes of a line.
pub const MAX_LINE_LEN: usize = 4 * 1024;

/// Why a body is not taken as SDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SdpError {
    /// More than [`MAX_SDP_LEN`].
    #[error("{len} bytes of SDP, at most {MAX_SDP_LEN} are accepted")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// More than [`MAX_LINES`].
    #[error("more than {MAX_LINES} lines of SDP")]
    TooManyLines,
    /// A line of more than [`MAX_LINE_LEN`].
    #[error("line {line} of the SDP has more than {MAX_LINE_LEN} bytes")]
    LineTooLong {
        /// Its number, from 1.
        line: usize,
    },
    /// More than [`MAX_MEDIA`].
    #[error("more than {MAX_MEDIA} media in the SDP")]
    TooManyMedia,
    /// Neither `v=` nor `m=`: something else, HTML for example.
    #[error("not SDP: neither a v= nor an m= line")]
    NotSdp,
}

/// A session description: session lines, then media sections in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sdp {
    session: Vec<Line>,
    media: Vec<Vec<Line>>,
}

impl Sdp {
    /// Reads a body. Line ends may be CRLF, LF, CR or NUL; blank lines and lines that are not `x=…` are
    /// dropped, blanks around a line are cut.
    ///
    /// # Errors
    /// Bodies beyond the limits of `docs/protocols/rtsp.md`, and bodies that are no SDP at all.
    pub fn parse(body: &[u8]) -> Result<Self, SdpError> {
        lines::parse(body)
    }

    /// Writes every line with CRLF.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for line in self.session.iter().chain(self.media.iter().flatten()) {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    /// Lines before the first `m=`.
    pub fn session(&self) -> &[Line] {
        &self.session
    }

    /// Lines of each media section, its `m=` first.
    pub fn media(&self) -> &[Vec<Line>] {
        &self.media
    }

    /// First session attribute of that name; the empty text for a bare one.
    pub fn session_attribute(&self, name: &str) -> Option<&str> {
        lines::attribute(&self.session, name)
    }

    /// `a=control` of the session: absolute, relative, `*`, or none (RTSP-29).
    pub fn session_control(&self) -> Option<&str> {
        self.session_attribute("control")
    }

    /// One entry per media section, in order and without gaps, so that its index is the track id (SDP-3).
    /// Sections that cannot be played have [`Track::unusable`] set.
    pub fn tracks(&self) -> Vec<Track> {
        self.media.iter().enumerate().map(|(index, lines)| media::read(index, lines, &self.session)).collect()
    }

    /// `a=control` of every media in order, for [`crate::url::ResourceUrl::media_index`].
    pub fn controls(&self) -> Vec<Option<&str>> {
        self.media.iter().map(|lines| lines::attribute(lines, "control")).collect()
    }

    /// The description that our clients see: SDP-1 to SDP-6, SDP-8, SDP-9, RTSP-30. Applying the same edit
    /// to its result changes nothing.
    pub fn for_viewer(&self, edit: &ViewerEdit) -> Self {
        edit::for_viewer(self, edit)
    }
}
