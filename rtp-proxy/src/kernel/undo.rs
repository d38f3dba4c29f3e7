//! Taking back what was changed on interfaces and in bpffs, by a process that need not be the one that did it.

use std::path::Path;

use aya::programs::TcAttachType;
use aya::programs::links::Link as _;
use aya::programs::tc::{SchedClassifierLink, TcHandle};
use nix::net::if_::if_indextoname;

use super::device::Receive;
use super::hop::Rung;
use super::ladder::{TC_PRIORITY, restore, tc_handle};
use super::netlink::Requests;
use super::pins::{self, Found, Pins, Record};

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
    /// Takes a result in. Returns whether nothing is left of it.
    fn add(&mut self, result: Result<Vec<String>, String>) -> bool {
        let done = result.is_ok();
        match result {
            Ok(removed) => self.removed.extend(removed),
            Err(left) => self.left.push(left),
        }
        done
    }
}

/// What a person runs to have the rest removed.
pub fn command(bpffs: &Path) -> String {
    let command = "sudo rtp-proxy uninstall";
    if bpffs == Path::new(pins::BPFFS) {
        command.to_owned()
    } else {
        format!("{command} --bpffs {}", bpffs.display())
    }
}

/// Where what a record names is changed back.
pub(super) trait Interfaces {
    /// Gives an interface back how it received.
    fn restore(&mut self, ifindex: u32, before: Receive) -> Result<(), String>;
    /// As [`remove_filter`].
    fn remove_filter(&mut self, ifindex: u32, clsact: bool) -> Result<Vec<String>, String>;
}

/// Those of the calling thread's network namespace, with the handle of our filter there.
pub(super) struct Here(pub(super) TcHandle);

impl Interfaces for Here {
    fn restore(&mut self, ifindex: u32, before: Receive) -> Result<(), String> {
        restore(ifindex, before)
    }

    fn remove_filter(&mut self, ifindex: u32, clsact: bool) -> Result<Vec<String>, String> {
        remove_filter(ifindex, self.0, clsact)
    }
}

/// Takes back what was changed on an interface beside its link. What is left stays recorded, the rest not: until it
/// can be taken back, it is found again.
pub(super) fn give_back(
    pins: &Pins,
    ifindex: u32,
    record: &Record,
    interfaces: &mut impl Interfaces,
) -> Removed {
    let mut done = Removed::default();
    let mut rest = Record { rung: Rung::User, clsact: false, before: None, name: record.name.clone() };
    if let Some(before) = record.before {
        let restored = |()| vec![format!("the merging of bursts on {}", record.name)];
        if !done.add(interfaces.restore(ifindex, before).map(restored)) {
            rest.before = Some(before);
        }
    }
    if record.rung == Rung::Tc && !done.add(interfaces.remove_filter(ifindex, record.clsact)) {
        (rest.rung, rest.clsact) = (Rung::Tc, record.clsact);
    }
    if done.left.is_empty() {
        pins.remove_record(ifindex);
    } else if let Err(error) = pins.put_record(ifindex, &rest) {
        done.left.push(error.to_string());
    }
    done
}

/// Removes everything that an instance left: links, filters, settings, pins.
pub fn remove(found: &Found) -> Removed {
    clear(&found.pins, &mut Here(tc_handle(&found.instance)))
}

/// The same, wherever the interfaces are.
pub(super) fn clear(pins: &Pins, interfaces: &mut impl Interfaces) -> Removed {
    let mut done = Removed::default();
    let mut keep = Vec::new();
    for (ifindex, record) in pins.records() {
        let back = give_back(pins, ifindex, &record, interfaces);
        if !back.left.is_empty() {
            keep.push(ifindex);
        }
        done.removed.extend(back.removed);
        done.left.extend(back.left);
    }
    let links = pins.links();
    let maps = pins.has_maps();
    match pins.remove(&keep) {
        Ok(()) => {
            let named = |ifindex: &u32| {
                name_of(*ifindex).unwrap_or_else(|| format!("interface {ifindex}, which is gone"))
            };
            done.removed.extend(links.iter().map(|ifindex| format!("TCX link on {}", named(ifindex))));
            if maps {
                done.removed.push(format!("maps and programs in {}", pins.path().display()));
            }
        }
        Err(error) => done.left.push(error.to_string()),
    }
    done
}

