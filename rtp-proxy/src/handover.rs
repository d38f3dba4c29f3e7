//! A planned upgrade: the running proxy hands everything over to the next one and ends without a word to
//! anybody.
//!
//! `door` lets the next one in, `give` is the half of the one that runs, `take` that of the next. What is handed
//! over is in `inventory`; who knows what writes it down itself. See `docs/adr/0006-planned-upgrade.md`.

use std::time::Instant;

use msm_handover::Anchor;

pub(crate) mod door;
pub(crate) mod give;
pub(crate) mod inventory;
pub mod take;

/// This moment on both clocks.
fn anchor() -> Anchor {
    let now = Instant::now();
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(std::time::Duration::ZERO, std::time::Duration::from);
    Anchor::new(now, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
