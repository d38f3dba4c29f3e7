//! The time in which workers may claim what an earlier process left.

use std::sync::PoisonError;
use std::time::Instant;

use msm_fastpath::FlowKey;
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
        let Self { left, table, ports_written, extents, .. } = &mut self;
        let flows = left.end(|key| match table.remove_flow(key) {
            Ok(()) => true,
            Err(error) => {
                warn!(event = "kernel.unclaimed", reason = %error, "a flow that nobody claimed stays");
                false
            }
        });
        for key in table.port_keys() {
            // Held, so that no worker closes the port between look and removal.
            let written = ports_written.lock().unwrap_or_else(PoisonError::into_inner);
            if !written.contains(&port_id(&key)) {
                table.put_port(&key, None).ok();
            }
        }
        (flows, std::mem::take(extents))
    }
}
