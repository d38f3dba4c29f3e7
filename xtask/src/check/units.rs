//! Units are what systemd understands: `systemd-analyze verify` says nothing about them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use msm_tests::privilege::{find_program, is_ci};
use msm_tests::process::Scratch;

/// Where the units expect the proxy; here something that every machine has stands in for it.
const INSTALLED: &str = "/usr/local/bin/rtp-proxy";
const STAND_IN: &str = "/bin/true";
const FOLDER: &str = "deploy/systemd";

/// What systemd says about the units.
pub(super) fn check() -> Result<Vec<String>> {
    let units = super::files(&[".service"])?;
    let units: Vec<_> = units.into_iter().filter(|path| path.starts_with(FOLDER)).collect();
    if find_program("systemd-analyze").is_none() {
        if is_ci() {
            return Ok(vec!["systemd-analyze is not installed: run cargo xtask setup".to_owned()]);
        }
        println!("skipped: systemd-analyze is not installed: run cargo xtask setup");
        return Ok(Vec::new());
    }
    let scratch = Scratch::new("units")?;
    let mut problems = Vec::new();
    for unit in units {
        problems.extend(verify(&unit, &scratch)?);
    }
    Ok(problems)
}

fn verify(unit: &Path, scratch: &Scratch) -> Result<Vec<String>> {
    let name = unit.file_name().context("a unit has a name")?.to_string_lossy().into_owned();
    let copy = scratch.file(&name);
    let text = std::fs::read_to_string(unit).with_context(|| unit.display().to_string())?;
    std::fs::write(&copy, text.replace(INSTALLED, STAND_IN))?;
    let said = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    // Units of the machine are none of ours.
    Ok(said.lines().filter(|line| line.contains("rtp-proxy")).map(str::to_owned).collect())
}
