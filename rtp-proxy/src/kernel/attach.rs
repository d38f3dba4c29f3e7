//! Attaching to interfaces, always by link: what is attached goes when its link is dropped.

use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, TcAttachType};

use super::load::{Kernel, LoadError};

/// Why a program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The object is not what this proxy expects.
    #[error(transparent)]
    Object(#[from] LoadError),
    /// The kernel or the driver refused.
    #[error("attaching to {interface} by {rung}: {source}")]
    Refused {
        /// Name of the interface, in the caller's network namespace.
        interface: String,
        /// How it was tried: `tcx`.
        rung: &'static str,
        /// The answer.
        source: Box<ProgramError>,
    },
}

impl Kernel {
    /// Attaches the TCX program to an interface's ingress, behind what is there already.
    ///
    /// `interface`: name in the caller's network namespace.
    ///
    /// # Errors
    /// [`AttachError::Refused`], on kernels without TCX (before 6.6) for example.
    pub fn attach_tcx(&mut self, interface: &str) -> Result<SchedClassifierLink, AttachError> {
        let refused = |source| AttachError::Refused {
            interface: interface.to_owned(),
            rung: "tcx",
            source: Box::new(source),
        };
        let program = self.tcx_mut()?;
        let id = program
            .attach_with_options(
                interface,
                TcAttachType::Ingress,
                TcAttachOptions::TcxOrder(LinkOrder::default()),
            )
            .map_err(refused)?;
        program.take_link(id).map_err(refused)
    }
}
