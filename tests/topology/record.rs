//! What a test measured goes into a file of `docs/results`: each test writes the section that is its own.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use msm_tests::process::output;
use msm_tests::proxy::program;

/// Puts `text` in the place of the section `## heading` of a file, or behind what is there already.
pub(crate) fn put(file: &str, heading: &str, text: &str) -> Result<()> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results")).join(file);
    let former = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    std::fs::write(&path, replaced(&former, heading, text)?)?;
    Ok(())
}

fn replaced(former: &str, heading: &str, text: &str) -> Result<String> {
    let mut parts: Vec<String> = Vec::new();
    for line in former.lines() {
        if line.starts_with("## ") || parts.is_empty() {
            parts.push(String::new());
        }
        writeln!(parts.last_mut().context("a part")?, "{line}")?;
    }
    let section = format!("## {heading}\n\n{}\n", text.trim_end());
    match parts.iter_mut().find(|part| part.lines().next() == Some(&format!("## {heading}"))) {
        Some(part) => *part = section,
        None => parts.push(section),
    }
    Ok(parts.iter().map(|part| part.trim_end()).collect::<Vec<_>>().join("\n\n") + "\n")
}

/// How the proxy was built that tests start.
pub(crate) fn build() -> Result<&'static str> {
    let is_release = program()?.components().any(|part| part.as_os_str() == "release");
    Ok(if is_release { "release" } else { "debug" })
}

/// When and with what it was measured, as one sentence without its end. `build`: how the proxy was built.
pub(crate) fn stamp(build: &str) -> Result<String> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "{}, {} cores, Linux {}, load average {} at the end, {build} build of the proxy",
        output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?.trim(),
        std::thread::available_parallelism()?,
        output("uname", &["-r"])?.trim(),
        load.split(' ').next().unwrap_or_default()
    ))
}

#[test]
fn a_section_that_is_recorded_again_leaves_the_others_as_they_were() {
    let former = "# Title\n\nIntroduction.\n\n## One\n\nold\n\n## Two\n\nkept\n";
    let one = replaced(former, "One", "new\nlines\n\n").unwrap();
    assert_eq!(one, "# Title\n\nIntroduction.\n\n## One\n\nnew\nlines\n\n## Two\n\nkept\n");
    let three = replaced(&one, "Three", "more").unwrap();
    assert_eq!(three, format!("{one}\n## Three\n\nmore\n"));
}