/// Removes the pins of instances whose network namespace is gone.
pub fn sweep(bpffs: &Path) -> Removed {
    let mut done = Removed::default();
    for orphan in pins::orphans(bpffs) {
        match orphan.pins.remove(&[]) {
            Ok(()) => done
                .removed
                .push(format!("pins of a namespace that is gone: {}", orphan.pins.path().display())),
            Err(error) => done.left.push(error.to_string()),
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tables;

    /// Interfaces that refuse what is named.
    #[derive(Default)]
    struct Model {
        receive: bool,
        filter: bool,
        restored: Vec<u32>,
    }

    impl Interfaces for Model {
        fn restore(&mut self, ifindex: u32, _: Receive) -> Result<(), String> {
            if self.receive {
                return Err("/sys is mounted read-only".to_owned());
            }
            self.restored.push(ifindex);
            Ok(())
        }

        fn remove_filter(&mut self, ifindex: u32, _: bool) -> Result<Vec<String>, String> {
            if self.filter { Err("EPERM".to_owned()) } else { Ok(vec![format!("filter of {ifindex}")]) }
        }
    }

    fn pins(name: &str) -> Pins {
        let folder = std::env::temp_dir().join(format!("msm-undo-{name}-{}", std::process::id()));
        let pins = Pins::at(folder.join("8060").join("abi"));
        std::fs::create_dir_all(pins.path()).unwrap();
        for name in tables::name::ALL {
            std::fs::write(pins.object(name), "").unwrap();
        }
        pins
    }

    fn record(rung: Rung, before: Option<Receive>) -> Record {
        Record { name: "veth1".to_owned(), rung, clsact: rung == Rung::Tc, before }
    }

    #[test]
    fn what_cannot_be_taken_back_is_found_and_told_until_it_can() {
        let pins = pins("found");
        pins.put_record(3, &record(Rung::Tcx, Some(Receive::MERGING))).unwrap();
        pins.put_record(4, &record(Rung::Tcx, None)).unwrap();
        let mut stuck = Model { receive: true, ..Model::default() };
        let first = clear(&pins, &mut stuck);
        assert_eq!(first.left, ["/sys is mounted read-only"]);
        assert_eq!(first.removed, [format!("maps and programs in {}", pins.path().display())]);
        let again = clear(&pins, &mut stuck);
        assert_eq!((again.left, again.removed), (first.left, Vec::new()), "nothing else is left");
        assert_eq!(pins.records().into_keys().collect::<Vec<_>>(), [3]);
        let mut free = Model::default();
        let last = clear(&pins, &mut free);
        assert!(last.left.is_empty() && free.restored == [3], "{last:?}");
        assert!(!pins.path().exists());
        std::fs::remove_dir_all(pins.path().ancestors().nth(2).unwrap()).unwrap();
    }

    #[test]
    fn only_the_part_that_is_left_is_tried_again() {
        let pins = pins("part");
        pins.put_record(3, &record(Rung::Tc, Some(Receive::MERGING))).unwrap();
        let left = clear(&pins, &mut Model { filter: true, ..Model::default() }).left;
        assert_eq!(left, ["EPERM"]);
        assert_eq!(pins.records()[&3], record(Rung::Tc, None), "somebody may set it now");
        pins.put_record(3, &record(Rung::Tc, Some(Receive::MERGING))).unwrap();
        clear(&pins, &mut Model { receive: true, ..Model::default() });
        let rest = Record { clsact: false, ..record(Rung::User, Some(Receive::MERGING)) };
        assert_eq!(pins.records()[&3], rest);
        std::fs::remove_dir_all(pins.path().ancestors().nth(2).unwrap()).unwrap();
    }

    #[test]
    fn the_command_names_the_directory_where_that_is_another_one() {
        assert_eq!(command(Path::new("/sys/fs/bpf")), "sudo rtp-proxy uninstall");
        assert_eq!(command(Path::new("/run/bpf")), "sudo rtp-proxy uninstall --bpffs /run/bpf");
    }
}
