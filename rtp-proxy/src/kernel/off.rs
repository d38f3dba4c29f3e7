//! What an earlier process of this instance left, where this one has no fast path.
//!
//! Nobody looks after it then: it would forward to viewers that have gone, and ports that it closed to strangers
//! would keep media from the workers.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::hold::{PROCESS, replaced};
use super::hop::UserReason;
use super::pins::{self, Lock, PinsError};
use super::privileges;
use super::service::Settings;
use super::undo;

/// How long a process that was taken over from gets to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon it is looked again whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// Removes it, or says how that is done. Beside a process that runs nothing is: [`clear_after`] follows.
pub(super) fn clear(settings: &Settings, why: &UserReason) {
    if settings.beside {
        return;
    }
    let command = undo::command(&settings.bpffs);
    if pins::may_look(&settings.bpffs).is_err() {
        let (hidden, user) = (settings.bpffs.join(pins::FOLDER), privileges::user());
        info!(
            event = "kernel.hidden",
            "{user} may not look into {}: if a proxy with the fast path ran here and was killed, run: {command}",
            hidden.display()
        );
    }
    for found in pins::find(&settings.bpffs) {
        let ours = settings.instance.as_ref() == Some(&found.instance);
        if !ours && !found.instance.starts_with(PROCESS) {
            continue;
        }
        let done = match Lock::take(&found.instance) {
            Ok(_lock) => undo::remove(&found),
            // Whoever has it looks after it.
            Err(PinsError::Held { .. }) => continue,
            Err(error) => undo::Removed { removed: Vec::new(), left: vec![error.to_string()] },
        };
        replaced(&done, &format!("the fast path is off ({why})"));
        for left in done.left {
            warn!(
                event = "kernel.left_behind",
                "{left}: what the proxy before this one left there may keep media from viewers; run: {command}"
            );
        }
    }
    warn_of_others(settings, settings.instance.as_deref().unwrap_or_default());
}

/// Says which other instances left something that goes on without them.
pub(super) fn warn_of_others(settings: &Settings, instance: &str) {
    for found in pins::find(&settings.bpffs) {
        let other = found.instance != instance && !found.instance.starts_with(PROCESS);
        if other && Lock::take(&found.instance).is_ok() {
            let (command, other) = (undo::command(&settings.bpffs), &found.instance);
            warn!(
                event = "kernel.left_behind",
                "a proxy with --rtp-ports {other}-… was killed here, and what it left forwards on: start it again, \
                 or run: {command}"
            );
        }
    }
}

/// The same as soon as the process that was taken over from has gone, by a thread of its own.
pub fn clear_after(settings: &Settings, why: &UserReason) {
    let (settings, why) = (Settings { beside: false, ..settings.clone() }, why.clone());
    let command = undo::command(&settings.bpffs);
    let wait = move || {
        let instance = settings.instance.clone().unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        while pins::is_running(&instance) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        clear(&settings, &why);
    };
    if let Err(error) = std::thread::Builder::new().name("kernel-clear".to_owned()).spawn(wait) {
        warn!(
            event = "kernel.left_behind",
            "no thread to clear up after the other proxy ({error}); run: {command}"
        );
    }
}
