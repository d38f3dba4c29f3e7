//! Our kernel programs as contenders.

use anyhow::{Result, bail};

use super::course::{Course, Traffic};
use super::lane::Lane;
use super::topology::Kind;

/// How much of a copy differs from its original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Addresses only.
    Opaque,
    /// One RTP edit for all legs.
    Common,
    /// An RTP edit per leg: the full rewrite.
    PerLeg,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Common => "common",
            Self::PerLeg => "per leg",
        }
    }
}

/// The loaded programs.
#[derive(Debug)]
pub(crate) struct Fast {}

impl Fast {
    /// Loads the programs and attaches them to the source's cables.
    pub(crate) fn open(_course: &Course) -> Result<Self> {
        bail!("the kernel programs forward nothing yet")
    }

    /// A lane through the programs, one stream.
    #[expect(clippy::unused_self, reason = "the programs will be here")]
    pub(crate) fn lane(
        &mut self,
        _course: &Course,
        _name: &str,
        _kind: Kind,
        _mode: Mode,
        _traffic: Traffic,
    ) -> Result<Lane> {
        bail!("the kernel programs forward nothing yet")
    }
}
