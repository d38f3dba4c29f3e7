//! Trying what the kernel allows, without touching an interface that anybody uses.

use std::thread;

use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use nix::sched::{CloneFlags, unshare};

use super::ladder::{TC_PRIORITY, words};
use super::load::{Capacity, Kernel};
use super::net::Link;
use super::netlink::Requests;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It worked.
    Works,
    /// It did not.
    Refused(String),
    /// The kernel knows it, but there was no place to try it.
    Known,
    /// There was no place to try it.
    NotTried,
}

/// An interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Why nothing can be attached to it.
    pub why_not: Option<String>,
    /// TCX programs of others that look at its packets first.
    pub others: usize,
}

/// What was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Instructions that the verifier walked.
    pub instructions: u32,
    /// The TCX hook.
    pub tcx: Answer,
    /// The tc hook.
    pub tc: Answer,
    /// Every interface but loopback.
    pub interfaces: Vec<Interface>,
}

/// The smallest maps there can be.
const SMALL: Capacity = Capacity { flows: 1, legs: 1, ports: 1 };

/// Loads the programs, attaches them to the loopback of a network namespace that is made for it, and forgets
/// everything again.
///
/// # Errors
/// Why they cannot be loaded, in words.
pub fn run() -> Result<Report, String> {
    let mut kernel = Kernel::load_with(super::OBJECT, SMALL, None).map_err(|error| error.to_string())?;
    let program = kernel.tcx().map_err(|error| error.to_string())?;
    let instructions = program.info().ok().and_then(|info| info.verified_instruction_count()).unwrap_or(0);
    let (tcx, tc) = thread::scope(|scope| {
        // Namespaces belong to threads: this one is made for it and ends with it.
        let tried = scope.spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return (known(), Answer::NotTried);
            }
            hooks(&mut kernel)
        });
        tried.join().unwrap_or((Answer::NotTried, Answer::NotTried))
    });
    Ok(Report { instructions, tcx, tc, interfaces: interfaces() })
}

const LOOPBACK: &str = "lo";

/// A kernel without the hook refuses the question what hangs there.
fn known() -> Answer {
    match SchedClassifier::query_tcx(LOOPBACK, TcAttachType::Ingress) {
        Ok(_) => Answer::Known,
        Err(error) => Answer::Refused(words(&error)),
    }
}

fn hooks(kernel: &mut Kernel) -> (Answer, Answer) {
    let Ok(program) = kernel.tcx_mut() else { return (Answer::NotTried, Answer::NotTried) };
    let mut attempt = |options| match program
        .attach_with_options(LOOPBACK, TcAttachType::Ingress, options)
        .and_then(|id| program.detach(id))
    {
        Ok(()) => Answer::Works,
        Err(error) => Answer::Refused(words(&error)),
    };
    let tcx = attempt(TcAttachOptions::TcxOrder(LinkOrder::last()));
    let tc = match qdisc_add_clsact(LOOPBACK) {
        Ok(()) => {
            let handle = TcHandle::new(0, 1);
            attempt(TcAttachOptions::Netlink(NlOptions { priority: TC_PRIORITY, handle, classid: None }))
        }
        Err(error) => Answer::Refused(error.to_string()),
    };
    (tcx, tc)
}

fn interfaces() -> Vec<Interface> {
    let links = Requests::open().and_then(|mut requests| requests.links()).unwrap_or_default();
    let mut found: Vec<Interface> = links
        .iter()
        .map(Link::of)
        .filter(|link| link.name != LOOPBACK)
        .map(|link| {
            let why_not = if !link.ethernet {
                Some("no Ethernet headers")
            } else if link.controller.is_some() {
                Some("a port of another interface, which takes its packets")
            } else if link.up {
                None
            } else {
                Some("down")
            };
            let others =
                SchedClassifier::query_tcx(&link.name, TcAttachType::Ingress).map_or(0, |(_, programs)| {
                    programs.iter().filter(|p| p.name_as_str() != Some(super::load::TCX_INGRESS)).count()
                });
            Interface { name: link.name, why_not: why_not.map(str::to_owned), others }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
