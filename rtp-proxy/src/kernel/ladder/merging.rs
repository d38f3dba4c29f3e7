//! Merging bursts on interfaces that have the program, recorded before anything is changed.

use super::{Attached, Ladder};
use crate::kernel::device::{Device, Receive, perform, perform_all, steps};
use crate::kernel::pins::{Pins, Record};
use crate::kernel::undo::name_of;

/// Gives an interface back how it received. One that is gone has nothing to be given back.
///
/// # Errors
/// What is left, in words.
pub(crate) fn restore(ifindex: u32, before: Receive) -> Result<(), String> {
    let Some(name) = name_of(ifindex) else { return Ok(()) };
    let mut device = Device::open(ifindex, &name)?;
    let now = device.read(None)?;
    perform_all(&steps(now, before), &mut device)
}

impl Ladder {
    /// Has the bursts of an interface merged. What it was before is recorded first, so that it can always be given
    /// back. `mac`: to be sure that it is the interface that sysfs shows.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn merge(&mut self, ifindex: u32, mac: Option<[u8; 6]>) -> Result<(), String> {
        let attached = self.attached.get(&ifindex).ok_or("the program is not attached")?;
        let recorded = attached.before;
        let name = name_of(ifindex).ok_or("the interface is gone")?;
        let mut device = Device::open(ifindex, &name)?;
        let now = device.read(mac)?;
        let steps = steps(now, Receive::MERGING);
        if steps.is_empty() && recorded.is_none() {
            return Err("somebody else has them merged".to_owned());
        }
        let before = recorded.unwrap_or(now);
        self.record(ifindex, Some(before))?;
        let done = perform(&steps, &mut device);
        if done.is_err() && device.read(mac) == Ok(before) {
            self.record(ifindex, None).ok();
        }
        done
    }

    /// Gives an interface back how it received before [`Ladder::merge`].
    ///
    /// # Errors
    /// What is left, in words.
    pub(crate) fn let_go(&mut self, ifindex: u32) -> Result<(), String> {
        let Some(before) = self.attached.get(&ifindex).and_then(|attached| attached.before) else {
            return Ok(());
        };
        restore(ifindex, before)?;
        self.record(ifindex, None)
    }

    /// Interfaces whose bursts are merged.
    pub(crate) fn merged(&self) -> Vec<u32> {
        let merged = self.attached.iter().filter(|(_, attached)| attached.before.is_some());
        merged.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Reads the records again: another process may have written them until now.
    pub(crate) fn read_records(&mut self) {
        let records = self.pins().map(Pins::records).unwrap_or_default();
        for (ifindex, attached) in &mut self.attached {
            if let Some(record) = records.get(ifindex) {
                attached.before = record.before;
            }
        }
    }

    pub(super) fn record(&mut self, ifindex: u32, before: Option<Receive>) -> Result<(), String> {
        let pins = self.pins().cloned().ok_or("what is changed cannot be recorded without pins")?;
        let Some(attached) = self.attached.get_mut(&ifindex) else { return Ok(()) };
        let Attached { name, rung, clsact, .. } = &*attached;
        let record = Record { name: name.clone(), rung: *rung, clsact: *clsact, before };
        pins.put_record(ifindex, &record).map_err(|error| error.to_string())?;
        attached.before = before;
        Ok(())
    }
}
