//! `rtp-proxy uninstall`: nothing of ours is left behind.

use std::fmt::Write as _;
use std::path::Path;

use super::Outcome;
use crate::kernel::{pins, undo};

/// Removes what proxies left in this network namespace, and what is left of namespaces that are gone. A
/// second time there is nothing to do.
pub fn run(bpffs: &Path) -> Outcome {
    let mut text = String::new();
    let mut ok = true;
    let mut nothing = true;
    for found in pins::find(bpffs) {
        nothing = false;
        if pins::is_running(&found.instance) {
            ok = false;
            let _ = writeln!(
                text,
                "× instance {} belongs to a proxy that is running: end it, then run this again",
                found.instance
            );
            continue;
        }
        ok &= write(&mut text, &undo::remove(&found));
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
    Outcome { text, ok }
}

fn write(text: &mut String, done: &undo::Removed) -> bool {
    for removed in &done.removed {
        let _ = writeln!(text, "√ removed {removed}");
    }
    for left in &done.left {
        let _ = writeln!(text, "× left {left}");
    }
    done.left.is_empty()
}
