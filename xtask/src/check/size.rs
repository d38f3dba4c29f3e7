//! Files stay near 500 lines (`CONTRIBUTING.md`): tests and tables are exempt, state machines by name.

use anyhow::Result;

/// "Near 500": a tenth more is not worth a cut in the wrong place.
const LIMIT: usize = 550;

/// Files that may be longer, each with its reason.
const EXEMPT: &[(&str, &str)] = &[];

/// Names of files above the limit.
pub(super) fn check() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for path in super::files(&[".rs"])? {
        let name = path.to_string_lossy();
        let is_test = name.starts_with("tests/") || name.ends_with("/tests.rs") || name.contains("/tests/");
        if is_test || EXEMPT.iter().any(|(exempt, _)| *exempt == name) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        // Tests in a file come last.
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(&text);
        let lines = code.lines().count();
        if lines > LIMIT {
            problems.push(format!(
                "{name}: {lines} lines, at most {LIMIT}; split it, or name it in check/size.rs"
            ));
        }
    }
    for (exempt, _) in EXEMPT {
        if !std::path::Path::new(exempt).exists() {
            problems.push(format!("check/size.rs names {exempt}, which does not exist"));
        }
    }
    Ok(problems)
}
