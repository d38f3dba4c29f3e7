//! Taking back what was changed on interfaces and in bpffs, by a process that need not be the one that did it.

use std::path::Path;

use aya::programs::TcAttachType;
use aya::programs::links::Link as _;
use aya::programs::tc::{SchedClassifierLink, TcHandle};
use nix::net::if_::if_indextoname;

use super::hop::Rung;
use super::ladder::{TC_PRIORITY, restore, tc_handle};
use super::netlink::Requests;
use super::pins::{self, Found};

/// Name of an interface now, `None` if it is gone: what was changed there is found by its index, for names change.
pub(super) fn name_of(ifindex: u32) -> Option<String> {
    if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok())
}

/// Removes our filter from an interface, and its clsact qdisc if that is ours and nobody else uses it. From one that
/// is gone nothing is to be removed.
///
/// Returns what was removed.
///
/// # Errors
/// What is left, in words.
pub(super) fn remove_filter(ifindex: u32, handle: TcHandle, clsact: bool) -> Result<Vec<String>, String> {
    let Some(name) = name_of(ifindex) else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    let filter = SchedClassifierLink::attached(&name, TcAttachType::Ingress, TC_PRIORITY, handle, None)
        .map_err(|error| format!("{name}: {error}"))?;
    // A filter that is not there is removed already.
    if filter.detach().is_ok() {
        removed.push(format!("tc filter of {name}"));
    }
    if clsact {
        let left = |error: std::io::Error| format!("clsact qdisc of {name}: {error}");
        let mut requests = Requests::open().map_err(left)?;
        if requests.clsact_filters(ifindex).map_err(left)? == 0 {
            requests.delete_clsact(ifindex).map_err(left)?;
            removed.push(format!("clsact qdisc of {name}"));
        }
    }
    Ok(removed)
}

/// What an uninstallation did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What is gone.
    pub removed: Vec<String>,
    /// What is not, and why.
    pub left: Vec<String>,
}

impl Removed {
    fn add(&mut self, result: Result<Vec<String>, String>) {
        match result {
            Ok(removed) => self.removed.extend(removed),
            Err(left) => self.left.push(left),
        }
    }
}

/// Removes everything that an instance left: links, filters, settings, pins.
pub fn remove(found: &Found) -> Removed {
    let mut done = Removed::default();
    let handle = tc_handle(&found.instance);
    for (ifindex, record) in found.pins.records() {
        if let Some(before) = record.before {
            let restored = |()| vec![format!("the merging of bursts on {}", record.name)];
            done.add(restore(ifindex, before).map(restored));
        }
        if record.rung == Rung::Tc {
            done.add(remove_filter(ifindex, handle, record.clsact));
        }
    }
    let links = found.pins.links();
    match found.pins.remove() {
        Ok(()) => {
            let named = |ifindex: &u32| {
                name_of(*ifindex).unwrap_or_else(|| format!("interface {ifindex}, which is gone"))
            };
            done.removed.extend(links.iter().map(|ifindex| format!("TCX link on {}", named(ifindex))));
            done.removed.push(format!("maps and programs in {}", found.pins.path().display()));
        }
        Err(error) => done.left.push(error.to_string()),
    }
    done
}

/// Removes the pins of instances whose network namespace is gone.
pub fn sweep(bpffs: &Path) -> Removed {
    let mut done = Removed::default();
    for orphan in pins::orphans(bpffs) {
        match orphan.pins.remove() {
            Ok(()) => done
                .removed
                .push(format!("pins of a namespace that is gone: {}", orphan.pins.path().display())),
            Err(error) => done.left.push(error.to_string()),
        }
    }
    done
}
