//! The ladder of one network namespace: per interface TCX, else tc, else the workers, found by trying.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, mem};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError, TcAttachType};
use nix::net::if_::if_nametoindex;
use tracing::info;

use super::device::Receive;
use super::hop::{Rung, UserReason};
use super::load::{Kernel, TCX_INGRESS};
use super::netlink::Requests;
use super::object::{detach_link, link_interface};
use super::pins::{Pins, Record};
use super::tables::name;
use super::undo::{self, Here, name_of};

mod merging;

pub(super) use merging::restore;

/// Priority of our filter on the tc rung: the programs of others usually have lower numbers and so the first
/// look.
pub const TC_PRIORITY: u16 = 0x6d73;

/// What the kernel means by `ERANGE` when it is to attach one more program.
const FULL: &str = "the kernel takes no more programs here than are attached already";

/// Why a filter that was found is not replaced by something better.
const AS_BEFORE: &str = "tcx: not tried, the filter of the proxy before goes on";

/// The filter's handle: the same for every process of one instance.
pub fn tc_handle(instance: &str) -> TcHandle {
    let number = instance.parse::<u16>().unwrap_or_else(|_| {
        instance.bytes().fold(0_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(byte)))
    });
    TcHandle::new(0, number.max(1))
}

/// The program on one interface.
#[derive(Debug)]
pub struct Attached {
    /// Name of the interface as it was heard of last.
    pub name: String,
    /// How.
    pub rung: Rung,
    /// Why by no better rung, where there is one.
    pub why: Option<String>,
    /// The TCX link; on the tc rung there is none.
    link: Option<FdLink>,
    /// Whether the clsact qdisc is ours.
    clsact: bool,
    /// How it received before its bursts were merged, if they are.
    before: Option<Receive>,
}

/// Programs on interfaces.
#[derive(Debug)]
pub struct Ladder {
    kernel: Kernel,
    pins: Pinning,
    max: Rung,
    handle: TcHandle,
    attached: BTreeMap<u32, Attached>,
}

/// Whether what is attached outlives the process. Nothing is pinned before something is attached.
#[derive(Debug)]
pub enum Pinning {
    /// It does not, for this reason.
    No(String),
    /// It will, in that bpffs, from the first attachment on.
    Planned(Pins, PathBuf),
    /// It does.
    Done(Pins),
}

/// Links that were taken over from an earlier process.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Names of the interfaces that go on.
    pub interfaces: Vec<String>,
    /// Indices of interfaces that are gone, or on which the program could not be replaced, with the reason.
    pub dropped: Vec<(u32, String)>,
}

impl Ladder {
    /// Nothing attached yet.
    ///
    /// `max`: the best rung that may be tried. `handle`: of the filter on the tc rung.
    pub fn new(kernel: Kernel, pins: Pinning, max: Rung, handle: TcHandle) -> Self {
        Self { kernel, pins, max, handle, attached: BTreeMap::new() }
    }

    /// The loaded programs and maps.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Where things are pinned, once they are.
    pub fn pins(&self) -> Option<&Pins> {
        match &self.pins {
            Pinning::Done(pins) => Some(pins),
            Pinning::No(_) | Pinning::Planned(..) => None,
        }
    }

    /// Pins what is loaded, if that is planned.
    fn pin(&mut self) {
        let Pinning::Planned(pins, bpffs) = &self.pins else { return };
        let nobodys = pins.has_all(&name::ALL) == Some(false);
        let made = pins.make(bpffs).map_err(|error| error.to_string());
        let done = made.and_then(|()| self.kernel.pin_maps(pins));
        match done {
            Ok(()) => {
                self.pins = Pinning::Done(pins.clone());
                self.pin_program();
            }
            Err(why) => {
                if nobodys {
                    // What an earlier process could not take back stays recorded.
                    let left: Vec<u32> = pins.records().into_keys().collect();
                    pins.remove(&left).ok();
                }
                info!(
                    event = "kernel.unpinned",
                    reason = why,
                    "forwarding will end with this process; rtp-proxy doctor says what pins need"
                );
                self.pins = Pinning::No(why);
            }
        }
    }

    /// What is attached, by the interface's index.
    pub fn attached(&self) -> &BTreeMap<u32, Attached> {
        &self.attached
    }

