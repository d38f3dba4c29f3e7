//! Before anything is attached: the right to the instance, what others left, and the programs on old maps or
//! new ones.

use std::sync::atomic::{AtomicU32, Ordering};

use tracing::warn;

use super::hop::{Rung, UserReason};
use super::ladder::Pinning;
use super::load::{Kernel, LoadError};
use super::pins::{self, Found, Lock, Pins};
use super::service::Settings;
use super::tables::name;
use super::undo;

/// Starts the name of an instance that no other process finds again.
const PROCESS: &str = "pid-";
static NAMELESS: AtomicU32 = AtomicU32::new(0);

/// What a start has in hand before anything is loaded.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) instance: String,
    pub(super) lock: Option<Lock>,
    pub(super) pins: Pins,
    adopting: bool,
}

impl Held {
    pub(super) fn take(settings: &Settings) -> Result<Self, UserReason> {
        let refused = |error: &dyn std::fmt::Display| UserReason::Refused(error.to_string());
        let instance = settings.instance.clone().unwrap_or_else(|| {
            let number = NAMELESS.fetch_add(1, Ordering::Relaxed);
            format!("{PROCESS}{}-{number}", std::process::id())
        });
        let lock = match Lock::take(&instance) {
            Ok(lock) => Some(lock),
            Err(_) if settings.beside => None,
            Err(error) => return Err(refused(&error)),
        };
        if let Some(missing) = super::privileges::missing() {
            return Err(UserReason::Refused(missing));
        }
        let found = if lock.is_some() { pins::find(&settings.bpffs) } else { Vec::new() };
        for found in found {
            let stale = found.instance.starts_with(PROCESS) && Lock::take(&found.instance).is_ok();
            let other = found.instance == instance && found.abi != pins::abi();
            if other || (stale && found.instance != instance) {
                let why = if other { "it is another version's" } else { "its process is gone" };
                replaced(&undo::remove(&found), why);
            }
        }
        undo::sweep(&settings.bpffs);
        let pins = Pins::plan(&settings.bpffs, &instance, &pins::abi());
        Ok(Self { instance, lock, pins, adopting: false })
    }

    /// Loads on the maps that an earlier process pinned; where there are none, or they are not what the
    /// object expects, on new ones.
    pub(super) fn load(&mut self, object: &'static [u8], settings: &Settings) -> Result<Kernel, UserReason> {
        let load = |pins: Option<&Pins>| {
            let kernel = Kernel::load_with(Some(object), settings.capacity, pins)?;
            kernel.table()?;
            Ok(kernel)
        };
        let why = match self.pins.has_all(&name::ALL) {
            Some(false) => None,
            Some(true) => match load(Some(&self.pins)) {
                Ok(kernel) => {
                    self.adopting = true;
                    return Ok(kernel);
                }
                Err(error) => Some(words(&error)),
            },
            None => Some("some maps are missing".to_owned()),
        };
        if let Some(why) = why.filter(|_| self.lock.is_some()) {
            let found = Found { instance: self.instance.clone(), abi: pins::abi(), pins: self.pins.clone() };
            replaced(&undo::remove(&found), &why);
        }
        load(None).map_err(|error: LoadError| UserReason::Refused(words(&error)))
    }

    /// Whether there is something to adopt by now that was not there when the programs were loaded.
    pub(super) fn is_outdated(&self) -> bool {
        !self.adopting && self.lock.is_none() && self.pins.has_all(&name::ALL) == Some(true)
    }

    pub(super) fn pinning(&self, settings: &Settings) -> Pinning {
        if self.adopting {
            Pinning::Done(self.pins.clone())
        } else if self.lock.is_none() && self.pins.has_all(&name::ALL) != Some(false) {
            Pinning::No("the proxy before this one has its pins there".to_owned())
        } else if settings.instance.is_some() || settings.max_rung == Rung::Tc {
            match self.pins.may_make(&settings.bpffs) {
                Ok(()) => Pinning::Planned(self.pins.clone(), settings.bpffs.clone()),
                Err(why) => Pinning::No(format!("{why}; rtp-proxy doctor says what to do")),
            }
        } else {
            Pinning::No("media ports of the system's choice are no name to find it by again".to_owned())
        }
    }
}

fn replaced(done: &undo::Removed, why: &str) {
    let (removed, left) = (done.removed.join(", "), done.left.join(", "));
    warn!(event = "kernel.replaced", removed, left, "not adopted: {why}");
}

/// An error with its causes, on one line.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.lines().next().unwrap_or_default().chars().take(500).collect()
}
