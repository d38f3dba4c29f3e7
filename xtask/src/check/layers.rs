//! Which crate may use which (`ARCHITECTURE.md`): compared with what cargo resolves.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Crate and what of ours it may use, build dependencies included.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("msm-fastpath", &[]),
    ("msm-graph", &[]),
    ("msm-handover", &[]),
    ("msm-rtsp", &["msm-handover"]),
    ("msm-runtime", &[]),
    ("msm-media", &["msm-fastpath", "msm-handover"]),
    ("msm-control-plane", &["msm-rtsp", "msm-graph", "msm-handover", "msm-runtime"]),
    (
        "rtp-proxy",
        &[
            "msm-media",
            "msm-fastpath",
            "msm-handover",
            "msm-rtsp",
            "msm-graph",
            "msm-runtime",
            "msm-control-plane",
        ],
    ),
    ("rtp-proxy-ebpf", &["msm-fastpath"]),
    // The harness looks from outside; its test programs may use what they test.
    ("msm-tests", &[]),
    ("xtask", &["msm-tests"]),
];

/// Uses that are not allowed, and crates without a line above.
pub(super) fn check() -> Result<Vec<String>> {
    let packages = packages()?;
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut problems = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            problems.push(format!("{name} has no line in check/layers.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"] != "dev" && ours.contains(&used) && !allowed.contains(&used) {
                problems.push(format!("{name} uses {used}, which is sideways or upwards"));
            }
        }
    }
    Ok(problems)
}

/// Names of the workspace's crates.
pub(super) fn members() -> Result<Vec<String>> {
    Ok(packages()?.iter().filter_map(|package| package["name"].as_str().map(str::to_owned)).collect())
}

fn packages() -> Result<Vec<Value>> {
    let metadata = msm_tests::process::output("cargo", &["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    metadata["packages"].as_array().cloned().context("cargo metadata lists no packages")
}
