//! The right to the instance, what others left, and the programs on old maps or new ones.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tracing::warn;

use super::hop::{Rung, UserReason};
use super::ladder::{Ladder, Pinning};
use super::load::{Kernel, LoadError};
use super::off;
use super::pins::{self, Found, Lock, Pins};
use super::service::Settings;
use super::tables::name;
use super::undo;

/// Starts the name of an instance that no other process finds again.
pub(super) const PROCESS: &str = "pid-";
static NAMELESS: AtomicU32 = AtomicU32::new(0);
/// How soon the lock of the instance is asked for again: until then nothing is attached for tables of another layout.
const AGAIN: Duration = Duration::from_millis(50);
/// Why what an earlier process left is removed.
const OTHER: &str = "it is another version's";

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
                let why = if other { OTHER } else { "its process is gone" };
                replaced(&undo::remove(&found), why);
            }
        }
        off::warn_of_others(settings, &instance);
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
        load(None).map_err(|error: LoadError| {
            let error = words(&error);
            UserReason::Refused(format!("{error}; rtp-proxy doctor says what the fast path needs"))
        })
    }

    /// Whether there is something to adopt by now that was not there when the programs were loaded.
    pub(super) fn is_outdated(&self) -> bool {
        !self.adopting && self.lock.is_none() && self.pins.has_all(&name::ALL) == Some(true)
    }

    pub(super) fn pinning(&self, settings: &Settings) -> Pinning {
        if self.adopting {
            Pinning::Done(self.pins.clone())
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

/// The right to the instance, which the process that was taken over from has until it ends.
#[derive(Debug)]
pub(super) struct Tenure {
    instance: String,
    bpffs: PathBuf,
    /// The pins that this process goes on with.
    adopted: Option<Pins>,
    lock: Option<Lock>,
    /// When to ask for it again.
    at: Instant,
}

impl Tenure {
    pub(super) fn new(held: Held, settings: &Settings, now: Instant) -> Self {
        let Held { instance, lock, pins, adopting } = held;
        let adopted = adopting.then_some(pins);
        Self { instance, bpffs: settings.bpffs.clone(), adopted, lock, at: now + AGAIN }
    }

    /// Whether everything of the instance is ours.
    pub(super) fn is_held(&self) -> bool {
        self.lock.is_some()
    }

    /// Whether nothing may be attached yet: what hangs on the interfaces is not ours to take over, and its process
    /// may still have to go on.
    pub(super) fn waits(&self) -> bool {
        self.lock.is_none() && self.adopted.is_none()
    }

    /// When [`Tenure::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.lock.is_none().then_some(self.at)
    }

    /// Asks for the right. Returns whether it has just come: then `ladder` has succeeded to whatever a process with
    /// other tables left, which is gone.
    pub(super) fn handle_timeout(&mut self, now: Instant, ladder: &mut Ladder) -> bool {
        if self.lock.is_some() || now < self.at {
            return false;
        }
        self.at = now + AGAIN;
        self.lock = Lock::take(&self.instance).ok();
        if self.lock.is_none() {
            return false;
        }
        let (ours, others): (Vec<_>, Vec<_>) =
            self.not_adopted().into_iter().partition(|found| found.abi == pins::abi());
        for found in ours {
            replaced(&undo::remove(&found), "its maps are not what this version expects");
        }
        for found in others {
            ladder.succeed(&found.pins);
            replaced(&undo::remove(&found), OTHER);
        }
        true
    }

    /// The process ends before the right was there: what a process with other tables left is removed all the same, if
    /// that one has ended by now.
    pub(super) fn handle_end(&mut self) {
        if self.lock.is_none() {
            self.lock = Lock::take(&self.instance).ok();
            for found in self.lock.iter().flat_map(|_| self.not_adopted()) {
                replaced(&undo::remove(&found), OTHER);
            }
        }
    }

    fn not_adopted(&self) -> Vec<Found> {
        let is_left =
            |found: &Found| found.instance == self.instance && Some(&found.pins) != self.adopted.as_ref();
        pins::find(&self.bpffs).into_iter().filter(is_left).collect()
    }
}

pub(super) fn replaced(done: &undo::Removed, why: &str) {
    let (removed, left) = (done.removed.join(", "), done.left.join(", "));
    warn!(event = "kernel.replaced", removed, left, "not adopted: {why}");
}

/// Comes before the verifier's log in an error.
const LOG: &str = "Verifier output:";
/// Most of an error that is shown.
const LONGEST: usize = 500;

/// An error with its causes, on one line. Of a verifier's log the end: that is where it says what it refuses.
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
    let (head, log) = text.split_once(LOG).unwrap_or((&text, ""));
    let head: String = head.lines().next().unwrap_or_default().trim().chars().take(LONGEST / 2).collect();
    // Its very last line counts instructions.
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("processed "));
    let mut end = String::new();
    for line in lines.rev() {
        let longer = if end.is_empty() { line.to_owned() } else { format!("{line}; {end}") };
        if longer.chars().count() > LONGEST / 2 {
            if end.is_empty() {
                end = line.chars().take(LONGEST / 2).collect();
            }
            break;
        }
        end = longer;
    }
    if end.is_empty() { head } else { format!("{head} {LOG} … {end}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("loading tcx_ingress: EACCES. Verifier output: {0}")]
    struct Refused(String);

    #[test]
    fn of_a_verifiers_log_the_end_is_told_where_the_verdict_is() {
        let steps: Vec<String> =
            (0..200).map(|number| format!("{number}: (bf) r1 = r6 ; R1_w=ctx() R6=ctx()\n")).collect();
        let mut log = format!("func#0 @0\n{}", steps.concat());
        log += "R2 invalid mem access 'scalar'\nprocessed 900 insns (limit 1000000) peak_states 3\n";
        let said = words(&Refused(log));
        assert!(said.starts_with("loading tcx_ingress: EACCES. Verifier output: … "), "{said}");
        assert!(said.ends_with("R2 invalid mem access 'scalar'"), "{said}");
        assert!(
            said.len() < LONGEST + 100 && said.contains("199: (bf)") && !said.contains("func#0"),
            "{said}"
        );
    }

    #[test]
    fn the_right_is_asked_for_at_its_time_whatever_else_happens() {
        let start = Instant::now();
        let at = start + AGAIN;
        let tenure =
            Tenure { instance: "tenure".to_owned(), bpffs: PathBuf::new(), adopted: None, lock: None, at };
        assert_eq!(
            [tenure.poll_timeout(), tenure.poll_timeout()],
            [Some(at); 2],
            "being asked puts nothing off"
        );
        let lock = Lock::take(&format!("tenure-{}", std::process::id())).ok();
        assert_eq!(Tenure { lock, ..tenure }.poll_timeout(), None);
    }

    #[test]
    fn an_error_without_a_log_is_told_on_one_line() {
        let error = std::io::Error::other("first\nsecond");
        assert_eq!(words(&error), "first");
    }
}