    /// Replaces the program on every pinned link in place, and on the recorded filters: forwarding never
    /// stops, and the ids of links stay.
    pub fn adopt(&mut self) -> Adopted {
        let Some(pins) = self.pins().cloned() else { return Adopted::default() };
        let mut adopted = Adopted::default();
        let records = pins.records();
        for ifindex in pins.links() {
            let record = records.get(&ifindex);
            match self.adopt_link(&pins, ifindex) {
                Ok(link) => {
                    let name = record.map_or_else(|| ifindex.to_string(), |record| record.name.clone());
                    adopted.interfaces.push(name.clone());
                    let clsact = record.is_some_and(|record| record.clsact);
                    let before = record.and_then(|record| record.before);
                    let (rung, link) = (Rung::Tcx, Some(link));
                    let attached = Attached { name, rung, why: None, link, clsact, before };
                    self.attached.insert(ifindex, attached);
                }
                Err(mut why) => {
                    fs::remove_file(pins.link(ifindex)).ok();
                    // Nobody will look after its settings any more.
                    if let Some(record) = record {
                        let back = undo::give_back(&pins, ifindex, record, &mut Here(self.handle));
                        if !back.left.is_empty() {
                            why = format!("{why}; left behind: {}", back.left.join("; "));
                        }
                    }
                    adopted.dropped.push((ifindex, why));
                }
            }
        }
        for (ifindex, record) in records.into_iter().filter(|(_, record)| record.rung == Rung::Tc) {
            let Some(name) = name_of(ifindex) else {
                pins.remove_record(ifindex);
                adopted.dropped.push((ifindex, format!("{} is gone", record.name)));
                continue;
            };
            match self.attach_filter(&name) {
                Ok(()) => {
                    adopted.interfaces.push(name.clone());
                    let Record { name: known, rung, clsact, before } = record;
                    let why = Some(self.capped().unwrap_or_else(|| AS_BEFORE.to_owned()));
                    let attached = Attached { name: known, rung, why, link: None, clsact, before };
                    self.attached.insert(ifindex, attached);
                    self.rename(ifindex, &name);
                }
                Err(error) => adopted.dropped.push((ifindex, words(&error))),
            }
        }
        adopted
    }

    fn adopt_link(&mut self, pins: &Pins, ifindex: u32) -> Result<FdLink, String> {
        let path = pins.link(ifindex);
        match link_interface(&path).map_err(|error| error.to_string())? {
            0 => return Err("the interface is gone".to_owned()),
            found if found != ifindex => return Err(format!("the link is on interface {found}")),
            _ => {}
        }
        let link = FdLink::from(PinnedLink::from_pin(path).map_err(|error| error.to_string())?);
        if self.max > Rung::Tcx {
            return Err(format!("--max-rung {}", self.max.as_str()));
        }
        let link = SchedClassifierLink::try_from(link).map_err(|error| error.to_string())?;
        let program = self.kernel.tcx_mut().map_err(|error| error.to_string())?;
        let id = program.attach_to_link(link).map_err(|error| words(&error))?;
        let link = program.take_link(id).map_err(|error| words(&error))?;
        FdLink::try_from(link).map_err(|error| error.to_string())
    }

    /// Pins the program under its name in place of an earlier process's, for those who look.
    pub fn pin_program(&mut self) {
        let Pinning::Done(pins) = &self.pins else { return };
        let path = pins.object(TCX_INGRESS);
        fs::remove_file(&path).ok();
        if let Ok(program) = self.kernel.tcx_mut() {
            program.pin(&path).ok();
        }
    }

    /// Attaches the program to an interface's ingress by the best rung from `best` down that works, behind the
    /// programs of others. What is attached already stays as it is.
    ///
    /// # Errors
    /// [`UserReason::Interface`] with the answer of each rung, [`UserReason::Capped`].
    pub fn attach(&mut self, ifindex: u32, name: &str, best: Rung) -> Result<Rung, UserReason> {
        if let Some(attached) = self.attached.get(&ifindex) {
            return Ok(attached.rung);
        }
        if self.max == Rung::User {
            return Err(UserReason::Capped);
        }
        self.pin();
        let left = self.left(ifindex);
        let before = left.as_ref().and_then(|left| left.before);
        let mut why = Vec::new();
        if best > Rung::Tcx {
            // Whoever asks knows why.
        } else if let Some(capped) = self.capped() {
            why.push(capped);
        } else if left.as_ref().is_some_and(|left| left.rung == Rung::Tc) {
            // Beside it every packet would meet two programs; on the tc rung it becomes ours again.
            why.push("tcx: our filter cannot be removed".to_owned());
        } else {
            match self.attach_tcx_link(ifindex, name, before) {
                Ok(link) => {
                    return Ok(self.keep(ifindex, name, None, Some(link), (false, before)));
                }
                Err(error) => why.push(format!("tcx: {error}")),
            }
        }
        match self.attach_tc(ifindex, name, left.as_ref()) {
            Ok(clsact) => {
                return Ok(self.keep(ifindex, name, Some(why.join("; ")), None, (clsact, before)));
            }
            Err(error) => why.push(format!("tc: {error}")),
        }
        Err(UserReason::Interface { interface: name.to_owned(), why: why.join("; ") })
    }

