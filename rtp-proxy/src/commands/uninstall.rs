//! `rtp-proxy uninstall`: nothing of ours is left behind.

use std::fmt::Write as _;
use std::path::Path;

use super::Outcome;
use crate::kernel::pins::{self, Lock, PinsError};
use crate::kernel::undo;

/// Starts a line about what is still there.
const LEFT: &str = "× left";

/// Removes what proxies left in this network namespace, and what is left of namespaces that are gone. A
/// second time there is nothing to do.
pub fn run(bpffs: &Path) -> Outcome {
    let mut text = String::new();
    let mut ok = true;
    let mut nothing = true;
    for found in pins::find(bpffs) {
        nothing = false;
        match Lock::take(&found.instance) {
            Ok(_lock) => ok &= write(&mut text, &undo::remove(&found)),
            Err(PinsError::Held { instance }) => {
                ok = false;
                let _ = writeln!(
                    text,
                    "× instance {instance} belongs to a proxy that is running: end it, then run this again"
                );
            }
            Err(error) => {
                ok = false;
                let _ = writeln!(text, "{LEFT} instance {}: {error}", found.instance);
            }
        }
    }
    let swept = undo::sweep(bpffs);
    nothing &= swept == undo::Removed::default();
    ok &= write(&mut text, &swept);
    if let Err(why) = pins::may_look(bpffs) {
        ok = false;
        let _ = writeln!(text, "× what proxies left cannot be seen: {why}");
    } else if nothing {
        text.push_str("nothing to remove\n");
    }
    if text.contains(LEFT) {
        let again = undo::command(bpffs);
        let _ = writeln!(text, "what is left stays recorded: once its cause is gone, run again: {again}");
    }
    Outcome { text, ok }
}

fn write(text: &mut String, done: &undo::Removed) -> bool {
    for removed in &done.removed {
        let _ = writeln!(text, "√ removed {removed}");
    }
    for left in &done.left {
        let _ = writeln!(text, "{LEFT} {left}");
    }
    done.left.is_empty()
}
