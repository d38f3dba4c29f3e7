//! Every manifest inherits the shared lints, and pure crates keep unsafe code and clocks out.

use std::path::Path;

use anyhow::Result;

/// Crates without unsafe code, by folder.
const NO_UNSAFE: [&str; 6] =
    ["crates/media", "crates/rtsp", "crates/graph", "crates/runtime", "control-plane", "xtask"];
/// Crates without a clock, whose `clippy.toml` replaces the root's.
const NO_CLOCK: [&str; 4] = ["crates/media", "crates/rtsp", "crates/graph", "crates/fastpath"];

/// What is not inherited or not forbidden.
pub(super) fn check() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for path in super::files(&["Cargo.toml"])? {
        let text = std::fs::read_to_string(&path)?;
        let is_root = path == Path::new("Cargo.toml");
        if !is_root && !text.contains("[lints]\nworkspace = true") && !text.contains("[workspace]") {
            problems.push(format!("{} does not inherit the shared lints", path.display()));
        }
    }
    for folder in NO_UNSAFE {
        let root = ["src/lib.rs", "src/main.rs"].map(|file| Path::new(folder).join(file));
        for file in root.iter().filter(|file| file.exists()).take(1) {
            if !std::fs::read_to_string(file)?.contains("#![forbid(unsafe_code)]") {
                problems.push(format!("{} does not forbid unsafe code", file.display()));
            }
        }
    }
    let shared = std::fs::read_to_string("clippy.toml")?;
    let bans = shared.lines().filter(|line| line.trim_start().starts_with("{ path = "));
    let bans: Vec<&str> = bans.chain(["std::time::Instant::now", "std::time::SystemTime::now"]).collect();
    for folder in NO_CLOCK {
        let own = std::fs::read_to_string(Path::new(folder).join("clippy.toml")).unwrap_or_default();
        for ban in bans.iter().filter(|ban| !own.contains(ban.trim())) {
            problems.push(format!("{folder}/clippy.toml lacks: {}", ban.trim()));
        }
    }
    Ok(problems)
}
