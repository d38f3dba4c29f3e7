//! The kernel's tables as a worker sees them.
//!
//! A worker owns the flows of its streams and a share of the slots: nothing here is shared between
//! workers but the kernel object itself, so no call takes a lock. [`Table`] is a trait because the protocol
//! that moves a leg between worker and kernel ([`crate::user::offload`]) is tested on virtual packets
//! against a model of the programs.

use std::net::SocketAddr;

use msm_fastpath::{FlowEntry, FlowKey, FlowStats, GateEntry, LegEntry, LegStats, PortKey};

/// Why a map operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The map has no room.
    #[error("the kernel's {map} map is full")]
    Full {
        /// Name of the map.
        map: &'static str,
    },
    /// The kernel refused.
    #[error("the kernel's {map} map: {errno}")]
    Refused {
        /// Name of the map.
        map: &'static str,
        /// Its answer.
        errno: String,
    },
}

/// Writes and reads of one worker. Every call is one system call of about a microsecond, except where
/// noted.
pub trait Table {
    /// Publishes a flow, or replaces it in one step.
    ///
    /// # Errors
    /// [`TableError`].
    fn put_flow(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<(), TableError>;
    /// Removes a flow; one that is not there is removed already. Its media address takes datagrams without a flow
    /// again first.
    ///
    /// # Errors
    /// [`TableError::Refused`].
    fn remove_flow(&mut self, key: &FlowKey) -> Result<(), TableError>;
    /// Writes the progress from which the kernel counts on. Before the flow that names it is published, or
    /// while its mode hands everything to the worker.
    ///
    /// # Errors
    /// [`TableError`].
    fn put_flow_stats(&mut self, index: u32, stats: &FlowStats) -> Result<(), TableError>;
    /// Reads the progress.
    ///
    /// # Errors
    /// [`TableError`].
    fn flow_stats(&self, index: u32) -> Result<FlowStats, TableError>;
    /// Writes a leg into a slot that no packet looks at: behind the published ones, or behind a shut gate.
    ///
    /// # Errors
    /// [`TableError`].
    fn put_leg(&mut self, slot: u32, entry: &LegEntry) -> Result<(), TableError>;
    /// Writes a gate.
    ///
    /// # Errors
    /// [`TableError`].
    fn put_gate(&mut self, id: u32, gate: GateEntry) -> Result<(), TableError>;
    /// Reads a gate.
    ///
    /// # Errors
    /// [`TableError`].
    fn gate(&self, id: u32) -> Result<GateEntry, TableError>;
    /// Sets the counters of a leg to zero, for its next holder.
    ///
    /// # Errors
    /// [`TableError`].
    fn clear_leg_stats(&mut self, id: u32) -> Result<(), TableError>;
    /// Reads the counters of a leg, all CPUs together.
    ///
    /// # Errors
    /// [`TableError`].
    fn leg_stats(&self, id: u32) -> Result<LegStats, TableError>;
    /// Says what happens to datagrams without a flow on an address of ours: a value of [`PortKey`]; `None`
    /// makes the address nobody's.
    ///
    /// # Errors
    /// [`TableError`].
    fn put_port(&mut self, key: &PortKey, value: Option<u32>) -> Result<(), TableError>;
    /// Says whose a flow's index is, for the lines of the log.
    fn name_flow(&mut self, _index: u32, _stream: &str, _source: SocketAddr) {}
    /// Says whose a leg's id is.
    fn name_leg(&mut self, _id: u32, _viewer: SocketAddr) {}
    /// ns of CLOCK_MONOTONIC, the clock of [`FlowStats::last_arrival`].
    fn now(&self) -> u64;
}