    /// Why TCX is not tried at all.
    fn capped(&self) -> Option<String> {
        (self.max > Rung::Tcx).then(|| format!("tcx: --max-rung {}", self.max.as_str()))
    }

    fn keep(
        &mut self,
        ifindex: u32,
        name: &str,
        why: Option<String>,
        link: Option<FdLink>,
        (clsact, before): (bool, Option<Receive>),
    ) -> Rung {
        let (name, rung) = (name.to_owned(), if link.is_some() { Rung::Tcx } else { Rung::Tc });
        self.attached.insert(ifindex, Attached { name, rung, why, link, clsact, before });
        rung
    }

    /// What an earlier attachment changed on an interface and still cannot be taken back.
    fn left(&self, ifindex: u32) -> Option<Record> {
        let pins = self.pins()?;
        let record = pins.records().remove(&ifindex)?;
        undo::give_back(pins, ifindex, &record, &mut Here(self.handle));
        pins.records().remove(&ifindex)
    }

    /// Says why an interface has no better rung than it has.
    pub fn explain(&mut self, ifindex: u32, why: String) {
        if let Some(attached) = self.attached.get_mut(&ifindex).filter(|attached| attached.rung > Rung::Tcx) {
            attached.why = Some(why);
        }
    }

    /// Takes over what a process with other tables attached and changed, which runs no more: the program of this one is
    /// put behind its link or into its filter, and what is to be given back one day is recorded here. What is taken over
    /// is recorded there no more; the rest is to be undone.
    pub fn succeed(&mut self, former: &Pins) {
        for (ifindex, record) in former.records() {
            // Of what is on neither rung there is only something to give back.
            let allowed = record.rung >= self.max && record.rung != Rung::User;
            let Some(name) = name_of(ifindex).filter(|_| allowed) else { continue };
            if self.attach(ifindex, &name, record.rung) != Ok(record.rung) {
                continue;
            }
            let capped = self.capped();
            let Some(attached) = self.attached.get_mut(&ifindex) else { continue };
            if record.rung == Rung::Tc {
                // The qdisc was there when we came, and is ours for all that.
                attached.clsact |= record.clsact;
                attached.why = Some(capped.unwrap_or_else(|| AS_BEFORE.to_owned()));
            }
            let before = record.before.or(attached.before);
            if self.record(ifindex, before).is_ok() {
                former.remove_record(ifindex);
            }
        }
    }

