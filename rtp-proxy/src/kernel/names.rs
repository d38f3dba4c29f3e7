//! Whose an index of the kernel's tables is, for people: programs tell of flows and legs by number.
//!
//! Written when an index gets its holder, read with an event, never per packet. An index that is given back keeps
//! its name until the next holder: what is told last of a leg is still about that leg.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// What is known of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlowName {
    pub(super) stream: String,
    /// Who sends it.
    pub(super) source: SocketAddr,
}

#[derive(Debug, Default)]
struct Book {
    flows: HashMap<u32, FlowName>,
    legs: HashMap<u32, SocketAddr>,
}

/// The names of one process's indices; at most one per index.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(Arc<Mutex<Book>>);

impl Names {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put_flow(&self, index: u32, stream: &str, source: SocketAddr) {
        self.book().flows.insert(index, FlowName { stream: stream.to_owned(), source });
    }

    pub(super) fn put_leg(&self, id: u32, viewer: SocketAddr) {
        self.book().legs.insert(id, viewer);
    }

    pub(super) fn flow(&self, index: u32) -> Option<FlowName> {
        self.book().flows.get(&index).cloned()
    }

    pub(super) fn leg(&self, id: u32) -> Option<SocketAddr> {
        self.book().legs.get(&id).copied()
    }
}
