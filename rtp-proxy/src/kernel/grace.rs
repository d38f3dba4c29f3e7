//! The time in which workers may claim what an earlier process left.

use std::sync::PoisonError;
use std::time::Instant;

use msm_fastpath::{FlowKey, PortKey};
use tracing::warn;

use super::share::{AdoptedFlow, Left};
use super::slots::Extent;
use super::table::Table as _;
use super::tables::{KernelTable, PortsWritten, port_id};

/// What is left, and until when.
pub(super) struct Grace {
    pub(super) left: Left,
    pub(super) table: KernelTable,
    pub(super) ports_written: PortsWritten,
    pub(super) extents: Vec<Extent>,
    pub(super) over: Instant,
}

impl Grace {
    /// Removes what nobody claimed. Returns it.
    pub(super) fn end(mut self) -> (Vec<(FlowKey, AdoptedFlow)>, Vec<Extent>) {
        let flows = self.left.take();
        for (key, _) in &flows {
            if let Err(error) = self.table.remove_flow(key) {
                warn!(event = "kernel.unclaimed", reason = %error, "a flow that nobody claimed stays");
            }
        }
        let written = self.ports_written.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unused = |key: &PortKey| !written.contains(&port_id(key));
        for key in self.table.port_keys().into_iter().filter(unused) {
            self.table.put_port(&key, None).ok();
        }
        (flows, self.extents)
    }
}