    /// Attaches by name, then looks where the link is: a name may have moved to another interface meanwhile.
    fn attach_tcx_link(
        &mut self,
        ifindex: u32,
        name: &str,
        before: Option<Receive>,
    ) -> Result<FdLink, String> {
        let program = self.kernel.tcx_mut().map_err(|error| error.to_string())?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::last());
        let attached = program.attach_with_options(name, TcAttachType::Ingress, order);
        let id = attached.map_err(|error| if is_full(&error) { FULL.to_owned() } else { words(&error) })?;
        let link = program.take_link(id).map_err(|error| words(&error))?;
        let link = FdLink::try_from(link).map_err(|error| error.to_string())?;
        let moved = || format!("{name} is another interface now");
        let Some(pins) = self.pins() else {
            return if if_nametoindex(name) == Ok(ifindex) { Ok(link) } else { Err(moved()) };
        };
        let path = pins.link(ifindex);
        fs::remove_file(&path).ok();
        let record = Record { name: name.to_owned(), rung: Rung::Tcx, clsact: false, before };
        pins.put_record(ifindex, &record).map_err(|error| error.to_string())?;
        let link = FdLink::from(link.pin(&path).map_err(|error| error.to_string())?);
        if link_interface(&path).is_ok_and(|found| found != ifindex) {
            fs::remove_file(&path).ok();
            return Err(moved());
        }
        Ok(link)
    }

    /// Returns whether the qdisc is ours. The record comes first: what it names can always be removed.
    fn attach_tc(&mut self, ifindex: u32, name: &str, left: Option<&Record>) -> Result<bool, String> {
        let pins = match &self.pins {
            Pinning::Done(pins) => pins.clone(),
            Pinning::No(why) => return Err(format!("the filter cannot be recorded: {why}")),
            Pinning::Planned(..) => return Err("the filter cannot be recorded".to_owned()),
        };
        if if_nametoindex(name) != Ok(ifindex) {
            return Err(format!("{name} is another interface now"));
        }
        let there = Requests::open().and_then(|mut requests| requests.has_clsact(ifindex));
        let is_new = !there.map_err(|error| error.to_string())?;
        let clsact = is_new || left.is_some_and(|left| left.clsact);
        let before = left.and_then(|left| left.before);
        let record = Record { name: name.to_owned(), rung: Rung::Tc, clsact, before };
        pins.put_record(ifindex, &record).map_err(|error| error.to_string())?;
        let qdisc = if is_new { qdisc_add_clsact(name).map_err(|error| error.to_string()) } else { Ok(()) };
        match qdisc.and_then(|()| self.attach_filter(name).map_err(|error| words(&error))) {
            Ok(()) => Ok(clsact),
            Err(why) => {
                // What cannot be taken back stays recorded, for `rtp-proxy uninstall`.
                let back = undo::give_back(&pins, ifindex, &record, &mut Here(self.handle));
                if back.left.is_empty() {
                    return Err(why);
                }
                Err(format!("{why}; left behind: {}", back.left.join("; ")))
            }
        }
    }

    /// Puts the filter there, or the new program into the filter that is there.
    fn attach_filter(&mut self, name: &str) -> Result<(), ProgramError> {
        let handle = self.handle;
        let program = self.kernel.tcx_mut().map_err(|_| ProgramError::NotLoaded)?;
        let there = SchedClassifierLink::attached(name, TcAttachType::Ingress, TC_PRIORITY, handle, None)
            .map_err(TcError::IoError)?;
        let id = if let Ok(id) = program.attach_to_link(there) {
            id
        } else {
            let options = NlOptions { priority: TC_PRIORITY, handle, classid: None };
            program.attach_with_options(name, TcAttachType::Ingress, TcAttachOptions::Netlink(options))?
        };
        // Dropping it would remove the filter; the record is what remembers it.
        mem::forget(program.take_link(id)?);
        Ok(())
    }

    /// Takes the program off an interface, and gives back what was changed there. What cannot be given back stays
    /// recorded.
    ///
    /// # Errors
    /// What is left, in words.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), String> {
        let Some(attached) = self.attached.remove(&ifindex) else { return Ok(()) };
        // Without pins there is nothing but the link.
        let Some(pins) = self.pins() else { return Ok(()) };
        let Attached { name, rung, link, clsact, before, .. } = attached;
        let record = Record { name, rung, clsact, before };
        let left = undo::give_back(pins, ifindex, &record, &mut Here(self.handle)).left;
        drop(link);
        // At once: the next link must not come behind this one.
        detach_link(&pins.link(ifindex)).ok();
        fs::remove_file(pins.link(ifindex)).ok();
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    /// An interface has another name now.
    pub fn rename(&mut self, ifindex: u32, name: &str) {
        let pins = self.pins().cloned();
        let Some(attached) = self.attached.get_mut(&ifindex).filter(|attached| attached.name != name) else {
            return;
        };
        name.clone_into(&mut attached.name);
        let Attached { rung, clsact, before, .. } = *attached;
        if let Some(pins) = pins {
            // People read the name there; what is changed is found by the index.
            pins.put_record(ifindex, &Record { name: name.to_owned(), rung, clsact, before }).ok();
        }
    }

    /// Forgets an interface that is gone, with its pins.
    pub fn forget(&mut self, ifindex: u32) -> Option<String> {
        let gone = self.attached.remove(&ifindex)?;
        if let Some(pins) = self.pins() {
            fs::remove_file(pins.link(ifindex)).ok();
            pins.remove_record(ifindex);
        }
        Some(gone.name)
    }

    /// Detaches everything and removes the pins. What cannot be taken back stays recorded.
    ///
    /// Returns what is left.
    pub fn remove(self) -> Vec<String> {
        // Whatever was changed beside the links is recorded, that of interfaces which were given up too.
        self.pins().map(|pins| undo::clear(pins, &mut Here(self.handle)).left).unwrap_or_default()
    }

    /// Lets go of everything without detaching what is pinned: the next process adopts it.
    pub fn leave(self) {
        for attached in self.attached.into_values() {
            drop(attached.link);
        }
    }
}

/// Whether a hook has as many programs as it takes (`BPF_MPROG_MAX` of the kernel, 64).
fn is_full(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ERANGE))
}

/// The kernel's answer without the words that every program error starts with.
pub(super) fn words(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        ProgramError::TcError(error) => error.to_string(),
        other => other.to_string(),
    }
}
